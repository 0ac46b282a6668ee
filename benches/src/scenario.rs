//! What `postern-load` can do to a gateway.
//!
//! Each scenario is one file with its flags, what it does, and what it reports. They share a [`Plant`]: a gateway
//! (of one's own, or any that speaks the contract), sandboxes in it with a target behind each, and clients.

mod bulk;
mod churn;
mod echo;
mod exec;
mod mixed;
mod open;
mod plant;
mod sessions;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use postern_layers::units::parse_duration;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::error::BenchError;
use crate::measure::{Latencies, Meter, gigabits};
use crate::report::{RateReport, Report};
use crate::schedule::Schedule;

pub use plant::{Plant, PlantArgs, Site};

/// How long requests that are under way at the end may take. What is not done then counts as failed.
const LAST_CALL: Duration = Duration::from_secs(15);

/// The scenarios.
#[derive(Subcommand, Clone, Debug)]
pub enum Scenario {
    /// Relays opened per second, each until its first byte.
    Open(open::OpenArgs),
    /// Small messages over many open relays.
    Echo(echo::EchoArgs),
    /// As many bytes as will go.
    Bulk(bulk::BulkArgs),
    /// Small messages beside bulk in the same sandbox.
    Mixed(mixed::MixedArgs),
    /// Idle supervisors: memory and heartbeats.
    Sessions(sessions::SessionsArgs),
    /// Supervisors that come and go.
    Churn(churn::ChurnArgs),
    /// Commands.
    Exec(exec::ExecArgs),
}

/// A constant arrival rate.
#[derive(Args, Clone, Debug)]
pub struct RateArgs {
    /// Arrivals per second.
    #[arg(long, default_value_t = 100.0)]
    pub rate: f64,
    /// For how long.
    #[arg(long, default_value = "10s", value_parser = parse_duration)]
    pub duration: Duration,
    /// The same before that, not counted.
    #[arg(long, default_value = "2s", value_parser = parse_duration)]
    pub warm_up: Duration,
    /// Requests under way at a time at most. Later ones wait, and their wait counts.
    #[arg(long, default_value_t = 1024)]
    pub at_most: usize,
}

/// Runs one scenario.
///
/// # Errors
/// When the plant cannot be built. Requests that fail are counted and reported.
pub async fn run(scenario: &Scenario, plant: &PlantArgs) -> Result<Report, BenchError> {
    let mut report = match scenario {
        Scenario::Open(arguments) => open::run(arguments, plant).await,
        Scenario::Echo(arguments) => echo::run(arguments, plant).await,
        Scenario::Bulk(arguments) => bulk::run(arguments, plant).await,
        Scenario::Mixed(arguments) => mixed::run(arguments, plant).await,
        Scenario::Sessions(arguments) => sessions::run(arguments, plant).await,
        Scenario::Churn(arguments) => churn::run(arguments, plant).await,
        Scenario::Exec(arguments) => exec::run(arguments, plant).await,
    }?;
    plant.note(&mut report);
    Ok(report)
}

/// Starts a request at each arrival, warm-up first, and waits until all are done.
async fn arrivals<F, R>(
    rate: &RateArgs,
    what: &str,
    request: F,
) -> Result<Arc<Latencies>, BenchError>
where
    F: Fn(u64) -> R,
    R: Future<Output = Result<(), BenchError>> + Send + 'static,
{
    let _ = phase(rate, rate.warm_up, &format!("{what}, warm-up"), &request).await?;
    phase(rate, rate.duration, what, &request).await
}

async fn phase<F, R>(
    rate: &RateArgs,
    duration: Duration,
    what: &str,
    request: &F,
) -> Result<Arc<Latencies>, BenchError>
where
    F: Fn(u64) -> R,
    R: Future<Output = Result<(), BenchError>> + Send + 'static,
{
    let start = Instant::now();
    let latencies = Arc::new(Latencies::new(start));
    let mut schedule = Schedule::new(start, rate.rate, duration);
    let bar = progress(schedule.count(), what);
    let slots = Arc::new(Semaphore::new(rate.at_most));
    let mut running = JoinSet::new();
    let mut number = 0;
    while let Some(due) = schedule.next().await {
        let slot = Arc::clone(&slots).acquire_owned().await;
        let (latencies, request) = (Arc::clone(&latencies), request(number));
        running.spawn(async move {
            match request.await {
                Ok(()) => latencies.done(due, Instant::now()),
                Err(error) => latencies.failed(&error.chain()),
            }
            drop(slot);
        });
        while running.try_join_next().is_some() {}
        number += 1;
        bar.set_position(number);
    }
    let rest = async { while running.join_next().await.is_some() {} };
    if timeout(LAST_CALL, rest).await.is_err() {
        for _ in 0..running.len() {
            latencies.failed("it was not done 15 s after the last arrival");
        }
    }
    bar.finish_and_clear();
    Ok(latencies)
}

fn progress(length: u64, what: &str) -> ProgressBar {
    let bar = ProgressBar::new(length);
    let template = "{msg:28} {wide_bar:.cyan} {pos}/{len} {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    bar
}

/// Looks at meters once a second for some time; the bar shows the time.
async fn watch_meters(
    meters: &[(&str, Arc<Meter>)],
    duration: Duration,
    what: &str,
) -> Vec<RateReport> {
    let seconds = duration.as_secs().max(1);
    let bar = progress(seconds, what);
    let mut rates: Vec<_> = meters
        .iter()
        .map(|(name, _)| RateReport {
            name: (*name).to_owned(),
            unit: "Gbit/s",
            values: Vec::new(),
        })
        .collect();
    let mut before: Vec<_> = meters.iter().map(|(_, meter)| meter.total()).collect();
    for _ in 0..seconds {
        let start = Instant::now();
        sleep(Duration::from_secs(1)).await;
        let took = start.elapsed();
        for (index, (_, meter)) in meters.iter().enumerate() {
            let now = meter.total();
            rates[index].values.push(gigabits(now - before[index], took));
            before[index] = now;
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    rates
}
