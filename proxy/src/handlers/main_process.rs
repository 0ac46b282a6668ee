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
