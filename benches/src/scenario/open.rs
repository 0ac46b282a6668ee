//! `open`: relays per second, each from asking to its first byte.

use clap::Args;

use super::{Plant, PlantArgs, RateArgs, Site, arrivals};
use crate::client::{Client, Feed, Relay};
use crate::error::BenchError;
use crate::report::{Figure, LatencyReport, Report};
use crate::target::Order;

/// Opening relays.
#[derive(Args, Clone, Debug)]
pub struct OpenArgs {
    /// How often.
    #[command(flatten)]
    pub rate: RateArgs,
    /// Connections of users.
    #[arg(long, default_value_t = 4)]
    pub clients: usize,
}

pub(super) async fn run(arguments: &OpenArgs, plant: &PlantArgs) -> Result<Report, BenchError> {
    let mut built = Plant::build(plant)?;
    // Enough that tokens are never what is waited for.
    let relays = arguments.rate.at_most.div_ceil(plant.sandboxes.max(1)).min(MOST_RELAYS);
    let sites = built.sites(plant, relays).await?;
    let mut clients = Vec::new();
    for _ in 0..arguments.clients.max(1) {
        clients.push(Client::connect(&built.user).await?);
    }
    let latencies = arrivals(&arguments.rate, "opening relays", |number| {
        let number = usize::try_from(number).unwrap_or(usize::MAX);
        let site = sites[number % sites.len()].clone();
        let client = clients[number % clients.len()].clone();
        async move { once(&client, &site).await }
    })
    .await?;
    let mut report = Report::new("open");
    report.setting("rate", arguments.rate.rate);
    report.setting("sandboxes", sites.len());
    report.latencies.push(LatencyReport::of("open to first byte", &latencies));
    let seconds = arguments.rate.duration.as_secs_f64();
    let rate = latencies.counts().0 as f64 / seconds;
    report.figures.push(Figure::plain("relays opened", rate, "per s"));
    report.figures.extend(built.memory());
    Ok(report)
}

/// Relays into one sandbox at a time: each needs a place of a token, and tokens are rows of a database.
const MOST_RELAYS: usize = 192;

async fn once(client: &Client, site: &Site) -> Result<(), BenchError> {
    let slot = site.tokens.take().await;
    let at = (&*site.name, site.port);
    let mut relay = Relay::open(client, at, slot, (Order::Source(1), Feed::Nothing)).await?;
    let first = relay.next().await?;
    // Its end is not waited for, but it is let happen: an abandoned relay would be a reset.
    tokio::spawn(async move { while let Ok(Some(_)) = relay.next().await {} });
    first.map(drop).ok_or_else(|| BenchError::unexpected("a relay", "ended before its first byte"))
}
