//! A lifecycle over a real store in memory and the driver that keeps sandboxes in memory.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use parking_lot::Mutex;
use postern_driver_core::compute::GetCapabilitiesResponse;
use postern_driver_core::{ComputeDriver, SandboxToken};
use postern_driver_fake::FakeDriver;
use postern_proto::v1::SandboxPhase;
use postern_store::{
    Kind, ListQuery, NewObject, ObjectStore, Page, Precondition, Remembered, RequestKey,
    SqliteStore, StoreError, StoredObject,
};

use super::{Cleanup, Config, CurrentSession, EndSession, Lifecycle, MintToken, Parts};
use crate::auth::{Principal, SandboxPrincipal, User};
use crate::call_error::CallError;

/// A lifecycle and everything around it that a test steers or reads.
pub(crate) struct Rig {
    pub(crate) lifecycle: Lifecycle,
    pub(crate) driver: FakeDriver,
    pub(crate) sessions: Arc<FakeSessions>,
    pub(crate) cleanup: Arc<CountCleanups>,
    pub(crate) store: Arc<RacyStore>,
    capabilities: GetCapabilitiesResponse,
}

impl Rig {
    pub(crate) async fn new() -> Self {
        Self::over(FakeDriver::new(), GetCapabilitiesResponse::default()).await
    }

    pub(crate) async fn over(driver: FakeDriver, capabilities: GetCapabilitiesResponse) -> Self {
        let store = SqliteStore::open("sqlite::memory:").await.unwrap();
        let store = Arc::new(RacyStore { inner: store, races: AtomicU32::new(0) });
        Self::build(driver, capabilities, store)
    }

    /// The gateway dies and starts again: same store, same runtime, nobody connected.
    pub(crate) fn restart(self) -> Self {
        Self::build(self.driver, self.capabilities, self.store)
    }

    fn build(
        driver: FakeDriver,
        capabilities: GetCapabilitiesResponse,
        store: Arc<RacyStore>,
    ) -> Self {
        let kept: Arc<dyn ComputeDriver> = Arc::new(driver.clone());
        Self::with_driver(driver, kept, capabilities, store)
    }

    /// `asked` is the driver that the lifecycle asks; `driver` the runtime below it.
    pub(crate) fn with_driver(
        driver: FakeDriver,
        asked: Arc<dyn ComputeDriver>,
        capabilities: GetCapabilitiesResponse,
        store: Arc<RacyStore>,
    ) -> Self {
        let sessions = Arc::new(FakeSessions::default());
        let cleanup = Arc::new(CountCleanups::default());
        let lifecycle = Lifecycle::new(Parts {
            store: Arc::clone(&store) as Arc<dyn ObjectStore>,
            driver: asked,
            capabilities: capabilities.clone(),
            sessions: Arc::clone(&sessions) as Arc<dyn CurrentSession>,
            ender: Arc::clone(&sessions) as Arc<dyn EndSession>,
            minter: Arc::new(CountTokens::default()),
            cleanup: Arc::clone(&cleanup) as Arc<dyn Cleanup>,
            now: Arc::new(|| SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)),
            seed: 1,
            config: Config::default(),
        });
        Self { lifecycle, driver, sessions, cleanup, store, capabilities }
    }

    /// A supervisor connects, as the session handler would tell it.
    pub(crate) async fn connect(&self, sandbox_id: &str, session: &str) {
        self.sessions.set(sandbox_id, session);
        self.lifecycle.session_connected(sandbox_id, session, "epoch-1", None).await.unwrap();
    }

    /// The session ends and nobody comes after it.
    pub(crate) async fn disconnect(&self, sandbox_id: &str, session: &str) {
        self.sessions.clear(sandbox_id);
        self.lifecycle.session_disconnected(sandbox_id, session).await;
    }

    pub(crate) async fn phase(&self, sandbox_id: &str) -> SandboxPhase {
        self.lifecycle.by_id(sandbox_id).await.unwrap().expect("a record").phase()
    }

    /// Reason of the Ready condition.
    pub(crate) async fn why(&self, sandbox_id: &str) -> String {
        self.lifecycle.by_id(sandbox_id).await.unwrap().expect("a record").why()
    }
}

/// A user with every right.
pub(crate) fn user() -> Principal {
    Principal::User(User::local_dev())
}

/// The supervisor of a sandbox.
pub(crate) fn supervisor(sandbox_id: &str) -> Principal {
    Principal::Sandbox(SandboxPrincipal {
        sandbox_id: sandbox_id.to_owned(),
        issued_at: None,
        expires_at: None,
    })
}

/// Sessions that a test sets.
#[derive(Default)]
pub(crate) struct FakeSessions {
    current: Mutex<HashMap<String, String>>,
    ended: Mutex<Vec<String>>,
}

impl FakeSessions {
    pub(crate) fn set(&self, sandbox_id: &str, session: &str) {
        self.current.lock().insert(sandbox_id.to_owned(), session.to_owned());
    }

    pub(crate) fn clear(&self, sandbox_id: &str) {
        self.current.lock().remove(sandbox_id);
    }

    /// How often the sandbox was cut off.
    pub(crate) fn ended(&self, sandbox_id: &str) -> usize {
        self.ended.lock().iter().filter(|id| *id == sandbox_id).count()
    }
}

impl CurrentSession for FakeSessions {
    fn current(&self, sandbox_id: &str) -> Option<String> {
        self.current.lock().get(sandbox_id).cloned()
    }
}

impl EndSession for FakeSessions {
    fn end(&self, sandbox_id: &str, _reason: &str) {
        self.clear(sandbox_id);
        self.ended.lock().push(sandbox_id.to_owned());
    }
}

/// Tokens that tell which one they are.
#[derive(Default)]
struct CountTokens(AtomicU32);

impl MintToken for CountTokens {
    fn mint(&self, sandbox_id: &str) -> Result<SandboxToken, CallError> {
        let number = self.0.fetch_add(1, Ordering::Relaxed);
        Ok(SandboxToken::new(format!("{sandbox_id}/{number}")))
    }
}

#[derive(Default)]
pub(crate) struct CountCleanups(Mutex<Vec<String>>);

impl CountCleanups {
    pub(crate) fn of(&self, sandbox_id: &str) -> usize {
        self.0.lock().iter().filter(|id| *id == sandbox_id).count()
    }
}

#[async_trait]
impl Cleanup for CountCleanups {
    async fn cleanup(&self, sandbox_id: &str) -> Result<(), CallError> {
        self.0.lock().push(sandbox_id.to_owned());
        Ok(())
    }
}

/// The real store, with another writer that gets in first as often as a test says.
pub(crate) struct RacyStore {
    inner: SqliteStore,
    races: AtomicU32,
}

impl RacyStore {
    /// Somebody else writes just before each of the next `times` writes.
    pub(crate) fn race(&self, times: u32) {
        self.races.store(times, Ordering::Relaxed);
    }
}

#[async_trait]
impl ObjectStore for RacyStore {
    async fn put(
        &self,
        kind: Kind,
        object: NewObject,
        precondition: Precondition,
    ) -> Result<u64, StoreError> {
        let races = self
            .races
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if let (Ok(_), Precondition::Version(version)) = (races, precondition)
            && let Some(there) = self.inner.get(kind, &object.id).await?
        {
            let same = NewObject::new(there.id, there.workspace, there.name, there.payload)
                .with_labels(there.labels);
            self.inner.put(kind, same, Precondition::Version(version)).await?;
        }
        self.inner.put(kind, object, precondition).await
    }

    async fn get(&self, kind: Kind, id: &str) -> Result<Option<StoredObject>, StoreError> {
        self.inner.get(kind, id).await
    }

    async fn get_by_name(
        &self,
        kind: Kind,
        workspace: &str,
        name: &str,
    ) -> Result<Option<StoredObject>, StoreError> {
        self.inner.get_by_name(kind, workspace, name).await
    }

    async fn list(&self, kind: Kind, query: ListQuery) -> Result<Page, StoreError> {
        self.inner.list(kind, query).await
    }

    async fn delete(
        &self,
        kind: Kind,
        id: &str,
        precondition: Option<u64>,
    ) -> Result<bool, StoreError> {
        self.inner.delete(kind, id, precondition).await
    }

    async fn remember_request(
        &self,
        key: RequestKey,
        fingerprint: [u8; 32],
        result_id: &str,
    ) -> Result<Remembered, StoreError> {
        self.inner.remember_request(key, fingerprint, result_id).await
    }

    async fn forget_request(&self, key: &RequestKey) -> Result<(), StoreError> {
        self.inner.forget_request(key).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        self.inner.probe().await
    }

    async fn reap(&self, now_ms: u64) -> Result<u64, StoreError> {
        self.inner.reap(now_ms).await
    }
}
