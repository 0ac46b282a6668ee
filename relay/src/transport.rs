//! One HTTP/2 connection to a gateway.
//!
//! The session, every unary call and every relay of a sandbox share it: a relay costs a stream,
//! not a handshake. A [`Connection`] is a `tower` service that generated clients take
//! (`OpenShellClient::with_origin(connection.clone(), connection.origin())`), and opens
//! body-level streams for relays ([`Connection::open_stream`]).
//!
//! *Limits*: see [`H2Settings`]; connecting, TLS and HTTP/2 handshake together take at most
//! [`CONNECT_TIMEOUT`]. One background task per connection, which ends with it.
//!
//! *Source*: OpenShell contract for connect timeout and keepalive (10 s interval, 20 s timeout,
//! also when idle); window sizes from the prototype's measurements.

mod connection;
mod tcp;
mod tls;
mod token;

use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;

pub use connection::{Closed, Connection, ResponseFuture};
pub use token::{InvalidToken, SharedToken, TokenSource};

/// Most time from the first packet to a usable connection (OpenShell contract).
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Path of the call that carries a relay.
pub const RELAY_STREAM_PATH: &str = "/openshell.v1.OpenShell/RelayStream";

/// Path of the call that carries a requester's side of a relay.
pub const FORWARD_TCP_PATH: &str = "/openshell.v1.OpenShell/ForwardTcp";

/// HTTP/2 settings of our end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct H2Settings {
    /// Bytes a stream may have in flight towards us. 2 MiB fills 1 Gbit/s at 16 ms.
    pub stream_window: u32,
    /// Bytes all streams together may have in flight towards us. Many times the stream window: the
    /// unread bytes of stalled relays count against it, and when it is used up nothing moves on
    /// any stream, the session's heartbeats included. It costs memory only while readers stall.
    pub connection_window: u32,
    /// Let hyper grow the windows by measured bandwidth; overrides both sizes when set.
    pub adaptive_window: bool,
    /// Largest frame we take. Room for one socket read with its header: a smaller value would cut
    /// each in two.
    pub max_frame: u32,
    /// Bytes hyper buffers per stream before its body must wait.
    pub max_send_buffer: usize,
    /// Largest header list we take, in bytes.
    pub max_header_list: u32,
    /// Time between pings, also when no stream is open; `None` sends none.
    pub keepalive_interval: Option<Duration>,
    /// A ping unanswered for so long ends the connection.
    pub keepalive_timeout: Duration,
}

impl Default for H2Settings {
    fn default() -> Self {
        Self {
            stream_window: 2 * 1024 * 1024,
            connection_window: 128 * 1024 * 1024,
            adaptive_window: false,
            max_frame: 128 * 1024,
            max_send_buffer: 256 * 1024,
            max_header_list: 16 * 1024,
            keepalive_interval: Some(Duration::from_secs(10)),
            keepalive_timeout: Duration::from_secs(20),
        }
    }
}

/// Where and how to connect.
#[derive(Debug, Clone)]
pub struct Target {
    /// `http://host:port` or `https://host:port`.
    pub uri: Uri,
    /// Roots and client certificate; needed for `https`, unused for `http`.
    pub tls: Option<Arc<ClientConfig>>,
    /// Name to expect in the server's certificate instead of the URI's host.
    pub server_name: Option<ServerName<'static>>,
    /// Most time until the connection is usable.
    pub connect_timeout: Duration,
    /// HTTP/2 settings.
    pub h2: H2Settings,
    /// Where the bearer token of each request comes from.
    pub token: Option<Arc<dyn TokenSource>>,
}

impl Target {
    /// The defaults for `uri`.
    pub fn new(uri: Uri) -> Self {
        Self {
            uri,
            tls: None,
            server_name: None,
            connect_timeout: CONNECT_TIMEOUT,
            h2: H2Settings::default(),
            token: None,
        }
    }
}

/// Why a connection could not be made, or a request on it failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The URI has no scheme or host that we can use.
    #[error("{uri} is no gateway address; write http://host:port or https://host:port")]
    InvalidUri {
        /// The URI.
        uri: Uri,
    },
    /// `https` without a TLS configuration.
    #[error("{uri} needs TLS; give the certificate authority of the gateway")]
    TlsNotConfigured {
        /// The URI.
        uri: Uri,
    },
    /// No TCP connection.
    #[error("cannot connect to {address}")]
    Connect {
        /// Host and port.
        address: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// TLS handshake failed.
    #[error("tls handshake with {address} failed")]
    Tls {
        /// Host and port.
        address: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// The server does not speak HTTP/2.
    #[error("{address} did not agree to speak h2 over tls")]
    NotHttp2 {
        /// Host and port.
        address: String,
    },
    /// Not usable within the time.
    #[error("no connection to {address} within {} ms", after.as_millis())]
    Timeout {
        /// Host and port.
        address: String,
        /// The limit.
        after: Duration,
    },
    /// HTTP/2 handshake failed.
    #[error("http/2 handshake failed")]
    Handshake {
        /// The cause.
        #[source]
        source: hyper::Error,
    },
    /// The connection is gone.
    #[error("connection to the gateway is closed")]
    Closed,
    /// A request failed.
    #[error("request failed")]
    Request {
        /// The cause.
        #[source]
        source: hyper::Error,
    },
}

/// Connects as `target` says.
///
/// # Errors
/// [`TransportError`]; every wait is inside [`Target::connect_timeout`]. Cancel safe.
pub async fn connect(target: &Target) -> Result<Connection, TransportError> {
    let endpoint = tcp::Endpoint::of(target)?;
    let attempt = async {
        let stream = endpoint.dial().await?;
        match &endpoint.tls {
            None => Connection::handshake(stream, &target.uri, target).await,
            Some(tls) => {
                let stream = tls::handshake(tls, stream, &endpoint.address).await?;
                Connection::handshake(stream, &target.uri, target).await
            }
        }
    };
    tokio::time::timeout(target.connect_timeout, attempt).await.map_err(|_| {
        TransportError::Timeout { address: endpoint.address.clone(), after: target.connect_timeout }
    })?
}
