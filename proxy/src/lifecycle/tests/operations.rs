use postern_driver_core::DriverError;
use postern_driver_fake::Operation;
use postern_proto::v1::SandboxPhase as P;
use postern_store::RequestKey;
use rand::rngs::StdRng;
use rand::{Rng as _, RngExt as _, SeedableRng as _};

use super::super::Repeatable;
use super::super::testing::Rig;
use super::{made, ready, reason, wish};

fn away() -> DriverError {
    DriverError::Unavailable {
        id: "s".into(),
        problem: "runtime is down".into(),
        next: "retry",
        source: None,
    }
}

fn repeatable(id: &str, contents: u8) -> Option<Repeatable> {
    Some(Repeatable {
        key: RequestKey {
            subject: "ada".into(),
            method: "m".into(),
            workspace: "default".into(),
            request_id: id.into(),
        },
        fingerprint: [contents; 32],
    })
}

#[tokio::test]
async fn create_gives_the_driver_what_it_needs_and_the_sandbox_its_own_token() {
    let rig = Rig::new().await;
    let one = made(&rig).await;
    let two = made(&rig).await;
    let token = rig.driver.token(&one).unwrap();
    assert!(token.expose().starts_with(&one));
    assert_ne!(token.expose(), rig.driver.token(&two).unwrap().expose());
    let record = rig.lifecycle.by_id(&one).await.unwrap().unwrap();
    assert_eq!(record.phase(), P::Provisioning);
    assert_eq!(record.sandbox().metadata.as_ref().unwrap().resource_version, record.version());
}

#[tokio::test]
async fn a_taken_name_is_refused_and_a_generated_one_is_not() {
    let rig = Rig::new().await;
    rig.lifecycle.create(wish(Some("web"))).await.unwrap();
    let error = rig.lifecycle.create(wish(Some("web"))).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::AlreadyExists);
    // The name that this gateway will make up next is taken before it can: the seed is known.
    let rig = Rig::new().await;
    let mut rng = StdRng::seed_from_u64(1);
    let (_epoch, _first_id, _second_id) =
        (rng.next_u64(), rng.random::<[u8; 16]>(), rng.random::<[u8; 16]>());
    let next = crate::names::two_words(&mut rng);
    rig.lifecycle.create(wish(Some(&next))).await.unwrap();
    let made = rig.lifecycle.create(wish(None)).await.unwrap().record;
    assert_ne!(made.name(), next);
}

#[tokio::test]
async fn a_create_that_the_driver_refuses_leaves_no_record() {
    let rig = Rig::new().await;
    rig.driver.refuse_next(
        Operation::Create,
        DriverError::FailedPrecondition {
            id: "x".into(),
            problem: "no disk left".into(),
            next: "free some",
        },
    );
    let error = rig.lifecycle.create(wish(Some("web"))).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::FailedPrecondition);
    assert!(error.to_string().contains("no disk left"));
    // The name is free again, and so is everything else.
    rig.lifecycle.create(wish(Some("web"))).await.unwrap();
    assert_eq!(rig.lifecycle.feeds().ids().len(), 1);
}

#[tokio::test]
async fn the_same_request_makes_one_sandbox() {
    let rig = Rig::new().await;
    let ask = |contents| {
        let lifecycle = rig.lifecycle.clone();
        async move {
            let mut spec = wish(None);
            spec.repeatable = repeatable("r1", contents);
            lifecycle.create(spec).await
        }
    };
    let (one, two) = tokio::join!(ask(1), ask(1));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(one.record.id(), two.record.id());
    assert_eq!([one.repeated, two.repeated].iter().filter(|repeated| **repeated).count(), 1);
    let different = ask(2).await.unwrap_err();
    assert_eq!((different.code(), reason(&different)), (tonic::Code::Aborted, "REQUEST_ID_REUSED"));
    // After its deletion the same request does not bring it back.
    rig.lifecycle.delete(one.record, None).await.unwrap();
    let gone = ask(1).await.unwrap_err();
    assert_eq!(reason(&gone), "REQUEST_OUTCOME_GONE");
}

#[tokio::test]
async fn a_request_that_failed_may_be_repeated() {
    let rig = Rig::new().await;
    let mut spec = wish(None);
    spec.repeatable = repeatable("r1", 1);
    rig.driver.refuse_next(Operation::Create, away());
    assert_eq!(
        rig.lifecycle.create(spec.clone()).await.unwrap_err().code(),
        tonic::Code::Unavailable
    );
    let made = rig.lifecycle.create(spec).await.unwrap();
    assert!(!made.repeated);

    rig.driver.refuse_next(Operation::Stop, away());
    let record = made.record;
    assert!(rig.lifecycle.stop(record.clone(), repeatable("r2", 1)).await.is_err());
    assert_eq!(rig.phase(record.id()).await, P::Stopping);
    let stopped = rig.lifecycle.stop(record, repeatable("r2", 1)).await.unwrap();
    assert_eq!(stopped.phase(), P::Stopped);
}

#[tokio::test]
async fn stop_cuts_everything_and_start_brings_it_back_with_a_new_token() {
    let rig = Rig::new().await;
    let id = ready(&rig).await;
    let before = rig.driver.token(&id).unwrap().expose().to_owned();
    let record = rig.lifecycle.by_id(&id).await.unwrap().unwrap();
    let stopped = rig.lifecycle.stop(record, None).await.unwrap();
    assert_eq!(stopped.phase(), P::Stopped);
    assert!(rig.sessions.ended(&id) >= 1 && rig.cleanup.of(&id) == 1);
    // A supervisor that comes back while it dies changes nothing.
    rig.sessions.set(&id, "late");
    rig.lifecycle.session_connected(&id, "late", "epoch-1", None).await.unwrap();
    assert_eq!(rig.phase(&id).await, P::Stopped);
    rig.disconnect(&id, "late").await;
    // Idempotent, and the driver is not asked again.
    let again = rig.lifecycle.stop(stopped, None).await.unwrap();
    assert_eq!((again.phase(), rig.driver.calls(Operation::Stop, &id)), (P::Stopped, 1));

    let starting = rig.lifecycle.start(again, None).await.unwrap();
    assert_eq!(starting.phase(), P::Starting);
    assert_ne!(rig.driver.token(&id).unwrap().expose(), before);
    rig.connect(&id, "s2").await;
    assert_eq!(rig.phase(&id).await, P::Ready);
    let record = rig.lifecycle.by_id(&id).await.unwrap().unwrap();
    assert_eq!(rig.lifecycle.start(record, None).await.unwrap().phase(), P::Ready);
    assert_eq!(rig.driver.calls(Operation::Start, &id), 1);
}

#[tokio::test]
async fn error_is_left_by_stop_and_by_start() {
    for start in [false, true] {
        let rig = Rig::new().await;
        let id = ready(&rig).await;
        rig.driver.fail(&id, "CrashLoop", "supervisor keeps failing");
        rig.lifecycle.compare(super::super::upkeep::Occasion::Routine).await.unwrap();
        assert_eq!(rig.phase(&id).await, P::Error);
        assert!(rig.why(&id).await.contains("supervisor keeps failing"));
        rig.disconnect(&id, "s1").await;
        let record = rig.lifecycle.by_id(&id).await.unwrap().unwrap();
        if start {
            rig.lifecycle.start(record, None).await.unwrap();
            rig.connect(&id, "s2").await;
            assert_eq!(rig.phase(&id).await, P::Ready);
        } else {
            assert_eq!(rig.lifecycle.stop(record, None).await.unwrap().phase(), P::Stopped);
        }
    }
}

#[tokio::test]
async fn a_start_that_fails_is_an_error_that_can_be_started_again() {
    let rig = Rig::new().await;
    let id = ready(&rig).await;
    let record = rig.lifecycle.by_id(&id).await.unwrap().unwrap();
    let stopped = rig.lifecycle.stop(record, None).await.unwrap();
    rig.driver.refuse_next(Operation::Start, away());
    let error = rig.lifecycle.start(stopped, None).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::Unavailable);
    assert!(rig.why(&id).await.starts_with("StartFailed"));
    let record = rig.lifecycle.by_id(&id).await.unwrap().unwrap();
    assert_eq!(rig.lifecycle.start(record, None).await.unwrap().phase(), P::Starting);
}

#[tokio::test]
async fn a_sandbox_that_the_runtime_lost_is_made_again_by_start() {
    let rig = Rig::new().await;
    let id = ready(&rig).await;
    rig.driver.vanish(&id);
    rig.lifecycle.compare(super::super::upkeep::Occasion::Routine).await.unwrap();
    assert_eq!(rig.phase(&id).await, P::Error);
    assert!(rig.why(&id).await.starts_with("BackendResourceMissing"));
    rig.disconnect(&id, "s1").await;
    let record = rig.lifecycle.by_id(&id).await.unwrap().unwrap();
    rig.lifecycle.start(record, None).await.unwrap();
    assert_eq!(rig.driver.calls(Operation::Create, &id), 2);
    rig.connect(&id, "s2").await;
    assert_eq!(rig.phase(&id).await, P::Ready);
}

#[tokio::test]
async fn delete_removes_everything_and_can_be_repeated() {
    let rig = Rig::new().await;
    let id = ready(&rig).await;
    let record = rig.lifecycle.by_id(&id).await.unwrap().unwrap();
    let mut changes = rig.lifecycle.watch(&id);
    let deleted = rig.lifecycle.delete(record.clone(), repeatable("d", 1)).await.unwrap();
    assert!(deleted.finished && deleted.sandbox_id == id);
    assert!(rig.lifecycle.by_id(&id).await.unwrap().is_none());
    assert!(rig.sessions.ended(&id) >= 1 && rig.cleanup.of(&id) >= 1);
    assert!(rig.lifecycle.feeds().ids().is_empty());
    while changes.changed().await.is_ok() {}
    assert!(rig.lifecycle.delete(record.clone(), repeatable("d", 1)).await.unwrap().finished);
    assert!(rig.lifecycle.delete(record, None).await.unwrap().finished);
    let earlier = rig.lifecycle.recall(&repeatable("d", 1).unwrap()).await.unwrap();
    assert_eq!(earlier, Some(id));
    assert_eq!(rig.lifecycle.recall(&repeatable("e", 1).unwrap()).await.unwrap(), None);
}

#[tokio::test]
async fn a_deletion_that_the_driver_cannot_do_goes_on_by_itself() {
    let rig = Rig::new().await;
    let id = ready(&rig).await;
    rig.driver.refuse_next(Operation::Delete, away());
    let record = rig.lifecycle.by_id(&id).await.unwrap().unwrap();
    assert_eq!(
        rig.lifecycle.delete(record, None).await.unwrap_err().code(),
        tonic::Code::Unavailable
    );
    assert_eq!(rig.phase(&id).await, P::Deleting);
    assert!(rig.why(&id).await.starts_with("DeleteFailed"));
    let record = rig.lifecycle.by_id(&id).await.unwrap().unwrap();
    assert_eq!(reason(&rig.lifecycle.start(record, None).await.unwrap_err()), "SANDBOX_DELETING");
    rig.lifecycle.compare(super::super::upkeep::Occasion::Routine).await.unwrap();
    assert!(rig.lifecycle.by_id(&id).await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_main_process_is_kept_and_the_runtime_let_go() {
    let rig = Rig::new().await;
    let id = ready(&rig).await;
    // An older supervisor's report changes nothing.
    rig.lifecycle.main_exited(&id, "epoch-0", 1).await.unwrap();
    assert_eq!(rig.phase(&id).await, P::Ready);
    rig.lifecycle.main_exited(&id, "epoch-1", 0).await.unwrap();
    assert_eq!(rig.phase(&id).await, P::Completed);
    // Repetitions are answered and change nothing; the supervisor still has output to hand over.
    rig.lifecycle.main_exited(&id, "epoch-1", 5).await.unwrap();
    assert_eq!(rig.phase(&id).await, P::Completed);
    rig.lifecycle.compare(super::super::upkeep::Occasion::Routine).await.unwrap();
    assert_eq!(rig.driver.calls(Operation::Stop, &id), 0);

    rig.lifecycle.main_finalized(&id, "epoch-1").await.unwrap();
    stops(&rig, &id, 1).await;
    rig.lifecycle.compare(super::super::upkeep::Occasion::Routine).await.unwrap();
    let record = rig.lifecycle.by_id(&id).await.unwrap().unwrap();
    assert_eq!(record.phase(), P::Completed);
    assert_eq!(record.sandbox().status.as_ref().unwrap().exit_code, Some(0));
    // And it can be run again.
    assert_eq!(rig.lifecycle.start(record, None).await.unwrap().phase(), P::Starting);

    let missing = rig.lifecycle.main_exited("nothing", "epoch-1", 0).await.unwrap_err();
    assert_eq!(missing.code(), tonic::Code::NotFound);
}

/// Waits until the driver was asked to stop the sandbox so often.
async fn stops(rig: &Rig, id: &str, times: usize) {
    while rig.driver.calls(Operation::Stop, id) < times {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_supervisor_that_leaves_without_finalizing_is_not_run_again() {
    let rig = Rig::new().await;
    let id = ready(&rig).await;
    rig.lifecycle.main_exited(&id, "epoch-1", 3).await.unwrap();
    rig.disconnect(&id, "s1").await;
    stops(&rig, &id, 1).await;
    assert_eq!(rig.phase(&id).await, P::Error);
    // A sandbox that only lost its session is left to the runtime.
    let other = ready(&rig).await;
    rig.disconnect(&other, "s1").await;
    rig.lifecycle.compare(super::super::upkeep::Occasion::Routine).await.unwrap();
    assert_eq!(rig.driver.calls(Operation::Stop, &other), 0);
}

#[tokio::test(start_paused = true)]
async fn what_ended_while_nobody_looked_is_let_go_by_the_next_comparison() {
    let rig = Rig::new().await;
    let id = ready(&rig).await;
    rig.lifecycle.main_exited(&id, "epoch-1", 0).await.unwrap();
    let rig = rig.restart();
    rig.lifecycle.compare(super::super::upkeep::Occasion::Boot).await.unwrap();
    assert_eq!(rig.driver.calls(Operation::Stop, &id), 1);
    assert_eq!(rig.phase(&id).await, P::Completed);
}

#[tokio::test]
async fn an_exit_with_another_code_is_an_error() {
    let rig = Rig::new().await;
    let id = ready(&rig).await;
    rig.lifecycle.main_exited(&id, "epoch-1", 143).await.unwrap();
    assert_eq!(rig.phase(&id).await, P::Error);
    assert_eq!(rig.why(&id).await, "MainProcessFailed: main process ended with exit code 143");
}
