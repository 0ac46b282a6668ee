//! Terminates TLS with a configuration that can be swapped while connections are open.
//!
//! **Effect.** Makes the TLS handshake of an accepted connection and hands the decrypted one on.
//!
//! **Shape.** Connection plane: `Service<C>` in, `Service<C::Secured>` inside, by [`Secure`]: a connection gives its
//! stream out and is put together again around the TLS stream, which knows the peer's certificates.
//!
//! **Limits.** None of its own; the time of the handshake is bounded by `handshake_deadline` in front.
//!
//! **Refuses** nothing. A failed handshake is a transport error: [`HandshakeFailed`], turned into the inner
//! service's error by `From`.
//!
//! **Reload.** [`Handle::set`] is atomic. Connections keep the configuration that they began with. A new
//! configuration has its own session cache and ticket keys, so a session that was begun under an older one cannot
//! be resumed past a changed client CA.
//!
//! **Source.** RFC 8446; resumption in its section 2.2.
//!
//! **Cost.** The handshake; one atomic load beside it.

use std::{
    fmt,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use arc_swap::ArcSwap;
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{Accept, TlsAcceptor, rustls::ServerConfig, server::TlsStream};
use tower_layer::Layer;
use tower_service::Service;

/// A connection that can be taken apart for a TLS handshake and put together again.
pub trait Secure {
    /// The bytes.
    type Io: AsyncRead + AsyncWrite + Unpin;
    /// All else: addresses, permits, handshakes.
    type Rest;
    /// The connection with its bytes decrypted.
    type Secured;

    /// Takes the connection apart.
    fn split(self) -> (Self::Io, Self::Rest);

    /// Puts it together around the TLS stream.
    fn join(stream: TlsStream<Self::Io>, rest: Self::Rest) -> Self::Secured;
}

/// The peer did not complete the TLS handshake.
#[derive(Debug)]
#[non_exhaustive]
pub struct HandshakeFailed {
    /// What rustls or the socket said.
    pub source: io::Error,
}

/// Applies [`Tls`].
#[derive(Clone, Debug)]
pub struct TlsLayer {
    config: Arc<ArcSwap<ServerConfig>>,
}

/// Serves a connection through the inner service once its TLS handshake is made.
#[derive(Clone, Debug)]
pub struct Tls<S> {
    inner: S,
    config: Arc<ArcSwap<ServerConfig>>,
}

/// Swaps the configuration of a layer that is in use.
#[derive(Clone, Debug)]
pub struct Handle {
    config: Arc<ArcSwap<ServerConfig>>,
}

pin_project! {
    /// The TLS handshake and then the life of one connection.
    pub struct ResponseFuture<S, C>
    where
        C: Secure,
        S: Service<C::Secured>,
    {
        #[pin]
        state: State<S, Accept<C::Io>, S::Future, C::Rest>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S, A, F, X> {
        Handshake { #[pin] accept: A, waiting: Option<(S, X)> },
        Serving { #[pin] future: F },
    }
}

// === impl Secure ===

impl<T: AsyncRead + AsyncWrite + Unpin> Secure for (T, SocketAddr) {
    type Io = T;
    type Rest = SocketAddr;
    type Secured = (TlsStream<T>, SocketAddr);

    fn split(self) -> (T, SocketAddr) {
        self
    }

    fn join(stream: TlsStream<T>, rest: SocketAddr) -> Self::Secured {
        (stream, rest)
    }
}

// === impl HandshakeFailed ===

impl fmt::Display for HandshakeFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the tls handshake failed")
    }
}

impl std::error::Error for HandshakeFailed {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.source)
    }
}

impl From<HandshakeFailed> for io::Error {
    fn from(failed: HandshakeFailed) -> Self {
        Self::new(failed.source.kind(), failed)
    }
}

// === impl TlsLayer ===

impl TlsLayer {
    /// Terminates TLS by `config`, until another one is set.
    #[must_use]
    pub fn new(config: Arc<ServerConfig>) -> Self {
        Self { config: Arc::new(ArcSwap::new(config)) }
    }

    /// A handle on the configuration of everything this layer is applied to.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle { config: Arc::clone(&self.config) }
    }
}

impl<S> Layer<S> for TlsLayer {
    type Service = Tls<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Tls { inner, config: Arc::clone(&self.config) }
    }
}

// === impl Handle ===

impl Handle {
    /// Uses `config` from the next connection on. Build it whole first: a faulty file should not get here.
    pub fn set(&self, config: Arc<ServerConfig>) {
        self.config.store(config);
    }

    /// The configuration that the next connection gets.
    #[must_use]
    pub fn current(&self) -> Arc<ServerConfig> {
        self.config.load_full()
    }
}

// === impl Tls ===

impl<S, C> Service<C> for Tls<S>
where
    C: Secure,
    S: Service<C::Secured, Error: From<HandshakeFailed>> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S, C>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, connection: C) -> Self::Future {
        let (io, rest) = connection.split();
        let accept = TlsAcceptor::from(self.config.load_full()).accept(io);
        let fresh = self.inner.clone();
        // The service that was made ready goes with the connection.
        let ready = std::mem::replace(&mut self.inner, fresh);
        ResponseFuture { state: State::Handshake { accept, waiting: Some((ready, rest)) } }
    }
}

// === impl ResponseFuture ===

impl<S, C> Future for ResponseFuture<S, C>
where
    C: Secure,
    S: Service<C::Secured, Error: From<HandshakeFailed>>,
{
    type Output = Result<S::Response, S::Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            match this.state.as_mut().project() {
                StateProj::Handshake { accept, waiting } => {
                    let stream =
                        ready!(accept.poll(cx)).map_err(|source| HandshakeFailed { source })?;
                    let (mut service, rest) =
                        waiting.take().expect("taken only on the way out of this state");
                    let future = service.call(C::join(stream, rest));
                    this.state.set(State::Serving { future });
                }
                StateProj::Serving { future } => return future.poll(cx),
            }
        }
    }
}

impl<S, C> fmt::Debug for ResponseFuture<S, C>
where
    C: Secure,
    S: Service<C::Secured>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("tls::ResponseFuture").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio_rustls::{
        TlsConnector,
        rustls::{ClientConfig, RootCertStore},
    };
    use tower::{ServiceExt, service_fn};

    use super::*;

    type Decrypted = (TlsStream<DuplexStream>, SocketAddr);

    async fn serve((mut stream, _): Decrypted) -> io::Result<()> {
        stream.write_all(b"hello").await?;
        stream.shutdown().await
    }

    fn keyed() -> (Arc<ServerConfig>, CertificateDer<'static>) {
        let made = rcgen::generate_simple_self_signed(["gateway.test".to_owned()]).unwrap();
        let cert = made.cert.der().clone();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder().with_no_client_auth();
        (Arc::new(config.with_single_cert(vec![cert.clone()], key).unwrap()), cert)
    }

    async fn connect(
        layer: &TlsLayer,
        trusted: &CertificateDer<'static>,
    ) -> (io::Result<String>, io::Result<()>) {
        let (near, far) = duplex(4096);
        let served = layer.layer(service_fn(serve)).oneshot((far, "10.0.0.1:1".parse().unwrap()));
        let mut roots = RootCertStore::empty();
        roots.add(trusted.clone()).unwrap();
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let client = async {
            let name = ServerName::try_from("gateway.test").unwrap();
            let mut stream = TlsConnector::from(Arc::new(config)).connect(name, near).await?;
            let mut text = String::new();
            stream.read_to_string(&mut text).await?;
            Ok(text)
        };
        tokio::join!(client, served)
    }

    #[tokio::test]
    async fn the_inner_service_sees_the_decrypted_stream() {
        let (config, cert) = keyed();
        let (read, served) = connect(&TlsLayer::new(config), &cert).await;
        assert_eq!(read.unwrap(), "hello");
        served.unwrap();
    }

    #[tokio::test]
    async fn the_next_connection_gets_the_configuration_that_was_set() {
        let (old, old_cert) = keyed();
        let (new, new_cert) = keyed();
        let layer = TlsLayer::new(old);
        assert!(
            connect(&layer, &new_cert).await.0.is_err(),
            "the certificate is still the old one"
        );
        layer.handle().set(Arc::clone(&new));
        assert!(Arc::ptr_eq(&layer.handle().current(), &new));
        assert_eq!(connect(&layer, &new_cert).await.0.unwrap(), "hello");
        assert!(connect(&layer, &old_cert).await.0.is_err());
    }

    #[tokio::test]
    async fn a_peer_that_speaks_no_tls_is_a_transport_error() {
        let (config, _) = keyed();
        let (mut near, far) = duplex(4096);
        near.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let served = TlsLayer::new(config).layer(service_fn(serve));
        let error =
            served.oneshot((far, "10.0.0.1:1".parse().unwrap())).await.expect_err("that is no TLS");
        assert!(error.get_ref().is_some_and(|inner| inner.is::<HandshakeFailed>()), "{error:?}");
    }
}
