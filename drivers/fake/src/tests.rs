use postern_driver_core::compute::DriverSandboxSpec;
use postern_driver_core::conformance;

use super::*;

fn sandbox(id: &str) -> DriverSandbox {
    DriverSandbox {
        id: id.into(),
        name: format!("name-{id}"),
        spec: Some(DriverSandboxSpec { sandbox_token: "secret".into(), ..Default::default() }),
        ..Default::default()
    }
}

#[tokio::test]
async fn obeys_the_driver_contract() {
    let driver = FakeDriver::new();
    let report = conformance::run(
        move || {
            let driver = driver.clone();
            async move { driver }
        },
        conformance::Options::default(),
    )
    .await;
    println!("{report}");
    report.assert_passed();
}

#[tokio::test]
async fn tests_can_hold_and_fail_a_sandbox() {
    let driver = FakeDriver::held();
    driver.create(sandbox("a")).await.unwrap();
    let named = SandboxRef::new("a", "");
    let state = |sandbox: DriverSandbox| condition::derive(sandbox.status.as_ref());
    assert!(matches!(
        state(driver.get(&named).await.unwrap()),
        condition::RuntimeState::Provisioning { .. }
    ));
    assert!(driver.set_ready("a"));
    assert_eq!(state(driver.get(&named).await.unwrap()), condition::RuntimeState::Running);
    driver.fail("a", reason::CRASH_LOOP, "gave up");
    assert!(matches!(
        state(driver.get(&named).await.unwrap()),
        condition::RuntimeState::Failed { .. }
    ));
}

#[tokio::test]
async fn an_ordered_refusal_is_answered_once_and_changes_nothing() {
    let driver = FakeDriver::new();
    driver.refuse_next(
        Operation::Create,
        DriverError::Unavailable {
            id: "a".into(),
            problem: "runtime is down".into(),
            next: "retry",
            source: None,
        },
    );
    assert!(driver.create(sandbox("a")).await.is_err());
    assert!(driver.list().await.unwrap().is_empty());
    driver.create(sandbox("a")).await.unwrap();
    assert_eq!(driver.calls(Operation::Create, "a"), 2);
    assert_eq!(driver.token("a").unwrap().expose(), "secret");
}

#[tokio::test]
async fn start_replaces_the_token() {
    let driver = FakeDriver::new();
    driver.create(sandbox("a")).await.unwrap();
    let named = SandboxRef::new("a", "");
    driver.stop(&named).await.unwrap();
    driver.start(&named, Some(SandboxToken::new("new".into()))).await.unwrap();
    assert_eq!(driver.token("a").unwrap().expose(), "new");
}
