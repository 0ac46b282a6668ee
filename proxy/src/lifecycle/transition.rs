//! One event, one write: read the record, ask the rule, write with compare-and-set, tell whoever watches.

use postern_store::{Kind, Precondition, StoreError};

use super::Lifecycle;
use super::feed::Level;
use super::locks::KeyedGuard;
use super::phase::{self, Event, Refusal, Step};
use super::record::{SandboxRecord, phase_word, timestamp};
use crate::call_error::CallError;

/// Attempts at one write. Inside this gateway the record lock makes conflicts impossible; they come from other
/// writers of the same store, which are few and short.
const MAX_ATTEMPTS: u32 = 8;

/// What came of an event.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Nothing changed; this is the record.
    Same(SandboxRecord),
    /// The record as it was written.
    Changed(SandboxRecord),
    /// The record was removed.
    Removed,
    /// The rule refused; this is the record.
    Refused(SandboxRecord, Refusal),
    /// There is no record.
    NoRecord,
}

impl Outcome {
    /// The record, if the event was not refused.
    pub(super) fn into_record(self, id: &str) -> Result<SandboxRecord, CallError> {
        match self {
            Self::Same(record) | Self::Changed(record) => Ok(record),
            Self::Refused(record, refusal) => Err(record.refusal(refusal)),
            Self::Removed | Self::NoRecord => Err(CallError::no_sandbox(id)),
        }
    }
}

impl Lifecycle {
    /// Applies one event to a record. `event` is asked again for every attempt, so what it reads (the current
    /// session) is as new as the record it is applied to. The guard proves that the record lock is held.
    pub(super) async fn transition(
        &self,
        _guard: &KeyedGuard,
        id: &str,
        event: impl Fn(&SandboxRecord) -> Event + Send,
    ) -> Result<Outcome, CallError> {
        for _ in 0..MAX_ATTEMPTS {
            let Some(record) = self.by_id(id).await? else {
                return Ok(Outcome::NoRecord);
            };
            let now = timestamp(self.now());
            match phase::step(&record.state(), &event(&record), now) {
                Step::Same => return Ok(Outcome::Same(record)),
                Step::Refused(refusal) => return Ok(Outcome::Refused(record, refusal)),
                Step::Remove => {
                    self.remove(&record).await?;
                    return Ok(Outcome::Removed);
                }
                Step::To(state) => {
                    let sandbox = record.with_state(*state);
                    let object = SandboxRecord::to_object(&sandbox);
                    match self
                        .shared
                        .store
                        .put(Kind::Sandbox, object, Precondition::Version(record.version()))
                        .await
                    {
                        Ok(version) => {
                            let written = SandboxRecord::written(sandbox, version);
                            self.tell(&record, &written);
                            return Ok(Outcome::Changed(written));
                        }
                        Err(StoreError::Conflict { .. }) => continue,
                        Err(error) => return Err(error.into()),
                    }
                }
            }
        }
        Err(CallError::Aborted {
            reason: "RECORD_BUSY",
            description: format!(
                "sandbox {id} kept changing during {MAX_ATTEMPTS} attempts; try again"
            ),
        })
    }

    /// Removes a record and everything that belongs to it. The record lock is held.
    async fn remove(&self, record: &SandboxRecord) -> Result<(), CallError> {
        let id = record.id();
        self.shared.ender.end(id, "the sandbox was deleted");
        if let Err(error) = self.shared.cleanup.cleanup(id).await {
            tracing::warn!(sandbox_id = id, %error, "could not remove what belongs to a deleted sandbox");
        }
        self.shared.store.delete(Kind::Sandbox, id, None).await?;
        self.shared.feeds.close(id);
        tracing::info!(sandbox_id = id, sandbox = record.name(), "sandbox removed");
        Ok(())
    }

    /// Log line, metric and wake-up after a write.
    fn tell(&self, before: &SandboxRecord, after: &SandboxRecord) {
        let id = after.id();
        if before.phase() != after.phase() {
            let phase = phase_word(after.phase());
            let why = after.why();
            tracing::info!(
                sandbox_id = id,
                from = phase_word(before.phase()),
                to = phase,
                why,
                "phase changed"
            );
            metrics::counter!(PHASE_TRANSITIONS, "to" => phase.clone()).increment(1);
            self.note(
                id,
                Level::Info,
                format!("{} -> {phase} ({why})", phase_word(before.phase())),
                [("phase".to_owned(), phase)],
            );
        }
        self.shared.feeds.touch(id);
    }

    /// Adds a line of the gateway's own to the log of a sandbox.
    pub fn note(
        &self,
        sandbox_id: &str,
        level: Level,
        message: impl Into<String>,
        fields: impl IntoIterator<Item = (String, String)>,
    ) {
        let line = super::feed::gateway_line(sandbox_id, self.now(), level, message.into(), fields);
        self.shared.feeds.open(sandbox_id).push_log(line);
    }
}

/// Counts phase changes by the phase entered.
const PHASE_TRANSITIONS: &str = "phase_transitions_total";
