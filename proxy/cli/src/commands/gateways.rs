//! `gateway add|remove|select|list|info`.

use std::path::Path;
use std::process::ExitCode;

use postern_proto::v1;
use serde_json::json;

use crate::args::{GatewayAddArgs, GatewayCommand, Globals, Output};
use crate::connection::Gateway;
use crate::error::CliError;
use crate::output;
use crate::registration::{Metadata, MutualTls, Registrations};

/// Runs one of the commands about registrations.
///
/// # Errors
/// [`CliError`], ready to be shown.
pub async fn run(globals: &Globals, command: GatewayCommand) -> Result<ExitCode, CliError> {
    let registrations = Registrations::from_environment()?;
    match command {
        GatewayCommand::Add(args) => add(&registrations, &args)?,
        GatewayCommand::Remove { name } => {
            let name = name.map_or_else(|| registrations.active(), Ok)?;
            registrations.remove(&name)?;
            output::note(&format!("gateway {name} is forgotten"));
        }
        GatewayCommand::Select { name: Some(name) } => {
            registrations.select(&name)?;
            output::note(&format!("gateway {name} is active"));
        }
        GatewayCommand::Select { name: None } => output::line(&registrations.active()?)?,
        GatewayCommand::List { output } => list(&registrations, output)?,
        GatewayCommand::Info { output } => {
            info(&mut Gateway::connect(globals).await?, output).await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn add(registrations: &Registrations, args: &GatewayAddArgs) -> Result<(), CliError> {
    let uri: http::Uri = args.endpoint.parse().map_err(|_| CliError::BadEndpoint {
        endpoint: args.endpoint.clone(),
        why: "write https://host:port",
    })?;
    let (Some(scheme), Some(host)) = (uri.scheme_str(), uri.host()) else {
        return Err(CliError::BadEndpoint {
            endpoint: args.endpoint.clone(),
            why: "write https://host:port",
        });
    };
    let name = args.name.clone().unwrap_or_else(|| host.replace(':', "-"));
    let tls = args.mtls_dir.as_deref().map(read_certificates).transpose()?;
    let mode = match (scheme, tls.is_some()) {
        ("https", true) => "mtls",
        ("https" | "http", false) => "none",
        ("http", true) => {
            return Err(CliError::usage("--mtls-dir needs an https:// endpoint"));
        }
        _ => {
            return Err(CliError::BadEndpoint {
                endpoint: args.endpoint.clone(),
                why: "the scheme must be https or http",
            });
        }
    };
    let metadata = Metadata {
        name: name.clone(),
        gateway_endpoint: args.endpoint.trim_end_matches('/').to_owned(),
        auth_mode: Some(mode.to_owned()),
        other: serde_json::Map::new(),
    };
    registrations.save(&metadata, tls.as_ref())?;
    registrations.select(&name)?;
    output::note(&format!("gateway {name} is registered and active"));
    Ok(())
}

fn read_certificates(folder: &Path) -> Result<MutualTls, CliError> {
    let read = |file: &str| {
        let path = folder.join(file);
        std::fs::read(&path)
            .map_err(|source| CliError::local(format!("read {}", path.display()), source))
    };
    Ok(MutualTls { ca: read("ca.crt")?, certificate: read("tls.crt")?, key: read("tls.key")? })
}

fn list(registrations: &Registrations, form: Output) -> Result<(), CliError> {
    let active = registrations.active().ok();
    let all = registrations.list()?;
    if form == Output::Json {
        let rows: Vec<_> = all
            .iter()
            .map(|gateway| {
                json!({
                    "name": gateway.name,
                    "endpoint": gateway.gateway_endpoint,
                    "auth_mode": gateway.auth_mode,
                    "active": active.as_deref() == Some(gateway.name.as_str()),
                })
            })
            .collect();
        return output::json(&json!(rows));
    }
    let rows = all
        .into_iter()
        .map(|gateway| {
            let mark = if active.as_deref() == Some(gateway.name.as_str()) { "*" } else { "" };
            vec![
                mark.to_owned(),
                gateway.name,
                gateway.gateway_endpoint,
                gateway.auth_mode.unwrap_or_default(),
            ]
        })
        .collect();
    output::print(&output::table(&["", "NAME", "ENDPOINT", "AUTH"], rows))
}

async fn info(gateway: &mut Gateway, form: Output) -> Result<(), CliError> {
    let info = gateway
        .client
        .get_gateway_info(v1::GetGatewayInfoRequest {})
        .await
        .map_err(|status| CliError::refused("cannot read the gateway's information", status))?
        .into_inner();
    let drivers: Vec<&str> =
        info.compute_drivers.iter().map(|driver| driver.name.as_str()).collect();
    if form == Output::Json {
        return output::json(&json!({
            "gateway": gateway.name,
            "endpoint": gateway.endpoint,
            "version": info.gateway_version,
            "compute_drivers": drivers,
        }));
    }
    output::print(&output::table(
        &["GATEWAY", "ENDPOINT", "VERSION", "DRIVERS"],
        vec![vec![
            gateway.name.clone(),
            gateway.endpoint.clone(),
            info.gateway_version,
            drivers.join(" "),
        ]],
    ))
}
