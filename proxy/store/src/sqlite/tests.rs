use std::sync::atomic::{AtomicU64, Ordering};

use super::*;
use crate::{LabelSelector, PageKey, REQUEST_MEMORY_MS};

async fn memory() -> SqliteStore {
    SqliteStore::open("sqlite::memory:").await.unwrap()
}

fn object(id: &str, name: &str) -> NewObject {
    NewObject::new(id, "default", name, id.as_bytes().to_vec())
}

fn key(request_id: &str) -> RequestKey {
    RequestKey {
        subject: "ada".into(),
        method: "CreateSandbox".into(),
        workspace: "default".into(),
        request_id: request_id.into(),
    }
}

#[tokio::test]
async fn what_is_written_reads_back() {
    let store = memory().await;
    let new = object("1", "one").with_labels([("env".to_owned(), "prod".to_owned())]);
    assert_eq!(store.put(Kind::Sandbox, new.clone(), Precondition::MustCreate).await.unwrap(), 1);
    let read = store.get(Kind::Sandbox, "1").await.unwrap().unwrap();
    assert_eq!(
        (&read.name, &read.labels, &read.payload, read.version),
        (&new.name, &new.labels, &new.payload, 1)
    );
    assert!(read.created_at_ms > 1_600_000_000_000, "{}", read.created_at_ms);
    assert_eq!(store.get_by_name(Kind::Sandbox, "default", "one").await.unwrap(), Some(read));
    // Kinds and workspaces are apart.
    assert_eq!(store.get(Kind::SshSession, "1").await.unwrap(), None);
    assert_eq!(store.get_by_name(Kind::Sandbox, "other", "one").await.unwrap(), None);
}

#[tokio::test]
async fn ids_and_names_are_taken_once() {
    let store = memory().await;
    store.put(Kind::Sandbox, object("1", "one"), Precondition::MustCreate).await.unwrap();
    for again in [object("1", "two"), object("2", "one")] {
        let refused = store.put(Kind::Sandbox, again, Precondition::MustCreate).await;
        assert!(matches!(refused, Err(StoreError::AlreadyExists { .. })), "{refused:?}");
    }
    store.put(Kind::SshSession, object("1", "one"), Precondition::MustCreate).await.unwrap();
    store.put(Kind::Sandbox, object("2", "two"), Precondition::MustCreate).await.unwrap();
    let renamed = store.put(Kind::Sandbox, object("2", "one"), Precondition::Version(1)).await;
    assert!(matches!(renamed, Err(StoreError::AlreadyExists { .. })), "{renamed:?}");
}

#[tokio::test]
async fn a_write_on_an_old_version_is_refused() {
    let store = memory().await;
    store.put(Kind::Sandbox, object("1", "one"), Precondition::MustCreate).await.unwrap();
    assert_eq!(
        store.put(Kind::Sandbox, object("1", "one"), Precondition::Version(1)).await.unwrap(),
        2
    );
    let late = store.put(Kind::Sandbox, object("1", "one"), Precondition::Version(1)).await;
    assert!(
        matches!(late, Err(StoreError::Conflict { expected: 1, found: Some(2), .. })),
        "{late:?}"
    );
    let late = store.delete(Kind::Sandbox, "1", Some(1)).await;
    assert!(
        matches!(late, Err(StoreError::Conflict { expected: 1, found: Some(2), .. })),
        "{late:?}"
    );
    assert!(store.delete(Kind::Sandbox, "1", Some(2)).await.unwrap());
    assert!(!store.delete(Kind::Sandbox, "1", None).await.unwrap());
    let gone = store.put(Kind::Sandbox, object("1", "one"), Precondition::Version(2)).await;
    assert!(matches!(gone, Err(StoreError::Conflict { found: None, .. })), "{gone:?}");
}

#[tokio::test]
async fn of_concurrent_writers_one_wins_each_version() {
    const WRITERS: usize = 8;
    const WINS: u64 = 20;
    let directory = tempfile::tempdir().unwrap();
    let store =
        SqliteStore::open(&format!("sqlite://{}/db", directory.path().display())).await.unwrap();
    store
        .put(Kind::Sandbox, NewObject::new("1", "w", "n", vec![0; 4]), Precondition::MustCreate)
        .await
        .unwrap();
    let writers: Vec<_> = (0..WRITERS)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut wins = 0;
                while wins < WINS {
                    let read = store.get(Kind::Sandbox, "1").await.unwrap().unwrap();
                    let count = u32::from_be_bytes(read.payload.try_into().unwrap()) + 1;
                    let next = NewObject::new("1", "w", "n", count.to_be_bytes().to_vec());
                    match store.put(Kind::Sandbox, next, Precondition::Version(read.version)).await
                    {
                        Ok(_) => wins += 1,
                        Err(StoreError::Conflict { .. }) => {}
                        Err(e) => panic!("{e}"),
                    }
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let read = store.get(Kind::Sandbox, "1").await.unwrap().unwrap();
    // No increment was lost.
    assert_eq!(read.payload, u32::try_from(WRITERS as u64 * WINS).unwrap().to_be_bytes());
    assert_eq!(read.version, 1 + WRITERS as u64 * WINS);
}

#[tokio::test]
async fn pages_are_stable_while_objects_come_and_go() {
    let store = memory().await;
    for i in 0..10 {
        store
            .put(Kind::Sandbox, object(&format!("{i}"), &format!("n{i}")), Precondition::MustCreate)
            .await
            .unwrap();
    }
    let mut seen = Vec::new();
    let mut query = ListQuery { limit: 3, ..ListQuery::default() };
    let mut round = 0;
    loop {
        let page = store.list(Kind::Sandbox, query.clone()).await.unwrap();
        seen.extend(page.objects.iter().map(|o| o.id.clone()));
        let Some(next) = page.next else { break };
        // Between two pages one object that was shown and one that was not are deleted, one comes new, one changes.
        if round == 0 {
            store.delete(Kind::Sandbox, "1", None).await.unwrap();
            store.delete(Kind::Sandbox, "5", None).await.unwrap();
            store
                .put(Kind::Sandbox, object("new", "a-first-name"), Precondition::MustCreate)
                .await
                .unwrap();
            store
                .put(Kind::Sandbox, object("4", "renamed"), Precondition::Version(1))
                .await
                .unwrap();
        }
        round += 1;
        query.after = Some(PageKey::from_token(&next.to_token()).unwrap());
    }
    assert_eq!(seen, ["0", "1", "2", "3", "4", "6", "7", "8", "9", "new"]);
}

#[tokio::test]
async fn a_page_that_ends_exactly_is_the_last() {
    let store = memory().await;
    for i in 0..4 {
        store
            .put(Kind::Sandbox, object(&format!("{i}"), &format!("n{i}")), Precondition::MustCreate)
            .await
            .unwrap();
    }
    let query = ListQuery { limit: 2, ..ListQuery::default() };
    let first = store.list(Kind::Sandbox, query.clone()).await.unwrap();
    let second = store.list(Kind::Sandbox, ListQuery { after: first.next, ..query }).await.unwrap();
    assert_eq!((first.next.is_some(), second.objects.len(), second.next), (true, 2, None));
}

#[tokio::test]
async fn a_token_of_another_list_is_refused() {
    let store = memory().await;
    for i in 0..3 {
        store
            .put(Kind::Sandbox, object(&format!("{i}"), &format!("n{i}")), Precondition::MustCreate)
            .await
            .unwrap();
    }
    let page =
        store.list(Kind::Sandbox, ListQuery { limit: 1, ..ListQuery::default() }).await.unwrap();
    let other =
        ListQuery { workspace: Some("default".into()), after: page.next, ..ListQuery::default() };
    assert!(matches!(store.list(Kind::Sandbox, other).await, Err(StoreError::ForeignPageKey)));
}

#[tokio::test]
async fn the_database_selects_as_the_matcher_does() {
    let store = memory().await;
    for (id, labels) in [
        ("plain", vec![]),
        ("prod", vec![("env", "prod")]),
        ("dev", vec![("env", "dev"), ("tier", "")]),
        ("odd", vec![("quote\"key", "a'b\"c"), ("x.example/y", "z")]),
    ] {
        let labels = labels.into_iter().map(|(k, v)| (k.to_owned(), v.to_owned()));
        store
            .put(Kind::Sandbox, object(id, id).with_labels(labels), Precondition::MustCreate)
            .await
            .unwrap();
    }
    let all = store.list(Kind::Sandbox, ListQuery::default()).await.unwrap().objects;
    for text in [
        "",
        "env",
        "!env",
        "env=prod",
        "env!=prod",
        "env in (prod,dev)",
        "env notin (dev)",
        "tier=",
        "tier!=",
        "env,!tier",
        "env=prod,env=dev",
        "x.example/y=z",
        "!nothing",
    ] {
        let labels = LabelSelector::parse(text).unwrap();
        let listed =
            store.list(Kind::Sandbox, ListQuery { labels: labels.clone(), ..ListQuery::default() });
        let listed: Vec<_> = listed.await.unwrap().objects.into_iter().map(|o| o.id).collect();
        let matched: Vec<_> =
            all.iter().filter(|o| labels.matches(&o.labels)).map(|o| o.id.clone()).collect();
        assert_eq!(listed, matched, "{text:?}");
    }
}

#[tokio::test]
async fn a_request_is_answered_once_a_day() {
    let now = Arc::new(AtomicU64::new(1_000));
    let clock = now.clone();
    let options =
        Options { now_ms: Arc::new(move || clock.load(Ordering::SeqCst)), ..Options::default() };
    let store = SqliteStore::open_with("sqlite::memory:", options).await.unwrap();
    assert_eq!(store.remember_request(key("r"), [1; 32], "a").await.unwrap(), Remembered::New);
    let again = store.remember_request(key("r"), [1; 32], "b").await.unwrap();
    assert_eq!(again, Remembered::Same { result_id: "a".into() });
    assert_eq!(
        store.remember_request(key("r"), [2; 32], "b").await.unwrap(),
        Remembered::Different
    );
    let other = RequestKey { subject: "bob".into(), ..key("r") };
    assert_eq!(store.remember_request(other.clone(), [2; 32], "b").await.unwrap(), Remembered::New);
    store.forget_request(&other).await.unwrap();
    assert_eq!(store.remember_request(other, [3; 32], "c").await.unwrap(), Remembered::New);

    now.fetch_add(REQUEST_MEMORY_MS - 1, Ordering::SeqCst);
    assert!(matches!(
        store.remember_request(key("r"), [1; 32], "b").await.unwrap(),
        Remembered::Same { .. }
    ));
    now.fetch_add(1, Ordering::SeqCst);
    assert_eq!(store.remember_request(key("r"), [1; 32], "b").await.unwrap(), Remembered::New);
    assert_eq!(store.reap(now.load(Ordering::SeqCst) + REQUEST_MEMORY_MS).await.unwrap(), 1);
}

#[tokio::test]
async fn remembered_requests_are_bounded() {
    let options = Options { max_requests: 3, ..Options::default() };
    let store = SqliteStore::open_with("sqlite::memory:", options).await.unwrap();
    for i in 0..5 {
        store.remember_request(key(&format!("r{i}")), [1; 32], "a").await.unwrap();
    }
    // The newest three are there, the oldest made room.
    for i in 2..5 {
        let known = store.remember_request(key(&format!("r{i}")), [1; 32], "b").await.unwrap();
        assert_eq!(known, Remembered::Same { result_id: "a".into() }, "r{i}");
    }
    assert_eq!(store.remember_request(key("r0"), [1; 32], "b").await.unwrap(), Remembered::New);
}

#[tokio::test]
async fn one_of_concurrent_equal_requests_is_new() {
    let directory = tempfile::tempdir().unwrap();
    let store =
        SqliteStore::open(&format!("sqlite://{}/db", directory.path().display())).await.unwrap();
    let calls: Vec<_> = (0..16)
        .map(|i| {
            let store = store.clone();
            tokio::spawn(async move {
                store.remember_request(key("r"), [1; 32], &format!("id{i}")).await.unwrap()
            })
        })
        .collect();
    let mut new = 0;
    for call in calls {
        new += usize::from(call.await.unwrap() == Remembered::New);
    }
    assert_eq!(new, 1);
}

#[tokio::test]
async fn a_full_disk_is_unavailable_and_reads_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let store =
        SqliteStore::open(&format!("sqlite://{}/db", directory.path().display())).await.unwrap();
    store.put(Kind::Sandbox, object("1", "one"), Precondition::MustCreate).await.unwrap();
    // What a full disk answers, SQLite also answers at its own page limit (SQLITE_FULL).
    sqlx::query("PRAGMA max_page_count = 1").execute(store.database.writer()).await.unwrap();
    let big = NewObject::new("2", "default", "two", vec![7; 1 << 20]);
    let refused =
        store.put(Kind::Sandbox, big.clone(), Precondition::MustCreate).await.expect_err("no room");
    assert!(refused.is_unavailable(), "{refused:?}");
    assert!(store.get(Kind::Sandbox, "1").await.unwrap().is_some());
    assert_eq!(store.get(Kind::Sandbox, "2").await.unwrap(), None);
    // Room again: the same call goes through.
    sqlx::query("PRAGMA max_page_count = 1000000").execute(store.database.writer()).await.unwrap();
    store.put(Kind::Sandbox, big, Precondition::MustCreate).await.unwrap();
}

#[tokio::test]
async fn a_removed_or_replaced_file_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let store = SqliteStore::open(&format!("sqlite://{}", path.display())).await.unwrap();
    store.probe().await.unwrap();
    std::fs::remove_file(&path).unwrap();
    for replaced in [false, true] {
        if replaced {
            std::fs::write(&path, b"").unwrap();
        }
        let probed = store.probe().await.expect_err("the file is gone");
        assert!(
            matches!(probed, StoreError::Unavailable { cause: UnavailableCause::FileGone, .. }),
            "{probed:?}"
        );
        let put = store.put(Kind::Sandbox, object("1", "one"), Precondition::MustCreate).await;
        assert!(put.expect_err("would be lost").is_unavailable());
    }
}

#[tokio::test]
async fn files_are_private_and_reopen() {
    use std::os::unix::fs::PermissionsExt as _;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state/deep/gateway.db");
    let url = format!("sqlite://{}", path.display());
    let store = SqliteStore::open(&url).await.unwrap();
    store.put(Kind::Sandbox, object("1", "one"), Precondition::MustCreate).await.unwrap();
    for entry in std::fs::read_dir(path.parent().unwrap()).unwrap() {
        let mode = entry.unwrap().metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600);
    }
    let mode = std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o700);
    store.close().await;
    assert!(store.probe().await.expect_err("closed").is_unavailable());
    let again = SqliteStore::open(&url).await.unwrap();
    assert!(again.get(Kind::Sandbox, "1").await.unwrap().is_some());
}

#[tokio::test]
async fn other_urls_are_refused_without_showing_a_password() {
    for url in ["postgres://ada:secret@db.example/state", "", "state.db", "sqlite:"] {
        let refused = SqliteStore::open(url).await.expect_err(url);
        let text = refused.to_string();
        assert!(matches!(refused, StoreError::UnsupportedUrl { .. }), "{url}: {refused:?}");
        assert!(!text.contains("secret") && text.contains("sqlite://"), "{text}");
    }
}

#[tokio::test]
async fn a_payload_has_a_limit() {
    let store = memory().await;
    let large = NewObject::new("1", "w", "n", vec![0; crate::MAX_PAYLOAD + 1]);
    let refused = store.put(Kind::Sandbox, large, Precondition::MustCreate).await;
    assert!(matches!(refused, Err(StoreError::PayloadTooLarge { .. })), "{refused:?}");
}

#[tokio::test(start_paused = true)]
async fn a_paused_clock_stays_while_the_database_works() {
    let before = tokio::time::Instant::now();
    let store = memory().await;
    for i in 0..50 {
        store
            .put(Kind::Sandbox, object(&format!("{i}"), &format!("n{i}")), Precondition::MustCreate)
            .await
            .unwrap();
        store.get(Kind::Sandbox, "0").await.unwrap();
    }
    assert_eq!(tokio::time::Instant::now(), before);
}
