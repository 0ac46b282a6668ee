//! A scripted supervisor: holds a session, answers heartbeats, bridges relays to whatever answers on this host.
//!
//! It speaks the contract and uses the same transport and bridge as the real one, but runs nothing and isolates
//! nothing, so thousands fit into one process.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use postern_proto::v1::gateway_message::Payload as In;
use postern_proto::v1::open_shell_client::OpenShellClient;
use postern_proto::v1::relay_open::Target;
use postern_proto::v1::supervisor_message::Payload as Out;
use postern_proto::v1::{
    GatewayMessage, PosternHello, RelayOpen, RelayOpenResult, SessionAccepted, SupervisorHeartbeat,
    SupervisorHello, SupervisorMessage,
};
use postern_relay::bridge::{Bridge, relay_init};
use postern_relay::transport::{Connection, RELAY_STREAM_PATH};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tonic::Streaming;

use crate::access::Access;
use crate::error::BenchError;
use crate::measure::Latencies;

/// Messages queued towards the gateway (OpenShell contract).
const OUTBOUND: usize = 64;

/// Who a scripted supervisor is.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Its sandbox.
    pub sandbox_id: String,
    /// The token that says so.
    pub token: String,
}

/// What many supervisors report together.
#[derive(Debug)]
pub struct Watch {
    /// How late heartbeats of the gateway come, beyond the interval it announced.
    pub lag: Latencies,
    ended: AtomicU64,
}

impl Watch {
    /// Nothing yet; seconds count from `start`.
    #[must_use]
    pub fn new(start: Instant) -> Arc<Self> {
        Arc::new(Self { lag: Latencies::new(start), ended: AtomicU64::new(0) })
    }

    /// Sessions that the gateway or the network ended.
    #[must_use]
    pub fn ended(&self) -> u64 {
        self.ended.load(Ordering::Relaxed)
    }
}

/// A live session. Dropping it closes its connection without a word.
#[derive(Debug)]
pub struct Session {
    connection: Connection,
    _task: AbortOnDropHandle<()>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.connection.close();
    }
}

impl Session {
    /// Connects, says hello and waits for the acceptance; then goes on by itself.
    ///
    /// # Errors
    /// When the gateway cannot be reached or does not accept.
    pub async fn start(
        access: &Access,
        identity: &Identity,
        watch: &Arc<Watch>,
    ) -> Result<Self, BenchError> {
        let connection = access.connect(Some(&identity.token)).await?;
        let (outbound, queue) = mpsc::channel(OUTBOUND);
        let hello = SupervisorHello {
            sandbox_id: identity.sandbox_id.clone(),
            instance_id: "scripted".to_owned(),
            postern: Some(PosternHello { revision: 1, ..Default::default() }),
            ..Default::default()
        };
        // The queue is empty and has room.
        let _ = outbound.try_send(message(Out::Hello(hello)));
        let mut client = OpenShellClient::with_origin(connection.clone(), connection.origin());
        let refused = || BenchError::refused("hold a session");
        let mut inbound = client
            .connect_supervisor(ReceiverStream::new(queue))
            .await
            .map_err(refused())?
            .into_inner();
        let first = inbound.message().await.map_err(refused())?;
        let Some(In::SessionAccepted(accepted)) = first.and_then(|message| message.payload) else {
            return Err(BenchError::unexpected("the gateway", "did not accept a session"));
        };
        let driven = Driven {
            interval: interval(&accepted),
            connection: connection.clone(),
            outbound,
            watch: Arc::clone(watch),
        };
        let task = tokio::spawn(driven.drive(inbound));
        Ok(Self { connection, _task: AbortOnDropHandle::new(task) })
    }
}

fn interval(accepted: &SessionAccepted) -> Duration {
    accepted
        .heartbeat_interval
        .and_then(|interval| Duration::try_from(interval).ok())
        .unwrap_or_else(|| Duration::from_secs(accepted.heartbeat_interval_secs.into()))
        .max(Duration::from_millis(100))
}

fn message(payload: Out) -> SupervisorMessage {
    SupervisorMessage { payload: Some(payload) }
}

struct Driven {
    interval: Duration,
    connection: Connection,
    outbound: mpsc::Sender<SupervisorMessage>,
    watch: Arc<Watch>,
}

impl Driven {
    async fn drive(self, mut inbound: Streaming<GatewayMessage>) {
        let mut beats = interval_at(Instant::now() + self.interval, self.interval);
        beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = Instant::now();
        loop {
            tokio::select! {
                received = inbound.message() => match received {
                    Ok(Some(GatewayMessage { payload: Some(In::Heartbeat(_)) })) => {
                        let now = Instant::now();
                        let due = last + self.interval;
                        self.watch.lag.done(due, now);
                        last = now;
                    }
                    Ok(Some(GatewayMessage { payload: Some(In::RelayOpen(open)) })) => self.open(open),
                    Ok(Some(_)) => {}
                    Ok(None) | Err(_) => break,
                },
                _ = beats.tick() => {
                    if self.outbound.send(message(Out::Heartbeat(SupervisorHeartbeat {}))).await.is_err() {
                        break;
                    }
                }
            }
        }
        self.watch.ended.fetch_add(1, Ordering::Relaxed);
    }

    fn open(&self, open: RelayOpen) {
        let (connection, outbound) = (self.connection.clone(), self.outbound.clone());
        tokio::spawn(async move {
            let channel_id = open.channel_id.clone();
            let dialled = dial(&open).await;
            let result = RelayOpenResult {
                channel_id: channel_id.clone(),
                success: dialled.is_ok(),
                error: dialled.as_ref().err().map(ToString::to_string).unwrap_or_default(),
                ..Default::default()
            };
            let told = outbound.send(message(Out::RelayOpenResult(result))).await;
            if let (Ok(target), Ok(())) = (dialled, told) {
                carry(target, &channel_id, &connection).await;
            }
        });
    }
}

async fn dial(open: &RelayOpen) -> std::io::Result<TcpStream> {
    let Some(Target::Tcp(tcp)) = &open.target else {
        return Err(std::io::Error::other("a scripted supervisor has no ssh server"));
    };
    let port = u16::try_from(tcp.port).map_err(std::io::Error::other)?;
    let target = TcpStream::connect((tcp.host.as_str(), port)).await?;
    target.set_nodelay(true)?;
    Ok(target)
}

async fn carry(target: TcpStream, channel_id: &str, connection: &Connection) {
    let (body, bridge) = Bridge::new(target, relay_init(channel_id));
    // A requester that left meanwhile is no fault of anybody.
    if let Ok(response) = connection.open_stream(RELAY_STREAM_PATH, body).await {
        drop(bridge.run(response).await);
    }
}
