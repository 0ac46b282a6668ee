//! Open-loop load on a gateway.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use postern_benches::scenario::{self, PlantArgs, Scenario};
use postern_benches::{BenchError, role};

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

fn main() -> ExitCode {
    if let Some(code) = role::play() {
        return code;
    }
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error.chain());
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> Result<(), BenchError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(BenchError::io("start the runtime"))?;
    let report = runtime.block_on(scenario::run(&arguments.scenario, &arguments.plant));
    let report = report?;
    report.print();
    if let Some(path) = &arguments.json {
        report.write_json(path)?;
    }
    if let Some(folder) = &arguments.plot {
        report.draw(folder)?;
    }
    Ok(())
}
