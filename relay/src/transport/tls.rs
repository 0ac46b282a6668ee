//! The TLS part: always `h2`, always a checked server name.

use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::{Target, TransportError};

const ALPN_H2: &[u8] = b"h2";

pub(super) struct ClientTls {
    config: Arc<ClientConfig>,
    server_name: ServerName<'static>,
}

impl ClientTls {
    pub(super) fn of(target: &Target, host: &str) -> Result<Self, TransportError> {
        let config = target
            .tls
            .as_ref()
            .ok_or_else(|| TransportError::TlsNotConfigured { uri: target.uri.clone() })?;
        let server_name = match &target.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned())
                .map_err(|_| TransportError::InvalidUri { uri: target.uri.clone() })?,
        };
        Ok(Self { config: with_h2(config), server_name })
    }
}

fn with_h2(config: &Arc<ClientConfig>) -> Arc<ClientConfig> {
    if config.alpn_protocols == [ALPN_H2] {
        return Arc::clone(config);
    }
    let mut config = ClientConfig::clone(config);
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    Arc::new(config)
}

pub(super) async fn handshake(
    tls: &ClientTls,
    stream: TcpStream,
    address: &str,
) -> Result<TlsStream<TcpStream>, TransportError> {
    let connector = TlsConnector::from(Arc::clone(&tls.config));
    let stream = connector
        .connect(tls.server_name.clone(), stream)
        .await
        .map_err(|source| TransportError::Tls { address: address.to_owned(), source })?;
    if stream.get_ref().1.alpn_protocol() == Some(ALPN_H2) {
        Ok(stream)
    } else {
        Err(TransportError::NotHttp2 { address: address.to_owned() })
    }
}
