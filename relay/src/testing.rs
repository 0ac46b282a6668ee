//! Parts that several test modules share.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use postern_proto::v1::{GatewayMessage, SessionAccepted, gateway_message};
use tokio::sync::mpsc;
use tonic::{Code, Status};

use crate::body::BoxError;
use crate::frame::{HEADROOM, header};
use crate::registry::{OpenRelay, Registration, Registry, SessionPeer, Target};

/// One framed message.
pub(crate) fn framed(payload: &[u8]) -> Bytes {
    let (bytes, length) = header(payload.len());
    [&bytes[HEADROOM - length..], payload].concat().into()
}

/// A body written from the outside; dropping the sender is end of file.
pub(crate) struct PipeBody {
    chunks: mpsc::Receiver<Result<Bytes, BoxError>>,
    dropped: Arc<AtomicUsize>,
}

pub(crate) type PipeSender = mpsc::Sender<Result<Bytes, BoxError>>;

pub(crate) fn pipe() -> (PipeSender, PipeBody) {
    let (sender, chunks) = mpsc::channel(1);
    (sender, PipeBody { chunks, dropped: Arc::default() })
}

impl PipeBody {
    /// Counts to one when the body is dropped.
    pub(crate) fn drops(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.dropped)
    }
}

impl Drop for PipeBody {
    fn drop(&mut self) {
        self.dropped.fetch_add(1, Ordering::SeqCst);
    }
}

impl Body for PipeBody {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        self.chunks.poll_recv(cx).map(|chunk| chunk.map(|chunk| chunk.map(Frame::data)))
    }
}

/// Reads a gRPC response body to its end: bytes and status.
pub(crate) async fn read_all<B>(mut body: B) -> (Vec<u8>, Status)
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Debug,
{
    let mut bytes = Vec::new();
    loop {
        match body.frame().await {
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => bytes.extend_from_slice(&data),
                Err(frame) => {
                    let trailers = frame.into_trailers().unwrap();
                    let status = Status::from_header_map(&trailers).expect("a status");
                    assert!(body.frame().await.is_none(), "nothing follows trailers");
                    return (bytes, status);
                }
            },
            Some(Err(error)) => panic!("body failed: {error:?}"),
            None => panic!("body ended without trailers"),
        }
    }
}

/// The next data chunk of a body.
pub(crate) async fn next_data<B>(body: &mut B) -> Bytes
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Debug,
{
    body.frame().await.expect("more").unwrap().into_data().expect("data, not trailers")
}

pub(crate) fn assert_code(status: &Status, code: Code) {
    assert_eq!(status.code(), code, "{status:?}");
}

/// A registered Postern supervisor.
pub(crate) fn register(registry: &Registry, sandbox: &str) -> Registration {
    let peer = SessionPeer {
        sandbox_id: sandbox.into(),
        instance_id: "instance".into(),
        speaks_postern: true,
    };
    registry
        .register(peer, |id| SessionAccepted { session_id: id.to_string(), ..Default::default() })
        .unwrap()
}

pub(crate) fn ssh_relay(sandbox: &str) -> OpenRelay {
    OpenRelay { sandbox_id: sandbox.into(), target: Target::Ssh, service_id: "".into() }
}

/// The next message a session sends, by its payload.
pub(crate) async fn next_message(registration: &mut Registration) -> gateway_message::Payload {
    let message: GatewayMessage = registration.outbound.recv().await.expect("a message");
    message.payload.expect("a payload")
}

/// The channel id of the next message, which must be a `RelayOpen`.
pub(crate) async fn next_open(registration: &mut Registration) -> String {
    loop {
        match next_message(registration).await {
            gateway_message::Payload::RelayOpen(open) => return open.channel_id,
            gateway_message::Payload::SessionAccepted(_)
            | gateway_message::Payload::RelayClose(_) => {}
            other => panic!("expected RelayOpen, got {other:?}"),
        }
    }
}
