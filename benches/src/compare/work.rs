//! What a chain has to do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::error::BenchError;
use crate::measure::{Latencies, Meter, gigabits};
use crate::report::millis;
use crate::target::{CHUNK, Order};

/// Before the part that counts: windows have grown and caches are warm.
const WARM_UP: Duration = Duration::from_millis(500);

/// After a piece: what it left on the way is gone before the next one begins.
const PAUSE: Duration = Duration::from_millis(300);

/// Bytes of an echo: a keystroke with its SSH packet around it.
const ECHO: usize = 32;

/// Longest wait for one echo.
const ECHO_WITHIN: Duration = Duration::from_secs(10);

/// A piece of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece {
    /// Bytes towards the target over so many connections, Gbit/s.
    Up(usize),
    /// Bytes from the target over so many connections, Gbit/s.
    Down(usize),
    /// One message after the other there and back, milliseconds at the median.
    Echo,
}

impl Piece {
    /// What every chain does.
    pub const ALL: &'static [Self] =
        &[Self::Up(1), Self::Down(1), Self::Up(8), Self::Down(8), Self::Echo];

    /// Its name for people.
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Up(streams) => format!("to the target, {streams} streams, Gbit/s"),
            Self::Down(streams) => format!("from the target, {streams} streams, Gbit/s"),
            Self::Echo => format!("echo of {ECHO} bytes, p50, ms"),
        }
    }
}

/// How the work is done.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    /// Time that counts.
    pub time: Duration,
}

impl Work {
    /// Does a piece through the chain that begins at `address`.
    ///
    /// # Errors
    /// When a connection breaks.
    pub async fn run(&self, piece: Piece, address: SocketAddr) -> Result<f64, BenchError> {
        let done = match piece {
            Piece::Up(streams) => self.bulk(address, streams, true).await,
            Piece::Down(streams) => self.bulk(address, streams, false).await,
            Piece::Echo => self.echo(address).await,
        };
        sleep(PAUSE).await;
        done.map_err(BenchError::io(format!("work through {address}")))
    }

    async fn bulk(&self, address: SocketAddr, streams: usize, up: bool) -> std::io::Result<f64> {
        let meter = Arc::new(Meter::default());
        let mut running = JoinSet::new();
        for _ in 0..streams {
            let order = if up { Order::Sink } else { Order::Source(u64::MAX) };
            let socket = ordered(address, order).await?;
            let meter = Arc::clone(&meter);
            running.spawn(async move {
                if up { push(socket, &meter).await } else { pull(socket, &meter).await }
            });
        }
        // What is on the way at the beginning and at the end is the same, so the client's side may count.
        sleep(WARM_UP).await;
        let (start, before) = (Instant::now(), meter.total());
        let measured = sleep(self.time);
        let ended = tokio::select! {
            () = measured => None,
            ended = running.join_next() => ended,
        };
        let (took, bytes) = (start.elapsed(), meter.total() - before);
        running.shutdown().await;
        match ended {
            None => Ok(gigabits(bytes, took)),
            Some(Ok(Err(error))) => Err(error),
            Some(_) => Err(std::io::ErrorKind::UnexpectedEof.into()),
        }
    }

    async fn echo(&self, address: SocketAddr) -> std::io::Result<f64> {
        let mut socket = ordered(address, Order::Echo).await?;
        let latencies = Latencies::new(Instant::now());
        let mut message = [7; ECHO];
        let begun = Instant::now();
        let end = begun + WARM_UP + self.time;
        while Instant::now() < end {
            let start = Instant::now();
            socket.write_all(&message).await?;
            timeout(ECHO_WITHIN, socket.read_exact(&mut message)).await??;
            if start > begun + WARM_UP {
                latencies.done(start, Instant::now());
            }
        }
        Ok(millis(latencies.percentile(50.0)))
    }
}

async fn ordered(address: SocketAddr, order: Order) -> std::io::Result<TcpStream> {
    let mut socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    socket.write_all(&order.encode()).await?;
    Ok(socket)
}

async fn push(mut socket: TcpStream, meter: &Meter) -> std::io::Result<()> {
    let chunk = vec![7; CHUNK];
    loop {
        let count = socket.write(&chunk).await?;
        meter.add(count);
    }
}

async fn pull(mut socket: TcpStream, meter: &Meter) -> std::io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match socket.read(&mut buffer).await? {
            0 => return Ok(()),
            count => meter.add(count),
        }
    }
}
