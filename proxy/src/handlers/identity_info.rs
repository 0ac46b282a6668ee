//! Health, the gateway about itself, and the caller about themselves.

use std::sync::Arc;

use postern_proto::v1::{
    ComputeDriverInfo, GetCurrentUserResponse, GetGatewayInfoResponse, HealthResponse,
    ServiceStatus,
};

use crate::auth::Principal;
use crate::call_error::CallError;

/// What the gateway says about itself.
#[derive(Clone)]
pub struct GatewayInfo {
    /// The drivers that make sandboxes exist.
    pub compute_drivers: Vec<ComputeDriverInfo>,
    /// Whether the gateway can serve now: the store answers and no drain has begun.
    pub status: Arc<dyn Fn() -> ServiceStatus + Send + Sync>,
}

/// The version in all answers.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

// === impl GatewayInfo ===

impl GatewayInfo {
    /// Answers `Health`.
    #[must_use]
    pub fn health(&self) -> HealthResponse {
        HealthResponse { status: (self.status)().into(), version: VERSION.to_owned() }
    }

    /// Answers `GetGatewayInfo`.
    #[must_use]
    pub fn gateway_info(&self) -> GetGatewayInfoResponse {
        GetGatewayInfoResponse {
            status: (self.status)().into(),
            gateway_version: VERSION.to_owned(),
            compute_drivers: self.compute_drivers.clone(),
            extensions: Vec::new(),
        }
    }
}

impl std::fmt::Debug for GatewayInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GatewayInfo")
            .field("compute_drivers", &self.compute_drivers)
            .field("status", &(self.status)())
            .finish()
    }
}

/// Answers `GetCurrentUser`.
///
/// # Errors
/// `PERMISSION_DENIED` for anyone who is not a user.
pub fn current_user(principal: &Principal) -> Result<GetCurrentUserResponse, CallError> {
    let user = principal.require_user()?;
    Ok(GetCurrentUserResponse {
        subject: user.subject.clone(),
        display_name: user.display_name.clone(),
        roles: user.roles.clone(),
        scopes: user.scopes.clone(),
        identity_provider: user.provider.as_str().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{SandboxPrincipal, User};

    #[test]
    fn a_user_learns_who_they_are() {
        let answer = current_user(&Principal::User(User::local_dev())).unwrap();
        assert_eq!(answer.subject, "unauthenticated-local-dev");
        assert_eq!(answer.identity_provider, "local-dev");
        assert!(current_user(&Principal::Sandbox(SandboxPrincipal::new("s"))).is_err());
    }

    #[test]
    fn health_follows_the_gateway() {
        let info = GatewayInfo {
            compute_drivers: Vec::new(),
            status: Arc::new(|| ServiceStatus::Degraded),
        };
        assert_eq!(info.health().status(), ServiceStatus::Degraded);
        assert_eq!(info.gateway_info().gateway_version, VERSION);
    }
}
