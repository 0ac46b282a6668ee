//! What users ask for: create, stop, start, delete.
//!
//! Each runs in a task of its own, so that a caller who hangs up does not leave a sandbox half way, and holds the gate
//! of its sandbox, so that two never run at once. The phase that says what was asked for is written first; if the
//! driver fails or the gateway dies after that, the next comparison with the runtime goes on from there.

use std::collections::HashMap;

use postern_driver_core::DriverError;
use postern_proto::datamodel::ObjectMeta;
use postern_proto::v1::{Sandbox, SandboxPhase, SandboxSpec};
use postern_store::{Kind, Precondition, Remembered, RequestKey, StoreError};
use rand::RngExt as _;

use super::feed::Level;
use super::locks::KeyedGuard;
use super::phase::{self, Event};
use super::record::{SandboxRecord, timestamp};
use super::runtime::{DriverFailure, Seen};
use super::{Lifecycle, MAX_OPERATIONS, driver_spec};
use crate::call_error::CallError;
use crate::names;

/// Tries to find a free generated name. There are thousands; eight collisions in a row mean that it is time for
/// names with a suffix, which the later tries have.
const NAME_TRIES: u32 = 8;

/// A request that may be repeated: how it is recognised, and a digest of its contents.
#[derive(Clone, Debug)]
pub struct Repeatable {
    /// Who asked what with which id.
    pub key: RequestKey,
    /// Digest of the request without its id.
    pub fingerprint: [u8; 32],
}

/// A checked request for a sandbox.
#[derive(Clone, Debug)]
pub struct CreateSpec {
    /// Workspace.
    pub workspace: String,
    /// Name; `None` for a generated one.
    pub name: Option<String>,
    /// Labels.
    pub labels: HashMap<String, String>,
    /// Annotations.
    pub annotations: HashMap<String, String>,
    /// What the sandbox is to be.
    pub spec: SandboxSpec,
    /// Set when the caller gave a request id.
    pub repeatable: Option<Repeatable>,
}

/// A sandbox that was asked for.
#[derive(Clone, Debug)]
pub struct Created {
    /// Its record.
    pub record: SandboxRecord,
    /// Whether an earlier request with the same id made it.
    pub repeated: bool,
}

/// A sandbox whose deletion was asked for.
#[derive(Clone, Debug)]
pub struct Deleted {
    /// Its id.
    pub sandbox_id: String,
    /// Whether it is gone; otherwise the runtime is still at it.
    pub finished: bool,
}

impl Lifecycle {
    /// Makes a sandbox.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` or `FAILED_PRECONDITION` from the driver, `ALREADY_EXISTS` for a taken name, `ABORTED` for a
    /// request id that was used for something else or whose sandbox is gone, `UNAVAILABLE`, `RESOURCE_EXHAUSTED`.
    /// After an error no record is left.
    pub async fn create(&self, spec: CreateSpec) -> Result<Created, CallError> {
        let mut sandbox = self.new_sandbox(&spec);
        let request = driver_spec::driver_sandbox(&sandbox, &self.shared.capabilities)?;
        self.ask_driver("checking a create", self.shared.driver.validate_create(&request)).await?;
        self.operate(move |me| async move {
            let id = id_of(&sandbox).to_owned();
            let _gate = me.gate(&id).await?;
            if let Some(repeatable) = &spec.repeatable
                && let Some(earlier) = me.remember(repeatable, &id).await?
            {
                return me.repeat_create(&earlier).await;
            }
            let made = me.create_new(&mut sandbox, spec.name.is_none()).await;
            let record = me.forget_if_failed(spec.repeatable.as_ref(), made).await?;
            Ok(Created { record, repeated: false })
        })
        .await
    }

    /// Stops a sandbox. Idempotent; works from every phase but Deleting.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` while it is deleted or when the runtime does not know it, otherwise the driver's answer.
    /// After a driver error the sandbox is Stopping, and stopping goes on in the background.
    pub async fn stop(
        &self,
        record: SandboxRecord,
        repeatable: Option<Repeatable>,
    ) -> Result<SandboxRecord, CallError> {
        self.operate(move |me| async move {
            let id = record.id().to_owned();
            let _gate = me.gate(&id).await?;
            if let Some(earlier) = me.remember_maybe(repeatable.as_ref(), &id).await? {
                return me.existing(&earlier).await;
            }
            let stopped = me.stop_gated(&id).await;
            me.forget_if_failed(repeatable.as_ref(), stopped).await
        })
        .await
    }

    /// Starts a sandbox that is Stopped, Completed or in Error. Idempotent.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` while it is stopped or deleted, otherwise the driver's answer; the sandbox is in Error then.
    pub async fn start(
        &self,
        record: SandboxRecord,
        repeatable: Option<Repeatable>,
    ) -> Result<SandboxRecord, CallError> {
        self.operate(move |me| async move {
            let id = record.id().to_owned();
            let _gate = me.gate(&id).await?;
            if let Some(earlier) = me.remember_maybe(repeatable.as_ref(), &id).await? {
                return me.existing(&earlier).await;
            }
            let started = me.start_gated(&id).await;
            me.forget_if_failed(repeatable.as_ref(), started).await
        })
        .await
    }

    /// Deletes a sandbox, from any phase.
    ///
    /// # Errors
    /// The driver's answer; the sandbox is Deleting then, and deletion goes on in the background.
    pub async fn delete(
        &self,
        record: SandboxRecord,
        repeatable: Option<Repeatable>,
    ) -> Result<Deleted, CallError> {
        self.operate(move |me| async move {
            let id = record.id().to_owned();
            let _gate = me.gate(&id).await?;
            if let Some(earlier) = me.remember_maybe(repeatable.as_ref(), &id).await?
                && earlier != id
            {
                // The name went to another sandbox since; the request was about the first one.
                let finished = me.by_id(&earlier).await?.is_none();
                return Ok(Deleted { sandbox_id: earlier, finished });
            }
            match me.fire(&id, Event::DeleteRequested).await?.into_record(&id) {
                Ok(record) => me.finish_delete(&record).await,
                // Somebody else's deletion finished while this one waited for the gate.
                Err(CallError::NotFound { .. }) => Ok(Deleted { sandbox_id: id, finished: true }),
                Err(error) => Err(error),
            }
        })
        .await
    }

    /// The sandbox that an earlier request with this id was about, if there was one.
    ///
    /// # Errors
    /// `UNAVAILABLE`; `ABORTED` when the id was used for another request.
    pub async fn remember(
        &self,
        repeatable: &Repeatable,
        id: &str,
    ) -> Result<Option<String>, CallError> {
        let key = repeatable.key.clone();
        let request_id = key.request_id.clone();
        match self.shared.store.remember_request(key, repeatable.fingerprint, id).await? {
            Remembered::New => Ok(None),
            Remembered::Same { result_id } => Ok(Some(result_id)),
            Remembered::Different => Err(CallError::Aborted {
                reason: "REQUEST_ID_REUSED",
                description: format!(
                    "request_id {request_id:?} was used for another request; choose a new one"
                ),
            }),
        }
    }

    /// The sandbox that an earlier DeleteSandbox with this request id was about, if that is all that is left of it.
    ///
    /// # Errors
    /// As [`Lifecycle::remember`].
    pub async fn recall(&self, repeatable: &Repeatable) -> Result<Option<String>, CallError> {
        let earlier = self.remember(repeatable, "").await?;
        if earlier.is_none() {
            // Nothing came of this request, so a repetition may still find its sandbox.
            self.shared.store.forget_request(&repeatable.key).await?;
        }
        Ok(earlier.filter(|id| !id.is_empty()))
    }

    // === Parts of operations, also used by upkeep to go on with one ===

    async fn stop_gated(&self, id: &str) -> Result<SandboxRecord, CallError> {
        let record = self.fire(id, Event::StopRequested).await?.into_record(id)?;
        match record.phase() {
            SandboxPhase::Stopped => Ok(record),
            _ => self.finish_stop(&record).await,
        }
    }

    async fn start_gated(&self, id: &str) -> Result<SandboxRecord, CallError> {
        let record = self.fire(id, Event::StartRequested).await?.into_record(id)?;
        match record.phase() {
            SandboxPhase::Starting => self.finish_start(&record).await,
            _ => Ok(record),
        }
    }

    pub(super) async fn finish_stop(
        &self,
        record: &SandboxRecord,
    ) -> Result<SandboxRecord, CallError> {
        let id = record.id();
        self.cut_off(id, "the sandbox is being stopped").await;
        let answer = self
            .ask_driver("stopping a sandbox", self.shared.driver.stop(&record.driver_ref()))
            .await;
        let seen = match answer {
            Ok(()) => self.look(record).await?,
            Err(DriverFailure::Refused(DriverError::NotFound { .. })) => Seen::Gone,
            Err(error) => {
                self.fire(id, Event::StopFailed { message: error.to_string() }).await?;
                return Err(error.into());
            }
        };
        // A supervisor reconnects within a second, so it may have come back before it was ended.
        self.shared.ender.end(id, "the sandbox is stopped");
        let gone = seen == Seen::Gone;
        let record = self.settle(id, seen).await?;
        if gone {
            return Err(CallError::FailedPrecondition {
                reason: "BACKEND_MISSING",
                description: format!("sandbox {:?}: {}", record.name(), record.why()),
            });
        }
        Ok(record)
    }

    pub(super) async fn finish_start(
        &self,
        record: &SandboxRecord,
    ) -> Result<SandboxRecord, CallError> {
        let id = record.id();
        if let Err(error) = self.start_on_driver(record).await {
            self.fire(id, Event::StartFailed { message: error.to_string() }).await?;
            return Err(error);
        }
        let seen = self.look(record).await?;
        self.settle(id, seen).await?;
        self.pick_up_session(id).await?;
        self.existing(id).await
    }

    /// Starts it on the runtime, or makes it again there if the runtime lost it.
    pub(super) async fn start_on_driver(&self, record: &SandboxRecord) -> Result<(), CallError> {
        let token = self.shared.minter.mint(record.id())?;
        let which = record.driver_ref();
        let start = self.shared.driver.start(&which, Some(token));
        match self.ask_driver("starting a sandbox", start).await {
            Ok(()) => Ok(()),
            Err(DriverFailure::Refused(DriverError::NotFound { .. })) => {
                self.note(
                    record.id(),
                    Level::Warn,
                    "the runtime does not know this sandbox; making it again, without the files it had",
                    [],
                );
                Ok(self.create_on_driver(record.sandbox()).await?)
            }
            Err(error) => Err(error.into()),
        }
    }

    pub(super) async fn finish_delete(&self, record: &SandboxRecord) -> Result<Deleted, CallError> {
        let id = record.id();
        self.cut_off(id, "the sandbox is being deleted").await;
        let answer = self
            .ask_driver("deleting a sandbox", self.shared.driver.delete(&record.driver_ref()))
            .await;
        let seen = match answer {
            Ok(true) => self.look(record).await?,
            Ok(false) => Seen::Gone,
            Err(error) => {
                self.fire(id, Event::DeleteFailed { message: error.to_string() }).await?;
                return Err(error.into());
            }
        };
        if seen == Seen::Gone {
            self.fire(id, Event::RuntimeGone).await?;
        }
        Ok(Deleted { sandbox_id: id.to_owned(), finished: seen == Seen::Gone })
    }

    /// Ends session, relays and SSH sessions of a sandbox.
    async fn cut_off(&self, id: &str, reason: &str) {
        self.shared.ender.end(id, reason);
        if let Err(error) = self.shared.cleanup.cleanup(id).await {
            tracing::warn!(sandbox_id = id, %error, "could not remove what belongs to a sandbox");
        }
    }

    /// Applies what an operation saw at its end.
    async fn settle(&self, id: &str, seen: Seen) -> Result<SandboxRecord, CallError> {
        let guard = self.shared.records.lock(id).await;
        self.apply_now(&guard, id, seen).await?.into_record(id)
    }

    /// Applies one event that needs nothing else.
    pub(super) async fn fire(
        &self,
        id: &str,
        event: Event,
    ) -> Result<super::transition::Outcome, CallError> {
        let guard = self.shared.records.lock(id).await;
        self.transition(&guard, id, |_| event.clone()).await
    }

    // === Create ===

    async fn create_new(
        &self,
        sandbox: &mut Sandbox,
        generated: bool,
    ) -> Result<SandboxRecord, CallError> {
        let version = self.put_new(sandbox, generated).await?;
        let id = id_of(sandbox).to_owned();
        let record = SandboxRecord::written(sandbox.clone(), version);
        tracing::info!(sandbox_id = id, sandbox = record.name(), "sandbox created");
        self.note(&id, Level::Info, format!("created as {:?}", record.name()), []);
        if let Err(failure) = self.create_on_driver(sandbox).await {
            self.undo_create(&record, &failure).await;
            return Err(failure.into());
        }
        self.pick_up_session(&id).await?;
        self.existing(&id).await
    }

    async fn put_new(&self, sandbox: &mut Sandbox, generated: bool) -> Result<u64, CallError> {
        let mut tries = 0;
        loop {
            let object = SandboxRecord::to_object(sandbox);
            match self.shared.store.put(Kind::Sandbox, object, Precondition::MustCreate).await {
                Ok(version) => return Ok(version),
                Err(StoreError::AlreadyExists { .. }) if generated && tries < 2 * NAME_TRIES => {
                    tries += 1;
                    let mut rng = self.shared.rng.lock();
                    let name = if tries < NAME_TRIES {
                        names::two_words(&mut *rng)
                    } else {
                        names::two_words_and_suffix(&mut *rng)
                    };
                    sandbox.metadata.get_or_insert_default().name = name;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn create_on_driver(&self, sandbox: &Sandbox) -> Result<(), CreateFailure> {
        let mut request = driver_spec::driver_sandbox(sandbox, &self.shared.capabilities)?;
        let token = self.shared.minter.mint(id_of(sandbox))?;
        request.spec.get_or_insert_default().sandbox_token = token.expose().to_owned();
        Ok(self.ask_driver("creating a sandbox", self.shared.driver.create(request)).await?)
    }

    /// Removes the record of a sandbox that the driver did not make. If the driver said nothing it may have made it
    /// all the same, so then it is deleted there first, now or in the background.
    async fn undo_create(&self, record: &SandboxRecord, failure: &CreateFailure) {
        let id = record.id();
        let undone = async {
            self.fire(id, Event::DeleteRequested).await?;
            if matches!(failure, CreateFailure::Driver(DriverFailure::Silent { .. })) {
                self.finish_delete(record).await?;
            } else {
                self.fire(id, Event::RuntimeGone).await?;
            }
            Ok::<_, CallError>(())
        };
        if let Err(error) = undone.await {
            tracing::warn!(sandbox_id = id, %error, "could not take back a failed create; trying again later");
        }
    }

    async fn repeat_create(&self, earlier: &str) -> Result<Created, CallError> {
        // The first request holds this gate until it has an answer.
        let _gate = self.gate(earlier).await?;
        match self.by_id(earlier).await? {
            Some(record) => Ok(Created { record, repeated: true }),
            None => Err(CallError::Aborted {
                reason: "REQUEST_OUTCOME_GONE",
                description: "the sandbox that this request_id made is gone; choose a new request_id to make another"
                    .to_owned(),
            }),
        }
    }

    fn new_sandbox(&self, spec: &CreateSpec) -> Sandbox {
        let (id, name) = {
            let mut rng = self.shared.rng.lock();
            let id = uuid::Builder::from_random_bytes(rng.random()).into_uuid().to_string();
            (id, spec.name.clone().unwrap_or_else(|| names::two_words(&mut *rng)))
        };
        let now = timestamp(self.now());
        let state = phase::created(u32::from(spec.spec.policy.is_some()), now);
        Sandbox {
            metadata: Some(ObjectMeta {
                id,
                name,
                created_time: Some(now),
                labels: spec.labels.clone(),
                annotations: spec.annotations.clone(),
                workspace: spec.workspace.clone(),
                ..ObjectMeta::default()
            }),
            spec: Some(spec.spec.clone()),
            status: Some(state.status),
            ..Sandbox::default()
        }
    }

    // === Running operations ===

    /// Runs an operation to its end even if the caller goes away.
    async fn operate<T, F>(&self, operation: impl FnOnce(Self) -> F) -> Result<T, CallError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, CallError>> + Send + 'static,
    {
        let permit =
            std::sync::Arc::clone(&self.shared.operations).try_acquire_owned().map_err(|_| {
                CallError::ResourceExhausted {
                    cap: "lifecycle.operations".into(),
                    value: MAX_OPERATIONS as u64,
                    description: "too many sandboxes are being changed at once".to_owned(),
                    retry_after: Some(std::time::Duration::from_secs(1)),
                }
            })?;
        let running = operation(self.clone());
        let task = tokio::spawn(async move {
            let _permit = permit;
            running.await
        });
        task.await.map_err(|error| CallError::internal("changing a sandbox", error))?
    }

    /// The gate of a sandbox. Waits for at most two driver calls: longer queues are not worth standing in.
    pub(super) async fn gate(&self, id: &str) -> Result<KeyedGuard, CallError> {
        let budget = self.shared.config.driver_call * 2;
        tokio::time::timeout(budget, self.shared.gates.lock(id)).await.map_err(|_| {
            CallError::Aborted {
                reason: "SANDBOX_BUSY",
                description: format!(
                    "sandbox {id} was busy with another operation for {budget:?}; try again"
                ),
            }
        })
    }

    async fn remember_maybe(
        &self,
        repeatable: Option<&Repeatable>,
        id: &str,
    ) -> Result<Option<String>, CallError> {
        match repeatable {
            Some(repeatable) => self.remember(repeatable, id).await,
            None => Ok(None),
        }
    }

    /// Passes a result on; a request that failed is forgotten, so that its repetition tries again.
    async fn forget_if_failed<T>(
        &self,
        repeatable: Option<&Repeatable>,
        result: Result<T, CallError>,
    ) -> Result<T, CallError> {
        if let (Err(_), Some(repeatable)) = (&result, repeatable)
            && let Err(error) = self.shared.store.forget_request(&repeatable.key).await
        {
            tracing::warn!(%error, "could not forget a request that failed");
        }
        result
    }

    async fn existing(&self, id: &str) -> Result<SandboxRecord, CallError> {
        self.by_id(id).await?.ok_or_else(|| CallError::no_sandbox(id))
    }
}

/// Why the driver has no new sandbox.
enum CreateFailure {
    Driver(DriverFailure),
    Before(CallError),
}

impl From<DriverFailure> for CreateFailure {
    fn from(failure: DriverFailure) -> Self {
        Self::Driver(failure)
    }
}

impl From<CallError> for CreateFailure {
    fn from(error: CallError) -> Self {
        Self::Before(error)
    }
}

impl From<CreateFailure> for CallError {
    fn from(failure: CreateFailure) -> Self {
        match failure {
            CreateFailure::Driver(failure) => failure.into(),
            CreateFailure::Before(error) => error,
        }
    }
}

fn id_of(sandbox: &Sandbox) -> &str {
    sandbox.metadata.as_ref().map_or("", |metadata| &metadata.id)
}
