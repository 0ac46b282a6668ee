//! Bounds the time that a peer may take to become useful.
//!
//! **Effect.** A connection that has not marked its handshake as done within the time is dropped.
//!
//! **Shape.** Connection plane: `Service<C>` in and out, where the future is the whole life of the connection. The
//! connection takes a [`Handshake`] in, by [`HoldHandshake`]; whoever sees the first sign of use (the first
//! request, for a server) calls [`Handshake::done`].
//!
//! **Limits.** `total`, default 10 s: several round trips of TLS on a bad link, and little enough that peers which
//! connect and say nothing do not pile up.
//!
//! **Refuses** with `DEADLINE_EXCEEDED`, by [`FromRefusal`]; the inner future is dropped, and with it the socket.
//!
//! **Source.** RFC 9113 section 10.5 and the slow-header attacks that it has in mind.
//!
//! **Order.** Outside `tls`, so that the TLS handshake counts.
//!
//! **Cost.** One timer and one atomic per connection; nothing after the handshake.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    config::{Fault, require},
    refuse::{Code, FromRefusal, Refusal},
    units::format_duration,
};

/// The time of a handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Config {
    /// From the accepted socket to the first sign of use. Default 10 s.
    #[cfg_attr(feature = "serde", serde(with = "crate::units::duration"))]
    pub total: Duration,
}

/// Tells the layer that the peer has become useful. Clones are the same handshake.
#[derive(Clone, Debug, Default)]
pub struct Handshake(Arc<AtomicBool>);

/// A connection that keeps its [`Handshake`] for whoever sees the first sign of use.
pub trait HoldHandshake {
    /// Takes the handshake in.
    fn hold_handshake(&mut self, handshake: Handshake);
}

/// Applies [`HandshakeDeadline`].
#[derive(Clone, Debug)]
pub struct HandshakeDeadlineLayer {
    total: Duration,
}

/// Serves a connection through the inner service, while it makes progress.
#[derive(Clone, Debug)]
pub struct HandshakeDeadline<S> {
    inner: S,
    total: Duration,
}

pin_project! {
    /// The life of one connection.
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        // `None` once it has fired on a handshake that was done.
        #[pin]
        timer: Option<Sleep>,
        handshake: Handshake,
        total: Duration,
    }
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self { total: Duration::from_secs(10) }
    }
}

impl Config {
    /// All faults of the values.
    #[must_use]
    pub fn validate(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        require(&mut faults, self.total >= Duration::from_millis(100), "total", || {
            "is below 100ms, which a distant peer cannot keep; write such as \"10s\"".to_owned()
        });
        faults
    }
}

// === impl Handshake ===

impl Handshake {
    /// The peer has become useful. Calling it again does nothing.
    pub fn done(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it has.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

// === impl HandshakeDeadlineLayer ===

impl HandshakeDeadlineLayer {
    /// Bounds handshakes by `config`.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self { total: config.total }
    }
}

impl<S> Layer<S> for HandshakeDeadlineLayer {
    type Service = HandshakeDeadline<S>;

    fn layer(&self, inner: S) -> Self::Service {
        HandshakeDeadline { inner, total: self.total }
    }
}

// === impl HandshakeDeadline ===

impl<S, C> Service<C> for HandshakeDeadline<S>
where
    S: Service<C, Error: FromRefusal>,
    C: HoldHandshake,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut connection: C) -> Self::Future {
        let handshake = Handshake::default();
        connection.hold_handshake(handshake.clone());
        let inner = self.inner.call(connection);
        ResponseFuture { inner, timer: Some(sleep(self.total)), handshake, total: self.total }
    }
}

// === impl ResponseFuture ===

impl<F, T, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<T, E>>,
    E: FromRefusal,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        // First, so that a handshake which completes in this very poll is in time.
        if let Poll::Ready(outcome) = this.inner.poll(cx) {
            return Poll::Ready(outcome);
        }
        let fired = this.timer.as_mut().as_pin_mut().is_some_and(|timer| timer.poll(cx).is_ready());
        if !fired {
            return Poll::Pending;
        }
        this.timer.set(None);
        if this.handshake.is_done() {
            return Poll::Pending;
        }
        let text = format!("the peer made no request within {}", format_duration(*this.total));
        Poll::Ready(Err(E::from_refusal(Refusal::new(
            "handshake_deadline",
            Code::DeadlineExceeded,
            text,
        ))))
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("handshake_deadline::ResponseFuture").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;
    use tower::{ServiceExt, service_fn};

    use super::*;

    #[derive(Default)]
    struct Socket {
        handshake: Handshake,
        useful_after: Duration,
    }

    impl HoldHandshake for Socket {
        fn hold_handshake(&mut self, handshake: Handshake) {
            self.handshake = handshake;
        }
    }

    async fn serve(socket: Socket) -> Result<(), Refusal> {
        sleep(socket.useful_after).await;
        socket.handshake.done();
        sleep(Duration::from_secs(3600)).await;
        Ok(())
    }

    async fn connect(useful_after: Duration) -> (Result<(), Refusal>, Duration) {
        let start = Instant::now();
        let server = HandshakeDeadlineLayer::new(&Config::default()).layer(service_fn(serve));
        let outcome = server.oneshot(Socket { useful_after, ..Socket::default() }).await;
        (outcome, start.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_peer_is_dropped() {
        let (outcome, after) = connect(Duration::from_secs(3600)).await;
        let refusal = outcome.expect_err("it said nothing");
        assert_eq!(refusal.code(), Code::DeadlineExceeded);
        assert!(refusal.reason().contains("10s"), "{refusal}");
        assert!((Duration::from_secs(10)..Duration::from_secs(11)).contains(&after), "{after:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_useful_peer_may_stay() {
        let (outcome, after) = connect(Duration::from_secs(9)).await;
        assert!(outcome.is_ok() && after > Duration::from_secs(3600));
    }
}
