//! Bounds the time of a call, head and body.
//!
//! **Effect.** A call that has not ended within its time is dropped and answered for.
//!
//! **Shape.** Call plane. The request is read (`grpc-timeout`) and untouched; the response body is wrapped in
//! [`DeadlineBody`].
//!
//! **Limits.** `total`, default 30 s, from the call to the end of the response body; a caller's `grpc-timeout` may
//! shorten it, never lengthen it. [`Exempt`] calls (streams that live as long as they live) have only the caller's
//! own limit, if there is one.
//!
//! **Refuses** with 504 and `DEADLINE_EXCEEDED` while there is no response head yet. Later, a gRPC body ends with
//! the trailers of `DEADLINE_EXCEEDED`; an HTTP body fails with [`DeadlineExceeded`], so that it is cut off and
//! not mistaken for whole.
//!
//! **Source.** gRPC over HTTP/2 (`PROTOCOL-HTTP2.md`) for `grpc-timeout`.
//!
//! **Order.** Inside whatever should not be bounded by it, `rate_limit` and `authenticate` for instance.
//!
//! **Same poll.** A response that is ready when the timer fires wins over the timer: the work is done.
//!
//! **Cost.** One timer for the head and one for a body that is not at its end yet.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, Request, Response, Version};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    config::{Fault, require},
    refuse::{self, Code, Protocol, Refusal},
    select::Exempt,
    units::format_duration,
};

/// The time of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Config {
    /// From the call to the end of the response body. Default 30 s.
    #[cfg_attr(feature = "serde", serde(with = "crate::units::duration"))]
    pub total: Duration,
}

/// Applies [`Deadline`].
#[derive(Debug)]
pub struct DeadlineLayer<E = ()> {
    total: Duration,
    exempt: Arc<E>,
}

/// Calls the inner service and drops the call when its time is up.
#[derive(Debug)]
pub struct Deadline<S, E = ()> {
    inner: S,
    total: Duration,
    exempt: Arc<E>,
}

/// The time of one call.
#[derive(Clone, Copy, Debug)]
struct Limit {
    total: Duration,
    at: Instant,
    protocol: Protocol,
    version: Version,
}

pin_project! {
    /// One call and its time.
    pub struct ResponseFuture<F> {
        // `None` once the time is up: what the call holds is let go at once.
        #[pin]
        inner: Option<F>,
        #[pin]
        timer: Option<Sleep>,
        limit: Option<Limit>,
    }
}

pin_project! {
    /// A response body and what is left of its call's time.
    pub struct DeadlineBody<B> {
        // `None` once the time is up.
        #[pin]
        inner: Option<B>,
        #[pin]
        timer: Option<Sleep>,
        limit: Option<Limit>,
    }
}

/// The error of a [`DeadlineBody`]: the inner body's own, or [`DeadlineExceeded`].
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The time of the call was up in the middle of its response body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeadlineExceeded {
    /// The time it had.
    pub total: Duration,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self { total: Duration::from_secs(30) }
    }
}

impl Config {
    /// All faults of the values.
    #[must_use]
    pub fn validate(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let range = Duration::from_millis(1)..=Duration::from_secs(86_400);
        require(&mut faults, range.contains(&self.total), "total", || {
            format!(
                "{} is outside of 1ms to 1d; write such as \"30s\"",
                format_duration(self.total)
            )
        });
        faults
    }
}

// === impl DeadlineLayer ===

impl DeadlineLayer {
    /// Bounds every call by `config`.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self { total: config.total, exempt: Arc::new(()) }
    }
}

impl<E> DeadlineLayer<E> {
    /// Bounds the calls that `exempt` names only by the caller's own `grpc-timeout`.
    #[must_use]
    pub fn exempt<E2: Exempt>(self, exempt: E2) -> DeadlineLayer<E2> {
        DeadlineLayer { total: self.total, exempt: Arc::new(exempt) }
    }
}

impl<E> Clone for DeadlineLayer<E> {
    fn clone(&self) -> Self {
        Self { total: self.total, exempt: Arc::clone(&self.exempt) }
    }
}

impl<S, E> Layer<S> for DeadlineLayer<E> {
    type Service = Deadline<S, E>;

    fn layer(&self, inner: S) -> Self::Service {
        Deadline { inner, total: self.total, exempt: Arc::clone(&self.exempt) }
    }
}

// === impl Deadline ===

impl<S: Clone, E> Clone for Deadline<S, E> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), total: self.total, exempt: Arc::clone(&self.exempt) }
    }
}

impl<S, E, B, T> Service<Request<B>> for Deadline<S, E>
where
    S: Service<Request<B>, Response = Response<T>>,
    E: Exempt,
    T: Body + Default,
{
    type Response = Response<DeadlineBody<T>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (head, body) = request.into_parts();
        let protocol = Protocol::of(&head.headers);
        let callers = callers_timeout(&head.headers);
        let own = (!self.exempt.exempt(&head)).then_some(self.total);
        let total = match (own, callers) {
            (Some(own), Some(callers)) => Some(own.min(callers)),
            (own, callers) => own.or(callers),
        };
        let limit = total.map(|total| Limit {
            total,
            at: Instant::now() + total,
            protocol,
            version: head.version,
        });
        let inner = self.inner.call(Request::from_parts(head, body));
        ResponseFuture {
            inner: Some(inner),
            timer: limit.map(|limit| sleep_until(limit.at)),
            limit,
        }
    }
}

/// The `grpc-timeout` of a request: at most eight digits and a unit. A faulty one is no limit.
fn callers_timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

// === impl Limit ===

impl Limit {
    fn refusal(self) -> Refusal {
        let text = format!("the call did not end within {}", format_duration(self.total));
        Refusal::new("deadline", Code::DeadlineExceeded, text)
    }
}

// === impl ResponseFuture ===

impl<F, T, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<T>, E>>,
    T: Body + Default,
{
    type Output = Result<Response<DeadlineBody<T>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let inner = this.inner.as_mut().as_pin_mut().expect("a future is not polled after its end");
        if let Poll::Ready(outcome) = inner.poll(cx) {
            return Poll::Ready(
                outcome.map(|response| response.map(|body| DeadlineBody::new(body, *this.limit))),
            );
        }
        let (Some(timer), Some(limit)) = (this.timer.as_pin_mut(), *this.limit) else {
            return Poll::Pending;
        };
        if timer.poll(cx).is_pending() {
            return Poll::Pending;
        }
        this.inner.set(None);
        let response: Response<T> =
            refuse::response(limit.protocol, limit.version, limit.refusal());
        Poll::Ready(Ok(response.map(|body| DeadlineBody::new(body, None))))
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("deadline::ResponseFuture")
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

// === impl DeadlineBody ===

impl<B: Body> DeadlineBody<B> {
    fn new(inner: B, limit: Option<Limit>) -> Self {
        // A body at its end needs no timer.
        let limit = limit.filter(|_| !inner.is_end_stream());
        Self { inner: Some(inner), timer: limit.map(|limit| sleep_until(limit.at)), limit }
    }
}

impl<B> Body for DeadlineBody<B>
where
    B: Body<Error: Into<BoxError>>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        let Some(inner) = this.inner.as_mut().as_pin_mut() else { return Poll::Ready(None) };
        if let Poll::Ready(frame) = inner.poll_frame(cx) {
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        let (Some(timer), Some(limit)) = (this.timer.as_pin_mut(), *this.limit) else {
            return Poll::Pending;
        };
        if timer.poll(cx).is_pending() {
            return Poll::Pending;
        }
        this.inner.set(None);
        Poll::Ready(Some(match limit.protocol {
            Protocol::Grpc => Ok(Frame::trailers(refuse::trailers(&limit.refusal()))),
            Protocol::Http => Err(Box::new(DeadlineExceeded { total: limit.total })),
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl<B: Default> Default for DeadlineBody<B> {
    /// An empty body without a limit, for a refusal in front of this layer.
    fn default() -> Self {
        Self { inner: Some(B::default()), timer: None, limit: None }
    }
}

impl<B: fmt::Debug> fmt::Debug for DeadlineBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeadlineBody")
            .field("inner", &self.inner)
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

// === impl DeadlineExceeded ===

impl fmt::Display for DeadlineExceeded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the call did not end within {}", format_duration(self.total))
    }
}

impl std::error::Error for DeadlineExceeded {}

#[cfg(test)]
mod tests;
