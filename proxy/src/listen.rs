//! From accepted sockets to served connections.
//!
//! [`serve`] accepts and hands each socket to the connection plane, whose fixed inner end is [`ServeHttp`]: HTTP/1.1
//! with upgrades and HTTP/2 with extended CONNECT on one port, told apart by their first bytes. Every request gets the
//! [`ConnectInfo`] of its connection in its extensions.

mod connection;
mod http_end;
mod plane;
#[cfg(test)]
mod tests;
pub mod tls;

use std::{io, net::SocketAddr, time::Duration};

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

pub use self::{
    connection::{ConnectInfo, Connection, ConnectionError, Io, PeerCertificate, reset},
    http_end::ServeHttp,
    plane::{
        ConnectionHandles, ConnectionPlane, ConnectionState, connection_plane, connection_plane_on,
        side_plane,
    },
};
use crate::drain::Watch;

/// Connections that the kernel holds until they are accepted. Supervisors come back all at once after a restart.
const BACKLOG: u32 = 1024;

/// Pause after accepting failed for lack of something (file descriptors), in which connections may end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// When a peer without traffic is probed, how often, and how many probes may go unanswered. HTTP/2 has pings of its
/// own; this finds dead peers of upgraded HTTP/1.1 connections within a minute.
const PROBE_AFTER: Duration = Duration::from_secs(30);
const PROBE_EVERY: Duration = Duration::from_secs(10);
const PROBES: u32 = 3;

/// Listens on `address`; port 0 takes a free one.
///
/// # Errors
/// Those of the system: the address is taken or not ours.
pub fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // A restarted gateway takes its port back although old connections still linger.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Accepts connections until `drain` starts, and returns when the last one has ended.
///
/// Connections end by themselves, at the latest when `drain` closes.
pub async fn serve(listener: TcpListener, plane: ConnectionPlane, mut drain: Watch) {
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.draining() => break,
        };
        match accepted {
            Ok((socket, peer)) => {
                let Ok(connection) = prepare(socket, peer) else { continue };
                connections.spawn(one(plane.clone(), connection));
            }
            Err(error) if is_of_one_connection(&error) => {
                tracing::debug!(%error, "a connection ended before it was accepted");
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn one(plane: ConnectionPlane, connection: Connection) {
    let peer = connection.info().peer;
    if let Err(error) = plane.oneshot(connection).await {
        error.log(peer);
    }
}

fn prepare(socket: TcpStream, peer: SocketAddr) -> io::Result<Connection> {
    // Interactive bytes go out at once.
    socket.set_nodelay(true)?;
    let probes = socket2::TcpKeepalive::new()
        .with_time(PROBE_AFTER)
        .with_interval(PROBE_EVERY)
        .with_retries(PROBES);
    socket2::SockRef::from(&socket).set_tcp_keepalive(&probes)?;
    let local = socket.local_addr()?;
    Ok(Connection::new(socket, ConnectInfo::plain(peer, local)))
}

/// Errors that `accept` reports of a connection that is gone already, see `accept(2)`.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}
