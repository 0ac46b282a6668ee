//! `postern check`.

use std::path::PathBuf;
use std::process::ExitCode;

use super::arguments::ServerArgs;
use super::{EXIT_USAGE, chain, failed};

/// Reads a configuration and tells every fault at once. Nothing is started.
#[must_use]
pub fn run(file: Option<PathBuf>) -> ExitCode {
    match ServerArgs::from_file(file).load() {
        Ok(config) => {
            println!(
                "the configuration is good: serves on {}, state in {}",
                config.gateway.bind_address,
                config.gateway.state_dir.display()
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            let _ = failed(&chain(&error));
            ExitCode::from(EXIT_USAGE)
        }
    }
}
