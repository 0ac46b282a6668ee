//! A sandbox record: the message of the contract as it is stored, with its version.

use postern_driver_core::SandboxRef;
use postern_proto::v1::{Sandbox, SandboxPhase, SandboxStatus};
use postern_store::{NewObject, StoredObject};
use prost::Message as _;
use prost_types::Timestamp;

use super::phase::{self, Refusal, State};
use crate::call_error::CallError;

/// A sandbox as it was read, at one version.
#[derive(Clone, Debug, PartialEq)]
pub struct SandboxRecord {
    sandbox: Sandbox,
    version: u64,
}

impl SandboxRecord {
    /// Reads what [`SandboxRecord::to_object`] wrote.
    pub(super) fn from_stored(stored: StoredObject) -> Result<Self, CallError> {
        let mut sandbox = Sandbox::decode(stored.payload.as_slice())
            .map_err(|error| CallError::internal("decoding a sandbox record", error))?;
        let metadata = sandbox.metadata.get_or_insert_default();
        // The columns are what the store searched by, so they are what is told.
        metadata.id = stored.id;
        metadata.name = stored.name;
        metadata.workspace = stored.workspace;
        metadata.labels = stored.labels.into_iter().collect();
        metadata.resource_version = stored.version;
        Ok(Self { sandbox, version: stored.version })
    }

    /// The form in which it is stored. Labels are stored beside the payload, to be selected by.
    pub(super) fn to_object(sandbox: &Sandbox) -> NewObject {
        let mut stored = sandbox.clone();
        let metadata = stored.metadata.get_or_insert_default();
        let labels = std::mem::take(&mut metadata.labels);
        metadata.resource_version = 0;
        let (id, workspace, name) =
            (metadata.id.clone(), metadata.workspace.clone(), metadata.name.clone());
        NewObject::new(id, workspace, name, stored.encode_to_vec()).with_labels(labels)
    }

    /// The record that a write of `sandbox` made.
    pub(super) fn written(mut sandbox: Sandbox, version: u64) -> Self {
        sandbox.metadata.get_or_insert_default().resource_version = version;
        Self { sandbox, version }
    }

    /// Identifier, never reused.
    #[must_use]
    pub fn id(&self) -> &str {
        self.sandbox.metadata.as_ref().map_or("", |metadata| &metadata.id)
    }

    /// Name, unique in its workspace.
    #[must_use]
    pub fn name(&self) -> &str {
        self.sandbox.metadata.as_ref().map_or("", |metadata| &metadata.name)
    }

    /// Workspace.
    #[must_use]
    pub fn workspace(&self) -> &str {
        self.sandbox.metadata.as_ref().map_or("", |metadata| &metadata.workspace)
    }

    /// Version; grows with each write.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Phase.
    #[must_use]
    pub fn phase(&self) -> SandboxPhase {
        self.sandbox.status.as_ref().map_or(SandboxPhase::Unspecified, SandboxStatus::phase)
    }

    /// SSH host key of the supervisor, empty when unknown.
    #[must_use]
    pub fn host_key_fingerprint(&self) -> &str {
        &self.sandbox.host_key_fingerprint
    }

    /// The message that clients get.
    #[must_use]
    pub fn sandbox(&self) -> &Sandbox {
        &self.sandbox
    }

    /// The message that clients get.
    #[must_use]
    pub fn into_sandbox(self) -> Sandbox {
        self.sandbox
    }

    /// How the driver is told which sandbox is meant.
    pub(super) fn driver_ref(&self) -> SandboxRef {
        SandboxRef::new(self.id(), self.name())
    }

    /// What phases write.
    pub(super) fn state(&self) -> State {
        let metadata = self.sandbox.metadata.as_ref();
        State {
            status: self.sandbox.status.clone().unwrap_or_default(),
            host_key_fingerprint: self.sandbox.host_key_fingerprint.clone(),
            deletion_time: metadata.and_then(|metadata| metadata.deletion_time),
        }
    }

    /// The same sandbox with another state.
    pub(super) fn with_state(&self, state: State) -> Sandbox {
        let mut sandbox = self.sandbox.clone();
        sandbox.status = Some(state.status);
        sandbox.host_key_fingerprint = state.host_key_fingerprint;
        sandbox.metadata.get_or_insert_default().deletion_time = state.deletion_time;
        sandbox
    }

    /// Reason and message of the Ready condition, for people.
    #[must_use]
    pub fn why(&self) -> String {
        let conditions = self.sandbox.status.as_ref().map_or(&[][..], |status| &status.conditions);
        conditions.iter().find(|held| held.r#type == phase::READY).map_or_else(
            String::new,
            |held| {
                if held.message.is_empty() {
                    held.reason.clone()
                } else {
                    format!("{}: {}", held.reason, held.message)
                }
            },
        )
    }

    /// What a caller gets who needs a Ready sandbox and cannot wait for one.
    #[must_use]
    pub fn not_ready(&self) -> CallError {
        let next = match self.phase() {
            SandboxPhase::Stopped | SandboxPhase::Completed | SandboxPhase::Error => {
                "; start it first"
            }
            SandboxPhase::Stopping => "; wait until it is stopped, then start it",
            SandboxPhase::Deleting => "; create another one",
            _ => "; wait until it is",
        };
        CallError::FailedPrecondition {
            reason: "SANDBOX_NOT_READY",
            description: format!(
                "sandbox {:?} is not ready but {} ({}){next}",
                self.name(),
                phase_word(self.phase()),
                self.why()
            ),
        }
    }

    /// What a user gets whose request this phase refuses.
    pub(super) fn refusal(&self, refusal: Refusal) -> CallError {
        let (reason, next) = match refusal {
            Refusal::Deleting => ("SANDBOX_DELETING", "is being deleted; create another one"),
            Refusal::Stopping => {
                ("SANDBOX_STOPPING", "is being stopped; start it once it is stopped")
            }
        };
        CallError::FailedPrecondition {
            reason,
            description: format!("sandbox {:?} {next}", self.name()),
        }
    }
}

/// The phase as people read it: `provisioning`, `ready`, ...
#[must_use]
pub(super) fn phase_word(phase: SandboxPhase) -> String {
    phase.as_str_name().trim_start_matches("SANDBOX_PHASE_").to_ascii_lowercase()
}

/// A wall-clock time as the wire writes it.
pub(super) fn timestamp(time: std::time::SystemTime) -> Timestamp {
    Timestamp::from(time)
}
