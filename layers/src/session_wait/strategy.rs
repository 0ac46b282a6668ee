//! What the layer asks about a request and an error, and the answers of closures.

use std::{
    future::{Future, Pending, pending},
    time::Duration,
};

/// Says whether an error means "not yet". Implemented by closures `Fn(&E) -> bool`.
pub trait RetryWhen<E> {
    /// Whether waiting may help against `error`.
    fn retry(&self, error: &E) -> bool;
}

/// Says how long a request may wait. Implemented by closures `Fn(&R) -> Duration` and by [`Duration`] itself.
pub trait Budget<R> {
    /// The longest wait of `request` in all; zero is none.
    fn budget(&self, request: &R) -> Duration;
}

/// Wakes a waiting request when the far end may have come.
///
/// The layer subscribes *before* each attempt, so a session that arrives between a failed attempt and the wait is
/// not missed. Implemented by closures that make a future, and by `()`, which never wakes.
pub trait ReadySignal<R> {
    /// Completes once something has changed since the subscription. It may complete for nothing.
    type Wait: Future<Output = ()>;

    /// Starts listening for what `request` waits for.
    fn subscribe(&self, request: &R) -> Self::Wait;
}

/// Makes the final error of a spent budget. Implemented by closures `Fn(E, Duration) -> E`, and by `()`, which
/// keeps the last error as it is.
pub trait GiveUp<E> {
    /// The error to answer with after the opener's `last` error and a wait of `budget`.
    fn give_up(&self, last: E, budget: Duration) -> E;
}

// === impl the traits for closures and defaults ===

impl<E, F: Fn(&E) -> bool> RetryWhen<E> for F {
    fn retry(&self, error: &E) -> bool {
        self(error)
    }
}

impl<R> Budget<R> for Duration {
    fn budget(&self, _request: &R) -> Duration {
        *self
    }
}

impl<R, F: Fn(&R) -> Duration> Budget<R> for F {
    fn budget(&self, request: &R) -> Duration {
        self(request)
    }
}

impl<R> ReadySignal<R> for () {
    type Wait = Pending<()>;

    fn subscribe(&self, _request: &R) -> Self::Wait {
        pending()
    }
}

impl<R, F, W> ReadySignal<R> for F
where
    F: Fn(&R) -> W,
    W: Future<Output = ()>,
{
    type Wait = W;

    fn subscribe(&self, request: &R) -> W {
        self(request)
    }
}

impl<E> GiveUp<E> for () {
    fn give_up(&self, last: E, _budget: Duration) -> E {
        last
    }
}

impl<E, F: Fn(E, Duration) -> E> GiveUp<E> for F {
    fn give_up(&self, last: E, budget: Duration) -> E {
        self(last, budget)
    }
}
