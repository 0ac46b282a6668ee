//! Logs and metrics of the gateway.
//!
//! Metrics are recorded where things happen, by name; [`METRICS`] is the list of all names, described here once and
//! in `docs/metrics.md`. A test compares the list, the page and the source.

mod metered_store;

use std::{
    io::IsTerminal as _,
    sync::{Arc, OnceLock},
};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::{EnvFilter, layer::SubscriberExt as _, util::SubscriberInitExt as _};

pub use self::metered_store::MeteredStore;
use crate::config::LogFormat;

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts observations by size.
    Histogram,
}

/// One metric. All labels have few values that the gateway chooses; none comes from a caller.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub kind: Kind,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it says, with unit.
    pub help: &'static str,
}

const fn metric(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric { name, kind, labels, help }
}

/// Every metric of the gateway. The `openshell_server_` names are those that dashboards of OpenShell know.
pub const METRICS: &[Metric] = &[
    metric(
        "openshell_server_grpc_requests_total",
        Kind::Counter,
        &["method", "code"],
        "gRPC calls that ended; the code is that of the trailers",
    ),
    metric(
        "openshell_server_grpc_request_duration_seconds",
        Kind::Histogram,
        &["method", "code"],
        "seconds from the head of a gRPC call to the end of its response",
    ),
    metric(
        "openshell_server_http_requests_total",
        Kind::Counter,
        &["path", "status"],
        "HTTP requests that ended and are no gRPC",
    ),
    metric(
        "openshell_server_http_request_duration_seconds",
        Kind::Histogram,
        &["path", "status"],
        "seconds of HTTP requests that are no gRPC",
    ),
    metric(
        "openshell_server_readiness_database_healthy",
        Kind::Gauge,
        &[],
        "1 while the last probe of the database succeeded, else 0",
    ),
    metric(
        "openshell_server_readiness_database_probe_duration_seconds",
        Kind::Histogram,
        &["outcome"],
        "seconds of one probe of the database",
    ),
    metric("supervisor_sessions_active", Kind::Gauge, &[], "supervisor sessions now"),
    metric(
        "session_supersedes_total",
        Kind::Counter,
        &[],
        "sessions that a newer session of the same sandbox replaced",
    ),
    metric(
        "relay_opens_total",
        Kind::Counter,
        &["kind", "result"],
        "relays asked for, by what became of them",
    ),
    metric(
        "relay_open_duration_seconds",
        Kind::Histogram,
        &["kind"],
        "seconds from asking for a relay to having it, waiting for the session included",
    ),
    metric(
        "relay_claims_total",
        Kind::Counter,
        &["result"],
        "RelayStream calls of supervisors, by what became of them",
    ),
    metric("relay_pending", Kind::Gauge, &[], "relays that wait to be claimed now"),
    metric("relays_live", Kind::Gauge, &[], "relays that carry bytes now"),
    metric(
        "relay_bytes_total",
        Kind::Counter,
        &["direction"],
        "payload bytes of relays, counted when a relay ends",
    ),
    metric(
        "relay_duration_seconds",
        Kind::Histogram,
        &["end"],
        "seconds that relays lived, by how they ended",
    ),
    metric("phase_transitions_total", Kind::Counter, &["to"], "changes of the phase of a sandbox"),
    metric("exec_total", Kind::Counter, &["result"], "commands run by exec calls"),
    metric(
        "ssh_limit_refusals_total",
        Kind::Counter,
        &["limit"],
        "SSH connections refused because a limit was reached",
    ),
    metric(
        "connection_failures_total",
        Kind::Counter,
        &["kind"],
        "connections that were refused or broke, by the layer or step that noticed",
    ),
    metric("handler_panics_total", Kind::Counter, &[], "panics that the failure table caught"),
    metric(
        "audit_events_dropped_total",
        Kind::Counter,
        &[],
        "audit records that were dropped because their queue was full",
    ),
    metric(
        "store_operation_duration_seconds",
        Kind::Histogram,
        &["operation", "outcome"],
        "seconds of one call to the database",
    ),
];

/// Upper bounds of histogram buckets, in seconds: from a cached read to a relay that lives for an hour, each about
/// three times the one before, which keeps a histogram at sixteen series.
const BUCKETS: [f64; 15] = [
    0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 600.0, 3600.0,
];

/// Something that sets gauges shortly before metrics are shown.
pub type Sample = Arc<dyn Fn() + Send + Sync>;

/// The recorder of this process, installed at the first call. `None` when another one is in use (an embedding
/// program's).
pub fn metrics_handle() -> Option<PrometheusHandle> {
    static HANDLE: OnceLock<Option<PrometheusHandle>> = OnceLock::new();
    HANDLE
        .get_or_init(|| {
            let builder = PrometheusBuilder::new()
                .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &BUCKETS)
                .ok()?;
            let handle = builder.install_recorder().ok()?;
            describe();
            Some(handle)
        })
        .clone()
}

fn describe() {
    for metric in METRICS {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
}

/// Starts logging to standard error. `filter` has been checked with the configuration; a bad one logs at `info`.
/// Does nothing when logging has been started already.
pub fn start_logging(filter: &str, format: LogFormat) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr);
    let started = match format {
        LogFormat::Text => {
            let colour = std::io::stderr().is_terminal();
            registry.with(lines.with_ansi(colour)).try_init()
        }
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
    };
    if started.is_err() {
        tracing::debug!("logging had been started already");
    }
}

#[cfg(test)]
mod tests;
