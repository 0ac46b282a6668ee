//! The gateway: everything between an accepted socket and a relay into a sandbox.
//!
//! Start reading at `stack`: it turns the lists of the configuration into the four stacks of layers. `gateway`
//! assembles the parts and is what the `postern` command runs.

#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

// Foundation.
pub mod config;
pub mod command;
pub mod gateway;
pub mod telemetry;
pub mod respond;
pub mod listen;
pub mod health;
pub mod drain;

// Lifecycle.
pub mod call_error;
pub mod canonical;
pub mod lifecycle;
pub mod names;
pub mod validation;

// Relay plane.
pub mod auth;
pub mod handlers;
pub mod authorize;
pub mod relay_plane;
pub mod stack;
