//! The driver with real processes: a stand-in for the supervisor that is a shell script.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{FutureExt as _, StreamExt as _};
use postern_driver_core::compute::{
    DriverResourceRequirements, DriverSandbox, DriverSandboxSpec, DriverSandboxTemplate,
};
use postern_driver_core::condition::{RuntimeState, derive, reason};
use postern_driver_core::conformance::{self, StateProbe};
use postern_driver_core::{
    ComputeDriver, DriverError, SandboxRef, SandboxToken, WatchEvent, WatchStream,
};
use postern_driver_process::{CommandSpec, Config, OpenError, ProcessDriver};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(30);

/// A state directory whose sandboxes end with it, also when the test fails.
struct Host {
    temp: TempDir,
    behaviour: &'static str,
}

impl Host {
    fn new(behaviour: &'static str) -> Self {
        Self { temp: tempfile::tempdir().unwrap(), behaviour }
    }

    fn config(&self) -> Config {
        Config {
            state_dir: self.temp.path().join("state"),
            supervisor: CommandSpec {
                program: Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stand_in.sh"),
                args: vec![self.behaviour.to_owned()],
            },
            grpc_endpoint: "http://127.0.0.1:1".into(),
            stop_grace: Duration::from_secs(2),
            ..Config::default()
        }
    }

    async fn driver(&self) -> ProcessDriver {
        ProcessDriver::new(self.config(), 1).await.unwrap()
    }

    fn sandbox_dir(&self, id: &str) -> PathBuf {
        self.temp.path().join("state/sandboxes").join(id)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.temp.path().join("state/sandboxes")).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn starts(&self, id: &str) -> usize {
        let file = self.sandbox_dir(id).join("run/starts");
        fs::read_to_string(file).unwrap_or_default().lines().count()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let Ok(entries) = fs::read_dir(self.temp.path().join("state/sandboxes")) else {
            return;
        };
        for entry in entries.flatten() {
            let pid = fs::read_to_string(entry.path().join("pid")).ok().and_then(|text| {
                let stat = text.lines().nth(1)?;
                Pid::from_raw(stat.split(' ').next()?.parse().ok()?)
            });
            if let Some(pid) = pid {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
    }
}

fn sandbox(id: &str) -> DriverSandbox {
    DriverSandbox {
        id: id.into(),
        name: format!("name-{id}"),
        spec: Some(DriverSandboxSpec { sandbox_token: "first-token".into(), ..Default::default() }),
        ..Default::default()
    }
}

fn named(id: &str) -> SandboxRef {
    SandboxRef::new(id, "")
}

async fn state(driver: &ProcessDriver, id: &str) -> RuntimeState {
    derive(driver.get(&named(id)).await.unwrap().status.as_ref())
}

async fn pid(driver: &ProcessDriver, id: &str) -> Pid {
    let instance = driver.get(&named(id)).await.unwrap().status.unwrap().instance_id;
    let raw = instance.split('-').next().unwrap().parse().unwrap();
    Pid::from_raw(raw).unwrap()
}

fn is_gone(pid: Pid) -> bool {
    match fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())) {
        Err(_) => true,
        Ok(stat) => stat.rsplit(')').next().unwrap().trim().starts_with('Z'),
    }
}

/// Reads the watch until the sandbox is in a state.
async fn until(
    watch: &mut WatchStream,
    id: &str,
    is: impl Fn(&RuntimeState) -> bool,
) -> RuntimeState {
    let search = async {
        loop {
            if let WatchEvent::Sandbox(sandbox) = watch.next().await.unwrap()
                && sandbox.id == id
            {
                let state = derive(sandbox.status.as_ref());
                if is(&state) {
                    return state;
                }
            }
        }
    };
    tokio::time::timeout(DEADLINE, search).await.unwrap()
}

/// Looks until it holds. For files that other processes write.
async fn eventually(what: &str, holds: impl Fn() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

struct HomeFile(PathBuf);

impl HomeFile {
    fn path(&self, id: &str) -> PathBuf {
        self.0.join("state/sandboxes").join(id).join("home/mark")
    }
}

impl StateProbe for HomeFile {
    fn mark(&self, id: &str) {
        fs::write(self.path(id), "x").unwrap();
    }
    fn is_marked(&self, id: &str) -> bool {
        self.path(id).exists()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn obeys_the_driver_contract() {
    let host = Host::new("sleep");
    let config = host.config();
    let report = conformance::run(
        move || {
            let config = config.clone();
            async move { ProcessDriver::new(config, 1).await.unwrap() }
        },
        conformance::Options {
            state: Some(Arc::new(HomeFile(host.temp.path().to_owned()))),
            ..Default::default()
        },
    )
    .await;
    println!("{report}");
    report.assert_passed();
}

#[tokio::test]
async fn a_supervisor_gets_its_environment_its_user_and_nothing_else() {
    let host = Host::new("sleep");
    let driver = host.driver().await;
    for id in ["a", "b"] {
        driver.create(sandbox(id)).await.unwrap();
    }
    let dir = host.sandbox_dir("a");
    let environment = dir.join("run/environment");
    eventually("the stand-in wrote its environment", || {
        fs::read_to_string(&environment).is_ok_and(|text| text.contains("POSTERN_SANDBOX_DIR"))
    })
    .await;
    let text = fs::read_to_string(&environment).unwrap();
    assert!(text.contains("OPENSHELL_SANDBOX_ID=a\n"), "{text}");
    assert!(!text.contains("CARGO"), "{text}");
    assert!(!text.contains("first-token"), "{text}");
    assert_eq!(fs::read_to_string(dir.join("token")).unwrap(), "first-token");
    assert!(
        !fs::read_to_string(dir.join("spec.pb").display().to_string())
            .unwrap_or_default()
            .contains("first-token")
    );
    for private in ["token", "spec.pb", "pid", "agent", "log/supervisor.log"] {
        let mode = fs::metadata(dir.join(private)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{private}");
    }
    let owner = |id: &str| fs::metadata(host.sandbox_dir(id).join("home")).unwrap().uid();
    if rustix::process::geteuid().is_root() {
        assert_ne!(owner("a"), 0);
        assert_ne!(owner("a"), owner("b"));
        assert!(text.contains(&format!("POSTERN_AGENT_UID={}\n", owner("a"))));
    } else {
        eprintln!("SKIPPED: agents have users of their own only under root");
    }
    // Its own session, so that nothing sent to the gateway's reaches it.
    let stat =
        fs::read_to_string(format!("/proc/{}/stat", pid(&driver, "a").await.as_raw_nonzero()))
            .unwrap();
    let session = stat.rsplit(") ").next().unwrap().split(' ').nth(3).unwrap();
    assert_eq!(session, pid(&driver, "a").await.as_raw_nonzero().to_string());
    for id in ["a", "b"] {
        driver.delete(&named(id)).await.unwrap();
    }
}

#[tokio::test]
async fn a_killed_supervisor_is_started_again() {
    let host = Host::new("sleep");
    let driver = host.driver().await;
    driver.create(sandbox("a")).await.unwrap();
    let first = pid(&driver, "a").await;
    eventually("the stand-in runs", || host.starts("a") == 1).await;
    let mut watch = driver.watch().await.unwrap();
    until(&mut watch, "a", |state| *state == RuntimeState::Running).await;
    kill_process(first, Signal::KILL).unwrap();
    let passing = until(&mut watch, "a", |state| *state != RuntimeState::Running).await;
    let RuntimeState::Provisioning { message, .. } = passing else {
        panic!("a killed supervisor is no end: {passing:?}")
    };
    assert!(message.contains("signal 9"), "{message}");
    until(&mut watch, "a", |state| *state == RuntimeState::Running).await;
    assert_ne!(pid(&driver, "a").await, first);
    assert!(driver.delete(&named("a")).await.unwrap());
}

#[tokio::test]
async fn a_supervisor_that_keeps_failing_is_given_up_with_its_last_words() {
    let host = Host::new("crash");
    let driver = host.driver().await;
    let mut watch = driver.watch().await.unwrap();
    driver.create(sandbox("a")).await.unwrap();
    let end = until(&mut watch, "a", |state| matches!(state, RuntimeState::Failed { .. })).await;
    let RuntimeState::Failed { reason, message } = &end else { unreachable!() };
    assert_eq!(reason, reason::CRASH_LOOP);
    assert!(message.contains("code 3"), "{message}");
    assert!(message.contains("no namespace: boom"), "{message}");
    assert_eq!(host.starts("a"), 5);
    // A new gateway does not try for ever either.
    drop(driver);
    let driver = host.driver().await;
    assert_eq!(state(&driver, "a").await, end);
    // Somebody asking for it does.
    let mut watch = driver.watch().await.unwrap();
    driver.start(&named("a"), None).await.unwrap();
    until(&mut watch, "a", |state| *state == RuntimeState::Running).await;
    until(&mut watch, "a", |state| matches!(state, RuntimeState::Failed { .. })).await;
    assert_eq!(host.starts("a"), 10);
    driver.stop(&named("a")).await.unwrap();
    assert_eq!(state(&driver, "a").await, RuntimeState::Stopped);
    assert!(driver.delete(&named("a")).await.unwrap());
}

#[tokio::test]
async fn last_words_never_show_the_token() {
    let host = Host::new("leak");
    let driver = host.driver().await;
    let mut watch = driver.watch().await.unwrap();
    driver.create(sandbox("a")).await.unwrap();
    let search = async {
        let mut seen = 0;
        loop {
            let event = watch.next().await.unwrap();
            let text = format!("{event:?}");
            assert!(!text.contains("first-token"), "{text}");
            seen += usize::from(text.contains("token is ***"));
            if text.contains(reason::CRASH_LOOP) {
                return seen;
            }
        }
    };
    assert!(tokio::time::timeout(DEADLINE, search).await.unwrap() > 0);
}

#[tokio::test]
async fn a_sandbox_whose_main_process_ended_is_not_run_again() {
    for (behaviour, words) in [("done", "main process exited with code 5"), ("well", "code 0")] {
        let host = Host::new(behaviour);
        let driver = host.driver().await;
        let mut watch = driver.watch().await.unwrap();
        driver.create(sandbox("a")).await.unwrap();
        let end =
            until(&mut watch, "a", |state| matches!(state, RuntimeState::Failed { .. })).await;
        let RuntimeState::Failed { reason, message } = &end else { unreachable!() };
        assert_eq!(reason, reason::PROCESS_EXITED);
        assert!(message.contains(words), "{message}");
        drop(driver);
        let driver = host.driver().await;
        assert_eq!(state(&driver, "a").await, end);
        assert_eq!(host.starts("a"), 1);
    }
}

#[tokio::test]
async fn a_supervisor_that_died_while_no_gateway_watched_is_started_again() {
    let host = Host::new("sleep");
    let driver = host.driver().await;
    driver.create(sandbox("a")).await.unwrap();
    let first = pid(&driver, "a").await;
    drop(driver);
    // This process is its parent still and does not collect it: a zombie counts as dead.
    kill_process(first, Signal::KILL).unwrap();
    eventually("the supervisor is gone", || is_gone(first)).await;
    let driver = host.driver().await;
    let mut watch = driver.watch().await.unwrap();
    until(&mut watch, "a", |state| *state == RuntimeState::Running).await;
    assert_ne!(pid(&driver, "a").await, first);
    driver.delete(&named("a")).await.unwrap();
}

#[tokio::test]
async fn a_stop_that_a_dead_gateway_began_is_finished() {
    let host = Host::new("sleep");
    let driver = host.driver().await;
    driver.create(sandbox("a")).await.unwrap();
    let first = pid(&driver, "a").await;
    drop(driver);
    fs::write(host.sandbox_dir("a").join("stopped"), "").unwrap();
    let driver = host.driver().await;
    let mut watch = driver.watch().await.unwrap();
    until(&mut watch, "a", |state| *state == RuntimeState::Stopped).await;
    assert!(is_gone(first));
    driver.delete(&named("a")).await.unwrap();
}

/// Not a test by itself: the gateway of the next one, in a process of its own.
#[tokio::test]
async fn gateway_to_be_killed() {
    let Ok(state_dir) = std::env::var("POSTERN_TEST_STATE_DIR") else {
        return;
    };
    let host = Host::new("sleep");
    let config = Config { state_dir: state_dir.into(), ..host.config() };
    let driver = ProcessDriver::new(config, 1).await.unwrap();
    driver.create(sandbox("a")).await.unwrap();
    println!("instance {}", pid(&driver, "a").await.as_raw_nonzero());
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn sandboxes_outlive_a_killed_gateway_and_are_found_again() {
    let host = Host::new("sleep");
    let mut gateway = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "gateway_to_be_killed", "--nocapture"])
        .env("POSTERN_TEST_STATE_DIR", host.temp.path().join("state"))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = gateway.stdout.take().unwrap();
    let first = tokio::task::spawn_blocking(move || {
        use std::io::BufRead as _;
        let mut lines = std::io::BufReader::new(output).lines();
        lines
            .find_map(|line| Some(line.unwrap().split_once("instance ")?.1.parse().unwrap()))
            .and_then(Pid::from_raw)
    })
    .await
    .unwrap()
    .unwrap();
    gateway.kill().unwrap();
    gateway.wait().unwrap();
    assert!(!is_gone(first), "the supervisor went with its gateway");

    let driver = host.driver().await;
    assert_eq!(state(&driver, "a").await, RuntimeState::Running);
    assert_eq!(pid(&driver, "a").await, first, "it was made anew");
    // And it is not only looked at: its end is seen, although it is no child of this process.
    let mut watch = driver.watch().await.unwrap();
    until(&mut watch, "a", |state| *state == RuntimeState::Running).await;
    kill_process(first, Signal::KILL).unwrap();
    until(&mut watch, "a", |state| *state != RuntimeState::Running).await;
    until(&mut watch, "a", |state| *state == RuntimeState::Running).await;
    assert!(driver.delete(&named("a")).await.unwrap());
    eventually("the directory is gone", || host.names().is_empty()).await;
}

#[tokio::test]
async fn stop_ends_every_process_of_the_session() {
    let host = Host::new("brood");
    let driver = host.driver().await;
    driver.create(sandbox("a")).await.unwrap();
    let file = host.sandbox_dir("a").join("run/brood");
    let brood = || -> Option<Pid> {
        let text = fs::read_to_string(&file).ok()?;
        Pid::from_raw(text.trim().parse().ok()?)
    };
    eventually("the stand-in has a child", || brood().is_some()).await;
    let child = brood().unwrap();
    driver.stop(&named("a")).await.unwrap();
    eventually("the child is gone", || is_gone(child)).await;
    driver.delete(&named("a")).await.unwrap();
}

#[tokio::test]
async fn a_stubborn_or_frozen_supervisor_is_killed_after_the_grace() {
    for behaviour in ["stubborn", "sleep"] {
        let host = Host::new(behaviour);
        let driver = host.driver().await;
        driver.create(sandbox("a")).await.unwrap();
        eventually("the stand-in runs", || host.starts("a") == 1).await;
        let supervisor = pid(&driver, "a").await;
        if behaviour == "sleep" {
            kill_process(supervisor, Signal::STOP).unwrap();
        }
        driver.stop(&named("a")).await.unwrap();
        assert!(is_gone(supervisor), "{behaviour}");
        driver.delete(&named("a")).await.unwrap();
    }
}

#[tokio::test]
async fn a_start_brings_the_same_user_and_a_new_token() {
    let host = Host::new("sleep");
    let driver = host.driver().await;
    driver.create(sandbox("a")).await.unwrap();
    let home = host.sandbox_dir("a").join("home");
    let before = fs::metadata(&home).unwrap().uid();
    driver.stop(&named("a")).await.unwrap();
    let token = SandboxToken::new("second-token".into());
    driver.start(&named("a"), Some(token)).await.unwrap();
    assert_eq!(fs::metadata(&home).unwrap().uid(), before);
    let token = host.sandbox_dir("a").join("token");
    assert_eq!(fs::read_to_string(token).unwrap(), "second-token");
    driver.delete(&named("a")).await.unwrap();
}

#[tokio::test]
async fn a_create_that_fails_leaves_nothing() {
    let host = Host::new("sleep");
    let program = host.temp.path().join("supervisor");
    fs::copy(host.config().supervisor.program, &program).unwrap();
    let mut config = host.config();
    config.supervisor.program.clone_from(&program);
    let driver = ProcessDriver::new(config, 1).await.unwrap();
    fs::rename(&program, program.with_extension("away")).unwrap();
    let error = driver.create(sandbox("a")).await.unwrap_err();
    assert!(
        matches!(&error, DriverError::Internal { problem, .. } if problem.contains("supervisor program")),
        "{error}"
    );
    assert!(driver.list().await.unwrap().is_empty());
    assert_eq!(host.names(), Vec::<String>::new());
    // The same id works once the cause is gone.
    fs::rename(program.with_extension("away"), &program).unwrap();
    driver.create(sandbox("a")).await.unwrap();
    assert!(driver.delete(&named("a")).await.unwrap());
}

#[tokio::test]
async fn a_create_whose_caller_went_away_is_finished() {
    let host = Host::new("sleep");
    let driver = host.driver().await;
    let mut watch = driver.watch().await.unwrap();
    let mut create = Box::pin(driver.create(sandbox("a")));
    // Polled once, so that it began, and then dropped.
    assert!((&mut create).now_or_never().is_none());
    drop(create);
    until(&mut watch, "a", |state| *state == RuntimeState::Running).await;
    assert!(driver.delete(&named("a")).await.unwrap());
}

#[tokio::test]
async fn many_at_once_have_users_of_their_own() {
    let host = Host::new("sleep");
    let driver = host.driver().await;
    let ids: Vec<String> = (0..16).map(|number| format!("s{number}")).collect();
    let creates = ids.iter().map(|id| driver.create(sandbox(id)));
    for made in futures_util::future::join_all(creates).await {
        made.unwrap();
    }
    assert_eq!(driver.list().await.unwrap().len(), 16);
    let owners: std::collections::BTreeSet<u32> = ids
        .iter()
        .map(|id| fs::metadata(host.sandbox_dir(id).join("home")).unwrap().uid())
        .collect();
    let wanted = if rustix::process::geteuid().is_root() { 16 } else { 1 };
    assert_eq!(owners.len(), wanted);
    let refs: Vec<SandboxRef> = ids.iter().map(|id| named(id)).collect();
    let deletes = refs.iter().map(|named| driver.delete(named));
    for deleted in futures_util::future::join_all(deletes).await {
        assert!(deleted.unwrap());
    }
    eventually("all directories are gone", || host.names().is_empty()).await;
}

#[tokio::test]
async fn stop_and_delete_at_the_same_time_both_end_well() {
    let host = Host::new("stubborn");
    let driver = host.driver().await;
    driver.create(sandbox("a")).await.unwrap();
    eventually("the stand-in runs", || host.starts("a") == 1).await;
    let a = named("a");
    let (stop, delete) = tokio::join!(driver.stop(&a), driver.delete(&a));
    stop.unwrap();
    assert!(delete.unwrap());
    assert!(driver.list().await.unwrap().is_empty());
}

#[tokio::test]
async fn what_is_not_ours_in_the_state_directory_is_left_alone() {
    let host = Host::new("sleep");
    drop(host.driver().await);
    let outside = host.temp.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("precious"), "x").unwrap();
    symlink(&outside, host.sandbox_dir("link")).unwrap();
    fs::create_dir(host.sandbox_dir("damaged")).unwrap();
    fs::create_dir(host.sandbox_dir(".new-half")).unwrap();
    let driver = host.driver().await;
    assert!(driver.list().await.unwrap().is_empty());
    assert_eq!(host.names(), ["damaged", "link"]);
    for id in ["link", "damaged"] {
        assert!(!driver.delete(&named(id)).await.unwrap());
        let error = driver.create(sandbox(id)).await.unwrap_err();
        assert!(matches!(error, DriverError::FailedPrecondition { .. }), "{error}");
    }
    assert!(outside.join("precious").exists());
    assert_eq!(host.names(), ["damaged", "link"]);
}

#[tokio::test]
async fn limits_that_are_not_applied_are_said_so() {
    let host = Host::new("sleep");
    let driver = host.driver().await;
    let mut watch = driver.watch().await.unwrap();
    let mut limited = sandbox("a");
    limited.spec.as_mut().unwrap().template = Some(DriverSandboxTemplate {
        resources: Some(DriverResourceRequirements {
            memory_limit: "1Gi".into(),
            ..Default::default()
        }),
        ..Default::default()
    });
    driver.create(limited).await.unwrap();
    let search = async {
        loop {
            if let WatchEvent::Platform { event, .. } = watch.next().await.unwrap()
                && event.reason == "ResourcesNotEnforced"
            {
                return event;
            }
        }
    };
    let event = tokio::time::timeout(DEADLINE, search).await.unwrap();
    assert_eq!(event.r#type, "Warning");
    driver.delete(&named("a")).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn two_drivers_never_share_a_state_directory() {
    let host = Host::new("sleep");
    let first = host.driver().await;
    let refused = ProcessDriver::new(host.config(), 1).await.unwrap_err();
    assert!(matches!(refused, OpenError::InUse { .. }), "{refused}");
    drop(first);
    host.driver().await;
}

#[tokio::test]
async fn a_program_that_is_not_there_is_a_fault_of_the_configuration() {
    let host = Host::new("sleep");
    let mut config = host.config();
    for program in ["/nowhere/supervisor", "/etc/passwd", "/tmp"] {
        config.supervisor.program = program.into();
        let fault = ProcessDriver::new(config.clone(), 1).await.unwrap_err();
        assert!(matches!(fault, OpenError::Config { key: "supervisor.program", .. }), "{fault}");
    }
}
