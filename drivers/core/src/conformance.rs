//! Every rule of [`ComputeDriver`] as a suite over any driver.
//!
//! [`run`] tries each rule on its own sandboxes and goes on after a failure, so that one run names
//! everything that is wrong. Print the [`Report`], then call [`Report::assert_passed`].

mod checks;

use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use tokio::time::timeout;

use crate::compute::{DriverSandbox, DriverSandboxSpec, DriverSandboxTemplate};
use crate::condition::{RuntimeState, derive};
use crate::{ComputeDriver, SandboxRef, WatchEvent, WatchStream};

/// How long the runtime may take for one step (to come up, to stop) unless told otherwise. Far
/// above what a healthy local runtime needs; reached only by a failing check.
const DEFAULT_SETTLE: Duration = Duration::from_secs(20);

/// The token that all sandboxes of the suite are given; no answer may contain it.
const TOKEN: &str = "conformance-token-that-must-not-leak";

/// What the suite has to know of the runtime.
pub struct Options {
    /// How long one step of the runtime may take.
    pub settle: Duration,
    /// Fills in what a sandbox of this runtime needs beyond id, name and token.
    pub prepare: Arc<dyn Fn(&mut DriverSandbox) + Send + Sync>,
    /// Looks at the state of a sandbox from outside. Without it the check that a start reuses
    /// state is skipped.
    pub state: Option<Arc<dyn StateProbe>>,
}

/// Puts something into the state of a sandbox and says later whether it is still there.
pub trait StateProbe: Send + Sync {
    /// Leaves a mark in the state of the sandbox.
    fn mark(&self, id: &str);
    /// Whether the mark is there.
    fn is_marked(&self, id: &str) -> bool;
}

/// What came of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The rule holds.
    Passed,
    /// The rule does not hold, and how that showed.
    Failed(String),
    /// The rule could not be tried, and why.
    Skipped(String),
}

/// One check and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// The rule, as a name.
    pub name: &'static str,
    /// What came of it.
    pub outcome: Outcome,
}

/// All checks in the order they ran.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The checks.
    pub checks: Vec<Check>,
}

/// Tries every rule on drivers that `make` opens over one runtime. `make` is called again to see
/// that a new driver finds the sandboxes of an older one.
///
/// The suite deletes what it makes, also after a failed check.
pub async fn run<D, F, Fut>(make: F, options: Options) -> Report
where
    D: ComputeDriver,
    F: Fn() -> Fut + Send + Sync + 'static,
    Fut: Future<Output = D> + Send + 'static,
{
    let open = Box::new(move || {
        let made = make();
        Box::pin(async move { Box::new(made.await) as Box<dyn ComputeDriver> })
            as BoxFuture<'static, _>
    });
    let bench = Bench { open, options, made: AtomicUsize::new(0) };
    Report { checks: checks::all(&bench).await }
}

// === impl Options ===

impl Default for Options {
    fn default() -> Self {
        Self { settle: DEFAULT_SETTLE, prepare: Arc::new(|_| {}), state: None }
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("settle", &self.settle)
            .field("state", &self.state.is_some())
            .finish_non_exhaustive()
    }
}

// === impl Report ===

impl Report {
    /// Panics with the whole report unless every check passed or was skipped.
    ///
    /// # Panics
    /// When a check failed.
    #[track_caller]
    pub fn assert_passed(&self) {
        let failed =
            self.checks.iter().filter(|check| matches!(check.outcome, Outcome::Failed(_))).count();
        assert!(failed == 0, "{failed} checks failed\n{self}");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Check { name, outcome } in &self.checks {
            match outcome {
                Outcome::Passed => writeln!(f, "ok       {name}")?,
                Outcome::Failed(how) => writeln!(f, "FAILED   {name}: {how}")?,
                Outcome::Skipped(why) => writeln!(f, "SKIPPED  {name}: {why}")?,
            }
        }
        Ok(())
    }
}

/// What the checks work with.
struct Bench {
    open: Box<dyn Fn() -> BoxFuture<'static, Box<dyn ComputeDriver>> + Send + Sync>,
    options: Options,
    made: AtomicUsize,
}

// === impl Bench ===

impl Bench {
    /// A driver over the runtime.
    async fn driver(&self) -> Box<dyn ComputeDriver> {
        (self.open)().await
    }

    /// A sandbox that no other check uses.
    fn sandbox(&self) -> DriverSandbox {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let mut sandbox = DriverSandbox {
            id: format!("conformance-{number}"),
            name: format!("conf-{number}"),
            spec: Some(DriverSandboxSpec {
                sandbox_token: TOKEN.to_owned(),
                template: Some(DriverSandboxTemplate::default()),
                ..Default::default()
            }),
            ..Default::default()
        };
        (self.options.prepare)(&mut sandbox);
        sandbox
    }

    /// Makes a sandbox and waits until the runtime did its part.
    async fn running(&self, driver: &dyn ComputeDriver) -> Result<SandboxRef, String> {
        let sandbox = self.sandbox();
        let named = SandboxRef::from(&sandbox);
        let mut watch = driver.watch().await.map_err(|e| format!("watch: {e}"))?;
        driver.create(sandbox).await.map_err(|e| format!("create: {e}"))?;
        self.await_state(&mut watch, &named, "Running", |state| *state == RuntimeState::Running)
            .await?;
        Ok(named)
    }

    /// Reads the watch until a snapshot of the sandbox has the wanted state.
    async fn await_state(
        &self,
        watch: &mut WatchStream,
        named: &SandboxRef,
        wanted: &str,
        is: impl Fn(&RuntimeState) -> bool + Send + Sync,
    ) -> Result<(), String> {
        let mut last = None;
        self.await_event(watch, wanted, |event| match event {
            WatchEvent::Sandbox(sandbox) if sandbox.id == named.id => {
                let state = derive(sandbox.status.as_ref());
                let found = is(&state);
                last = Some(state);
                found
            }
            _ => false,
        })
        .await
        .map_err(|problem| format!("{problem}; last state of {} was {last:?}", named.id))
    }

    /// Reads the watch until an event matches.
    async fn await_event(
        &self,
        watch: &mut WatchStream,
        wanted: &str,
        mut matches: impl FnMut(&WatchEvent) -> bool + Send,
    ) -> Result<(), String> {
        let settle = self.options.settle;
        let search = async {
            while let Some(event) = watch.next().await {
                if matches(&event) {
                    return Ok(());
                }
            }
            Err(format!("the watch ended before {wanted}"))
        };
        timeout(settle, search)
            .await
            .unwrap_or_else(|_| Err(format!("no {wanted} within {settle:?}")))
    }
}
