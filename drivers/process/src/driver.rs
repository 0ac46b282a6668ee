//! The driver: who is there, and where a call goes.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use parking_lot::Mutex;
use postern_driver_core::compute::{DriverSandbox, DriverSandboxStatus, GetCapabilitiesResponse};
use postern_driver_core::condition::{self, reason};
use postern_driver_core::{
    ComputeDriver, DriverError, Inventory, SandboxRef, SandboxToken, WatchStream,
};
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::keeper::{self, Call, Keeper, MAILBOX, Reply};
use crate::layout::{DriverLock, SandboxDir, StateDir};
use crate::record::{Agent, Record};
use crate::uids::{self, Uids};
use crate::{Config, OpenError, environment, procfs};

/// What `capabilities` and platform events name this driver.
pub const DRIVER_NAME: &str = "process";

/// How long a new driver waits for an older one over the same state to be gone. An older one that
/// was dropped finishes the stop it is at, which may take its grace.
const LOCK_WAIT: Duration = Duration::from_secs(15);

/// How often it looks.
const LOCK_POLL: Duration = Duration::from_millis(20);

/// Runs sandboxes as processes of this host.
///
/// Dropping it ends its tasks and leaves all sandboxes running; a new one finds them.
#[derive(Debug)]
pub struct ProcessDriver {
    common: Arc<Common>,
    keepers: Arc<Keepers>,
}

/// Where calls for a sandbox go. Only the driver holds it, so that keepers end with the driver.
type Keepers = Mutex<BTreeMap<String, mpsc::Sender<Call>>>;

/// What all keepers share.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) config: Config,
    pub(crate) state_dir: StateDir,
    pub(crate) inventory: Inventory,
    pub(crate) uids: Uids,
    pub(crate) boot_id: String,
    pub(crate) seed: u64,
    /// Whether each agent runs as a user of its own, which needs root.
    pub(crate) agents_have_own_users: bool,
    keepers: Weak<Keepers>,
    _lock: DriverLock,
}

// === impl Common ===

impl Common {
    /// Takes a sandbox that is gone out of the books.
    pub(crate) fn forget(&self, id: &str) {
        if let Some(keepers) = self.keepers.upgrade() {
            // Under the lock, so that a create sees both books agree.
            let mut keepers = keepers.lock();
            keepers.remove(id);
            self.inventory.remove(id);
        } else {
            self.inventory.remove(id);
        }
    }
}

// === impl ProcessDriver ===

impl ProcessDriver {
    /// Opens the state directory and finds the sandboxes in it. `seed` decides the jitter of
    /// restarts; give each gateway another one.
    ///
    /// # Errors
    /// Names the configuration key or the path at fault. Waits up to 15 s for another driver over
    /// the same directory to go away.
    ///
    /// # Panics
    /// Outside a tokio runtime with IO and time.
    pub async fn new(config: Config, seed: u64) -> Result<Self, OpenError> {
        if let Some(fault) = config.faults().into_iter().next() {
            return Err(fault);
        }
        check_program(&config.supervisor.program)?;
        let is_root = rustix::process::geteuid().is_root();
        let uids = if is_root { agent_uids(&config)? } else { Uids::new(1, 1) };
        let state_dir = StateDir::open(&config.state_dir, config.socket_dir.as_deref())?;
        let lock = lock(&state_dir).await?;
        let boot_id = procfs::boot_id().map_err(|source| OpenError::Io {
            action: "read",
            path: "/proc/sys/kernel/random/boot_id".into(),
            source,
        })?;
        let keepers = Arc::new(Keepers::default());
        let common = Arc::new(Common {
            config,
            state_dir,
            inventory: Inventory::new(),
            uids,
            boot_id,
            seed,
            agents_have_own_users: is_root,
            keepers: Arc::downgrade(&keepers),
            _lock: lock,
        });
        let driver = Self { common, keepers };
        driver.find().await?;
        Ok(driver)
    }

    /// Takes charge of every sandbox in the state directory.
    async fn find(&self) -> Result<(), OpenError> {
        let common = Arc::clone(&self.common);
        let search = move || {
            common.state_dir.remove_leftovers()?;
            let ids = common.state_dir.ids()?;
            Ok(ids.into_iter().filter_map(|id| find_one(&common, &id)).collect::<Vec<_>>())
        };
        let found = spawn_blocking(search)
            .await
            .unwrap_or_else(|error| Err(std::io::Error::other(error)))
            .map_err(|source| OpenError::Io {
                action: "read",
                path: self.common.state_dir.root().to_owned(),
                source,
            })?;
        for (dir, record) in found {
            let id = record.sandbox.id.clone();
            let mut shown = record.sandbox.clone();
            let uid = record.agent.uid;
            let adopted = Keeper::find(Arc::clone(&self.common), dir, record);
            let (keeper, status) = match adopted {
                Ok(adopted) => adopted,
                Err(error) => {
                    tracing::error!(sandbox_id = %id, %error, "could not read its state; left alone");
                    continue;
                }
            };
            self.common.uids.adopt(uid);
            shown.status = Some(status);
            if let Err(error) = self.common.inventory.insert(shown) {
                tracing::error!(sandbox_id = %id, %error, "found twice; left alone");
                continue;
            }
            let (sender, calls) = mpsc::channel(MAILBOX);
            self.keepers.lock().insert(id, sender);
            tokio::spawn(keeper.run(calls));
        }
        Ok(())
    }

    /// Puts the sandbox into the books and starts its keeper.
    fn admit(
        &self,
        sandbox: DriverSandbox,
        token: SandboxToken,
        dir: SandboxDir,
        reply: Reply,
    ) -> Result<(), DriverError> {
        let mut shown = sandbox.clone();
        let now = Timestamp::now();
        shown.status = Some(DriverSandboxStatus {
            sandbox_name: sandbox.name.clone(),
            conditions: vec![condition::not_ready(reason::STARTING, "", now)],
            ..Default::default()
        });
        let id = sandbox.id.clone();
        let mut keepers = self.keepers.lock();
        self.common.inventory.insert(shown)?;
        let agent = match self.agent(&id) {
            Ok(agent) => agent,
            Err(error) => {
                self.common.inventory.remove(&id);
                return Err(error);
            }
        };
        let (sender, calls) = mpsc::channel(MAILBOX);
        keepers.insert(id, sender);
        let record = Record { sandbox, agent };
        let common = Arc::clone(&self.common);
        tokio::spawn(keeper::make(common, dir, record, token, (calls, reply)));
        Ok(())
    }

    /// The user that a new sandbox's agent runs as.
    fn agent(&self, id: &str) -> Result<Agent, DriverError> {
        if !self.common.agents_have_own_users {
            return Ok(Agent {
                uid: rustix::process::geteuid().as_raw(),
                gid: rustix::process::getegid().as_raw(),
            });
        }
        let uid = self.common.uids.take().ok_or_else(|| DriverError::FailedPrecondition {
            id: id.to_owned(),
            problem: "every uid for agents belongs to a sandbox".to_owned(),
            next: "delete sandboxes or raise uid_count",
        })?;
        Ok(Agent { uid, gid: uid })
    }

    /// Sends a call to the keeper of a sandbox and waits for the answer.
    async fn call(
        &self,
        sandbox: &SandboxRef,
        call: impl FnOnce(Reply) -> Call,
    ) -> Result<(), DriverError> {
        let id = self.common.inventory.get(sandbox)?.id;
        let gone = || DriverError::NotFound { id: id.clone() };
        let mailbox = self.keepers.lock().get(&id).cloned().ok_or_else(gone)?;
        let (reply, answer) = oneshot::channel();
        mailbox.send(call(reply)).await.map_err(|_| gone())?;
        // A keeper that ended without an answer has deleted its sandbox.
        answer.await.map_err(|_| gone())?
    }
}

#[async_trait]
impl ComputeDriver for ProcessDriver {
    async fn capabilities(&self) -> Result<GetCapabilitiesResponse, DriverError> {
        Ok(GetCapabilitiesResponse {
            driver_name: DRIVER_NAME.to_owned(),
            driver_version: env!("CARGO_PKG_VERSION").to_owned(),
            default_image: self.common.config.default_image.clone(),
            // Sandboxes go on while the gateway is away.
            gateway_manages_lifecycle: false,
        })
    }

    async fn validate_create(&self, sandbox: &DriverSandbox) -> Result<(), DriverError> {
        environment::validate(sandbox, &self.common.config)?;
        self.common.state_dir.sandbox(&sandbox.id).map(drop)
    }

    async fn create(&self, mut sandbox: DriverSandbox) -> Result<(), DriverError> {
        self.validate_create(&sandbox).await?;
        let dir = self.common.state_dir.sandbox(&sandbox.id)?;
        let spec = sandbox.spec.get_or_insert_default();
        let token = SandboxToken::new(std::mem::take(&mut spec.sandbox_token));
        sandbox.status = None;
        let gone = DriverError::NotFound { id: sandbox.id.clone() };
        let (reply, answer) = oneshot::channel();
        self.admit(sandbox, token, dir, reply)?;
        answer.await.unwrap_or(Err(gone))
    }

    async fn get(&self, sandbox: &SandboxRef) -> Result<DriverSandbox, DriverError> {
        self.common.inventory.get(sandbox)
    }

    async fn list(&self) -> Result<Vec<DriverSandbox>, DriverError> {
        Ok(self.common.inventory.list())
    }

    async fn stop(&self, sandbox: &SandboxRef) -> Result<(), DriverError> {
        self.call(sandbox, Call::Stop).await
    }

    async fn start(
        &self,
        sandbox: &SandboxRef,
        token: Option<SandboxToken>,
    ) -> Result<(), DriverError> {
        self.call(sandbox, |reply| Call::Start(token, reply)).await
    }

    async fn delete(&self, sandbox: &SandboxRef) -> Result<bool, DriverError> {
        match self.call(sandbox, Call::Delete).await {
            Ok(()) => Ok(true),
            Err(DriverError::NotFound { .. }) => Ok(false),
            Err(other) => Err(other),
        }
    }

    async fn watch(&self) -> Result<WatchStream, DriverError> {
        Ok(self.common.inventory.watch())
    }
}

/// Reads one sandbox. One that cannot be read is named in the log and left alone.
fn find_one(common: &Common, id: &str) -> Option<(SandboxDir, Record)> {
    let dir = common
        .state_dir
        .sandbox(id)
        .inspect_err(|error| tracing::error!(sandbox_id = %id, %error, "left alone"))
        .ok()?;
    let record = Record::load(&dir, id)
        .inspect_err(|error| {
            tracing::error!(sandbox_id = %id, path = %dir.path().display(), %error,
                "its record cannot be read; left alone, move the directory away");
        })
        .ok()?;
    Some((dir, record))
}

fn agent_uids(config: &Config) -> Result<Uids, OpenError> {
    let path = Path::new("/proc/self/uid_map");
    let map = fs::read_to_string(path).map_err(|source| OpenError::Io {
        action: "read",
        path: path.to_owned(),
        source,
    })?;
    let (base, count) = uids::choose(&uids::parse_uid_map(&map), config.uid_base, config.uid_count)
        .map_err(|problem| OpenError::Config { key: "uid_base", problem })?;
    Ok(Uids::new(base, count))
}

fn check_program(program: &Path) -> Result<(), OpenError> {
    let fault = |problem: String| Err(OpenError::Config { key: "supervisor.program", problem });
    match fs::metadata(program) {
        Ok(file) if file.is_file() && file.permissions().mode() & 0o111 != 0 => Ok(()),
        Ok(_) => fault(format!("{} cannot be executed", program.display())),
        Err(error) => fault(format!("{}: {error}", program.display())),
    }
}

async fn lock(state_dir: &StateDir) -> Result<DriverLock, OpenError> {
    let until = Instant::now() + LOCK_WAIT;
    loop {
        if let Some(lock) = state_dir.lock()? {
            return Ok(lock);
        }
        if Instant::now() >= until {
            return Err(OpenError::InUse { path: state_dir.root().to_owned() });
        }
        sleep(LOCK_POLL).await;
    }
}
