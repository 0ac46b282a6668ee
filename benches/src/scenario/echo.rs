//! `echo`: small messages over many relays that stay open, as keystrokes are.

use std::sync::Arc;

use clap::Args;
use postern_layers::units::parse_size;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::{LAST_CALL, Plant, PlantArgs, RateArgs, Site, progress};
use crate::client::{Client, Feed, Message, Relay};
use crate::error::BenchError;
use crate::measure::Latencies;
use crate::report::{LatencyReport, Report};
use crate::schedule::Schedule;
use crate::target::Order;

/// Messages of one relay that may be on the way. A relay that is this far behind makes the next message wait, and
/// the wait counts.
const ON_THE_WAY: usize = 1024;

/// Small messages.
#[derive(Args, Clone, Debug)]
pub struct EchoArgs {
    /// How often, over all relays together.
    #[command(flatten)]
    pub rate: RateArgs,
    /// Relays.
    #[arg(long, default_value_t = 8)]
    pub relays: usize,
    /// Bytes of a message.
    #[arg(long, default_value = "32B", value_parser = parse_size)]
    pub size: u64,
}

pub(super) async fn run(arguments: &EchoArgs, plant: &PlantArgs) -> Result<Report, BenchError> {
    let mut built = Plant::build(plant)?;
    let sites = built.sites(plant, arguments.relays.div_ceil(plant.sandboxes.max(1)) + 1).await?;
    let client = Client::connect(&built.user).await?;
    let latencies = echo(arguments, &client, &sites, "echo").await?;
    let mut report = Report::new("echo");
    note(arguments, &mut report);
    report.latencies.push(LatencyReport::of("echo", &latencies));
    report.figures.extend(built.memory());
    Ok(report)
}

pub(super) fn note(arguments: &EchoArgs, report: &mut Report) {
    report.setting("rate", arguments.rate.rate);
    report.setting("relays", arguments.relays);
    report.setting("size", arguments.size);
}

/// Warm-up and measurement over relays of their own.
pub(super) async fn echo(
    arguments: &EchoArgs,
    client: &Client,
    sites: &[Site],
    what: &str,
) -> Result<Arc<Latencies>, BenchError> {
    let size = usize::try_from(arguments.size).unwrap_or(usize::MAX).max(1);
    let mut lines = Vec::new();
    for index in 0..arguments.relays.max(1) {
        lines.push(Line::open(client, &sites[index % sites.len()], size).await?);
    }
    let message = Message::filled(size);
    let rate = &arguments.rate;
    for (duration, what) in [(rate.warm_up, "warm-up"), (rate.duration, what)] {
        let start = Instant::now();
        let latencies = Arc::new(Latencies::new(start));
        let mut schedule = Schedule::new(start, rate.rate, duration);
        let bar = progress(schedule.count(), what);
        let mut number = 0;
        while let Some(due) = schedule.next().await {
            let line = &lines[number % lines.len()];
            line.send(&message, due, &latencies).await?;
            number += 1;
            bar.inc(1);
        }
        for line in &lines {
            line.drained().await;
        }
        bar.finish_and_clear();
        if what != "warm-up" {
            return Ok(latencies);
        }
    }
    unreachable!("the loop returns in its second round")
}

struct Pending {
    due: Instant,
    latencies: Arc<Latencies>,
}

/// One open relay, and the task that hears its echoes.
struct Line {
    messages: mpsc::Sender<Message>,
    pending: mpsc::Sender<Pending>,
    _hearing: AbortOnDropHandle<()>,
}

impl Line {
    async fn open(client: &Client, site: &Site, size: usize) -> Result<Self, BenchError> {
        let slot = site.tokens.take().await;
        let (messages, queue) = mpsc::channel(ON_THE_WAY);
        let (pending, expected) = mpsc::channel(ON_THE_WAY);
        let at = (&*site.name, site.port);
        let relay = Relay::open(client, at, slot, (Order::Echo, Feed::Queue(queue))).await?;
        let hearing = AbortOnDropHandle::new(tokio::spawn(hear(relay, expected, size)));
        Ok(Self { messages, pending, _hearing: hearing })
    }

    async fn send(
        &self,
        message: &Message,
        due: Instant,
        latencies: &Arc<Latencies>,
    ) -> Result<(), BenchError> {
        let ended = || BenchError::unexpected("a relay", "ended while messages were on the way");
        let pending = Pending { due, latencies: Arc::clone(latencies) };
        self.pending.send(pending).await.map_err(|_| ended())?;
        self.messages.send(message.clone()).await.map_err(|_| ended())
    }

    /// Waits until every echo was heard, within reason.
    async fn drained(&self) {
        let all = self.pending.reserve_many(ON_THE_WAY);
        let _ = tokio::time::timeout(LAST_CALL, all).await;
    }
}

/// Messages come back in order, so the oldest pending one is done whenever `size` bytes are there.
async fn hear(mut relay: Relay, mut expected: mpsc::Receiver<Pending>, size: usize) {
    let mut heard = 0;
    while let Ok(Some(bytes)) = relay.next().await {
        heard += bytes.len();
        let now = Instant::now();
        while heard >= size {
            heard -= size;
            let Some(pending) = expected.recv().await else { return };
            pending.latencies.done(pending.due, now);
        }
    }
}
