//! The state behind a registry, in shards, each under its own short lock.
//!
//! Everything about one sandbox is in one entry under one lock, so that a look and the change it
//! leads to cannot be torn apart. The channel index only says which sandbox to look at; the
//! sandbox's entry decides.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};
use postern_proto::v1::{GatewayMessage, RelayClose, gateway_message};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tonic::Code;

use super::sessions::Session;
use super::{ChannelId, Config, OpenError, Target};
use crate::splice::{AbortHandle, OpenedRelay, RelayEnd, RelayHooks};

/// Shards; a power of two. Two cores contend little on 32, and an empty shard is a few words.
const SHARDS: usize = 32;

/// A relay that has been asked for and not been claimed.
pub(super) struct Pending {
    pub(super) created: Instant,
    pub(super) target: Target,
    pub(super) service_id: Arc<str>,
    pub(super) requester: oneshot::Sender<Result<OpenedRelay, OpenError>>,
}

/// Everything about one sandbox.
#[derive(Default)]
pub(super) struct Sandbox {
    pub(super) session: Option<Session>,
    pub(super) pending: HashMap<ChannelId, Pending>,
    pub(super) live: HashMap<ChannelId, AbortHandle>,
    /// Notified when a session registers.
    pub(super) registered: Arc<Notify>,
}

impl Sandbox {
    pub(super) fn is_idle(&self) -> bool {
        self.session.is_none()
            && self.pending.is_empty()
            && self.live.is_empty()
            // Nobody else waits on it.
            && Arc::strong_count(&self.registered) == 1
    }
}

pub(super) type Shard = HashMap<Arc<str>, Sandbox>;

/// Which sandbox a pending relay is for.
type Channels = HashMap<ChannelId, Arc<str>>;

#[derive(Default)]
pub(super) struct Totals {
    pub(super) superseded: AtomicU64,
    pub(super) opened: AtomicU64,
    pub(super) ended: AtomicU64,
    pub(super) bytes_to_sandbox: AtomicU64,
    pub(super) bytes_from_sandbox: AtomicU64,
}

pub(super) struct Inner {
    pub(super) config: Config,
    hasher: RandomState,
    shards: Box<[Mutex<Shard>]>,
    channels: Box<[Mutex<Channels>]>,
    pub(super) opens_refused: AtomicBool,
    pub(super) closed: AtomicBool,
    pub(super) totals: Totals,
}

impl Inner {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            hasher: RandomState::new(),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            channels: (0..SHARDS).map(|_| Mutex::default()).collect(),
            opens_refused: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            totals: Totals::default(),
        }
    }

    fn index(&self, key: impl Hash) -> usize {
        // The remainder is below SHARDS.
        (self.hasher.hash_one(key) % SHARDS as u64) as usize
    }

    pub(super) fn shard(&self, sandbox_id: &str) -> MutexGuard<'_, Shard> {
        self.shards[self.index(sandbox_id)].lock()
    }

    pub(super) fn shards(&self) -> impl Iterator<Item = MutexGuard<'_, Shard>> {
        self.shards.iter().map(Mutex::lock)
    }

    pub(super) fn index_channel(&self, channel: ChannelId, sandbox_id: Arc<str>) {
        self.channels[self.index(channel)].lock().insert(channel, sandbox_id);
    }

    pub(super) fn forget_channel(&self, channel: ChannelId) {
        self.channels[self.index(channel)].lock().remove(&channel);
    }

    pub(super) fn sandbox_of(&self, channel: ChannelId) -> Option<Arc<str>> {
        self.channels[self.index(channel)].lock().get(&channel).cloned()
    }

    /// Entries of the channel index, for tests of its bookkeeping.
    #[cfg(test)]
    pub(super) fn indexed_channels(&self) -> usize {
        self.channels.iter().map(|shard| shard.lock().len()).sum()
    }

    /// Takes a pending relay out, with its index entry.
    pub(super) fn take_pending(&self, sandbox_id: &str, channel: ChannelId) -> Option<Pending> {
        let mut shard = self.shard(sandbox_id);
        let pending = shard.get_mut(sandbox_id)?.pending.remove(&channel);
        prune(&mut shard, sandbox_id);
        drop(shard);
        if pending.is_some() {
            self.forget_channel(channel);
        }
        pending
    }

    /// Tells a sandbox's current session that a relay is over, if there is one and it has room.
    /// A session that has no room is not reading; the relay's own stream carries the end anyway.
    fn send_close(&self, sandbox_id: &str, channel: ChannelId, reason: &str, code: Code) {
        let sender = self
            .shard(sandbox_id)
            .get(sandbox_id)
            .and_then(|sandbox| sandbox.session.as_ref())
            .map(|session| (session.sender.clone(), session.peer.speaks_postern));
        let Some((sender, speaks_postern)) = sender else {
            return;
        };
        let message = close_message(channel, reason, code, speaks_postern);
        if sender.try_send(message).is_err() {
            tracing::debug!(sandbox_id, channel_id = %channel, "no room on the session for RelayClose");
        }
    }
}

/// `RelayClose` for a supervisor; the code is an extension and goes to peers that know it.
pub(super) fn close_message(
    channel: ChannelId,
    reason: &str,
    code: Code,
    speaks_postern: bool,
) -> GatewayMessage {
    GatewayMessage {
        payload: Some(gateway_message::Payload::RelayClose(RelayClose {
            channel_id: channel.to_string(),
            reason: reason.to_owned(),
            code: if speaks_postern { code as i32 } else { 0 },
        })),
    }
}

/// Drops a sandbox's entry when nothing is left in it.
pub(super) fn prune(shard: &mut Shard, sandbox_id: &str) {
    if shard.get(sandbox_id).is_some_and(Sandbox::is_idle) {
        shard.remove(sandbox_id);
    }
}

/// What a relay tells the registry when it ends.
pub(super) struct Hooks(pub(super) Weak<Inner>);

impl RelayHooks for Hooks {
    fn ended(&self, end: &RelayEnd, tell_supervisor: bool) {
        let Some(inner) = self.0.upgrade() else {
            return;
        };
        let sandbox_id = &*end.info.sandbox_id;
        let channel = end.info.channel_id;
        {
            let mut shard = inner.shard(sandbox_id);
            if let Some(sandbox) = shard.get_mut(sandbox_id) {
                sandbox.live.remove(&channel);
            }
            prune(&mut shard, sandbox_id);
        }
        let totals = &inner.totals;
        totals.ended.fetch_add(1, Ordering::Relaxed);
        totals.bytes_to_sandbox.fetch_add(end.bytes_to_sandbox, Ordering::Relaxed);
        totals.bytes_from_sandbox.fetch_add(end.bytes_from_sandbox, Ordering::Relaxed);
        if tell_supervisor && let crate::splice::EndKind::Reset { code, reason } = &end.kind {
            inner.send_close(sandbox_id, channel, reason, *code);
        }
        inner.config.on_relay_end.on_relay_end(end);
    }
}
