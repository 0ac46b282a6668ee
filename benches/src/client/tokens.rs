//! Session tokens, shared by relays as far as the contract lets them.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Client;
use crate::error::BenchError;

/// Relays at a time by one token (OpenShell contract).
pub const PER_TOKEN: usize = 3;

/// Tokens of one sandbox, each good for [`PER_TOKEN`] relays at a time.
#[derive(Debug, Clone)]
pub struct Tokens {
    free: Arc<Mutex<Vec<Arc<str>>>>,
    slots: Arc<Semaphore>,
}

/// The right to one relay; gives it back when dropped.
#[derive(Debug)]
pub struct TokenSlot {
    token: Arc<str>,
    free: Arc<Mutex<Vec<Arc<str>>>>,
    _slot: OwnedSemaphorePermit,
}

impl Tokens {
    /// Tokens for `relays` relays at a time.
    ///
    /// # Errors
    /// What the gateway says.
    pub async fn create(client: &Client, sandbox: &str, relays: usize) -> Result<Self, BenchError> {
        let mut free = Vec::new();
        for _ in 0..relays.div_ceil(PER_TOKEN) {
            let token: Arc<str> = client.ssh_token(sandbox).await?.into();
            free.extend(std::iter::repeat_n(token, PER_TOKEN));
        }
        // Neighbours in time use different tokens: the gateway frees a place a moment after we do.
        let tokens = free.len() / PER_TOKEN;
        let spread = (0..free.len()).map(|n| Arc::clone(&free[(n % tokens) * PER_TOKEN]));
        let spread: Vec<_> = spread.collect();
        let slots = Arc::new(Semaphore::new(spread.len()));
        Ok(Self { free: Arc::new(Mutex::new(spread)), slots })
    }

    /// Waits for a free place.
    ///
    /// # Panics
    /// Never: the semaphore is not closed, and there is a token for each of its permits.
    pub async fn take(&self) -> TokenSlot {
        let slot = Arc::clone(&self.slots).acquire_owned().await.expect("it is never closed");
        let token = self.free.lock().pop().expect("there is a token for each permit");
        TokenSlot { token, free: Arc::clone(&self.free), _slot: slot }
    }
}

impl TokenSlot {
    /// The token.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }
}

impl Drop for TokenSlot {
    fn drop(&mut self) {
        // To the far end: the place that was free for the longest time is taken next.
        self.free.lock().insert(0, Arc::clone(&self.token));
    }
}
