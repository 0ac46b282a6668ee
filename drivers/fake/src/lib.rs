//! Compute driver that keeps sandboxes in memory and runs nothing.
//!
//! It works: every rule of the driver contract holds, so what stands on drivers can be tested
//! without processes. Tests steer it with [`FakeDriver::set_ready`], [`FakeDriver::fail`] and
//! [`FakeDriver::refuse_next`], and read back what it was given with [`FakeDriver::token`].

#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use parking_lot::Mutex;
use postern_driver_core::compute::{
    DriverPlatformEvent, DriverSandbox, DriverSandboxStatus, GetCapabilitiesResponse,
};
use postern_driver_core::condition::{self, EventKind, reason};
use postern_driver_core::{
    ComputeDriver, DriverError, Inventory, SandboxRef, SandboxToken, WatchStream, check_sandbox_id,
};

/// What `capabilities` names this driver.
pub const DRIVER_NAME: &str = "fake";

/// A runtime of no processes. Clones share their sandboxes, as drivers over one runtime do.
#[derive(Debug, Clone, Default)]
pub struct FakeDriver {
    inventory: Inventory,
    hidden: Arc<Mutex<Hidden>>,
    /// Whether create and start leave the sandbox Starting until a test calls `set_ready`.
    held: bool,
}

/// What watchers do not see.
#[derive(Debug, Default)]
struct Hidden {
    tokens: BTreeMap<String, SandboxToken>,
    refusals: VecDeque<(Operation, DriverError)>,
    calls: BTreeMap<(Operation, String), usize>,
}

/// The calls that a test can have refused, or count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Operation {
    /// `create`
    Create,
    /// `stop`
    Stop,
    /// `start`
    Start,
    /// `delete`
    Delete,
    /// `list`
    List,
    /// `watch`
    Watch,
}

impl FakeDriver {
    /// A runtime on which sandboxes are up as soon as they are asked for.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A runtime on which sandboxes stay Starting until [`FakeDriver::set_ready`].
    #[must_use]
    pub fn held() -> Self {
        Self { held: true, ..Self::default() }
    }

    /// The runtime did its part: Ready=True. `false` when there is no such sandbox.
    pub fn set_ready(&self, id: &str) -> bool {
        let now = Timestamp::now();
        self.inventory.update(id, |status| {
            status.conditions = vec![condition::ready(reason::PROCESS_RUNNING, "", now)];
        })
    }

    /// The runtime reports Ready=False with this reason. `false` when there is no such sandbox.
    pub fn fail(&self, id: &str, reason: &str, message: &str) -> bool {
        let now = Timestamp::now();
        self.inventory.update(id, |status| {
            status.conditions = vec![condition::not_ready(reason, message, now)];
        })
    }

    /// The sandbox vanishes from the runtime behind the driver's back.
    pub fn vanish(&self, id: &str) -> bool {
        self.hidden.lock().tokens.remove(id);
        self.inventory.remove(id)
    }

    /// Sends a platform event to all watchers.
    pub fn tell(&self, id: &str, event: DriverPlatformEvent) {
        self.inventory.tell(id, event);
    }

    /// The next call of `operation` answers `error` and changes nothing. Queues up.
    pub fn refuse_next(&self, operation: Operation, error: DriverError) {
        self.hidden.lock().refusals.push_back((operation, error));
    }

    /// How often `operation` was called for the sandbox (`*` for list and watch).
    #[must_use]
    pub fn calls(&self, operation: Operation, id: &str) -> usize {
        let hidden = self.hidden.lock();
        hidden.calls.get(&(operation, id.to_owned())).copied().unwrap_or_default()
    }

    /// The credential the sandbox holds now.
    #[must_use]
    pub fn token(&self, id: &str) -> Option<SandboxToken> {
        self.hidden.lock().tokens.get(id).cloned()
    }

    /// Counts the call and answers with the refusal that a test ordered, if any.
    fn enter(&self, operation: Operation, id: &str) -> Result<(), DriverError> {
        let mut hidden = self.hidden.lock();
        *hidden.calls.entry((operation, id.to_owned())).or_default() += 1;
        let ordered = hidden.refusals.iter().position(|(refused, _)| *refused == operation);
        match ordered.and_then(|index| hidden.refusals.remove(index)) {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }

    fn begin(&self, id: &str) {
        let now = Timestamp::now();
        self.event(id, "Starting", "sandbox is being started");
        self.inventory.update(id, |status| {
            status.conditions = vec![condition::not_ready(reason::STARTING, "", now)];
        });
        if !self.held {
            self.set_ready(id);
            self.event(id, "Started", "sandbox was started");
        }
    }

    fn event(&self, id: &str, reason: &str, message: &str) {
        let event = condition::platform_event(
            DRIVER_NAME,
            EventKind::Normal,
            reason,
            message,
            Timestamp::now(),
        );
        self.inventory.tell(id, event);
    }
}

#[async_trait]
impl ComputeDriver for FakeDriver {
    async fn capabilities(&self) -> Result<GetCapabilitiesResponse, DriverError> {
        Ok(GetCapabilitiesResponse {
            driver_name: DRIVER_NAME.to_owned(),
            driver_version: env!("CARGO_PKG_VERSION").to_owned(),
            default_image: String::new(),
            gateway_manages_lifecycle: false,
        })
    }

    async fn validate_create(&self, sandbox: &DriverSandbox) -> Result<(), DriverError> {
        check_sandbox_id(&sandbox.id).map_err(|problem| DriverError::InvalidArgument {
            id: sandbox.id.chars().take(32).collect(),
            field: "id",
            problem: problem.to_string(),
        })
    }

    async fn create(&self, mut sandbox: DriverSandbox) -> Result<(), DriverError> {
        self.validate_create(&sandbox).await?;
        self.enter(Operation::Create, &sandbox.id)?;
        let id = sandbox.id.clone();
        let token = sandbox
            .spec
            .as_mut()
            .map(|spec| std::mem::take(&mut spec.sandbox_token))
            .unwrap_or_default();
        sandbox.status =
            Some(DriverSandboxStatus { sandbox_name: sandbox.name.clone(), ..Default::default() });
        self.inventory.insert(sandbox)?;
        self.hidden.lock().tokens.insert(id.clone(), SandboxToken::new(token));
        self.event(&id, "Scheduled", "sandbox is kept in memory");
        self.begin(&id);
        Ok(())
    }

    async fn get(&self, sandbox: &SandboxRef) -> Result<DriverSandbox, DriverError> {
        self.inventory.get(sandbox)
    }

    async fn list(&self) -> Result<Vec<DriverSandbox>, DriverError> {
        self.enter(Operation::List, "*")?;
        Ok(self.inventory.list())
    }

    async fn stop(&self, sandbox: &SandboxRef) -> Result<(), DriverError> {
        let id = self.inventory.get(sandbox)?.id;
        self.enter(Operation::Stop, &id)?;
        let now = Timestamp::now();
        let mut stopped = false;
        self.inventory.update(&id, |status| {
            let state = condition::derive(Some(status));
            stopped = state != condition::RuntimeState::Stopped;
            if stopped {
                status.conditions = vec![
                    condition::suspended(true, reason::STOPPED, "", now),
                    condition::not_ready(reason::STOPPED, "", now),
                ];
            }
        });
        if stopped {
            self.event(&id, "Stopped", "sandbox was stopped");
        }
        Ok(())
    }

    async fn start(
        &self,
        sandbox: &SandboxRef,
        token: Option<SandboxToken>,
    ) -> Result<(), DriverError> {
        let found = self.inventory.get(sandbox)?;
        self.enter(Operation::Start, &found.id)?;
        if let Some(token) = token {
            self.hidden.lock().tokens.insert(found.id.clone(), token);
        }
        use condition::RuntimeState::{Failed, Stopped, Unknown};
        let state = condition::derive(found.status.as_ref());
        if matches!(state, Failed { .. } | Stopped | Unknown) {
            self.begin(&found.id);
        }
        Ok(())
    }

    async fn delete(&self, sandbox: &SandboxRef) -> Result<bool, DriverError> {
        let id = match self.inventory.get(sandbox) {
            Ok(found) => found.id,
            Err(DriverError::NotFound { .. }) => return Ok(false),
            Err(other) => return Err(other),
        };
        self.enter(Operation::Delete, &id)?;
        self.hidden.lock().tokens.remove(&id);
        if !self.inventory.remove(&id) {
            return Ok(false);
        }
        self.event(&id, "Deleted", "sandbox was removed");
        Ok(true)
    }

    async fn watch(&self) -> Result<WatchStream, DriverError> {
        self.enter(Operation::Watch, "*")?;
        Ok(self.inventory.watch())
    }
}

#[cfg(test)]
mod tests;
