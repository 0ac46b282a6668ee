//! What the `trace` and `metrics` layers are told, and what it becomes. Labels are bounded: methods come from the
//! contract, codes and kinds from fixed sets.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use postern_layers::metrics::{End, Observe, ObserveCall};
use postern_layers::refuse::{Code, Protocol};
use postern_layers::relay_metrics::{ObserveRelay, RelayEnd};
use postern_layers::request_id::RequestId;
use postern_proto::authorization::AuthorizationTable;
use postern_relay::splice::{self, EndKind, OnRelayEnd};
use tower_http::LatencyUnit;
use tower_http::classify::{GrpcErrorsAsFailures, SharedClassifier};
use tower_http::trace::{DefaultOnFailure, DefaultOnResponse, MakeSpan, TraceLayer};
use tracing::{Level, Span};

use crate::authorize::{CONNECT_SSH_PATH, JWKS_PATH, OPENID_PATH};
use crate::config::SSH_CLASS;
use crate::relay_plane::{OpenError, OpenedRelay, RelayKind, RelayRequest};

/// The `trace` layer: one span per call, its end told at debug level.
pub(super) type CallTrace = TraceLayer<
    SharedClassifier<GrpcErrorsAsFailures>,
    CallSpan,
    (),
    DefaultOnResponse,
    (),
    (),
    DefaultOnFailure,
>;

/// Makes the span of a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallSpan;

/// Counts and times calls, under the names that dashboards of OpenShell know.
#[derive(Clone, Debug)]
pub struct CallObserver {
    methods: Arc<HashSet<String>>,
}

/// One call being observed.
#[derive(Debug)]
pub struct ObservedCall {
    grpc: bool,
    label: String,
}

/// Counts and times openings of relays.
#[derive(Clone, Copy, Debug, Default)]
pub struct RelayObserver;

/// Counts what went over relays that have ended. Given to the session registry.
#[derive(Clone, Copy, Debug, Default)]
pub struct RelayEndObserver;

/// Label of a path that nobody serves: a stranger must not make time series.
const UNKNOWN: &str = "unknown";

// === trace ===

pub(super) fn trace_layer() -> CallTrace {
    TraceLayer::new_for_grpc()
        .make_span_with(CallSpan)
        .on_request(())
        .on_response(DefaultOnResponse::new().level(Level::DEBUG).latency_unit(LatencyUnit::Micros))
        .on_body_chunk(())
        .on_eos(())
        .on_failure(DefaultOnFailure::new().level(Level::DEBUG).latency_unit(LatencyUnit::Micros))
}

impl<B> MakeSpan<B> for CallSpan {
    fn make_span(&mut self, call: &http::Request<B>) -> Span {
        let request_id = call.extensions().get::<RequestId>().map(RequestId::as_str);
        tracing::info_span!(
            "request",
            request_id,
            method = %call.method(),
            path = call.uri().path(),
        )
    }
}

// === impl CallObserver ===

impl CallObserver {
    /// Knows the methods of `rules`.
    #[must_use]
    pub fn new(rules: &AuthorizationTable) -> Self {
        let methods = rules.iter().map(|(path, _)| path.to_owned()).collect();
        Self { methods: Arc::new(methods) }
    }
}

impl Observe for CallObserver {
    type Call = ObservedCall;

    fn started(&self, head: &Parts) -> ObservedCall {
        let path = head.uri.path();
        let grpc = Protocol::of(&head.headers) == Protocol::Grpc;
        let known = if grpc {
            self.methods.contains(path)
        } else {
            [CONNECT_SSH_PATH, JWKS_PATH, OPENID_PATH].contains(&path)
        };
        ObservedCall { grpc, label: if known { path } else { UNKNOWN }.to_owned() }
    }
}

impl ObserveCall for ObservedCall {
    fn ended(self, end: End) {
        let seconds = end.total.as_secs_f64();
        if self.grpc {
            // Read from the trailers; a call that was dropped before them was cancelled.
            let code = end.grpc.unwrap_or(Code::Cancelled).name();
            let labels = [("method", self.label), ("code", code.to_owned())];
            metrics::counter!("openshell_server_grpc_requests_total", &labels).increment(1);
            metrics::histogram!("openshell_server_grpc_request_duration_seconds", &labels)
                .record(seconds);
        } else {
            let status = end.status.map_or(0, |status| status.as_u16());
            let labels = [("path", self.label), ("status", status.to_string())];
            metrics::counter!("openshell_server_http_requests_total", &labels).increment(1);
            metrics::histogram!("openshell_server_http_request_duration_seconds", &labels)
                .record(seconds);
        }
    }
}

// === impl RelayObserver ===

impl ObserveRelay<RelayRequest, OpenedRelay, OpenError> for RelayObserver {
    type Opening = RelayKind;

    fn started(&self, request: &RelayRequest) -> RelayKind {
        request.kind
    }

    fn ended(&self, kind: RelayKind, end: RelayEnd<'_, OpenedRelay, OpenError>, after: Duration) {
        let result = match end {
            RelayEnd::Opened(_) => "ok",
            RelayEnd::Failed(error) => error.kind(),
            RelayEnd::Cancelled => "cancelled",
            _ => "other",
        };
        if let RelayEnd::Failed(OpenError::Refused(refusal)) = &end
            && refusal.code() == Code::ResourceExhausted
            && kind.class() == Some(SSH_CLASS)
        {
            metrics::counter!("ssh_limit_refusals_total", "limit" => "relay_caps").increment(1);
        }
        metrics::counter!("relay_opens_total", "kind" => kind.as_str(), "result" => result)
            .increment(1);
        if result == "ok" {
            metrics::histogram!("relay_open_duration_seconds", "kind" => kind.as_str())
                .record(after.as_secs_f64());
        }
    }
}

// === impl RelayEndObserver ===

impl OnRelayEnd for RelayEndObserver {
    fn on_relay_end(&self, end: &splice::RelayEnd) {
        let how = match end.kind {
            EndKind::Clean => "clean",
            EndKind::Reset { .. } => "reset",
        };
        metrics::histogram!("relay_duration_seconds", "end" => how)
            .record(end.duration.as_secs_f64());
        metrics::counter!("relay_bytes_total", "direction" => "to_sandbox")
            .increment(end.bytes_to_sandbox);
        metrics::counter!("relay_bytes_total", "direction" => "from_sandbox")
            .increment(end.bytes_from_sandbox);
        tracing::debug!(
            sandbox_id = %end.info.sandbox_id, channel_id = %end.info.channel_id,
            ended_by = end.ended_by.as_str(), end = ?end.kind,
            duration_ms = end.duration.as_millis(), to_sandbox = end.bytes_to_sandbox,
            from_sandbox = end.bytes_from_sandbox, "relay ended"
        );
    }
}
