//! The last steps before a command runs, in the forked child: terminal or pipes, identity, limits.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, SigmaskHow, Signal, sigprocmask};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{Gid, Uid};

use super::wire::SpawnMessage;
use crate::{sftp, sys};

/// What a shell answers when a command cannot be executed.
const NOT_EXECUTABLE: i32 = 126;
/// What a shell answers when a command cannot be found.
const NOT_FOUND: i32 = 127;

/// Who the agent is, and which privileges the init itself has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Identity {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Whether the init may change user: it is root and not inside a one-user namespace.
    pub(crate) switch_user: bool,
    /// Whether the init holds capabilities that the child must lose.
    pub(crate) privileged: bool,
}

/// The streams of a command.
pub(crate) enum Streams {
    /// Standard input, output and error.
    Pipes([OwnedFd; 3]),
    /// The terminal that is all three.
    Terminal(OwnedFd),
}

/// Turns the calling forked process into the command. Never returns.
pub(crate) fn become_command(spawn: &SpawnMessage, streams: &Streams, identity: Identity) -> ! {
    let code = match prepare(spawn, streams, identity) {
        Ok(()) if spawn.argv.is_empty() => sftp::serve_standard_streams(),
        Ok(()) => execute(spawn),
        Err((step, error)) => {
            complain(&format!("{step}: {error}"));
            NOT_EXECUTABLE
        }
    };
    sys::exit_now(code)
}

type Step = (&'static str, io::Error);

fn prepare(spawn: &SpawnMessage, streams: &Streams, identity: Identity) -> Result<(), Step> {
    let at = |step: &'static str| move |error: io::Error| (step, error);
    nix::unistd::setsid().map_err(|errno| ("setsid", errno.into()))?;
    connect_streams(streams).map_err(at("standard streams"))?;
    sys::close_from(3).map_err(at("closing descriptors"))?;
    default_signals().map_err(at("signals"))?;
    umask(Mode::from_bits_truncate(0o022));
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|errno| ("core limit", errno.into()))?;
    drop_privileges(identity).map_err(at("identity"))?;
    enter_directory(&spawn.directory).map_err(at("working directory"))
}

fn connect_streams(streams: &Streams) -> io::Result<()> {
    match streams {
        Streams::Pipes([input, output, error]) => {
            nix::unistd::dup2_stdin(input)?;
            nix::unistd::dup2_stdout(output)?;
            nix::unistd::dup2_stderr(error)?;
        }
        Streams::Terminal(terminal) => {
            sys::set_controlling_terminal(terminal.as_fd())?;
            nix::unistd::dup2_stdin(terminal)?;
            nix::unistd::dup2_stdout(terminal)?;
            nix::unistd::dup2_stderr(terminal)?;
        }
    }
    Ok(())
}

/// A command starts with nothing blocked and nothing ignored, whatever its ancestors did.
pub(crate) fn default_signals() -> io::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator() {
        if !matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
            sys::set_signal_action(signal, &default)?;
        }
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?;
    Ok(())
}

fn drop_privileges(identity: Identity) -> io::Result<()> {
    if identity.privileged {
        sys::clear_bounding_set()?;
    }
    if identity.switch_user {
        let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
        nix::unistd::setgroups(&[])?;
        nix::unistd::setresgid(gid, gid, gid)?;
        nix::unistd::setresuid(uid, uid, uid)?;
        let now = nix::unistd::getresuid()?;
        if (now.real, now.effective, now.saved) != (uid, uid, uid)
            || (!uid.is_root() && nix::unistd::setuid(Uid::from_raw(0)).is_ok())
        {
            return Err(io::Error::other("the change of user did not hold"));
        }
    }
    if identity.privileged {
        sys::drop_capabilities()?;
    }
    nix::sys::prctl::set_no_new_privs()?;
    Ok(())
}

fn enter_directory(directory: &[u8]) -> io::Result<()> {
    if directory.is_empty() {
        return Ok(());
    }
    let directory = Path::new(OsStr::from_bytes(directory));
    nix::unistd::chdir(directory).map_err(|errno| {
        io::Error::new(
            io::Error::from(errno).kind(),
            format!("{}: {}", directory.display(), errno.desc()),
        )
    })
}

fn execute(spawn: &SpawnMessage) -> i32 {
    let strings = |list: &[Vec<u8>]| -> Result<Vec<CString>, std::ffi::NulError> {
        list.iter().map(|item| CString::new(item.as_slice())).collect()
    };
    let (Ok(argv), Ok(environment)) = (strings(&spawn.argv), strings(&spawn.environment)) else {
        complain("an argument or a variable contains a NUL byte");
        return NOT_EXECUTABLE;
    };
    let Some(name) = spawn.argv.first() else {
        return NOT_EXECUTABLE;
    };
    let mut last = nix::errno::Errno::ENOENT;
    for candidate in candidates(OsStr::from_bytes(name), &spawn.environment) {
        let Ok(path) = CString::new(candidate.as_os_str().as_bytes()) else {
            continue;
        };
        let Err(errno) = nix::unistd::execve(&path, &argv, &environment);
        // A directory on the path may be missing or closed to us; the next may have it.
        if errno != nix::errno::Errno::ENOENT && errno != nix::errno::Errno::ENOTDIR {
            last = errno;
        }
    }
    complain(&format!("{}: {}", String::from_utf8_lossy(name), last.desc()));
    if last == nix::errno::Errno::ENOENT { NOT_FOUND } else { NOT_EXECUTABLE }
}

/// Where a command may be, by the `PATH` it will itself see.
fn candidates(name: &OsStr, environment: &[Vec<u8>]) -> Vec<PathBuf> {
    if name.as_bytes().contains(&b'/') {
        return vec![PathBuf::from(name)];
    }
    let path = environment
        .iter()
        .find_map(|variable| variable.strip_prefix(b"PATH="))
        .unwrap_or(crate::environment::DEFAULT_PATH.as_bytes());
    std::env::split_paths(OsStr::from_bytes(path)).map(|directory| directory.join(name)).collect()
}

/// Says on standard error, which belongs to whoever asked for the command, why it does not run.
fn complain(text: &str) {
    use std::io::Write as _;
    // Nothing is left to tell anybody when standard error is closed.
    let _ = writeln!(io::stderr(), "postern: cannot start the command: {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_for_on_the_path_of_the_command() {
        let environment = vec![b"HOME=/h".to_vec(), b"PATH=/a:/b".to_vec()];
        assert_eq!(
            candidates(OsStr::new("ls"), &environment),
            [PathBuf::from("/a/ls"), PathBuf::from("/b/ls")]
        );
        assert_eq!(candidates(OsStr::new("./ls"), &environment), [PathBuf::from("./ls")]);
    }
}
