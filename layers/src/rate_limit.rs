//! Bounds the rate of calls, in all and per key.
//!
//! **Effect.** A call passes if both rates have room for it now; nothing is queued.
//!
//! **Shape.** Call plane, both bodies untouched. Of the request it takes a key, by [`KeyOf`].
//!
//! **Limits.**
//!
//! | field | default | why |
//! |---|---|---|
//! | `per_key` | 100 calls per 1 s, burst 200 | far above what one client of a control plane does, far below what hurts |
//! | `global` | none | the gateway's own capacity is the operator's to know |
//! | `max_keys` | 65536 | memory: about 100 bytes per key |
//!
//! A key whose quota has filled up again is forgotten, which changes nothing for it. When the table is full of keys
//! that have not, *new* keys share one quota until there is room: a flood of made-up keys slows strangers down and
//! leaves known keys alone.
//!
//! **Refuses** with 429 and `RESOURCE_EXHAUSTED`, with `retry-after` (and gRPC's pushback) set to when the next
//! call would pass. A refused call takes nothing from either quota.
//!
//! **Source.** GCRA: ITU-T I.371 annex A, the virtual scheduling algorithm.
//!
//! **Order.** Before `authenticate` by address (it bounds guessing), or after it by principal.
//!
//! **Cost.** One short lock and one hash of the key. Forgetting is amortised: a full table is swept at most once
//! per the time in which a quota fills up.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    hash::Hash,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response, Version};
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    config::{Fault, require},
    refuse::{self, Code, Protocol, Refusal},
    select::KeyOf,
};

mod cell;

use self::cell::{Cell, Pace};

/// The rates.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Config {
    /// The quota of each key. Default 100 calls per second, burst 200.
    pub per_key: Option<Quota>,
    /// The quota of all calls together. Default none.
    pub global: Option<Quota>,
    /// How many keys are counted at a time. Default 65536.
    pub max_keys: usize,
}

/// A rate: `calls` in each `per`, of which `burst` may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct Quota {
    /// How many calls, in the long run.
    pub calls: u32,
    /// In how much time.
    #[cfg_attr(feature = "serde", serde(with = "crate::units::duration"))]
    pub per: Duration,
    /// How many calls after a pause may come at once.
    pub burst: u32,
}

/// What the layer has done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Calls let through.
    pub passed: u64,
    /// Calls refused.
    pub refused: u64,
    /// Keys being counted now.
    pub keys: usize,
}

/// Applies [`RateLimit`].
#[derive(Debug)]
pub struct RateLimitLayer<K, Key> {
    key: Arc<K>,
    limiter: Arc<Limiter<Key>>,
}

/// Calls the inner service as often as the rates allow.
#[derive(Debug)]
pub struct RateLimit<S, K, Key> {
    inner: S,
    key: Arc<K>,
    limiter: Arc<Limiter<Key>>,
}

/// Reads the counts and changes the rates of a layer that is in use.
#[derive(Debug)]
pub struct Handle<Key> {
    limiter: Arc<Limiter<Key>>,
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
        Inner { #[pin] future: F },
        Refused { refusal: Option<(Protocol, Version, Refusal)> },
    }
}

#[derive(Debug)]
struct Limiter<Key> {
    epoch: Instant,
    state: Mutex<State<Key>>,
}

#[derive(Debug)]
struct State<Key> {
    per_key: Option<Pace>,
    global: Option<Pace>,
    max_keys: usize,
    all: Cell,
    /// Shared by new keys while the table is full.
    strangers: Cell,
    cells: HashMap<Key, Cell>,
    swept: u64,
    counts: Counts,
}

/// Which rate has no room, and when it will.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Exceeded {
    what: &'static str,
    quota: Quota,
    wait: Duration,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        let per_key = Quota { calls: 100, per: Duration::from_secs(1), burst: 200 };
        Self { per_key: Some(per_key), global: None, max_keys: 65_536 }
    }
}

impl Config {
    /// All faults of the values.
    #[must_use]
    pub fn validate(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (field, quota) in [("per_key", self.per_key), ("global", self.global)] {
            let Some(quota) = quota else { continue };
            require(&mut faults, quota.calls > 0 && quota.burst > 0, field, || {
                "has calls or burst of 0, so no call would pass; write at least 1, or leave the quota out".to_owned()
            });
            let range = Duration::from_millis(1)..=Duration::from_secs(86_400);
            require(&mut faults, range.contains(&quota.per), field, || {
                "has a per outside of 1ms to 1d; write such as \"1s\"".to_owned()
            });
        }
        require(&mut faults, self.max_keys > 0, "max_keys", || {
            "is 0, so all keys would share one quota; write global for that".to_owned()
        });
        faults
    }
}

// === impl RateLimitLayer ===

impl<K, Key: Hash + Eq + Clone> RateLimitLayer<K, Key> {
    /// Limits calls by `config`, per the key that `key` finds.
    pub fn new(config: &Config, key: K) -> Self {
        let state = State {
            per_key: None,
            global: None,
            max_keys: 0,
            all: Cell::default(),
            strangers: Cell::default(),
            cells: HashMap::new(),
            swept: 0,
            counts: Counts::default(),
        };
        let limiter = Limiter { epoch: Instant::now(), state: Mutex::new(state) };
        limiter.set(config);
        Self { key: Arc::new(key), limiter: Arc::new(limiter) }
    }

    /// A handle on the counts and rates of everything this layer is applied to.
    #[must_use]
    pub fn handle(&self) -> Handle<Key> {
        Handle { limiter: Arc::clone(&self.limiter) }
    }
}

impl<K, Key> Clone for RateLimitLayer<K, Key> {
    fn clone(&self) -> Self {
        Self { key: Arc::clone(&self.key), limiter: Arc::clone(&self.limiter) }
    }
}

impl<S, K, Key> Layer<S> for RateLimitLayer<K, Key> {
    type Service = RateLimit<S, K, Key>;

    fn layer(&self, inner: S) -> Self::Service {
        RateLimit { inner, key: Arc::clone(&self.key), limiter: Arc::clone(&self.limiter) }
    }
}

// === impl RateLimit ===

impl<S: Clone, K, Key> Clone for RateLimit<S, K, Key> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            key: Arc::clone(&self.key),
            limiter: Arc::clone(&self.limiter),
        }
    }
}

impl<S, K, Key, B, T> Service<Request<B>> for RateLimit<S, K, Key>
where
    S: Service<Request<B>, Response = Response<T>>,
    K: KeyOf<Request<B>, Key = Key>,
    Key: Hash + Eq + Clone,
    T: Default,
{
    type Response = Response<T>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let call = match self.limiter.take(self.key.key(&request)) {
            Ok(()) => Call::Inner { future: self.inner.call(request) },
            Err(exceeded) => {
                let protocol = Protocol::of(request.headers());
                Call::Refused { refusal: Some((protocol, request.version(), exceeded.refusal())) }
            }
        };
        ResponseFuture { call }
    }
}

// === impl Handle ===

impl<Key: Hash + Eq + Clone> Handle<Key> {
    /// The counts of now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let state = self.limiter.state();
        Counts { keys: state.cells.len(), ..state.counts }
    }

    /// Puts other rates in force. What a key has used so far still counts.
    pub fn set(&self, config: &Config) {
        self.limiter.set(config);
    }
}

impl<Key> Clone for Handle<Key> {
    fn clone(&self) -> Self {
        Self { limiter: Arc::clone(&self.limiter) }
    }
}

// === impl Limiter ===

impl<Key: Hash + Eq + Clone> Limiter<Key> {
    fn state(&self) -> MutexGuard<'_, State<Key>> {
        // Cells are written whole; a foreign `Hash` or `Eq` that panics leaves them usable.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, config: &Config) {
        let mut state = self.state();
        state.per_key = config.per_key.map(Pace::new);
        state.global = config.global.map(Pace::new);
        state.max_keys = config.max_keys;
    }

    fn take(&self, key: Option<Key>) -> Result<(), Exceeded> {
        let now = u64::try_from(self.epoch.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut state = self.state();
        let outcome = state.take(key, now);
        match outcome {
            Ok(()) => state.counts.passed += 1,
            Err(_) => state.counts.refused += 1,
        }
        outcome
    }
}

impl<Key: Hash + Eq + Clone> State<Key> {
    /// Takes one call of both quotas, or of neither.
    fn take(&mut self, key: Option<Key>, now: u64) -> Result<(), Exceeded> {
        let all = match self.global {
            Some(pace) => {
                self.all.after(pace, now).map_err(|wait| pace.exceeded("all callers", wait))?
            }
            None => self.all,
        };
        if let (Some(key), Some(pace)) = (key, self.per_key) {
            let known = self.cells.get(&key).copied();
            if known.is_none() {
                self.make_room(pace, now);
            }
            let stranger = known.is_none() && self.cells.len() >= self.max_keys;
            let cell = if stranger { self.strangers } else { known.unwrap_or_default() };
            let cell = cell.after(pace, now).map_err(|wait| pace.exceeded("this caller", wait))?;
            if stranger {
                self.strangers = cell;
            } else {
                self.cells.insert(key, cell);
            }
        }
        self.all = all;
        Ok(())
    }

    /// Forgets keys whose quota is full again, if the table is full and the last sweep is long enough ago for that
    /// to be worth its while.
    fn make_room(&mut self, pace: Pace, now: u64) {
        let due = self.swept.saturating_add(pace.refill());
        if self.cells.len() < self.max_keys || (now < due && self.swept != 0) {
            return;
        }
        self.swept = now.max(1);
        self.cells.retain(|_, cell| !cell.is_full(now));
    }
}

// === impl Exceeded ===

impl Exceeded {
    fn refusal(self) -> Refusal {
        let Quota { calls, per, burst } = self.quota;
        let per = crate::units::format_duration(per);
        let text = format!(
            "the rate of {} is over {calls} calls per {per} with bursts of {burst}; slow down",
            self.what
        );
        Refusal::new("rate_limit", Code::ResourceExhausted, text).with_retry_after(self.wait)
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
            CallProj::Inner { future } => future.poll(cx),
            CallProj::Refused { refusal } => {
                let (protocol, version, refusal) =
                    refusal.take().expect("a future is not polled after its end");
                Poll::Ready(Ok(refuse::response(protocol, version, refusal)))
            }
        }
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("rate_limit::ResponseFuture").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
