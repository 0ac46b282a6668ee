//! The user's side of the public contract, as far as load needs it.

mod relay;
mod tokens;

use std::time::Duration;

use postern_proto::v1;
use postern_proto::v1::exec_sandbox_event::Payload as ExecPayload;
use postern_proto::v1::open_shell_client::OpenShellClient;
use postern_proto::v1::sandbox_stream_event::Payload as WatchPayload;
use postern_relay::transport::Connection;

use crate::access::Access;
use crate::error::BenchError;

pub use relay::{Feed, Message, Relay};
pub use tokens::{PER_TOKEN, TokenSlot, Tokens};

/// Longest wait for a sandbox of our own.
const READY_WITHIN: Duration = Duration::from_secs(60);

/// A user's connection. Clones share it.
#[derive(Clone, Debug)]
pub struct Client {
    connection: Connection,
    api: OpenShellClient<Connection>,
}

impl Client {
    /// Connects.
    ///
    /// # Errors
    /// When the gateway cannot be reached.
    pub async fn connect(access: &Access) -> Result<Self, BenchError> {
        let connection = access.connect(None).await?;
        let api = OpenShellClient::with_origin(connection.clone(), connection.origin());
        Ok(Self { connection, api })
    }

    /// The connection, for calls at body level.
    #[must_use]
    pub fn connection(&self) -> &Connection {
        &self.connection
    }

    /// Asks for a sandbox. It need not be ready when this returns.
    ///
    /// # Errors
    /// What the gateway says.
    pub async fn create(&self, name: &str, command: &[String]) -> Result<v1::Sandbox, BenchError> {
        let request = v1::CreateSandboxRequest {
            name: name.to_owned(),
            spec: Some(v1::SandboxSpec { command: command.to_vec(), ..Default::default() }),
            ..Default::default()
        };
        let answer = self.api.clone().create_sandbox(request).await;
        let answer = answer.map_err(BenchError::refused(format!("create sandbox {name}")))?;
        answer.into_inner().sandbox.ok_or_else(|| {
            BenchError::unexpected("the gateway", "created a sandbox without record")
        })
    }

    /// Waits until a sandbox is Ready.
    ///
    /// # Errors
    /// When it ends in another phase, or takes more than a minute.
    pub async fn wait_ready(&self, name: &str) -> Result<(), BenchError> {
        let watched = tokio::time::timeout(READY_WITHIN, self.watch_until_ready(name)).await;
        watched.unwrap_or_else(|_| {
            Err(BenchError::unexpected(format!("sandbox {name}"), "was not ready within a minute"))
        })
    }

    async fn watch_until_ready(&self, name: &str) -> Result<(), BenchError> {
        let request = v1::WatchSandboxRequest {
            sandbox: name.to_owned(),
            follow_status: true,
            stop_on_terminal: true,
            ..Default::default()
        };
        let refused = || BenchError::refused(format!("watch sandbox {name}"));
        let mut events =
            self.api.clone().watch_sandbox(request).await.map_err(refused())?.into_inner();
        while let Some(event) = events.message().await.map_err(refused())? {
            let Some(WatchPayload::Sandbox(sandbox)) = event.payload else { continue };
            let status = sandbox.status.unwrap_or_default();
            match status.phase() {
                v1::SandboxPhase::Ready => return Ok(()),
                phase @ (v1::SandboxPhase::Error | v1::SandboxPhase::Stopped) => {
                    let why = format!("is {phase:?}: {:?}", status.conditions);
                    return Err(BenchError::unexpected(format!("sandbox {name}"), why));
                }
                _ => {}
            }
        }
        Err(BenchError::unexpected(format!("sandbox {name}"), "went before it was ready"))
    }

    /// Removes a sandbox.
    ///
    /// # Errors
    /// What the gateway says.
    pub async fn delete(&self, name: &str) -> Result<(), BenchError> {
        let request = v1::DeleteSandboxRequest { name: name.to_owned(), ..Default::default() };
        let answer = self.api.clone().delete_sandbox(request).await;
        answer.map_err(BenchError::refused(format!("delete sandbox {name}"))).map(drop)
    }

    /// Runs a command to its end, throws its output away and says how it exited.
    ///
    /// # Errors
    /// When the command could not be run to its end.
    pub async fn exec(&self, sandbox: &str, command: &[&str]) -> Result<i32, BenchError> {
        let request = v1::ExecSandboxRequest {
            sandbox: sandbox.to_owned(),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            no_login_shell: true,
            ..Default::default()
        };
        let refused = || BenchError::refused(format!("run a command in {sandbox}"));
        let mut events =
            self.api.clone().exec_sandbox(request).await.map_err(refused())?.into_inner();
        let mut code = None;
        while let Some(event) = events.message().await.map_err(refused())? {
            if let Some(ExecPayload::Exit(exit)) = event.payload {
                code = Some(exit.exit_code);
            }
        }
        code.ok_or_else(|| BenchError::unexpected("the command", "ended without an exit code"))
    }

    /// A token that relays into a sandbox are opened with.
    ///
    /// # Errors
    /// What the gateway says.
    pub async fn ssh_token(&self, sandbox: &str) -> Result<String, BenchError> {
        let request =
            v1::CreateSshSessionRequest { sandbox: sandbox.to_owned(), ..Default::default() };
        let answer = self.api.clone().create_ssh_session(request).await;
        let answer = answer.map_err(BenchError::refused(format!("get a token for {sandbox}")))?;
        Ok(answer.into_inner().token)
    }
}
