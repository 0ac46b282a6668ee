//! The direction into the socket, and the end of both.

use std::fmt;
use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures_util::task::AtomicWaker;
use http_body::Body as _;
use http_body_util::BodyExt as _;
use tonic::{Code, Status};

use super::body::{Out, Outward, SocketBody};
use super::target::{RelayTarget, TargetWriter};
use crate::body::ByteBody;
use crate::frame::{Decoder, MAX_MESSAGE};

/// How long the peer's remaining bytes are read and dropped after an abort or after the socket
/// refused them: long enough for a round trip on a bad network, short enough not to pile up.
pub const LINGER: Duration = Duration::from_secs(10);

/// How long a gateway that was told of a failed target has to end the stream itself. One round
/// trip is enough for a Postern gateway; others never do, and the reset must not wait long.
pub const SETTLE: Duration = Duration::from_secs(2);

/// How a bridge ended. The target is over; what is left of a failed stream is not: finish with
/// [`BridgeEnd::settle`] or [`BridgeEnd::reset`]. Dropping it resets the stream too, but leaves
/// bytes that are on the way to the HTTP/2 stack.
pub struct BridgeEnd {
    /// Payload bytes written to the socket.
    pub bytes_to_target: u64,
    /// Payload bytes read from the socket.
    pub bytes_from_target: u64,
    /// What happened.
    pub kind: BridgeEndKind,
    rest: Rest,
}

/// The stream after the socket is gone.
struct Rest {
    response: Option<ByteBody>,
    outward: Arc<dyn GiveUp>,
}

trait GiveUp: Send + Sync {
    fn give_up(&self);
}

impl<R: Send> GiveUp for Outward<R> {
    fn give_up(&self) {
        Outward::give_up(self);
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.outward.give_up();
    }
}

impl BridgeEnd {
    /// Finishes the stream. After [`BridgeEndKind::TargetFailed`] the other end is given
    /// [`SETTLE`] to do so first: send it the reason (`RelayClose`) before calling this.
    pub async fn settle(mut self) {
        if let BridgeEndKind::TargetFailed { .. } = self.kind
            && let Some(response) = &mut self.rest.response
        {
            let _ = tokio::time::timeout(SETTLE, discard(response)).await;
        }
        self.reset().await;
    }

    /// Resets the stream and drops what still comes on it, for at most [`LINGER`].
    pub async fn reset(mut self) {
        self.rest.outward.give_up();
        if let Some(response) = &mut self.rest.response {
            let _ = tokio::time::timeout(LINGER, discard(response)).await;
        }
    }
}

impl fmt::Debug for BridgeEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BridgeEnd")
            .field("bytes_to_target", &self.bytes_to_target)
            .field("bytes_from_target", &self.bytes_from_target)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// What ended a bridge.
#[derive(Debug)]
#[non_exhaustive]
pub enum BridgeEndKind {
    /// End of file both ways.
    Clean,
    /// The socket failed. The other end of the relay should be told why.
    TargetFailed {
        /// The cause.
        error: io::Error,
    },
    /// The stream failed or ended with a status.
    StreamFailed {
        /// The status; `UNAVAILABLE` when the stream broke without one.
        status: Status,
    },
    /// [`BridgeAbort::abort`].
    Aborted {
        /// The reason given.
        reason: String,
    },
}

struct Abort {
    reason: OnceLock<String>,
    waker: AtomicWaker,
}

/// Ends a bridge from outside: the target is reset and so is the stream. Clones share it.
#[derive(Clone)]
pub struct BridgeAbort(Arc<Abort>);

impl BridgeAbort {
    /// Aborts with a reason. Only the first call counts.
    pub fn abort(&self, reason: impl Into<String>) {
        if self.0.reason.set(reason.into()).is_ok() {
            self.0.waker.wake();
        }
    }
}

impl fmt::Debug for BridgeAbort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("BridgeAbort").field(&self.0.reason.get()).finish()
    }
}

/// The bridge between one socket and one stream; see the module's example.
///
/// Dropping it, or the future of [`Bridge::run`], resets both.
pub struct Bridge<R, W: TargetWriter> {
    writer: Writer<W>,
    outward: Arc<Outward<R>>,
    abort: Arc<Abort>,
    decoder: Decoder,
    written: u64,
    grace: Option<Pin<Box<tokio::time::Sleep>>>,
}

/// Why the bridge cannot go on.
enum Broken {
    Known(BridgeEndKind),
    /// The stream was reset; its response may still say why.
    StreamReset,
}

fn target_failed(error: io::Error) -> Broken {
    Broken::Known(BridgeEndKind::TargetFailed { error })
}

fn failed_with(status: Status) -> Broken {
    Broken::Known(BridgeEndKind::StreamFailed { status })
}

/// The socket's writing half through its life.
enum Writer<W: TargetWriter> {
    Open {
        half: W,
        unwritten: Bytes,
    },
    /// Shut down after end of file; kept so that a late failure can still reset it.
    Shut {
        half: W,
    },
    /// The socket takes no more; what still comes is dropped.
    Refused {
        error: io::Error,
    },
    Gone,
}

impl<R: Send + 'static, W: TargetWriter> Bridge<R, W> {
    /// Splits `target`. The body goes into the request (or, at a `CONNECT` end, into
    /// [`crate::splice::OpenedRelay::splice`]); it begins with `first`, which may be empty.
    pub fn new<T>(target: T, first: Bytes) -> (SocketBody<R>, Self)
    where
        T: RelayTarget<Reader = R, Writer = W>,
    {
        let (reader, half) = target.into_halves();
        let (body, outward) = SocketBody::new(reader, first);
        let bridge = Self {
            writer: Writer::Open { half, unwritten: Bytes::new() },
            outward,
            abort: Arc::new(Abort { reason: OnceLock::new(), waker: AtomicWaker::new() }),
            decoder: Decoder::new(MAX_MESSAGE),
            written: 0,
            grace: None,
        };
        (body, bridge)
    }

    /// A handle that ends the bridge.
    pub fn abort_handle(&self) -> BridgeAbort {
        BridgeAbort(Arc::clone(&self.abort))
    }

    /// Writes `response` to the socket until both directions are over.
    ///
    /// `response` must end with a `grpc-status` (as gRPC responses and
    /// [`crate::splice::SplicedBody`] do): an end without one is a failure.
    pub async fn run(mut self, mut response: ByteBody) -> BridgeEnd {
        let inward = poll_fn(|cx| self.poll_inward(&mut response, cx)).await;
        let kind = match inward {
            Ok(()) => self.finish_outward().await,
            Err(broken) => Err(broken),
        };
        let writer = std::mem::replace(&mut self.writer, Writer::Gone);
        let (kind, response) = match (kind, writer) {
            (Ok(()), Writer::Refused { error }) => (BridgeEndKind::TargetFailed { error }, None),
            (Ok(()), _) => (BridgeEndKind::Clean, None),
            (Err(broken), writer) => {
                if let Writer::Open { half, .. } | Writer::Shut { half } = writer {
                    half.reset();
                }
                match broken {
                    Broken::Known(kind) => (kind, Some(response)),
                    Broken::StreamReset => (stream_failed(&mut response).await, None),
                }
            }
        };
        self.outward.end(Out::Dropped);
        BridgeEnd {
            bytes_to_target: self.written,
            bytes_from_target: self.outward.with(|state| state.payload),
            kind,
            rest: Rest { response, outward: Arc::clone(&self.outward) as Arc<dyn GiveUp> },
        }
    }

    /// What must end the bridge whatever the stream does.
    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Option<Broken> {
        self.abort.waker.register(cx.waker());
        self.outward.bridge.register(cx.waker());
        if let Some(reason) = self.abort.reason.get() {
            let reason = reason.clone();
            return Some(Broken::Known(BridgeEndKind::Aborted { reason }));
        }
        let (ended, broken) = self.outward.with(|state| match &mut state.out {
            Out::Open => (false, None),
            Out::Ended => (true, None),
            out @ Out::Failed(_) => match std::mem::replace(out, Out::Dropped) {
                Out::Failed(error) => (false, Some(target_failed(error))),
                _ => (false, None),
            },
            // The stack gave the body up: the stream was reset or the connection is gone.
            Out::Dropped => (false, Some(Broken::StreamReset)),
        });
        if broken.is_none() && ended && matches!(self.writer, Writer::Refused { .. }) {
            return self.poll_sink_over(cx);
        }
        broken
    }

    /// A socket that has said its last and takes no more is over, but the other end gets some
    /// time to see that end before it sees the failure.
    fn poll_sink_over(&mut self, cx: &mut Context<'_>) -> Option<Broken> {
        let grace = self.grace.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        if grace.as_mut().poll(cx).is_pending() {
            return None;
        }
        match std::mem::replace(&mut self.writer, Writer::Gone) {
            Writer::Refused { error } => Some(target_failed(error)),
            other => {
                self.writer = other;
                None
            }
        }
    }

    /// Moves bytes into the socket until the stream's clean end has been passed on to it.
    fn poll_inward(
        &mut self,
        response: &mut ByteBody,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), Broken>> {
        loop {
            if let Some(broken) = self.poll_broken(cx) {
                return Poll::Ready(Err(broken));
            }
            ready!(self.poll_write_out(cx));
            match self.decoder.next_payload() {
                Ok(Some(payload)) => {
                    self.put(payload);
                    continue;
                }
                Ok(None) => {}
                Err(error) => {
                    let status = Status::invalid_argument(error.to_string());
                    return Poll::Ready(Err(failed_with(status)));
                }
            }
            match Pin::new(&mut *response).poll_frame(cx) {
                Poll::Pending => {
                    self.flush(cx);
                    return Poll::Pending;
                }
                Poll::Ready(frame) => match self.take_frame(frame) {
                    Ok(false) => {}
                    Ok(true) => return self.poll_shut(cx).map(Ok),
                    Err(status) => return Poll::Ready(Err(failed_with(status))),
                },
            }
        }
    }

    /// Takes one frame of the response; `true` is its clean end.
    fn take_frame(
        &mut self,
        frame: Option<Result<http_body::Frame<Bytes>, crate::body::BoxError>>,
    ) -> Result<bool, Status> {
        let frame = match frame {
            None => return Err(Status::unavailable("relay stream ended without a status")),
            Some(Err(error)) => return Err(Status::from_error(error)),
            Some(Ok(frame)) => frame,
        };
        let trailers = match frame.into_data() {
            Ok(data) => {
                self.decoder.feed(data);
                return Ok(false);
            }
            Err(frame) => frame.into_trailers().unwrap_or_default(),
        };
        match Status::from_header_map(&trailers) {
            Some(status) if status.code() == Code::Ok => self
                .decoder
                .finish()
                .map(|()| true)
                .map_err(|error| Status::invalid_argument(error.to_string())),
            Some(status) => Err(status),
            None => Err(Status::unavailable("relay stream ended without a status")),
        }
    }

    fn put(&mut self, payload: Bytes) {
        if let Writer::Open { unwritten, .. } = &mut self.writer {
            *unwritten = payload;
        }
    }

    /// Writes what is waiting. A socket that refuses it turns this direction into a sink: what
    /// the socket has already said must still reach the other end.
    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Writer::Open { half, unwritten } = &mut self.writer else {
            return Poll::Ready(());
        };
        while !unwritten.is_empty() {
            match ready!(Pin::new(&mut *half).poll_write(cx, unwritten)) {
                Ok(0) => return self.refused(io::ErrorKind::WriteZero.into()),
                Ok(n) => {
                    unwritten.advance(n);
                    self.written += n as u64;
                }
                Err(error) => return self.refused(error),
            }
        }
        Poll::Ready(())
    }

    fn refused(&mut self, error: io::Error) -> Poll<()> {
        tracing::debug!(%error, "relay target takes no more bytes");
        self.writer = Writer::Refused { error };
        Poll::Ready(())
    }

    fn flush(&mut self, cx: &mut Context<'_>) {
        if let Writer::Open { half, .. } = &mut self.writer
            && let Poll::Ready(Err(error)) = Pin::new(half).poll_flush(cx)
        {
            let _ = self.refused(error);
        }
    }

    fn poll_shut(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match std::mem::replace(&mut self.writer, Writer::Gone) {
            Writer::Open { mut half, .. } => {
                // Sockets shut down at once; a stream that does not is shut by its drop.
                match Pin::new(&mut half).poll_shutdown(cx) {
                    Poll::Ready(Err(error)) => self.writer = Writer::Refused { error },
                    Poll::Ready(Ok(())) | Poll::Pending => self.writer = Writer::Shut { half },
                }
            }
            other => self.writer = other,
        }
        Poll::Ready(())
    }

    /// Waits for the direction out of the socket after the other has ended.
    async fn finish_outward(&mut self) -> Result<(), Broken> {
        poll_fn(|cx| {
            if let Writer::Shut { half } = &mut self.writer {
                // Goes on with a shutdown that was not done at once.
                let _ = Pin::new(half).poll_shutdown(cx);
            }
            if self.outward.with(|state| matches!(state.out, Out::Ended)) {
                return Poll::Ready(Ok(()));
            }
            if let Some(broken) = self.poll_broken(cx) {
                return Poll::Ready(Err(broken));
            }
            Poll::Pending
        })
        .await
    }
}

async fn discard(response: &mut ByteBody) {
    while let Some(Ok(_)) = response.frame().await {}
}

/// Reads a reset stream to its end for the status that may be there.
async fn stream_failed(response: &mut ByteBody) -> BridgeEndKind {
    let status = tokio::time::timeout(LINGER, async {
        loop {
            match response.frame().await {
                None => return None,
                Some(Err(error)) => return Some(Status::from_error(error)),
                Some(Ok(frame)) => {
                    if let Some(trailers) = frame.trailers_ref() {
                        return Status::from_header_map(trailers);
                    }
                }
            }
        }
    });
    let status = match status.await {
        Ok(Some(status)) if status.code() != Code::Ok => status,
        _ => Status::unavailable("relay stream was reset"),
    };
    BridgeEndKind::StreamFailed { status }
}

impl<R, W: TargetWriter> Drop for Bridge<R, W> {
    fn drop(&mut self) {
        match std::mem::replace(&mut self.writer, Writer::Gone) {
            // Run to its end; the stream is in other hands.
            Writer::Gone => return,
            Writer::Open { half, .. } | Writer::Shut { half } => half.reset(),
            Writer::Refused { .. } => {}
        }
        self.outward.give_up();
    }
}

impl<R, W: TargetWriter> fmt::Debug for Bridge<R, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bridge").field("written", &self.written).finish_non_exhaustive()
    }
}
