//! One accepted connection: its bytes, who is at the other end, and how it fails.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
};

use hyper::upgrade::Upgraded;
use hyper_util::{rt::TokioIo, server::conn::auto::upgrade};
use postern_layers::{
    connection_cap::PeerAddr,
    handshake_deadline::{Handshake, HoldHandshake},
    refuse::{FromRefusal, Refusal},
    tls::{HandshakeFailed, Secure},
};
use sha2::{Digest as _, Sha256};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::server::TlsStream;
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Where a request came in. In the extensions of every request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectInfo {
    /// The other end of the connection.
    pub peer: SocketAddr,
    /// Our end.
    pub local: SocketAddr,
    /// The client certificate, verified against the client CA; `None` without one.
    pub tls: Option<PeerCertificate>,
    secured: bool,
}

/// What the names in a client certificate say. The chain has been verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// The common name; empty if there is none.
    pub common_name: String,
    /// The organizational units, in order.
    pub organizational_units: Vec<String>,
    /// SHA-256 of the certificate, for logs and audit.
    pub sha256: [u8; 32],
}

/// One accepted connection on the connection plane.
#[derive(Debug)]
pub struct Connection {
    io: Io,
    info: ConnectInfo,
    handshake: Handshake,
}

/// The bytes of a connection.
#[derive(Debug)]
pub enum Io {
    /// As they come from the socket.
    Plain(TcpStream),
    /// Decrypted.
    Tls(Box<TlsStream<Io>>),
}

/// Why a connection was not served to its end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectionError {
    /// A layer refused it.
    #[error("the connection was refused")]
    Refused(#[source] Refusal),
    /// TLS did not come about.
    #[error("the tls handshake failed")]
    Handshake(#[source] io::Error),
    /// The peer broke HTTP, or went away.
    #[error("the connection broke")]
    Http(#[source] Box<dyn std::error::Error + Send + Sync>),
}

// === impl ConnectInfo ===

impl ConnectInfo {
    /// A plaintext connection.
    #[must_use]
    pub const fn plain(peer: SocketAddr, local: SocketAddr) -> Self {
        Self { peer, local, tls: None, secured: false }
    }

    /// The same connection inside TLS, with the certificate that the peer showed.
    #[must_use]
    pub fn secured(self, certificate: Option<PeerCertificate>) -> Self {
        Self { tls: certificate, secured: true, ..self }
    }

    /// Whether the connection is encrypted, with or without client certificate.
    #[must_use]
    pub const fn is_tls(&self) -> bool {
        self.secured
    }
}

// === impl PeerCertificate ===

impl PeerCertificate {
    /// Reads the names of a verified certificate; `None` if `der` is no certificate.
    #[must_use]
    pub fn from_der(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let subject = certificate.subject();
        let text = |attribute: &x509_parser::x509::AttributeTypeAndValue<'_>| {
            attribute.as_str().ok().map(str::to_owned)
        };
        Some(Self {
            common_name: subject.iter_common_name().next().and_then(text).unwrap_or_default(),
            organizational_units: subject.iter_organizational_unit().filter_map(text).collect(),
            sha256: Sha256::digest(der).into(),
        })
    }
}

// === impl Connection ===

impl Connection {
    pub(super) fn new(socket: TcpStream, info: ConnectInfo) -> Self {
        Self { io: Io::Plain(socket), info, handshake: Handshake::default() }
    }

    /// Where it comes from.
    #[must_use]
    pub const fn info(&self) -> &ConnectInfo {
        &self.info
    }

    pub(super) fn into_parts(self) -> (Io, ConnectInfo, Handshake) {
        (self.io, self.info, self.handshake)
    }
}

impl PeerAddr for Connection {
    fn peer_addr(&self) -> Option<IpAddr> {
        Some(self.info.peer.ip())
    }
}

impl HoldHandshake for Connection {
    fn hold_handshake(&mut self, handshake: Handshake) {
        self.handshake = handshake;
    }
}

impl Secure for Connection {
    type Io = Io;
    type Rest = (ConnectInfo, Handshake);
    type Secured = Self;

    fn split(self) -> (Io, Self::Rest) {
        (self.io, (self.info, self.handshake))
    }

    fn join(stream: TlsStream<Io>, (info, handshake): Self::Rest) -> Self {
        let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let certificate = certificate.and_then(|der| PeerCertificate::from_der(der));
        Self { io: Io::Tls(Box::new(stream)), info: info.secured(certificate), handshake }
    }
}

// === impl Io ===

impl Io {
    /// The socket below.
    fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(stream) => stream.get_ref().0.socket(),
        }
    }
}

/// Ends an upgraded HTTP/1.1 connection with a TCP reset, so that its peer cannot take it for an end of file. Any
/// other connection is just dropped, which for HTTP/2 resets the stream.
pub fn reset(upgraded: Upgraded) {
    let Ok(parts) = upgrade::downcast::<TokioIo<Io>>(upgraded) else { return };
    let io = parts.io.into_inner();
    if let Err(error) = io.socket().set_zero_linger() {
        tracing::debug!(%error, "a connection could not be reset and is closed instead");
    }
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(socket) => socket.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }
}

// === impl ConnectionError ===

impl ConnectionError {
    /// Strangers cause these; each is one debug line, and a counter that operators can watch.
    pub(super) fn log(&self, peer: SocketAddr) {
        let kind = match self {
            Self::Refused(refusal) => refusal.layer(),
            Self::Handshake(_) => "tls_handshake",
            Self::Http(_) => "http",
        };
        metrics::counter!("connection_failures_total", "kind" => kind).increment(1);
        let cause = std::error::Error::source(self).map(ToString::to_string).unwrap_or_default();
        tracing::debug!(%peer, kind, cause, "{self}");
    }
}

impl FromRefusal for ConnectionError {
    fn from_refusal(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<HandshakeFailed> for ConnectionError {
    fn from(failed: HandshakeFailed) -> Self {
        Self::Handshake(failed.source)
    }
}
