//! What people and machines see: tables, colour on a terminal only, JSON.

use std::io::{IsTerminal as _, Write as _};

use anstyle::{AnsiColor, Style};
use comfy_table::{ContentArrangement, Table};
use postern_proto::v1;
use serde_json::{Value, json};

use crate::error::CliError;

/// Writes to standard output; a reader that went away is no error.
///
/// # Errors
/// Any other failure of standard output.
pub fn print(text: &str) -> Result<(), CliError> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(CliError::Local { action: "write to standard output".into(), source: error })
        }
        _ => Ok(()),
    }
}

/// Writes one line to standard output.
///
/// # Errors
/// As [`print()`].
pub fn line(text: &str) -> Result<(), CliError> {
    print(&format!("{text}\n"))
}

/// Writes a note for a person to standard error.
pub fn note(text: &str) {
    // A person who closed standard error does not read it.
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// Writes a value as indented JSON.
///
/// # Errors
/// As [`print()`].
pub fn json(value: &Value) -> Result<(), CliError> {
    line(&format!("{value:#}"))
}

/// A table without lines, as wide as the terminal allows.
#[must_use]
pub fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_content_arrangement(if std::io::stdout().is_terminal() {
        ContentArrangement::Dynamic
    } else {
        ContentArrangement::Disabled
    });
    table
        .set_header(header.iter().map(|title| painted(title, AnsiColor::BrightBlack.on_default())));
    for row in rows {
        table.add_row(row);
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

/// Text in a style; the stream strips it where there is no terminal.
#[must_use]
pub fn painted(text: &str, style: Style) -> String {
    format!("{style}{text}{style:#}")
}

/// The name of a phase, as people read it.
#[must_use]
pub fn phase_name(phase: i32) -> &'static str {
    use v1::SandboxPhase as P;
    match P::try_from(phase).unwrap_or(P::Unspecified) {
        P::Unspecified => "Unspecified",
        P::Provisioning => "Provisioning",
        P::Ready => "Ready",
        P::Error => "Error",
        P::Deleting => "Deleting",
        P::Unknown => "Unknown",
        P::Stopping => "Stopping",
        P::Stopped => "Stopped",
        P::Starting => "Starting",
        P::Completed => "Completed",
    }
}

/// A phase in its colour.
#[must_use]
pub fn phase(phase: i32) -> String {
    use v1::SandboxPhase as P;
    let colour = match P::try_from(phase).unwrap_or(P::Unspecified) {
        P::Ready | P::Completed => AnsiColor::Green,
        P::Error => AnsiColor::Red,
        P::Stopped => AnsiColor::BrightBlack,
        _ => AnsiColor::Yellow,
    };
    painted(phase_name(phase), colour.on_default())
}

/// A sandbox for machines. Field names are those of the contract.
#[must_use]
pub fn sandbox_json(sandbox: &v1::Sandbox) -> Value {
    let metadata = sandbox.metadata.clone().unwrap_or_default();
    let status = sandbox.status.clone().unwrap_or_default();
    let conditions: Vec<Value> = status
        .conditions
        .iter()
        .map(|condition| {
            json!({
                "type": condition.r#type,
                "status": condition.status,
                "reason": condition.reason,
                "message": condition.message,
            })
        })
        .collect();
    json!({
        "id": metadata.id,
        "name": metadata.name,
        "workspace": metadata.workspace,
        "labels": metadata.labels,
        "resource_version": metadata.resource_version,
        "created_time": metadata.created_time.map(|time| timestamp(&time)),
        "phase": phase_name(status.phase),
        "exit_code": status.exit_code,
        "host_key_fingerprint": sandbox.host_key_fingerprint,
        "conditions": conditions,
    })
}

/// RFC 3339 in UTC, to the second.
#[must_use]
pub fn timestamp(time: &prost_types::Timestamp) -> String {
    jiff::Timestamp::from_second(time.seconds)
        .map_or_else(|_| "-".to_owned(), |time| time.to_string())
}

/// How long ago a moment was: `5s`, `3m`, `2h`, `4d`.
#[must_use]
pub fn age(time: Option<&prost_types::Timestamp>, now: jiff::Timestamp) -> String {
    let Some(time) = time else { return "-".into() };
    let seconds = (now.as_second() - time.seconds).max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m", seconds / 60),
        3_600..86_400 => format!("{}h", seconds / 3_600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_short() {
        let now = jiff::Timestamp::from_second(1_000_000).expect("in range");
        let at = |ago: i64| prost_types::Timestamp { seconds: 1_000_000 - ago, nanos: 0 };
        assert_eq!(age(Some(&at(5)), now), "5s");
        assert_eq!(age(Some(&at(200)), now), "3m");
        assert_eq!(age(Some(&at(7_300)), now), "2h");
        assert_eq!(age(Some(&at(200_000)), now), "2d");
        assert_eq!(age(None, now), "-");
    }

    #[test]
    fn a_table_has_a_line_for_the_header_and_each_row_and_no_trailing_blanks() {
        let text = anstream::adapter::strip_str(&table(
            &["NAME", "PHASE"],
            vec![vec!["a".into(), phase(v1::SandboxPhase::Ready as i32)]],
        ))
        .to_string();
        assert_eq!(text.lines().count(), 2);
        assert!(text.lines().all(|line| line == line.trim_end()), "{text:?}");
        assert!(text.contains("Ready"));
    }
}
