//! The bounded queue between those who record events and the one thread that writes them.
//!
//! A mutex held for one push or one swap, and a condition variable. Recording never waits: with the queue full the event is
//! counted and let go. The writer takes the whole queue at once, so everything that was let go since it last came was let go
//! after the last event it takes and before the next one: a notice at the end of the batch stands exactly where the gap is.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::draft::Draft;

/// Events that were not kept: how many, and between which times (milliseconds since 1970).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    pub(crate) count: u64,
    pub(crate) first: i64,
    pub(crate) last: i64,
}

impl Gap {
    /// Both gaps as one.
    pub(crate) fn joined(gap: Option<Self>, next: Self) -> Self {
        match gap {
            Some(gap) => Self { count: gap.count + next.count, first: gap.first, last: next.last },
            None => next,
        }
    }

    /// The gap grown by one event of that time.
    pub(crate) fn grown(gap: Option<Self>, time: i64) -> Self {
        Self::joined(gap, Self { count: 1, first: time, last: time })
    }
}

struct State {
    events: Vec<Draft>,
    gap: Option<Gap>,
    open: bool,
    /// The writer wants to be woken when this many events wait; `usize::MAX` while it is busy.
    wake_at: usize,
    flush: bool,
    accepted: u64,
    dropped: u64,
    /// Accepted events that have been through all sinks.
    done: u64,
    ended: bool,
}

/// Numbers of the queue at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct QueueCounts {
    pub(crate) accepted: u64,
    pub(crate) dropped: u64,
    pub(crate) done: u64,
    pub(crate) queued: usize,
    pub(crate) ended: bool,
}

/// What the writer took.
pub(crate) struct Taken {
    pub(crate) gap: Option<Gap>,
    pub(crate) is_last: bool,
}

pub(crate) struct Queue {
    capacity: usize,
    state: Mutex<State>,
    to_writer: Condvar,
    ended: Condvar,
}

impl Queue {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            state: Mutex::new(State {
                events: Vec::new(),
                gap: None,
                open: true,
                wake_at: usize::MAX,
                flush: false,
                accepted: 0,
                dropped: 0,
                done: 0,
                ended: false,
            }),
            to_writer: Condvar::new(),
            ended: Condvar::new(),
        }
    }

    /// A panic while the lock is held cannot leave the state half changed, so a poisoned lock is as good as new.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the event if there is room. False if it was let go.
    pub(crate) fn push(&self, event: Draft) -> bool {
        let mut state = self.lock();
        if !state.open || state.events.len() >= self.capacity {
            state.dropped += 1;
            // After the end nobody is left to write the notice; the count still tells.
            if state.open {
                state.gap = Some(Gap::grown(state.gap, event.time()));
            }
            drop(state);
            return false;
        }
        state.events.push(event);
        state.accepted += 1;
        let wake = state.events.len() == state.wake_at;
        drop(state);
        if wake {
            self.to_writer.notify_one();
        }
        true
    }

    /// Waits for events and swaps them into `batch`, which must be empty. After the first one it lingers, so that a busy
    /// gateway wakes the writer once per `linger` or half a queue, not once per event.
    pub(crate) fn take(&self, batch: &mut Vec<Draft>, linger: Duration) -> Taken {
        let mut state = self.lock();
        state.wake_at = 1;
        while state.open && !state.flush && state.events.is_empty() {
            state = self.to_writer.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        let enough = (self.capacity / 2).max(1);
        if !linger.is_zero() && state.open && !state.flush && state.events.len() < enough {
            state.wake_at = enough;
            let (guard, _) = self
                .to_writer
                .wait_timeout_while(state, linger, |state| {
                    state.open && !state.flush && state.events.len() < enough
                })
                .unwrap_or_else(PoisonError::into_inner);
            state = guard;
        }
        state.wake_at = usize::MAX;
        state.flush = false;
        std::mem::swap(&mut state.events, batch);
        Taken { gap: state.gap.take(), is_last: !state.open }
    }

    /// Notes that `count` more events have been through the sinks.
    pub(crate) fn finished(&self, count: usize) {
        self.lock().done += count as u64;
    }

    /// Asks the writer not to linger, and returns how many events must be done for everything so far to be written.
    pub(crate) fn hurry(&self) -> u64 {
        let mut state = self.lock();
        state.flush = true;
        let target = state.accepted;
        drop(state);
        self.to_writer.notify_one();
        target
    }

    /// Takes no more events; the writer ends when it has written those it has.
    pub(crate) fn close(&self) {
        self.lock().open = false;
        self.to_writer.notify_one();
    }

    /// Notes that the writer has ended, for whatever reason.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.open = false;
        state.ended = true;
        drop(state);
        self.ended.notify_all();
    }

    /// Waits until the writer has ended. False if it has not within `limit`.
    pub(crate) fn wait_ended(&self, limit: Duration) -> bool {
        let state = self.lock();
        let (state, _) = self
            .ended
            .wait_timeout_while(state, limit, |state| !state.ended)
            .unwrap_or_else(PoisonError::into_inner);
        state.ended
    }

    pub(crate) fn counts(&self) -> QueueCounts {
        let state = self.lock();
        QueueCounts {
            accepted: state.accepted,
            dropped: state.dropped,
            done: state.done,
            queued: state.events.len(),
            ended: state.ended,
        }
    }
}
