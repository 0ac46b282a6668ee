//! Writing frames: headers, and a buffer that leaves room for one in front of what is read.

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};

use super::{DATA_TAG, GRPC_PREFIX_LEN};

/// Most bytes a frame header takes: gRPC prefix, tag, and a 32-bit varint.
pub const HEADROOM: usize = GRPC_PREFIX_LEN + 1 + 5;

/// Bytes read from a socket at once: 64 KiB, from the prototype's measurements the size past which
/// system calls no longer dominate; larger ones pay only with larger windows.
pub const READ_SIZE: usize = 64 * 1024;

/// Below this much free room a new buffer is taken rather than reading in small pieces.
const LEAST_ROOM: usize = 4 * 1024;

/// The header of a frame with `payload` bytes, right-aligned in its array, and its length.
///
/// # Panics
/// When `payload` does not fit a 32-bit message with its header; callers cap payloads far below.
pub fn header(payload: usize) -> ([u8; HEADROOM], usize) {
    let mut bytes = [0; HEADROOM];
    let mut varint = [0_u8; 5];
    let mut digits = 0;
    let mut rest = payload;
    loop {
        let byte = (rest & 0x7f) as u8;
        rest >>= 7;
        varint[digits] = if rest == 0 { byte } else { byte | 0x80 };
        digits += 1;
        if rest == 0 {
            break;
        }
        assert!(digits < varint.len(), "payload does not fit a frame");
    }
    let message = u32::try_from(1 + digits + payload).expect("payload does not fit a frame");
    let start = HEADROOM - (GRPC_PREFIX_LEN + 1 + digits);
    bytes[start + 1..start + GRPC_PREFIX_LEN].copy_from_slice(&message.to_be_bytes());
    bytes[start + GRPC_PREFIX_LEN] = DATA_TAG;
    bytes[start + GRPC_PREFIX_LEN + 1..].copy_from_slice(&varint[..digits]);
    (bytes, HEADROOM - start)
}

/// A buffer that is read into, and then becomes a frame without moving the payload.
///
/// The memory of a frame comes back to the buffer when whoever got the frame has dropped it.
#[derive(Debug)]
pub struct Encoder {
    buffer: BytesMut,
    read_size: usize,
}

impl Encoder {
    /// An encoder whose frames carry at most `read_size` payload bytes ([`READ_SIZE`] is the
    /// default). Allocates on first use.
    pub fn new(read_size: usize) -> Self {
        Self { buffer: BytesMut::new(), read_size }
    }

    /// Where payload goes: at most `read_size` bytes may be put. Calling it again before
    /// [`Encoder::take_frame`] goes on filling the same frame.
    pub fn unfilled(&mut self) -> bytes::buf::Limit<&mut BytesMut> {
        if self.buffer.is_empty() {
            let room = self.buffer.capacity();
            if room < HEADROOM + LEAST_ROOM.min(self.read_size) {
                self.buffer.reserve(HEADROOM + self.read_size);
            }
            self.buffer.put_bytes(0, HEADROOM);
        }
        let payload = self.buffer.len() - HEADROOM;
        let free = self.buffer.capacity() - self.buffer.len();
        (&mut self.buffer).limit(free.min(self.read_size - payload))
    }

    /// What was put since the last frame, as one frame; `None` when that is nothing.
    pub fn take_frame(&mut self) -> Option<Bytes> {
        let payload = self.buffer.len().saturating_sub(HEADROOM);
        if payload == 0 {
            return None;
        }
        let mut frame = self.buffer.split();
        let (header, length) = header(payload);
        frame[HEADROOM - length..HEADROOM].copy_from_slice(&header[HEADROOM - length..]);
        frame.advance(HEADROOM - length);
        Some(frame.freeze())
    }
}
