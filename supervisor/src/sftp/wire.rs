//! Fields, attributes and replies of SFTP packets.

use std::ffi::OsString;
use std::fs::Metadata;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

pub(super) const INIT: u8 = 1;
const VERSION: u8 = 2;
pub(super) const OPEN: u8 = 3;
pub(super) const CLOSE: u8 = 4;
pub(super) const READ: u8 = 5;
pub(super) const WRITE: u8 = 6;
pub(super) const LSTAT: u8 = 7;
pub(super) const FSTAT: u8 = 8;
pub(super) const SETSTAT: u8 = 9;
pub(super) const FSETSTAT: u8 = 10;
pub(super) const OPENDIR: u8 = 11;
pub(super) const READDIR: u8 = 12;
pub(super) const REMOVE: u8 = 13;
pub(super) const MKDIR: u8 = 14;
pub(super) const RMDIR: u8 = 15;
pub(super) const REALPATH: u8 = 16;
pub(super) const STAT: u8 = 17;
pub(super) const RENAME: u8 = 18;
pub(super) const READLINK: u8 = 19;
pub(super) const SYMLINK: u8 = 20;
const STATUS: u8 = 101;
const HANDLE: u8 = 102;
const DATA: u8 = 103;
const NAME: u8 = 104;
const ATTRS: u8 = 105;
pub(super) const EXTENDED: u8 = 200;
const EXTENDED_REPLY: u8 = 201;

pub(super) const OK: u32 = 0;
pub(super) const END_OF_FILE: u32 = 1;
const NO_SUCH_FILE: u32 = 2;
const PERMISSION_DENIED: u32 = 3;
pub(super) const FAILURE: u32 = 4;
pub(super) const BAD_MESSAGE: u32 = 5;
pub(super) const UNSUPPORTED: u32 = 8;

const HAS_SIZE: u32 = 1;
const HAS_OWNER: u32 = 2;
const HAS_MODE: u32 = 4;
const HAS_TIMES: u32 = 8;
const HAS_EXTENDED: u32 = 0x8000_0000;

const EXTENSIONS: [(&str, &str); 7] = [
    ("posix-rename@openssh.com", "1"),
    ("statvfs@openssh.com", "2"),
    ("hardlink@openssh.com", "1"),
    ("fsync@openssh.com", "1"),
    ("lsetstat@openssh.com", "1"),
    ("limits@openssh.com", "1"),
    ("expand-path@openssh.com", "1"),
];

/// Why a request was not done: becomes a status reply.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) code: u32,
    pub(super) text: String,
}

impl Refused {
    pub(super) fn new(code: u32, text: &str) -> Self {
        Self { code, text: text.to_owned() }
    }

    pub(super) fn into_reply(self, id: u32) -> Vec<u8> {
        Reply::status(id, self.code, &self.text)
    }
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        let code = match error.kind() {
            io::ErrorKind::NotFound => NO_SUCH_FILE,
            io::ErrorKind::PermissionDenied => PERMISSION_DENIED,
            io::ErrorKind::UnexpectedEof => END_OF_FILE,
            _ => FAILURE,
        };
        Self { code, text: error.to_string() }
    }
}

impl From<nix::errno::Errno> for Refused {
    fn from(errno: nix::errno::Errno) -> Self {
        io::Error::from(errno).into()
    }
}

/// Reads the fields of a request, in order.
pub(super) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Refused> {
        let (taken, rest) = self
            .0
            .split_at_checked(count)
            .ok_or_else(|| Refused::new(BAD_MESSAGE, "the request is shorter than its fields"))?;
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn u32(&mut self) -> Result<u32, Refused> {
        let bytes = self.take(4)?;
        Ok(bytes.iter().fold(0, |value, byte| value << 8 | u32::from(*byte)))
    }

    pub(super) fn u64(&mut self) -> Result<u64, Refused> {
        Ok(u64::from(self.u32()?) << 32 | u64::from(self.u32()?))
    }

    pub(super) fn bytes(&mut self) -> Result<&'a [u8], Refused> {
        let length = self.u32()?;
        self.take(length as usize)
    }

    /// A path as the client wrote it: bytes, in no particular encoding. Empty means here.
    pub(super) fn path(&mut self) -> Result<PathBuf, Refused> {
        let bytes = self.bytes()?;
        let bytes = if bytes.is_empty() { b"." } else { bytes };
        Ok(PathBuf::from(OsString::from_vec(bytes.to_vec())))
    }

    pub(super) fn attributes(&mut self) -> Result<Attributes, Refused> {
        let flags = self.u32()?;
        let has = |flag| flags & flag != 0;
        let mut attributes = Attributes::default();
        if has(HAS_SIZE) {
            attributes.size = Some(self.u64()?);
        }
        if has(HAS_OWNER) {
            attributes.owner = Some((self.u32()?, self.u32()?));
        }
        if has(HAS_MODE) {
            attributes.mode = Some(self.u32()? & 0o7777);
        }
        if has(HAS_TIMES) {
            attributes.times = Some((self.u32()?, self.u32()?));
        }
        if has(HAS_EXTENDED) {
            for _ in 0..self.u32()? {
                self.bytes()?;
                self.bytes()?;
            }
        }
        Ok(attributes)
    }
}

/// Attributes that a client wants to set.
#[derive(Debug, Default)]
pub(super) struct Attributes {
    pub(super) size: Option<u64>,
    pub(super) owner: Option<(u32, u32)>,
    pub(super) mode: Option<u32>,
    /// Access and modification, seconds since the epoch.
    pub(super) times: Option<(u32, u32)>,
}

/// Builds one reply packet.
pub(super) struct Reply(Vec<u8>);

impl Reply {
    fn new(kind: u8, id: u32) -> Self {
        Self::with_capacity(kind, id, 64)
    }

    fn with_capacity(kind: u8, id: u32, capacity: usize) -> Self {
        let mut packet = Vec::with_capacity(capacity);
        packet.extend([0; 4]);
        packet.push(kind);
        packet.extend(id.to_be_bytes());
        Self(packet)
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn bytes(self, bytes: &[u8]) -> Self {
        let mut reply = self.u32(bytes.len() as u32);
        reply.0.extend(bytes);
        reply
    }

    fn metadata(self, metadata: Option<&Metadata>) -> Self {
        let Some(metadata) = metadata else {
            return self.u32(0);
        };
        self.u32(HAS_SIZE | HAS_OWNER | HAS_MODE | HAS_TIMES)
            .u64(metadata.size())
            .u32(metadata.uid())
            .u32(metadata.gid())
            .u32(metadata.mode())
            // The protocol ends in 2106; a time outside it is shown as its nearest end.
            .u32(metadata.atime().clamp(0, u32::MAX.into()) as u32)
            .u32(metadata.mtime().clamp(0, u32::MAX.into()) as u32)
    }

    fn finish(mut self) -> Vec<u8> {
        let length = (self.0.len() - 4) as u32;
        self.0[..4].copy_from_slice(&length.to_be_bytes());
        self.0
    }

    pub(super) fn status(id: u32, code: u32, text: &str) -> Vec<u8> {
        Self::new(STATUS, id).u32(code).bytes(text.as_bytes()).bytes(b"en").finish()
    }

    pub(super) fn ok(id: u32) -> Vec<u8> {
        Self::status(id, OK, "")
    }

    pub(super) fn handle(id: u32, handle: u32) -> Vec<u8> {
        Self::new(HANDLE, id).bytes(&handle.to_be_bytes()).finish()
    }

    /// A data reply that `fill` writes straight behind its header; an end of file when it has
    /// nothing to write.
    pub(super) fn data(
        id: u32,
        most: usize,
        fill: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> Result<Vec<u8>, Refused> {
        let mut reply = Self::with_capacity(DATA, id, most + 16).u32(0);
        let start = reply.0.len();
        reply.0.resize(start + most, 0);
        let count = fill(&mut reply.0[start..])?;
        if count == 0 {
            return Err(Refused::new(END_OF_FILE, "end of file"));
        }
        reply.0.truncate(start + count);
        reply.0[start - 4..start].copy_from_slice(&(count as u32).to_be_bytes());
        Ok(reply.finish())
    }

    pub(super) fn attributes(id: u32, metadata: &Metadata) -> Vec<u8> {
        Self::new(ATTRS, id).metadata(Some(metadata)).finish()
    }

    pub(super) fn name(id: u32, path: &Path) -> Vec<u8> {
        use std::os::unix::ffi::OsStrExt as _;
        let name = path.as_os_str().as_bytes();
        Self::new(NAME, id).u32(1).bytes(name).bytes(name).metadata(None).finish()
    }

    pub(super) fn names(id: u32, entries: &[super::listing::Entry]) -> Vec<u8> {
        let mut reply = Self::new(NAME, id).u32(entries.len() as u32);
        for entry in entries {
            reply = reply.bytes(&entry.name).bytes(&entry.line).metadata(entry.metadata.as_ref());
        }
        reply.finish()
    }

    pub(super) fn numbers(id: u32, numbers: &[u64]) -> Vec<u8> {
        numbers
            .iter()
            .fold(Self::new(EXTENDED_REPLY, id), |reply, number| reply.u64(*number))
            .finish()
    }
}

/// The reply to INIT, whatever version the client named: we speak 3.
pub(super) fn version() -> Vec<u8> {
    EXTENSIONS
        .iter()
        .fold(Reply::new(VERSION, 3), |reply, (name, value)| {
            reply.bytes(name.as_bytes()).bytes(value.as_bytes())
        })
        .finish()
}
