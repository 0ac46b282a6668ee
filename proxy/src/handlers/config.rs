//! `GetSandboxConfig`: the policy and settings that a supervisor enforces, as it polls for them.

use postern_proto::sandbox::{GetSandboxConfigRequest, GetSandboxConfigResponse, PolicySource, SandboxPolicy};

use crate::auth::Principal;
use crate::call_error::CallError;
use crate::canonical;
use crate::lifecycle::Lifecycle;

/// The configuration of one sandbox. A sandbox names itself, by name (0.1 line) or by id (0.0.11x line: the same
/// field); users name any.
///
/// Without a policy in the specification the answer has none and version 0: the supervisor then uses what its image
/// brings.
///
/// # Errors
/// `PERMISSION_DENIED` for a sandbox that names anything but itself, `NOT_FOUND`.
pub async fn get(
    lifecycle: &Lifecycle,
    principal: &Principal,
    request: GetSandboxConfigRequest,
) -> Result<GetSandboxConfigResponse, CallError> {
    let record = lifecycle.resolve(principal, request.workspace_scope.as_ref(), &request.name).await?;
    let workspace = record.workspace().to_owned();
    let sandbox = record.into_sandbox();
    let status = sandbox.status.unwrap_or_default();
    let policy = sandbox.spec.and_then(|spec| spec.policy);
    let digest = policy_digest(policy.as_ref())?;
    Ok(GetSandboxConfigResponse {
        version: if policy.is_some() { status.current_policy_version } else { 0 },
        policy_hash: if policy.is_some() { canonical::hex(&digest) } else { String::new() },
        config_revision: revision(&digest, status.current_policy_version),
        policy_source: if policy.is_some() { PolicySource::Sandbox } else { PolicySource::Unspecified }.into(),
        policy,
        workspace,
        configuration_admitted: true,
        configuration_instance_id: status.main_process_instance_id,
        ..GetSandboxConfigResponse::default()
    })
}

fn policy_digest(policy: Option<&SandboxPolicy>) -> Result<[u8; 32], CallError> {
    match policy {
        Some(policy) => canonical::digest(policy, "openshell.sandbox.v1.SandboxPolicy"),
        None => Ok([0; 32]),
    }
}

/// Changes when anything that the supervisor applies changes: the first half of the policy's digest, moved by its
/// version. Never 0, which peers read as "no revision".
fn revision(digest: &[u8; 32], version: u32) -> u64 {
    let head = digest.iter().take(8).fold(0_u64, |sum, byte| (sum << 8) | u64::from(*byte));
    head.wrapping_add(u64::from(version)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_revision_moves_with_the_policy_and_is_never_zero() {
        assert_eq!(revision(&[0; 32], 0), 1);
        let one = policy_digest(Some(&SandboxPolicy { version: 1, ..Default::default() })).unwrap();
        let two = policy_digest(Some(&SandboxPolicy { version: 2, ..Default::default() })).unwrap();
        assert_ne!(revision(&one, 1), revision(&two, 1));
    }
}
