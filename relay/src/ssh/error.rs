//! What can go wrong between us and a sandbox's SSH server.

use std::time::Duration;

use tonic::Code;

/// A failure of an SSH connection or of one command on it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SshError {
    /// Key exchange failed.
    #[error("ssh handshake with the sandbox failed")]
    Handshake {
        /// The cause.
        #[source]
        source: russh::Error,
    },
    /// The server showed another key than the supervisor announced.
    #[error("sandbox showed ssh host key {shown}, expected {expected}")]
    HostKey {
        /// Fingerprint we were told to expect.
        expected: String,
        /// Fingerprint shown.
        shown: String,
    },
    /// Method `none` was refused.
    #[error("sandbox's ssh server refused user {user} without a key")]
    AuthRefused {
        /// The user.
        user: String,
    },
    /// Something took too long.
    #[error("{what} took longer than {} ms", after.as_millis())]
    Timeout {
        /// What did.
        what: &'static str,
        /// The limit.
        after: Duration,
    },
    /// No channel for the command; it has not been started.
    #[error("sandbox's ssh server opened no channel")]
    ChannelOpen {
        /// The cause.
        #[source]
        source: russh::Error,
    },
    /// The server refused to start the command or to give it a terminal.
    #[error("sandbox's ssh server refused to start the command")]
    Refused,
    /// The connection or the channel ended before the command's exit status.
    #[error("connection to the sandbox was lost before the command ended: {reason}")]
    Lost {
        /// Code of the relay's end when that was the cause, else unavailable.
        code: Code,
        /// Why, as far as is known.
        reason: String,
    },
    /// [`super::ExecControl::cancel`] was called.
    #[error("command was cancelled")]
    Cancelled,
    /// A signal name that SSH cannot carry.
    #[error("{name:?} is no signal name; write it without SIG, as in TERM")]
    BadSignal {
        /// The name.
        name: String,
    },
}

impl SshError {
    /// gRPC code for the caller.
    pub fn code(&self) -> Code {
        match self {
            Self::Handshake { .. }
            | Self::ChannelOpen { .. }
            | Self::Refused
            | Self::Timeout { .. } => Code::Unavailable,
            Self::HostKey { .. } => Code::FailedPrecondition,
            Self::AuthRefused { .. } => Code::PermissionDenied,
            Self::Lost { code, .. } => *code,
            Self::Cancelled => Code::Cancelled,
            Self::BadSignal { .. } => Code::InvalidArgument,
        }
    }

    /// Whether the command has certainly not been started.
    pub fn is_before_start(&self) -> bool {
        matches!(
            self,
            Self::Handshake { .. }
                | Self::HostKey { .. }
                | Self::AuthRefused { .. }
                | Self::ChannelOpen { .. }
        )
    }
}
