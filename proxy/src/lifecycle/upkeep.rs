//! Keeping records and runtime together: at start, by the driver's watch stream, and by comparison now and then.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream;
use postern_driver_core::condition::{self, RuntimeState};
use postern_proto::v1::SandboxPhase;
use postern_store::{Kind, ListQuery};
use rand::RngExt as _;

use super::Lifecycle;
use super::main_process::{has_ended, is_finalized};
use super::phase::{Outlook, outlook};
use super::record::SandboxRecord;
use super::runtime::Seen;
use crate::call_error::CallError;

/// Operations that upkeep goes on with at one time (the number of the OpenShell contract for shutdown).
const PARALLEL: usize = 16;
/// Records read at one time. At 4 KiB each this is 2 MiB.
const PAGE: u32 = 500;

/// Why records and runtime are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Occasion {
    /// The gateway starts.
    Boot,
    /// Time has passed.
    Routine,
}

/// What upkeep does about one sandbox.
enum Resume {
    Stop,
    Start,
    /// Start on the runtime; the phase says already that it should run.
    Rerun,
    Delete,
    Release,
}

impl Lifecycle {
    /// Adopts the sandboxes that the runtime has, then keeps records true. Never returns; drop it to end it.
    pub async fn run(self) {
        let mut wait = self.shared.config.rewatch_first;
        while let Err(error) = self.compare(Occasion::Boot).await {
            tracing::warn!(%error, retry_in = ?wait, "could not compare sandboxes with the runtime at start");
            tokio::time::sleep(self.jitter(wait)).await;
            wait = (wait * 2).min(self.shared.config.rewatch_max);
        }
        tokio::join!(self.watch_loop(), self.compare_loop());
    }

    /// For drivers whose sandboxes live and die with the gateway: stops those that run, without changing what the
    /// records say they should be. Call it after [`Lifecycle::run`] was dropped; the next start runs them again.
    pub async fn suspend_all(&self) {
        if !self.shared.capabilities.gateway_manages_lifecycle {
            return;
        }
        let Ok(records) = self.all_records().await else {
            return;
        };
        let running =
            records.into_iter().filter(|record| outlook(record.phase()) != Outlook::NotComing);
        stream::iter(running)
            .for_each_concurrent(PARALLEL, |record| async move {
                let which = record.driver_ref();
                let stop = self.shared.driver.stop(&which);
                if let Err(error) = self.ask_driver("stopping a sandbox for shutdown", stop).await {
                    tracing::warn!(sandbox_id = record.id(), %error, "could not stop a sandbox at shutdown");
                }
            })
            .await;
    }

    async fn watch_loop(&self) {
        let config = &self.shared.config;
        let mut wait = config.rewatch_first;
        loop {
            let since = tokio::time::Instant::now();
            match self.ask_driver("watching", self.shared.driver.watch()).await {
                Ok(mut events) => {
                    while let Some(event) = events.next().await {
                        self.observe(event).await;
                    }
                    tracing::info!("the driver's watch stream ended");
                }
                Err(error) => tracing::warn!(%error, "could not watch the driver"),
            }
            if since.elapsed() > config.rewatch_max {
                wait = config.rewatch_first;
            }
            tokio::time::sleep(self.jitter(wait)).await;
            wait = (wait * 2).min(config.rewatch_max);
        }
    }

    async fn compare_loop(&self) {
        loop {
            tokio::time::sleep(self.jitter(self.shared.config.reconcile_every)).await;
            if let Err(error) = self.compare(Occasion::Routine).await {
                tracing::warn!(%error, "could not compare sandboxes with the runtime");
            }
        }
    }

    /// Compares every record with what the runtime has, and goes on with operations that were left half way.
    pub(super) async fn compare(&self, occasion: Occasion) -> Result<(), CallError> {
        let listed = self.ask_driver("listing sandboxes", self.shared.driver.list()).await?;
        let listed: HashMap<String, RuntimeState> = listed
            .into_iter()
            .map(|sandbox| (sandbox.id, condition::derive(sandbox.status.as_ref())))
            .collect();
        let records = self.all_records().await?;
        let known: HashSet<String> = records.iter().map(|record| record.id().to_owned()).collect();
        for id in listed.keys().filter(|id| !known.contains(*id)) {
            tracing::debug!(
                sandbox_id = id,
                "the runtime has a sandbox without a record; leaving it alone"
            );
        }
        stream::iter(records)
            .for_each_concurrent(PARALLEL, |record| {
                let seen = listed.get(record.id()).cloned().map_or(Seen::Gone, Seen::State);
                self.compare_one(record, seen, occasion)
            })
            .await;
        self.sweep_feeds(&known).await
    }

    async fn compare_one(&self, record: SandboxRecord, seen: Seen, occasion: Occasion) {
        let id = record.id();
        let result = match self.resume(&record, &seen, occasion) {
            Some(Resume::Release) => {
                self.release(id).await;
                Ok(())
            }
            Some(resume) => self.go_on(&record, resume).await,
            None => self.apply(id, seen).await,
        };
        if let Err(error) = result {
            tracing::warn!(sandbox_id = id, %error, "could not bring a sandbox up to date");
        }
    }

    /// What was left half way, by a gateway that died or a driver that failed.
    fn resume(&self, record: &SandboxRecord, seen: &Seen, occasion: Occasion) -> Option<Resume> {
        let stopped = matches!(seen, Seen::State(RuntimeState::Stopped));
        match record.phase() {
            SandboxPhase::Stopping if *seen != Seen::Gone => Some(Resume::Stop),
            SandboxPhase::Deleting => Some(Resume::Delete),
            SandboxPhase::Starting if stopped => Some(Resume::Start),
            phase if outlook(phase) != Outlook::NotComing && stopped => {
                (occasion == Occasion::Boot && self.shared.capabilities.gateway_manages_lifecycle)
                    .then_some(Resume::Rerun)
            }
            _ if has_ended(record) && matches!(seen, Seen::State(RuntimeState::Running)) => {
                let left = self.shared.sessions.current(record.id()).is_none();
                (left || is_finalized(record)).then_some(Resume::Release)
            }
            _ => None,
        }
    }

    async fn go_on(&self, record: &SandboxRecord, resume: Resume) -> Result<(), CallError> {
        let id = record.id();
        // Somebody is at it right now.
        let Some(_gate) = self.shared.gates.try_lock(id) else {
            return Ok(());
        };
        // What was read before the gate may be old.
        let Some(record) = self.by_id(id).await?.filter(|now| now.phase() == record.phase()) else {
            return Ok(());
        };
        match resume {
            Resume::Stop => self.finish_stop(&record).await.map(drop),
            Resume::Start => self.finish_start(&record).await.map(drop),
            Resume::Rerun => self.start_on_driver(&record).await,
            Resume::Delete => self.finish_delete(&record).await.map(drop),
            Resume::Release => Ok(()),
        }
    }

    /// Ends feeds of sandboxes without a record, which a late log batch or follower may have opened.
    async fn sweep_feeds(&self, known: &HashSet<String>) -> Result<(), CallError> {
        for id in self.shared.feeds.ids() {
            if !known.contains(&id) && self.by_id(&id).await?.is_none() {
                self.shared.feeds.close(&id);
            }
        }
        Ok(())
    }

    async fn all_records(&self) -> Result<Vec<SandboxRecord>, CallError> {
        let mut records = Vec::new();
        let mut query = ListQuery { limit: PAGE, ..ListQuery::default() };
        loop {
            let page = self.shared.store.list(Kind::Sandbox, query.clone()).await?;
            for stored in page.objects {
                records.push(SandboxRecord::from_stored(stored)?);
            }
            match page.next {
                Some(next) => query.after = Some(next),
                None => return Ok(records),
            }
        }
    }

    /// 90 % to 110 % of a wait, so that several gateways over one runtime do not move in step.
    fn jitter(&self, wait: Duration) -> Duration {
        wait.mul_f64(self.shared.rng.lock().random_range(0.9..1.1))
    }
}
