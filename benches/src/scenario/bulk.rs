//! `bulk`: as many bytes as will go, over some streams, for some time.

use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use postern_layers::units::parse_duration;
use tokio_util::task::AbortOnDropHandle;

use super::{Plant, PlantArgs, Site, watch_meters};
use crate::client::{Client, Feed, Message, Relay};
use crate::error::BenchError;
use crate::measure::{Meter, median};
use crate::report::{Figure, Report};
use crate::target::Order;

/// Bytes of one message: as the CLI reads them from a socket.
const CHUNK: usize = 64 * 1024;

/// Which way.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Into the sandbox.
    Up,
    /// Out of the sandbox.
    Down,
    /// Both at once, with as many streams each way.
    Both,
}

/// Bulk.
#[derive(Args, Clone, Debug)]
pub struct BulkArgs {
    /// Streams each way.
    #[arg(long, default_value_t = 1)]
    pub streams: usize,
    /// Which way.
    #[arg(long, value_enum, default_value = "down")]
    pub direction: Direction,
    /// For how long.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub duration: Duration,
    /// The same before that, not counted.
    #[arg(long, default_value = "2s", value_parser = parse_duration)]
    pub warm_up: Duration,
    /// Connections of users.
    #[arg(long, default_value_t = 1)]
    pub clients: usize,
}

pub(super) async fn run(arguments: &BulkArgs, plant: &PlantArgs) -> Result<Report, BenchError> {
    let mut built = Plant::build(plant)?;
    // One sandbox: bulk is about one connection of a supervisor.
    let alone = PlantArgs { sandboxes: 1, ..plant.clone() };
    let sites = built.sites(&alone, 2 * arguments.streams).await?;
    let mut clients = Vec::new();
    for _ in 0..arguments.clients.max(1) {
        clients.push(Client::connect(&built.user).await?);
    }
    let flow = Flow::start(&clients, &sites[0], (arguments.streams, arguments.direction)).await?;
    let meters = flow.meters();
    watch_meters(&meters, arguments.warm_up, "warm-up").await;
    let rates = watch_meters(&meters, arguments.duration, "bulk").await;
    flow.check()?;
    let mut report = Report::new("bulk");
    report.setting("streams", arguments.streams);
    report.setting("direction", format!("{:?}", arguments.direction).to_lowercase());
    for rate in &rates {
        let name = format!("{}, median of its seconds", rate.name);
        report.figures.push(Figure::plain(name, median(&rate.values), "Gbit/s"));
    }
    report.figures.extend(built.memory());
    report.rates = rates;
    Ok(report)
}

/// Bulk that goes on until the value is dropped.
pub(super) struct Flow {
    up: Arc<Meter>,
    down: Arc<Meter>,
    direction: Direction,
    tasks: Vec<AbortOnDropHandle<Result<(), BenchError>>>,
}

impl Flow {
    pub(super) async fn start(
        clients: &[Client],
        site: &Site,
        (streams, direction): (usize, Direction),
    ) -> Result<Self, BenchError> {
        let mut flow =
            Self { up: Arc::default(), down: Arc::default(), direction, tasks: Vec::new() };
        let message = Message::filled(CHUNK);
        for index in 0..streams {
            let client = &clients[index % clients.len()];
            let at = (&*site.name, site.port);
            if direction != Direction::Down {
                let feed = Feed::Endless(message.clone(), Arc::clone(&flow.up));
                let slot = site.tokens.take().await;
                let relay = Relay::open(client, at, slot, (Order::Sink, feed)).await?;
                flow.take(relay, Arc::default());
            }
            if direction != Direction::Up {
                let slot = site.tokens.take().await;
                let order = (Order::Source(u64::MAX), Feed::Quiet);
                let relay = Relay::open(client, at, slot, order).await?;
                let meter = Arc::clone(&flow.down);
                flow.take(relay, meter);
            }
        }
        Ok(flow)
    }

    fn take(&mut self, mut relay: Relay, meter: Arc<Meter>) {
        self.tasks.push(AbortOnDropHandle::new(tokio::spawn(async move {
            while let Some(bytes) = relay.next().await? {
                meter.add(bytes.len());
            }
            Ok(())
        })));
    }

    /// What is counted: bytes into the sandbox as the connection takes them, bytes out of it as they come.
    pub(super) fn meters(&self) -> Vec<(&'static str, Arc<Meter>)> {
        let mut meters = Vec::new();
        if self.direction != Direction::Down {
            meters.push(("into the sandbox", Arc::clone(&self.up)));
        }
        if self.direction != Direction::Up {
            meters.push(("out of the sandbox", Arc::clone(&self.down)));
        }
        meters
    }

    /// # Errors
    /// When a stream ended, which none should.
    pub(super) fn check(&self) -> Result<(), BenchError> {
        let ended = self.tasks.iter().filter(|task| task.is_finished()).count();
        if ended == 0 {
            return Ok(());
        }
        Err(BenchError::unexpected("bulk", format!("lost {ended} of {} streams", self.tasks.len())))
    }
}
