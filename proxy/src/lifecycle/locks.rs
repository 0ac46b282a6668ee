//! One async lock per key, made when asked for and gone when nobody holds or waits for it.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{Mutex as AsyncMutex, OwnedMutexGuard};

type Table = Arc<Mutex<HashMap<String, Arc<AsyncMutex<()>>>>>;

/// Locks by key. Its size is bounded by the number of callers that hold or wait at one time.
#[derive(Clone, Default)]
pub(super) struct KeyedLocks {
    table: Table,
}

/// Holds the lock of one key.
pub(super) struct KeyedGuard {
    // Released before the place goes, so that the place sees whether anybody is left.
    _held: OwnedMutexGuard<()>,
    _place: Place,
}

/// Keeps the entry of a key alive, whether its lock is held or waited for.
struct Place {
    table: Table,
    key: String,
    lock: Option<Arc<AsyncMutex<()>>>,
}

impl KeyedLocks {
    /// Waits for the lock; fair among waiters. Safe to cancel.
    pub(super) async fn lock(&self, key: &str) -> KeyedGuard {
        let (place, lock) = self.place(key);
        KeyedGuard { _held: lock.lock_owned().await, _place: place }
    }

    /// The lock, if it is free now.
    pub(super) fn try_lock(&self, key: &str) -> Option<KeyedGuard> {
        let (place, lock) = self.place(key);
        lock.try_lock_owned().ok().map(|held| KeyedGuard { _held: held, _place: place })
    }

    fn place(&self, key: &str) -> (Place, Arc<AsyncMutex<()>>) {
        let lock = Arc::clone(self.table.lock().entry(key.to_owned()).or_default());
        let place = Place {
            table: Arc::clone(&self.table),
            key: key.to_owned(),
            lock: Some(Arc::clone(&lock)),
        };
        (place, lock)
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.table.lock().len()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.table.lock();
        self.lock = None;
        // Everybody who holds or waits has a clone; the table's own is the last.
        if table.get(&self.key).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            table.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn keys_are_independent_and_the_same_key_excludes() {
        let locks = KeyedLocks::default();
        let a = locks.lock("a").await;
        assert!(locks.try_lock("b").is_some());
        assert!(locks.try_lock("a").is_none());
        drop(a);
        assert!(locks.try_lock("a").is_some());
        assert_eq!(locks.len(), 0);
    }

    #[tokio::test]
    async fn a_cancelled_waiter_leaves_nothing_behind() {
        let locks = KeyedLocks::default();
        let held = locks.lock("a").await;
        let mut waiting = Box::pin(locks.lock("a"));
        assert!(waiting.as_mut().now_or_never().is_none());
        drop(held);
        assert_eq!(locks.len(), 1);
        drop(waiting);
        assert_eq!(locks.len(), 0);
    }
}
