//! Who is connected, which relays are asked for, and which are live.
//!
//! *Effect*: `open` asks the current session of a sandbox for a relay and waits until its
//! supervisor claims it; `claim` joins the two. Sharded by sandbox; no lock is held across an
//! await, and none is taken per byte.
//!
//! *Order*: the acceptance of a session is queued before the session can be found, so it is the
//! first message its supervisor sees, whatever opens race with it. A newer session supersedes an
//! older one; the older one's cleanup ([`Registry::remove_if_current`]) then does nothing. Opens
//! that are still pending are sent again to the newer session.
//!
//! *Limits*: a pending relay lives at most [`Config::pending_ttl`]; a session's outbound queue
//! holds [`OUTBOUND_QUEUE`] messages. How many relays may be pending or live is decided by layers
//! in front of [`Opener`], not here.
//!
//! *Source*: OpenShell contract for the messages; registration order, wake-up instead of polling,
//! and removal of abandoned opens are Postern's.

mod claim;
mod error;
mod id;
mod open;
mod sessions;
mod shard;
mod stats;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

pub use claim::{ClaimTicket, Claimant};
pub use error::{ClaimError, OpenError, RegisterError};
pub use id::{ChannelId, MakeId, RandomIds, SeededIds, SessionId};
pub use open::{OpenFuture, OpenRelay, Opener, Target};
pub use sessions::{Ended, Ready, Registration, SessionEnd, SessionPeer, SessionSender};
pub use stats::{RelayStats, SessionStats, Stats};

use crate::frame::MAX_MESSAGE;
use crate::splice::OnRelayEnd;

/// Messages a session may have queued towards its supervisor (OpenShell contract).
pub const OUTBOUND_QUEUE: usize = 64;

/// How long a relay waits to be claimed (OpenShell contract).
pub const PENDING_TTL: Duration = Duration::from_secs(10);

/// Values and seams of a registry.
#[derive(Clone)]
pub struct Config {
    /// How long a relay waits to be claimed.
    pub pending_ttl: Duration,
    /// Largest relay frame that passes, in bytes.
    pub max_frame: usize,
    /// Where ids come from.
    pub ids: Arc<dyn MakeId>,
    /// Told about every relay that has ended.
    pub on_relay_end: Arc<dyn OnRelayEnd>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            pending_ttl: PENDING_TTL,
            max_frame: MAX_MESSAGE,
            ids: Arc::new(RandomIds),
            on_relay_end: Arc::new(()),
        }
    }
}

impl std::fmt::Debug for Config {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Config")
            .field("pending_ttl", &self.pending_ttl)
            .field("max_frame", &self.max_frame)
            .finish_non_exhaustive()
    }
}

/// The registry; a cheap handle to shared state.
#[derive(Clone)]
pub struct Registry {
    inner: Arc<shard::Inner>,
}

impl std::fmt::Debug for Registry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

impl Registry {
    /// An empty registry.
    pub fn new(config: Config) -> Self {
        Self { inner: Arc::new(shard::Inner::new(config)) }
    }
}

impl Default for Registry {
    fn default() -> Self {
        Self::new(Config::default())
    }
}
