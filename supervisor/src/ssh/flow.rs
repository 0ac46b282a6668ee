//! What clients sent and nobody has read yet, and how they are held back.
//!
//! SSH limits what a client may send by a window per channel. The SSH library grants a new window
//! as soon as bytes *arrive*, and hands them on by waiting for room in a queue: with one channel
//! whose reader is slow the whole connection stands still, and a command that writes as much as it
//! reads (`ssh host cat`) can then never finish. So bytes go into an inbox per channel instead, the
//! connection's task never waits for a reader, and the window follows the *reader*:
//!
//! - While an inbox holds little, the window is [`WINDOW`].
//! - When it holds more than [`HIGH_WATER`], the window granted next is two bytes, the smallest that
//!   lets us hear from the client again; the rest of the former window may still arrive, so an
//!   inbox holds at most `HIGH_WATER + WINDOW`. Each such two-byte packet is an occasion to open the
//!   window again, and between two of them the connection is read [`TRICKLE_PAUSE`] later, so a
//!   waiting client costs next to nothing.
//! - Should the inboxes of one connection together reach [`CONNECTION_LIMIT`], which takes several
//!   slow channels at once, the connection is not read at all until they are below it.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};
use tokio_util::sync::CancellationToken;

use super::WINDOW;

/// Unread bytes in one inbox from which the client is held back: enough for the reader to go on
/// while a new window travels to the client and its bytes come back.
pub(super) const HIGH_WATER: usize = 2 * 1024 * 1024;

/// Unread bytes of one connection at which it is read no further.
pub(super) const CONNECTION_LIMIT: usize = 64 * 1024 * 1024;

/// The window that keeps a client waiting, in bytes: with less than two the library never grants
/// again, because it waits for half of it to be used.
pub(super) const TRICKLE: u32 = 2;

/// Pause in reading after a packet of a client that is held back.
pub(super) const TRICKLE_PAUSE: Duration = Duration::from_millis(10);

/// Smallest piece of memory for queued bytes, so that many small packets share one.
const CHUNK: usize = 16 * 1024;

/// One connection's account. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Connection(Arc<Mutex<Account>>);

#[derive(Debug, Default)]
struct Account {
    queued: usize,
    stalled_channels: usize,
    paused_until: Option<Instant>,
    reader: Option<Waker>,
}

impl Connection {
    /// The window to grant next, after one of `granted` bytes went to the channel of `inbox`.
    ///
    /// The library keeps one value for all channels of a connection. When another channel is held
    /// back, a full window is granted for one packet only: it goes to whoever sends next.
    pub(super) fn next_window(&self, inbox: &Inbox, granted: u32) -> u32 {
        if inbox.is_stalled() {
            return TRICKLE;
        }
        let others_stalled = lock(&self.0).stalled_channels > 0;
        if others_stalled && granted == WINDOW { TRICKLE } else { WINDOW }
    }

    fn changed(&self, change: impl FnOnce(&mut Account)) {
        let reader = {
            let mut account = lock(&self.0);
            change(&mut account);
            (account.queued < CONNECTION_LIMIT).then(|| account.reader.take()).flatten()
        };
        if let Some(reader) = reader {
            reader.wake();
        }
    }
}

/// What one channel's client sent and its reader has not taken yet.
#[derive(Debug)]
pub(super) struct Inbox {
    connection: Connection,
    state: Mutex<State>,
    arrived: Notify,
    closed: CancellationToken,
}

#[derive(Debug, Default)]
struct State {
    chunks: VecDeque<BytesMut>,
    queued: usize,
    stalled: bool,
    ended: bool,
    discarding: bool,
}

impl Inbox {
    pub(super) fn new(connection: Connection) -> Arc<Self> {
        Arc::new(Self {
            connection,
            state: Mutex::default(),
            arrived: Notify::new(),
            closed: CancellationToken::new(),
        })
    }

    /// Takes bytes from the client; never waits.
    pub(super) fn push(&self, bytes: &[u8]) {
        {
            let mut state = lock(&self.state);
            if state.discarding || bytes.is_empty() {
                return;
            }
            state.append(bytes);
            let newly_stalled = !state.stalled && state.queued > HIGH_WATER;
            state.stalled |= newly_stalled;
            let trickles = state.stalled && bytes.len() <= TRICKLE as usize;
            // Under the inbox's lock, so that the reader cannot give back what is not yet counted.
            self.connection.changed(|account| {
                account.queued += bytes.len();
                account.stalled_channels += usize::from(newly_stalled);
                if trickles {
                    account.paused_until = Some(Instant::now() + TRICKLE_PAUSE);
                }
            });
        }
        self.arrived.notify_one();
    }

    /// The client sends nothing more.
    pub(super) fn end(&self) {
        lock(&self.state).ended = true;
        self.arrived.notify_one();
    }

    /// The channel or its connection is gone.
    pub(super) fn close(&self) {
        self.closed.cancel();
    }

    /// Resolves when the channel or its connection is gone.
    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Whether the channel or its connection is gone.
    pub(super) fn is_closed(&self) -> bool {
        self.closed.is_cancelled()
    }

    /// Whether the client is being held back.
    fn is_stalled(&self) -> bool {
        lock(&self.state).stalled
    }

    /// The next bytes, or `None` once everything before the client's end of file was taken.
    /// Cancel safe. One reader only.
    pub(super) async fn next(&self) -> Option<Bytes> {
        loop {
            let arrived = self.arrived.notified();
            {
                let mut state = lock(&self.state);
                if let Some(chunk) = state.chunks.pop_front() {
                    state.queued -= chunk.len();
                    let released = state.stalled && state.queued <= HIGH_WATER / 2;
                    state.stalled &= !released;
                    self.taken(chunk.len(), released);
                    return Some(chunk.freeze());
                }
                if state.ended {
                    return None;
                }
            }
            arrived.await;
        }
    }

    /// Nobody will read any more: drops what is here and what is still to come.
    pub(super) fn discard(&self) {
        let mut state = lock(&self.state);
        state.discarding = true;
        state.chunks.clear();
        let released = std::mem::take(&mut state.stalled);
        let dropped = std::mem::take(&mut state.queued);
        self.taken(dropped, released);
    }

    /// Gives back what was counted; called with the inbox's lock held.
    fn taken(&self, count: usize, released: bool) {
        self.connection.changed(|account| {
            account.queued -= count;
            account.stalled_channels -= usize::from(released);
            if released {
                account.paused_until = None;
            }
        });
    }
}

impl State {
    fn append(&mut self, bytes: &[u8]) {
        self.queued += bytes.len();
        match self.chunks.back_mut() {
            Some(last) if last.capacity() - last.len() >= bytes.len() => {
                last.extend_from_slice(bytes);
            }
            last => {
                // An empty queue has a waiting reader: the piece will be taken as it is.
                let room = if last.is_some() { CHUNK } else { 0 };
                let mut chunk = BytesMut::with_capacity(bytes.len().max(room));
                chunk.extend_from_slice(bytes);
                self.chunks.push_back(chunk);
            }
        }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.discard();
    }
}

/// A client's stream that is read only as fast as [`Connection`] allows.
#[derive(Debug)]
pub(super) struct Throttled {
    stream: UnixStream,
    connection: Connection,
    pause: Pin<Box<Sleep>>,
}

impl Throttled {
    pub(super) fn new(stream: UnixStream, connection: Connection) -> Self {
        Self { stream, connection, pause: Box::pin(tokio::time::sleep(Duration::ZERO)) }
    }

    fn poll_allowed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let until = {
            let mut account = lock(&self.connection.0);
            if account.queued >= CONNECTION_LIMIT {
                account.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
            let Some(until) = account.paused_until else {
                return Poll::Ready(());
            };
            account.reader = Some(cx.waker().clone());
            until
        };
        self.pause.as_mut().reset(until);
        ready!(self.pause.as_mut().poll(cx));
        lock(&self.connection.0).paused_until = None;
        Poll::Ready(())
    }
}

impl AsyncRead for Throttled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        ready!(self.poll_allowed(cx));
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Throttled {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that holds these locks can panic half-way through a change.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn bytes_come_out_as_they_went_in_and_then_the_end() {
        let inbox = Inbox::new(Connection::default());
        inbox.push(b"one ");
        inbox.push(b"two ");
        inbox.push(b"three");
        inbox.end();
        let mut all = Vec::new();
        while let Some(bytes) = inbox.next().await {
            all.extend_from_slice(&bytes);
        }
        assert_eq!(all, b"one two three");
    }

    #[tokio::test]
    async fn a_full_inbox_narrows_the_window_until_it_is_read() {
        let connection = Connection::default();
        let (slow, quick) = (Inbox::new(connection.clone()), Inbox::new(connection.clone()));
        assert_eq!(connection.next_window(&slow, WINDOW), WINDOW);
        slow.push(&vec![0; HIGH_WATER + 1]);
        assert_eq!(connection.next_window(&slow, WINDOW), TRICKLE);
        // The other channel gets its window, and only for itself.
        assert_eq!(connection.next_window(&quick, TRICKLE), WINDOW);
        assert_eq!(connection.next_window(&quick, WINDOW), TRICKLE);
        slow.next().await;
        assert_eq!(connection.next_window(&slow, TRICKLE), WINDOW);
        assert_eq!(connection.next_window(&quick, WINDOW), WINDOW);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_account_survives_a_reader_that_is_quicker_than_its_writer() {
        let connection = Connection::default();
        let inbox = Inbox::new(connection.clone());
        let reader = tokio::spawn({
            let inbox = Arc::clone(&inbox);
            async move {
                let mut count = 0;
                while let Some(bytes) = inbox.next().await {
                    count += bytes.len();
                }
                count
            }
        });
        for _ in 0..20_000 {
            inbox.push(&[7; 100]);
        }
        inbox.end();
        assert_eq!(reader.await.unwrap(), 2_000_000);
        assert_eq!(lock(&connection.0).queued, 0);
    }

    #[tokio::test]
    async fn a_discarded_inbox_holds_nothing() {
        let connection = Connection::default();
        let inbox = Inbox::new(connection.clone());
        inbox.push(&vec![0; HIGH_WATER + 1]);
        inbox.discard();
        inbox.push(b"late");
        assert_eq!(lock(&connection.0).queued, 0);
        assert_eq!(lock(&connection.0).stalled_channels, 0);
        assert_eq!(connection.next_window(&inbox, TRICKLE), WINDOW);
    }

    #[tokio::test]
    async fn a_connection_at_its_limit_is_not_read() {
        let connection = Connection::default();
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut throttled = Throttled::new(ours, connection.clone());
        let inbox = Inbox::new(connection);
        inbox.push(&vec![0; CONNECTION_LIMIT]);
        theirs.write_all(b"x").await.unwrap();
        let mut byte = [0];
        {
            let mut read = std::pin::pin!(throttled.read(&mut byte));
            let poll = std::future::poll_fn(|cx| Poll::Ready(read.as_mut().poll(cx))).await;
            assert!(poll.is_pending());
            inbox.discard();
            assert_eq!(read.await.unwrap(), 1);
        }
        assert_eq!(&byte, b"x");
    }
}
