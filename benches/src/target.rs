//! What a relay leads to: a TCP server that does as its peer orders.
//!
//! An order is nine bytes: what to do, and a number. One port serves every kind of load, so a sandbox needs one
//! process whatever the scenario.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// Bytes of an order on the wire.
pub const ORDER_LEN: usize = 9;

/// Bytes read or written at once: large enough that the target is never the limit.
pub const CHUNK: usize = 256 * 1024;

/// What the peer wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Every byte back.
    Echo,
    /// Take everything; at its end answer with the number of bytes taken, eight bytes big endian.
    Sink,
    /// This many bytes, then end of file.
    Source(u64),
}

impl Order {
    /// On the wire.
    #[must_use]
    pub fn encode(self) -> [u8; ORDER_LEN] {
        let (kind, number) = match self {
            Self::Echo => (b'e', 0),
            Self::Sink => (b's', 0),
            Self::Source(bytes) => (b'g', bytes),
        };
        let mut order = [kind; ORDER_LEN];
        order[1..].copy_from_slice(&number.to_be_bytes());
        order
    }

    /// From the wire; `None` for anything else.
    #[must_use]
    pub fn decode(bytes: [u8; ORDER_LEN]) -> Option<Self> {
        let mut number = [0; 8];
        number.copy_from_slice(&bytes[1..]);
        match bytes[0] {
            b'e' => Some(Self::Echo),
            b's' => Some(Self::Sink),
            b'g' => Some(Self::Source(u64::from_be_bytes(number))),
            _ => None,
        }
    }
}

/// Serves until dropped, one task per connection.
///
/// # Errors
/// When accepting fails.
pub async fn serve(listener: TcpListener) -> io::Result<()> {
    loop {
        let (socket, _) = listener.accept().await?;
        socket.set_nodelay(true)?;
        tokio::spawn(async move {
            // A peer that goes away early ends its own order and nothing else.
            let _ = obey(socket).await;
        });
    }
}

async fn obey(mut socket: TcpStream) -> io::Result<()> {
    let mut order = [0; ORDER_LEN];
    socket.read_exact(&mut order).await?;
    match Order::decode(order) {
        Some(Order::Echo) => echo(socket).await,
        Some(Order::Sink) => sink(socket).await,
        Some(Order::Source(bytes)) => source(socket, bytes).await,
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

async fn echo(mut socket: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = socket.read(&mut buffer).await?;
        if count == 0 {
            return socket.shutdown().await;
        }
        socket.write_all(&buffer[..count]).await?;
    }
}

async fn sink(mut socket: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    let mut total = 0_u64;
    loop {
        let count = socket.read(&mut buffer).await?;
        if count == 0 {
            socket.write_all(&total.to_be_bytes()).await?;
            return socket.shutdown().await;
        }
        total += count as u64;
    }
}

async fn source(mut socket: impl AsyncWrite + Unpin, mut bytes: u64) -> io::Result<()> {
    let buffer = vec![7; CHUNK];
    while bytes > 0 {
        let count = buffer.len().min(usize::try_from(bytes).unwrap_or(usize::MAX));
        socket.write_all(&buffer[..count]).await?;
        bytes -= count as u64;
    }
    socket.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_survive_the_wire() {
        for order in [Order::Echo, Order::Sink, Order::Source(1 << 40)] {
            assert_eq!(Order::decode(order.encode()), Some(order));
        }
        assert_eq!(Order::decode([0; ORDER_LEN]), None);
    }

    #[tokio::test]
    async fn the_target_does_as_ordered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(serve(listener));
        let answer = |order: Order, sent: &'static [u8]| async move {
            let mut socket = TcpStream::connect(address).await.unwrap();
            socket.write_all(&order.encode()).await.unwrap();
            socket.write_all(sent).await.unwrap();
            socket.shutdown().await.unwrap();
            let mut answer = Vec::new();
            socket.read_to_end(&mut answer).await.unwrap();
            answer
        };
        assert_eq!(answer(Order::Echo, b"abc").await, b"abc");
        assert_eq!(answer(Order::Sink, b"abc").await, 3_u64.to_be_bytes());
        assert_eq!(answer(Order::Source(300_000), b"").await.len(), 300_000);
    }
}
