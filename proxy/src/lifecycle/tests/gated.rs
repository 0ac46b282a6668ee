//! Races between operations and everything else, with a driver whose calls wait until a test lets them go on.

use std::sync::Arc;

use async_trait::async_trait;
use postern_driver_core::compute::{DriverSandbox, GetCapabilitiesResponse};
use postern_driver_core::condition::RuntimeState;
use postern_driver_core::{ComputeDriver, DriverError, SandboxRef, SandboxToken, WatchStream};
use postern_driver_fake::FakeDriver;
use postern_proto::v1::SandboxPhase as P;
use tokio::sync::Semaphore;

use super::super::runtime::Seen;
use super::super::testing::Rig;
use super::{reason, wish};

/// Holds each create, stop and start until it gets a permit; tells when one has arrived.
struct HeldDriver {
    inner: FakeDriver,
    go_on: Semaphore,
    arrived: Semaphore,
}

impl HeldDriver {
    async fn hold(&self) {
        self.arrived.add_permits(1);
        self.go_on.acquire().await.unwrap().forget();
    }
}

#[async_trait]
impl ComputeDriver for HeldDriver {
    async fn capabilities(&self) -> Result<GetCapabilitiesResponse, DriverError> {
        self.inner.capabilities().await
    }
    async fn validate_create(&self, sandbox: &DriverSandbox) -> Result<(), DriverError> {
        self.inner.validate_create(sandbox).await
    }
    async fn create(&self, sandbox: DriverSandbox) -> Result<(), DriverError> {
        self.hold().await;
        self.inner.create(sandbox).await
    }
    async fn get(&self, sandbox: &SandboxRef) -> Result<DriverSandbox, DriverError> {
        self.inner.get(sandbox).await
    }
    async fn list(&self) -> Result<Vec<DriverSandbox>, DriverError> {
        self.inner.list().await
    }
    async fn stop(&self, sandbox: &SandboxRef) -> Result<(), DriverError> {
        self.hold().await;
        self.inner.stop(sandbox).await
    }
    async fn start(
        &self,
        sandbox: &SandboxRef,
        token: Option<SandboxToken>,
    ) -> Result<(), DriverError> {
        self.hold().await;
        self.inner.start(sandbox, token).await
    }
    async fn delete(&self, sandbox: &SandboxRef) -> Result<bool, DriverError> {
        self.inner.delete(sandbox).await
    }
    async fn watch(&self) -> Result<WatchStream, DriverError> {
        self.inner.watch().await
    }
}

async fn held() -> (Rig, Arc<HeldDriver>) {
    let plain = Rig::new().await;
    let held = Arc::new(HeldDriver {
        inner: plain.driver.clone(),
        go_on: Semaphore::new(0),
        arrived: Semaphore::new(0),
    });
    let asked: Arc<dyn ComputeDriver> = Arc::clone(&held) as Arc<dyn ComputeDriver>;
    let rig =
        Rig::with_driver(plain.driver, asked, GetCapabilitiesResponse::default(), plain.store);
    (rig, held)
}

/// The id of the only record.
async fn only(rig: &Rig) -> String {
    let (records, _) = rig.lifecycle.list(postern_store::ListQuery::default()).await.unwrap();
    records[0].id().to_owned()
}

#[tokio::test]
async fn a_session_during_create_and_one_ahead_of_its_record_are_picked_up() {
    let (rig, driver) = held().await;
    // The supervisor is quicker than the driver's answer.
    let creating = tokio::spawn({
        let lifecycle = rig.lifecycle.clone();
        async move { lifecycle.create(wish(None)).await }
    });
    driver.arrived.acquire().await.unwrap().forget();
    let id = only(&rig).await;
    rig.connect(&id, "s1").await;
    assert_eq!(rig.phase(&id).await, P::Ready);
    driver.go_on.add_permits(1);
    assert_eq!(creating.await.unwrap().unwrap().record.phase(), P::Ready);

    // The record is not there yet at all: its id is known, because the seed is.
    let twin = Rig::new().await;
    twin.connect(&id, "early").await;
    assert!(twin.lifecycle.by_id(&id).await.unwrap().is_none());
    let record = twin.lifecycle.create(wish(None)).await.unwrap().record;
    assert_eq!((record.id(), record.phase()), (id.as_str(), P::Ready));
    assert_eq!(record.sandbox().status.as_ref().unwrap().main_process_instance_id, "epoch-1");
}

#[tokio::test]
async fn what_the_runtime_reported_before_an_operation_does_not_undo_it() {
    let (rig, driver) = held().await;
    driver.go_on.add_permits(2);
    let record = rig.lifecycle.create(wish(None)).await.unwrap().record;
    let id = record.id().to_owned();
    let stopped = rig.lifecycle.stop(record, None).await.unwrap();
    for _ in 0..2 {
        driver.arrived.acquire().await.unwrap().forget();
    }
    // Start is under way; an old report of failure and an old listing without the sandbox arrive.
    let starting = tokio::spawn({
        let lifecycle = rig.lifecycle.clone();
        async move { lifecycle.start(stopped, None).await }
    });
    driver.arrived.acquire().await.unwrap().forget();
    let old = RuntimeState::Failed { reason: "ProcessExited".into(), message: String::new() };
    rig.lifecycle.apply(&id, Seen::State(old.clone())).await.unwrap();
    rig.lifecycle.apply(&id, Seen::Gone).await.unwrap();
    assert_eq!(rig.phase(&id).await, P::Starting);
    driver.go_on.add_permits(1);
    starting.await.unwrap().unwrap();
    // They are not believed afterwards either, because the runtime says otherwise now.
    rig.lifecycle.apply(&id, Seen::State(old)).await.unwrap();
    rig.lifecycle.apply(&id, Seen::Gone).await.unwrap();
    assert_eq!(rig.phase(&id).await, P::Starting);
}

#[tokio::test]
async fn a_caller_who_hangs_up_does_not_leave_a_sandbox_half_way() {
    let (rig, driver) = held().await;
    driver.go_on.add_permits(1);
    let record = rig.lifecycle.create(wish(None)).await.unwrap().record;
    driver.arrived.acquire().await.unwrap().forget();
    let id = record.id().to_owned();
    let calling = tokio::spawn({
        let lifecycle = rig.lifecycle.clone();
        async move { lifecycle.stop(record, None).await }
    });
    driver.arrived.acquire().await.unwrap().forget();
    calling.abort();
    let mut changes = rig.lifecycle.watch(&id);
    driver.go_on.add_permits(1);
    while rig.phase(&id).await != P::Stopped {
        changes.changed().await.unwrap();
    }
}

#[tokio::test]
async fn operations_on_one_sandbox_wait_for_each_other() {
    let (rig, driver) = held().await;
    driver.go_on.add_permits(1);
    let record = rig.lifecycle.create(wish(None)).await.unwrap().record;
    driver.arrived.acquire().await.unwrap().forget();
    let stop = |record: super::super::SandboxRecord| {
        let lifecycle = rig.lifecycle.clone();
        tokio::spawn(async move { lifecycle.stop(record, None).await })
    };
    let first = stop(record.clone());
    driver.arrived.acquire().await.unwrap().forget();
    let second = stop(record.clone());
    let deleting = tokio::spawn({
        let (lifecycle, record) = (rig.lifecycle.clone(), record.clone());
        async move { lifecycle.delete(record, None).await }
    });
    tokio::task::yield_now().await;
    driver.go_on.add_permits(1);
    assert_eq!(first.await.unwrap().unwrap().phase(), P::Stopped);
    // The second found it stopped, or already gone; either way the driver was asked once.
    let _ = second.await.unwrap();
    assert!(deleting.await.unwrap().unwrap().finished);
    assert_eq!(driver.arrived.available_permits(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_driver_that_says_nothing_is_not_waited_for_for_ever() {
    let (rig, driver) = held().await;
    let error = rig.lifecycle.create(wish(Some("web"))).await.unwrap_err();
    assert_eq!((error.code(), reason(&error)), (tonic::Code::Unavailable, "DRIVER_SILENT"));
    assert!(error.to_string().contains("25s"), "{error}");
    let (records, _) = rig.lifecycle.list(postern_store::ListQuery::default()).await.unwrap();
    assert!(records.is_empty());

    driver.go_on.add_permits(1);
    let record = rig.lifecycle.create(wish(Some("web"))).await.unwrap().record;
    let id = record.id().to_owned();
    assert_eq!(reason(&rig.lifecycle.stop(record, None).await.unwrap_err()), "DRIVER_SILENT");
    assert_eq!(rig.phase(&id).await, P::Stopping);
    driver.go_on.add_permits(1);
    rig.lifecycle.compare(super::super::upkeep::Occasion::Routine).await.unwrap();
    assert_eq!(rig.phase(&id).await, P::Stopped);
}

#[tokio::test]
async fn too_many_operations_are_refused_by_name() {
    let (rig, driver) = held().await;
    let mut running = Vec::new();
    for _ in 0..super::super::MAX_OPERATIONS {
        let lifecycle = rig.lifecycle.clone();
        running.push(tokio::spawn(async move { lifecycle.create(wish(None)).await }));
    }
    let arrivals = u32::try_from(super::super::MAX_OPERATIONS).unwrap();
    driver.arrived.acquire_many(arrivals).await.unwrap().forget();
    let error = rig.lifecycle.create(wish(None)).await.unwrap_err();
    assert_eq!(error.code(), tonic::Code::ResourceExhausted);
    assert!(error.to_string().contains("lifecycle.operations: 256"), "{error}");
    driver.go_on.add_permits(super::super::MAX_OPERATIONS);
    for call in running {
        call.await.unwrap().unwrap();
    }
}
