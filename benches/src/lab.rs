//! A gateway of one's own with sandboxes in it, gone when the value is.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use postern_identity::token::{SandboxTokenIssuer, SigningKey};
use postern_relay::transport::H2Settings;

use crate::access::{Access, client_tls};
use crate::client::Client;
use crate::error::BenchError;
use crate::role::{DriverName, Process};
use crate::supervisor::Identity;

/// Port of the target in sandboxes with a network of their own.
const TARGET_PORT: u16 = 7070;

/// What kind of lab.
#[derive(Clone, Debug)]
pub struct LabConfig {
    /// Mutual TLS, or plaintext.
    pub tls: bool,
    /// Real supervisors, or none but scripted ones.
    pub driver: DriverName,
    /// More lines for the gateway's configuration.
    pub config: String,
}

/// A gateway in a process of its own, and how to reach it.
#[derive(Debug)]
pub struct Lab {
    gateway: Process,
    folder: tempfile::TempDir,
    tls: bool,
    /// How users reach it. Change the HTTP/2 settings at will.
    pub user: Access,
    /// How supervisors reach it.
    pub sandbox: Access,
}

impl Lab {
    /// Starts it.
    ///
    /// # Errors
    /// When the gateway does not come up.
    pub fn start(config: &LabConfig) -> Result<Self, BenchError> {
        let folder = folder()?;
        let file = folder.path().join("gateway.toml");
        fs::write(&file, gateway_toml(config)).map_err(BenchError::io("write gateway.toml"))?;
        let state = folder.path().join("s");
        let driver = match config.driver {
            DriverName::Process => "process",
            DriverName::Fake => "fake",
        };
        let gateway = Process::start(
            "gateway",
            [
                "--state-dir".as_ref(),
                state.as_os_str(),
                "--config".as_ref(),
                file.as_os_str(),
                "--driver".as_ref(),
                driver.as_ref(),
            ],
        )?;
        let uri: http::Uri = gateway
            .address
            .parse()
            .map_err(|_| BenchError::unexpected("the gateway", "named no URL"))?;
        let access = |kind: &str| -> Result<Access, BenchError> {
            let tls = config.tls.then(|| client_tls(&state.join("pki").join(kind))).transpose()?;
            Ok(Access { uri: uri.clone(), tls, h2: H2Settings::default() })
        };
        let (user, sandbox) = (access("client")?, access("sandbox")?);
        Ok(Self { gateway, folder, tls: config.tls, user, sandbox })
    }

    /// Process id of the gateway.
    #[must_use]
    pub fn gateway_pid(&self) -> u32 {
        self.gateway.pid()
    }

    /// Folder with the gateway's certificates: `server.crt`, `server.key`, `client/`, `sandbox/`.
    #[must_use]
    pub fn pki(&self) -> PathBuf {
        self.state().join("pki")
    }

    fn state(&self) -> PathBuf {
        self.folder.path().join("s")
    }

    /// Flags by which a role reaches this gateway as a user (`"client"`) or as a supervisor (`"sandbox"`), perhaps
    /// through another address.
    #[must_use]
    pub fn access_flags(&self, kind: &str, through: Option<&str>) -> Vec<String> {
        let uri = &self.user.uri;
        let authority = through.or_else(|| uri.authority().map(|at| at.as_str())).unwrap_or("");
        let scheme = uri.scheme_str().unwrap_or("http");
        let mut flags = vec!["--endpoint".to_owned(), format!("{scheme}://{authority}")];
        if self.tls {
            let folder = self.pki().join(kind);
            flags.extend(["--certificates".to_owned(), folder.display().to_string()]);
        }
        flags
    }

    /// Makes tokens as this gateway does.
    ///
    /// # Errors
    /// When its key cannot be read.
    pub fn minter(&self) -> Result<Minter, BenchError> {
        let folder = self.state().join("jwt");
        Minter::of(&folder.join("signing.pem"), Some(&folder.join("kid")), "openshell")
    }

    /// Creates a sandbox without supervisor; its phase is up to the sessions that come.
    ///
    /// # Errors
    /// What the gateway says.
    pub async fn bare_sandbox(&self, client: &Client, name: &str) -> Result<Identity, BenchError> {
        let sandbox = client.create(name, &[]).await?;
        let id = sandbox.metadata.unwrap_or_default().id;
        Ok(self.minter()?.identity(&id))
    }

    /// Creates a sandbox with a real supervisor and the target in it, waits until it is ready, and says at which
    /// port the target listens there.
    ///
    /// # Errors
    /// What the gateway says.
    pub async fn real_sandbox(&self, client: &Client, name: &str) -> Result<u16, BenchError> {
        let program = program()?.display().to_string();
        let listen = format!("127.0.0.1:{TARGET_PORT}");
        let command = [&program, "role", "target", "--stay", "--listen", &listen];
        client.create(name, &command.map(str::to_owned)).await?;
        client.wait_ready(name).await?;
        Ok(TARGET_PORT)
    }
}

/// Folders that a sandbox has for itself, so that what the host keeps there cannot be seen in it.
const PRIVATE: [&str; 6] = ["/tmp", "/var/tmp", "/home", "/root", "/run", "/dev"];

/// This program, if sandboxes can see it.
fn program() -> Result<PathBuf, BenchError> {
    let own = std::env::current_exe().map_err(BenchError::io("find this program"))?;
    match PRIVATE.iter().find(|folder| own.starts_with(folder)) {
        None => Ok(own),
        Some(folder) => {
            let problem = format!(
                "is in {folder}, of which sandboxes have their own; copy it to where they can run it, such as /opt"
            );
            Err(BenchError::unexpected(own.display().to_string(), problem))
        }
    }
}

/// A folder that users of sandboxes may pass through. In `/var/tmp`: a sandbox has a `/tmp` of its own.
fn folder() -> Result<tempfile::TempDir, BenchError> {
    tempfile::Builder::new()
        .prefix("postern-bench-")
        .permissions(fs::Permissions::from_mode(0o711))
        .tempdir_in("/var/tmp")
        .map_err(BenchError::io("make a folder in /var/tmp"))
}

/// All supervisors and users of a lab share one address, so what protects a gateway from one address is lifted.
/// Everything else is as it comes.
fn gateway_toml(config: &LabConfig) -> String {
    let plaintext =
        "disable_tls = true\n[openshell.gateway.auth]\nallow_unauthenticated_users = true\n";
    format!(
        "[openshell.gateway]\nlog_level = \"error\"\ndrain_timeout = \"0s\"\n{}\
         [openshell.layer.connection_cap]\ntotal = 0\nper_peer = 0\n\
         [openshell.layer.rate_limit]\n\
         per_key = {{ calls = 1000000, per = \"1s\", burst = 1000000 }}\n{}\n",
        if config.tls { "" } else { plaintext },
        config.config,
    )
}

/// Makes sandbox tokens with a gateway's own key.
#[derive(Clone, Debug)]
pub struct Minter(Arc<SandboxTokenIssuer>);

impl Minter {
    /// With the key at `key`, in the name of `gateway_id`.
    ///
    /// # Errors
    /// When the key cannot be read.
    pub fn of(key: &Path, kid: Option<&Path>, gateway_id: &str) -> Result<Self, BenchError> {
        let signing = SigningKey::load(key, kid).map_err(|error| BenchError::Credential {
            path: key.to_owned(),
            why: error.to_string(),
        })?;
        Ok(Self(Arc::new(SandboxTokenIssuer::new(signing, gateway_id, Duration::ZERO))))
    }

    /// A supervisor of this sandbox.
    #[must_use]
    pub fn identity(&self, sandbox_id: &str) -> Identity {
        let (token, _) = self.0.mint(sandbox_id, SystemTime::now());
        Identity { sandbox_id: sandbox_id.to_owned(), token: token.expose().to_owned() }
    }
}
