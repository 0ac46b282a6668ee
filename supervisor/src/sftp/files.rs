//! The file operations behind each request.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, ReadDir};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{
    DirBuilderExt as _, FileExt as _, OpenOptionsExt as _, PermissionsExt as _,
};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmodat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid};

use super::listing::Entry;
use super::wire::{self, Attributes, Fields, Refused, Reply};
use super::{MAX_PACKET, MAX_TRANSFER};

/// Most files and directories that one client may have open; `sftp` and `scp` use one or two,
/// `sshfs` some dozens.
const MAX_HANDLES: usize = 512;

/// Entries per READDIR reply: some 20 KiB, well inside a packet even with names of 255 bytes.
const ENTRIES_PER_REPLY: usize = 128;

const READ: u32 = 1;
const WRITE: u32 = 2;
const APPEND: u32 = 4;
const CREATE: u32 = 8;
const TRUNCATE: u32 = 16;
const EXCLUSIVE: u32 = 32;

/// What one client has open.
#[derive(Default)]
pub(super) struct Files {
    open: HashMap<u32, Open>,
    next: u32,
}

enum Open {
    File { file: File, append: bool },
    Directory { path: PathBuf, entries: ReadDir, begun: bool },
}

type Answer = Result<Vec<u8>, Refused>;

impl Files {
    /// Does what one request asks for.
    pub(super) fn handle(&mut self, kind: u8, id: u32, fields: &mut Fields<'_>) -> Answer {
        match kind {
            wire::OPEN => self.open(id, fields),
            wire::CLOSE => {
                let handle = handle(fields)?;
                self.open.remove(&handle).ok_or_else(unknown_handle)?;
                Ok(Reply::ok(id))
            }
            wire::READ => self.read(id, fields),
            wire::WRITE => self.write(id, fields),
            wire::OPENDIR => self.open_directory(id, fields),
            wire::READDIR => self.read_directory(id, fields),
            wire::FSTAT => {
                let file = self.file(fields)?;
                Ok(Reply::attributes(id, &file.metadata()?))
            }
            wire::FSETSTAT => {
                let file = self.file(fields)?;
                // The kernel's own name for an open file lets one function serve paths and handles.
                let path = PathBuf::from(format!(
                    "/proc/self/fd/{}",
                    std::os::fd::AsRawFd::as_raw_fd(file)
                ));
                apply(&path, &fields.attributes()?, true)?;
                Ok(Reply::ok(id))
            }
            wire::EXTENDED => self.extended(id, fields),
            _ => by_path(kind, id, fields),
        }
    }

    fn insert(&mut self, open: Open) -> Result<u32, Refused> {
        if self.open.len() >= MAX_HANDLES {
            let text = format!("more than {MAX_HANDLES} files are open; close one first");
            return Err(Refused::new(wire::FAILURE, &text));
        }
        self.next = self.next.wrapping_add(1);
        while self.open.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        self.open.insert(self.next, open);
        Ok(self.next)
    }

    fn file(&self, fields: &mut Fields<'_>) -> Result<&File, Refused> {
        match self.open.get(&handle(fields)?) {
            Some(Open::File { file, .. }) => Ok(file),
            _ => Err(unknown_handle()),
        }
    }

    fn open(&mut self, id: u32, fields: &mut Fields<'_>) -> Answer {
        let path = fields.path()?;
        let flags = fields.u32()?;
        let attributes = fields.attributes()?;
        let has = |flag| flags & flag != 0;
        let file = OpenOptions::new()
            .read(has(READ))
            .write(has(WRITE))
            .append(has(APPEND))
            .create(has(CREATE))
            .truncate(has(TRUNCATE) && !has(APPEND))
            .create_new(has(CREATE) && has(EXCLUSIVE))
            .mode(attributes.mode.unwrap_or(0o666))
            .custom_flags(libc::O_NOCTTY)
            .open(path)?;
        let open = Open::File { file, append: has(APPEND) };
        Ok(Reply::handle(id, self.insert(open)?))
    }

    fn read(&self, id: u32, fields: &mut Fields<'_>) -> Answer {
        let file = self.file(fields)?;
        let offset = fields.u64()?;
        let most = (fields.u32()? as usize).min(MAX_TRANSFER);
        Reply::data(id, most, |buffer| file.read_at(buffer, offset))
    }

    fn write(&mut self, id: u32, fields: &mut Fields<'_>) -> Answer {
        let handle = handle(fields)?;
        let offset = fields.u64()?;
        let data = fields.bytes()?;
        match self.open.get_mut(&handle) {
            // Linux appends on a positioned write too, but only says so in its manual.
            Some(Open::File { file, append: true }) => std::io::Write::write_all(file, data)?,
            Some(Open::File { file, .. }) => file.write_all_at(data, offset)?,
            _ => return Err(unknown_handle()),
        }
        Ok(Reply::ok(id))
    }

    fn open_directory(&mut self, id: u32, fields: &mut Fields<'_>) -> Answer {
        let path = fields.path()?;
        let open = Open::Directory { entries: fs::read_dir(&path)?, path, begun: false };
        Ok(Reply::handle(id, self.insert(open)?))
    }

    fn read_directory(&mut self, id: u32, fields: &mut Fields<'_>) -> Answer {
        let Some(Open::Directory { path, entries, begun }) = self.open.get_mut(&handle(fields)?)
        else {
            return Err(unknown_handle());
        };
        let mut listed = Vec::with_capacity(ENTRIES_PER_REPLY);
        if !*begun {
            *begun = true;
            // The standard library leaves these two out; clients show them.
            for name in [".", ".."] {
                let metadata = fs::symlink_metadata(path.join(name)).ok();
                listed.push(Entry::new(name.into(), metadata));
            }
        }
        for entry in entries.by_ref().take(ENTRIES_PER_REPLY - listed.len()) {
            listed.push(Entry::read(&entry?));
        }
        if listed.is_empty() {
            return Err(Refused::new(wire::END_OF_FILE, "end of directory"));
        }
        Ok(Reply::names(id, &listed))
    }

    fn extended(&mut self, id: u32, fields: &mut Fields<'_>) -> Answer {
        match fields.bytes()? {
            b"posix-rename@openssh.com" => {
                let (from, to) = (fields.path()?, fields.path()?);
                fs::rename(from, to)?;
            }
            b"hardlink@openssh.com" => {
                let (from, to) = (fields.path()?, fields.path()?);
                fs::hard_link(from, to)?;
            }
            b"fsync@openssh.com" => self.file(fields)?.sync_all()?,
            b"lsetstat@openssh.com" => {
                let path = fields.path()?;
                apply(&path, &fields.attributes()?, false)?;
            }
            b"statvfs@openssh.com" => return file_system(id, &fields.path()?),
            b"limits@openssh.com" => {
                let limits = [MAX_PACKET, MAX_TRANSFER, MAX_TRANSFER, MAX_HANDLES];
                return Ok(Reply::numbers(id, &limits.map(|limit| limit as u64)));
            }
            b"expand-path@openssh.com" => {
                return Ok(Reply::name(id, &absolute(&expand(&fields.path()?))?));
            }
            _ => return Err(unsupported()),
        }
        Ok(Reply::ok(id))
    }
}

/// Requests that name a path and need nothing open.
fn by_path(kind: u8, id: u32, fields: &mut Fields<'_>) -> Answer {
    let path = fields.path()?;
    match kind {
        wire::LSTAT => return Ok(Reply::attributes(id, &fs::symlink_metadata(path)?)),
        wire::STAT => return Ok(Reply::attributes(id, &fs::metadata(path)?)),
        wire::REALPATH => return Ok(Reply::name(id, &absolute(&path)?)),
        wire::READLINK => return Ok(Reply::name(id, &fs::read_link(path)?)),
        wire::SETSTAT => apply(&path, &fields.attributes()?, true)?,
        wire::REMOVE => fs::remove_file(path)?,
        wire::RMDIR => fs::remove_dir(path)?,
        wire::MKDIR => {
            let mode = fields.attributes()?.mode.unwrap_or(0o777);
            fs::DirBuilder::new().mode(mode).create(path)?;
        }
        wire::RENAME => rename_new(&path, &fields.path()?)?,
        // OpenSSH sends the target first, against the draft; every client has followed it.
        wire::SYMLINK => std::os::unix::fs::symlink(path, fields.path()?)?,
        _ => return Err(unsupported()),
    }
    Ok(Reply::ok(id))
}

/// Renames; an existing target is an error, as version 3 has it.
fn rename_new(from: &Path, to: &Path) -> Result<(), Refused> {
    use nix::fcntl::{RenameFlags, renameat2};
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        // Some file systems do not know the flag; then only the check before is left.
        Err(Errno::EINVAL | Errno::ENOSYS) if fs::symlink_metadata(to).is_err() => {
            Ok(fs::rename(from, to)?)
        }
        result => Ok(result?),
    }
}

fn apply(path: &Path, attributes: &Attributes, follow: bool) -> Result<(), Refused> {
    if let Some(size) = attributes.size {
        OpenOptions::new().write(true).open(path)?.set_len(size)?;
    }
    if let Some((uid, gid)) = attributes.owner {
        let flags = if follow {
            nix::fcntl::AtFlags::empty()
        } else {
            nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW
        };
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        nix::unistd::fchownat(AT_FDCWD, path, Some(uid), Some(gid), flags)?;
    }
    if let Some(mode) = attributes.mode {
        if follow {
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        } else {
            let mode = Mode::from_bits_truncate(mode);
            fchmodat(AT_FDCWD, path, mode, FchmodatFlags::NoFollowSymlink)?;
        }
    }
    if let Some((accessed, modified)) = attributes.times {
        let flag =
            if follow { UtimensatFlags::FollowSymlink } else { UtimensatFlags::NoFollowSymlink };
        let time = |seconds: u32| TimeSpec::new(i64::from(seconds), 0);
        utimensat(AT_FDCWD, path, &time(accessed), &time(modified), flag)?;
    }
    Ok(())
}

fn file_system(id: u32, path: &Path) -> Answer {
    use nix::sys::statvfs::{FsFlags, statvfs};
    /// Flag bits of the extension, which happen not to be those of Linux.
    const READ_ONLY: u64 = 1;
    const NO_SETUID: u64 = 2;
    let stat = statvfs(path)?;
    let has = |flag, bit| if stat.flags().contains(flag) { bit } else { 0 };
    let flags = has(FsFlags::ST_RDONLY, READ_ONLY) | has(FsFlags::ST_NOSUID, NO_SETUID);
    let numbers = [
        stat.block_size(),
        stat.fragment_size(),
        stat.blocks(),
        stat.blocks_free(),
        stat.blocks_available(),
        stat.files(),
        stat.files_free(),
        stat.files_available(),
        stat.filesystem_id(),
        flags,
        stat.name_max(),
    ];
    Ok(Reply::numbers(id, &numbers))
}

/// The absolute form of a path. The last component may be missing: clients ask before they create.
fn absolute(path: &Path) -> Result<PathBuf, Refused> {
    if let Ok(real) = fs::canonicalize(path) {
        return Ok(real);
    }
    let joined = std::env::current_dir()?.join(path);
    let mut clean = PathBuf::new();
    for component in joined.components() {
        match component {
            Component::ParentDir => {
                clean.pop();
            }
            Component::CurDir => {}
            other => clean.push(other),
        }
    }
    Ok(clean)
}

/// Replaces a leading `~` or `~user` of our own user by the home directory.
fn expand(path: &Path) -> PathBuf {
    let home = Path::new(crate::environment::AGENT_HOME);
    let bytes = path.as_os_str().as_bytes();
    let own = format!("~{}", crate::environment::AGENT_NAME);
    for tilde in [own.as_bytes(), b"~"] {
        if let Some(rest) = bytes.strip_prefix(tilde)
            && (rest.is_empty() || rest.starts_with(b"/"))
        {
            let rest = std::ffi::OsStr::from_bytes(rest.strip_prefix(b"/").unwrap_or(rest));
            return home.join(rest);
        }
    }
    path.to_owned()
}

fn handle(fields: &mut Fields<'_>) -> Result<u32, Refused> {
    let bytes: [u8; 4] = fields.bytes()?.try_into().map_err(|_| unknown_handle())?;
    Ok(u32::from_be_bytes(bytes))
}

fn unknown_handle() -> Refused {
    Refused::new(wire::FAILURE, "no such handle")
}

fn unsupported() -> Refused {
    Refused::new(wire::UNSUPPORTED, "operation not supported")
}
