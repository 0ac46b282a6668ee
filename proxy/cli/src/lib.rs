//! The user's side of the `postern` command.
//!
//! [`args`] is the grammar, [`commands`] does the work, [`registration`] is what existing OpenShell
//! clients and this one know of gateways, on disk.

#![deny(missing_docs)]

pub mod args;
pub mod commands;
pub mod connection;
pub mod error;
pub mod output;
mod progress;
pub mod registration;
mod terminal;
mod tls;
pub mod tunnel;

pub use progress::wait_ready;
