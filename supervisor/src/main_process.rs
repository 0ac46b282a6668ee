//! The agent's main process: start it, keep its output, tell the gateway how it ended.

use std::collections::HashMap;
use std::time::Duration;

use postern_proto::v1::{FinalizeMainProcessExitRequest, ReportMainProcessExitRequest};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tonic::Code;

use crate::environment::{ClientVariables, Environment};
use crate::gateway::Gateway;
use crate::isolate::sandbox::TerminalSpec;
use crate::isolate::{Exit, IsolateError, Process, Program, Sandbox, SpawnSpec, Stdio};
use crate::logs::{LogQueue, MAX_MESSAGE};
use crate::session::Identity;
use crate::settings::Settings;

/// Wait before the first repetition of a report, doubled up to [`LONGEST_WAIT`] (OpenShell contract).
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(2);

/// How long the end of output may take once the process has ended: something it left behind may
/// hold its output open for ever.
const OUTPUT_LIMIT: Duration = Duration::from_secs(2);

/// How long a process may take to end after it was asked to, before its tree is killed. Drivers
/// give the supervisor 5 s in all.
const STOP_GRACE: Duration = Duration::from_secs(2);

/// Terminal type of a main process with a terminal: what tools know without a database.
const TERMINAL: &str = "xterm-256color";

/// The running main process.
#[derive(Debug)]
pub struct Main {
    process: Process,
    output: tokio::task::JoinHandle<()>,
    terminal: bool,
}

impl Main {
    /// Starts it. Its output goes to our own output and, line by line, to the log queue.
    ///
    /// # Errors
    /// When the sandbox cannot start anything.
    pub async fn start(
        sandbox: &Sandbox,
        settings: &Settings,
        environment: &Environment,
        logs: LogQueue,
    ) -> Result<Self, IsolateError> {
        let terminal = settings.main.tty;
        let spec = SpawnSpec {
            program: Program::Command(settings.main.command.clone()),
            environment: environment
                .with(if terminal { TERMINAL } else { "dumb" }, &ClientVariables::default()),
            directory: settings.directory.clone(),
            terminal: terminal.then(TerminalSpec::default),
        };
        let (process, stdio) = sandbox.spawn(spec).await?;
        let output = match stdio {
            Stdio::Pipes { input, output, error } => {
                if settings.interactive {
                    tokio::spawn(feed(input));
                }
                tokio::spawn(async move {
                    let output = keep(output, tokio::io::stdout(), &logs, "INFO");
                    let error = keep(error, tokio::io::stderr(), &logs, "WARN");
                    tokio::join!(output, error);
                })
            }
            Stdio::Terminal(master) => {
                if settings.interactive {
                    tokio::spawn(feed(master.clone()));
                }
                // The task holds the terminal open for as long as anything in it runs.
                tokio::spawn(async move {
                    keep(master, tokio::io::stdout(), &logs, "INFO").await;
                })
            }
        };
        Ok(Self { process, output, terminal })
    }

    /// Waits until it has ended; `None` when the sandbox ended first. Cancel safe.
    pub async fn wait(&mut self) -> Option<Exit> {
        self.process.wait().await
    }

    /// Waits, for a bounded time, until its output has been taken.
    pub async fn output_taken(&mut self) {
        if tokio::time::timeout(OUTPUT_LIMIT, &mut self.output).await.is_err() {
            self.output.abort();
        }
    }

    /// Asks it to end, then ends its whole tree.
    pub async fn stop(mut self) {
        // A shell on a terminal ignores SIGTERM, but knows what a hang-up is.
        let asked = if self.terminal { libc::SIGHUP } else { libc::SIGTERM };
        if self.process.signal(asked).await.is_ok() {
            let _ = tokio::time::timeout(STOP_GRACE, self.process.wait()).await;
        }
    }
}

async fn feed(mut input: impl AsyncWrite + Unpin) {
    // Either end going away is the end of the input.
    let _ = tokio::io::copy(&mut tokio::io::stdin(), &mut input).await;
}

/// Copies a stream to our own, and its lines to the queue.
async fn keep(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    logs: &LogQueue,
    level: &str,
) {
    let mut buffer = vec![0; 16 * 1024];
    let mut lines = Lines::default();
    while let Ok(count) = from.read(&mut buffer).await
        && count > 0
    {
        let bytes = &buffer[..count];
        // Nobody may be listening to us; the log still goes on.
        let _ = to.write_all(bytes).await;
        let _ = to.flush().await;
        lines.push(bytes, |line| logs.write(level, "main", line, HashMap::new()));
    }
    lines.finish(|line| logs.write(level, "main", line, HashMap::new()));
}

/// Cuts a stream into lines of bounded length.
#[derive(Debug, Default)]
struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    fn push(&mut self, bytes: &[u8], mut each: impl FnMut(String)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            for part in piece.chunks(MAX_MESSAGE) {
                if self.partial.len() + part.len() > MAX_MESSAGE {
                    self.emit(&mut each);
                }
                self.partial.extend_from_slice(part);
            }
            if piece.ends_with(b"\n") {
                self.emit(&mut each);
            }
        }
    }

    fn finish(&mut self, mut each: impl FnMut(String)) {
        self.emit(&mut each);
    }

    fn emit(&mut self, each: &mut impl FnMut(String)) {
        let line = self.partial.trim_ascii_end();
        if !line.is_empty() {
            each(String::from_utf8_lossy(line).into_owned());
        }
        self.partial.clear();
    }
}

/// Tells the gateway how the main process ended, again and again until it has heard.
pub async fn report(gateway: &Gateway, identity: &Identity, exit: Exit) {
    let mut wait = FIRST_WAIT;
    loop {
        let connection = gateway.connection().await;
        let request = ReportMainProcessExitRequest {
            sandbox_id: identity.sandbox_id.clone(),
            instance_id: identity.instance_id.clone(),
            exit_code: exit.code(),
        };
        match Gateway::client(&connection).report_main_process_exit(request).await {
            Ok(_) => return,
            Err(status) if is_final(status.code()) => {
                return tracing::warn!(code = ?status.code(), "the gateway does not want to know how the main process ended");
            }
            Err(status) => {
                tracing::debug!(code = ?status.code(), "the end of the main process is not reported yet")
            }
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Tells the gateway that nothing more will come of the main process.
pub async fn finalize(gateway: &Gateway, identity: &Identity) {
    let connection = gateway.connection().await;
    let request = FinalizeMainProcessExitRequest {
        sandbox_id: identity.sandbox_id.clone(),
        instance_id: identity.instance_id.clone(),
    };
    if let Err(status) = Gateway::client(&connection).finalize_main_process_exit(request).await {
        tracing::debug!(code = ?status.code(), "the end of the main process was not finalized");
    }
}

/// Whether repeating a call cannot change its answer.
fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::Unimplemented
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_cut_at_their_ends_and_at_the_limit() {
        let mut lines = Lines::default();
        let mut all = Vec::new();
        lines.push(b"one\r\ntw", |line| all.push(line));
        lines.push(b"o\n\n", |line| all.push(line));
        lines.push(&[b'x'; MAX_MESSAGE * 2 + 1], |line| all.push(line));
        lines.push(b"\ntail \xff", |line| all.push(line));
        lines.finish(|line| all.push(line));
        assert_eq!(all[..2], ["one", "two"]);
        assert_eq!(
            all[2..5].iter().map(String::len).collect::<Vec<_>>(),
            [MAX_MESSAGE, MAX_MESSAGE, 1]
        );
        assert_eq!(all[5], "tail \u{fffd}");
    }
}
