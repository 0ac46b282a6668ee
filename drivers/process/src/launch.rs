//! Starting the supervisor of a sandbox.

use std::io;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Pid;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::driver::Common;
use crate::error::{Context as _, Failure};
use crate::identity::Identity;
use crate::layout::{SandboxDir, private_file, remove_if_there};
use crate::record::Record;
use crate::supervisor::Supervisor;
use crate::{environment, log, procfs, sys};

/// How long the lock of a supervisor that just ended may still be held: its namespaces are torn
/// down by the kernel after it.
const LOCK_WAIT: Duration = Duration::from_secs(5);

/// How often the lock is tried meanwhile.
const LOCK_POLL: Duration = Duration::from_millis(10);

/// Starts a supervisor for the sandbox. It outlives this process.
pub(crate) async fn launch(
    common: &Common,
    dir: &SandboxDir,
    record: &Record,
) -> Result<Supervisor, Failure> {
    unlocked(dir).await?;
    let mut command = Command::new(&common.config.supervisor.program);
    command
        .args(&common.config.supervisor.args)
        .env_clear()
        .envs(environment::of_supervisor(&common.config, dir, record))
        .current_dir("/");
    let dir = dir.clone();
    let limit = common.config.log_limit_bytes;
    let (identity, child) = spawn_blocking(move || start(command, &dir, limit))
        .await
        .map_err(io::Error::other)
        .context("start the supervisor")??;
    Ok(Supervisor::new(identity, Some(child)))
}

fn start(
    mut command: Command,
    dir: &SandboxDir,
    log_limit: u64,
) -> Result<(Identity, Child), Failure> {
    dir.check().context("use the sandbox's directory")?;
    remove_if_there(&dir.main_process_exited()).context("forget the last main process")?;
    log::rotate(dir, log_limit).context("rotate the supervisor's log")?;
    let log = log::open(dir).context("open the supervisor's log")?;
    let errors = log.try_clone().context("open the supervisor's log")?;
    let pid_file = private_file()
        .write(true)
        .create(true)
        .truncate(true)
        .open(dir.pid())
        .context("open the supervisor's pid file")?;
    command.stdin(Stdio::null()).stdout(Stdio::from(log)).stderr(Stdio::from(errors));
    sys::detach(&mut command, pid_file);
    let child = command.spawn().context("run the supervisor program")?;
    let identity = Pid::from_raw(child.id().cast_signed())
        .and_then(procfs::stat)
        .map(|stat| stat.identity)
        // A child that was not collected has an entry, dead or alive.
        .ok_or_else(|| io::Error::other("/proc does not show it"))
        .context("find the supervisor that was just started")?;
    Ok((identity, child))
}

/// Waits until no supervisor holds the sandbox's lock.
async fn unlocked(dir: &SandboxDir) -> Result<(), Failure> {
    let until = Instant::now() + LOCK_WAIT;
    while dir.is_locked().context("look at supervisor.lock")? {
        if Instant::now() >= until {
            let text =
                format!("another supervisor holds {} (flock); end it first", dir.lock().display());
            return Err(io::Error::new(io::ErrorKind::WouldBlock, text))
                .context("start a second supervisor");
        }
        sleep(LOCK_POLL).await;
    }
    Ok(())
}
