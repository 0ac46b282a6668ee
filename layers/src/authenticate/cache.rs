//! Remembers good credentials for a short time.

use std::{
    collections::HashMap,
    fmt,
    future::Future,
    hash::{BuildHasher, RandomState},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
    time::Duration,
};

use http::{header, request::Parts};
use pin_project_lite::pin_project;
use tokio::time::Instant;

use super::{Authenticate, Outcome};
use crate::config::{Fault, require};

/// The bounds of a [`Cached`] authenticator.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Config {
    /// How long a judgement is believed. It is also how long a revoked or expired credential may live on if nobody
    /// calls [`CacheHandle::invalidate`]; hence short. Default 5 s; zero turns the cache off.
    #[cfg_attr(feature = "serde", serde(with = "crate::units::duration"))]
    pub ttl: Duration,
    /// How many judgements are kept. Default 4096: with a principal of 200 bytes that is about 1 MiB.
    pub entries: usize,
}

/// Finds the bytes that make up the credential in a request.
///
/// Implemented by closures `Fn(&Parts) -> Option<Vec<u8>>`, and by `()`, which takes the `authorization` header.
/// Everything that a judgement depends on has to be in these bytes.
pub trait CredentialOf {
    /// Calls `with` with the credential, if there is one.
    fn credential<T>(&self, head: &Parts, with: impl FnOnce(&[u8]) -> T) -> Option<T>;
}

/// An authenticator that remembers the principals which another one has found.
///
/// Only good judgements are kept, under a 128-bit keyed fingerprint of the credential (two SipHash-1-3 with
/// secrets drawn at start), never the credential itself. The time that counts is the monotonic clock.
pub struct Cached<A, P, C = ()> {
    inner: A,
    credential: C,
    cache: Arc<Cache<P>>,
}

/// Forgets judgements: for logouts, revocations and changed rights.
pub struct CacheHandle<P> {
    cache: Arc<Cache<P>>,
}

pin_project! {
    /// The judgement of a [`Cached`] authenticator.
    pub struct CachedFuture<F, P> {
        #[pin]
        state: State<F, P>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<F, P> {
        Hit { principal: Option<P> },
        Miss { #[pin] future: F, place: Option<Place<P>> },
    }
}

/// Where a judgement that is under way is to be kept.
struct Place<P> {
    cache: Arc<Cache<P>>,
    fingerprint: Fingerprint,
    /// Of the cache when the judgement began: one that was begun before an invalidation is not kept.
    generation: u64,
}

type Fingerprint = (u64, u64);

struct Cache<P> {
    config: Config,
    secrets: (RandomState, RandomState),
    entries: Mutex<Entries<P>>,
}

struct Entries<P> {
    generation: u64,
    known: HashMap<Fingerprint, (P, Instant)>,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self { ttl: Duration::from_secs(5), entries: 4096 }
    }
}

impl Config {
    /// All faults of the values.
    #[must_use]
    pub fn validate(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        require(&mut faults, self.entries > 0 || self.ttl.is_zero(), "entries", || {
            "is 0, so nothing would be kept; write ttl = \"0s\" to turn the cache off".to_owned()
        });
        require(&mut faults, self.ttl <= Duration::from_secs(300), "ttl", || {
            "is more than 5m, for which a revoked credential would live on; write at most \"5m\""
                .to_owned()
        });
        faults
    }
}

// === impl Cached ===

impl<A, P: Clone> Cached<A, P> {
    /// Remembers what `inner` says of an `authorization` header.
    pub fn new(config: Config, inner: A) -> Self {
        Self::by(config, inner, ())
    }
}

impl<A, P: Clone, C> Cached<A, P, C> {
    /// Remembers what `inner` says of the bytes that `credential` finds.
    pub fn by(config: Config, inner: A, credential: C) -> Self {
        let entries = Mutex::new(Entries { generation: 0, known: HashMap::new() });
        let secrets = (RandomState::new(), RandomState::new());
        Self { inner, credential, cache: Arc::new(Cache { config, secrets, entries }) }
    }

    /// A handle to forget judgements with.
    #[must_use]
    pub fn handle(&self) -> CacheHandle<P> {
        CacheHandle { cache: Arc::clone(&self.cache) }
    }
}

impl<A: Clone, P, C: Clone> Clone for Cached<A, P, C> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            credential: self.credential.clone(),
            cache: Arc::clone(&self.cache),
        }
    }
}

impl<A, P, C> Authenticate<P> for Cached<A, P, C>
where
    A: Authenticate<P>,
    P: Clone,
    C: CredentialOf,
{
    type Future = CachedFuture<A::Future, P>;

    fn authenticate(&self, head: &Parts) -> Self::Future {
        let fingerprint = self.credential.credential(head, |bytes| self.cache.fingerprint(bytes));
        let mut place = None;
        if let Some(fingerprint) = fingerprint.filter(|_| !self.cache.config.ttl.is_zero()) {
            let entries = self.cache.entries();
            if let Some((principal, until)) = entries.known.get(&fingerprint)
                && Instant::now() < *until
            {
                return CachedFuture { state: State::Hit { principal: Some(principal.clone()) } };
            }
            place = Some(Place {
                cache: Arc::clone(&self.cache),
                fingerprint,
                generation: entries.generation,
            });
        }
        CachedFuture { state: State::Miss { future: self.inner.authenticate(head), place } }
    }
}

impl<A, P, C> fmt::Debug for Cached<A, P, C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cached").field("config", &self.cache.config).finish_non_exhaustive()
    }
}

// === impl Cache ===

impl<P> Cache<P> {
    fn fingerprint(&self, credential: &[u8]) -> Fingerprint {
        (self.secrets.0.hash_one(credential), self.secrets.1.hash_one(credential))
    }

    fn entries(&self) -> MutexGuard<'_, Entries<P>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<P: Clone> Place<P> {
    fn keep(self, principal: &P) {
        let now = Instant::now();
        let Config { ttl, entries: most } = self.cache.config;
        let mut entries = self.cache.entries();
        if entries.generation != self.generation {
            return;
        }
        if entries.known.len() >= most {
            entries.known.retain(|_, (_, until)| now < *until);
        }
        // Still full: any other one makes room. A wrong choice costs one judgement.
        if entries.known.len() >= most
            && let Some(other) = entries.known.keys().next().copied()
        {
            entries.known.remove(&other);
        }
        entries.known.insert(self.fingerprint, (principal.clone(), now + ttl));
    }
}

// === impl CacheHandle ===

impl<P> CacheHandle<P> {
    /// Forgets this credential, and every judgement that is under way.
    pub fn invalidate(&self, credential: &[u8]) {
        let fingerprint = self.cache.fingerprint(credential);
        let mut entries = self.cache.entries();
        entries.generation += 1;
        entries.known.remove(&fingerprint);
    }

    /// Forgets the principals of which `over` is true, and every judgement that is under way.
    pub fn invalidate_where(&self, over: impl Fn(&P) -> bool) {
        let mut entries = self.cache.entries();
        entries.generation += 1;
        entries.known.retain(|_, (principal, _)| !over(principal));
    }

    /// How many judgements are kept, expired ones included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.cache.entries().known.len()
    }

    /// Whether none is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<P> Clone for CacheHandle<P> {
    fn clone(&self) -> Self {
        Self { cache: Arc::clone(&self.cache) }
    }
}

impl<P> fmt::Debug for CacheHandle<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheHandle").finish_non_exhaustive()
    }
}

// === impl CachedFuture ===

impl<F, P> Future for CachedFuture<F, P>
where
    F: Future<Output = Outcome<P>>,
    P: Clone,
{
    type Output = Outcome<P>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome<P>> {
        match self.project().state.project() {
            StateProj::Hit { principal } => Poll::Ready(Outcome::Principal(
                principal.take().expect("a future is not polled after its end"),
            )),
            StateProj::Miss { future, place } => {
                let outcome = ready!(future.poll(cx));
                if let (Outcome::Principal(principal), Some(place)) = (&outcome, place.take()) {
                    place.keep(principal);
                }
                Poll::Ready(outcome)
            }
        }
    }
}

impl<F, P> fmt::Debug for CachedFuture<F, P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedFuture").finish_non_exhaustive()
    }
}

// === impl CredentialOf ===

impl CredentialOf for () {
    fn credential<T>(&self, head: &Parts, with: impl FnOnce(&[u8]) -> T) -> Option<T> {
        head.headers.get(header::AUTHORIZATION).map(|value| with(value.as_bytes()))
    }
}

impl<F: Fn(&Parts) -> Option<Vec<u8>>> CredentialOf for F {
    fn credential<T>(&self, head: &Parts, with: impl FnOnce(&[u8]) -> T) -> Option<T> {
        self(head).map(|bytes| with(&bytes))
    }
}
