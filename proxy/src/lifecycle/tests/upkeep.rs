use std::time::Duration;

use postern_driver_core::compute::GetCapabilitiesResponse;
use postern_driver_core::condition::{EventKind, platform_event};
use postern_driver_core::{DriverError, WatchEvent};
use postern_driver_fake::{FakeDriver, Operation};
use postern_proto::v1::SandboxPhase as P;

use super::super::feed::Tail;
use super::super::testing::Rig;
use super::super::upkeep::Occasion;
use super::{made, ready};

fn away() -> DriverError {
    DriverError::Unavailable {
        id: "*".into(),
        problem: "runtime is down".into(),
        next: "retry",
        source: None,
    }
}

async fn until(rig: &Rig, id: &str, phase: P) {
    let mut changes = rig.lifecycle.watch(id);
    while rig.phase(id).await != phase {
        changes.changed().await.unwrap();
    }
}

#[tokio::test]
async fn after_a_restart_sandboxes_are_found_again_and_ready_when_they_reconnect() {
    let rig = Rig::new().await;
    let id = ready(&rig).await;
    let rig = rig.restart();
    rig.lifecycle.compare(Occasion::Boot).await.unwrap();
    // Nobody is connected, so it is not Ready, whatever the record said.
    assert_eq!(rig.phase(&id).await, P::Provisioning);
    rig.connect(&id, "s2").await;
    assert_eq!(rig.phase(&id).await, P::Ready);
    assert_eq!(rig.driver.calls(Operation::Create, &id), 1);
    assert_eq!(rig.driver.calls(Operation::Start, &id), 0);
}

#[tokio::test]
async fn after_a_restart_what_was_half_way_goes_on() {
    let rig = Rig::new().await;
    let stopping = ready(&rig).await;
    let deleting = ready(&rig).await;
    let starting = ready(&rig).await;
    let record = |id: &str| {
        let (lifecycle, id) = (rig.lifecycle.clone(), id.to_owned());
        async move { lifecycle.by_id(&id).await.unwrap().unwrap() }
    };
    rig.driver.refuse_next(Operation::Stop, away());
    rig.lifecycle.stop(record(&stopping).await, None).await.unwrap_err();
    rig.driver.refuse_next(Operation::Delete, away());
    rig.lifecycle.delete(record(&deleting).await, None).await.unwrap_err();
    rig.lifecycle.stop(record(&starting).await, None).await.unwrap();
    // The gateway died between writing Starting and asking the driver.
    rig.lifecycle.fire(&starting, super::super::phase::Event::StartRequested).await.unwrap();

    let rig = rig.restart();
    rig.lifecycle.compare(Occasion::Boot).await.unwrap();
    assert_eq!(rig.phase(&stopping).await, P::Stopped);
    assert!(rig.lifecycle.by_id(&deleting).await.unwrap().is_none());
    assert_eq!(rig.phase(&starting).await, P::Starting);
    assert_eq!(rig.driver.calls(Operation::Start, &starting), 1);
}

#[tokio::test]
async fn a_driver_that_lives_with_the_gateway_is_stopped_and_started_with_it() {
    let managed = GetCapabilitiesResponse { gateway_manages_lifecycle: true, ..Default::default() };
    let rig = Rig::over(FakeDriver::new(), managed).await;
    let id = ready(&rig).await;
    let stopped = ready(&rig).await;
    let record = rig.lifecycle.by_id(&stopped).await.unwrap().unwrap();
    rig.lifecycle.stop(record, None).await.unwrap();
    rig.lifecycle.suspend_all().await;
    assert_eq!(rig.driver.calls(Operation::Stop, &id), 1);
    // What it should be is unchanged.
    assert_eq!(rig.phase(&id).await, P::Ready);
    let rig = rig.restart();
    rig.lifecycle.compare(Occasion::Boot).await.unwrap();
    assert_eq!(rig.driver.calls(Operation::Start, &id), 1);
    assert_eq!(rig.driver.calls(Operation::Start, &stopped), 0);
    assert_eq!(rig.phase(&stopped).await, P::Stopped);
}

#[tokio::test(start_paused = true)]
async fn the_watch_stream_moves_phases_and_carries_platform_events() {
    let rig = Rig::new().await;
    let id = ready(&rig).await;
    let running = tokio::spawn(rig.lifecycle.clone().run());
    rig.driver.fail(&id, "CrashLoop", "gave up");
    until(&rig, &id, P::Error).await;
    let now = jiff::Timestamp::UNIX_EPOCH;
    let event = platform_event("fake", EventKind::Warning, "DiskFull", "no space", now);
    rig.driver.tell(&id, event);
    let mut changes = rig.lifecycle.watch(&id);
    let events = || {
        let feed = rig.lifecycle.feeds().open(&id);
        let all =
            feed.tails(Tail { max: 0, wanted: &|_| true }, Tail { max: 50, wanted: &|_| true });
        all.events.into_iter().map(|(_, event)| event.reason).collect::<Vec<_>>()
    };
    while !events().contains(&"DiskFull".to_owned()) {
        changes.changed().await.unwrap();
    }
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn the_watch_is_taken_up_again_after_it_failed() {
    let rig = Rig::new().await;
    let id = ready(&rig).await;
    for _ in 0..3 {
        rig.driver.refuse_next(Operation::Watch, away());
    }
    let begun = tokio::time::Instant::now();
    let running = tokio::spawn(rig.lifecycle.clone().run());
    while rig.driver.calls(Operation::Watch, "*") < 4 {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // 2 s, 4 s, 8 s, each give or take a tenth.
    let waited = begun.elapsed();
    assert!(waited > Duration::from_secs(12) && waited < Duration::from_secs(16), "{waited:?}");
    rig.driver.fail(&id, "CrashLoop", "gave up");
    until(&rig, &id, P::Error).await;
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn a_runtime_that_is_away_at_start_is_waited_for() {
    let rig = Rig::new().await;
    let id = ready(&rig).await;
    let rig = rig.restart();
    for _ in 0..2 {
        rig.driver.refuse_next(Operation::List, away());
    }
    let running = tokio::spawn(rig.lifecycle.clone().run());
    until(&rig, &id, P::Provisioning).await;
    assert!(rig.driver.calls(Operation::List, "*") >= 3);
    running.abort();
}

#[tokio::test(start_paused = true)]
async fn what_no_event_told_is_found_by_comparing() {
    let rig = Rig::new().await;
    // The watch fails for good, so only comparison is left.
    for _ in 0..100 {
        rig.driver.refuse_next(Operation::Watch, away());
    }
    let id = ready(&rig).await;
    let running = tokio::spawn(rig.lifecycle.clone().run());
    while rig.driver.calls(Operation::List, "*") == 0 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    rig.driver.vanish(&id);
    let begun = tokio::time::Instant::now();
    until(&rig, &id, P::Error).await;
    assert!(begun.elapsed() < Duration::from_secs(67), "{:?}", begun.elapsed());
    running.abort();
}

#[tokio::test]
async fn unknown_sandboxes_of_the_runtime_are_left_alone() {
    let rig = Rig::new().await;
    let id = made(&rig).await;
    let sandbox =
        postern_driver_core::compute::DriverSandbox { id: "stranger".into(), ..Default::default() };
    rig.lifecycle.observe(WatchEvent::Sandbox(Box::new(sandbox))).await;
    rig.lifecycle.observe(WatchEvent::Deleted { id: "stranger".into() }).await;
    let event =
        platform_event("fake", EventKind::Normal, "Started", "", jiff::Timestamp::UNIX_EPOCH);
    rig.lifecycle
        .observe(WatchEvent::Platform { id: "stranger".into(), event: Box::new(event) })
        .await;
    assert_eq!(rig.lifecycle.feeds().ids(), [id]);
}

#[tokio::test]
async fn feeds_without_a_record_are_swept() {
    let rig = Rig::new().await;
    let id = made(&rig).await;
    let _ = rig.lifecycle.watch("stranger");
    rig.lifecycle.compare(Occasion::Routine).await.unwrap();
    assert_eq!(rig.lifecycle.feeds().ids(), [id]);
}
