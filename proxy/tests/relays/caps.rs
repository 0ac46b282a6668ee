//! Caps and waits: who is refused, who is not, and that every place is given back.

use std::time::Duration;

use postern::config::{LayerConfigs, Stack};
use postern_proto::v1::supervisor_message::Payload as ToGateway;
use postern_proto::v1::{RelayOpenResult, SandboxPhase};
use postern_relay::transport::Connection;
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use super::gateway::{Gateway, Options, soon, until};
use super::scripted::{End, Scripted, forward, ssh_init, tcp_init};

type Opening = JoinHandle<Result<End, Status>>;

fn open_tcp(connection: &Connection, sandbox: &str, token: &str) -> Opening {
    let (connection, init) = (connection.clone(), tcp_init(sandbox, token, "127.0.0.1", 80));
    tokio::spawn(async move { forward(&connection, init).await })
}

/// Tokens for `count` connections, of which each takes three.
async fn tokens(gateway: &Gateway, id: &str, count: usize) -> Vec<String> {
    let mut tokens = Vec::new();
    while tokens.len() < count {
        let created = gateway.ssh_sessions.create(id, "test").await.unwrap();
        tokens.extend(std::iter::repeat_n(created.token.expose().clone(), 3));
    }
    tokens.truncate(count);
    tokens
}

#[tokio::test]
async fn of_64_opens_32_succeed_and_another_sandbox_notices_nothing() {
    let gateway = Gateway::start().await;
    let (one, two) = (gateway.sandbox("one").await, gateway.sandbox("two").await);
    let mut busy = Scripted::connect(&gateway, &one).await;
    let mut calm = Scripted::connect(&gateway, &two).await;
    let connection = gateway.connect(None).await;
    let openings: Vec<Opening> = tokens(&gateway, &one, 64)
        .await
        .iter()
        .map(|token| open_tcp(&connection, "one", token))
        .collect();
    until("32 are refused", async || {
        openings.iter().filter(|opening| opening.is_finished()).count() == 32
    })
    .await;
    assert_eq!(gateway.registry.stats().pending, 32);

    let token = tokens(&gateway, &two, 1).await.remove(0);
    let elsewhere = open_tcp(&connection, "two", &token);
    let _inside = calm.serve_one().await;
    assert!(soon("the other sandbox", elsewhere).await.unwrap().is_ok());

    let mut inside = Vec::new();
    for _ in 0..32 {
        inside.push(busy.serve_one().await);
    }
    let (mut open, mut refused) = (Vec::new(), Vec::new());
    for opening in openings {
        match soon("an answer", opening).await.unwrap() {
            Ok(end) => open.push(end),
            Err(status) => refused.push(status),
        }
    }
    assert_eq!((open.len(), refused.len()), (32, 32));
    for status in &refused {
        assert_eq!(status.code(), Code::ResourceExhausted);
        assert!(status.message().contains("pending_per_key = 32"), "{}", status.message());
    }
    drop((open, inside, calm));
    until("every place is back", async || {
        let counts = gateway.relay_handles.relay_caps.as_ref().unwrap().counts();
        (counts.pending, counts.live) == (0, 0)
    })
    .await;
    assert_eq!(gateway.registry.stats().live, 0);
}

#[tokio::test]
async fn ssh_has_a_cap_of_its_own_per_sandbox() {
    let mut values = LayerConfigs::default();
    values.relay_caps.ssh_per_sandbox = 2;
    let gateway = Gateway::with(Options { values, ..Options::default() }).await;
    let id = gateway.sandbox("one").await;
    let mut session = Scripted::connect(&gateway, &id).await;
    let connection = gateway.connect(None).await;
    let tokens = tokens(&gateway, &id, 4).await;
    let mut held = Vec::new();
    for token in &tokens[..2] {
        let (connection, init) = (connection.clone(), ssh_init("one", token));
        let opening = tokio::spawn(async move { forward(&connection, init).await });
        held.push((
            session.serve_one().await,
            soon("the forward", opening).await.unwrap().unwrap(),
        ));
    }
    let refused = forward(&connection, ssh_init("one", &tokens[2])).await.map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains("ssh = 2"), "{}", refused.message());
    // Forwards of ports have room.
    let tcp = open_tcp(&connection, "one", &tokens[2]);
    held.push((session.serve_one().await, soon("the forward", tcp).await.unwrap().unwrap()));
    // A place that is given back is taken again.
    held.remove(0);
    until("a place is free", async || gateway.registry.stats().live == 2).await;
    let (connection, init) = (connection.clone(), ssh_init("one", &tokens[3]));
    let opening = tokio::spawn(async move { forward(&connection, init).await });
    let _inside = session.serve_one().await;
    assert!(soon("the forward", opening).await.unwrap().is_ok());
}

#[tokio::test]
async fn a_token_has_three_connections() {
    let gateway = Gateway::start().await;
    let id = gateway.sandbox("one").await;
    let mut session = Scripted::connect(&gateway, &id).await;
    let connection = gateway.connect(None).await;
    let token = gateway.ssh_token("one").await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let opening = open_tcp(&connection, "one", &token);
        held.push((
            session.serve_one().await,
            soon("the forward", opening).await.unwrap().unwrap(),
        ));
    }
    let refused =
        forward(&connection, tcp_init("one", &token, "::1", 1)).await.map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    assert!(refused.message().contains('3'), "{}", refused.message());
    drop(held);
    until("the places are back", async || gateway.ssh_sessions.connections() == 0).await;
}

#[tokio::test]
async fn a_supervisor_that_acknowledges_and_never_opens_is_given_up() {
    let pending_ttl = Duration::from_millis(300);
    let gateway = Gateway::with(Options { pending_ttl, ..Options::default() }).await;
    let id = gateway.sandbox("one").await;
    let mut session = Scripted::connect(&gateway, &id).await;
    let token = gateway.ssh_token("one").await;
    let connection = gateway.connect(None).await;
    let opening = open_tcp(&connection, "one", &token);
    let open = session.asked().await;
    let result = RelayOpenResult {
        channel_id: open.channel_id.clone(),
        success: true,
        ..Default::default()
    };
    session.send(ToGateway::RelayOpenResult(result)).await;
    let status = soon("an answer", opening).await.unwrap().map(drop).unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
    assert_eq!(gateway.registry.stats().pending, 0);
    let late = session.claim(&open.channel_id).await.map(drop).unwrap_err();
    assert_eq!(late.code(), Code::NotFound);
    assert_eq!(gateway.ssh_sessions.connections(), 0);
}

#[tokio::test]
async fn no_session_within_the_budget_is_unavailable_and_says_so() {
    let mut values = LayerConfigs::default();
    values.session_wait.forward = Duration::from_millis(300);
    let gateway = Gateway::with(Options { values, ..Options::default() }).await;
    let id = gateway.sandbox("one").await;
    let session = Scripted::connect(&gateway, &id).await;
    let token = gateway.ssh_token("one").await;
    gateway.until_phase("one", SandboxPhase::Ready).await;
    // The record still says Ready, but the session is gone: the layer waits, not the handler.
    let removed = gateway.registry.current(&id).unwrap();
    gateway.registry.remove_if_current(&id, removed);
    let started = tokio::time::Instant::now();
    let connection = gateway.connect(None).await;
    let status =
        forward(&connection, tcp_init("one", &token, "127.0.0.1", 1)).await.map(drop).unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(
        status.message().contains("ms") || status.message().contains(" s"),
        "{}",
        status.message()
    );
    assert!(started.elapsed() >= Duration::from_millis(300));
    drop(session);
}

#[tokio::test]
async fn a_session_that_comes_wakes_who_waits() {
    let gateway = Gateway::start().await;
    let id = gateway.sandbox("one").await;
    let token = gateway.ssh_token("one").await;
    let connection = gateway.connect(None).await;
    let opening = open_tcp(&connection, "one", &token);
    tokio::task::yield_now().await;
    let mut session = Scripted::connect(&gateway, &id).await;
    let _inside = session.serve_one().await;
    assert!(soon("the forward", opening).await.unwrap().is_ok());
}

#[tokio::test]
async fn an_open_that_is_given_up_leaves_nothing_pending() {
    let gateway = Gateway::start().await;
    let id = gateway.sandbox("one").await;
    let mut session = Scripted::connect(&gateway, &id).await;
    let token = gateway.ssh_token("one").await;
    let connection = gateway.connect(None).await;
    let opening = open_tcp(&connection, "one", &token);
    let open = session.asked().await;
    opening.abort();
    until("nothing is pending", async || gateway.registry.stats().pending == 0).await;
    assert_eq!(session.claim(&open.channel_id).await.map(drop).unwrap_err().code(), Code::NotFound);
    until("the token's place is back", async || gateway.ssh_sessions.connections() == 0).await;
}

#[tokio::test]
async fn without_relay_layers_nothing_waits_and_nothing_is_capped() {
    let stack = Stack { relay: Vec::new(), ..Stack::default() };
    let gateway = Gateway::with(Options { stack, ..Options::default() }).await;
    let id = gateway.sandbox("one").await;
    let token = gateway.ssh_token("one").await;
    let connection = gateway.connect(None).await;
    let init = tcp_init("one", &token, "127.0.0.1", 80);
    let refused = soon("an answer", forward(&connection, init)).await.map(drop).unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "there is no session, and no wait for one");
    let mut session = Scripted::connect(&gateway, &id).await;
    gateway.until_phase("one", SandboxPhase::Ready).await;
    let openings: Vec<Opening> = tokens(&gateway, &id, 40)
        .await
        .iter()
        .map(|token| open_tcp(&connection, "one", token))
        .collect();
    let mut held = Vec::new();
    for _ in &openings {
        held.push(session.serve_one().await);
    }
    for opening in openings {
        assert!(soon("the forward", opening).await.unwrap().is_ok());
    }
}

#[tokio::test]
async fn hundreds_of_cycles_leave_nothing_behind() {
    let gateway = Gateway::start().await;
    let id = gateway.sandbox("one").await;
    let connection = gateway.connect(None).await;
    let token = gateway.ssh_token("one").await;
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut before = 0;
    for cycle in 0..300 {
        if cycle == 20 {
            before = descriptors();
        }
        let mut session = Scripted::connect(&gateway, &id).await;
        let opening = open_tcp(&connection, "one", &token);
        let mut inside = session.serve_one().await;
        let mut outside = soon("the forward", opening).await.unwrap().unwrap();
        outside.write("ping").await;
        assert_eq!(inside.read().await.unwrap(), "ping");
        session.cut();
        assert_eq!(outside.read_to_end().await.1, Code::Unavailable);
    }
    until("every relay and session is gone", async || {
        let stats = gateway.registry.stats();
        (stats.sessions, stats.pending, stats.live) == (0, 0, 0) && gateway.tasks.is_empty()
    })
    .await;
    assert_eq!(gateway.ssh_sessions.connections(), 0);
    // Other tests of this process open some too, so this only finds what grows with the cycles.
    until("descriptors are given back", async || descriptors() < before + 100).await;
}
