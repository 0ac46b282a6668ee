//! The task of one live session.

use std::sync::Arc;
use std::time::Duration;

use postern_proto::v1::{
    GatewayHeartbeat, SessionReauthenticate, SupervisorMessage, gateway_message, supervisor_message,
};
use postern_relay::registry::{Ended, SessionEnd, SessionId, SessionPeer, SessionSender};
use postern_relay::session::{Action, Event, Session};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep_until};
use tonic::{Code, Status, Streaming};

use super::Supervisors;

/// A session from its acceptance to its clean-up.
pub(super) struct Watch {
    pub(super) supervisors: Supervisors,
    pub(super) peer: SessionPeer,
    pub(super) fingerprint: Option<Arc<str>>,
    pub(super) session_id: SessionId,
    pub(super) sender: SessionSender,
    pub(super) token_ends: Option<Instant>,
}

/// Why a session is over.
#[derive(Debug)]
enum Over {
    /// The supervisor ended its stream, or the connection broke.
    Left,
    /// A newer session of the same sandbox took over.
    Superseded,
    /// Stop, delete or drain.
    Disconnected(Status),
    /// Nothing came in for too long.
    Silent(Duration),
    /// The token ended and no newer one came.
    TokenEnded,
    /// The supervisor broke the protocol, or showed a bad token.
    Faulty(Status),
}

// === impl Watch ===

impl Watch {
    /// Runs until the session is over, then cleans up and says in `end` how it ended.
    pub(super) async fn run(
        mut self,
        inbound: Streaming<SupervisorMessage>,
        ended: Ended,
        mut end: oneshot::Sender<Result<(), Status>>,
    ) {
        let over = tokio::select! {
            over = self.watch(inbound, ended) => over,
            // The response was dropped: the connection is gone.
            () = end.closed() => Over::Left,
        };
        let Self { supervisors, peer, session_id, .. } = self;
        let was_current = supervisors.registry.remove_if_current(&peer.sandbox_id, session_id);
        tracing::info!(
            sandbox_id = %peer.sandbox_id, %session_id, was_current, over = ?over,
            "supervisor session ended"
        );
        // Sent before the record is written: the supervisor need not wait for our disk.
        let _ = end.send(over.status());
        if !matches!(over, Over::Superseded) {
            // Fenced there once more by the registry's current session.
            supervisors
                .lifecycle
                .session_disconnected(&peer.sandbox_id, &session_id.to_string())
                .await;
        }
    }

    async fn watch(&mut self, mut inbound: Streaming<SupervisorMessage>, mut ended: Ended) -> Over {
        let mut session = Session::new(Instant::now(), self.supervisors.heartbeat);
        let _ = session.on(Instant::now(), Event::Accepted);
        let mut connected = self.connected().await;
        loop {
            let wake = match session.poll(Instant::now()) {
                Action::SendHeartbeat => {
                    // A full queue means that the supervisor does not read; its silence will end it.
                    let _ = self
                        .sender
                        .try_send(gateway_message::Payload::Heartbeat(GatewayHeartbeat {}));
                    let _ = session.on(Instant::now(), Event::HeartbeatSent);
                    if !connected {
                        connected = self.connected().await;
                    }
                    continue;
                }
                Action::Expire { silent } => return Over::Silent(silent),
                Action::WaitUntil(wake) => wake,
                Action::Finished => return Over::Left,
            };
            tokio::select! {
                biased;
                end = &mut ended => return Over::from(end),
                () = at(self.token_ends) => return Over::TokenEnded,
                message = inbound.message() => {
                    let _ = session.on(Instant::now(), Event::Inbound);
                    match message {
                        Ok(Some(message)) => {
                            if let Err(status) = self.take(message) {
                                return Over::Faulty(status);
                            }
                        }
                        Ok(None) => return Over::Left,
                        Err(status) => {
                            tracing::debug!(
                                sandbox_id = %self.peer.sandbox_id, session_id = %self.session_id,
                                %status, "supervisor stream broke"
                            );
                            return Over::Left;
                        }
                    }
                }
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Makes the sandbox Ready. Tried again with each heartbeat if the store is away.
    async fn connected(&self) -> bool {
        let session_id = self.session_id.to_string();
        let outcome = self
            .supervisors
            .lifecycle
            .session_connected(
                &self.peer.sandbox_id,
                &session_id,
                &self.peer.instance_id,
                self.fingerprint.as_deref(),
            )
            .await;
        if let Err(error) = &outcome {
            tracing::warn!(
                sandbox_id = %self.peer.sandbox_id, session_id, %error,
                "session is up but could not be recorded; trying again with the next heartbeat"
            );
        }
        outcome.is_ok()
    }

    /// Handles one message; the error ends the session.
    fn take(&mut self, message: SupervisorMessage) -> Result<(), Status> {
        use supervisor_message::Payload;
        let registry = &self.supervisors.registry;
        let sandbox_id = &*self.peer.sandbox_id;
        match message.payload {
            Some(Payload::Hello(_)) => {
                return Err(Status::invalid_argument("a session has one SupervisorHello"));
            }
            Some(Payload::RelayOpenResult(result)) => {
                if !result.success {
                    let taken = registry.relay_open_result(sandbox_id, &result);
                    tracing::info!(
                        sandbox_id,
                        channel_id = result.channel_id,
                        error = result.error,
                        taken,
                        "supervisor could not open a relay"
                    );
                }
            }
            Some(Payload::RelayClose(close)) => {
                let code = Code::from_i32(close.code);
                let cut = registry.relay_closed_by_supervisor(
                    sandbox_id,
                    &close.channel_id,
                    &close.reason,
                    code,
                );
                tracing::debug!(
                    sandbox_id,
                    channel_id = close.channel_id,
                    reason = close.reason,
                    cut,
                    "supervisor closed a relay"
                );
            }
            Some(Payload::Reauthenticate(proof)) => return self.reauthenticate(&proof),
            // Config push is not offered, so a result of one says nothing; unknown payloads are a newer peer's.
            Some(Payload::Heartbeat(_) | Payload::ConfigUpdateResult(_)) | None => {}
        }
        Ok(())
    }

    fn reauthenticate(&mut self, proof: &SessionReauthenticate) -> Result<(), Status> {
        let refused = || Status::unauthenticated("the session's new token is not valid");
        let sandbox = self.supervisors.tokens.judge(&proof.token).map_err(|reason| {
            tracing::warn!(
                sandbox_id = %self.peer.sandbox_id, session_id = %self.session_id, reason,
                "session showed a bad token"
            );
            refused()
        })?;
        if *sandbox.sandbox_id != *self.peer.sandbox_id {
            return Err(refused());
        }
        self.token_ends = self.supervisors.token_ends(&sandbox);
        tracing::debug!(
            sandbox_id = %self.peer.sandbox_id, session_id = %self.session_id, "session re-authenticated"
        );
        Ok(())
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

// === impl Over ===

impl Over {
    /// What the supervisor is told.
    fn status(&self) -> Result<(), Status> {
        match self {
            Self::Left | Self::Superseded => Ok(()),
            Self::Disconnected(status) | Self::Faulty(status) => Err(status.clone()),
            Self::Silent(silent) => Err(Status::deadline_exceeded(format!(
                "nothing came from the supervisor for {} s",
                silent.as_secs()
            ))),
            Self::TokenEnded => Err(Status::unauthenticated(
                "the session's token has ended; connect again with a fresh one",
            )),
        }
    }
}

impl From<SessionEnd> for Over {
    fn from(end: SessionEnd) -> Self {
        match end {
            SessionEnd::Superseded => Self::Superseded,
            SessionEnd::Disconnected { code: Code::Ok, .. } => Self::Left,
            SessionEnd::Disconnected { code, reason } => {
                Self::Disconnected(Status::new(code, reason))
            }
            // A newer registry may know more reasons; none of them is the supervisor's fault.
            _ => Self::Left,
        }
    }
}
