//! The supervisor's side of a sandbox: launch it, start and end commands in it, dial into it.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio as ChildStdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::report::IsolationReport;
use super::wire::{
    self, Event, ModeMessage, Order, Outcome, Request, SetupMessage, SizeMessage, SpawnMessage,
    TerminalMessage,
};
use crate::{sys, terminal};

/// How long the init may take to set the sandbox up. It takes some 10 ms; a machine that needs a
/// thousand times that is better told than waited for.
const LAUNCH_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the init may take to answer one request (measured: under 1 ms).
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// Size of the pipes of a command, in bytes. The default of 64 KiB makes bulk output wake the
/// reader sixteen times as often; this is as much as the kernel gives anybody.
pub(crate) const PIPE_SIZE: i32 = 1024 * 1024;

/// How the running program is started again in its hidden modes.
#[derive(Debug, Clone)]
pub struct Reexec {
    /// The program, usually `/proc/self/exe`.
    pub program: PathBuf,
    /// Arguments in front of ours: none for `postern-supervisor`, a subcommand for `postern`.
    pub leading: Vec<OsString>,
}

/// What a sandbox must be.
#[derive(Debug, Clone)]
pub struct Setup {
    /// User id of the agent; only root can choose it.
    pub uid: u32,
    /// Group id of the agent; only root can choose it.
    pub gid: u32,
    /// Host name inside the sandbox.
    pub hostname: String,
    /// State directory of this sandbox with `home/` and `tmp/` in it. Without one, both live in
    /// memory and are gone when the sandbox ends.
    pub directory: Option<PathBuf>,
    /// Directories that the agent must not see into.
    pub masked: Vec<PathBuf>,
    /// Go on when a control cannot be applied, and say so in the report.
    pub best_effort: bool,
}

/// What went wrong between the supervisor and its sandbox.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IsolateError {
    /// The init process could not be started.
    #[error("the sandbox init could not be started from {program}")]
    Start {
        /// What was executed.
        program: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The sandbox could not be set up, in the words of its init.
    #[error("the sandbox could not be set up: {reason}")]
    SetUp {
        /// Which step or control failed and what to do.
        reason: String,
    },
    /// The init did not answer in time.
    #[error("the sandbox init did not answer within {} s", waited.as_secs())]
    Silent {
        /// How long it was waited for.
        waited: Duration,
    },
    /// The init is gone and every process of the sandbox with it.
    #[error("the sandbox has ended; the supervisor must be started again")]
    Ended,
    /// The init refused a request, in its own words.
    #[error("the sandbox refused: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// A descriptor or packet could not be made or sent.
    #[error("talking to the sandbox init failed")]
    Io {
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl From<io::Error> for IsolateError {
    fn from(source: io::Error) -> Self {
        Self::Io { source }
    }
}

/// A sandbox that stands, not yet driven by an event loop.
#[derive(Debug)]
pub struct Launched {
    socket: OwnedFd,
    init: Child,
    report: IsolationReport,
}

impl Launched {
    /// Starts the init and waits until the sandbox stands.
    ///
    /// Blocks, and must be called on a thread that lives as long as the sandbox shall (the kernel
    /// ends the sandbox with the thread that started it): before the runtime is built.
    ///
    /// # Errors
    /// When the init cannot be started, or a control cannot be applied.
    pub fn start(reexec: &Reexec, setup: &Setup) -> Result<Self, IsolateError> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)
                .map_err(io::Error::from)?;
        let init = Command::new(&reexec.program)
            .args(&reexec.leading)
            .arg(super::INIT_MODE)
            .env_clear()
            .stdin(ChildStdio::from(theirs))
            .stdout(ChildStdio::null())
            .spawn()
            .map_err(|source| IsolateError::Start {
                program: reexec.program.display().to_string(),
                source,
            })?;
        let mut launched = Self { socket: ours, init, report: IsolationReport::default() };
        launched.report = launched.set_up(setup)?;
        Ok(launched)
    }

    fn set_up(&self, setup: &Setup) -> Result<IsolationReport, IsolateError> {
        let bytes = |path: &PathBuf| path.as_os_str().as_bytes().to_vec();
        let message = SetupMessage {
            uid: setup.uid,
            gid: setup.gid,
            hostname: setup.hostname.clone(),
            sandbox_dir: setup.directory.as_ref().map(bytes).unwrap_or_default(),
            masked: setup.masked.iter().map(bytes).collect(),
            best_effort: setup.best_effort,
        };
        wire::send(self.socket.as_fd(), &message, &[])?;
        let timeout = PollTimeout::try_from(LAUNCH_TIMEOUT).unwrap_or(PollTimeout::MAX);
        let mut ready = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, timeout).map_err(io::Error::from)? == 0 {
            return Err(IsolateError::Silent { waited: LAUNCH_TIMEOUT });
        }
        let mut buffer = vec![0; wire::PACKET_BUFFER];
        let received = wire::receive::<Event>(self.socket.as_fd(), &mut buffer)?;
        let text = match received.and_then(|(event, _)| event.outcome) {
            Some(Outcome::Ready(report)) => report,
            Some(Outcome::Failed(reason)) => return Err(IsolateError::SetUp { reason }),
            _ => return Err(IsolateError::Ended),
        };
        serde_json::from_str(&text).map_err(|error| IsolateError::SetUp {
            reason: format!("its report is not readable: {error}"),
        })
    }

    /// What separates the agent from this machine.
    #[must_use]
    pub fn report(&self) -> &IsolationReport {
        &self.report
    }

    /// Puts the sandbox under the control of the current runtime.
    ///
    /// # Errors
    /// When the socket cannot be registered with the runtime.
    pub fn attach(self) -> Result<Sandbox, IsolateError> {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        fcntl(&self.socket, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).map_err(io::Error::from)?;
        let inner = Arc::new(Inner {
            socket: sys::register(self.socket)?,
            next_id: AtomicU64::new(1),
            replies: Mutex::new(HashMap::new()),
            exits: Mutex::new(HashMap::new()),
            ended: CancellationToken::new(),
        });
        tokio::spawn(Arc::clone(&inner).receive(Reaped(self.init)));
        Ok(Sandbox { inner })
    }
}

/// The init's outer process; waited for when dropped, so that it leaves no zombie.
#[derive(Debug)]
struct Reaped(Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        // It ends as soon as the socket closes; it is already ending when we get here.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running sandbox. Clones share it.
#[derive(Debug, Clone)]
pub struct Sandbox {
    inner: Arc<Inner>,
}

type Reply = oneshot::Sender<Result<Vec<OwnedFd>, String>>;

#[derive(Debug)]
struct Inner {
    socket: AsyncFd<OwnedFd>,
    next_id: AtomicU64,
    replies: Mutex<HashMap<u64, Reply>>,
    exits: Mutex<HashMap<u64, oneshot::Sender<Exit>>>,
    ended: CancellationToken,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself, with this exit code (0 to 255).
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Exit {
    /// The exit code as a shell would give it: 128 plus the signal's number for a signal.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

/// Size of a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    /// Cells across.
    pub columns: u32,
    /// Cells down.
    pub rows: u32,
    /// Pixels across; 0 when unknown.
    pub width: u32,
    /// Pixels down; 0 when unknown.
    pub height: u32,
}

impl Default for TerminalSize {
    /// 80 by 24 cells, as the contract has it for an exec with a terminal.
    fn default() -> Self {
        Self { columns: 80, rows: 24, width: 0, height: 0 }
    }
}

impl From<TerminalSize> for SizeMessage {
    fn from(size: TerminalSize) -> Self {
        Self { columns: size.columns, rows: size.rows, width: size.width, height: size.height }
    }
}

/// What to run.
#[derive(Debug, Clone)]
pub enum Program {
    /// A program of the sandbox with its arguments, the first of which names it.
    Command(Vec<Vec<u8>>),
    /// The built-in SFTP server, as the agent's user, on standard input and output.
    FileTransfer,
}

/// Terminal wanted instead of pipes.
#[derive(Debug, Clone, Default)]
pub struct TerminalSpec {
    /// Its size.
    pub size: TerminalSize,
    /// Modes: opcode (RFC 4254 section 8) and argument.
    pub modes: Vec<(u8, u32)>,
}

/// A command to start.
#[derive(Debug, Clone)]
pub struct SpawnSpec {
    /// What to run.
    pub program: Program,
    /// `NAME=value` each.
    pub environment: Vec<Vec<u8>>,
    /// Working directory inside the sandbox.
    pub directory: PathBuf,
    /// A terminal, or pipes when `None`.
    pub terminal: Option<TerminalSpec>,
}

/// The supervisor's ends of a command's streams.
#[derive(Debug)]
pub enum Stdio {
    /// Three pipes.
    Pipes {
        /// Writes reach the command's standard input.
        input: pipe::Sender,
        /// The command's standard output.
        output: pipe::Receiver,
        /// The command's standard error.
        error: pipe::Receiver,
    },
    /// A terminal.
    Terminal(terminal::Master),
}

/// A running command. Dropping it ends its whole process tree, unless it ended by itself before.
#[derive(Debug)]
pub struct Process {
    sandbox: Sandbox,
    id: u64,
    exit: Option<oneshot::Receiver<Exit>>,
}

impl Sandbox {
    /// Starts a command.
    ///
    /// # Errors
    /// When the sandbox has ended, refuses, or does not answer. A program that cannot be executed is
    /// no error: the command then ends with code 126 or 127 and says why on its standard error.
    pub async fn spawn(&self, spec: SpawnSpec) -> Result<(Process, Stdio), IsolateError> {
        let mut message = SpawnMessage {
            argv: match spec.program {
                Program::Command(argv) => argv,
                Program::FileTransfer => Vec::new(),
            },
            environment: spec.environment,
            directory: spec.directory.into_os_string().as_bytes().to_vec(),
            terminal: None,
        };
        let Some(wanted) = spec.terminal else {
            let (theirs, ours) = pipes()?;
            let borrowed: Vec<_> = theirs.iter().map(|fd| fd.as_fd()).collect();
            let (process, _) = self.start(message, &borrowed).await?;
            return Ok((process, ours));
        };
        let mode = |(opcode, value): (u8, u32)| ModeMessage { opcode: opcode.into(), value };
        message.terminal = Some(TerminalMessage {
            size: Some(wanted.size.into()),
            modes: wanted.modes.into_iter().map(mode).collect(),
        });
        let (process, fds) = self.start(message, &[]).await?;
        let master = fds.into_iter().next().ok_or(IsolateError::Ended)?;
        Ok((process, Stdio::Terminal(terminal::Master::new(master)?)))
    }

    async fn start(
        &self,
        message: SpawnMessage,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(Process, Vec<OwnedFd>), IsolateError> {
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        let (exited, exit) = oneshot::channel();
        lock(&self.inner.exits).insert(id, exited);
        // From here on, a caller that goes away ends the command.
        let process = Process { sandbox: self.clone(), id, exit: Some(exit) };
        let fds = self.ask(id, Order::Spawn(message), fds).await?;
        Ok((process, fds))
    }

    /// Connects to an address as a process of the sandbox would.
    ///
    /// # Errors
    /// The error of the connection attempt, or that of a sandbox that has ended.
    pub async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let id = self.inner.next_id.fetch_add(1, Ordering::Relaxed);
        let fds =
            self.ask(id, Order::Socket(address.is_ipv6()), &[]).await.map_err(io::Error::other)?;
        let fd =
            fds.into_iter().next().ok_or_else(|| io::Error::other("the sandbox sent no socket"))?;
        let socket = TcpSocket::from_std_stream(fd.into());
        let stream = socket.connect(address).await?;
        // Relayed bytes are already gathered at the other end; waiting for more only adds delay.
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Resolves when the sandbox has ended, whatever the reason.
    pub async fn ended(&self) {
        self.inner.ended.cancelled().await;
    }

    async fn ask(
        &self,
        id: u64,
        order: Order,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Vec<OwnedFd>, IsolateError> {
        let (reply, answer) = oneshot::channel();
        lock(&self.inner.replies).insert(id, reply);
        let forget = scopeguard(|| {
            lock(&self.inner.replies).remove(&id);
        });
        self.inner.send(id, order, fds).await?;
        let answer = tokio::select! {
            biased;
            answer = answer => answer,
            () = self.inner.ended.cancelled() => return Err(IsolateError::Ended),
            () = tokio::time::sleep(REPLY_TIMEOUT) => {
                return Err(IsolateError::Silent { waited: REPLY_TIMEOUT });
            }
        };
        drop(forget);
        answer.map_err(|_| IsolateError::Ended)?.map_err(|reason| IsolateError::Refused { reason })
    }
}

impl Process {
    /// Waits until the command has ended. Cancel safe; `None` once it has been reported or when
    /// the sandbox ended first.
    pub async fn wait(&mut self) -> Option<Exit> {
        let exit = self.exit.as_mut()?;
        let exit = exit.await.ok();
        self.exit = None;
        exit
    }

    /// Whether the command is not known to have ended.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.exit.is_some()
    }

    /// Sends a signal to the command's foreground process group; `SIGKILL` ends the whole tree.
    ///
    /// # Errors
    /// When the sandbox has ended.
    pub async fn signal(&self, signal: i32) -> Result<(), IsolateError> {
        let order =
            if signal == libc::SIGKILL { Order::KillTree(true) } else { Order::Signal(signal) };
        Ok(self.sandbox.inner.send(self.id, order, &[]).await?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.is_running() {
            return;
        }
        let (inner, id) = (Arc::clone(&self.sandbox.inner), self.id);
        lock(&inner.exits).remove(&id);
        // Without a runtime the supervisor is ending, and the sandbox ends with it.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { inner.send(id, Order::KillTree(true), &[]).await });
        }
    }
}

impl Inner {
    async fn send(&self, id: u64, order: Order, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        let request = Request { id, order: Some(order) };
        self.socket
            .async_io(Interest::WRITABLE, |socket| wire::send(socket.as_fd(), &request, fds))
            .await
    }

    /// Receives events until the init is gone.
    async fn receive(self: Arc<Self>, init: Reaped) {
        let mut buffer = vec![0; wire::PACKET_BUFFER];
        loop {
            let received = self
                .socket
                .async_io(Interest::READABLE, |socket| {
                    wire::receive::<Event>(socket.as_fd(), &mut buffer)
                })
                .await;
            match received {
                Ok(Some((event, fds))) => self.dispatch(event, fds),
                Ok(None) => break,
                Err(error) => {
                    tracing::error!(%error, "the sandbox init sent what cannot be read");
                    break;
                }
            }
        }
        tokio::task::spawn_blocking(move || drop(init));
        self.ended.cancel();
        lock(&self.replies).clear();
        lock(&self.exits).clear();
    }

    fn dispatch(&self, event: Event, fds: Vec<OwnedFd>) {
        let reply = |result| {
            if let Some(reply) = lock(&self.replies).remove(&event.id) {
                // A caller that went away wants no answer.
                let _ = reply.send(result);
            }
        };
        let exit = |exit| {
            if let Some(exited) = lock(&self.exits).remove(&event.id) {
                let _ = exited.send(exit);
            }
        };
        match event.outcome {
            Some(Outcome::Done(_)) => reply(Ok(fds)),
            Some(Outcome::Failed(reason)) => reply(Err(reason)),
            Some(Outcome::Exited(code)) => exit(Exit::Code(code)),
            Some(Outcome::Signaled(signal)) => exit(Exit::Signal(signal)),
            Some(Outcome::Ready(_)) | None => {}
        }
    }
}

/// Three pipes: the command's ends and ours.
fn pipes() -> io::Result<([OwnedFd; 3], Stdio)> {
    let (input_reader, input) = io::pipe()?;
    let (output, output_writer) = io::pipe()?;
    let (error, error_writer) = io::pipe()?;
    for pipe in [input.as_fd(), output.as_fd()] {
        // A smaller pipe only costs speed: the kernel refuses when the user has too many already.
        let _ = nix::fcntl::fcntl(pipe, nix::fcntl::FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
    }
    let stdio = Stdio::Pipes {
        input: pipe::Sender::from_owned_fd(input.into())?,
        output: pipe::Receiver::from_owned_fd(output.into())?,
        error: pipe::Receiver::from_owned_fd(error.into())?,
    };
    Ok(([input_reader.into(), output_writer.into(), error_writer.into()], stdio))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // Nothing that holds these locks can panic half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn scopeguard<F: FnMut()>(run: F) -> impl Drop {
    struct Guard<F: FnMut()>(F);
    impl<F: FnMut()> Drop for Guard<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    Guard(run)
}
