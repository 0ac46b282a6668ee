//! Reusable tower layers for HTTP and gRPC gateways, one effect each.
//!
//! Every layer is one file, one feature and one effect. It is generic over the request and the body, keeps the
//! error type of the service it wraps, and asks for what it needs of a request by a small trait. Nothing here
//! knows which gateway it stands in.
//!
//! # Index
//!
//! | layer | plane | effect | refuses with |
//! |---|---|---|---|
//! | [`authenticate`] | call | finds out who is calling, by a chain of authenticators | 401, `UNAUTHENTICATED` |
//! | [`authorize`] | call | lets through what a decision allows | 403, `PERMISSION_DENIED` |
//! | [`body_limit`] | call | caps the bytes of a request body | 413, `RESOURCE_EXHAUSTED` |
//! | [`concurrency_cap`] | call | caps the calls in progress, per key and in all | 503, `RESOURCE_EXHAUSTED` |
//! | [`deadline`] | call | bounds the time of a call, head and body | 504, `DEADLINE_EXCEEDED` |
//! | [`metrics`] | call | tells an observer when a call starts and how it ends | never |
//! | [`ocsf`] | call, relay | records what became of calls and relays as OCSF events | never |
//! | [`rate_limit`] | call | bounds the rate of calls, per key and in all | 429, `RESOURCE_EXHAUSTED` |
//! | [`request_id`] | call | gives every call a name that logs can be joined by | never |
//! | [`relay_caps`] | relay | caps the relays being opened and the live ones | `RESOURCE_EXHAUSTED` |
//! | [`relay_metrics`] | relay | tells an observer how the opening of a relay ends | never |
//! | [`session_wait`] | relay | waits for the far end to be there, within a budget | the last error of the opener |
//! | [`connection_cap`] | connection | caps connections, per peer address and in all | `RESOURCE_EXHAUSTED` |
//! | [`h2_window`] | connection | one description of HTTP/2 flow control, for server and client | never |
//! | [`handshake_deadline`] | connection | bounds the time a peer may take to become useful | `DEADLINE_EXCEEDED` |
//! | [`tls`] | connection | terminates TLS with a configuration that can be swapped | the handshake's error |
//!
//! # The three planes
//!
//! - **call**: `Service<http::Request<B>, Response = http::Response<B>>`. A refusal is a *response*, built by
//!   [`refuse`]: an HTTP status, or trailers-only gRPC when the request is gRPC.
//! - **relay**: `Service<R>` where `R` asks for a byte channel and the response is the open channel. A refusal is
//!   an *error*, built by [`FromRefusal`](refuse::FromRefusal).
//! - **connection**: `Service<C>` where `C` is an accepted socket and the future is the whole life of the
//!   connection. A refusal is an error here too.
//!
//! # Features
//!
//! `default = []`. One feature per layer of the table, with the layer's name; `full` turns all of them on. `serde`
//! lets every `Config` be read from a file, `hyper` lets [`h2_window`] configure hyper's builders, `testing` adds
//! the contract suite for layers of your own.

#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

// Shared pieces, always there.
pub mod config;
pub mod refuse;
pub mod select;
pub mod units;

// Call plane.
#[cfg(feature = "authenticate")]
pub mod authenticate;
#[cfg(feature = "authorize")]
pub mod authorize;
#[cfg(feature = "body_limit")]
pub mod body_limit;
#[cfg(feature = "concurrency_cap")]
pub mod concurrency_cap;
#[cfg(feature = "deadline")]
pub mod deadline;
#[cfg(feature = "metrics")]
pub mod metrics;
#[cfg(feature = "rate_limit")]
pub mod rate_limit;
#[cfg(feature = "request_id")]
pub mod request_id;

// Relay plane.
#[cfg(feature = "relay_caps")]
pub mod relay_caps;
#[cfg(feature = "relay_metrics")]
pub mod relay_metrics;
#[cfg(feature = "session_wait")]
pub mod session_wait;

// Call and relay plane.
#[cfg(feature = "ocsf")]
pub mod ocsf;

// Connection plane.
#[cfg(feature = "connection_cap")]
pub mod connection_cap;
#[cfg(feature = "h2_window")]
pub mod h2_window;
#[cfg(feature = "handshake_deadline")]
pub mod handshake_deadline;
#[cfg(feature = "tls")]
pub mod tls;

#[cfg(feature = "testing")]
pub mod testing;

// Parts that several layers share and nobody else needs.
#[cfg(any(feature = "request_id", feature = "session_wait"))]
mod mix;
#[cfg(any(feature = "concurrency_cap", feature = "connection_cap"))]
mod tally;
