//! Tells an observer how the opening of a relay ends.
//!
//! **Effect.** Each request for a relay makes exactly one start and one end: opened, failed, or given up.
//!
//! **Shape.** Relay plane: `Service<R>` in and out, everything untouched.
//!
//! **Limits.** None: nothing is kept beyond the opening.
//!
//! **Refuses** never.
//!
//! **Source.** The time to open is the figure that operators of relays asked peers for and did not get.
//!
//! **Order.** Outside `relay_caps` and `session_wait`, so that refusals and waits are in the figures.
//!
//! **Cost.** Two readings of the clock per opening; no bytes pass through.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

/// Sees openings of relays by requests `R` that give `T` or fail with `E`.
pub trait ObserveRelay<R, T, E> {
    /// What is remembered of one opening: labels, usually.
    type Opening;

    /// The opening starts.
    fn started(&self, request: &R) -> Self::Opening;

    /// The opening is over, after this time.
    fn ended(&self, opening: Self::Opening, end: RelayEnd<'_, T, E>, after: Duration);
}

/// How the opening of a relay ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum RelayEnd<'a, T, E> {
    /// The relay is open.
    Opened(&'a T),
    /// It could not be opened.
    Failed(&'a E),
    /// The caller went away first.
    Cancelled,
}

/// Applies [`RelayMetrics`].
#[derive(Debug)]
pub struct RelayMetricsLayer<O> {
    observer: Arc<O>,
}

/// Opens relays through the inner service under the eyes of an observer.
#[derive(Debug)]
pub struct RelayMetrics<S, O> {
    inner: S,
    observer: Arc<O>,
}

pin_project! {
    /// One observed opening.
    pub struct ResponseFuture<F, O, R, T, E>
    where
        O: ObserveRelay<R, T, E>,
    {
        #[pin]
        inner: F,
        meter: Meter<O, R, T, E>,
    }
}

/// The observer of one opening, told of its end at the latest when this is dropped.
struct Meter<O: ObserveRelay<R, T, E>, R, T, E> {
    observer: Arc<O>,
    opening: Option<O::Opening>,
    start: Instant,
}

// === impl RelayMetricsLayer ===

impl<O> RelayMetricsLayer<O> {
    /// Shows every opening to `observer`.
    pub fn new(observer: O) -> Self {
        Self { observer: Arc::new(observer) }
    }
}

impl<O> Clone for RelayMetricsLayer<O> {
    fn clone(&self) -> Self {
        Self { observer: Arc::clone(&self.observer) }
    }
}

impl<S, O> Layer<S> for RelayMetricsLayer<O> {
    type Service = RelayMetrics<S, O>;

    fn layer(&self, inner: S) -> Self::Service {
        RelayMetrics { inner, observer: Arc::clone(&self.observer) }
    }
}

// === impl RelayMetrics ===

impl<S: Clone, O> Clone for RelayMetrics<S, O> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), observer: Arc::clone(&self.observer) }
    }
}

impl<S, O, R> Service<R> for RelayMetrics<S, O>
where
    S: Service<R>,
    O: ObserveRelay<R, S::Response, S::Error>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, O, R, S::Response, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let opening = Some(self.observer.started(&request));
        let meter = Meter { observer: Arc::clone(&self.observer), opening, start: Instant::now() };
        ResponseFuture { inner: self.inner.call(request), meter }
    }
}

// === impl ResponseFuture ===

impl<F, O, R, T, E> Future for ResponseFuture<F, O, R, T, E>
where
    F: Future<Output = Result<T, E>>,
    O: ObserveRelay<R, T, E>,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let outcome = ready!(this.inner.poll(cx));
        this.meter.end(match &outcome {
            Ok(relay) => RelayEnd::Opened(relay),
            Err(error) => RelayEnd::Failed(error),
        });
        Poll::Ready(outcome)
    }
}

impl<F, O: ObserveRelay<R, T, E>, R, T, E> fmt::Debug for ResponseFuture<F, O, R, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("relay_metrics::ResponseFuture").finish_non_exhaustive()
    }
}

// === impl Meter ===

impl<O: ObserveRelay<R, T, E>, R, T, E> Meter<O, R, T, E> {
    fn end(&mut self, end: RelayEnd<'_, T, E>) {
        if let Some(opening) = self.opening.take() {
            self.observer.ended(opening, end, self.start.elapsed());
        }
    }
}

impl<O: ObserveRelay<R, T, E>, R, T, E> Drop for Meter<O, R, T, E> {
    fn drop(&mut self) {
        self.end(RelayEnd::Cancelled);
    }
}

// === impl the observer that sees nothing ===

impl<R, T, E> ObserveRelay<R, T, E> for () {
    type Opening = ();

    fn started(&self, _request: &R) {}

    fn ended(&self, _opening: (), _end: RelayEnd<'_, T, E>, _after: Duration) {}
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tower::service_fn;

    use super::*;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<String>>>);

    impl ObserveRelay<&'static str, u8, String> for Log {
        type Opening = &'static str;

        fn started(&self, request: &&'static str) -> &'static str {
            request
        }

        fn ended(&self, opening: &'static str, end: RelayEnd<'_, u8, String>, after: Duration) {
            self.0.lock().unwrap().push(format!("{opening} {end:?} {after:?}"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn every_opening_ends_once() {
        let log = Log::default();
        let inner = service_fn(|request: &'static str| async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            if request == "good" { Ok(7) } else { Err("no".to_owned()) }
        });
        let mut opener = RelayMetricsLayer::new(log.clone()).layer(inner);
        assert_eq!(opener.call("good").await, Ok(7));
        assert!(opener.call("bad").await.is_err());
        drop(opener.call("dropped"));
        let lines = log.0.lock().unwrap().clone();
        assert_eq!(lines, ["good Opened(7) 2s", "bad Failed(\"no\") 2s", "dropped Cancelled 0ns"]);
    }
}
