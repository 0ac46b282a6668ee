//! The call-plane layer: every call becomes an event, however it ends.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Buf;
use http::{Request, Response, StatusCode, request, response};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use super::draft::Draft;
use super::recorder::Recorder;
use crate::refuse::{Code, Refusal};

/// Decides what of a call is recorded. [`ApiAudit`](super::ApiAudit) is the one for control APIs.
pub trait Audit {
    /// What is remembered of a call until it ends.
    type Call;

    /// A call with this head starts. `None` leaves it out. The head may be changed only to put something into its extensions
    /// for layers further in to fill.
    fn start(&self, head: &mut request::Parts) -> Option<Self::Call>;

    /// The head of the response is there at `now` (milliseconds since 1970). May return an event of its own, for calls that
    /// stay open for long.
    fn answered(&self, call: &mut Self::Call, head: &response::Parts, now: i64) -> Option<Draft> {
        let _ = (call, head, now);
        None
    }

    /// The call is over at `now` (milliseconds since 1970).
    fn ended(&self, call: Self::Call, outcome: Outcome, now: i64) -> Option<Draft>;
}

/// How a call ended.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// What became of it.
    pub how: How,
    /// The HTTP status, if there was a response.
    pub status: Option<StatusCode>,
    /// The gRPC status, if the response or its trailers had one.
    pub grpc: Option<Code>,
    /// The refusal that a layer further in left in the response's extensions.
    pub refusal: Option<Refusal>,
    /// From the call to its end.
    pub duration: Duration,
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
    /// The call was dropped before its end: the caller went away.
    Cancelled,
}

/// Applies [`Ocsf`].
#[derive(Debug)]
pub struct OcsfLayer<A> {
    audit: Arc<A>,
    recorder: Recorder,
}

/// Calls the inner service and records what became of it.
#[derive(Debug)]
pub struct Ocsf<S, A> {
    inner: S,
    audit: Arc<A>,
    recorder: Recorder,
}

pin_project! {
    /// One audited call.
    pub struct ResponseFuture<F, A>
    where
        A: Audit,
    {
        #[pin]
        inner: F,
        entry: Entry<A>,
    }
}

pin_project! {
    /// The body of an audited response.
    pub struct OcsfBody<B, A>
    where
        A: Audit,
    {
        #[pin]
        inner: B,
        entry: Entry<A>,
    }
}

/// The record of one call, completed at the latest when this is dropped. `None` if the call is left out or already recorded.
struct Entry<A: Audit>(Option<OpenEntry<A>>);

struct OpenEntry<A: Audit> {
    audit: Arc<A>,
    recorder: Recorder,
    call: A::Call,
    start: Instant,
    status: Option<StatusCode>,
    grpc: Option<Code>,
    refusal: Option<Refusal>,
    bytes: u64,
}

// === impl OcsfLayer ===

impl<A: Audit> OcsfLayer<A> {
    /// Records what `audit` makes of calls.
    pub fn new(audit: A, recorder: Recorder) -> Self {
        Self { audit: Arc::new(audit), recorder }
    }
}

impl<A> Clone for OcsfLayer<A> {
    fn clone(&self) -> Self {
        Self { audit: Arc::clone(&self.audit), recorder: self.recorder.clone() }
    }
}

impl<S, A> Layer<S> for OcsfLayer<A> {
    type Service = Ocsf<S, A>;

    fn layer(&self, inner: S) -> Self::Service {
        Ocsf { inner, audit: Arc::clone(&self.audit), recorder: self.recorder.clone() }
    }
}

// === impl Ocsf ===

impl<S: Clone, A> Clone for Ocsf<S, A> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            audit: Arc::clone(&self.audit),
            recorder: self.recorder.clone(),
        }
    }
}

impl<S, A, B, T> Service<Request<B>> for Ocsf<S, A>
where
    S: Service<Request<B>, Response = Response<T>>,
    A: Audit,
    T: Body,
{
    type Response = Response<OcsfBody<T, A>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, A>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        if !self.recorder.is_enabled() {
            return ResponseFuture { inner: self.inner.call(request), entry: Entry(None) };
        }
        let (mut head, body) = request.into_parts();
        let entry = self.audit.start(&mut head).map(|call| OpenEntry {
            audit: Arc::clone(&self.audit),
            recorder: self.recorder.clone(),
            call,
            start: Instant::now(),
            status: None,
            grpc: None,
            refusal: None,
            bytes: 0,
        });
        // Before the call, so that an inner service that panics in it is recorded too.
        let entry = Entry(entry);
        ResponseFuture { inner: self.inner.call(Request::from_parts(head, body)), entry }
    }
}

// === impl ResponseFuture ===

impl<F, A, T, E> Future for ResponseFuture<F, A>
where
    F: Future<Output = Result<Response<T>, E>>,
    A: Audit,
    T: Body,
{
    type Output = Result<Response<OcsfBody<T, A>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        match ready!(this.inner.poll(cx)) {
            Ok(response) => {
                let (head, inner) = response.into_parts();
                let mut entry = Entry(this.entry.0.take());
                entry.answered(&head);
                if inner.is_end_stream() {
                    entry.end(How::Complete);
                }
                Poll::Ready(Ok(Response::from_parts(head, OcsfBody { inner, entry })))
            }
            Err(error) => {
                this.entry.end(How::Failed);
                Poll::Ready(Err(error))
            }
        }
    }
}

impl<F, A: Audit> fmt::Debug for ResponseFuture<F, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ocsf::ResponseFuture").finish_non_exhaustive()
    }
}

// === impl OcsfBody ===

impl<B, A> Body for OcsfBody<B, A>
where
    B: Body,
    A: Audit,
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
                    this.entry.passed(data.remaining());
                } else if let Some(trailers) = frame.trailers_ref() {
                    this.entry.trailed(trailers);
                }
                // A server that asks for the end need not poll once more to see it.
                if frame.is_trailers() || this.inner.is_end_stream() {
                    this.entry.end(How::Complete);
                }
            }
            Some(Err(_)) => this.entry.end(How::BodyFailed),
            None => this.entry.end(How::Complete),
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

impl<B: Default, A: Audit> Default for OcsfBody<B, A> {
    /// A body that nobody audits, for a refusal in front of this layer.
    fn default() -> Self {
        Self { inner: B::default(), entry: Entry(None) }
    }
}

impl<B: fmt::Debug, A: Audit> fmt::Debug for OcsfBody<B, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OcsfBody").field("inner", &self.inner).finish_non_exhaustive()
    }
}

// === impl Entry ===

impl<A: Audit> Entry<A> {
    fn answered(&mut self, head: &response::Parts) {
        let Some(open) = &mut self.0 else { return };
        open.status = Some(head.status);
        open.grpc = Code::from_headers(&head.headers);
        open.refusal = head.extensions.get::<Refusal>().cloned();
        let now = open.recorder.now();
        if let Some(event) = open.audit.answered(&mut open.call, head, now) {
            open.recorder.record(event);
        }
    }

    fn passed(&mut self, bytes: usize) {
        if let Some(open) = &mut self.0 {
            open.bytes += bytes as u64;
        }
    }

    fn trailed(&mut self, trailers: &http::HeaderMap) {
        if let Some(open) = &mut self.0 {
            open.grpc = Code::from_headers(trailers).or(open.grpc);
        }
    }

    fn end(&mut self, how: How) {
        let Some(open) = self.0.take() else { return };
        let outcome = Outcome {
            how,
            status: open.status,
            grpc: open.grpc,
            refusal: open.refusal,
            duration: open.start.elapsed(),
            response_bytes: open.bytes,
        };
        if let Some(event) = open.audit.ended(open.call, outcome, open.recorder.now()) {
            open.recorder.record(event);
        }
    }
}

impl<A: Audit> Drop for Entry<A> {
    fn drop(&mut self) {
        self.end(How::Cancelled);
    }
}

#[cfg(test)]
mod tests;
