//! What can be followed of a sandbox: that its record changed, its log, its platform events.
//!
//! Log and events are rings with running numbers; a follower keeps the number it wants next and is woken by a
//! counter. So there is no queue per follower: one that is slow loses its place in the ring and is told how much it
//! missed, one that only wants the phase can never fall behind, and a cursor is just two numbers.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use postern_proto::v1::{PlatformEvent, SandboxLogLine};
use prost::Message as _;
use tokio::sync::watch;

use super::record::timestamp;

/// Log lines kept of one sandbox (OpenShell contract).
pub const MAX_LINES: usize = 2000;
/// Bytes of log kept of one sandbox, as encoded. Bounds what a sandbox that writes long lines can hold.
pub const MAX_LOG_BYTES: usize = 1024 * 1024;
/// Platform events kept of one sandbox (OpenShell contract).
pub const MAX_EVENTS: usize = 50;
/// Longest message of a log line that is kept, in bytes; the rest is cut off.
pub const MAX_MESSAGE: usize = 8 * 1024;
/// Fields of a log line that are kept.
pub const MAX_FIELDS: usize = 32;
/// Longest field name or value that is kept, in bytes.
pub const MAX_FIELD: usize = 1024;

/// `source` of lines that the gateway writes.
pub const SOURCE_GATEWAY: &str = "gateway";
/// `source` of lines that a supervisor pushed.
pub const SOURCE_SANDBOX: &str = "sandbox";

/// Log level, least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Everything.
    Trace,
    /// For people who look for a fault.
    Debug,
    /// What happened.
    Info,
    /// What may need attention.
    Warn,
    /// What failed.
    Error,
}

impl Level {
    /// The spelling on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "TRACE",
            Self::Debug => "DEBUG",
            Self::Info => "INFO",
            Self::Warn => "WARN",
            Self::Error => "ERROR",
        }
    }

    /// Reads a level in any case; `None` for other words.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text.to_ascii_lowercase().as_str() {
            "trace" => Some(Self::Trace),
            "debug" => Some(Self::Debug),
            "info" => Some(Self::Info),
            "warn" | "warning" => Some(Self::Warn),
            "error" => Some(Self::Error),
            _ => None,
        }
    }
}

/// The feeds of all sandboxes.
pub struct Feeds {
    epoch: u64,
    by_sandbox: Mutex<HashMap<String, Arc<Feed>>>,
}

/// The feed of one sandbox.
pub struct Feed {
    rings: Mutex<Rings>,
    changed: watch::Sender<u64>,
}

struct Rings {
    logs: Ring<SandboxLogLine>,
    events: Ring<PlatformEvent>,
    closed: bool,
}

/// The newest items, numbered from 0 without gaps.
struct Ring<T> {
    items: VecDeque<(usize, T)>,
    /// Number of the oldest item that is kept.
    first: u64,
    bytes: usize,
    max_items: usize,
    max_bytes: usize,
}

/// Items read from a place in a ring.
#[derive(Clone, Debug, PartialEq)]
pub struct Read<T> {
    /// The items with their numbers.
    pub items: Vec<(u64, T)>,
    /// How many were wanted and are gone.
    pub missed: u64,
    /// Where to read next.
    pub next: u64,
}

/// How much of the end of a ring is wanted.
#[derive(Clone, Copy)]
pub struct Tail<'a, T> {
    /// Most items.
    pub max: usize,
    /// Which items count.
    pub wanted: &'a dyn Fn(&T) -> bool,
}

/// The ends of both rings, oldest first, each item with its number.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tails {
    /// Log lines.
    pub logs: Vec<(u64, SandboxLogLine)>,
    /// Platform events.
    pub events: Vec<(u64, PlatformEvent)>,
    /// Number that the next log line will get.
    pub next_log: u64,
    /// Number that the next event will get.
    pub next_event: u64,
    /// Log lines that are kept, wanted or not.
    pub kept_logs: usize,
}

// === impl Feeds ===

impl Feeds {
    /// Feeds whose cursors are told apart from those of other gateways by `epoch`.
    #[must_use]
    pub fn new(epoch: u64) -> Self {
        Self { epoch, by_sandbox: Mutex::default() }
    }

    /// Tells cursors of this run of the gateway from others.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The feed of a sandbox, made if there is none. Only for sandboxes that have a record: the feed lives until the
    /// record goes.
    #[must_use]
    pub fn open(&self, sandbox_id: &str) -> Arc<Feed> {
        Arc::clone(self.by_sandbox.lock().entry(sandbox_id.to_owned()).or_default())
    }

    /// The feed of a sandbox, if there is one.
    #[must_use]
    pub fn get(&self, sandbox_id: &str) -> Option<Arc<Feed>> {
        self.by_sandbox.lock().get(sandbox_id).map(Arc::clone)
    }

    /// Wakes the followers of a sandbox because its record changed.
    pub fn touch(&self, sandbox_id: &str) {
        if let Some(feed) = self.by_sandbox.lock().get(sandbox_id) {
            feed.wake();
        }
    }

    /// Ends the feed of a sandbox whose record is gone. Followers see the rest of it and then its end.
    pub fn close(&self, sandbox_id: &str) {
        if let Some(feed) = self.by_sandbox.lock().remove(sandbox_id) {
            feed.rings.lock().closed = true;
            feed.wake();
        }
    }

    /// Ids of sandboxes with a feed.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        self.by_sandbox.lock().keys().cloned().collect()
    }
}

// === impl Feed ===

impl Default for Feed {
    fn default() -> Self {
        let rings = Rings {
            logs: Ring::new(MAX_LINES, MAX_LOG_BYTES),
            // Events are few and made by drivers; 64 KiB is 50 of more than a kilobyte.
            events: Ring::new(MAX_EVENTS, 64 * 1024),
            closed: false,
        };
        Self { rings: Mutex::new(rings), changed: watch::Sender::new(0) }
    }
}

impl Feed {
    /// Moves whenever anything changes. Ends when the feed is gone.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Whether the record is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.rings.lock().closed
    }

    /// Adds a log line, cut to what is kept of a line.
    pub fn push_log(&self, line: SandboxLogLine) {
        self.push_logs([line]);
    }

    /// Adds log lines; followers are woken once.
    pub fn push_logs(&self, lines: impl IntoIterator<Item = SandboxLogLine>) {
        {
            let mut rings = self.rings.lock();
            for line in lines {
                let line = cut_line(line);
                rings.logs.push(line.encoded_len(), line);
            }
        }
        self.wake();
    }

    /// Adds a platform event.
    pub fn push_event(&self, event: PlatformEvent) {
        self.rings.lock().events.push(event.encoded_len(), event);
        self.wake();
    }

    /// Log lines from number `from` on, at most `max`.
    #[must_use]
    pub fn read_logs(&self, from: u64, max: usize) -> Read<SandboxLogLine> {
        self.rings.lock().logs.read(from, max)
    }

    /// Platform events from number `from` on, at most `max`.
    #[must_use]
    pub fn read_events(&self, from: u64, max: usize) -> Read<PlatformEvent> {
        self.rings.lock().events.read(from, max)
    }

    /// The newest lines and events that the filters accept, and where both rings end, all at one moment.
    #[must_use]
    pub fn tails(&self, logs: Tail<'_, SandboxLogLine>, events: Tail<'_, PlatformEvent>) -> Tails {
        let rings = self.rings.lock();
        Tails {
            logs: rings.logs.tail(logs.max, logs.wanted),
            events: rings.events.tail(events.max, events.wanted),
            next_log: rings.logs.end(),
            next_event: rings.events.end(),
            kept_logs: rings.logs.items.len(),
        }
    }

    fn wake(&self) {
        self.changed.send_modify(|count| *count = count.wrapping_add(1));
    }
}

// === impl Ring ===

impl<T: Clone> Ring<T> {
    fn new(max_items: usize, max_bytes: usize) -> Self {
        Self { items: VecDeque::new(), first: 0, bytes: 0, max_items, max_bytes }
    }

    fn push(&mut self, bytes: usize, item: T) {
        self.items.push_back((bytes, item));
        self.bytes += bytes;
        while self.items.len() > self.max_items
            || (self.bytes > self.max_bytes && self.items.len() > 1)
        {
            let Some((bytes, _)) = self.items.pop_front() else { break };
            self.bytes -= bytes;
            self.first += 1;
        }
    }

    fn end(&self) -> u64 {
        self.first + self.items.len() as u64
    }

    fn read(&self, from: u64, max: usize) -> Read<T> {
        let start = from.clamp(self.first, self.end());
        let skip = usize::try_from(start - self.first).unwrap_or(usize::MAX);
        let items: Vec<_> = (start..)
            .zip(self.items.iter().skip(skip).take(max).map(|(_, item)| item.clone()))
            .collect();
        let next = start + items.len() as u64;
        Read { items, missed: self.first.saturating_sub(from), next }
    }

    fn tail(&self, max: usize, wanted: &dyn Fn(&T) -> bool) -> Vec<(u64, T)> {
        let numbered = self.items.iter().enumerate().rev();
        let mut newest: Vec<_> = numbered
            .filter(|(_, (_, item))| wanted(item))
            .take(max)
            .map(|(index, (_, item))| (self.first + index as u64, item.clone()))
            .collect();
        newest.reverse();
        newest
    }
}

/// A line that the gateway writes into the log of a sandbox.
#[must_use]
pub fn gateway_line(
    sandbox_id: &str,
    now: SystemTime,
    level: Level,
    message: String,
    fields: impl IntoIterator<Item = (String, String)>,
) -> SandboxLogLine {
    let mut line = SandboxLogLine {
        sandbox_id: sandbox_id.to_owned(),
        level: level.as_str().to_owned(),
        target: "postern::lifecycle".to_owned(),
        message,
        source: SOURCE_GATEWAY.to_owned(),
        fields: fields.into_iter().collect(),
        ..SandboxLogLine::default()
    };
    set_time(&mut line, now);
    line
}

/// Writes both time fields of a line: the timestamp, and the milliseconds that older peers read.
pub fn set_time(line: &mut SandboxLogLine, time: SystemTime) {
    line.event_time = Some(timestamp(time));
    line.timestamp_ms = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
}

fn cut_line(mut line: SandboxLogLine) -> SandboxLogLine {
    cut(&mut line.message, MAX_MESSAGE);
    cut(&mut line.target, MAX_FIELD);
    cut(&mut line.level, 32);
    let over = |fields: &std::collections::HashMap<String, String>| {
        fields.len() > MAX_FIELDS || fields.iter().any(|(k, v)| k.len().max(v.len()) > MAX_FIELD)
    };
    if over(&line.fields) {
        let sorted: BTreeMap<String, String> =
            std::mem::take(&mut line.fields).into_iter().collect();
        line.fields = sorted
            .into_iter()
            .take(MAX_FIELDS)
            .map(|(mut key, mut value)| {
                cut(&mut key, MAX_FIELD);
                cut(&mut value, MAX_FIELD);
                (key, value)
            })
            .collect();
    }
    line
}

fn cut(text: &mut String, limit: usize) {
    if text.len() > limit {
        text.truncate(text.floor_char_boundary(limit));
        text.push_str(" [cut]");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(message: &str) -> SandboxLogLine {
        SandboxLogLine { message: message.into(), ..Default::default() }
    }

    fn all(feed: &Feed) -> Tails {
        feed.tails(
            Tail { max: usize::MAX, wanted: &|_| true },
            Tail { max: usize::MAX, wanted: &|_| true },
        )
    }

    #[test]
    fn a_reader_that_falls_behind_is_told_how_much_it_missed() {
        let feed = Feed::default();
        feed.push_logs((0..MAX_LINES + 3).map(|n| line(&n.to_string())));
        let read = feed.read_logs(0, 2);
        assert_eq!((read.missed, read.next), (3, 5));
        assert_eq!(read.items[0], (3, line("3")));
        // A reader at the end, and one from the future of another run, get nothing.
        let end = all(&feed).next_log;
        assert!(feed.read_logs(end, 9).items.is_empty());
        assert_eq!(feed.read_logs(end + 50, 9), Read { items: vec![], missed: 0, next: end });
    }

    #[test]
    fn long_lines_do_not_grow_the_ring() {
        let feed = Feed::default();
        let long = "x".repeat(1024 * 1024);
        feed.push_logs((0..500).map(|_| line(&long)));
        let tails = all(&feed);
        assert!(tails.kept_logs <= MAX_LOG_BYTES / MAX_MESSAGE);
        assert!(tails.logs.iter().all(|(_, line)| line.message.ends_with(" [cut]")));
    }

    #[test]
    fn fields_are_bounded() {
        let mut wide = line("m");
        wide.fields = (0..100).map(|n| (format!("k{n:03}"), "v".repeat(5000))).collect();
        let kept = cut_line(wide);
        assert_eq!(kept.fields.len(), MAX_FIELDS);
        assert!(kept.fields.values().all(|value| value.len() < MAX_FIELD + 10));
    }

    #[tokio::test]
    async fn closing_wakes_and_forgets() {
        let feeds = Feeds::new(1);
        let feed = feeds.open("a");
        let mut changes = feed.changes();
        feeds.close("a");
        changes.changed().await.unwrap();
        assert!(feed.is_closed() && feeds.ids().is_empty());
        feeds.touch("a");
        drop(feed);
        assert!(changes.changed().await.is_err());
    }
}
