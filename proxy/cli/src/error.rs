//! What can go wrong on the user's side, and what to do next.

use std::io;

use tonic_types::StatusExt as _;

use crate::registration::RegistrationError;

/// Exit code when a command could not be run at all, as ssh has it.
pub const EXIT_FAILED: u8 = 255;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CliError {
    /// The registration on disk.
    #[error(transparent)]
    Registration {
        /// What was wrong.
        #[from]
        source: RegistrationError,
    },
    /// The gateway could not be reached.
    #[error("cannot reach the gateway at {endpoint}; is it running? `postern status` tells")]
    Unreachable {
        /// Its URL.
        endpoint: String,
        /// Why not.
        #[source]
        source: postern_relay::transport::TransportError,
    },
    /// The gateway answered with an error.
    #[error("{action}: {}", told(status))]
    Refused {
        /// What was asked for.
        action: String,
        /// The answer.
        status: Box<tonic::Status>,
    },
    /// The gateway's address cannot be used.
    #[error("{endpoint:?} is not a gateway URL: {why}")]
    BadEndpoint {
        /// What was given.
        endpoint: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The certificates on disk cannot be used.
    #[error("the certificates of gateway {name:?} cannot be used: {why}")]
    BadCertificates {
        /// Registration.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// The command line asks for what cannot be.
    #[error("{message}")]
    Usage {
        /// What, and what to write instead.
        message: String,
    },
    /// A sandbox did not become ready.
    #[error("sandbox {name} is {phase}: {why}")]
    NotReady {
        /// Sandbox.
        name: String,
        /// Phase it is in.
        phase: &'static str,
        /// Condition that says why.
        why: String,
    },
    /// A stream ended in the middle.
    #[error("{action} ended before it was complete: {why}")]
    Cut {
        /// What was going on.
        action: String,
        /// What is known.
        why: String,
    },
    /// Something of this machine.
    #[error("cannot {action}")]
    Local {
        /// What was tried.
        action: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl CliError {
    /// From an answer of the gateway.
    #[must_use]
    pub fn refused(action: impl Into<String>, status: tonic::Status) -> Self {
        Self::Refused { action: action.into(), status: Box::new(status) }
    }

    /// From a failure of this machine.
    #[must_use]
    pub fn local(action: impl Into<String>, source: io::Error) -> Self {
        Self::Local { action: action.into(), source }
    }

    /// From a command line that asks for what cannot be.
    #[must_use]
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Usage { message: message.into() }
    }

    /// The error and its causes on one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

/// An answer in words: its message, its machine-readable reason, its code.
fn told(status: &tonic::Status) -> String {
    let mut text = if status.message().is_empty() {
        status.code().description().to_owned()
    } else {
        status.message().to_owned()
    };
    if let Some(info) = status.get_details_error_info() {
        text.push_str(&format!(" [{}]", info.reason));
    } else {
        text.push_str(&format!(" [{:?}]", status.code()));
    }
    text
}
