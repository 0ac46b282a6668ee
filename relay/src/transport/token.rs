//! The bearer token of outgoing requests, replaceable while the connection lives.

use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use http::HeaderValue;

/// Gives the `authorization` header of each request. Implementations mask it in `Debug`.
pub trait TokenSource: fmt::Debug + Send + Sync + 'static {
    /// The whole header value, marked sensitive; `None` sends no header.
    fn authorization(&self) -> Option<HeaderValue>;
}

/// A token that cannot stand in a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("token holds bytes that no header may carry")]
pub struct InvalidToken;

/// A token shared between requests and whoever renews it. Clones share the token.
#[derive(Clone, Default)]
pub struct SharedToken(Arc<ArcSwapOption<HeaderValue>>);

impl SharedToken {
    /// Starts with `token`.
    ///
    /// # Errors
    /// [`InvalidToken`], without repeating it.
    pub fn new(token: &str) -> Result<Self, InvalidToken> {
        let shared = Self::default();
        shared.set(token)?;
        Ok(shared)
    }

    /// Replaces the token for requests from now on.
    ///
    /// # Errors
    /// [`InvalidToken`]; the old token then stays.
    pub fn set(&self, token: &str) -> Result<(), InvalidToken> {
        let mut value =
            HeaderValue::try_from(format!("Bearer {token}")).map_err(|_| InvalidToken)?;
        value.set_sensitive(true);
        self.0.store(Some(Arc::new(value)));
        Ok(())
    }

    /// Sends no token from now on.
    pub fn clear(&self) {
        self.0.store(None);
    }
}

impl TokenSource for SharedToken {
    fn authorization(&self) -> Option<HeaderValue> {
        self.0.load().as_deref().cloned()
    }
}

impl fmt::Debug for SharedToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = if self.0.load().is_some() { "(masked)" } else { "(none)" };
        f.debug_tuple("SharedToken").field(&held).finish()
    }
}
