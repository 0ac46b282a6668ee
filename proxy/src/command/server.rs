//! `postern gateway`: the server by its configuration.

use std::process::ExitCode;

use super::arguments::{LoadError, ServerArgs};
use super::{EXIT_USAGE, chain, failed};
use crate::config::Config;
use crate::gateway::Gateway;
use crate::telemetry;

/// Serves until told to end, then drains.
pub async fn run(args: &ServerArgs) -> ExitCode {
    let config = match args.load() {
        Ok(config) => config,
        Err(error @ LoadError::Faults { .. }) => {
            let _ = failed(&chain(&error));
            return ExitCode::from(EXIT_USAGE);
        }
        Err(error) => return failed(&chain(&error)),
    };
    telemetry::start_logging(&config.gateway.log_level, config.gateway.log_format);
    match serve(config).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(code) => code,
    }
}

async fn serve(config: Config) -> Result<(), ExitCode> {
    let gateway = Gateway::start(config).await.map_err(|error| failed(&chain(&error)))?;
    tracing::info!(address = %gateway.address(), "gateway is ready");
    gateway.run_until_signalled().await;
    Ok(())
}
