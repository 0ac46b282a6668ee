use postern_proto::v1::SandboxPhase as P;

use super::super::testing::{Rig, supervisor, user};
use super::{made, ready};

#[tokio::test]
async fn a_sandbox_is_ready_exactly_while_it_has_a_session() {
    let rig = Rig::new().await;
    let id = made(&rig).await;
    assert_eq!(rig.phase(&id).await, P::Provisioning);
    rig.connect(&id, "s1").await;
    assert_eq!(rig.phase(&id).await, P::Ready);
    assert!(rig.why(&id).await.starts_with("SupervisorConnected"));
    rig.disconnect(&id, "s1").await;
    assert_eq!(rig.phase(&id).await, P::Provisioning);
    assert!(rig.why(&id).await.starts_with("SupervisorDisconnected"));
    rig.connect(&id, "s2").await;
    assert_eq!(rig.phase(&id).await, P::Ready);
}

#[tokio::test]
async fn the_late_end_of_a_superseded_session_does_not_demote() {
    let rig = Rig::new().await;
    let id = ready(&rig).await;
    // The new session is in the registry and has not been recorded yet when the old one's end arrives.
    rig.sessions.set(&id, "s2");
    rig.lifecycle.session_disconnected(&id, "s1").await;
    assert_eq!(rig.phase(&id).await, P::Ready);
    rig.connect(&id, "s2").await;
    // And again after it has.
    rig.lifecycle.session_disconnected(&id, "s1").await;
    assert_eq!(rig.phase(&id).await, P::Ready);
}

#[tokio::test]
async fn a_promotion_that_lost_its_session_meanwhile_does_nothing() {
    let rig = Rig::new().await;
    let id = made(&rig).await;
    // s1 registered and ended before its promotion ran; its end was recorded first.
    rig.sessions.clear(&id);
    rig.lifecycle.session_disconnected(&id, "s1").await;
    rig.lifecycle.session_connected(&id, "s1", "epoch-1", None).await.unwrap();
    assert_eq!(rig.phase(&id).await, P::Provisioning);
}

#[tokio::test]
async fn every_interleaving_of_a_supersede_ends_ready() {
    // Registry steps and the calls that follow them, in every order in which they can happen: s1 is replaced by s2,
    // and the record work of both runs at any time after its registry step.
    for order in [["up2", "down1"], ["down1", "up2"]] {
        for old_is_still_registered in [false, true] {
            let rig = Rig::new().await;
            let id = ready(&rig).await;
            if !old_is_still_registered {
                // s1's connection broke first and was removed; its end was not recorded yet.
                rig.sessions.clear(&id);
            }
            rig.sessions.set(&id, "s2");
            for call in order {
                match call {
                    "up2" => {
                        rig.lifecycle.session_connected(&id, "s2", "epoch-2", None).await.unwrap()
                    }
                    _ => rig.lifecycle.session_disconnected(&id, "s1").await,
                }
            }
            assert_eq!(rig.phase(&id).await, P::Ready, "{order:?} {old_is_still_registered}");
        }
    }
}

#[tokio::test]
async fn concurrent_supersedes_end_ready_with_the_last_session() {
    let rig = Rig::new().await;
    let id = ready(&rig).await;
    let mut calls = Vec::new();
    for n in 2..20 {
        let session = format!("s{n}");
        rig.sessions.set(&id, &session);
        let (up, down) = (rig.lifecycle.clone(), rig.lifecycle.clone());
        let (up_id, down_id, old) = (id.clone(), id.clone(), format!("s{}", n - 1));
        calls.push(tokio::spawn(async move {
            up.session_connected(&up_id, &session, "epoch-1", None).await.unwrap();
        }));
        calls.push(tokio::spawn(async move { down.session_disconnected(&down_id, &old).await }));
    }
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(rig.phase(&id).await, P::Ready);
}

#[tokio::test]
async fn a_promotion_is_tried_again_when_somebody_else_writes_first() {
    let rig = Rig::new().await;
    let id = made(&rig).await;
    rig.store.race(5);
    rig.connect(&id, "s1").await;
    assert_eq!(rig.phase(&id).await, P::Ready);
    // Bounded: a record that never holds still is an error, not a loop.
    rig.store.race(1000);
    rig.sessions.clear(&id);
    rig.lifecycle.session_disconnected(&id, "s1").await;
    rig.store.race(0);
    assert_eq!(rig.phase(&id).await, P::Ready);
    // The next comparison puts it right.
    rig.lifecycle.compare(super::super::upkeep::Occasion::Routine).await.unwrap();
    assert_eq!(rig.phase(&id).await, P::Provisioning);
}

#[tokio::test]
async fn resolve_by_name_then_by_id_and_only_what_is_ones_own() {
    let rig = Rig::new().await;
    let record = rig.lifecycle.create(super::wish(Some("web"))).await.unwrap().record;
    let other = rig.lifecycle.create(super::wish(Some("db"))).await.unwrap().record;
    let id = record.id().to_owned();
    for name in ["web", id.as_str()] {
        assert_eq!(rig.lifecycle.resolve(&user(), None, name).await.unwrap().id(), id);
        assert_eq!(rig.lifecycle.resolve(&supervisor(&id), None, name).await.unwrap().id(), id);
    }
    let missing = rig.lifecycle.resolve(&user(), None, "nothing").await.unwrap_err();
    assert_eq!(missing.code(), tonic::Code::NotFound);
    // Another's sandbox and one that does not exist get the same words.
    let denied = |name: String| {
        let lifecycle = rig.lifecycle.clone();
        let caller = supervisor(&id);
        async move { lifecycle.resolve(&caller, None, &name).await.unwrap_err() }
    };
    let others = [
        denied("db".into()).await,
        denied(other.id().into()).await,
        denied("nothing".into()).await,
    ];
    for error in &others {
        assert_eq!(error.code(), tonic::Code::PermissionDenied);
        assert_eq!(error.to_string(), others[0].to_string());
    }
    let nobody =
        rig.lifecycle.resolve(&crate::auth::Principal::Anonymous, None, "web").await.unwrap_err();
    assert_eq!(nobody.code(), tonic::Code::Unauthenticated);
}

#[tokio::test]
async fn waiting_for_ready_ends_when_it_is_or_cannot_be() {
    let rig = Rig::new().await;
    let id = made(&rig).await;
    let waiting = tokio::spawn({
        let (lifecycle, id) = (rig.lifecycle.clone(), id.clone());
        async move { lifecycle.wait_ready(&id).await }
    });
    tokio::task::yield_now().await;
    rig.connect(&id, "s1").await;
    assert_eq!(waiting.await.unwrap().unwrap().phase(), P::Ready);

    let record = rig.lifecycle.by_id(&id).await.unwrap().unwrap();
    rig.lifecycle.stop(record, None).await.unwrap();
    let error = rig.lifecycle.wait_ready(&id).await.unwrap_err();
    assert_eq!(super::reason(&error), "SANDBOX_NOT_READY");
    assert!(error.to_string().contains("start it first"), "{error}");

    let gone = rig.lifecycle.wait_ready("no-such-id").await.unwrap_err();
    assert_eq!(gone.code(), tonic::Code::NotFound);
    assert!(!rig.lifecycle.feeds().ids().contains(&"no-such-id".to_owned()));
}
