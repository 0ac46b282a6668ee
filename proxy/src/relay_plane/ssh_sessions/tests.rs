use std::sync::atomic::AtomicU32;

use postern_store::SqliteStore;

use super::*;

struct Setup {
    sessions: SshSessions,
    store: Arc<dyn ObjectStore>,
    seconds: Arc<AtomicU64>,
}

async fn setup(ttl: Duration) -> Setup {
    let store: Arc<dyn ObjectStore> = Arc::new(SqliteStore::open("sqlite::memory:").await.unwrap());
    let seconds = Arc::new(AtomicU64::new(1_000_000));
    let time = Arc::clone(&seconds);
    let clock = WallClock::from_fn(move || {
        SystemTime::UNIX_EPOCH + Duration::from_secs(time.load(Ordering::SeqCst))
    });
    Setup { sessions: SshSessions::new(Arc::clone(&store), ttl, clock), store, seconds }
}

fn counter() -> (Arc<AtomicU32>, impl Fn() -> Box<dyn FnOnce() + Send>) {
    let count = Arc::new(AtomicU32::new(0));
    let shared = Arc::clone(&count);
    (count, move || {
        let shared = Arc::clone(&shared);
        Box::new(move || {
            shared.fetch_add(1, Ordering::SeqCst);
        })
    })
}

#[tokio::test]
async fn a_token_finds_its_session_and_is_not_on_disk() {
    let setup = setup(DEFAULT_TTL).await;
    let created = setup.sessions.create("sb", "ada").await.unwrap();
    assert_eq!(created.token.expose().len(), 43);
    assert!(!format!("{created:?}").contains(created.token.expose().as_str()));
    let found = setup.sessions.find(created.token.expose()).await.unwrap();
    assert_eq!((found.sandbox_id.as_str(), found.subject.as_str()), ("sb", "ada"));
    let page = setup.store.list(Kind::SshSession, ListQuery::default()).await.unwrap();
    let token = created.token.expose().as_bytes();
    assert!(!page.objects[0].payload.windows(token.len()).any(|part| part == token));
    for bad in ["", "x", &"y".repeat(300)] {
        assert!(matches!(setup.sessions.find(bad).await, Err(SshSessionError::Refused)));
    }
}

#[tokio::test]
async fn a_session_ends_and_is_reaped() {
    let setup = setup(Duration::from_secs(60)).await;
    let created = setup.sessions.create("sb", "ada").await.unwrap();
    setup.seconds.fetch_add(59, Ordering::SeqCst);
    assert!(setup.sessions.find(created.token.expose()).await.is_ok());
    assert_eq!(setup.sessions.reap().await.unwrap(), 0);
    setup.seconds.fetch_add(1, Ordering::SeqCst);
    assert!(matches!(
        setup.sessions.find(created.token.expose()).await,
        Err(SshSessionError::Refused)
    ));
    assert_eq!(setup.sessions.reap().await.unwrap(), 1);
    assert!(!setup.sessions.revoke(created.token.expose()).await.unwrap());
}

#[tokio::test]
async fn a_ttl_of_zero_never_ends() {
    let setup = setup(Duration::ZERO).await;
    let created = setup.sessions.create("sb", "ada").await.unwrap();
    assert_eq!(created.expires_at, None);
    setup.seconds.fetch_add(1_000_000_000, Ordering::SeqCst);
    assert!(setup.sessions.find(created.token.expose()).await.is_ok());
    assert_eq!(setup.sessions.reap().await.unwrap(), 0);
}

#[tokio::test]
async fn revoking_cuts_open_connections_and_those_still_opening() {
    let setup = setup(DEFAULT_TTL).await;
    let created = setup.sessions.create("sb", "ada").await.unwrap();
    let key = SessionKey::of(created.token.expose());
    let (cuts, cut) = counter();
    let open = setup.sessions.admit(key.clone()).unwrap();
    open.arm(cut());
    let opening = setup.sessions.admit(key.clone()).unwrap();
    assert!(setup.sessions.revoke(created.token.expose()).await.unwrap());
    assert_eq!(cuts.load(Ordering::SeqCst), 1);
    opening.arm(cut());
    assert_eq!(cuts.load(Ordering::SeqCst), 2, "revoked before it was armed");
    assert!(setup.sessions.find_by_key(&key).await.is_err());
    drop((open, opening));
    assert_eq!(setup.sessions.connections(), 0);
}

#[tokio::test]
async fn a_token_has_three_connections_and_gets_them_back() {
    let setup = setup(DEFAULT_TTL).await;
    let key = SessionKey::of("token");
    let mut held: Vec<Slot> = (0..MAX_CONNECTIONS_PER_TOKEN)
        .map(|_| setup.sessions.admit(key.clone()).unwrap())
        .collect();
    let refused = setup.sessions.admit(key.clone()).unwrap_err();
    assert!(refused.to_string().contains("cap per token = 3"), "{refused}");
    assert!(setup.sessions.admit(SessionKey::of("other")).is_ok());
    held.pop();
    assert!(setup.sessions.admit(key).is_ok());
}

#[tokio::test]
async fn removing_a_sandbox_ends_its_sessions_and_no_others() {
    let setup = setup(DEFAULT_TTL).await;
    let mine = setup.sessions.create("one", "ada").await.unwrap();
    let other = setup.sessions.create("two", "ada").await.unwrap();
    let (cuts, cut) = counter();
    let slot = setup.sessions.admit(SessionKey::of(mine.token.expose())).unwrap();
    slot.arm(cut());
    assert_eq!(setup.sessions.remove_sandbox("one").await.unwrap(), 1);
    assert_eq!(cuts.load(Ordering::SeqCst), 1);
    assert!(setup.sessions.find(mine.token.expose()).await.is_err());
    assert!(setup.sessions.find(other.token.expose()).await.is_ok());
}
