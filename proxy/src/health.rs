//! Health and metrics, each on a port of its own.
//!
//! `/health` and `/healthz` say that the process runs. `/readyz` says whether it should get traffic: the database
//! answered the last probe, and the gateway is not draining. `/metrics` is Prometheus text.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use metrics_exporter_prometheus::PrometheusHandle;
use parking_lot::Mutex;
use postern_store::{ObjectStore, StoreError, UnavailableCause};
use serde::Serialize;
use tokio::time::Instant;
use tonic::body::Body;
use tower::{service_fn, util::BoxCloneSyncService};

use crate::{
    drain::{Phase, Watch},
    stack::CallPlane,
    telemetry::Sample,
};

/// How often the database is probed (OpenShell contract).
pub const PROBE_EVERY: Duration = Duration::from_secs(5);

/// How long one probe may take (OpenShell contract).
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(2);

/// Whether the gateway should get traffic. Clones are the same.
#[derive(Clone, Debug)]
pub struct Readiness {
    last: Arc<Mutex<Option<Probe>>>,
    drain: Watch,
}

/// The outcome of one probe.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Probe {
    latency: Duration,
    /// `None` if the database answered. For operators: the port is theirs.
    error: Option<String>,
}

#[derive(Serialize)]
struct Report<'r> {
    status: &'r str,
    version: &'r str,
    #[serde(skip_serializing_if = "Option::is_none")]
    checks: Option<Checks>,
}

#[derive(Serialize)]
struct Checks {
    database: DatabaseCheck,
}

#[derive(Serialize)]
struct DatabaseCheck {
    status: &'static str,
    latency_ms: Option<u64>,
    error: Option<String>,
}

impl Readiness {
    /// Not ready until the first probe.
    #[must_use]
    pub fn new(drain: Watch) -> Self {
        Self { last: Arc::default(), drain }
    }

    /// Probes `store` at once and then every [`PROBE_EVERY`], until the drain closes.
    pub async fn keep_probing(self, store: Arc<dyn ObjectStore>) {
        let mut closing = self.drain.clone();
        let mut ticks = tokio::time::interval(PROBE_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => self.probe(&*store).await,
                () = closing.closing() => return,
            }
        }
    }

    /// Probes `store` once.
    pub async fn probe(&self, store: &dyn ObjectStore) {
        let start = Instant::now();
        let answer =
            tokio::time::timeout(PROBE_TIMEOUT, store.probe()).await.unwrap_or_else(|_| {
                let cause = UnavailableCause::TimedOut(PROBE_TIMEOUT);
                Err(StoreError::Unavailable { operation: "probe", cause })
            });
        let latency = start.elapsed();
        let error = answer.err().map(|error| chain(&error));
        let outcome = if error.is_none() { "ok" } else { "error" };
        metrics::gauge!("openshell_server_readiness_database_healthy").set(if error.is_none() {
            1.0
        } else {
            0.0
        });
        metrics::histogram!("openshell_server_readiness_database_probe_duration_seconds", "outcome" => outcome)
            .record(latency.as_secs_f64());
        let before = self.last.lock().replace(Probe { latency, error: error.clone() });
        let was_good = before.is_none_or(|before| before.error.is_none());
        match error {
            Some(error) if was_good => tracing::error!(error, "the database does not answer"),
            None if !was_good => tracing::info!("the database answers again"),
            _ => {}
        }
    }

    /// Whether the gateway should get traffic now.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let answered = self.last.lock().as_ref().is_some_and(|probe| probe.error.is_none());
        answered && self.drain.phase() == Phase::Open
    }

    fn report(&self) -> (StatusCode, String) {
        let last = self.last.lock().clone();
        let draining = self.drain.phase() != Phase::Open;
        let healthy = last.as_ref().is_some_and(|probe| probe.error.is_none());
        let status = match (healthy, draining) {
            (_, true) => "draining",
            (true, false) => "ready",
            (false, false) => "unavailable",
        };
        let database = DatabaseCheck {
            status: match &last {
                None => "unknown",
                Some(Probe { error: None, .. }) => "healthy",
                Some(_) => "unhealthy",
            },
            latency_ms: last
                .as_ref()
                .map(|probe| u64::try_from(probe.latency.as_millis()).unwrap_or(u64::MAX)),
            error: last.and_then(|probe| probe.error),
        };
        let code = if status == "ready" { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        let checks = Some(Checks { database });
        (code, json(&Report { status, version: env!("CARGO_PKG_VERSION"), checks }))
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

fn json(report: &Report<'_>) -> String {
    serde_json::to_string(report).expect("texts and numbers are JSON")
}

/// What the health port serves.
#[must_use]
pub fn health_plane(readiness: Readiness) -> CallPlane {
    let alive = json(&Report { status: "ok", version: env!("CARGO_PKG_VERSION"), checks: None });
    BoxCloneSyncService::new(service_fn(move |request: Request<Body>| {
        let answer = match request.uri().path() {
            "/health" | "/healthz" => Some((StatusCode::OK, alive.clone())),
            "/readyz" => Some(readiness.report()),
            _ => None,
        };
        std::future::ready(Ok::<_, Infallible>(respond(&request, answer, "application/json")))
    }))
}

/// What the metrics port serves. `sample` runs before each rendering.
#[must_use]
pub fn metrics_plane(handle: PrometheusHandle, sample: Sample) -> CallPlane {
    BoxCloneSyncService::new(service_fn(move |request: Request<Body>| {
        let answer = (request.uri().path() == "/metrics").then(|| {
            sample();
            handle.run_upkeep();
            (StatusCode::OK, handle.render())
        });
        // The version is part of the text format's name.
        let kind = "text/plain; version=0.0.4; charset=utf-8";
        std::future::ready(Ok::<_, Infallible>(respond(&request, answer, kind)))
    }))
}

fn respond(
    request: &Request<Body>,
    answer: Option<(StatusCode, String)>,
    kind: &'static str,
) -> Response<Body> {
    let reads = request.method() == Method::GET || request.method() == Method::HEAD;
    let (status, text) = match answer {
        Some(answer) if reads => answer,
        Some(_) => (StatusCode::METHOD_NOT_ALLOWED, String::new()),
        None => (StatusCode::NOT_FOUND, String::new()),
    };
    let mut response = Response::new(Body::new(Full::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static(kind));
    response
}

#[cfg(test)]
mod tests;
