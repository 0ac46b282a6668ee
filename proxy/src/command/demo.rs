//! `postern demo`: from nothing to a command in a sandbox, to bytes through SSH, and back to nothing.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};
use std::time::Instant;

use clap::Parser as _;
use postern_cli::args::Globals;
use postern_cli::connection::Gateway;
use postern_cli::error::CliError;
use postern_cli::registration::Registrations;
use postern_proto::v1;
use postern_proto::v1::sandbox_stream_event::Payload;
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::arguments::{Arguments, Command};
use super::up::{Up, UpError};
use super::{chain, failed};

/// What is sent through SSH and back, in bytes.
const PAYLOAD: usize = 10_000_000;

/// Name of the sandbox.
const SANDBOX: &str = "demo";

/// Why the demo failed.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error(transparent)]
    Up(#[from] UpError),
    #[error(transparent)]
    User(#[from] CliError),
    #[error("cannot {action}")]
    Local {
        action: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("{what}: {told}")]
    Wrong { what: &'static str, told: String },
}

fn local(action: &'static str) -> impl FnOnce(std::io::Error) -> DemoError {
    move |source| DemoError::Local { action, source }
}

/// Runs it; the sandbox and the gateway are gone afterwards, also when it fails.
pub async fn run() -> ExitCode {
    match whole().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&chain(&error)),
    }
}

async fn whole() -> Result<(), DemoError> {
    let told = Told { since: Instant::now() };
    let config = tempfile::tempdir().map_err(local("make a folder"))?;
    let registrations = Registrations::at(config.path().join("openshell"));
    let arguments =
        ["postern", "up", "--port", "0", "--ephemeral", "--name", SANDBOX, "--log-level", "warn"];
    let Command::Up(args) = Arguments::parse_from(arguments).command else {
        unreachable!("the arguments above say `up`")
    };
    told.step("starting a gateway of its own: SQLite, a certificate authority, mutual TLS");
    let up = Up::start(*args, registrations.clone()).await?;
    told.line(&format!("serves on {}", up.gateway.endpoint()));
    let outcome = tokio::select! {
        outcome = scenes(&told, &registrations, config.path(), &up.state_dir) => outcome,
        () = up.gateway.signalled() => Err(DemoError::Wrong {
            what: "the demo was interrupted",
            told: "cleaning up".into(),
        }),
    };
    told.step("ending the gateway and removing what it made");
    up.stop().await?;
    outcome?;
    told.step("done");
    println!(
        "\nHow to go on:\n  \
         postern up                            a gateway that stays, registered for you\n  \
         postern sandbox create --name box     a sandbox, and a shell in it\n  \
         postern sandbox exec -n box -- ls     one command\n  \
         postern sandbox ssh-config box        for ssh, scp, rsync and editors\n  \
         postern forward start 8080 box        a port of the sandbox on this machine"
    );
    Ok(())
}

async fn scenes(
    told: &Told,
    registrations: &Registrations,
    config: &Path,
    state_dir: &Path,
) -> Result<(), DemoError> {
    let mut gateway = Gateway::connect_in(registrations, &Globals::default()).await?;
    told.step("creating a sandbox; its supervisor dials out to the gateway");
    create(told, &mut gateway).await?;
    told.isolation(state_dir);
    told.step("running a command in it");
    for command in [
        "uname -sr",
        "id",
        "echo \"$(ls -d /proc/[0-9]* | wc -l) processes, network: $(tail -n +3 /proc/net/dev | cut -d: -f1 | xargs)\"",
    ] {
        told.command(command, &exec(&mut gateway, command).await?);
    }
    bytes_through_ssh(told, &mut gateway, config).await?;
    told.step("deleting the sandbox");
    let request =
        v1::DeleteSandboxRequest { name: SANDBOX.into(), ..v1::DeleteSandboxRequest::default() };
    gateway
        .client
        .delete_sandbox(request)
        .await
        .map_err(|status| CliError::refused("cannot delete the sandbox", status))?;
    Ok(())
}

/// Creates the sandbox and tells its phases and events as they happen.
async fn create(told: &Told, gateway: &mut Gateway) -> Result<(), DemoError> {
    let request =
        v1::CreateSandboxRequest { name: SANDBOX.into(), ..v1::CreateSandboxRequest::default() };
    gateway
        .client
        .create_sandbox(request)
        .await
        .map_err(|status| CliError::refused("cannot create a sandbox", status))?;
    let failed = |status| CliError::refused("cannot watch the sandbox", status);
    let request = v1::WatchSandboxRequest {
        sandbox: SANDBOX.into(),
        follow_status: true,
        follow_events: true,
        event_tail: 50,
        stop_on_terminal: true,
        ..v1::WatchSandboxRequest::default()
    };
    let mut events = gateway.client.watch_sandbox(request).await.map_err(failed)?.into_inner();
    let mut last = -1;
    while let Some(event) = events.message().await.map_err(failed)? {
        match event.payload {
            Some(Payload::Sandbox(sandbox)) => {
                let status = sandbox.status.unwrap_or_default();
                if status.phase != last {
                    last = status.phase;
                    told.line(&format!("phase: {}", postern_cli::output::phase(last)));
                }
                if last == v1::SandboxPhase::Error as i32 {
                    let told = status
                        .conditions
                        .first()
                        .map_or("no reason given".into(), |condition| condition.message.clone());
                    return Err(DemoError::Wrong { what: "the sandbox failed", told });
                }
            }
            Some(Payload::Event(event)) => told.line(&format!("event: {}", event.message)),
            _ => {}
        }
    }
    Ok(())
}

/// Runs a command and answers with its standard output.
async fn exec(gateway: &mut Gateway, command: &str) -> Result<String, DemoError> {
    let request = v1::ExecSandboxRequest {
        sandbox: SANDBOX.into(),
        command: vec!["sh".into(), "-c".into(), command.into()],
        ..v1::ExecSandboxRequest::default()
    };
    let failed = |status| CliError::refused("cannot run a command", status);
    let mut events = gateway.client.exec_sandbox(request).await.map_err(failed)?.into_inner();
    let mut output = Vec::new();
    while let Some(event) = events.message().await.map_err(failed)? {
        match event.payload {
            Some(v1::exec_sandbox_event::Payload::Stdout(chunk)) => {
                output.extend_from_slice(&chunk.data);
            }
            Some(v1::exec_sandbox_event::Payload::Exit(exit)) if exit.exit_code != 0 => {
                return Err(DemoError::Wrong {
                    what: "the command failed",
                    told: format!("exit code {}", exit.exit_code),
                });
            }
            _ => {}
        }
    }
    Ok(String::from_utf8_lossy(&output).trim().to_owned())
}

/// Real OpenSSH through the relay: bytes in, a checksum, bytes out again.
async fn bytes_through_ssh(
    told: &Told,
    gateway: &mut Gateway,
    config: &Path,
) -> Result<(), DemoError> {
    told.step("piping 10 MB through SSH and back, and comparing checksums");
    let text = postern_cli::commands::ssh::host_block(gateway, SANDBOX)?;
    let file = config.join("ssh_config");
    std::fs::write(&file, text).map_err(local("write an ssh config"))?;
    let payload: Vec<u8> = (0..PAYLOAD).map(|index| (index * 31 / 7 % 251) as u8).collect();
    let wanted = hex(&Sha256::digest(&payload));
    let started = Instant::now();
    let Some(there) = ssh(config, &file, "tee copy | sha256sum", payload).await? else {
        told.line(
            "OpenSSH is not installed (apt-get install openssh-client), so this part is left out",
        );
        return Ok(());
    };
    let inside = String::from_utf8_lossy(&there).chars().take(64).collect::<String>();
    let there_took = started.elapsed();
    let started = Instant::now();
    let back = ssh(config, &file, "cat copy", Vec::new()).await?.unwrap_or_default();
    let back_took = started.elapsed();
    let returned = hex(&Sha256::digest(&back));
    told.line(&format!("sent     {wanted}"));
    told.line(&format!("inside   {inside}  ({} ms)", there_took.as_millis()));
    told.line(&format!("returned {returned}  ({} ms)", back_took.as_millis()));
    if wanted == inside && wanted == returned {
        Ok(())
    } else {
        Err(DemoError::Wrong {
            what: "the checksums differ",
            told: "bytes were lost or changed".into(),
        })
    }
}

/// Runs `ssh`; `None` where it is not installed.
async fn ssh(
    config_home: &Path,
    file: &Path,
    command: &str,
    input: Vec<u8>,
) -> Result<Option<Vec<u8>>, DemoError> {
    let spawned = tokio::process::Command::new("ssh")
        .arg("-F")
        .arg(file)
        .arg(format!("openshell-{SANDBOX}"))
        .arg(command)
        .env("XDG_CONFIG_HOME", config_home)
        .env_remove("OPENSHELL_GATEWAY")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn();
    let mut child = match spawned {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        spawned => spawned.map_err(local("run ssh"))?,
    };
    let mut stdin =
        child.stdin.take().ok_or(DemoError::Wrong { what: "ssh", told: "no input".into() })?;
    let mut stdout =
        child.stdout.take().ok_or(DemoError::Wrong { what: "ssh", told: "no output".into() })?;
    let write = async move {
        stdin.write_all(&input).await?;
        stdin.shutdown().await
    };
    let mut output = Vec::new();
    let (written, read) = tokio::join!(write, stdout.read_to_end(&mut output));
    let status = child.wait().await.map_err(local("wait for ssh"))?;
    written.map_err(local("send through ssh"))?;
    read.map_err(local("read from ssh"))?;
    if status.success() {
        Ok(Some(output))
    } else {
        Err(DemoError::Wrong { what: "ssh failed", told: status.to_string() })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What the person who runs the demo reads.
struct Told {
    since: Instant,
}

impl Told {
    fn step(&self, text: &str) {
        let bold = anstyle::Style::new().bold();
        self.say(&format!("{bold}{text}{bold:#}"));
    }

    fn line(&self, text: &str) {
        self.say(&format!("  {text}"));
    }

    fn command(&self, command: &str, output: &str) {
        self.line(&format!("$ {command}"));
        for line in output.lines() {
            self.line(&format!("  {line}"));
        }
    }

    fn say(&self, text: &str) {
        // Whoever closed standard output does not read it.
        let _ =
            writeln!(anstream::stdout(), "{:6.2} s  {text}", self.since.elapsed().as_secs_f64());
    }

    /// Which controls hold the agent, by the sandbox's own report.
    fn isolation(&self, state_dir: &Path) {
        let Some(report) = isolation_report(state_dir) else { return };
        for control in &report.controls {
            let mark = if control.enforced { "enforced" } else { "NOT ENFORCED" };
            self.line(&format!("isolation: {} {mark}: {}", control.name, control.detail));
        }
    }
}

fn isolation_report(state_dir: &Path) -> Option<postern_supervisor::isolate::IsolationReport> {
    let sandboxes: PathBuf = state_dir.join("process").join("sandboxes");
    let sandbox = std::fs::read_dir(sandboxes).ok()?.find_map(Result::ok)?.path();
    let text = std::fs::read(sandbox.join("run").join("isolation.json")).ok()?;
    serde_json::from_slice(&text).ok()
}
