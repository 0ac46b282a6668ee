//! The gateway: everything between an accepted socket and a relay into a sandbox.
//!
//! Start reading at `stack`: it turns the lists of the configuration into the four stacks of layers. `gateway`
//! assembles the parts and is what the `postern` command runs.

#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

// Foundation.
pub mod admin;
pub mod command;
pub mod config;
pub mod drain;
pub mod gateway;
pub mod health;
pub mod listen;
pub mod reload;
pub mod respond;
pub mod telemetry;

// Lifecycle.
pub mod call_error;
pub mod canonical;
pub mod lifecycle;
pub mod names;
pub mod validation;

// Relay plane.
pub mod auth;
pub mod authorize;
pub mod handlers;
pub mod relay_plane;
pub mod stack;
