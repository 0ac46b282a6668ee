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

/// Breaks three rules: forgets to refuse what exists, deletes what does not, and shows the token.
struct Faulty(FakeDriver);

#[async_trait]
impl ComputeDriver for Faulty {
    async fn capabilities(&self) -> Result<GetCapabilitiesResponse, DriverError> {
        self.0.capabilities().await
    }
    async fn validate_create(&self, sandbox: &DriverSandbox) -> Result<(), DriverError> {
        self.0.validate_create(sandbox).await
    }
    async fn create(&self, sandbox: DriverSandbox) -> Result<(), DriverError> {
        match self.0.create(sandbox).await {
            Err(DriverError::AlreadyExists { .. }) => Ok(()),
            other => other,
        }
    }
    async fn get(&self, sandbox: &SandboxRef) -> Result<DriverSandbox, DriverError> {
        let mut found = self.0.get(sandbox).await?;
        if let (Some(spec), Some(token)) = (&mut found.spec, self.0.token(&found.id)) {
            spec.sandbox_token = token.expose().to_owned();
        }
        Ok(found)
    }
    async fn list(&self) -> Result<Vec<DriverSandbox>, DriverError> {
        self.0.list().await
    }
    async fn stop(&self, sandbox: &SandboxRef) -> Result<(), DriverError> {
        self.0.stop(sandbox).await
    }
    async fn start(
        &self,
        sandbox: &SandboxRef,
        token: Option<SandboxToken>,
    ) -> Result<(), DriverError> {
        self.0.start(sandbox, token).await
    }
    async fn delete(&self, sandbox: &SandboxRef) -> Result<bool, DriverError> {
        self.0.delete(sandbox).await.map(|_| true)
    }
    async fn watch(&self) -> Result<WatchStream, DriverError> {
        self.0.watch().await
    }
}

#[tokio::test]
async fn the_suite_names_every_rule_that_a_driver_breaks() {
    let driver = FakeDriver::new();
    let report = conformance::run(
        move || {
            let driver = driver.clone();
            async move { Faulty(driver) }
        },
        conformance::Options::default(),
    )
    .await;
    let failed: Vec<&str> = report
        .checks
        .iter()
        .filter(|check| matches!(check.outcome, conformance::Outcome::Failed(_)))
        .map(|check| check.name)
        .collect();
    assert_eq!(
        failed,
        [
            "a_second_create_is_refused_and_changes_nothing",
            "concurrent_creates_make_one_sandbox",
            "the_token_is_never_shown",
            "delete_says_whether_there_was_something",
        ]
    );
}
