//! Caps the relays being opened and the live ones, in all and per key.
//!
//! **Effect.** A relay is let through to the opener only while every cap that concerns it has room, and it keeps
//! its place until it ends.
//!
//! **Shape.** Relay plane: `Service<R>` in and out. Of the request it takes a key and a class, by closures. The
//! response takes the [`Permit`] in, by [`HoldPermit`]; dropping the permit is the end of the relay.
//!
//! **Limits.** Each is a count of relays, 0 is no cap.
//!
//! | field | default | protects |
//! |---|---|---|
//! | `pending` | 256 | the table of relays that wait to be claimed; the contract of OpenShell gateways |
//! | `pending_per_key` | 32 | the other keys from one that never answers; the same contract |
//! | `live` | 0 | memory and descriptors of the gateway, where the operator knows them |
//! | `live_per_key` | 0 | one key's far end |
//! | `classes` | none | one kind of relay per key, such as 20 for `ssh` |
//!
//! `live`, `live_per_key` and classes count a relay from the moment it is asked for, so a relay that was opened
//! is never thrown away for want of room.
//!
//! **Refuses** with `RESOURCE_EXHAUSTED`, naming the cap and its value, by [`FromRefusal`].
//!
//! **Source.** The default values are the OpenShell contract's. The accounting is model-checked by
//! `tests/relay_caps_model.rs` (loom) and `tests/relay_caps_property.rs`.
//!
//! **Order.** Outside `session_wait`, the time of waiting counts as pending; inside, it does not.
//!
//! **Cost.** One short lock at each of open, claim and end; one clone of the key while the key has relays.
//!
//! ```
//! use postern_layers::relay_caps::{Config, HoldPermit, Permit, RelayCapsLayer};
//! use postern_layers::refuse::Refusal;
//! use tower::{Layer, Service, service_fn};
//!
//! struct Ask { sandbox: u64 }
//! struct Relay { permit: Option<Permit> }
//! impl HoldPermit for Relay {
//!     fn hold(&mut self, permit: Permit) { self.permit = Some(permit) }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() {
//! let layer = RelayCapsLayer::new(
//!     &Config { pending_per_key: 1, ..Config::default() },
//!     |ask: &Ask| Some(ask.sandbox),
//!     |_: &Ask| Some("ssh"),
//! );
//! let counts = layer.handle();
//! let mut opener = layer.layer(service_fn(|_: Ask| async { Ok::<_, Refusal>(Relay { permit: None }) }));
//! let relay = opener.call(Ask { sandbox: 7 }).await.expect("there is room");
//! assert_eq!(counts.counts().live, 1);
//! drop(relay);
//! assert_eq!(counts.counts().live, 0);
//! # }
//! ```

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    hash::Hash,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use self::ledger::{Caps, Full, Ledger, Ticket};
use crate::{
    config::{Fault, require},
    refuse::{Code, FromRefusal, Refusal},
    select::KeyOf,
};

mod ledger;

pub use self::ledger::Counts;

/// The lock that [`ledger`] uses; the model test puts loom's in its place.
mod sync {
    pub(super) use std::sync::{Mutex, MutexGuard};
}

/// The caps; 0 is no cap.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Config {
    /// Relays being opened, in all. Default 256.
    pub pending: u32,
    /// Relays being opened, per key. Default 32.
    pub pending_per_key: u32,
    /// Relays being opened or open, in all. Default 0, no cap.
    pub live: u32,
    /// Relays being opened or open, per key. Default 0, no cap.
    pub live_per_key: u32,
    /// Relays of one class being opened or open, per key. Default none.
    pub classes: BTreeMap<String, u32>,
}

/// Says what kind of relay a request asks for, for the caps in [`Config::classes`].
///
/// Implemented by closures `Fn(&R) -> Option<&'static str>`, and by `()`, which puts nothing in a class.
pub trait ClassOf<R> {
    /// The class of `request`.
    fn class(&self, request: &R) -> Option<&'static str>;
}

/// An open relay that keeps its permit until it ends.
pub trait HoldPermit {
    /// Takes the permit in. It is to be dropped when the relay ends, and not before.
    fn hold(&mut self, permit: Permit);
}

/// The place of one relay under the caps. Dropping it gives the place back, once.
#[must_use = "dropping the permit ends the relay's place under the caps"]
pub struct Permit {
    books: Arc<dyn Books>,
    /// `None` only while being dropped.
    ticket: Option<Ticket>,
}

/// Applies [`RelayCaps`].
#[derive(Debug)]
pub struct RelayCapsLayer<K, C, Key> {
    strategy: Arc<(K, C)>,
    ledger: Arc<Ledger<Key>>,
}

/// Opens a relay through the inner service if the caps have room.
#[derive(Debug)]
pub struct RelayCaps<S, K, C, Key> {
    inner: S,
    strategy: Arc<(K, C)>,
    ledger: Arc<Ledger<Key>>,
}

/// Reads the counts and changes the caps of a layer that is in use.
#[derive(Debug)]
pub struct Handle<Key> {
    ledger: Arc<Ledger<Key>>,
}

pin_project! {
    /// The opening of one relay, or its refusal. Dropping it gives the place back.
    pub struct ResponseFuture<F> {
        #[pin]
        opening: Opening<F>,
    }
}

pin_project! {
    #[project = OpeningProj]
    enum Opening<F> {
        Inner { #[pin] future: F, permit: Option<Permit> },
        Refused { full: Full },
    }
}

/// The ledger as a permit sees it: the type of the key does not show in the type of a relay.
trait Books: Send + Sync {
    fn promote(&self, ticket: &mut Ticket);
    fn release(&self, ticket: Ticket);
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            pending: 256,
            pending_per_key: 32,
            live: 0,
            live_per_key: 0,
            classes: BTreeMap::new(),
        }
    }
}

impl Config {
    /// All faults of the values.
    #[must_use]
    pub fn validate(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let above = |inner: u32, outer: u32| outer != 0 && inner > outer;
        require(&mut faults, !above(self.pending_per_key, self.pending), "pending_per_key", || {
            format!(
                "{} is more than pending = {}; lower it or raise pending",
                self.pending_per_key, self.pending
            )
        });
        require(&mut faults, !above(self.live_per_key, self.live), "live_per_key", || {
            format!(
                "{} is more than live = {}; lower it or raise live",
                self.live_per_key, self.live
            )
        });
        for (class, cap) in &self.classes {
            require(&mut faults, !above(*cap, self.live), "classes", || {
                format!("{class} = {cap} is more than live = {}; lower it or raise live", self.live)
            });
        }
        faults
    }

    fn caps(&self) -> Caps {
        Caps {
            pending: self.pending,
            pending_per_key: self.pending_per_key,
            live: self.live,
            live_per_key: self.live_per_key,
            classes: self.classes.iter().map(|(name, cap)| (name.clone(), *cap)).collect(),
        }
    }
}

// === impl RelayCapsLayer ===

impl<K, C, Key> RelayCapsLayer<K, C, Key>
where
    Key: Hash + Eq + Clone,
{
    /// Caps relays by the key and class that the two closures find.
    pub fn new(config: &Config, key: K, class: C) -> Self {
        Self { strategy: Arc::new((key, class)), ledger: Arc::new(Ledger::new(config.caps())) }
    }

    /// A handle on the counts and caps of everything this layer is applied to.
    #[must_use]
    pub fn handle(&self) -> Handle<Key> {
        Handle { ledger: Arc::clone(&self.ledger) }
    }
}

impl<K, C, Key> Clone for RelayCapsLayer<K, C, Key> {
    fn clone(&self) -> Self {
        Self { strategy: Arc::clone(&self.strategy), ledger: Arc::clone(&self.ledger) }
    }
}

impl<S, K, C, Key> Layer<S> for RelayCapsLayer<K, C, Key> {
    type Service = RelayCaps<S, K, C, Key>;

    fn layer(&self, inner: S) -> Self::Service {
        RelayCaps { inner, strategy: Arc::clone(&self.strategy), ledger: Arc::clone(&self.ledger) }
    }
}

// === impl RelayCaps ===

impl<S: Clone, K, C, Key> Clone for RelayCaps<S, K, C, Key> {
    fn clone(&self) -> Self {
        Self {
            inner: self.inner.clone(),
            strategy: Arc::clone(&self.strategy),
            ledger: Arc::clone(&self.ledger),
        }
    }
}

impl<S, R, K, C, Key> Service<R> for RelayCaps<S, K, C, Key>
where
    S: Service<R, Response: HoldPermit, Error: FromRefusal>,
    K: KeyOf<R, Key = Key>,
    C: ClassOf<R>,
    Key: Hash + Eq + Clone + Send + Sync + 'static,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: R) -> Self::Future {
        let (key, class) = &*self.strategy;
        let (key, class) = (key.key(&request), class.class(&request));
        let opening = match self.ledger.admit(key.as_ref(), class) {
            Ok(ticket) => {
                // Made before the inner service is called: if that panics, the place is given back.
                let permit = Permit {
                    books: Arc::clone(&self.ledger) as Arc<dyn Books>,
                    ticket: Some(ticket),
                };
                Opening::Inner { future: self.inner.call(request), permit: Some(permit) }
            }
            Err(full) => Opening::Refused { full },
        };
        ResponseFuture { opening }
    }
}

// === impl Handle ===

impl<Key: Hash + Eq + Clone> Handle<Key> {
    /// The counts of now.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.ledger.counts()
    }

    /// Pending and live relays of one key.
    #[must_use]
    pub fn counts_of(&self, key: &Key) -> (u32, u32) {
        self.ledger.counts_of(key)
    }

    /// How many keys have a relay now.
    #[must_use]
    pub fn keys(&self) -> usize {
        self.ledger.keys()
    }

    /// Puts other caps in force. A lowered cap ends nothing: it refuses until enough relays have ended.
    pub fn set(&self, config: &Config) {
        self.ledger.set_caps(config.caps());
    }
}

impl<Key> Clone for Handle<Key> {
    fn clone(&self) -> Self {
        Self { ledger: Arc::clone(&self.ledger) }
    }
}

// === impl ResponseFuture ===

impl<F, T, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<T, E>>,
    T: HoldPermit,
    E: FromRefusal,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().opening.project() {
            OpeningProj::Inner { future, permit } => {
                let outcome = ready!(future.poll(cx));
                // Taken in both cases: a failed opening frees its place now, not when the future is dropped.
                let permit = permit.take();
                Poll::Ready(outcome.map(|mut relay| {
                    if let Some(mut permit) = permit {
                        permit.promote();
                        relay.hold(permit);
                    }
                    relay
                }))
            }
            OpeningProj::Refused { full } => Poll::Ready(Err(E::from_refusal(full.refusal()))),
        }
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("relay_caps::ResponseFuture").finish_non_exhaustive()
    }
}

// === impl Permit ===

impl Permit {
    fn promote(&mut self) {
        if let Some(ticket) = &mut self.ticket {
            self.books.promote(ticket);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.books.release(ticket);
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").finish_non_exhaustive()
    }
}

impl<Key: Hash + Eq + Clone + Send + Sync> Books for Ledger<Key> {
    fn promote(&self, ticket: &mut Ticket) {
        Self::promote(self, ticket);
    }

    fn release(&self, ticket: Ticket) {
        Self::release(self, ticket);
    }
}

// === impl ClassOf ===

impl<R> ClassOf<R> for () {
    fn class(&self, _request: &R) -> Option<&'static str> {
        None
    }
}

impl<R, F> ClassOf<R> for F
where
    F: Fn(&R) -> Option<&'static str>,
{
    fn class(&self, request: &R) -> Option<&'static str> {
        self(request)
    }
}

// === impl Full ===

impl Full {
    fn refusal(self) -> Refusal {
        let text = match self {
            Self::Pending(cap) => {
                format!(
                    "{cap} relays are being opened already, which is the cap pending = {cap}; retry shortly"
                )
            }
            Self::PendingPerKey(cap) => format!(
                "{cap} relays are being opened to this target already, which is the cap pending_per_key = {cap}; \
                 retry shortly"
            ),
            Self::Live(cap) => {
                format!(
                    "{cap} relays are open or being opened, which is the cap live = {cap}; end one or retry later"
                )
            }
            Self::LivePerKey(cap) => format!(
                "{cap} relays to this target are open or being opened, which is the cap live_per_key = {cap}; \
                 end one or retry later"
            ),
            Self::Class(class, cap) => format!(
                "{cap} {class} relays to this target are open or being opened, which is the cap for {class} = {cap}; \
                 end one or retry later"
            ),
        };
        Refusal::new("relay_caps", Code::ResourceExhausted, text)
    }
}

#[cfg(test)]
mod tests;
