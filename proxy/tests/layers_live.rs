//! What each layer does on a running gateway: there, with other values, in another place, and not there.
//!
//! Every test writes a `gateway.toml`, starts the whole gateway from it in this process, and looks from outside: over
//! sockets, in the audit file, in the metrics. Read `layers_live/gateway.rs` for how a file is put together, then any
//! of the others; each has one plane.

#![allow(clippy::unwrap_used, unreachable_pub)]

#[path = "layers_live/gateway.rs"]
mod gateway;
#[allow(dead_code, reason = "shared with the tests of relays, which use more of it")]
#[path = "relays/scripted.rs"]
mod scripted;

#[path = "layers_live/audit.rs"]
mod audit;
#[path = "layers_live/call.rs"]
mod call;
#[path = "layers_live/connection.rs"]
mod connection;
#[path = "layers_live/order.rs"]
mod order;
#[path = "layers_live/relay.rs"]
mod relay;
