//! The end of a sandbox's main process.

use std::sync::Arc;
use std::time::Duration;

use postern_proto::v1::SandboxPhase;

use super::Lifecycle;
use super::phase::{Event, FINALIZED};
use super::record::SandboxRecord;
use super::transition::Outcome;
use crate::call_error::CallError;

impl Lifecycle {
    /// The supervisor reports that the main process ended. On disk when this returns. Reports of an older process
    /// epoch, and repetitions, change nothing.
    ///
    /// # Errors
    /// `NOT_FOUND` without a record, `UNAVAILABLE` when the store is away: the supervisor tries again.
    pub async fn main_exited(
        &self,
        sandbox_id: &str,
        instance_id: &str,
        code: i32,
    ) -> Result<(), CallError> {
        let event = Event::MainExit { instance_id: instance_id.to_owned(), code };
        match self.fire(sandbox_id, event).await? {
            Outcome::NoRecord => Err(CallError::no_sandbox(sandbox_id)),
            _ => Ok(()),
        }
    }

    /// The supervisor has handed over everything its main process wrote and leaves. The runtime is told to stop the
    /// sandbox as soon as the answer is out, so that nothing starts the finished work again.
    ///
    /// # Errors
    /// As [`Lifecycle::main_exited`].
    pub async fn main_finalized(
        &self,
        sandbox_id: &str,
        instance_id: &str,
    ) -> Result<(), CallError> {
        let event = Event::Finalized { instance_id: instance_id.to_owned() };
        match self.fire(sandbox_id, event).await? {
            Outcome::NoRecord => Err(CallError::no_sandbox(sandbox_id)),
            Outcome::Changed(record) => {
                self.release_after(&record, self.shared.config.finalize_grace);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The session of a sandbox ended. If its main process ended before, nobody is left to hand anything over, whether
    /// that was said (0.1 line) or not (0.0.11x line).
    pub(super) fn release_if_ended(&self, record: &SandboxRecord) {
        if has_ended(record) {
            self.release_after(record, Duration::ZERO);
        }
    }

    fn release_after(&self, record: &SandboxRecord, grace: Duration) {
        let id = record.id().to_owned();
        // Without a free place the runtime is busy enough; the next comparison releases it.
        let Ok(permit) = Arc::clone(&self.shared.operations).try_acquire_owned() else {
            return;
        };
        let me = self.clone();
        tokio::spawn(async move {
            let _permit = permit;
            tokio::time::sleep(grace).await;
            me.release(&id).await;
        });
    }

    /// Stops a finished sandbox on the runtime, if it is still finished.
    pub(super) async fn release(&self, id: &str) {
        let released = async {
            let _gate = self.gate(id).await?;
            let Some(record) = self.by_id(id).await?.filter(has_ended) else {
                return Ok(());
            };
            self.shared.ender.end(id, "the main process ended");
            self.ask_driver(
                "stopping a finished sandbox",
                self.shared.driver.stop(&record.driver_ref()),
            )
            .await?;
            Ok::<_, CallError>(())
        };
        if let Err(error) = released.await {
            tracing::warn!(sandbox_id = id, %error, "could not stop a finished sandbox on the runtime");
        }
    }
}

/// Whether the main process ended and nobody started the sandbox again.
pub(super) fn has_ended(record: &SandboxRecord) -> bool {
    let exited = record.sandbox().status.as_ref().is_some_and(|status| status.exit_code.is_some());
    exited && matches!(record.phase(), SandboxPhase::Completed | SandboxPhase::Error)
}

/// Whether the supervisor said that nothing more comes.
pub(super) fn is_finalized(record: &SandboxRecord) -> bool {
    let conditions = record.sandbox().status.as_ref().map_or(&[][..], |status| &status.conditions);
    conditions.iter().any(|held| held.r#type == FINALIZED && held.status == "True")
}
