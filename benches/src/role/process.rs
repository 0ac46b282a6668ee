//! Starting a role, and ending it with the value.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use crate::error::BenchError;

/// A role that runs. Dropping it ends it: first by the end of its standard input, then, if that takes too long,
/// by a signal.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// What stood behind `ready`: an address or a URL.
    pub address: String,
}

impl Process {
    /// Starts a role of this very program and waits until it serves.
    ///
    /// # Errors
    /// When it cannot be started, or ends before it is ready; what it had to say is on standard error.
    pub fn start<I, S>(role: &str, arguments: I) -> Result<Self, BenchError>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        Self::start_with(role, arguments, &[])
    }

    /// As [`Process::start`], with more environment.
    ///
    /// # Errors
    /// As [`Process::start`].
    pub fn start_with<I, S>(
        role: &str,
        arguments: I,
        environment: &[(&str, &str)],
    ) -> Result<Self, BenchError>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        let program = std::env::current_exe().map_err(BenchError::io("find this program"))?;
        let mut child = Command::new(program)
            .args(["role", role])
            .args(arguments)
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(BenchError::io(format!("start the {role}")))?;
        let output = child.stdout.take().expect("it is piped");
        let mut lines = BufReader::new(output);
        let mut line = String::new();
        lines.read_line(&mut line).map_err(BenchError::io(format!("hear of the {role}")))?;
        let Some(address) = line.trim().strip_prefix("ready ") else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(BenchError::unexpected(format!("the {role}"), "ended before it was ready"));
        };
        let address = address.to_owned();
        Ok(Self { child, address })
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        // Longer than a gateway takes to remove its sandboxes.
        const PATIENCE: u32 = 400;
        for _ in 0..PATIENCE {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::park_timeout(std::time::Duration::from_millis(25));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
