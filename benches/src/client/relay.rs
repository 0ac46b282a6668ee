//! A relay seen from its requester, at body level: no socket, no copy, no codec of gRPC.

use std::convert::Infallible;
use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::{BufMut as _, Bytes, BytesMut};
use http_body::{Body, Frame};
use http_body_util::BodyExt as _;
use postern_proto::v1;
use postern_proto::v1::tcp_forward_init::Target;
use postern_relay::body::ByteBody;
use postern_relay::bridge::first_message;
use postern_relay::frame::{Decoder, HEADROOM, MAX_MESSAGE, header};
use postern_relay::transport::FORWARD_TCP_PATH;
use tokio::sync::{mpsc, oneshot};
use tonic::{Code, Status};

use super::{Client, TokenSlot};
use crate::error::BenchError;
use crate::measure::Meter;
use crate::target::Order;

/// Payload in its frame, ready to be sent any number of times.
#[derive(Debug, Clone)]
pub struct Message {
    frame: Bytes,
    payload: usize,
}

impl Message {
    /// `payload` bytes of nothing in particular.
    #[must_use]
    pub fn filled(payload: usize) -> Self {
        Self::of(&vec![7; payload])
    }

    /// These bytes.
    #[must_use]
    pub fn of(payload: &[u8]) -> Self {
        let (bytes, length) = header(payload.len());
        let mut frame = BytesMut::with_capacity(length + payload.len());
        frame.put_slice(&bytes[HEADROOM - length..]);
        frame.put_slice(payload);
        Self { frame: frame.freeze(), payload: payload.len() }
    }

    /// Bytes without the frame.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.payload
    }

    /// Whether it carries nothing.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.payload == 0
    }
}

/// What is sent into a relay, after the order.
#[derive(Debug)]
pub enum Feed {
    /// Nothing, but no end of file either.
    Quiet,
    /// End of file at once.
    Nothing,
    /// The same message as often as the gateway takes it, counted.
    Endless(Message, Arc<Meter>),
    /// What comes in; end of file when the sender is gone.
    Queue(mpsc::Receiver<Message>),
}

struct FeedBody {
    first: Option<Bytes>,
    order: Option<Bytes>,
    feed: Feed,
    /// Resolves when the [`Relay`] is gone: a stream lives as long as either of its halves.
    abandoned: oneshot::Receiver<Infallible>,
}

impl Body for FeedBody {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let this = &mut *self;
        if Pin::new(&mut this.abandoned).poll(cx).is_ready() {
            return Poll::Ready(Some(Err(h2::Reason::CANCEL.into())));
        }
        let data = match this.first.take().or_else(|| this.order.take()) {
            Some(data) => Some(data),
            None => match &mut this.feed {
                Feed::Quiet => return Poll::Pending,
                Feed::Nothing => None,
                Feed::Endless(message, sent) => {
                    sent.add(message.payload);
                    Some(message.frame.clone())
                }
                Feed::Queue(messages) => {
                    std::task::ready!(messages.poll_recv(cx)).map(|message| message.frame)
                }
            },
        };
        Poll::Ready(data.map(|data| Ok(Frame::data(data))))
    }
}

/// What comes out of a relay. Dropping it resets the relay.
#[derive(Debug)]
pub struct Relay {
    body: ByteBody,
    decoder: Decoder,
    _alive: oneshot::Sender<Infallible>,
    _slot: TokenSlot,
}

impl Relay {
    /// Opens a relay to a target in a sandbox, and gives the target its order.
    ///
    /// # Errors
    /// What the gateway says.
    pub async fn open(
        client: &Client,
        (sandbox, port): (&str, u16),
        slot: TokenSlot,
        (order, feed): (Order, Feed),
    ) -> Result<Self, BenchError> {
        let target = v1::TcpRelayTarget { host: "127.0.0.1".into(), port: port.into() };
        let init = v1::TcpForwardFrame {
            payload: Some(v1::tcp_forward_frame::Payload::Init(v1::TcpForwardInit {
                sandbox: sandbox.to_owned(),
                authorization_token: slot.token().to_owned(),
                target: Some(Target::Tcp(target)),
                ..Default::default()
            })),
        };
        let (alive, abandoned) = oneshot::channel();
        let body = FeedBody {
            first: Some(first_message(&init)),
            order: Some(Message::of(&order.encode()).frame),
            feed,
            abandoned,
        };
        let opened = client.connection.open_stream(FORWARD_TCP_PATH, body).await;
        let body = opened.map_err(BenchError::refused("open a relay"))?;
        Ok(Self { body, decoder: Decoder::new(MAX_MESSAGE), _alive: alive, _slot: slot })
    }

    /// The next bytes; `None` at end of file.
    ///
    /// # Errors
    /// When the relay broke.
    pub async fn next(&mut self) -> Result<Option<Bytes>, BenchError> {
        let broke = || BenchError::refused("go on with a relay");
        loop {
            match self.decoder.next_payload() {
                Ok(Some(payload)) => return Ok(Some(payload)),
                Ok(None) => {}
                Err(error) => return Err(BenchError::unexpected("a relay", error.to_string())),
            }
            match self.body.frame().await {
                None => return Err(broke()(Status::unavailable("it ended without a status"))),
                Some(Err(error)) => return Err(broke()(Status::from_error(error))),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.decoder.feed(data),
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        return match Status::from_header_map(&trailers) {
                            Some(status) if status.code() == Code::Ok => Ok(None),
                            Some(status) => Err(broke()(status)),
                            None => Err(broke()(Status::unavailable("it has no status"))),
                        };
                    }
                },
            }
        }
    }
}
