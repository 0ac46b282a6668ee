//! Notices that a file is another one than before.
//!
//! By looking, not by inotify: a mounted ConfigMap or a secret changes by exchanged links, network file systems send
//! no events, and a look every two seconds at a handful of files costs nothing and is its own rate limit.

use std::{fs, os::unix::fs::MetadataExt as _, path::PathBuf, time::Duration};

/// How often files are looked at. An operator who saved a file sees it in force before the page shows it.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What tells one content of a file from another without reading it: device, inode, size, and time of the last change in
/// seconds and nanoseconds. `None` while there is no file.
type Mark = Option<(u64, u64, u64, i64, i64)>;

/// Files, as they were at the last look.
#[derive(Debug)]
pub(crate) struct Watched {
    files: Vec<(PathBuf, Mark)>,
}

impl Watched {
    /// Takes `paths` as they are now.
    pub(crate) fn new(paths: Vec<PathBuf>) -> Self {
        let with_mark = |path: PathBuf| {
            let mark = mark(&path);
            (path, mark)
        };
        Self { files: paths.into_iter().map(with_mark).collect() }
    }

    /// Whether one of them has changed since the last look.
    pub(crate) fn changed(&mut self) -> bool {
        let mut changed = false;
        for (path, last) in &mut self.files {
            let now = mark(path);
            changed |= now != *last;
            *last = now;
        }
        changed
    }
}

fn mark(path: &PathBuf) -> Mark {
    let there = fs::metadata(path).ok()?;
    Some((there.dev(), there.ino(), there.size(), there.mtime(), there.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_of_saving_is_noticed_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("gateway.toml");
        let mut watched = Watched::new(vec![path.clone()]);
        assert!(!watched.changed());
        fs::write(&path, "one").unwrap();
        assert!(watched.changed(), "it came into being");
        fs::write(&path, "other").unwrap();
        assert!(watched.changed(), "it was written in place");
        let aside = folder.path().join("aside");
        fs::write(&aside, "third").unwrap();
        fs::rename(&aside, &path).unwrap();
        assert!(watched.changed(), "it was replaced");
        assert!(!watched.changed());
        fs::remove_file(&path).unwrap();
        assert!(watched.changed(), "it went away");
    }
}
