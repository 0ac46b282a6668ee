//! The configuration of a gateway: one plain value, read once, with all its faults told at once.
//!
//! Sources, strongest first: flags, environment variables, the file, defaults. Keys of OpenShell keep their names;
//! those that Postern does not support are faults that say so. A syntax error ends the reading at once; everything
//! else (unknown keys, wrong types, values out of range, unknown layers, layers in the wrong order, tables that
//! nothing uses) is collected, each with its place and a sentence that says what to write instead.
//!
//! Nothing here touches a file or the clock: [`Sources`] are texts.

mod document;
mod fault;
mod keys;
mod layers;
mod planes;
mod read;
mod table;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use postern_identity::Secret;

pub use self::{
    fault::{Fault, Origin, render_faults},
    layers::{Audit, AuditSink, LayerConfigs, RelayCaps, SSH_CLASS, SessionWait},
    planes::{
        CallLayer, ConnectionLayer, GUARDS, ORDER_RULES, OrderRule, Plane, PlaneLayer, RelayLayer,
        Stack, order_faults,
    },
};

/// The port of a gateway (OpenShell contract).
pub const DEFAULT_PORT: u16 = 17_670;

/// How long a draining gateway waits for live relays by default. Long enough for a shell command, and what
/// Kubernetes gives a pod.
pub const DEFAULT_DRAIN: Duration = Duration::from_secs(30);

/// How often sessions are asked for a sign of life by default (OpenShell contract).
pub const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(15);

/// How long an SSH session token lives by default: a day (OpenShell contract).
pub const DEFAULT_SSH_SESSION_TTL: Duration = Duration::from_secs(86_400);

/// The gateway's id in sandbox tokens by default (OpenShell contract).
pub const DEFAULT_GATEWAY_ID: &str = "openshell";

/// Where the configuration comes from.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The file, if there is one.
    pub file: Option<SourceFile>,
    /// Environment variables; others than those of a key, `HOME` and `XDG_STATE_HOME` are not looked at.
    pub environment: BTreeMap<String, String>,
    /// Flags as name with dashes and value, such as `("--port", "17670")`; a switch has the value `"true"`.
    pub flags: Vec<(String, String)>,
}

/// The text of a file and what to call it.
#[derive(Clone, Debug)]
pub struct SourceFile {
    /// The path, for messages.
    pub path: PathBuf,
    /// The content.
    pub text: String,
}

/// A whole gateway.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// What stands in `[openshell.gateway]`.
    pub gateway: GatewaySettings,
    /// Which layers there are, and in which order.
    pub stack: Stack,
    /// The values of the layers.
    pub layers: LayerConfigs,
    /// What stands in `[openshell.drivers.process]`; paths and endpoints that it leaves empty are filled in at start.
    pub process_driver: postern_driver_process::Config,
}

/// What concerns the gateway as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatewaySettings {
    /// Where gRPC and HTTP are served. Port 0 takes a free one.
    pub bind_address: SocketAddr,
    /// Where health and readiness are served, if anywhere.
    pub health_bind_address: Option<SocketAddr>,
    /// Where Prometheus metrics are served, if anywhere.
    pub metrics_bind_address: Option<SocketAddr>,
    /// Where the layers are shown to operators, if anywhere. Whoever reaches it may look, so it is a loopback address
    /// unless the file also says `unsafe_allow_admin_network`.
    pub admin_bind_address: Option<SocketAddr>,
    /// A filter such as `"info"` or `"info,postern=debug"`.
    pub log_level: String,
    /// How log lines look.
    pub log_format: LogFormat,
    /// Directory of everything the gateway keeps: database, keys, sandboxes of the process driver.
    pub state_dir: PathBuf,
    /// URL of the database. Never from the file, because it may hold a password.
    pub db_url: Secret<String>,
    /// TLS of the listener; `None` serves plaintext.
    pub tls: Option<TlsSettings>,
    /// More names and addresses for the certificate that the gateway makes itself.
    pub server_sans: Vec<String>,
    /// Who counts as a user.
    pub users: UserSettings,
    /// Sandbox tokens.
    pub tokens: TokenSettings,
    /// How long an SSH session token lives; zero: until it is revoked.
    pub ssh_session_ttl: Duration,
    /// How long a draining gateway waits for live relays before it closes them.
    pub drain_timeout: Duration,
    /// How often sessions are asked for a sign of life; three missed ones end a session.
    pub heartbeat_interval: Duration,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Where the listener's certificates come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TlsSettings {
    /// From an authority of the gateway's own, in `<state_dir>/pki`; client certificates are checked against it.
    Local {
        /// Whether a connection without client certificate is refused.
        require_client_auth: bool,
    },
    /// From files.
    Files {
        /// Certificate chain, PEM.
        certificate: PathBuf,
        /// Its private key, PEM.
        key: PathBuf,
        /// What client certificates are checked against, PEM; `None` asks for none.
        client_ca: Option<PathBuf>,
        /// Whether a connection without client certificate is refused.
        require_client_auth: bool,
    },
}

impl TlsSettings {
    /// Whether client certificates are asked for at all.
    #[must_use]
    pub fn has_client_ca(&self) -> bool {
        matches!(self, Self::Local { .. } | Self::Files { client_ca: Some(_), .. })
    }
}

/// Who counts as a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserSettings {
    /// Whether a client certificate with the right OU makes a user.
    pub mtls: bool,
    /// Whether everybody who reaches the socket is the local developer. Explicit, and for loopback addresses unless
    /// the file also says `unsafe_allow_network`.
    pub allow_unauthenticated: bool,
}

/// Sandbox tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenSettings {
    /// PKCS#8 PEM file of the Ed25519 key; `None`: made and kept in `<state_dir>/jwt`.
    pub signing_key: Option<PathBuf>,
    /// File with the key id; `None`: the thumbprint of the key.
    pub kid: Option<PathBuf>,
    /// Who signs, in the claims `iss` and `aud`.
    pub gateway_id: String,
    /// How long a token lives; zero: for ever.
    pub ttl: Duration,
}

impl Config {
    /// Reads a configuration.
    ///
    /// # Errors
    /// All faults; a syntax error alone.
    pub fn load(sources: &Sources) -> Result<Self, Vec<Fault>> {
        read::load(sources)
    }

    /// The configuration of an empty file for a gateway that keeps everything in `state_dir`: TLS with an authority
    /// of its own, users by client certificate, on the loopback address.
    #[must_use]
    pub fn local(state_dir: &Path) -> Self {
        Self {
            gateway: GatewaySettings {
                bind_address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), DEFAULT_PORT),
                health_bind_address: None,
                metrics_bind_address: None,
                admin_bind_address: None,
                log_level: "info".to_owned(),
                log_format: LogFormat::Text,
                state_dir: state_dir.to_owned(),
                db_url: default_db_url(state_dir),
                tls: Some(TlsSettings::Local { require_client_auth: true }),
                server_sans: Vec::new(),
                users: UserSettings { mtls: true, allow_unauthenticated: false },
                tokens: TokenSettings {
                    signing_key: None,
                    kid: None,
                    gateway_id: DEFAULT_GATEWAY_ID.to_owned(),
                    ttl: Duration::ZERO,
                },
                ssh_session_ttl: DEFAULT_SSH_SESSION_TTL,
                drain_timeout: DEFAULT_DRAIN,
                heartbeat_interval: DEFAULT_HEARTBEAT,
            },
            stack: Stack::default(),
            layers: LayerConfigs::default(),
            process_driver: postern_driver_process::Config::default(),
        }
    }

    /// The explicit plaintext mode on a free loopback port, with the database in memory: for tests and demos.
    #[must_use]
    pub fn local_plaintext(state_dir: &Path) -> Self {
        let mut config = Self::local(state_dir);
        config.gateway.bind_address.set_port(0);
        config.gateway.db_url = Secret::new("sqlite::memory:".to_owned());
        config.gateway.tls = None;
        config.gateway.users = UserSettings { mtls: false, allow_unauthenticated: true };
        config.stack.connection.retain(|layer| *layer != ConnectionLayer::Tls);
        config
    }
}

/// Where the configuration file is looked for when nothing names one: `openshell/gateway.toml` in the user's
/// configuration directory.
#[must_use]
pub fn default_path(environment: &BTreeMap<String, String>) -> Option<PathBuf> {
    let directory = xdg(environment, "XDG_CONFIG_HOME", ".config")?;
    Some(directory.join("openshell").join("gateway.toml"))
}

/// Where state is kept when nothing says otherwise: `postern` in the user's state directory, `/var/lib/postern` for
/// a user without home.
fn default_state_dir(environment: &BTreeMap<String, String>) -> PathBuf {
    xdg(environment, "XDG_STATE_HOME", ".local/state")
        .map_or_else(|| PathBuf::from("/var/lib/postern"), |directory| directory.join("postern"))
}

/// XDG Base Directory Specification: a relative or empty path counts as unset.
fn xdg(
    environment: &BTreeMap<String, String>,
    variable: &str,
    below_home: &str,
) -> Option<PathBuf> {
    let absolute =
        |name: &str| environment.get(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute(variable).or_else(|| absolute("HOME").map(|home| home.join(below_home)))
}

fn default_db_url(state_dir: &Path) -> Secret<String> {
    Secret::new(format!("sqlite://{}", state_dir.join("gateway.db").display()))
}
