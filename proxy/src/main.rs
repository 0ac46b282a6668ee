//! The `postern` command.

use std::process::ExitCode;

use clap::Parser as _;
use postern::command::arguments::{Arguments, Command};
use postern::command::{certs, check, demo, failed, layers, server, up};
use postern_cli::commands;
use postern_cli::error::CliError;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let Command::Supervise { arguments } = arguments.command {
        // The supervisor makes its own runtime: it forks before it has threads.
        return postern_supervisor::main(arguments.into_iter());
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("cannot start the runtime: {error}")),
    };
    let code = runtime.block_on(run(arguments));
    // A read of standard input cannot be cancelled, and must not hold the end up.
    runtime.shutdown_background();
    code
}

async fn run(Arguments { globals, command }: Arguments) -> ExitCode {
    match command {
        Command::Up(args) => up::run(*args).await,
        Command::Gateway { server, command: None } => server::run(&server).await,
        Command::Gateway { command: Some(command), .. } => {
            told(commands::gateways::run(&globals, command).await)
        }
        Command::Demo => demo::run().await,
        Command::Check { file } => check::run(file),
        Command::Layers(args) => layers::run(&args).await,
        Command::Certs(args) => certs::run(&args),
        Command::User(command) => told(commands::run(&globals, command).await),
        // Handled before there was a runtime.
        Command::Supervise { .. } => ExitCode::FAILURE,
    }
}

fn told(outcome: Result<ExitCode, CliError>) -> ExitCode {
    outcome.unwrap_or_else(|error| {
        let _ = failed(&error.chain());
        ExitCode::from(postern_cli::error::EXIT_FAILED)
    })
}
