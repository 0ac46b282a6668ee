//! Which process a supervisor is, beyond its pid.
//!
//! A pid alone is not an identity: the kernel uses it again. Together with the start time of the
//! process and the id of this boot it is.

use rustix::process::Pid;

/// Most bytes of `/proc/<pid>/stat` that are read; the line is shorter on every kernel.
pub(crate) const STAT_BYTES: usize = 1024;

/// The process that runs, or ran, a sandbox's supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Its pid, which is also its process group and session.
    pub(crate) pid: Pid,
    /// When it started, in clock ticks since boot.
    pub(crate) started: u64,
}

/// The fields of a stat line that matter here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stat {
    /// The process.
    pub(crate) identity: Identity,
    /// Whether it has ended and waits to be collected.
    pub(crate) ended: bool,
    /// Its session.
    pub(crate) session: i32,
}

impl Identity {
    /// A text that no other process of this boot has.
    pub(crate) fn text(self) -> String {
        format!("{}-{}", self.pid.as_raw_nonzero(), self.started)
    }
}

/// Reads a line of `/proc/<pid>/stat` (proc(5)). The command name may hold spaces and brackets, so
/// fields are counted from the last closing one.
pub(crate) fn parse_stat(line: &str) -> Option<Stat> {
    let (pid, rest) = line.split_once(' ')?;
    let (_, fields) = rest.rsplit_once(')')?;
    // proc(5) numbers fields from 1; these begin with the third.
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    let session = fields.nth(2)?.parse().ok()?;
    let started = fields.nth(15)?.parse().ok()?;
    Some(Stat {
        identity: Identity { pid: Pid::from_raw(pid.parse().ok()?)?, started },
        ended: matches!(state, "Z" | "X" | "x"),
        session,
    })
}

/// Reads the `pid` file of a sandbox: the boot id, a line feed, and the stat line of the
/// supervisor. `None` for a file of an earlier boot or one that was not finished.
pub(crate) fn parse_pid_file(text: &str, boot_id: &str) -> Option<Identity> {
    let (boot, stat) = text.split_once('\n')?;
    if boot.trim() != boot_id.trim() || !stat.ends_with('\n') {
        return None;
    }
    parse_stat(stat.trim_end()).map(|stat| stat.identity)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str =
        "4242 (a b) c) S 1 4242 4240 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 987654 1 2 3";

    #[test]
    fn fields_are_counted_from_the_last_bracket() {
        let stat = parse_stat(LINE).unwrap();
        assert_eq!(stat.identity.text(), "4242-987654");
        assert_eq!(stat.session, 4240);
        assert!(!stat.ended);
        assert!(parse_stat(&LINE.replace(" S ", " Z ")).unwrap().ended);
    }

    #[test]
    fn the_own_process_is_found_in_proc() {
        let line = std::fs::read_to_string("/proc/self/stat").unwrap();
        let stat = parse_stat(line.trim_end()).unwrap();
        assert_eq!(stat.identity.pid, rustix::process::getpid());
        assert!(stat.identity.started > 0);
    }

    #[test]
    fn another_boot_or_a_torn_file_is_nobody() {
        let file = format!("boot-1\n{LINE}\n");
        assert!(parse_pid_file(&file, "boot-1\n").is_some());
        assert_eq!(parse_pid_file(&file, "boot-2"), None);
        for cut in 0..file.len() {
            assert_eq!(parse_pid_file(&file[..cut], "boot-1"), None, "{cut}");
        }
        assert_eq!(parse_stat(""), None);
        assert_eq!(parse_stat("0 (x) S 1"), None);
    }
}
