//! Packets between the supervisor and the sandbox init, over a `SOCK_SEQPACKET` socket pair.
//!
//! One packet is one protobuf message with a byte in front that says whether the message follows
//! or lies in a memory file, whose descriptor is then the last one of the packet: an exec may carry
//! half a mebibyte of arguments and environment, more than a socket packet may have.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use nix::sys::memfd::{MFdFlags, memfd_create};
use prost::Message;

use crate::sys;

/// Largest message that travels in the packet itself: far below the default socket send buffer
/// (208 KiB), so that a packet never has to wait for an empty queue.
const INLINE_MAX: usize = 32 * 1024;

/// Largest message at all: 256 KiB of arguments, 256 KiB of environment (OpenShell contract, limits
/// of CreateSandbox) and room for the rest.
const MESSAGE_MAX: u64 = 1024 * 1024;

const INLINE: u8 = 0;
const IN_MEMORY_FILE: u8 = 1;

/// Size of a buffer that takes any packet.
pub(crate) const PACKET_BUFFER: usize = INLINE_MAX + 1;

/// What the sandbox must be.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SetupMessage {
    #[prost(uint32, tag = "1")]
    pub(crate) uid: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) gid: u32,
    #[prost(string, tag = "3")]
    pub(crate) hostname: String,
    #[prost(bytes = "vec", tag = "4")]
    pub(crate) sandbox_dir: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "5")]
    pub(crate) masked: Vec<Vec<u8>>,
    #[prost(bool, tag = "6")]
    pub(crate) best_effort: bool,
}

/// Size of a terminal in cells and pixels.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct SizeMessage {
    #[prost(uint32, tag = "1")]
    pub(crate) columns: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) rows: u32,
    #[prost(uint32, tag = "3")]
    pub(crate) width: u32,
    #[prost(uint32, tag = "4")]
    pub(crate) height: u32,
}

/// One terminal mode: opcode of RFC 4254 section 8 and its argument.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub(crate) struct ModeMessage {
    #[prost(uint32, tag = "1")]
    pub(crate) opcode: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) value: u32,
}

/// The terminal that a command gets instead of three pipes.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct TerminalMessage {
    #[prost(message, optional, tag = "1")]
    pub(crate) size: Option<SizeMessage>,
    #[prost(message, repeated, tag = "2")]
    pub(crate) modes: Vec<ModeMessage>,
}

/// Start a command. Without a terminal the packet carries its three streams.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct SpawnMessage {
    /// Empty for the built-in file transfer server.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub(crate) argv: Vec<Vec<u8>>,
    /// `NAME=value` each.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub(crate) environment: Vec<Vec<u8>>,
    #[prost(bytes = "vec", tag = "3")]
    pub(crate) directory: Vec<u8>,
    #[prost(message, optional, tag = "4")]
    pub(crate) terminal: Option<TerminalMessage>,
}

/// A request of the supervisor. `id` comes back in the reply and names a command later.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Request {
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    #[prost(oneof = "Order", tags = "2, 3, 4, 5")]
    pub(crate) order: Option<Order>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Order {
    #[prost(message, tag = "2")]
    Spawn(SpawnMessage),
    /// Signal number for the command `id`.
    #[prost(int32, tag = "3")]
    Signal(i32),
    /// End the command `id` and every descendant.
    #[prost(bool, tag = "4")]
    KillTree(bool),
    /// A stream socket; true asks for IPv6.
    #[prost(bool, tag = "5")]
    Socket(bool),
}

/// What the init says.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Event {
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    #[prost(oneof = "Outcome", tags = "2, 3, 4, 5, 6")]
    pub(crate) outcome: Option<Outcome>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(crate) enum Outcome {
    /// The sandbox stands; the isolation report as JSON.
    #[prost(string, tag = "2")]
    Ready(String),
    /// The request `id` was done; its descriptors ride along.
    #[prost(bool, tag = "3")]
    Done(bool),
    /// The request `id` failed, in words.
    #[prost(string, tag = "4")]
    Failed(String),
    /// The command `id` ended with this exit code.
    #[prost(int32, tag = "5")]
    Exited(i32),
    /// The command `id` was ended by this signal.
    #[prost(int32, tag = "6")]
    Signaled(i32),
}

/// Sends one message; fails with `WouldBlock` on a non-blocking socket whose queue is full.
pub(crate) fn send(
    socket: BorrowedFd<'_>,
    message: &impl Message,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let mut packet = Vec::with_capacity(message.encoded_len() + 1);
    packet.push(INLINE);
    message.encode(&mut packet).map_err(io::Error::other)?;
    if packet.len() <= INLINE_MAX {
        return sys::send_packet(socket, &packet, fds);
    }
    if packet.len() as u64 > MESSAGE_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "a request to the sandbox of {} bytes exceeds the limit of {MESSAGE_MAX} bytes; shorten arguments or environment",
                packet.len()
            ),
        ));
    }
    let mut file = File::from(memfd_create("request", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&packet[1..])?;
    let mut all = fds.to_vec();
    all.push(file.as_fd());
    sys::send_packet(socket, &[IN_MEMORY_FILE], &all)
}

/// Receives one message and its descriptors; `None` when the peer is gone.
pub(crate) fn receive<M: Message + Default>(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    let (length, mut fds) = sys::recv_packet(socket, buffer)?;
    let invalid = |text: &'static str| io::Error::new(io::ErrorKind::InvalidData, text);
    let Some((kind, body)) = buffer[..length].split_first() else {
        return Ok(None);
    };
    let message = match *kind {
        INLINE => M::decode(body),
        IN_MEMORY_FILE => {
            let file = fds.pop().ok_or_else(|| invalid("a packet lost its memory file"))?;
            let mut file = File::from(file);
            file.rewind()?;
            let mut bytes = Vec::new();
            file.take(MESSAGE_MAX).read_to_end(&mut bytes)?;
            M::decode(bytes.as_slice())
        }
        _ => return Err(invalid("a packet of unknown kind")),
    };
    let message = message.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    Ok(Some((message, fds)))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap()
    }

    fn spawn(arguments: Vec<Vec<u8>>) -> Request {
        Request {
            id: 7,
            order: Some(Order::Spawn(SpawnMessage { argv: arguments, ..SpawnMessage::default() })),
        }
    }

    #[test]
    fn small_and_large_messages_arrive_with_their_descriptors() {
        let (left, right) = pair();
        let mut buffer = vec![0; PACKET_BUFFER];
        for size in [1, INLINE_MAX, 600 * 1024] {
            let request = spawn(vec![vec![b'x'; size]]);
            let passed = File::open("/dev/null").unwrap();
            send(left.as_fd(), &request, &[passed.as_fd()]).unwrap();
            let (got, fds) = receive::<Request>(right.as_fd(), &mut buffer).unwrap().unwrap();
            assert_eq!(got, request);
            assert_eq!(fds.len(), 1);
            assert_ne!(fds[0].as_raw_fd(), passed.as_raw_fd());
        }
    }

    #[test]
    fn an_oversized_message_is_refused_before_it_is_sent() {
        let (left, _right) = pair();
        let error = send(left.as_fd(), &spawn(vec![vec![0; 2 * 1024 * 1024]]), &[]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_closed_peer_is_the_end() {
        let (left, right) = pair();
        drop(left);
        let mut buffer = vec![0; PACKET_BUFFER];
        assert!(receive::<Request>(right.as_fd(), &mut buffer).unwrap().is_none());
    }
}
