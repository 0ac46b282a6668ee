//! Joining a socket with the two framed bodies of a relay.
//!
//! Used where a relay ends in a socket: at the supervisor (target and `RelayStream`) and at the
//! gateway's `CONNECT` end. One direction is a body that reads the socket when it is polled, so
//! HTTP/2 flow control reaches the socket without a queue; the other is one future that writes.
//!
//! ```no_run
//! # async fn example(connection: postern_relay::transport::Connection,
//! #     target: tokio::net::TcpStream) -> Result<(), tonic::Status> {
//! use postern_relay::bridge::{Bridge, relay_init};
//! use postern_relay::transport::RELAY_STREAM_PATH;
//!
//! let (body, bridge) = Bridge::new(target, relay_init("channel id"));
//! let abort = bridge.abort_handle(); // for RelayClose
//! let response = connection.open_stream(RELAY_STREAM_PATH, body).await?;
//! let end = bridge.run(response).await;
//! // When the target failed, send `RelayClose` here so that the requester learns why.
//! end.settle().await;
//! # Ok(()) }
//! ```
//!
//! *Ends*: end of file travels each way by itself (half-close). A socket that fails, a stream that
//! fails, a status other than OK and an [`BridgeAbort`] end both: the socket is reset (TCP) or
//! closed without shutdown, the request stream is reset. A reset is never passed on as end of file.
//!
//! *Limits*: one read of [`crate::frame::READ_SIZE`] bytes ahead of the stream, one received chunk
//! ahead of the socket. After an abort the peer's remaining bytes are read and dropped for at most
//! [`LINGER`], so that a stream stalled in both directions comes apart; a gateway that was told of
//! a failed target has [`SETTLE`] to end the stream itself.

mod body;
mod run;
mod target;
#[cfg(test)]
mod tests;

pub use body::{SocketBody, StreamReset};
pub use run::{Bridge, BridgeAbort, BridgeEnd, BridgeEndKind, LINGER, SETTLE};
pub use target::{Joined, JoinedWriter, RelayTarget, TargetWriter};

use bytes::Bytes;
use postern_proto::v1::{RelayFrame, RelayInit, relay_frame};

/// The framed first message of a `RelayStream` call.
pub fn relay_init(channel_id: &str) -> Bytes {
    first_message(&RelayFrame {
        payload: Some(relay_frame::Payload::Init(RelayInit { channel_id: channel_id.to_owned() })),
    })
}

/// Any message with the gRPC prefix in front, to begin a body with.
///
/// # Panics
/// When the message is over 4 GiB.
pub fn first_message(message: &impl prost::Message) -> Bytes {
    let length = message.encoded_len();
    let mut framed = Vec::with_capacity(crate::frame::GRPC_PREFIX_LEN + length);
    framed.push(0);
    let length = u32::try_from(length).expect("a first message is short");
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(&message.encode_to_vec());
    framed.into()
}
