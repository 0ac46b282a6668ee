//! What can go wrong in a driver, in the categories that a caller acts on.

use tonic::{Code, Status};

/// A source error of any type.
type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why a driver did not do what it was asked.
///
/// The variants are the answers the gateway treats differently; the texts say which sandbox and
/// what to do next. Texts reach API callers, so they hold no secret and no token.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// The driver owns no such sandbox. For Delete this is not an error: it answers `false`.
    #[error("no sandbox {id} on this driver; create it again or delete its record")]
    NotFound {
        /// The id (or name, if no id was given) that was asked for.
        id: String,
    },
    /// A sandbox with this id or name is there already; nothing was changed.
    #[error("sandbox {id} exists already; use it or delete it first")]
    AlreadyExists {
        /// The id that is taken.
        id: String,
    },
    /// The request can never succeed as it stands.
    #[error("sandbox {id}: {field} {problem}")]
    InvalidArgument {
        /// The sandbox the request was for.
        id: String,
        /// The field at fault, as the contract names it.
        field: &'static str,
        /// What is wrong with it and what to write instead.
        problem: String,
    },
    /// The request is right but the sandbox or the runtime is in the wrong state for it.
    #[error("sandbox {id}: {problem}; {next}")]
    FailedPrecondition {
        /// The sandbox the request was for.
        id: String,
        /// Which state stands in the way.
        problem: String,
        /// What would change that state.
        next: &'static str,
    },
    /// The runtime does not answer now. The same request may succeed later; it changed nothing or
    /// is safe to repeat.
    #[error("sandbox {id}: {problem}; {next}")]
    Unavailable {
        /// The sandbox the request was for, `*` when it was for all of them.
        id: String,
        /// What did not answer.
        problem: String,
        /// What to check or when to retry.
        next: &'static str,
        /// The runtime's own error.
        #[source]
        source: Option<Source>,
    },
    /// The runtime refused for a reason that neither caller nor gateway can act on.
    #[error("sandbox {id}: {problem}; {next}")]
    Internal {
        /// The sandbox the request was for, `*` when it was for all of them.
        id: String,
        /// What failed.
        problem: String,
        /// Where to look.
        next: &'static str,
        /// The runtime's own error.
        #[source]
        source: Option<Source>,
    },
    /// The driver has no such operation. Tolerated for workspaces and listener requirements.
    #[error("this driver has no {operation}; nothing was done")]
    Unimplemented {
        /// The method of the contract.
        operation: &'static str,
    },
}

impl DriverError {
    /// The gRPC code of this error, the same for embedded and external drivers.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } => Code::NotFound,
            Self::AlreadyExists { .. } => Code::AlreadyExists,
            Self::InvalidArgument { .. } => Code::InvalidArgument,
            Self::FailedPrecondition { .. } => Code::FailedPrecondition,
            Self::Unavailable { .. } => Code::Unavailable,
            Self::Internal { .. } => Code::Internal,
            Self::Unimplemented { .. } => Code::Unimplemented,
        }
    }

    /// Whether the same request may succeed later without anybody changing anything.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

impl From<DriverError> for Status {
    /// Text and code; the source chain stays behind, because it may name paths of the host.
    fn from(error: DriverError) -> Self {
        Self::new(error.code(), error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_keeps_code_and_text_but_not_the_source() {
        let error = DriverError::Internal {
            id: "s1".into(),
            problem: "could not write the token".into(),
            next: "see the gateway's log",
            source: Some("/secret/path: denied".into()),
        };
        let status = Status::from(error);
        assert_eq!(status.code(), Code::Internal);
        assert_eq!(
            status.message(),
            "sandbox s1: could not write the token; see the gateway's log"
        );
    }

    #[test]
    fn only_unavailable_is_worth_repeating() {
        assert!(!DriverError::NotFound { id: "s".into() }.is_retryable());
        assert!(
            DriverError::Unavailable {
                id: "*".into(),
                problem: "runtime is down".into(),
                next: "retry",
                source: None
            }
            .is_retryable()
        );
    }
}
