//! `RelayStream`: a supervisor claims the relay that it was asked for.
//!
//! Served below the gRPC codecs: after the init message the body is not decoded. What the requester sends becomes the
//! response body as it is, frame boundaries checked and nothing copied.

use std::time::Duration;

use http::{Request, Response};
use postern_proto::v1::{RelayFrame, relay_frame};
use postern_relay::body::{FIRST_MESSAGE_MAX, Prefixed, read_first_message};
use postern_relay::registry::{Claimant, Registry};
use postern_relay::splice::SplicedBody;
use prost::Message;
use tokio::time::timeout;
use tonic::Status;
use tonic::body::Body;

use crate::auth::Principal;
use crate::call_error::CallError;

/// How long a stream may take to send its init: it is sent with the call, so this only ends the idle.
pub const INIT_DEADLINE: Duration = Duration::from_secs(10);

/// Serves one call.
pub async fn serve(registry: &Registry, request: Request<Body>) -> Response<Body> {
    match claim(registry, request).await {
        Ok(body) => body.into_response().map(Body::new),
        Err(status) => {
            metrics::counter!("relay_claims_total", "result" => code_label(status.code()))
                .increment(1);
            status.into_http()
        }
    }
}

async fn claim(registry: &Registry, request: Request<Body>) -> Result<SplicedBody, Status> {
    let (head, body) = request.into_parts();
    let principal = Principal::of(&head.extensions);
    let sandbox = principal.require_any_sandbox()?;
    let (frame, rest): (RelayFrame, _) = first_message(body).await?;
    let channel_id = match frame.payload {
        Some(relay_frame::Payload::Init(init)) if !init.channel_id.is_empty() => init.channel_id,
        _ => {
            return Err(CallError::invalid(
                "init.channel_id",
                "expected RelayInit with a channel id first",
            )
            .into());
        }
    };
    let claimant = Claimant::Sandbox(sandbox.sandbox_id.as_str().into());
    let ticket = registry.claim(&channel_id, &claimant, rest).map_err(|error| {
        tracing::warn!(sandbox_id = sandbox.sandbox_id, channel_id, %error, "relay claim refused");
        Status::new(error.code(), error.to_string())
    })?;
    metrics::counter!("relay_claims_total", "result" => "ok").increment(1);
    tracing::debug!(sandbox_id = sandbox.sandbox_id, channel_id, "relay claimed");
    Ok(ticket.into_body())
}

/// The first message of a relay call and the rest of its body, within [`INIT_DEADLINE`].
pub(super) async fn first_message<M: Message + Default>(
    body: Body,
) -> Result<(M, Prefixed<Body>), Status> {
    let read = timeout(INIT_DEADLINE, read_first_message(body, FIRST_MESSAGE_MAX)).await.map_err(
        |_| CallError::DeadlineExceeded {
            what: "the first message of the stream".into(),
            waited: INIT_DEADLINE,
        },
    )?;
    read.map_err(|error| Status::new(error.code(), error.to_string()))
}

/// A bounded label for a code.
pub(super) fn code_label(code: tonic::Code) -> &'static str {
    use tonic::Code;
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Unavailable => "unavailable",
        Code::Unauthenticated => "unauthenticated",
        _ => "other",
    }
}
