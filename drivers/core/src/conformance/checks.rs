//! The rules, one function each.

use futures_util::{FutureExt as _, StreamExt as _, future};
use tokio::time::timeout;
use tonic::Code;

use super::{Bench, Check, Outcome, TOKEN};
use crate::compute::DriverSandbox;
use crate::condition::{RuntimeState, derive};
use crate::{ComputeDriver, DriverError, SandboxRef, SandboxToken, WatchEvent};

type Verdict = Result<(), String>;

/// Fails the check unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($text:tt)+) => {
        if !$condition {
            return Err(format!($($text)+));
        }
    };
}

/// Runs the named checks in order; after each, everything the suite made is deleted.
macro_rules! run_checks {
    ($bench:expr, $($name:ident),+ $(,)?) => {{
        let mut checks = Vec::new();
        $(
            let verdict = $name($bench).await;
            let outcome = match verdict.and(clean_up($bench).await) {
                Ok(()) => Outcome::Passed,
                Err(how) => Outcome::Failed(how),
            };
            checks.push(Check { name: stringify!($name), outcome });
        )+
        checks
    }};
}

/// Every check.
pub(super) async fn all(bench: &Bench) -> Vec<Check> {
    let mut checks = run_checks!(
        bench,
        capabilities_name_the_driver,
        validate_changes_nothing,
        hostile_ids_are_refused,
        create_comes_up,
        a_second_create_is_refused_and_changes_nothing,
        concurrent_creates_make_one_sandbox,
        get_finds_by_id_and_by_name,
        what_is_absent_is_not_found,
        list_holds_every_sandbox,
        the_token_is_never_shown,
        stop_is_idempotent,
        start_after_stop_comes_up,
        start_of_a_running_sandbox_disturbs_nothing,
        delete_says_whether_there_was_something,
        a_stopped_sandbox_can_be_deleted,
        a_deleted_id_can_be_used_again,
        a_new_watch_begins_with_every_sandbox,
        a_watch_reports_stop_and_deletion,
        platform_events_are_complete,
        a_new_driver_finds_running_sandboxes,
        a_new_driver_finds_stopped_sandboxes,
        workspaces_are_idempotent_or_unimplemented,
    );
    checks.push(state_survives_stop_and_start(bench).await);
    checks
}

async fn clean_up(bench: &Bench) -> Verdict {
    let driver = bench.driver().await;
    for sandbox in driver.list().await.map_err(|e| format!("list: {e}"))? {
        if sandbox.id.starts_with("conformance-") {
            delete(&*driver, &SandboxRef::from(&sandbox)).await?;
        }
    }
    Ok(())
}

async fn capabilities_name_the_driver(bench: &Bench) -> Verdict {
    let driver = bench.driver().await;
    let capabilities = driver.capabilities().await.map_err(text)?;
    ensure!(!capabilities.driver_name.is_empty(), "driver_name is empty");
    ensure!(!capabilities.driver_version.is_empty(), "driver_version is empty");
    Ok(())
}

async fn validate_changes_nothing(bench: &Bench) -> Verdict {
    let driver = bench.driver().await;
    let sandbox = bench.sandbox();
    driver.validate_create(&sandbox).await.map_err(text)?;
    let found = driver.get(&SandboxRef::from(&sandbox)).await;
    is_code(found.map(drop), Code::NotFound, "get after validate")
}

async fn hostile_ids_are_refused(bench: &Bench) -> Verdict {
    let driver = bench.driver().await;
    let long = "x".repeat(4096);
    for id in ["", ".", "..", "../up", "a/b", "a\0b", "a b", &long] {
        let mut sandbox = bench.sandbox();
        sandbox.id = id.to_owned();
        let short: String = id.chars().take(8).collect();
        for (call, answer) in [
            ("validate", driver.validate_create(&sandbox).await),
            ("create", driver.create(sandbox.clone()).await),
        ] {
            is_code(answer, Code::InvalidArgument, &format!("{call} of {short:?}"))?;
        }
    }
    Ok(())
}

async fn create_comes_up(bench: &Bench) -> Verdict {
    let driver = bench.driver().await;
    let named = bench.running(&*driver).await?;
    let sandbox = driver.get(&named).await.map_err(text)?;
    ensure!(
        derive(sandbox.status.as_ref()) == RuntimeState::Running,
        "get disagrees with the watch: {:?}",
        sandbox.status
    );
    Ok(())
}

async fn a_second_create_is_refused_and_changes_nothing(bench: &Bench) -> Verdict {
    let driver = bench.driver().await;
    let named = bench.running(&*driver).await?;
    let before = driver.get(&named).await.map_err(text)?;
    let mut second = bench.sandbox();
    second.id.clone_from(&named.id);
    is_code(driver.create(second).await, Code::AlreadyExists, "second create")?;
    let after = driver.get(&named).await.map_err(text)?;
    ensure!(before == after, "the first changed: {before:?} became {after:?}");
    Ok(())
}

async fn concurrent_creates_make_one_sandbox(bench: &Bench) -> Verdict {
    let driver = bench.driver().await;
    let sandbox = bench.sandbox();
    let answers = future::join_all((0..8).map(|_| driver.create(sandbox.clone()))).await;
    let made = answers.iter().filter(|answer| answer.is_ok()).count();
    ensure!(made == 1, "{made} of 8 creates of one id succeeded: {answers:?}");
    for error in answers.into_iter().filter_map(Result::err) {
        is_code(Err(error), Code::AlreadyExists, "losing create")?;
    }
    Ok(())
}

async fn get_finds_by_id_and_by_name(bench: &Bench) -> Verdict {
    let driver = bench.driver().await;
    let named = bench.running(&*driver).await?;
    for wanted in
        [named.clone(), SandboxRef::new(&*named.id, ""), SandboxRef::new("", &*named.name)]
    {
        let found = driver.get(&wanted).await.map_err(|e| format!("{wanted:?}: {e}"))?;
        ensure!(found.id == named.id && found.name == named.name, "{wanted:?} found {}", found.id);
    }
    Ok(())
}

async fn what_is_absent_is_not_found(bench: &Bench) -> Verdict {
    let driver = bench.driver().await;
    let named = SandboxRef::from(&bench.sandbox());
    is_code(driver.get(&named).await.map(drop), Code::NotFound, "get of absent")?;
    is_code(driver.stop(&named).await, Code::NotFound, "stop of absent")?;
    is_code(driver.start(&named, None).await, Code::NotFound, "start of absent")
}

async fn list_holds_every_sandbox(bench: &Bench) -> Verdict {
    let driver = bench.driver().await;
    let running = bench.running(&*driver).await?;
    let stopped = bench.running(&*driver).await?;
    driver.stop(&stopped).await.map_err(text)?;
    let listed = driver.list().await.map_err(text)?;
    for named in [&running, &stopped] {
        let times = listed.iter().filter(|sandbox| sandbox.id == named.id).count();
        ensure!(times == 1, "{} is listed {times} times", named.id);
    }
    Ok(())
}

async fn the_token_is_never_shown(bench: &Bench) -> Verdict {
    let driver = bench.driver().await;
    let mut watch = driver.watch().await.map_err(text)?;
    let named = bench.running(&*driver).await?;
    let mut shown = vec![driver.get(&named).await.map_err(text)?];
    shown.extend(driver.list().await.map_err(text)?);
    while let Some(event) = watch.next().now_or_never().flatten() {
        match event {
            WatchEvent::Sandbox(sandbox) => shown.push(*sandbox),
            WatchEvent::Platform { event, .. } => {
                ensure!(!format!("{event:?}").contains(TOKEN), "an event shows it");
            }
            WatchEvent::Deleted { .. } => {}
        }
    }
    for sandbox in shown {
        ensure!(!shows_token(&sandbox), "{} shows it", sandbox.id);
    }
    Ok(())
}

async fn stop_is_idempotent(bench: &Bench) -> Verdict {
    let driver = bench.driver().await;
    let named = bench.running(&*driver).await?;
    for round in ["first", "second"] {
        driver.stop(&named).await.map_err(|e| format!("{round} stop: {e}"))?;
        await_stopped(bench, &*driver, &named).await?;
    }
    Ok(())
}

async fn start_after_stop_comes_up(bench: &Bench) -> Verdict {
    let driver = bench.driver().await;
    let named = bench.running(&*driver).await?;
    for token in [None, Some(SandboxToken::new(TOKEN.to_owned()))] {
        driver.stop(&named).await.map_err(text)?;
        await_stopped(bench, &*driver, &named).await?;
        driver.start(&named, token).await.map_err(text)?;
        await_running(bench, &*driver, &named).await?;
    }
    Ok(())
}

async fn start_of_a_running_sandbox_disturbs_nothing(bench: &Bench) -> Verdict {
    let driver = bench.driver().await;
    let named = bench.running(&*driver).await?;
    let before = driver.get(&named).await.map_err(text)?;
    driver.start(&named, None).await.map_err(text)?;
    let after = driver.get(&named).await.map_err(text)?;
    ensure!(before == after, "{before:?} became {after:?}");
    Ok(())
}

async fn delete_says_whether_there_was_something(bench: &Bench) -> Verdict {
    let driver = bench.driver().await;
    let named = bench.running(&*driver).await?;
    ensure!(delete(&*driver, &named).await?, "the first delete answered false");
    ensure!(!delete(&*driver, &named).await?, "the second delete answered true");
    is_code(driver.get(&named).await.map(drop), Code::NotFound, "get after delete")
}

async fn a_stopped_sandbox_can_be_deleted(bench: &Bench) -> Verdict {
    let driver = bench.driver().await;
    let named = bench.running(&*driver).await?;
    driver.stop(&named).await.map_err(text)?;
    ensure!(delete(&*driver, &named).await?, "delete answered false");
    Ok(())
}

async fn a_deleted_id_can_be_used_again(bench: &Bench) -> Verdict {
    let driver = bench.driver().await;
    let named = bench.running(&*driver).await?;
    delete(&*driver, &named).await?;
    let mut again = bench.sandbox();
    again.id.clone_from(&named.id);
    again.name.clone_from(&named.name);
    driver.create(again).await.map_err(text)?;
    await_running(bench, &*driver, &named).await
}

async fn a_new_watch_begins_with_every_sandbox(bench: &Bench) -> Verdict {
    let driver = bench.driver().await;
    let mut missing = Vec::new();
    for _ in 0..2 {
        missing.push(bench.running(&*driver).await?.id);
    }
    let mut watch = driver.watch().await.map_err(text)?;
    let settle = bench.options.settle;
    while !missing.is_empty() {
        match timeout(settle, watch.next()).await {
            Ok(Some(WatchEvent::Sandbox(sandbox))) => missing.retain(|id| *id != sandbox.id),
            other => return Err(format!("{missing:?} missing, but the watch gave {other:?}")),
        }
    }
    Ok(())
}

async fn a_watch_reports_stop_and_deletion(bench: &Bench) -> Verdict {
    let driver = bench.driver().await;
    let named = bench.running(&*driver).await?;
    let mut watch = driver.watch().await.map_err(text)?;
    driver.stop(&named).await.map_err(text)?;
    bench
        .await_state(&mut watch, &named, "Stopped", |state| *state == RuntimeState::Stopped)
        .await?;
    delete(&*driver, &named).await?;
    bench
        .await_event(
            &mut watch,
            "deletion",
            |event| matches!(event, WatchEvent::Deleted { id } if *id == named.id),
        )
        .await
}

async fn platform_events_are_complete(bench: &Bench) -> Verdict {
    let driver = bench.driver().await;
    let mut watch = driver.watch().await.map_err(text)?;
    let named = bench.running(&*driver).await?;
    let mut faulty = None;
    bench
        .await_event(&mut watch, "platform event", |event| match event {
            WatchEvent::Platform { id, event } if *id == named.id => {
                let complete = event.timestamp_ms > 0
                    && !event.source.is_empty()
                    && !event.reason.is_empty()
                    && matches!(event.r#type.as_str(), "Normal" | "Warning");
                faulty = (!complete).then(|| event.clone());
                true
            }
            _ => false,
        })
        .await?;
    ensure!(faulty.is_none(), "source, reason, type or time is missing: {faulty:?}");
    Ok(())
}

async fn a_new_driver_finds_running_sandboxes(bench: &Bench) -> Verdict {
    let driver = bench.driver().await;
    let named = bench.running(&*driver).await?;
    let before = driver.get(&named).await.map_err(text)?;
    drop(driver);
    let driver = bench.driver().await;
    await_running(bench, &*driver, &named).await?;
    let after = driver.get(&named).await.map_err(text)?;
    let instance = |sandbox: &DriverSandbox| sandbox.status.clone().unwrap_or_default().instance_id;
    ensure!(
        instance(&before) == instance(&after),
        "it was made anew: instance {:?} became {:?}",
        instance(&before),
        instance(&after)
    );
    ensure!(delete(&*driver, &named).await?, "the new driver could not delete it");
    Ok(())
}

async fn a_new_driver_finds_stopped_sandboxes(bench: &Bench) -> Verdict {
    let driver = bench.driver().await;
    let named = bench.running(&*driver).await?;
    driver.stop(&named).await.map_err(text)?;
    await_stopped(bench, &*driver, &named).await?;
    drop(driver);
    let driver = bench.driver().await;
    await_stopped(bench, &*driver, &named).await?;
    driver.start(&named, None).await.map_err(text)?;
    await_running(bench, &*driver, &named).await
}

async fn workspaces_are_idempotent_or_unimplemented(bench: &Bench) -> Verdict {
    let driver = bench.driver().await;
    let mut answers = Vec::new();
    for _ in 0..2 {
        answers.push(driver.ensure_workspace("conformance").await);
    }
    for _ in 0..2 {
        answers.push(driver.delete_workspace("conformance").await);
    }
    for answer in answers {
        match answer {
            Ok(()) | Err(DriverError::Unimplemented { .. }) => {}
            Err(other) => return Err(text(other)),
        }
    }
    Ok(())
}

async fn state_survives_stop_and_start(bench: &Bench) -> Check {
    let name = "state_survives_stop_and_start";
    let Some(probe) = bench.options.state.clone() else {
        let why = "no probe was given for the state of this runtime";
        return Check { name, outcome: Outcome::Skipped(why.to_owned()) };
    };
    let attempt = async {
        let driver = bench.driver().await;
        let named = bench.running(&*driver).await?;
        probe.mark(&named.id);
        driver.stop(&named).await.map_err(text)?;
        await_stopped(bench, &*driver, &named).await?;
        ensure!(probe.is_marked(&named.id), "stop lost the state");
        driver.start(&named, None).await.map_err(text)?;
        await_running(bench, &*driver, &named).await?;
        ensure!(probe.is_marked(&named.id), "start lost the state");
        delete(&*driver, &named).await?;
        ensure!(!probe.is_marked(&named.id), "delete kept the state");
        Ok(())
    };
    let outcome = match attempt.await.and(clean_up(bench).await) {
        Ok(()) => Outcome::Passed,
        Err(how) => Outcome::Failed(how),
    };
    Check { name, outcome }
}

async fn await_running(bench: &Bench, driver: &dyn ComputeDriver, named: &SandboxRef) -> Verdict {
    let mut watch = driver.watch().await.map_err(text)?;
    bench.await_state(&mut watch, named, "Running", |state| *state == RuntimeState::Running).await
}

async fn await_stopped(bench: &Bench, driver: &dyn ComputeDriver, named: &SandboxRef) -> Verdict {
    let mut watch = driver.watch().await.map_err(text)?;
    bench.await_state(&mut watch, named, "Stopped", |state| *state == RuntimeState::Stopped).await
}

async fn delete(driver: &dyn ComputeDriver, named: &SandboxRef) -> Result<bool, String> {
    driver.delete(named).await.map_err(|e| format!("delete of {}: {e}", named.id))
}

fn is_code(answer: Result<(), DriverError>, wanted: Code, what: &str) -> Verdict {
    match answer {
        Ok(()) => Err(format!("{what} succeeded; wanted {wanted:?}")),
        Err(error) if error.code() == wanted => Ok(()),
        Err(error) => Err(format!("{what} gave {:?} ({error}); wanted {wanted:?}", error.code())),
    }
}

fn shows_token(sandbox: &DriverSandbox) -> bool {
    // `Debug` of the contract's messages masks the field itself, so it is asked for by name.
    let in_field = sandbox.spec.as_ref().is_some_and(|spec| !spec.sandbox_token.is_empty());
    in_field || format!("{sandbox:?}").contains(TOKEN)
}

fn text(error: DriverError) -> String {
    error.to_string()
}
