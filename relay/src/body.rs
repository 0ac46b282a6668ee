//! The one body type of the relay path, and reading a call's first message off a body.
//!
//! Relays are handled below the gRPC codecs: after its first message, a body is passed on as it is.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use prost::Message;

use crate::frame::{FrameError, GRPC_PREFIX_LEN};

/// Any error of a body that came from elsewhere (hyper, axum, tonic).
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A boxed body of bytes: what the relay path takes from either side.
pub type ByteBody = UnsyncBoxBody<Bytes, BoxError>;

/// Boxes any body of [`Bytes`].
pub fn boxed<B>(body: B) -> ByteBody
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    body.map_err(Into::into).boxed_unsync()
}

/// Cap of the first message of a relay call, in bytes: an init message carries ids, a target and a
/// token, all short; 64 KiB leaves room without letting a stranger make us buffer.
pub const FIRST_MESSAGE_MAX: usize = 64 * 1024;

/// Why the first message of a call could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FirstMessageError {
    /// The body ended before a whole message.
    #[error("stream ended after {received} bytes, before its first message")]
    Ended {
        /// Bytes seen.
        received: usize,
    },
    /// The message is larger than the cap.
    #[error("first message has {length} bytes, more than the {max} allowed; send a smaller init")]
    TooLarge {
        /// Announced length in bytes.
        length: usize,
        /// Cap in bytes.
        max: usize,
    },
    /// The framing is wrong (compressed flag).
    #[error("first message is not a plain gRPC message")]
    Framing(#[source] FrameError),
    /// The bytes are not the expected message.
    #[error("first message does not decode")]
    Decode(#[source] prost::DecodeError),
    /// The stream failed or was reset.
    #[error("stream failed before its first message")]
    Stream(#[source] BoxError),
}

impl FirstMessageError {
    /// The gRPC code for the caller: what it sent is its fault, a broken stream is not.
    pub fn code(&self) -> tonic::Code {
        match self {
            Self::Stream(_) => tonic::Code::Cancelled,
            _ => tonic::Code::InvalidArgument,
        }
    }
}

/// A body with some bytes put back in front of it.
#[derive(Debug)]
pub struct Prefixed<B> {
    front: Bytes,
    inner: B,
}

impl<B> Prefixed<B> {
    /// Yields `front` (when not empty) before anything of `inner`.
    pub fn new(front: Bytes, inner: B) -> Self {
        Self { front, inner }
    }
}

impl<B> Body for Prefixed<B>
where
    B: Body<Data = Bytes> + Unpin,
{
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if !self.front.is_empty() {
            let front = std::mem::take(&mut self.front);
            return Poll::Ready(Some(Ok(Frame::data(front))));
        }
        Pin::new(&mut self.inner).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.front.is_empty() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// Reads one gRPC message off the front of `body` and gives the rest back.
///
/// `max` caps the message in bytes ([`FIRST_MESSAGE_MAX`] fits every relay call); nothing beyond
/// `max` plus one chunk is ever held. Cancel safe in the sense that dropping the future drops the
/// body: the call is then over.
///
/// # Errors
/// [`FirstMessageError`] says whether the peer sent something wrong or the stream broke.
pub async fn read_first_message<M, B>(
    mut body: B,
    max: usize,
) -> Result<(M, Prefixed<B>), FirstMessageError>
where
    M: Message + Default,
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<BoxError>,
{
    let mut head = BytesMut::new();
    loop {
        if head.len() >= GRPC_PREFIX_LEN {
            if head[0] != 0 {
                return Err(FirstMessageError::Framing(FrameError::Compressed { flag: head[0] }));
            }
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            if length > max {
                return Err(FirstMessageError::TooLarge { length, max });
            }
            if head.len() >= GRPC_PREFIX_LEN + length {
                head.advance(GRPC_PREFIX_LEN);
                let message = head.split_to(length).freeze();
                let message = M::decode(message).map_err(FirstMessageError::Decode)?;
                return Ok((message, Prefixed::new(head.freeze(), body)));
            }
        }
        let received = head.len();
        match body.frame().await {
            None => return Err(FirstMessageError::Ended { received }),
            Some(Err(error)) => return Err(FirstMessageError::Stream(error.into())),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => head.extend_from_slice(&data),
                Err(_trailers) => return Err(FirstMessageError::Ended { received }),
            },
        }
    }
}

/// Polls the next data chunk; trailers and end of stream are both `None`.
///
/// A response whose trailers say anything but `grpc-status: 0` is an error, see
/// [`crate::bridge::StreamFailed`]; this helper is for request bodies, which carry no status.
pub(crate) fn poll_data(
    body: &mut ByteBody,
    cx: &mut Context<'_>,
) -> Poll<Option<Result<Bytes, BoxError>>> {
    loop {
        return Poll::Ready(match ready!(Pin::new(&mut *body).poll_frame(cx)) {
            None => None,
            Some(Err(error)) => Some(Err(error)),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) if data.is_empty() => continue,
                Ok(data) => Some(Ok(data)),
                Err(_trailers) => None,
            },
        });
    }
}
