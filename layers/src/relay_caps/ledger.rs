//! The accounting behind `relay_caps`: counts and caps under one short lock, no IO, no time.
//!
//! It stands alone (the lock comes from `super::sync`), so that the model test can compile this very file against
//! loom's lock and try every interleaving.

use std::{collections::HashMap, hash::Hash, sync::PoisonError};

use super::sync::{Mutex, MutexGuard};

/// The caps in force; 0 is no cap. A class is capped per key.
#[derive(Clone, Debug, Default)]
pub(super) struct Caps {
    pub(super) pending: u32,
    pub(super) pending_per_key: u32,
    pub(super) live: u32,
    pub(super) live_per_key: u32,
    pub(super) classes: Vec<(String, u32)>,
}

/// What is counted now, and what has been since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Relays being opened.
    pub pending: u32,
    /// Relays open.
    pub live: u32,
    /// Relays that have been opened since the start.
    pub opened: u64,
    /// Requests refused since the start.
    pub refused: u64,
}

/// Which cap stood in the way, and its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    Pending(u32),
    PendingPerKey(u32),
    Live(u32),
    LivePerKey(u32),
    Class(&'static str, u32),
}

/// One admitted relay. Not `Clone`: it is given back once, to the ledger that made it.
#[derive(Debug)]
pub(super) struct Ticket {
    slot: Option<usize>,
    class: Option<&'static str>,
    live: bool,
}

/// Counts of one key. A slot is freed with its last relay, so the table is bounded by the relays there are.
#[derive(Debug)]
struct Slot<K> {
    key: K,
    pending: u32,
    live: u32,
    /// A handful of classes at most: a scan beats a map.
    classes: Vec<(&'static str, u32)>,
}

#[derive(Debug)]
struct Books<K> {
    caps: Caps,
    totals: Counts,
    slots: Vec<Option<Slot<K>>>,
    free: Vec<usize>,
    index: HashMap<K, usize>,
}

/// All counts of one layer.
#[derive(Debug)]
pub(super) struct Ledger<K> {
    books: Mutex<Books<K>>,
}

impl<K: Hash + Eq + Clone> Ledger<K> {
    pub(super) fn new(caps: Caps) -> Self {
        Self {
            books: Mutex::new(Books {
                caps,
                totals: Counts::default(),
                slots: Vec::new(),
                free: Vec::new(),
                index: HashMap::new(),
            }),
        }
    }

    fn books(&self) -> MutexGuard<'_, Books<K>> {
        // Counts are whole at every point where a foreign `Hash` or `Eq` could panic, so a poisoned lock is usable.
        self.books.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the caps. What is admitted stays admitted.
    pub(super) fn set_caps(&self, caps: Caps) {
        self.books().caps = caps;
    }

    pub(super) fn counts(&self) -> Counts {
        self.books().totals
    }

    /// Pending and live relays of one key.
    pub(super) fn counts_of(&self, key: &K) -> (u32, u32) {
        let books = self.books();
        let slot = books.index.get(key).and_then(|slot| books.slots[*slot].as_ref());
        slot.map_or((0, 0), |slot| (slot.pending, slot.live))
    }

    /// How many keys have a relay now.
    #[allow(dead_code, reason = "the leak tests read it")]
    pub(super) fn keys(&self) -> usize {
        self.books().index.len()
    }

    /// Admits one relay as pending, or says which cap is reached. All checks and the count share one lock hold.
    pub(super) fn admit(
        &self,
        key: Option<&K>,
        class: Option<&'static str>,
    ) -> Result<Ticket, Full> {
        let mut books = self.books();
        if let Some(full) = books.full(key, class) {
            books.totals.refused += 1;
            return Err(full);
        }
        let slot = key.map(|key| books.slot_of(key));
        if let Some(slot) = slot {
            books.count_in(slot, class);
        }
        books.totals.pending += 1;
        Ok(Ticket { slot, class, live: false })
    }

    /// The relay is open: pending becomes live. Never refused, because live caps count pending relays as well.
    pub(super) fn promote(&self, ticket: &mut Ticket) {
        if std::mem::replace(&mut ticket.live, true) {
            return;
        }
        let mut books = self.books();
        books.totals.pending -= 1;
        books.totals.live += 1;
        books.totals.opened += 1;
        if let Some(slot) = ticket.slot.and_then(|slot| books.slots[slot].as_mut()) {
            slot.pending -= 1;
            slot.live += 1;
        }
    }

    /// The relay is over, open or not.
    pub(super) fn release(&self, ticket: Ticket) {
        let mut books = self.books();
        if ticket.live {
            books.totals.live -= 1;
        } else {
            books.totals.pending -= 1;
        }
        if let Some(slot) = ticket.slot {
            books.count_out(slot, ticket.class, ticket.live);
        }
    }
}

impl<K: Hash + Eq + Clone> Books<K> {
    fn full(&self, key: Option<&K>, class: Option<&'static str>) -> Option<Full> {
        let reached = |count: u32, cap: u32| cap != 0 && count >= cap;
        let Caps { pending, pending_per_key, live, live_per_key, .. } = self.caps;
        if reached(self.totals.pending, pending) {
            return Some(Full::Pending(pending));
        }
        if reached(self.totals.pending.saturating_add(self.totals.live), live) {
            return Some(Full::Live(live));
        }
        let slot =
            key.and_then(|key| self.index.get(key)).and_then(|slot| self.slots[*slot].as_ref())?;
        if reached(slot.pending, pending_per_key) {
            return Some(Full::PendingPerKey(pending_per_key));
        }
        if reached(slot.pending.saturating_add(slot.live), live_per_key) {
            return Some(Full::LivePerKey(live_per_key));
        }
        let class = class?;
        let count =
            slot.classes.iter().find(|(name, _)| *name == class).map_or(0, |(_, count)| *count);
        let cap =
            self.caps.classes.iter().find(|(name, _)| name == class).map_or(0, |(_, cap)| *cap);
        reached(count, cap).then_some(Full::Class(class, cap))
    }

    /// The slot of `key`, made if need be.
    fn slot_of(&mut self, key: &K) -> usize {
        if let Some(slot) = self.index.get(key) {
            return *slot;
        }
        let fresh = Slot { key: key.clone(), pending: 0, live: 0, classes: Vec::new() };
        let slot = self.free.pop().unwrap_or(self.slots.len());
        if slot == self.slots.len() {
            self.slots.push(Some(fresh));
        } else {
            self.slots[slot] = Some(fresh);
        }
        self.index.insert(key.clone(), slot);
        slot
    }

    fn count_in(&mut self, slot: usize, class: Option<&'static str>) {
        let Some(slot) = self.slots[slot].as_mut() else { return };
        slot.pending += 1;
        if let Some(class) = class {
            match slot.classes.iter_mut().find(|(name, _)| *name == class) {
                Some((_, count)) => *count += 1,
                None => slot.classes.push((class, 1)),
            }
        }
    }

    fn count_out(&mut self, number: usize, class: Option<&'static str>, live: bool) {
        let Some(slot) = self.slots[number].as_mut() else { return };
        if live {
            slot.live -= 1;
        } else {
            slot.pending -= 1;
        }
        if let Some(at) =
            class.and_then(|class| slot.classes.iter().position(|(name, _)| *name == class))
        {
            slot.classes[at].1 -= 1;
            if slot.classes[at].1 == 0 {
                slot.classes.swap_remove(at);
            }
        }
        if slot.pending == 0 && slot.live == 0 {
            if let Some(slot) = self.slots[number].take() {
                self.index.remove(&slot.key);
            }
            self.free.push(number);
        }
    }
}
