//! `status` and `whoami`.

use std::process::ExitCode;

use anstyle::AnsiColor;
use postern_proto::v1;
use serde_json::json;

use crate::args::{Globals, Output};
use crate::connection::Gateway;
use crate::error::CliError;
use crate::output;

/// Whether the gateway answers, its version, and who asks.
///
/// # Errors
/// When no gateway is registered, or it does not answer.
pub async fn status(globals: &Globals, form: Output) -> Result<ExitCode, CliError> {
    let mut gateway = Gateway::connect(globals).await?;
    let health = gateway
        .client
        .health(v1::HealthRequest {})
        .await
        .map_err(|status| CliError::refused("cannot ask the gateway for its health", status))?
        .into_inner();
    let user = gateway
        .client
        .get_current_user(v1::GetCurrentUserRequest {})
        .await
        .map(tonic::Response::into_inner);
    let word = match v1::ServiceStatus::try_from(health.status) {
        Ok(v1::ServiceStatus::Healthy) => "healthy",
        Ok(v1::ServiceStatus::Degraded) => "degraded",
        Ok(v1::ServiceStatus::Unhealthy) => "unhealthy",
        _ => "unknown",
    };
    if form == Output::Json {
        output::json(&json!({
            "gateway": gateway.name,
            "endpoint": gateway.endpoint,
            "status": word,
            "version": health.version,
            "user": user.as_ref().ok().map(|user| user.subject.clone()),
        }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let colour = if word == "healthy" { AnsiColor::Green } else { AnsiColor::Red };
    let me = user
        .map_or_else(|status| format!("not accepted ({:?})", status.code()), |user| user.subject);
    output::print(&output::table(
        &["GATEWAY", "ENDPOINT", "STATUS", "VERSION", "USER"],
        vec![vec![
            gateway.name.clone(),
            gateway.endpoint.clone(),
            output::painted(word, colour.on_default()),
            health.version,
            me,
        ]],
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Who the gateway takes the caller for.
///
/// # Errors
/// When the gateway does not accept the caller.
pub async fn whoami(gateway: &mut Gateway, form: Output) -> Result<ExitCode, CliError> {
    let user = gateway
        .client
        .get_current_user(v1::GetCurrentUserRequest {})
        .await
        .map_err(|status| CliError::refused("cannot tell who you are", status))?
        .into_inner();
    if form == Output::Json {
        output::json(&json!({
            "subject": user.subject,
            "display_name": user.display_name,
            "roles": user.roles,
            "scopes": user.scopes,
            "identity_provider": user.identity_provider,
        }))?;
    } else {
        output::print(&output::table(
            &["SUBJECT", "ROLES", "SCOPES", "PROVIDER"],
            vec![vec![
                user.subject,
                user.roles.join(" "),
                user.scopes.join(" "),
                user.identity_provider,
            ]],
        ))?;
    }
    Ok(ExitCode::SUCCESS)
}
