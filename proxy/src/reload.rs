//! Other values for the layers of a running gateway, without dropping a session or a relay.
//!
//! On SIGHUP, and when a file changed, the configuration is read again as it was at the start: file, environment and
//! flags. Values of layers and TLS files are put in force; requests, connections and relays that are under way keep
//! what they began with. The order of the layers does not change in a running gateway, and a configuration with a fault
//! changes nothing: both keep the running values, and say why in the log and at the admin endpoint. What is read only at
//! the start (addresses, keys, audit sink, driver) is named as waiting for a restart.

mod live;
mod planes;
mod watch;

use std::{fmt, path::PathBuf, sync::Arc, time::SystemTime};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

pub use self::live::Live;
pub(crate) use self::planes::{Calls, Connections, Planes, Relays};
use self::watch::{LOOK_EVERY, Watched};
use crate::{
    admin::values,
    auth::clock::WallClock,
    config::{Config, Stack},
    gateway::{Handles, TlsMaterial},
};

/// Where a configuration is read from again.
pub trait ConfigSource: Send + Sync + 'static {
    /// Reads it.
    ///
    /// # Errors
    /// Every fault, as a line for the operator.
    fn read(&self) -> Result<Config, Vec<String>>;

    /// The files that it is read from.
    fn files(&self) -> Vec<PathBuf>;
}

/// Why the configuration was read again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Trigger {
    /// SIGHUP.
    Signal,
    /// A file changed.
    FileChange,
}

/// One value that is another one now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Layer and key: `relay_caps.pending`.
    pub key: String,
    /// Before.
    pub from: serde_json::Value,
    /// Now.
    pub to: serde_json::Value,
}

/// What became of reading it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Outcome {
    /// The values are in force.
    Applied {
        /// Which are others than before; none if the file says the same in other words.
        changed: Vec<Change>,
        /// Tables whose changes wait for a restart.
        needs_restart: Vec<String>,
        /// Why the TLS files were not taken; none if they were.
        faults: Vec<String>,
    },
    /// Nothing changed.
    Refused {
        /// Why.
        reasons: Vec<String>,
    },
}

/// The last time that it was read again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Last {
    /// When.
    pub at: SystemTime,
    /// Why.
    pub trigger: Trigger,
    /// With what outcome.
    pub outcome: Outcome,
}

/// What a reloader knows, for the admin endpoint.
#[derive(Clone, Debug)]
pub struct Status {
    /// What is in force.
    pub config: Config,
    /// Files that are watched; empty when the gateway cannot reload.
    pub files: Vec<PathBuf>,
    /// How often values were put in force since the start.
    pub applied: u64,
    /// The last reading.
    pub last: Option<Last>,
}

/// Reads the configuration again and puts it in force. Clones are the same.
#[derive(Clone, Debug)]
pub struct Reloader {
    shared: Arc<Shared>,
}

struct Shared {
    source: Option<Arc<dyn ConfigSource>>,
    tls: Option<TlsMaterial>,
    planes: Planes,
    handles: Handles,
    clock: WallClock,
    seed: u64,
    /// The files at the last reading, so that a signal and the look after it read them once.
    watched: Mutex<Watched>,
    /// Held while a reading is put in force, so that two do not mix. Never over an await.
    running: Mutex<Running>,
}

#[derive(Debug)]
struct Running {
    config: Config,
    applied: u64,
    last: Option<Last>,
}

/// What a reloader is made of.
pub(crate) struct Parts {
    pub(crate) source: Option<Arc<dyn ConfigSource>>,
    pub(crate) tls: Option<TlsMaterial>,
    pub(crate) planes: Planes,
    pub(crate) clock: WallClock,
    pub(crate) seed: u64,
    pub(crate) config: Config,
}

/// An odd constant far from small numbers (2^64 over the golden ratio): seeds of two readings never meet.
const SEED_STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Reloader {
    pub(crate) fn new(parts: Parts) -> Self {
        let Parts { source, tls, planes, clock, seed, config } = parts;
        let handles = planes.handles();
        let watched = Mutex::new(Watched::new(files(source.as_deref(), tls.as_ref())));
        let running = Mutex::new(Running { config, applied: 0, last: None });
        let shared = Shared { source, tls, planes, handles, clock, seed, watched, running };
        Self { shared: Arc::new(shared) }
    }

    /// Handles on the layers that count.
    #[must_use]
    pub fn handles(&self) -> &Handles {
        &self.shared.handles
    }

    /// What is in force, and how the last reading went.
    #[must_use]
    pub fn status(&self) -> Status {
        let running = self.shared.running.lock();
        Status {
            config: running.config.clone(),
            files: files(self.shared.source.as_deref(), self.shared.tls.as_ref()),
            applied: running.applied,
            last: running.last.clone(),
        }
    }

    /// Reads the configuration and the TLS files again. Blocks for as long as reading a few files takes.
    pub fn reload(&self, trigger: Trigger) -> Outcome {
        let shared = &self.shared;
        // First, so that what is saved while it is being read is noticed at the next look.
        shared.watched.lock().changed();
        let tls_fault = self.reload_tls();
        let mut running = shared.running.lock();
        let mut outcome = match &shared.source {
            None => Outcome::applied(Vec::new(), Vec::new()),
            Some(source) => match source.read() {
                Ok(config) => shared.take(&mut running, config),
                Err(reasons) => Outcome::Refused { reasons },
            },
        };
        match &mut outcome {
            Outcome::Applied { faults, .. } => faults.extend(tls_fault),
            Outcome::Refused { reasons } => reasons.extend(tls_fault),
        }
        tell(&outcome, trigger);
        running.last = Some(Last { at: shared.clock.now(), trigger, outcome: outcome.clone() });
        outcome
    }

    /// Renews certificates of the gateway's own that are near their end and reads all TLS files again. New
    /// connections get what is read; a fault keeps what there is, is logged, and comes back.
    pub fn reload_tls(&self) -> Option<String> {
        let (Some(material), Some(handle)) =
            (&self.shared.tls, &self.shared.handles.connection.tls)
        else {
            return None;
        };
        if let Err(error) = material.renew(self.shared.clock.now()) {
            tracing::error!(%error, "certificates could not be renewed");
        }
        match material.load() {
            Ok(config) => {
                handle.set(config);
                tracing::info!("TLS certificates read");
                None
            }
            Err(error) => {
                tracing::error!(%error, "TLS files do not fit; the old certificates stay in use");
                Some(error.to_string())
            }
        }
    }

    /// Looks at the files from time to time, and reloads when one changed. Never returns.
    pub(crate) async fn watch(self) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let this = self.clone();
            // File systems that hang must not hold up calls.
            let looked = tokio::task::spawn_blocking(move || {
                let changed = this.shared.watched.lock().changed();
                if changed {
                    this.reload(Trigger::FileChange);
                }
            });
            if looked.await.is_err() {
                // Cancelled at the end of the runtime, or a panic that has been told.
                return;
            }
        }
    }
}

impl Outcome {
    fn applied(changed: Vec<Change>, needs_restart: Vec<String>) -> Self {
        Self::Applied { changed, needs_restart, faults: Vec::new() }
    }
}

/// What is watched.
fn files(source: Option<&dyn ConfigSource>, tls: Option<&TlsMaterial>) -> Vec<PathBuf> {
    let mut files = source.map(ConfigSource::files).unwrap_or_default();
    files.extend(tls.into_iter().flat_map(TlsMaterial::files));
    files
}

impl Shared {
    /// Puts the values of `config` in force, if it is a configuration of this very stack.
    fn take(&self, running: &mut Running, config: Config) -> Outcome {
        let reasons = other_order(&running.config.stack, &config.stack);
        if !reasons.is_empty() {
            return Outcome::Refused { reasons };
        }
        let mut needs_restart = Vec::new();
        let mut layers = config.layers;
        if layers.ocsf != running.config.layers.ocsf {
            needs_restart.push("[openshell.layer.ocsf]".to_owned());
            layers.ocsf = running.config.layers.ocsf.clone();
        }
        if config.gateway != running.config.gateway {
            needs_restart.push("[openshell.gateway]".to_owned());
        }
        if config.process_driver != running.config.process_driver {
            needs_restart.push("[openshell.drivers.process]".to_owned());
        }
        let changed = values::changes(&running.config.layers, &layers);
        if !changed.is_empty() {
            running.applied += 1;
            let seed = self.seed.wrapping_add(running.applied.wrapping_mul(SEED_STEP));
            self.planes.set(&layers, seed);
            running.config.layers = layers;
        }
        Outcome::applied(changed, needs_restart)
    }
}

/// The planes whose list is another one, each as a sentence.
fn other_order(running: &Stack, new: &Stack) -> Vec<String> {
    let mut reasons = Vec::new();
    for plane in crate::config::Plane::ALL {
        let list = |stack: &Stack| -> Vec<&str> {
            stack.names().filter(|(there, _)| *there == plane).map(|(_, name)| name).collect()
        };
        let (before, after) = (list(running), list(new));
        if before != after {
            reasons.push(format!(
                "the layers of the {} plane are {} in the file and {} in the gateway; a restart takes another order",
                plane.key(),
                shown(&after),
                shown(&before),
            ));
        }
    }
    reasons
}

fn shown(names: &[&str]) -> String {
    format!("[{}]", names.join(", "))
}

fn tell(outcome: &Outcome, trigger: Trigger) {
    match outcome {
        Outcome::Refused { reasons } => {
            let reasons = reasons.join("; ");
            tracing::error!(
                ?trigger,
                reasons,
                "the configuration is not taken; the running values stay"
            );
        }
        // Faults of TLS files are told where they are found.
        Outcome::Applied { changed, needs_restart, .. } => {
            for change in changed {
                let Change { key, from, to } = change;
                tracing::info!(?trigger, key, %from, %to, "value changed");
            }
            if !needs_restart.is_empty() {
                let tables = needs_restart.join(", ");
                tracing::warn!(?trigger, tables, "these changes wait for a restart");
            }
            if changed.is_empty() && needs_restart.is_empty() {
                tracing::info!(?trigger, "configuration read; no value of a layer changed");
            }
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("planes", &self.planes).finish_non_exhaustive()
    }
}
