//! Why a bench cannot go on.

use std::io;
use std::path::PathBuf;

use postern_relay::transport::TransportError;
use tonic::Status;

/// Why a bench cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BenchError {
    /// Something of this machine failed.
    #[error("cannot {action}")]
    Io {
        /// What was tried.
        action: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A certificate, key or token file cannot be used.
    #[error("{path} cannot be used: {why}")]
    Credential {
        /// Which file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// The gateway cannot be reached.
    #[error("cannot connect to the gateway")]
    Connect(#[from] TransportError),
    /// The gateway refused a call, or a relay broke.
    #[error("cannot {action}: {:?}: {}", status.code(), status.message())]
    Refused {
        /// What was tried.
        action: String,
        /// What the gateway said.
        status: Box<Status>,
    },
    /// A part did not do what it should.
    #[error("{part} {problem}")]
    Unexpected {
        /// Which part.
        part: String,
        /// What it did.
        problem: String,
    },
    /// A plot could not be drawn.
    #[error("cannot draw {path}: {why}")]
    Plot {
        /// Where to.
        path: PathBuf,
        /// Why not.
        why: String,
    },
}

impl BenchError {
    /// An IO error with what was being done.
    pub fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        move |source| Self::Io { action, source }
    }

    /// A status with what was being done.
    pub fn refused(action: impl Into<String>) -> impl FnOnce(Status) -> Self {
        let action = action.into();
        move |status| Self::Refused { action, status: Box::new(status) }
    }

    /// A part that misbehaved.
    pub fn unexpected(part: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Unexpected { part: part.into(), problem: problem.into() }
    }

    /// The error and its causes in one line.
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    }
}
