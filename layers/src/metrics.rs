//! Tells an observer when a call starts and how it ends.
//!
//! **Effect.** Each call makes exactly one start and one end, whatever becomes of it: answered, failed, reset in
//! the middle of its body, or dropped by a caller who went away.
//!
//! **Shape.** Call plane. The request is untouched; the response body is wrapped in [`MeteredBody`], which passes
//! every frame on as it is. The gRPC status is read from the headers of a trailers-only response and otherwise
//! from the trailers.
//!
//! **Limits.** None: nothing is kept beyond the call. What the observer keeps is the observer's; it should bound
//! its labels.
//!
//! **Refuses** never.
//!
//! **Source.** gRPC over HTTP/2 (`PROTOCOL-HTTP2.md`) for where the status is.
//!
//! **Order.** Outside whatever may refuse, so that refusals are counted.
//!
//! **Cost.** Two readings of the clock per call, one addition per frame.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Buf;
use http::{Request, Response, StatusCode, request::Parts};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use crate::refuse::Code;

/// Sees calls start.
pub trait Observe {
    /// What sees the rest of one call.
    type Call: ObserveCall;

    /// A call with this head starts.
    fn started(&self, head: &Parts) -> Self::Call;
}

/// Sees the rest of one call.
pub trait ObserveCall {
    /// The response head is there, after this time. Not called if it never is.
    fn answered(&mut self, status: StatusCode, after: Duration) {
        let _ = (status, after);
    }

    /// The call is over. It may be dropped without this only if the process ends.
    fn ended(self, end: End);
}

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct End {
    /// What became of it.
    pub how: How,
    /// The HTTP status, if there was a response.
    pub status: Option<StatusCode>,
    /// The gRPC status, if the response or its trailers had one.
    pub grpc: Option<Code>,
    /// From the call to its end.
    pub total: Duration,
    /// Bytes of response body that were passed on.
    pub response_bytes: u64,
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum How {
    /// The response was passed on to its end.
    Complete,
    /// The inner service failed without a response.
    Failed,
    /// The response body failed.
    BodyFailed,
    /// The call was dropped before its end.
    Cancelled,
}

/// Applies [`Metrics`].
#[derive(Debug)]
pub struct MetricsLayer<O> {
    observer: Arc<O>,
}

/// Calls the inner service under the eyes of an observer.
#[derive(Debug)]
pub struct Metrics<S, O> {
    inner: S,
    observer: Arc<O>,
}

pin_project! {
    /// One observed call.
    pub struct ResponseFuture<F, C>
    where
        C: ObserveCall,
    {
        #[pin]
        inner: F,
        meter: Meter<C>,
    }
}

pin_project! {
    /// The body of an observed response.
    pub struct MeteredBody<B, C>
    where
        C: ObserveCall,
    {
        #[pin]
        inner: B,
        meter: Meter<C>,
    }
}

/// The observer of one call, told of its end at the latest when this is dropped.
struct Meter<C: ObserveCall> {
    call: Option<C>,
    start: Instant,
    status: Option<StatusCode>,
    grpc: Option<Code>,
    bytes: u64,
}

// === impl MetricsLayer ===

impl<O: Observe> MetricsLayer<O> {
    /// Shows every call to `observer`.
    pub fn new(observer: O) -> Self {
        Self { observer: Arc::new(observer) }
    }
}

impl<O> Clone for MetricsLayer<O> {
    fn clone(&self) -> Self {
        Self { observer: Arc::clone(&self.observer) }
    }
}

impl<S, O> Layer<S> for MetricsLayer<O> {
    type Service = Metrics<S, O>;

    fn layer(&self, inner: S) -> Self::Service {
        Metrics { inner, observer: Arc::clone(&self.observer) }
    }
}

// === impl Metrics ===

impl<S: Clone, O> Clone for Metrics<S, O> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), observer: Arc::clone(&self.observer) }
    }
}

impl<S, O, B, T> Service<Request<B>> for Metrics<S, O>
where
    S: Service<Request<B>, Response = Response<T>>,
    O: Observe,
    T: Body,
{
    type Response = Response<MeteredBody<T, O::Call>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, O::Call>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let start = Instant::now();
        let (head, body) = request.into_parts();
        let call = Some(self.observer.started(&head));
        let meter = Meter { call, start, status: None, grpc: None, bytes: 0 };
        ResponseFuture { inner: self.inner.call(Request::from_parts(head, body)), meter }
    }
}

// === impl ResponseFuture ===

impl<F, C, T, E> Future for ResponseFuture<F, C>
where
    F: Future<Output = Result<Response<T>, E>>,
    C: ObserveCall,
    T: Body,
{
    type Output = Result<Response<MeteredBody<T, C>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match ready!(this.inner.poll(cx)) {
            Ok(response) => {
                let mut meter = this.meter.take();
                meter.answered(response.status(), Code::from_headers(response.headers()));
                Poll::Ready(Ok(response.map(|inner| {
                    if inner.is_end_stream() {
                        meter.end(How::Complete);
                    }
                    MeteredBody { inner, meter }
                })))
            }
            Err(error) => {
                this.meter.end(How::Failed);
                Poll::Ready(Err(error))
            }
        }
    }
}

impl<F, C: ObserveCall> fmt::Debug for ResponseFuture<F, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("metrics::ResponseFuture").finish_non_exhaustive()
    }
}

// === impl MeteredBody ===

impl<B, C> Body for MeteredBody<B, C>
where
    B: Body,
    C: ObserveCall,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.inner.as_mut().poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    this.meter.bytes += data.remaining() as u64;
                } else if let Some(trailers) = frame.trailers_ref() {
                    this.meter.grpc = Code::from_headers(trailers).or(this.meter.grpc);
                }
                // A server that asks for the end need not poll once more to see it.
                if frame.is_trailers() || this.inner.is_end_stream() {
                    this.meter.end(How::Complete);
                }
            }
            Some(Err(_)) => this.meter.end(How::BodyFailed),
            None => this.meter.end(How::Complete),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

impl<B: Default, C: ObserveCall> Default for MeteredBody<B, C> {
    /// A body that nobody observes, for a refusal in front of this layer.
    fn default() -> Self {
        let start = Instant::now();
        Self {
            inner: B::default(),
            meter: Meter { call: None, start, status: None, grpc: None, bytes: 0 },
        }
    }
}

impl<B: fmt::Debug, C: ObserveCall> fmt::Debug for MeteredBody<B, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MeteredBody").field("inner", &self.inner).finish_non_exhaustive()
    }
}

// === impl Meter ===

impl<C: ObserveCall> Meter<C> {
    /// Moves the observer on to the body; what is left behind tells nothing.
    fn take(&mut self) -> Self {
        let Self { call, start, status, grpc, bytes } = self;
        Self { call: call.take(), start: *start, status: *status, grpc: *grpc, bytes: *bytes }
    }

    fn answered(&mut self, status: StatusCode, grpc: Option<Code>) {
        self.status = Some(status);
        self.grpc = grpc;
        let after = self.start.elapsed();
        if let Some(call) = &mut self.call {
            call.answered(status, after);
        }
    }

    fn end(&mut self, how: How) {
        if let Some(call) = self.call.take() {
            let Self { status, grpc, bytes: response_bytes, .. } = *self;
            call.ended(End { how, status, grpc, total: self.start.elapsed(), response_bytes });
        }
    }
}

impl<C: ObserveCall> Drop for Meter<C> {
    fn drop(&mut self) {
        self.end(How::Cancelled);
    }
}

// === impl the observer that sees nothing ===

impl Observe for () {
    type Call = ();

    fn started(&self, _head: &Parts) {}
}

impl ObserveCall for () {
    fn ended(self, _end: End) {}
}

#[cfg(test)]
mod tests;
