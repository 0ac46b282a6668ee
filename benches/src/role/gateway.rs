//! A whole gateway in a process of its own: the library that `postern up` runs, with its defaults.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use clap::{Args, ValueEnum};
use postern::config::{Config, SourceFile, Sources};
use postern::gateway::{Gateway, Surroundings};
use postern::telemetry;
use postern_driver_fake::FakeDriver;
use postern_identity::pki::{LocalAuthority, PkiError};

use super::until_stdin_ends;
use crate::error::BenchError;

/// What makes sandboxes exist.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriverName {
    /// Processes of this host, with a real supervisor each.
    Process,
    /// Nothing: records only, for scripted supervisors.
    Fake,
}

/// A gateway.
#[derive(Args, Debug)]
pub struct GatewayArgs {
    /// Where it keeps its files.
    #[arg(long)]
    pub state_dir: PathBuf,
    /// Its configuration.
    #[arg(long)]
    pub config: PathBuf,
    /// What makes sandboxes exist.
    #[arg(long, value_enum, default_value = "process")]
    pub driver: DriverName,
}

pub(super) async fn run(arguments: GatewayArgs) -> Result<(), BenchError> {
    let failed = |problem: String| BenchError::unexpected("the gateway", problem);
    let pki = arguments.state_dir.join("pki");
    let text = std::fs::read_to_string(&arguments.config)
        .map_err(BenchError::io(format!("read {}", arguments.config.display())))?;
    let sources = Sources {
        file: Some(SourceFile { path: arguments.config, text }),
        flags: vec![
            ("--state-dir".to_owned(), arguments.state_dir.display().to_string()),
            ("--port".to_owned(), "0".to_owned()),
        ],
        ..Default::default()
    };
    let config =
        Config::load(&sources).map_err(|faults| failed(postern::config::render_faults(&faults)))?;
    telemetry::start_logging(&config.gateway.log_level, config.gateway.log_format);
    let mut surroundings = Surroundings::default();
    if arguments.driver == DriverName::Fake {
        surroundings.driver = Some(Arc::new(FakeDriver::new()));
    }
    let gateway = Gateway::start_in(config, surroundings)
        .await
        .map_err(|error| failed(format!("did not start: {}", chain(&error))))?;
    if gateway.endpoint().starts_with("https") {
        user(&pki).map_err(|error| failed(chain(&error)))?;
    }
    println!("ready {}", gateway.endpoint());
    until_stdin_ends(std::future::pending()).await?;
    gateway.drain_and_remove_sandboxes().await;
    Ok(())
}

/// The certificate of the user that bench commands are.
fn user(pki: &std::path::Path) -> Result<(), PkiError> {
    let now = SystemTime::now();
    LocalAuthority::open_or_create(pki, now)?.local_user("bench", now).map(drop)
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}
