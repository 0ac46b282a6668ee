//! Directory entries, with the line that `ls -l` would show.

use std::fs::{DirEntry, Metadata};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::MetadataExt as _;

/// One directory entry.
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) line: Vec<u8>,
    /// `None` when the file went away while the directory was read.
    pub(super) metadata: Option<Metadata>,
}

impl Entry {
    pub(super) fn read(entry: &DirEntry) -> Self {
        Self::new(entry.file_name().into_vec(), entry.metadata().ok())
    }

    pub(super) fn new(name: Vec<u8>, metadata: Option<Metadata>) -> Self {
        let mut line = metadata.as_ref().map(describe).unwrap_or_default().into_bytes();
        line.extend(&name);
        Self { name, line, metadata }
    }
}

fn describe(metadata: &Metadata) -> String {
    format!(
        "{} {:>3} {:<8} {:<8} {:>8} {} ",
        mode_letters(metadata.mode()),
        metadata.nlink(),
        metadata.uid(),
        metadata.gid(),
        metadata.size(),
        date(metadata.mtime()),
    )
}

fn mode_letters(mode: u32) -> String {
    let kind = match mode & libc::S_IFMT {
        libc::S_IFDIR => 'd',
        libc::S_IFLNK => 'l',
        libc::S_IFIFO => 'p',
        libc::S_IFSOCK => 's',
        libc::S_IFCHR => 'c',
        libc::S_IFBLK => 'b',
        _ => '-',
    };
    let bits = (0..9).rev().map(|bit| {
        let letter = ['x', 'w', 'r'][bit % 3];
        if mode & (1 << bit) != 0 { letter } else { '-' }
    });
    std::iter::once(kind).chain(bits).collect()
}

/// `2026-11-22 00:04`, in UTC: the server does not know where the client is.
fn date(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02}", rest / 3600, rest % 3600 / 60)
}

/// Date of a number of days since 1970-01-01 in the proleptic Gregorian calendar, by eras of 400
/// years that begin in March, so that the leap day comes last.
fn civil(days: i64) -> (i64, i64, i64) {
    const DAYS_PER_ERA: i64 = 146_097;
    let shifted = days + 719_468;
    let era = shifted.div_euclid(DAYS_PER_ERA);
    let day_of_era = shifted.rem_euclid(DAYS_PER_ERA);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date(0), "1970-01-01 00:00");
        assert_eq!(date(951_782_400), "2000-02-29 00:00");
        assert_eq!(date(1_795_305_881), "2026-11-22 00:04");
        assert_eq!(date(-1), "1969-12-31 23:59");
    }

    #[test]
    fn modes_read_like_ls() {
        assert_eq!(mode_letters(0o040_755), "drwxr-xr-x");
        assert_eq!(mode_letters(0o100_640), "-rw-r-----");
    }
}
