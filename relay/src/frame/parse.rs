//! Reading frames: the shared machine, the pass-through scanner and the slicing decoder.

use bytes::{Buf, Bytes};

use super::{DATA_TAG, FrameError, GRPC_PREFIX_LEN};

/// Most bytes a varint may take (protocol buffers encoding).
const VARINT_MAX: u8 = 10;

/// Where in a frame the next byte belongs.
#[derive(Debug, Clone, Copy)]
enum At {
    /// Inside the gRPC prefix; `seen` bytes of it are in `length`.
    Prefix { seen: u8, length: u32 },
    /// In front of the field tag of a message that has `left` bytes left.
    Tag { left: u32 },
    /// Inside the payload length.
    Varint { left: u32, value: u64, seen: u8 },
    /// Inside the payload.
    Payload { left: u32 },
}

const START: At = At::Prefix { seen: 0, length: 0 };

/// Steps through headers byte by byte and over payloads at once.
#[derive(Debug)]
struct Machine {
    at: At,
    max: usize,
}

/// What a step found at the front of its input.
enum Step {
    /// Input used up inside a header.
    NeedMore,
    /// `header` bytes of header, then `payload` bytes of payload.
    Payload { header: usize, payload: usize },
}

impl Machine {
    const fn new(max: usize) -> Self {
        Self { at: START, max }
    }

    /// Consumes header bytes and at most one run of payload.
    fn step(&mut self, input: &[u8]) -> Result<Step, FrameError> {
        let mut used = 0;
        loop {
            if let At::Payload { left } = self.at {
                let payload = (left as usize).min(input.len() - used);
                // `payload` is at most `left`, which is a u32.
                let rest = left - payload as u32;
                self.at = if rest == 0 { START } else { At::Payload { left: rest } };
                return Ok(Step::Payload { header: used, payload });
            }
            let Some(&byte) = input.get(used) else {
                return Ok(Step::NeedMore);
            };
            used += 1;
            self.at = self.header_byte(byte)?;
        }
    }

    fn header_byte(&self, byte: u8) -> Result<At, FrameError> {
        match self.at {
            At::Prefix { seen: 0, .. } if byte != 0 => Err(FrameError::Compressed { flag: byte }),
            At::Prefix { seen: 0, .. } => Ok(At::Prefix { seen: 1, length: 0 }),
            At::Prefix { seen, length } => {
                let length = length << 8 | u32::from(byte);
                if usize::from(seen) + 1 < GRPC_PREFIX_LEN {
                    return Ok(At::Prefix { seen: seen + 1, length });
                }
                if length as usize > self.max {
                    return Err(FrameError::TooLarge { length: length as usize, max: self.max });
                }
                Ok(if length == 0 { START } else { At::Tag { left: length } })
            }
            At::Tag { .. } if byte != DATA_TAG => Err(FrameError::UnexpectedField { tag: byte }),
            At::Tag { left: 1 } => Err(FrameError::BadVarint),
            At::Tag { left } => Ok(At::Varint { left: left - 1, value: 0, seen: 0 }),
            At::Varint { left: 0, .. } => Err(FrameError::BadVarint),
            At::Varint { left, value, seen } => varint_byte(byte, left - 1, value, seen),
            At::Payload { .. } => unreachable!("payload bytes are skipped, not stepped through"),
        }
    }

    const fn is_between_frames(&self) -> bool {
        matches!(self.at, At::Prefix { seen: 0, .. })
    }
}

fn varint_byte(byte: u8, left: u32, value: u64, seen: u8) -> Result<At, FrameError> {
    if seen >= VARINT_MAX || (seen == VARINT_MAX - 1 && byte > 1) {
        return Err(FrameError::BadVarint);
    }
    let value = value | u64::from(byte & 0x7f) << (7 * u32::from(seen));
    if byte & 0x80 != 0 {
        // A message that ends here is found out at the next byte, which would be the next
        // message's; look now so that the error does not wait for it.
        if left == 0 {
            return Err(FrameError::BadVarint);
        }
        return Ok(At::Varint { left, value, seen: seen + 1 });
    }
    if value != u64::from(left) {
        return Err(FrameError::LengthMismatch { payload: value, left: left as usize });
    }
    Ok(if left == 0 { START } else { At::Payload { left } })
}

/// Checks frames that pass through without touching or keeping them.
#[derive(Debug)]
pub struct Scanner {
    machine: Machine,
    payload: u64,
}

impl Scanner {
    /// A scanner that refuses messages over `max` bytes ([`super::MAX_MESSAGE`] is the default).
    pub const fn new(max: usize) -> Self {
        Self { machine: Machine::new(max), payload: 0 }
    }

    /// Checks the next bytes of the stream, cut anywhere. Returns the payload bytes among them.
    ///
    /// # Errors
    /// The first fault. The scanner is then of no further use.
    pub fn scan(&mut self, mut chunk: &[u8]) -> Result<usize, FrameError> {
        let mut payload_here = 0;
        while !chunk.is_empty() {
            match self.machine.step(chunk)? {
                Step::NeedMore => break,
                Step::Payload { header, payload } => {
                    payload_here += payload;
                    chunk = &chunk[header + payload..];
                }
            }
        }
        self.payload += payload_here as u64;
        Ok(payload_here)
    }

    /// Payload bytes seen so far.
    pub const fn payload_bytes(&self) -> u64 {
        self.payload
    }

    /// Checks that the stream may end here.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] inside a message.
    pub const fn finish(&self) -> Result<(), FrameError> {
        if self.machine.is_between_frames() { Ok(()) } else { Err(FrameError::Truncated) }
    }
}

/// Takes framed chunks and gives payload slices of the same memory.
#[derive(Debug)]
pub struct Decoder {
    machine: Machine,
    chunk: Bytes,
}

impl Decoder {
    /// A decoder that refuses messages over `max` bytes ([`super::MAX_MESSAGE`] is the default).
    pub const fn new(max: usize) -> Self {
        Self { machine: Machine::new(max), chunk: Bytes::new() }
    }

    /// Gives the decoder the next bytes of the stream.
    ///
    /// # Panics
    /// In debug builds, when the chunk before is not used up: call [`Decoder::next_payload`] until it says
    /// `None` first, which is what keeps the decoder at one chunk of memory.
    pub fn feed(&mut self, chunk: Bytes) {
        debug_assert!(self.chunk.is_empty(), "previous chunk not used up");
        self.chunk = chunk;
    }

    /// The next non-empty run of payload, or `None` when more input is needed.
    ///
    /// A large message may come out in several runs, one per chunk fed: a relay is a byte stream
    /// and frame boundaries mean nothing in it.
    ///
    /// # Errors
    /// The first fault. The decoder is then of no further use.
    pub fn next_payload(&mut self) -> Result<Option<Bytes>, FrameError> {
        while !self.chunk.is_empty() {
            match self.machine.step(&self.chunk)? {
                Step::NeedMore => self.chunk.clear(),
                Step::Payload { header, payload } => {
                    self.chunk.advance(header);
                    if payload > 0 {
                        return Ok(Some(self.chunk.split_to(payload)));
                    }
                }
            }
        }
        Ok(None)
    }

    /// Checks that the stream may end here.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] inside a message.
    pub const fn finish(&self) -> Result<(), FrameError> {
        if self.machine.is_between_frames() { Ok(()) } else { Err(FrameError::Truncated) }
    }
}
