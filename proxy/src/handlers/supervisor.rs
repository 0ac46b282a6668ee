//! `ConnectSupervisor`: the one session that every sandbox holds with the gateway.
//!
//! A session registers under the sandbox that its *token* is for; a hello that names another one is refused. The
//! acceptance is queued before the session can be found, so it is the first message on the wire whatever opens race
//! with it. A task per session watches what comes in, sends heartbeats and ends it: on three silent intervals, on a
//! newer session, on stop or delete, on the end of its token. Cleaning up is fenced by the session's id, so the late
//! end of an old session never touches a newer one.

mod watch;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_core::Stream;
use postern_proto::v1::{
    GatewayMessage, PosternAccepted, SessionAccepted, SupervisorHello, SupervisorMessage,
    supervisor_message,
};
use postern_relay::registry::{Registry, SessionId, SessionPeer};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tonic::{Request, Response, Status, Streaming};

use crate::auth::clock::WallClock;
use crate::auth::sandbox_token::SandboxToken;
use crate::auth::{Principal, SandboxPrincipal};
use crate::call_error::CallError;
use crate::lifecycle::Lifecycle;

use self::watch::Watch;

/// How long a supervisor may take to say hello: it is queued before the call is made, so this only ends the idle.
pub const HELLO_DEADLINE: Duration = Duration::from_secs(10);

/// How long after a token was minted its sandbox may be without a record. A record is written before the sandbox is
/// started, so a supervisor ahead of it is ahead by moments; one with an older token belongs to a deleted sandbox.
pub const RECORD_GRACE: Duration = Duration::from_secs(60);

/// Revision of the extension fields that this gateway reads and writes.
const EXTENSION_REVISION: u32 = 1;

/// Serves `ConnectSupervisor`. Cloning shares everything.
#[derive(Clone)]
pub struct Supervisors {
    /// Who is connected.
    pub registry: Registry,
    /// Told when sessions come and go.
    pub lifecycle: Lifecycle,
    /// Judges tokens that come in on a live session.
    pub tokens: SandboxToken,
    /// The time that ends of tokens are compared with.
    pub clock: WallClock,
    /// Advertised and kept heartbeat interval.
    pub heartbeat: Duration,
    /// The tasks of live sessions, so that a shutdown can wait for their clean-up.
    pub tasks: TaskTracker,
}

/// What a supervisor receives: messages in order, then the status that its session ended with.
#[derive(Debug)]
pub struct SessionStream {
    outbound: mpsc::Receiver<GatewayMessage>,
    /// `None` once it has been read.
    ended: Option<oneshot::Receiver<Result<(), Status>>>,
    finale: Result<(), Status>,
}

// === impl Supervisors ===

impl Supervisors {
    /// Serves one call.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a stream that does not begin with a hello, `PERMISSION_DENIED` for a hello of another
    /// sandbox, `NOT_FOUND` for a sandbox that is gone, `UNAVAILABLE` while the gateway drains or the store is away.
    pub async fn connect(
        &self,
        request: Request<Streaming<SupervisorMessage>>,
    ) -> Result<Response<SessionStream>, CallError> {
        let principal = Principal::of(request.extensions());
        let sandbox = principal.require_any_sandbox()?.clone();
        let mut inbound = request.into_inner();
        let hello = read_hello(&mut inbound).await?;
        if hello.sandbox_id.is_empty() {
            return Err(CallError::invalid("hello.sandbox_id", "is empty"));
        }
        principal.require_sandbox(&hello.sandbox_id)?;
        self.check_record(&sandbox).await?;
        let peer = SessionPeer::from_hello(&hello);
        let registration = self
            .registry
            .register(peer.clone(), |session_id| self.accepted(session_id, &hello))
            .map_err(|error| CallError::Unavailable {
                reason: "GATEWAY_DRAINING",
                description: error.to_string(),
                retry_after: Some(Duration::from_secs(1)),
            })?;
        tracing::info!(
            sandbox_id = %peer.sandbox_id, session_id = %registration.session_id,
            instance_id = %peer.instance_id, superseded_older = registration.superseded_older,
            "supervisor session accepted"
        );
        let (end, ended) = oneshot::channel();
        let watch = Watch {
            supervisors: self.clone(),
            peer,
            fingerprint: fingerprint(&hello),
            session_id: registration.session_id,
            sender: registration.sender,
            token_ends: self.token_ends(&sandbox),
        };
        self.tasks.spawn(watch.run(inbound, registration.ended, end));
        Ok(Response::new(SessionStream {
            outbound: registration.outbound,
            ended: Some(ended),
            finale: Ok(()),
        }))
    }

    fn accepted(&self, session_id: SessionId, hello: &SupervisorHello) -> SessionAccepted {
        let seconds = u32::try_from(self.heartbeat.as_secs()).unwrap_or(u32::MAX);
        SessionAccepted {
            session_id: session_id.to_string(),
            // Peers that read whole seconds take zero for "as fast as you can".
            heartbeat_interval_secs: seconds.max(1),
            heartbeat_interval: prost_types::Duration::try_from(self.heartbeat).ok(),
            postern: hello
                .postern
                .as_ref()
                .map(|_| PosternAccepted { revision: EXTENSION_REVISION, reauthenticate: true }),
            ..SessionAccepted::default()
        }
    }

    /// A sandbox needs a record, but its first session may come a moment before it.
    async fn check_record(&self, sandbox: &SandboxPrincipal) -> Result<(), CallError> {
        if self.lifecycle.by_id(&sandbox.sandbox_id).await?.is_some() {
            return Ok(());
        }
        let fresh = sandbox.issued_at.is_some_and(|issued| {
            self.clock.now().duration_since(issued).is_ok_and(|age| age <= RECORD_GRACE)
        });
        if fresh { Ok(()) } else { Err(CallError::no_sandbox(&sandbox.sandbox_id)) }
    }

    /// When the token of a session ends, on the clock that can be waited for. Tokens are taken for a leeway longer.
    fn token_ends(&self, sandbox: &SandboxPrincipal) -> Option<tokio::time::Instant> {
        let end = sandbox.expires_at? + postern_identity::token::LEEWAY;
        let left = end.duration_since(self.clock.now()).unwrap_or_default();
        tokio::time::Instant::now().checked_add(left)
    }
}

impl std::fmt::Debug for Supervisors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Supervisors")
            .field("registry", &self.registry)
            .field("heartbeat", &self.heartbeat)
            .finish_non_exhaustive()
    }
}

async fn read_hello(
    inbound: &mut Streaming<SupervisorMessage>,
) -> Result<SupervisorHello, CallError> {
    let first = timeout(HELLO_DEADLINE, inbound.message())
        .await
        .map_err(|_| CallError::DeadlineExceeded {
            what: "the supervisor's hello".into(),
            waited: HELLO_DEADLINE,
        })?
        .map_err(|status| CallError::invalid("hello", status.message()))?;
    match first.and_then(|message| message.payload) {
        Some(supervisor_message::Payload::Hello(hello)) => Ok(hello),
        Some(_) => {
            Err(CallError::invalid("payload", "expected SupervisorHello as the first message"))
        }
        None => Err(CallError::invalid("hello", "the stream was closed before SupervisorHello")),
    }
}

fn fingerprint(hello: &SupervisorHello) -> Option<Arc<str>> {
    let announced = &hello.postern.as_ref()?.ssh_host_key_fingerprint;
    // "SHA256:" and 43 characters; a longer text is no fingerprint and is not stored.
    (!announced.is_empty() && announced.len() <= 64).then(|| announced.as_str().into())
}

// === impl SessionStream ===

impl Stream for SessionStream {
    type Item = Result<GatewayMessage, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if let Some(ended) = &mut this.ended
            && let Poll::Ready(outcome) = Pin::new(ended).poll(cx)
        {
            this.ended = None;
            this.finale = outcome.unwrap_or(Ok(()));
            // What was queued before the end still goes out.
            this.outbound.close();
        }
        match this.outbound.poll_recv(cx) {
            Poll::Ready(Some(message)) => Poll::Ready(Some(Ok(message))),
            Poll::Ready(None) if this.ended.is_none() => {
                let finale = std::mem::replace(&mut this.finale, Ok(()));
                Poll::Ready(finale.err().map(Err))
            }
            // Every sender is gone, the watch has not said how it ended yet.
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }
}
