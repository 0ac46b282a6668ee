//! How a gateway is reached.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use http::Uri;
use postern_layers::units::parse_size;
use postern_relay::transport::{self, Connection, H2Settings, SharedToken, Target};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::error::BenchError;

/// HTTP/2 settings of our own ends; what is absent is as the CLI and the supervisor have it.
#[derive(Args, Clone, Debug, Default)]
pub struct H2Args {
    /// Bytes a stream may have in flight towards us, such as 2MiB.
    #[arg(long, value_name = "SIZE", value_parser = size, global = true)]
    pub stream_window: Option<u32>,
    /// Bytes a connection may have in flight towards us.
    #[arg(long, value_name = "SIZE", value_parser = size, global = true)]
    pub connection_window: Option<u32>,
    /// Largest HTTP/2 frame we take.
    #[arg(long, value_name = "SIZE", value_parser = size, global = true)]
    pub max_frame: Option<u32>,
    /// Bytes buffered per stream before its body has to wait.
    #[arg(long, value_name = "SIZE", value_parser = size, global = true)]
    pub send_buffer: Option<u32>,
}

fn size(text: &str) -> Result<u32, String> {
    let bytes = parse_size(text).map_err(|error| error.to_string())?;
    u32::try_from(bytes).map_err(|_| format!("{text} is more than 4 GiB"))
}

impl H2Args {
    /// The settings.
    #[must_use]
    pub fn settings(&self) -> H2Settings {
        let mut settings = H2Settings::default();
        let replace = |slot: &mut u32, value: Option<u32>| *slot = value.unwrap_or(*slot);
        replace(&mut settings.stream_window, self.stream_window);
        replace(&mut settings.connection_window, self.connection_window);
        replace(&mut settings.max_frame, self.max_frame);
        if let Some(bytes) = self.send_buffer {
            settings.max_send_buffer = bytes as usize;
        }
        settings
    }

    /// The same as flags, to hand on to another process.
    #[must_use]
    pub fn flags(&self) -> Vec<String> {
        let named = [
            ("--stream-window", self.stream_window),
            ("--connection-window", self.connection_window),
            ("--max-frame", self.max_frame),
            ("--send-buffer", self.send_buffer),
        ];
        let given = named.into_iter().filter_map(|(name, value)| Some((name, value?)));
        given.flat_map(|(name, value)| [name.to_owned(), format!("{value}B")]).collect()
    }
}

/// A gateway's address and certificates, as flags.
#[derive(Args, Clone, Debug)]
pub struct AccessArgs {
    /// URL of the gateway.
    #[arg(long, value_name = "URL")]
    pub endpoint: Uri,
    /// Folder with ca.crt, tls.crt and tls.key, for https.
    #[arg(long, value_name = "DIR")]
    pub certificates: Option<PathBuf>,
    /// HTTP/2 settings.
    #[command(flatten)]
    pub h2: H2Args,
}

impl AccessArgs {
    /// Reads the certificates.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn access(&self) -> Result<Access, BenchError> {
        let tls = self.certificates.as_deref().map(client_tls).transpose()?;
        Ok(Access { uri: self.endpoint.clone(), tls, h2: self.h2.settings() })
    }
}

/// A gateway's address, certificates and HTTP/2 settings.
#[derive(Clone, Debug)]
pub struct Access {
    /// `http://…` or `https://…`.
    pub uri: Uri,
    /// Roots and our own certificate.
    pub tls: Option<Arc<ClientConfig>>,
    /// HTTP/2 settings of our end.
    pub h2: H2Settings,
}

impl Access {
    /// Makes one connection, with `token` on every request.
    ///
    /// # Errors
    /// When the gateway cannot be reached, or the token cannot stand in a header.
    pub async fn connect(&self, token: Option<&str>) -> Result<Connection, BenchError> {
        let mut target = Target::new(self.uri.clone());
        target.tls.clone_from(&self.tls);
        target.h2 = self.h2.clone();
        if let Some(token) = token {
            let token = SharedToken::new(token)
                .map_err(|error| BenchError::unexpected("the token", error.to_string()))?;
            target.token = Some(Arc::new(token));
        }
        Ok(transport::connect(&target).await?)
    }
}

/// The client's side of mutual TLS from a folder with `ca.crt`, `tls.crt` and `tls.key`.
///
/// # Errors
/// When a file cannot be read or does not fit.
pub fn client_tls(folder: &Path) -> Result<Arc<ClientConfig>, BenchError> {
    let bad = |path: &Path, why: String| BenchError::Credential { path: path.to_owned(), why };
    let mut roots = RootCertStore::empty();
    let ca = folder.join("ca.crt");
    for certificate in certificates(&ca)? {
        roots.add(certificate).map_err(|error| bad(&ca, error.to_string()))?;
    }
    let chain = certificates(&folder.join("tls.crt"))?;
    let key_path = folder.join("tls.key");
    let key = private_key(&key_path)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_root_certificates(roots).with_client_auth_cert(chain, key))
        .map_err(|error| bad(&key_path, error.to_string()))?;
    Ok(Arc::new(config))
}

/// The certificates of a PEM file.
///
/// # Errors
/// When it cannot be read or holds something else.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, BenchError> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| BenchError::Credential { path: path.to_owned(), why: error.to_string() })
}

/// The private key of a PEM file.
///
/// # Errors
/// When it cannot be read or holds something else.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, BenchError> {
    PrivateKeyDer::from_pem_file(path)
        .map_err(|error| BenchError::Credential { path: path.to_owned(), why: error.to_string() })
}
