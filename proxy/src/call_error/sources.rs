//! How errors of the parts below become call errors.

use std::time::Duration;

use postern_driver_core::DriverError;
use postern_store::{InvalidPageToken, InvalidSelector, StoreError};

use super::CallError;

/// When to try again after the store was away: its own timeouts are of this order.
const STORE_RETRY: Duration = Duration::from_secs(2);
/// When to try again after the runtime was away.
const DRIVER_RETRY: Duration = Duration::from_secs(5);

impl From<StoreError> for CallError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::AlreadyExists { kind, name, .. } => {
                Self::AlreadyExists { what: format!("{kind} {name:?}") }
            }
            StoreError::Conflict { .. } => {
                Self::Aborted { reason: "VERSION_CONFLICT", description: error.to_string() }
            }
            StoreError::PayloadTooLarge { .. } => Self::invalid("spec", error.to_string()),
            StoreError::ForeignPageKey => Self::invalid("page_token", error.to_string()),
            StoreError::Unavailable { .. } => {
                // The cause names files of the host; callers learn only that it may pass.
                tracing::error!(error = %super::Chain(&error), "store unavailable");
                Self::Unavailable {
                    reason: "STORE_UNAVAILABLE",
                    description: "the gateway cannot reach its database; try again".to_owned(),
                    retry_after: Some(STORE_RETRY),
                }
            }
            other => Self::internal("reading or writing the database", other),
        }
    }
}

impl From<DriverError> for CallError {
    fn from(error: DriverError) -> Self {
        match error {
            DriverError::NotFound { .. } => Self::FailedPrecondition {
                reason: "BACKEND_MISSING",
                description: error.to_string(),
            },
            DriverError::AlreadyExists { id } => {
                Self::AlreadyExists { what: format!("sandbox {id} on the runtime") }
            }
            DriverError::InvalidArgument { field, problem, .. } => Self::invalid(field, problem),
            DriverError::FailedPrecondition { .. } => Self::FailedPrecondition {
                reason: "DRIVER_REFUSED",
                description: error.to_string(),
            },
            DriverError::Unavailable { .. } => Self::Unavailable {
                reason: "DRIVER_UNAVAILABLE",
                description: error.to_string(),
                retry_after: Some(DRIVER_RETRY),
            },
            DriverError::Unimplemented { operation } => {
                Self::Unimplemented { what: operation.into() }
            }
            other => Self::internal("asking the compute driver", other),
        }
    }
}

impl From<InvalidSelector> for CallError {
    fn from(error: InvalidSelector) -> Self {
        Self::invalid("label_selector", error.to_string())
    }
}

impl From<InvalidPageToken> for CallError {
    fn from(error: InvalidPageToken) -> Self {
        Self::invalid("page_token", error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn driver_refusals_keep_their_code() {
        let id = || "s".to_owned();
        let precondition = DriverError::FailedPrecondition {
            id: id(),
            problem: "no disk".into(),
            next: "free some",
        };
        assert_eq!(CallError::from(precondition).code(), tonic::Code::FailedPrecondition);
        assert_eq!(
            CallError::from(DriverError::AlreadyExists { id: id() }).code(),
            tonic::Code::AlreadyExists
        );
        let away = DriverError::Unavailable {
            id: id(),
            problem: "down".into(),
            next: "retry",
            source: None,
        };
        let error = CallError::from(away);
        assert_eq!(error.code(), tonic::Code::Unavailable);
        assert!(error.retry_after().is_some());
    }
}
