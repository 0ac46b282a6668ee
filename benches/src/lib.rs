//! Benches and load generators for the relay path.
//!
//! Three commands stand on this crate: `postern-bench` (one figure each), `postern-load` (open-loop load) and
//! `postern-compare` (the relay beside bare copies and peers, alternating). All of them start what they measure as
//! processes of their own, so that memory and processor time belong to one part; those parts are the [`role`]s.
//!
//! | module | what |
//! |---|---|
//! | [`access`] | how a gateway is reached: URL, certificates, HTTP/2 settings |
//! | [`client`] | the user's side of the contract: sandboxes, exec, relays |
//! | [`supervisor`] | a scripted supervisor: session, heartbeats, relays to a local target |
//! | [`target`] | what a relay leads to: echo, sink, source |
//! | [`role`] | processes: gateway, target, copy hop, forward, delay proxy |
//! | [`lab`] | a gateway of one's own with sandboxes in it |
//! | [`schedule`] | constant arrival rate, free of coordinated omission |
//! | [`measure`] | latencies and rates while they happen |
//! | [`report`] | what was measured: table, JSON, plots |
//! | [`scenario`] | what `postern-load` can do to a gateway |
//! | [`figure`] | what `postern-bench` prints |
//! | [`compare`] | what `postern-compare` runs |
//!
//! Nothing here asserts a wall time: a figure is printed beside its aim, and a person judges.

#![deny(missing_docs)]

pub mod access;
pub mod client;
pub mod compare;
pub mod error;
pub mod figure;
pub mod host;
pub mod lab;
pub mod measure;
pub mod report;
pub mod role;
pub mod scenario;
pub mod schedule;
pub mod supervisor;
pub mod target;

pub use error::BenchError;
