//! Waits for the far end of a relay to be there, within a budget.
//!
//! **Effect.** When the opener says that there is no session yet, the request waits, and is tried again when a
//! signal says that there may be one, or when a backoff runs out, until the request's budget is spent.
//!
//! **Shape.** Relay plane: `Service<R>` in and out, with `R: Clone`. Of the request it takes a budget ([`Budget`])
//! and a signal ([`ReadySignal`]); of the error, whether waiting helps ([`RetryWhen`]).
//!
//! **Limits.**
//!
//! | value | default | why |
//! |---|---|---|
//! | `first_delay` | 100 ms | a supervisor on the same host dials within this; the OpenShell contract |
//! | `max_delay` | 2 s | one look per request each two seconds is no load; the same contract |
//! | budget | by request | 30 s for SSH and 15 s for exec in the contract; zero means no waiting |
//!
//! The delay doubles from attempt to attempt and is jittered to between half and all of its value, so that many
//! waiters of one lost session do not come back as one. The backoff is the fallback; the signal is the mechanism.
//! The budget bounds the waiting, not an attempt in progress: an opener has limits of its own.
//!
//! **Refuses** with what [`GiveUp`] makes of the opener's last error. An error that waiting cannot help passes
//! unchanged and at once, and so does every error of a request without budget.
//!
//! **Source.** Backoff with jitter: Brooker, *Exponential Backoff and Jitter* (AWS, 2015), the "equal" form.
//!
//! **Cost.** Without a wait: one clone of the request and one subscription. No timer is made before it is needed.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    config::{Fault, require},
    mix::Sequence,
};

mod strategy;

pub use self::strategy::{Budget, GiveUp, ReadySignal, RetryWhen};

/// The least time from one attempt's end to the next attempt's start. A signal that is always on would otherwise
/// turn waiting into spinning; 5 ms is below what a person or a handshake notices.
const MIN_GAP: Duration = Duration::from_millis(5);

/// The times of the backoff.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Config {
    /// The delay after the first attempt. Default 100 ms.
    #[cfg_attr(feature = "serde", serde(with = "crate::units::duration"))]
    pub first_delay: Duration,
    /// The delay that doubling stops at. Default 2 s.
    #[cfg_attr(feature = "serde", serde(with = "crate::units::duration"))]
    pub max_delay: Duration,
}

/// Applies [`SessionWait`].
#[derive(Debug)]
pub struct SessionWaitLayer<W, B, G, X> {
    shared: Arc<Shared<W, B, G, X>>,
}

/// Opens a relay through the inner service, waiting for its session if need be.
#[derive(Debug)]
pub struct SessionWait<S, W, B, G, X> {
    inner: S,
    shared: Arc<Shared<W, B, G, X>>,
}

#[derive(Debug)]
struct Shared<W, B, G, X> {
    config: Config,
    retry: W,
    budget: B,
    signal: G,
    give_up: X,
    jitter: Sequence,
}

pin_project! {
    /// One relay being waited for and opened. Dropping it ends the wait and the attempt.
    pub struct ResponseFuture<S, R, W, B, G, X>
    where
        S: Service<R>,
        G: ReadySignal<R>,
    {
        service: S,
        request: R,
        shared: Arc<Shared<W, B, G, X>>,
        last: Option<S::Error>,
        // Set with the first failure that waiting may help.
        wait: Option<Wait>,
        #[pin]
        signal: Option<G::Wait>,
        #[pin]
        timer: Option<Sleep>,
        #[pin]
        step: Step<S::Future>,
    }
}

pin_project! {
    #[project = StepProj]
    enum Step<F> {
        Attempt { #[pin] future: F },
        // Until the signal or the timer.
        Listen,
        // Until the timer: the signal came sooner than `MIN_GAP` allows.
        Gap,
        // Until the inner service is ready again, or the budget is spent.
        Readying,
    }
}

#[derive(Clone, Copy, Debug)]
struct Wait {
    budget: Duration,
    deadline: Instant,
    attempts: u32,
    failed_at: Instant,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self { first_delay: Duration::from_millis(100), max_delay: Duration::from_secs(2) }
    }
}

impl Config {
    /// All faults of the values.
    #[must_use]
    pub fn validate(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        require(&mut faults, self.first_delay >= MIN_GAP, "first_delay", || {
            "is below 5ms, which would be spinning; write at least \"5ms\"".to_owned()
        });
        require(&mut faults, self.max_delay >= self.first_delay, "max_delay", || {
            "is below first_delay; raise it or lower first_delay".to_owned()
        });
        faults
    }

    /// The delay after attempt number `attempts` (from 1), jittered to between half and all by `random`.
    fn delay(&self, attempts: u32, random: u64) -> Duration {
        let doublings = attempts.saturating_sub(1).min(31);
        let full = self.first_delay.saturating_mul(1 << doublings).min(self.max_delay);
        let thousandths = u32::try_from(500 + random % 501).unwrap_or(1_000);
        (full / 1_000).saturating_mul(thousandths).max(MIN_GAP)
    }
}

// === impl SessionWaitLayer ===

impl<W, B, G, X> SessionWaitLayer<W, B, G, X> {
    /// Waits by `config` when `retry` says so, for as long as `budget` says, woken by `signal`; what is left of a
    /// spent budget is made by `give_up`.
    pub fn new(config: Config, retry: W, budget: B, signal: G, give_up: X) -> Self {
        let jitter = Sequence::new(0);
        Self { shared: Arc::new(Shared { config, retry, budget, signal, give_up, jitter }) }
    }

    /// Starts the sequence of jitters elsewhere, for this layer and what it is applied to. It need not be secret; a
    /// fixed seed makes a test repeatable.
    #[must_use]
    pub fn with_seed(self, seed: u64) -> Self {
        self.shared.jitter.restart(seed);
        self
    }
}

impl<W, B, G, X> Clone for SessionWaitLayer<W, B, G, X> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

impl<S, W, B, G, X> Layer<S> for SessionWaitLayer<W, B, G, X> {
    type Service = SessionWait<S, W, B, G, X>;

    fn layer(&self, inner: S) -> Self::Service {
        SessionWait { inner, shared: Arc::clone(&self.shared) }
    }
}

// === impl SessionWait ===

impl<S: Clone, W, B, G, X> Clone for SessionWait<S, W, B, G, X> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), shared: Arc::clone(&self.shared) }
    }
}

impl<S, R, W, B, G, X> Service<R> for SessionWait<S, W, B, G, X>
where
    S: Service<R> + Clone,
    R: Clone,
    W: RetryWhen<S::Error>,
    B: Budget<R>,
    G: ReadySignal<R>,
    X: GiveUp<S::Error>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, R, W, B, G, X>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        // The service that was made ready goes with the request; its clone has to be made ready anew.
        let fresh = self.inner.clone();
        let mut service = std::mem::replace(&mut self.inner, fresh);
        let signal = self.shared.signal.subscribe(&request);
        let future = service.call(request.clone());
        ResponseFuture {
            service,
            request,
            shared: Arc::clone(&self.shared),
            last: None,
            wait: None,
            signal: Some(signal),
            timer: None,
            step: Step::Attempt { future },
        }
    }
}

// === impl ResponseFuture ===

impl<S, R, W, B, G, X> Future for ResponseFuture<S, R, W, B, G, X>
where
    S: Service<R>,
    R: Clone,
    W: RetryWhen<S::Error>,
    B: Budget<R>,
    G: ReadySignal<R>,
    X: GiveUp<S::Error>,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let mut this = self.as_mut().project();
            match this.step.as_mut().project() {
                StepProj::Attempt { future } => match ready!(future.poll(cx)) {
                    Ok(relay) => return Poll::Ready(Ok(relay)),
                    Err(error) => {
                        if let Some(error) = self.as_mut().failed(error) {
                            return Poll::Ready(Err(error));
                        }
                    }
                },
                StepProj::Listen => {
                    let woken = this
                        .signal
                        .as_mut()
                        .as_pin_mut()
                        .is_some_and(|wait| wait.poll(cx).is_ready());
                    if woken {
                        self.as_mut().woken();
                    } else {
                        ready!(poll_timer(this.timer, cx));
                        self.as_mut().timer_ran_out();
                    }
                }
                StepProj::Gap => {
                    ready!(poll_timer(this.timer, cx));
                    self.as_mut().timer_ran_out();
                }
                StepProj::Readying => {
                    if let Poll::Ready(ready) = this.service.poll_ready(cx) {
                        if let Err(error) = ready {
                            return Poll::Ready(Err(error));
                        }
                        self.as_mut().attempt();
                        continue;
                    }
                    ready!(poll_timer(this.timer, cx));
                }
            }
            if let Some(error) = self.as_mut().spent() {
                return Poll::Ready(Err(error));
            }
        }
    }
}

fn poll_timer(timer: Pin<&mut Option<Sleep>>, cx: &mut Context<'_>) -> Poll<()> {
    timer.as_pin_mut().map_or(Poll::Ready(()), |timer| timer.poll(cx))
}

impl<S, R, W, B, G, X> ResponseFuture<S, R, W, B, G, X>
where
    S: Service<R>,
    R: Clone,
    W: RetryWhen<S::Error>,
    B: Budget<R>,
    G: ReadySignal<R>,
    X: GiveUp<S::Error>,
{
    /// Goes on to wait after a failed attempt, or gives the error back if waiting is of no use.
    fn failed(self: Pin<&mut Self>, error: S::Error) -> Option<S::Error> {
        let mut this = self.project();
        if !this.shared.retry.retry(&error) {
            return Some(error);
        }
        let now = Instant::now();
        let mut wait = match *this.wait {
            Some(wait) => wait,
            None => {
                let budget = this.shared.budget.budget(this.request);
                if budget.is_zero() {
                    return Some(error);
                }
                // The clock of the budget starts here: an attempt that fails at once has cost nothing yet.
                Wait { budget, deadline: now + budget, attempts: 0, failed_at: now }
            }
        };
        wait.attempts = wait.attempts.saturating_add(1);
        wait.failed_at = now;
        *this.wait = Some(wait);
        *this.last = Some(error);
        let delay = this.shared.config.delay(wait.attempts, this.shared.jitter.next());
        set_timer(this.timer.as_mut(), wait.deadline.min(now + delay));
        // The failed attempt is dropped here, before the wait and not after it.
        this.step.set(Step::Listen);
        None
    }

    /// The signal came.
    fn woken(self: Pin<&mut Self>) {
        let mut this = self.project();
        this.signal.set(None);
        let Some(wait) = *this.wait else { return };
        let earliest = wait.failed_at + MIN_GAP;
        let (at, step) = if Instant::now() < earliest {
            (earliest.min(wait.deadline), Step::Gap)
        } else {
            (wait.deadline, Step::Readying)
        };
        set_timer(this.timer.as_mut(), at);
        this.step.set(step);
    }

    /// The backoff or the gap is over.
    fn timer_ran_out(self: Pin<&mut Self>) {
        let mut this = self.project();
        let Some(wait) = *this.wait else { return };
        set_timer(this.timer.as_mut(), wait.deadline);
        this.step.set(Step::Readying);
    }

    /// Tries again. The inner service is ready.
    fn attempt(self: Pin<&mut Self>) {
        let mut this = self.project();
        this.signal.set(Some(this.shared.signal.subscribe(this.request)));
        let future = this.service.call(this.request.clone());
        this.step.set(Step::Attempt { future });
    }

    /// The final error, if the budget is spent and no attempt is under way.
    fn spent(self: Pin<&mut Self>) -> Option<S::Error> {
        let this = self.project();
        let wait = (*this.wait)?;
        if Instant::now() < wait.deadline {
            return None;
        }
        this.last.take().map(|last| this.shared.give_up.give_up(last, wait.budget))
    }
}

fn set_timer(mut timer: Pin<&mut Option<Sleep>>, at: Instant) {
    match timer.as_mut().as_pin_mut() {
        Some(timer) => timer.reset(at),
        None => timer.set(Some(sleep_until(at))),
    }
}

impl<S, R, W, B, G, X> fmt::Debug for ResponseFuture<S, R, W, B, G, X>
where
    S: Service<R>,
    G: ReadySignal<R>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("session_wait::ResponseFuture")
            .field("wait", &self.wait)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
