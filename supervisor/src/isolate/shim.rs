//! One small process per command, which owns the command's process tree.
//!
//! It is the command's parent and a child subreaper, so a daemon that detaches from the command by
//! forking twice becomes *its* child and not a child of process 1. As long as it lives, every
//! descendant can be found below it, and ending the tree means ending everything that is below it
//! until nothing is left. When the command ends by itself the shim ends in the same way, and what
//! the command left running in the background goes on below process 1.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::child;
use crate::sys;

/// Order byte that ends the whole tree; any other byte is a signal number.
pub(crate) const KILL_TREE: u8 = 0;

/// How long to wait for killed children before looking for new ones again.
const SWEEP_INTERVAL_MS: u16 = 5;

/// Runs the shim for `command` until it ended, taking orders from `orders`. Never returns: the
/// process ends exactly as the command did.
pub(crate) fn run(command: Pid, orders: OwnedFd) -> ! {
    let status = watch(command, &orders);
    drop(orders);
    match status {
        Ok(WaitStatus::Exited(_, code)) => sys::exit_now(code),
        Ok(WaitStatus::Signaled(_, signal, _)) => die_of(signal),
        // Nothing else ends a wait without WUNTRACED; an error means that the wait itself broke.
        Ok(_) | Err(_) => sys::exit_now(255),
    }
}

fn die_of(signal: Signal) -> ! {
    // The command's core limit is zero and so is ours: the same signal leaves the same status.
    let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
    let _ = child::default_signals();
    let _ = nix::sys::signal::raise(signal);
    sys::exit_now(128 + signal as i32)
}

fn watch(command: Pid, orders: &OwnedFd) -> io::Result<WaitStatus> {
    let mut watched = SigSet::empty();
    watched.add(Signal::SIGCHLD);
    let signals = SignalFd::with_flags(&watched, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut status = None;
    let mut ending = false;
    loop {
        while signals.read_signal()?.is_some() {}
        let children_left = reap(command, &mut status)?;
        if let Some(status) = status
            && !(ending && children_left)
        {
            return Ok(status);
        }
        if ending {
            kill_descendants();
        }
        let timeout = if ending { PollTimeout::from(SWEEP_INTERVAL_MS) } else { PollTimeout::NONE };
        let mut ready = [
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(orders.as_fd(), PollFlags::POLLIN),
        ];
        // Once the tree is ending, no further order can matter.
        let watched = if ending { &mut ready[..1] } else { &mut ready[..] };
        match poll(watched, timeout) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
        let ordered = !ending && ready[1].any().unwrap_or(false);
        if ordered {
            ending = obey(command, orders)?;
        }
    }
}

/// Collects ended children; whether any is left.
fn reap(command: Pid, status: &mut Option<WaitStatus>) -> io::Result<bool> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return Ok(true),
            Ok(ended) if ended.pid() == Some(command) => *status = Some(ended),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Takes orders; whether the tree is to end.
fn obey(command: Pid, orders: &OwnedFd) -> io::Result<bool> {
    let mut bytes = [0; 16];
    let count = match nix::unistd::read(orders, &mut bytes) {
        Ok(count) => count,
        Err(Errno::EINTR | Errno::EAGAIN) => return Ok(false),
        Err(errno) => return Err(errno.into()),
    };
    // The end of the orders is the end of the sandbox init.
    if count == 0 {
        return Ok(true);
    }
    for order in &bytes[..count] {
        if *order == KILL_TREE {
            return Ok(true);
        }
        if let Ok(signal) = Signal::try_from(i32::from(*order)) {
            // A group that just ended needs no signal.
            let _ = kill(Pid::from_raw(-foreground_group(command).as_raw()), signal);
        }
    }
    Ok(false)
}

/// The process group that a terminal would signal: the foreground group of the command's terminal,
/// or the command's own group when it has none.
fn foreground_group(command: Pid) -> Pid {
    let stat = fs::read_to_string(format!("/proc/{command}/stat")).unwrap_or_default();
    stat_field(&stat, 8)
        .filter(|group| *group > 1)
        .map_or(command, |group| Pid::from_raw(group as i32))
}

/// Kills every process below the caller. Those whose parent dies come to the caller, which is a
/// subreaper, and are found by the next call.
pub(crate) fn kill_descendants() {
    let own = nix::unistd::getpid().as_raw();
    let processes = process_parents();
    let mut below = vec![own];
    let mut next = 0;
    while let Some(parent) = below.get(next).copied() {
        next += 1;
        for (pid, its_parent) in &processes {
            if *its_parent == parent && !below.contains(pid) {
                below.push(*pid);
                let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
            }
        }
    }
}

/// Every process that `/proc` shows, with its parent.
fn process_parents() -> Vec<(i32, i32)> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let parent = stat_field(&stat, 4)?;
            Some((pid, parent as i32))
        })
        .collect()
}

/// A numeric field of `/proc/PID/stat`, counted from 1 as proc(5) does; not 1 or 2, which are the
/// process id and a name that may itself contain spaces and parentheses.
fn stat_field(stat: &str, number: usize) -> Option<i64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(number.checked_sub(3)?)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_fields_survive_a_hostile_name() {
        let stat = "17 (a) S 9 (x) R 4 17 16 34816 18 4194304";
        assert_eq!(stat_field(stat, 4), Some(4));
        assert_eq!(stat_field(stat, 8), Some(18));
        assert_eq!(stat_field("garbage", 4), None);
    }

    #[test]
    fn our_own_parent_is_found() {
        let own = nix::unistd::getpid().as_raw();
        let parent = nix::unistd::getppid().as_raw();
        assert!(process_parents().contains(&(own, parent)));
    }
}
