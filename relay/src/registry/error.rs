//! What can go wrong when a session registers or a relay is opened or claimed.

use std::sync::Arc;
use std::time::Duration;

use tonic::Code;

use crate::splice::Side;

/// Why a relay was not opened.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The sandbox has no session now. Nothing was sent; trying again is safe, and worth it once
    /// [`super::Registry::ready`] says so.
    #[error("sandbox {sandbox_id} has no supervisor session")]
    NoSession {
        /// The sandbox.
        sandbox_id: Arc<str>,
    },
    /// The session went away while the relay was pending and no newer one claimed it in time.
    #[error("supervisor session of sandbox {sandbox_id} was lost while the relay was being opened")]
    SessionLost {
        /// The sandbox.
        sandbox_id: Arc<str>,
    },
    /// The supervisor did not dial back in time.
    #[error("supervisor of sandbox {sandbox_id} did not open the relay within {} ms", waited.as_millis())]
    ClaimTimeout {
        /// The sandbox.
        sandbox_id: Arc<str>,
        /// How long was waited.
        waited: Duration,
    },
    /// The supervisor answered that it cannot open the target.
    #[error("{message}")]
    Refused {
        /// Code of the supervisor, or unavailable when it sent none.
        code: Code,
        /// The supervisor's words.
        message: String,
    },
    /// The gateway ended the sandbox's session (stop, delete).
    #[error("session of sandbox {sandbox_id} was ended: {reason}")]
    Disconnected {
        /// The sandbox.
        sandbox_id: Arc<str>,
        /// gRPC code of the end.
        code: Code,
        /// Why.
        reason: String,
    },
    /// The gateway is going down and opens no more relays.
    #[error("gateway is draining and opens no more relays; try another gateway or later")]
    Draining,
}

impl OpenError {
    /// gRPC code for the caller.
    pub fn code(&self) -> Code {
        match self {
            Self::NoSession { .. } | Self::SessionLost { .. } | Self::Draining => Code::Unavailable,
            Self::ClaimTimeout { .. } => Code::DeadlineExceeded,
            Self::Refused { code, .. } | Self::Disconnected { code, .. } => *code,
        }
    }

    /// Who is at fault.
    pub fn side(&self) -> Side {
        match self {
            Self::Disconnected { .. } | Self::Draining => Side::Gateway,
            _ => Side::Supervisor,
        }
    }

    /// Whether trying again can do no harm: nothing has reached the target.
    pub fn is_retry_safe(&self) -> bool {
        matches!(
            self,
            Self::NoSession { .. } | Self::SessionLost { .. } | Self::ClaimTimeout { .. }
        )
    }
}

/// Why a claim was turned down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClaimError {
    /// No relay with this id waits to be claimed: unknown, expired, abandoned or claimed before.
    /// The four look alike on purpose.
    #[error("unknown or expired relay channel")]
    NotFound,
    /// The relay waits for another sandbox. It goes on waiting.
    #[error("relay channel belongs to another sandbox")]
    PermissionDenied,
}

impl ClaimError {
    /// gRPC code for the caller.
    pub const fn code(self) -> Code {
        match self {
            Self::NotFound => Code::NotFound,
            Self::PermissionDenied => Code::PermissionDenied,
        }
    }
}

/// Why a session was not registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError {
    /// The gateway is going down.
    #[error("gateway is draining and accepts no more sessions")]
    Draining,
}

impl RegisterError {
    /// gRPC code for the supervisor, which then reconnects later.
    pub const fn code(self) -> Code {
        Code::Unavailable
    }
}
