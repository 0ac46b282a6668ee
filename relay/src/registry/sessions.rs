//! Sessions: registering, superseding, removing, waiting for one.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use postern_proto::v1::{GatewayMessage, SessionAccepted, SupervisorHello, gateway_message};
use tokio::sync::futures::OwnedNotified;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tonic::Code;

use super::shard::{Inner, close_message, prune};
use super::{OUTBOUND_QUEUE, OpenError, RegisterError, Registry, SessionId};

/// Who is at the other end of a session.
#[derive(Debug, Clone)]
pub struct SessionPeer {
    /// Its sandbox: the one its token is for, checked by the caller.
    pub sandbox_id: Arc<str>,
    /// Epoch of its process.
    pub instance_id: Arc<str>,
    /// It announced Postern, so extension fields may be sent to it.
    pub speaks_postern: bool,
}

impl SessionPeer {
    /// The peer of a hello.
    pub fn from_hello(hello: &SupervisorHello) -> Self {
        Self {
            sandbox_id: hello.sandbox_id.as_str().into(),
            instance_id: hello.instance_id.as_str().into(),
            speaks_postern: hello.postern.is_some(),
        }
    }
}

/// Why a session must end, as its loop learns it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SessionEnd {
    /// A newer session of the same sandbox took over.
    Superseded,
    /// The gateway ended it: stop, delete, drain.
    Disconnected {
        /// gRPC code for the supervisor.
        code: Code,
        /// Why.
        reason: String,
    },
}

/// Queues messages on a session.
#[derive(Debug, Clone)]
pub struct SessionSender(mpsc::Sender<GatewayMessage>);

impl SessionSender {
    /// Queues a message, waiting for room. `false` when the session is over. Cancel safe: a
    /// dropped future has queued nothing.
    pub async fn send(&self, payload: gateway_message::Payload) -> bool {
        let message = GatewayMessage { payload: Some(payload) };
        self.0.send(message).await.is_ok()
    }

    /// Queues a message if there is room now. `false` when there is none or the session is over.
    pub fn try_send(&self, payload: gateway_message::Payload) -> bool {
        let message = GatewayMessage { payload: Some(payload) };
        self.0.try_send(message).is_ok()
    }
}

pub(super) struct Session {
    pub(super) id: SessionId,
    pub(super) peer: SessionPeer,
    pub(super) sender: mpsc::Sender<GatewayMessage>,
    pub(super) end: oneshot::Sender<SessionEnd>,
    pub(super) connected_at: Instant,
}

/// A registered session, as its loop holds it.
///
/// Dropping it does not remove the session: call [`Registry::remove_if_current`] when its stream
/// has ended.
#[derive(Debug)]
#[non_exhaustive]
pub struct Registration {
    /// Identity of the session.
    pub session_id: SessionId,
    /// What to send to the supervisor, in order; the first message is `SessionAccepted`.
    /// Ends when the session is no longer current and every [`SessionSender`] is dropped.
    pub outbound: mpsc::Receiver<GatewayMessage>,
    /// For heartbeats and whatever else the loop sends.
    pub sender: SessionSender,
    /// Resolves when the session must end.
    pub ended: Ended,
    /// Whether an older session was replaced.
    pub superseded_older: bool,
}

/// Resolves to the reason why a session must end; see [`Registration::ended`].
#[derive(Debug)]
pub struct Ended(oneshot::Receiver<SessionEnd>);

impl Future for Ended {
    type Output = SessionEnd;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<SessionEnd> {
        Pin::new(&mut self.0).poll(cx).map(|end| {
            // The sender goes away unsent only when the loop removed its own session.
            end.unwrap_or_else(|_| SessionEnd::Disconnected {
                code: Code::Ok,
                reason: "session was removed".to_owned(),
            })
        })
    }
}

impl Registry {
    /// Makes a session the current one of its sandbox.
    ///
    /// `accepted` builds the acceptance for the new id; it is queued first, before the session
    /// can be found. An older session is told [`SessionEnd::Superseded`]. Everyone waiting for a
    /// session of this sandbox is woken, and opens still pending are sent again.
    ///
    /// # Errors
    /// [`RegisterError::Draining`] after [`Registry::close_all`].
    pub fn register(
        &self,
        peer: SessionPeer,
        accepted: impl FnOnce(SessionId) -> SessionAccepted,
    ) -> Result<Registration, RegisterError> {
        let inner = &self.inner;
        let session_id = SessionId::make(&*inner.config.ids);
        let (sender, outbound) = mpsc::channel(OUTBOUND_QUEUE);
        let acceptance = GatewayMessage {
            payload: Some(gateway_message::Payload::SessionAccepted(accepted(session_id))),
        };
        if let Err(TrySendError::Full(_) | TrySendError::Closed(_)) = sender.try_send(acceptance) {
            unreachable!("the queue is new and its receiver is in this function");
        }
        let (end, ended) = oneshot::channel();
        let sandbox_id = Arc::clone(&peer.sandbox_id);
        let session = Session {
            id: session_id,
            peer,
            sender: sender.clone(),
            end,
            connected_at: Instant::now(),
        };
        let (older, registered) = {
            let mut shard = inner.shard(&sandbox_id);
            // Looked at under the lock: `close_all` sets it before it takes any.
            if inner.closed.load(Ordering::SeqCst) {
                return Err(RegisterError::Draining);
            }
            let sandbox = shard.entry(Arc::clone(&sandbox_id)).or_default();
            let older = sandbox.session.replace(session);
            (older, Arc::clone(&sandbox.registered))
        };
        registered.notify_waiters();
        let superseded_older = older.is_some();
        if let Some(older) = older {
            inner.totals.superseded.fetch_add(1, Ordering::Relaxed);
            tracing::info!(%sandbox_id, session_id = %older.id, by = %session_id, "session superseded");
            // Its loop may have ended by itself.
            let _ = older.end.send(SessionEnd::Superseded);
        }
        Ok(Registration {
            session_id,
            outbound,
            sender: SessionSender(sender),
            ended: Ended(ended),
            superseded_older,
        })
    }

    /// Removes a session if it is still its sandbox's current one; says whether it was.
    ///
    /// Live relays are streams of their own and go on; pending ones wait for a newer session
    /// until their time is up.
    pub fn remove_if_current(&self, sandbox_id: &str, session_id: SessionId) -> bool {
        let mut shard = self.inner.shard(sandbox_id);
        let Some(sandbox) = shard.get_mut(sandbox_id) else {
            return false;
        };
        let removed = sandbox.session.take_if(|session| session.id == session_id).is_some();
        prune(&mut shard, sandbox_id);
        removed
    }

    /// The current session of a sandbox.
    pub fn current(&self, sandbox_id: &str) -> Option<SessionId> {
        let shard = self.inner.shard(sandbox_id);
        Some(shard.get(sandbox_id)?.session.as_ref()?.id)
    }

    /// Resolves at the next registration of a session for this sandbox after this call, also
    /// when nobody has polled it yet. Subscribe first, then try to open, then wait.
    pub fn ready(&self, sandbox_id: &str) -> Ready {
        let sandbox_id: Arc<str> = sandbox_id.into();
        let mut shard = self.inner.shard(&sandbox_id);
        let sandbox = shard.entry(Arc::clone(&sandbox_id)).or_default();
        let notified = Arc::clone(&sandbox.registered).notified_owned();
        drop(shard);
        Ready { notified: Some(Box::pin(notified)), sandbox_id, inner: Arc::clone(&self.inner) }
    }

    /// Ends everything of a sandbox (stop, delete): its session learns why, its live relays are
    /// cut with this reason and code, its pending opens fail. Says whether there was a session.
    pub fn disconnect(&self, sandbox_id: &str, reason: &str, code: Code) -> bool {
        let (session, pending, live) = {
            let mut shard = self.inner.shard(sandbox_id);
            let Some(sandbox) = shard.get_mut(sandbox_id) else {
                return false;
            };
            let session = sandbox.session.take();
            let pending: Vec<_> = sandbox.pending.drain().collect();
            // They leave the table as they end.
            let live: Vec<_> =
                sandbox.live.iter().map(|(id, abort)| (*id, abort.clone())).collect();
            prune(&mut shard, sandbox_id);
            (session, pending, live)
        };
        let id: Arc<str> = sandbox_id.into();
        for (channel, pending) in pending {
            self.inner.forget_channel(channel);
            let _ = pending.requester.send(Err(OpenError::Disconnected {
                sandbox_id: Arc::clone(&id),
                code,
                reason: reason.to_owned(),
            }));
        }
        for (channel, abort) in live {
            if abort.abort(reason, code)
                && let Some(session) = &session
            {
                let message = close_message(channel, reason, code, session.peer.speaks_postern);
                let _ = session.sender.try_send(message);
            }
        }
        let had_session = session.is_some();
        if let Some(session) = session {
            let _ = session.end.send(SessionEnd::Disconnected { code, reason: reason.to_owned() });
        }
        had_session
    }

    /// Refuses new relays with [`OpenError::Draining`]; live ones and sessions go on. The first
    /// step of a shutdown.
    pub fn drain(&self) {
        self.inner.opens_refused.store(true, Ordering::SeqCst);
    }

    /// Ends every session and relay with this reason and refuses new ones. The last step of a
    /// shutdown.
    pub fn close_all(&self, reason: &str) {
        self.drain();
        self.inner.closed.store(true, Ordering::SeqCst);
        let mut sandboxes = Vec::new();
        for shard in self.inner.shards() {
            sandboxes.extend(shard.keys().cloned());
        }
        for sandbox_id in sandboxes {
            self.disconnect(&sandbox_id, reason, Code::Unavailable);
        }
    }
}

/// See [`Registry::ready`].
pub struct Ready {
    /// Taken on drop, before the entry is looked at.
    notified: Option<Pin<Box<OwnedNotified>>>,
    sandbox_id: Arc<str>,
    inner: Arc<Inner>,
}

impl Future for Ready {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.notified {
            Some(notified) => notified.as_mut().poll(cx),
            None => Poll::Ready(()),
        }
    }
}

impl Drop for Ready {
    fn drop(&mut self) {
        self.notified = None;
        prune(&mut self.inner.shard(&self.sandbox_id), &self.sandbox_id);
    }
}

impl std::fmt::Debug for Ready {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ready").field("sandbox_id", &self.sandbox_id).finish_non_exhaustive()
    }
}
