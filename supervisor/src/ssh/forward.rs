//! Forwarded connections (`ssh -L`): to ports on the sandbox's own loopback, and nowhere else.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::BytesMut;
use russh::server::{ChannelOpenHandle, Msg};
use russh::{ChannelOpenFailure, ChannelWriteHalf};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::flow::Inbox;
use super::{READ_SIZE, Shared};

/// The loopback address that `host` and `port` name, if they do.
///
/// Only `localhost` is taken by name (as IPv4, which is what servers in sandboxes listen on): a name
/// that needs a resolver could mean anything.
#[must_use]
pub(crate) fn loopback(host: &str, port: u32) -> Option<SocketAddr> {
    let port = u16::try_from(port).ok().filter(|port| *port != 0)?;
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let address = if bare.eq_ignore_ascii_case("localhost") {
        IpAddr::V4(Ipv4Addr::LOCALHOST)
    } else {
        bare.parse().ok()?
    };
    address.is_loopback().then(|| SocketAddr::new(address, port))
}

/// Connects and copies both ways until both sides are done or the channel is closed.
pub(super) async fn run(
    shared: Arc<Shared>,
    address: SocketAddr,
    inbox: Arc<Inbox>,
    write: ChannelWriteHalf<Msg>,
    reply: ChannelOpenHandle,
) {
    match shared.sandbox.connect(address).await {
        Ok(stream) => {
            reply.accept().await;
            tokio::select! {
                () = copy(stream, &inbox, &write) => {}
                () = inbox.closed() => {}
            }
            // Fails when the connection is gone, and then there is nothing to close.
            let _ = write.close().await;
        }
        Err(error) => {
            tracing::debug!(%address, %error, "a forwarded connection could not be made");
            reply.reject(ChannelOpenFailure::ConnectFailed).await;
        }
    }
    inbox.close();
}

async fn copy(stream: TcpStream, inbox: &Inbox, write: &ChannelWriteHalf<Msg>) {
    let (mut from_target, mut to_target) = stream.into_split();
    let inward = async {
        while let Some(bytes) = inbox.next().await {
            if to_target.write_all(&bytes).await.is_err() {
                inbox.discard();
                return;
            }
        }
        // A target that is gone has no direction left to end.
        let _ = to_target.shutdown().await;
    };
    let outward = async {
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(READ_SIZE);
            match from_target.read_buf(&mut buffer).await {
                Ok(0) => return write.eof().await.is_ok(),
                Ok(_) if write.data_bytes(buffer.split().freeze()).await.is_ok() => {}
                // A reset must not look like an orderly end: the channel closes without one.
                Ok(_) | Err(_) => return false,
            }
        }
    };
    tokio::pin!(inward, outward);
    tokio::select! {
        () = &mut inward => { outward.await; }
        orderly = &mut outward => if orderly { inward.await },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_a_destination() {
        let text = |host, port| loopback(host, port).map(|address| address.to_string());
        assert_eq!(text("localhost", 80).as_deref(), Some("127.0.0.1:80"));
        assert_eq!(text("127.0.0.53", 53).as_deref(), Some("127.0.0.53:53"));
        assert_eq!(text("::1", 8080).as_deref(), Some("[::1]:8080"));
        assert_eq!(text("[::1]", 8080).as_deref(), Some("[::1]:8080"));
        for (host, port) in [
            ("10.0.0.1", 80),
            ("example.com", 80),
            ("0.0.0.0", 80),
            ("127.0.0.1", 0),
            ("127.0.0.1", 65_536),
            ("::ffff:127.0.0.1", 80),
            ("", 80),
        ] {
            assert_eq!(loopback(host, port), None, "{host}:{port}");
        }
    }
}
