//! The direction out of the socket: a body that reads when it is polled.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http_body::{Body, Frame};
use parking_lot::Mutex;
use tokio::io::AsyncRead;

use crate::frame::{Encoder, READ_SIZE};

/// The error of a [`SocketBody`]: makes HTTP/2 reset the stream with `CANCEL`.
#[derive(Debug, thiserror::Error)]
#[error("relay was given up by its socket end")]
pub struct StreamReset {
    /// Where the HTTP/2 stack finds the reset code.
    #[source]
    code: h2::Error,
}

impl StreamReset {
    fn new() -> Self {
        Self { code: h2::Reason::CANCEL.into() }
    }
}

/// How the direction out of the socket stands.
#[derive(Debug)]
pub(super) enum Out {
    /// Reading.
    Open,
    /// The socket said end of file.
    Ended,
    /// The socket failed.
    Failed(io::Error),
    /// The stream was given up before the socket's end.
    Dropped,
}

/// Shared by the body and the bridge's future.
pub(super) struct Outward<R> {
    state: Mutex<OutwardState<R>>,
    /// Wakes the body's poller.
    pub(super) body: AtomicWaker,
    /// Wakes the bridge's future.
    pub(super) bridge: AtomicWaker,
}

pub(super) struct OutwardState<R> {
    /// Taken when this direction is over, so that the socket closes however long the HTTP/2 stack
    /// keeps the body.
    pub(super) reader: Option<R>,
    pub(super) out: Out,
    pub(super) payload: u64,
    /// The bridge wants the stream reset. Until then a failed socket leaves the body pending, so
    /// that the reason can be told to the other end before the reset says less.
    given_up: bool,
}

impl<R> Outward<R> {
    fn new(reader: R) -> Self {
        Self {
            state: Mutex::new(OutwardState {
                reader: Some(reader),
                out: Out::Open,
                payload: 0,
                given_up: false,
            }),
            body: AtomicWaker::new(),
            bridge: AtomicWaker::new(),
        }
    }

    /// Ends this direction if it is open and lets go of the socket.
    pub(super) fn end(&self, out: Out) {
        let mut state = self.state.lock();
        let reader = state.reader.take();
        if matches!(state.out, Out::Open) {
            state.out = out;
        }
        drop(state);
        drop(reader);
        self.body.wake();
        self.bridge.wake();
    }

    /// Lets go of the socket and resets the stream.
    pub(super) fn give_up(&self) {
        self.state.lock().given_up = true;
        self.end(Out::Dropped);
    }

    pub(super) fn with<T>(&self, look: impl FnOnce(&mut OutwardState<R>) -> T) -> T {
        look(&mut self.state.lock())
    }
}

/// What is read from a socket, framed: the request body of a `RelayStream`.
///
/// Ends when the socket does. Fails, which resets the stream, when the socket fails or the bridge
/// is aborted. Dropping it early tells the bridge that the stream is gone.
pub struct SocketBody<R> {
    shared: Arc<Outward<R>>,
    first: Option<Bytes>,
    encoder: Encoder,
}

impl<R> SocketBody<R> {
    pub(super) fn new(reader: R, first: Bytes) -> (Self, Arc<Outward<R>>) {
        let shared = Arc::new(Outward::new(reader));
        let body = Self {
            shared: Arc::clone(&shared),
            first: (!first.is_empty()).then_some(first),
            encoder: Encoder::new(READ_SIZE),
        };
        (body, shared)
    }
}

impl<R: AsyncRead + Unpin> SocketBody<R> {
    /// `Ok(None)` is end of file.
    fn poll_read_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamReset>> {
        self.shared.body.register(cx.waker());
        let mut state = self.shared.state.lock();
        let Some(reader) = &mut state.reader else {
            return match state.out {
                Out::Ended => Poll::Ready(Ok(None)),
                _ if state.given_up => Poll::Ready(Err(StreamReset::new())),
                _ => Poll::Pending,
            };
        };
        let room = &mut self.encoder.unfilled();
        let out = match ready!(tokio_util::io::poll_read_buf(Pin::new(reader), cx, room)) {
            Ok(0) => Out::Ended,
            Ok(n) => {
                state.payload += n as u64;
                return Poll::Ready(Ok(self.encoder.take_frame()));
            }
            Err(error) => Out::Failed(error),
        };
        let ended = matches!(out, Out::Ended);
        drop(state);
        self.shared.end(out);
        if ended { Poll::Ready(Ok(None)) } else { Poll::Pending }
    }
}

impl<R: AsyncRead + Unpin> Body for SocketBody<R> {
    type Data = Bytes;
    type Error = StreamReset;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamReset>>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(Ok(Frame::data(first))));
        }
        let frame = ready!(self.poll_read_frame(cx));
        Poll::Ready(frame.map(|frame| frame.map(Frame::data)).transpose())
    }
}

impl<R> Drop for SocketBody<R> {
    fn drop(&mut self) {
        self.shared.end(Out::Dropped);
    }
}

impl<R> fmt::Debug for SocketBody<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SocketBody").finish_non_exhaustive()
    }
}
