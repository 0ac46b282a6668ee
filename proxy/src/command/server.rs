//! `postern gateway`: the server by its configuration.

use std::process::ExitCode;
use std::sync::Arc;

use super::arguments::{LoadError, ServerArgs};
use super::{EXIT_USAGE, chain, failed};
use crate::config::Config;
use crate::gateway::{Gateway, Surroundings};
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
    match serve(config, args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(code) => code,
    }
}

async fn serve(config: Config, args: &ServerArgs) -> Result<(), ExitCode> {
    let surroundings =
        Surroundings { source: Some(Arc::new(args.clone())), ..Surroundings::default() };
    let gateway =
        Gateway::start_in(config, surroundings).await.map_err(|error| failed(&chain(&error)))?;
    tracing::info!(address = %gateway.address(), "gateway is ready");
    gateway.run_until_signalled().await;
    Ok(())
}
