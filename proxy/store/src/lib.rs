//! Gateway state: objects with compare-and-set, listed by stable pages, on SQLite.
//!
//! The store knows nothing of sandboxes. It keeps [`StoredObject`]s, each with an id, a name that is unique in its
//! workspace, labels, a version and a payload that only its owner reads. Every write names what it expects to find
//! ([`Precondition`]), so two writers can never undo each other unseen. What a call returned is on disk: a gateway
//! that is killed the next instant finds it again.
//!
//! [`ObjectStore`] is the interface; [`SqliteStore`] is the one implementation today. Several gateways that share
//! state need a server database, which can join behind the same interface.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! use postern_store::{Kind, NewObject, ObjectStore, Precondition, SqliteStore};
//!
//! let store = SqliteStore::open("sqlite::memory:").await?;
//! let object = NewObject::new("5c0e", "default", "calm-otter", b"payload".to_vec());
//! let version = store.put(Kind::Sandbox, object.clone(), Precondition::MustCreate).await?;
//! // Nobody wrote in between, so the version still fits.
//! store.put(Kind::Sandbox, object, Precondition::Version(version)).await?;
//! # Ok::<(), postern_store::StoreError>(()) }).unwrap();
//! ```

#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod error;
mod object;
mod page;
pub mod selector;
mod sqlite;

use async_trait::async_trait;

pub use self::{
    error::{StoreError, UnavailableCause},
    object::{Kind, NewObject, Precondition, Remembered, RequestKey, StoredObject},
    page::{InvalidPageToken, ListQuery, Page, PageKey},
    selector::{InvalidSelector, LabelSelector},
    sqlite::{Options, SqliteStore},
};

/// Most objects that one page holds. A page is built in memory; clients of the contract ask for 100 by default.
pub const MAX_PAGE: u32 = 1000;

/// Most bytes of one payload. Large enough for any sandbox of the contract (4 MiB is the message limit of gRPC
/// servers), small enough that a full page stays far below the memory of a small machine in practice.
pub const MAX_PAYLOAD: usize = 4 * 1024 * 1024;

/// How long an answered request is remembered, in milliseconds: a day, longer than any sane client retries.
pub const REQUEST_MEMORY_MS: u64 = 24 * 60 * 60 * 1000;

/// Most answered requests that are remembered; the oldest go first. 100,000 rows are about 20 MiB on disk.
pub const MAX_REQUESTS: u32 = 100_000;

/// Where the gateway keeps what must survive it.
///
/// All methods are bounded in time and safe to cancel: a cancelled write has either happened whole or not at all.
#[async_trait]
pub trait ObjectStore: Send + Sync + 'static {
    /// Writes an object and returns its new version.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`] when it must be created and its id or name is taken (a write that renames to a
    /// taken name gets this too), [`StoreError::Conflict`] when the version is not the expected one,
    /// [`StoreError::PayloadTooLarge`], and [`StoreError::Unavailable`].
    async fn put(
        &self,
        kind: Kind,
        object: NewObject,
        precondition: Precondition,
    ) -> Result<u64, StoreError>;

    /// The object with this id.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`], [`StoreError::Corrupt`].
    async fn get(&self, kind: Kind, id: &str) -> Result<Option<StoredObject>, StoreError>;

    /// The object with this name in this workspace.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    async fn get_by_name(
        &self,
        kind: Kind,
        workspace: &str,
        name: &str,
    ) -> Result<Option<StoredObject>, StoreError>;

    /// One page of objects, oldest first.
    ///
    /// The order is that of creation and never changes: following [`Page::next`] visits every object that was there
    /// at the start and is not deleted meanwhile exactly once; objects created meanwhile come last.
    ///
    /// # Errors
    /// [`StoreError::ForeignPageKey`] when `after` came from a list with another workspace or selector; otherwise as
    /// [`get`](Self::get).
    async fn list(&self, kind: Kind, query: ListQuery) -> Result<Page, StoreError>;

    /// Removes an object; `false` when there was none. With a version, only if it is still that one.
    ///
    /// # Errors
    /// [`StoreError::Conflict`], [`StoreError::Unavailable`].
    async fn delete(
        &self,
        kind: Kind,
        id: &str,
        precondition: Option<u64>,
    ) -> Result<bool, StoreError>;

    /// Notes that `key` is answered by the object `result_id`, unless it is answered already.
    ///
    /// Atomic: of several concurrent calls with one key exactly one gets [`Remembered::New`]. Remembered for
    /// [`REQUEST_MEMORY_MS`], at most [`MAX_REQUESTS`] of them.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn remember_request(
        &self,
        key: RequestKey,
        fingerprint: [u8; 32],
        result_id: &str,
    ) -> Result<Remembered, StoreError>;

    /// Forgets a remembered request, because what it asked for failed and may be tried again.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn forget_request(&self, key: &RequestKey) -> Result<(), StoreError>;

    /// Checks that the store would answer, for readiness. Notices a database file that was removed or replaced.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn probe(&self) -> Result<(), StoreError>;

    /// Removes remembered requests that are too old at `now_ms` (milliseconds since the Unix epoch); says how many.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`].
    async fn reap(&self, now_ms: u64) -> Result<u64, StoreError>;
}
