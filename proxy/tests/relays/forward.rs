//! `ForwardTcp` and `RelayStream`: bytes, ends, faults and rights.

use bytes::Bytes;
use postern_proto::v1::gateway_message::Payload as FromGateway;
use postern_proto::v1::supervisor_message::Payload as ToGateway;
use postern_proto::v1::{
    DeletionOutcome, RelayClose, RelayFrame, RelayOpenResult, RevokeSshSessionRequest,
    TcpForwardFrame, relay_frame, relay_open, tcp_forward_frame,
};
use postern_relay::bridge::first_message;
use postern_relay::transport::Connection;
use tonic::Code;

use super::gateway::{Gateway, soon, until};
use super::scripted::{End, Scripted, forward, forward_raw, ssh_init, tcp_init};

/// A gateway with one connected sandbox, and what opens relays into it.
struct Setup {
    gateway: Gateway,
    session: Scripted,
    connection: Connection,
    token: String,
}

impl Setup {
    async fn new() -> Self {
        let gateway = Gateway::start().await;
        let id = gateway.sandbox("one").await;
        let session = Scripted::connect(&gateway, &id).await;
        let (connection, token) = (gateway.connect(None).await, gateway.ssh_token("one").await);
        Self { gateway, session, connection, token }
    }

    /// An open relay: the user's end and the supervisor's.
    async fn relay(&mut self) -> (End, End) {
        let (connection, init) = (self.connection.clone(), ssh_init("one", &self.token));
        let opening = tokio::spawn(async move { forward(&connection, init).await });
        let inside = self.session.serve_one().await;
        (soon("the forward", opening).await.unwrap().unwrap(), inside)
    }

    async fn refused(&self, init: postern_proto::v1::TcpForwardInit) -> Code {
        soon("an answer", forward(&self.connection, init)).await.map(drop).unwrap_err().code()
    }
}

#[tokio::test]
async fn bytes_pass_both_ways_and_each_way_ends_by_itself() {
    let mut setup = Setup::new().await;
    let (mut outside, mut inside) = setup.relay().await;
    outside.write("ping").await;
    assert_eq!(inside.read().await.unwrap(), "ping");
    inside.write("pong").await;
    assert_eq!(outside.read().await.unwrap(), "pong");
    // The user's side ends first; the sandbox goes on talking.
    outside.finish();
    assert_eq!(inside.read_to_end().await, (Vec::new(), Code::Ok));
    inside.write("still").await;
    assert_eq!(outside.read().await.unwrap(), "still");
    inside.finish();
    assert_eq!(outside.read_to_end().await, (Vec::new(), Code::Ok));
    // The other order.
    let (mut outside, mut inside) = setup.relay().await;
    inside.finish();
    assert_eq!(outside.read_to_end().await, (Vec::new(), Code::Ok));
    outside.write("late").await;
    assert_eq!(inside.read().await.unwrap(), "late");
    outside.finish();
    assert_eq!(inside.read_to_end().await, (Vec::new(), Code::Ok));
    until("both relays are over", async || setup.gateway.registry.stats().live == 0).await;
    let opened = setup.gateway.audited("relay open").await;
    let closed = setup.gateway.audited("relay closed").await;
    assert_eq!((opened.len(), closed.len()), (2, 2), "{opened:?} {closed:?}");
}

#[tokio::test]
async fn megabytes_pass_unchanged() {
    let mut setup = Setup::new().await;
    let (mut outside, mut inside) = setup.relay().await;
    let data: Bytes = (0..4_000_000u32).map(|i| (i * 7 + i / 251) as u8).collect::<Vec<_>>().into();
    let sent = data.clone();
    let writer = tokio::spawn(async move {
        for at in (0..sent.len()).step_by(100_000) {
            outside.write(sent.slice(at..at + 100_000)).await;
        }
        outside.finish();
        outside
    });
    let (got, code) = inside.read_to_end().await;
    assert_eq!(code, Code::Ok);
    assert!(got == data, "{} bytes came", got.len());
    drop(writer.await.unwrap());
}

#[tokio::test]
async fn a_reader_that_stops_stops_its_writer() {
    let mut setup = Setup::new().await;
    let (mut outside, inside) = setup.relay().await;
    let chunk = Bytes::from(vec![7; 64 * 1024]);
    let mut sent = 0usize;
    let mut idle = 0;
    // Stalled for good: no room for a second although everything that can move has moved.
    while idle < 100 {
        if outside.try_write(chunk.clone()) {
            sent += chunk.len();
            idle = 0;
        } else {
            idle += 1;
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }
    println!("{} KiB are in flight towards a reader that does not read", sent / 1024);
    // Two windows of 2 MiB, and what hyper may buffer to send.
    assert!(sent < 8 * 1024 * 1024, "{sent} bytes were taken");
    let (mut other_outside, mut other_inside) = setup.relay().await;
    other_outside.write("quick").await;
    assert_eq!(other_inside.read().await.unwrap(), "quick");
    drop(inside);
}

#[tokio::test]
async fn a_reset_is_an_error_at_the_other_end_and_never_an_end_of_file() {
    let mut setup = Setup::new().await;
    let (mut outside, mut inside) = setup.relay().await;
    inside.write("half").await;
    assert_eq!(outside.read().await.unwrap(), "half");
    inside.reset().await;
    let (_, code) = outside.read_to_end().await;
    assert_eq!(code, Code::Unavailable, "{}", outside.reason());

    let (mut outside, mut inside) = setup.relay().await;
    outside.write("half").await;
    assert_eq!(inside.read().await.unwrap(), "half");
    outside.reset().await;
    let (_, code) = inside.read_to_end().await;
    assert_ne!(code, Code::Ok);
    // The session says so too, with a code for a peer that knows it.
    match setup.session.next().await {
        Ok(FromGateway::RelayClose(close)) => assert_ne!(close.code, 0),
        other => panic!("expected RelayClose, got {other:?}"),
    }
}

#[tokio::test]
async fn the_connection_of_a_supervisor_that_is_lost_is_an_error_at_the_user() {
    let mut setup = Setup::new().await;
    let (mut outside, inside) = setup.relay().await;
    setup.session.cut();
    assert_eq!(outside.read_to_end().await.1, Code::Unavailable);
    drop(inside);
}

#[tokio::test]
async fn a_malformed_frame_ends_its_relay_and_no_other() {
    let mut setup = Setup::new().await;
    let (mut other_outside, mut other_inside) = setup.relay().await;
    let compressed = Bytes::from_static(&[1, 0, 0, 0, 2, 0x12, 0]);
    let huge = Bytes::from_static(&[0, 0xff, 0xff, 0xff, 0xff, 0x12]);
    let second_init = {
        let init = tcp_forward_frame::Payload::Init(ssh_init("one", "x"));
        first_message(&TcpForwardFrame { payload: Some(init) })
    };
    let other_field = Bytes::from_static(&[0, 0, 0, 0, 2, 0x1a, 0]);
    for bad in [compressed, huge, second_init, other_field] {
        let (mut outside, mut inside) = setup.relay().await;
        outside.write_raw(bad.clone()).await;
        assert_eq!(outside.read_to_end().await.1, Code::InvalidArgument, "{bad:?}");
        assert_eq!(inside.read_to_end().await.1, Code::InvalidArgument, "{bad:?}");
    }
    let (mut outside, mut inside) = setup.relay().await;
    inside.write_raw(Bytes::from_static(&[9; 64])).await;
    assert_eq!(outside.read_to_end().await.1, Code::InvalidArgument, "from the supervisor");
    other_outside.write("fine").await;
    assert_eq!(other_inside.read().await.unwrap(), "fine");
    assert!(setup.gateway.registry.sessions().len() == 1, "the session goes on");
}

#[tokio::test]
async fn revoking_a_token_cuts_what_came_in_by_it() {
    let mut setup = Setup::new().await;
    let (mut outside, mut inside) = setup.relay().await;
    let other = setup.gateway.ssh_token("one").await;
    let mine = std::mem::replace(&mut setup.token, other);
    let (mut kept_outside, mut kept_inside) = setup.relay().await;
    let mut api = setup.gateway.user().await;
    let revoke = RevokeSshSessionRequest { token: mine.clone(), allow_missing: false };
    let revoked = api.revoke_ssh_session(revoke.clone()).await.unwrap().into_inner();
    assert_eq!(revoked.outcome(), DeletionOutcome::Completed);
    assert_eq!(outside.read_to_end().await.1, Code::Unauthenticated);
    assert_eq!(inside.read_to_end().await.1, Code::Unauthenticated);
    kept_outside.write("kept").await;
    assert_eq!(kept_inside.read().await.unwrap(), "kept");
    assert_eq!(setup.refused(ssh_init("one", &mine)).await, Code::Unauthenticated);
    // A second time.
    assert_eq!(api.revoke_ssh_session(revoke.clone()).await.unwrap_err().code(), Code::NotFound);
    let again = RevokeSshSessionRequest { allow_missing: true, ..revoke };
    let absent = api.revoke_ssh_session(again).await.unwrap().into_inner();
    assert_eq!(absent.outcome(), DeletionOutcome::AlreadyAbsent);
}

#[tokio::test]
async fn a_forward_needs_a_token_of_its_sandbox() {
    let setup = Setup::new().await;
    setup.gateway.sandbox("two").await;
    let foreign = setup.gateway.ssh_token("two").await;
    for token in ["", "  ", "unknown", foreign.as_str()] {
        assert_eq!(setup.refused(ssh_init("one", token)).await, Code::Unauthenticated, "{token:?}");
        let tcp = tcp_init("one", token, "127.0.0.1", 80);
        assert_eq!(setup.refused(tcp).await, Code::Unauthenticated, "{token:?}");
    }
    assert_eq!(setup.refused(ssh_init("nobody", &setup.token)).await, Code::NotFound);
    assert_eq!(
        setup.refused(tcp_init("one", &setup.token, "10.0.0.1", 80)).await,
        Code::InvalidArgument
    );
    assert_eq!(setup.refused(tcp_init("one", &setup.token, "::1", 0)).await, Code::InvalidArgument);
    assert_eq!(setup.gateway.ssh_sessions.connections(), 0);
}

#[tokio::test]
async fn a_forward_begins_with_its_init() {
    let setup = Setup::new().await;
    let data = tcp_forward_frame::Payload::Data(Bytes::from_static(b"early"));
    let data = first_message(&TcpForwardFrame { payload: Some(data) });
    let empty = first_message(&TcpForwardFrame { payload: None });
    let garbage = Bytes::from_static(&[0, 0, 0, 0, 3, 0xff, 0xff, 0xff]);
    let oversized = Bytes::from_static(&[0, 0x7f, 0, 0, 0]);
    for first in [data, empty, garbage, oversized] {
        let status = forward_raw(&setup.connection, first.clone()).await.map(drop).unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{first:?}: {status}");
    }
}

#[tokio::test]
async fn a_target_is_passed_on_as_it_was_asked_for() {
    let mut setup = Setup::new().await;
    let mut init = tcp_init("one", &setup.token, "localhost", 8080);
    init.service_id = "web".to_owned();
    let connection = setup.connection.clone();
    let opening = tokio::spawn(async move { forward(&connection, init).await });
    let open = setup.session.asked().await;
    assert_eq!(open.service_id, "web");
    match open.target {
        Some(relay_open::Target::Tcp(tcp)) => {
            assert_eq!((tcp.host.as_str(), tcp.port), ("localhost", 8080))
        }
        other => panic!("{other:?}"),
    }
    opening.abort();
}

#[tokio::test]
async fn the_word_of_the_supervisor_reaches_the_user() {
    let mut setup = Setup::new().await;
    let (connection, init) =
        (setup.connection.clone(), tcp_init("one", &setup.token, "127.0.0.1", 9));
    let opening = tokio::spawn(async move { forward(&connection, init).await });
    let open = setup.session.asked().await;
    let refusal = RelayOpenResult {
        channel_id: open.channel_id,
        success: false,
        error: "connection refused by 127.0.0.1:9".to_owned(),
        code: Code::FailedPrecondition as i32,
    };
    setup.session.send(ToGateway::RelayOpenResult(refusal)).await;
    let status = soon("an answer", opening).await.unwrap().map(drop).unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(status.message(), "connection refused by 127.0.0.1:9");

    let (connection, init) = (setup.connection.clone(), ssh_init("one", &setup.token));
    let opening = tokio::spawn(async move { forward(&connection, init).await });
    let open = setup.session.asked().await;
    let _inside = setup.session.claim(&open.channel_id).await.unwrap();
    let mut outside = soon("the forward", opening).await.unwrap().unwrap();
    let close = RelayClose {
        channel_id: open.channel_id,
        reason: "target reset".to_owned(),
        code: Code::Aborted as i32,
    };
    setup.session.send(ToGateway::RelayClose(close)).await;
    assert_eq!(outside.read_to_end().await.1, Code::Aborted);
    assert_eq!(outside.reason(), "target reset");
}

#[tokio::test]
async fn only_the_right_sandbox_claims_and_only_once() {
    let mut setup = Setup::new().await;
    let two = setup.gateway.sandbox("two").await;
    let stranger = Scripted::connect(&setup.gateway, &two).await;
    let (connection, init) = (setup.connection.clone(), ssh_init("one", &setup.token));
    let opening = tokio::spawn(async move { forward(&connection, init).await });
    let open = setup.session.asked().await;
    let stolen = stranger.claim(&open.channel_id).await.map(drop).unwrap_err();
    assert_eq!(stolen.code(), Code::PermissionDenied);
    let unknown =
        setup.session.claim("5bd0a5ea-6c5e-4a66-9d1a-000000000000").await.map(drop).unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert_eq!(setup.session.claim("no id").await.map(drop).unwrap_err().code(), Code::NotFound);
    assert_eq!(setup.session.claim("").await.map(drop).unwrap_err().code(), Code::InvalidArgument);
    let recorded = setup.gateway.audited("RelayStream").await;
    assert_eq!(recorded.len(), 4, "every refused claim and nothing else: {recorded:?}");
    // The entry was kept for its owner.
    let _inside = setup.session.claim(&open.channel_id).await.unwrap();
    assert!(soon("the forward", opening).await.unwrap().is_ok());
    let again = setup.session.claim(&open.channel_id).await.map(drop).unwrap_err();
    assert_eq!(again.code(), Code::NotFound);
}

#[tokio::test]
async fn a_pending_open_is_asked_for_again_on_a_newer_session() {
    let mut setup = Setup::new().await;
    let (connection, init) = (setup.connection.clone(), ssh_init("one", &setup.token));
    let opening = tokio::spawn(async move { forward(&connection, init).await });
    let first = setup.session.asked().await;
    let id = setup.gateway.registry.sessions()[0].sandbox_id.to_string();
    let mut newer = Scripted::connect(&setup.gateway, &id).await;
    let again = newer.asked().await;
    assert_eq!(first.channel_id, again.channel_id);
    let _inside = newer.claim(&again.channel_id).await.unwrap();
    assert!(soon("the forward", opening).await.unwrap().is_ok());
}

#[tokio::test]
async fn an_empty_data_frame_is_no_fault() {
    let mut setup = Setup::new().await;
    let (mut outside, mut inside) = setup.relay().await;
    let empty = relay_frame::Payload::Data(Bytes::new());
    outside.write_raw(first_message(&RelayFrame { payload: Some(empty) })).await;
    outside.write("after").await;
    let mut got = Vec::new();
    while got.len() < 5 {
        got.extend_from_slice(&inside.read().await.expect("bytes"));
    }
    assert_eq!(got, b"after");
}
