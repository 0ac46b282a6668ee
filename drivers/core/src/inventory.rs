//! The public state of a driver and its watchers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use futures_util::stream;
use parking_lot::Mutex;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

use crate::compute::{DriverPlatformEvent, DriverSandbox, DriverSandboxStatus};
use crate::{DriverError, SandboxRef, WatchEvent, WatchStream};

/// Events a watcher may be behind before it gets snapshots instead.
///
/// A create makes about four events; 1024 covers a burst of 256 sandboxes at less than 1 MiB.
const WATCH_BACKLOG: usize = 1024;

/// Every sandbox a driver owns, as the outside may see it, with a bounded feed of changes.
///
/// Snapshot and subscription happen under one lock, and so do a change and its event: a watcher
/// never sees an older state after a newer one. Cloning gives another handle on the same state.
/// The token is dropped on the way in, so no reader can leak it.
#[derive(Debug, Clone)]
pub struct Inventory {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    sandboxes: Mutex<BTreeMap<String, DriverSandbox>>,
    changes: broadcast::Sender<WatchEvent>,
}

impl Inventory {
    /// An inventory without sandboxes or watchers.
    #[must_use]
    pub fn new() -> Self {
        Self::with_backlog(WATCH_BACKLOG)
    }

    /// As [`Inventory::new`], with another number of events a watcher may be behind (at least 1).
    #[must_use]
    pub fn with_backlog(events: usize) -> Self {
        let (changes, _) = broadcast::channel(events.max(1));
        Self { shared: Arc::new(Shared { sandboxes: Mutex::new(BTreeMap::new()), changes }) }
    }

    /// Adds a sandbox.
    ///
    /// # Errors
    /// `AlreadyExists` when its id or its name (within its namespace) is taken; nothing changes.
    pub fn insert(&self, sandbox: DriverSandbox) -> Result<(), DriverError> {
        let sandbox = without_token(sandbox);
        let mut sandboxes = self.shared.sandboxes.lock();
        let taken = sandboxes.contains_key(&sandbox.id)
            || (!sandbox.name.is_empty()
                && sandboxes.values().any(|other| {
                    other.name == sandbox.name
                        && other.namespace == sandbox.namespace
                        && other.workspace == sandbox.workspace
                }));
        if taken {
            return Err(DriverError::AlreadyExists { id: sandbox.id });
        }
        sandboxes.insert(sandbox.id.clone(), sandbox.clone());
        self.send(WatchEvent::Sandbox(Box::new(sandbox)));
        Ok(())
    }

    /// Changes the status of a sandbox and tells the watchers, unless nothing changed. `false`
    /// when there is no such sandbox.
    pub fn update(&self, id: &str, change: impl FnOnce(&mut DriverSandboxStatus)) -> bool {
        let mut sandboxes = self.shared.sandboxes.lock();
        let Some(sandbox) = sandboxes.get_mut(id) else {
            return false;
        };
        let before = sandbox.status.clone();
        change(sandbox.status.get_or_insert_default());
        if sandbox.status != before {
            let event = WatchEvent::Sandbox(Box::new(sandbox.clone()));
            self.send(event);
        }
        true
    }

    /// Removes a sandbox and tells the watchers. `false` when there was none.
    pub fn remove(&self, id: &str) -> bool {
        let mut sandboxes = self.shared.sandboxes.lock();
        let removed = sandboxes.remove(id).is_some();
        if removed {
            self.send(WatchEvent::Deleted { id: id.to_owned() });
        }
        removed
    }

    /// Tells the watchers of something that is no state by itself.
    pub fn tell(&self, id: &str, event: DriverPlatformEvent) {
        // Under the lock, so that an event keeps its place among the changes around it.
        let _sandboxes = self.shared.sandboxes.lock();
        self.send(WatchEvent::Platform { id: id.to_owned(), event: Box::new(event) });
    }

    /// The sandbox that is meant.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn get(&self, wanted: &SandboxRef) -> Result<DriverSandbox, DriverError> {
        let sandboxes = self.shared.sandboxes.lock();
        let found = if wanted.id.is_empty() {
            sandboxes
                .values()
                .find(|sandbox| !wanted.name.is_empty() && sandbox.name == wanted.name)
        } else {
            sandboxes.get(&wanted.id)
        };
        found.cloned().ok_or_else(|| DriverError::NotFound { id: wanted.label().to_owned() })
    }

    /// All sandboxes, by id.
    #[must_use]
    pub fn list(&self) -> Vec<DriverSandbox> {
        self.shared.sandboxes.lock().values().cloned().collect()
    }

    /// Snapshots of all sandboxes, then every change. Ends only when dropped: an inventory that
    /// a watcher still reads stays alive with it.
    #[must_use]
    pub fn watch(&self) -> WatchStream {
        let watcher = Watcher::new(self.clone());
        Box::pin(stream::unfold(watcher, |mut watcher| async move {
            let event = watcher.next().await?;
            Some((event, watcher))
        }))
    }

    fn send(&self, event: WatchEvent) {
        // Without watchers there is nobody to tell; that is no error.
        let _ = self.shared.changes.send(event);
    }
}

/// One reader of the feed.
struct Watcher {
    inventory: Inventory,
    changes: broadcast::Receiver<WatchEvent>,
    /// Snapshots and deletions still to hand out before the feed goes on.
    pending: VecDeque<WatchEvent>,
    /// Ids this watcher believes to exist, to tell it of deletions that it missed.
    known: BTreeSet<String>,
}

// === impl Watcher ===

impl Watcher {
    fn new(inventory: Inventory) -> Self {
        let mut watcher = Self {
            changes: inventory.shared.changes.subscribe(),
            inventory,
            pending: VecDeque::new(),
            known: BTreeSet::new(),
        };
        watcher.resynchronise();
        watcher
    }

    /// Starts over from the current state: one snapshot each, and deletions of what is gone.
    fn resynchronise(&mut self) {
        let sandboxes = self.inventory.shared.sandboxes.lock();
        self.changes = self.inventory.shared.changes.subscribe();
        self.pending = self
            .known
            .iter()
            .filter(|id| !sandboxes.contains_key(*id))
            .map(|id| WatchEvent::Deleted { id: id.clone() })
            .collect();
        self.pending.extend(
            sandboxes.values().map(|sandbox| WatchEvent::Sandbox(Box::new(sandbox.clone()))),
        );
    }

    async fn next(&mut self) -> Option<WatchEvent> {
        let event = loop {
            if let Some(event) = self.pending.pop_front() {
                break event;
            }
            match self.changes.recv().await {
                Ok(event) => break event,
                Err(RecvError::Lagged(_)) => self.resynchronise(),
                // The sender lives as long as the inventory, and this holds one.
                Err(RecvError::Closed) => return None,
            }
        };
        match &event {
            WatchEvent::Sandbox(sandbox) => {
                self.known.insert(sandbox.id.clone());
            }
            WatchEvent::Deleted { id } => {
                self.known.remove(id);
            }
            WatchEvent::Platform { .. } => {}
        }
        Some(event)
    }
}

// === impl Inventory ===

impl Default for Inventory {
    fn default() -> Self {
        Self::new()
    }
}

fn without_token(mut sandbox: DriverSandbox) -> DriverSandbox {
    if let Some(spec) = &mut sandbox.spec {
        spec.sandbox_token.clear();
    }
    sandbox
}

#[cfg(test)]
mod tests {
    use futures_util::{FutureExt as _, StreamExt as _};

    use super::*;
    use crate::compute::DriverSandboxSpec;

    fn sandbox(id: &str) -> DriverSandbox {
        DriverSandbox {
            id: id.into(),
            name: format!("name-{id}"),
            spec: Some(DriverSandboxSpec { sandbox_token: "secret".into(), ..Default::default() }),
            ..Default::default()
        }
    }

    fn summary(event: &WatchEvent) -> String {
        match event {
            WatchEvent::Sandbox(sandbox) => format!("+{}", sandbox.id),
            WatchEvent::Deleted { id } => format!("-{id}"),
            WatchEvent::Platform { id, event } => format!("!{id}:{}", event.reason),
        }
    }

    fn drain(stream: &mut WatchStream) -> Vec<String> {
        let mut seen = Vec::new();
        while let Some(event) = stream.next().now_or_never().flatten() {
            seen.push(summary(&event));
        }
        seen
    }

    #[tokio::test]
    async fn a_watcher_sees_what_is_there_and_then_what_changes() {
        let inventory = Inventory::new();
        inventory.insert(sandbox("a")).unwrap();
        let mut watch = inventory.watch();
        inventory.insert(sandbox("b")).unwrap();
        inventory.update("a", |status| status.deleting = true);
        inventory.update("a", |status| status.deleting = true);
        inventory.tell("a", DriverPlatformEvent { reason: "Stopped".into(), ..Default::default() });
        assert!(inventory.remove("a"));
        assert!(!inventory.remove("a"));
        assert_eq!(drain(&mut watch), ["+a", "+b", "+a", "!a:Stopped", "-a"]);
    }

    #[tokio::test]
    async fn a_watcher_that_falls_behind_is_brought_up_to_date() {
        let inventory = Inventory::with_backlog(2);
        inventory.insert(sandbox("a")).unwrap();
        inventory.insert(sandbox("b")).unwrap();
        let mut watch = inventory.watch();
        assert_eq!(drain(&mut watch), ["+a", "+b"]);
        inventory.remove("a");
        for id in ["c", "d", "e"] {
            inventory.insert(sandbox(id)).unwrap();
        }
        assert_eq!(drain(&mut watch), ["-a", "+b", "+c", "+d", "+e"]);
    }

    #[test]
    fn ids_and_names_are_taken_once_and_tokens_are_dropped() {
        let inventory = Inventory::new();
        inventory.insert(sandbox("a")).unwrap();
        assert!(matches!(inventory.insert(sandbox("a")), Err(DriverError::AlreadyExists { .. })));
        let mut same_name = sandbox("z");
        same_name.name = "name-a".into();
        assert!(matches!(inventory.insert(same_name), Err(DriverError::AlreadyExists { .. })));
        let by_name = inventory.get(&SandboxRef::new("", "name-a")).unwrap();
        assert_eq!(by_name.id, "a");
        assert_eq!(by_name.spec.unwrap().sandbox_token, "");
        // The id decides when both are given.
        assert!(inventory.get(&SandboxRef::new("q", "name-a")).is_err());
    }
}
