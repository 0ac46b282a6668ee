//! One byte channel into a sandbox: the `ForwardTcp` call joined with a local stream.

use std::fmt;

use postern_proto::v1;
use postern_proto::v1::tcp_forward_init::Target;
use tokio::io::{AsyncRead, AsyncWrite};

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
                CliError::refused(format!("cannot open an SSH session to sandbox {sandbox}"), status)
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
/// When the gateway refuses the relay, or it is reset in the middle.
pub async fn carry<I>(
    gateway: &Gateway,
    sandbox: &str,
    target: Target,
    token: &SshToken,
    io: I,
) -> Result<(), CliError>
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let init = v1::TcpForwardInit {
        sandbox: sandbox.to_owned(),
        workspace: gateway.workspace.clone().unwrap_or_default(),
        service_id: String::new(),
        authorization_token: token.token.clone(),
        target: Some(target),
    };
    let _ = (init, io);
    todo!("postern_relay::bridge")
}
