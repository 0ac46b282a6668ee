//! One byte channel into a sandbox: the `ForwardTcp` call joined with a local stream.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use postern_proto::v1;
use postern_proto::v1::tcp_forward_init::Target;
use postern_relay::bridge::{Bridge, BridgeEndKind, RelayTarget, first_message};
use postern_relay::transport::FORWARD_TCP_PATH;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connection::Gateway;
use crate::error::CliError;

/// The right to reach one sandbox, from `CreateSshSession`.
#[derive(Clone)]
pub struct SshToken {
    token: String,
    ours: bool,
}

impl fmt::Debug for SshToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SshToken([masked])")
    }
}

impl SshToken {
    /// A token that somebody else made and will revoke.
    #[must_use]
    pub fn given(token: String) -> Self {
        Self { token, ours: false }
    }

    /// A new token for a sandbox.
    ///
    /// # Errors
    /// When the gateway refuses.
    pub async fn create(gateway: &mut Gateway, sandbox: &str) -> Result<Self, CliError> {
        let request = v1::CreateSshSessionRequest {
            workspace_scope: gateway.scope(),
            sandbox: sandbox.to_owned(),
        };
        let session = gateway
            .client
            .create_ssh_session(request)
            .await
            .map_err(|status| {
                CliError::refused(
                    format!("cannot open an SSH session to sandbox {sandbox}"),
                    status,
                )
            })?
            .into_inner();
        Ok(Self { token: session.token, ours: true })
    }

    /// Takes back a token made by [`SshToken::create`]. One that cannot be taken back expires.
    pub async fn revoke(self, gateway: &mut Gateway) {
        if self.ours {
            let request = v1::RevokeSshSessionRequest { token: self.token, allow_missing: true };
            let _ = gateway.client.revoke_ssh_session(request).await;
        }
    }
}

/// Carries bytes between a local stream and a target in a sandbox until both directions ended.
///
/// # Errors
/// When the gateway refuses the relay, or it is reset in the middle. The local stream is then reset
/// too, where it can be.
pub async fn carry<T: RelayTarget>(
    gateway: &Gateway,
    sandbox: &str,
    target: Target,
    token: &SshToken,
    local: T,
) -> Result<(), CliError> {
    let init = v1::TcpForwardFrame {
        payload: Some(v1::tcp_forward_frame::Payload::Init(v1::TcpForwardInit {
            sandbox: sandbox.to_owned(),
            workspace: gateway.workspace.clone().unwrap_or_default(),
            service_id: String::new(),
            authorization_token: token.token.clone(),
            target: Some(target),
        })),
    };
    let (body, bridge) = Bridge::new(local, first_message(&init));
    let response =
        gateway.connection.open_stream(FORWARD_TCP_PATH, body).await.map_err(|status| {
            CliError::refused(format!("cannot open a relay to sandbox {sandbox}"), status)
        })?;
    match bridge.run(response).await.kind {
        BridgeEndKind::Clean => Ok(()),
        BridgeEndKind::TargetFailed { error } => {
            Err(CliError::local("carry bytes to the local end", error))
        }
        BridgeEndKind::StreamFailed { status } => {
            Err(CliError::refused(format!("the relay to sandbox {sandbox} broke"), status))
        }
        other => Err(CliError::Cut {
            action: format!("the relay to sandbox {sandbox}"),
            why: format!("{other:?}"),
        }),
    }
}

/// Standard input and output as one stream. The end of the stream closes standard output, which is
/// how ssh learns that its connection is over.
#[derive(Debug)]
pub struct Stdio {
    input: tokio::io::Stdin,
    output: tokio::io::Stdout,
}

impl Stdio {
    /// Takes both.
    #[must_use]
    pub fn new() -> Self {
        Self { input: tokio::io::stdin(), output: tokio::io::stdout() }
    }
}

impl Default for Stdio {
    fn default() -> Self {
        Self::new()
    }
}

impl AsyncRead for Stdio {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stdio {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.output).poll_write(cx, data)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.output).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.output).poll_flush(cx))?;
        // Tokio keeps descriptor 1 open; putting /dev/null in its place closes the pipe.
        let null = std::fs::OpenOptions::new().write(true).open("/dev/null")?;
        nix::unistd::dup2_stdout(null)?;
        Poll::Ready(Ok(()))
    }
}
