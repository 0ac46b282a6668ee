//! The relay-plane layer: every opening of a relay becomes an event, however it ends.
//!
//! The end of an opened relay is not this layer's: no layer touches bytes in flight. Whoever ends it records that through the
//! [`Recorder`], and the hook gets the open relay to leave what that takes.

use std::{
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use super::event::Event;
use super::recorder::Recorder;

/// Decides what of the openings of relays by requests `R`, that give `T` or fail with `E`, is recorded.
pub trait AuditRelay<R, T, E> {
    /// What is remembered of an opening until it ends: the request is gone by then.
    type Opening;

    /// An opening starts. `None` leaves it out.
    fn start(&self, request: &R) -> Option<Self::Opening>;

    /// The opening is over at `now` (milliseconds since 1970), after `after`.
    fn ended(
        &self,
        opening: Self::Opening,
        outcome: RelayOutcome<'_, T, E>,
        after: Duration,
        now: i64,
    ) -> Option<Event>;
}

/// How the opening of a relay ended.
#[derive(Debug)]
#[non_exhaustive]
pub enum RelayOutcome<'a, T, E> {
    /// The relay is open. It may be changed to leave in it what the record of its end takes.
    Opened(&'a mut T),
    /// It could not be opened.
    Failed(&'a E),
    /// The caller went away first.
    Cancelled,
}

/// Applies [`OcsfRelay`].
#[derive(Debug)]
pub struct OcsfRelayLayer<A> {
    audit: Arc<A>,
    recorder: Recorder,
}

/// Opens relays through the inner service and records what became of it.
#[derive(Debug)]
pub struct OcsfRelay<S, A> {
    inner: S,
    audit: Arc<A>,
    recorder: Recorder,
}

pin_project! {
    /// One audited opening.
    pub struct OpeningFuture<F, A, R, T, E>
    where
        A: AuditRelay<R, T, E>,
    {
        #[pin]
        inner: F,
        entry: Entry<A, R, T, E>,
    }
}

/// The record of one opening, completed at the latest when this is dropped.
struct Entry<A: AuditRelay<R, T, E>, R, T, E> {
    open: Option<(A::Opening, Instant)>,
    audit: Arc<A>,
    recorder: Recorder,
    // The outcome's types are passed through, never held.
    outcome: PhantomData<fn(R) -> (T, E)>,
}

// === impl OcsfRelayLayer ===

impl<A> OcsfRelayLayer<A> {
    /// Records what `audit` makes of openings.
    pub fn new(audit: A, recorder: Recorder) -> Self {
        Self { audit: Arc::new(audit), recorder }
    }
}

impl<A> Clone for OcsfRelayLayer<A> {
    fn clone(&self) -> Self {
        Self { audit: Arc::clone(&self.audit), recorder: self.recorder.clone() }
    }
}

impl<S, A> Layer<S> for OcsfRelayLayer<A> {
    type Service = OcsfRelay<S, A>;

    fn layer(&self, inner: S) -> Self::Service {
        OcsfRelay { inner, audit: Arc::clone(&self.audit), recorder: self.recorder.clone() }
    }
}

// === impl OcsfRelay ===

impl<S: Clone, A> Clone for OcsfRelay<S, A> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            audit: Arc::clone(&self.audit),
            recorder: self.recorder.clone(),
        }
    }
}

impl<S, A, R> Service<R> for OcsfRelay<S, A>
where
    S: Service<R>,
    A: AuditRelay<R, S::Response, S::Error>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = OpeningFuture<S::Future, A, R, S::Response, S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let opening = if self.recorder.is_enabled() { self.audit.start(&request) } else { None };
        let entry = Entry {
            open: opening.map(|opening| (opening, Instant::now())),
            audit: Arc::clone(&self.audit),
            recorder: self.recorder.clone(),
            outcome: PhantomData,
        };
        OpeningFuture { inner: self.inner.call(request), entry }
    }
}

// === impl OpeningFuture ===

impl<F, A, R, T, E> Future for OpeningFuture<F, A, R, T, E>
where
    F: Future<Output = Result<T, E>>,
    A: AuditRelay<R, T, E>,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut result = ready!(this.inner.poll(cx));
        this.entry.end(match &mut result {
            Ok(relay) => RelayOutcome::Opened(relay),
            Err(error) => RelayOutcome::Failed(error),
        });
        Poll::Ready(result)
    }
}

impl<F, A: AuditRelay<R, T, E>, R, T, E> fmt::Debug for OpeningFuture<F, A, R, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ocsf::OpeningFuture").finish_non_exhaustive()
    }
}

// === impl Entry ===

impl<A: AuditRelay<R, T, E>, R, T, E> Entry<A, R, T, E> {
    fn end(&mut self, outcome: RelayOutcome<'_, T, E>) {
        let Some((opening, start)) = self.open.take() else { return };
        if let Some(event) =
            self.audit.ended(opening, outcome, start.elapsed(), self.recorder.now())
        {
            self.recorder.record(event);
        }
    }
}

impl<A: AuditRelay<R, T, E>, R, T, E> Drop for Entry<A, R, T, E> {
    fn drop(&mut self) {
        self.end(RelayOutcome::Cancelled);
    }
}

#[cfg(test)]
mod tests;
