//! `mixed`: small messages beside bulk in the same sandbox, hence on the same connection of its supervisor.

use clap::Args;

use super::bulk::{Direction, Flow};
use super::echo::{self, EchoArgs};
use super::{Plant, PlantArgs, watch_meters};
use crate::client::Client;
use crate::error::BenchError;
use crate::measure::median;
use crate::report::{Figure, LatencyReport, Report};

/// Milliseconds that design.md section 11 asks for beside bulk.
const AIM_MS: f64 = 5.0;

/// Messages beside bulk.
#[derive(Args, Clone, Debug)]
pub struct MixedArgs {
    /// The messages.
    #[command(flatten)]
    pub echo: EchoArgs,
    /// Streams of bulk each way.
    #[arg(long, default_value_t = 4)]
    pub streams: usize,
    /// Which way the bulk goes.
    #[arg(long, value_enum, default_value = "down")]
    pub direction: Direction,
    /// Messages and bulk on one connection of the user too; otherwise on one each, as two programs would have.
    #[arg(long)]
    pub shared: bool,
}

pub(super) async fn run(arguments: &MixedArgs, plant: &PlantArgs) -> Result<Report, BenchError> {
    let mut built = Plant::build(plant)?;
    let alone = PlantArgs { sandboxes: 1, ..plant.clone() };
    let relays = arguments.echo.relays + 2 * arguments.streams + 1;
    let sites = built.sites(&alone, 2 * relays).await?;
    let client = Client::connect(&built.user).await?;
    let before = echo::echo(&arguments.echo, &client, &sites, "echo alone").await?;
    let bulk_client =
        if arguments.shared { client.clone() } else { Client::connect(&built.user).await? };
    let flow =
        Flow::start(&[bulk_client], &sites[0], (arguments.streams, arguments.direction)).await?;
    let meters = flow.meters();
    let time = arguments.echo.rate.warm_up + arguments.echo.rate.duration;
    let (beside, rates) = tokio::join!(
        echo::echo(&arguments.echo, &client, &sites, "echo beside bulk"),
        watch_meters(&meters, time, "bulk"),
    );
    let beside = beside?;
    flow.check()?;
    let mut report = Report::new("mixed");
    echo::note(&arguments.echo, &mut report);
    report.setting("streams", arguments.streams);
    report.latencies.push(LatencyReport::of("echo alone", &before));
    let beside = LatencyReport::of("echo beside bulk", &beside);
    report.figures.push(Figure::aimed("p99 beside bulk", beside.percentiles[2], "ms", AIM_MS));
    report.latencies.push(beside);
    for rate in &rates {
        let name = format!("bulk {}", rate.name);
        report.figures.push(Figure::plain(name, median(&rate.values), "Gbit/s"));
    }
    report.figures.extend(built.memory());
    report.rates = rates;
    Ok(report)
}
