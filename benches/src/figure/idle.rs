//! How much memory of the gateway a session takes that does nothing.

use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::error::BenchError;
use crate::host::{raise_open_files, resident_kib};
use crate::lab::{Lab, LabConfig};
use crate::report::{Figure, millis};
use crate::role::DriverName;
use crate::supervisor::{Session, Watch};

/// KiB per session in plaintext and with TLS that the issues ask for.
const AIM_KIB: [f64; 2] = [24.0, 40.0];

/// Sessions that connect at the same time. TLS handshakes are work; more would only queue.
const AT_ONCE: usize = 32;

/// Sessions before those that count, so that pools, tables and threads are there already.
const WARM_UP: usize = 50;

/// Between the last session and the look at the memory: longer than one heartbeat interval, so that every session has
/// done all it does while idle.
const SETTLE: Duration = Duration::from_secs(20);

/// How to measure it.
#[derive(Args, Debug, Clone)]
pub struct IdleArgs {
    /// Sessions.
    #[arg(short, default_value_t = 2000)]
    pub number: usize,
    /// Plaintext only.
    #[arg(long, conflicts_with = "tls")]
    pub plaintext: bool,
    /// Mutual TLS only.
    #[arg(long)]
    pub tls: bool,
}

/// Holds sessions that do nothing but answer heartbeats, and divides what the gateway grew by.
///
/// # Errors
/// When a session cannot be held.
pub async fn run(arguments: &IdleArgs) -> Result<Vec<Figure>, BenchError> {
    raise_open_files();
    let mut figures = Vec::new();
    for tls in [false, true] {
        if (tls && arguments.plaintext) || (!tls && arguments.tls) {
            continue;
        }
        figures.extend(hold(arguments.number, tls).await?);
    }
    Ok(figures)
}

async fn hold(number: usize, tls: bool) -> Result<Vec<Figure>, BenchError> {
    let config = LabConfig { tls, driver: DriverName::Fake, config: String::new() };
    let lab = Lab::start(&config)?;
    let watch = Watch::new(Instant::now());
    let bar = ProgressBar::new((WARM_UP + number) as u64);
    let _warm = connect(&lab, &watch, "warm", WARM_UP, &bar).await?;
    sleep(Duration::from_secs(1)).await;
    let before = resident_kib(lab.gateway_pid())?;
    let started = Instant::now();
    let sessions = connect(&lab, &watch, "idle", number, &bar).await?;
    let took = started.elapsed();
    bar.finish_and_clear();
    sleep(SETTLE).await;
    let after = resident_kib(lab.gateway_pid())?;
    let each = after.saturating_sub(before) as f64 / number as f64;
    let kind = if tls { "mutual TLS" } else { "plaintext" };
    let aim = AIM_KIB[usize::from(tls)];
    let name = |what: &str| format!("{what}, {kind}");
    let lag = millis(watch.lag.percentile(99.0));
    let figures = vec![
        Figure::aimed(name(&format!("memory of each of {number} sessions")), each, "KiB", aim),
        Figure::plain(name("sessions accepted"), number as f64 / took.as_secs_f64(), "per s"),
        Figure::plain(name("heartbeats late, p99"), lag, "ms"),
        Figure::aimed(name("sessions that ended"), watch.ended() as f64, "", 0.0),
    ];
    drop(sessions);
    Ok(figures)
}

async fn connect(
    lab: &Lab,
    watch: &Arc<Watch>,
    prefix: &str,
    number: usize,
    bar: &ProgressBar,
) -> Result<Vec<Session>, BenchError> {
    let minter = lab.minter()?;
    let mut sessions = Vec::with_capacity(number);
    let mut starting = JoinSet::new();
    for index in 0..number {
        if starting.len() >= AT_ONCE {
            sessions.extend(joined(starting.join_next().await)?);
            bar.inc(1);
        }
        // No record is needed: a session may come a moment before it, and these are never asked for a relay.
        let identity = minter.identity(&format!("{prefix}-{index}"));
        let (access, watch) = (lab.sandbox.clone(), Arc::clone(watch));
        starting.spawn(async move { Session::start(&access, &identity, &watch).await });
    }
    while let Some(session) = joined(starting.join_next().await)? {
        sessions.push(session);
        bar.inc(1);
    }
    Ok(sessions)
}

fn joined(
    finished: Option<Result<Result<Session, BenchError>, tokio::task::JoinError>>,
) -> Result<Option<Session>, BenchError> {
    match finished {
        None => Ok(None),
        Some(Ok(session)) => session.map(Some),
        Some(Err(error)) => Err(BenchError::unexpected("a session's task", error.to_string())),
    }
}
