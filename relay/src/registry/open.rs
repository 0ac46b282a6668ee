//! Opening a relay: the gateway's side of `RelayOpen`.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use postern_proto::v1::{
    GatewayMessage, RelayOpen, RelayOpenResult, SshRelayTarget, TcpRelayTarget, gateway_message,
    relay_open,
};
use tokio::sync::futures::OwnedNotified;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tonic::Code;
use tower_service::Service;

use super::shard::{Inner, Pending};
use super::{ChannelId, OpenError, Registry, SessionId};
use crate::splice::OpenedRelay;

/// What a relay leads to inside the sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// The supervisor's SSH server.
    Ssh,
    /// A TCP port inside the sandbox. That the host is loopback is checked by the caller and
    /// again by the supervisor.
    Tcp {
        /// Host, a loopback name or address.
        host: Arc<str>,
        /// Port.
        port: u16,
    },
}

impl Target {
    fn to_wire(&self) -> relay_open::Target {
        match self {
            Self::Ssh => relay_open::Target::Ssh(SshRelayTarget {}),
            Self::Tcp { host, port } => relay_open::Target::Tcp(TcpRelayTarget {
                host: host.to_string(),
                port: u32::from(*port),
            }),
        }
    }
}

/// A relay to open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenRelay {
    /// Sandbox to open it in.
    pub sandbox_id: Arc<str>,
    /// What it leads to there.
    pub target: Target,
    /// Label passed to the supervisor, may be empty.
    pub service_id: Arc<str>,
}

/// The registry as a `tower` service: opens relays. Always ready; wrap it to limit it.
#[derive(Debug, Clone)]
pub struct Opener {
    registry: Registry,
}

/// The future of [`Opener`].
pub type OpenFuture = Pin<Box<dyn Future<Output = Result<OpenedRelay, OpenError>> + Send>>;

impl Service<OpenRelay> for Opener {
    type Response = OpenedRelay;
    type Error = OpenError;
    type Future = OpenFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), OpenError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: OpenRelay) -> OpenFuture {
        let registry = self.registry.clone();
        Box::pin(async move { registry.open(request).await })
    }
}

/// The session a pending relay is sent to, and how to learn of the next one.
struct Current {
    session: Option<(SessionId, mpsc::Sender<GatewayMessage>)>,
    next: Pin<Box<OwnedNotified>>,
}

/// Takes the pending entry away when the open is over or abandoned.
struct PendingGuard<'a> {
    inner: &'a Inner,
    sandbox_id: &'a str,
    channel: ChannelId,
}

impl Drop for PendingGuard<'_> {
    fn drop(&mut self) {
        self.inner.take_pending(self.sandbox_id, self.channel);
    }
}

impl Registry {
    /// This registry as a service.
    pub fn opener(&self) -> Opener {
        Opener { registry: self.clone() }
    }

    /// Asks the sandbox's supervisor for a relay and waits until it is claimed.
    ///
    /// Waits at most [`super::Config::pending_ttl`]. When the session is superseded meanwhile, the
    /// newer one is asked; when it is lost, a newer one is awaited for what is left of the time.
    /// Dropping the future withdraws the request: a late claim then finds nothing.
    ///
    /// # Errors
    /// [`OpenError::NoSession`] at once when there is no session (a layer in front waits for
    /// one); else what the supervisor or the time limit said.
    pub async fn open(&self, request: OpenRelay) -> Result<OpenedRelay, OpenError> {
        let inner = &*self.inner;
        if inner.opens_refused.load(Ordering::SeqCst) {
            return Err(OpenError::Draining);
        }
        let sandbox_id = &*request.sandbox_id;
        let channel = ChannelId::make(&*inner.config.ids);
        let created = Instant::now();
        let deadline = created + inner.config.pending_ttl;
        let (requester, claimed) = oneshot::channel();
        let current = inner.insert_pending(
            &request,
            channel,
            Pending {
                created,
                target: request.target.clone(),
                service_id: Arc::clone(&request.service_id),
                requester,
            },
        )?;
        let _guard = PendingGuard { inner, sandbox_id, channel };
        let message = GatewayMessage {
            payload: Some(gateway_message::Payload::RelayOpen(RelayOpen {
                channel_id: channel.to_string(),
                target: Some(request.target.to_wire()),
                service_id: request.service_id.to_string(),
            })),
        };
        let asking = ask_sessions(inner, sandbox_id, current, message);
        tokio::select! {
            biased;
            outcome = claimed => match outcome {
                Ok(outcome) => outcome,
                // Swept by the reaper.
                Err(_) => Err(inner.open_timed_out(&request)),
            },
            Err(error) = asking => Err(error),
            () = sleep_until(deadline) => Err(inner.open_timed_out(&request)),
        }
    }

    /// What a supervisor said about opening a relay. A failure ends the pending open with the
    /// supervisor's words and code; success changes nothing until the claim. Results for relays
    /// of other sandboxes or unknown ones are ignored; says whether it was taken.
    pub fn relay_open_result(&self, sandbox_id: &str, result: &RelayOpenResult) -> bool {
        let Ok(channel) = result.channel_id.parse::<ChannelId>() else {
            return false;
        };
        if result.success {
            return true;
        }
        let Some(pending) = self.inner.take_pending(sandbox_id, channel) else {
            return false;
        };
        let code = match Code::from_i32(result.code) {
            // Absent: an older peer.
            Code::Ok => Code::Unavailable,
            code => code,
        };
        let message = if result.error.is_empty() {
            "supervisor could not open the target".to_owned()
        } else {
            result.error.chars().take(REFUSAL_MAX).collect()
        };
        let _ = pending.requester.send(Err(OpenError::Refused { code, message }));
        true
    }

    /// A supervisor says that the target of a live relay failed: the requester sees this code and
    /// reason. Relays of other sandboxes are left alone; says whether the relay was cut by this.
    pub fn relay_closed_by_supervisor(
        &self,
        sandbox_id: &str,
        channel_id: &str,
        reason: &str,
        code: Code,
    ) -> bool {
        let Ok(channel) = channel_id.parse::<ChannelId>() else {
            return false;
        };
        let abort = {
            let shard = self.inner.shard(sandbox_id);
            shard.get(sandbox_id).and_then(|sandbox| sandbox.live.get(&channel).cloned())
        };
        let code = match code {
            Code::Ok => Code::Unavailable,
            code => code,
        };
        let reason = if reason.is_empty() { "supervisor closed the relay" } else { reason };
        abort.is_some_and(|abort| {
            abort.abort_as(crate::splice::Side::Supervisor, reason.to_owned(), code)
        })
    }

    /// Fails pending opens older than their time at `now` and says how many. The opens watch
    /// their own time; this is for those that nobody polls.
    pub fn reap(&self, now: Instant) -> usize {
        let ttl = self.inner.config.pending_ttl;
        let mut reaped = Vec::new();
        for mut shard in self.inner.shards() {
            for sandbox in shard.values_mut() {
                reaped.extend(sandbox.pending.extract_if(|_, pending| now > pending.created + ttl));
            }
            shard.retain(|_, sandbox| !sandbox.is_idle());
        }
        for (channel, _) in &reaped {
            self.inner.forget_channel(*channel);
        }
        reaped.len()
    }
}

/// Longest refusal text kept, in characters; it ends up in a status message.
const REFUSAL_MAX: usize = 1024;

impl Inner {
    fn insert_pending(
        &self,
        request: &OpenRelay,
        channel: ChannelId,
        pending: Pending,
    ) -> Result<Current, OpenError> {
        let mut shard = self.shard(&request.sandbox_id);
        let sandbox = shard.get_mut(&request.sandbox_id);
        let Some((sandbox, session)) = sandbox.and_then(|sandbox| {
            let session = sandbox.session.as_ref()?;
            let session = (session.id, session.sender.clone());
            Some((sandbox, session))
        }) else {
            return Err(OpenError::NoSession { sandbox_id: Arc::clone(&request.sandbox_id) });
        };
        sandbox.pending.insert(channel, pending);
        let next = Box::pin(Arc::clone(&sandbox.registered).notified_owned());
        // Under the shard's lock, so that a claim finds both or neither.
        self.index_channel(channel, Arc::clone(&request.sandbox_id));
        Ok(Current { session: Some(session), next })
    }

    fn current_session(&self, sandbox_id: &str) -> Option<Current> {
        let shard = self.shard(sandbox_id);
        let sandbox = shard.get(sandbox_id)?;
        Some(Current {
            session: sandbox.session.as_ref().map(|session| (session.id, session.sender.clone())),
            next: Box::pin(Arc::clone(&sandbox.registered).notified_owned()),
        })
    }

    fn open_timed_out(&self, request: &OpenRelay) -> OpenError {
        let sandbox_id = Arc::clone(&request.sandbox_id);
        let has_session = self
            .shard(&sandbox_id)
            .get(&sandbox_id)
            .is_some_and(|sandbox| sandbox.session.is_some());
        if has_session {
            OpenError::ClaimTimeout { sandbox_id, waited: self.config.pending_ttl }
        } else {
            OpenError::SessionLost { sandbox_id }
        }
    }
}

/// Sends `message` to the current session and to every one that follows it, for as long as it is
/// polled. Ends only when nothing was ever sent and there is no session left to send it to.
async fn ask_sessions(
    inner: &Inner,
    sandbox_id: &str,
    mut current: Current,
    message: GatewayMessage,
) -> Result<Infallible, OpenError> {
    let mut asked = false;
    let mut asked_of = None;
    loop {
        if let Some((id, sender)) = current.session.take()
            && asked_of != Some(id)
        {
            tokio::select! {
                biased;
                () = &mut current.next => {
                    // Superseded while its queue was full.
                    current = renew(inner, sandbox_id)?;
                    continue;
                }
                sent = sender.send(message.clone()) => match sent {
                    Ok(()) => {
                        asked = true;
                        asked_of = Some(id);
                    }
                    Err(_) if asked => {}
                    Err(_) => return Err(no_session(sandbox_id)),
                },
            }
        }
        current.next.await;
        current = renew(inner, sandbox_id)?;
    }
}

fn renew(inner: &Inner, sandbox_id: &str) -> Result<Current, OpenError> {
    // The entry holds our pending relay, so it is there until that is taken.
    inner.current_session(sandbox_id).ok_or_else(|| no_session(sandbox_id))
}

fn no_session(sandbox_id: &str) -> OpenError {
    OpenError::NoSession { sandbox_id: sandbox_id.into() }
}
