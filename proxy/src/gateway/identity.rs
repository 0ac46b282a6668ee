//! Keys and certificates of a gateway: made at the first start, found again at the next.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use postern_identity::{LocalAuthority, SandboxTokenIssuer, SigningKey, token};
use rustls::ServerConfig;

use super::StartError;
use crate::{
    config::{GatewaySettings, TlsSettings},
    listen::tls::{Material, TlsError},
};

/// Makes the state directory, for its owner only.
pub(super) fn state_dir(path: &Path) -> Result<(), StartError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| StartError::StateDir { path: path.to_owned(), source })
}

/// The issuer of sandbox tokens.
pub(super) fn issuer(settings: &GatewaySettings) -> Result<SandboxTokenIssuer, StartError> {
    let tokens = &settings.tokens;
    let key = match &tokens.signing_key {
        Some(path) => SigningKey::load(path, tokens.kid.as_deref())?,
        None => token::open_or_create_key(&settings.state_dir.join("jwt"))?,
    };
    Ok(SandboxTokenIssuer::new(key, &tokens.gateway_id, tokens.ttl))
}

/// Where the listener's TLS comes from, and what sandboxes need of it.
#[derive(Debug)]
pub(crate) struct TlsMaterial {
    material: Material,
    local: Option<Local>,
}

/// An authority of the gateway's own.
#[derive(Debug)]
struct Local {
    authority: LocalAuthority,
    names: Vec<String>,
    sandbox: (PathBuf, PathBuf),
}

/// What the transport of a sandbox is made of.
#[derive(Clone, Debug)]
pub(super) struct GuestTls {
    pub(super) ca: PathBuf,
    pub(super) certificate: PathBuf,
    pub(super) key: PathBuf,
}

pub(super) fn tls(
    settings: &GatewaySettings,
    now: SystemTime,
) -> Result<Option<TlsMaterial>, StartError> {
    match &settings.tls {
        None => Ok(None),
        Some(TlsSettings::Files { certificate, key, client_ca, require_client_auth }) => {
            let material = Material {
                certificate: certificate.clone(),
                key: key.clone(),
                client_ca: client_ca.clone(),
                require_client_auth: *require_client_auth,
            };
            Ok(Some(TlsMaterial { material, local: None }))
        }
        Some(TlsSettings::Local { require_client_auth }) => {
            let authority = LocalAuthority::open_or_create(&settings.state_dir.join("pki"), now)?;
            let names = names(settings.bind_address, &settings.server_sans);
            let server = authority.server(&names, now)?;
            let sandbox = authority.sandbox(now)?;
            let material = Material {
                certificate: server.certificate,
                key: server.key,
                client_ca: Some(authority.certificate_path()),
                require_client_auth: *require_client_auth,
            };
            let sandbox = (sandbox.certificate, sandbox.key);
            let local = Local { authority, names, sandbox };
            Ok(Some(TlsMaterial { material, local: Some(local) }))
        }
    }
}

/// What the certificate is for: the loopback names, the address that is listened on, and what the operator adds.
fn names(bind: SocketAddr, more: &[String]) -> Vec<String> {
    let mut names: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).to_vec();
    if !bind.ip().is_unspecified() {
        names.push(bind.ip().to_string());
    }
    names.extend(more.iter().cloned());
    names.sort_unstable();
    names.dedup();
    names
}

impl TlsMaterial {
    /// The files that a listener's TLS comes from.
    pub(crate) fn files(&self) -> Vec<PathBuf> {
        let Material { certificate, key, client_ca, .. } = &self.material;
        [certificate, key].into_iter().chain(client_ca).cloned().collect()
    }

    /// Reads the files.
    pub(crate) fn load(&self) -> Result<Arc<ServerConfig>, TlsError> {
        self.material.load()
    }

    /// Makes certificates of the gateway's own anew that are near their end; says whether the listener's was.
    pub(crate) fn renew(&self, now: SystemTime) -> Result<bool, StartError> {
        let Some(local) = &self.local else { return Ok(false) };
        local.authority.sandbox(now)?;
        Ok(local.authority.server(&local.names, now)?.made)
    }

    /// What sandboxes are given, if the gateway has an authority of its own.
    pub(super) fn guest(&self) -> Option<GuestTls> {
        let local = self.local.as_ref()?;
        let (certificate, key) = local.sandbox.clone();
        Some(GuestTls { ca: local.authority.certificate_path(), certificate, key })
    }
}

/// The address by which a process of this machine reaches a listener.
pub(super) fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(std::net::Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}
