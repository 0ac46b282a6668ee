//! The machine that the figures were taken on, and what its processes use.

use std::fs;
use std::process::Command;

use serde::Serialize;

use crate::error::BenchError;

/// Where and with what something was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Host {
    /// Model of the processor.
    pub processor: String,
    /// How many may be used.
    pub processors: usize,
    /// MiB of memory.
    pub memory_mib: u64,
    /// Kernel release.
    pub kernel: String,
    /// Version of Postern.
    pub version: &'static str,
    /// Commit of the sources, with `+` when they were changed; empty outside a checkout.
    pub commit: String,
    /// When, in UTC.
    pub time: String,
    /// The command line.
    pub command: String,
}

impl Host {
    /// This machine, now.
    #[must_use]
    pub fn here() -> Self {
        let words: Vec<_> = std::env::args().collect();
        let program = words.first().map_or("", |path| path.rsplit('/').next().unwrap_or(path));
        let arguments = words.iter().skip(1).map(String::as_str);
        let command: Vec<_> = std::iter::once(program).chain(arguments).collect();
        Self {
            processor: field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into()),
            processors: std::thread::available_parallelism().map_or(1, usize::from),
            memory_mib: kibibytes("/proc/meminfo", "MemTotal").unwrap_or(0) / 1024,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            version: env!("CARGO_PKG_VERSION"),
            commit: commit(),
            time: jiff::Timestamp::now().strftime("%Y-%m-%d %H:%M UTC").to_string(),
            command: command.join(" "),
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn field(path: &str, name: &str) -> Option<String> {
    read(path).lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

fn kibibytes(path: &str, name: &str) -> Option<u64> {
    field(path, name)?.split_whitespace().next()?.parse().ok()
}

fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn commit() -> String {
    let Some(commit) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return String::new();
    };
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]);
    let mark = if changed.is_some_and(|lines| !lines.is_empty()) { "+" } else { "" };
    format!("{commit}{mark}")
}

/// KiB of memory that a process has in RAM.
///
/// # Errors
/// When there is no such process.
pub fn resident_kib(pid: u32) -> Result<u64, BenchError> {
    kibibytes(&format!("/proc/{pid}/status"), "VmRSS")
        .ok_or_else(|| BenchError::unexpected(format!("process {pid}"), "is gone"))
}

/// Lets this process and its children open as many files as the hard limit allows: each session is one.
pub fn raise_open_files() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Without it, a run with many sessions says itself what it could not open.
    let _ = setrlimit(Resource::Nofile, limit);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_and_a_machine() {
        assert!(resident_kib(std::process::id()).unwrap() > 100);
        assert!(resident_kib(u32::MAX).is_err());
        let host = Host::here();
        assert!(host.processors > 0 && host.memory_mib > 0 && !host.kernel.is_empty());
    }
}
