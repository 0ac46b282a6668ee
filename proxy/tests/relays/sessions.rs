//! `ConnectSupervisor`: what a supervisor may say, and how a session ends.

use std::time::{Duration, SystemTime};

use postern_proto::v1::supervisor_message::Payload as ToGateway;
use postern_proto::v1::{
    CreateSshSessionRequest, RefreshSandboxTokenRequest, SandboxPhase, SessionReauthenticate,
    StopSandboxRequest, SupervisorHeartbeat, SupervisorHello, SupervisorMessage,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::gateway::{Gateway, Options, client, soon, until};
use super::scripted::{Scripted, forward, hello, ssh_init};

fn greeting(sandbox_id: &str) -> SupervisorHello {
    SupervisorHello {
        sandbox_id: sandbox_id.to_owned(),
        instance_id: "epoch".to_owned(),
        ..SupervisorHello::default()
    }
}

/// The status that a session ends with.
async fn end(session: &mut Scripted) -> Option<Status> {
    loop {
        match session.next().await {
            Ok(_) => {}
            Err(status) => return status,
        }
    }
}

#[tokio::test]
async fn a_session_makes_its_sandbox_ready_and_its_end_takes_that_back() {
    let gateway = Gateway::start().await;
    let id = gateway.sandbox("one").await;
    assert_eq!(gateway.phase("one").await, SandboxPhase::Provisioning);
    let session = Scripted::connect(&gateway, &id).await;
    assert_eq!(session.accepted.heartbeat_interval_secs, 15);
    assert_eq!(
        session.accepted.heartbeat_interval.as_ref().map(|interval| interval.seconds),
        Some(15)
    );
    assert!(session.accepted.postern.as_ref().is_some_and(|postern| postern.reauthenticate));
    gateway.until_phase("one", SandboxPhase::Ready).await;
    session.cut();
    gateway.until_phase("one", SandboxPhase::Provisioning).await;
    assert!(gateway.registry.current(&id).is_none());
}

#[tokio::test]
async fn a_foreign_peer_gets_no_extension_fields() {
    let gateway = Gateway::start().await;
    let id = gateway.sandbox("one").await;
    let connection = gateway.connect(Some(&gateway.token(&id))).await;
    let (_, _, accepted) = hello(&connection, greeting(&id)).await.unwrap();
    assert!(accepted.postern.is_none());
}

#[tokio::test]
async fn the_acceptance_comes_first_whatever_waits() {
    let gateway = Gateway::start().await;
    let id = gateway.sandbox("one").await;
    let mut waiting = Vec::new();
    for _ in 0..6 {
        let token = gateway.ssh_token("one").await;
        for _ in 0..2 {
            let (connection, init) = (gateway.connect(None).await, ssh_init("one", &token));
            waiting.push(tokio::spawn(async move { forward(&connection, init).await.map(drop) }));
        }
    }
    // `connect` fails if anything comes before the acceptance.
    let mut session = Scripted::connect(&gateway, &id).await;
    for _ in 0..waiting.len() {
        drop(session.serve_one().await);
    }
    for call in waiting {
        assert!(soon("the forward", call).await.unwrap().is_ok());
    }
}

#[tokio::test]
async fn a_newer_session_supersedes_and_the_late_end_of_the_older_demotes_nothing() {
    let gateway = Gateway::start().await;
    let id = gateway.sandbox("one").await;
    let mut older = Scripted::connect(&gateway, &id).await;
    gateway.until_phase("one", SandboxPhase::Ready).await;
    let newer = Scripted::connect(&gateway, &id).await;
    assert_ne!(older.accepted.session_id, newer.accepted.session_id);
    assert!(end(&mut older).await.is_none(), "the older session ends in good order");
    older.cut();
    drop(older);
    let current = || gateway.registry.current(&id).map(|id| id.to_string());
    assert_eq!(current().as_deref(), Some(newer.accepted.session_id.as_str()));
    // A demotion, if there was one, would be before this answer: the session handler has run.
    for _ in 0..20 {
        assert_eq!(gateway.phase("one").await, SandboxPhase::Ready);
    }
    newer.cut();
    gateway.until_phase("one", SandboxPhase::Provisioning).await;
}

#[tokio::test]
async fn a_hello_is_checked_against_the_token() {
    let gateway = Gateway::start().await;
    let (one, two) = (gateway.sandbox("one").await, gateway.sandbox("two").await);
    let connection = gateway.connect(Some(&gateway.token(&one))).await;
    let other = hello(&connection, greeting(&two)).await.unwrap_err();
    let missing = hello(&connection, greeting("no-such-sandbox")).await.unwrap_err();
    assert_eq!(other.code(), Code::PermissionDenied);
    assert_eq!(other.message(), missing.message(), "the answer tells nothing about existence");
    assert_eq!(hello(&connection, greeting("")).await.unwrap_err().code(), Code::InvalidArgument);
    let user = gateway.connect(None).await;
    assert_eq!(hello(&user, greeting(&one)).await.unwrap_err().code(), Code::PermissionDenied);
    assert!(gateway.registry.sessions().is_empty());
}

#[tokio::test]
async fn a_stream_that_does_not_begin_with_hello_is_refused() {
    let gateway = Gateway::start().await;
    let id = gateway.sandbox("one").await;
    let mut api = gateway.supervisor(&id).await;
    let heartbeat =
        SupervisorMessage { payload: Some(ToGateway::Heartbeat(SupervisorHeartbeat::default())) };
    for first in [vec![heartbeat], vec![SupervisorMessage::default()], vec![]] {
        let stream = tokio_stream::iter(first);
        let refused = soon("an answer", api.connect_supervisor(stream)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
}

#[tokio::test]
async fn the_supervisor_of_a_deleted_sandbox_is_told_so() {
    let gateway = Gateway::start().await;
    let an_hour_ago = SystemTime::now() - Duration::from_secs(3600);
    let old = gateway.issuer.mint("gone", an_hour_ago).0.expose().clone();
    let connection = gateway.connect(Some(&old)).await;
    assert_eq!(hello(&connection, greeting("gone")).await.unwrap_err().code(), Code::NotFound);
    let mut api = client(connection);
    let refused =
        api.refresh_sandbox_token(RefreshSandboxTokenRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    // A supervisor that is ahead of its record has a token of this minute.
    let fresh = gateway.connect(Some(&gateway.token("early"))).await;
    assert!(hello(&fresh, greeting("early")).await.is_ok());
}

#[tokio::test]
async fn a_silent_supervisor_is_ended_after_three_heartbeats_and_a_talking_one_is_not() {
    let heartbeat = Duration::from_millis(200);
    let gateway = Gateway::with(Options { heartbeat, ..Options::default() }).await;
    let (one, two) = (gateway.sandbox("one").await, gateway.sandbox("two").await);
    let started = tokio::time::Instant::now();
    let mut silent = Scripted::connect(&gateway, &one).await;
    let talking = Scripted::connect(&gateway, &two).await;
    let to_gateway = talking.to_gateway.clone();
    let beat = tokio::spawn(async move {
        loop {
            let message = ToGateway::Heartbeat(SupervisorHeartbeat::default());
            let message = SupervisorMessage { payload: Some(message) };
            if to_gateway.send(message).await.is_err() {
                return;
            }
            tokio::time::sleep(heartbeat / 2).await;
        }
    });
    let status = end(&mut silent).await.expect("a status");
    let after = started.elapsed();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert!(after >= heartbeat * 3, "after {after:?}");
    gateway.until_phase("one", SandboxPhase::Provisioning).await;
    assert_eq!(gateway.phase("two").await, SandboxPhase::Ready);
    assert!(gateway.registry.current(&two).is_some());
    beat.abort();
}

#[tokio::test]
async fn heartbeats_are_sent() {
    let heartbeat = Duration::from_millis(100);
    let gateway = Gateway::with(Options { heartbeat, ..Options::default() }).await;
    let id = gateway.sandbox("one").await;
    let mut session = Scripted::connect(&gateway, &id).await;
    let next = soon("a heartbeat", session.from_gateway.message()).await.unwrap().unwrap();
    let heartbeat = postern_proto::v1::gateway_message::Payload::Heartbeat(Default::default());
    assert_eq!(next.payload, Some(heartbeat));
}

#[tokio::test]
async fn a_second_hello_ends_the_session() {
    let gateway = Gateway::start().await;
    let id = gateway.sandbox("one").await;
    let mut session = Scripted::connect(&gateway, &id).await;
    session.send(ToGateway::Hello(greeting(&id))).await;
    assert_eq!(end(&mut session).await.map(|status| status.code()), Some(Code::InvalidArgument));
}

/// A token that is good for `left` more, the leeway included.
fn nearly_over(gateway: &Gateway, id: &str, ttl: Duration, left: Duration) -> String {
    let minted = SystemTime::now() + left - ttl - postern_identity::token::LEEWAY;
    gateway.issuer.mint(id, minted).0.expose().clone()
}

#[tokio::test]
async fn a_session_ends_with_its_token_unless_it_shows_a_newer_one() {
    let ttl = Duration::from_secs(600);
    let gateway = Gateway::with(Options { token_ttl: ttl, ..Options::default() }).await;
    let (one, two) = (gateway.sandbox("one").await, gateway.sandbox("two").await);
    let short = Duration::from_secs(3);
    let token = nearly_over(&gateway, &one, ttl, short);
    let mut ending = Scripted::with_token(&gateway, &one, &token).await;
    let token = nearly_over(&gateway, &two, ttl, short);
    let renewing = Scripted::with_token(&gateway, &two, &token).await;
    let token = gateway.token(&two);
    renewing.send(ToGateway::Reauthenticate(SessionReauthenticate { token })).await;
    let status = end(&mut ending).await.expect("a status");
    assert_eq!(status.code(), Code::Unauthenticated, "{status}");
    assert!(gateway.registry.current(&one).is_none());
    assert!(gateway.registry.current(&two).is_some(), "the renewed session goes on");
}

#[tokio::test]
async fn a_session_that_shows_a_bad_token_ends() {
    let gateway = Gateway::start().await;
    let (one, two) = (gateway.sandbox("one").await, gateway.sandbox("two").await);
    for token in ["nonsense".to_owned(), gateway.token(&two)] {
        let mut session = Scripted::connect(&gateway, &one).await;
        session.send(ToGateway::Reauthenticate(SessionReauthenticate { token })).await;
        let status = end(&mut session).await.expect("a status");
        assert_eq!(status.code(), Code::Unauthenticated);
    }
}

#[tokio::test]
async fn stopping_a_sandbox_ends_its_session_and_cuts_its_relays() {
    let gateway = Gateway::start().await;
    let id = gateway.sandbox("one").await;
    let mut session = Scripted::connect(&gateway, &id).await;
    let token = gateway.ssh_token("one").await;
    let connection = gateway.connect(None).await;
    let init = ssh_init("one", &token);
    let opening = tokio::spawn(async move { forward(&connection, init).await });
    let mut inside = session.serve_one().await;
    let mut outside = soon("the forward", opening).await.unwrap().unwrap();
    let stop = StopSandboxRequest { name: "one".to_owned(), ..StopSandboxRequest::default() };
    gateway.user().await.stop_sandbox(stop).await.unwrap();
    assert!(end(&mut session).await.is_some(), "the session is told why");
    assert_eq!(outside.read_to_end().await.1, Code::Unavailable);
    assert_eq!(inside.read_to_end().await.1, Code::Unavailable);
    until("no relay is live", async || gateway.registry.stats().live == 0).await;
    // Its session tokens went with it, and there are no new ones until it runs again.
    assert!(gateway.ssh_sessions.find(&token).await.is_err());
    let request = CreateSshSessionRequest { sandbox: "one".to_owned(), ..Default::default() };
    let refused = gateway.user().await.create_ssh_session(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
}

#[tokio::test]
async fn a_supervisor_that_never_says_hello_holds_nothing() {
    let gateway = Gateway::start().await;
    let id = gateway.sandbox("one").await;
    let mut api = gateway.supervisor(&id).await;
    let (sender, receiver) = mpsc::channel::<SupervisorMessage>(1);
    let call =
        tokio::spawn(async move { api.connect_supervisor(ReceiverStream::new(receiver)).await });
    assert!(gateway.registry.current(&id).is_none());
    drop(sender);
    let refused = soon("an answer", call).await.unwrap().unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
}
