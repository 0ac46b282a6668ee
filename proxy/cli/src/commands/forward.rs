//! `forward start|stop|list|service`.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postern_proto::v1;
use postern_proto::v1::tcp_forward_init::Target;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::args::{ForwardCommand, Globals};
use crate::connection::Gateway;
use crate::error::CliError;
use crate::output;
use crate::tunnel::{self, SshToken};

/// Connections carried at a time by one forward; the gateway allows 20 per sandbox by default.
const CONNECTIONS: usize = 20;

/// Runs one of the commands about forwards.
///
/// # Errors
/// [`CliError`], ready to be shown.
pub async fn run(globals: &Globals, command: ForwardCommand) -> Result<ExitCode, CliError> {
    match command {
        ForwardCommand::Start { port, name, background } => {
            let (local, remote) = ports(&port)?;
            let mut gateway = Gateway::connect(globals).await?;
            let name = gateway.sandbox_or_only(name).await?;
            if background {
                return start_in_background(globals, &name, local, remote);
            }
            let forward = Forward::bind(&name, &format!("127.0.0.1:{local}"), remote).await?;
            forward.announce();
            forward.serve(gateway).await
        }
        ForwardCommand::Service { name, target_port, target_host, local } => {
            let mut gateway = Gateway::connect(globals).await?;
            let name = gateway.sandbox_or_only(name).await?;
            let local = local.unwrap_or_else(|| "127.0.0.1:0".into());
            let mut forward = Forward::bind(&name, &local, target_port).await?;
            forward.host = target_host;
            forward.announce();
            forward.serve(gateway).await
        }
        ForwardCommand::Stop { port, name } => stop(port, name.as_deref()),
        ForwardCommand::List => list(),
    }
}

fn ports(text: &str) -> Result<(u16, u16), CliError> {
    let parse = |part: &str| part.parse::<u16>().ok().filter(|port| *port > 0);
    let pair = match text.split_once(':') {
        Some((local, remote)) => parse(local).zip(parse(remote)),
        None => parse(text).map(|port| (port, port)),
    };
    pair.ok_or_else(|| CliError::usage(format!("{text:?} is not PORT or LOCAL:REMOTE")))
}

/// A local listener and its target.
struct Forward {
    sandbox: String,
    listener: TcpListener,
    address: SocketAddr,
    host: String,
    port: u16,
}

impl Forward {
    async fn bind(sandbox: &str, local: &str, port: u16) -> Result<Self, CliError> {
        let failed = |source| CliError::local(format!("listen on {local}"), source);
        let listener = TcpListener::bind(local).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { sandbox: sandbox.to_owned(), listener, address, host: "127.0.0.1".into(), port })
    }

    fn announce(&self) {
        output::note(&format!(
            "forwarding {} to {}:{} in sandbox {}",
            self.address, self.host, self.port, self.sandbox
        ));
    }

    /// Accepts until the process ends. Each connection has its own token, so that one that is cut
    /// does not cut the others.
    async fn serve(self, gateway: Gateway) -> Result<ExitCode, CliError> {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let slot = Arc::clone(&slots).acquire_owned().await;
            let (socket, peer) = self
                .listener
                .accept()
                .await
                .map_err(|source| CliError::local("accept a connection", source))?;
            while connections.try_join_next().is_some() {}
            let mut gateway = gateway.clone();
            let sandbox = self.sandbox.clone();
            let target = Target::Tcp(v1::TcpRelayTarget {
                host: self.host.clone(),
                port: u32::from(self.port),
            });
            connections.spawn(async move {
                let _slot = slot;
                let outcome = async {
                    let token = SshToken::create(&mut gateway, &sandbox).await?;
                    let _ = socket.set_nodelay(true);
                    let outcome = tunnel::carry(&gateway, &sandbox, target, &token, socket).await;
                    token.revoke(&mut gateway).await;
                    outcome
                };
                if let Err(error) = outcome.await {
                    output::note(&format!("connection from {peer}: {}", error.chain()));
                }
            });
        }
    }
}

/// A forward that lives as long as this value.
#[derive(Debug)]
pub struct ForwardTask {
    task: tokio::task::JoinHandle<()>,
}

impl ForwardTask {
    /// Goes on until the user interrupts.
    pub async fn until_interrupted(self) {
        let _ = tokio::signal::ctrl_c().await;
    }
}

impl Drop for ForwardTask {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Carries a local port beside another command.
///
/// # Errors
/// When the local port is taken.
pub async fn in_background_task(
    gateway: &Gateway,
    sandbox: &str,
    port: u16,
) -> Result<ForwardTask, CliError> {
    let forward = Forward::bind(sandbox, &format!("127.0.0.1:{port}"), port).await?;
    forward.announce();
    let gateway = gateway.clone();
    let task = tokio::spawn(async move {
        if let Err(error) = forward.serve(gateway).await {
            output::note(&format!("error: {}", error.chain()));
        }
    });
    Ok(ForwardTask { task })
}

/// A background forward, as its file tells.
struct Background {
    path: PathBuf,
    sandbox: String,
    local: u16,
    remote: u16,
    pid: Pid,
}

impl Background {
    fn alive(&self) -> bool {
        // The pid may have been given to another program since; its arguments tell.
        fs::read(format!("/proc/{}/cmdline", self.pid))
            .is_ok_and(|line| line.split(|byte| *byte == 0).any(|word| word == b"forward"))
            && kill(self.pid, None).is_ok()
    }
}

fn state_folder() -> Result<PathBuf, CliError> {
    let base = std::env::var_os("XDG_STATE_HOME")
        .filter(|value| !value.is_empty())
        .map(PathBuf::from)
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state")))
        .ok_or_else(|| CliError::usage("set XDG_STATE_HOME or HOME"))?;
    let folder = base.join("openshell/forwards");
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .map_err(|source| CliError::local(format!("create {}", folder.display()), source))?;
    Ok(folder)
}

fn backgrounds() -> Result<Vec<Background>, CliError> {
    let folder = state_folder()?;
    let entries = fs::read_dir(&folder)
        .map_err(|source| CliError::local(format!("read {}", folder.display()), source))?;
    let mut found = Vec::new();
    for path in entries.filter_map(Result::ok).map(|entry| entry.path()) {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let mut words = text.split_whitespace();
        let read = (|| {
            Some(Background {
                path: path.clone(),
                sandbox: words.next()?.to_owned(),
                local: words.next()?.parse().ok()?,
                remote: words.next()?.parse().ok()?,
                pid: Pid::from_raw(words.next()?.parse().ok()?),
            })
        })();
        match read {
            Some(background) if background.alive() => found.push(background),
            // What ended by itself leaves its file behind.
            _ => drop(fs::remove_file(&path)),
        }
    }
    found.sort_by_key(|background| background.local);
    Ok(found)
}

/// Starts this program again without a terminal, and waits until it listens.
fn start_in_background(
    globals: &Globals,
    sandbox: &str,
    local: u16,
    remote: u16,
) -> Result<ExitCode, CliError> {
    if let Some(other) = backgrounds()?.into_iter().find(|other| other.local == local) {
        return Err(CliError::usage(format!(
            "port {local} is already forwarded to sandbox {}; `postern forward stop {local}` ends that",
            other.sandbox
        )));
    }
    // Holding the port for a moment tells now, and here, that it is free.
    drop(
        std::net::TcpListener::bind(("127.0.0.1", local))
            .map_err(|source| CliError::local(format!("listen on 127.0.0.1:{local}"), source))?,
    );
    let failed = |source| CliError::local("start the forward in the background", source);
    let program = std::env::current_exe().map_err(failed)?;
    let mut command = Command::new(program);
    for (flag, value) in [
        ("--gateway", &globals.gateway),
        ("--gateway-endpoint", &globals.gateway_endpoint),
        ("--workspace", &globals.workspace),
    ] {
        if let Some(value) = value {
            command.arg(flag).arg(value);
        }
    }
    let child = command
        .args(["forward", "start", &format!("{local}:{remote}"), sandbox])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let file = state_folder()?.join(format!("{local}"));
    fs::write(&file, format!("{sandbox} {local} {remote} {}\n", child.id()))
        .map_err(|source| CliError::local(format!("write {}", file.display()), source))?;
    output::note(&format!("forwarding 127.0.0.1:{local} to port {remote} of sandbox {sandbox}"));
    Ok(ExitCode::SUCCESS)
}

fn stop(port: u16, name: Option<&str>) -> Result<ExitCode, CliError> {
    let wanted = backgrounds()?
        .into_iter()
        .find(|found| found.local == port && name.is_none_or(|name| name == found.sandbox));
    let Some(found) = wanted else {
        return Err(CliError::usage(format!(
            "no background forward of port {port}; see `postern forward list`"
        )));
    };
    kill(found.pid, Signal::SIGTERM)
        .map_err(|error| CliError::local(format!("end process {}", found.pid), error.into()))?;
    let _ = fs::remove_file(&found.path);
    output::note(&format!("port {port} is no longer forwarded"));
    Ok(ExitCode::SUCCESS)
}

fn list() -> Result<ExitCode, CliError> {
    let rows = backgrounds()?
        .into_iter()
        .map(|found| {
            vec![
                format!("127.0.0.1:{}", found.local),
                found.sandbox,
                found.remote.to_string(),
                found.pid.to_string(),
            ]
        })
        .collect();
    output::print(&output::table(&["LOCAL", "SANDBOX", "PORT", "PID"], rows))?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::ports;

    #[test]
    fn ports_are_one_or_two() {
        assert_eq!(ports("8080").expect("one"), (8080, 8080));
        assert_eq!(ports("1:2").expect("two"), (1, 2));
        for bad in ["", "0", "70000", "1:", ":1", "a"] {
            assert!(ports(bad).is_err(), "{bad:?} was taken");
        }
    }
}
