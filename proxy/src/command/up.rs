//! `postern up`: a gateway with everything embedded, registered for this user.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use clap::Args;
use postern_cli::registration::{Metadata, MutualTls, RegistrationError, Registrations};
use postern_identity::pki::{LocalAuthority, PkiError};
use tokio::io::AsyncReadExt as _;

use super::arguments::{LoadError, ServerArgs};
use super::{EXIT_USAGE, chain, failed};
use crate::gateway::{Gateway, RunningGateway, StartError, Surroundings};
use crate::telemetry;

/// How to run it.
#[derive(Args, Clone, Debug)]
pub struct UpArgs {
    /// Flags of the server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// Name of the registration.
    #[arg(long, default_value = "local")]
    pub name: String,
    /// Keep nothing: a folder of its own, removed at the end together with every sandbox.
    #[arg(long)]
    pub ephemeral: bool,
    /// End when standard input closes, for a gateway that belongs to another program.
    #[arg(long)]
    pub exit_with_stdin: bool,
}

/// Why it did not come up, or not go down in good order.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UpError {
    /// No usable configuration.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The gateway did not start.
    #[error("the gateway did not start")]
    Start(#[from] StartError),
    /// The user's certificate could not be made.
    #[error("the certificate of the local user could not be made")]
    Certificate(#[from] PkiError),
    /// The gateway could not be registered.
    #[error("the gateway could not be registered for this user")]
    Registration(#[from] RegistrationError),
    /// A file of the gateway's.
    #[error("cannot {action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Serves until told to end.
pub async fn run(args: UpArgs) -> ExitCode {
    match serve(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ UpError::Load(LoadError::Faults { .. })) => {
            let _ = failed(&chain(&error));
            ExitCode::from(EXIT_USAGE)
        }
        Err(error) => failed(&chain(&error)),
    }
}

async fn serve(args: UpArgs) -> Result<(), UpError> {
    let exit_with_stdin = args.exit_with_stdin;
    let up = Up::start(args, Registrations::from_environment()?).await?;
    println!(
        "gateway is ready: {}\nregistered as {}; try: postern sandbox create",
        up.gateway.endpoint(),
        up.name
    );
    if let Some(address) = up.gateway.addresses().admin {
        println!("its layers: http://{address}/");
    }
    if exit_with_stdin {
        tokio::select! {
            () = up.gateway.signalled() => {}
            () = end_of_input() => {}
        }
    } else {
        up.gateway.signalled().await;
    }
    up.stop().await
}

async fn end_of_input() {
    let mut input = tokio::io::stdin();
    let mut nothing = [0; 64];
    while matches!(input.read(&mut nothing).await, Ok(1..)) {}
}

/// A gateway that came up and is registered.
#[derive(Debug)]
pub struct Up {
    /// The gateway.
    pub gateway: RunningGateway,
    /// Its registration.
    pub name: String,
    /// Where it keeps its files.
    pub state_dir: PathBuf,
    registrations: Registrations,
    ephemeral: bool,
}

impl Up {
    /// Starts a gateway and registers it.
    ///
    /// # Errors
    /// [`UpError`]; nothing is registered then.
    pub async fn start(mut args: UpArgs, registrations: Registrations) -> Result<Self, UpError> {
        if args.ephemeral && args.server.state_dir().is_none() {
            args.server.default_state_dir(own_folder()?);
        }
        args.server.admin_by_default();
        let config = args.server.load()?;
        telemetry::start_logging(&config.gateway.log_level, config.gateway.log_format);
        let state_dir = config.gateway.state_dir.clone();
        let tls = config.gateway.tls.is_some();
        let source = Arc::new(args.server.clone());
        let surroundings = Surroundings { source: Some(source), ..Surroundings::default() };
        let gateway = Gateway::start_in(config, surroundings).await?;
        let certificates =
            if tls { Some(user_certificates(&state_dir.join("pki"))?) } else { None };
        let metadata = Metadata {
            name: args.name.clone(),
            gateway_endpoint: gateway.endpoint(),
            auth_mode: Some(if tls { "mtls" } else { "none" }.to_owned()),
            other: serde_json::Map::new(),
        };
        registrations.save(&metadata, certificates.as_ref())?;
        registrations.select(&args.name)?;
        let (name, ephemeral) = (args.name, args.ephemeral);
        Ok(Self { gateway, name, state_dir, registrations, ephemeral })
    }

    /// Drains and ends; an ephemeral gateway also removes its sandboxes, its files and its registration.
    ///
    /// # Errors
    /// When files cannot be removed.
    pub async fn stop(self) -> Result<(), UpError> {
        if !self.ephemeral {
            self.gateway.drain().await;
            return Ok(());
        }
        self.gateway.drain_and_remove_sandboxes().await;
        self.registrations.remove(&self.name)?;
        fs::remove_dir_all(&self.state_dir).map_err(|source| UpError::File {
            action: "remove",
            path: self.state_dir,
            source,
        })
    }
}

/// A new folder for an ephemeral gateway. In `/var/tmp`, because a sandbox has a `/tmp` of its own,
/// and open to the users that sandboxes run as.
fn own_folder() -> Result<PathBuf, UpError> {
    tempfile::Builder::new()
        .prefix("postern-")
        .permissions(fs::Permissions::from_mode(0o711))
        .tempdir_in("/var/tmp")
        .map(tempfile::TempDir::keep)
        .map_err(|source| UpError::File {
            action: "make a folder in",
            path: "/var/tmp".into(),
            source,
        })
}

fn user_certificates(pki: &std::path::Path) -> Result<MutualTls, UpError> {
    let authority = LocalAuthority::open_or_create(pki, SystemTime::now())?;
    let user = std::env::var("USER").unwrap_or_else(|_| "local".to_owned());
    let issued = authority.local_user(&user, SystemTime::now())?;
    let read = |path: PathBuf| {
        fs::read(&path).map_err(|source| UpError::File { action: "read", path, source })
    };
    Ok(MutualTls {
        ca: authority.certificate_pem().as_bytes().to_vec(),
        certificate: read(issued.certificate)?,
        key: read(issued.key)?,
    })
}
