//! Process 1 of a sandbox.
//!
//! Started by re-executing the supervisor's own program with a socket on standard input. Two
//! processes: the outer one enters the namespaces and waits; the inner one, its child, is process 1
//! of the new PID namespace and serves requests. When either dies the kernel ends every process of
//! the sandbox, and when the supervisor dies both die. The init knows no secret: its environment is
//! empty and its setup says only who the agent is and where its files are.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid};

use super::child::{self, Identity, Streams};
use super::report::{Ledger, NotEnforced};
use super::shim;
use super::tree;
use super::wire::{
    self, Event, Order, Outcome, Request, SetupMessage, SpawnMessage, TerminalMessage,
};
use crate::sys::{self, Fork};
use crate::terminal;

/// Commands that may run at the same time: each holds one descriptor and one small process here,
/// and the limit keeps a client that opens channels without end from using up process ids.
const MAX_COMMANDS: usize = 1024;

/// Exit code of the outer process when the inner one did not end by itself.
const INNER_LOST: i32 = 70;

/// Runs this process as a sandbox's init; the result is its exit code.
pub(crate) fn main() -> i32 {
    match enter() {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("postern: sandbox init: {error}");
            1
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum InitError {
    #[error("{step}")]
    Step {
        step: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    NotEnforced(#[from] NotEnforced),
}

fn step<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> InitError {
    move |source| InitError::Step { step, source: source.into() }
}

fn enter() -> Result<(), InitError> {
    // Our parent is the supervisor's main thread, which lives as long as the supervisor.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(step("parent death signal"))?;
    // A Ctrl-C at the supervisor's terminal is for the supervisor alone.
    nix::unistd::setsid().map_err(step("new session"))?;
    let socket = sys::take_stdin().map_err(step("control socket"))?;
    let mut buffer = vec![0; wire::PACKET_BUFFER];
    let received = wire::receive::<SetupMessage>(socket.as_fd(), &mut buffer);
    let Some((setup, _)) = received.map_err(step("setup"))? else {
        return Ok(());
    };
    let result = namespaces(&setup).and_then(|(ledger, identity)| {
        match sys::fork().map_err(step("fork"))? {
            Fork::Parent(inner) => Ok(Side::Outer(inner)),
            Fork::Child => Ok(Side::Inner(Box::new((ledger, identity)))),
        }
    });
    let result = result.and_then(|side| match side {
        Side::Outer(inner) => {
            sys::exit_now(wait_for(inner));
        }
        Side::Inner(parts) => inner(&setup, &socket, parts.0, parts.1),
    });
    if let Err(error) = &result {
        let text = match error {
            InitError::Step { step, source } => format!("{step}: {source}"),
            InitError::NotEnforced(error) => error.to_string(),
        };
        let event = Event { id: 0, outcome: Some(Outcome::Failed(text)) };
        // The supervisor may be gone already; then there is nobody to tell.
        let _ = wire::send(socket.as_fd(), &event, &[]);
    }
    result
}

enum Side {
    Outer(Pid),
    Inner(Box<(Ledger, Identity)>),
}

fn wait_for(inner: Pid) -> i32 {
    // Holding the socket would keep the supervisor from seeing the inner process end.
    let _ = sys::close_from(3);
    loop {
        match waitpid(inner, None) {
            Ok(WaitStatus::Exited(_, code)) => return code,
            Err(Errno::EINTR) => {}
            Ok(_) | Err(_) => return INNER_LOST,
        }
    }
}

/// Enters the namespaces, strongest form first.
fn namespaces(setup: &SetupMessage) -> Result<(Ledger, Identity), InitError> {
    let mut ledger = Ledger::new(setup.best_effort);
    let own = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWIPC;
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    let mut identity =
        Identity { uid: setup.uid, gid: setup.gid, switch_user: uid.is_root(), privileged: true };
    let direct = unshare(own);
    if direct.is_ok() && uid.is_root() {
        ledger.enforced("namespaces", "pid, mount, network, uts and ipc, entered as root");
        return own_user(ledger, identity);
    }
    identity.switch_user = false;
    identity.uid = uid.as_raw();
    identity.gid = gid.as_raw();
    // As root without the right to make namespaces, a namespace of one user would make the agent
    // root on this machine for everything that is not covered by it.
    let entered = if uid.is_root() {
        Err(direct.err().unwrap_or(Errno::EPERM).into())
    } else {
        unshare(own | CloneFlags::CLONE_NEWUSER)
            .map_err(io::Error::from)
            .and_then(|()| map_one_user(uid, gid))
    };
    match entered {
        Ok(()) => {
            ledger.enforced(
                "namespaces",
                "pid, mount, network, uts and ipc, inside a user namespace of one user",
            );
            ledger.unavailable(
                "own_user",
                "only root can give the agent a user of its own: it runs as the user of the supervisor",
            );
        }
        Err(error) => {
            identity.switch_user = uid.is_root();
            identity.privileged = uid.is_root();
            if uid.is_root() {
                identity.uid = setup.uid;
                identity.gid = setup.gid;
            }
            ledger.missing(
                "namespaces",
                format!(
                    "{error}; run as root, allow unprivileged user namespaces, or accept less with OPENSHELL_BEST_EFFORT_FAILURES=1"
                ),
            )?;
            if uid.is_root() {
                return own_user(ledger, identity);
            }
        }
    }
    Ok((ledger, identity))
}

fn own_user(mut ledger: Ledger, identity: Identity) -> Result<(Ledger, Identity), InitError> {
    if identity.uid == 0 || identity.gid == 0 {
        ledger.missing(
            "own_user",
            "the agent's user is root; set POSTERN_AGENT_UID and POSTERN_AGENT_GID to an unused id",
        )?;
    } else {
        ledger.enforced("own_user", format!("uid {} gid {}", identity.uid, identity.gid));
    }
    Ok((ledger, identity))
}

/// Maps the caller's user and group to themselves, which is all that an unprivileged process may.
fn map_one_user(uid: Uid, gid: Gid) -> io::Result<()> {
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("{uid} {uid} 1\n"))?;
    std::fs::write("/proc/self/gid_map", format!("{gid} {gid} 1\n"))
}

fn inner(
    setup: &SetupMessage,
    socket: &OwnedFd,
    mut ledger: Ledger,
    identity: Identity,
) -> Result<(), InitError> {
    // The death of the outer process, and with it of the supervisor, is ours.
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(step("parent death signal"))?;
    let in_namespaces = nix::unistd::getpid().as_raw() == 1;
    if in_namespaces {
        tree::arrange(setup, identity, &mut ledger)?;
        ledger.record(
            "loopback_only_network",
            "lo is up; there is no other interface",
            sys::loopback_up(),
        )?;
        let hostname = nix::unistd::sethostname(&setup.hostname);
        ledger.record("own_hostname", setup.hostname.clone(), hostname)?;
    } else {
        // Without a PID namespace, orphans must come here to be reaped and killed.
        nix::sys::prctl::set_child_subreaper(true).map_err(step("child subreaper"))?;
        for name in ["file_tree", "loopback_only_network", "own_hostname"] {
            ledger.missing(name, "there are no namespaces to put it in")?;
        }
    }
    ledger.enforced("no_new_privileges", "no_new_privs and empty capability sets on every command");
    nix::sys::prctl::set_dumpable(false).map_err(step("dumpable"))?;
    nix::unistd::chdir("/").map_err(step("root directory"))?;

    let report = serde_json::to_string(&ledger.into_report())
        .map_err(|error| step("report")(io::Error::other(error)))?;
    let ready = Event { id: 0, outcome: Some(Outcome::Ready(report)) };
    wire::send(socket.as_fd(), &ready, &[]).map_err(step("report"))?;
    Init { socket, identity, commands: HashMap::new() }.serve().map_err(step("serving"))?;
    if !in_namespaces {
        shim::kill_descendants();
    }
    Ok(())
}

struct Command {
    id: u64,
    orders: OwnedFd,
}

struct Init<'a> {
    socket: &'a OwnedFd,
    identity: Identity,
    /// By the process id of the shim.
    commands: HashMap<Pid, Command>,
}

impl Init<'_> {
    /// Serves requests until the supervisor closes the socket.
    fn serve(&mut self) -> io::Result<()> {
        let mut watched = SigSet::empty();
        watched.add(Signal::SIGCHLD);
        sigprocmask(SigmaskHow::SIG_BLOCK, Some(&watched), None)?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&watched, flags)?;
        let mut buffer = vec![0; wire::PACKET_BUFFER];
        loop {
            let mut ready = [
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.socket.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut ready, PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
            let requested = ready[1].any().unwrap_or(false);
            while signals.read_signal()?.is_some() {}
            self.reap()?;
            if !requested {
                continue;
            }
            let Some((request, fds)) = wire::receive::<Request>(self.socket.as_fd(), &mut buffer)?
            else {
                return Ok(());
            };
            self.answer(request, fds)?;
        }
    }

    /// Collects ended processes and reports those that were commands.
    fn reap(&mut self) -> io::Result<()> {
        loop {
            let status = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
                Ok(status) => status,
            };
            let Some(command) = status.pid().and_then(|pid| self.commands.remove(&pid)) else {
                continue;
            };
            let outcome = match status {
                WaitStatus::Signaled(_, signal, _) => Outcome::Signaled(signal as i32),
                WaitStatus::Exited(_, code) => Outcome::Exited(code),
                _ => Outcome::Exited(255),
            };
            self.tell(command.id, outcome, &[])?;
        }
    }

    fn answer(&mut self, request: Request, fds: Vec<OwnedFd>) -> io::Result<()> {
        let id = request.id;
        match request.order {
            Some(Order::Spawn(spawn)) => match self.spawn(id, &spawn, fds) {
                Ok(Some(master)) => self.tell(id, Outcome::Done(true), &[master]),
                Ok(None) => self.tell(id, Outcome::Done(true), &[]),
                Err(error) => self.tell(id, Outcome::Failed(error.to_string()), &[]),
            },
            Some(Order::Socket(v6)) => match sys::tcp_socket(v6) {
                Ok(socket) => self.tell(id, Outcome::Done(true), &[socket]),
                Err(error) => self.tell(id, Outcome::Failed(error.to_string()), &[]),
            },
            Some(Order::Signal(signal)) => {
                self.order(id, u8::try_from(signal).unwrap_or(shim::KILL_TREE));
                Ok(())
            }
            Some(Order::KillTree(_)) => {
                self.order(id, shim::KILL_TREE);
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn tell(&self, id: u64, outcome: Outcome, fds: &[OwnedFd]) -> io::Result<()> {
        let event = Event { id, outcome: Some(outcome) };
        let fds: Vec<_> = fds.iter().map(|fd| fd.as_fd()).collect();
        wire::send(self.socket.as_fd(), &event, &fds)
    }

    /// Passes an order to a command's shim; a command that just ended needs none.
    fn order(&self, id: u64, order: u8) {
        if let Some(command) = self.commands.values().find(|command| command.id == id) {
            let _ = nix::unistd::write(&command.orders, &[order]);
        }
    }

    /// Starts a command; the terminal's other end when it has one.
    fn spawn(
        &mut self,
        id: u64,
        spawn: &SpawnMessage,
        fds: Vec<OwnedFd>,
    ) -> io::Result<Option<OwnedFd>> {
        if self.commands.len() >= MAX_COMMANDS {
            return Err(io::Error::other(format!(
                "the sandbox already runs {MAX_COMMANDS} commands; end one first"
            )));
        }
        let (streams, master) = match &spawn.terminal {
            Some(terminal) => {
                let (master, slave) = self.open_terminal(terminal)?;
                (Streams::Terminal(slave), Some(master))
            }
            None => (Streams::Pipes(self.own_streams(fds)?), None),
        };
        let (orders_reader, orders) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
        match sys::fork()? {
            Fork::Parent(shim) => {
                self.commands.insert(shim, Command { id, orders });
                Ok(master)
            }
            Fork::Child => {
                drop(master);
                become_shim(spawn, streams, orders_reader, self.identity)
            }
        }
    }

    /// Gives the pipes to the agent's user, so that it may open `/dev/stdout` by name.
    fn own_streams(&self, fds: Vec<OwnedFd>) -> io::Result<[OwnedFd; 3]> {
        let streams: [OwnedFd; 3] = fds.try_into().map_err(|fds: Vec<OwnedFd>| {
            io::Error::other(format!("a command needs 3 streams, got {}", fds.len()))
        })?;
        if self.identity.switch_user {
            for stream in &streams {
                let uid = Uid::from_raw(self.identity.uid);
                nix::unistd::fchown(stream, Some(uid), None)?;
            }
        }
        Ok(streams)
    }

    fn open_terminal(&self, message: &TerminalMessage) -> io::Result<(OwnedFd, OwnedFd)> {
        use nix::fcntl::OFlag;
        let master = nix::pty::posix_openpt(OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC)?;
        nix::pty::unlockpt(&master)?;
        let name = nix::pty::ptsname_r(&master)?;
        let slave: OwnedFd = {
            use std::os::unix::fs::OpenOptionsExt as _;
            File::options()
                .read(true)
                .write(true)
                .custom_flags(OFlag::O_NOCTTY.bits())
                .open(&name)?
                .into()
        };
        if self.identity.switch_user {
            let (uid, gid) = (self.identity.uid, self.identity.gid);
            nix::unistd::fchown(&slave, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
        }
        nix::sys::stat::fchmod(&slave, nix::sys::stat::Mode::from_bits_truncate(0o620))?;
        if let Some(size) = message.size {
            sys::set_window_size(slave.as_fd(), &terminal::window_size(size))?;
        }
        terminal::apply_modes(&slave, &message.modes)?;
        Ok((master.as_fd().try_clone_to_owned()?, slave))
    }
}

/// Turns the calling forked process into the shim, and its child into the command.
fn become_shim(spawn: &SpawnMessage, streams: Streams, orders: OwnedFd, identity: Identity) -> ! {
    /// Where the orders are read once everything else is closed.
    const ORDERS_FD: i32 = 3;
    let subreaper = nix::sys::prctl::set_child_subreaper(true);
    let command = match (subreaper, sys::fork()) {
        (Ok(()), Ok(Fork::Child)) => child::become_command(spawn, &streams, identity),
        (Ok(()), Ok(Fork::Parent(command))) => command,
        _ => sys::exit_now(255),
    };
    // A copy of the streams here would keep the other end from ever seeing their end.
    drop(streams);
    let Ok(orders) = sys::keep_only(orders, ORDERS_FD) else { sys::exit_now(255) };
    let _ = nix::sys::prctl::set_name(c"postern-shim");
    shim::run(command, orders)
}
