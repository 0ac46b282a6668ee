//! The process driver, with what its table leaves to the gateway.

use std::{net::SocketAddr, path::Path, sync::Arc};

use postern_driver_core::ComputeDriver;
use postern_driver_process::{CommandSpec, ProcessDriver};

use super::{
    StartError,
    identity::{self, TlsMaterial},
};
use crate::config::Config;

/// The hidden subcommand that makes this program a supervisor.
const SUPERVISE: &str = "supervise";

/// Opens the process driver over its state, which brings back the sandboxes that are there.
pub(super) async fn process(
    config: &Config,
    local: SocketAddr,
    tls: Option<&TlsMaterial>,
    seed: u64,
) -> Result<Arc<dyn ComputeDriver>, StartError> {
    let mut driver = config.process_driver.clone();
    if driver.state_dir.as_os_str().is_empty() {
        driver.state_dir = config.gateway.state_dir.join("process");
    }
    if driver.supervisor.program.as_os_str().is_empty() {
        let program = std::env::current_exe().map_err(StartError::OwnProgram)?;
        driver.supervisor = CommandSpec { program, args: vec![SUPERVISE.to_owned()] };
    }
    if driver.grpc_endpoint.is_empty() {
        driver.grpc_endpoint = endpoint(local, tls.is_some());
    }
    // Sandboxes of another endpoint have certificates of their own in the table.
    if let Some(guest) = tls.and_then(TlsMaterial::guest) {
        driver.guest_tls_ca.get_or_insert(guest.ca);
        if driver.guest_tls_cert.is_none() && driver.guest_tls_key.is_none() {
            driver.guest_tls_cert = Some(guest.certificate);
            driver.guest_tls_key = Some(guest.key);
        }
    }
    for path in [&mut driver.guest_tls_ca, &mut driver.guest_tls_cert, &mut driver.guest_tls_key]
        .into_iter()
        .flatten()
        .chain([&mut driver.state_dir])
    {
        absolute(path);
    }
    Ok(Arc::new(ProcessDriver::new(driver, seed).await?))
}

/// A supervisor has another working directory than the gateway.
fn absolute(path: &mut std::path::PathBuf) {
    if let Ok(absolute) = std::path::absolute(Path::new(path)) {
        *path = absolute;
    }
}

/// How a process of this machine reaches the gateway.
pub(super) fn endpoint(local: SocketAddr, tls: bool) -> String {
    let scheme = if tls { "https" } else { "http" };
    format!("{scheme}://{}", identity::reachable(local))
}
