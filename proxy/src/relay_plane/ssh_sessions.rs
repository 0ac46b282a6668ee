//! SSH sessions: tokens that open SSH and TCP relays to one sandbox, until they end or are revoked.
//!
//! A token is 256 random bits and is given out once. The record holds its SHA-256 and is found by it, so neither the
//! database nor a lookup's timing says anything about a token. Revoking removes the record *and* cuts the connections
//! that came in by it: a connection takes its [`Slot`] before the record is read, so a revocation in between finds
//! the slot.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use postern_identity::opaque::NoRandomness;
use postern_identity::{OpaqueToken, Secret, TokenDigest};
use postern_proto::datamodel::ObjectMeta;
use postern_proto::v1::SshSession;
use postern_store::{
    Kind, LabelSelector, ListQuery, NewObject, ObjectStore, Precondition, StoreError, StoredObject,
};
use prost::Message as _;

use crate::auth::SshSessionPrincipal;
use crate::auth::clock::WallClock;
use crate::call_error::CallError;

/// How long a session lasts unless configured otherwise: a day (OpenShell contract).
pub const DEFAULT_TTL: Duration = Duration::from_secs(86_400);
/// Connections at one time by one token (OpenShell contract): one shell, one copy and one forward beside each other.
pub const MAX_CONNECTIONS_PER_TOKEN: usize = 3;

/// Longest token that is looked at. Ours have 43 characters; a foreign gateway's are UUIDs.
const MAX_TOKEN_BYTES: usize = 256;
const WORKSPACE: &str = "default";
const SANDBOX_LABEL: &str = "postern.dev/sandbox-id";
const SUBJECT_ANNOTATION: &str = "postern.dev/subject";

/// Why a session could not be made, found or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SshSessionError {
    /// No such session, or ended, or revoked, or for another sandbox: nobody is told which.
    #[error("the SSH session token is not valid")]
    Refused,
    /// The token holds all the connections it may.
    #[error(
        "this SSH session has {MAX_CONNECTIONS_PER_TOKEN} connections already, which is the cap per token = \
         {MAX_CONNECTIONS_PER_TOKEN}; end one or create another session"
    )]
    TooManyConnections,
    /// The random source of the system failed.
    #[error(transparent)]
    Random(#[from] NoRandomness),
    /// The store failed.
    #[error("cannot reach the SSH session records")]
    Store(
        #[from]
        #[source]
        StoreError,
    ),
}

/// A session that was just made.
#[derive(Debug)]
pub struct Created {
    /// The token. This is the only time it exists in clear.
    pub token: Secret<String>,
    /// When it ends; `None` for never.
    pub expires_at: Option<SystemTime>,
}

/// All sessions of this gateway. Cloning shares them.
#[derive(Clone)]
pub struct SshSessions {
    store: Arc<dyn ObjectStore>,
    clock: WallClock,
    ttl: Option<Duration>,
    live: Arc<Live>,
}

/// The identifier of a session: the SHA-256 of its token in hex. Safe to log.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SessionKey(String);

/// The place of one connection among those of its token. Dropping it frees the place.
#[derive(Debug)]
pub struct Slot {
    live: Arc<Live>,
    key: SessionKey,
    number: u64,
}

#[derive(Debug, Default)]
struct Live {
    next: AtomicU64,
    slots: Mutex<HashMap<SessionKey, HashMap<u64, Connection>>>,
}

enum Connection {
    /// Asked for; no relay yet.
    Opening,
    /// Open; calling this cuts it.
    Open(Box<dyn FnOnce() + Send>),
    /// Revoked before the relay was there.
    Cut,
}

// === impl SshSessions ===

impl SshSessions {
    /// Sessions kept in `store`, each lasting `ttl` (zero: until revoked).
    pub fn new(store: Arc<dyn ObjectStore>, ttl: Duration, clock: WallClock) -> Self {
        Self { store, clock, ttl: (!ttl.is_zero()).then_some(ttl), live: Arc::default() }
    }

    /// Makes a session for `sandbox_id` on behalf of `subject`. On disk when this returns.
    ///
    /// # Errors
    /// [`SshSessionError::Store`], [`SshSessionError::Random`].
    pub async fn create(
        &self,
        sandbox_id: &str,
        subject: &str,
    ) -> Result<Created, SshSessionError> {
        let OpaqueToken { token, digest } = OpaqueToken::generate()?;
        let key = SessionKey(digest.to_hex());
        let expires_at = self.ttl.map(|ttl| self.clock.now() + ttl);
        let record = SshSession {
            metadata: Some(ObjectMeta {
                id: key.0.clone(),
                annotations: HashMap::from([(SUBJECT_ANNOTATION.to_owned(), subject.to_owned())]),
                ..ObjectMeta::default()
            }),
            sandbox_id: sandbox_id.to_owned(),
            expiration_time: expires_at.map(Into::into),
            ..SshSession::default()
        };
        let object = NewObject::new(&key.0, WORKSPACE, &key.0, record.encode_to_vec())
            .with_labels([(SANDBOX_LABEL.to_owned(), sandbox_id.to_owned())]);
        self.store.put(Kind::SshSession, object, Precondition::MustCreate).await?;
        Ok(Created { token, expires_at })
    }

    /// The session that `token` stands for.
    ///
    /// # Errors
    /// [`SshSessionError::Refused`] for every reason not to take it, [`SshSessionError::Store`].
    pub async fn find(&self, token: &str) -> Result<SshSessionPrincipal, SshSessionError> {
        if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
            return Err(SshSessionError::Refused);
        }
        self.find_by_key(&SessionKey::of(token)).await
    }

    /// The session with this key, if it may be used now.
    ///
    /// # Errors
    /// As [`SshSessions::find`].
    pub async fn find_by_key(
        &self,
        key: &SessionKey,
    ) -> Result<SshSessionPrincipal, SshSessionError> {
        let found = self.store.get(Kind::SshSession, &key.0).await?;
        let object = found.ok_or(SshSessionError::Refused)?;
        let session = decode(&object).ok_or(SshSessionError::Refused)?;
        let ended = session.expires_at.is_some_and(|end| end <= self.clock.now());
        if ended {
            return Err(SshSessionError::Refused);
        }
        Ok(session)
    }

    /// Takes a place for one connection by `key`, before the record is read.
    ///
    /// # Errors
    /// [`SshSessionError::TooManyConnections`].
    pub fn admit(&self, key: SessionKey) -> Result<Slot, SshSessionError> {
        let number = self.live.next.fetch_add(1, Ordering::Relaxed);
        let mut slots = self.live.slots.lock();
        let mine = slots.entry(key.clone()).or_default();
        if mine.len() >= MAX_CONNECTIONS_PER_TOKEN {
            metrics::counter!("ssh_limit_refusals_total", "limit" => "per_token").increment(1);
            return Err(SshSessionError::TooManyConnections);
        }
        mine.insert(number, Connection::Opening);
        drop(slots);
        Ok(Slot { live: Arc::clone(&self.live), key, number })
    }

    /// Ends a session and cuts its connections; `false` when there was none.
    ///
    /// # Errors
    /// [`SshSessionError::Store`].
    pub async fn revoke(&self, token: &str) -> Result<bool, SshSessionError> {
        let key = SessionKey::of(token);
        let existed = self.store.delete(Kind::SshSession, &key.0, None).await?;
        // After the delete: whoever took a slot before is cut here, whoever takes one later finds no record.
        self.live.cut(&key);
        Ok(existed)
    }

    /// Ends every session of a sandbox and cuts their connections; says how many there were.
    ///
    /// # Errors
    /// [`SshSessionError::Store`].
    pub async fn remove_sandbox(&self, sandbox_id: &str) -> Result<u64, SshSessionError> {
        let selector = LabelSelector::parse(&format!("{SANDBOX_LABEL}={sandbox_id}"));
        let Ok(labels) = selector else {
            return Ok(0);
        };
        let query = ListQuery { labels, ..ListQuery::default() };
        self.remove_where(query, |_| true).await
    }

    /// Removes the records of sessions that have ended; says how many. Live connections go on: they were allowed.
    ///
    /// # Errors
    /// [`SshSessionError::Store`].
    pub async fn reap(&self) -> Result<u64, SshSessionError> {
        let now = self.clock.now();
        let ended = |object: &StoredObject| {
            decode(object).is_none_or(|session| session.expires_at.is_some_and(|end| end <= now))
        };
        self.remove_where(ListQuery::default(), ended).await
    }

    /// Connections now, over all tokens.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.live.slots.lock().values().map(HashMap::len).sum()
    }

    async fn remove_where(
        &self,
        mut query: ListQuery,
        goes: impl Fn(&StoredObject) -> bool + Send,
    ) -> Result<u64, SshSessionError> {
        let mut removed = 0;
        loop {
            let page = self.store.list(Kind::SshSession, query.clone()).await?;
            for object in page.objects.iter().filter(|object| goes(object)) {
                if self.store.delete(Kind::SshSession, &object.id, None).await? {
                    removed += 1;
                }
                self.live.cut(&SessionKey(object.id.clone()));
            }
            match page.next {
                Some(next) => query.after = Some(next),
                None => return Ok(removed),
            }
        }
    }
}

impl std::fmt::Debug for SshSessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SshSessions")
            .field("ttl", &self.ttl)
            .field("connections", &self.connections())
            .finish_non_exhaustive()
    }
}

fn decode(object: &StoredObject) -> Option<SshSessionPrincipal> {
    let record = SshSession::decode(object.payload.as_slice()).ok()?;
    if record.revoked {
        return None;
    }
    let expires_at = match record.expiration_time {
        Some(time) => Some(SystemTime::try_from(time).ok()?),
        None => None,
    };
    let subject =
        record.metadata.and_then(|mut metadata| metadata.annotations.remove(SUBJECT_ANNOTATION));
    Some(SshSessionPrincipal {
        session_id: object.id.clone(),
        sandbox_id: record.sandbox_id,
        subject: subject.unwrap_or_default(),
        expires_at,
    })
}

// === impl SshSessionError ===

impl From<SshSessionError> for CallError {
    fn from(error: SshSessionError) -> Self {
        match error {
            SshSessionError::Refused => Self::Unauthenticated,
            SshSessionError::TooManyConnections => Self::ResourceExhausted {
                cap: "connections per SSH session".into(),
                value: MAX_CONNECTIONS_PER_TOKEN as u64,
                description: "this SSH session has all the connections it may have; end one or create another session"
                    .to_owned(),
                retry_after: None,
            },
            SshSessionError::Random(source) => Self::internal("making a session token", source),
            SshSessionError::Store(error) => error.into(),
        }
    }
}

// === impl SessionKey ===

impl SessionKey {
    /// The key of a token.
    #[must_use]
    pub fn of(token: &str) -> Self {
        Self(TokenDigest::of(token).to_hex())
    }

    /// The key of a session that was found.
    #[must_use]
    pub fn of_session(session: &SshSessionPrincipal) -> Self {
        Self(session.session_id.clone())
    }
}

// === impl Slot ===

impl Slot {
    /// From now on a revocation calls `cut`, once. If the session was revoked meanwhile, `cut` is called now.
    pub fn arm(&self, cut: impl FnOnce() + Send + 'static) {
        let mut slots = self.live.slots.lock();
        let mine =
            slots.get_mut(&self.key).and_then(|connections| connections.get_mut(&self.number));
        match mine {
            Some(connection @ Connection::Opening) => *connection = Connection::Open(Box::new(cut)),
            _ => {
                drop(slots);
                cut();
            }
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut slots = self.live.slots.lock();
        let Some(connections) = slots.get_mut(&self.key) else {
            return;
        };
        let ended = connections.remove(&self.number);
        if connections.is_empty() {
            slots.remove(&self.key);
        }
        // Whatever the closure holds is dropped without the lock.
        drop(slots);
        drop(ended);
    }
}

// === impl Live ===

impl Live {
    fn cut(&self, key: &SessionKey) {
        let mut open = Vec::new();
        if let Some(connections) = self.slots.lock().get_mut(key) {
            for connection in connections.values_mut() {
                if let Connection::Open(cut) = std::mem::replace(connection, Connection::Cut) {
                    open.push(cut);
                }
            }
        }
        // Without the lock: cutting drops slots, which take it.
        for cut in open {
            cut();
        }
    }
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Opening => "Opening",
            Self::Open(_) => "Open",
            Self::Cut => "Cut",
        })
    }
}

#[cfg(test)]
mod tests;
