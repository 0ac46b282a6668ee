//! What a call returned is there after the process was killed the hard way.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
};

use postern_store::{Kind, ListQuery, NewObject, ObjectStore as _, Precondition, SqliteStore};

/// Names the database for the child half of the test.
const CHILD: &str = "POSTERN_STORE_TEST_CHILD";

/// Writes that the parent waits for before it kills.
const WRITES: usize = 40;

#[tokio::test]
async fn a_killed_writer_loses_nothing_it_was_told_is_written() {
    let directory = tempfile::tempdir().expect("a directory");
    let url = format!("sqlite://{}/db", directory.path().display());
    let mut child = Command::new(std::env::current_exe().expect("this test binary"))
        .args(["--exact", "child_writes_until_it_is_killed", "--nocapture", "--ignored"])
        .env(CHILD, &url)
        .stdout(Stdio::piped())
        .spawn()
        .expect("the child starts");
    let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let mut told = Vec::new();
    while told.len() < WRITES {
        let line = lines.next().expect("the child goes on").expect("text");
        told.extend(line.strip_prefix("written ").map(str::to_owned));
    }
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(i32::try_from(child.id()).expect("a pid")),
        nix::sys::signal::Signal::SIGKILL,
    )
    .expect("the child is there to be killed");
    // It may have been told more between the last line read here and its end.
    told.extend(
        lines.map_while(Result::ok).filter_map(|l| l.strip_prefix("written ").map(str::to_owned)),
    );
    child.wait().expect("the child ends");

    let store = SqliteStore::open(&url).await.expect("the database opens again");
    for id in &told {
        let found = store.get(Kind::Sandbox, id).await.expect("it reads");
        assert_eq!(
            found.map(|o| o.payload),
            Some(id.as_bytes().to_vec()),
            "{id} was told to be written"
        );
    }
    // And it is not broken: everything reads, and writing goes on.
    let page = store.list(Kind::Sandbox, ListQuery::default()).await.expect("it lists");
    assert!(page.objects.len() >= told.len());
    let new = NewObject::new("after", "w", "after", Vec::new());
    store.put(Kind::Sandbox, new, Precondition::MustCreate).await.expect("it writes");
}

#[tokio::test]
#[ignore = "the child half of the test above"]
async fn child_writes_until_it_is_killed() {
    let Ok(url) = std::env::var(CHILD) else { return };
    let store = SqliteStore::open(&url).await.expect("the database opens");
    for i in 0..1_000_000 {
        let id = format!("id{i}");
        let object = NewObject::new(&id, "w", &id, id.as_bytes().to_vec());
        store.put(Kind::Sandbox, object, Precondition::MustCreate).await.expect("it writes");
        // The newline first: the test harness leaves its own line open.
        println!("\nwritten {id}");
        std::io::stdout().flush().expect("the parent reads");
    }
}
