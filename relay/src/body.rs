//! The one body type of the relay path, and reading a call's first message off a body.
//!
//! Relays are handled below the gRPC codecs: after its first message, a body is passed on as it is.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use futures_util::FutureExt as _;
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

/// Reads a first message out of arbitrary bytes, whole and byte by byte, and checks that both
/// agree and that what follows the message is given back untouched. Entry point of the fuzz target
/// `first_message`; the seed corpus runs as an ordinary test.
///
/// # Panics
/// When they disagree, which is the finding.
pub fn fuzz_first_message(data: &[u8]) {
    let read = |chunk: usize| {
        let frames: Vec<Result<Frame<Bytes>, BoxError>> =
            data.chunks(chunk).map(|part| Ok(Frame::data(Bytes::copy_from_slice(part)))).collect();
        let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
        let first = read_first_message::<postern_proto::v1::TcpForwardFrame, _>(body, 1024)
            .now_or_never()
            .expect("a body of ready chunks never waits");
        match first {
            Err(error) => Err(error.to_string()),
            Ok((message, rest)) => {
                let rest = rest.collect().now_or_never().expect("nothing waits");
                Ok((message, rest.expect("nothing fails").to_bytes()))
            }
        }
    };
    let whole = read(data.len().max(1));
    if let Ok((_, rest)) = &whole {
        assert!(data.ends_with(rest), "what follows the first message was changed");
    }
    match (whole, read(1)) {
        (Ok(whole), Ok(bytewise)) => assert_eq!(whole, bytewise, "chunking changed the message"),
        (Err(_), Err(_)) => {}
        (whole, bytewise) => panic!("chunking changed the outcome: {whole:?} {bytewise:?}"),
    }
}

/// Polls the next data chunk; trailers and end of stream are both `None`.
///
/// For request bodies, which carry no status; the end of a response is in its trailers.
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

#[cfg(test)]
mod tests {
    use postern_proto::v1::{RelayFrame, RelayInit, relay_frame};
    use tonic::Code;

    use super::*;
    use crate::bridge::relay_init;
    use crate::testing::{framed, pipe};

    async fn read(
        chunks: &[Result<Bytes, &'static str>],
    ) -> Result<(RelayFrame, Prefixed<crate::testing::PipeBody>), FirstMessageError> {
        let (sender, body) = pipe();
        let chunks = chunks.to_vec();
        tokio::spawn(async move {
            for chunk in chunks {
                let _ = sender.send(chunk.map_err(Into::into)).await;
            }
        });
        read_first_message(body, 1024).await
    }

    #[tokio::test]
    async fn the_first_message_is_read_and_the_rest_given_back() {
        let whole = [relay_init("channel"), framed(b"data")].concat();
        for cut in 1..whole.len() {
            let (head, tail) = whole.split_at(cut);
            let chunks = [head, tail].map(|part| Ok(Bytes::copy_from_slice(part)));
            let (message, rest) = read(&chunks).await.unwrap();
            let init = RelayInit { channel_id: "channel".to_owned() };
            assert_eq!(message.payload, Some(relay_frame::Payload::Init(init)));
            assert_eq!(rest.collect().await.unwrap().to_bytes(), framed(b"data"));
        }
    }

    #[tokio::test]
    async fn each_fault_has_its_error_and_code() {
        let bytes = |bytes: &[u8]| Ok(Bytes::copy_from_slice(bytes));
        let cases = [
            (vec![], Code::InvalidArgument, "ended after 0 bytes"),
            (vec![bytes(&[0, 0, 0])], Code::InvalidArgument, "ended after 3 bytes"),
            (vec![bytes(&[1, 0, 0, 0, 0])], Code::InvalidArgument, "not a plain gRPC message"),
            (vec![bytes(&[0, 0, 0, 4, 1])], Code::InvalidArgument, "1025 bytes"),
            (vec![bytes(&[0, 0, 0, 0, 1, 9])], Code::InvalidArgument, "does not decode"),
            (vec![Err("reset")], Code::Cancelled, "stream failed"),
        ];
        for (chunks, code, text) in cases {
            let error = read(&chunks).await.err().unwrap();
            assert_eq!(error.code(), code, "{error}");
            assert!(error.to_string().contains(text), "{error}");
        }
    }
}
