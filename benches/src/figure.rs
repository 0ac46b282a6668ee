//! What `postern-bench` prints: one figure by one command, each beside its aim.

mod create;
mod exec;
mod idle;

pub use create::{CreateArgs, run as create};
pub use exec::{ExecArgs, run as exec};
pub use idle::{IdleArgs, run as idle};
