//! What a registry holds, for metrics and the admin endpoint.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Registry, SessionId};
use crate::splice::RelayInfo;

/// Counts at one moment, and totals since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Sessions now.
    pub sessions: usize,
    /// Relays waiting to be claimed now.
    pub pending: usize,
    /// Relays claimed and not ended now.
    pub live: usize,
    /// Sessions replaced by newer ones.
    pub superseded_total: u64,
    /// Relays claimed.
    pub opened_total: u64,
    /// Relays ended.
    pub ended_total: u64,
    /// Payload bytes into sandboxes, live relays included.
    pub bytes_to_sandbox: u64,
    /// Payload bytes out of sandboxes, live relays included.
    pub bytes_from_sandbox: u64,
}

/// One session.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct SessionStats {
    /// Its sandbox.
    pub sandbox_id: Arc<str>,
    /// Its identity.
    pub session_id: SessionId,
    /// Epoch of the supervisor's process.
    pub instance_id: Arc<str>,
    /// Whether the peer announced Postern.
    pub speaks_postern: bool,
    /// For how long it has been registered.
    pub connected_for: Duration,
    /// Relays of the sandbox waiting to be claimed.
    pub pending: usize,
    /// Live relays of the sandbox.
    pub live: usize,
}

/// One live relay.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RelayStats {
    /// What it is.
    pub info: RelayInfo,
    /// Payload bytes into the sandbox so far.
    pub bytes_to_sandbox: u64,
    /// Payload bytes out of the sandbox so far.
    pub bytes_from_sandbox: u64,
}

impl Registry {
    /// Counts. Takes each shard's lock once, shortly.
    pub fn stats(&self) -> Stats {
        let totals = &self.inner.totals;
        let mut stats = Stats {
            superseded_total: totals.superseded.load(Ordering::Relaxed),
            opened_total: totals.opened.load(Ordering::Relaxed),
            ended_total: totals.ended.load(Ordering::Relaxed),
            bytes_to_sandbox: totals.bytes_to_sandbox.load(Ordering::Relaxed),
            bytes_from_sandbox: totals.bytes_from_sandbox.load(Ordering::Relaxed),
            ..Stats::default()
        };
        for shard in self.inner.shards() {
            for sandbox in shard.values() {
                stats.sessions += usize::from(sandbox.session.is_some());
                stats.pending += sandbox.pending.len();
                stats.live += sandbox.live.len();
                for (_, to, from) in sandbox.live.values().filter_map(|abort| abort.account()) {
                    stats.bytes_to_sandbox += to;
                    stats.bytes_from_sandbox += from;
                }
            }
        }
        stats
    }

    /// Every session, in no particular order.
    pub fn sessions(&self) -> Vec<SessionStats> {
        let mut all = Vec::new();
        for shard in self.inner.shards() {
            for sandbox in shard.values() {
                let Some(session) = &sandbox.session else {
                    continue;
                };
                all.push(SessionStats {
                    sandbox_id: Arc::clone(&session.peer.sandbox_id),
                    session_id: session.id,
                    instance_id: Arc::clone(&session.peer.instance_id),
                    speaks_postern: session.peer.speaks_postern,
                    connected_for: session.connected_at.elapsed(),
                    pending: sandbox.pending.len(),
                    live: sandbox.live.len(),
                });
            }
        }
        all
    }

    /// Every live relay, in no particular order.
    pub fn relays(&self) -> Vec<RelayStats> {
        let mut all = Vec::new();
        for shard in self.inner.shards() {
            for sandbox in shard.values() {
                all.extend(sandbox.live.values().filter_map(|abort| abort.account()).map(
                    |(info, to, from)| RelayStats {
                        info,
                        bytes_to_sandbox: to,
                        bytes_from_sandbox: from,
                    },
                ));
            }
        }
        all
    }
}
