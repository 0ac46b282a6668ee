//! `sessions`: supervisors that are there and do nothing.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use parking_lot::Mutex;
use postern_layers::units::parse_duration;
use tokio::time::sleep;

use super::{Plant, PlantArgs, RateArgs, arrivals, progress};
use crate::error::BenchError;
use crate::report::{Figure, LatencyReport, RateReport, Report};
use crate::supervisor::Session;

/// KiB per session in plaintext and with TLS that the issues ask for.
const AIM_KIB: [f64; 2] = [24.0, 40.0];

/// Idle supervisors.
#[derive(Args, Clone, Debug)]
pub struct SessionsArgs {
    /// Supervisors.
    #[arg(short, long, default_value_t = 10_000)]
    pub number: usize,
    /// How many connect per second.
    #[arg(long, default_value_t = 500.0)]
    pub rate: f64,
    /// How long they then stay: two heartbeat intervals and a bit.
    #[arg(long, default_value = "40s", value_parser = parse_duration)]
    pub stay: Duration,
}

pub(super) async fn run(arguments: &SessionsArgs, plant: &PlantArgs) -> Result<Report, BenchError> {
    let built = Arc::new(Plant::build(plant)?);
    let before = built.gateway_kib();
    let held = Arc::new(Mutex::new(Vec::with_capacity(arguments.number)));
    let rate = RateArgs {
        rate: arguments.rate,
        duration: Duration::from_secs_f64(arguments.number as f64 / arguments.rate.max(0.1)),
        warm_up: Duration::ZERO,
        at_most: 256,
    };
    let latencies = arrivals(&rate, "supervisors connecting", |number| {
        let (built, held) = (Arc::clone(&built), Arc::clone(&held));
        async move {
            let identity = built.stranger(&format!("idle-{number}"))?;
            let session = Session::start(&built.supervisor, &identity, &built.watch).await?;
            held.lock().push(session);
            Ok(())
        }
    })
    .await?;
    let seconds = arguments.stay.as_secs();
    let bar = progress(seconds, "supervisors idle");
    let mut memory = Vec::new();
    for _ in 0..seconds {
        sleep(Duration::from_secs(1)).await;
        memory.extend(built.gateway_kib().map(|kib| kib as f64 / 1024.0));
        bar.inc(1);
    }
    bar.finish_and_clear();
    let mut report = Report::new("sessions");
    report.setting("number", arguments.number);
    report.setting("rate", arguments.rate);
    report.latencies.push(LatencyReport::of("connect to accepted", &latencies));
    report.latencies.push(LatencyReport::of("heartbeats late", &built.watch.lag));
    let live = held.lock().len();
    if let (Some(before), Some(after)) = (before, built.gateway_kib()) {
        let each = after.saturating_sub(before) as f64 / live.max(1) as f64;
        let aim = AIM_KIB[usize::from(plant.tls)];
        report.figures.push(Figure::aimed("memory of a session", each, "KiB", aim));
    }
    report.figures.push(Figure::plain("sessions held", live as f64, ""));
    report.figures.push(Figure::aimed("sessions lost", built.watch.ended() as f64, "", 0.0));
    let name = "memory of the gateway".to_owned();
    report.rates.push(RateReport { name, unit: "MiB", values: memory });
    held.lock().clear();
    Ok(report)
}
