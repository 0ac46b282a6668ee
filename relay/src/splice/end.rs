//! What is known about a relay while it lives and when it has ended.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tonic::Code;

use crate::registry::{ChannelId, Target};

/// One of the parties of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// Whoever asked for the relay.
    Requester,
    /// The sandbox: its supervisor or the target behind it.
    Supervisor,
    /// The gateway itself: revoked, drained, disconnected, or a frame that breaks the rules.
    Gateway,
}

impl Side {
    /// Short lower-case name for metrics and events.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Requester => "requester",
            Self::Supervisor => "supervisor",
            Self::Gateway => "gateway",
        }
    }
}

/// How a relay ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EndKind {
    /// Both directions reached end of file.
    Clean,
    /// Cut short.
    Reset {
        /// gRPC code that the other side saw.
        code: Code,
        /// Reason that the other side saw.
        reason: String,
    },
}

/// What stays the same over a relay's life.
#[derive(Debug, Clone)]
pub struct RelayInfo {
    /// The relay.
    pub channel_id: ChannelId,
    /// Sandbox it leads into.
    pub sandbox_id: Arc<str>,
    /// What it leads to there.
    pub target: Target,
    /// Label given by the requester, may be empty.
    pub service_id: Arc<str>,
    /// When the supervisor claimed it.
    pub opened_at: Instant,
}

/// The account of a relay that has ended.
#[derive(Debug, Clone)]
pub struct RelayEnd {
    /// Which relay.
    pub info: RelayInfo,
    /// From claim to end.
    pub duration: Duration,
    /// Payload bytes that went into the sandbox.
    pub bytes_to_sandbox: u64,
    /// Payload bytes that came out of it.
    pub bytes_from_sandbox: u64,
    /// Whose end came first.
    pub ended_by: Side,
    /// How it ended.
    pub kind: EndKind,
}

/// Observes the end of relays; called exactly once for each, when both directions are done.
///
/// Called on whatever task noticed the end: must not block.
pub trait OnRelayEnd: Send + Sync + 'static {
    /// One relay has ended.
    fn on_relay_end(&self, end: &RelayEnd);
}

impl OnRelayEnd for () {
    fn on_relay_end(&self, _: &RelayEnd) {}
}

impl<F: Fn(&RelayEnd) + Send + Sync + 'static> OnRelayEnd for F {
    fn on_relay_end(&self, end: &RelayEnd) {
        self(end);
    }
}
