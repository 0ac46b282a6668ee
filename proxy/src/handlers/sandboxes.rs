//! `CreateSandbox`, `GetSandbox`, `ListSandboxes`, `StopSandbox`, `StartSandbox`, `DeleteSandbox`.

use postern_proto::datamodel::WorkspaceSelector;
use postern_proto::datamodel::workspace_selector::Selection;
use postern_proto::v1::{
    CreateSandboxRequest, DeleteSandboxRequest, DeleteSandboxResponse, DeletionOutcome,
    GetSandboxRequest, ListSandboxesRequest, ListSandboxesResponse, SandboxResponse, SandboxSpec,
    StartSandboxRequest, StopSandboxRequest,
};
use postern_store::{LabelSelector, ListQuery, PageKey, RequestKey};

use crate::auth::{Principal, User};
use crate::call_error::CallError;
use crate::canonical;
use crate::lifecycle::feed::Level;
use crate::lifecycle::{CreateSpec, Lifecycle, Repeatable, SandboxRecord, one_workspace};
use crate::validation;

/// Makes a sandbox. With a request id, the same request makes it once and is then answered with what became of it.
///
/// # Errors
/// `INVALID_ARGUMENT`, `UNIMPLEMENTED` and `FAILED_PRECONDITION` by the contents of the request, `ALREADY_EXISTS` for a
/// taken name, `ABORTED` for a request id that was used for another request, and the answers of the driver.
pub async fn create(
    lifecycle: &Lifecycle,
    principal: &Principal,
    request: CreateSandboxRequest,
) -> Result<SandboxResponse, CallError> {
    let user = principal.require_user()?;
    let workspace = one_workspace(request.workspace_scope.as_ref())?;
    validation::create(&request)?;
    let repeatable = repeatable(user, "CreateSandbox", &workspace, &request.request_id, || {
        let plain = CreateSandboxRequest { request_id: String::new(), ..request.clone() };
        canonical::digest(&plain, "openshell.v1.CreateSandboxRequest")
    })?;
    let awaits_attachment = request.await_main_process_attachment;
    let created = lifecycle
        .create(CreateSpec {
            workspace,
            name: Some(request.name).filter(|name| !name.is_empty()),
            labels: request.labels,
            annotations: request.annotations,
            spec: complete(request.spec.unwrap_or_default()),
            repeatable,
        })
        .await?;
    if awaits_attachment && !created.repeated {
        lifecycle.note(
            created.record.id(),
            Level::Warn,
            "await_main_process_attachment is not supported; the main process starts at once",
            [],
        );
    }
    Ok(response(created.record))
}

/// One sandbox, by name or id.
///
/// # Errors
/// `NOT_FOUND`.
pub async fn get(
    lifecycle: &Lifecycle,
    principal: &Principal,
    request: GetSandboxRequest,
) -> Result<SandboxResponse, CallError> {
    principal.require_user()?;
    let record =
        lifecycle.resolve(principal, request.workspace_scope.as_ref(), &request.name).await?;
    Ok(response(record))
}

/// A page of sandboxes, oldest first.
///
/// # Errors
/// `INVALID_ARGUMENT` for a bad size, token or selector; `PERMISSION_DENIED` for all workspaces without the admin role.
pub async fn list(
    lifecycle: &Lifecycle,
    principal: &Principal,
    request: ListSandboxesRequest,
) -> Result<ListSandboxesResponse, CallError> {
    let user = principal.require_user()?;
    let token = Some(request.page_token.as_str()).filter(|token| !token.is_empty());
    let query = ListQuery {
        workspace: listed_workspace(user, request.workspace_scope.as_ref())?,
        labels: LabelSelector::parse(&request.label_selector)?,
        limit: validation::page_size(request.page_size)?,
        after: token.map(PageKey::from_token).transpose()?,
    };
    let (records, next) = lifecycle.list(query).await?;
    Ok(ListSandboxesResponse {
        sandboxes: records.into_iter().map(SandboxRecord::into_sandbox).collect(),
        next_page_token: next.map(PageKey::to_token).unwrap_or_default(),
    })
}

/// Stops a sandbox; its files stay. Idempotent.
///
/// # Errors
/// `NOT_FOUND`, `FAILED_PRECONDITION` while it is deleted, and the answers of the driver.
pub async fn stop(
    lifecycle: &Lifecycle,
    principal: &Principal,
    request: StopSandboxRequest,
) -> Result<SandboxResponse, CallError> {
    let user = principal.require_user()?;
    let workspace = one_workspace(request.workspace_scope.as_ref())?;
    validation::request_id(&request.request_id)?;
    let repeatable = repeatable(user, "StopSandbox", &workspace, &request.request_id, || {
        let plain = StopSandboxRequest { request_id: String::new(), ..request.clone() };
        canonical::digest(&plain, "openshell.v1.StopSandboxRequest")
    })?;
    let record =
        lifecycle.resolve(principal, request.workspace_scope.as_ref(), &request.name).await?;
    lifecycle.stop(record, repeatable).await.map(response)
}

/// Starts a sandbox that is stopped, completed or failed. Idempotent.
///
/// # Errors
/// `NOT_FOUND`, `FAILED_PRECONDITION` while it is stopped or deleted, and the answers of the driver.
pub async fn start(
    lifecycle: &Lifecycle,
    principal: &Principal,
    request: StartSandboxRequest,
) -> Result<SandboxResponse, CallError> {
    let user = principal.require_user()?;
    let workspace = one_workspace(request.workspace_scope.as_ref())?;
    validation::request_id(&request.request_id)?;
    let repeatable = repeatable(user, "StartSandbox", &workspace, &request.request_id, || {
        let plain = StartSandboxRequest { request_id: String::new(), ..request.clone() };
        canonical::digest(&plain, "openshell.v1.StartSandboxRequest")
    })?;
    let record =
        lifecycle.resolve(principal, request.workspace_scope.as_ref(), &request.name).await?;
    lifecycle.start(record, repeatable).await.map(response)
}

/// Deletes a sandbox and what belongs to it. With a request id, a repetition answers for the sandbox that the first
/// request meant, even if the name belongs to another one by now.
///
/// # Errors
/// `NOT_FOUND` unless `allow_missing`, and the answers of the driver.
pub async fn delete(
    lifecycle: &Lifecycle,
    principal: &Principal,
    request: DeleteSandboxRequest,
) -> Result<DeleteSandboxResponse, CallError> {
    let user = principal.require_user()?;
    let workspace = one_workspace(request.workspace_scope.as_ref())?;
    validation::request_id(&request.request_id)?;
    let repeatable = repeatable(user, "DeleteSandbox", &workspace, &request.request_id, || {
        let plain = DeleteSandboxRequest { request_id: String::new(), ..request.clone() };
        canonical::digest(&plain, "openshell.v1.DeleteSandboxRequest")
    })?;
    let answer = |outcome: DeletionOutcome, sandbox_id: String| DeleteSandboxResponse {
        outcome: outcome.into(),
        sandbox_id,
    };
    match lifecycle.resolve(principal, request.workspace_scope.as_ref(), &request.name).await {
        Ok(record) => {
            let deleted = lifecycle.delete(record, repeatable).await?;
            let outcome = if deleted.finished {
                DeletionOutcome::Completed
            } else {
                DeletionOutcome::Accepted
            };
            Ok(answer(outcome, deleted.sandbox_id))
        }
        Err(missing @ CallError::NotFound { .. }) => {
            let earlier = match &repeatable {
                Some(repeatable) => lifecycle.recall(repeatable).await?,
                None => None,
            };
            match earlier {
                Some(id) => Ok(answer(DeletionOutcome::Completed, id)),
                None if request.allow_missing => {
                    Ok(answer(DeletionOutcome::AlreadyAbsent, String::new()))
                }
                None => Err(missing),
            }
        }
        Err(error) => Err(error),
    }
}

fn response(record: SandboxRecord) -> SandboxResponse {
    SandboxResponse {
        sandbox: Some(record.into_sandbox()),
        service_urls: std::collections::HashMap::new(),
    }
}

/// The specification with the defaults of the contract filled in.
fn complete(mut spec: SandboxSpec) -> SandboxSpec {
    if spec.command.is_empty() {
        spec.command = validation::DEFAULT_COMMAND.map(str::to_owned).to_vec();
        spec.tty = true;
    }
    // Made by gateways, never by clients.
    spec.provider_attachment_epoch.clear();
    spec
}

fn repeatable(
    user: &User,
    method: &str,
    workspace: &str,
    request_id: &str,
    fingerprint: impl FnOnce() -> Result<[u8; 32], CallError>,
) -> Result<Option<Repeatable>, CallError> {
    if request_id.is_empty() {
        return Ok(None);
    }
    Ok(Some(Repeatable {
        key: RequestKey {
            subject: user.subject.clone(),
            method: format!("openshell.v1.OpenShell/{method}"),
            workspace: workspace.to_owned(),
            request_id: request_id.to_owned(),
        },
        fingerprint: fingerprint()?,
    }))
}

fn listed_workspace(
    user: &User,
    scope: Option<&WorkspaceSelector>,
) -> Result<Option<String>, CallError> {
    match scope.and_then(|scope| scope.selection.as_ref()) {
        Some(Selection::AllWorkspaces(_)) if user.is_admin() => Ok(None),
        Some(Selection::AllWorkspaces(_)) => Err(CallError::PermissionDenied {
            reason: "listing all workspaces needs the admin role; name one workspace".to_owned(),
        }),
        _ => one_workspace(scope).map(Some),
    }
}

#[cfg(test)]
mod tests;
