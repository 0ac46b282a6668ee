//! What makes a compute driver: the trait, its types, and a conformance suite over any driver.
//!
//! A driver makes sandboxes exist on one runtime (processes of this host, Kubernetes pods, virtual
//! machines). It knows nothing of supervisor sessions, users or phases: it says what the runtime
//! did, in conditions, and the gateway decides what that means.
//!
//! Read [`ComputeDriver`] first, then [`condition`] for the vocabulary that both sides share.
//! [`Inventory`] keeps the public state of a driver and feeds its watchers; a driver that uses it
//! gets the watch rules right for free. With the feature `conformance`, `conformance::run` tries
//! every rule of the trait on a real driver.

#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod condition;
#[cfg(feature = "conformance")]
pub mod conformance;
mod driver;
mod error;
mod identity;
mod inventory;
mod watch;

pub use driver::{ComputeDriver, SandboxRef};
pub use error::DriverError;
pub use identity::{InvalidSandboxId, MAX_SANDBOX_ID_BYTES, SandboxToken, check_sandbox_id};
pub use inventory::Inventory;
pub use watch::{EmptyWatchEvent, WatchEvent, WatchStream};

/// The messages of the contract that drivers and gateway exchange.
pub use postern_proto::compute;
