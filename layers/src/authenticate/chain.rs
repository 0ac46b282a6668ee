//! Authenticators in a row, and authenticators made of closures.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::request::Parts;
use pin_project_lite::pin_project;

use super::{Authenticate, Outcome};

/// Two authenticators; the second is asked only if the first says [`Outcome::NotMine`].
#[derive(Clone, Debug)]
pub struct Chain<A, B> {
    first: A,
    second: B,
}

impl<A, B> Chain<A, B> {
    /// Asks `first`, then `second`.
    pub fn new(first: A, second: B) -> Self {
        Self { first, second }
    }
}

impl<A, B, P> Authenticate<P> for Chain<A, B>
where
    A: Authenticate<P>,
    B: Authenticate<P>,
{
    type Future = ChainFuture<A::Future, B::Future>;

    fn authenticate(&self, head: &Parts) -> Self::Future {
        // Both are made now, while the head is at hand; a future does nothing until it is polled.
        ChainFuture {
            first: self.first.authenticate(head),
            second: self.second.authenticate(head),
            passed_on: false,
        }
    }
}

pin_project! {
    /// The judgement of a [`Chain`].
    pub struct ChainFuture<A, B> {
        #[pin]
        first: A,
        #[pin]
        second: B,
        passed_on: bool,
    }
}

impl<A, B, P> Future for ChainFuture<A, B>
where
    A: Future<Output = Outcome<P>>,
    B: Future<Output = Outcome<P>>,
{
    type Output = Outcome<P>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome<P>> {
        let this = self.project();
        if !*this.passed_on {
            match ready!(this.first.poll(cx)) {
                Outcome::NotMine => *this.passed_on = true,
                outcome => return Poll::Ready(outcome),
            }
        }
        this.second.poll(cx)
    }
}

impl<A, B> fmt::Debug for ChainFuture<A, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChainFuture").field("passed_on", &self.passed_on).finish_non_exhaustive()
    }
}

/// An authenticator made of a closure, by [`from_fn`].
#[derive(Clone)]
pub struct FromFn<F>(F);

/// Makes an authenticator of a closure `Fn(&Parts) -> impl Future<Output = Outcome<P>>`.
pub fn from_fn<F>(judge: F) -> FromFn<F> {
    FromFn(judge)
}

impl<F, J, P> Authenticate<P> for FromFn<F>
where
    F: Fn(&Parts) -> J,
    J: Future<Output = Outcome<P>>,
{
    type Future = J;

    fn authenticate(&self, head: &Parts) -> J {
        (self.0)(head)
    }
}

impl<F> fmt::Debug for FromFn<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FromFn").finish_non_exhaustive()
    }
}
