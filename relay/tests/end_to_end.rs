//! Whole relays over real HTTP/2 connections: requester, gateway, supervisor, target.
//!
//! The gateway here is the smallest one that can be: the registry and the splice behind a hyper
//! server. The supervisor is the transport and the bridge. Every test binds port 0.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use postern_proto::v1::open_shell_client::OpenShellClient;
use postern_proto::v1::{
    RelayFrame, RelayOpenResult, TcpForwardFrame, TcpForwardInit, gateway_message, relay_frame,
    tcp_forward_frame,
};
use postern_relay::body::{BoxError, ByteBody, FIRST_MESSAGE_MAX, boxed, read_first_message};
use postern_relay::bridge::{Bridge, BridgeAbort, BridgeEndKind, first_message, relay_init};
use postern_relay::frame::{Decoder, HEADROOM, MAX_MESSAGE, header};
use postern_relay::registry::{Claimant, Config, OpenRelay, Registry, SessionPeer, Target};
use postern_relay::splice::{AbortHandle, EndKind, OnRelayEnd, RelayEnd, Side};
use postern_relay::transport::{
    self, Connection, FORWARD_TCP_PATH, RELAY_STREAM_PATH, Target as Gateway,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tonic::body::Body as TonicBody;
use tonic::{Code, Status};

const SANDBOX: &str = "sandbox-1";

/// How long anything here may take before the test is taken to hang.
const PATIENCE: Duration = Duration::from_secs(20);

async fn soon<F: Future>(what: &str, future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("{what} hangs"))
}

/// Waits for a condition that other tasks bring about.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    soon(what, async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

#[derive(Clone, Default)]
struct Ends(Arc<Mutex<Vec<RelayEnd>>>);

impl OnRelayEnd for Ends {
    fn on_relay_end(&self, end: &RelayEnd) {
        self.0.lock().push(end.clone());
    }
}

/// A gateway, a supervisor connected to it, and a target that listens.
struct World {
    registry: Registry,
    ends: Ends,
    aborts: Arc<Mutex<Vec<AbortHandle>>>,
    gateway: SocketAddr,
    target: TcpListener,
    supervisor: Connection,
    bridges: Arc<Mutex<Vec<String>>>,
}

type Answer = http::Response<TonicBody>;

async fn answer(
    request: http::Request<Incoming>,
    registry: Registry,
    target: SocketAddr,
    aborts: Arc<Mutex<Vec<AbortHandle>>>,
) -> Result<Answer, Infallible> {
    let path = request.uri().path().to_owned();
    let answered = match path.as_str() {
        FORWARD_TCP_PATH => forward(request.into_body(), &registry, target, &aborts).await,
        RELAY_STREAM_PATH => relay_stream(request.into_body(), &registry).await,
        other => Err(Status::unimplemented(other.to_owned())),
    };
    Ok(answered.unwrap_or_else(Status::into_http))
}

async fn forward(
    body: Incoming,
    registry: &Registry,
    target: SocketAddr,
    aborts: &Mutex<Vec<AbortHandle>>,
) -> Result<Answer, Status> {
    let (first, rest) = read_first_message::<TcpForwardFrame, _>(body, FIRST_MESSAGE_MAX)
        .await
        .map_err(|error| Status::new(error.code(), error.to_string()))?;
    let Some(tcp_forward_frame::Payload::Init(init)) = first.payload else {
        return Err(Status::invalid_argument("expected init"));
    };
    let host = target.ip().to_string().into();
    let opened = registry
        .open(OpenRelay {
            sandbox_id: init.sandbox.into(),
            target: Target::Tcp { host, port: target.port() },
            service_id: init.service_id.into(),
        })
        .await
        .map_err(|error| Status::new(error.code(), error.to_string()))?;
    aborts.lock().push(opened.abort_handle());
    Ok(opened.splice(rest).into_response().map(TonicBody::new))
}

async fn relay_stream(body: Incoming, registry: &Registry) -> Result<Answer, Status> {
    let (first, rest) = read_first_message::<RelayFrame, _>(body, FIRST_MESSAGE_MAX)
        .await
        .map_err(|error| Status::new(error.code(), error.to_string()))?;
    let Some(relay_frame::Payload::Init(init)) = first.payload else {
        return Err(Status::invalid_argument("expected init"));
    };
    let ticket = registry
        .claim(&init.channel_id, &Claimant::Sandbox(SANDBOX.into()), rest)
        .map_err(|error| Status::new(error.code(), error.to_string()))?;
    Ok(ticket.into_response().map(TonicBody::new))
}

async fn serve(
    listener: TcpListener,
    registry: Registry,
    target: SocketAddr,
    aborts: Arc<Mutex<Vec<AbortHandle>>>,
) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (registry, aborts) = (registry.clone(), Arc::clone(&aborts));
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                answer(request, registry.clone(), target, Arc::clone(&aborts))
            });
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .timer(TokioTimer::new())
                .initial_stream_window_size(256 * 1024)
                .initial_connection_window_size(64 * 1024 * 1024)
                .max_frame_size(128 * 1024)
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

/// Answers `RelayOpen` and `RelayClose` as a supervisor does.
async fn supervise(registry: Registry, connection: Connection, bridges: Arc<Mutex<Vec<String>>>) {
    let peer = SessionPeer {
        sandbox_id: SANDBOX.into(),
        instance_id: "instance".into(),
        speaks_postern: true,
    };
    let mut session = registry.register(peer, |_| Default::default()).unwrap();
    let live: Arc<Mutex<HashMap<String, BridgeAbort>>> = Arc::default();
    while let Some(message) = session.outbound.recv().await {
        match message.payload.unwrap() {
            gateway_message::Payload::RelayOpen(open) => {
                let (registry, connection) = (registry.clone(), connection.clone());
                let (live, bridges) = (Arc::clone(&live), Arc::clone(&bridges));
                tokio::spawn(async move {
                    let kind = relay(&registry, &connection, open, &live).await;
                    bridges.lock().push(kind);
                });
            }
            gateway_message::Payload::RelayClose(close) => {
                if let Some(abort) = live.lock().remove(&close.channel_id) {
                    abort.abort(close.reason);
                }
            }
            _ => {}
        }
    }
}

async fn relay(
    registry: &Registry,
    connection: &Connection,
    open: postern_proto::v1::RelayOpen,
    live: &Mutex<HashMap<String, BridgeAbort>>,
) -> String {
    let channel_id = open.channel_id;
    let Some(postern_proto::v1::relay_open::Target::Tcp(tcp)) = open.target else {
        panic!("tests open tcp targets");
    };
    let dialled = TcpStream::connect((tcp.host.as_str(), tcp.port as u16)).await;
    let target = match dialled {
        Ok(target) => target,
        Err(error) => {
            let result = RelayOpenResult {
                channel_id,
                success: false,
                error: error.to_string(),
                code: Code::Unavailable as i32,
            };
            registry.relay_open_result(SANDBOX, &result);
            return "refused".to_owned();
        }
    };
    let (body, bridge) = Bridge::new(target, relay_init(&channel_id));
    live.lock().insert(channel_id.clone(), bridge.abort_handle());
    let response = match connection.open_stream(RELAY_STREAM_PATH, body).await {
        Ok(response) => response,
        Err(status) => return format!("not opened: {:?}", status.code()),
    };
    let end = bridge.run(response).await;
    let kind = match &end.kind {
        BridgeEndKind::Clean => "clean".to_owned(),
        BridgeEndKind::TargetFailed { error } => {
            registry.relay_closed_by_supervisor(
                SANDBOX,
                &channel_id,
                "target reset the connection",
                Code::Aborted,
            );
            format!("target: {:?}", error.kind())
        }
        BridgeEndKind::StreamFailed { status } => format!("stream: {:?}", status.code()),
        BridgeEndKind::Aborted { reason } => format!("aborted: {reason}"),
        other => format!("{other:?}"),
    };
    end.settle().await;
    kind
}

async fn dial(gateway: SocketAddr) -> Connection {
    let target = Gateway::new(format!("http://{gateway}").parse().unwrap());
    transport::connect(&target).await.unwrap()
}

impl World {
    async fn new() -> Self {
        let ends = Ends::default();
        let registry =
            Registry::new(Config { on_relay_end: Arc::new(ends.clone()), ..Config::default() });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gateway = listener.local_addr().unwrap();
        let aborts = Arc::<Mutex<Vec<AbortHandle>>>::default();
        let address = target.local_addr().unwrap();
        tokio::spawn(serve(listener, registry.clone(), address, Arc::clone(&aborts)));
        let supervisor = dial(gateway).await;
        let bridges = Arc::<Mutex<Vec<String>>>::default();
        tokio::spawn(supervise(registry.clone(), supervisor.clone(), Arc::clone(&bridges)));
        until("registration", || registry.current(SANDBOX).is_some()).await;
        Self { registry, ends, aborts, gateway, target, supervisor, bridges }
    }

    /// Opens a relay from a client connection and accepts it at the target.
    async fn relay(&self, client: &Connection) -> (Client, TcpStream) {
        let opening = Client::open(client, SANDBOX);
        let accepting = async { self.target.accept().await.unwrap().0 };
        let (opened, accepted) = soon("opening", async { tokio::join!(opening, accepting) }).await;
        (opened.unwrap(), accepted)
    }

    async fn end(&self, count: usize) -> RelayEnd {
        until("the end of a relay", || self.ends.0.lock().len() >= count).await;
        self.ends.0.lock()[count - 1].clone()
    }

    async fn bridge_end(&self) -> String {
        until("the end of a bridge", || !self.bridges.lock().is_empty()).await;
        self.bridges.lock()[0].clone()
    }
}

/// A requester that speaks frames over HTTP/2.
struct Client {
    /// Dropping it is end of file; an error in it resets the stream.
    sender: mpsc::Sender<Result<Frame<Bytes>, BoxError>>,
    response: ByteBody,
    decoder: Decoder,
}

fn framed(payload: &[u8]) -> Bytes {
    let (bytes, length) = header(payload.len());
    [&bytes[HEADROOM - length..], payload].concat().into()
}

impl Client {
    async fn open(connection: &Connection, sandbox: &str) -> Result<Self, Status> {
        let (sender, frames) = mpsc::channel(1);
        let init = first_message(&TcpForwardFrame {
            payload: Some(tcp_forward_frame::Payload::Init(TcpForwardInit {
                sandbox: sandbox.to_owned(),
                ..Default::default()
            })),
        });
        sender.try_send(Ok(Frame::data(init))).unwrap();
        let frames = futures_util::stream::unfold(frames, |mut frames| async move {
            Some((frames.recv().await?, frames))
        });
        let body = StreamBody::new(Box::pin(frames));
        let response = connection.open_stream(FORWARD_TCP_PATH, body).await?;
        Ok(Self { sender, response, decoder: Decoder::new(MAX_MESSAGE) })
    }

    async fn send(&mut self, payload: &[u8]) {
        self.sender.send(Ok(Frame::data(framed(payload)))).await.unwrap();
    }

    /// The next payload; `Ok(None)` is end of file.
    async fn read(&mut self) -> Result<Option<Bytes>, Status> {
        loop {
            if let Some(payload) = self.decoder.next_payload().unwrap() {
                return Ok(Some(payload));
            }
            let Some(frame) = soon("reading", self.response.frame()).await else {
                panic!("ended without a status");
            };
            match frame.map_err(Status::from_error)?.into_data() {
                Ok(data) => self.decoder.feed(data),
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap();
                    let status = Status::from_header_map(&trailers).unwrap();
                    if status.code() == Code::Ok {
                        return Ok(None);
                    }
                    return Err(status);
                }
            }
        }
    }

    async fn read_to_end(&mut self) -> Result<Vec<u8>, Status> {
        let mut all = Vec::new();
        while let Some(payload) = self.read().await? {
            all.extend_from_slice(&payload);
        }
        Ok(all)
    }
}

fn noise(length: usize, seed: u8) -> Vec<u8> {
    let mut state = u32::from(seed) + 1;
    (0..length)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn megabytes_pass_unchanged_both_ways_at_once() {
    let world = World::new().await;
    let client = dial(world.gateway).await;
    let (mut relay, mut target) = world.relay(&client).await;
    let (up, down) = (noise(8 << 20, 1), noise(8 << 20, 2));
    let (expect_up, expect_down) = (up.clone(), down.clone());
    let at_target = tokio::spawn(async move {
        let (mut reader, mut writer) = target.split();
        let mut got = Vec::new();
        let write = async {
            writer.write_all(&down).await.unwrap();
            writer.shutdown().await.unwrap();
        };
        let read = async { reader.read_to_end(&mut got).await.unwrap() };
        tokio::join!(write, read);
        got
    });
    let sender = relay.sender.clone();
    let uploading = tokio::spawn(async move {
        for chunk in up.chunks(50_000) {
            sender.send(Ok(Frame::data(framed(chunk)))).await.unwrap();
        }
    });
    let downloaded = relay.read_to_end().await.unwrap();
    uploading.await.unwrap();
    drop(relay.sender);
    assert!(soon("the target", at_target).await.unwrap() == expect_up, "upload differs");
    assert!(downloaded == expect_down, "download differs");
    let end = world.end(1).await;
    assert_eq!((end.bytes_to_sandbox, end.bytes_from_sandbox), (8 << 20, 8 << 20));
    assert_eq!(end.kind, EndKind::Clean);
    assert_eq!(world.bridge_end().await, "clean");
}

#[tokio::test]
async fn the_requesters_end_of_file_leaves_the_target_talking() {
    let world = World::new().await;
    let client = dial(world.gateway).await;
    let (mut relay, mut target) = world.relay(&client).await;
    relay.send(b"question").await;
    let (sender, _) = mpsc::channel(1);
    relay.sender = sender;
    let mut question = Vec::new();
    soon("the question", target.read_to_end(&mut question)).await.unwrap();
    assert_eq!(question, b"question");
    target.write_all(b"a long answer").await.unwrap();
    assert_eq!(relay.read().await.unwrap().unwrap(), "a long answer");
    drop(target);
    assert_eq!(relay.read().await.unwrap(), None);
    assert_eq!(world.end(1).await.kind, EndKind::Clean);
}

#[tokio::test]
async fn the_targets_end_of_file_leaves_the_requester_talking() {
    let world = World::new().await;
    let client = dial(world.gateway).await;
    let (mut relay, mut target) = world.relay(&client).await;
    target.write_all(b"done").await.unwrap();
    target.shutdown().await.unwrap();
    assert_eq!(relay.read_to_end().await.unwrap(), b"done");
    relay.send(b"still ").await;
    relay.send(b"uploading").await;
    drop(relay);
    let mut got = Vec::new();
    soon("the upload", target.read_to_end(&mut got)).await.unwrap();
    assert_eq!(got, b"still uploading");
    assert_eq!(world.end(1).await.kind, EndKind::Clean);
}

#[tokio::test]
async fn a_requester_that_resets_resets_the_target() {
    let world = World::new().await;
    let client = dial(world.gateway).await;
    for whole_connection in [false, true] {
        let (mut relay, mut target) = world.relay(&client).await;
        relay.send(b"half a thing").await;
        let mut got = [0; 12];
        target.read_exact(&mut got).await.unwrap();
        if whole_connection {
            client.close();
        } else {
            relay.sender.send(Err("gone".into())).await.unwrap();
        }
        let error = soon("the reset", target.read(&mut got)).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    }
    for count in [1, 2] {
        let end = world.end(count).await;
        assert_eq!(end.ended_by, Side::Requester);
        assert!(matches!(end.kind, EndKind::Reset { .. }));
    }
}

#[tokio::test]
async fn a_target_that_resets_is_an_error_with_its_reason_at_the_requester() {
    let world = World::new().await;
    let client = dial(world.gateway).await;
    let (mut relay, target) = world.relay(&client).await;
    socket2::SockRef::from(&target).set_linger(Some(Duration::ZERO)).unwrap();
    drop(target);
    let status = relay.read_to_end().await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "{status:?}");
    assert_eq!(status.message(), "target reset the connection");
    assert_eq!(world.bridge_end().await, "target: ConnectionReset");
}

#[tokio::test]
async fn a_lost_supervisor_is_an_error_at_the_requester() {
    let world = World::new().await;
    let client = dial(world.gateway).await;
    let (mut relay, mut target) = world.relay(&client).await;
    world.supervisor.close();
    assert!(soon("closing", world.supervisor.closed()).await.error.is_some());
    let status = relay.read_to_end().await.unwrap_err();
    assert!(matches!(status.code(), Code::Unavailable | Code::Cancelled), "{status:?}");
    assert!(soon("the reset", target.read(&mut [0; 1])).await.is_err(), "not end of file");
    assert_eq!(world.end(1).await.ended_by, Side::Supervisor);
}

#[tokio::test]
async fn abort_is_seen_at_both_ends() {
    let world = World::new().await;
    let client = dial(world.gateway).await;
    let (mut relay, mut target) = world.relay(&client).await;
    let abort = world.aborts.lock()[0].clone();
    assert!(abort.abort("token revoked", Code::PermissionDenied));
    let status = relay.read_to_end().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::PermissionDenied, "token revoked"));
    let error = soon("the reset", target.read(&mut [0; 1])).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_malformed_frame_ends_only_its_own_relay() {
    let world = World::new().await;
    let client = dial(world.gateway).await;
    let (mut bad, mut bad_target) = world.relay(&client).await;
    let (mut good, mut good_target) = world.relay(&client).await;
    let second_init = b"\x00\x00\x00\x00\x04\x0a\x02\x0a\x00".as_slice();
    bad.sender.send(Ok(Frame::data(second_init.into()))).await.unwrap();
    let status = bad.read_to_end().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(soon("the reset", bad_target.read(&mut [0; 1])).await.is_err());
    good.send(b"ping").await;
    let mut got = [0; 4];
    good_target.read_exact(&mut got).await.unwrap();
    good_target.write_all(b"pong").await.unwrap();
    assert_eq!(good.read().await.unwrap().unwrap(), "pong");
    assert!(world.registry.current(SANDBOX).is_some());
}

#[tokio::test]
async fn errors_before_the_relay_keep_their_codes() {
    let world = World::new().await;
    let client = dial(world.gateway).await;
    let error = Client::open(&client, "no such sandbox").await.err().unwrap();
    assert_eq!(error.code(), Code::Unavailable);
    assert!(error.message().contains("no supervisor session"), "{error:?}");
    let unknown = boxed(http_body_util::Full::new(relay_init("no such channel")));
    let error = world.supervisor.open_stream(RELAY_STREAM_PATH, unknown).await.err().unwrap();
    assert_eq!(error.code(), Code::NotFound);
    let empty = boxed(http_body_util::Empty::<Bytes>::new());
    let error = world.supervisor.open_stream(RELAY_STREAM_PATH, empty).await.err().unwrap();
    assert_eq!(error.code(), Code::InvalidArgument);
}

/// Writes until nothing more is taken for a while; says how much was.
async fn fill(target: &mut TcpStream) -> usize {
    let chunk = noise(64 * 1024, 3);
    let mut written = 0;
    while let Ok(n) = tokio::time::timeout(Duration::from_millis(300), target.write(&chunk)).await {
        written += n.unwrap();
        assert!(written < 64 << 20, "no back-pressure after 64 MiB");
    }
    written
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stalled_readers_stop_their_own_writers_and_nobody_elses() {
    let world = World::new().await;
    let client = dial(world.gateway).await;
    let mut stalled = Vec::new();
    for _ in 0..6 {
        let (relay, mut target) = world.relay(&client).await;
        socket2::SockRef::from(&target).set_send_buffer_size(64 * 1024).unwrap();
        let written = fill(&mut target).await;
        stalled.push((relay, target, written));
    }
    // Another relay on the same two connections is as alive as ever.
    let (mut lively, mut target) = world.relay(&client).await;
    for round in 0..50_u8 {
        lively.send(&[round; 32]).await;
        let mut got = [0; 32];
        soon("the ping", target.read_exact(&mut got)).await.unwrap();
        target.write_all(&got).await.unwrap();
        assert_eq!(lively.read().await.unwrap().unwrap(), [round; 32].as_slice());
    }
    // What is on the way is bounded: client window 2 MiB, gateway window 256 KiB, hyper's send
    // buffers, socket buffers of the target's connection.
    for (relay, _, written) in &stalled {
        eprintln!("in flight behind a stalled reader: {written} bytes");
        assert!(*written < 12 << 20, "{written} bytes in flight");
        drop(relay.sender.clone());
    }
    // And all of it arrives once the reader reads.
    for (mut relay, target, written) in stalled {
        drop(target);
        assert_eq!(relay.read_to_end().await.unwrap().len(), written);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_relay_stalled_in_both_directions_comes_apart_when_aborted() {
    let world = World::new().await;
    let client = dial(world.gateway).await;
    let (relay, mut target) = world.relay(&client).await;
    fill(&mut target).await;
    let sender = relay.sender.clone();
    let chunk = framed(&noise(64 * 1024, 4));
    let mut sent = 0_usize;
    while let Ok(Ok(())) = tokio::time::timeout(
        Duration::from_millis(300),
        sender.send(Ok(Frame::data(chunk.clone()))),
    )
    .await
    {
        sent += chunk.len();
        assert!(sent < 64 << 20, "no back-pressure after 64 MiB");
    }
    assert!(world.aborts.lock()[0].abort("revoked", Code::PermissionDenied));
    until("the supervisor's bridge", || !world.bridges.lock().is_empty()).await;
    assert_eq!(world.bridge_end().await, "aborted: revoked");
    // The target sees a reset behind what was delivered to it.
    let error = soon("the reset", target.read_to_end(&mut Vec::new())).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let mut relay = relay;
    drop(sender);
    let status = relay.read_to_end().await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_relays_share_a_connection_and_do_not_mix() {
    let world = World::new().await;
    let client = dial(world.gateway).await;
    let mut tasks = Vec::new();
    for seed in 0..32_u8 {
        let (mut relay, target) = world.relay(&client).await;
        tasks.push(tokio::spawn(async move {
            let (mut reader, mut writer) = target.into_split();
            let echo = tokio::spawn(async move {
                tokio::io::copy(&mut reader, &mut writer).await.unwrap();
            });
            let data = noise(100_000, seed);
            for chunk in data.chunks(7_000) {
                relay.send(chunk).await;
            }
            let (sender, _) = mpsc::channel(1);
            relay.sender = sender;
            assert!(relay.read_to_end().await.unwrap() == data, "relay {seed} differs");
            echo.await.unwrap();
        }));
    }
    for task in tasks {
        soon("a relay", task).await.unwrap();
    }
    until("the ends", || world.ends.0.lock().len() == 32).await;
    assert_eq!(world.registry.stats().live, 0);
}

#[tokio::test]
async fn a_generated_client_works_over_the_same_connection() {
    let world = World::new().await;
    let connection = dial(world.gateway).await;
    let mut client = OpenShellClient::with_origin(connection.clone(), connection.origin());
    let (sender, frames) = mpsc::channel(4);
    let frames = futures_util::stream::unfold(frames, |mut frames: mpsc::Receiver<_>| async move {
        Some((frames.recv().await?, frames))
    });
    let init = TcpForwardInit { sandbox: SANDBOX.to_owned(), ..Default::default() };
    let init = TcpForwardFrame { payload: Some(tcp_forward_frame::Payload::Init(init)) };
    sender.send(init).await.unwrap();
    let calling = client.forward_tcp(frames);
    let accepting = async { world.target.accept().await.unwrap().0 };
    let (response, mut target) = soon("the call", async { tokio::join!(calling, accepting) }).await;
    let mut response = response.unwrap().into_inner();
    target.write_all(b"hello").await.unwrap();
    let frame = response.message().await.unwrap().unwrap();
    let Some(tcp_forward_frame::Payload::Data(data)) = frame.payload else { panic!("{frame:?}") };
    assert_eq!(&data[..], b"hello");
    world.aborts.lock()[0].abort("stopped", Code::Aborted);
    let status = response.message().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Aborted, "stopped"));
    let unknown = client.health(postern_proto::v1::HealthRequest::default()).await;
    assert_eq!(unknown.unwrap_err().code(), Code::Unimplemented);
}
