//! Why a driver could not be opened, and how file errors become driver errors.

use std::io;
use std::path::PathBuf;

use postern_driver_core::DriverError;

/// Why [`ProcessDriver::new`](crate::ProcessDriver::new) refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A value of the configuration cannot work.
    #[error("[openshell.drivers.process] {key}: {problem}")]
    Config {
        /// The key at fault.
        key: &'static str,
        /// What is wrong and what to write instead.
        problem: String,
    },
    /// The state directory is not safe to use.
    #[error("state directory {}: {problem}", path.display())]
    Unsafe {
        /// The path at fault.
        path: PathBuf,
        /// What is wrong with it and what to do.
        problem: String,
    },
    /// Another driver uses the state directory.
    #[error(
        "state directory {} is in use by another gateway; stop that one or choose another state_dir",
        path.display()
    )]
    InUse {
        /// The state directory.
        path: PathBuf,
    },
    /// The state directory could not be made or read.
    #[error("could not {action} {}", path.display())]
    Io {
        /// What was tried, as a verb.
        action: &'static str,
        /// The path it was tried on.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
}

/// A file or process operation of one sandbox that failed.
#[derive(Debug, thiserror::Error)]
#[error("could not {action}")]
pub(crate) struct Failure {
    /// What was tried, as a verb with its object.
    pub(crate) action: &'static str,
    /// The system's answer.
    #[source]
    pub(crate) source: io::Error,
}

/// Names what an IO operation was for.
pub(crate) trait Context<T> {
    /// Turns an IO error into a [`Failure`] of `action`.
    fn context(self, action: &'static str) -> Result<T, Failure>;
}

impl<T> Context<T> for io::Result<T> {
    fn context(self, action: &'static str) -> Result<T, Failure> {
        self.map_err(|source| Failure { action, source })
    }
}

impl Failure {
    /// The driver error of this failure. A full disk may have room again, so that is Unavailable.
    pub(crate) fn of(self, id: &str) -> DriverError {
        let id = id.to_owned();
        let problem = format!("could not {}: {}", self.action, self.source);
        match self.source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DriverError::Unavailable {
                id,
                problem,
                next: "free space under the state directory and try again",
                source: Some(Box::new(self.source)),
            },
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::OutOfMemory => {
                DriverError::Unavailable {
                    id,
                    problem,
                    next: "try again",
                    source: Some(Box::new(self.source)),
                }
            }
            _ => DriverError::Internal {
                id,
                problem,
                next: "check the state directory's permissions and the driver's configuration",
                source: Some(Box::new(self.source)),
            },
        }
    }
}
