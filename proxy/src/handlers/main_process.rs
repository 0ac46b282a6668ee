//! `ReportMainProcessExit` and `FinalizeMainProcessExit`: a supervisor tells how its sandbox's work ended.

use postern_proto::v1::{
    FinalizeMainProcessExitRequest, FinalizeMainProcessExitResponse, ReportMainProcessExitRequest,
    ReportMainProcessExitResponse,
};

use crate::auth::Principal;
use crate::call_error::CallError;
use crate::lifecycle::Lifecycle;

/// The main process ended. Answered when the outcome is on disk; a report of an older process epoch is answered and
/// changes nothing, so that its supervisor stops repeating it.
///
/// # Errors
/// `PERMISSION_DENIED` for another sandbox, `NOT_FOUND`, `UNAVAILABLE`.
pub async fn report(
    lifecycle: &Lifecycle,
    principal: &Principal,
    request: ReportMainProcessExitRequest,
) -> Result<ReportMainProcessExitResponse, CallError> {
    let sandbox = principal.require_sandbox(&request.sandbox_id)?;
    lifecycle.main_exited(&sandbox.sandbox_id, &request.instance_id, request.exit_code).await?;
    Ok(ReportMainProcessExitResponse {})
}

/// Everything that the main process wrote was handed over, and the supervisor leaves.
///
/// # Errors
/// As [`report`].
pub async fn finalize(
    lifecycle: &Lifecycle,
    principal: &Principal,
    request: FinalizeMainProcessExitRequest,
) -> Result<FinalizeMainProcessExitResponse, CallError> {
    let sandbox = principal.require_sandbox(&request.sandbox_id)?;
    lifecycle.main_finalized(&sandbox.sandbox_id, &request.instance_id).await?;
    Ok(FinalizeMainProcessExitResponse {})
}

#[cfg(test)]
mod tests {
    use postern_proto::v1::{CreateSandboxRequest, SandboxPhase};

    use super::*;
    use crate::lifecycle::testing::{Rig, supervisor, user};

    #[tokio::test]
    async fn only_the_sandbox_itself_reports_its_end() {
        let rig = Rig::new().await;
        let request = CreateSandboxRequest::default();
        let made =
            crate::handlers::sandboxes::create(&rig.lifecycle, &user(), request).await.unwrap();
        let id = made.sandbox.unwrap().metadata.unwrap().id;
        rig.connect(&id, "s1").await;
        let ended = |exit_code| ReportMainProcessExitRequest {
            sandbox_id: id.clone(),
            instance_id: "epoch-1".into(),
            exit_code,
        };
        for caller in [user(), supervisor("another")] {
            let denied = report(&rig.lifecycle, &caller, ended(0)).await.unwrap_err();
            assert_eq!(denied.code(), tonic::Code::PermissionDenied);
        }
        assert_eq!(rig.phase(&id).await, SandboxPhase::Ready);
        report(&rig.lifecycle, &supervisor(&id), ended(0)).await.unwrap();
        assert_eq!(rig.phase(&id).await, SandboxPhase::Completed);
        let done = FinalizeMainProcessExitRequest {
            sandbox_id: id.clone(),
            instance_id: "epoch-1".into(),
        };
        finalize(&rig.lifecycle, &supervisor(&id), done).await.unwrap();
    }
}
