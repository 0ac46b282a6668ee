//! The agent inside each sandbox: session client, SSH server, isolation.

#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod environment;
pub mod isolate;
mod sftp;
pub mod ssh;
mod sys;
pub mod terminal;
