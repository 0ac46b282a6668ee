//! The supervisor's own log: bounded, and read for the last thing it said.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};

use crate::layout::{SandboxDir, private_file};

/// How much of the log's end is looked at for its last line.
const TAIL_BYTES: u64 = 4096;

/// Longest line that is quoted in a message to users, in characters.
const QUOTED_CHARS: usize = 300;

/// Opens the log for a supervisor to write to.
pub(crate) fn open(dir: &SandboxDir) -> io::Result<File> {
    private_file().append(true).create(true).open(dir.log())
}

/// Moves the log aside when it has reached `limit` bytes, also under a supervisor that has it
/// open: the content is copied and the file emptied. Lines written in between are lost, which is
/// the price of writing straight to a file.
pub(crate) fn rotate(dir: &SandboxDir, limit: u64) -> io::Result<()> {
    let path = dir.log();
    let mut log = match private_file().read(true).write(true).open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    let size = log.metadata()?.len();
    if size < limit {
        return Ok(());
    }
    let older = path.with_extension("log.1");
    let draft = path.with_extension("log.1.tmp");
    let mut copy = private_file().write(true).create(true).truncate(true).open(&draft)?;
    // Written to meanwhile or not, no more than the limit is kept.
    log.seek(SeekFrom::Start(size - limit))?;
    io::copy(&mut (&log).take(limit), &mut copy)?;
    log.set_len(0)?;
    fs::rename(draft, older)
}

/// The last line of the log that says something, without control characters and bounded, fit for a
/// message to users.
pub(crate) fn last_line(dir: &SandboxDir) -> Option<String> {
    let mut log = private_file().read(true).open(dir.log()).ok()?;
    let size = log.metadata().ok()?.len();
    log.seek(SeekFrom::Start(size.saturating_sub(TAIL_BYTES))).ok()?;
    let mut tail = Vec::new();
    log.take(TAIL_BYTES).read_to_end(&mut tail).ok()?;
    let tail = String::from_utf8_lossy(&tail);
    let line = tail.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(line.trim().chars().filter(|c| !c.is_control()).take(QUOTED_CHARS).collect())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use crate::layout::StateDir;

    fn sandbox() -> (tempfile::TempDir, SandboxDir) {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::open(&temp.path().join("s"), None).unwrap();
        let dir = state.make("a", None).unwrap();
        (temp, dir)
    }

    #[test]
    fn a_log_in_use_is_rotated_once_it_is_large() {
        let (_temp, dir) = sandbox();
        rotate(&dir, 10).unwrap();
        let mut writer = open(&dir).unwrap();
        writer.write_all(b"short").unwrap();
        rotate(&dir, 10).unwrap();
        assert_eq!(fs::read(dir.log()).unwrap(), b"short");
        writer.write_all(b" and now long").unwrap();
        rotate(&dir, 10).unwrap();
        writer.write_all(b"after").unwrap();
        assert_eq!(fs::read(dir.log()).unwrap(), b"after");
        let older = dir.log().with_extension("log.1");
        assert_eq!(fs::read(older).unwrap(), b"d now long");
    }

    #[test]
    fn the_last_line_is_bounded_and_printable() {
        let (_temp, dir) = sandbox();
        assert_eq!(last_line(&dir), None);
        let mut writer = open(&dir).unwrap();
        write!(writer, "first\n{}\x1b[31mred\n\n  \n", "y".repeat(10_000)).unwrap();
        let line = last_line(&dir).unwrap();
        assert_eq!(line.chars().count(), QUOTED_CHARS);
        writeln!(writer, "error: \x1b[1mno namespace").unwrap();
        assert_eq!(last_line(&dir).unwrap(), "error: [1mno namespace");
    }
}
