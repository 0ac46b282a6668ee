//! `CONNECT /connect/ssh`: an SSH connection into a sandbox over HTTP/1.1 (upgrade) or HTTP/2 (plain or extended
//! CONNECT; `:protocol` is not looked at).
//!
//! The relay is claimed *before* the answer is sent, so every failure is a status and 200 means that bytes flow.
//! A relay that is cut ends the HTTP/1.1 connection with a TCP reset. On HTTP/2 the server library offers no reset for
//! an accepted CONNECT, so there the stream ends; SSH, which is all that travels here, notices a cut by itself.

use std::sync::Arc;

use http::{Method, Request, Response, StatusCode};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use postern_relay::registry::Target;
use postern_relay::splice::RelayIo;
use tokio::io::copy_bidirectional_with_sizes;
use tokio_util::task::TaskTracker;
use tonic::body::Body;
use tonic::{Code, Status};

use super::forward::arm;
use crate::auth::Principal;
use crate::authorize::is_connect_ssh;
use crate::call_error::CallError;
use crate::lifecycle::Lifecycle;
use crate::relay_plane::gate::{Gate, Wish};
use crate::relay_plane::ssh_sessions::{SessionKey, SshSessions};
use crate::relay_plane::status::connect_status;
use crate::relay_plane::{Budgets, OpenedRelay, RelayKind};

/// Bytes that one direction holds between socket and relay: one relay frame's worth.
const COPY_BUFFER: usize = 64 * 1024;

/// Serves `/connect/ssh`. Cloning shares everything.
#[derive(Clone)]
pub struct ConnectSsh {
    /// Finds sandboxes.
    pub lifecycle: Lifecycle,
    /// Opens relays.
    pub gate: Gate,
    /// Counts connections per token.
    pub sessions: SshSessions,
    /// How long to wait for a sandbox.
    pub budgets: Budgets,
    /// The tasks of live connections.
    pub tasks: TaskTracker,
}

// === impl ConnectSsh ===

impl ConnectSsh {
    /// Serves one request to the route: 405 for another method than CONNECT.
    pub async fn serve(&self, mut request: Request<Body>) -> Response<Body> {
        if !is_connect_ssh(request.method(), request.uri().path()) {
            let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, None);
            let allow = http::HeaderValue::from_static(Method::CONNECT.as_str());
            response.headers_mut().insert(http::header::ALLOW, allow);
            return response;
        }
        let upgrade = hyper::upgrade::on(&mut request);
        let principal = Principal::of(request.extensions());
        match self.open(principal).await {
            Ok(relay) => {
                self.tasks.spawn(carry(upgrade, relay));
                Response::new(Body::empty())
            }
            Err(status) => answer(connect_status(status.code()), Some(&status)),
        }
    }

    async fn open(&self, principal: Principal) -> Result<OpenedRelay, Status> {
        let Principal::SshSession(session) = &principal else {
            return Err(CallError::Unauthenticated.into());
        };
        let key = SessionKey::of_session(session);
        let slot = self.sessions.admit(key.clone()).map_err(CallError::from)?;
        // Again, now that the slot is held: a revocation since the authentication is not missed.
        self.sessions.find_by_key(&key).await.map_err(CallError::from)?;
        let record = self.lifecycle.by_id(&session.sandbox_id).await?;
        let record = record.ok_or_else(|| CallError::no_sandbox(&session.sandbox_id))?;
        let wish = Wish {
            target: Target::Ssh,
            kind: RelayKind::ConnectSsh,
            budget: self.budgets.ssh(),
            principal: Arc::new(principal),
            service_id: "".into(),
        };
        let mut relay = self.gate.open(&record, wish).await?;
        arm(&slot, &relay);
        relay.hold_value(slot);
        Ok(relay)
    }
}

impl std::fmt::Debug for ConnectSsh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConnectSsh").finish_non_exhaustive()
    }
}

fn answer(status: StatusCode, why: Option<&Status>) -> Response<Body> {
    let text = why.map_or("", |why| why.message()).to_owned();
    let mut response = Response::new(Body::new(http_body_util::Full::from(text)));
    *response.status_mut() = status;
    let retry =
        why.is_some_and(|why| matches!(why.code(), Code::Unavailable | Code::ResourceExhausted));
    if retry {
        response
            .headers_mut()
            .insert(http::header::RETRY_AFTER, http::HeaderValue::from_static("1"));
    }
    response
}

/// Carries bytes until both directions have ended, or resets both ends.
async fn carry(upgrade: OnUpgrade, relay: OpenedRelay) {
    let relay = relay.into_inner();
    let info = relay.info().clone();
    // Dropping the relay on the way out cuts it.
    let client = match upgrade.await {
        Ok(client) => client,
        Err(error) => {
            tracing::debug!(channel_id = %info.channel_id, %error, "client left before the upgrade");
            return;
        }
    };
    let mut client = TokioIo::new(client);
    let mut relay: RelayIo = relay.into_io();
    let copied =
        copy_bidirectional_with_sizes(&mut client, &mut relay, COPY_BUFFER, COPY_BUFFER).await;
    if let Err(error) = copied {
        tracing::debug!(channel_id = %info.channel_id, sandbox_id = %info.sandbox_id, %error, "SSH connection cut");
        relay.reset("the client's connection ended", Code::Cancelled);
        reset(client.into_inner());
    }
}

/// Ends an HTTP/1.1 connection with a TCP reset, so that the client cannot take it for an end of file.
fn reset(client: Upgraded) {
    crate::listen::reset(client);
}
