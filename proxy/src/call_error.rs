//! Why a call failed: typed inside the gateway, a rich gRPC status on the wire.
//!
//! Every handler returns [`CallError`]; the conversion to [`tonic::Status`] at the bottom is the only place that picks
//! codes and texts. Each status carries a `google.rpc.ErrorInfo` whose `reason` a program may match on, a
//! `RetryInfo` where trying again makes sense, and a `BadRequest` that names the field at fault. The message inside
//! the details equals the status message: clients drop details that disagree with it.

mod sources;

use std::borrow::Cow;
use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// The `domain` of every `google.rpc.ErrorInfo` the gateway sends.
pub const ERROR_DOMAIN: &str = "postern";

/// Longest text of a status, in bytes. The text travels twice in the trailers (message and details), and peers
/// commonly accept 8 KiB of header list.
const MAX_TEXT: usize = 1024;

/// A failure below the handler that has no better name here.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Why a call failed.
///
/// Texts are for people: lower case, with values and units, saying what to do next where there is something to do.
/// `reason` fields are for programs: fixed words in `UPPER_SNAKE_CASE`.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// A field of the request is wrong; the same request will never work.
    #[error("{field}: {description}")]
    InvalidArgument {
        /// Path of the field, such as `spec.environment`.
        field: Cow<'static, str>,
        /// What is wrong with it, with the limit and the value.
        description: String,
    },
    /// What the request names does not exist, or is not the caller's to know about.
    #[error("{what} not found")]
    NotFound {
        /// The thing, such as `sandbox "web"`.
        what: String,
    },
    /// The name is taken.
    #[error("{what} already exists; choose another name or leave the name out")]
    AlreadyExists {
        /// The thing, such as `sandbox "web"`.
        what: String,
    },
    /// The state of something other than the request forbids it.
    #[error("{description}")]
    FailedPrecondition {
        /// Word for programs, such as `SANDBOX_NOT_READY`.
        reason: &'static str,
        /// The state, and how to change it.
        description: String,
    },
    /// The caller is known and may not do this.
    #[error("{reason}")]
    PermissionDenied {
        /// What is missing, without saying whether the target exists.
        reason: String,
    },
    /// The caller is not known. The text never says why.
    #[error("the call carries no valid credential")]
    Unauthenticated,
    /// A limit is reached; others than the caller may be unaffected.
    #[error("{description} (limit {cap}: {value})")]
    ResourceExhausted {
        /// Name of the limit as the configuration spells it, such as `relay_caps.pending`.
        cap: Cow<'static, str>,
        /// Its value.
        value: u64,
        /// What is exhausted.
        description: String,
        /// When to try again, if waiting helps.
        retry_after: Option<Duration>,
    },
    /// A bounded wait ended without an answer.
    #[error("{what} did not happen within {waited:?}")]
    DeadlineExceeded {
        /// What was waited for.
        what: Cow<'static, str>,
        /// How long.
        waited: Duration,
    },
    /// Something the call needs is away; the same call may work later.
    #[error("{description}")]
    Unavailable {
        /// Word for programs, such as `STORE_UNAVAILABLE`.
        reason: &'static str,
        /// What is away, and for how long it was waited for.
        description: String,
        /// When to try again.
        retry_after: Option<Duration>,
    },
    /// The call lost against another one, or was replayed with other contents.
    #[error("{description}")]
    Aborted {
        /// Word for programs, such as `REQUEST_ID_REUSED`.
        reason: &'static str,
        /// What it collided with.
        description: String,
    },
    /// The caller went away, or what it followed was ended from outside.
    #[error("{description}")]
    Cancelled {
        /// Word for programs, such as `SESSION_REVOKED`.
        reason: &'static str,
        /// By whom.
        description: String,
    },
    /// Part of the contract that this gateway does not have.
    #[error("{what} is not implemented by this gateway")]
    Unimplemented {
        /// The method or field.
        what: Cow<'static, str>,
    },
    /// The gateway is at fault. The cause goes to the log, never to the caller.
    #[error("internal error while {doing}")]
    Internal {
        /// What the gateway was doing.
        doing: &'static str,
        /// The cause.
        #[source]
        source: BoxError,
    },
}

// === impl CallError ===

impl CallError {
    /// An [`CallError::InvalidArgument`].
    pub fn invalid(field: impl Into<Cow<'static, str>>, description: impl Into<String>) -> Self {
        Self::InvalidArgument { field: field.into(), description: description.into() }
    }

    /// A sandbox that does not exist or is not the caller's.
    #[must_use]
    pub fn no_sandbox(name: &str) -> Self {
        Self::NotFound { what: format!("sandbox {:?}", shorten(name, 64)) }
    }

    /// An [`CallError::Internal`].
    pub fn internal(doing: &'static str, source: impl Into<BoxError>) -> Self {
        Self::Internal { doing, source: source.into() }
    }

    /// The gRPC code this becomes.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::InvalidArgument { .. } => Code::InvalidArgument,
            Self::NotFound { .. } => Code::NotFound,
            Self::AlreadyExists { .. } => Code::AlreadyExists,
            Self::FailedPrecondition { .. } => Code::FailedPrecondition,
            Self::PermissionDenied { .. } => Code::PermissionDenied,
            Self::Unauthenticated => Code::Unauthenticated,
            Self::ResourceExhausted { .. } => Code::ResourceExhausted,
            Self::DeadlineExceeded { .. } => Code::DeadlineExceeded,
            Self::Unavailable { .. } => Code::Unavailable,
            Self::Aborted { .. } => Code::Aborted,
            Self::Cancelled { .. } => Code::Cancelled,
            Self::Unimplemented { .. } => Code::Unimplemented,
            Self::Internal { .. } => Code::Internal,
        }
    }

    /// The word for programs, as `google.rpc.ErrorInfo.reason`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::InvalidArgument { .. } => "INVALID_FIELD",
            Self::NotFound { .. } => "NOT_FOUND",
            Self::AlreadyExists { .. } => "NAME_TAKEN",
            Self::FailedPrecondition { reason, .. }
            | Self::Unavailable { reason, .. }
            | Self::Aborted { reason, .. }
            | Self::Cancelled { reason, .. } => reason,
            Self::PermissionDenied { .. } => "NOT_ALLOWED",
            Self::Unauthenticated => "NO_VALID_CREDENTIAL",
            Self::ResourceExhausted { .. } => "LIMIT_REACHED",
            Self::DeadlineExceeded { .. } => "WAIT_EXPIRED",
            Self::Unimplemented { .. } => "NOT_IMPLEMENTED",
            Self::Internal { .. } => "INTERNAL",
        }
    }

    /// When trying the same call again may work; `None` when it will not, or nobody knows.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::ResourceExhausted { retry_after, .. } | Self::Unavailable { retry_after, .. } => {
                *retry_after
            }
            _ => None,
        }
    }

    fn metadata(&self) -> HashMap<String, String> {
        match self {
            Self::ResourceExhausted { cap, value, .. } => HashMap::from([
                ("limit".to_owned(), cap.clone().into_owned()),
                ("value".to_owned(), value.to_string()),
            ]),
            Self::DeadlineExceeded { waited, .. } => {
                HashMap::from([("waited_ms".to_owned(), waited.as_millis().to_string())])
            }
            _ => HashMap::new(),
        }
    }
}

impl From<CallError> for Status {
    fn from(error: CallError) -> Self {
        if let CallError::Internal { doing, source } = &error {
            tracing::error!(doing, error = %Chain(source.as_ref()), "call failed inside the gateway");
        }
        let mut details = ErrorDetails::new();
        details.set_error_info(error.reason(), ERROR_DOMAIN, error.metadata());
        if let Some(delay) = error.retry_after() {
            details.set_retry_info(Some(delay));
        }
        if let CallError::InvalidArgument { field, description } = &error {
            details.add_bad_request_violation(field.as_ref(), shorten(description, MAX_TEXT));
        }
        let text = shorten(&error.to_string(), MAX_TEXT).into_owned();
        Status::with_error_details(error.code(), text, details)
    }
}

/// An error with everything below it, for the log.
struct Chain<'a>(&'a (dyn std::error::Error + 'static));

impl std::fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)?;
        let mut below = self.0.source();
        while let Some(error) = below {
            write!(f, ": {error}")?;
            below = error.source();
        }
        Ok(())
    }
}

/// At most `limit` bytes of `text`, cut at a character, with a mark where something is missing.
fn shorten(text: &str, limit: usize) -> Cow<'_, str> {
    const MARK: &str = "...";
    if text.len() <= limit {
        return Cow::Borrowed(text);
    }
    let cut = text.floor_char_boundary(limit.saturating_sub(MARK.len()));
    Cow::Owned(format!("{}{MARK}", &text[..cut]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_repeat_the_status_message() {
        // prost reads the details as google.rpc.Status; the Python client compares both texts.
        let status = Status::from(CallError::invalid("name", "is 20 characters long, at most 19"));
        let rich = <tonic_types::pb::Status as prost::Message>::decode(status.details()).unwrap();
        assert_eq!(rich.message, status.message());
        assert_eq!(rich.code, Code::InvalidArgument as i32);
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "name");
    }

    #[test]
    fn a_cap_is_named_with_its_value() {
        let status = Status::from(CallError::ResourceExhausted {
            cap: "relay_caps.pending".into(),
            value: 256,
            description: "too many relays wait to be claimed".to_owned(),
            retry_after: Some(Duration::from_millis(500)),
        });
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().contains("relay_caps.pending: 256"));
        let info = status.get_details_error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("LIMIT_REACHED", ERROR_DOMAIN));
        assert_eq!(info.metadata["value"], "256");
        let retry = status.get_details_retry_info().unwrap();
        assert_eq!(retry.retry_delay, Some(Duration::from_millis(500)));
    }

    #[test]
    fn the_cause_of_an_internal_error_stays_inside() {
        let status = Status::from(CallError::internal(
            "reading a sandbox",
            std::io::Error::other("secret path /var/lib"),
        ));
        assert_eq!(status.code(), Code::Internal);
        assert_eq!(status.message(), "internal error while reading a sandbox");
    }

    #[test]
    fn long_texts_are_cut_at_a_character() {
        let long = "ü".repeat(4000);
        let status = Status::from(CallError::invalid("name", long));
        assert!(status.message().len() <= MAX_TEXT && status.message().ends_with("..."));
        assert_eq!(CallError::no_sandbox("web").to_string(), "sandbox \"web\" not found");
    }
}
