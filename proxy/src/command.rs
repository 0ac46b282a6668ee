//! What `postern` does when it is the gateway: serve, check, make certificates, demonstrate.

pub mod arguments;
pub mod certs;
pub mod check;
pub mod demo;
pub mod layers;
pub mod server;
pub mod up;

use std::io::Write as _;
use std::process::ExitCode;

/// Exit code of a command line or configuration that cannot be used.
pub const EXIT_USAGE: u8 = 2;

/// Tells a failure on standard error.
#[must_use]
pub fn failed(text: &str) -> ExitCode {
    // Whoever closed standard error does not read it.
    let _ = writeln!(std::io::stderr(), "error: {text}");
    ExitCode::FAILURE
}

/// An error and its causes on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
