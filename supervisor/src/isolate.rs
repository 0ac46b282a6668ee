//! The sandbox: what separates the agent's processes from this machine.
//!
//! The supervisor stays in the host's namespaces. It starts one small single-threaded process, the
//! *sandbox init*, which enters PID, mount, network, UTS and IPC namespaces of its own (and a user
//! namespace when it is not root), arranges the file tree, and then does three things on request:
//! start a command, end a command's whole process tree, and hand out a socket made inside the
//! sandbox's network namespace. So the supervisor never has to enter a namespace itself, and the
//! multi-threaded process never forks.
//!
//! | module | what |
//! |---|---|
//! | [`sandbox`] | the supervisor's side: launch, spawn, kill, dial |
//! | [`report`] | which control is enforced, and how |
//! | `wire` | packets between the two sides |
//! | `init` | process 1 of the sandbox |
//! | `shim` | one small process per command, which owns its tree |
//! | `child` | the last steps before a command runs: terminal, identity, limits |
//! | `tree` | the file tree that the agent sees |
//!
//! The rest of the cage (Landlock, seccomp, cgroups) belongs here too: file rules beside `tree`,
//! system call filter and limits in `child`, each with its line in the report.

mod child;
pub(crate) mod init;
pub mod report;
pub mod sandbox;
mod shim;
mod tree;
mod wire;

pub use report::{Control, IsolationReport};
pub use sandbox::{
    Exit, IsolateError, Launched, Process, Program, Reexec, Sandbox, Setup, SpawnSpec, Stdio,
    TerminalSize,
};
pub(crate) use wire::{ModeMessage, SizeMessage};

/// Name of the hidden mode in which this program becomes a sandbox's init.
pub(crate) const INIT_MODE: &str = "sandbox-init";
