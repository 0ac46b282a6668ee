//! One running supervisor process: waiting for its end without polling, and ending it.

use std::fmt;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use rustix::process::{PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::identity::Identity;
use crate::{procfs, sys};

/// How long a killed process may take to be gone. Only one that hangs in the kernel takes longer.
const KILL_WAIT: Duration = Duration::from_secs(10);

/// How often a process is looked at where the kernel gives no pidfd (some sandboxing kernels).
const POLL: Duration = Duration::from_millis(100);

/// A supervisor process, started by this driver or found running.
#[derive(Debug)]
pub(crate) struct Supervisor {
    identity: Identity,
    /// Present if it is our child, so that its exit status can be collected.
    child: Option<Child>,
    /// `None` where the kernel has no pidfds.
    pidfd: Option<AsyncFd<OwnedFd>>,
}

/// How a supervisor ended. The status is unknown when another gateway had started it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exit {
    pub(crate) status: Option<ExitStatus>,
}

/// A killed process that is still there.
#[derive(Debug, thiserror::Error)]
#[error("process {pid} is still there {KILL_WAIT:?} after SIGKILL")]
pub(crate) struct StillThere {
    pid: i32,
}

// === impl Supervisor ===

impl Supervisor {
    /// Takes charge of a process that runs.
    pub(crate) fn new(identity: Identity, child: Option<Child>) -> Self {
        let pidfd = pidfd_open(identity.pid, PidfdFlags::empty())
            .ok()
            .and_then(|pidfd| sys::watch(pidfd).ok())
            // The pidfd is of whatever has the pid now; make sure that it is ours.
            .filter(|_| child.is_some() || procfs::runs(identity));
        Self { identity, child, pidfd }
    }

    pub(crate) fn identity(&self) -> Identity {
        self.identity
    }

    /// Waits for the end of the process, then kills what is left of its session. Cancel safe.
    pub(crate) async fn exited(&mut self) -> Exit {
        match &self.pidfd {
            Some(pidfd) => {
                // An error of readiness means that the runtime is going down; then so are we.
                if pidfd.readable().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
            None => {
                while procfs::runs(self.identity) {
                    sleep(POLL).await;
                }
            }
        }
        // While our child is not collected its pid cannot be used again, so this comes first.
        let identity = self.identity;
        if let Err(error) = spawn_blocking(move || procfs::kill_session(identity)).await {
            tracing::warn!(%error, "could not sweep an ended session");
        }
        // It has ended, so this does not block.
        let status = self.child.as_mut().and_then(|child| child.wait().ok());
        Exit { status }
    }

    /// Asks the process to end, and after `grace` ends it with all of its session.
    pub(crate) async fn end(&mut self, grace: Duration) -> Result<Exit, StillThere> {
        if !grace.is_zero() {
            self.signal(Signal::TERM);
            if let Ok(exit) = timeout(grace, self.exited()).await {
                return Ok(exit);
            }
        }
        self.signal(Signal::KILL);
        timeout(KILL_WAIT, self.exited())
            .await
            .map_err(|_| StillThere { pid: self.identity.pid.as_raw_nonzero().get() })
    }

    /// Sends a signal to this process and to no other. One that has ended needs none.
    fn signal(&self, signal: Signal) {
        let sent = match &self.pidfd {
            Some(pidfd) => pidfd_send_signal(pidfd.get_ref(), signal),
            None if procfs::runs(self.identity) => kill_process(self.identity.pid, signal),
            None => Ok(()),
        };
        if let Err(error) = sent
            && error != rustix::io::Errno::SRCH
        {
            tracing::warn!(
                pid = self.identity.pid.as_raw_nonzero().get(),
                ?signal,
                %error,
                "could not signal a supervisor"
            );
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(status) = self.status else {
            return f.write_str("ended, with a status that is unknown here");
        };
        match (status.code(), status.signal()) {
            (Some(code), _) => write!(f, "exited with code {code}"),
            (None, Some(signal)) => write!(f, "was ended by signal {signal}"),
            (None, None) => write!(f, "ended"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::time::Instant;

    use super::*;

    fn child(script: &str) -> (Identity, Child) {
        let child =
            Command::new("/bin/sh").args(["-c", script]).stdin(Stdio::null()).spawn().unwrap();
        let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
        (procfs::stat(pid).unwrap().identity, child)
    }

    #[tokio::test]
    async fn the_end_of_a_child_is_seen_with_its_status() {
        let (identity, process) = child("exit 7");
        let mut supervisor = Supervisor::new(identity, Some(process));
        let exit = supervisor.exited().await;
        assert_eq!(exit.to_string(), "exited with code 7");
        assert!(!procfs::runs(identity));
    }

    #[tokio::test]
    async fn the_end_of_a_process_that_was_found_is_seen_without_status() {
        let (identity, mut process) = child("exec sleep 60");
        let mut supervisor = Supervisor::new(identity, None);
        assert!(timeout(Duration::from_millis(50), supervisor.exited()).await.is_err());
        process.kill().unwrap();
        let exit = supervisor.exited().await;
        assert!(exit.status.is_none());
        process.wait().unwrap();
    }

    #[tokio::test]
    async fn without_pidfds_the_process_is_looked_at() {
        let (identity, process) = child("exec sleep 60");
        let mut supervisor = Supervisor::new(identity, Some(process));
        supervisor.pidfd = None;
        let exit = supervisor.end(Duration::from_secs(5)).await.unwrap();
        assert_eq!(exit.to_string(), "was ended by signal 15");
    }

    #[tokio::test]
    async fn one_that_ignores_sigterm_is_killed_after_the_grace() {
        let (identity, process) = child("trap '' TERM; echo; while :; do sleep 1; done");
        let mut supervisor = Supervisor::new(identity, Some(process));
        let began = Instant::now();
        // The trap may not be set yet; then SIGTERM ends it, which is an end as well.
        supervisor.end(Duration::from_millis(300)).await.unwrap();
        assert!(began.elapsed() < Duration::from_secs(5));
        assert!(!procfs::runs(identity));
    }
}
