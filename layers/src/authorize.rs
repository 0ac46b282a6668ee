//! Lets through what a decision allows.
//!
//! **Effect.** Asks a decision about each request and refuses what it denies.
//!
//! **Shape.** Call plane, both bodies untouched. The decision sees the whole request head, with the principal that
//! an `authenticate` in front has put into the extensions, and the body's type but not its bytes.
//!
//! **Refuses.** 403 and `PERMISSION_DENIED` with one fixed text, so that an answer does not tell whether the thing
//! asked for exists; 503 and `UNAVAILABLE` when no decision can be had. Why is in [`Refusal::detail`].
//!
//! **Limits.** None; a decision bounds its own waits.
//!
//! **Source.** RFC 9110 section 15.5.4 for 403.
//!
//! **Order.** After `authenticate`.
//!
//! **Cost.** One clone of the inner service and the decision.

use std::{
    borrow::Cow,
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::refuse::{self, Code, Protocol, Refusal};

/// Decides about requests of type `R`.
///
/// Implemented by closures `Fn(&R) -> impl Future<Output = Result<(), Denied>>`; a decision that needs no waiting
/// returns [`std::future::ready`].
pub trait Authorize<R> {
    /// The decision. It owns what it needs of the request.
    type Future: Future<Output = Result<(), Denied>>;

    /// Decides about `request`.
    fn authorize(&self, request: &R) -> Self::Future;
}

/// Why a request may not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denied {
    detail: Cow<'static, str>,
    available: bool,
}

/// Applies [`AuthorizeService`].
#[derive(Debug)]
pub struct AuthorizeLayer<Z> {
    decision: Arc<Z>,
}

/// Calls the inner service with the requests that the decision allows.
#[derive(Debug)]
pub struct AuthorizeService<S, Z> {
    inner: S,
    decision: Arc<Z>,
}

pin_project! {
    /// One call being decided about and then served.
    pub struct ResponseFuture<S, D, B>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        state: State<S, D, S::Future, Request<B>>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, D, F, R> {
        Deciding { #[pin] decision: D, waiting: Option<(S, R)> },
        Serving { #[pin] future: F },
    }
}

// === impl Denied ===

impl Denied {
    /// The request may never pass. `detail` is for the log only.
    #[must_use]
    pub fn new(detail: impl Into<Cow<'static, str>>) -> Self {
        Self { detail: detail.into(), available: true }
    }

    /// No decision can be had now. `detail` is for the log only.
    #[must_use]
    pub fn unavailable(detail: impl Into<Cow<'static, str>>) -> Self {
        Self { detail: detail.into(), available: false }
    }

    fn refusal(self) -> Refusal {
        let (code, reason) = if self.available {
            (Code::PermissionDenied, "permission denied")
        } else {
            (Code::Unavailable, "the call cannot be authorized now; retry later")
        };
        Refusal::new("authorize", code, reason).with_detail(self.detail)
    }
}

// === impl AuthorizeLayer ===

impl<Z> AuthorizeLayer<Z> {
    /// Asks `decision` about every request.
    pub fn new(decision: Z) -> Self {
        Self { decision: Arc::new(decision) }
    }
}

impl<Z> Clone for AuthorizeLayer<Z> {
    fn clone(&self) -> Self {
        Self { decision: Arc::clone(&self.decision) }
    }
}

impl<S, Z> Layer<S> for AuthorizeLayer<Z> {
    type Service = AuthorizeService<S, Z>;

    fn layer(&self, inner: S) -> Self::Service {
        AuthorizeService { inner, decision: Arc::clone(&self.decision) }
    }
}

// === impl AuthorizeService ===

impl<S: Clone, Z> Clone for AuthorizeService<S, Z> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), decision: Arc::clone(&self.decision) }
    }
}

impl<S, Z, B, T> Service<Request<B>> for AuthorizeService<S, Z>
where
    S: Service<Request<B>, Response = Response<T>> + Clone,
    Z: Authorize<Request<B>>,
    T: Default,
{
    type Response = Response<T>;
    type Error = S::Error;
    type Future = ResponseFuture<S, Z::Future, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let decision = self.decision.authorize(&request);
        let fresh = self.inner.clone();
        // The service that was made ready goes with the request.
        let ready = std::mem::replace(&mut self.inner, fresh);
        ResponseFuture { state: State::Deciding { decision, waiting: Some((ready, request)) } }
    }
}

// === impl ResponseFuture ===

impl<S, D, B, T> Future for ResponseFuture<S, D, B>
where
    S: Service<Request<B>, Response = Response<T>>,
    D: Future<Output = Result<(), Denied>>,
    T: Default,
{
    type Output = Result<Response<T>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProj::Deciding { decision, waiting } => {
                    let decided = ready!(decision.poll(cx));
                    let (mut service, request) =
                        waiting.take().expect("taken only on the way out of this state");
                    if let Err(denied) = decided {
                        let protocol = Protocol::of(request.headers());
                        let response =
                            refuse::response(protocol, request.version(), denied.refusal());
                        return Poll::Ready(Ok(response));
                    }
                    let future = service.call(request);
                    this.state.set(State::Serving { future });
                }
                StateProj::Serving { future } => return future.poll(cx),
            }
        }
    }
}

impl<S: Service<Request<B>>, D, B> fmt::Debug for ResponseFuture<S, D, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("authorize::ResponseFuture").finish_non_exhaustive()
    }
}

// === impl Authorize ===

impl<R, F, D> Authorize<R> for F
where
    F: Fn(&R) -> D,
    D: Future<Output = Result<(), Denied>>,
{
    type Future = D;

    fn authorize(&self, request: &R) -> D {
        self(request)
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, future::ready};

    use http::{HeaderValue, header};
    use tower::{ServiceExt, service_fn};

    use super::*;

    fn decide(request: &Request<()>) -> std::future::Ready<Result<(), Denied>> {
        ready(match request.uri().path() {
            "/mine" => Ok(()),
            "/away" => Err(Denied::unavailable("no database")),
            path => Err(Denied::new(format!("{path} is not yours"))),
        })
    }

    async fn ask(path: &'static str, grpc: bool) -> Response<()> {
        let inner = service_fn(|_: Request<()>| ready(Ok::<_, Infallible>(Response::new(()))));
        let mut request = Request::new(());
        *request.uri_mut() = path.parse().unwrap();
        if grpc {
            let value = HeaderValue::from_static("application/grpc");
            request.headers_mut().insert(header::CONTENT_TYPE, value);
        }
        AuthorizeLayer::new(decide).layer(inner).oneshot(request).await.unwrap()
    }

    #[tokio::test]
    async fn what_is_allowed_passes() {
        assert_eq!(ask("/mine", false).await.status(), 200);
    }

    #[tokio::test]
    async fn what_is_denied_gets_one_fixed_answer() {
        let response = ask("/theirs", false).await;
        assert_eq!(response.status(), 403);
        assert_eq!(
            response.extensions().get::<Refusal>().unwrap().detail(),
            Some("/theirs is not yours")
        );
        let (one, other) = (ask("/theirs", true).await, ask("/nowhere", true).await);
        assert_eq!(one.headers()["grpc-status"], "7");
        assert_eq!(one.headers(), other.headers(), "an answer does not tell what exists");
    }

    #[tokio::test]
    async fn no_decision_is_not_a_denial() {
        assert_eq!(ask("/away", true).await.headers()["grpc-status"], "14");
    }
}
