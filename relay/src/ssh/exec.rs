//! One command on an SSH connection.

use std::any::Any;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use russh::client::Msg;
use russh::{Channel, ChannelMsg, ChannelReadHalf, ChannelWriteHalf, Sig};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tonic::Code;

use super::SshError;
use super::client::SharedSeen;

/// How long output is waited for after the exit status (OpenShell contract).
pub const TRAILING_WAIT: Duration = Duration::from_millis(500);

/// Output that keeps coming after the exit status is cut off after this long: something in the
/// background holds the pipe, and the command itself is over.
const TRAILING_MAX: Duration = Duration::from_secs(5);

/// Extended data type of standard error (RFC 4254 section 5.2).
const STDERR: u32 = 1;

/// Most time a close may wait for room in the connection's queue.
const CLOSE_WAIT: Duration = Duration::from_secs(10);

/// A terminal for a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pty {
    /// Terminal type.
    pub term: String,
    /// Width in characters, 0 when unknown.
    pub cols: u32,
    /// Height in characters, 0 when unknown.
    pub rows: u32,
}

impl Pty {
    /// The contract's terminal type in this size.
    pub fn xterm(cols: u32, rows: u32) -> Self {
        Self { term: "xterm-256color".to_owned(), cols, rows }
    }
}

/// A command to run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecSpec {
    /// Command line for the server's shell.
    pub command: String,
    /// Environment sent as SSH requests. Servers may ignore these; what must arrive goes into the
    /// command line.
    pub env: Vec<(String, String)>,
    /// A terminal, if any; standard error then comes as standard output.
    pub pty: Option<Pty>,
}

/// What a command does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEvent {
    /// Bytes on its standard output.
    Stdout(Bytes),
    /// Bytes on its standard error.
    Stderr(Bytes),
    /// It is over; nothing follows.
    Exit(Exit),
}

/// How a command ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code; 128 and the signal's number when a signal ended it, as shells say it.
    pub code: i32,
    /// The signal that ended it, without `SIG`.
    pub signal: Option<String>,
}

impl Exit {
    fn of_code(code: u32) -> Self {
        Self { code: i32::try_from(code).unwrap_or(i32::MAX), signal: None }
    }

    fn of_signal(signal: &Sig) -> Self {
        let name = signal_name(signal);
        Self { code: 128 + signal_number(&name), signal: Some(name) }
    }
}

/// The state the three parts of a channel share.
struct Shared {
    write: Arc<ChannelWriteHalf<Msg>>,
    /// Closed, or about to be.
    closed: AtomicBool,
    /// Closed by [`ExecControl::cancel`]; wakes the events.
    cancelled: watch::Sender<bool>,
    /// Kept until every part is gone.
    held: Mutex<Vec<Box<dyn Any + Send>>>,
    seen: SharedSeen,
}

impl Shared {
    fn lost(&self) -> SshError {
        if *self.cancelled.borrow() {
            return SshError::Cancelled;
        }
        match &self.seen.lock().cause {
            Some(cause) => SshError::Lost { code: cause.code, reason: cause.reason.clone() },
            None => SshError::Lost {
                code: Code::Unavailable,
                reason: "channel ended without an exit status".to_owned(),
            },
        }
    }

    /// Closes the channel once, from wherever; best effort because the queue may be stuck.
    fn close(&self) {
        if self.closed.swap(true, Ordering::Relaxed) {
            return;
        }
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        // Only the write half: what is held for the channel is free as soon as its parts are gone.
        let write = Arc::clone(&self.write);
        runtime.spawn(async move {
            let _ = tokio::time::timeout(CLOSE_WAIT, write.close()).await;
        });
    }
}

/// A running command: its stdin, its events and control over it.
pub struct ExecChannel {
    /// Its standard input.
    pub stdin: ExecStdin,
    /// What it says. Dropping this before the exit cancels the command.
    pub events: ExecEvents,
    /// Resize, signals, cancel.
    pub control: ExecControl,
}

impl ExecChannel {
    pub(super) async fn start(
        channel: Channel<Msg>,
        spec: &ExecSpec,
        seen: SharedSeen,
    ) -> Result<Self, SshError> {
        let (read, write) = channel.split();
        let shared = Arc::new(Shared {
            write: Arc::new(write),
            closed: AtomicBool::new(false),
            cancelled: watch::Sender::new(false),
            held: Mutex::default(),
            seen,
        });
        let cancelled = shared.cancelled.subscribe();
        let shared_events = Arc::clone(&shared);
        let events = ExecEvents { read, shared: shared_events, cancelled, phase: Phase::Running };
        request(&shared.write, spec).await.map_err(|_| shared.lost())?;
        Ok(Self {
            stdin: ExecStdin { shared: Arc::clone(&shared) },
            events,
            control: ExecControl { shared },
        })
    }

    /// Keeps `thing` (a place in the pool) until every part of the channel is gone.
    pub(super) fn hold(&self, thing: impl Any + Send) {
        self.control.shared.held.lock().push(Box::new(thing));
    }
}

async fn request(write: &ChannelWriteHalf<Msg>, spec: &ExecSpec) -> Result<(), russh::Error> {
    if let Some(Pty { term, cols, rows }) = &spec.pty {
        write.request_pty(true, term, *cols, *rows, 0, 0, &[]).await?;
    }
    for (name, value) in &spec.env {
        write.set_env(false, name.as_str(), value.as_str()).await?;
    }
    write.exec(true, spec.command.as_str()).await
}

impl fmt::Debug for ExecChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecChannel").finish_non_exhaustive()
    }
}

/// Standard input of a command.
pub struct ExecStdin {
    shared: Arc<Shared>,
}

impl ExecStdin {
    /// Sends bytes, waiting for the command to take what came before (SSH window). Not cancel
    /// safe: a dropped future may have sent a part.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), SshError> {
        self.shared.write.data_bytes(bytes).await.map_err(|_| self.shared.lost())
    }

    /// Ends standard input: the command reads end of file, its output goes on.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn finish(self) -> Result<(), SshError> {
        self.shared.write.eof().await.map_err(|_| self.shared.lost())
    }
}

impl fmt::Debug for ExecStdin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecStdin").finish_non_exhaustive()
    }
}

/// Control over a command; clones share it.
#[derive(Clone)]
pub struct ExecControl {
    shared: Arc<Shared>,
}

impl ExecControl {
    /// Tells the command's terminal its new size in characters.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn resize(&self, cols: u32, rows: u32) -> Result<(), SshError> {
        let changed = self.shared.write.window_change(cols, rows, 0, 0).await;
        changed.map_err(|_| self.shared.lost())
    }

    /// Sends the command a signal, by its name without `SIG`.
    ///
    /// # Errors
    /// [`SshError::BadSignal`] for a name that is none; when the connection is gone.
    pub async fn signal(&self, name: &str) -> Result<(), SshError> {
        let bad = name.is_empty()
            || name.len() > SIGNAL_NAME_MAX
            || !name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit());
        if bad {
            return Err(SshError::BadSignal { name: name.chars().take(SIGNAL_NAME_MAX).collect() });
        }
        self.shared.write.signal(signal_of(name)).await.map_err(|_| self.shared.lost())
    }

    /// Closes the channel: the supervisor ends the command with everything it started. The events
    /// end at once with [`SshError::Cancelled`], unless the exit has come already.
    pub fn cancel(&self) {
        self.shared.cancelled.send_replace(true);
        self.shared.close();
    }
}

impl fmt::Debug for ExecControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecControl").finish_non_exhaustive()
    }
}

#[derive(Debug)]
enum Phase {
    Running,
    /// Exit status is here; trailing output until the times are up.
    Trailing {
        exit: Exit,
        quiet_at: Instant,
        over_at: Instant,
    },
    Over,
}

/// What a command does, in order; the exit comes last and once.
pub struct ExecEvents {
    read: ChannelReadHalf,
    shared: Arc<Shared>,
    cancelled: watch::Receiver<bool>,
    phase: Phase,
}

impl ExecEvents {
    /// The next event; `None` after the exit. Cancel safe.
    ///
    /// # Errors
    /// [`SshError::Refused`] when the command was not started, [`SshError::Cancelled`] after a
    /// cancel, [`SshError::Lost`] when the channel ended without an exit status. Nothing follows
    /// an error.
    pub async fn next(&mut self) -> Result<Option<ExecEvent>, SshError> {
        loop {
            let message = match &self.phase {
                Phase::Over => return Ok(None),
                Phase::Running => tokio::select! {
                    biased;
                    // The server may never answer a close.
                    _ = self.cancelled.wait_for(|cancelled| *cancelled) => None,
                    message = self.read.wait() => message,
                },
                // Polls the channel first: what has arrived is delivered however late it is.
                Phase::Trailing { quiet_at, over_at, .. } if Instant::now() < *over_at => {
                    timeout_at(*quiet_at, self.read.wait()).await.unwrap_or(None)
                }
                Phase::Trailing { .. } => None,
            };
            match message {
                None | Some(ChannelMsg::Close) => return self.ended().map(Some),
                Some(ChannelMsg::Data { data }) if !data.is_empty() => {
                    return Ok(Some(ExecEvent::Stdout(data)));
                }
                Some(ChannelMsg::ExtendedData { data, ext: STDERR }) if !data.is_empty() => {
                    return Ok(Some(ExecEvent::Stderr(data)));
                }
                Some(ChannelMsg::Failure) if matches!(self.phase, Phase::Running) => {
                    self.phase = Phase::Over;
                    self.shared.close();
                    return Err(SshError::Refused);
                }
                Some(ChannelMsg::ExitStatus { exit_status }) => {
                    self.exited(Exit::of_code(exit_status));
                }
                Some(ChannelMsg::ExitSignal { signal_name, .. }) => {
                    self.exited(Exit::of_signal(&signal_name));
                }
                Some(_) => {}
            }
        }
    }

    fn exited(&mut self, exit: Exit) {
        let now = Instant::now();
        if matches!(self.phase, Phase::Running) {
            let (quiet_at, over_at) = (now + TRAILING_WAIT, now + TRAILING_MAX);
            self.phase = Phase::Trailing { exit, quiet_at, over_at };
        }
    }

    fn ended(&mut self) -> Result<ExecEvent, SshError> {
        let phase = std::mem::replace(&mut self.phase, Phase::Over);
        self.shared.close();
        match phase {
            Phase::Trailing { exit, .. } => Ok(ExecEvent::Exit(exit)),
            Phase::Running | Phase::Over => Err(self.shared.lost()),
        }
    }
}

impl Drop for ExecEvents {
    fn drop(&mut self) {
        self.shared.close();
    }
}

impl fmt::Debug for ExecEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExecEvents").field("phase", &self.phase).finish_non_exhaustive()
    }
}

/// Longest signal name taken from a peer or a caller.
const SIGNAL_NAME_MAX: usize = 16;

/// Names of RFC 4254 section 6.10 and others that Linux has, with their Linux numbers.
const SIGNALS: &[(&str, i32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("SYS", 31),
];

/// The Linux number of a signal name; 0 for one we do not know.
fn signal_number(name: &str) -> i32 {
    SIGNALS.iter().find(|(known, _)| *known == name).map_or(0, |(_, number)| *number)
}

fn signal_name(signal: &Sig) -> String {
    match signal {
        Sig::Custom(name) => {
            // Servers of OpenSSH's kind add their domain: "USR2@openssh.com".
            let name = name.split('@').next().unwrap_or_default();
            name.chars().take(SIGNAL_NAME_MAX).collect()
        }
        known => format!("{known:?}"),
    }
}

fn signal_of(name: &str) -> Sig {
    match name {
        "ABRT" => Sig::ABRT,
        "ALRM" => Sig::ALRM,
        "FPE" => Sig::FPE,
        "HUP" => Sig::HUP,
        "ILL" => Sig::ILL,
        "INT" => Sig::INT,
        "KILL" => Sig::KILL,
        "PIPE" => Sig::PIPE,
        "QUIT" => Sig::QUIT,
        "SEGV" => Sig::SEGV,
        "TERM" => Sig::TERM,
        "USR1" => Sig::USR1,
        other => Sig::Custom(other.to_owned()),
    }
}
