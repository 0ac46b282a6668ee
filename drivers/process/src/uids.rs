//! Users for agents: one uid per sandbox, so that one agent cannot touch another's files.

use std::collections::BTreeSet;

use parking_lot::Mutex;

/// First uid given to an agent where nothing else is said: above what Linux distributions hand out
/// for users, for user namespaces of users (shadow's SUB_UID_MAX is 600,100,000) and for containers
/// (systemd's ranges end below it).
const PREFERRED_BASE: u32 = 0x7000_0000;

/// One line of `/proc/self/uid_map`: first uid as seen here, and how many follow.
type Extent = (u32, u32);

/// Reads `/proc/self/uid_map` (user_namespaces(7)).
pub(crate) fn parse_uid_map(text: &str) -> Vec<Extent> {
    let extent = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let inside = fields.next()?.parse().ok()?;
        let count = fields.nth(1)?.parse().ok()?;
        Some((inside, count))
    };
    text.lines().filter_map(extent).collect()
}

/// Chooses base and count of the agents' uids within what this user namespace maps. In a container
/// with few uids, that is the upper half of the largest extent.
///
/// # Errors
/// A sentence that says which uids there are, when the wanted range is not among them.
pub(crate) fn choose(
    map: &[Extent],
    wanted: Option<u32>,
    count: u32,
) -> Result<(u32, u32), String> {
    let mapped = |base: u32| {
        map.iter().any(|&(first, length)| {
            base >= first
                && u64::from(base) + u64::from(count) <= u64::from(first) + u64::from(length)
        })
    };
    let base = wanted.unwrap_or(PREFERRED_BASE);
    if mapped(base) {
        return Ok((base, count));
    }
    let ranges = || {
        map.iter()
            .map(|(first, length)| format!("{length} from {first}"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    if wanted.is_some() {
        return Err(format!(
            "{count} uids from {base} are not mapped in this user namespace, which has {}; choose uid_base and uid_count within that",
            ranges()
        ));
    }
    let largest = map.iter().max_by_key(|(_, length)| *length);
    match largest {
        Some(&(first, length)) if length >= 4 => {
            let half = length / 2;
            Ok((first + (length - half), half.min(count)))
        }
        _ => Err(format!(
            "this user namespace has too few uids for agents ({}); run where more are mapped, or not as root",
            ranges()
        )),
    }
}

/// Hands out uids of a range, round robin, so that a uid rests as long as possible before another
/// sandbox gets it.
#[derive(Debug)]
pub(crate) struct Uids {
    base: u32,
    count: u32,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    taken: BTreeSet<u32>,
    next: u32,
}

impl Uids {
    /// Hands out `base .. base + count`. `count` is at least 1.
    pub(crate) fn new(base: u32, count: u32) -> Self {
        Self { base, count, state: Mutex::default() }
    }

    /// Marks the uid of a sandbox that was found again as taken. It may lie outside the range, if
    /// the configuration was changed since.
    pub(crate) fn adopt(&self, uid: u32) {
        let mut state = self.state.lock();
        state.taken.insert(uid);
        if let Some(offset) = uid.checked_sub(self.base).filter(|o| *o < self.count) {
            state.next = state.next.max(offset + 1);
        }
    }

    /// A uid that no sandbox has, or `None` when all are taken.
    pub(crate) fn take(&self) -> Option<u32> {
        let mut state = self.state.lock();
        let first = state.next;
        let free = (0..self.count)
            .map(|step| self.base + (first.wrapping_add(step)) % self.count)
            .find(|uid| !state.taken.contains(uid))?;
        state.next = free - self.base + 1;
        state.taken.insert(free);
        Some(free)
    }

    /// Takes the uid back from a sandbox that no longer exists.
    pub(crate) fn give_back(&self, uid: u32) {
        self.state.lock().taken.remove(&uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_returned_uid_rests_until_the_others_were_used() {
        let uids = Uids::new(100, 3);
        assert_eq!(uids.take(), Some(100));
        uids.give_back(100);
        assert_eq!(uids.take(), Some(101));
        assert_eq!(uids.take(), Some(102));
        assert_eq!(uids.take(), Some(100));
        assert_eq!(uids.take(), None);
        uids.give_back(101);
        assert_eq!(uids.take(), Some(101));
    }

    #[test]
    fn the_range_lies_within_the_user_namespace() {
        let host = parse_uid_map("         0          0 4294967295\n");
        assert_eq!(choose(&host, None, 65_536), Ok((PREFERRED_BASE, 65_536)));
        assert_eq!(choose(&host, Some(5000), 10), Ok((5000, 10)));
        let container = parse_uid_map("0 1000 1\n1 100000 65536\n");
        assert_eq!(choose(&container, None, 65_536), Ok((32_769, 32_768)));
        assert!(choose(&container, Some(65_530), 100).is_err());
        assert!(choose(&parse_uid_map("0 1000 1\n"), None, 10).is_err());
        assert!(choose(&[], None, 10).is_err());
    }

    #[test]
    fn uids_of_found_sandboxes_are_not_given_again() {
        let uids = Uids::new(100, 3);
        uids.adopt(101);
        uids.adopt(7);
        assert_eq!(uids.take(), Some(102));
        assert_eq!(uids.take(), Some(100));
        assert_eq!(uids.take(), None);
    }
}
