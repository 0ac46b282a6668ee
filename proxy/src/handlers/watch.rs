//! `WatchSandbox`: what a sandbox is, then what happens to it.
//!
//! The stream is pulled: it reads the record and the rings when the client takes the next event, so nothing is queued
//! for a slow client. A client that reads logs or events too slowly to keep up with the rings is told so and cut off
//! (`RESOURCE_EXHAUSTED`); one that follows only the status skips versions and always ends up at the newest.

mod cursor;

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use futures_util::stream;
use postern_proto::v1::sandbox_stream_event::Payload;
use postern_proto::v1::{SandboxStreamEvent, SandboxStreamWarning, WatchSandboxRequest};
use tokio::sync::watch;
use tonic::Status;

use self::cursor::Cursor;
use super::logs::{self, Filter};
use crate::auth::Principal;
use crate::call_error::CallError;
use crate::lifecycle::feed::{Feed, MAX_EVENTS, MAX_LINES, Tail, Tails};
use crate::lifecycle::{Lifecycle, phase};

/// Lines and events taken from the rings at one time. Bounds what one stream holds: 64 lines of at most 8 KiB.
const CHUNK: usize = 64;

/// The events of one watcher.
pub type WatchEvents = Pin<Box<dyn Stream<Item = Result<SandboxStreamEvent, Status>> + Send>>;

/// Starts to watch a sandbox: the sandbox itself first, then the tail of its log, then that of its platform events,
/// then what happens.
///
/// The stream ends when the record is gone, and with `stop_on_terminal` at Ready, Error, Stopped and Completed, after
/// what was logged up to then.
///
/// # Errors
/// `NOT_FOUND`; `INVALID_ARGUMENT` for bad filters or a cursor that is none.
pub async fn watch(
    lifecycle: &Lifecycle,
    principal: &Principal,
    request: WatchSandboxRequest,
) -> Result<WatchEvents, CallError> {
    principal.require_user()?;
    let filter = Filter::read(request.since_time, &request.log_sources, &request.log_min_level)?;
    let cursor = Cursor::read(&request.resume_after_cursor)?;
    let record =
        lifecycle.resolve(principal, request.workspace_scope.as_ref(), &request.sandbox).await?;
    // Subscribed before the record is read again, so that no change falls in between.
    let feed = lifecycle.feeds().open(record.id());
    let mut watcher = Watcher {
        lifecycle: lifecycle.clone(),
        id: record.id().to_owned(),
        changes: feed.changes(),
        feed,
        request,
        filter,
        version: None,
        next_log: 0,
        next_event: 0,
        ready: VecDeque::new(),
        ending: false,
        over: false,
    };
    watcher.changes.borrow_and_update();
    let start = watcher.place(cursor);
    watcher.read_record().await?;
    watcher.begin(start);
    Ok(Box::pin(stream::unfold(watcher, |mut watcher| async move {
        watcher.next().await.map(|event| (event, watcher))
    })))
}

/// What is sent before the live part.
struct Start {
    tails: Tails,
    warning: Option<String>,
}

struct Watcher {
    lifecycle: Lifecycle,
    id: String,
    feed: Arc<Feed>,
    changes: watch::Receiver<u64>,
    request: WatchSandboxRequest,
    filter: Filter,
    /// Version of the record that was sent last.
    version: Option<u64>,
    next_log: u64,
    next_event: u64,
    /// Made and not taken yet. At most one record and two chunks, or the tails at the start.
    ready: VecDeque<SandboxStreamEvent>,
    /// The phase that the client waits for is there; what is in the rings is still sent.
    ending: bool,
    over: bool,
}

impl Watcher {
    async fn next(&mut self) -> Option<Result<SandboxStreamEvent, Status>> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(Ok(event));
            }
            if self.over {
                return None;
            }
            self.changes.borrow_and_update();
            if let Err(error) = self.read_all().await {
                self.over = true;
                return Some(Err(error.into()));
            }
            if !self.ready.is_empty() {
                continue;
            }
            if self.ending || !self.follows() || self.changes.changed().await.is_err() {
                self.over = true;
            }
        }
    }

    /// Whether anything may still come that the client wants.
    fn follows(&self) -> bool {
        let request = &self.request;
        request.follow_status
            || request.follow_logs
            || request.follow_events
            || request.stop_on_terminal
    }

    /// Decides where in the rings to begin: at the tails that were asked for, or after the cursor.
    fn place(&mut self, cursor: Option<Cursor>) -> Start {
        let epoch = self.lifecycle.feeds().epoch();
        let start = match cursor {
            Some(cursor) if cursor.epoch == epoch => self.after(cursor),
            Some(_) => Start {
                tails: self.tails(),
                warning: Some(
                    "the cursor is from another run of the gateway; sending the newest lines"
                        .to_owned(),
                ),
            },
            None => Start { tails: self.tails(), warning: None },
        };
        self.next_log =
            start.tails.logs.first().map_or(start.tails.next_log, |(number, _)| *number);
        self.next_event =
            start.tails.events.first().map_or(start.tails.next_event, |(number, _)| *number);
        start
    }

    fn tails(&self) -> Tails {
        let request = &self.request;
        let wants_lines = request.follow_logs || request.log_tail_lines > 0;
        let lines = if wants_lines { logs::lines(request.log_tail_lines) } else { 0 };
        let wants_events = request.follow_events || request.event_tail > 0;
        let events = match usize::try_from(request.event_tail) {
            _ if !wants_events => 0,
            Ok(0) | Err(_) => MAX_EVENTS,
            Ok(wanted) => wanted.min(MAX_EVENTS),
        };
        self.feed.tails(
            Tail { max: lines, wanted: &|line| self.filter.line(line) },
            Tail { max: events, wanted: &|event| self.filter.event(event) },
        )
    }

    /// Goes on where an earlier stream of this gateway ended. What is gone from the rings meanwhile is told.
    fn after(&self, cursor: Cursor) -> Start {
        let logs = self.feed.read_logs(cursor.next_log, 0);
        let events = self.feed.read_events(cursor.next_event, 0);
        let missed = logs.missed + events.missed;
        let warning = (missed > 0)
            .then(|| format!("{missed} lines and events are gone since the cursor was given out"));
        let tails = Tails { next_log: logs.next, next_event: events.next, ..Tails::default() };
        Start { tails, warning }
    }

    /// Sends what comes before the live part.
    fn begin(&mut self, start: Start) {
        if let Some(message) = start.warning {
            self.push(Payload::Warning(SandboxStreamWarning { message }));
        }
        for (number, line) in start.tails.logs {
            self.next_log = number + 1;
            self.push(Payload::Log(line));
        }
        self.next_log = start.tails.next_log;
        for (number, event) in start.tails.events {
            self.next_event = number + 1;
            self.push(Payload::Event(event));
        }
        self.next_event = start.tails.next_event;
    }

    async fn read_all(&mut self) -> Result<(), CallError> {
        if !self.ending {
            self.read_record().await?;
        }
        if self.request.follow_logs {
            let read = self.feed.read_logs(self.next_log, CHUNK);
            lagged(read.missed, MAX_LINES)?;
            for (number, line) in read.items {
                self.next_log = number + 1;
                if self.filter.line(&line) {
                    self.push(Payload::Log(line));
                }
            }
        }
        if self.request.follow_events {
            let read = self.feed.read_events(self.next_event, CHUNK);
            lagged(read.missed, MAX_EVENTS)?;
            for (number, event) in read.items {
                self.next_event = number + 1;
                if self.filter.event(&event) {
                    self.push(Payload::Event(event));
                }
            }
        }
        Ok(())
    }

    /// Reads the record and sends it if it is newer than the one that was sent.
    async fn read_record(&mut self) -> Result<(), CallError> {
        let Some(record) = self.lifecycle.by_id(&self.id).await? else {
            self.ending = true;
            if self.version.is_none() {
                return Err(CallError::no_sandbox(&self.request.sandbox));
            }
            return Ok(());
        };
        if self.request.stop_on_terminal && phase::is_settled(record.phase()) {
            self.ending = true;
        }
        let first = self.version.is_none();
        if self.version != Some(record.version()) && (first || self.request.follow_status) {
            self.push(Payload::Sandbox(record.sandbox().clone()));
        }
        self.version = Some(record.version());
        Ok(())
    }

    fn push(&mut self, payload: Payload) {
        let cursor = Cursor {
            epoch: self.lifecycle.feeds().epoch(),
            next_log: self.next_log,
            next_event: self.next_event,
        };
        self.ready.push_back(SandboxStreamEvent { payload: Some(payload), cursor: cursor.write() });
    }
}

fn lagged(missed: u64, kept: usize) -> Result<(), CallError> {
    if missed == 0 {
        return Ok(());
    }
    Err(CallError::ResourceExhausted {
        cap: "watch.ring".into(),
        value: kept as u64,
        description: format!(
            "watch stream lagged; dropped {missed} messages; watch again with the last cursor"
        ),
        retry_after: None,
    })
}

#[cfg(test)]
mod tests;
