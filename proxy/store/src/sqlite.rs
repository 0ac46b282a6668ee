//! The store on one SQLite file.
//!
//! Write-ahead log with `synchronous = FULL`: a commit is on the disk before the call returns. One connection
//! writes, so that writers queue in this process instead of failing with "database is locked"; a few read beside it.

use std::{
    path::Path,
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use sqlx::{
    SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use self::database::Database;
use crate::{
    Kind, ListQuery, MAX_REQUESTS, NewObject, ObjectStore, Page, Precondition, Remembered,
    RequestKey, StoreError, StoredObject, UnavailableCause,
};

mod database;
mod file;
#[cfg(test)]
mod tests;

/// Connections that only read. Lists and lookups are short; more would wait for the same two cores.
const READERS: u32 = 4;

/// How long one call may take. Far above any healthy commit (a few milliseconds), below the patience of a client.
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// How long SQLite itself waits for a lock that another process holds; below [`CALL_TIMEOUT`], so that its own
/// error arrives first.
const BUSY_TIMEOUT: Duration = Duration::from_secs(4);

/// How to open a store. [`Options::default`] is right outside tests.
#[derive(Clone)]
#[non_exhaustive]
pub struct Options {
    /// The wall clock, in milliseconds since the Unix epoch.
    pub now_ms: Arc<dyn Fn() -> u64 + Send + Sync>,
    /// Most remembered requests; [`MAX_REQUESTS`] by default.
    pub max_requests: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { now_ms: Arc::new(wall_clock_ms), max_requests: MAX_REQUESTS }
    }
}

/// The wall clock; a clock before 1970 reads as 1970.
fn wall_clock_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

/// [`ObjectStore`] on one SQLite file, or in memory. Clones share the database.
#[derive(Clone)]
pub struct SqliteStore {
    database: Database,
    /// A database in memory exists for tests, which may pause tokio's clock. See [`SqliteStore::run`].
    in_memory: bool,
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteStore").field("in_memory", &self.in_memory).finish_non_exhaustive()
    }
}

impl SqliteStore {
    /// Opens (and creates or upgrades) the database at `url`: `sqlite:///path/to/file` or `sqlite::memory:`.
    ///
    /// A new file gets mode 0600; missing directories are made with mode 0700.
    ///
    /// # Errors
    /// [`StoreError::UnsupportedUrl`] and [`StoreError::Unavailable`].
    pub async fn open(url: &str) -> Result<Self, StoreError> {
        Self::open_with(url, Options::default()).await
    }

    /// As [`open`](Self::open), with other [`Options`].
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub async fn open_with(url: &str, options: Options) -> Result<Self, StoreError> {
        let connect = connect_options(url)?;
        let in_memory = url.contains(":memory:");
        let path = (!in_memory).then(|| connect.get_filename().to_owned());
        let opening = async move {
            let file = path
                .map(|path| file::prepare(&path))
                .transpose()
                .map_err(|e| unopened(e.into()))?;
            let (read, write) =
                connect_pools(connect, file.is_none()).await.map_err(|e| unopened(e.into()))?;
            sqlx::migrate!("migrations/sqlite")
                .run(&write)
                .await
                .map_err(|e| unopened(UnavailableCause::Migration(Box::new(e))))?;
            // Only now is there a file to watch: SQLite made it.
            let file = file.map(file::Identity::of).transpose().map_err(|e| unopened(e.into()))?;
            Ok(Database::new(read, write, file.map(Arc::new), options))
        };
        let database = run(in_memory, "open", opening).await?;
        Ok(Self { database, in_memory })
    }

    /// Closes all connections after the calls in progress. Later calls fail as unavailable.
    pub async fn close(&self) {
        self.database.close().await;
    }

    async fn run<T, F>(&self, operation: &'static str, call: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        run(self.in_memory, operation, call).await
    }
}

/// Runs one call under [`CALL_TIMEOUT`].
///
/// SQLite answers from threads of its own. A runtime that waits for nothing else seems idle, and an idle runtime
/// moves a *paused* clock to the next timer, which would be the time limit of this very call. It leaves the clock
/// alone while a blocking task runs, so calls to a database in memory (tests) run inside one.
async fn run<T, F>(in_memory: bool, operation: &'static str, call: F) -> Result<T, StoreError>
where
    T: Send + 'static,
    F: Future<Output = Result<T, StoreError>> + Send + 'static,
{
    let bounded = async move {
        tokio::time::timeout(CALL_TIMEOUT, call).await.unwrap_or_else(|_| {
            Err(StoreError::unavailable(operation, UnavailableCause::TimedOut(CALL_TIMEOUT)))
        })
    };
    if !in_memory {
        return bounded.await;
    }
    let runtime = tokio::runtime::Handle::current();
    match tokio::task::spawn_blocking(move || runtime.block_on(bounded)).await {
        Ok(result) => result,
        Err(_) => Err(StoreError::unavailable(operation, UnavailableCause::Stopping)),
    }
}

fn unopened(cause: UnavailableCause) -> StoreError {
    StoreError::unavailable("open", cause)
}

fn connect_options(url: &str) -> Result<SqliteConnectOptions, StoreError> {
    let unsupported = || StoreError::UnsupportedUrl { url: without_password(url) };
    if !url.starts_with("sqlite:") {
        return Err(unsupported());
    }
    let options = SqliteConnectOptions::from_str(url).map_err(|_| unsupported())?;
    if options.get_filename() == Path::new("") {
        return Err(unsupported());
    }
    Ok(options
        .create_if_missing(true)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full))
}

/// The scheme and what follows the last `@`: a URL of a server database may hold a password before it.
fn without_password(url: &str) -> String {
    match (url.split_once("://"), url.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://…@{host}"),
        _ => url.to_owned(),
    }
}

async fn connect_pools(
    options: SqliteConnectOptions,
    in_memory: bool,
) -> Result<(SqlitePool, SqlitePool), sqlx::Error> {
    // A connection to a local file does not go stale: no test before use, and it is never replaced. For a database
    // in memory replacing the last connection would even lose the data.
    let pool = || {
        SqlitePoolOptions::new()
            .acquire_timeout(CALL_TIMEOUT)
            .test_before_acquire(false)
            .idle_timeout(None)
            .max_lifetime(None)
    };
    let write = pool().max_connections(1).min_connections(1).connect_with(options.clone()).await?;
    if in_memory {
        return Ok((write.clone(), write));
    }
    let read = pool().max_connections(READERS).connect_with(options.read_only(true)).await?;
    Ok((read, write))
}

#[async_trait]
impl ObjectStore for SqliteStore {
    async fn put(
        &self,
        kind: Kind,
        object: NewObject,
        precondition: Precondition,
    ) -> Result<u64, StoreError> {
        let database = self.database.clone();
        self.run("write", async move { database.put(kind, object, precondition).await }).await
    }

    async fn get(&self, kind: Kind, id: &str) -> Result<Option<StoredObject>, StoreError> {
        let (database, id) = (self.database.clone(), id.to_owned());
        self.run("read", async move { database.get(kind, id).await }).await
    }

    async fn get_by_name(
        &self,
        kind: Kind,
        workspace: &str,
        name: &str,
    ) -> Result<Option<StoredObject>, StoreError> {
        let (database, workspace, name) =
            (self.database.clone(), workspace.to_owned(), name.to_owned());
        self.run("read", async move { database.get_by_name(kind, workspace, name).await }).await
    }

    async fn list(&self, kind: Kind, query: ListQuery) -> Result<Page, StoreError> {
        let database = self.database.clone();
        self.run("list", async move { database.list(kind, query).await }).await
    }

    async fn delete(
        &self,
        kind: Kind,
        id: &str,
        precondition: Option<u64>,
    ) -> Result<bool, StoreError> {
        let (database, id) = (self.database.clone(), id.to_owned());
        self.run("delete", async move { database.delete(kind, id, precondition).await }).await
    }

    async fn remember_request(
        &self,
        key: RequestKey,
        fingerprint: [u8; 32],
        result_id: &str,
    ) -> Result<Remembered, StoreError> {
        let (database, result_id) = (self.database.clone(), result_id.to_owned());
        self.run("remember a request", async move {
            database.remember(key, fingerprint, result_id).await
        })
        .await
    }

    async fn forget_request(&self, key: &RequestKey) -> Result<(), StoreError> {
        let (database, key) = (self.database.clone(), key.clone());
        self.run("forget a request", async move { database.forget(key).await }).await
    }

    async fn probe(&self) -> Result<(), StoreError> {
        let database = self.database.clone();
        self.run("probe", async move { database.probe().await }).await
    }

    async fn reap(&self, now_ms: u64) -> Result<u64, StoreError> {
        let database = self.database.clone();
        self.run("reap", async move { database.reap(now_ms).await }).await
    }
}
