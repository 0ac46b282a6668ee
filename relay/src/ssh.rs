//! SSH client over any byte stream, and a pool of such clients.
//!
//! The gateway runs commands in a sandbox as an SSH client of the sandbox's own SSH server,
//! through a relay and inside its process: no listening socket, and any OpenShell-compatible
//! supervisor will do.
//!
//! *Shape*: [`SshClient::connect`] takes a stream (a [`crate::splice::RelayIo`]);
//! [`SshClient::exec`] gives an [`ExecChannel`] of stdin, events and control. [`SshPool`] keeps
//! connections warm per sandbox.
//!
//! *Ends*: the end of stdin is sent as end of file only, never as a close, so output that follows
//! it is not lost. The last event is the exit; a channel that ends without one is an error, never
//! exit code 0 or 1. Dropping the events closes the channel, which makes a Postern supervisor end
//! the command's whole process tree.
//!
//! *Limits*: see [`Options`] and [`PoolConfig`]. A channel whose reader stalls holds at most
//! [`CHANNEL_BUFFER`] packets of [`PACKET_MAX`] bytes, and then stalls its connection: russh
//! widens windows when packets arrive, not when they are read. The pool therefore gives each
//! running command its own connection as long as its limit lets it.
//!
//! *Source*: RFC 4254 sections 5.2, 5.3, 6.5 and 6.10; OpenShell contract for user, method,
//! keepalive and the wait for trailing output.

mod client;
mod error;
mod exec;
mod pool;
#[cfg(test)]
mod tests;

pub use client::{CHANNEL_BUFFER, Options, PACKET_MAX, SshClient, WINDOW};
pub use error::SshError;
pub use exec::{
    ExecChannel, ExecControl, ExecEvent, ExecEvents, ExecSpec, ExecStdin, Exit, Pty, TRAILING_WAIT,
};
pub use pool::{PoolConfig, PoolError, SshPool};
