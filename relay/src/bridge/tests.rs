use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tonic::{Code, Status};

use super::*;
use crate::body::{BoxError, ByteBody};
use crate::testing::framed;

/// A response written from the outside, trailers included.
fn response() -> (mpsc::Sender<Result<Frame<Bytes>, BoxError>>, ByteBody) {
    struct Frames(mpsc::Receiver<Result<Frame<Bytes>, BoxError>>);
    impl Body for Frames {
        type Data = Bytes;
        type Error = BoxError;
        fn poll_frame(
            mut self: std::pin::Pin<&mut Self>,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<Option<Result<Frame<Bytes>, BoxError>>> {
            self.0.poll_recv(cx)
        }
    }
    let (sender, frames) = mpsc::channel(1);
    (sender, crate::body::boxed(Frames(frames)))
}

fn status(code: Code, reason: &str) -> Frame<Bytes> {
    let mut trailers = http::HeaderMap::new();
    Status::new(code, reason).add_header(&mut trailers).unwrap();
    Frame::trailers(trailers)
}

/// Two connected TCP sockets.
async fn sockets() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

async fn data<B>(body: &mut B) -> Bytes
where
    B: Body<Data = Bytes, Error = StreamReset> + Unpin,
{
    body.frame().await.unwrap().unwrap().into_data().unwrap()
}

#[tokio::test]
async fn bytes_and_half_closes_pass_both_ways() {
    let (near, mut far) = sockets().await;
    let (mut body, bridge) = Bridge::new(near, relay_init("id"));
    let (sender, response) = response();
    let run = tokio::spawn(bridge.run(response));

    assert_eq!(data(&mut body).await, relay_init("id"));
    far.write_all(b"from target").await.unwrap();
    assert_eq!(data(&mut body).await, framed(b"from target"));
    sender.send(Ok(Frame::data(framed(b"to target")))).await.unwrap();
    let mut got = [0; 9];
    far.read_exact(&mut got).await.unwrap();
    assert_eq!(&got, b"to target");

    // The requester is done; the target goes on.
    sender.send(Ok(status(Code::Ok, ""))).await.unwrap();
    assert_eq!(far.read(&mut got).await.unwrap(), 0);
    far.write_all(b"tail").await.unwrap();
    assert_eq!(data(&mut body).await, framed(b"tail"));
    drop(far);
    assert!(body.frame().await.is_none());

    let end = run.await.unwrap();
    assert!(matches!(end.kind, BridgeEndKind::Clean), "{end:?}");
    assert_eq!((end.bytes_to_target, end.bytes_from_target), (9, 15));
    end.settle().await;
}

#[tokio::test]
async fn an_error_status_resets_the_target() {
    let (near, mut far) = sockets().await;
    let (mut body, bridge) = Bridge::new(near, Bytes::new());
    let (sender, response) = response();
    let run = tokio::spawn(bridge.run(response));
    sender.send(Ok(status(Code::Cancelled, "requester went away"))).await.unwrap();
    let end = run.await.unwrap();
    let BridgeEndKind::StreamFailed { status } = &end.kind else { panic!("{end:?}") };
    assert_eq!((status.code(), status.message()), (Code::Cancelled, "requester went away"));
    let error = far.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset, "a cut must not look like EOF");
    drop(end);
    assert!(body.frame().await.unwrap().is_err());
}

#[tokio::test]
async fn a_response_that_fails_or_ends_without_status_resets_the_target() {
    for fails in [true, false] {
        let (near, mut far) = sockets().await;
        let (_body, bridge) = Bridge::new(near, Bytes::new());
        let (sender, response) = response();
        let run = tokio::spawn(bridge.run(response));
        if fails {
            sender.send(Err("connection lost".into())).await.unwrap();
        }
        drop(sender);
        let end = run.await.unwrap();
        assert!(matches!(end.kind, BridgeEndKind::StreamFailed { .. }), "{end:?}");
        let error = far.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}

#[tokio::test]
async fn a_target_reset_is_no_end_of_file() {
    let (near, far) = sockets().await;
    let (mut body, bridge) = Bridge::new(near, Bytes::new());
    let (sender, response) = response();
    let run = tokio::spawn(bridge.run(response));
    socket2::SockRef::from(&far).set_linger(Some(Duration::ZERO)).unwrap();
    drop(far);
    // The body reads the reset and then waits until the reason has been told.
    let next = tokio::spawn(async move { body.frame().await });
    let end = run.await.unwrap();
    let BridgeEndKind::TargetFailed { error } = &end.kind else { panic!("{end:?}") };
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    assert!(!next.is_finished());
    // Told: the gateway ends the stream, settling resets it.
    sender.send(Ok(status(Code::Unavailable, "target reset"))).await.unwrap();
    drop(sender);
    end.settle().await;
    assert!(next.await.unwrap().unwrap().is_err());
}

#[tokio::test]
async fn abort_resets_both() {
    let (near, mut far) = sockets().await;
    let (mut body, bridge) = Bridge::new(near, Bytes::new());
    let (sender, response) = response();
    let abort = bridge.abort_handle();
    let run = tokio::spawn(bridge.run(response));
    tokio::task::yield_now().await;
    abort.abort("revoked");
    let end = run.await.unwrap();
    assert!(matches!(&end.kind, BridgeEndKind::Aborted { reason } if reason == "revoked"));
    let error = far.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    drop(sender);
    end.reset().await;
    assert!(body.frame().await.unwrap().is_err());
}

#[tokio::test]
async fn an_aborted_target_closes_although_nobody_polls_the_body() {
    let (near, mut far) = sockets().await;
    let (body, bridge) = Bridge::new(near, Bytes::new());
    drop(bridge);
    assert!(far.read(&mut [0; 1]).await.is_err());
    drop(body);
}

#[tokio::test]
async fn a_body_dropped_by_the_stack_ends_the_bridge_with_the_streams_status() {
    let (near, mut far) = sockets().await;
    let (body, bridge) = Bridge::new(near, Bytes::new());
    let (sender, response) = response();
    let run = tokio::spawn(bridge.run(response));
    drop(body);
    sender.send(Ok(status(Code::PermissionDenied, "token revoked"))).await.unwrap();
    let end = run.await.unwrap();
    let BridgeEndKind::StreamFailed { status } = &end.kind else { panic!("{end:?}") };
    assert_eq!(status.code(), Code::PermissionDenied);
    assert!(far.read(&mut [0; 1]).await.is_err());
}

#[tokio::test]
async fn the_socket_is_read_only_as_the_stream_asks() {
    let (near, mut far) = sockets().await;
    let (mut body, bridge) = Bridge::new(near, Bytes::new());
    let (_sender, response) = response();
    let run = tokio::spawn(bridge.run(response));
    // The target writes until the kernel's buffers are full: nobody drains them.
    let mut written = 0;
    let chunk = vec![1; 256 * 1024];
    while let Ok(n) = tokio::time::timeout(Duration::from_millis(200), far.write(&chunk)).await {
        written += n.unwrap();
        assert!(written < 64 * 1024 * 1024, "the bridge must not read ahead");
    }
    drop(far);
    let mut payload = 0;
    let mut decoder = crate::frame::Decoder::new(crate::frame::MAX_MESSAGE);
    while let Some(frame) = body.frame().await {
        decoder.feed(frame.unwrap().into_data().unwrap());
        while let Some(slice) = decoder.next_payload().unwrap() {
            payload += slice.len();
        }
    }
    assert_eq!(payload, written);
    run.abort();
}

#[tokio::test]
async fn what_a_target_said_before_it_closed_is_not_lost_when_it_takes_no_more() {
    let (near, mut far) = sockets().await;
    let (mut body, bridge) = Bridge::new(near, Bytes::new());
    let (sender, response) = response();
    let run = tokio::spawn(bridge.run(response));
    far.write_all(b"HTTP/1.1 413").await.unwrap();
    // Reads nothing, says its last and closes both ways in good order.
    far.shutdown().await.unwrap();
    let answer = data(&mut body).await;
    assert_eq!(answer, framed(b"HTTP/1.1 413"));
    assert!(body.frame().await.is_none());
    drop(far);
    // Now writes fail; they are dropped until the requester is done.
    for _ in 0..50 {
        sender.send(Ok(Frame::data(framed(&[0; 1000])))).await.unwrap();
    }
    sender.send(Ok(status(Code::Ok, ""))).await.unwrap();
    let end = run.await.unwrap();
    assert!(matches!(end.kind, BridgeEndKind::TargetFailed { .. }), "{end:?}");
}

#[tokio::test]
async fn unix_and_joined_targets_work_too() {
    let (near, mut far) = tokio::net::UnixStream::pair().unwrap();
    let (mut body, bridge) = Bridge::new(near, Bytes::new());
    let (sender, reply) = response();
    let run = tokio::spawn(bridge.run(reply));
    far.write_all(b"unix").await.unwrap();
    assert_eq!(data(&mut body).await, framed(b"unix"));
    drop(far);
    assert!(body.frame().await.is_none());
    sender.send(Ok(status(Code::Ok, ""))).await.unwrap();
    assert!(matches!(run.await.unwrap().kind, BridgeEndKind::Clean));

    let (near, mut far) = tokio::io::duplex(64);
    let (mut body, bridge) = Bridge::new(Joined(near), Bytes::new());
    let (sender, reply) = response();
    let run = tokio::spawn(bridge.run(reply));
    sender.send(Ok(Frame::data(framed(&[3; 1000])))).await.unwrap();
    sender.send(Ok(status(Code::Ok, ""))).await.unwrap();
    let mut got = Vec::new();
    far.read_to_end(&mut got).await.unwrap();
    assert_eq!(got, [3; 1000]);
    drop(far);
    assert!(body.frame().await.is_none());
    assert!(matches!(run.await.unwrap().kind, BridgeEndKind::Clean));
}
