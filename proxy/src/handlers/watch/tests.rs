use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _};
use postern_driver_core::condition::{EventKind, platform_event};
use postern_proto::v1::{PlatformEvent, SandboxLogLine, SandboxPhase};

use super::*;
use crate::lifecycle::CreateSpec;
use crate::lifecycle::feed::Level;
use crate::lifecycle::testing::{Rig, user};

async fn made(rig: &Rig) -> String {
    let spec = CreateSpec {
        workspace: "default".into(),
        name: None,
        labels: Default::default(),
        annotations: Default::default(),
        spec: Default::default(),
        repeatable: None,
    };
    rig.lifecycle.create(spec).await.unwrap().record.id().to_owned()
}

fn following(id: &str) -> WatchSandboxRequest {
    WatchSandboxRequest {
        sandbox: id.into(),
        follow_status: true,
        follow_logs: true,
        follow_events: true,
        ..Default::default()
    }
}

async fn start(rig: &Rig, request: WatchSandboxRequest) -> WatchEvents {
    watch(&rig.lifecycle, &user(), request).await.unwrap()
}

/// A word for each event: the phase, `log:<message>`, `event:<reason>` or `warning`.
fn word(event: &SandboxStreamEvent) -> String {
    match event.payload.as_ref().unwrap() {
        Payload::Sandbox(sandbox) => {
            sandbox.status.as_ref().unwrap().phase().as_str_name()[14..].to_owned()
        }
        Payload::Log(line) => format!("log:{}", line.message),
        Payload::Event(event) => format!("event:{}", event.reason),
        Payload::Warning(_) => "warning".to_owned(),
        Payload::DraftPolicyUpdate(_) => "draft".to_owned(),
    }
}

/// What is there without waiting for more.
fn ready_now(events: &mut WatchEvents) -> Vec<SandboxStreamEvent> {
    let mut taken = Vec::new();
    while let Some(Some(event)) = events.next().now_or_never() {
        taken.push(event.unwrap());
    }
    taken
}

/// Words up to and including the first that begins with `last`.
async fn words_until(events: &mut WatchEvents, last: &str) -> Vec<String> {
    let mut words = Vec::new();
    while let Some(event) = events.next().await {
        words.push(word(&event.unwrap()));
        if words.last().is_some_and(|word| word.starts_with(last)) {
            return words;
        }
    }
    panic!("the stream ended before {last:?}: {words:?}");
}

async fn rest(events: WatchEvents) -> Vec<String> {
    events.map(|event| word(&event.unwrap())).collect().await
}

fn push(rig: &Rig, id: &str, messages: &[&str]) {
    let line =
        |message: &&str| SandboxLogLine { message: (*message).to_owned(), ..Default::default() };
    rig.lifecycle.feeds().open(id).push_logs(messages.iter().map(line));
}

fn platform(rig: &Rig, id: &str, reason: &str) {
    let event = PlatformEvent { reason: reason.into(), ..Default::default() };
    rig.lifecycle.feeds().open(id).push_event(event);
}

#[tokio::test]
async fn the_sandbox_comes_first_then_log_then_events_then_what_happens() {
    let rig = Rig::new().await;
    let id = made(&rig).await;
    push(&rig, &id, &["one", "two"]);
    platform(&rig, &id, "Scheduled");
    let request = WatchSandboxRequest { log_tail_lines: 2, ..following(&id) };
    let mut events = start(&rig, request).await;
    let words = words_until(&mut events, "event:Scheduled").await;
    assert_eq!(words, ["PROVISIONING", "log:one", "log:two", "event:Scheduled"]);
    rig.connect(&id, "s1").await;
    let words = words_until(&mut events, "log:").await;
    assert_eq!(words[0], "READY");
    push(&rig, &id, &["three"]);
    assert_eq!(words_until(&mut events, "log:three").await, ["log:three"]);
    // The end of the record is the end of the stream.
    let record = rig.lifecycle.by_id(&id).await.unwrap().unwrap();
    rig.lifecycle.delete(record, None).await.unwrap();
    rest(events).await;
}

#[tokio::test]
async fn it_stops_at_every_phase_that_is_waited_for() {
    for phase in
        [SandboxPhase::Ready, SandboxPhase::Error, SandboxPhase::Stopped, SandboxPhase::Completed]
    {
        let rig = Rig::new().await;
        let id = made(&rig).await;
        let request = WatchSandboxRequest { stop_on_terminal: true, ..following(&id) };
        let events = start(&rig, request).await;
        match phase {
            SandboxPhase::Ready => rig.connect(&id, "s1").await,
            SandboxPhase::Error => rig.lifecycle.main_exited(&id, "epoch-1", 1).await.unwrap(),
            SandboxPhase::Completed => rig.lifecycle.main_exited(&id, "epoch-1", 0).await.unwrap(),
            _ => {
                let record = rig.lifecycle.by_id(&id).await.unwrap().unwrap();
                rig.lifecycle.stop(record, None).await.unwrap();
            }
        }
        let words = tokio::time::timeout(Duration::from_secs(10), rest(events)).await.unwrap();
        let name = phase.as_str_name()[14..].to_owned();
        assert!(words.contains(&name), "{name}: {words:?}");
        // The gateway's own line about it is sent before the end.
        let lower = name.to_lowercase();
        assert!(words.iter().any(|word| word.contains(&format!("-> {lower}"))), "{words:?}");
    }
}

#[tokio::test]
async fn a_reader_that_is_too_slow_is_told_and_cut_off() {
    let rig = Rig::new().await;
    let id = made(&rig).await;
    let mut events = start(&rig, following(&id)).await;
    assert!(!ready_now(&mut events).is_empty());
    let many: Vec<String> = (0..MAX_LINES + 10).map(|n| n.to_string()).collect();
    push(&rig, &id, &many.iter().map(String::as_str).collect::<Vec<_>>());
    let error = loop {
        if let Err(error) = events.next().await.unwrap() {
            break error;
        }
    };
    assert_eq!(error.code(), tonic::Code::ResourceExhausted);
    assert!(error.message().starts_with("watch stream lagged; dropped "), "{error}");
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn a_reader_of_the_status_never_lags() {
    let rig = Rig::new().await;
    let id = made(&rig).await;
    let request =
        WatchSandboxRequest { sandbox: id.clone(), follow_status: true, ..Default::default() };
    let mut events = start(&rig, request).await;
    for n in 0..500 {
        rig.connect(&id, &format!("s{n}")).await;
        rig.disconnect(&id, &format!("s{n}")).await;
    }
    rig.connect(&id, "last").await;
    assert_eq!(words_until(&mut events, "READY").await, ["PROVISIONING", "READY"]);
}

#[tokio::test]
async fn a_cursor_goes_on_where_the_last_stream_ended() {
    let rig = Rig::new().await;
    let id = made(&rig).await;
    push(&rig, &id, &["one", "two"]);
    let mut events = start(&rig, following(&id)).await;
    let mut cursor = String::new();
    while let Some(event) = events.next().await {
        let event = event.unwrap();
        cursor = event.cursor.clone();
        if word(&event) == "log:one" {
            break;
        }
    }
    drop(events);
    platform(&rig, &id, "Later");
    let resumed = WatchSandboxRequest { resume_after_cursor: cursor.clone(), ..following(&id) };
    let mut events = start(&rig, resumed.clone()).await;
    let words = words_until(&mut events, "event:Later").await;
    assert_eq!(words[..2], ["PROVISIONING", "log:two"]);
    assert!(!words.contains(&"log:one".to_owned()));

    // What is gone meanwhile is told.
    let many = vec!["x"; MAX_LINES + 1];
    push(&rig, &id, &many);
    let words = words_until(&mut start(&rig, resumed).await, "log:").await;
    assert_eq!(words, ["PROVISIONING", "warning", "log:x"]);

    // Another run of the gateway says so and begins with the newest lines; other texts are refused.
    let other = Cursor { epoch: 1, next_log: 7, next_event: 7 }.write();
    let foreign =
        WatchSandboxRequest { resume_after_cursor: other, log_tail_lines: 1, ..following(&id) };
    let words = words_until(&mut start(&rig, foreign).await, "log:").await;
    assert_eq!(words, ["PROVISIONING", "warning", "log:x"]);
    let bad = WatchSandboxRequest { resume_after_cursor: "x".into(), ..following(&id) };
    assert_eq!(
        watch(&rig.lifecycle, &user(), bad).await.err().unwrap().code(),
        tonic::Code::InvalidArgument
    );
}

#[tokio::test]
async fn the_first_event_already_has_a_cursor_that_misses_nothing() {
    let rig = Rig::new().await;
    let id = made(&rig).await;
    push(&rig, &id, &["one", "two"]);
    let mut events = start(&rig, WatchSandboxRequest { log_tail_lines: 2, ..following(&id) }).await;
    let first = events.next().await.unwrap().unwrap();
    drop(events);
    let resumed = WatchSandboxRequest { resume_after_cursor: first.cursor, ..following(&id) };
    let words = words_until(&mut start(&rig, resumed).await, "log:two").await;
    assert_eq!(words, ["PROVISIONING", "log:one", "log:two"]);
}

#[tokio::test]
async fn filters_hold_for_tail_and_live_lines() {
    let rig = Rig::new().await;
    let id = made(&rig).await;
    let request = WatchSandboxRequest {
        sandbox: id.clone(),
        follow_logs: true,
        log_sources: vec!["gateway".into()],
        log_min_level: "warn".into(),
        ..Default::default()
    };
    push(&rig, &id, &["from the sandbox"]);
    rig.lifecycle.note(&id, Level::Info, "quiet", []);
    rig.lifecycle.note(&id, Level::Warn, "before", []);
    let mut events = start(&rig, request).await;
    assert_eq!(words_until(&mut events, "log:").await, ["PROVISIONING", "log:before"]);
    push(&rig, &id, &["from the sandbox"]);
    rig.lifecycle.note(&id, Level::Info, "quiet", []);
    rig.lifecycle.note(&id, Level::Error, "after", []);
    assert_eq!(words_until(&mut events, "log:").await, ["log:after"]);
}

#[tokio::test]
async fn without_anything_to_follow_it_is_a_snapshot() {
    let rig = Rig::new().await;
    let id = made(&rig).await;
    platform(&rig, &id, "Scheduled");
    let request =
        WatchSandboxRequest { sandbox: id, log_tail_lines: 1, event_tail: 1, ..Default::default() };
    let words = rest(start(&rig, request).await).await;
    assert_eq!(words.len(), 3, "{words:?}");
    assert_eq!(words[2], "event:Scheduled");
}

#[tokio::test]
async fn missing_sandboxes_and_bad_filters_are_refused_at_once() {
    let rig = Rig::new().await;
    let id = made(&rig).await;
    let missing = watch(&rig.lifecycle, &user(), following("nothing")).await.err().unwrap();
    assert_eq!(missing.code(), tonic::Code::NotFound);
    let loud = WatchSandboxRequest { log_min_level: "loud".into(), ..following(&id) };
    assert_eq!(
        watch(&rig.lifecycle, &user(), loud).await.err().unwrap().code(),
        tonic::Code::InvalidArgument
    );
}

#[tokio::test]
async fn events_of_the_runtime_arrive_with_their_time() {
    let rig = Rig::new().await;
    let id = made(&rig).await;
    let time = jiff::Timestamp::from_millisecond(1_500).unwrap();
    let event = platform_event("fake", EventKind::Warning, "DiskFull", "no space", time);
    let event =
        postern_driver_core::WatchEvent::Platform { id: id.clone(), event: Box::new(event) };
    rig.lifecycle.observe(event).await;
    let mut events = start(&rig, following(&id)).await;
    let event = loop {
        if let Some(Payload::Event(event)) = events.next().await.unwrap().unwrap().payload {
            break event;
        }
    };
    assert_eq!((event.r#type.as_str(), event.message.as_str()), ("Warning", "no space"));
    assert_eq!(event.event_time.unwrap().nanos, 500_000_000);
}
