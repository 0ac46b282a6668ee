//! `CONNECT /connect/ssh` over HTTP/1.1 and HTTP/2.

use bytes::Bytes;
use http::{Method, Request, StatusCode};
use postern::config::LayerConfigs;
use postern_proto::v1::{RevokeSshSessionRequest, StopSandboxRequest};
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;

use super::gateway::{Gateway, Options, soon, until};
use super::scripted::Scripted;

/// Sends a CONNECT and reads the head of the answer.
async fn connect(gateway: &Gateway, headers: &[(&str, &str)]) -> (u16, TcpStream) {
    let mut socket = TcpStream::connect(gateway.address).await.unwrap();
    let mut head = format!("CONNECT /connect/ssh HTTP/1.1\r\nhost: {}\r\n", gateway.address);
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    socket.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(soon("an answer", socket.read_u8()).await.unwrap());
    }
    let text = String::from_utf8(answer).unwrap();
    let status = text.split(' ').nth(1).unwrap().parse().unwrap();
    (status, socket)
}

async fn session(gateway: &Gateway, id: &str, token: &str) -> (u16, TcpStream) {
    connect(gateway, &[("x-sandbox-id", id), ("x-sandbox-token", token)]).await
}

async fn read(socket: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    soon("bytes", socket.read_exact(&mut bytes)).await.unwrap();
    bytes
}

#[tokio::test]
async fn http1_carries_bytes_and_half_closes_each_way() {
    let gateway = Gateway::start().await;
    let id = gateway.sandbox("one").await;
    let mut supervisor = Scripted::connect(&gateway, &id).await;
    let token = gateway.ssh_token("one").await;
    let (opened, mut inside) = tokio::join!(session(&gateway, &id, &token), supervisor.serve_one());
    let (status, mut socket) = opened;
    assert_eq!(status, 200);
    socket.write_all(b"SSH-2.0-x\r\n").await.unwrap();
    assert_eq!(inside.read().await.unwrap(), "SSH-2.0-x\r\n");
    inside.write("SSH-2.0-y\r\n").await;
    assert_eq!(read(&mut socket, 11).await, b"SSH-2.0-y\r\n");
    socket.shutdown().await.unwrap();
    assert_eq!(inside.read_to_end().await, (Vec::new(), Code::Ok));
    inside.write("bye").await;
    inside.finish();
    assert_eq!(read(&mut socket, 3).await, b"bye");
    assert_eq!(soon("the end", socket.read(&mut [0])).await.unwrap(), 0);
    until("the relay is over", async || gateway.registry.stats().live == 0).await;
    assert_eq!(gateway.ssh_sessions.connections(), 0);
}

#[tokio::test]
async fn a_reset_in_the_sandbox_is_a_reset_at_the_client() {
    let gateway = Gateway::start().await;
    let id = gateway.sandbox("one").await;
    let mut supervisor = Scripted::connect(&gateway, &id).await;
    let token = gateway.ssh_token("one").await;
    let (opened, mut inside) = tokio::join!(session(&gateway, &id, &token), supervisor.serve_one());
    let (_, mut socket) = opened;
    inside.reset().await;
    let end = soon("the end", socket.read(&mut [0])).await;
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_client_that_vanishes_is_an_error_in_the_sandbox() {
    let gateway = Gateway::start().await;
    let id = gateway.sandbox("one").await;
    let mut supervisor = Scripted::connect(&gateway, &id).await;
    let token = gateway.ssh_token("one").await;
    let (opened, mut inside) = tokio::join!(session(&gateway, &id, &token), supervisor.serve_one());
    let (_, socket) = opened;
    socket.set_zero_linger().unwrap();
    drop(socket);
    assert_ne!(inside.read_to_end().await.1, Code::Ok);
}

#[tokio::test]
async fn revoking_the_token_cuts_the_connection() {
    let gateway = Gateway::start().await;
    let id = gateway.sandbox("one").await;
    let mut supervisor = Scripted::connect(&gateway, &id).await;
    let token = gateway.ssh_token("one").await;
    let (opened, mut inside) = tokio::join!(session(&gateway, &id, &token), supervisor.serve_one());
    let (_, mut socket) = opened;
    let revoke = RevokeSshSessionRequest { token: token.clone(), allow_missing: false };
    gateway.user().await.revoke_ssh_session(revoke).await.unwrap();
    assert!(soon("the end", socket.read(&mut [0])).await.is_err());
    assert_eq!(inside.read_to_end().await.1, Code::Unauthenticated);
    assert_eq!(session(&gateway, &id, &token).await.0, 401);
}

#[tokio::test]
async fn every_failure_is_a_status_before_the_tunnel() {
    let mut values = LayerConfigs::default();
    values.session_wait.ssh = Duration::from_millis(300);
    values.relay_caps.ssh_per_sandbox = 1;
    let options = Options { values, pending_ttl: Duration::from_millis(300), ..Options::default() };
    let gateway = Gateway::with(options).await;
    let (one, two) = (gateway.sandbox("one").await, gateway.sandbox("two").await);
    let token = gateway.ssh_token("one").await;

    // 401: whatever is wrong with the credential, and nothing said about it.
    for headers in [
        vec![],
        vec![("x-sandbox-id", one.as_str())],
        vec![("x-sandbox-token", token.as_str())],
        vec![("x-sandbox-id", one.as_str()), ("x-sandbox-token", " ")],
        vec![("x-sandbox-id", one.as_str()), ("x-sandbox-token", "unknown")],
        vec![("x-sandbox-id", two.as_str()), ("x-sandbox-token", token.as_str())],
    ] {
        assert_eq!(connect(&gateway, &headers).await.0, 401, "{headers:?}");
    }
    // 503: no session within the budget.
    assert_eq!(session(&gateway, &one, &token).await.0, 503);
    // 502: a supervisor that does not answer.
    let mut supervisor = Scripted::connect(&gateway, &one).await;
    gateway.until_phase("one", postern_proto::v1::SandboxPhase::Ready).await;
    assert_eq!(session(&gateway, &one, &token).await.0, 502);
    let _unanswered = supervisor.asked().await;
    // 429: the cap.
    let (held, inside) = tokio::join!(session(&gateway, &one, &token), supervisor.serve_one());
    assert_eq!(held.0, 200);
    assert_eq!(session(&gateway, &one, &token).await.0, 429);
    drop((held, inside));
    // 412: a sandbox that does not become Ready by itself. Its tokens go with the stop, so it gets a new one.
    let stop = StopSandboxRequest { name: "one".to_owned(), ..StopSandboxRequest::default() };
    gateway.user().await.stop_sandbox(stop).await.unwrap();
    let token = gateway.ssh_sessions.create(&one, "test").await.unwrap().token.expose().clone();
    assert_eq!(session(&gateway, &one, &token).await.0, 412);
    // 404: a token that outlived its sandbox.
    let token = gateway.ssh_sessions.create("gone", "test").await.unwrap().token.expose().clone();
    assert_eq!(session(&gateway, "gone", &token).await.0, 404);
}

#[tokio::test]
async fn a_users_bearer_token_is_no_ssh_session() {
    let gateway = Gateway::start().await;
    let id = gateway.sandbox("one").await;
    let bearer = format!("Bearer {}", gateway.issuer.mint(&id, SystemTime::now()).0.expose());
    assert_eq!(connect(&gateway, &[("authorization", &bearer)]).await.0, 401);
}

/// A CONNECT over HTTP/2, extended with `protocol` or plain.
async fn connect_h2(
    gateway: &Gateway,
    protocol: Option<&'static str>,
    id: &str,
    token: &str,
) -> (StatusCode, h2::SendStream<Bytes>, h2::RecvStream) {
    let socket = TcpStream::connect(gateway.address).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(socket).await.unwrap();
    tokio::spawn(connection);
    until("extended CONNECT is announced", async || {
        protocol.is_none() || sender.is_extended_connect_protocol_enabled()
    })
    .await;
    let uri = match protocol {
        Some(_) => format!("http://{}/connect/ssh", gateway.address),
        None => gateway.address.to_string(),
    };
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(uri)
        .header("x-sandbox-id", id)
        .header("x-sandbox-token", token)
        .body(())
        .unwrap();
    if let Some(protocol) = protocol {
        request.extensions_mut().insert(h2::ext::Protocol::from_static(protocol));
    }
    let (response, send) = sender.send_request(request, false).unwrap();
    let response = soon("an answer", response).await.unwrap();
    let (head, recv) = response.into_parts();
    (head.status, send, recv)
}

#[tokio::test]
async fn http2_carries_bytes_by_plain_and_by_extended_connect() {
    let gateway = Gateway::start().await;
    let id = gateway.sandbox("one").await;
    let mut supervisor = Scripted::connect(&gateway, &id).await;
    let token = gateway.ssh_token("one").await;
    for protocol in [None, Some("ssh"), Some("connect-tcp")] {
        let (opened, mut inside) =
            tokio::join!(connect_h2(&gateway, protocol, &id, &token), supervisor.serve_one());
        let (status, mut send, mut recv) = opened;
        assert_eq!(status, StatusCode::OK, "{protocol:?}");
        send.send_data(Bytes::from_static(b"ping"), false).unwrap();
        assert_eq!(inside.read().await.unwrap(), "ping", "{protocol:?}");
        inside.write("pong").await;
        assert_eq!(soon("bytes", recv.data()).await.unwrap().unwrap(), "pong");
        send.send_data(Bytes::new(), true).unwrap();
        assert_eq!(inside.read_to_end().await, (Vec::new(), Code::Ok));
        inside.finish();
        while let Some(data) = soon("the end", recv.data()).await {
            assert_eq!(data.unwrap(), "", "nothing follows the end");
        }
    }
    let (status, ..) = connect_h2(&gateway, Some("ssh"), &id, "unknown").await;
    assert_eq!(status, StatusCode::UNAUTHORIZED);
}
