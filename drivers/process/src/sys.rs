//! The one place with `unsafe`: what the child does between fork and exec, and waiting on a pidfd.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use rustix::fs::{Mode, OFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::identity::STAT_BYTES;

/// Makes the command leave the gateway's session and write down who it is before it becomes the
/// supervisor, so that no instant exists in which it runs and cannot be found again.
///
/// `pid_file` receives the boot id and the process's own stat line.
pub(crate) fn detach(command: &mut Command, pid_file: File) {
    let prepare = move || -> io::Result<()> {
        rustix::process::setsid()?;
        // What the supervisor creates is its own business unless it says otherwise.
        rustix::process::umask(Mode::from_raw_mode(0o077));
        copy(c"/proc/sys/kernel/random/boot_id", &pid_file)?;
        copy(c"/proc/self/stat", &pid_file)
    };
    // SAFETY: the closure runs in the forked child of a possibly multi-threaded process, where
    // only async-signal-safe work is allowed. It makes plain system calls (setsid, umask, open,
    // read, write) through wrappers that neither allocate nor lock: paths are C strings already,
    // the buffer is on the stack, and `io::Error` from a raw error number holds no allocation.
    unsafe {
        command.pre_exec(prepare);
    }
}

/// Lets the runtime watch a pidfd, which becomes readable when its process ends.
///
/// Called within a tokio runtime with IO; elsewhere it panics.
pub(crate) fn watch(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, names the same file description and returns the same number
    // for as long as it lives, and the `AsyncFd` owns it for as long.
    let registered = unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) };
    registered.map_err(io::Error::from)
}

/// Copies a short file of /proc. Async-signal-safe.
fn copy(from: &std::ffi::CStr, to: &File) -> io::Result<()> {
    let source = rustix::fs::open(from, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut buffer = [0_u8; STAT_BYTES];
    let length = rustix::io::read(&source, &mut buffer)?;
    let mut rest = &buffer[..length];
    while !rest.is_empty() {
        let written = rustix::io::write(to.as_fd(), rest)?;
        rest = &rest[written..];
    }
    Ok(())
}
