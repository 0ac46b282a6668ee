//! Caps connections, in all and per peer address.
//!
//! **Effect.** A connection is served only while both caps have room; it keeps its place until it ends.
//!
//! **Shape.** Connection plane: `Service<C>` in and out, where the future is the whole life of the connection. Of
//! the connection it takes the peer's address, by [`PeerAddr`].
//!
//! **Limits.** `total` (default 4096) protects the gateway's descriptors and memory; `per_peer` (default 256)
//! protects everybody else from one address, and still lets a host with many sandboxes dial in. 0 is no cap. IPv6
//! peers are counted by their first 64 bits, which is what one subscriber has; IPv4-mapped addresses as IPv4.
//!
//! **Refuses** with `RESOURCE_EXHAUSTED`, naming the cap and its value, by [`FromRefusal`]; the connection is
//! dropped unread.
//!
//! **Source.** RFC 6177 and RFC 4291 section 2.5.4 for the 64 bits.
//!
//! **Order.** Outermost: a refused connection should cost nothing, least of all a TLS handshake.
//!
//! **Cost.** One short lock at the start and at the end of a connection.

use std::{
    fmt,
    future::Future,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    config::{Fault, require},
    refuse::{Code, FromRefusal, Refusal},
    tally::{Caps, Full, Permit, Tally},
};

/// The caps; 0 is no cap.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Config {
    /// Connections in all. Default 4096.
    pub total: u32,
    /// Connections per peer address. Default 256.
    pub per_peer: u32,
}

/// Knows the address of the peer.
pub trait PeerAddr {
    /// The address, or `None` where there is none (a Unix socket): then only the total counts.
    fn peer_addr(&self) -> Option<IpAddr>;
}

/// Applies [`ConnectionCap`].
#[derive(Clone, Debug)]
pub struct ConnectionCapLayer {
    tally: Arc<Tally<IpAddr>>,
}

/// Serves a connection through the inner service if the caps have room.
#[derive(Clone, Debug)]
pub struct ConnectionCap<S> {
    inner: S,
    tally: Arc<Tally<IpAddr>>,
}

/// Reads the counts and changes the caps of a layer that is in use.
#[derive(Clone, Debug)]
pub struct Handle {
    tally: Arc<Tally<IpAddr>>,
}

pin_project! {
    /// The life of one connection, or its refusal. Dropping it gives the place back.
    pub struct ResponseFuture<F> {
        #[pin]
        life: Life<F>,
    }
}

pin_project! {
    #[project = LifeProj]
    enum Life<F> {
        Inner { #[pin] future: F, permit: Option<Permit<IpAddr>> },
        Refused { full: Full },
    }
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self { total: 4096, per_peer: 256 }
    }
}

impl Config {
    /// All faults of the values.
    #[must_use]
    pub fn validate(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        require(&mut faults, self.total == 0 || self.per_peer <= self.total, "per_peer", || {
            format!(
                "{} is more than total = {}; lower it or raise total",
                self.per_peer, self.total
            )
        });
        faults
    }

    fn caps(&self) -> Caps {
        Caps { total: self.total, per_key: self.per_peer }
    }
}

// === impl PeerAddr ===

impl PeerAddr for SocketAddr {
    fn peer_addr(&self) -> Option<IpAddr> {
        Some(self.ip())
    }
}

impl<T> PeerAddr for (T, SocketAddr) {
    fn peer_addr(&self) -> Option<IpAddr> {
        Some(self.1.ip())
    }
}

/// What an address is counted by.
fn counted(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let subscriber = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(subscriber))
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

// === impl ConnectionCapLayer ===

impl ConnectionCapLayer {
    /// Caps connections by `config`.
    #[must_use]
    pub fn new(config: &Config) -> Self {
        Self { tally: Tally::new(config.caps()) }
    }

    /// A handle on the counts and caps of everything this layer is applied to.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle { tally: Arc::clone(&self.tally) }
    }
}

impl<S> Layer<S> for ConnectionCapLayer {
    type Service = ConnectionCap<S>;

    fn layer(&self, inner: S) -> Self::Service {
        ConnectionCap { inner, tally: Arc::clone(&self.tally) }
    }
}

// === impl ConnectionCap ===

impl<S, C> Service<C> for ConnectionCap<S>
where
    S: Service<C, Error: FromRefusal>,
    C: PeerAddr,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, connection: C) -> Self::Future {
        let life = match self.tally.admit(connection.peer_addr().map(counted)) {
            Ok(permit) => Life::Inner { future: self.inner.call(connection), permit: Some(permit) },
            Err(full) => Life::Refused { full },
        };
        ResponseFuture { life }
    }
}

// === impl Handle ===

impl Handle {
    /// Connections being served, and connections refused since the start.
    #[must_use]
    pub fn counts(&self) -> (u32, u64) {
        self.tally.counts()
    }

    /// Puts other caps in force. A lowered cap ends no connection.
    pub fn set(&self, config: &Config) {
        self.tally.set_caps(config.caps());
    }
}

// === impl ResponseFuture ===

impl<F, T, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<T, E>>,
    E: FromRefusal,
{
    type Output = Result<T, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().life.project() {
            LifeProj::Inner { future, permit } => {
                let outcome = ready!(future.poll(cx));
                drop(permit.take());
                Poll::Ready(outcome)
            }
            LifeProj::Refused { full } => {
                let text = match full {
                    Full::Total(cap) => {
                        format!("{cap} connections are open, which is the cap total = {cap}")
                    }
                    Full::PerKey(cap) => {
                        format!(
                            "{cap} connections of this address are open, which is the cap per_peer = {cap}"
                        )
                    }
                };
                Poll::Ready(Err(E::from_refusal(Refusal::new(
                    "connection_cap",
                    Code::ResourceExhausted,
                    text,
                ))))
            }
        }
    }
}

impl<F> fmt::Debug for ResponseFuture<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("connection_cap::ResponseFuture").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use tower::service_fn;

    use super::*;

    async fn serve(_: SocketAddr) -> Result<(), Refusal> {
        pending().await
    }

    fn from(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[tokio::test]
    async fn one_address_does_not_take_the_place_of_another() {
        let layer = ConnectionCapLayer::new(&Config { total: 3, per_peer: 2 });
        let handle = layer.handle();
        let mut server = layer.layer(service_fn(serve));
        let held = [server.call(from("10.0.0.1:1")), server.call(from("[::ffff:10.0.0.1]:2"))];
        let refused = server.call(from("10.0.0.1:3")).await.expect_err("two of this address");
        assert!(refused.reason().contains("per_peer = 2"), "{refused}");
        let _other = server.call(from("10.0.0.2:1"));
        let refused = server.call(from("10.0.0.3:1")).await.expect_err("three in all");
        assert!(refused.reason().contains("total = 3"), "{refused}");
        assert_eq!(handle.counts(), (3, 2));
        drop(held);
        assert_eq!(handle.counts().0, 1);
    }

    #[test]
    fn a_subscriber_of_ipv6_counts_once() {
        assert_eq!(
            counted(from("[2001:db8::1]:1").ip()),
            counted(from("[2001:db8::ffff:1]:1").ip())
        );
        assert_ne!(
            counted(from("[2001:db8:0:1::1]:1").ip()),
            counted(from("[2001:db8::1]:1").ip())
        );
    }

    #[tokio::test]
    async fn the_caps_can_be_changed() {
        let layer = ConnectionCapLayer::new(&Config { total: 0, per_peer: 0 });
        let mut server = layer.layer(service_fn(serve));
        let _held = server.call(from("10.0.0.1:1"));
        layer.handle().set(&Config { total: 1, per_peer: 1 });
        assert!(server.call(from("10.0.0.2:1")).await.is_err());
        assert_eq!(Config { total: 1, per_peer: 2 }.validate()[0].field, "per_peer");
    }
}
