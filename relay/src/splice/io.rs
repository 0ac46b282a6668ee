//! A relay as a byte stream inside this process.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BufMut as _, Bytes};
use futures_util::task::AtomicWaker;
use http_body::{Body, Frame};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::Code;

use super::end::{RelayInfo, Side};
use super::joined::{Cut, Shared, Way};
use crate::frame::{Decoder, Encoder, READ_SIZE};

/// Bytes a [`RelayIo`] takes ahead of the supervisor's connection: one frame being filled.
/// Small writes that arrive while the connection is busy leave together.
pub const WRITE_BUFFER: usize = READ_SIZE;

/// Why a [`RelayIo`] fails: the source of its [`io::Error`]s.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct RelayFailed {
    /// Who ended it.
    pub side: Side,
    /// gRPC code.
    pub code: Code,
    /// Why.
    pub reason: String,
}

/// Written by the [`RelayIo`], emptied by the body that goes to the supervisor.
struct Slot {
    state: Mutex<SlotState>,
    filled: AtomicWaker,
    emptied: AtomicWaker,
}

struct SlotState {
    encoder: Encoder,
    /// The writer has shut down: nothing follows what is buffered.
    ended: bool,
}

/// A byte stream over a relay: reads come out of the sandbox, writes go into it.
///
/// `shutdown` is half-close: the target sees end of file and reading goes on. Dropping it before
/// both directions have ended, or [`RelayIo::reset`], cuts the relay: the target is reset.
/// Errors are [`io::ErrorKind::ConnectionReset`] with a [`RelayFailed`] inside.
pub struct RelayIo {
    shared: Arc<Shared>,
    decoder: Decoder,
    unread: Bytes,
    read_ended: bool,
    write_ended: bool,
    slot: Arc<Slot>,
}

impl RelayIo {
    pub(super) fn new(shared: Arc<Shared>) -> (Self, IoSource) {
        let slot = Arc::new(Slot {
            state: Mutex::new(SlotState { encoder: Encoder::new(WRITE_BUFFER), ended: false }),
            filled: AtomicWaker::new(),
            emptied: AtomicWaker::new(),
        });
        let source = IoSource(Arc::clone(&slot));
        let io = Self {
            decoder: Decoder::new(shared.max_frame),
            shared,
            unread: Bytes::new(),
            read_ended: false,
            write_ended: false,
            slot,
        };
        (io, source)
    }

    /// What the relay is.
    pub fn info(&self) -> &RelayInfo {
        &self.shared.info
    }

    /// Cuts the relay; both ends see `code` and `reason`.
    pub fn reset(self, reason: impl Into<String>, code: Code) {
        self.shared.cut(Side::Requester, code, reason.into());
    }

    /// The next bytes out of the sandbox without copying them; `None` is end of file.
    ///
    /// # Errors
    /// When the relay was cut, or its bytes are malformed (which cuts it).
    pub fn poll_read_bytes(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        if !self.unread.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.unread))));
        }
        if self.read_ended {
            return Poll::Ready(Ok(None));
        }
        loop {
            match self.decoder.next_payload() {
                Ok(Some(payload)) => {
                    self.shared.count(Way::Out, payload.len());
                    return Poll::Ready(Ok(Some(payload)));
                }
                Ok(None) => {}
                Err(error) => return Poll::Ready(Err(self.malformed(&error))),
            }
            match ready!(self.shared.poll_source(Way::Out, cx)) {
                Some(Ok(chunk)) => self.decoder.feed(chunk),
                Some(Err(())) => return Poll::Ready(Err(self.failure())),
                None => {
                    if let Err(error) = self.decoder.finish() {
                        return Poll::Ready(Err(self.malformed(&error)));
                    }
                    self.read_ended = true;
                    self.shared.finished(Way::Out);
                    return Poll::Ready(Ok(None));
                }
            }
        }
    }

    fn malformed(&self, error: &crate::frame::FrameError) -> io::Error {
        let reason = format!("supervisor sent a bad frame: {error}");
        self.shared.cut(Side::Gateway, Code::InvalidArgument, reason);
        self.failure()
    }

    fn failure(&self) -> io::Error {
        let failed = match self.shared.cut_cause() {
            Some(Cut { by, code, reason }) => {
                RelayFailed { side: *by, code: *code, reason: reason.clone() }
            }
            None => RelayFailed {
                side: Side::Gateway,
                code: Code::Unavailable,
                reason: "relay has ended".to_owned(),
            },
        };
        io::Error::new(io::ErrorKind::ConnectionReset, failed)
    }

    fn poll_put(&self, cx: &mut Context<'_>, bufs: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.write_ended {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        // Before the look at the slot, so that an emptying in between is not missed.
        self.slot.emptied.register(cx.waker());
        if self.shared.cut_cause().is_some() {
            return Poll::Ready(Err(self.failure()));
        }
        let mut state = self.slot.state.lock();
        let mut room = state.encoder.unfilled();
        let mut put = 0;
        for buf in bufs {
            let take = buf.len().min(room.remaining_mut());
            room.put_slice(&buf[..take]);
            put += take;
        }
        drop(state);
        if put == 0 && bufs.iter().any(|buf| !buf.is_empty()) {
            return Poll::Pending;
        }
        self.slot.filled.wake();
        Poll::Ready(Ok(put))
    }
}

impl AsyncRead for RelayIo {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Some(mut bytes) = ready!(this.poll_read_bytes(cx))? {
            let take = bytes.len().min(buf.remaining());
            buf.put_slice(&bytes[..take]);
            bytes.advance(take);
            this.unread = bytes;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for RelayIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_put(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_put(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Nothing to do: the connection takes what is buffered as fast as it can.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.write_ended {
            self.write_ended = true;
            self.slot.state.lock().ended = true;
            self.slot.filled.wake();
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for RelayIo {
    fn drop(&mut self) {
        if !(self.read_ended && self.write_ended) {
            let reason = "requester closed the relay".to_owned();
            self.shared.cut(Side::Requester, Code::Cancelled, reason);
        }
    }
}

impl fmt::Debug for RelayIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelayIo")
            .field("channel_id", &self.shared.info.channel_id)
            .field("read_ended", &self.read_ended)
            .field("write_ended", &self.write_ended)
            .finish_non_exhaustive()
    }
}

/// The framed bytes of a [`RelayIo`]'s writer.
pub(super) struct IoSource(Arc<Slot>);

impl Body for IoSource {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        self.0.filled.register(cx.waker());
        let mut state = self.0.state.lock();
        let frame = state.encoder.take_frame();
        let ended = state.ended;
        drop(state);
        match frame {
            Some(frame) => {
                self.0.emptied.wake();
                Poll::Ready(Some(Ok(Frame::data(frame))))
            }
            None if ended => Poll::Ready(None),
            None => Poll::Pending,
        }
    }
}

impl Drop for IoSource {
    fn drop(&mut self) {
        // Dropped because the relay was cut: a waiting writer must find out.
        self.0.emptied.wake();
    }
}
