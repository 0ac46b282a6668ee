//! One figure by one command.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use postern_benches::figure::{self, CreateArgs, ExecArgs, IdleArgs};
use postern_benches::{BenchError, report, role};

/// Prints one figure of Postern beside its aim. Build with --release.
#[derive(Parser, Debug)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    figure: Which,
}

#[derive(Subcommand, Debug)]
enum Which {
    /// Time of a command that does nothing, over a warm session.
    Exec(ExecArgs),
    /// Time from asking for a sandbox to having it.
    Create(CreateArgs),
    /// Memory of the gateway for each idle session.
    Idle(IdleArgs),
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
    let figures = runtime.block_on(async {
        Ok::<_, BenchError>(match arguments.figure {
            Which::Exec(exec) => figure::exec(&exec).await?,
            Which::Create(create) => figure::create(&create).await?,
            Which::Idle(idle) => figure::idle(&idle).await?,
        })
    });
    report::print_figures(&figures?);
    Ok(())
}
