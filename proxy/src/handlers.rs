//! What the calls of the contract do.

pub mod config;
pub mod logs;
pub mod main_process;
pub mod sandboxes;
pub mod watch;
