//! Finds out who is calling, by a chain of authenticators.
//!
//! **Effect.** Puts the principal `P` of the caller into the extensions of the request, or refuses the call.
//!
//! **Shape.** Call plane, both bodies untouched. The head of the request is read, its extensions gain a `P`.
//! Peer certificates and the like reach an authenticator by extensions that the server has put there.
//!
//! **Chain.** Each authenticator says [`Outcome::NotMine`] when the request carries nothing of its kind; the first
//! that says anything else decides. A credential that is there and bad is therefore final: it never falls back to
//! a weaker one. When nobody decides, [`Anonymous`] may supply a principal.
//!
//! **Refuses.** 401 and `UNAUTHENTICATED`, the same fixed text for every cause: why is for the log, in
//! [`Refusal::detail`] and [`OnAuthenticate`]. 503 and `UNAVAILABLE` when an authenticator cannot decide now.
//!
//! **Limits.** None of its own; [`Cached`] is bounded in entries and age, see there. An authenticator bounds its
//! own waits.
//!
//! **Source.** RFC 9110 section 11.6.1 for `www-authenticate` on 401.
//!
//! **Order.** Before `authorize` and whatever reads the principal; after `rate_limit` if that counts by address.
//!
//! **Cost.** One clone of the inner service, one insertion into the extensions.
//!
//! ```
//! use std::future::{Ready, ready};
//! use http::{Request, Response, request::Parts};
//! use postern_layers::authenticate::{Authenticate, AuthenticateLayer, Outcome};
//! use tower::{Layer, ServiceExt, service_fn};
//!
//! #[derive(Clone)]
//! struct User(&'static str);
//! struct Token;
//! impl Authenticate<User> for Token {
//!     type Future = Ready<Outcome<User>>;
//!     fn authenticate(&self, head: &Parts) -> Self::Future {
//!         ready(match head.headers.get("authorization") {
//!             None => Outcome::NotMine,
//!             Some(value) if value == "Bearer letmein" => Outcome::Principal(User("ann")),
//!             Some(_) => Outcome::Rejected("unknown token".into()),
//!         })
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let service = AuthenticateLayer::new(Token)
//!     .layer(service_fn(|_: Request<()>| async { Ok::<_, std::io::Error>(Response::new(())) }));
//! let bare = service.clone().oneshot(Request::new(())).await.expect("a response");
//! assert_eq!(bare.status(), 401);
//! let with = Request::builder().header("authorization", "Bearer letmein").body(()).expect("a request");
//! assert_eq!(service.oneshot(with).await.expect("a response").status(), 200);
//! # }
//! ```

use std::{
    borrow::Cow,
    fmt,
    future::Future,
    marker::PhantomData,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{HeaderValue, Request, Response, Version, header, request::Parts};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    refuse::{self, Code, Protocol, Refusal},
    select::Exempt,
};

mod cache;
mod chain;

pub use self::{
    cache::{CacheHandle, Cached, CachedFuture, Config, CredentialOf},
    chain::{Chain, ChainFuture, FromFn, from_fn},
};

/// What an authenticator makes of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome<P> {
    /// The request carries no credential of this kind; the next authenticator is asked.
    NotMine,
    /// This is the caller.
    Principal(P),
    /// The credential is bad. The text is for the log only.
    Rejected(Cow<'static, str>),
    /// The credential cannot be judged now (a database is away). The text is for the log only.
    Unavailable(Cow<'static, str>),
}

/// Judges one kind of credential.
pub trait Authenticate<P> {
    /// The judgement. It owns what it needs of the request.
    type Future: Future<Output = Outcome<P>>;

    /// Judges the request with this head. The work belongs into the future: in a chain the future of a later
    /// authenticator is made early and polled only if its turn comes.
    fn authenticate(&self, head: &Parts) -> Self::Future;

    /// Asks `next` when this one says [`Outcome::NotMine`].
    fn or<B>(self, next: B) -> Chain<Self, B>
    where
        Self: Sized,
        B: Authenticate<P>,
    {
        Chain::new(self, next)
    }
}

/// Supplies a principal for a call that carries no credential at all.
///
/// Implemented by closures `Fn(&Parts) -> Option<P>`, and by `()`, which supplies none.
pub trait Anonymous<P> {
    /// The principal of the anonymous caller, or `None` to refuse.
    fn principal(&self, head: &Parts) -> Option<P>;
}

/// Sees every decision, for an audit trail. `()` sees nothing.
pub trait OnAuthenticate<P> {
    /// The caller is known.
    fn accepted(&self, head: &Parts, principal: &P);

    /// The call is refused; [`Refusal::detail`] says why.
    fn refused(&self, head: &Parts, refusal: &Refusal);
}

/// Applies [`AuthenticateService`].
pub struct AuthenticateLayer<A, P, N = (), E = (), O = ()> {
    shared: Shared<A, N, E, O>,
    principal: PhantomData<fn() -> P>,
}

/// Calls the inner service with the principal of the caller in the extensions of the request.
pub struct AuthenticateService<S, A, P, N = (), E = (), O = ()> {
    inner: S,
    shared: Arc<Shared<A, N, E, O>>,
    principal: PhantomData<fn() -> P>,
}

/// Each part on its own, so that the parts of a layer can be replaced without being cloned.
struct Shared<A, N, E, O> {
    authenticator: Arc<A>,
    anonymous: Arc<N>,
    exempt: Arc<E>,
    observer: Arc<O>,
}

pin_project! {
    /// One call being judged and then served.
    pub struct ResponseFuture<S, A, P, N, E, O, B>
    where
        S: Service<Request<B>>,
        A: Authenticate<P>,
    {
        #[pin]
        state: State<S, A::Future, S::Future, Request<B>>,
        shared: Arc<Shared<A, N, E, O>>,
        principal: PhantomData<fn() -> P>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, J, F, R> {
        Judging { #[pin] judgement: J, waiting: Option<(S, R)> },
        Serving { #[pin] future: F },
    }
}

// === impl AuthenticateLayer ===

impl<A, P> AuthenticateLayer<A, P> {
    /// Lets `authenticator`, often a [`Chain`], find the principal. Nobody is anonymous, no path is exempt.
    pub fn new(authenticator: A) -> Self {
        let (anonymous, exempt, observer) = (Arc::new(()), Arc::new(()), Arc::new(()));
        Self::made(Shared { authenticator: Arc::new(authenticator), anonymous, exempt, observer })
    }
}

impl<A, P, N, E, O> AuthenticateLayer<A, P, N, E, O> {
    /// Supplies a principal for calls without credential.
    #[must_use]
    pub fn anonymous<N2: Anonymous<P>>(self, anonymous: N2) -> AuthenticateLayer<A, P, N2, E, O> {
        let Shared { authenticator, exempt, observer, .. } = self.shared;
        AuthenticateLayer::made(Shared {
            authenticator,
            anonymous: Arc::new(anonymous),
            exempt,
            observer,
        })
    }

    /// Lets the calls that `exempt` names through without asking who it is; they have no principal.
    #[must_use]
    pub fn exempt<E2: Exempt>(self, exempt: E2) -> AuthenticateLayer<A, P, N, E2, O> {
        let Shared { authenticator, anonymous, observer, .. } = self.shared;
        AuthenticateLayer::made(Shared {
            authenticator,
            anonymous,
            exempt: Arc::new(exempt),
            observer,
        })
    }

    /// Shows every decision to `observer`.
    #[must_use]
    pub fn observe<O2: OnAuthenticate<P>>(self, observer: O2) -> AuthenticateLayer<A, P, N, E, O2> {
        let Shared { authenticator, anonymous, exempt, .. } = self.shared;
        AuthenticateLayer::made(Shared {
            authenticator,
            anonymous,
            exempt,
            observer: Arc::new(observer),
        })
    }

    fn made(shared: Shared<A, N, E, O>) -> Self {
        Self { shared, principal: PhantomData }
    }
}

impl<A, N, E, O> Clone for Shared<A, N, E, O> {
    fn clone(&self) -> Self {
        Self {
            authenticator: Arc::clone(&self.authenticator),
            anonymous: Arc::clone(&self.anonymous),
            exempt: Arc::clone(&self.exempt),
            observer: Arc::clone(&self.observer),
        }
    }
}

impl<A, P, N, E, O> Clone for AuthenticateLayer<A, P, N, E, O> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), principal: PhantomData }
    }
}

impl<S, A, P, N, E, O> Layer<S> for AuthenticateLayer<A, P, N, E, O> {
    type Service = AuthenticateService<S, A, P, N, E, O>;

    fn layer(&self, inner: S) -> Self::Service {
        AuthenticateService { inner, shared: Arc::new(self.shared.clone()), principal: PhantomData }
    }
}

impl<A, P, N, E, O> fmt::Debug for AuthenticateLayer<A, P, N, E, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthenticateLayer").finish_non_exhaustive()
    }
}

// === impl AuthenticateService ===

impl<S: Clone, A, P, N, E, O> Clone for AuthenticateService<S, A, P, N, E, O> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), shared: Arc::clone(&self.shared), principal: PhantomData }
    }
}

impl<S, A, P, N, E, O, B, T> Service<Request<B>> for AuthenticateService<S, A, P, N, E, O>
where
    S: Service<Request<B>, Response = Response<T>> + Clone,
    A: Authenticate<P>,
    P: Clone + Send + Sync + 'static,
    N: Anonymous<P>,
    E: Exempt,
    O: OnAuthenticate<P>,
    T: Default,
{
    type Response = Response<T>;
    type Error = S::Error;
    type Future = ResponseFuture<S, A, P, N, E, O, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (head, body) = request.into_parts();
        let state = if self.shared.exempt.exempt(&head) {
            State::Serving { future: self.inner.call(Request::from_parts(head, body)) }
        } else {
            let judgement = self.shared.authenticator.authenticate(&head);
            let fresh = self.inner.clone();
            // The service that was made ready goes with the request.
            let ready = std::mem::replace(&mut self.inner, fresh);
            State::Judging { judgement, waiting: Some((ready, Request::from_parts(head, body))) }
        };
        ResponseFuture { state, shared: Arc::clone(&self.shared), principal: PhantomData }
    }
}

impl<S: fmt::Debug, A, P, N, E, O> fmt::Debug for AuthenticateService<S, A, P, N, E, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthenticateService").field("inner", &self.inner).finish_non_exhaustive()
    }
}

// === impl ResponseFuture ===

impl<S, A, P, N, E, O, B, T> Future for ResponseFuture<S, A, P, N, E, O, B>
where
    S: Service<Request<B>, Response = Response<T>>,
    A: Authenticate<P>,
    P: Clone + Send + Sync + 'static,
    N: Anonymous<P>,
    O: OnAuthenticate<P>,
    T: Default,
{
    type Output = Result<Response<T>, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProj::Judging { judgement, waiting } => {
                    let outcome = ready!(judgement.poll(cx));
                    let (mut service, request) =
                        waiting.take().expect("taken only on the way out of this state");
                    match judged(this.shared, outcome, request) {
                        Ok(request) => {
                            let future = service.call(request);
                            this.state.set(State::Serving { future });
                        }
                        Err(response) => return Poll::Ready(Ok(response)),
                    }
                }
                StateProj::Serving { future } => return future.poll(cx),
            }
        }
    }
}

impl<S, A, P, N, E, O, B> fmt::Debug for ResponseFuture<S, A, P, N, E, O, B>
where
    S: Service<Request<B>>,
    A: Authenticate<P>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("authenticate::ResponseFuture").finish_non_exhaustive()
    }
}

/// The request with its principal, or the refusal.
fn judged<A, N, E, O, P, B, T>(
    shared: &Shared<A, N, E, O>,
    outcome: Outcome<P>,
    request: Request<B>,
) -> Result<Request<B>, Response<T>>
where
    N: Anonymous<P>,
    O: OnAuthenticate<P>,
    P: Clone + Send + Sync + 'static,
    T: Default,
{
    let (mut head, body) = request.into_parts();
    let outcome = match outcome {
        Outcome::NotMine => match shared.anonymous.principal(&head) {
            Some(principal) => Outcome::Principal(principal),
            None => Outcome::Rejected("no credential".into()),
        },
        other => other,
    };
    let refusal = match outcome {
        Outcome::Principal(principal) => {
            shared.observer.accepted(&head, &principal);
            head.extensions.insert(principal);
            return Ok(Request::from_parts(head, body));
        }
        Outcome::Unavailable(detail) => Refusal::new(
            "authenticate",
            Code::Unavailable,
            "the caller cannot be authenticated now; retry later",
        )
        .with_detail(detail),
        Outcome::Rejected(detail) => {
            Refusal::new("authenticate", Code::Unauthenticated, "unauthenticated")
                .with_detail(detail)
        }
        // Answered above.
        Outcome::NotMine => Refusal::new("authenticate", Code::Unauthenticated, "unauthenticated"),
    };
    shared.observer.refused(&head, &refusal);
    Err(refusal_response(Protocol::of(&head.headers), head.version, refusal))
}

fn refusal_response<T: Default>(
    protocol: Protocol,
    version: Version,
    refusal: Refusal,
) -> Response<T> {
    let unauthenticated = refusal.code() == Code::Unauthenticated;
    let mut response = refuse::response(protocol, version, refusal);
    if unauthenticated && protocol == Protocol::Http {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

// === impl the defaults ===

impl<P> Anonymous<P> for () {
    fn principal(&self, _head: &Parts) -> Option<P> {
        None
    }
}

impl<P, F: Fn(&Parts) -> Option<P>> Anonymous<P> for F {
    fn principal(&self, head: &Parts) -> Option<P> {
        self(head)
    }
}

impl<P> OnAuthenticate<P> for () {
    fn accepted(&self, _head: &Parts, _principal: &P) {}

    fn refused(&self, _head: &Parts, _refusal: &Refusal) {}
}

#[cfg(test)]
mod tests;
