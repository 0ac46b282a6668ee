//! Caps the calls in progress, in all and per key.
//!
//! **Effect.** A call is let through only while both caps have room; it keeps its place until the end of its
//! response body.
//!
//! **Shape.** Call plane. Of the request it takes a key, by [`KeyOf`]; the response body is wrapped in
//! [`CappedBody`], which passes every frame on as it is.
//!
//! **Limits.** `total` (default 1024) protects memory and upstreams; `per_key` (default 128) protects everybody
//! else from one caller. 0 is no cap.
//!
//! **Refuses** with 503 and `RESOURCE_EXHAUSTED`, naming the cap and its value. It never queues: a queue in front
//! of a full service only adds its length to every wait.
//!
//! **Source.** Little's law: calls in progress are rate times duration, the one limit that needs no guess at either.
//!
//! **Order.** Inside `authenticate` if the key is the principal.
//!
//! **Cost.** One short lock at the start and at the end of a call.

use std::{
    fmt,
    future::Future,
    hash::Hash,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response, StatusCode, Version};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    config::{Fault, require},
    refuse::{self, Code, Protocol, Refusal},
    select::KeyOf,
    tally::{Caps, Full, Permit, Tally},
};

/// The caps; 0 is no cap.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Config {
    /// Calls in all. Default 1024.
    pub total: u32,
    /// Calls per key. Default 128.
    pub per_key: u32,
}

/// Applies [`ConcurrencyCap`].
#[derive(Debug)]
pub struct ConcurrencyCapLayer<K, Key> {
    key: Arc<K>,
    tally: Arc<Tally<Key>>,
}

/// Calls the inner service if the caps have room.
#[derive(Debug)]
pub struct ConcurrencyCap<S, K, Key> {
    inner: S,
    key: Arc<K>,
    tally: Arc<Tally<Key>>,
}

/// Reads the counts and changes the caps of a layer that is in use.
#[derive(Debug)]
pub struct Handle<Key> {
    tally: Arc<Tally<Key>>,
}

pin_project! {
    /// One call, or its refusal. Dropping it gives the place back.
    pub struct ResponseFuture<F, Key>
    where
        Key: Hash,
        Key: Eq,
    {
        #[pin]
        call: Call<F, Key>,
    }
}

pin_project! {
    #[project = CallProj]
    enum Call<F, Key>
    where
        Key: Hash,
        Key: Eq,
    {
        Inner { #[pin] future: F, permit: Option<Permit<Key>> },
        Refused { full: Full, protocol: Protocol, version: Version },
    }
}

pin_project! {
    /// A response body whose call keeps its place until the body's end.
    pub struct CappedBody<B, Key>
    where
        Key: Hash,
        Key: Eq,
    {
        #[pin]
        inner: B,
        permit: Option<Permit<Key>>,
    }
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self { total: 1024, per_key: 128 }
    }
}

impl Config {
    /// All faults of the values.
    #[must_use]
    pub fn validate(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        require(&mut faults, self.total == 0 || self.per_key <= self.total, "per_key", || {
            format!("{} is more than total = {}; lower it or raise total", self.per_key, self.total)
        });
        faults
    }

    fn caps(&self) -> Caps {
        Caps { total: self.total, per_key: self.per_key }
    }
}

// === impl ConcurrencyCapLayer ===

impl<K, Key: Hash + Eq + Clone> ConcurrencyCapLayer<K, Key> {
    /// Caps calls by `config`, per the key that `key` finds.
    pub fn new(config: &Config, key: K) -> Self {
        Self { key: Arc::new(key), tally: Tally::new(config.caps()) }
    }

    /// A handle on the counts and caps of everything this layer is applied to.
    #[must_use]
    pub fn handle(&self) -> Handle<Key> {
        Handle { tally: Arc::clone(&self.tally) }
    }
}

impl<K, Key> Clone for ConcurrencyCapLayer<K, Key> {
    fn clone(&self) -> Self {
        Self { key: Arc::clone(&self.key), tally: Arc::clone(&self.tally) }
    }
}

impl<S, K, Key> Layer<S> for ConcurrencyCapLayer<K, Key> {
    type Service = ConcurrencyCap<S, K, Key>;

    fn layer(&self, inner: S) -> Self::Service {
        ConcurrencyCap { inner, key: Arc::clone(&self.key), tally: Arc::clone(&self.tally) }
    }
}

// === impl ConcurrencyCap ===

impl<S: Clone, K, Key> Clone for ConcurrencyCap<S, K, Key> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            key: Arc::clone(&self.key),
            tally: Arc::clone(&self.tally),
        }
    }
}

impl<S, K, Key, B, T> Service<Request<B>> for ConcurrencyCap<S, K, Key>
where
    S: Service<Request<B>, Response = Response<T>>,
    K: KeyOf<Request<B>, Key = Key>,
    Key: Hash + Eq + Clone,
    T: Body + Default,
{
    type Response = Response<CappedBody<T, Key>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, Key>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let call = match self.tally.admit(self.key.key(&request)) {
            Ok(permit) => Call::Inner { future: self.inner.call(request), permit: Some(permit) },
            Err(full) => {
                let (protocol, version) = (Protocol::of(request.headers()), request.version());
                Call::Refused { full, protocol, version }
            }
        };
        ResponseFuture { call }
    }
}

// === impl Handle ===

impl<Key: Hash + Eq + Clone> Handle<Key> {
    /// Calls in progress, and calls refused since the start.
    #[must_use]
    pub fn counts(&self) -> (u32, u64) {
        self.tally.counts()
    }

    /// Puts other caps in force. A lowered cap ends no call.
    pub fn set(&self, config: &Config) {
        self.tally.set_caps(config.caps());
    }
}

impl<Key> Clone for Handle<Key> {
    fn clone(&self) -> Self {
        Self { tally: Arc::clone(&self.tally) }
    }
}

// === impl ResponseFuture ===

impl<F, Key, T, E> Future for ResponseFuture<F, Key>
where
    F: Future<Output = Result<Response<T>, E>>,
    Key: Hash + Eq,
    T: Body + Default,
{
    type Output = Result<Response<CappedBody<T, Key>>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().call.project() {
            CallProj::Inner { future, permit } => {
                let outcome = ready!(future.poll(cx));
                let permit = permit.take();
                Poll::Ready(
                    outcome.map(|response| response.map(|inner| CappedBody::new(inner, permit))),
                )
            }
            CallProj::Refused { full, protocol, version } => {
                let text = match full {
                    Full::Total(cap) => {
                        format!("{cap} calls are in progress, which is the cap total = {cap}")
                    }
                    Full::PerKey(cap) => {
                        format!(
                            "{cap} calls of this caller are in progress, which is the cap per_key = {cap}"
                        )
                    }
                };
                let refusal = Refusal::new("concurrency_cap", Code::ResourceExhausted, text)
                    .with_http_status(StatusCode::SERVICE_UNAVAILABLE);
                let response: Response<T> = refuse::response(*protocol, *version, refusal);
                Poll::Ready(Ok(response.map(|inner| CappedBody::new(inner, None))))
            }
        }
    }
}

impl<F, Key: Hash + Eq> fmt::Debug for ResponseFuture<F, Key> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("concurrency_cap::ResponseFuture").finish_non_exhaustive()
    }
}

// === impl CappedBody ===

impl<B: Body, Key: Hash + Eq> CappedBody<B, Key> {
    fn new(inner: B, permit: Option<Permit<Key>>) -> Self {
        let permit = permit.filter(|_| !inner.is_end_stream());
        Self { inner, permit }
    }
}

impl<B: Body, Key: Hash + Eq> Body for CappedBody<B, Key> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.inner.as_mut().poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) || this.inner.is_end_stream() {
            // The end, seen before whoever drives the body has dropped it.
            this.permit.take();
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

impl<B: Default, Key: Hash + Eq> Default for CappedBody<B, Key> {
    /// An empty body without a place, for a refusal in front of this layer.
    fn default() -> Self {
        Self { inner: B::default(), permit: None }
    }
}

impl<B: fmt::Debug, Key: Hash + Eq> fmt::Debug for CappedBody<B, Key> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CappedBody").field("inner", &self.inner).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use http_body_util::{BodyExt, Full as FullBody};
    use tower::service_fn;

    use super::*;

    async fn answer(_: Request<()>) -> Result<Response<FullBody<Bytes>>, Infallible> {
        Ok(Response::new(FullBody::from("four")))
    }

    fn request(path: &'static str) -> Request<()> {
        let mut request = Request::new(());
        *request.uri_mut() = path.parse().unwrap();
        request
    }

    type Path = fn(&Request<()>) -> Option<String>;

    fn layer(total: u32, per_key: u32) -> ConcurrencyCapLayer<Path, String> {
        let key: Path = |request| Some(request.uri().path().to_owned());
        ConcurrencyCapLayer::new(&Config { total, per_key }, key)
    }

    #[tokio::test]
    async fn a_call_keeps_its_place_until_the_end_of_its_body() {
        let layer = layer(2, 1);
        let (handle, mut service) = (layer.handle(), layer.layer(service_fn(answer)));
        let first = service.call(request("/a")).await.unwrap();
        let refused = service.call(request("/a")).await.unwrap();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        let refusal = refused.extensions().get::<Refusal>().unwrap();
        assert!(refusal.reason().contains("per_key = 1"), "{refusal}");
        let other = service.call(request("/b")).await.unwrap();
        assert_eq!(
            service.call(request("/c")).await.unwrap().status(),
            StatusCode::SERVICE_UNAVAILABLE
        );
        assert_eq!(handle.counts(), (2, 2));
        first.into_body().collect().await.unwrap();
        assert_eq!(handle.counts().0, 1);
        drop(other);
        assert_eq!(handle.counts().0, 0);
    }

    #[tokio::test]
    async fn a_place_is_given_back_with_the_last_frame() {
        let layer = layer(1, 1);
        let mut body =
            layer.layer(service_fn(answer)).call(request("/a")).await.unwrap().into_body();
        body.frame().await.unwrap().unwrap();
        assert_eq!(layer.handle().counts().0, 0, "the body is at its end and not yet dropped");
        assert!(body.is_end_stream());
    }

    #[tokio::test]
    async fn the_caps_can_be_changed() {
        let layer = layer(0, 0);
        let mut service = layer.layer(service_fn(answer));
        let _held = service.call(request("/a")).await.unwrap();
        layer.handle().set(&Config { total: 1, per_key: 1 });
        assert_eq!(
            service.call(request("/b")).await.unwrap().status(),
            StatusCode::SERVICE_UNAVAILABLE
        );
        assert_eq!(Config { total: 1, per_key: 2 }.validate()[0].field, "per_key");
    }
}
