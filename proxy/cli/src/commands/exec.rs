//! `sandbox exec` and `sandbox connect`.

use std::io::IsTerminal as _;
use std::process::ExitCode;

use bytes::Bytes;
use postern_proto::v1;
use postern_proto::v1::exec_sandbox_event::Payload as Event;
use postern_proto::v1::exec_sandbox_input::Payload as Input;
use tokio::io::AsyncReadExt as _;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use uuid::Uuid;

use crate::args::ExecArgs;
use crate::connection::Gateway;
use crate::error::CliError;
use crate::terminal::RawTerminal;

/// How much of standard input is sent at a time, in bytes.
const STDIN_CHUNK: usize = 64 * 1024;

/// How many messages wait for the connection before standard input is no longer read.
const INPUT_QUEUE: usize = 8;

/// Whether a person sits at both ends.
#[must_use]
pub fn on_a_terminal() -> bool {
    std::io::stdin().is_terminal() && std::io::stdout().is_terminal()
}

/// Runs one command in a sandbox and answers with its exit code.
///
/// # Errors
/// When the gateway refuses, or the stream ends without an exit code.
pub async fn run(gateway: &mut Gateway, args: ExecArgs) -> Result<ExitCode, CliError> {
    let name = gateway.sandbox_or_only(args.name).await?;
    let tty = args.tty || (!args.no_tty && on_a_terminal());
    let start = v1::ExecSandboxRequest {
        command: args.command,
        workdir: args.workdir.unwrap_or_default(),
        environment: args.env.into_iter().collect(),
        execution_timeout: args.timeout.map(|seconds| prost_types::Duration {
            seconds: i64::try_from(seconds).unwrap_or(i64::MAX),
            nanos: 0,
        }),
        tty,
        ..v1::ExecSandboxRequest::default()
    };
    interact(gateway, name, start).await
}

/// An interactive login shell.
///
/// # Errors
/// As [`run`].
pub async fn shell(gateway: &mut Gateway, name: Option<String>) -> Result<ExitCode, CliError> {
    let name = gateway.sandbox_or_only(name).await?;
    let start = v1::ExecSandboxRequest {
        command: vec!["/bin/bash".into(), "-l".into()],
        tty: on_a_terminal(),
        ..v1::ExecSandboxRequest::default()
    };
    interact(gateway, name, start).await
}

async fn interact(
    gateway: &mut Gateway,
    name: String,
    mut start: v1::ExecSandboxRequest,
) -> Result<ExitCode, CliError> {
    start.workspace_scope = gateway.scope();
    start.sandbox.clone_from(&name);
    start.request_id = Uuid::new_v4().to_string();
    let raw = if start.tty { RawTerminal::enter().ok() } else { None };
    if start.tty {
        (start.cols, start.rows) = crate::terminal::size();
    }
    let tty = start.tty;
    let (inputs, queue) = mpsc::channel(INPUT_QUEUE);
    let failed =
        |status| CliError::refused(format!("cannot run the command in sandbox {name}"), status);
    // The queue is empty, so the first message always has room.
    let _ = inputs.try_send(v1::ExecSandboxInput { payload: Some(Input::Start(start)) });
    let call = gateway.client.exec_sandbox_interactive(ReceiverStream::new(queue));
    tokio::spawn(send_stdin(inputs.clone()));
    if tty {
        tokio::spawn(send_resizes(inputs));
    } else {
        drop(inputs);
    }
    let mut events = call.await.map_err(failed)?.into_inner();
    while let Some(event) = events.message().await.map_err(failed)? {
        match event.payload {
            Some(Event::Stdout(chunk)) => {
                write_all(&mut std::io::stdout(), &chunk.data, "standard output")?
            }
            Some(Event::Stderr(chunk)) => {
                write_all(&mut std::io::stderr(), &chunk.data, "standard error")?
            }
            Some(Event::Exit(exit)) => {
                drop(raw);
                return Ok(exit_code(exit.exit_code));
            }
            None => {}
        }
    }
    Err(CliError::Cut {
        action: format!("the command in sandbox {name}"),
        why: "the gateway sent no exit code".into(),
    })
}

/// An exit code as a process can have it; larger ones keep being failures.
fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

fn write_all(out: &mut impl std::io::Write, data: &[u8], what: &str) -> Result<(), CliError> {
    out.write_all(data)
        .and_then(|()| out.flush())
        .map_err(|source| CliError::local(format!("write to {what}"), source))
}

/// Standard input until its end; the end of the queue is the end of the command's input.
async fn send_stdin(inputs: mpsc::Sender<v1::ExecSandboxInput>) {
    let mut stdin = tokio::io::stdin();
    loop {
        let mut chunk = Vec::with_capacity(STDIN_CHUNK);
        match stdin.read_buf(&mut chunk).await {
            Ok(1..) => {}
            _ => return,
        }
        let message = v1::ExecSandboxInput { payload: Some(Input::Stdin(Bytes::from(chunk))) };
        if inputs.send(message).await.is_err() {
            return;
        }
    }
}

async fn send_resizes(inputs: mpsc::Sender<v1::ExecSandboxInput>) {
    let Ok(mut changes) = signal(SignalKind::window_change()) else { return };
    while changes.recv().await.is_some() {
        let (cols, rows) = crate::terminal::size();
        let resize = v1::ExecSandboxWindowResize { cols, rows };
        let message = v1::ExecSandboxInput { payload: Some(Input::Resize(resize)) };
        if inputs.send(message).await.is_err() {
            return;
        }
    }
}
