//! How long it takes from asking for a sandbox to having it.

use clap::Args;
use indicatif::ProgressIterator as _;
use tokio::time::Instant;

use crate::client::Client;
use crate::error::BenchError;
use crate::lab::{Lab, LabConfig};
use crate::measure::Latencies;
use crate::report::{Figure, millis};
use crate::role::DriverName;

/// Milliseconds that issue and design ask for.
const AIM_MS: f64 = 300.0;

/// How to measure it.
#[derive(Args, Debug, Clone)]
pub struct CreateArgs {
    /// Sandboxes, one after the other.
    #[arg(short, default_value_t = 25)]
    pub number: usize,
    /// Plaintext instead of mutual TLS.
    #[arg(long)]
    pub plaintext: bool,
}

/// Creates sandboxes with real supervisors, waits until each is Ready, and removes it.
///
/// # Errors
/// When any of it fails.
pub async fn run(arguments: &CreateArgs) -> Result<Vec<Figure>, BenchError> {
    let driver = DriverName::Process;
    let lab = Lab::start(&LabConfig { tls: !arguments.plaintext, driver, config: String::new() })?;
    let client = Client::connect(&lab.user).await?;
    let latencies = Latencies::new(Instant::now());
    // The first one finds cold caches, and is what nobody means.
    for number in (0..arguments.number + 1).progress() {
        let name = format!("create-{number}");
        let start = Instant::now();
        client.create(&name, &[]).await?;
        client.wait_ready(&name).await?;
        if number > 0 {
            latencies.done(start, Instant::now());
        }
        client.delete(&name).await?;
    }
    let at = |percentile| millis(latencies.percentile(percentile));
    Ok(vec![
        Figure::aimed("create to Ready, p50", at(50.0), "ms", AIM_MS),
        Figure::plain("create to Ready, p90", at(90.0), "ms"),
        Figure::plain("create to Ready, longest", millis(latencies.max()), "ms"),
    ])
}
