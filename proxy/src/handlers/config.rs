//! `GetSandboxConfig`: the policy and settings that a supervisor enforces, as it polls for them.

use postern_proto::sandbox::{
    GetSandboxConfigRequest, GetSandboxConfigResponse, PolicySource, SandboxPolicy,
};

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
    let record =
        lifecycle.resolve(principal, request.workspace_scope.as_ref(), &request.name).await?;
    let workspace = record.workspace().to_owned();
    let sandbox = record.into_sandbox();
    let status = sandbox.status.unwrap_or_default();
    let policy = sandbox.spec.and_then(|spec| spec.policy);
    let digest = policy_digest(policy.as_ref())?;
    Ok(GetSandboxConfigResponse {
        version: if policy.is_some() { status.current_policy_version } else { 0 },
        policy_hash: if policy.is_some() { canonical::hex(&digest) } else { String::new() },
        config_revision: revision(&digest, status.current_policy_version),
        policy_source: if policy.is_some() {
            PolicySource::Sandbox
        } else {
            PolicySource::Unspecified
        }
        .into(),
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
    use postern_proto::v1::{CreateSandboxRequest, SandboxSpec};

    use super::*;
    use crate::lifecycle::testing::{Rig, supervisor, user};

    #[test]
    fn the_revision_moves_with_the_policy_and_is_never_zero() {
        assert_eq!(revision(&[0; 32], 0), 1);
        let one = policy_digest(Some(&SandboxPolicy { version: 1, ..Default::default() })).unwrap();
        let two = policy_digest(Some(&SandboxPolicy { version: 2, ..Default::default() })).unwrap();
        assert_ne!(revision(&one, 1), revision(&two, 1));
    }

    #[tokio::test]
    async fn a_sandbox_reads_its_own_configuration_by_name_and_by_id() {
        let rig = Rig::new().await;
        let policy = SandboxPolicy { version: 1, ..Default::default() };
        let spec = SandboxSpec { policy: Some(policy.clone()), ..Default::default() };
        let request =
            CreateSandboxRequest { name: "web".into(), spec: Some(spec), ..Default::default() };
        let made =
            crate::handlers::sandboxes::create(&rig.lifecycle, &user(), request).await.unwrap();
        let id = made.sandbox.unwrap().metadata.unwrap().id;
        let ask =
            |name: &str| GetSandboxConfigRequest { name: name.to_owned(), ..Default::default() };
        let by_name = get(&rig.lifecycle, &supervisor(&id), ask("web")).await.unwrap();
        let by_id = get(&rig.lifecycle, &supervisor(&id), ask(&id)).await.unwrap();
        assert_eq!(by_name, by_id);
        assert_eq!(by_name, get(&rig.lifecycle, &user(), ask("web")).await.unwrap());
        assert_eq!((by_name.version, by_name.policy_source()), (1, PolicySource::Sandbox));
        assert_eq!((by_name.policy, by_name.policy_hash.len()), (Some(policy), 64));
        assert_eq!(by_name.workspace, "default");
        let denied = get(&rig.lifecycle, &supervisor("another"), ask("web")).await.unwrap_err();
        assert_eq!(denied.code(), tonic::Code::PermissionDenied);
    }

    #[tokio::test]
    async fn without_a_policy_there_is_no_version_to_enforce() {
        let rig = Rig::new().await;
        let request = CreateSandboxRequest { name: "web".into(), ..Default::default() };
        crate::handlers::sandboxes::create(&rig.lifecycle, &user(), request).await.unwrap();
        let ask = GetSandboxConfigRequest { name: "web".into(), ..Default::default() };
        let answer = get(&rig.lifecycle, &user(), ask).await.unwrap();
        assert_eq!((answer.policy, answer.version, answer.policy_hash.as_str()), (None, 0, ""));
        assert_ne!(answer.config_revision, 0);
    }
}
