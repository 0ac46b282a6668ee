//! From a sandbox's record to an open relay: waits until the sandbox is Ready, then asks the plane, under one budget.

use std::sync::Arc;
use std::time::Duration;

use postern_relay::registry::Target;
use tokio::time::{Instant, timeout};
use tonic::Status;

use super::{OpenedRelay, RelayKind, RelayPlane, RelayRequest};
use crate::auth::Principal;
use crate::call_error::CallError;
use crate::lifecycle::{Lifecycle, SandboxRecord, phase};

/// Opens relays into sandboxes that may still be starting.
#[derive(Clone)]
pub struct Gate {
    lifecycle: Lifecycle,
    plane: RelayPlane,
}

/// A relay as a handler asks for it.
#[derive(Clone, Debug)]
pub struct Wish {
    /// Where in the sandbox.
    pub target: Target,
    /// What for.
    pub kind: RelayKind,
    /// How long all of it may take before the supervisor is asked.
    pub budget: Duration,
    /// Who asks.
    pub principal: Arc<Principal>,
    /// Label, may be empty.
    pub service_id: Arc<str>,
}

// === impl Gate ===

impl Gate {
    /// Opens relays of `plane` into the sandboxes of `lifecycle`.
    #[must_use]
    pub const fn new(lifecycle: Lifecycle, plane: RelayPlane) -> Self {
        Self { lifecycle, plane }
    }

    /// Opens one relay into the sandbox of `record`.
    ///
    /// A sandbox on its way to Ready is waited for within the budget; the session then has what is left of it.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` at once in a phase that does not lead to Ready, `UNAVAILABLE` with the budget in the
    /// text when it is spent, and everything that [`RelayPlane::open`] fails with.
    pub async fn open(&self, record: &SandboxRecord, wish: Wish) -> Result<OpenedRelay, Status> {
        let started = Instant::now();
        self.ready(record, wish.budget).await?;
        let request = RelayRequest {
            sandbox_id: record.id().into(),
            target: wish.target,
            kind: wish.kind,
            budget: wish.budget.saturating_sub(started.elapsed()),
            principal: wish.principal,
            service_id: wish.service_id,
        };
        Ok(self.plane.open(request).await?)
    }

    /// Waits until the sandbox of `record` is Ready.
    ///
    /// # Errors
    /// As [`Gate::open`].
    pub async fn ready(&self, record: &SandboxRecord, budget: Duration) -> Result<(), CallError> {
        // The record was read a moment ago: only a sandbox on its way costs a second look.
        match phase::outlook(record.phase()) {
            phase::Outlook::Ready => return Ok(()),
            phase::Outlook::NotComing => return Err(record.not_ready()),
            phase::Outlook::Coming => {}
        }
        match timeout(budget, self.lifecycle.wait_ready(record.id())).await {
            Ok(outcome) => outcome.map(drop),
            Err(_) => Err(CallError::Unavailable {
                reason: "SANDBOX_NOT_READY",
                description: format!(
                    "sandbox {:?} did not become ready within {}; try again or look at its conditions",
                    record.name(),
                    super::rounded(budget)
                ),
                retry_after: Some(Duration::from_secs(1)),
            }),
        }
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gate").finish_non_exhaustive()
    }
}
