//! A hop that holds every byte back for half a round trip, for networks longer than a loopback.
//!
//! It delays without limiting the rate: what is on the way is bounded only by [`ON_THE_WAY`], which is more than any
//! window under test.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use clap::Args;
use postern_layers::units::parse_duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, sleep_until};

use super::{listen, until_stdin_ends};
use crate::error::BenchError;

/// Bytes on the way at most, one direction of one connection: 5 Gbit/s at a round trip of 200 ms.
const ON_THE_WAY: usize = 64 << 20;

/// Bytes read at once.
const CHUNK: usize = 64 * 1024;

/// Chunks on the way at most; small ones run into this first.
const CHUNKS: usize = 65_536;

/// A delay.
#[derive(Args, Debug)]
pub struct DelayArgs {
    /// Where connections go.
    #[arg(long)]
    pub to: SocketAddr,
    /// Round trip added, half of it each way.
    #[arg(long, value_parser = parse_duration)]
    pub rtt: Duration,
}

pub(super) async fn run(arguments: DelayArgs) -> Result<(), BenchError> {
    let listener = listen(([127, 0, 0, 1], 0).into()).await?;
    until_stdin_ends(serve(listener, arguments.to, arguments.rtt / 2)).await
}

async fn serve(listener: TcpListener, to: SocketAddr, half: Duration) -> std::io::Result<()> {
    loop {
        let (near, _) = listener.accept().await?;
        tokio::spawn(async move {
            near.set_nodelay(true)?;
            let far = TcpStream::connect(to).await?;
            far.set_nodelay(true)?;
            let (near_in, near_out) = near.into_split();
            let (far_in, far_out) = far.into_split();
            tokio::try_join!(one_way(near_in, far_out, half), one_way(far_in, near_out, half))
        });
    }
}

type Held = (Instant, Bytes, OwnedSemaphorePermit);

async fn one_way(
    mut from: impl AsyncRead + Unpin,
    to: impl AsyncWrite + Unpin,
    delay: Duration,
) -> std::io::Result<()> {
    let room = Arc::new(Semaphore::new(ON_THE_WAY));
    let (sender, receiver) = mpsc::channel::<Held>(CHUNKS);
    let reading = async move {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK);
            if from.read_buf(&mut buffer).await? == 0 {
                return std::io::Result::Ok(());
            }
            let due = Instant::now() + delay;
            let chunk = buffer.split().freeze();
            let size = u32::try_from(chunk.len()).unwrap_or(u32::MAX);
            // The semaphore is never closed.
            let Ok(held) = Arc::clone(&room).acquire_many_owned(size).await else { return Ok(()) };
            if sender.send((due, chunk, held)).await.is_err() {
                return Ok(());
            }
        }
    };
    tokio::try_join!(reading, writing(to, receiver)).map(drop)
}

async fn writing(
    mut to: impl AsyncWrite + Unpin,
    mut receiver: mpsc::Receiver<Held>,
) -> std::io::Result<()> {
    while let Some((due, chunk, held)) = receiver.recv().await {
        sleep_until(due).await;
        to.write_all(&chunk).await?;
        drop(held);
    }
    to.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_come_late_and_whole() {
        let (mut near, near_end) = tokio::io::duplex(1 << 20);
        let (far_end, mut far) = tokio::io::duplex(1 << 20);
        let delay = Duration::from_millis(25);
        tokio::spawn(one_way(near_end, far_end, delay));
        let start = Instant::now();
        near.write_all(&[7; 200_000]).await.unwrap();
        near.shutdown().await.unwrap();
        let mut first = [0; 1];
        far.read_exact(&mut first).await.unwrap();
        assert!(start.elapsed() >= delay);
        let mut rest = Vec::new();
        far.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest.len(), 199_999);
    }
}
