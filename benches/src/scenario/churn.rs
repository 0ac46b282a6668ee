//! `churn`: supervisors that come, stay a moment and go, while others stay.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use postern_layers::units::parse_duration;
use tokio::time::{Instant, sleep};

use super::{Plant, PlantArgs, RateArgs, arrivals};
use crate::error::BenchError;
use crate::measure::Latencies;
use crate::report::{Figure, LatencyReport, Report};
use crate::supervisor::Session;

/// Supervisors that come and go.
#[derive(Args, Clone, Debug)]
pub struct ChurnArgs {
    /// How often one comes.
    #[command(flatten)]
    pub rate: RateArgs,
    /// How long it stays.
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    pub stay: Duration,
    /// How many sandboxes they belong to. One that comes back while it is still there replaces itself.
    #[arg(long, default_value_t = 1000)]
    pub pool: u64,
}

pub(super) async fn run(arguments: &ChurnArgs, plant: &PlantArgs) -> Result<Report, BenchError> {
    let built = Arc::new(Plant::build(plant)?);
    let before = built.gateway_kib();
    let accepted = Arc::new(Latencies::new(Instant::now()));
    let stay = arguments.stay;
    let _ = arrivals(&arguments.rate, "supervisors", |number| {
        let (built, accepted) = (Arc::clone(&built), Arc::clone(&accepted));
        let id = format!("churn-{}", number % arguments.pool.max(1));
        async move {
            let due = Instant::now();
            let identity = built.stranger(&id)?;
            match Session::start(&built.supervisor, &identity, &built.watch).await {
                Ok(_session) => {
                    accepted.done(due, Instant::now());
                    sleep(stay).await;
                    Ok(())
                }
                Err(error) => {
                    accepted.failed(&error.chain());
                    Err(error)
                }
            }
        }
    })
    .await?;
    let mut report = Report::new("churn");
    report.setting("rate", arguments.rate.rate);
    report.setting("pool", arguments.pool);
    report.latencies.push(LatencyReport::of("connect to accepted", &accepted));
    if let (Some(before), Some(after)) = (before, built.gateway_kib()) {
        let grown = after as f64 - before as f64;
        report.figures.push(Figure::plain("memory kept by the gateway", grown, "KiB"));
    }
    Ok(report)
}
