//! `postern layers`: each plane as a request meets it.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use postern_cli::args::Output;
use postern_cli::output;
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::arguments::{LoadError, ServerArgs};
use super::{EXIT_USAGE, chain, failed};
use crate::admin::report::{Counter, LayerReport, PlaneReport, Report, ValueReport};
use crate::admin::{self, report};
use crate::config::Config;

/// What to show.
#[derive(Args, Clone, Debug)]
pub struct LayersArgs {
    /// Configuration; that of the user when absent.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Admin endpoint of a running gateway, such as `http://127.0.0.1:17673`; looked for when absent.
    #[arg(long, value_name = "URL")]
    pub gateway_admin: Option<String>,
    /// Output form.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// How long a gateway on this machine may take to answer.
const ANSWER_TIME: Duration = Duration::from_secs(5);

/// Most bytes of a report: the largest is a few tens of kilobytes.
const MAX_REPORT: usize = 1024 * 1024;

/// Why a running gateway was not asked with success.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// The URL is none of an admin endpoint.
    #[error("{url} is no admin endpoint; write http://, an address and a port")]
    Url {
        /// What was given.
        url: String,
    },
    /// Nobody listens there.
    #[error("no gateway answers at {authority}; is it running with admin_bind_address?")]
    Connect {
        /// Where.
        authority: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The connection broke, or the answer is too large.
    #[error("{authority} did not answer in full")]
    Broken {
        /// Where.
        authority: String,
        /// What happened.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer in time.
    #[error("{authority} did not answer within {} s", ANSWER_TIME.as_secs())]
    Late {
        /// Where.
        authority: String,
    },
    /// Something else listens there.
    #[error("{authority} answered {status}; it is no admin endpoint of a gateway")]
    Status {
        /// Where.
        authority: String,
        /// With what.
        status: StatusCode,
    },
    /// Something else listens there, or a gateway of another version.
    #[error("{authority} sent a report that cannot be read; is the gateway of this version?")]
    Report {
        /// Where.
        authority: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
}

/// Prints the layers of a running gateway, or else those of the configuration.
pub async fn run(args: &LayersArgs) -> ExitCode {
    let report = match report(args).await {
        Ok(report) => report,
        Err(code) => return code,
    };
    let printed = match args.output {
        Output::Json => match serde_json::to_value(&report) {
            Ok(value) => output::json(&value),
            Err(error) => return failed(&chain(&error)),
        },
        Output::Table => output::print(&text(&report)),
    };
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error.chain()),
    }
}

async fn report(args: &LayersArgs) -> Result<Report, ExitCode> {
    if let Some(url) = &args.gateway_admin {
        return ask(url).await.map_err(|error| failed(&chain(&error)));
    }
    let config = match ServerArgs::from_file(args.config.clone()).load() {
        Ok(config) => config,
        Err(error @ LoadError::Faults { .. }) => {
            let _ = failed(&chain(&error));
            return Err(ExitCode::from(EXIT_USAGE));
        }
        Err(error) => return Err(failed(&chain(&error))),
    };
    if let Some(address) = address(&config) {
        match ask(&format!("http://{address}")).await {
            Ok(report) => return Ok(report),
            // It is not running; the configuration is what there is to show.
            Err(AskError::Connect { .. }) => {}
            Err(error) => output::note(&format!("note: {}", chain(&error))),
        }
    }
    Ok(Report { gateway: None, planes: report::planes(&config), reload: None })
}

/// Where a gateway of this configuration has its admin endpoint, if it runs.
fn address(config: &Config) -> Option<String> {
    let said = std::fs::read_to_string(admin::address_file(&config.gateway.state_dir)).ok();
    let fixed = config.gateway.admin_bind_address.filter(|address| address.port() != 0);
    said.map(|text| text.trim().to_owned()).or_else(|| fixed.map(|address| address.to_string()))
}

/// Gets `/layers` of the endpoint at `url`.
///
/// # Errors
/// [`AskError`].
pub async fn ask(url: &str) -> Result<Report, AskError> {
    let no_endpoint = || AskError::Url { url: url.to_owned() };
    let uri: Uri = url.parse().map_err(|_| no_endpoint())?;
    if uri.scheme_str().is_some_and(|scheme| scheme != "http") {
        return Err(no_endpoint());
    }
    let authority = uri.authority().ok_or_else(no_endpoint)?.as_str().to_owned();
    let asked = timeout(ANSWER_TIME, get(&authority)).await;
    let text = asked.map_err(|_| AskError::Late { authority: authority.clone() })??;
    serde_json::from_slice(&text).map_err(|source| AskError::Report { authority, source })
}

async fn get(authority: &str) -> Result<bytes::Bytes, AskError> {
    let named = || authority.to_owned();
    let broken = |source: Box<dyn std::error::Error + Send + Sync>| AskError::Broken {
        authority: named(),
        source,
    };
    let socket = TcpStream::connect(authority)
        .await
        .map_err(|source| AskError::Connect { authority: named(), source })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(socket))
        .await
        .map_err(|error| broken(error.into()))?;
    let exchange = async {
        let request = Request::get("/layers")
            .header(header::HOST, authority)
            .body(Empty::<bytes::Bytes>::new())
            .map_err(|error| broken(error.into()))?;
        let response = sender.send_request(request).await.map_err(|error| broken(error.into()))?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(AskError::Status { authority: named(), status });
        }
        let body = Limited::new(response.into_body(), MAX_REPORT).collect().await;
        body.map(http_body_util::Collected::to_bytes).map_err(broken)
    };
    tokio::pin!(exchange, connection);
    tokio::select! {
        outcome = &mut exchange => return outcome,
        ended = &mut connection => ended.map_err(|error| broken(error.into()))?,
    }
    // The connection is done and all of the answer is here.
    exchange.await
}

// === as text ===

fn text(report: &Report) -> String {
    let mut text = String::new();
    match &report.gateway {
        Some(gateway) => {
            let (version, address) = (&gateway.version, &gateway.address);
            line(
                &mut text,
                &format!("gateway {version} at {address}, up {}", duration(gateway.uptime_seconds)),
            );
            line(&mut text, &counters(&gateway.counters));
        }
        None => line(&mut text, "no running gateway was asked: this is the configuration"),
    }
    for plane in &report.planes {
        text.push('\n');
        plane_text(&mut text, plane);
    }
    if let Some(last) = report.reload.as_ref().and_then(|reload| reload.last.as_ref()) {
        let outcome = match &last.outcome {
            crate::reload::Outcome::Applied { changed, needs_restart, faults } => {
                let waits = match needs_restart.as_slice() {
                    [] => String::new(),
                    tables => format!("; waits for a restart: {}", tables.join(", ")),
                };
                let faults: String = faults.iter().map(|fault| format!("; {fault}")).collect();
                format!("{} values changed{waits}{faults}", changed.len())
            }
            crate::reload::Outcome::Refused { reasons } => {
                format!("not taken: {}", reasons.join("; "))
            }
        };
        line(&mut text, &format!("\nlast reload at {}: {outcome}", last.at));
    }
    text
}

fn plane_text(text: &mut String, plane: &PlaneReport) {
    let order = if plane.default_order { "default order" } else { "order of the configuration" };
    line(text, &format!("{} plane: {} ({order})", plane.plane, plane.carries));
    line(text, &format!("    | {}", plane.outer_end));
    for (number, layer) in plane.layers.iter().enumerate() {
        layer_text(text, number + 1, layer);
    }
    line(text, &format!("    | {}", plane.inner_end));
    if !plane.left_out.is_empty() {
        line(text, &format!("      left out: {}", plane.left_out.join(", ")));
    }
}

fn layer_text(text: &mut String, number: usize, layer: &LayerReport) {
    line(text, &format!("{number:>3} | {:<20} {}", layer.name, layer.does));
    for ValueReport { key, value, default, is_default } in &layer.values {
        let mark = if *is_default {
            "default".to_owned()
        } else {
            format!("set; default {}", shown(default))
        };
        line(text, &format!("    |     {key:<20} {:<16} {mark}", shown(value)));
    }
    if !layer.counters.is_empty() {
        line(text, &format!("    |     now: {}", counters(&layer.counters)));
    }
}

fn counters(counters: &[Counter]) -> String {
    let one = |counter: &Counter| {
        let mut text = format!("{} {}", counter.name, counter.value);
        if let Some(limit) = counter.limit {
            let _ = write!(text, " of {limit}");
        }
        if let Some(unit) = &counter.unit {
            let _ = write!(text, " {unit}");
        }
        text
    };
    counters.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn duration(seconds: u64) -> String {
    postern_layers::units::format_duration(Duration::from_secs(seconds))
}

fn line(text: &mut String, line: &str) {
    text.push_str(line.trim_end());
    text.push('\n');
}
