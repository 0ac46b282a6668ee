//! The session with the gateway: one `ConnectSupervisor` stream, made again whenever it ends.
//!
//! The pure part (liveness, states) is [`postern_relay::session`]; this module drives it with IO.
//! A session begins with our hello and the gateway's acceptance, in this order and nothing in
//! between. It ends when the gateway says nothing for three heartbeat intervals, when the stream
//! ends, or when the supervisor stops. Reconnecting waits longer each time (1 s, doubled, at most
//! 30 s, each with full jitter) and starts over after every session that was accepted; there is no
//! last attempt.
//!
//! Relays outlive their session: they are streams of their own on the connection.

mod backoff;
mod relays;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use postern_proto::sandbox::GetSandboxConfigRequest;
use postern_proto::v1::supervisor_message::Payload as Out;
use postern_proto::v1::{
    GatewayMessage, PosternHello, SessionAccepted, SessionReauthenticate, SupervisorHeartbeat,
    SupervisorHello, SupervisorMessage, gateway_message::Payload as In,
};
use postern_relay::session::{Action, Event, Session};
use postern_relay::transport::{Connection, Target, TransportError, connect};
use rand::Rng;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Streaming};

pub use backoff::Backoff;
pub use relays::{Dial, DialError, DialFuture, Dialled, RelayTarget, Relays};

use crate::gateway::Gateway;
use crate::token::{Keeper, TokenError};

/// Messages to the gateway that may wait (OpenShell contract). One per relay that is just being
/// opened, and heartbeats.
const OUTBOUND: usize = 64;

/// Longest time until the gateway accepts or refuses. Longer than the 45 s for which a gateway that
/// shares its sandboxes with others may have to wait for a former owner.
const ACCEPT_TIMEOUT: Duration = Duration::from_secs(60);

/// Interval in use when the gateway names none (contract).
const DEFAULT_INTERVAL: Duration = postern_relay::session::HEARTBEAT_INTERVAL;

/// Interval in use with a gateway that is not ours and names less than a second (contract: the
/// supervisor never sends faster than every 5 s).
const FOREIGN_FLOOR: Duration = Duration::from_secs(5);

/// Who this supervisor is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Id of the sandbox.
    pub sandbox_id: String,
    /// Id of this process, the same for all its sessions.
    pub instance_id: String,
    /// Fingerprint of the SSH host key.
    pub host_key_fingerprint: String,
}

/// How one session ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionEnd {
    /// There was no connection.
    #[error("no connection to the gateway")]
    Transport(#[from] TransportError),
    /// There was no token.
    #[error("no token for the gateway")]
    Token(#[from] TokenError),
    /// The gateway answered the call, or ended the stream, with a status.
    #[error("the gateway ended the session: {}", status.message())]
    Status {
        /// The status.
        #[source]
        status: Box<tonic::Status>,
    },
    /// The gateway refused in so many words.
    #[error("the gateway rejected the session: {reason}")]
    Rejected {
        /// Its words.
        reason: String,
    },
    /// The first message was neither acceptance nor refusal.
    #[error("the gateway began the session with something else than its acceptance")]
    Unexpected,
    /// Nothing came for too long.
    #[error("the gateway was silent for {} ms", silent.as_millis())]
    Silent {
        /// How long.
        silent: Duration,
    },
    /// The gateway closed the stream in good order.
    #[error("the gateway closed the session")]
    Closed,
}

/// Everything a session needs.
pub struct Client {
    /// Where to connect.
    pub target: Target,
    /// Who we are.
    pub identity: Identity,
    /// The token of requests.
    pub keeper: Keeper,
    /// Told of each connection.
    pub gateway: Gateway,
    /// Opens the relays that the gateway asks for.
    pub relays: Arc<Relays>,
    /// Time between looks at the configuration.
    pub config_poll: Duration,
}

impl Client {
    /// Keeps a session up until `stop`.
    pub async fn run(self, stop: CancellationToken, mut rng: impl Rng) {
        let mut backoff = Backoff::default();
        let mut rejected = false;
        loop {
            let mut accepted = false;
            let end = tokio::select! {
                end = self.session(&mut accepted, rejected) => end,
                () = stop.cancelled() => break,
            };
            self.relays.session_ended();
            rejected = matches!(
                &end,
                SessionEnd::Status { status } if status.code() == Code::Unauthenticated
            );
            if accepted {
                backoff.reset();
            }
            let delay = backoff.next(&mut rng);
            let cause = std::error::Error::source(&end).map(ToString::to_string);
            tracing::warn!(reason = %end, cause, delay_ms = delay.as_millis() as u64, "not connected to the gateway; trying again");
            tokio::select! {
                () = tokio::time::sleep(delay) => {}
                () = stop.cancelled() => break,
            }
        }
        self.relays.session_ended();
    }

    /// One session, from connecting to its end.
    async fn session(&self, accepted: &mut bool, rejected: bool) -> SessionEnd {
        match self.establish(rejected).await {
            Ok(live) => {
                *accepted = true;
                let config = self.watch_config(live.connection.clone());
                tokio::select! {
                    end = self.drive(live) => end,
                    never = config => match never {},
                }
            }
            Err(end) => end,
        }
    }

    /// Connects if necessary, says hello, and waits for the acceptance.
    async fn establish(&self, rejected: bool) -> Result<Live, SessionEnd> {
        let connection = match self.gateway.current() {
            Some(connection) => connection,
            None => connect(&self.target).await?,
        };
        self.keeper.obtain(&connection, rejected).await?;
        let (outbound, queue) = mpsc::channel(OUTBOUND);
        let hello = SupervisorHello {
            sandbox_id: self.identity.sandbox_id.clone(),
            instance_id: self.identity.instance_id.clone(),
            postern: Some(PosternHello {
                revision: 1,
                ssh_host_key_fingerprint: self.identity.host_key_fingerprint.clone(),
            }),
            ..SupervisorHello::default()
        };
        // The queue is empty and has room.
        let _ = outbound.try_send(message(Out::Hello(hello)));
        let opening = async {
            let mut client = Gateway::client(&connection);
            let mut inbound =
                client.connect_supervisor(ReceiverStream::new(queue)).await?.into_inner();
            let first = inbound.message().await?;
            Ok::<_, tonic::Status>((inbound, first))
        };
        let (inbound, first) = tokio::time::timeout(ACCEPT_TIMEOUT, opening)
            .await
            .map_err(|_| SessionEnd::Silent { silent: ACCEPT_TIMEOUT })?
            .map_err(|status| SessionEnd::Status { status: Box::new(status) })?;
        let accepted = match first.and_then(|message| message.payload) {
            Some(In::SessionAccepted(accepted)) => accepted,
            Some(In::SessionRejected(rejected)) => {
                return Err(SessionEnd::Rejected { reason: rejected.reason });
            }
            Some(_) => return Err(SessionEnd::Unexpected),
            None => return Err(SessionEnd::Closed),
        };
        tracing::info!(sandbox_id = %self.identity.sandbox_id, session_id = %accepted.session_id, "connected to the gateway");
        self.gateway.set(Some(connection.clone()));
        Ok(Live {
            interval: heartbeat_interval(&accepted),
            postern: accepted.postern.is_some(),
            reauthenticate: accepted.postern.is_some_and(|postern| postern.reauthenticate),
            connection,
            outbound,
            inbound,
        })
    }

    /// Runs an accepted session to its end.
    async fn drive(&self, mut live: Live) -> SessionEnd {
        self.relays.session_began(live.outbound.clone(), live.postern);
        let now = Instant::now();
        let mut session = Session::new(now, live.interval);
        // A new machine takes its acceptance.
        let _ = session.on(now, Event::Accepted);
        let mut renewals = self.keeper.renewals();
        renewals.mark_unchanged();
        loop {
            let now = Instant::now();
            let until = match session.poll(now) {
                Action::SendHeartbeat => {
                    let sent = heartbeat(&live.outbound, live.interval).await;
                    if !sent {
                        return self.lost(&live.connection, session.silent_for(Instant::now()));
                    }
                    let _ = session.on(Instant::now(), Event::HeartbeatSent);
                    continue;
                }
                Action::Expire { silent } => return self.lost(&live.connection, silent),
                Action::WaitUntil(until) => until,
                Action::Finished => return SessionEnd::Closed,
            };
            tokio::select! {
                message = live.inbound.message() => {
                    let _ = session.on(Instant::now(), Event::Inbound);
                    match message {
                        Ok(Some(message)) => self.take(message, &live),
                        Ok(None) => return SessionEnd::Closed,
                        Err(status) => return SessionEnd::Status { status: Box::new(status) },
                    }
                }
                Ok(()) = renewals.changed(), if live.reauthenticate => {
                    let token = renewals.borrow_and_update().clone();
                    if let Some(token) = token {
                        let token = token.reveal().to_owned();
                        let proof = message(Out::Reauthenticate(SessionReauthenticate { token }));
                        // A full queue means a gateway that does not read; silence will end it.
                        let _ = live.outbound.try_send(proof);
                    }
                }
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    /// A gateway that no longer answers takes its connection and the relays on it with it, so that
    /// their targets learn of it now and not when the kernel gives up.
    fn lost(&self, connection: &Connection, silent: Duration) -> SessionEnd {
        self.gateway.set(None);
        connection.close();
        SessionEnd::Silent { silent }
    }

    fn take(&self, message: GatewayMessage, live: &Live) {
        match message.payload {
            Some(In::RelayOpen(open)) => self.relays.open(open, live.connection.clone()),
            Some(In::RelayClose(close)) => self.relays.close(&close.channel_id, &close.reason),
            Some(In::Heartbeat(_)) => {}
            // We announce neither redirects nor pushed configuration.
            Some(other) => tracing::debug!(?other, "a message of the gateway has no effect here"),
            None => {}
        }
    }

    /// Looks at the sandbox's configuration now and then. Enforcing it is not done yet; its version
    /// in the log shows what the gateway wants.
    async fn watch_config(&self, connection: Connection) -> Infallible {
        let mut known = None;
        loop {
            let request = GetSandboxConfigRequest {
                name: self.identity.sandbox_id.clone(),
                ..GetSandboxConfigRequest::default()
            };
            match Gateway::client(&connection).get_sandbox_config(request).await {
                Ok(config) => {
                    let config = config.into_inner();
                    if known != Some((config.version, config.config_revision)) {
                        known = Some((config.version, config.config_revision));
                        tracing::info!(
                            version = config.version,
                            revision = config.config_revision,
                            "the sandbox's configuration"
                        );
                    }
                }
                Err(status) if status.code() == Code::Unimplemented => {
                    tracing::debug!("the gateway has no sandbox configuration");
                    return std::future::pending().await;
                }
                Err(status) => tracing::debug!(code = ?status.code(), "no sandbox configuration"),
            }
            tokio::time::sleep(self.config_poll).await;
        }
    }
}

/// An accepted session.
struct Live {
    connection: Connection,
    outbound: mpsc::Sender<SupervisorMessage>,
    inbound: Streaming<GatewayMessage>,
    interval: Duration,
    postern: bool,
    reauthenticate: bool,
}

/// Hands a heartbeat to the transport; false when that was not possible within one interval.
async fn heartbeat(outbound: &mpsc::Sender<SupervisorMessage>, interval: Duration) -> bool {
    let beat = message(Out::Heartbeat(SupervisorHeartbeat {}));
    matches!(tokio::time::timeout(interval, outbound.send(beat)).await, Ok(Ok(())))
}

fn heartbeat_interval(accepted: &SessionAccepted) -> Duration {
    let named = accepted
        .heartbeat_interval
        .and_then(|interval| Duration::try_from(interval).ok())
        .unwrap_or_else(|| Duration::from_secs(accepted.heartbeat_interval_secs.into()));
    if named.is_zero() {
        DEFAULT_INTERVAL
    } else if named < Duration::from_secs(1) && accepted.postern.is_none() {
        FOREIGN_FLOOR
    } else {
        named
    }
}

fn message(payload: Out) -> SupervisorMessage {
    SupervisorMessage { payload: Some(payload) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(secs: u32, duration: Option<Duration>, postern: bool) -> SessionAccepted {
        SessionAccepted {
            heartbeat_interval_secs: secs,
            heartbeat_interval: duration.map(|interval| interval.try_into().unwrap()),
            postern: postern.then(Default::default),
            ..SessionAccepted::default()
        }
    }

    #[test]
    fn the_heartbeat_interval_is_the_gateways_within_reason() {
        let of = |message| heartbeat_interval(&message);
        let millis = Duration::from_millis;
        assert_eq!(of(accepted(0, None, false)), millis(15_000));
        assert_eq!(of(accepted(7, None, false)), millis(7_000));
        assert_eq!(of(accepted(7, Some(millis(2_500)), false)), millis(2_500));
        assert_eq!(of(accepted(1, Some(millis(200)), false)), millis(5_000));
        assert_eq!(of(accepted(1, Some(millis(200)), true)), millis(200));
    }
}
