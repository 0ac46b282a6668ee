//! A store that times each call.

use std::sync::Arc;

use async_trait::async_trait;
use postern_store::{
    Kind, ListQuery, NewObject, ObjectStore, Page, Precondition, Remembered, RequestKey,
    StoreError, StoredObject,
};
use tokio::time::Instant;

/// Times each call to the store inside, under `store_operation_duration_seconds`.
#[derive(Clone)]
pub struct MeteredStore {
    inner: Arc<dyn ObjectStore>,
}

impl std::fmt::Debug for MeteredStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MeteredStore").finish_non_exhaustive()
    }
}

impl MeteredStore {
    /// Times the calls to `inner`.
    #[must_use]
    pub fn new(inner: Arc<dyn ObjectStore>) -> Self {
        Self { inner }
    }
}

async fn timed<T>(
    operation: &'static str,
    call: impl Future<Output = Result<T, StoreError>> + Send,
) -> Result<T, StoreError> {
    let start = Instant::now();
    let result = call.await;
    let outcome = match &result {
        Ok(_) => "ok",
        Err(StoreError::Conflict { .. } | StoreError::AlreadyExists { .. }) => "conflict",
        Err(StoreError::Unavailable { .. }) => "unavailable",
        Err(_) => "error",
    };
    metrics::histogram!("store_operation_duration_seconds", "operation" => operation, "outcome" => outcome)
        .record(start.elapsed().as_secs_f64());
    result
}

#[async_trait]
impl ObjectStore for MeteredStore {
    async fn put(
        &self,
        kind: Kind,
        object: NewObject,
        precondition: Precondition,
    ) -> Result<u64, StoreError> {
        timed("put", self.inner.put(kind, object, precondition)).await
    }

    async fn get(&self, kind: Kind, id: &str) -> Result<Option<StoredObject>, StoreError> {
        timed("get", self.inner.get(kind, id)).await
    }

    async fn get_by_name(
        &self,
        kind: Kind,
        workspace: &str,
        name: &str,
    ) -> Result<Option<StoredObject>, StoreError> {
        timed("get_by_name", self.inner.get_by_name(kind, workspace, name)).await
    }

    async fn list(&self, kind: Kind, query: ListQuery) -> Result<Page, StoreError> {
        timed("list", self.inner.list(kind, query)).await
    }

    async fn delete(
        &self,
        kind: Kind,
        id: &str,
        precondition: Option<u64>,
    ) -> Result<bool, StoreError> {
        timed("delete", self.inner.delete(kind, id, precondition)).await
    }

    async fn remember_request(
        &self,
        key: RequestKey,
        fingerprint: [u8; 32],
        result_id: &str,
    ) -> Result<Remembered, StoreError> {
        timed("remember_request", self.inner.remember_request(key, fingerprint, result_id)).await
    }

    async fn forget_request(&self, key: &RequestKey) -> Result<(), StoreError> {
        timed("forget_request", self.inner.forget_request(key)).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        // The readiness probe has a metric of its own.
        self.inner.probe().await
    }

    async fn reap(&self, now_ms: u64) -> Result<u64, StoreError> {
        timed("reap", self.inner.reap(now_ms)).await
    }
}
