//! The connection to the gateway that everything in the supervisor shares.
//!
//! Only the session connects; logs, reports, token renewal and relays use the connection that it
//! has, and wait for the next one when it has none.

use std::io;
use std::sync::Arc;

use postern_proto::v1::open_shell_client::OpenShellClient;
use postern_relay::transport::{Connection, Target};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::sync::watch;

use crate::settings::{GatewaySettings, TlsFiles};
use crate::token::Keeper;

/// Why the gateway cannot even be tried.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GatewayError {
    /// A certificate or key file cannot be used.
    #[error("the {what} {path} cannot be used")]
    Certificate {
        /// Which of the files.
        what: &'static str,
        /// Where it is.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The certificates do not fit together.
    #[error("the certificates for the gateway do not fit together")]
    Tls {
        /// Why not.
        #[source]
        source: rustls::Error,
    },
    /// The name to expect is no name.
    #[error("OPENSHELL_GATEWAY_TLS_SERVER_NAME={name} is no host name")]
    ServerName {
        /// What was given.
        name: String,
    },
}

/// Where to connect, with certificates read and the token attached.
///
/// # Errors
/// [`GatewayError`].
pub fn target(settings: &GatewaySettings, keeper: &Keeper) -> Result<Target, GatewayError> {
    let mut target = Target::new(settings.endpoint.clone());
    target.tls = settings.tls.as_ref().map(tls).transpose()?;
    target.server_name = settings
        .server_name
        .clone()
        .map(|name| {
            ServerName::try_from(name.clone()).map_err(|_| GatewayError::ServerName { name })
        })
        .transpose()?;
    target.token = Some(Arc::new(keeper.shared().clone()));
    Ok(target)
}

fn tls(files: &TlsFiles) -> Result<Arc<rustls::ClientConfig>, GatewayError> {
    let unusable = |what, path: &std::path::Path, source| GatewayError::Certificate {
        what,
        path: path.display().to_string(),
        source,
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates("certificate authority", &files.authority)? {
        roots.add(certificate).map_err(|source| GatewayError::Tls { source })?;
    }
    let chain = certificates("certificate", &files.certificate)?;
    let key = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| unusable("certificate key", &files.key, io::Error::other(error)))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_root_certificates(roots).with_client_auth_cert(chain, key))
        .map_err(|source| GatewayError::Tls { source })?;
    Ok(Arc::new(config))
}

fn certificates(
    what: &'static str,
    path: &std::path::Path,
) -> Result<Vec<CertificateDer<'static>>, GatewayError> {
    CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>).map_err(
        |error| GatewayError::Certificate {
            what,
            path: path.display().to_string(),
            source: io::Error::other(error),
        },
    )
}

/// The gateway as everything but the session sees it. Clones share it.
#[derive(Debug, Clone)]
pub struct Gateway {
    current: watch::Sender<Option<Connection>>,
}

impl Default for Gateway {
    fn default() -> Self {
        Self { current: watch::Sender::new(None) }
    }
}

impl Gateway {
    /// The current connection, as soon as there is one.
    pub async fn connection(&self) -> Connection {
        let mut current = self.current.subscribe();
        loop {
            let usable = |connection: &Option<Connection>| {
                connection.as_ref().is_some_and(|connection| !connection.is_closed())
            };
            match current.wait_for(usable).await.map(|connection| connection.clone()) {
                Ok(Some(connection)) => return connection,
                Ok(None) => {}
                // We hold a sender ourselves, so the channel cannot close while we wait.
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// Makes a connection the one that all use.
    pub fn set(&self, connection: Option<Connection>) {
        self.current.send_replace(connection);
    }

    /// The connection in use if it still works.
    #[must_use]
    pub fn current(&self) -> Option<Connection> {
        let current = self.current.borrow();
        current.clone().filter(|connection| !connection.is_closed())
    }

    /// A client for calls on a connection.
    #[must_use]
    pub fn client(connection: &Connection) -> OpenShellClient<Connection> {
        OpenShellClient::with_origin(connection.clone(), connection.origin())
    }
}
