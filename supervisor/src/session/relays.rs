//! Relays: dial the target, say so, then join it with a `RelayStream` call.
//!
//! Each relay is one task. The target is dialled first, so that a gateway never hands a requester a
//! relay to nothing; then the result goes out on the session, then the stream is opened on the same
//! connection and bytes flow. A relay that the gateway closes is reset at its target; a target that
//! fails is reported with `RelayClose`, beside the reset of its stream.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use postern_proto::v1::relay_open::Target as WireTarget;
use postern_proto::v1::supervisor_message::Payload as Out;
use postern_proto::v1::{RelayClose, RelayOpen, RelayOpenResult, SupervisorMessage};
use postern_relay::bridge::{Bridge, BridgeAbort, BridgeEndKind, TargetWriter, relay_init};
use postern_relay::transport::{Connection, RELAY_STREAM_PATH};
use tokio::io::AsyncRead;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::message;

/// Relays at the same time, being opened or open. Above the gateway's own limits (32 pending per
/// sandbox, 20 SSH), far below what descriptors allow.
const MAX_RELAYS: usize = 512;

/// How long a target may take to answer. It is on this machine: a listener that does not accept
/// within seconds is as good as gone, and the gateway waits 10 s in all.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long the gateway may take to accept a relay's stream; it drops unclaimed relays after 10 s.
const CLAIM_TIMEOUT: Duration = Duration::from_secs(15);

/// What a relay is to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RelayTarget {
    /// The sandbox's SSH server.
    Ssh,
    /// A port on the sandbox's loopback.
    Tcp(SocketAddr),
}

/// A connected target.
#[derive(Debug)]
pub enum Dialled {
    /// The SSH server's socket.
    Unix(UnixStream),
    /// A TCP connection inside the sandbox.
    Tcp(TcpStream),
}

/// Why a target is not reached.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DialError {
    /// The target may not be reached at all.
    #[error("{host}:{port} is not a port on the sandbox's loopback")]
    Forbidden {
        /// As asked for.
        host: String,
        /// As asked for.
        port: u32,
    },
    /// It did not answer, or said no.
    #[error("nothing answers at {target}: {source}")]
    Unreachable {
        /// What was dialled.
        target: String,
        /// Why not.
        source: std::io::Error,
    },
    /// It took too long.
    #[error("no answer within {} s", DIAL_TIMEOUT.as_secs())]
    TooSlow,
    /// There are too many relays.
    #[error("the sandbox already has {MAX_RELAYS} relays; close one first")]
    TooMany,
}

impl DialError {
    fn code(&self) -> Code {
        match self {
            Self::Forbidden { .. } => Code::PermissionDenied,
            Self::Unreachable { .. } => Code::Unavailable,
            Self::TooSlow => Code::DeadlineExceeded,
            Self::TooMany => Code::ResourceExhausted,
        }
    }
}

/// The future of a dial.
pub type DialFuture = Pin<Box<dyn Future<Output = std::io::Result<Dialled>> + Send>>;

/// Reaches targets.
pub trait Dial: Send + Sync + 'static {
    /// Connects to a target that has been checked.
    fn dial(&self, target: RelayTarget) -> DialFuture;
}

/// All relays of this supervisor.
pub struct Relays {
    dial: Box<dyn Dial>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    relays: HashMap<String, Relay>,
    session: Option<Outbound>,
    /// Tells a relay from a later one with the same channel.
    next: u64,
    changed: Arc<tokio::sync::Notify>,
}

#[derive(Clone)]
struct Outbound {
    queue: mpsc::Sender<SupervisorMessage>,
    postern: bool,
}

struct Relay {
    number: u64,
    phase: Phase,
}

enum Phase {
    Opening(CancellationToken),
    Open(BridgeAbort),
}

impl fmt::Debug for Relays {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Relays").field("count", &self.count()).finish_non_exhaustive()
    }
}

impl Relays {
    /// No relays yet.
    #[must_use]
    pub fn new(dial: impl Dial) -> Arc<Self> {
        Arc::new(Self { dial: Box::new(dial), state: Mutex::default() })
    }

    /// How many there are, being opened or open.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().relays.len()
    }

    /// Resolves when there are none.
    pub async fn idle(&self) {
        let changed = Arc::clone(&self.lock().changed);
        loop {
            let notified = changed.notified();
            if self.count() == 0 {
                return;
            }
            notified.await;
        }
    }

    pub(super) fn session_began(&self, queue: mpsc::Sender<SupervisorMessage>, postern: bool) {
        self.lock().session = Some(Outbound { queue, postern });
    }

    pub(super) fn session_ended(&self) {
        self.lock().session = None;
    }

    /// Opens a relay. One that is being opened already is begun again: the gateway repeats what it
    /// asked for when a session is replaced. One that is open stays.
    pub(super) fn open(self: &Arc<Self>, open: RelayOpen, connection: Connection) {
        let begun = {
            let mut state = self.lock();
            state.begin(&open.channel_id)
        };
        let relays = Arc::clone(self);
        match begun {
            Ok(None) => {}
            Ok(Some((number, cancelled))) => {
                tokio::spawn(async move {
                    let channel = open.channel_id.clone();
                    tokio::select! {
                        () = relays.run(number, open, connection, &cancelled) => {}
                        () = cancelled.cancelled() => {}
                    }
                    relays.lock().end(&channel, number);
                });
            }
            Err(error) => {
                tokio::spawn(async move { relays.refuse(&open.channel_id, &error).await });
            }
        }
    }

    /// Ends a relay as the gateway asks.
    pub(super) fn close(&self, channel: &str, reason: &str) {
        let state = self.lock();
        match state.relays.get(channel).map(|relay| &relay.phase) {
            Some(Phase::Opening(cancelled)) => cancelled.cancel(),
            Some(Phase::Open(abort)) => abort.abort(reason),
            // It ended by itself while the message travelled.
            None => {}
        }
    }

    async fn run(
        self: &Arc<Self>,
        number: u64,
        open: RelayOpen,
        connection: Connection,
        cancelled: &CancellationToken,
    ) {
        let channel = open.channel_id.as_str();
        let dialled = match self.dial(&open).await {
            Ok(dialled) => dialled,
            Err(error) => return self.refuse(channel, &error).await,
        };
        self.tell(|_| {
            Out::RelayOpenResult(RelayOpenResult {
                channel_id: channel.to_owned(),
                success: true,
                ..RelayOpenResult::default()
            })
        })
        .await;
        match dialled {
            Dialled::Unix(stream) => {
                self.join(number, channel, stream, connection, cancelled).await
            }
            Dialled::Tcp(stream) => self.join(number, channel, stream, connection, cancelled).await,
        }
    }

    async fn dial(&self, open: &RelayOpen) -> Result<Dialled, DialError> {
        let target = match &open.target {
            None | Some(WireTarget::Ssh(_)) => RelayTarget::Ssh,
            Some(WireTarget::Tcp(tcp)) => crate::ssh::loopback(&tcp.host, tcp.port)
                .map(RelayTarget::Tcp)
                .ok_or_else(|| DialError::Forbidden { host: tcp.host.clone(), port: tcp.port })?,
        };
        let name = match &target {
            RelayTarget::Ssh => "the ssh server".to_owned(),
            RelayTarget::Tcp(address) => address.to_string(),
        };
        match tokio::time::timeout(DIAL_TIMEOUT, self.dial.dial(target)).await {
            Ok(Ok(dialled)) => Ok(dialled),
            Ok(Err(source)) => Err(DialError::Unreachable { target: name, source }),
            Err(_) => Err(DialError::TooSlow),
        }
    }

    /// Joins a target with its stream until both are done.
    async fn join<T, R, W>(
        &self,
        number: u64,
        channel: &str,
        target: T,
        connection: Connection,
        cancelled: &CancellationToken,
    ) where
        T: postern_relay::bridge::RelayTarget<Reader = R, Writer = W>,
        R: AsyncRead + Unpin + Send + 'static,
        W: TargetWriter,
    {
        let (body, bridge) = Bridge::new(target, relay_init(channel));
        let claim = connection.open_stream(RELAY_STREAM_PATH, body);
        let response = match tokio::time::timeout(CLAIM_TIMEOUT, claim).await {
            Ok(Ok(response)) => response,
            Ok(Err(status)) => {
                return tracing::info!(channel_id = channel, code = ?status.code(), reason = status.message(), "the gateway did not take a relay");
            }
            Err(_) => {
                return tracing::warn!(channel_id = channel, "the gateway did not answer a relay");
            }
        };
        if !self.lock().opened(channel, number, bridge.abort_handle()) || cancelled.is_cancelled() {
            return;
        }
        let end = bridge.run(response).await;
        tracing::debug!(
            channel_id = channel,
            bytes_in = end.bytes_to_target,
            bytes_out = end.bytes_from_target,
            end = ?end.kind,
            "a relay ended"
        );
        if let BridgeEndKind::TargetFailed { error } = end.kind {
            self.tell(|postern| {
                Out::RelayClose(RelayClose {
                    channel_id: channel.to_owned(),
                    reason: format!("the target failed: {error}"),
                    code: extension_code(postern, Code::Unavailable),
                })
            })
            .await;
        }
    }

    async fn refuse(&self, channel: &str, error: &DialError) {
        tracing::info!(channel_id = channel, %error, "a relay could not be opened");
        self.tell(|postern| {
            Out::RelayOpenResult(RelayOpenResult {
                channel_id: channel.to_owned(),
                success: false,
                error: error.to_string(),
                code: extension_code(postern, error.code()),
            })
        })
        .await;
    }

    /// Sends a message on the session there is, if there is one.
    async fn tell(&self, make: impl FnOnce(bool) -> Out) {
        let session = self.lock().session.clone();
        if let Some(session) = session {
            let payload = make(session.postern);
            // A session that just ended takes no message; its relays are then asked for again.
            let _ = session.queue.send(message(payload)).await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that holds this lock can panic half-way through a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Notes that a relay is being opened; `None` when it is open already.
    fn begin(&mut self, channel: &str) -> Result<Option<(u64, CancellationToken)>, DialError> {
        match self.relays.get(channel).map(|relay| &relay.phase) {
            Some(Phase::Open(_)) => return Ok(None),
            Some(Phase::Opening(former)) => former.cancel(),
            None if self.relays.len() >= MAX_RELAYS => return Err(DialError::TooMany),
            None => {}
        }
        self.next += 1;
        let cancelled = CancellationToken::new();
        let relay = Relay { number: self.next, phase: Phase::Opening(cancelled.clone()) };
        self.relays.insert(channel.to_owned(), relay);
        Ok(Some((self.next, cancelled)))
    }

    /// Notes that a relay is open; false when it was given up meanwhile.
    fn opened(&mut self, channel: &str, number: u64, abort: BridgeAbort) -> bool {
        match self.relays.get_mut(channel) {
            Some(relay) if relay.number == number => {
                relay.phase = Phase::Open(abort);
                true
            }
            _ => false,
        }
    }

    fn end(&mut self, channel: &str, number: u64) {
        if self.relays.get(channel).is_some_and(|relay| relay.number == number) {
            self.relays.remove(channel);
            self.changed.notify_waiters();
        }
    }
}

/// Fields of our own numbers go to our own kind only.
fn extension_code(postern: bool, code: Code) -> i32 {
    if postern { code as i32 } else { 0 }
}
