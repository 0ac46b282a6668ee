//! Claiming a relay: the gateway's side of `RelayStream`.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http_body::Body;
use tokio::time::Instant;

use super::shard::{Hooks, prune};
use super::{ChannelId, ClaimError, Registry};
use crate::body::{BoxError, boxed};
use crate::splice::{AbortHandle, RelayInfo, SplicedBody, join};

/// Who claims a relay.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Claimant {
    /// A sandbox, by the id its credentials are for.
    Sandbox(Arc<str>),
    /// Anybody else; has no business claiming.
    Other,
}

/// A claimed relay, seen from the supervisor's call.
#[derive(Debug)]
pub struct ClaimTicket {
    body: SplicedBody,
    abort: AbortHandle,
    info: RelayInfo,
}

impl ClaimTicket {
    /// What was claimed.
    pub fn info(&self) -> &RelayInfo {
        &self.info
    }

    /// A handle that cuts the relay.
    pub fn abort_handle(&self) -> AbortHandle {
        self.abort.clone()
    }

    /// The body of the response to the supervisor. It can be sent at once; bytes follow when the
    /// requester has attached its side, and an error does when it never will.
    pub fn into_body(self) -> SplicedBody {
        self.body
    }

    /// The gRPC response to the supervisor.
    pub fn into_response(self) -> http::Response<SplicedBody> {
        self.body.into_response()
    }
}

impl Registry {
    /// Joins the supervisor's call to the relay it names.
    ///
    /// `body` is the rest of the call's request after its init message. A relay is claimed once.
    ///
    /// # Errors
    /// [`ClaimError::NotFound`] for an id that is unknown, expired, abandoned or used;
    /// [`ClaimError::PermissionDenied`] for a relay of another sandbox, which goes on waiting.
    pub fn claim<B>(
        &self,
        channel_id: &str,
        claimant: &Claimant,
        body: B,
    ) -> Result<ClaimTicket, ClaimError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let inner = &self.inner;
        let channel: ChannelId = channel_id.parse().map_err(|_| ClaimError::NotFound)?;
        let sandbox_id = inner.sandbox_of(channel).ok_or(ClaimError::NotFound)?;
        if *claimant != Claimant::Sandbox(Arc::clone(&sandbox_id)) {
            return Err(ClaimError::PermissionDenied);
        }
        let now = Instant::now();
        let mut shard = inner.shard(&sandbox_id);
        let sandbox = shard.get_mut(&sandbox_id).ok_or(ClaimError::NotFound)?;
        let pending = sandbox.pending.remove(&channel).ok_or(ClaimError::NotFound)?;
        if now > pending.created + inner.config.pending_ttl {
            prune(&mut shard, &sandbox_id);
            drop(shard);
            inner.forget_channel(channel);
            return Err(ClaimError::NotFound);
        }
        let info = RelayInfo {
            channel_id: channel,
            sandbox_id: Arc::clone(&sandbox_id),
            target: pending.target,
            service_id: pending.service_id,
            opened_at: now,
        };
        let hooks = Arc::new(Hooks(Arc::downgrade(inner)));
        let (body, opened, abort) = join(info.clone(), boxed(body), inner.config.max_frame, hooks);
        sandbox.live.insert(channel, abort.clone());
        drop(shard);
        inner.forget_channel(channel);
        if pending.requester.send(Ok(opened)).is_err() {
            // The requester left in this very moment; what was joined has been cut by the drop.
            return Err(ClaimError::NotFound);
        }
        inner.totals.opened.fetch_add(1, Ordering::Relaxed);
        Ok(ClaimTicket { body, abort, info })
    }
}
