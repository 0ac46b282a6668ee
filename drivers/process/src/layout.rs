//! The state directory: where everything of a sandbox lies, made so that nobody else can get at it.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use postern_driver_core::{DriverError, check_sandbox_id};
use rustix::fs::{FlockOperation, OFlags, flock};

use crate::OpenError;
use crate::error::{Context as _, Failure};

/// Longest path of a Unix socket in bytes: 108 with the closing zero byte (unix(7)).
const SOCKET_PATH_BYTES: usize = 107;

/// Largest of the files that the driver reads whole. Specs are bounded by what fits into the
/// supervisor's environment, tokens are a few KiB.
const LARGEST_FILE: u64 = 1024 * 1024;

/// Prefix of directories that are not sandboxes yet. Ids cannot begin with a dot.
const MAKING: &str = ".new-";
/// Prefix of directories that are not sandboxes any more.
const GONE: &str = ".gone-";

/// Directory and file modes: nobody but the owner.
const PRIVATE_DIR: u32 = 0o700;
const PRIVATE_FILE: u32 = 0o600;

/// Where sockets go when the state directory's path is too long and nothing else is said.
const ROOT_SOCKET_DIR: &str = "/run/postern";

/// A state directory.
#[derive(Debug)]
pub(crate) struct StateDir {
    root: PathBuf,
    sandboxes: PathBuf,
    socket_dir: Option<PathBuf>,
    /// Makes the names of removed directories unique within this process.
    removed: AtomicU64,
}

/// Shows that this process is the one driver of a state directory; ends when dropped.
#[derive(Debug)]
pub(crate) struct DriverLock {
    _file: File,
}

/// The directory of one sandbox.
#[derive(Debug, Clone)]
pub(crate) struct SandboxDir {
    path: PathBuf,
    /// The supervisor's SSH socket; usually in `run/`.
    socket: PathBuf,
}

// === impl StateDir ===

impl StateDir {
    /// Makes the directory if it is absent and refuses one that others could tamper with.
    pub(crate) fn open(root: &Path, socket_dir: Option<&Path>) -> Result<Self, OpenError> {
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::Io { action, path, source }
        };
        if let Some(parent) = root.parent() {
            fs::create_dir_all(parent).map_err(io("make", parent))?;
        }
        let sandboxes = root.join("sandboxes");
        for path in [root, &sandboxes] {
            match make_private_dir(path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(io("make", path)(error)),
            }
            check_own_dir(path)?;
            fs::set_permissions(path, Permissions::from_mode(PRIVATE_DIR))
                .map_err(io("close to others", path))?;
        }
        let socket_dir = socket_dir
            .map(Path::to_owned)
            .or_else(|| rustix::process::geteuid().is_root().then(|| ROOT_SOCKET_DIR.into()));
        Ok(Self { root: root.to_owned(), sandboxes, socket_dir, removed: AtomicU64::new(0) })
    }

    /// Becomes the one driver of this directory, or `None` while there is another.
    pub(crate) fn lock(&self) -> Result<Option<DriverLock>, OpenError> {
        let path = self.root.join("driver.lock");
        let open = || {
            let file = private_file().write(true).create(true).open(&path)?;
            Ok(try_flock(&file)?.then_some(DriverLock { _file: file }))
        };
        open().map_err(|source| OpenError::Io { action: "lock", path: path.clone(), source })
    }

    /// Where the state lies.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Removes what an earlier driver left half made or half removed.
    pub(crate) fn remove_leftovers(&self) -> io::Result<()> {
        for entry in fs::read_dir(&self.sandboxes)? {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.as_bytes();
            if name.starts_with(MAKING.as_bytes()) || name.starts_with(GONE.as_bytes()) {
                tracing::info!(path = %entry.path().display(), "removing what an earlier run left");
                if let Err(error) = remove_tree(&entry.path()) {
                    tracing::warn!(path = %entry.path().display(), %error, "could not remove it");
                }
            }
        }
        Ok(())
    }

    /// The ids of the sandboxes there are. Anything that is no directory of ours is named in the
    /// log and left alone.
    pub(crate) fn ids(&self) -> io::Result<Vec<String>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.sandboxes)? {
            let entry = entry?;
            let name = entry.file_name();
            let id = name
                .to_str()
                .filter(|id| check_sandbox_id(id).is_ok())
                .filter(|_| check_own_dir(&entry.path()).is_ok());
            match id {
                Some(id) => ids.push(id.to_owned()),
                None if name.as_bytes().starts_with(GONE.as_bytes()) => {}
                None => {
                    tracing::warn!(path = %entry.path().display(), "not a sandbox; left alone");
                }
            }
        }
        Ok(ids)
    }

    /// Where a sandbox lies or would lie.
    ///
    /// # Errors
    /// `FailedPrecondition` when its socket could have no path.
    pub(crate) fn sandbox(&self, id: &str) -> Result<SandboxDir, DriverError> {
        let path = self.sandboxes.join(id);
        let mut socket = path.join("run/ssh.sock");
        let length = socket.as_os_str().len();
        if length > SOCKET_PATH_BYTES
            && let Some(base) = &self.socket_dir
        {
            let hash = fnv(path.as_os_str().as_bytes());
            socket = base.join(format!("{hash:016x}/ssh.sock"));
        }
        if socket.as_os_str().len() > SOCKET_PATH_BYTES {
            return Err(DriverError::FailedPrecondition {
                id: id.to_owned(),
                problem: format!(
                    "its socket would have a path of {length} bytes, at most {SOCKET_PATH_BYTES} work"
                ),
                next: "choose a shorter state_dir, or set socket_dir to a short directory",
            });
        }
        Ok(SandboxDir { path, socket })
    }

    /// Makes the directories of a sandbox under a name that no driver takes for one. `agent` owns
    /// what the agent writes to.
    pub(crate) fn make(&self, id: &str, agent: Option<(u32, u32)>) -> Result<SandboxDir, Failure> {
        let path = self.sandboxes.join(format!("{MAKING}{id}"));
        if path.symlink_metadata().is_ok() {
            remove_tree(&path).context("remove what an earlier attempt left")?;
        }
        make_private_dir(&path).context("make the sandbox's directory")?;
        let made = SandboxDir { socket: path.join("run/ssh.sock"), path };
        for dir in [made.run(), made.log_dir(), made.home(), made.tmp()] {
            make_private_dir(&dir).context("make the sandbox's directories")?;
        }
        if let Some((uid, gid)) = agent {
            for dir in [made.home(), made.tmp()] {
                chown(&dir, Some(uid), Some(gid)).context("give the agent its home directory")?;
            }
        }
        private_file()
            .write(true)
            .create_new(true)
            .open(made.lock())
            .context("make supervisor.lock")?;
        Ok(made)
    }

    /// Makes a finished directory the sandbox `id`.
    ///
    /// # Errors
    /// `AlreadyExists` when there is a directory of that name, whatever is in it.
    pub(crate) fn publish(&self, made: &SandboxDir, id: &str) -> io::Result<()> {
        let target = self.sandboxes.join(id);
        rustix::fs::renameat_with(
            rustix::fs::CWD,
            &made.path,
            rustix::fs::CWD,
            &target,
            rustix::fs::RenameFlags::NOREPLACE,
        )?;
        File::open(&self.sandboxes)?.sync_all()
    }

    /// Takes a sandbox out of sight in one step and says where its remains are.
    pub(crate) fn withdraw(&self, dir: &SandboxDir) -> io::Result<PathBuf> {
        let number = self.removed.fetch_add(1, Ordering::Relaxed);
        let pid = std::process::id();
        let mut name = std::ffi::OsString::from(format!("{GONE}{pid}-{number}-"));
        name.push(dir.path.file_name().unwrap_or_default());
        // A name of 255 bytes is the most a file system takes; ids have at most 128.
        let remains = self.sandboxes.join(name);
        fs::rename(&dir.path, &remains)?;
        Ok(remains)
    }
}

// === impl SandboxDir ===

impl SandboxDir {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }
    pub(crate) fn spec(&self) -> PathBuf {
        self.path.join("spec.pb")
    }
    pub(crate) fn agent(&self) -> PathBuf {
        self.path.join("agent")
    }
    pub(crate) fn token(&self) -> PathBuf {
        self.path.join("token")
    }
    pub(crate) fn pid(&self) -> PathBuf {
        self.path.join("pid")
    }
    pub(crate) fn stopped(&self) -> PathBuf {
        self.path.join("stopped")
    }
    pub(crate) fn ended(&self) -> PathBuf {
        self.path.join("ended")
    }
    pub(crate) fn main_process_exited(&self) -> PathBuf {
        self.path.join("main-process-exited")
    }
    pub(crate) fn lock(&self) -> PathBuf {
        self.path.join("supervisor.lock")
    }
    pub(crate) fn home(&self) -> PathBuf {
        self.path.join("home")
    }
    pub(crate) fn tmp(&self) -> PathBuf {
        self.path.join("tmp")
    }
    pub(crate) fn run(&self) -> PathBuf {
        self.path.join("run")
    }
    pub(crate) fn log_dir(&self) -> PathBuf {
        self.path.join("log")
    }
    pub(crate) fn log(&self) -> PathBuf {
        self.log_dir().join("supervisor.log")
    }

    /// Checks, before every start, that the directories are still directories, and makes the
    /// socket's own one if it lies elsewhere.
    pub(crate) fn check(&self) -> io::Result<()> {
        for dir in [self.path.clone(), self.run(), self.log_dir(), self.home(), self.tmp()] {
            if !dir.symlink_metadata()?.is_dir() {
                return Err(not_ours(&dir, "is no directory"));
            }
        }
        let socket_dir = self.socket.parent().unwrap_or(&self.path);
        if !socket_dir.starts_with(&self.path) {
            if let Some(base) = socket_dir.parent() {
                fs::create_dir_all(base)?;
            }
            match make_private_dir(socket_dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => check_own_dir(socket_dir).map_err(io::Error::other)?,
            }
        }
        Ok(())
    }

    /// Whether a supervisor holds its lock.
    pub(crate) fn is_locked(&self) -> io::Result<bool> {
        let file = private_file().write(true).create(true).open(self.lock())?;
        Ok(!try_flock(&file)?)
    }

    /// Removes the socket's directory if it lies elsewhere. Failure leaves an empty directory.
    pub(crate) fn remove_socket_dir(&self) {
        if let Some(dir) = self.socket.parent().filter(|d| !d.starts_with(&self.path)) {
            let _ = fs::remove_file(&self.socket);
            let _ = fs::remove_dir(dir);
        }
    }
}

/// Options of a file that only its owner may open and that is never reached through a symlink.
pub(crate) fn private_file() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(PRIVATE_FILE).custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    options
}

/// Replaces a private file in one step. The bytes are on disk before the name is.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let draft = path.with_file_name(name);
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = private_file().write(true).create_new(true).open(&draft)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&draft, path)
}

/// Reads a private file whole, up to a bound. `None` when there is none.
pub(crate) fn read_private(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match private_file().read(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    if !file.metadata()?.is_file() {
        return Err(not_ours(path, "is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(not_ours(path, "is larger than 1 MiB"));
    }
    Ok(Some(bytes))
}

/// Removes a file that may be absent.
pub(crate) fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Removes a directory with all that is in it, following no symlink. Directories without write
/// permission (as package caches have) are opened first when their owner is not root.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_dirs(path)?;
            fs::remove_dir_all(path)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn open_dirs(path: &Path) -> io::Result<()> {
    let mut waiting = vec![path.to_owned()];
    while let Some(dir) = waiting.pop() {
        fs::set_permissions(&dir, Permissions::from_mode(PRIVATE_DIR))?;
        for entry in fs::read_dir(&dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                waiting.push(entry.path());
            }
        }
    }
    Ok(())
}

fn make_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().mode(PRIVATE_DIR).create(path)
}

/// Refuses a path that is not a directory of our own.
fn check_own_dir(path: &Path) -> Result<(), OpenError> {
    let unsafe_dir = |problem: String| OpenError::Unsafe { path: path.to_owned(), problem };
    let metadata = path.symlink_metadata().map_err(|source| OpenError::Io {
        action: "look at",
        path: path.to_owned(),
        source,
    })?;
    if metadata.is_symlink() {
        return Err(unsafe_dir("is a symlink; give the directory itself".to_owned()));
    }
    if !metadata.is_dir() {
        return Err(unsafe_dir("is no directory; move it away".to_owned()));
    }
    let (owner, own) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != own {
        return Err(unsafe_dir(format!(
            "belongs to uid {owner}, not to uid {own} that runs the gateway; change its owner"
        )));
    }
    Ok(())
}

fn not_ours(path: &Path, problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{} {problem}", path.display()))
}

/// Whether the lock could be taken now. It ends when the file is closed.
fn try_flock(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// FNV-1a, 64 bit: short, stable across versions, and collisions only cost a name.
pub(crate) fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests;
