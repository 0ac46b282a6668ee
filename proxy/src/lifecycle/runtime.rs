//! What the runtime reports, and how it becomes phases.
//!
//! A report that would end a sandbox (Error, Stopped, Deleting, gone) is never believed from the stream alone: it may
//! have been sent before the last operation. It is confirmed by a fresh read of the driver, and left to the operation
//! when one is under way.

use std::time::Duration;

use postern_driver_core::condition::{self, RuntimeState};
use postern_driver_core::{DriverError, WatchEvent};

use super::Lifecycle;
use super::locks::KeyedGuard;
use super::phase::Event;
use super::record::{SandboxRecord, timestamp};
use super::transition::Outcome;
use crate::call_error::CallError;

/// What the runtime has of a sandbox.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Seen {
    /// This.
    State(RuntimeState),
    /// Nothing.
    Gone,
}

impl Seen {
    /// Whether the sandbox ends by this.
    fn is_final(&self) -> bool {
        match self {
            Self::Gone => true,
            Self::State(state) => matches!(
                state,
                RuntimeState::Deleting | RuntimeState::Stopped | RuntimeState::Failed { .. }
            ),
        }
    }
}

impl Lifecycle {
    /// One event of the driver's watch stream. Events about unknown sandboxes are ignored.
    pub(crate) async fn observe(&self, event: WatchEvent) {
        let id = event.sandbox_id().to_owned();
        let seen = match event {
            WatchEvent::Sandbox(sandbox) => Seen::State(condition::derive(sandbox.status.as_ref())),
            WatchEvent::Deleted { .. } => Seen::Gone,
            WatchEvent::Platform { event, .. } => return self.platform_event(&id, *event).await,
        };
        if let Err(error) = self.apply(&id, seen).await {
            tracing::warn!(sandbox_id = id, %error, "could not record what the runtime reported");
        }
    }

    /// Applies what was seen of a sandbox some time ago.
    pub(super) async fn apply(&self, id: &str, seen: Seen) -> Result<(), CallError> {
        if !seen.is_final() {
            let guard = self.shared.records.lock(id).await;
            self.apply_now(&guard, id, seen).await?;
            return Ok(());
        }
        // Without the gate an operation is under way, and it ends by looking itself. With it none can begin, so what
        // is read now stays true until it is written; the record lock is not held while the driver is asked.
        let Some(_gate) = self.shared.gates.try_lock(id) else {
            return Ok(());
        };
        let Some(record) = self.by_id(id).await? else {
            return Ok(());
        };
        let fresh = self.look(&record).await?;
        let guard = self.shared.records.lock(id).await;
        self.apply_now(&guard, id, fresh).await?;
        Ok(())
    }

    /// Applies what is known to be true now: read under the record lock, or by the operation that holds the gate.
    pub(super) async fn apply_now(
        &self,
        guard: &KeyedGuard,
        id: &str,
        seen: Seen,
    ) -> Result<Outcome, CallError> {
        self.transition(guard, id, |_| match &seen {
            Seen::Gone => Event::RuntimeGone,
            Seen::State(state) => Event::Runtime {
                seen: state.clone(),
                session: self.shared.sessions.current(id).is_some(),
            },
        })
        .await
    }

    /// What the runtime has of a sandbox now.
    pub(super) async fn look(&self, record: &SandboxRecord) -> Result<Seen, CallError> {
        match self
            .ask_driver("reading a sandbox", self.shared.driver.get(&record.driver_ref()))
            .await
        {
            Ok(sandbox) => Ok(Seen::State(condition::derive(sandbox.status.as_ref()))),
            Err(DriverFailure::Refused(DriverError::NotFound { .. })) => Ok(Seen::Gone),
            Err(error) => Err(error.into()),
        }
    }

    /// Bounds a call of the driver.
    pub(super) async fn ask_driver<T>(
        &self,
        doing: &'static str,
        call: impl Future<Output = Result<T, DriverError>>,
    ) -> Result<T, DriverFailure> {
        let budget = self.shared.config.driver_call;
        match tokio::time::timeout(budget, call).await {
            Ok(answer) => answer.map_err(DriverFailure::Refused),
            Err(_) => Err(DriverFailure::Silent { doing, budget }),
        }
    }

    async fn platform_event(
        &self,
        id: &str,
        event: postern_driver_core::compute::DriverPlatformEvent,
    ) {
        match self.by_id(id).await {
            Ok(Some(_)) => {
                let time = u64::try_from(event.timestamp_ms).map_or_else(
                    |_| self.now(),
                    |ms| std::time::UNIX_EPOCH + Duration::from_millis(ms),
                );
                self.shared.feeds.open(id).push_event(postern_proto::v1::PlatformEvent {
                    event_time: Some(timestamp(time)),
                    source: event.source,
                    r#type: event.r#type,
                    reason: event.reason,
                    message: event.message,
                    metadata: event.metadata,
                });
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(sandbox_id = id, %error, "lost a platform event"),
        }
    }
}

/// Why a driver did not do something.
#[derive(Debug, thiserror::Error)]
pub(super) enum DriverFailure {
    /// It said no.
    #[error(transparent)]
    Refused(DriverError),
    /// It said nothing.
    #[error("the compute driver did not answer within {budget:?} ({doing})")]
    Silent {
        /// What it was asked.
        doing: &'static str,
        /// How long it was waited for.
        budget: Duration,
    },
}

impl From<DriverFailure> for CallError {
    fn from(failure: DriverFailure) -> Self {
        match failure {
            DriverFailure::Refused(error) => error.into(),
            DriverFailure::Silent { .. } => CallError::Unavailable {
                reason: "DRIVER_SILENT",
                description: failure.to_string(),
                retry_after: Some(Duration::from_secs(5)),
            },
        }
    }
}
