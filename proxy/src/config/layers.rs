//! The values of the layers: one plain field per layer, from `[openshell.layer.<name>]`.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use postern_layers::{
    body_limit, concurrency_cap, connection_cap, deadline, h2_window, handshake_deadline, ocsf,
    rate_limit, relay_caps, request_id, session_wait,
};
use serde::{Deserialize, Serialize};

/// The class of SSH relays in [`relay_caps::Config::classes`].
pub const SSH_CLASS: &str = "ssh";

/// The values of all layers. A layer that the stack does not list is not built, whatever stands here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerConfigs {
    /// `[openshell.layer.connection_cap]`
    pub connection_cap: connection_cap::Config,
    /// `[openshell.layer.handshake_deadline]`
    pub handshake_deadline: handshake_deadline::Config,
    /// `[openshell.layer.h2_window]`
    pub h2_window: h2_window::Config,
    /// `[openshell.layer.request_id]`
    pub request_id: request_id::Config,
    /// `[openshell.layer.rate_limit]`; `grpc_rate_limit_requests` and `grpc_rate_limit_window_seconds` of the gateway
    /// table set its `global` quota.
    pub rate_limit: rate_limit::Config,
    /// `[openshell.layer.deadline]`
    pub deadline: deadline::Config,
    /// `[openshell.layer.concurrency_cap]`
    pub concurrency_cap: concurrency_cap::Config,
    /// `[openshell.layer.body_limit]`
    pub body_limit: body_limit::Config,
    /// `[openshell.layer.ocsf]`, of both planes
    pub ocsf: Audit,
    /// `[openshell.layer.relay_caps]`
    pub relay_caps: RelayCaps,
    /// `[openshell.layer.session_wait]`
    pub session_wait: SessionWait,
}

/// Default calls per second of one peer address. A supervisor host runs many sandboxes behind one address and each
/// relay is a call, so this stops floods, not load: two cores serve about 20,000 small calls per second.
const CALLS_PER_SECOND: u32 = 5_000;

impl Default for LayerConfigs {
    fn default() -> Self {
        let per_key = rate_limit::Quota {
            calls: CALLS_PER_SECOND,
            per: Duration::from_secs(1),
            burst: 2 * CALLS_PER_SECOND,
        };
        Self {
            connection_cap: connection_cap::Config::default(),
            handshake_deadline: handshake_deadline::Config::default(),
            h2_window: h2_window::Config::default(),
            request_id: request_id::Config::default(),
            rate_limit: rate_limit::Config { per_key: Some(per_key), ..Default::default() },
            deadline: deadline::Config::default(),
            concurrency_cap: concurrency_cap::Config::default(),
            body_limit: body_limit::Config::default(),
            ocsf: Audit::default(),
            relay_caps: RelayCaps::default(),
            session_wait: SessionWait::default(),
        }
    }
}

/// Where audit records go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Audit {
    /// What they are written to. Default a file.
    pub sink: AuditSink,
    /// The file; `ocsf.jsonl` in the state directory unless given. Older ones are beside it, numbered.
    pub path: Option<PathBuf>,
    /// Largest size of one file, in bytes. Default 64 MiB: about 50,000 events.
    #[serde(with = "postern_layers::units::size")]
    pub max_bytes: u64,
    /// How many files there may be. Default 4, so that 256 MiB are taken at most.
    pub files: u32,
    /// JSON lines (default) or the short form for people.
    pub format: ocsf::Format,
}

/// What audit records are written to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AuditSink {
    /// A file that is rotated by size.
    #[default]
    File,
    /// Standard output.
    Stdout,
    /// Nothing.
    Off,
}

impl Default for Audit {
    fn default() -> Self {
        let file = ocsf::sink::FileConfig::new("");
        let (max_bytes, files, format) = (file.max_bytes, file.files, file.format);
        Self { sink: AuditSink::default(), path: None, max_bytes, files, format }
    }
}

/// Caps on relays, in the words of sandboxes. 0 is no cap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RelayCaps {
    /// Relays being opened, in all. Default 256 (OpenShell contract).
    pub pending: u32,
    /// Relays being opened to one sandbox. Default 32 (OpenShell contract).
    pub pending_per_sandbox: u32,
    /// Relays being opened or open, in all. Default 0.
    pub live: u32,
    /// Relays being opened or open to one sandbox. Default 0.
    pub live_per_sandbox: u32,
    /// SSH relays being opened or open to one sandbox. Default 20 (OpenShell contract).
    pub ssh_per_sandbox: u32,
}

impl Default for RelayCaps {
    fn default() -> Self {
        Self {
            pending: 256,
            pending_per_sandbox: 32,
            live: 0,
            live_per_sandbox: 0,
            ssh_per_sandbox: 20,
        }
    }
}

impl RelayCaps {
    /// The same in the words of the layer, which knows keys and classes.
    #[must_use]
    pub fn layer(&self) -> relay_caps::Config {
        let classes = match self.ssh_per_sandbox {
            0 => BTreeMap::new(),
            cap => BTreeMap::from([(SSH_CLASS.to_owned(), cap)]),
        };
        relay_caps::Config {
            pending: self.pending,
            pending_per_key: self.pending_per_sandbox,
            live: self.live,
            live_per_key: self.live_per_sandbox,
            classes,
        }
    }
}

/// How long, and how, a relay waits for the session of its sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SessionWait {
    /// The delay after the first attempt. Default 100 ms.
    #[serde(with = "postern_layers::units::duration")]
    pub first_delay: Duration,
    /// The delay that doubling stops at. Default 2 s.
    #[serde(with = "postern_layers::units::duration")]
    pub max_delay: Duration,
    /// The budget of SSH relays. Default 30 s (OpenShell contract).
    #[serde(with = "postern_layers::units::duration")]
    pub ssh: Duration,
    /// The budget of exec relays. Default 15 s (OpenShell contract).
    #[serde(with = "postern_layers::units::duration")]
    pub exec: Duration,
    /// The budget of port forwards. Default 15 s, as exec: a person waits at the other end.
    #[serde(with = "postern_layers::units::duration")]
    pub forward: Duration,
}

impl Default for SessionWait {
    fn default() -> Self {
        let layer = session_wait::Config::default();
        Self {
            first_delay: layer.first_delay,
            max_delay: layer.max_delay,
            ssh: Duration::from_secs(30),
            exec: Duration::from_secs(15),
            forward: Duration::from_secs(15),
        }
    }
}

impl SessionWait {
    /// The part that the layer knows; budgets come with each request.
    #[must_use]
    pub fn layer(&self) -> session_wait::Config {
        session_wait::Config { first_delay: self.first_delay, max_delay: self.max_delay }
    }
}

/// What a table of values has to offer to be read and checked. All have a default for every key.
pub(super) trait TableConfig: Default + for<'de> Deserialize<'de> {
    /// Faults of the values, as key and message.
    fn faults(&self) -> Vec<(String, String)>;
}

macro_rules! table_config {
    ($($config:ty),* $(,)?) => {$(
        impl TableConfig for $config {
            fn faults(&self) -> Vec<(String, String)> {
                self.validate().into_iter().map(|f| (f.field.to_owned(), f.message)).collect()
            }
        }
    )*};
}

table_config!(
    connection_cap::Config,
    handshake_deadline::Config,
    h2_window::Config,
    request_id::Config,
    rate_limit::Config,
    deadline::Config,
    concurrency_cap::Config,
    body_limit::Config,
);

impl TableConfig for Audit {
    fn faults(&self) -> Vec<(String, String)> {
        let mut file =
            ocsf::sink::FileConfig::new(self.path.clone().unwrap_or_else(|| "ocsf.jsonl".into()));
        file.max_bytes = self.max_bytes;
        file.files = self.files;
        file.validate().into_iter().map(|f| (f.field.to_owned(), f.message)).collect()
    }
}

impl TableConfig for RelayCaps {
    fn faults(&self) -> Vec<(String, String)> {
        let own = |field: &str| match field {
            "pending_per_key" => "pending_per_sandbox".to_owned(),
            "live_per_key" => "live_per_sandbox".to_owned(),
            "classes" => "ssh_per_sandbox".to_owned(),
            other => other.to_owned(),
        };
        self.layer().validate().into_iter().map(|f| (own(f.field), f.message)).collect()
    }
}

/// Longest budget of a wait for a session. A relay that waits holds a pending place; clients give up long before.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

impl TableConfig for SessionWait {
    fn faults(&self) -> Vec<(String, String)> {
        let layer = self.layer().validate();
        let mut faults: Vec<_> =
            layer.into_iter().map(|f| (f.field.to_owned(), f.message)).collect();
        for (key, budget) in [("ssh", self.ssh), ("exec", self.exec), ("forward", self.forward)] {
            if budget > LONGEST_WAIT {
                let message = "is above 10m, and every waiting relay holds a pending place; write at most \"10m\"";
                faults.push((key.to_owned(), message.to_owned()));
            }
        }
        faults
    }
}

impl TableConfig for postern_driver_process::Config {
    fn faults(&self) -> Vec<(String, String)> {
        // What the gateway fills in at start when it is left empty must not look like a fault here.
        let mut filled = self.clone();
        let fill = |path: &mut std::path::PathBuf| {
            if path.as_os_str().is_empty() {
                *path = "/filled-in-at-start".into();
            }
        };
        fill(&mut filled.state_dir);
        fill(&mut filled.supervisor.program);
        if filled.grpc_endpoint.is_empty() {
            filled.grpc_endpoint = "http://127.0.0.1:1".to_owned();
        }
        let told = filled.faults().into_iter().filter_map(|fault| match fault {
            postern_driver_process::OpenError::Config { key, problem } => {
                Some((key.to_owned(), problem))
            }
            _ => None,
        });
        told.collect()
    }
}
