use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Empty;
use postern_proto::v1::{RelayOpenResult, gateway_message};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::Code;
use tower_service::Service as _;

use super::*;
use crate::splice::{OpenedRelay, RelayEnd, Side};
use crate::testing::{
    assert_code, framed, next_message, next_open, pipe, read_all, register, ssh_relay,
};

fn sandbox(id: &str) -> Claimant {
    Claimant::Sandbox(id.into())
}

fn spawn_open(registry: &Registry, id: &str) -> JoinHandle<Result<OpenedRelay, OpenError>> {
    let registry = registry.clone();
    let request = ssh_relay(id);
    tokio::spawn(async move { registry.open(request).await })
}

fn claim(registry: &Registry, channel: &str, id: &str) -> Result<ClaimTicket, ClaimError> {
    registry.claim(channel, &sandbox(id), Empty::<Bytes>::new())
}

fn assert_empty(registry: &Registry) {
    let stats = registry.stats();
    assert_eq!((stats.sessions, stats.pending, stats.live), (0, 0, 0));
    assert_eq!(registry.inner.shards().map(|shard| shard.len()).sum::<usize>(), 0);
    assert_eq!(registry.inner.indexed_channels(), 0);
}

#[tokio::test]
async fn acceptance_is_the_first_message_and_the_session_is_found() {
    let registry = Registry::default();
    let mut session = register(&registry, "a");
    assert_eq!(registry.current("a"), Some(session.session_id));
    assert_eq!(registry.current("b"), None);
    match next_message(&mut session).await {
        gateway_message::Payload::SessionAccepted(accepted) => {
            assert_eq!(accepted.session_id, session.session_id.to_string());
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn open_without_a_session_says_so_at_once() {
    let registry = Registry::default();
    let error = registry.open(ssh_relay("a")).await.unwrap_err();
    assert_eq!(error, OpenError::NoSession { sandbox_id: "a".into() });
    assert!(error.is_retry_safe());
    assert_empty(&registry);
}

#[tokio::test]
async fn an_open_is_sent_claimed_and_live() {
    let registry = Registry::default();
    let mut session = register(&registry, "a");
    let request = OpenRelay {
        sandbox_id: "a".into(),
        target: Target::Tcp { host: "127.0.0.1".into(), port: 8080 },
        service_id: "web".into(),
    };
    let mut opener = registry.opener();
    let opening = tokio::spawn(opener.call(request));
    next_message(&mut session).await;
    let gateway_message::Payload::RelayOpen(open) = next_message(&mut session).await else {
        panic!("expected RelayOpen");
    };
    assert_eq!(open.service_id, "web");
    assert!(matches!(open.target, Some(postern_proto::v1::relay_open::Target::Tcp(tcp))
        if tcp.host == "127.0.0.1" && tcp.port == 8080));
    assert_eq!(registry.stats().pending, 1);
    let (_supervisor, body) = pipe();
    let ticket = registry.claim(&open.channel_id, &sandbox("a"), body).unwrap();
    let opened = opening.await.unwrap().unwrap();
    assert_eq!(opened.info().channel_id, ticket.info().channel_id);
    let stats = registry.stats();
    assert_eq!((stats.pending, stats.live, stats.opened_total), (0, 1, 1));
    assert_eq!(registry.relays().len(), 1);
    assert_eq!(registry.sessions()[0].live, 1);
}

#[tokio::test(start_paused = true)]
async fn an_unclaimed_relay_times_out_and_leaves_nothing() {
    let registry = Registry::default();
    let mut session = register(&registry, "a");
    let started = Instant::now();
    let opening = spawn_open(&registry, "a");
    let channel = next_open(&mut session).await;
    let error = opening.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert_eq!(started.elapsed(), PENDING_TTL);
    assert_eq!(registry.stats().pending, 0);
    assert_eq!(claim(&registry, &channel, "a").unwrap_err(), ClaimError::NotFound);
}

#[tokio::test]
async fn a_dropped_requester_withdraws_its_open() {
    let registry = Registry::default();
    let mut session = register(&registry, "a");
    let opening = spawn_open(&registry, "a");
    let channel = next_open(&mut session).await;
    opening.abort();
    assert!(opening.await.unwrap_err().is_cancelled());
    assert_eq!(registry.stats().pending, 0);
    assert_eq!(claim(&registry, &channel, "a").unwrap_err(), ClaimError::NotFound);
}

#[tokio::test]
async fn claims_are_checked_and_happen_once() {
    let registry = Registry::default();
    let mut session = register(&registry, "a");
    register(&registry, "b");
    let opening = spawn_open(&registry, "a");
    let channel = next_open(&mut session).await;

    assert_eq!(claim(&registry, "no uuid", "a").unwrap_err(), ClaimError::NotFound);
    let unknown = ChannelId::make(&RandomIds).to_string();
    assert_eq!(claim(&registry, &unknown, "a").unwrap_err(), ClaimError::NotFound);
    assert_eq!(claim(&registry, &channel, "b").unwrap_err(), ClaimError::PermissionDenied);
    let other = registry.claim(&channel, &Claimant::Other, Empty::<Bytes>::new());
    assert_eq!(other.unwrap_err(), ClaimError::PermissionDenied);
    assert_eq!(registry.stats().pending, 1, "a refused claim leaves the relay waiting");

    let _ticket = claim(&registry, &channel, "a").unwrap();
    opening.await.unwrap().unwrap();
    assert_eq!(claim(&registry, &channel, "a").unwrap_err(), ClaimError::NotFound);
}

#[tokio::test(start_paused = true)]
async fn a_claim_after_its_time_finds_nothing_even_before_the_reaper() {
    let registry = Registry::default();
    let mut session = register(&registry, "a");
    // Polled once and then left alone: nobody watches its time.
    let mut opening = Box::pin(registry.open(ssh_relay("a")));
    assert!(futures_util::poll!(opening.as_mut()).is_pending());
    let channel = next_open(&mut session).await;
    tokio::time::advance(PENDING_TTL + Duration::from_millis(1)).await;
    assert_eq!(claim(&registry, &channel, "a").unwrap_err(), ClaimError::NotFound);
    drop(opening);
    assert_eq!(registry.inner.indexed_channels(), 0);
}

#[tokio::test(start_paused = true)]
async fn the_reaper_keeps_fresh_and_removes_old() {
    let registry = Registry::default();
    let mut session = register(&registry, "a");
    let mut old = Box::pin(registry.open(ssh_relay("a")));
    assert!(futures_util::poll!(old.as_mut()).is_pending());
    next_open(&mut session).await;
    tokio::time::advance(PENDING_TTL / 2).await;
    let mut fresh = Box::pin(registry.open(ssh_relay("a")));
    assert!(futures_util::poll!(fresh.as_mut()).is_pending());
    let channel = next_open(&mut session).await;

    assert_eq!(registry.reap(Instant::now()), 0);
    tokio::time::advance(PENDING_TTL / 2 + Duration::from_millis(1)).await;
    assert_eq!(registry.reap(Instant::now()), 1);
    assert!(matches!(old.await, Err(OpenError::ClaimTimeout { .. })));
    let _ticket = claim(&registry, &channel, "a").unwrap();
    fresh.await.unwrap();
}

#[tokio::test]
async fn a_newer_session_supersedes_and_the_older_cannot_remove_it() {
    let registry = Registry::default();
    let first = register(&registry, "a");
    let second = register(&registry, "a");
    assert!(!first.superseded_older && second.superseded_older);
    assert_eq!(first.ended.await, SessionEnd::Superseded);
    assert!(!registry.remove_if_current("a", first.session_id), "late cleanup must do nothing");
    assert_eq!(registry.current("a"), Some(second.session_id));
    assert!(registry.remove_if_current("a", second.session_id));
    assert!(!registry.remove_if_current("a", second.session_id));
    assert!(!registry.remove_if_current("unknown", second.session_id));
    assert_empty(&registry);
}

#[tokio::test]
async fn a_superseded_sessions_stream_ends_when_its_loop_lets_go() {
    let registry = Registry::default();
    let mut first = register(&registry, "a");
    let _second = register(&registry, "a");
    next_message(&mut first).await;
    drop(first.sender);
    assert!(first.outbound.recv().await.is_none());
}

#[tokio::test]
async fn pending_opens_are_sent_again_to_the_newer_session() {
    let registry = Registry::default();
    let mut first = register(&registry, "a");
    let opening = spawn_open(&registry, "a");
    let channel = next_open(&mut first).await;
    let mut second = register(&registry, "a");
    assert!(matches!(
        next_message(&mut second).await,
        gateway_message::Payload::SessionAccepted(_)
    ));
    assert_eq!(next_open(&mut second).await, channel);
    let _ticket = claim(&registry, &channel, "a").unwrap();
    opening.await.unwrap().unwrap();
    // Opens after the supersede go to the newer session only.
    let _opening = spawn_open(&registry, "a");
    next_open(&mut second).await;
    assert!(first.outbound.try_recv().is_err());
}

#[tokio::test]
async fn a_relay_pending_over_a_lost_session_is_sent_to_the_next() {
    let registry = Registry::default();
    let mut first = register(&registry, "a");
    let opening = spawn_open(&registry, "a");
    let channel = next_open(&mut first).await;
    assert!(registry.remove_if_current("a", first.session_id));
    drop(first);
    let mut second = register(&registry, "a");
    assert_eq!(next_open(&mut second).await, channel);
    let _ticket = claim(&registry, &channel, "a").unwrap();
    opening.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_session_lost_for_good_fails_its_pending_open_in_time() {
    let registry = Registry::default();
    let mut session = register(&registry, "a");
    let opening = spawn_open(&registry, "a");
    next_open(&mut session).await;
    registry.remove_if_current("a", session.session_id);
    let error = opening.await.unwrap().unwrap_err();
    assert_eq!(error, OpenError::SessionLost { sandbox_id: "a".into() });
    assert_eq!(error.code(), Code::Unavailable);
    assert_empty(&registry);
}

#[tokio::test]
async fn an_open_that_never_left_the_gateway_may_be_retried() {
    let registry = Registry::default();
    let session = register(&registry, "a");
    // The stream is gone, its loop has not noticed yet.
    drop(session.outbound);
    let error = registry.open(ssh_relay("a")).await.unwrap_err();
    assert_eq!(error, OpenError::NoSession { sandbox_id: "a".into() });
    assert_eq!(registry.stats().pending, 0);
}

#[tokio::test(start_paused = true)]
async fn a_full_session_queue_waits_and_a_newer_session_rescues() {
    let registry = Registry::default();
    let stuck = register(&registry, "a");
    let heartbeat = || gateway_message::Payload::Heartbeat(Default::default());
    while stuck.sender.try_send(heartbeat()) {}
    let opening = spawn_open(&registry, "a");
    tokio::task::yield_now().await;
    let mut newer = register(&registry, "a");
    let channel = next_open(&mut newer).await;
    let _ticket = claim(&registry, &channel, "a").unwrap();
    opening.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_refusal_keeps_the_supervisors_words_and_code() {
    let registry = Registry::default();
    let mut session = register(&registry, "a");
    for (code, expected) in
        [(Code::PermissionDenied as i32, Code::PermissionDenied), (0, Code::Unavailable)]
    {
        let opening = spawn_open(&registry, "a");
        let channel_id = next_open(&mut session).await;
        let result = RelayOpenResult {
            channel_id: channel_id.clone(),
            success: false,
            error: "connection refused".into(),
            code,
        };
        assert!(!registry.relay_open_result("b", &result), "another sandbox's word is nothing");
        assert!(registry.relay_open_result("a", &result));
        let error = opening.await.unwrap().unwrap_err();
        assert_eq!(error.code(), expected);
        assert_eq!(error.to_string(), "connection refused");
        assert_eq!(claim(&registry, &channel_id, "a").unwrap_err(), ClaimError::NotFound);
    }
}

#[tokio::test]
async fn readiness_wakes_waiters_that_subscribed_before() {
    let registry = Registry::default();
    let ready = registry.ready("a");
    let other = registry.ready("b");
    let _session = register(&registry, "a");
    // Resolves although it was not polled before the registration.
    ready.await;
    assert!(futures_util::poll!(Box::pin(other)).is_pending());
    // Only registrations after the call count.
    let mut late = Box::pin(registry.ready("a"));
    assert!(futures_util::poll!(late.as_mut()).is_pending());
    let waiters: Vec<_> = (0..50).map(|_| tokio::spawn(registry.ready("a"))).collect();
    let _newer = register(&registry, "a");
    late.await;
    for waiter in waiters {
        waiter.await.unwrap();
    }
}

#[tokio::test]
async fn abandoned_waiters_leave_nothing() {
    let registry = Registry::default();
    let waiters: Vec<_> = (0..10).map(|i| registry.ready(&format!("s{i}"))).collect();
    drop(waiters);
    assert_empty(&registry);
}

#[tokio::test]
async fn disconnect_ends_session_pending_and_live() {
    let registry = Registry::default();
    let mut session = register(&registry, "a");
    let live = spawn_open(&registry, "a");
    let channel = next_open(&mut session).await;
    let (_supervisor, body) = pipe();
    let ticket = registry.claim(&channel, &sandbox("a"), body).unwrap();
    let opened = live.await.unwrap().unwrap();
    let (_client, client_body) = pipe();
    let response = opened.splice(client_body);
    let pending = spawn_open(&registry, "a");
    next_open(&mut session).await;

    assert!(registry.disconnect("a", "sandbox is being stopped", Code::Aborted));
    assert!(!registry.disconnect("a", "again", Code::Aborted));
    let error = pending.await.unwrap().unwrap_err();
    assert_eq!(error.code(), Code::Aborted);
    assert!(error.to_string().contains("being stopped"), "{error}");
    for body in [response, ticket.into_body()] {
        let (_, status) = read_all(body).await;
        assert_code(&status, Code::Aborted);
        assert_eq!(status.message(), "sandbox is being stopped");
    }
    match next_message(&mut session).await {
        gateway_message::Payload::RelayClose(close) => {
            assert_eq!(close.channel_id, channel);
            assert_eq!(close.reason, "sandbox is being stopped");
            assert_eq!(close.code, Code::Aborted as i32);
        }
        other => panic!("{other:?}"),
    }
    let end = session.ended.await;
    assert!(matches!(end, SessionEnd::Disconnected { code: Code::Aborted, .. }), "{end:?}");
    assert_empty(&registry);
}

#[tokio::test]
async fn draining_refuses_opens_and_closing_refuses_sessions() {
    let registry = Registry::default();
    let session = register(&registry, "a");
    registry.drain();
    assert_eq!(registry.open(ssh_relay("a")).await.unwrap_err(), OpenError::Draining);
    assert_eq!(registry.current("a"), Some(session.session_id));
    registry.close_all("gateway is shutting down");
    assert!(matches!(session.ended.await, SessionEnd::Disconnected { .. }));
    let peer =
        SessionPeer { sandbox_id: "a".into(), instance_id: "i".into(), speaks_postern: false };
    let refused = registry.register(peer, |_| Default::default());
    assert_eq!(refused.unwrap_err(), RegisterError::Draining);
    assert_empty(&registry);
}

/// Registers, opens, claims and attaches; returns both response bodies and the session.
async fn live_relay(
    registry: &Registry,
    speaks_postern: bool,
) -> (Registration, crate::splice::SplicedBody, crate::splice::SplicedBody, String) {
    let peer = SessionPeer { sandbox_id: "a".into(), instance_id: "i".into(), speaks_postern };
    let mut session = registry.register(peer, |_| Default::default()).unwrap();
    let opening = spawn_open(registry, "a");
    let channel = next_open(&mut session).await;
    let (supervisor, body) = pipe();
    std::mem::forget(supervisor);
    let to_supervisor = registry.claim(&channel, &sandbox("a"), body).unwrap().into_body();
    let (client, client_body) = pipe();
    std::mem::forget(client);
    let to_client = opening.await.unwrap().unwrap().splice(client_body);
    (session, to_client, to_supervisor, channel)
}

#[tokio::test]
async fn a_requester_that_vanishes_is_told_to_the_supervisor() {
    for (speaks_postern, code) in [(true, Code::Cancelled as i32), (false, 0)] {
        let registry = Registry::default();
        let (mut session, to_client, to_supervisor, channel) =
            live_relay(&registry, speaks_postern).await;
        drop(to_client);
        match next_message(&mut session).await {
            gateway_message::Payload::RelayClose(close) => {
                assert_eq!((close.channel_id, close.code), (channel, code));
                assert_eq!(close.reason, "requester went away");
            }
            other => panic!("{other:?}"),
        }
        let (_, status) = read_all(to_supervisor).await;
        assert_code(&status, Code::Cancelled);
        assert_eq!(registry.stats().live, 0);
    }
}

#[tokio::test]
async fn a_close_by_the_supervisor_reaches_the_requester_and_is_not_echoed() {
    let registry = Registry::default();
    let (mut session, to_client, to_supervisor, channel) = live_relay(&registry, true).await;
    let close = |sandbox: &str| {
        registry.relay_closed_by_supervisor(sandbox, &channel, "target reset", Code::Aborted)
    };
    assert!(!close("b"), "another sandbox's word is nothing");
    assert!(close("a"));
    assert!(!close("a"));
    let (_, status) = read_all(to_client).await;
    assert_code(&status, Code::Aborted);
    assert_eq!(status.message(), "target reset");
    let (_, status) = read_all(to_supervisor).await;
    assert_code(&status, Code::Aborted);
    assert!(session.outbound.try_recv().is_err(), "the supervisor knows already");
}

#[tokio::test]
async fn relays_outlive_their_session() {
    let registry = Registry::default();
    let (session, to_client, _to_supervisor, channel) = live_relay(&registry, true).await;
    registry.remove_if_current("a", session.session_id);
    assert_eq!(registry.stats().live, 1);
    // And a close is still found by the sandbox.
    assert!(registry.relay_closed_by_supervisor("a", &channel, "late", Code::Unavailable));
    let (_, status) = read_all(to_client).await;
    assert_eq!(status.message(), "late");
    assert_empty(&registry);
}

#[tokio::test]
async fn every_end_is_observed_once_with_its_account() {
    let ends: Arc<parking_lot::Mutex<Vec<RelayEnd>>> = Arc::default();
    let seen = Arc::clone(&ends);
    let registry = Registry::new(Config {
        on_relay_end: Arc::new(move |end: &RelayEnd| seen.lock().push(end.clone())),
        ..Config::default()
    });
    let mut session = register(&registry, "a");
    let opening = spawn_open(&registry, "a");
    let channel = next_open(&mut session).await;
    let (supervisor, body) = pipe();
    let to_supervisor = registry.claim(&channel, &sandbox("a"), body).unwrap().into_body();
    let mut opened = opening.await.unwrap().unwrap();
    let released = Arc::new(AtomicUsize::new(0));
    struct Permit(Arc<AtomicUsize>);
    impl Drop for Permit {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
    opened.hold(Permit(Arc::clone(&released)));
    let (client, client_body) = pipe();
    let to_client = opened.splice(client_body);

    client.send(Ok(framed(b"ping"))).await.unwrap();
    drop(client);
    let (bytes, status) = read_all(to_supervisor).await;
    assert_eq!((bytes, status.code()), (framed(b"ping").to_vec(), Code::Ok));
    assert_eq!(released.load(Ordering::SeqCst), 0, "half closed is not ended");
    assert!(ends.lock().is_empty());
    supervisor.send(Ok(framed(b"pong!"))).await.unwrap();
    drop(supervisor);
    read_all(to_client).await;

    assert_eq!(released.load(Ordering::SeqCst), 1);
    let ends = ends.lock();
    assert_eq!(ends.len(), 1);
    assert_eq!((ends[0].bytes_to_sandbox, ends[0].bytes_from_sandbox), (4, 5));
    assert_eq!(ends[0].ended_by, Side::Requester);
    assert_eq!(ends[0].kind, crate::splice::EndKind::Clean);
    let stats = registry.stats();
    assert_eq!((stats.live, stats.ended_total), (0, 1));
    assert_eq!((stats.bytes_to_sandbox, stats.bytes_from_sandbox), (4, 5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acceptance_comes_first_under_racing_opens() {
    let registry = Registry::default();
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let openers: Vec<_> = (0..4)
        .map(|_| {
            let (registry, stop) = (registry.clone(), Arc::clone(&stop));
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let open = registry.open(ssh_relay("a"));
                    let _ = tokio::time::timeout(Duration::from_micros(50), open).await;
                    tokio::task::yield_now().await;
                }
            })
        })
        .collect();
    for _ in 0..500 {
        let mut session = register(&registry, "a");
        let first = next_message(&mut session).await;
        assert!(matches!(first, gateway_message::Payload::SessionAccepted(_)), "{first:?}");
    }
    stop.store(true, Ordering::Relaxed);
    for opener in openers {
        opener.await.unwrap();
    }
    assert_eq!(registry.stats().pending, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_opens_all_succeed_and_sandboxes_do_not_mix() {
    let registry = Registry::default();
    let mut supervisors = Vec::new();
    for sandbox in ["a", "b", "c"] {
        let mut session = register(&registry, sandbox);
        let registry = registry.clone();
        supervisors.push(tokio::spawn(async move {
            for _ in 0..64 {
                let channel = next_open(&mut session).await;
                let ticket = claim(&registry, &channel, sandbox).unwrap();
                assert_eq!(&*ticket.info().sandbox_id, sandbox);
                drop(ticket);
            }
        }));
    }
    let opens: Vec<_> = (0..192)
        .map(|i| ["a", "b", "c"][i % 3])
        .map(|sandbox| (sandbox, spawn_open(&registry, sandbox)))
        .collect();
    for (sandbox, open) in opens {
        assert_eq!(&*open.await.unwrap().unwrap().info().sandbox_id, sandbox);
    }
    for supervisor in supervisors {
        supervisor.await.unwrap();
    }
    let stats = registry.stats();
    assert_eq!((stats.pending, stats.live, stats.opened_total), (0, 0, 192));
}

mod model;
