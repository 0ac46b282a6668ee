//! A supervisor that does exactly what a test says, over a real connection; and the two ends of a relay.

use bytes::{Bytes, BytesMut};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use postern_proto::v1::gateway_message::Payload as FromGateway;
use postern_proto::v1::supervisor_message::Payload as ToGateway;
use postern_proto::v1::{
    GatewayMessage, PosternHello, RelayFrame, RelayOpen, SessionAccepted, SshRelayTarget,
    SupervisorHello, SupervisorMessage, TcpForwardFrame, TcpForwardInit, TcpRelayTarget,
    relay_frame, tcp_forward_frame, tcp_forward_init,
};
use postern_relay::body::{BoxError, ByteBody};
use postern_relay::bridge::{first_message, relay_init};
use postern_relay::transport::{Connection, FORWARD_TCP_PATH, RELAY_STREAM_PATH};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::gateway::{Gateway, client, soon};

/// A session, and the connection below it.
pub struct Scripted {
    pub connection: Connection,
    wire: std::net::TcpStream,
    pub accepted: SessionAccepted,
    pub to_gateway: mpsc::Sender<SupervisorMessage>,
    pub from_gateway: Streaming<GatewayMessage>,
}

/// Says hello and reads the first message.
pub async fn hello(
    connection: &Connection,
    hello: SupervisorHello,
) -> Result<(mpsc::Sender<SupervisorMessage>, Streaming<GatewayMessage>, SessionAccepted), Status> {
    let (to_gateway, messages) = mpsc::channel(64);
    to_gateway.send(message(ToGateway::Hello(hello))).await.unwrap();
    let mut api = client(connection.clone());
    let response =
        soon("the session", api.connect_supervisor(ReceiverStream::new(messages))).await?;
    let mut from_gateway = response.into_inner();
    let first = soon("the acceptance", from_gateway.message()).await?.expect("a first message");
    let Some(FromGateway::SessionAccepted(accepted)) = first.payload else {
        panic!("the first message is not SessionAccepted: {first:?}");
    };
    Ok((to_gateway, from_gateway, accepted))
}

impl Scripted {
    /// Connects as the supervisor of `sandbox_id`, which speaks Postern's extensions.
    pub async fn connect(gateway: &Gateway, sandbox_id: &str) -> Self {
        Self::with_token(gateway, sandbox_id, &gateway.token(sandbox_id)).await
    }

    /// The same with this token.
    pub async fn with_token(gateway: &Gateway, sandbox_id: &str, token: &str) -> Self {
        let (connection, wire) = gateway.connect_cuttable(Some(token)).await;
        let postern =
            PosternHello { revision: 1, ssh_host_key_fingerprint: "SHA256:abc".to_owned() };
        let greeting = SupervisorHello {
            sandbox_id: sandbox_id.to_owned(),
            instance_id: "epoch".to_owned(),
            postern: Some(postern),
            ..SupervisorHello::default()
        };
        let (to_gateway, from_gateway, accepted) = hello(&connection, greeting).await.unwrap();
        Self { connection, wire, accepted, to_gateway, from_gateway }
    }

    pub async fn send(&self, payload: ToGateway) {
        self.to_gateway.send(message(payload)).await.unwrap();
    }

    /// The next message that is no heartbeat; `Err` how the session ended.
    pub async fn next(&mut self) -> Result<FromGateway, Option<Status>> {
        loop {
            let next = soon("a message of the gateway", self.from_gateway.message()).await;
            match next.map_err(Some)?.ok_or(None)?.payload {
                Some(FromGateway::Heartbeat(_)) | None => {}
                Some(payload) => return Ok(payload),
            }
        }
    }

    /// The next wish for a relay; ends of earlier ones are passed over.
    pub async fn asked(&mut self) -> RelayOpen {
        loop {
            match self.next().await {
                Ok(FromGateway::RelayOpen(open)) => return open,
                Ok(FromGateway::RelayClose(_)) => {}
                other => panic!("expected RelayOpen, got {other:?}"),
            }
        }
    }

    /// The connection breaks at once, as when the host of the supervisor is gone.
    pub fn cut(&self) {
        self.wire.shutdown(std::net::Shutdown::Both).unwrap();
    }

    /// Claims a relay.
    pub async fn claim(&self, channel_id: &str) -> Result<End, Status> {
        let (sender, body) = outgoing(relay_init(channel_id)).await;
        let response = self.connection.open_stream(RELAY_STREAM_PATH, body).await?;
        Ok(End::new(sender, response))
    }

    /// Waits for a wish and claims it.
    pub async fn serve_one(&mut self) -> End {
        let open = self.asked().await;
        soon("the claim", self.claim(&open.channel_id)).await.unwrap()
    }
}

fn message(payload: ToGateway) -> SupervisorMessage {
    SupervisorMessage { payload: Some(payload) }
}

pub type Outgoing = mpsc::Sender<Result<Frame<Bytes>, BoxError>>;

async fn outgoing(
    first: Bytes,
) -> (Outgoing, StreamBody<ReceiverStream<Result<Frame<Bytes>, BoxError>>>) {
    let (sender, frames) = mpsc::channel(1);
    let body = StreamBody::new(ReceiverStream::new(frames));
    // The channel has room for exactly the first message.
    sender.try_send(Ok(Frame::data(first))).unwrap();
    (sender, body)
}

/// One end of a relay: framed bytes both ways.
pub struct End {
    /// `None` after the end of file or a reset.
    sender: Option<Outgoing>,
    body: ByteBody,
    raw: BytesMut,
    status: Option<Status>,
}

impl End {
    fn new(sender: Outgoing, body: ByteBody) -> Self {
        Self { sender: Some(sender), body, raw: BytesMut::new(), status: None }
    }

    /// Sends bytes as one data frame.
    pub async fn write(&mut self, data: impl Into<Bytes>) {
        let frame = RelayFrame { payload: Some(relay_frame::Payload::Data(data.into())) };
        self.write_raw(first_message(&frame)).await;
    }

    /// Sends bytes without framing.
    pub async fn write_raw(&mut self, bytes: Bytes) {
        let sender = self.sender.as_ref().expect("still open");
        let _ = soon("room to write", sender.send(Ok(Frame::data(bytes)))).await;
    }

    /// Sends bytes if there is room at once.
    pub fn try_write(&mut self, data: impl Into<Bytes>) -> bool {
        let frame = RelayFrame { payload: Some(relay_frame::Payload::Data(data.into())) };
        let sender = self.sender.as_ref().expect("still open");
        sender.try_send(Ok(Frame::data(first_message(&frame)))).is_ok()
    }

    /// Ends this direction.
    pub fn finish(&mut self) {
        self.sender = None;
    }

    /// Resets the stream.
    pub async fn reset(&mut self) {
        let sender = self.sender.take().expect("still open");
        let _ = sender.send(Err("reset by the test".into())).await;
    }

    /// The next data frame; `None` when the stream has ended, see [`End::status`].
    pub async fn read(&mut self) -> Option<Bytes> {
        loop {
            if let Some(data) = self.parsed() {
                return Some(data);
            }
            match soon("bytes of the relay", self.body.frame()).await {
                None => return None,
                Some(Err(error)) => {
                    self.status = Some(Status::from_error(error));
                    return None;
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.raw.extend_from_slice(&data),
                    Err(frame) => {
                        let trailers = frame.into_trailers().unwrap_or_default();
                        self.status = Status::from_header_map(&trailers);
                        return None;
                    }
                },
            }
        }
    }

    fn parsed(&mut self) -> Option<Bytes> {
        if self.raw.len() < 5 {
            return None;
        }
        let length = u32::from_be_bytes(self.raw[1..5].try_into().unwrap()) as usize;
        if self.raw.len() < 5 + length {
            return None;
        }
        let _ = self.raw.split_to(5);
        let message = self.raw.split_to(length);
        let frame: RelayFrame = prost::Message::decode(message.freeze()).unwrap();
        match frame.payload {
            Some(relay_frame::Payload::Data(data)) => Some(data),
            other => panic!("expected data, got {other:?}"),
        }
    }

    /// Reads to the end: all bytes, and the status they ended with.
    pub async fn read_to_end(&mut self) -> (Vec<u8>, Code) {
        let mut all = Vec::new();
        while let Some(data) = self.read().await {
            all.extend_from_slice(&data);
        }
        (all, self.code())
    }

    /// How the stream ended; a stream without status broke.
    pub fn code(&self) -> Code {
        self.status.as_ref().map_or(Code::Unknown, Status::code)
    }

    pub fn reason(&self) -> String {
        self.status.as_ref().map(|status| status.message().to_owned()).unwrap_or_default()
    }
}

/// What a user sends first on `ForwardTcp`.
pub fn ssh_init(sandbox: &str, token: &str) -> TcpForwardInit {
    TcpForwardInit {
        sandbox: sandbox.to_owned(),
        authorization_token: token.to_owned(),
        target: Some(tcp_forward_init::Target::Ssh(SshRelayTarget {})),
        ..TcpForwardInit::default()
    }
}

/// The same for a TCP port.
pub fn tcp_init(sandbox: &str, token: &str, host: &str, port: u32) -> TcpForwardInit {
    let target = TcpRelayTarget { host: host.to_owned(), port };
    TcpForwardInit {
        target: Some(tcp_forward_init::Target::Tcp(target)),
        ..ssh_init(sandbox, token)
    }
}

/// Opens `ForwardTcp`. Resolves when the relay is open.
pub async fn forward(connection: &Connection, init: TcpForwardInit) -> Result<End, Status> {
    let first = TcpForwardFrame { payload: Some(tcp_forward_frame::Payload::Init(init)) };
    forward_raw(connection, first_message(&first)).await
}

/// Opens `ForwardTcp` with these bytes first.
pub async fn forward_raw(connection: &Connection, first: Bytes) -> Result<End, Status> {
    let (sender, body) = outgoing(first).await;
    let response = connection.open_stream(FORWARD_TCP_PATH, body).await?;
    Ok(End::new(sender, response))
}
