//! The contract that every layer of this crate keeps, as a function over any layer.
//!
//! [`contract`] puts a layer around a [`Probe`] and checks what a caller and an inner service may rely on:
//!
//! 1. **Readiness before call.** The inner service is called only on an instance that has said it is ready.
//! 2. **Back-pressure.** While the inner service is not ready, the layer is not, and it is woken when that changes.
//! 3. **Cancellation.** Dropping the future drops what the inner service does, and gives back what the layer held.
//! 4. **Clones.** A clone has its own readiness, and an unfinished call on one does not hold up the other.
//! 5. **Panics.** An inner service that panics, in the call or later, leaves nothing held; the layer goes on.
//! 6. **Errors.** The inner service's error arrives as it is.
//!
//! A layer that refuses gets a request that it lets through; its refusals are its own tests' business.

use std::{
    fmt,
    future::{Future, poll_fn},
    panic::{AssertUnwindSafe, catch_unwind},
    pin::{Pin, pin},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll, Waker},
};

use tower_layer::Layer;
use tower_service::Service;

use crate::refuse::{FromRefusal, Refusal};

/// What a [`Probe`] does when it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It answers at once.
    Answer,
    /// It fails at once with [`ProbeError::Scripted`].
    Fail,
    /// Its future is never ready.
    Hang,
    /// `call` panics.
    PanicInCall,
    /// The future panics when it is polled.
    PanicInPoll,
}

/// The error of a [`Probe`], and of the layers around it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProbeError {
    /// The probe was told to fail.
    Scripted,
    /// A layer refused.
    Refused(Refusal),
    /// A TLS handshake failed.
    Handshake(String),
}

/// An inner service under the control of a test. Clones share the control, but each has its own readiness.
pub struct Probe<T> {
    control: Arc<Control<T>>,
    ready: bool,
}

struct Control<T> {
    state: Mutex<State>,
    answer: Box<dyn Fn() -> T + Send + Sync>,
    in_flight: Arc<AtomicU32>,
}

struct State {
    mode: Mode,
    ready: bool,
    calls: u32,
    wakers: Vec<Waker>,
}

/// The future of a [`Probe`].
pub struct ProbeFuture<T> {
    control: Arc<Control<T>>,
    mode: Mode,
    _in_flight: InFlight,
}

struct InFlight(Arc<AtomicU32>);

// === impl Probe ===

impl<T> Probe<T> {
    /// A probe that is ready and answers with what `answer` makes.
    pub fn new(answer: impl Fn() -> T + Send + Sync + 'static) -> Self {
        let state = State { mode: Mode::Answer, ready: true, calls: 0, wakers: Vec::new() };
        let control = Control {
            state: Mutex::new(state),
            answer: Box::new(answer),
            in_flight: Arc::default(),
        };
        Self { control: Arc::new(control), ready: false }
    }

    /// Changes what the calls from now on do.
    pub fn set_mode(&self, mode: Mode) {
        self.control.state().mode = mode;
    }

    /// Makes the probe ready or not, and wakes who waited for it.
    pub fn set_ready(&self, ready: bool) {
        let mut state = self.control.state();
        state.ready = ready;
        state.wakers.drain(..).for_each(Waker::wake);
    }

    /// How often it was called.
    #[must_use]
    pub fn calls(&self) -> u32 {
        self.control.state().calls
    }

    /// How many of its futures are alive.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.control.in_flight.load(Ordering::SeqCst)
    }
}

impl<T> Control<T> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Clone for Probe<T> {
    fn clone(&self) -> Self {
        // Readiness is not cloned: that is the point of the contract.
        Self { control: Arc::clone(&self.control), ready: false }
    }
}

impl<T, R> Service<R> for Probe<T> {
    type Response = T;
    type Error = ProbeError;
    type Future = ProbeFuture<T>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ProbeError>> {
        let mut state = self.control.state();
        self.ready = state.ready;
        if self.ready {
            return Poll::Ready(Ok(()));
        }
        state.wakers.push(cx.waker().clone());
        Poll::Pending
    }

    fn call(&mut self, _request: R) -> Self::Future {
        assert!(
            std::mem::take(&mut self.ready),
            "called on an instance that had not said it was ready"
        );
        let mode = {
            let mut state = self.control.state();
            state.calls += 1;
            state.mode
        };
        assert!(mode != Mode::PanicInCall, "the probe panics in call, as it was told to");
        self.control.in_flight.fetch_add(1, Ordering::SeqCst);
        let in_flight = InFlight(Arc::clone(&self.control.in_flight));
        ProbeFuture { control: Arc::clone(&self.control), mode, _in_flight: in_flight }
    }
}

impl<T> Future for ProbeFuture<T> {
    type Output = Result<T, ProbeError>;

    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.mode {
            Mode::Answer => Poll::Ready(Ok((self.control.answer)())),
            Mode::Fail => Poll::Ready(Err(ProbeError::Scripted)),
            Mode::Hang => Poll::Pending,
            Mode::PanicInCall | Mode::PanicInPoll => {
                panic!("the probe panics in poll, as it was told to")
            }
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl<T> fmt::Debug for Probe<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probe")
            .field("calls", &self.calls())
            .field("in_flight", &self.in_flight())
            .finish()
    }
}

impl<T> fmt::Debug for ProbeFuture<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ProbeFuture").field("mode", &self.mode).finish_non_exhaustive()
    }
}

// === impl ProbeError ===

impl FromRefusal for ProbeError {
    fn from_refusal(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

#[cfg(feature = "tls")]
impl From<crate::tls::HandshakeFailed> for ProbeError {
    fn from(failed: crate::tls::HandshakeFailed) -> Self {
        Self::Handshake(failed.source.to_string())
    }
}

impl fmt::Display for ProbeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scripted => f.write_str("the probe failed, as it was told to"),
            Self::Refused(refusal) => refusal.fmt(f),
            Self::Handshake(text) => write!(f, "the tls handshake failed: {text}"),
        }
    }
}

impl std::error::Error for ProbeError {}

// === the contract ===

/// Checks that `layer` keeps the contract, see the module's text.
///
/// `request` makes requests that the layer lets through, `answer` what the inner service answers, and `held` says
/// how many things (permits, places) the layer holds now; a layer that holds nothing says 0.
///
/// # Panics
/// When the layer breaks the contract. That is what it is for.
pub async fn contract<L, R, T>(
    layer: L,
    request: impl Fn() -> R,
    answer: impl Fn() -> T + Send + Sync + 'static,
    held: impl Fn() -> u32,
) where
    L: Layer<Probe<T>>,
    L::Service: Service<R, Error = ProbeError> + Clone,
{
    let probe = Probe::new(answer);
    let service = layer.layer(probe.clone());
    let bench = Bench { probe, service, request, held, layer: std::marker::PhantomData };
    bench.back_pressure();
    bench.answers().await;
    bench.cancellation().await;
    bench.clones().await;
    bench.panics().await;
    bench.errors().await;
}

struct Bench<S, R, T, Q, H> {
    probe: Probe<T>,
    service: S,
    request: Q,
    held: H,
    layer: std::marker::PhantomData<fn(R)>,
}

impl<S, R, T, Q, H> Bench<S, R, T, Q, H>
where
    S: Service<R, Error = ProbeError> + Clone,
    Q: Fn() -> R,
    H: Fn() -> u32,
{
    fn nothing_is_left(&self, after: &str) {
        assert_eq!(self.probe.in_flight(), 0, "the inner future lives on after {after}");
        assert_eq!((self.held)(), 0, "the layer holds something after {after}");
    }

    async fn call(&self, service: &mut S) -> S::Future {
        assert!(poll_fn(|cx| service.poll_ready(cx)).await.is_ok(), "the service is ready");
        service.call((self.request)())
    }

    /// Polls `future` until the probe has been called once more than `before`.
    async fn until_called(&self, mut future: Pin<&mut S::Future>, before: u32) {
        poll_fn(|cx| {
            let polled = future.as_mut().poll(cx);
            assert!(polled.is_pending(), "the inner service hangs, so the layer does");
            if self.probe.calls() > before { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    fn back_pressure(&self) {
        let mut service = self.service.clone();
        let mut cx = Context::from_waker(Waker::noop());
        self.probe.set_ready(false);
        assert!(
            service.poll_ready(&mut cx).is_pending(),
            "ready, although the inner service is not"
        );
        let registered = !self.probe.control.state().wakers.is_empty();
        assert!(registered, "nobody will be woken when the inner service becomes ready");
        self.probe.set_ready(true);
        assert!(service.poll_ready(&mut cx).is_ready(), "not ready, although the inner service is");
    }

    async fn answers(&self) {
        self.probe.set_mode(Mode::Answer);
        let mut service = self.service.clone();
        // Twice on one instance: a layer that gives its readied inner service away has to make the next one ready.
        for _ in 0..2 {
            let response = self.call(&mut service).await.await;
            assert!(response.is_ok(), "the answer does not get through");
            drop(response);
        }
        self.nothing_is_left("an answer");
    }

    async fn cancellation(&self) {
        self.probe.set_mode(Mode::Hang);
        drop(self.call(&mut self.service.clone()).await);
        self.nothing_is_left("a drop before the first poll");
        let before = self.probe.calls();
        {
            let mut future = pin!(self.call(&mut self.service.clone()).await);
            self.until_called(future.as_mut(), before).await;
            assert_eq!(self.probe.in_flight(), 1);
        }
        self.nothing_is_left("a drop in the middle");
    }

    async fn clones(&self) {
        self.probe.set_mode(Mode::Hang);
        let (mut one, mut other) = (self.service.clone(), self.service.clone());
        assert!(poll_fn(|cx| other.poll_ready(cx)).await.is_ok());
        let before = self.probe.calls();
        {
            let mut hanging = pin!(self.call(&mut one).await);
            self.until_called(hanging.as_mut(), before).await;
            self.probe.set_mode(Mode::Answer);
            // Made ready before its sibling was called: that call may not have used up its readiness.
            let response = other.call((self.request)()).await;
            assert!(response.is_ok(), "an unfinished call on a clone holds this one up");
            drop(response);
        }
        self.nothing_is_left("calls on two clones");
    }

    async fn panics(&self) {
        for mode in [Mode::PanicInCall, Mode::PanicInPoll] {
            self.probe.set_mode(mode);
            let mut service = self.service.clone();
            assert!(poll_fn(|cx| service.poll_ready(cx)).await.is_ok());
            let started = catch_unwind(AssertUnwindSafe(|| service.call((self.request)())));
            if let Ok(future) = started {
                let mut future = pin!(future);
                let panicked = poll_fn(|cx| {
                    match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(cx).map(|_| ()))) {
                        Ok(poll) => poll.map(|()| false),
                        Err(_) => Poll::Ready(true),
                    }
                })
                .await;
                assert!(panicked, "the panic of the inner service is swallowed");
            }
        }
        self.nothing_is_left("a panic");
        self.answers().await;
    }

    async fn errors(&self) {
        self.probe.set_mode(Mode::Fail);
        let outcome = self.call(&mut self.service.clone()).await.await;
        assert_eq!(
            outcome.err(),
            Some(ProbeError::Scripted),
            "the inner error does not arrive as it is"
        );
        self.nothing_is_left("an error");
    }
}
