//! The whole gateway: parts put together in order, and taken apart in order.
//!
//! Start: authorization table, keys, store, certificates, listeners, audit, compute driver, lifecycle, planes, upkeep,
//! and only then the accept loops. Whatever fails stops the start; nothing half started is left behind. The end is in
//! [`drain`](RunningGateway::drain).

mod audit;
mod driver;
mod end;
mod ground;
mod identity;
#[cfg(test)]
mod tests;
mod upkeep;

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc};

use postern_driver_core::{ComputeDriver, DriverError};
use postern_identity::{KeyError, PkiError};
use postern_layers::ocsf::{Recorder, Writer};
use postern_proto::authorization::LoadError;
use postern_relay::registry::Registry;
use postern_store::{SqliteStore, StoreError};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::task::TaskTracker;

pub use self::end::{CLOSE_GRACE, CLOSE_REASON, PENDING_GRACE};
use self::ground::Ground;
pub(crate) use self::identity::TlsMaterial;
use crate::{
    admin::{self, View},
    auth::clock::WallClock,
    config::{Config, GatewaySettings, Plane, Stack},
    drain::Drain,
    handlers::{self, Assembled, exec::Exec},
    health::{self, Readiness},
    lifecycle::Lifecycle,
    listen::{self, ConnectionHandles, tls::TlsError},
    reload::{self, Calls, ConfigSource, Connections, Planes, Relays, Reloader},
    stack::{self, CallHandles, RelayHandles},
    telemetry,
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
    /// Where values are read from again; without one only the TLS files are.
    pub source: Option<Arc<dyn ConfigSource>>,
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
        /// "calls", "health", "metrics" or "admin".
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
    tls: bool,
    reloader: Reloader,
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
    /// The layers, for operators.
    pub admin: Option<SocketAddr>,
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
    admin: Option<TcpListener>,
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
    let (ground, listeners) = Ground::lay(&config, &surroundings).await?;
    let driver = match surroundings.driver {
        Some(driver) => driver,
        None => {
            let tls = ground.tls.as_ref();
            driver::process(&config, listeners.local.calls, tls, ground.seed).await?
        }
    };
    let capabilities = driver.capabilities().await?;
    let lifecycle = ground.lifecycle(driver.clone(), capabilities);

    let readiness = Readiness::new(ground.drain.watch());
    let relays = Relays::new(&config, &ground.registry, &ground.recorder, ground.seed);
    let parts = ground.handler_parts(&config, lifecycle.clone(), &relays, &readiness);
    let Assembled { router, exec } = handlers::assemble(parts);
    let calls = Calls::new(&config, ground.call_parts(&config), router);
    let tls = ground.tls_config.clone();
    let connections = Connections::new(&config, tls, calls.plane(), ground.drain.watch());
    let plane = connections.plane();
    tell(&config.stack);
    let (settings, tls) = (config.gateway.clone(), ground.tls.is_some());
    let reloader = Reloader::new(reload::Parts {
        source: surroundings.source,
        tls: ground.tls,
        planes: Planes { stack: config.stack.clone(), relays, calls, connections },
        clock: ground.clock.clone(),
        seed: ground.seed,
        config,
    });

    // Before the first call, so that a gateway is ready when it says that it serves.
    readiness.probe(&*ground.store).await;
    let mut gateway = RunningGateway {
        settings,
        local: listeners.local,
        tls,
        reloader,
        drain: ground.drain,
        registry: ground.registry,
        lifecycle,
        driver,
        exec,
        store: ground.sqlite,
        audit: ground.audit,
        tasks: ground.tasks,
        serving: JoinSet::new(),
        upkeep: JoinSet::new(),
    };
    gateway.start_upkeep(&ground.store, &ground.ssh_sessions, readiness.clone(), ground.clock);
    gateway.serve(listeners, plane, readiness, &ground.recorder)?;
    Ok(gateway)
}

/// The order that the lists of the configuration came to, one line per plane.
fn tell(stack: &Stack) {
    for plane in Plane::ALL {
        let names: Vec<_> =
            stack.names().filter(|(there, _)| *there == plane).map(|(_, name)| name).collect();
        tracing::info!(plane = plane.key(), layers = names.join(" > "), "stack");
    }
}

impl Listeners {
    fn bind(settings: &GatewaySettings) -> Result<Self, StartError> {
        let bind = |what, address| {
            listen::bind(address).map_err(|source| StartError::Listen { what, address, source })
        };
        let calls = bind("calls", settings.bind_address)?;
        let health = settings.health_bind_address.map(|at| bind("health", at)).transpose()?;
        let metrics = settings.metrics_bind_address.map(|at| bind("metrics", at)).transpose()?;
        let admin = settings.admin_bind_address.map(|at| bind("admin", at)).transpose()?;
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
            admin: side("admin", &admin)?,
        };
        Ok(Self { calls, health, metrics, admin, local })
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
        let Listeners { calls, health, metrics, admin, local } = listeners;
        if let Some(listener) = metrics {
            let handle = telemetry::metrics_handle().ok_or(StartError::MetricsTaken)?;
            let plane = health::metrics_plane(handle, self.sample(recorder));
            self.serve_side(listener, plane);
        }
        if let Some(listener) = health {
            self.serve_side(listener, health::health_plane(readiness));
        }
        if let Some((listener, address)) = admin.zip(local.admin) {
            let view = View::new(self.reloader.clone(), self.registry.clone(), recorder, local);
            self.serve_side(listener, admin::plane(view));
            admin::tell_address(&self.settings.state_dir, address);
        }
        self.serving.spawn(listen::serve(calls, connections, self.drain.watch()));
        tracing::info!(
            address = %local.calls, tls = self.tls, health = ?local.health,
            metrics = ?local.metrics, admin = ?local.admin, "Server listening"
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
        driver::endpoint(self.local.calls, self.tls)
    }

    /// Handles on the layers.
    #[must_use]
    pub fn handles(&self) -> &Handles {
        self.reloader.handles()
    }

    /// Puts other values in force.
    #[must_use]
    pub fn reloader(&self) -> &Reloader {
        &self.reloader
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
