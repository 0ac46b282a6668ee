//! How long a command takes that does nothing, in a sandbox that has run commands before.

use clap::Args;
use indicatif::ProgressIterator as _;
use tokio::time::Instant;

use crate::client::Client;
use crate::error::BenchError;
use crate::lab::{Lab, LabConfig};
use crate::measure::Latencies;
use crate::report::{Figure, millis};
use crate::role::DriverName;

/// Milliseconds that design.md section 11 asks for.
const AIM_MS: f64 = 4.0;

/// Commands before the first that counts: session, SSH connection and caches are then as warm as they get.
const WARM_UP: usize = 20;

/// How to measure it.
#[derive(Args, Debug, Clone)]
pub struct ExecArgs {
    /// Commands, one after the other.
    #[arg(short, default_value_t = 500)]
    pub number: usize,
    /// Plaintext instead of mutual TLS.
    #[arg(long)]
    pub plaintext: bool,
}

/// Runs `/bin/true` again and again through a real gateway, supervisor and sandbox.
///
/// # Errors
/// When any of them fails.
pub async fn run(arguments: &ExecArgs) -> Result<Vec<Figure>, BenchError> {
    let driver = DriverName::Process;
    let lab = Lab::start(&LabConfig { tls: !arguments.plaintext, driver, config: String::new() })?;
    let client = Client::connect(&lab.user).await?;
    client.create("exec", &[]).await?;
    client.wait_ready("exec").await?;
    for _ in 0..WARM_UP {
        once(&client).await?;
    }
    let latencies = Latencies::new(Instant::now());
    for _ in (0..arguments.number).progress() {
        let start = Instant::now();
        once(&client).await?;
        latencies.done(start, Instant::now());
    }
    let at = |percentile| millis(latencies.percentile(percentile));
    Ok(vec![
        Figure::aimed("exec of /bin/true, p50", at(50.0), "ms", AIM_MS),
        Figure::plain("exec of /bin/true, p99", at(99.0), "ms"),
        Figure::plain("exec of /bin/true, longest", millis(latencies.max()), "ms"),
    ])
}

async fn once(client: &Client) -> Result<(), BenchError> {
    match client.exec("exec", &["/bin/true"]).await? {
        0 => Ok(()),
        code => Err(BenchError::unexpected("/bin/true", format!("exited with {code}"))),
    }
}
