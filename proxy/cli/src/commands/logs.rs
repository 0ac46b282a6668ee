//! `logs`.

use std::process::ExitCode;
use std::time::SystemTime;

use anstyle::AnsiColor;
use postern_proto::v1;
use postern_proto::v1::sandbox_stream_event::Payload;

use crate::args::LogsArgs;
use crate::connection::Gateway;
use crate::error::CliError;
use crate::output;

/// Prints the log of a sandbox, and goes on with `--tail` until interrupted.
///
/// # Errors
/// When there is no such sandbox.
pub async fn run(gateway: &mut Gateway, args: LogsArgs) -> Result<ExitCode, CliError> {
    let name = gateway.sandbox_or_only(args.name.clone()).await?;
    let since = args.since.and_then(|span| SystemTime::now().checked_sub(span)).map(Into::into);
    let sources: Vec<String> =
        args.source.iter().filter(|source| *source != "all").cloned().collect();
    if args.tail {
        return follow(gateway, &name, &args, since, sources).await;
    }
    let request = v1::GetSandboxLogsRequest {
        workspace_scope: gateway.scope(),
        sandbox: name.clone(),
        lines: args.lines,
        since_time: since,
        sources,
        min_level: args.level,
    };
    let answer = gateway
        .client
        .get_sandbox_logs(request)
        .await
        .map_err(|status| {
            CliError::refused(format!("cannot read the log of sandbox {name}"), status)
        })?
        .into_inner();
    for line in &answer.logs {
        show(line)?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn follow(
    gateway: &mut Gateway,
    name: &str,
    args: &LogsArgs,
    since_time: Option<prost_types::Timestamp>,
    log_sources: Vec<String>,
) -> Result<ExitCode, CliError> {
    let failed =
        |status| CliError::refused(format!("cannot follow the log of sandbox {name}"), status);
    let request = v1::WatchSandboxRequest {
        workspace_scope: gateway.scope(),
        sandbox: name.to_owned(),
        follow_logs: true,
        log_tail_lines: args.lines,
        since_time,
        log_sources,
        log_min_level: args.level.clone(),
        ..v1::WatchSandboxRequest::default()
    };
    let mut events = gateway.client.watch_sandbox(request).await.map_err(failed)?.into_inner();
    while let Some(event) = events.message().await.map_err(failed)? {
        match event.payload {
            Some(Payload::Log(line)) => show(&line)?,
            Some(Payload::Warning(warning)) => output::note(&warning.message),
            _ => {}
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn show(line: &v1::SandboxLogLine) -> Result<(), CliError> {
    let time = line.event_time.as_ref().map_or_else(|| "-".to_owned(), output::timestamp);
    let colour = match line.level.to_ascii_lowercase().as_str() {
        "error" => AnsiColor::Red,
        "warn" => AnsiColor::Yellow,
        _ => AnsiColor::BrightBlack,
    };
    let mut fields: Vec<String> =
        line.fields.iter().map(|(key, value)| format!(" {key}={value}")).collect();
    fields.sort();
    output::line(&format!(
        "{time} {} {} {}{}",
        output::painted(&format!("{:5}", line.level.to_uppercase()), colour.on_default()),
        line.source,
        line.message,
        fields.concat(),
    ))
}
