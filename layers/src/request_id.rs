//! Gives every call a name that logs can be joined by.
//!
//! **Effect.** Takes the caller's request id if it is sane, else makes one; hands it to the inner service and back
//! to the caller.
//!
//! **Shape.** Call plane, both bodies untouched. Request: the header and a [`RequestId`] in the extensions are set.
//! Response: the header is set, unless the inner service set it, and the [`RequestId`] put into the extensions.
//!
//! **Limits.** A caller's id has 1 to 128 characters of `[A-Za-z0-9._:+/=@-]`: what UUIDs, ULIDs, trace ids and
//! base64 need, and nothing that a log line, a shell or a page would have to escape.
//!
//! **Refuses** never: an id that is not sane is replaced.
//!
//! **Source.** `x-request-id` is a convention (Envoy, nginx, Heroku), not a standard.
//!
//! **Order.** Outermost, so that everything inside may log the id.
//!
//! **Cost.** One clone of the id for each of header and extension, no allocation for a caller's own id.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{HeaderName, HeaderValue, Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    config::{Fault, require},
    mix::Sequence,
};

/// The longest id that is taken from a caller, in characters.
pub const LONGEST: usize = 128;

const HEADER: HeaderName = HeaderName::from_static("x-request-id");

/// What is done with callers' ids.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Config {
    /// Whether a caller's sane id is kept. Default true; false where callers are strangers.
    pub keep_callers: bool,
    /// The header. Default `x-request-id`.
    pub header: String,
}

/// The name of one call. It prints as itself and holds nothing that needs escaping.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(HeaderValue);

/// A text that is no request id: empty, too long, or with a character that is not allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InvalidRequestId;

/// Makes ids for calls that bring none.
pub trait MakeRequestId {
    /// The next id. Two calls never get the same.
    fn make_request_id(&self) -> RequestId;
}

/// Makes ids of 32 hexadecimal digits from a seeded sequence: 16 of the seed's, 16 of the call's.
///
/// Ids of one instance never repeat; those of two instances differ if their seeds do. They can be guessed, so
/// they are names and never secrets.
#[derive(Debug)]
pub struct SeededRequestIds {
    instance: u64,
    sequence: Sequence,
}

/// Applies [`RequestIdService`].
#[derive(Debug)]
pub struct RequestIdLayer<M> {
    shared: Arc<Shared<M>>,
}

/// Calls the inner service with a request that has an id.
#[derive(Debug)]
pub struct RequestIdService<S, M> {
    inner: S,
    shared: Arc<Shared<M>>,
}

#[derive(Debug)]
struct Shared<M> {
    keep_callers: bool,
    header: HeaderName,
    make: M,
}

pin_project! {
    /// One call with an id.
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        header: HeaderName,
        id: Option<RequestId>,
    }
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self { keep_callers: true, header: HEADER.as_str().to_owned() }
    }
}

impl Config {
    /// All faults of the values.
    #[must_use]
    pub fn validate(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        require(&mut faults, self.header.parse::<HeaderName>().is_ok(), "header", || {
            format!("{:?} is no header name; write one such as \"x-request-id\"", self.header)
        });
        faults
    }
}

// === impl RequestId ===

impl RequestId {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.to_str().expect("checked to be ASCII when it was made")
    }

    fn from_header(value: &HeaderValue) -> Option<Self> {
        let sane = |byte: &u8| byte.is_ascii_alphanumeric() || b"._:+/=@-".contains(byte);
        let bytes = value.as_bytes();
        ((1..=LONGEST).contains(&bytes.len()) && bytes.iter().all(sane))
            .then(|| Self(value.clone()))
    }
}

impl std::str::FromStr for RequestId {
    type Err = InvalidRequestId;

    fn from_str(text: &str) -> Result<Self, InvalidRequestId> {
        let value = HeaderValue::from_str(text).map_err(|_| InvalidRequestId)?;
        Self::from_header(&value).ok_or(InvalidRequestId)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for InvalidRequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a request id has 1 to {LONGEST} characters of A-Z a-z 0-9 . _ : + / = @ -")
    }
}

impl std::error::Error for InvalidRequestId {}

// === impl SeededRequestIds ===

impl SeededRequestIds {
    /// Starts from `seed`, to be drawn at random once per process.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let sequence = Sequence::new(seed);
        Self { instance: sequence.next(), sequence }
    }
}

impl MakeRequestId for SeededRequestIds {
    fn make_request_id(&self) -> RequestId {
        let mut text = [0; 32];
        let number = (u128::from(self.instance) << 64) | u128::from(self.sequence.next());
        for (place, digit) in text.iter_mut().enumerate() {
            let nibble = (number >> (124 - 4 * place)) & 15;
            *digit = b"0123456789abcdef"[nibble as usize];
        }
        RequestId(HeaderValue::from_bytes(&text).expect("hexadecimal digits are a header value"))
    }
}

// === impl RequestIdLayer ===

impl<M: MakeRequestId> RequestIdLayer<M> {
    /// Names calls by `make` where `config` does not keep the caller's name.
    ///
    /// A header that is no header name (see [`Config::validate`]) is replaced by the default.
    pub fn new(config: &Config, make: M) -> Self {
        let header = config.header.parse().unwrap_or(HEADER);
        Self { shared: Arc::new(Shared { keep_callers: config.keep_callers, header, make }) }
    }
}

impl<M> Clone for RequestIdLayer<M> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<S, M> Layer<S> for RequestIdLayer<M> {
    type Service = RequestIdService<S, M>;

    fn layer(&self, inner: S) -> Self::Service {
        RequestIdService { inner, shared: Arc::clone(&self.shared) }
    }
}

// === impl RequestIdService ===

impl<S: Clone, M> Clone for RequestIdService<S, M> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), shared: Arc::clone(&self.shared) }
    }
}

impl<S, M, B, T> Service<Request<B>> for RequestIdService<S, M>
where
    S: Service<Request<B>, Response = Response<T>>,
    M: MakeRequestId,
{
    type Response = Response<T>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let Shared { keep_callers, header, make } = &*self.shared;
        let callers = request.headers().get(header).filter(|_| *keep_callers);
        let id = callers.and_then(RequestId::from_header).unwrap_or_else(|| make.make_request_id());
        request.headers_mut().insert(header.clone(), id.0.clone());
        request.extensions_mut().insert(id.clone());
        ResponseFuture { inner: self.inner.call(request), header: header.clone(), id: Some(id) }
    }
}

// === impl ResponseFuture ===

impl<F, T, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<T>, E>>,
{
    type Output = Result<Response<T>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.inner.poll(cx))?;
        if let Some(id) = this.id.take() {
            response.headers_mut().entry(this.header.clone()).or_insert_with(|| id.0.clone());
            response.extensions_mut().insert(id);
        }
        Poll::Ready(Ok(response))
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("request_id::ResponseFuture").field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, convert::Infallible, future::ready};

    use tower::{ServiceExt, service_fn};

    use super::*;

    async fn ask(config: &Config, header: Option<&str>) -> (String, Response<()>) {
        let inner = service_fn(|request: Request<()>| {
            let seen = request.extensions().get::<RequestId>().map(ToString::to_string);
            assert_eq!(request.headers()["x-request-id"].to_str().ok(), seen.as_deref());
            let mut response = Response::new(());
            response.headers_mut().insert("seen", seen.unwrap().parse().unwrap());
            ready(Ok::<_, Infallible>(response))
        });
        let mut request = Request::new(());
        if let Some(value) = header {
            request
                .headers_mut()
                .insert("x-request-id", HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        let service = RequestIdLayer::new(config, SeededRequestIds::new(7)).layer(inner);
        let response = service.oneshot(request).await.unwrap();
        (response.headers()["seen"].to_str().unwrap().to_owned(), response)
    }

    #[tokio::test]
    async fn a_sane_id_is_kept_and_comes_back() {
        let (seen, response) = ask(&Config::default(), Some("abc-123.4:5")).await;
        assert_eq!(seen, "abc-123.4:5");
        assert_eq!(response.headers()["x-request-id"], "abc-123.4:5");
    }

    #[tokio::test]
    async fn other_ids_are_replaced() {
        let long = "x".repeat(LONGEST + 1);
        for value in [
            None,
            Some(""),
            Some("two words"),
            Some("<script>"),
            Some("\u{e9}"),
            Some(long.as_str()),
        ] {
            let (seen, _) = ask(&Config::default(), value).await;
            assert!(
                seen.len() == 32 && seen.bytes().all(|b| b.is_ascii_hexdigit()),
                "{value:?} gave {seen}"
            );
        }
        let strangers = Config { keep_callers: false, ..Config::default() };
        assert_ne!(ask(&strangers, Some("abc")).await.0, "abc");
    }

    #[test]
    fn ids_do_not_repeat() {
        let make = SeededRequestIds::new(1);
        let ids: HashSet<_> = (0..10_000).map(|_| make.make_request_id()).collect();
        assert_eq!(ids.len(), 10_000);
        assert_ne!(SeededRequestIds::new(1).instance, SeededRequestIds::new(2).instance);
    }

    #[test]
    fn a_bad_header_is_a_fault() {
        let config = Config { header: "x request".to_owned(), ..Config::default() };
        assert_eq!(config.validate()[0].field, "header");
    }
}
