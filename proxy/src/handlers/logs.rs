//! `PushSandboxLogs` and `GetSandboxLogs`, and which lines somebody wants.

use std::time::{Duration, SystemTime};

use futures_util::{Stream, StreamExt as _};
use postern_proto::v1::{
    GetSandboxLogsRequest, GetSandboxLogsResponse, PlatformEvent, PushSandboxLogsRequest,
    PushSandboxLogsResponse, SandboxLogLine,
};
use prost_types::Timestamp;
use tonic::Status;

use crate::auth::Principal;
use crate::call_error::CallError;
use crate::lifecycle::Lifecycle;
use crate::lifecycle::feed::{self, Level, MAX_LINES, SOURCE_GATEWAY, SOURCE_SANDBOX, Tail};

/// Lines that are sent when the request does not say how many (OpenShell contract).
pub const DEFAULT_LINES: usize = 200;

/// Which lines and events are wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    since: Option<SystemTime>,
    sources: Vec<String>,
    min_level: Option<Level>,
}

// === impl Filter ===

impl Filter {
    /// Reads the fields that `WatchSandbox` and `GetSandboxLogs` share.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a source or level that does not exist: a typing mistake must not look like silence.
    pub fn read(
        since: Option<Timestamp>,
        sources: &[String],
        min_level: &str,
    ) -> Result<Self, CallError> {
        let since = since
            .map(SystemTime::try_from)
            .transpose()
            .map_err(|error| CallError::invalid("since_time", error.to_string()))?;
        for source in sources {
            if ![SOURCE_GATEWAY, SOURCE_SANDBOX, "all"].contains(&source.as_str()) {
                return Err(CallError::invalid(
                    "sources",
                    "has an unknown source; use \"gateway\" or \"sandbox\"",
                ));
            }
        }
        let min_level = match min_level {
            "" => None,
            text => Some(Level::parse(text).ok_or_else(|| {
                CallError::invalid(
                    "min_level",
                    "is no level; use trace, debug, info, warn or error",
                )
            })?),
        };
        let all = sources.iter().any(|source| source == "all");
        Ok(Self { since, sources: if all { Vec::new() } else { sources.to_vec() }, min_level })
    }

    /// Whether a line is wanted. A level that is none of ours (an OCSF line) counts as info.
    #[must_use]
    pub fn line(&self, line: &SandboxLogLine) -> bool {
        let level = Level::parse(&line.level).unwrap_or(Level::Info);
        self.min_level.is_none_or(|least| level >= least)
            && (self.sources.is_empty() || self.sources.contains(&line.source))
            && self.recent(line.event_time)
    }

    /// Whether a platform event is wanted.
    #[must_use]
    pub fn event(&self, event: &PlatformEvent) -> bool {
        self.recent(event.event_time)
    }

    fn recent(&self, time: Option<Timestamp>) -> bool {
        let time = time.and_then(|time| SystemTime::try_from(time).ok());
        match (self.since, time) {
            (Some(since), Some(time)) => time >= since,
            (Some(_), None) | (None, _) => true,
        }
    }
}

/// Takes the log of a sandbox from its supervisor. Each batch is checked against the caller, because one stream may
/// carry many.
///
/// # Errors
/// `PERMISSION_DENIED` for a batch of another sandbox, `NOT_FOUND` when the sandbox is gone.
pub async fn push(
    lifecycle: &Lifecycle,
    principal: &Principal,
    batches: impl Stream<Item = Result<PushSandboxLogsRequest, Status>> + Send,
) -> Result<PushSandboxLogsResponse, Status> {
    let mut batches = std::pin::pin!(batches);
    principal.require_any_sandbox()?;
    while let Some(batch) = batches.next().await {
        let batch = batch?;
        let sandbox_id = &principal.require_sandbox(&batch.sandbox_id)?.sandbox_id;
        let feed = match lifecycle.feeds().get(sandbox_id) {
            Some(feed) if !feed.is_closed() => feed,
            _ if lifecycle.by_id(sandbox_id).await?.is_some() => lifecycle.feeds().open(sandbox_id),
            _ => return Err(CallError::no_sandbox(sandbox_id).into()),
        };
        let now = lifecycle.now();
        feed.push_logs(batch.logs.into_iter().map(|line| received(line, sandbox_id, now)));
    }
    Ok(PushSandboxLogsResponse {})
}

/// The newest log lines of a sandbox, oldest first.
///
/// # Errors
/// `NOT_FOUND`, `INVALID_ARGUMENT`.
pub async fn get(
    lifecycle: &Lifecycle,
    principal: &Principal,
    request: GetSandboxLogsRequest,
) -> Result<GetSandboxLogsResponse, CallError> {
    principal.require_user()?;
    let filter = Filter::read(request.since_time, &request.sources, &request.min_level)?;
    let record =
        lifecycle.resolve(principal, request.workspace_scope.as_ref(), &request.sandbox).await?;
    let tails = lifecycle.feeds().open(record.id()).tails(
        Tail { max: lines(request.lines), wanted: &|line| filter.line(line) },
        Tail { max: 0, wanted: &|_| false },
    );
    Ok(GetSandboxLogsResponse {
        logs: tails.logs.into_iter().map(|(_, line)| line).collect(),
        buffer_total: u32::try_from(tails.kept_logs).unwrap_or(u32::MAX),
    })
}

/// How many lines a request means.
pub(super) fn lines(wanted: u32) -> usize {
    match usize::try_from(wanted) {
        Ok(0) => DEFAULT_LINES,
        Ok(wanted) => wanted.min(MAX_LINES),
        Err(_) => MAX_LINES,
    }
}

/// A pushed line as it is kept: it is what it says, except for whose it is and where it came from.
fn received(mut line: SandboxLogLine, sandbox_id: &str, now: SystemTime) -> SandboxLogLine {
    sandbox_id.clone_into(&mut line.sandbox_id);
    SOURCE_SANDBOX.clone_into(&mut line.source);
    let told = line.event_time.and_then(|time| SystemTime::try_from(time).ok());
    let older = u64::try_from(line.timestamp_ms)
        .ok()
        .filter(|ms| *ms > 0)
        .and_then(|ms| SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(ms)));
    feed::set_time(&mut line, told.or(older).unwrap_or(now));
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lifecycle::testing::{Rig, supervisor, user};

    fn line(level: &str, source: &str, ms: i64) -> SandboxLogLine {
        let line = SandboxLogLine {
            level: level.into(),
            source: source.into(),
            timestamp_ms: ms,
            ..Default::default()
        };
        let mut kept = received(line, "a", SystemTime::UNIX_EPOCH);
        kept.source = source.into();
        kept
    }

    #[test]
    fn both_time_fields_are_set_from_whichever_was_sent() {
        let older = line("INFO", "sandbox", 1500);
        assert_eq!(older.event_time, Some(Timestamp { seconds: 1, nanos: 500_000_000 }));
        let told = SandboxLogLine {
            event_time: Some(Timestamp { seconds: 2, nanos: 0 }),
            source: "gateway".into(),
            sandbox_id: "another".into(),
            ..Default::default()
        };
        let kept = received(told, "a", SystemTime::UNIX_EPOCH);
        assert_eq!(kept.timestamp_ms, 2000);
        assert_eq!((kept.source.as_str(), kept.sandbox_id.as_str()), ("sandbox", "a"));
    }

    #[test]
    fn filters() {
        let filter = |sources: &[&str], level: &str| {
            let sources: Vec<_> = sources.iter().map(|s| (*s).to_owned()).collect();
            Filter::read(Some(Timestamp { seconds: 1, nanos: 0 }), &sources, level).unwrap()
        };
        assert!(filter(&[], "").line(&line("DEBUG", "sandbox", 1000)));
        assert!(!filter(&[], "").line(&line("DEBUG", "sandbox", 999)));
        assert!(!filter(&[], "info").line(&line("DEBUG", "sandbox", 1000)));
        assert!(filter(&[], "WARN").line(&line("error", "sandbox", 1000)));
        assert!(filter(&[], "info").line(&line("OCSF", "sandbox", 1000)));
        assert!(!filter(&["gateway"], "").line(&line("INFO", "sandbox", 1000)));
        assert!(filter(&["gateway", "all"], "").line(&line("INFO", "sandbox", 1000)));
        assert!(Filter::read(None, &["gatway".to_owned()], "").is_err());
        assert!(Filter::read(None, &[], "loud").is_err());
    }

    fn batch(sandbox_id: &str, messages: &[&str]) -> Result<PushSandboxLogsRequest, Status> {
        let line = |message: &&str| SandboxLogLine {
            message: (*message).to_owned(),
            ..Default::default()
        };
        Ok(PushSandboxLogsRequest {
            sandbox_id: sandbox_id.into(),
            logs: messages.iter().map(line).collect(),
        })
    }

    async fn made(rig: &Rig) -> String {
        let request = postern_proto::v1::CreateSandboxRequest::default();
        let made =
            crate::handlers::sandboxes::create(&rig.lifecycle, &user(), request).await.unwrap();
        made.sandbox.unwrap().metadata.unwrap().id
    }

    async fn messages(rig: &Rig, request: GetSandboxLogsRequest) -> (Vec<String>, u32) {
        let answer = get(&rig.lifecycle, &user(), request).await.unwrap();
        (answer.logs.into_iter().map(|line| line.message).collect(), answer.buffer_total)
    }

    #[tokio::test]
    async fn every_batch_is_checked_and_what_came_before_is_kept() {
        let rig = Rig::new().await;
        let (id, other) = (made(&rig).await, made(&rig).await);
        let batches = futures_util::stream::iter([
            batch(&id, &["one", "two"]),
            batch(&other, &["forged"]),
            batch(&id, &["three"]),
        ]);
        let error = push(&rig.lifecycle, &supervisor(&id), batches).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::PermissionDenied);
        let wanted = |sandbox: &str| GetSandboxLogsRequest {
            sandbox: sandbox.to_owned(),
            sources: vec!["sandbox".to_owned()],
            ..Default::default()
        };
        assert_eq!(messages(&rig, wanted(&id)).await.0, ["one", "two"]);
        assert!(messages(&rig, wanted(&other)).await.0.is_empty());
        let all = GetSandboxLogsRequest { sandbox: id, lines: 1, ..Default::default() };
        let (newest, total) = messages(&rig, all).await;
        assert_eq!(newest, ["two"]);
        assert!(total > 2);
    }

    #[tokio::test]
    async fn a_sandbox_that_is_gone_takes_no_logs() {
        let rig = Rig::new().await;
        let id = made(&rig).await;
        let record = rig.lifecycle.by_id(&id).await.unwrap().unwrap();
        rig.lifecycle.delete(record, None).await.unwrap();
        let batches = futures_util::stream::iter([batch(&id, &["late"])]);
        let error = push(&rig.lifecycle, &supervisor(&id), batches).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::NotFound);
        assert!(rig.lifecycle.feeds().ids().is_empty());
        let batches = futures_util::stream::iter([batch(&id, &["late"])]);
        let error = push(&rig.lifecycle, &user(), batches).await.unwrap_err();
        assert_eq!(error.code(), tonic::Code::PermissionDenied);
    }
}
