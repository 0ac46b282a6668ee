//! The whole gateway: parts put together in order, and taken apart in order.
//!
//! Start: authorization table, keys, store, certificates, listeners, audit, compute driver, lifecycle, planes, upkeep,
//! and only then the accept loops. Whatever fails stops the start; nothing half started is left behind. The end is in
//! [`drain`](RunningGateway::drain).

mod audit;
mod driver;
mod end;
mod identity;
#[cfg(test)]
mod tests;
mod upkeep;

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc};

use postern_driver_core::{ComputeDriver, DriverError, compute::GetCapabilitiesResponse};
use postern_identity::{KeyError, PkiError};
use postern_layers::ocsf::{Recorder, Writer};
use postern_proto::{
    authorization::{AuthorizationTable, LoadError},
    v1::{ComputeDriverCapabilities, ComputeDriverInfo, ServiceStatus},
};
use postern_relay::registry::{self, Registry};
use postern_store::{ObjectStore, SqliteStore, StoreError};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::task::TaskTracker;

pub use self::end::{CLOSE_GRACE, CLOSE_REASON, PENDING_GRACE};
use self::identity::TlsMaterial;
use crate::{
    auth::{clock::WallClock, sandbox_token::SandboxToken, ssh_session::SshSessionToken},
    config::{Config, GatewaySettings},
    drain::Drain,
    handlers::{self, Assembled, exec::Exec, identity_info::GatewayInfo},
    health::{self, Readiness},
    lifecycle::{self, Lifecycle},
    listen::{self, ConnectionHandles, tls::TlsError},
    relay_plane::{
        Budgets,
        seams::{Leftovers, Minter, Sessions},
        ssh_sessions::SshSessions,
    },
    stack::{self, CallHandles, CallParts, RelayEndObserver, RelayHandles},
    telemetry::{self, MeteredStore},
};

/// What a gateway takes from its surroundings instead of its configuration.
#[derive(Clone, Default)]
pub struct Surroundings {
    /// The wall clock.
    pub clock: WallClock,
    /// Seed of names, ids that are no secrets, and jitter; random without one.
    pub seed: Option<u64>,
    /// Makes sandboxes exist instead of the process driver.
    pub driver: Option<Arc<dyn ComputeDriver>>,
}

/// Why the gateway did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A method of the contract has no authorization rule: the build is broken.
    #[error("the authorization table cannot be read")]
    AuthorizationTable(#[from] LoadError),
    /// The state directory cannot be made.
    #[error("cannot make the state directory {path}")]
    StateDir {
        /// The directory.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The key of sandbox tokens cannot be read or made.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The store cannot be opened.
    #[error("cannot open the database")]
    Store(#[from] StoreError),
    /// The gateway's own certificate authority does not work.
    #[error(transparent)]
    Pki(#[from] PkiError),
    /// The listener's TLS does not come about.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address} for {what}")]
    Listen {
        /// "calls", "health" or "metrics".
        what: &'static str,
        /// The address.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Metrics are asked for and another program part records them already.
    #[error("metrics are recorded elsewhere in this process; leave metrics_bind_address out")]
    MetricsTaken,
    /// The audit log cannot be opened.
    #[error("cannot open the audit log {path}")]
    Audit {
        /// Its file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The process driver does not start.
    #[error("the process driver does not start")]
    ProcessDriver(#[from] postern_driver_process::OpenError),
    /// The program that supervisors are started from is unknown.
    #[error(
        "cannot find this program to start supervisors from; write supervisor.program in [openshell.drivers.process]"
    )]
    OwnProgram(#[source] io::Error),
    /// The driver does not answer.
    #[error("the compute driver does not answer")]
    Driver(#[from] DriverError),
}

/// A gateway that serves. Dropping it ends it without draining.
pub struct RunningGateway {
    settings: GatewaySettings,
    local: Addresses,
    tls: Option<TlsMaterial>,
    handles: Handles,
    drain: Drain,
    registry: Registry,
    lifecycle: Lifecycle,
    driver: Arc<dyn ComputeDriver>,
    exec: Exec,
    store: SqliteStore,
    audit: Option<Writer>,
    /// Sessions and tunnels; each ends by its connection or by the registry.
    tasks: TaskTracker,
    /// Accept loops. Each ends with its last connection.
    serving: JoinSet<()>,
    /// What runs until the end and is then dropped.
    upkeep: JoinSet<()>,
}

/// Where a running gateway listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// gRPC and HTTP.
    pub calls: SocketAddr,
    /// Health and readiness.
    pub health: Option<SocketAddr>,
    /// Prometheus metrics.
    pub metrics: Option<SocketAddr>,
}

/// Handles on layers that are in use, for the admin side.
#[derive(Clone, Debug, Default)]
pub struct Handles {
    /// The connection plane.
    pub connection: ConnectionHandles,
    /// The call plane.
    pub call: CallHandles,
    /// The relay plane.
    pub relay: RelayHandles,
}

struct Listeners {
    calls: TcpListener,
    health: Option<TcpListener>,
    metrics: Option<TcpListener>,
    local: Addresses,
}

/// Starts gateways.
#[derive(Clone, Copy, Debug)]
pub struct Gateway;

impl Gateway {
    /// Starts a gateway.
    ///
    /// # Errors
    /// [`StartError`]; then nothing runs.
    pub async fn start(config: Config) -> Result<RunningGateway, StartError> {
        start(config, Surroundings::default()).await
    }

    /// As [`start`](Self::start), with other surroundings.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn start_in(
        config: Config,
        surroundings: Surroundings,
    ) -> Result<RunningGateway, StartError> {
        start(config, surroundings).await
    }
}

async fn start(config: Config, surroundings: Surroundings) -> Result<RunningGateway, StartError> {
    let rules = Arc::new(AuthorizationTable::load()?);
    let seed = surroundings.seed.unwrap_or_else(rand::random);
    let clock = surroundings.clock;
    let settings = config.gateway.clone();
    identity::state_dir(&settings.state_dir)?;
    let issuer = Arc::new(identity::issuer(&settings)?);
    let sqlite = SqliteStore::open(settings.db_url.expose()).await?;
    let store: Arc<dyn ObjectStore> = Arc::new(MeteredStore::new(Arc::new(sqlite.clone())));
    let tls = identity::tls(&settings, clock.now())?;
    let tls_config = tls.as_ref().map(TlsMaterial::load).transpose()?;
    let listeners = Listeners::bind(&settings)?;
    let (recorder, audit) = audit::start(&config)?;

    let drain = Drain::new();
    let on_relay_end = Arc::new(RelayEndObserver);
    let registry = Registry::new(registry::Config { on_relay_end, ..Default::default() });
    let ssh_sessions = SshSessions::new(store.clone(), settings.ssh_session_ttl, clock.clone());
    let driver = match surroundings.driver {
        Some(driver) => driver,
        None => driver::process(&config, listeners.local.calls, tls.as_ref(), seed).await?,
    };
    let capabilities = driver.capabilities().await?;
    let compute_driver = describe(&capabilities);
    let sessions = Arc::new(Sessions(registry.clone()));
    let now = clock.clone();
    let lifecycle = Lifecycle::new(lifecycle::Parts {
        store: store.clone(),
        driver: driver.clone(),
        capabilities,
        sessions: sessions.clone(),
        ender: sessions,
        minter: Arc::new(Minter { issuer: issuer.clone(), clock: clock.clone() }),
        cleanup: Arc::new(Leftovers { ssh_sessions: ssh_sessions.clone() }),
        now: Arc::new(move || now.now()),
        seed,
        config: lifecycle::Config::default(),
    });

    let readiness = Readiness::new(drain.watch());
    let (plane, relay) =
        stack::relay_plane(&config.stack, &config.layers, &registry, &recorder, seed);
    let tasks = TaskTracker::new();
    let assembled = handlers::assemble(handlers::Parts {
        lifecycle: lifecycle.clone(),
        registry: registry.clone(),
        plane,
        budgets: Budgets::of(&config.stack, &config.layers.session_wait),
        ssh_sessions: ssh_sessions.clone(),
        issuer: issuer.clone(),
        clock: clock.clone(),
        heartbeat: settings.heartbeat_interval,
        advertised: None,
        info: GatewayInfo {
            compute_drivers: vec![compute_driver],
            status: status(readiness.clone()),
        },
        exec_pool: postern_relay::ssh::PoolConfig::default(),
        tasks: tasks.clone(),
    });
    let Assembled { router, exec } = assembled;
    let parts = CallParts {
        rules,
        sandbox_tokens: SandboxToken::new(issuer.verifier(), clock.clone()),
        ssh_sessions: SshSessionToken::new(ssh_sessions.clone()),
        client_certificates: settings.users.mtls,
        local_dev: settings.users.allow_unauthenticated,
        recorder: recorder.clone(),
        seed,
    };
    let (calls, call) = stack::call_plane(&config.stack, &config.layers, &parts, router);
    let (connections, connection) =
        listen::connection_plane(&config.stack, &config.layers, tls_config, calls, drain.watch());

    let mut gateway = RunningGateway {
        settings,
        local: listeners.local,
        tls,
        handles: Handles { connection, call, relay },
        drain,
        registry,
        lifecycle,
        driver,
        exec,
        store: sqlite,
        audit,
        tasks,
        serving: JoinSet::new(),
        upkeep: JoinSet::new(),
    };
    // Before the first call: a probe that is right at once, so that a gateway is ready when it says that it serves.
    readiness.probe(&*store).await;
    gateway.start_upkeep(&store, &ssh_sessions, readiness.clone(), clock);
    gateway.serve(listeners, connections, readiness, &recorder)?;
    Ok(gateway)
}

/// What `GetGatewayInfo` says of the driver.
fn describe(capabilities: &GetCapabilitiesResponse) -> ComputeDriverInfo {
    ComputeDriverInfo {
        name: capabilities.driver_name.clone(),
        capabilities: Some(ComputeDriverCapabilities {
            driver_name: capabilities.driver_name.clone(),
            driver_version: capabilities.driver_version.clone(),
            ..Default::default()
        }),
    }
}

/// What `Health` answers.
fn status(readiness: Readiness) -> Arc<dyn Fn() -> ServiceStatus + Send + Sync> {
    Arc::new(move || match readiness.is_ready() {
        true => ServiceStatus::Healthy,
        false => ServiceStatus::Unhealthy,
    })
}

impl Listeners {
    fn bind(settings: &GatewaySettings) -> Result<Self, StartError> {
        let bind = |what, address| {
            listen::bind(address).map_err(|source| StartError::Listen { what, address, source })
        };
        let calls = bind("calls", settings.bind_address)?;
        let health = settings.health_bind_address.map(|at| bind("health", at)).transpose()?;
        let metrics = settings.metrics_bind_address.map(|at| bind("metrics", at)).transpose()?;
        let local = |what, address, listener: &TcpListener| {
            listener.local_addr().map_err(|source| StartError::Listen { what, address, source })
        };
        let side = |what, listener: &Option<TcpListener>| {
            listener
                .as_ref()
                .map(|listener| local(what, settings.bind_address, listener))
                .transpose()
        };
        let local = Addresses {
            calls: local("calls", settings.bind_address, &calls)?,
            health: side("health", &health)?,
            metrics: side("metrics", &metrics)?,
        };
        Ok(Self { calls, health, metrics, local })
    }
}

impl RunningGateway {
    fn serve(
        &mut self,
        listeners: Listeners,
        connections: listen::ConnectionPlane,
        readiness: Readiness,
        recorder: &Recorder,
    ) -> Result<(), StartError> {
        let Listeners { calls, health, metrics, local } = listeners;
        if let Some(listener) = metrics {
            let handle = telemetry::metrics_handle().ok_or(StartError::MetricsTaken)?;
            let plane = health::metrics_plane(handle, self.sample(recorder));
            self.serve_side(listener, plane);
        }
        if let Some(listener) = health {
            self.serve_side(listener, health::health_plane(readiness));
        }
        self.serving.spawn(listen::serve(calls, connections, self.drain.watch()));
        tracing::info!(
            address = %local.calls, tls = self.tls.is_some(), health = ?local.health,
            metrics = ?local.metrics, "Server listening"
        );
        Ok(())
    }

    /// Side ports serve to the very end: a probe has to see the drain.
    fn serve_side(&mut self, listener: TcpListener, plane: stack::CallPlane) {
        let drain = Drain::new();
        let plane = listen::side_plane(plane, drain.watch());
        self.upkeep.spawn(async move { listen::serve(listener, plane, drain.watch()).await });
    }

    /// Where it serves calls.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.local.calls
    }

    /// Where it listens.
    #[must_use]
    pub fn addresses(&self) -> Addresses {
        self.local
    }

    /// How sandboxes and clients on this machine reach it: `https://127.0.0.1:17670`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        driver::endpoint(self.local.calls, self.tls.is_some())
    }

    /// Handles on the layers.
    #[must_use]
    pub fn handles(&self) -> &Handles {
        &self.handles
    }

    /// The sessions and relays.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The sandboxes.
    #[must_use]
    pub fn lifecycle(&self) -> &Lifecycle {
        &self.lifecycle
    }
}

impl std::fmt::Debug for RunningGateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RunningGateway").field("local", &self.local).finish_non_exhaustive()
    }
}
