//! `ExecSandbox` and `ExecSandboxInteractive`: commands in a sandbox, over the sandbox's own SSH server.
//!
//! The SSH client lives in the gateway and speaks over a relay inside this process: no listening socket, and any
//! OpenShell-compatible supervisor will do. Connections are pooled per sandbox. A call that is dropped, resets or runs
//! out of time closes its SSH channel at once, silent commands included; the supervisor then ends everything that the
//! command started. A relay that is lost is `UNAVAILABLE`, never an exit code.

pub mod command_line;
mod running;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_core::Stream;
use postern_proto::v1::{
    ExecSandboxEvent, ExecSandboxInput, ExecSandboxRequest, exec_sandbox_input,
};
use postern_relay::registry::Target;
use postern_relay::splice::RelayIo;
use postern_relay::ssh::{ExecChannel, ExecSpec, Options, PoolError, Pty, SshPool};
use tokio::time::{Instant, timeout};
use tonic::{Code, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};
use tower_service::Service;

use crate::auth::Principal;
use crate::call_error::{CallError, ERROR_DOMAIN};
use crate::lifecycle::Lifecycle;
use crate::relay_plane::gate::Gate;
use crate::relay_plane::{Budgets, OpenError, OpenedRelay, RelayKind, RelayPlane, RelayRequest};

use self::running::{Feed, Running};

/// Bytes of standard input that one message may carry. More goes in several messages of `ExecSandboxInteractive`, or
/// over SSH.
pub const MAX_STDIN_MESSAGE: usize = 1024 * 1024;

/// How long the first message of an interactive exec may take: it is sent with the call.
pub const START_DEADLINE: Duration = Duration::from_secs(10);

/// Longest execution timeout, 366 days: longer than anything that is meant, shorter than what timers overflow at.
const MAX_TIMEOUT: Duration = Duration::from_secs(366 * 86_400);

/// Size of a terminal that an interactive call does not tell (OpenShell contract).
const DEFAULT_SIZE: (u32, u32) = (80, 24);

/// Serves both calls. Cloning shares everything.
#[derive(Clone)]
pub struct Exec {
    lifecycle: Lifecycle,
    gate: Gate,
    pool: SshPool<OpenIo>,
    budgets: Budgets,
}

/// The relay plane as the pool needs it: a service that gives byte streams.
#[derive(Clone, Debug)]
pub struct OpenIo(RelayPlane);

/// What a caller receives: output in order, then exactly one exit.
pub type ExecStream = Pin<Box<dyn Stream<Item = Result<ExecSandboxEvent, Status>> + Send>>;

// === impl Exec ===

impl Exec {
    /// Runs commands over relays of `plane`. A sandbox that is not Ready, or has no session, is waited for up to
    /// the budget of exec calls.
    #[must_use]
    pub fn new(
        lifecycle: Lifecycle,
        gate: Gate,
        plane: RelayPlane,
        budgets: Budgets,
        pool: postern_relay::ssh::PoolConfig,
    ) -> Self {
        Self { lifecycle, gate, pool: SshPool::new(OpenIo(plane), pool), budgets }
    }

    /// The pooled connections: to reap them, and to end those of a sandbox that goes.
    #[must_use]
    pub const fn pool(&self) -> &SshPool<OpenIo> {
        &self.pool
    }

    /// Serves `ExecSandbox`.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for what breaks a limit, `NOT_FOUND`, `FAILED_PRECONDITION` in a phase that does not lead to
    /// Ready, and what opening a relay fails with.
    pub async fn run(
        &self,
        principal: Principal,
        request: ExecSandboxRequest,
    ) -> Result<ExecStream, Status> {
        check_stdin(&request.stdin)?;
        let pty = request.tty.then(|| Pty::xterm(request.cols, request.rows));
        let limit = execution_timeout(&request)?;
        let channel = self.start(principal, &request, pty).await?;
        let feed = Feed::once(channel.stdin, request.stdin.into());
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        Ok(Running::new(channel.events, channel.control, feed, deadline).into_stream())
    }

    /// Serves `ExecSandboxInteractive`.
    ///
    /// # Errors
    /// As [`Exec::run`], and `INVALID_ARGUMENT` when the first message is not `start`.
    pub async fn interactive(
        &self,
        principal: Principal,
        mut input: Streaming<ExecSandboxInput>,
    ) -> Result<ExecStream, Status> {
        let first = timeout(START_DEADLINE, input.message()).await.map_err(|_| {
            CallError::DeadlineExceeded { what: "the start message".into(), waited: START_DEADLINE }
        })??;
        let Some(exec_sandbox_input::Payload::Start(request)) =
            first.and_then(|first| first.payload)
        else {
            return Err(CallError::invalid("payload", "expected start as the first message").into());
        };
        check_stdin(&request.stdin)?;
        let pty = request.tty.then(|| {
            let or = |given: u32, default| if given == 0 { default } else { given };
            Pty::xterm(or(request.cols, DEFAULT_SIZE.0), or(request.rows, DEFAULT_SIZE.1))
        });
        let limit = execution_timeout(&request)?;
        let channel = self.start(principal, &request, pty).await?;
        let resizes = request.tty.then(|| channel.control.clone());
        let feed = Feed::stream(channel.stdin, request.stdin.into(), input, resizes);
        let deadline = limit.and_then(|limit| Instant::now().checked_add(limit));
        Ok(Running::new(channel.events, channel.control, feed, deadline).into_stream())
    }

    async fn start(
        &self,
        principal: Principal,
        request: &ExecSandboxRequest,
        pty: Option<Pty>,
    ) -> Result<ExecChannel, Status> {
        let command = command_line::command_line(request)
            .map_err(|fault| CallError::invalid(fault.field(), fault.to_string()))?;
        let scope = request.workspace_scope.as_ref();
        let record = self.lifecycle.resolve(&principal, scope, &request.sandbox).await?;
        let started = Instant::now();
        let budget = self.budgets.exec();
        self.gate.ready(&record, budget).await?;
        tracing::info!(
            sandbox_id = record.id(),
            caller = principal.key(),
            tty = request.tty,
            command_preview = command_line::preview(&request.command),
            "exec"
        );
        let wish = RelayRequest {
            sandbox_id: record.id().into(),
            target: Target::Ssh,
            kind: RelayKind::Exec,
            budget: budget.saturating_sub(started.elapsed()),
            principal: Arc::new(principal),
            service_id: "exec".into(),
        };
        let spec = ExecSpec { command, env: Vec::new(), pty };
        // The relay leads to the right sandbox, so its host key proves nothing more.
        let options = Options::default();
        self.pool.exec(record.id(), wish, &options, &spec).await.map_err(status)
    }
}

impl std::fmt::Debug for Exec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exec").field("pool", &self.pool).finish_non_exhaustive()
    }
}

/// How long the command may run; zero and unset are no limit.
fn execution_timeout(request: &ExecSandboxRequest) -> Result<Option<Duration>, CallError> {
    let Some(given) = request.execution_timeout else { return Ok(None) };
    match Duration::try_from(given) {
        Ok(limit) if limit.is_zero() => Ok(None),
        Ok(limit) if limit <= MAX_TIMEOUT => Ok(Some(limit)),
        _ => Err(CallError::invalid("execution_timeout", "is not between 0 and 366 days")),
    }
}

fn check_stdin(stdin: &[u8]) -> Result<(), CallError> {
    if stdin.len() <= MAX_STDIN_MESSAGE {
        return Ok(());
    }
    Err(CallError::invalid(
        "stdin",
        format!(
            "has {} bytes, more than the {MAX_STDIN_MESSAGE} of one message; send it in parts with \
             ExecSandboxInteractive, or copy a file over SSH",
            stdin.len()
        ),
    ))
}

fn status(error: PoolError<OpenError>) -> Status {
    match error {
        PoolError::Open(error) => error.into(),
        PoolError::Ssh(error) => lost(&error),
        PoolError::Full { limit, .. } => CallError::ResourceExhausted {
            cap: "commands per sandbox".into(),
            value: limit as u64,
            description: "this sandbox runs all the commands it may at one time".to_owned(),
            retry_after: Some(Duration::from_secs(1)),
        }
        .into(),
        // A newer pool may fail in more ways; all of them are on our side of the relay.
        error => Status::unavailable(error.to_string()),
    }
}

/// A failed SSH connection as the caller sees it. Whoever ended it, this caller did not cancel anything.
fn lost(error: &postern_relay::ssh::SshError) -> Status {
    let code = match error.code() {
        Code::Ok | Code::Cancelled | Code::Unknown => Code::Unavailable,
        code => code,
    };
    let mut details = ErrorDetails::with_error_info("EXEC_CONNECTION_LOST", ERROR_DOMAIN, []);
    if error.is_before_start() {
        details.set_retry_info(Some(Duration::from_secs(1)));
    }
    Status::with_error_details(code, error.to_string(), details)
}

// === impl OpenIo ===

impl Service<RelayRequest> for OpenIo {
    type Response = RelayIo;
    type Error = OpenError;
    type Future = Pin<Box<dyn Future<Output = Result<RelayIo, OpenError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), OpenError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: RelayRequest) -> Self::Future {
        let plane = self.0.clone();
        Box::pin(async move {
            plane.open(request).await.map(|relay: OpenedRelay| relay.into_inner().into_io())
        })
    }
}

/// An empty payload, so that a caller without stdin costs no task.
fn is_empty(payload: &Bytes) -> bool {
    payload.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_timeout(seconds: i64, nanos: i32) -> ExecSandboxRequest {
        ExecSandboxRequest {
            execution_timeout: Some(prost_types::Duration { seconds, nanos }),
            ..ExecSandboxRequest::default()
        }
    }

    #[test]
    fn timeouts_are_checked() {
        assert_eq!(execution_timeout(&ExecSandboxRequest::default()).unwrap(), None);
        assert_eq!(execution_timeout(&with_timeout(0, 0)).unwrap(), None);
        assert_eq!(execution_timeout(&with_timeout(2, 0)).unwrap(), Some(Duration::from_secs(2)));
        for bad in [with_timeout(-1, 0), with_timeout(0, -5), with_timeout(i64::MAX, 0)] {
            assert!(execution_timeout(&bad).is_err());
        }
    }

    #[test]
    fn too_much_stdin_is_told_what_to_do() {
        let refused = check_stdin(&vec![0; MAX_STDIN_MESSAGE + 1]).unwrap_err();
        assert!(refused.to_string().contains("ExecSandboxInteractive"), "{refused}");
        assert!(check_stdin(&vec![0; MAX_STDIN_MESSAGE]).is_ok());
    }

    #[test]
    fn a_lost_connection_is_never_a_cancellation_of_the_caller() {
        use postern_relay::ssh::SshError;
        let error = SshError::Lost { code: Code::Cancelled, reason: "cut".to_owned() };
        assert_eq!(lost(&error).code(), Code::Unavailable);
    }
}
