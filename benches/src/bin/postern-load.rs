//! Open-loop load on a gateway.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use postern_benches::role;
use postern_benches::scenario::{self, PlantArgs, Scenario};

/// Puts load on a gateway at a constant arrival rate and reports latencies and rates. Build with --release.
///
/// Without --endpoint it starts a gateway of its own. It plays users, and unless told otherwise supervisors too.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// What to do.
    #[command(subcommand)]
    scenario: Scenario,
    /// What to do it to.
    #[command(flatten)]
    plant: PlantArgs,
    /// Also write the report to this file.
    #[arg(long, global = true, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Also draw the report into this folder.
    #[arg(long, global = true, value_name = "DIR")]
    plot: Option<PathBuf>,
}

fn main() -> anyhow::Result<ExitCode> {
    if let Some(code) = role::play() {
        return Ok(code);
    }
    let arguments = Arguments::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(scenario::run(&arguments.scenario, &arguments.plant));
    let report = report.map_err(|error| anyhow::anyhow!("{}", error.chain()))?;
    report.print();
    if let Some(path) = &arguments.json {
        report.write_json(path)?;
    }
    if let Some(folder) = &arguments.plot {
        report.draw(folder)?;
    }
    Ok(ExitCode::SUCCESS)
}
