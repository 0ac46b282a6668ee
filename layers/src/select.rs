//! How a layer takes what it needs out of a request, without knowing the request.

use std::hash::Hash;

use http::request::Parts;

/// Finds the key that limits are counted by: a principal, a sandbox, a peer address.
///
/// Implemented by closures `Fn(&R) -> Option<K>`. `None` means that no per-key limit holds for this request; the
/// global limits still do.
pub trait KeyOf<R> {
    /// What is counted by.
    type Key: Hash + Eq + Clone + Send + Sync + 'static;

    /// The key of `request`. Runs once per request, on the path of the request: it should not block.
    fn key(&self, request: &R) -> Option<Self::Key>;
}

impl<R, K, F> KeyOf<R> for F
where
    F: Fn(&R) -> Option<K>,
    K: Hash + Eq + Clone + Send + Sync + 'static,
{
    type Key = K;

    fn key(&self, request: &R) -> Option<K> {
        self(request)
    }
}

/// No key: only global limits hold.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoKey;

impl<R> KeyOf<R> for NoKey {
    type Key = ();

    fn key(&self, _request: &R) -> Option<()> {
        None
    }
}

/// Says which calls a layer leaves alone: health checks, long-lived streams.
///
/// Implemented by closures `Fn(&Parts) -> bool`, and by `()`, which exempts nothing.
pub trait Exempt {
    /// Whether the call with this head passes untouched.
    fn exempt(&self, head: &Parts) -> bool;
}

impl Exempt for () {
    fn exempt(&self, _head: &Parts) -> bool {
        false
    }
}

impl<F> Exempt for F
where
    F: Fn(&Parts) -> bool,
{
    fn exempt(&self, head: &Parts) -> bool {
        self(head)
    }
}
