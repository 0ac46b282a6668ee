//! The relay path of Postern: byte channels between requesters and sandboxes.
//!
//! A sandbox's supervisor holds one *session* with the gateway. When somebody wants bytes to flow
//! to a target inside the sandbox, the gateway asks for a *relay* over the session, the supervisor
//! dials back with one `RelayStream` call, and the two byte streams are *spliced*.
//!
//! | module | what |
//! |---|---|
//! | [`frame`] | gRPC and protobuf framing of relay data: scanner, decoder, encoder; no IO |
//! | [`session`] | liveness and states of one session; pure, takes `now` |
//! | [`registry`] | who is connected, which relays are pending or live; opening and claiming |
//! | [`splice`] | joining the two bodies of a relay; abort, accounting |
//! | [`bridge`] | joining a socket with framed bodies (supervisor end, `CONNECT` end) |
//! | [`transport`] | one HTTP/2 connection to the gateway, for generated clients and for bodies |
//! | [`ssh`] | SSH client over a relay, pooled per sandbox |
//!
//! Nothing here decides who may do what, and nothing here counts against a cap: policy,
//! authentication and limits are layers in front of [`registry::Opener`].

#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod body;
pub mod bridge;
pub mod frame;
pub mod registry;
pub mod session;
pub mod splice;
pub mod ssh;
#[cfg(test)]
mod testing;
pub mod transport;
