//! `sandbox create|get|list|delete|stop|start`.

use std::process::ExitCode;

use postern_proto::{datamodel, v1};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::args::{CreateArgs, ExecArgs, ListArgs, Output};
use crate::commands::{exec, files, forward};
use crate::connection::Gateway;
use crate::error::CliError;
use crate::output;
use crate::progress::wait_ready;

/// How many sandboxes are asked for at a time.
const PAGE: i32 = 500;

/// Makes a sandbox, waits for it, and runs what was asked for in it.
///
/// # Errors
/// When the gateway refuses, or the sandbox does not become ready.
pub async fn create(gateway: &mut Gateway, args: CreateArgs) -> Result<ExitCode, CliError> {
    let request = v1::CreateSandboxRequest {
        workspace_scope: gateway.scope(),
        name: args.name.clone().unwrap_or_default(),
        labels: args.labels.iter().cloned().collect(),
        request_id: Uuid::new_v4().to_string(),
        spec: Some(v1::SandboxSpec {
            environment: args.env.iter().cloned().collect(),
            template: args
                .from
                .clone()
                .map(|image| v1::SandboxTemplate { image, ..v1::SandboxTemplate::default() }),
            ..v1::SandboxSpec::default()
        }),
        ..v1::CreateSandboxRequest::default()
    };
    let made = gateway
        .client
        .create_sandbox(request)
        .await
        .map_err(|status| CliError::refused("cannot create the sandbox", status))?
        .into_inner()
        .sandbox
        .unwrap_or_default();
    let name = made.metadata.clone().unwrap_or_default().name;
    let outcome = use_created(gateway, &name, &args).await;
    if args.no_keep {
        delete_one(gateway, &name).await?;
    }
    outcome
}

async fn use_created(
    gateway: &mut Gateway,
    name: &str,
    args: &CreateArgs,
) -> Result<ExitCode, CliError> {
    let ready = wait_ready(gateway, name).await?;
    if let Some(path) = &args.upload {
        files::upload(gateway, name, path, None, args.no_git_ignore).await?;
    }
    let forwarded = match args.forward {
        Some(port) => Some(forward::in_background_task(gateway, name, port).await?),
        None => None,
    };
    let code = if !args.command.is_empty() {
        let call = ExecArgs {
            name: Some(name.to_owned()),
            tty: args.tty,
            no_tty: args.no_tty,
            command: args.command.clone(),
            ..ExecArgs::default()
        };
        exec::run(gateway, call).await?
    } else if !args.detach && args.output == Output::Table && exec::on_a_terminal() && !args.no_tty
    {
        exec::shell(gateway, Some(name.to_owned())).await?
    } else {
        show(&ready, args.output)?;
        if let Some(task) = forwarded {
            task.until_interrupted().await;
        }
        return Ok(ExitCode::SUCCESS);
    };
    drop(forwarded);
    Ok(code)
}

/// Prints one sandbox.
///
/// # Errors
/// When there is no such sandbox.
pub async fn get(
    gateway: &mut Gateway,
    name: Option<String>,
    form: Output,
) -> Result<ExitCode, CliError> {
    let name = gateway.sandbox_or_only(name).await?;
    let sandbox = gateway.sandbox(&name).await?;
    show(&sandbox, form)?;
    Ok(ExitCode::SUCCESS)
}

fn show(sandbox: &v1::Sandbox, form: Output) -> Result<(), CliError> {
    if form == Output::Json {
        return output::json(&output::sandbox_json(sandbox));
    }
    output::print(&output::table(&HEADER, vec![row(sandbox)]))?;
    for condition in sandbox.status.iter().flat_map(|status| &status.conditions) {
        if condition.status != "True" && !condition.message.is_empty() {
            output::line(&format!(
                "  {}: {} ({})",
                condition.r#type, condition.message, condition.reason
            ))?;
        }
    }
    Ok(())
}

const HEADER: [&str; 5] = ["NAME", "PHASE", "AGE", "LABELS", "ID"];

fn row(sandbox: &v1::Sandbox) -> Vec<String> {
    let metadata = sandbox.metadata.clone().unwrap_or_default();
    let phase = sandbox.status.as_ref().map_or(0, |status| status.phase);
    let mut labels: Vec<String> =
        metadata.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    labels.sort();
    vec![
        metadata.name,
        output::phase(phase),
        output::age(metadata.created_time.as_ref(), jiff::Timestamp::now()),
        labels.join(","),
        metadata.id,
    ]
}

/// Lists sandboxes.
///
/// # Errors
/// When the gateway refuses.
pub async fn list(gateway: &mut Gateway, args: ListArgs) -> Result<ExitCode, CliError> {
    let scope = if args.all_workspaces {
        Some(datamodel::WorkspaceSelector {
            selection: Some(datamodel::workspace_selector::Selection::AllWorkspaces(
                datamodel::AllWorkspaces {},
            )),
        })
    } else {
        gateway.scope()
    };
    let wanted = args.limit.map(|limit| limit.saturating_add(args.offset));
    let all = all_sandboxes(gateway, scope, args.selector.as_deref().unwrap_or(""), wanted).await?;
    let shown: Vec<&v1::Sandbox> =
        all.iter().skip(args.offset).take(args.limit.unwrap_or(usize::MAX)).collect();
    let each = |pick: fn(datamodel::ObjectMeta) -> String| -> String {
        shown
            .iter()
            .map(|sandbox| format!("{}\n", pick(sandbox.metadata.clone().unwrap_or_default())))
            .collect()
    };
    if args.ids {
        output::print(&each(|metadata| metadata.id))?;
    } else if args.names {
        output::print(&each(|metadata| metadata.name))?;
    } else if args.output == Output::Json {
        let rows: Vec<Value> = shown.iter().map(|sandbox| output::sandbox_json(sandbox)).collect();
        output::json(&json!(rows))?;
    } else {
        output::print(&output::table(&HEADER, shown.iter().map(|sandbox| row(sandbox)).collect()))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn all_sandboxes(
    gateway: &mut Gateway,
    scope: Option<datamodel::WorkspaceSelector>,
    selector: &str,
    wanted: Option<usize>,
) -> Result<Vec<v1::Sandbox>, CliError> {
    let mut all = Vec::new();
    let mut token = String::new();
    loop {
        let page = gateway
            .client
            .list_sandboxes(v1::ListSandboxesRequest {
                workspace_scope: scope.clone(),
                page_size: PAGE,
                page_token: token,
                label_selector: selector.to_owned(),
            })
            .await
            .map_err(|status| CliError::refused("cannot list sandboxes", status))?
            .into_inner();
        all.extend(page.sandboxes);
        token = page.next_page_token;
        if token.is_empty() || wanted.is_some_and(|wanted| all.len() >= wanted) {
            return Ok(all);
        }
    }
}

/// Removes sandboxes; each one that cannot be removed is told, the others go.
///
/// # Errors
/// When nothing was named, or the list cannot be read.
pub async fn delete(
    gateway: &mut Gateway,
    names: Vec<String>,
    all: bool,
) -> Result<ExitCode, CliError> {
    let names = if all {
        let scope = gateway.scope();
        let found = all_sandboxes(gateway, scope, "", None).await?;
        found.into_iter().filter_map(|sandbox| Some(sandbox.metadata?.name)).collect()
    } else if names.is_empty() {
        return Err(CliError::usage("name the sandboxes to delete, or say --all"));
    } else {
        names
    };
    let mut code = ExitCode::SUCCESS;
    for name in names {
        match delete_one(gateway, &name).await {
            Ok(()) => output::note(&format!("sandbox {name} is deleted")),
            Err(error) => {
                output::note(&format!("error: {}", error.chain()));
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

async fn delete_one(gateway: &mut Gateway, name: &str) -> Result<(), CliError> {
    let request = v1::DeleteSandboxRequest {
        workspace_scope: gateway.scope(),
        name: name.to_owned(),
        allow_missing: false,
        request_id: Uuid::new_v4().to_string(),
    };
    gateway
        .client
        .delete_sandbox(request)
        .await
        .map_err(|status| CliError::refused(format!("cannot delete sandbox {name}"), status))?;
    Ok(())
}

/// Stops a sandbox.
///
/// # Errors
/// When the gateway refuses.
pub async fn stop(gateway: &mut Gateway, name: Option<String>) -> Result<ExitCode, CliError> {
    let name = gateway.sandbox_or_only(name).await?;
    let request = v1::StopSandboxRequest {
        workspace_scope: gateway.scope(),
        name: name.clone(),
        request_id: Uuid::new_v4().to_string(),
    };
    let answer = gateway
        .client
        .stop_sandbox(request)
        .await
        .map_err(|status| CliError::refused(format!("cannot stop sandbox {name}"), status))?;
    show(&answer.into_inner().sandbox.unwrap_or_default(), Output::Table)?;
    Ok(ExitCode::SUCCESS)
}

/// Starts a stopped sandbox and waits for it.
///
/// # Errors
/// When the gateway refuses, or the sandbox does not become ready.
pub async fn start(gateway: &mut Gateway, name: Option<String>) -> Result<ExitCode, CliError> {
    let name = gateway.sandbox_or_only(name).await?;
    let request = v1::StartSandboxRequest {
        workspace_scope: gateway.scope(),
        name: name.clone(),
        request_id: Uuid::new_v4().to_string(),
    };
    gateway
        .client
        .start_sandbox(request)
        .await
        .map_err(|status| CliError::refused(format!("cannot start sandbox {name}"), status))?;
    let ready = wait_ready(gateway, &name).await?;
    show(&ready, Output::Table)?;
    Ok(ExitCode::SUCCESS)
}
