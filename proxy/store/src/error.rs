//! What can go wrong, as values that callers match on.

use crate::Kind;

/// Why a call to the store failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The id, or the name in its workspace, is taken.
    #[error("a {kind} named {name:?} (id {id}) or with one of the two exists already")]
    AlreadyExists {
        /// What was to be created.
        kind: Kind,
        /// The id that was asked for.
        id: String,
        /// The name that was asked for.
        name: String,
    },
    /// Somebody else wrote first. Read again, decide again, write again.
    #[error("{kind} {id} is at version {}, not at the expected {expected}", Shown(*.found))]
    Conflict {
        /// What was to be written.
        kind: Kind,
        /// Its id.
        id: String,
        /// The version the caller had read.
        expected: u64,
        /// The version that is there now; `None` when the object is gone.
        found: Option<u64>,
    },
    /// The payload is larger than [`MAX_PAYLOAD`](crate::MAX_PAYLOAD).
    #[error(
        "the payload of {kind} {id} has {bytes} bytes, more than the {} allowed",
        crate::MAX_PAYLOAD
    )]
    PayloadTooLarge {
        /// What was to be written.
        kind: Kind,
        /// Its id.
        id: String,
        /// The size that was refused, in bytes.
        bytes: usize,
    },
    /// The page key belongs to a list with another workspace or selector.
    #[error("the page token belongs to another list; start again without it")]
    ForeignPageKey,
    /// The URL names no database that this store can open.
    #[error(
        "cannot open {url:?} as a database; write \"sqlite:///path/to/file\" or \"sqlite::memory:\""
    )]
    UnsupportedUrl {
        /// What was given, without what could be a password.
        url: String,
    },
    /// A row does not read back as what was written.
    #[error("the database holds a row that does not read back: {what}")]
    Corrupt {
        /// Which row and column.
        what: String,
        /// Why not.
        #[source]
        source: Option<sqlx::Error>,
    },
    /// The database did not do it: disk full, file gone, locked for too long. Try later. After
    /// [`UnavailableCause::TimedOut`] a write may still have happened, whole; a repetition then meets
    /// [`AlreadyExists`](Self::AlreadyExists) or [`Conflict`](Self::Conflict), never a second effect.
    #[error("the database is unavailable to {operation}")]
    Unavailable {
        /// What was being done.
        operation: &'static str,
        /// Why it failed.
        #[source]
        cause: UnavailableCause,
    },
}

/// Why the database is unavailable.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UnavailableCause {
    /// The database refused.
    #[error(transparent)]
    Database(#[from] sqlx::Error),
    /// The database took longer than this.
    #[error("no answer within {0:?}")]
    TimedOut(std::time::Duration),
    /// The file was removed or replaced while it was open: what is written now would be lost.
    #[error("the database file was removed or replaced; restart the gateway to use the new one")]
    FileGone,
    /// The file or its directory could not be made.
    #[error(transparent)]
    File(#[from] std::io::Error),
    /// The schema could not be brought up to date.
    #[error(transparent)]
    Migration(Box<sqlx::migrate::MigrateError>),
    /// The runtime is shutting down.
    #[error("the runtime is shutting down")]
    Stopping,
}

impl StoreError {
    pub(crate) fn unavailable(operation: &'static str, cause: impl Into<UnavailableCause>) -> Self {
        Self::Unavailable { operation, cause: cause.into() }
    }

    pub(crate) fn corrupt(what: impl Into<String>, source: impl Into<Option<sqlx::Error>>) -> Self {
        Self::Corrupt { what: what.into(), source: source.into() }
    }

    /// Whether the same call may succeed later without the caller changing anything.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// A version that may be missing, for a message.
struct Shown(Option<u64>);

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(version) => write!(f, "{version}"),
            None => f.write_str("none (gone)"),
        }
    }
}
