//! The system calls that have no safe wrapper, each behind a function that is safe to call.
//!
//! Everything `unsafe` in this crate is here. Callers get owned descriptors, checked results and
//! no raw pointers.
#![allow(unsafe_code)]

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::unistd::{ForkResult, Pid};

/// Most descriptors that one packet may carry: a command's three streams and an overflow memfd.
pub(crate) const MAX_FDS: usize = 4;

/// Which side of a [`fork`] the caller is on.
pub(crate) enum Fork {
    /// The new process.
    Child,
    /// The old one, with the process id of the new.
    Parent(Pid),
}

/// Duplicates the calling process.
///
/// # Errors
/// The error of `fork(2)`, or `EBUSY` when the process has more than one thread: a child of a
/// multi-threaded process may only call async-signal-safe functions, and our children do more.
pub(crate) fn fork() -> io::Result<Fork> {
    if thread_count()? != 1 {
        return Err(io::Error::from_raw_os_error(libc::EBUSY));
    }
    // SAFETY: this process has exactly one thread (checked above, and only a running thread could
    // start another), so no lock can be held by a thread that the child does not have.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Child => Ok(Fork::Child),
        ForkResult::Parent { child } => Ok(Fork::Parent(child)),
    }
}

/// Number of threads, from the link count of `/proc/self/task`; 1 when `/proc` cannot be read,
/// which only happens in the single-threaded sandbox init before it mounts its own.
fn thread_count() -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    match std::fs::metadata("/proc/self/task") {
        // Every directory has "." and its entry in the parent, then one link per thread.
        Ok(meta) => Ok(meta.nlink().saturating_sub(2).max(1)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(1),
        Err(error) => Err(error),
    }
}

/// Takes over standard input, which the parent process passed as a socket, and leaves `/dev/null`
/// in its place.
pub(crate) fn take_stdin() -> io::Result<OwnedFd> {
    let stdin = io::stdin();
    let socket = nix::fcntl::fcntl(stdin.as_fd(), nix::fcntl::FcntlArg::F_DUPFD_CLOEXEC(3))?;
    // SAFETY: fcntl just returned this descriptor, so nothing else owns it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let null = std::fs::OpenOptions::new().read(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    Ok(socket)
}

/// Sends one packet with descriptors over a `SOCK_SEQPACKET` socket.
pub(crate) fn send_packet(
    socket: BorrowedFd<'_>,
    bytes: &[u8],
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let control = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &control };
    let sent = sendmsg::<()>(
        socket.as_raw_fd(),
        &[IoSlice::new(bytes)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives one packet with its descriptors; an empty packet means that the peer is gone.
pub(crate) fn recv_packet(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut parts = [IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = part {
            for fd in raw {
                // SAFETY: the kernel installed this descriptor for this message; it is ours alone.
                fds.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    if message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "a packet was longer than the receive buffer",
        ));
    }
    Ok((message.bytes, fds))
}

/// Watches a descriptor for readiness with the current runtime.
pub(crate) fn register(fd: OwnedFd) -> io::Result<tokio::io::unix::AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd is one descriptor that stays open and the same until it is dropped.
    unsafe { tokio::io::unix::AsyncFd::register(fd) }.map_err(Into::into)
}

/// Opens a stream socket in the network namespace of the caller.
pub(crate) fn tcp_socket(v6: bool) -> io::Result<OwnedFd> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
    let family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(family, SockType::Stream, flags, None)?)
}

/// Brings the loopback interface of the caller's network namespace up.
pub(crate) fn loopback_up() -> io::Result<()> {
    let socket = tcp_socket(false)?;
    // SAFETY: an all-zero ifreq is a valid value of this plain C struct.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    // SAFETY: SIOCGIFFLAGS reads the name and writes the flags of the ifreq we own.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS as _, &mut request) })?;
    // SAFETY: SIOCGIFFLAGS filled the flags member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    // SAFETY: SIOCSIFFLAGS only reads the ifreq.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) })?;
    Ok(())
}

/// Closes every descriptor from `first` on.
///
/// Only for a process that is about to execute another program or to run a loop that owns nothing:
/// owners of the closed descriptors must not be used or dropped afterwards.
pub(crate) fn close_from(first: RawFd) -> io::Result<()> {
    let first = libc::c_uint::try_from(first).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: close_range touches no memory. The callers are forked children that never return
    // into code that owns a descriptor from `first` on.
    check(unsafe {
        libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) as libc::c_int
    })?;
    Ok(())
}

/// Moves `fd` to the number `target` and closes every descriptor after it.
///
/// Like [`close_from`], only for a forked child that returns into no code that owns descriptors.
pub(crate) fn keep_only(fd: OwnedFd, target: RawFd) -> io::Result<OwnedFd> {
    let kept = if fd.as_raw_fd() == target {
        fd
    } else {
        // SAFETY: dup3 touches no memory. Whatever was at `target` belonged to code that the
        // caller never returns into.
        check(unsafe { libc::dup3(fd.into_raw_fd(), target, libc::O_CLOEXEC) })?;
        // SAFETY: dup3 just made this descriptor.
        unsafe { OwnedFd::from_raw_fd(target) }
    };
    close_from(target + 1)?;
    Ok(kept)
}

/// Sets what a signal does; only for the default action, which runs no code of ours.
pub(crate) fn set_signal_action(
    signal: nix::sys::signal::Signal,
    action: &nix::sys::signal::SigAction,
) -> io::Result<()> {
    if !matches!(action.handler(), nix::sys::signal::SigHandler::SigDfl) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the default action installs no handler (checked above).
    unsafe { nix::sys::signal::sigaction(signal, action) }?;
    Ok(())
}

/// Makes the terminal on `fd` the controlling terminal of the calling session leader.
pub(crate) fn set_controlling_terminal(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer and touches no memory.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY as _, 0) })?;
    Ok(())
}

/// Sets the size of the terminal on `fd`, in cells and in pixels.
pub(crate) fn set_window_size(fd: BorrowedFd<'_>, size: &nix::pty::Winsize) -> io::Result<()> {
    // SAFETY: TIOCSWINSZ reads one winsize.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ as _, size) })?;
    Ok(())
}

/// Removes every capability from the bounding set; needs `CAP_SETPCAP`.
pub(crate) fn clear_bounding_set() -> io::Result<()> {
    // CAP_LAST_CAP of the running kernel is found by asking until it says there is no such one.
    for capability in 0..64 {
        // SAFETY: PR_CAPBSET_DROP takes an integer and touches no memory.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        if let Err(error) = check(result) {
            if error.raw_os_error() == Some(libc::EINVAL) && capability > 0 {
                return Ok(());
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Empties the ambient, inheritable, permitted and effective capability sets.
pub(crate) fn drop_capabilities() -> io::Result<()> {
    // SAFETY: PR_CAP_AMBIENT_CLEAR_ALL takes integers only.
    check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) })?;
    /// `_LINUX_CAPABILITY_VERSION_3` of linux/capability.h.
    const VERSION_3: u32 = 0x2008_0522;
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    let header = Header { version: VERSION_3, pid: 0 };
    // Two sets of effective, permitted, inheritable.
    let data = [0_u32; 6];
    // SAFETY: version 3 reads one header and two triples of u32, which is what both point to.
    check(unsafe { libc::syscall(libc::SYS_capset, &header, data.as_ptr()) as libc::c_int })?;
    Ok(())
}

/// Ends the process at once, without running destructors or exit handlers of a forked parent.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit does not return and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
