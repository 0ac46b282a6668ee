//! The file tree that the agent sees: the machine's, minus what is none of its business.
//!
//! Private are `/proc`, `/sys`, `/dev`, `/run`, `/home`, `/tmp` and `/var/tmp`; the state directory
//! of the gateway and every other path named by the setup are covered. The agent's home directory
//! and its `/tmp` are those of the sandbox's state directory, so that they outlive a restart.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::unistd::{Gid, Uid, chown};

use super::child::Identity;
use super::report::{Ledger, NotEnforced};
use super::wire::SetupMessage;
use crate::environment::{AGENT_HOME, AGENT_NAME};

/// Flags of every file system that holds data only.
const DATA: MsFlags = MsFlags::MS_NOSUID.union(MsFlags::MS_NODEV);

/// Device nodes that ordinary programs need; all are harmless in any hands.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// Arranges the tree in the caller's new mount namespace.
pub(crate) fn arrange(
    setup: &SetupMessage,
    identity: Identity,
    ledger: &mut Ledger,
) -> Result<(), NotEnforced> {
    let private = mount_at("/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None);
    ledger.record("private_mounts", "no mount propagates in or out", private)?;
    let proc = mount_at("/proc", Some("proc"), DATA | MsFlags::MS_NOEXEC, None);
    ledger.record("own_proc", "shows the sandbox's processes only", proc)?;
    let sys = DATA | MsFlags::MS_NOEXEC | MsFlags::MS_RDONLY;
    let sys = mount_at("/sys", Some("sysfs"), sys, None);
    ledger.record("own_sys", "read-only, of the sandbox's network namespace", sys)?;
    ledger.record("own_dev", "null, zero, full, random, urandom, tty, pts, shm", devices())?;

    // Opened before anything covers them.
    let sources = Sources::open(setup);
    ledger.record("private_run", "empty", tmpfs("/run", "mode=755,size=64m"))?;
    let files = sources.and_then(|sources| private_files(&sources, identity));
    ledger.record("private_files", "home, /tmp and /var/tmp of this sandbox only", files)?;
    for path in &setup.masked {
        let path = Path::new(OsStr::from_bytes(path));
        // What is already covered by something above needs no cover of its own.
        if path.is_dir() && path != Path::new(AGENT_HOME) {
            let covered = tmpfs(path, "mode=555,size=4k");
            ledger.record("masked_path", path.display().to_string(), covered)?;
        }
    }
    let named = accounts(identity);
    ledger.record("own_account", format!("{AGENT_NAME} in /etc/passwd"), named)
}

/// The sandbox's directories, held open while the places where they lie are being covered.
struct Sources {
    home: Option<File>,
    temporary: Option<File>,
}

impl Sources {
    fn open(setup: &SetupMessage) -> io::Result<Self> {
        if setup.sandbox_dir.is_empty() {
            return Ok(Self { home: None, temporary: None });
        }
        let directory = PathBuf::from(OsStr::from_bytes(&setup.sandbox_dir));
        Ok(Self {
            home: Some(handle(&directory.join("home"))?),
            temporary: Some(handle(&directory.join("tmp"))?),
        })
    }
}

/// A handle on a directory or node that is good for binding it elsewhere, and for nothing else.
fn handle(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_NOFOLLOW)
        .open(path)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

fn private_files(sources: &Sources, identity: Identity) -> io::Result<()> {
    for place in ["/tmp", "/var/tmp"] {
        match &sources.temporary {
            Some(directory) => bind(directory, Path::new(place), DATA)?,
            None => tmpfs(place, "mode=1777")?,
        }
    }
    tmpfs("/home", "mode=755,size=64m")?;
    let home = Path::new(AGENT_HOME);
    fs::create_dir(home)?;
    match &sources.home {
        Some(directory) => bind(directory, home, DATA),
        None if identity.switch_user => {
            let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
            Ok(chown(home, Some(uid), Some(gid))?)
        }
        None => Ok(()),
    }
}

/// A `/dev` with nothing in it that reaches hardware, and terminals of its own.
fn devices() -> io::Result<()> {
    let nodes = DEVICES
        .iter()
        .map(|name| Ok((*name, handle(&Path::new("/dev").join(name))?)))
        .collect::<io::Result<Vec<_>>>()?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount_at("/dev", Some("tmpfs"), flags, Some("mode=755,size=64k"))?;
    for (name, node) in &nodes {
        let place = Path::new("/dev").join(name);
        File::create(&place)?;
        bind(node, &place, MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC)?;
    }
    fs::create_dir("/dev/pts")?;
    let terminals = "newinstance,ptmxmode=0666,mode=620";
    mount_at("/dev/pts", Some("devpts"), flags, Some(terminals))?;
    symlink("pts/ptmx", "/dev/ptmx")?;
    fs::create_dir("/dev/shm")?;
    tmpfs("/dev/shm", "mode=1777")?;
    for (name, target) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, Path::new("/dev").join(name))?;
    }
    Ok(())
}

/// Gives the agent's user a name, which shells, `ssh` and `git` ask for.
fn accounts(identity: Identity) -> io::Result<()> {
    let (uid, gid) = (identity.uid, identity.gid);
    let shell = crate::environment::login_shell();
    let passwd = format!("{AGENT_NAME}:x:{uid}:{gid}:Sandbox:{AGENT_HOME}:{shell}\n");
    let group = format!("{AGENT_NAME}:x:{gid}:\n");
    for (name, own_entry, id) in [("passwd", passwd, uid), ("group", group, gid)] {
        let place = Path::new("/etc").join(name);
        let known = fs::read_to_string(&place).unwrap_or_default();
        // The first entry of an id or a name is the one that counts.
        let others: String = known
            .lines()
            .filter(|line| !is_entry_of(line, id))
            .flat_map(|line| [line, "\n"])
            .collect();
        let staged = Path::new("/run").join(name);
        fs::write(&staged, own_entry + &others)?;
        fs::set_permissions(&staged, fs::Permissions::from_mode(0o644))?;
        if place.exists() {
            bind(&handle(&staged)?, &place, DATA | MsFlags::MS_RDONLY)?;
        }
        fs::remove_file(&staged)?;
    }
    Ok(())
}

/// Whether a line of passwd(5) or group(5) has the agent's name or id.
fn is_entry_of(line: &str, id: u32) -> bool {
    let mut fields = line.split(':');
    fields.next() == Some(AGENT_NAME) || fields.nth(1) == Some(id.to_string().as_str())
}

fn tmpfs(place: impl AsRef<Path>, options: &str) -> io::Result<()> {
    mount_at(place, Some("tmpfs"), DATA, Some(options))
}

/// Binds what `source` holds open to `place`, then applies `flags`, which a bind mount takes only
/// in a second step.
fn bind(source: &File, place: &Path, flags: MsFlags) -> io::Result<()> {
    let from = format!("/proc/self/fd/{}", source.as_raw_fd());
    let none = None::<&str>;
    let at = |errno: nix::errno::Errno| explain(place, errno);
    mount(Some(from.as_str()), place, none, MsFlags::MS_BIND, none).map_err(at)?;
    // Inside a user namespace the flags that the machine set may not be taken away.
    let again = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | flags | flags_of(place)?;
    mount(none, place, none, again, none).map_err(at)
}

fn flags_of(place: &Path) -> io::Result<MsFlags> {
    use nix::sys::statvfs::{FsFlags, statvfs};
    let set = statvfs(place).map_err(|errno| explain(place, errno))?.flags();
    let pairs = [
        (FsFlags::ST_RDONLY, MsFlags::MS_RDONLY),
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ];
    Ok(pairs
        .into_iter()
        .filter(|(flag, _)| set.contains(*flag))
        .fold(MsFlags::empty(), |all, (_, flag)| all | flag))
}

fn mount_at(
    place: impl AsRef<Path>,
    kind: Option<&str>,
    flags: MsFlags,
    options: Option<&str>,
) -> io::Result<()> {
    let place = place.as_ref();
    mount(kind, place, kind, flags, options).map_err(|errno| explain(place, errno))
}

fn explain(place: &Path, errno: nix::errno::Errno) -> io::Error {
    let error = io::Error::from(errno);
    io::Error::new(error.kind(), format!("mounting {}: {error}", place.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn account_entries_are_recognised_by_name_and_by_id() {
        assert!(is_entry_of("sandbox:x:9:9::/:/bin/sh", 1000));
        assert!(is_entry_of("me:x:1000:1000::/:/bin/sh", 1000));
        assert!(!is_entry_of("me:x:10001:1000::/:/bin/sh", 1000));
        assert!(!is_entry_of("", 1000));
    }
}
