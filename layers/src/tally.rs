//! Counts what is in progress, in all and per key, under caps.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The caps in force; 0 is no cap.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Caps {
    pub(crate) total: u32,
    pub(crate) per_key: u32,
}

/// Which cap is reached.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Full {
    Total(u32),
    PerKey(u32),
}

/// The counts. A key is in the table only while it counts something, so the table is bounded by the work there is.
#[derive(Debug)]
pub(crate) struct Tally<K> {
    state: Mutex<State<K>>,
}

#[derive(Debug)]
struct State<K> {
    caps: Caps,
    total: u32,
    refused: u64,
    keys: HashMap<K, u32>,
}

/// One thing in progress; dropping it ends it.
#[derive(Debug)]
pub(crate) struct Permit<K: Hash + Eq> {
    tally: Arc<Tally<K>>,
    key: Option<K>,
}

impl<K: Hash + Eq + Clone> Tally<K> {
    pub(crate) fn new(caps: Caps) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State { caps, total: 0, refused: 0, keys: HashMap::new() }),
        })
    }

    /// Replaces the caps; what is in progress goes on.
    pub(crate) fn set_caps(&self, caps: Caps) {
        self.state().caps = caps;
    }

    /// How many are in progress, and how many were refused since the start.
    pub(crate) fn counts(&self) -> (u32, u64) {
        let state = self.state();
        (state.total, state.refused)
    }

    pub(crate) fn admit(self: &Arc<Self>, key: Option<K>) -> Result<Permit<K>, Full> {
        let mut state = self.state();
        let Caps { total, per_key } = state.caps;
        let of_key = key.as_ref().and_then(|key| state.keys.get(key)).copied().unwrap_or(0);
        let full = if total != 0 && state.total >= total {
            Some(Full::Total(total))
        } else {
            (per_key != 0 && of_key >= per_key).then_some(Full::PerKey(per_key))
        };
        if let Some(full) = full {
            state.refused += 1;
            return Err(full);
        }
        state.total += 1;
        if let Some(key) = &key {
            state.keys.insert(key.clone(), of_key + 1);
        }
        drop(state);
        Ok(Permit { tally: Arc::clone(self), key })
    }
}

impl<K: Hash + Eq> Tally<K> {
    fn state(&self) -> MutexGuard<'_, State<K>> {
        // The counts are whole at every point where a foreign `Hash` or `Eq` could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq> Drop for Permit<K> {
    fn drop(&mut self) {
        let mut state = self.tally.state();
        state.total -= 1;
        let Some(key) = &self.key else { return };
        if let Some(count) = state.keys.get_mut(key) {
            *count -= 1;
            if *count == 0 {
                state.keys.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_leaves_the_table_with_its_last_permit() {
        let tally = Tally::new(Caps { total: 3, per_key: 2 });
        let permits = [tally.admit(Some("a")).unwrap(), tally.admit(Some("a")).unwrap()];
        assert!(matches!(tally.admit(Some("a")), Err(Full::PerKey(2))));
        let other = tally.admit(None).unwrap();
        assert!(matches!(tally.admit(Some("b")), Err(Full::Total(3))));
        assert_eq!(tally.counts(), (3, 2));
        drop(permits);
        assert!(tally.state().keys.is_empty());
        drop(other);
        assert_eq!(tally.counts().0, 0);
    }
}
