//! The relay path through a whole gateway in this process: real sockets, real HTTP/2, a real session registry, and a
//! scripted supervisor that can be made to misbehave. Sandboxes exist only as records of a driver in memory.
//!
//! Read `relays/gateway.rs` for what stands, `relays/scripted.rs` for the supervisor, then any of the tests.

#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "relays/gateway.rs"]
mod gateway;
#[path = "relays/scripted.rs"]
mod scripted;

#[path = "relays/calls.rs"]
mod calls;
#[path = "relays/caps.rs"]
mod caps;
#[path = "relays/connect.rs"]
mod connect;
#[path = "relays/exec.rs"]
mod exec;
#[path = "relays/forward.rs"]
mod forward;
#[path = "relays/sessions.rs"]
mod sessions;
