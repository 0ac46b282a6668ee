//! Start-up order and end of the supervisor.
//!
//! Lock, directories, sandbox (before any thread exists), SSH server, main process, session. Then
//! wait for the first of: the main process ends, its time is up, we are told to stop, the sandbox
//! is gone.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use rand::SeedableRng as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::environment::{AGENT_HOME, Environment};
use crate::gateway::{self, Gateway, GatewayError};
use crate::isolate::{Exit, IsolateError, IsolationReport, Launched, Reexec, Sandbox, Setup};
use crate::logs::{LogPush, LogQueue};
use crate::main_process::{self, Main};
use crate::session::{Client, Dial, DialFuture, Dialled, Identity, RelayTarget, Relays};
use crate::settings::Settings;
use crate::ssh::{self, SshError, host_key};
use crate::token::Keeper;

/// Exit code when the main process's time was up (OpenShell contract).
const TIMED_OUT: i32 = 124;

/// How long open relays may go on after the main process has ended, so that a client gets the
/// output that it is still reading.
const RELAY_DRAIN: Duration = Duration::from_secs(10);

/// How long the last log lines may take.
const LOG_DRAIN: Duration = Duration::from_secs(5);

/// How long the last call may take.
const FINALIZE_LIMIT: Duration = Duration::from_secs(5);

/// Health checks answered at the same time.
const MAX_HEALTH_CHECKS: usize = 16;

/// Why the supervisor ended without its main process.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RunError {
    /// Another supervisor has the sandbox.
    #[error("{path} is locked: another supervisor runs this sandbox; stop it first")]
    Locked {
        /// The lock file.
        path: String,
    },
    /// A file or directory of ours cannot be used.
    #[error("{what} {path} cannot be used")]
    State {
        /// What it is.
        what: &'static str,
        /// Where it is.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The runtime, a signal handler or the health port cannot be had.
    #[error("{what} cannot be set up")]
    Setup {
        /// What.
        what: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// No sandbox, or not any more.
    #[error(transparent)]
    Isolate(#[from] IsolateError),
    /// No SSH server.
    #[error(transparent)]
    Ssh(#[from] SshError),
    /// The gateway cannot even be tried.
    #[error(transparent)]
    Gateway(#[from] GatewayError),
}

/// Runs a sandbox to its end; the exit code.
///
/// Blocks the calling thread, which must be the main thread or one that lives as long.
///
/// # Errors
/// [`RunError`].
pub fn run(
    settings: Settings,
    reexec: &Reexec,
    logs: LogQueue,
    push: LogPush,
) -> Result<i32, RunError> {
    for name in &settings.ignored {
        tracing::warn!(name, "this setting has no effect yet");
    }
    // Held until the process ends.
    let _lock = settings.lock_file.as_deref().map(lock).transpose()?;
    if let Some(state) = &settings.state {
        prepare(state, &settings)?;
    }
    let launched = Launched::start(reexec, &setup(&settings))?;
    publish(launched.report(), settings.state.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        // A sandbox's supervisor is one of many on its machine.
        .worker_threads(2)
        .build()
        .map_err(|source| RunError::Setup { what: "the runtime", source })?;
    let result = runtime.block_on(supervise(settings, launched, logs, push));
    // Blocking reads of our own standard input would hold it up for ever.
    runtime.shutdown_background();
    result
}

fn lock(path: &Path) -> Result<Flock<fs::File>, RunError> {
    let unusable = |source| RunError::State {
        what: "the lock file",
        path: path.display().to_string(),
        source,
    };
    let file = fs::File::options().create(true).append(true).open(path).map_err(unusable)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| {
        if errno == nix::errno::Errno::EWOULDBLOCK {
            RunError::Locked { path: path.display().to_string() }
        } else {
            unusable(errno.into())
        }
    })
}

/// Makes what is missing in the state directory. What is there keeps its owner and mode.
fn prepare(state: &Path, settings: &Settings) -> Result<(), RunError> {
    for (name, of_agent) in [("home", true), ("tmp", true), ("run", false)] {
        let path = state.join(name);
        let made = match fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) if of_agent && nix::unistd::geteuid().is_root() => {
                chown(&path, Some(settings.uid), Some(settings.gid))
            }
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        };
        made.map_err(|source| RunError::State {
            what: "the directory",
            path: path.display().to_string(),
            source,
        })?;
    }
    Ok(())
}

fn setup(settings: &Settings) -> Setup {
    let name =
        [&settings.sandbox_name, &settings.sandbox_id].into_iter().find(|name| !name.is_empty());
    Setup {
        uid: settings.uid,
        gid: settings.gid,
        // The kernel takes 64 bytes.
        hostname: name.map_or("sandbox", |name| name).chars().take(60).collect(),
        directory: settings.state.clone(),
        masked: settings.masked.clone(),
        best_effort: settings.best_effort,
    }
}

fn publish(report: &IsolationReport, state: Option<&Path>) -> Result<(), RunError> {
    for control in report.missing() {
        tracing::warn!(control = control.name, reason = control.detail, "a control does not hold");
    }
    tracing::info!(%report, "the sandbox stands");
    let Some(path) = state.map(|state| state.join("run/isolation.json")) else {
        return Ok(());
    };
    let unusable = |source| RunError::State {
        what: "the isolation report",
        path: path.display().to_string(),
        source,
    };
    let text = serde_json::to_string_pretty(report).map_err(io::Error::from).map_err(unusable)?;
    fs::write(&path, text).map_err(unusable)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).map_err(unusable)
}

/// Everything after the runtime exists.
async fn supervise(
    settings: Settings,
    launched: Launched,
    logs: LogQueue,
    push: LogPush,
) -> Result<i32, RunError> {
    let mut stop_signals = StopSignals::new()?;
    let sandbox = launched.attach()?;
    let environment = Environment::new(AGENT_HOME, &settings.user_environment);
    let fingerprint = serve_ssh(&settings, &sandbox, &environment)?;
    if let Some(port) = settings.health_port {
        serve_health(port).await?;
    }
    let mut main = Main::start(&sandbox, &settings, &environment, logs.clone()).await?;
    let stop = CancellationToken::new();
    let link = match &settings.gateway {
        Some(gateway) => Some(Link::begin(gateway, &settings, &sandbox, fingerprint, push, &stop)?),
        None => None,
    };
    tracing::info!(sandbox_id = settings.sandbox_id, "the supervisor is up");
    let timeout = settings.timeout;
    let time_up = async move {
        match timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    let mark = settings.state.as_deref();
    let exit = tokio::select! {
        exit = main.wait() => exit.ok_or(IsolateError::Ended)?,
        () = time_up => {
            main.stop().await;
            return Ok(conclude(link.as_ref(), &logs, Exit::Code(TIMED_OUT), mark, &mut stop_signals).await);
        }
        number = stop_signals.next() => {
            stop.cancel();
            main.stop().await;
            logs.drained(if link.is_some() { Duration::from_millis(500) } else { Duration::ZERO }).await;
            return Ok(128 + number);
        }
        () = sandbox.ended() => return Err(IsolateError::Ended.into()),
    };
    tracing::info!(?exit, "the main process ended");
    main.output_taken().await;
    Ok(conclude(link.as_ref(), &logs, exit, mark, &mut stop_signals).await)
}

/// File below the sandbox's state directory that tells its driver that the main process's end was
/// reported, with the exit code in decimal: without it, the end of the supervisor is a crash.
const MAIN_PROCESS_EXITED: &str = "main-process-exited";

fn mark_main_process_exited(state: Option<&Path>, exit: Exit) {
    let Some(state) = state else { return };
    if let Err(error) = std::fs::write(state.join(MAIN_PROCESS_EXITED), exit.code().to_string()) {
        tracing::warn!(%error, "the driver will take the end of the main process for a crash");
    }
}

/// Tells the gateway of the end, lets clients and logs finish, and gives the exit code.
async fn conclude(
    link: Option<&Link>,
    logs: &LogQueue,
    exit: Exit,
    state: Option<&Path>,
    stop_signals: &mut StopSignals,
) -> i32 {
    let Some(link) = link else {
        return exit.code();
    };
    let farewell = async {
        main_process::report(&link.gateway, &link.identity, exit).await;
        mark_main_process_exited(state, exit);
        // Bounded: a client that reads nothing does not keep the sandbox.
        let _ = tokio::time::timeout(RELAY_DRAIN, link.relays.idle()).await;
        logs.drained(LOG_DRAIN).await;
        let finalized = main_process::finalize(&link.gateway, &link.identity);
        let _ = tokio::time::timeout(FINALIZE_LIMIT, finalized).await;
    };
    tokio::select! {
        () = farewell => {}
        _ = stop_signals.next() => {}
    }
    exit.code()
}

/// Starts the SSH server; its host key's fingerprint.
fn serve_ssh(
    settings: &Settings,
    sandbox: &Sandbox,
    environment: &Environment,
) -> Result<String, RunError> {
    let path = settings.state.as_ref().map(|state| state.join("run").join(host_key::FILE_NAME));
    let key = host_key::load_or_create(path.as_deref())?;
    let fingerprint = host_key::fingerprint(&key);
    let shared = ssh::Shared {
        sandbox: sandbox.clone(),
        environment: environment.clone(),
        directory: settings.directory.clone(),
    };
    let server = ssh::Server::bind(&settings.ssh_socket, key, shared)?;
    tokio::spawn(server.serve());
    Ok(fingerprint)
}

/// Answers every request on the health port: whoever answers is alive.
async fn serve_health(port: u16) -> Result<(), RunError> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))
        .await
        .map_err(|source| RunError::Setup { what: "the health port", source })?;
    let permits = Arc::new(tokio::sync::Semaphore::new(MAX_HEALTH_CHECKS));
    tokio::spawn(async move {
        while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
            let Ok((mut stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            tokio::spawn(async move {
                let _permit = permit;
                let answer = async {
                    // What is asked makes no difference; it is read so that closing is no reset.
                    let mut request = [0; 4096];
                    let _ = stream.read(&mut request).await?;
                    let ok =
                        b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nok\n";
                    stream.write_all(ok).await
                };
                let _ = tokio::time::timeout(Duration::from_secs(5), answer).await;
            });
        }
    });
    Ok(())
}

/// What holds the supervisor to its gateway.
struct Link {
    gateway: Gateway,
    identity: Identity,
    relays: Arc<Relays>,
}

impl Link {
    fn begin(
        settings: &crate::settings::GatewaySettings,
        all: &Settings,
        sandbox: &Sandbox,
        host_key_fingerprint: String,
        push: LogPush,
        stop: &CancellationToken,
    ) -> Result<Self, RunError> {
        let keeper = Keeper::new(settings.token.clone());
        let target = gateway::target(settings, &keeper)?;
        let gateway = Gateway::default();
        let identity = Identity {
            sandbox_id: all.sandbox_id.clone(),
            instance_id: uuid::Uuid::new_v4().to_string(),
            host_key_fingerprint,
        };
        let relays = Relays::new(SandboxDial {
            sandbox: sandbox.clone(),
            ssh_socket: all.ssh_socket.clone(),
        });
        let client = Client {
            target,
            identity: identity.clone(),
            keeper: keeper.clone(),
            gateway: gateway.clone(),
            relays: Arc::clone(&relays),
            config_poll: all.config_poll,
        };
        let id = identity.sandbox_id.clone();
        tokio::spawn(client.run(stop.clone(), rand::rngs::StdRng::from_rng(&mut rand::rng())));
        tokio::spawn(keeper.keep_fresh(gateway.clone(), id.clone()));
        let rng = rand::rngs::StdRng::from_rng(&mut rand::rng());
        tokio::spawn(push.run(gateway.clone(), id, rng));
        Ok(Self { gateway, identity, relays })
    }
}

/// Reaches the targets of relays in one sandbox.
struct SandboxDial {
    sandbox: Sandbox,
    ssh_socket: std::path::PathBuf,
}

impl Dial for SandboxDial {
    fn dial(&self, target: RelayTarget) -> DialFuture {
        let (sandbox, socket) = (self.sandbox.clone(), self.ssh_socket.clone());
        Box::pin(async move {
            match target {
                RelayTarget::Ssh => Ok(Dialled::Unix(UnixStream::connect(socket).await?)),
                RelayTarget::Tcp(address) => Ok(Dialled::Tcp(sandbox.connect(address).await?)),
            }
        })
    }
}

/// The signals that end the supervisor.
struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    fn new() -> Result<Self, RunError> {
        let handler = |kind| {
            signal(kind).map_err(|source| RunError::Setup { what: "a signal handler", source })
        };
        Ok(Self {
            terminate: handler(SignalKind::terminate())?,
            interrupt: handler(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.terminate.recv() => libc::SIGTERM,
            _ = self.interrupt.recv() => libc::SIGINT,
        }
    }
}
