//! The supervisor as a process: its sandbox, its SSH server with real OpenSSH clients, its session.
//!
//! The tests that need namespaces run as root and are skipped, loudly, otherwise.

#![allow(clippy::unwrap_used)]

mod gateway;
mod harness;
mod isolation;
mod lifecycle;
mod session;
mod ssh;
mod transfer;
