//! The agent inside each sandbox: session client, SSH server, isolation.
//!
//! | module | what |
//! |---|---|
//! | [`settings`] | flags and environment, as OpenShell's supervisor has them |
//! | [`run`] | start-up order and end |
//! | [`isolate`] | the sandbox: namespaces, user, file tree, process trees |
//! | [`ssh`] | the SSH server on a Unix socket; commands, shells, SFTP, forwarding |
//! | [`session`] | the session with the gateway, and its relays |
//! | [`token`] | the sandbox's token and its renewal |
//! | [`logs`] | log lines to the gateway |
//! | [`main_process`] | the agent's main process and the report of its end |
//! | [`environment`], [`terminal`], [`gateway`] | what these share |

#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod environment;
pub mod gateway;
pub mod isolate;
pub mod logs;
pub mod main_process;
pub mod run;
pub mod session;
pub mod settings;
mod sftp;
pub mod ssh;
mod sys;
pub mod terminal;
pub mod token;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use isolate::Reexec;
use logs::{LogQueue, PushLayer};
use settings::{InvalidSettings, Settings};
use tracing_subscriber::filter::{EnvFilter, LevelFilter};
use tracing_subscriber::layer::{Layer as _, SubscriberExt as _};
use tracing_subscriber::util::SubscriberInitExt as _;

/// Exit code for settings that cannot be used.
const INVALID_SETTINGS: u8 = 2;

/// Exit code when the sandbox could not be made or kept.
const FAILED: u8 = 1;

/// The program that is running, for being started again.
const OURSELVES: &str = "/proc/self/exe";

/// Runs the supervisor.
///
/// `arguments` are those behind the command's own words: for the program `postern-supervisor` all
/// but its name, for `postern supervise ...` what follows `supervise`. The words before are used
/// when the program starts itself again as the sandbox's init. Must be called on the main thread,
/// before any other thread exists.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.collect();
    match arguments.first().and_then(|first| first.to_str()) {
        Some(isolate::INIT_MODE) => return code(isolate::init::main()),
        Some("copy-self") => return copy_self(arguments.get(1)),
        Some(word @ ("debug-rpc" | "validate-workspace")) => {
            eprintln!("postern: {word} is not available in this supervisor");
            return ExitCode::from(INVALID_SETTINGS);
        }
        _ => {}
    }
    let reexec = Reexec {
        program: PathBuf::from(OURSELVES),
        leading: leading_words(std::env::args_os().collect(), arguments.len()),
    };
    let settings = match Settings::read(arguments, |name| std::env::var(name).ok()) {
        Ok(settings) => settings,
        Err(InvalidSettings::Arguments(error)) => {
            // Help and version are no failure, and belong on standard output.
            let _ = error.print();
            return code(error.exit_code());
        }
        Err(error) => {
            eprintln!("postern: {error}");
            return ExitCode::from(INVALID_SETTINGS);
        }
    };
    let (queue, push) = logs::queue();
    observe(&settings, queue.clone());
    match run::run(settings, &reexec, queue, push) {
        Ok(exit) => code(exit),
        Err(error) => {
            eprintln!("postern: {}", with_causes(&error));
            ExitCode::from(FAILED)
        }
    }
}

/// The words between the program's name and the supervisor's arguments.
fn leading_words(mut all: Vec<OsString>, arguments: usize) -> Vec<OsString> {
    all.truncate(all.len().saturating_sub(arguments));
    all.drain(1.min(all.len())..).collect()
}

/// Installs the log: to standard error, and from a level of its own to the gateway.
fn observe(settings: &Settings, queue: LogQueue) {
    let own = EnvFilter::try_new(&settings.log_level).unwrap_or_else(|_| EnvFilter::new("warn"));
    let pushed: LevelFilter = settings.log_push_level.parse().unwrap_or(LevelFilter::INFO);
    let to_stderr = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_writer(std::io::stderr)
        .with_filter(own);
    let result = tracing_subscriber::registry()
        .with(to_stderr)
        .with(PushLayer(queue).with_filter(pushed))
        .try_init();
    if let Err(error) = result {
        eprintln!("postern: another log is in place: {error}");
    }
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// Copies the running program, for images that have it installed by a first container.
fn copy_self(to: Option<&OsString>) -> ExitCode {
    let Some(to) = to else {
        eprintln!("postern: copy-self needs the path to copy to");
        return ExitCode::from(INVALID_SETTINGS);
    };
    match std::fs::copy(OURSELVES, Path::new(to)) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("postern: copying to {}: {error}", Path::new(to).display());
            ExitCode::from(FAILED)
        }
    }
}

fn code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leading_words_are_those_before_our_arguments() {
        let words = |list: &[&str]| list.iter().map(OsString::from).collect::<Vec<_>>();
        let all = words(&["postern", "supervise", "--timeout", "3"]);
        assert_eq!(leading_words(all, 2), words(&["supervise"]));
        assert_eq!(leading_words(words(&["postern-supervisor", "x"]), 1), words(&[]));
        assert_eq!(leading_words(words(&[]), 0), words(&[]));
    }
}
