//! The relay beside bare copies.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use postern_benches::compare::{self, CompareArgs, Document};
use postern_benches::host::Host;
use postern_benches::{BenchError, role};

/// Runs relay and bare copy hops on the same work, turn and turn about, and prints ratios. Build with --release.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    /// How to compare.
    #[command(flatten)]
    compare: CompareArgs,
    /// Also write the page to this file, such as docs/benchmarks.md.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
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
    let host = Host::here();
    // One thread, as every hop has: the client must not be given more of the machine than they.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(BenchError::io("start the runtime"))?;
    let outcomes = runtime.block_on(compare::run(&arguments.compare));
    let outcomes = outcomes?;
    let rounds = (arguments.compare.rounds, arguments.compare.time);
    let document = Document { host: &host, rounds, outcomes: &outcomes };
    println!("{}", document.table());
    if let Some(path) = &arguments.write {
        std::fs::write(path, document.page()).map_err(BenchError::io("write the page"))?;
    }
    Ok(())
}
