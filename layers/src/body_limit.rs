//! Caps the bytes of a request body.
//!
//! **Effect.** A body that says that it is too long is refused unread; one that turns out to be fails at the limit.
//!
//! **Shape.** Call plane. The request body is wrapped in [`LimitedBody`] on its way to the inner service; the
//! response body is untouched.
//!
//! **Limits.** `max`, default 4 MiB: what gRPC servers take as one message. [`Exempt`] calls (uploads and relays,
//! which nobody collects) have no limit.
//!
//! **Refuses** with 413 and `RESOURCE_EXHAUSTED`: at once for a `content-length` over the limit, else in place of
//! the response that the inner service makes of the failed body. An inner service that has answered before the
//! limit is reached sees [`BodyTooLong`] from its body.
//!
//! **Source.** RFC 9110 section 15.5.14.
//!
//! **Order.** Outside whatever collects bodies.
//!
//! **Cost.** One allocation for a body of unknown length, one addition per frame.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::Buf;
use http::{Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    config::{Fault, require},
    refuse::{self, Code, Protocol, Refusal},
    select::Exempt,
    units::format_size,
};

/// The limit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Config {
    /// The longest request body, in bytes. Default 4 MiB.
    #[cfg_attr(feature = "serde", serde(with = "crate::units::size"))]
    pub max: u64,
}

/// Applies [`BodyLimit`].
#[derive(Debug)]
pub struct BodyLimitLayer<E = ()> {
    max: u64,
    exempt: Arc<E>,
}

/// Calls the inner service with request bodies of a bounded length.
#[derive(Debug)]
pub struct BodyLimit<S, E = ()> {
    inner: S,
    max: u64,
    exempt: Arc<E>,
}

pin_project! {
    /// One call, or its refusal.
    pub struct ResponseFuture<F> {
        #[pin]
        call: Call<F>,
    }
}

pin_project! {
    #[project = CallProj]
    enum Call<F> {
        Inner { #[pin] future: F, watch: Option<Watch> },
        Refused { said: Said },
    }
}

/// What a refusal of a call needs to know.
#[derive(Clone, Copy, Debug)]
struct Said {
    max: u64,
    protocol: Protocol,
    version: Version,
}

/// Learns that the body was too long after all.
#[derive(Debug)]
struct Watch {
    exceeded: Arc<AtomicBool>,
    said: Said,
}

pin_project! {
    /// A request body that fails at the limit.
    pub struct LimitedBody<B> {
        #[pin]
        inner: B,
        max: u64,
        left: u64,
        exceeded: Option<Arc<AtomicBool>>,
    }
}

/// The error of a [`LimitedBody`]: the inner body's own, or [`BodyTooLong`].
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The body is longer than the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BodyTooLong {
    /// The limit, in bytes.
    pub max: u64,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self { max: 4 << 20 }
    }
}

impl Config {
    /// All faults of the values.
    #[must_use]
    pub fn validate(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        require(&mut faults, self.max > 0, "max", || {
            "is 0B, so no call with a body would pass; write such as \"4MiB\"".to_owned()
        });
        faults
    }
}

// === impl BodyLimitLayer ===

impl BodyLimitLayer {
    /// Limits every body by `config`.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self { max: config.max, exempt: Arc::new(()) }
    }
}

impl<E> BodyLimitLayer<E> {
    /// Does not limit the bodies of the calls that `exempt` names.
    #[must_use]
    pub fn exempt<E2: Exempt>(self, exempt: E2) -> BodyLimitLayer<E2> {
        BodyLimitLayer { max: self.max, exempt: Arc::new(exempt) }
    }
}

impl<E> Clone for BodyLimitLayer<E> {
    fn clone(&self) -> Self {
        Self { max: self.max, exempt: Arc::clone(&self.exempt) }
    }
}

impl<S, E> Layer<S> for BodyLimitLayer<E> {
    type Service = BodyLimit<S, E>;

    fn layer(&self, inner: S) -> Self::Service {
        BodyLimit { inner, max: self.max, exempt: Arc::clone(&self.exempt) }
    }
}

// === impl BodyLimit ===

impl<S: Clone, E> Clone for BodyLimit<S, E> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), max: self.max, exempt: Arc::clone(&self.exempt) }
    }
}

impl<S, E, B, T> Service<Request<B>> for BodyLimit<S, E>
where
    S: Service<Request<LimitedBody<B>>, Response = Response<T>>,
    E: Exempt,
    B: Body,
    T: Default,
{
    type Response = Response<T>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (head, inner) = request.into_parts();
        let exempt = self.exempt.exempt(&head);
        let max = if exempt { u64::MAX } else { self.max };
        let hint = inner.size_hint();
        let said = Said { max, protocol: Protocol::of(&head.headers), version: head.version };
        if hint.lower() > max {
            return ResponseFuture { call: Call::Refused { said } };
        }
        // Nobody has to be told about a body that cannot exceed the limit.
        let may_exceed = !exempt && hint.upper().is_none_or(|upper| upper > max);
        let exceeded = may_exceed.then(Arc::<AtomicBool>::default);
        let watch = exceeded.clone().map(|exceeded| Watch { exceeded, said });
        let body = LimitedBody { inner, max, left: max, exceeded };
        ResponseFuture {
            call: Call::Inner { future: self.inner.call(Request::from_parts(head, body)), watch },
        }
    }
}

// === impl Said ===

impl Said {
    fn response<T: Default>(self) -> Response<T> {
        let text = BodyTooLong { max: self.max }.to_string();
        let refusal = Refusal::new("body_limit", Code::ResourceExhausted, text)
            .with_http_status(StatusCode::PAYLOAD_TOO_LARGE);
        refuse::response(self.protocol, self.version, refusal)
    }
}

// === impl ResponseFuture ===

impl<F, T, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<T>, E>>,
    T: Default,
{
    type Output = Result<Response<T>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().call.project() {
            CallProj::Inner { future, watch } => {
                let response = ready!(future.poll(cx))?;
                match watch {
                    Some(watch) if watch.exceeded.load(Ordering::Acquire) => {
                        Poll::Ready(Ok(watch.said.response()))
                    }
                    _ => Poll::Ready(Ok(response)),
                }
            }
            CallProj::Refused { said } => Poll::Ready(Ok(said.response())),
        }
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("body_limit::ResponseFuture").finish_non_exhaustive()
    }
}

// === impl LimitedBody ===

impl<B> Body for LimitedBody<B>
where
    B: Body<Error: Into<BoxError>>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = self.project();
        let frame = match ready!(this.inner.poll_frame(cx)) {
            Some(frame) => frame.map_err(Into::into),
            None => return Poll::Ready(None),
        };
        let length =
            frame.as_ref().ok().and_then(Frame::data_ref).map_or(0, |data| data.remaining() as u64);
        let Some(left) = this.left.checked_sub(length) else {
            // No byte over the limit gets through, whatever is asked next.
            *this.left = 0;
            if let Some(exceeded) = this.exceeded {
                exceeded.store(true, Ordering::Release);
            }
            return Poll::Ready(Some(Err(Box::new(BodyTooLong { max: *this.max }))));
        };
        // An exempt body has no count: u64::MAX bytes do not come.
        *this.left = left;
        Poll::Ready(Some(frame))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.inner.size_hint();
        if hint.upper().is_none_or(|upper| upper > self.left) && self.left >= hint.lower() {
            hint.set_upper(self.left);
        }
        hint
    }
}

impl<B: fmt::Debug> fmt::Debug for LimitedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LimitedBody")
            .field("inner", &self.inner)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

// === impl BodyTooLong ===

impl fmt::Display for BodyTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the request body is over the limit of {}", format_size(self.max))
    }
}

impl std::error::Error for BodyTooLong {}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use futures_util::stream;
    use http_body_util::{BodyExt, Full, StreamBody};
    use tower::{ServiceExt, service_fn};

    use super::*;

    /// Collects the body, as a handler does, and makes a 400 of a failure.
    async fn collect<B>(request: Request<LimitedBody<B>>) -> Result<Response<String>, BoxError>
    where
        B: Body<Error: Into<BoxError>>,
    {
        match request.into_body().collect().await {
            Ok(body) => Ok(Response::new(body.to_bytes().len().to_string())),
            Err(error) => Ok(Response::builder().status(400).body(error.to_string())?),
        }
    }

    async fn ask<B>(body: B, grpc: bool) -> Response<String>
    where
        B: Body<Error: Into<BoxError>>,
    {
        let mut request = Request::new(body);
        if grpc {
            request.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        }
        let layer = BodyLimitLayer::new(&Config { max: 10 });
        layer.layer(service_fn(collect)).oneshot(request).await.unwrap()
    }

    /// A body of unknown length.
    fn chunks(count: usize) -> impl Body<Data = Bytes, Error = std::io::Error> {
        StreamBody::new(stream::iter(
            (0..count).map(|_| Ok(Frame::data(Bytes::from_static(b"12345")))),
        ))
    }

    #[tokio::test]
    async fn a_body_within_the_limit_passes() {
        assert_eq!(ask(Full::<Bytes>::from("1234567890"), false).await.body(), "10");
        assert_eq!(ask(chunks(2), false).await.body(), "10");
    }

    #[tokio::test]
    async fn a_long_body_is_refused_whether_it_says_so_or_not() {
        assert_eq!(ask(Full::<Bytes>::from("12345678901"), false).await.status(), 413);
        let late = ask(chunks(3), false).await;
        assert_eq!(late.status(), 413, "the inner service's own answer gives way");
        assert!(late.extensions().get::<Refusal>().unwrap().reason().contains("10B"));
        assert_eq!(ask(chunks(3), true).await.headers()["grpc-status"], "8");
    }

    #[tokio::test]
    async fn an_exempt_body_has_no_limit() {
        let layer =
            BodyLimitLayer::new(&Config { max: 10 }).exempt(|_: &http::request::Parts| true);
        let response =
            layer.layer(service_fn(collect)).oneshot(Request::new(chunks(100))).await.unwrap();
        assert_eq!(response.body(), "500");
    }

    #[tokio::test]
    async fn an_inner_error_passes_unchanged() {
        let inner = service_fn(|_: Request<LimitedBody<Full<Bytes>>>| async {
            Err::<Response<()>, _>("gone")
        });
        let call = BodyLimitLayer::new(&Config::default())
            .layer(inner)
            .oneshot(Request::new(Full::from("1")));
        assert_eq!(call.await.err(), Some("gone"));
        assert_eq!(Config { max: 0 }.validate()[0].field, "max");
    }
}
