//! The TCP part: address and socket options.

use tokio::net::TcpStream;

use super::tls::ClientTls;
use super::{Target, TransportError};

/// Where to dial, worked out of a URI.
pub(super) struct Endpoint {
    host: String,
    port: u16,
    /// `host:port`, for messages.
    pub(super) address: String,
    pub(super) tls: Option<ClientTls>,
}

impl Endpoint {
    pub(super) fn of(target: &Target) -> Result<Self, TransportError> {
        let invalid = || TransportError::InvalidUri { uri: target.uri.clone() };
        let host = target.uri.host().ok_or_else(invalid)?;
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let (tls, default_port) = match target.uri.scheme_str() {
            Some("http") => (None, 80),
            Some("https") => (Some(ClientTls::of(target, host)?), 443),
            _ => return Err(invalid()),
        };
        let port = target.uri.port_u16().unwrap_or(default_port);
        Ok(Self { host: host.to_owned(), port, address: format!("{host}:{port}"), tls })
    }

    pub(super) async fn dial(&self) -> Result<TcpStream, TransportError> {
        let connected = TcpStream::connect((self.host.as_str(), self.port)).await;
        let stream = connected.and_then(|stream| {
            // Keystrokes must not wait for acknowledgements.
            stream.set_nodelay(true)?;
            Ok(stream)
        });
        stream.map_err(|source| TransportError::Connect { address: self.address.clone(), source })
    }
}
