//! The life of sandboxes: records, phases, and what keeps them true.
//!
//! A record says what a user asked for and what became of it. Three parties change it: users (create, stop, start,
//! delete), the runtime (snapshots of the compute driver) and supervisor sessions. [`phase`] is the pure rule of what
//! each may change; this module and its files do the reading, writing and waiting around it.
//!
//! Two locks per sandbox keep order. The *record lock* spans one read-decide-write of the record. The *gate* spans a
//! whole operation of a user, driver call included; while it is held, what the runtime reports may change
//! conditions but cannot end the sandbox, because the operation itself is about to say what is true.
//!
//! Start with [`phase`], then `transition` for how an event becomes a write, then `operations`.

mod driver_spec;
pub mod feed;
mod known_sessions;
mod locks;
mod main_process;
mod operations;
pub mod phase;
mod record;
mod runtime;
mod session;
mod transition;
mod upkeep;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use parking_lot::Mutex;
use postern_driver_core::compute::GetCapabilitiesResponse;
use postern_driver_core::{ComputeDriver, SandboxToken};
use postern_proto::datamodel::WorkspaceSelector;
use postern_proto::datamodel::workspace_selector::Selection;
use postern_store::{Kind, ListQuery, ObjectStore, PageKey};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::sync::Semaphore;

use crate::auth::Principal;
use crate::call_error::CallError;

pub use self::operations::{CreateSpec, Created, Deleted, Repeatable};
pub use self::record::SandboxRecord;

use self::feed::Feeds;
use self::known_sessions::KnownSessions;
use self::locks::KeyedLocks;

/// The one workspace there is.
pub const DEFAULT_WORKSPACE: &str = "default";

/// Operations (create, stop, start, delete) under way at one time. Each holds a task and at most one driver call; more
/// than this means that the runtime is stuck, and waiting longer would only hide it.
pub const MAX_OPERATIONS: usize = 256;

/// Longest name that a lookup looks at, in bytes. Names have at most 19, ids of this gateway 36.
const MAX_LOOKUP: usize = 128;

/// Which supervisor session is the current one of a sandbox. Implemented by the session registry.
pub trait CurrentSession: Send + Sync + 'static {
    /// The id of the current session; `None` without one. Must not block.
    fn current(&self, sandbox_id: &str) -> Option<String>;
}

/// Cuts a sandbox off: its session and every relay, pending or live.
pub trait EndSession: Send + Sync + 'static {
    /// Ends the session and the relays of the sandbox, if there are any. `reason` is told to both ends. Must not block.
    fn end(&self, sandbox_id: &str, reason: &str);
}

/// Makes the credential by which a supervisor proves which sandbox it is.
pub trait MintToken: Send + Sync + 'static {
    /// A token bound to the sandbox.
    ///
    /// # Errors
    /// What the caller of CreateSandbox or StartSandbox gets.
    fn mint(&self, sandbox_id: &str) -> Result<SandboxToken, CallError>;
}

/// Removes what others keep about a sandbox (SSH sessions) when it is stopped or deleted.
#[async_trait]
pub trait Cleanup: Send + Sync + 'static {
    /// Called after the sandbox was cut off. Called again after a failure, so it must be idempotent.
    ///
    /// # Errors
    /// Whatever went wrong; it is logged, and the stop or deletion goes on.
    async fn cleanup(&self, sandbox_id: &str) -> Result<(), CallError>;
}

/// How patient the lifecycle is.
#[derive(Clone, Debug)]
pub struct Config {
    /// Longest wait for one call of the compute driver. Below the 30 s after which the SDK gives up on a call, so that
    /// its user sees our reason; above the 5 s grace that a driver gives processes to end.
    pub driver_call: Duration,
    /// How often records and runtime are compared even if nothing was reported (OpenShell contract).
    pub reconcile_every: Duration,
    /// First wait before the driver is watched again after its stream ended (OpenShell contract). Doubles while the
    /// stream keeps ending at once.
    pub rewatch_first: Duration,
    /// Longest such wait: half of `reconcile_every`, so that the watch never lags behind the comparison for long.
    pub rewatch_max: Duration,
    /// How long the answer to FinalizeMainProcessExit may take to leave before the runtime is told to stop the sandbox.
    /// Short: a runtime that takes the supervisor's exit for a crash must not run finished work again.
    pub finalize_grace: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            driver_call: Duration::from_secs(25),
            reconcile_every: Duration::from_secs(60),
            rewatch_first: Duration::from_secs(2),
            rewatch_max: Duration::from_secs(30),
            finalize_grace: Duration::from_millis(100),
        }
    }
}

/// What a [`Lifecycle`] is made of.
pub struct Parts {
    /// Where records live.
    pub store: Arc<dyn ObjectStore>,
    /// What makes sandboxes exist.
    pub driver: Arc<dyn ComputeDriver>,
    /// What the driver said of itself at start.
    pub capabilities: GetCapabilitiesResponse,
    /// Who is connected.
    pub sessions: Arc<dyn CurrentSession>,
    /// How to cut a sandbox off.
    pub ender: Arc<dyn EndSession>,
    /// How to make its token.
    pub minter: Arc<dyn MintToken>,
    /// What else goes when a sandbox goes.
    pub cleanup: Arc<dyn Cleanup>,
    /// Wall clock, for times that are written down.
    pub now: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    /// Seed of names, ids and jitter.
    pub seed: u64,
    /// Patience.
    pub config: Config,
}

/// The life of all sandboxes of this gateway. Clones share everything.
#[derive(Clone)]
pub struct Lifecycle {
    shared: Arc<Shared>,
}

struct Shared {
    store: Arc<dyn ObjectStore>,
    driver: Arc<dyn ComputeDriver>,
    capabilities: GetCapabilitiesResponse,
    sessions: Arc<dyn CurrentSession>,
    ender: Arc<dyn EndSession>,
    minter: Arc<dyn MintToken>,
    cleanup: Arc<dyn Cleanup>,
    now: Arc<dyn Fn() -> SystemTime + Send + Sync>,
    rng: Mutex<StdRng>,
    config: Config,
    records: KeyedLocks,
    gates: KeyedLocks,
    operations: Arc<Semaphore>,
    known: KnownSessions,
    feeds: Feeds,
}

// === impl Lifecycle ===

impl Lifecycle {
    /// Puts the parts together. Nothing runs until [`Lifecycle::run`].
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let mut rng = StdRng::seed_from_u64(parts.seed);
        let epoch = rng.next_u64();
        Self {
            shared: Arc::new(Shared {
                store: parts.store,
                driver: parts.driver,
                capabilities: parts.capabilities,
                sessions: parts.sessions,
                ender: parts.ender,
                minter: parts.minter,
                cleanup: parts.cleanup,
                now: parts.now,
                rng: Mutex::new(rng),
                config: parts.config,
                records: KeyedLocks::default(),
                gates: KeyedLocks::default(),
                operations: Arc::new(Semaphore::new(MAX_OPERATIONS)),
                known: KnownSessions::default(),
                feeds: Feeds::new(epoch),
            }),
        }
    }

    /// The sandbox that `name` means to this principal: by name, then by id.
    ///
    /// A user finds every sandbox of the workspace; a sandbox finds itself only, by name or id.
    ///
    /// # Errors
    /// `NOT_FOUND` for what does not exist and for what is not the user's; `PERMISSION_DENIED` for a sandbox that
    /// names anything but itself, in the same words whether that exists or not; `INVALID_ARGUMENT` for an empty name
    /// or a selector that spans workspaces.
    pub async fn resolve(
        &self,
        principal: &Principal,
        scope: Option<&WorkspaceSelector>,
        name: &str,
    ) -> Result<SandboxRecord, CallError> {
        if name.is_empty() {
            return Err(CallError::invalid("name", "is empty; give the name or id of a sandbox"));
        }
        match principal {
            Principal::Sandbox(own) => {
                let id = own.sandbox_id.clone();
                match self.by_id(&id).await? {
                    Some(record) if name == id || name == record.name() => Ok(record),
                    Some(_) => Err(principal
                        .require_sandbox("")
                        .err()
                        .unwrap_or(CallError::Unauthenticated)),
                    None if name == id => Err(CallError::no_sandbox(name)),
                    None => Err(principal
                        .require_sandbox("")
                        .err()
                        .unwrap_or(CallError::Unauthenticated)),
                }
            }
            _ => {
                principal.require_user()?;
                let workspace = one_workspace(scope)?;
                self.find(&workspace, name).await?.ok_or_else(|| CallError::no_sandbox(name))
            }
        }
    }

    /// The record with this id.
    ///
    /// # Errors
    /// `UNAVAILABLE` when the store is away.
    pub async fn by_id(&self, id: &str) -> Result<Option<SandboxRecord>, CallError> {
        if id.is_empty() || id.len() > MAX_LOOKUP {
            return Ok(None);
        }
        let stored = self.shared.store.get(Kind::Sandbox, id).await?;
        stored.map(SandboxRecord::from_stored).transpose()
    }

    /// One page of records, oldest first, and where the next one starts.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for a page key of another list, `UNAVAILABLE`.
    pub async fn list(
        &self,
        query: ListQuery,
    ) -> Result<(Vec<SandboxRecord>, Option<PageKey>), CallError> {
        let page = self.shared.store.list(Kind::Sandbox, query).await?;
        let records =
            page.objects.into_iter().map(SandboxRecord::from_stored).collect::<Result<_, _>>()?;
        Ok((records, page.next))
    }

    /// Changes when the record, the logs or the events of the sandbox change. The value is a counter; read the record
    /// again when it moves. Ends (`changed` fails) when the sandbox is gone.
    #[must_use]
    pub fn watch(&self, id: &str) -> tokio::sync::watch::Receiver<u64> {
        self.shared.feeds.open(id).changes()
    }

    /// The record once the sandbox is Ready. Phases that lead there are waited for without limit: put a timeout
    /// around it. Safe to cancel.
    ///
    /// # Errors
    /// `FAILED_PRECONDITION` (`SANDBOX_NOT_READY`) at once in a phase that does not lead to Ready by itself, and
    /// `NOT_FOUND` when the record is gone.
    pub async fn wait_ready(&self, id: &str) -> Result<SandboxRecord, CallError> {
        let mut changes = self.watch(id);
        loop {
            changes.borrow_and_update();
            let Some(record) = self.by_id(id).await? else {
                self.shared.feeds.close(id);
                return Err(CallError::no_sandbox(id));
            };
            match phase::outlook(record.phase()) {
                phase::Outlook::Ready => return Ok(record),
                phase::Outlook::Coming => {}
                phase::Outlook::NotComing => return Err(record.not_ready()),
            }
            if changes.changed().await.is_err() {
                return Err(CallError::no_sandbox(id));
            }
        }
    }

    /// The logs and events of sandboxes.
    #[must_use]
    pub fn feeds(&self) -> &Feeds {
        &self.shared.feeds
    }

    /// What the driver said of itself at start.
    #[must_use]
    pub fn capabilities(&self) -> &GetCapabilitiesResponse {
        &self.shared.capabilities
    }

    /// Where records live.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn ObjectStore> {
        &self.shared.store
    }

    /// The wall clock.
    #[must_use]
    pub fn now(&self) -> SystemTime {
        (self.shared.now)()
    }

    async fn find(&self, workspace: &str, name: &str) -> Result<Option<SandboxRecord>, CallError> {
        if name.len() > MAX_LOOKUP {
            return Ok(None);
        }
        if let Some(stored) = self.shared.store.get_by_name(Kind::Sandbox, workspace, name).await? {
            return SandboxRecord::from_stored(stored).map(Some);
        }
        Ok(self.by_id(name).await?.filter(|record| record.workspace() == workspace))
    }
}

/// The workspace that a selector names; none means the default one.
///
/// # Errors
/// `INVALID_ARGUMENT` for a selector over all workspaces; `NOT_FOUND` for a workspace that does not exist.
pub fn one_workspace(scope: Option<&WorkspaceSelector>) -> Result<String, CallError> {
    match scope.and_then(|scope| scope.selection.as_ref()) {
        None => Ok(DEFAULT_WORKSPACE.to_owned()),
        Some(Selection::Workspace(name)) if name.is_empty() || name == DEFAULT_WORKSPACE => {
            Ok(DEFAULT_WORKSPACE.to_owned())
        }
        Some(Selection::Workspace(name)) => Err(CallError::NotFound {
            what: format!("workspace {:?}", name.chars().take(64).collect::<String>()),
        }),
        Some(Selection::AllWorkspaces(_)) => Err(CallError::invalid(
            "workspace_scope",
            "names all workspaces; this call needs one, such as \"default\"",
        )),
    }
}
