//! The handle through which events are recorded, and the thread that writes them.

use std::fmt;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::Notify;

use super::application_lifecycle::{ApplicationLifecycle, LifecycleActivity};
use super::draft::Draft;
use super::event::{Event, Record, Source};
use super::queue::{Gap, Queue};
use super::sink::Sink;
use super::vocabulary::{Severity, Status};

/// Events that may wait, unless said. At a typical 1 KiB each this is 8 MiB, and half a second of 16,000 events a second, longer
/// than a disk stalls in ordinary operation. As many again may be on their way through the sinks.
pub const DEFAULT_CAPACITY: usize = 8192;

/// How long the writer waits for company after a first event, unless said: 50 wake-ups a second at most, and still at once for a person.
pub const DEFAULT_LINGER: Duration = Duration::from_millis(20);

/// Milliseconds since 1970.
type Clock = Box<dyn Fn() -> i64 + Send + Sync>;

/// The wall clock. The one place in this crate that reads it.
fn system_clock() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// Sets up a [`Recorder`].
pub struct Builder {
    source: Source,
    capacity: usize,
    linger: Duration,
    clock: Clock,
    sinks: Vec<Box<dyn Sink>>,
}

impl Builder {
    /// How many events may wait for the writer; at least one. [`DEFAULT_CAPACITY`] unless said.
    #[must_use]
    pub fn capacity(mut self, events: usize) -> Self {
        self.capacity = events.max(1);
        self
    }

    /// How long the writer waits for company after a first event. [`DEFAULT_LINGER`] unless said; zero writes at once, at the
    /// price of a wake-up per event.
    #[must_use]
    pub fn linger(mut self, linger: Duration) -> Self {
        self.linger = linger;
        self
    }

    /// Where [`Recorder::now`] gets its time from, in milliseconds since 1970. The system's clock unless said.
    #[must_use]
    pub fn clock(mut self, clock: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        self.clock = Box::new(clock);
        self
    }

    /// Adds a sink. Every event goes to all of them.
    #[must_use]
    pub fn sink(mut self, sink: impl Sink + 'static) -> Self {
        self.sinks.push(Box::new(sink));
        self
    }

    /// Starts the writer's thread.
    ///
    /// # Errors
    /// If the system has no more threads to give.
    pub fn start(self) -> io::Result<(Recorder, Writer)> {
        let names = self.sinks.iter().map(|sink| sink.name()).collect();
        let shared = Arc::new(Shared {
            queue: Queue::new(self.capacity),
            clock: self.clock,
            tallies: Mutex::new(Tallies::new(names)),
            progress: Notify::new(),
        });
        let worker = Worker {
            shared: Arc::clone(&shared),
            source: self.source,
            sinks: self.sinks.into_iter().map(|sink| Slot { sink, lost: None }).collect(),
            linger: self.linger,
            sequence: 0,
        };
        let thread = std::thread::Builder::new()
            .name("ocsf-writer".to_owned())
            .spawn(move || worker.run())?;
        let recorder = Recorder { shared: Some(Arc::clone(&shared)) };
        Ok((recorder, Writer { shared, thread: Some(thread) }))
    }
}

struct Shared {
    queue: Queue,
    clock: Clock,
    tallies: Mutex<Tallies>,
    progress: Notify,
}

struct Tallies {
    notices: u64,
    sinks: Vec<SinkCounts>,
}

impl Tallies {
    fn new(names: Vec<&'static str>) -> Self {
        let sinks = names
            .into_iter()
            .map(|name| SinkCounts { name, written: 0, failed: 0, last_error: None })
            .collect();
        Self { notices: 0, sinks }
    }
}

/// What became of the events of one sink. Notices of lost events are not counted here.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SinkCounts {
    /// [`Sink::name`].
    pub name: &'static str,
    /// Events it took.
    pub written: u64,
    /// Events it did not take.
    pub failed: u64,
    /// Why it last did not take one, or could not flush.
    pub last_error: Option<String>,
}

/// What became of all events. Once flushed, `accepted` is `written + failed` of each sink.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Events that found room in the queue.
    pub accepted: u64,
    /// Events that did not, or came after the end.
    pub dropped: u64,
    /// Events that wait now.
    pub queued: usize,
    /// Notices of lost events that were written, over all sinks.
    pub notices: u64,
    /// Each sink.
    pub sinks: Vec<SinkCounts>,
}

/// Records events. Cheap to clone; all clones feed the same writer.
///
/// Recording never waits and never fails: if the queue is full the event is dropped and counted, and when there is room again a
/// notice is written that says how many are missing and from when.
#[derive(Clone)]
pub struct Recorder {
    shared: Option<Arc<Shared>>,
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder").field("enabled", &self.shared.is_some()).finish()
    }
}

impl Recorder {
    /// Sets up a recorder for events of `source`.
    #[must_use]
    pub fn builder(source: Source) -> Builder {
        Builder {
            source,
            capacity: DEFAULT_CAPACITY,
            linger: DEFAULT_LINGER,
            clock: Box::new(system_clock),
            sinks: Vec::new(),
        }
    }

    /// A recorder that forgets everything, for when auditing is off.
    #[must_use]
    pub const fn disabled() -> Self {
        Self { shared: None }
    }

    /// False if nothing is recorded anyway, so that building events can be spared.
    #[must_use]
    pub const fn is_enabled(&self) -> bool {
        self.shared.is_some()
    }

    /// The time to give an event that happens now, in milliseconds since 1970.
    #[must_use]
    pub fn now(&self) -> i64 {
        match &self.shared {
            Some(shared) => (shared.clock)(),
            None => 0,
        }
    }

    /// Records an event. False if it was dropped because the queue is full or the writer has ended.
    pub fn record(&self, event: impl Into<Draft>) -> bool {
        match &self.shared {
            Some(shared) => shared.queue.push(event.into()),
            None => true,
        }
    }

    /// What became of the events so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        match &self.shared {
            Some(shared) => shared.counts(),
            None => Counts { accepted: 0, dropped: 0, queued: 0, notices: 0, sinks: Vec::new() },
        }
    }

    /// Ready when every event recorded before has been through all sinks, or the writer has ended. Has no limit of its own: a
    /// sink that stalls holds it up.
    pub fn flush(&self) -> impl Future<Output = ()> + Send + use<> {
        let shared = self.shared.clone();
        async move {
            let Some(shared) = shared else { return };
            let target = shared.queue.hurry();
            loop {
                let mut progress = std::pin::pin!(shared.progress.notified());
                // Listen before looking, so that progress in between is not missed.
                progress.as_mut().enable();
                let counts = shared.queue.counts();
                if counts.done >= target || counts.ended {
                    return;
                }
                progress.await;
            }
        }
    }
}

impl Shared {
    fn counts(&self) -> Counts {
        let queue = self.queue.counts();
        let tallies = self.tallies();
        Counts {
            accepted: queue.accepted,
            dropped: queue.dropped,
            queued: queue.queued,
            notices: tallies.notices,
            sinks: tallies.sinks.clone(),
        }
    }

    fn tallies(&self) -> std::sync::MutexGuard<'_, Tallies> {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Owns the writer's thread. Dropping it takes no more events and lets the thread write the rest on its own;
/// [`Writer::shutdown`] waits for that.
#[derive(Debug)]
#[must_use = "without it the writer ends at once"]
pub struct Writer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("queue", &self.queue.counts()).finish_non_exhaustive()
    }
}

/// The writer was still at work when its time was up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unwritten {
    /// Events that had not been through all sinks.
    pub events: u64,
    /// How long was waited.
    pub waited: Duration,
}

impl fmt::Display for Unwritten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} audit events were not written within {:?}; a sink is stalled",
            self.events, self.waited
        )
    }
}

impl std::error::Error for Unwritten {}

impl Writer {
    /// Takes no more events, writes those that wait, closes the sinks and ends the thread. Blocks for at most `limit`: call it
    /// from where blocking is allowed, as the last step of a shutdown.
    ///
    /// # Errors
    /// [`Unwritten`] if `limit` passes first. The thread goes on until the process ends.
    pub fn shutdown(mut self, limit: Duration) -> Result<Counts, Unwritten> {
        self.shared.queue.close();
        if !self.shared.queue.wait_ended(limit) {
            let counts = self.shared.queue.counts();
            return Err(Unwritten { events: counts.accepted - counts.done, waited: limit });
        }
        if let Some(thread) = self.thread.take() {
            // It marked its end as the last thing it does, and panics of sinks are caught: nothing to learn from the result.
            let _ = thread.join();
        }
        Ok(self.shared.counts())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.queue.close();
    }
}

/// A sink with what it has lost since it last took an event.
struct Slot {
    sink: Box<dyn Sink>,
    lost: Option<Gap>,
}

struct Worker {
    shared: Arc<Shared>,
    source: Source,
    sinks: Vec<Slot>,
    linger: Duration,
    sequence: u64,
}

/// Says that the writer has ended, even if it ends by a panic.
struct EndOnDrop(Arc<Shared>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.queue.end();
        self.0.progress.notify_waiters();
    }
}

impl Worker {
    fn run(mut self) {
        let _end = EndOnDrop(Arc::clone(&self.shared));
        let mut batch = Vec::new();
        loop {
            let taken = self.shared.queue.take(&mut batch, self.linger);
            let count = batch.len();
            for draft in batch.drain(..) {
                self.deliver(draft);
            }
            if let Some(gap) = taken.gap {
                self.tell_of(gap);
            }
            for at in 0..self.sinks.len() {
                let result = guarded(|| self.sinks[at].sink.flush());
                self.note_error(at, result);
            }
            self.shared.queue.finished(count);
            self.shared.progress.notify_waiters();
            if taken.is_last {
                break;
            }
        }
        for at in 0..self.sinks.len() {
            self.make_up(at);
            let result = guarded(|| self.sinks[at].sink.close());
            self.note_error(at, result);
        }
    }

    fn deliver(&mut self, draft: Draft) {
        let time = draft.time();
        let Ok(event) = catch_unwind(AssertUnwindSafe(|| draft.into_event())) else {
            self.lose(time);
            return;
        };
        for at in 0..self.sinks.len() {
            self.make_up(at);
        }
        self.sequence += 1;
        for at in 0..self.sinks.len() {
            let record = Record::new(&event, &self.source, self.sequence);
            let slot = &mut self.sinks[at];
            // A sink that did not even take the notice of what it lost is not tried again for this event.
            let result = match slot.lost {
                Some(_) => Ok(false),
                None => guarded(|| slot.sink.write(&record)).map(|()| true),
            };
            if !matches!(result, Ok(true)) {
                slot.lost = Some(Gap::grown(slot.lost, time));
            }
            let mut tallies = self.shared.tallies();
            let counts = &mut tallies.sinks[at];
            match result {
                Ok(true) => counts.written += 1,
                Ok(false) => counts.failed += 1,
                Err(error) => {
                    counts.failed += 1;
                    counts.last_error = Some(error.to_string());
                }
            }
        }
    }

    /// Counts an event that could not be put together.
    fn lose(&mut self, time: i64) {
        let mut tallies = self.shared.tallies();
        for (slot, counts) in self.sinks.iter_mut().zip(&mut tallies.sinks) {
            slot.lost = Some(Gap::grown(slot.lost, time));
            counts.failed += 1;
            counts.last_error =
                Some("an event could not be put together: its closure panicked".to_owned());
        }
    }

    /// Tells every sink how many events found the queue full.
    fn tell_of(&mut self, gap: Gap) {
        let notice = notice(&self.source, gap, "the queue was full");
        for at in 0..self.sinks.len() {
            self.make_up(at);
        }
        self.sequence += 1;
        for at in 0..self.sinks.len() {
            let told = self.sinks[at].lost.is_none() && self.deliver_notice(at, &notice);
            if !told {
                let slot = &mut self.sinks[at];
                slot.lost = Some(Gap::joined(slot.lost, gap));
            }
        }
    }

    /// Tells a sink that failed how many events it has not got.
    fn make_up(&mut self, at: usize) {
        if let Some(gap) = self.sinks[at].lost {
            let notice = notice(&self.source, gap, "they could not be written");
            self.sequence += 1;
            if self.deliver_notice(at, &notice) {
                self.sinks[at].lost = None;
            }
        }
    }

    /// True if the sink took it.
    fn deliver_notice(&mut self, at: usize, notice: &Event) -> bool {
        let record = Record::new(notice, &self.source, self.sequence);
        let slot = &mut self.sinks[at];
        let result = guarded(|| slot.sink.write(&record));
        let is_written = result.is_ok();
        if is_written {
            self.shared.tallies().notices += 1;
        }
        self.note_error(at, result);
        is_written
    }

    fn note_error(&self, at: usize, result: io::Result<()>) {
        if let Err(error) = result {
            self.shared.tallies().sinks[at].last_error = Some(error.to_string());
        }
    }
}

/// A sink that panics has failed to take the event; the others and the thread go on.
fn guarded(work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    catch_unwind(AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(io::Error::other("the sink panicked")))
}

/// The event that stands for those that are missing.
fn notice(source: &Source, gap: Gap, why: &'static str) -> Event {
    ApplicationLifecycle::new(LifecycleActivity::Other, source.product().clone(), gap.last)
        .severity(Severity::Medium)
        .status(Status::Failure)
        .message(format!("{} audit events are missing here", gap.count))
        .detail(why)
        .count(gap.count)
        .unmapped("first_missing_time", gap.first)
        .unmapped("last_missing_time", gap.last)
        .into()
}

#[cfg(test)]
mod tests;
