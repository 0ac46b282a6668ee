//! Log lines to the gateway: the supervisor's own and the agent's main process's.
//!
//! A bounded queue that never makes its writers wait: when it is full, lines are dropped and counted,
//! and the count is the first line that gets through afterwards.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use postern_proto::v1::{PushSandboxLogsRequest, SandboxLogLine};
use rand::Rng;
use tokio::sync::{Notify, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tracing::field::{Field, Visit};
use tracing_subscriber::layer::{Context, Layer};

use crate::gateway::Gateway;
use crate::session::Backoff;

/// Lines that may wait.
const QUEUE: usize = 200;

/// Lines per message.
const BATCH: usize = 50;

/// Longest time a line waits for others to share its message.
const FLUSH_INTERVAL: Duration = Duration::from_millis(500);

/// Longest message of a line, in bytes; longer ones are cut. A screenful is under 8 KiB.
pub(crate) const MAX_MESSAGE: usize = 8 * 1024;

/// Most fields of a line that are passed on.
const MAX_FIELDS: usize = 32;

/// Where lines of this crate's own doing come from; their writer must not feed itself.
const NOT_PUSHED: [&str; 8] =
    ["h2", "hyper", "hyper_util", "tonic", "tower", "russh", "rustls", "postern_supervisor::logs"];

/// Writes lines. Clones write to the same queue.
#[derive(Debug, Clone)]
pub struct LogQueue {
    lines: mpsc::Sender<SandboxLogLine>,
    counters: Arc<Counters>,
}

#[derive(Debug, Default)]
struct Counters {
    dropped: AtomicU64,
    pending: AtomicU64,
    settled: Notify,
}

/// Takes lines to the gateway.
#[derive(Debug)]
pub struct LogPush {
    lines: mpsc::Receiver<SandboxLogLine>,
    /// Taken from the queue for the next message; survives a send that is given up.
    gathered: Vec<SandboxLogLine>,
    counters: Arc<Counters>,
}

/// A queue and what empties it.
#[must_use]
pub fn queue() -> (LogQueue, LogPush) {
    let (sender, lines) = mpsc::channel(QUEUE);
    let counters = Arc::new(Counters::default());
    let queue = LogQueue { lines: sender, counters: Arc::clone(&counters) };
    let push = LogPush { lines, gathered: Vec::with_capacity(BATCH), counters };
    (queue, push)
}

impl LogQueue {
    /// Queues a line, or counts it as dropped.
    pub fn write(&self, level: &str, target: &str, text: String, fields: HashMap<String, String>) {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let line = SandboxLogLine {
            timestamp_ms: i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX),
            event_time: Some(prost_types::Timestamp {
                seconds: i64::try_from(since_epoch.as_secs()).unwrap_or(i64::MAX),
                nanos: since_epoch.subsec_nanos() as i32,
            }),
            level: level.to_owned(),
            target: target.to_owned(),
            message: cut(text),
            source: "sandbox".to_owned(),
            fields,
            ..SandboxLogLine::default()
        };
        self.counters.pending.fetch_add(1, Ordering::AcqRel);
        if self.lines.try_send(line).is_err() {
            self.counters.dropped.fetch_add(1, Ordering::Relaxed);
            self.counters.settle(1);
        }
    }

    /// Waits until every line written so far was handed to the gateway, at most for `limit`.
    pub async fn drained(&self, limit: Duration) {
        let settled = async {
            loop {
                let notified = self.counters.settled.notified();
                if self.counters.pending.load(Ordering::Acquire) == 0 {
                    return;
                }
                notified.await;
            }
        };
        // What did not get through by then is lost with the sandbox.
        let _ = tokio::time::timeout(limit, settled).await;
    }
}

impl Counters {
    fn settle(&self, count: u64) {
        if self.pending.fetch_sub(count, Ordering::AcqRel) == count {
            self.settled.notify_waiters();
        }
    }
}

fn cut(mut text: String) -> String {
    if text.len() > MAX_MESSAGE {
        let end = (0..=MAX_MESSAGE).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

impl LogPush {
    /// Sends lines for as long as the future is polled, across connections.
    pub async fn run(mut self, gateway: Gateway, sandbox_id: String, mut rng: impl Rng) {
        let mut backoff = Backoff::default();
        loop {
            let connection = gateway.connection().await;
            let (batches, stream) = mpsc::channel(1);
            let mut client = Gateway::client(&connection);
            let call = client.push_sandbox_logs(ReceiverStream::new(stream));
            let sent = {
                tokio::pin!(call);
                let mut sent = 0_u64;
                let answer = loop {
                    tokio::select! {
                        answer = &mut call => break answer,
                        more = self.send_batch(&sandbox_id, &batches) => match more {
                            true => sent += 1,
                            false => return,
                        },
                    }
                };
                if let Err(status) = answer {
                    tracing::debug!(code = ?status.code(), "the gateway takes no log lines at the moment");
                }
                sent
            };
            if sent > 1 {
                backoff.reset();
            }
            tokio::time::sleep(backoff.next(&mut rng)).await;
        }
    }

    /// Gathers one message and sends it; false when no line can come any more. Giving up in between
    /// loses nothing.
    async fn send_batch(
        &mut self,
        sandbox_id: &str,
        batches: &mpsc::Sender<PushSandboxLogsRequest>,
    ) -> bool {
        let Ok(room) = batches.reserve().await else {
            // The call is over and says so itself.
            return std::future::pending().await;
        };
        self.gather().await;
        if self.gathered.is_empty() {
            return false;
        }
        let mut logs = std::mem::replace(&mut self.gathered, Vec::with_capacity(BATCH));
        let count = logs.len() as u64;
        let dropped = self.counters.dropped.swap(0, Ordering::Relaxed);
        if dropped > 0
            && let Some(first) = logs.first()
        {
            let line = SandboxLogLine {
                level: "WARN".to_owned(),
                message: format!(
                    "{dropped} log lines were dropped: the gateway did not take them in time"
                ),
                target: "postern_supervisor".to_owned(),
                fields: HashMap::new(),
                ..first.clone()
            };
            logs.insert(0, line);
        }
        for line in &mut logs {
            sandbox_id.clone_into(&mut line.sandbox_id);
        }
        room.send(PushSandboxLogsRequest { sandbox_id: sandbox_id.to_owned(), logs });
        self.counters.settle(count);
        true
    }
}

impl LogPush {
    /// Waits for a line, then for as many as come soon and fit one message. Cancel safe.
    async fn gather(&mut self) {
        if self.gathered.is_empty() {
            match self.lines.recv().await {
                Some(line) => self.gathered.push(line),
                None => return,
            }
        }
        let soon = tokio::time::sleep(FLUSH_INTERVAL);
        tokio::pin!(soon);
        while self.gathered.len() < BATCH {
            tokio::select! {
                biased;
                line = self.lines.recv() => match line {
                    Some(line) => self.gathered.push(line),
                    None => return,
                },
                () = &mut soon => return,
            }
        }
    }
}

/// A tracing layer that writes to the queue.
#[derive(Debug)]
pub struct PushLayer(pub LogQueue);

impl<S: tracing::Subscriber> Layer<S> for PushLayer {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        let target = event.metadata().target();
        let root = target.split("::").next().unwrap_or(target);
        if NOT_PUSHED.contains(&root) || NOT_PUSHED.contains(&target) {
            return;
        }
        let mut line = LineVisitor::default();
        event.record(&mut line);
        let level = event.metadata().level().as_str();
        self.0.write(level, target, line.message, line.fields);
    }
}

#[derive(Default)]
struct LineVisitor {
    message: String,
    fields: HashMap<String, String>,
}

impl LineVisitor {
    fn add(&mut self, field: &Field, value: String) {
        if field.name() == "message" {
            self.message = value;
        } else if self.fields.len() < MAX_FIELDS {
            self.fields.insert(field.name().to_owned(), cut(value));
        }
    }
}

impl Visit for LineVisitor {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let mut text = String::new();
        // Writing to a string fails only when the value's own formatting does.
        let _ = write!(text, "{value:?}");
        self.add(field, text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn lines_go_in_batches_and_drops_are_told() {
        let (queue, mut push) = queue();
        for number in 0..QUEUE + 5 {
            queue.write("INFO", "main", format!("line {number}"), HashMap::new());
        }
        let (batches, mut received) = mpsc::channel(1);
        assert!(push.send_batch("s-1", &batches).await);
        let first = received.recv().await.unwrap();
        assert_eq!(first.logs.len(), BATCH + 1);
        assert!(first.logs[0].message.starts_with("5 log lines were dropped"));
        assert_eq!(first.logs[1].message, "line 0");
        assert!(first.logs.iter().all(|line| line.sandbox_id == "s-1" && line.timestamp_ms > 0));
        for _ in 0..3 {
            assert!(push.send_batch("s-1", &batches).await);
            assert_eq!(received.recv().await.unwrap().logs.len(), BATCH);
        }
        queue.drained(Duration::from_secs(1)).await;
        assert_eq!(queue.counters.pending.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn long_lines_are_cut_between_characters() {
        assert_eq!(cut("ä".repeat(MAX_MESSAGE)).len(), MAX_MESSAGE);
        assert_eq!(cut(format!("x{}", "ä".repeat(MAX_MESSAGE))).len(), MAX_MESSAGE - 1);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_for_a_gateway_that_takes_nothing_is_bounded() {
        let (queue, _push) = queue();
        queue.write("INFO", "main", "x".to_owned(), HashMap::new());
        queue.drained(Duration::from_secs(2)).await;
    }
}
