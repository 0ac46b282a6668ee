//! Framing of relay data: gRPC messages that hold one `bytes data = 2`.
//!
//! After their first message `RelayFrame`, `TcpForwardFrame` and `PeerRelayFrame` look alike on
//! the wire:
//!
//! ```text
//! 00 | length: u32 big endian | 12 | n: varint | n payload bytes
//! └──── gRPC prefix ─────────┘ └─ field 2, length-delimited ─┘
//! ```
//!
//! so one small machine serves all of them. [`Scanner`] checks bytes that pass through untouched,
//! [`Decoder`] hands out payload slices without copying, [`Encoder`] lets a socket read straight
//! behind the room that the header will take. No IO, no clock, no allocation per frame.
//!
//! *Limits*: a message is at most [`MAX_MESSAGE`] bytes unless configured otherwise (1 MiB, what
//! OpenShell peers decode at most). The scanner keeps 16 bytes of state whatever is sent to it.
//!
//! *Refuses*: compressed messages, messages over the limit, any field but `data` (a second init is
//! out of order), lengths that contradict each other, a stream that ends inside a message. An
//! empty message is accepted and carries no bytes, as OpenShell peers skip empty frames.
//!
//! *Source*: gRPC over HTTP/2, "Length-Prefixed-Message"; protocol buffers encoding, "Length-
//! Delimited Records".

mod encode;
mod parse;
#[cfg(test)]
mod tests;

pub use encode::{Encoder, HEADROOM, READ_SIZE, header};
pub use parse::{Decoder, Scanner};

/// Length of the prefix of a gRPC message: flag and 32-bit length.
pub const GRPC_PREFIX_LEN: usize = 5;

/// Default cap of one message in bytes, without its gRPC prefix: 1 MiB, the most that OpenShell
/// peers decode.
pub const MAX_MESSAGE: usize = 1024 * 1024;

/// Tag byte of `bytes data = 2`.
pub(crate) const DATA_TAG: u8 = 0x12;

/// What is wrong with a stream of relay frames. The relay it belongs to ends with
/// `INVALID_ARGUMENT`; nothing else does.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The flag byte of the gRPC prefix is not 0.
    #[error("message flag is {flag}, relay frames must be uncompressed (flag 0)")]
    Compressed {
        /// The flag byte.
        flag: u8,
    },
    /// The message is over the limit.
    #[error("frame of {length} bytes is over the limit of {max} bytes; send smaller frames")]
    TooLarge {
        /// Announced length in bytes.
        length: usize,
        /// Limit in bytes.
        max: usize,
    },
    /// The message starts with a field other than `data`.
    #[error("frame starts with tag 0x{tag:02x}, only data (0x12) may follow the first message")]
    UnexpectedField {
        /// First byte of the message.
        tag: u8,
    },
    /// The length of the payload does not fill the message exactly.
    #[error("payload of {payload} bytes does not fill the {left} bytes left of its message")]
    LengthMismatch {
        /// Payload length read from the field.
        payload: u64,
        /// Bytes left of the message behind that length.
        left: usize,
    },
    /// The length of the payload is no varint, or the message ends inside it.
    #[error("payload length is not a varint that ends inside its message")]
    BadVarint,
    /// The stream ended inside a message.
    #[error("stream ended inside a message")]
    Truncated,
}

/// Feeds arbitrary bytes to a scanner in two chunkings and to a decoder, and checks that all
/// agree. Entry point of the fuzz target `frame`; the seed corpus runs as an ordinary test.
///
/// # Panics
/// When the parsers disagree, which is the finding.
pub fn fuzz_frame(data: &[u8]) {
    let whole = outcome(data, data.len().max(1));
    let bytewise = outcome(data, 1);
    assert_eq!(whole, bytewise, "chunking changed the outcome");
    let mut decoder = Decoder::new(MAX_MESSAGE);
    let mut payload = 0_u64;
    decoder.feed(bytes::Bytes::copy_from_slice(data));
    let decoded = loop {
        match decoder.next_payload() {
            Ok(Some(slice)) => payload += slice.len() as u64,
            Ok(None) => break decoder.finish().map(|()| payload),
            Err(error) => break Err(error),
        }
    };
    assert_eq!(whole, decoded, "scanner and decoder disagree");
}

fn outcome(data: &[u8], chunk: usize) -> Result<u64, FrameError> {
    let mut scanner = Scanner::new(MAX_MESSAGE);
    for part in data.chunks(chunk) {
        scanner.scan(part)?;
    }
    scanner.finish()?;
    Ok(scanner.payload_bytes())
}
