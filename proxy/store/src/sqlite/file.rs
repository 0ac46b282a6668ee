//! The database file: made private, and watched for being taken away.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

/// Makes the file (mode 0600) and its directories (mode 0700) if they are missing.
pub(super) fn prepare(path: &Path) -> io::Result<PathBuf> {
    if let Some(directory) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    // SQLite gives the files it makes beside this one the same mode.
    fs::OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    Ok(path.to_owned())
}

/// Which file was opened.
///
/// SQLite keeps writing into a file that was deleted, and every write succeeds and is lost. So a write first looks
/// whether the path still leads to the file that is open: one `stat`, far below the cost of a commit.
#[derive(Debug)]
pub(super) struct Identity {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Identity {
    pub(super) fn of(path: PathBuf) -> io::Result<Self> {
        let metadata = fs::metadata(&path)?;
        Ok(Self { path, device: metadata.dev(), inode: metadata.ino() })
    }

    pub(super) fn still_there(&self) -> bool {
        fs::metadata(&self.path)
            .is_ok_and(|now| now.dev() == self.device && now.ino() == self.inode)
    }
}
