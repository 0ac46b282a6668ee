//! What a bridge can join: sockets that can be split and, at best, reset.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadHalf, WriteHalf};
use tokio::net::{TcpStream, UnixStream, tcp, unix};

/// The writing half of a target.
pub trait TargetWriter: AsyncWrite + Unpin + Send + 'static {
    /// Gives up the target so that its peer sees a reset rather than end of file, where the
    /// transport can say that. Must not block.
    fn reset(self);
}

/// Something a relay can end in.
pub trait RelayTarget {
    /// Reading half.
    type Reader: AsyncRead + Unpin + Send + 'static;
    /// Writing half.
    type Writer: TargetWriter;

    /// Takes it apart.
    fn into_halves(self) -> (Self::Reader, Self::Writer);
}

impl RelayTarget for TcpStream {
    type Reader = tcp::OwnedReadHalf;
    type Writer = tcp::OwnedWriteHalf;

    fn into_halves(self) -> (Self::Reader, Self::Writer) {
        self.into_split()
    }
}

impl TargetWriter for tcp::OwnedWriteHalf {
    /// Closing with a linger time of zero sends RST once both halves are gone.
    fn reset(self) {
        let _ = socket2::SockRef::from(self.as_ref()).set_linger(Some(std::time::Duration::ZERO));
        // No shutdown on drop: that would send FIN first.
        self.forget();
    }
}

impl RelayTarget for UnixStream {
    type Reader = unix::OwnedReadHalf;
    type Writer = unix::OwnedWriteHalf;

    fn into_halves(self) -> (Self::Reader, Self::Writer) {
        self.into_split()
    }
}

impl TargetWriter for unix::OwnedWriteHalf {
    /// Unix sockets know no reset; closing both halves is all there is.
    fn reset(self) {
        self.forget();
    }
}

/// Any stream as a target that cannot be reset, only dropped.
#[derive(Debug)]
pub struct Joined<T>(pub T);

impl<T> RelayTarget for Joined<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    type Reader = ReadHalf<T>;
    type Writer = JoinedWriter<T>;

    fn into_halves(self) -> (Self::Reader, Self::Writer) {
        let (reader, writer) = tokio::io::split(self.0);
        (reader, JoinedWriter(writer))
    }
}

/// Writing half of [`Joined`].
#[derive(Debug)]
pub struct JoinedWriter<T>(WriteHalf<T>);

impl<T: AsyncWrite + Unpin + Send + 'static> TargetWriter for JoinedWriter<T> {
    fn reset(self) {}
}

impl<T: AsyncWrite> AsyncWrite for JoinedWriter<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
