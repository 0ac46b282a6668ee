//! `ForwardTcp`: a user's byte channel to the SSH server or a loopback port of a sandbox.
//!
//! Served below the gRPC codecs, like `RelayStream`: after the init message, this call's bodies are the bodies of the
//! supervisor's call.

use std::sync::Arc;

use http::{Request, Response};
use postern_proto::datamodel::WorkspaceSelector;
use postern_proto::datamodel::workspace_selector::Selection;
use postern_proto::v1::{TcpForwardFrame, TcpForwardInit, tcp_forward_frame, tcp_forward_init};
use postern_relay::registry::Target;
use postern_relay::splice::SplicedBody;
use tonic::Status;
use tonic::body::Body;

use super::relay_stream::first_message;
use crate::auth::Principal;
use crate::call_error::CallError;
use crate::lifecycle::Lifecycle;
use crate::relay_plane::gate::{Gate, Wish};
use crate::relay_plane::ssh_sessions::{SessionKey, Slot, SshSessions};
use crate::relay_plane::{Budgets, RelayKind};

/// Longest label that goes along to the supervisor, in bytes.
const MAX_SERVICE_ID: usize = 256;

/// Serves `ForwardTcp`. Cloning shares everything.
#[derive(Clone)]
pub struct Forward {
    /// Finds sandboxes.
    pub lifecycle: Lifecycle,
    /// Opens relays.
    pub gate: Gate,
    /// Judges session tokens.
    pub sessions: SshSessions,
    /// How long to wait for a sandbox.
    pub budgets: Budgets,
}

// === impl Forward ===

impl Forward {
    /// Serves one call.
    pub async fn serve(&self, request: Request<Body>) -> Response<Body> {
        match self.open(request).await {
            Ok(body) => body.into_response().map(Body::new),
            Err(status) => status.into_http(),
        }
    }

    async fn open(&self, request: Request<Body>) -> Result<SplicedBody, Status> {
        let (head, body) = request.into_parts();
        let principal = Principal::of(&head.extensions);
        principal.require_user()?;
        let (frame, rest): (TcpForwardFrame, _) = first_message(body).await?;
        let Some(tcp_forward_frame::Payload::Init(init)) = frame.payload else {
            return Err(CallError::invalid(
                "payload",
                "expected TcpForwardInit as the first message",
            )
            .into());
        };
        let (target, kind, budget) = match target(&init)? {
            Target::Ssh => (Target::Ssh, RelayKind::Ssh, self.budgets.ssh()),
            tcp => (tcp, RelayKind::Forward, self.budgets.forward()),
        };
        let scope =
            WorkspaceSelector { selection: Some(Selection::Workspace(init.workspace.clone())) };
        let record = self.lifecycle.resolve(&principal, Some(&scope), &init.sandbox).await?;
        let slot = admit(&self.sessions, &init.authorization_token, record.id()).await?;
        let wish = Wish {
            target,
            kind,
            budget,
            principal: Arc::new(principal),
            service_id: init.service_id.as_str().into(),
        };
        let mut relay = self.gate.open(&record, wish).await?;
        arm(&slot, &relay);
        relay.hold_value(slot);
        Ok(relay.into_inner().splice(rest))
    }
}

impl std::fmt::Debug for Forward {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forward").finish_non_exhaustive()
    }
}

/// Takes a connection's place under its token, then checks the token: in this order, so that a revocation in between
/// is not missed.
async fn admit(sessions: &SshSessions, token: &str, sandbox_id: &str) -> Result<Slot, Status> {
    if token.trim().is_empty() {
        return Err(CallError::Unauthenticated.into());
    }
    let slot = sessions.admit(SessionKey::of(token)).map_err(CallError::from)?;
    let session = sessions.find(token).await.map_err(CallError::from)?;
    if session.sandbox_id != sandbox_id {
        return Err(CallError::Unauthenticated.into());
    }
    Ok(slot)
}

/// Has a revocation of the slot's token cut the relay.
pub(super) fn arm(slot: &Slot, relay: &crate::relay_plane::OpenedRelay) {
    let abort = relay.abort_handle();
    slot.arm(move || {
        abort.abort("the SSH session was revoked", tonic::Code::Unauthenticated);
    });
}

fn target(init: &TcpForwardInit) -> Result<Target, CallError> {
    if init.service_id.len() > MAX_SERVICE_ID {
        let description = format!("is longer than {MAX_SERVICE_ID} bytes");
        return Err(CallError::invalid("init.service_id", description));
    }
    match &init.target {
        None => Err(CallError::invalid("init.target", "is missing; give ssh or tcp")),
        Some(tcp_forward_init::Target::Ssh(_)) => Ok(Target::Ssh),
        Some(tcp_forward_init::Target::Tcp(tcp)) => {
            let host = loopback(&tcp.host).ok_or_else(|| {
                CallError::invalid(
                    "init.tcp.host",
                    "is not a loopback address; give 127.0.0.1, ::1 or localhost",
                )
            })?;
            let port = u16::try_from(tcp.port).ok().filter(|port| *port != 0).ok_or_else(|| {
                CallError::invalid(
                    "init.tcp.port",
                    format!("is {}, not between 1 and 65535", tcp.port),
                )
            })?;
            Ok(Target::Tcp { host: host.into(), port })
        }
    }
}

/// The host if it is one that only the sandbox itself can be reached by.
fn loopback(host: &str) -> Option<&str> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let is_loopback = bare.eq_ignore_ascii_case("localhost")
        || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    is_loopback.then_some(bare)
}

#[cfg(test)]
mod tests {
    use postern_proto::v1::{SshRelayTarget, TcpRelayTarget};

    use super::*;

    fn init(target: Option<tcp_forward_init::Target>) -> TcpForwardInit {
        TcpForwardInit { target, ..TcpForwardInit::default() }
    }

    fn tcp(host: &str, port: u32) -> TcpForwardInit {
        init(Some(tcp_forward_init::Target::Tcp(TcpRelayTarget { host: host.to_owned(), port })))
    }

    #[test]
    fn only_loopback_targets_pass() {
        for host in ["localhost", "LOCALHOST", "127.0.0.1", "127.9.9.9", "::1", "[::1]"] {
            assert!(matches!(target(&tcp(host, 80)), Ok(Target::Tcp { port: 80, .. })), "{host}");
        }
        for (host, port) in [
            ("10.0.0.1", 80),
            ("example.com", 80),
            ("", 80),
            ("0.0.0.0", 80),
            ("::", 80),
            ("localhost.evil", 80),
            ("127.0.0.1", 0),
            ("127.0.0.1", 65_536),
        ] {
            assert!(target(&tcp(host, port)).is_err(), "{host}:{port}");
        }
        assert!(target(&init(None)).is_err());
        let ssh = init(Some(tcp_forward_init::Target::Ssh(SshRelayTarget {})));
        assert_eq!(target(&ssh).unwrap(), Target::Ssh);
    }
}
