//! One running command: its events become the response, its input comes from the request.

use bytes::Bytes;
use futures_util::stream;
use postern_proto::v1::{
    ExecSandboxEvent, ExecSandboxExit, ExecSandboxInput, ExecSandboxStderr, ExecSandboxStdout,
    exec_sandbox_event, exec_sandbox_input,
};
use postern_relay::ssh::{ExecControl, ExecEvent, ExecEvents, ExecStdin, SshError};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tonic::{Status, Streaming};

use super::{ExecStream, check_stdin, is_empty, lost};

/// Exit code of a command that ran out of time (OpenShell contract, as `timeout(1)`).
const TIMED_OUT: i32 = 124;

/// A command and everything that ends with it. Dropping it before the exit closes the SSH channel.
pub(super) struct Running {
    events: ExecEvents,
    control: ExecControl,
    feed: Feed,
    deadline: Option<Instant>,
    /// For the metric; a command that is dropped was cancelled.
    result: &'static str,
    over: bool,
}

/// The task that feeds standard input, if there is anything to feed. Dropping it ends the task.
pub(super) struct Feed {
    task: Option<JoinHandle<()>>,
    /// The input broke a rule; the command ends with this status.
    fault: Option<oneshot::Receiver<Status>>,
}

// === impl Running ===

impl Running {
    pub(super) const fn new(
        events: ExecEvents,
        control: ExecControl,
        feed: Feed,
        deadline: Option<Instant>,
    ) -> Self {
        Self { events, control, feed, deadline, result: "cancelled", over: false }
    }

    /// The response. Nothing runs ahead of it: what the caller does not read stays in the SSH window.
    pub(super) fn into_stream(self) -> ExecStream {
        Box::pin(stream::unfold(self, |mut running| async move {
            let item = running.next().await?;
            Some((item, running))
        }))
    }

    async fn next(&mut self) -> Option<Result<ExecSandboxEvent, Status>> {
        if self.over {
            return None;
        }
        // Output that is there goes out before a limit is looked at.
        let event = tokio::select! {
            biased;
            event = self.events.next() => event,
            fault = self.feed.fault() => {
                self.end("bad_input");
                return Some(Err(fault));
            }
            () = at(self.deadline) => {
                self.end("timeout");
                return Some(Ok(exit(TIMED_OUT)));
            }
        };
        match event {
            Ok(Some(ExecEvent::Stdout(data))) => Some(Ok(stdout(data))),
            Ok(Some(ExecEvent::Stderr(data))) => Some(Ok(stderr(data))),
            Ok(Some(ExecEvent::Exit(status))) => {
                self.end("exit");
                Some(Ok(exit(status.code)))
            }
            Ok(None) => None,
            Err(error) => {
                self.end(if matches!(error, SshError::Refused) { "refused" } else { "lost" });
                Some(Err(lost(&error)))
            }
        }
    }

    /// Nothing follows. Closing the channel ends what the command started, if it still runs.
    fn end(&mut self, result: &'static str) {
        self.over = true;
        self.result = result;
        self.control.cancel();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        metrics::counter!("exec_total", "result" => self.result).increment(1);
    }
}

async fn at(instant: Option<Instant>) {
    match instant {
        Some(instant) => sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

fn event(payload: exec_sandbox_event::Payload) -> ExecSandboxEvent {
    ExecSandboxEvent { payload: Some(payload) }
}

fn stdout(data: Bytes) -> ExecSandboxEvent {
    event(exec_sandbox_event::Payload::Stdout(ExecSandboxStdout { data }))
}

fn stderr(data: Bytes) -> ExecSandboxEvent {
    event(exec_sandbox_event::Payload::Stderr(ExecSandboxStderr { data }))
}

fn exit(exit_code: i32) -> ExecSandboxEvent {
    event(exec_sandbox_event::Payload::Exit(ExecSandboxExit { exit_code }))
}

// === impl Feed ===

impl Feed {
    /// Writes `payload`, then end of file.
    pub(super) fn once(mut stdin: ExecStdin, payload: Bytes) -> Self {
        let task = tokio::spawn(async move {
            // A command that ends without reading all of it is no fault.
            if !is_empty(&payload) && stdin.write(payload).await.is_err() {
                return;
            }
            let _ = stdin.finish().await;
        });
        Self { task: Some(task), fault: None }
    }

    /// Writes `payload` and what the caller sends, until the caller's stream ends; then end of file, and never a
    /// close: output that follows it is not lost. `terminal` is where resizes go, if there is one.
    pub(super) fn stream(
        stdin: ExecStdin,
        payload: Bytes,
        input: Streaming<ExecSandboxInput>,
        terminal: Option<ExecControl>,
    ) -> Self {
        let (tell, fault) = oneshot::channel();
        let task = tokio::spawn(async move {
            if let Err(status) = pump(stdin, payload, input, terminal).await {
                let _ = tell.send(status);
            }
        });
        Self { task: Some(task), fault: Some(fault) }
    }

    /// Resolves when the input broke a rule.
    async fn fault(&mut self) -> Status {
        if let Some(fault) = &mut self.fault {
            if let Ok(status) = fault.await {
                return status;
            }
            // The input is over in good order.
            self.fault = None;
        }
        std::future::pending().await
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
    }
}

async fn pump(
    mut stdin: ExecStdin,
    payload: Bytes,
    mut input: Streaming<ExecSandboxInput>,
    terminal: Option<ExecControl>,
) -> Result<(), Status> {
    use exec_sandbox_input::Payload;
    if !is_empty(&payload) && stdin.write(payload).await.is_err() {
        return Ok(());
    }
    loop {
        // An input stream that breaks is a caller that went away.
        let Some(message) = input.message().await? else { break };
        let written = match message.payload {
            Some(Payload::Stdin(bytes)) => {
                check_stdin(&bytes)?;
                if bytes.is_empty() { Ok(()) } else { stdin.write(bytes).await }
            }
            Some(Payload::Resize(size)) => match &terminal {
                Some(terminal) => terminal.resize(size.cols, size.rows).await,
                None => Ok(()),
            },
            // A second start changes nothing (OpenShell contract).
            Some(Payload::Start(_)) | None => Ok(()),
        };
        // The command has ended, or the connection has: the events say which.
        if written.is_err() {
            return Ok(());
        }
    }
    let _ = stdin.finish().await;
    Ok(())
}
