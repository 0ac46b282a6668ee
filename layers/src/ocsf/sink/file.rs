//! Events in a file of bounded size, with a bounded number of older files.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{Format, Sink};
use crate::config::{Fault, require};
use crate::ocsf::event::Record;
use crate::ocsf::text::MAX_LINE_BYTES;

/// Smallest file size in bytes: one event of the largest size must fit.
const MIN_FILE_BYTES: u64 = 2 * MAX_LINE_BYTES as u64;

/// Most files: each rotation renames all of them, and file names get a number.
const MAX_FILES: u32 = 1000;

/// Where the file is and how much of the disk it may take: `max_bytes * files`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Deserialize, serde::Serialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct FileConfig {
    /// The file events are written to. Older ones are beside it, with `.1` (the youngest) and so on added to the name.
    pub path: PathBuf,
    /// Largest size of one file, in bytes. 64 MiB unless said: about 50,000 events, and quick to search.
    #[cfg_attr(
        feature = "serde",
        serde(default = "default_max_bytes", with = "crate::units::size")
    )]
    pub max_bytes: u64,
    /// How many files there may be, the current one included. 4 unless said, so that 256 MiB are taken at most.
    #[cfg_attr(feature = "serde", serde(default = "default_files"))]
    pub files: u32,
    /// JSON lines unless said.
    #[cfg_attr(feature = "serde", serde(default))]
    pub format: Format,
}

const fn default_max_bytes() -> u64 {
    64 << 20
}

const fn default_files() -> u32 {
    4
}

impl FileConfig {
    /// The defaults, for that path.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            max_bytes: default_max_bytes(),
            files: default_files(),
            format: Format::Json,
        }
    }

    /// Every fault of these values.
    #[must_use]
    pub fn validate(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        require(&mut faults, self.path.file_name().is_some(), "path", || {
            format!("{:?} does not name a file; write the path of one", self.path)
        });
        require(&mut faults, self.max_bytes >= MIN_FILE_BYTES, "max_bytes", || {
            format!(
                "{} bytes cannot hold the largest event; write at least {MIN_FILE_BYTES}B",
                self.max_bytes
            )
        });
        require(&mut faults, (1..=MAX_FILES).contains(&self.files), "files", || {
            format!("{} files are out of range; write 1 to {MAX_FILES}", self.files)
        });
        faults
    }
}

/// Appends events to a file, each line whole and in one write, and rotates by size.
///
/// The files are readable by their owner only: command lines and URLs are in them. A write that fails half way is cut off again,
/// and a line that a crash cut short is ended before the next one, so every line is a whole event or plainly broken.
#[derive(Debug)]
pub struct FileSink {
    config: FileConfig,
    file: File,
    size: u64,
    line: Vec<u8>,
}

impl FileSink {
    /// Opens the file, or makes it. Goes on at its end if it is there.
    ///
    /// # Errors
    /// `InvalidInput` if the values are out of range, else that of opening the file.
    pub fn open(config: FileConfig) -> io::Result<Self> {
        if let Some(fault) = config.validate().first() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, fault.to_string()));
        }
        let (file, size) = open_end(&config.path)?;
        Ok(Self { config, file, size, line: Vec::new() })
    }

    fn rotate(&mut self) -> io::Result<()> {
        let path = |number: u32| numbered(&self.config.path, number);
        for number in (1..self.config.files.saturating_sub(1)).rev() {
            rename_if_there(&path(number), &path(number + 1))?;
        }
        if self.config.files == 1 {
            remove_if_there(&self.config.path)?;
        } else {
            rename_if_there(&self.config.path, &path(1))?;
        }
        (self.file, self.size) = open_end(&self.config.path)?;
        Ok(())
    }
}

impl Sink for FileSink {
    fn name(&self) -> &'static str {
        "file"
    }

    fn write(&mut self, record: &Record<'_>) -> io::Result<()> {
        self.line.clear();
        self.config.format.render(record, &mut self.line);
        self.line.push(b'\n');
        let bytes = self.line.len() as u64;
        if self.size > 0 && self.size + bytes > self.config.max_bytes {
            self.rotate()?;
        }
        match self.file.write_all(&self.line) {
            Ok(()) => {
                self.size += bytes;
                Ok(())
            }
            Err(error) => {
                // What of the line did arrive is taken back. If even that fails, the next open ends the torn line.
                if self.file.set_len(self.size).is_err() {
                    (self.file, self.size) = open_end(&self.config.path)?;
                }
                Err(error)
            }
        }
    }

    fn close(&mut self) -> io::Result<()> {
        self.file.sync_data()
    }
}

/// `events.jsonl` → `events.jsonl.3`
fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    ignore_missing(std::fs::rename(from, to))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    ignore_missing(std::fs::remove_file(path))
}

fn ignore_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Opens for appending and returns the size; a last line without an end gets one.
fn open_end(path: &Path) -> io::Result<(File, u64)> {
    let mut file =
        OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
    let mut size = file.metadata()?.len();
    if size > 0 {
        let mut last = [0];
        file.seek(SeekFrom::End(-1))?;
        file.read_exact(&mut last)?;
        if last != *b"\n" {
            file.write_all(b"\n")?;
            size += 1;
        }
    }
    Ok((file, size))
}
