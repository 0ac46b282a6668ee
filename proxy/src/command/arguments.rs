//! The grammar of `postern` as a whole: the user's commands and the gateway's.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Config, Fault, SourceFile, Sources};
use crate::reload::ConfigSource;

/// A layered gateway for AI-agent sandboxes, and the command to use one.
#[derive(Parser, Debug)]
#[command(name = "postern", version, propagate_version = true)]
pub struct Arguments {
    /// Which gateway, which workspace.
    #[command(flatten)]
    pub globals: postern_cli::args::Globals,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run a gateway with everything embedded, and register it for this user.
    Up(Box<super::up::UpArgs>),
    /// Run the gateway by its configuration; or, with a subcommand, manage registrations.
    #[command(args_conflicts_with_subcommands = true)]
    Gateway {
        /// Flags of the server.
        #[command(flatten)]
        server: Box<ServerArgs>,
        /// Registrations of gateways.
        #[command(subcommand)]
        command: Option<postern_cli::args::GatewayCommand>,
    },
    /// From nothing to a command in a sandbox, in a gateway that lives as long as this command.
    Demo,
    /// Every fault of a configuration at once, with line and advice.
    Check {
        /// Configuration; that of the user when absent.
        file: Option<PathBuf>,
    },
    /// The layers of each plane as a request meets them, with their values and a running gateway's counters.
    Layers(super::layers::LayersArgs),
    /// Make a certificate authority and certificates for a gateway, or renew them.
    Certs(super::certs::CertsArgs),
    /// Run as the supervisor of a sandbox; drivers start it.
    #[command(hide = true, disable_help_flag = true, disable_version_flag = true)]
    Supervise {
        /// Arguments of `postern-supervisor`.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
    /// Commands of the user.
    #[command(flatten)]
    User(postern_cli::args::Command),
}

/// Flags of the server. Each is also a key of the file, and an environment variable.
#[derive(Args, Clone, Debug, Default)]
pub struct ServerArgs {
    /// Configuration; `openshell/gateway.toml` in the user's configuration folder when absent.
    #[arg(long, value_name = "FILE", env = "OPENSHELL_GATEWAY_CONFIG")]
    pub config: Option<PathBuf>,
    /// Address to serve on.
    #[arg(long, value_name = "ADDRESS")]
    bind_address: Option<String>,
    /// Port to serve on; 0 takes a free one.
    #[arg(long)]
    port: Option<u16>,
    /// Port for health and readiness.
    #[arg(long)]
    health_port: Option<u16>,
    /// Port for Prometheus metrics.
    #[arg(long)]
    metrics_port: Option<u16>,
    /// Loopback port that shows the layers to operators; 0 is none.
    #[arg(long)]
    admin_port: Option<u16>,
    /// Log filter, such as `info` or `info,postern=debug`.
    #[arg(long)]
    log_level: Option<String>,
    /// `text` or `json`.
    #[arg(long)]
    log_format: Option<String>,
    /// Folder of everything the gateway keeps.
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Database, such as `sqlite:///var/lib/postern/gateway.db`.
    #[arg(long, value_name = "URL")]
    db_url: Option<String>,
    /// Certificate chain, PEM.
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Private key, PEM.
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Authority of client certificates, PEM.
    #[arg(long, value_name = "FILE")]
    tls_client_ca: Option<PathBuf>,
    /// Serve plaintext.
    #[arg(long)]
    disable_tls: bool,
    /// Name or address for the gateway's own certificate; may be repeated.
    #[arg(long = "server-san", value_name = "NAME")]
    server_sans: Vec<String>,
    /// Users by client certificate.
    #[arg(long)]
    enable_mtls_auth: bool,
    /// Compute driver.
    #[arg(long, alias = "driver", value_name = "NAME")]
    drivers: Option<String>,
    /// Socket of an external driver.
    #[arg(long, value_name = "PATH")]
    compute_driver_socket: Option<PathBuf>,
    /// gRPC calls per window, for all callers together.
    #[arg(long)]
    grpc_rate_limit_requests: Option<u64>,
    /// Window of the rate limit.
    #[arg(long)]
    grpc_rate_limit_window_seconds: Option<u64>,
    /// Whether the layers are shown on a free loopback port when nothing says where.
    #[arg(skip)]
    admin_by_default: bool,
}

impl ServerArgs {
    /// Only a file; everything else as it stands there.
    #[must_use]
    pub fn from_file(config: Option<PathBuf>) -> Self {
        Self { config, ..Self::default() }
    }

    /// A folder for what the gateway keeps, unless one was named.
    pub fn default_state_dir(&mut self, path: PathBuf) {
        self.state_dir.get_or_insert(path);
    }

    /// The folder that a flag named.
    #[must_use]
    pub fn state_dir(&self) -> Option<&std::path::Path> {
        self.state_dir.as_deref()
    }

    /// The layers are shown on a free loopback port, unless something says otherwise.
    pub fn admin_by_default(&mut self) {
        self.admin_by_default = true;
    }

    /// The file that [`load`](Self::load) reads, if there is one.
    #[must_use]
    pub fn file(&self) -> Option<PathBuf> {
        match &self.config {
            Some(path) => Some(path.clone()),
            None => config::default_path(&environment()).filter(|path| path.exists()),
        }
    }

    /// As name and value, the way [`Sources`] has them.
    #[must_use]
    pub fn flags(&self) -> Vec<(String, String)> {
        fn shown<T: ToString>(value: Option<&T>) -> Option<String> {
            value.map(ToString::to_string)
        }
        fn path(value: Option<&PathBuf>) -> Option<String> {
            value.map(|path| path.to_string_lossy().into_owned())
        }
        let single = [
            ("--bind-address", self.bind_address.clone()),
            ("--port", shown(self.port.as_ref())),
            ("--health-port", shown(self.health_port.as_ref())),
            ("--metrics-port", shown(self.metrics_port.as_ref())),
            ("--admin-port", shown(self.admin_port.as_ref())),
            ("--log-level", self.log_level.clone()),
            ("--log-format", self.log_format.clone()),
            ("--state-dir", path(self.state_dir.as_ref())),
            ("--db-url", self.db_url.clone()),
            ("--tls-cert", path(self.tls_cert.as_ref())),
            ("--tls-key", path(self.tls_key.as_ref())),
            ("--tls-client-ca", path(self.tls_client_ca.as_ref())),
            ("--disable-tls", self.disable_tls.then(|| "true".into())),
            ("--enable-mtls-auth", self.enable_mtls_auth.then(|| "true".into())),
            ("--drivers", self.drivers.clone()),
            ("--compute-driver-socket", path(self.compute_driver_socket.as_ref())),
            ("--grpc-rate-limit-requests", shown(self.grpc_rate_limit_requests.as_ref())),
            (
                "--grpc-rate-limit-window-seconds",
                shown(self.grpc_rate_limit_window_seconds.as_ref()),
            ),
        ];
        single
            .into_iter()
            .filter_map(|(flag, value)| Some((flag.to_owned(), value?)))
            .chain(self.server_sans.iter().map(|name| ("--server-san".to_owned(), name.clone())))
            .collect()
    }

    /// Reads the configuration that these flags, the environment and the file make.
    ///
    /// # Errors
    /// All faults, or why the file cannot be read.
    pub fn load(&self) -> Result<Config, LoadError> {
        let environment = environment();
        let file = self.file().map(|path| read(&path)).transpose()?;
        let sources = Sources { file, environment: for_config(environment), flags: self.flags() };
        let mut config = Config::load(&sources).map_err(|faults| LoadError::Faults { faults })?;
        if self.admin_by_default && self.admin_port.is_none() {
            let free = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
            config.gateway.admin_bind_address.get_or_insert(free);
        }
        Ok(config)
    }
}

impl ConfigSource for ServerArgs {
    fn read(&self) -> Result<Config, Vec<String>> {
        self.load().map_err(|error| match error {
            LoadError::Faults { faults } => faults.iter().map(ToString::to_string).collect(),
            other => vec![super::chain(&other)],
        })
    }

    fn files(&self) -> Vec<PathBuf> {
        self.file().into_iter().collect()
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The configuration has faults.
    #[error("{}", config::render_faults(faults))]
    Faults {
        /// All of them.
        faults: Vec<Fault>,
    },
}

fn read(path: &std::path::Path) -> Result<SourceFile, LoadError> {
    let text = std::fs::read_to_string(path)
        .map_err(|source| LoadError::File { path: path.to_owned(), source })?;
    Ok(SourceFile { path: path.to_owned(), text })
}

/// The process's environment; what is not text cannot be a value of ours.
fn environment() -> BTreeMap<String, String> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// The home of root is closed to the users that sandboxes run as, so root's gateways keep their
/// state in `/var/lib/postern`.
fn for_config(mut environment: BTreeMap<String, String>) -> BTreeMap<String, String> {
    if nix::unistd::geteuid().is_root() {
        environment.remove("HOME");
    }
    environment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_consistent() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
    }

    #[test]
    fn gateway_serves_without_and_registers_with_a_subcommand() {
        let served = Arguments::parse_from(["postern", "gateway", "--port", "0"]);
        let Command::Gateway { server, command: None } = served.command else { panic!("serves") };
        assert_eq!(server.flags(), [("--port".to_owned(), "0".to_owned())]);
        let listed = Arguments::parse_from(["postern", "gateway", "list"]);
        assert!(matches!(listed.command, Command::Gateway { command: Some(_), .. }));
    }

    #[test]
    fn everything_after_two_dashes_belongs_to_the_sandbox() {
        let parsed = Arguments::parse_from([
            "postern", "sandbox", "exec", "-n", "box", "--", "ls", "--port", "-n",
        ]);
        let Command::User(postern_cli::args::Command::Sandbox(
            postern_cli::args::SandboxCommand::Exec(exec),
        )) = parsed.command
        else {
            panic!("is exec")
        };
        assert_eq!(exec.command, ["ls", "--port", "-n"]);
    }
}
