//! What a caller is told when a relay could not be opened: the code stays what the layer, the registry or the
//! supervisor said, and a machine-readable reason goes with it.

use std::collections::HashMap;
use std::time::Duration;

use http::StatusCode;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::OpenError;
use crate::call_error::ERROR_DOMAIN;

/// When to try again after a loss that a reconnecting supervisor heals: its first retry comes within a second.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl From<OpenError> for Status {
    fn from(error: OpenError) -> Self {
        let mut details = ErrorDetails::new();
        let mut metadata = HashMap::new();
        if let OpenError::Refused(refusal) = &error {
            metadata.insert("layer".to_owned(), refusal.layer().to_owned());
        }
        details.set_error_info(reason(&error), ERROR_DOMAIN, metadata);
        if let Some(delay) = retry_after(&error) {
            details.set_retry_info(Some(delay));
        }
        Status::with_error_details(error.code(), error.to_string(), details)
    }
}

/// The word for programs.
fn reason(error: &OpenError) -> &'static str {
    match error.kind() {
        "refused" if error.code() == Code::ResourceExhausted => "RELAY_LIMIT_REACHED",
        "refused" => "RELAY_REFUSED",
        "no_session" => "NO_SUPERVISOR_SESSION",
        "session_lost" => "SUPERVISOR_SESSION_LOST",
        "claim_timeout" => "RELAY_NOT_CLAIMED",
        "refused_by_supervisor" => "TARGET_NOT_REACHED",
        "disconnected" => "SANDBOX_DISCONNECTED",
        "draining" => "GATEWAY_DRAINING",
        _ => "RELAY_NOT_OPENED",
    }
}

fn retry_after(error: &OpenError) -> Option<Duration> {
    if let OpenError::Refused(refusal) = error {
        return refusal.retry_after();
    }
    (error.code() == Code::Unavailable).then_some(RETRY_AFTER)
}

/// The HTTP status of a gRPC code on `/connect/ssh` (OpenShell contract, with the failures of the relay told apart).
#[must_use]
pub fn connect_status(code: Code) -> StatusCode {
    match code {
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::FailedPrecondition => StatusCode::PRECONDITION_FAILED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::InvalidArgument => StatusCode::BAD_REQUEST,
        Code::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        // The way there is missing, and a retry may find it.
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        // The supervisor or its SSH server did not do its part.
        _ => StatusCode::BAD_GATEWAY,
    }
}

#[cfg(test)]
mod tests {
    use postern_layers::refuse::{Code as LayerCode, Refusal};
    use postern_relay::registry;

    use super::*;

    #[test]
    fn the_code_of_the_supervisor_is_kept() {
        let refused = registry::OpenError::Refused {
            code: Code::NotFound,
            message: "nothing listens on port 9".to_owned(),
        };
        let status = Status::from(OpenError::Relay(refused));
        assert_eq!(status.code(), Code::NotFound);
        assert_eq!(status.message(), "nothing listens on port 9");
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.reason, "TARGET_NOT_REACHED");
    }

    #[test]
    fn a_spent_budget_is_in_the_text() {
        let last = registry::OpenError::NoSession { sandbox_id: "s".into() };
        let error = OpenError::Relay(last).after_budget(Duration::from_secs(15));
        let status = Status::from(error);
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("15 s"), "{}", status.message());
        assert!(status.get_details_retry_info().is_some());
    }

    #[test]
    fn a_cap_stays_a_cap() {
        let refusal = Refusal::new("relay_caps", LayerCode::ResourceExhausted, "pending = 32");
        let status = Status::from(OpenError::Refused(refusal));
        assert_eq!(status.code(), Code::ResourceExhausted);
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.metadata["layer"], "relay_caps");
        assert_eq!(connect_status(status.code()), StatusCode::TOO_MANY_REQUESTS);
    }
}
