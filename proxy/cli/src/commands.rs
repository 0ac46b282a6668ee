//! One file per group of commands; each is a function from arguments to an exit code.

pub mod exec;
pub mod files;
pub mod forward;
pub mod gateways;
pub mod logs;
pub mod sandboxes;
pub mod ssh;
pub mod status;

use std::process::ExitCode;

use crate::args::{Command, Globals, SandboxCommand};
use crate::connection::Gateway;
use crate::error::CliError;

/// Runs one command.
///
/// # Errors
/// [`CliError`], ready to be shown.
pub async fn run(globals: &Globals, command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Status { output } => status::status(globals, output).await,
        Command::Whoami { output } => {
            status::whoami(&mut Gateway::connect(globals).await?, output).await
        }
        Command::Sandbox(command) => sandbox(globals, command).await,
        Command::Forward(command) => forward::run(globals, command).await,
        Command::Logs(args) => logs::run(&mut Gateway::connect(globals).await?, args).await,
        Command::SshProxy(args) => ssh::proxy(globals, args).await,
    }
}

async fn sandbox(globals: &Globals, command: SandboxCommand) -> Result<ExitCode, CliError> {
    let mut gateway = Gateway::connect(globals).await?;
    let gateway = &mut gateway;
    match command {
        SandboxCommand::Create(args) => sandboxes::create(gateway, *args).await,
        SandboxCommand::Get { name, output } => sandboxes::get(gateway, name, output).await,
        SandboxCommand::List(args) => sandboxes::list(gateway, args).await,
        SandboxCommand::Delete { names, all } => sandboxes::delete(gateway, names, all).await,
        SandboxCommand::Stop { name } => sandboxes::stop(gateway, name).await,
        SandboxCommand::Start { name } => sandboxes::start(gateway, name).await,
        SandboxCommand::Exec(args) => exec::run(gateway, args).await,
        SandboxCommand::Connect { name, editor: Some(editor) } => {
            ssh::open_editor(gateway, name, &editor).await
        }
        SandboxCommand::Connect { name, editor: None } => exec::shell(gateway, name).await,
        SandboxCommand::Upload { name, local_path, dest, no_git_ignore } => {
            files::upload(gateway, &name, &local_path, dest.as_deref(), no_git_ignore).await
        }
        SandboxCommand::Download { name, sandbox_path, dest } => {
            files::download(gateway, &name, &sandbox_path, dest.as_deref()).await
        }
        SandboxCommand::SshConfig { name } => ssh::config(gateway, name).await,
    }
}
