//! Compute driver that runs supervisor and agent as processes of this host.
//!
//! One supervisor process per sandbox, in its own session, with everything it needs in its
//! environment and one directory per sandbox under the state directory. The supervisor outlives
//! the gateway: a new [`ProcessDriver`] over the same state directory finds every sandbox again,
//! by the identity that each supervisor wrote down before it became one.
//!
//! ```text
//! <state_dir>/driver.lock            held by the one driver that uses this directory
//! <state_dir>/sandboxes/<id>/
//!     spec.pb      0600  what was asked for, without the token
//!     agent        0600  uid and gid of the agent
//!     token        0600  the sandbox's credential; the supervisor renews it in place
//!     pid          0600  identity of the supervisor process
//!     stopped            present while the sandbox is stopped
//!     ended              present when the driver will not start it again by itself: reason, text
//!     main-process-exited   left by a supervisor whose main process ended and was reported
//!     supervisor.lock    flock held by the supervisor for its life
//!     home/ tmp/         the agent's, on every start the same
//!     run/               the supervisor's socket and reports
//!     log/               what the supervisor wrote to its standard streams, bounded
//! ```
//!
//! Read `keeper.rs` first: one task per sandbox, which owns it.

#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod config;
mod driver;
mod environment;
mod error;
mod identity;
mod keeper;
mod launch;
mod layout;
mod log;
mod procfs;
mod record;
mod restart;
mod supervisor;
mod sys;
mod uids;

pub use config::{CommandSpec, Config};
pub use driver::{DRIVER_NAME, ProcessDriver};
pub use error::OpenError;
