//! What everything else of a gateway stands on: keys, store, certificates, listeners, audit, registry.

use std::sync::Arc;

use postern_driver_core::{ComputeDriver, compute::GetCapabilitiesResponse};
use postern_identity::SandboxTokenIssuer;
use postern_layers::ocsf::{Recorder, Writer};
use postern_proto::{
    authorization::AuthorizationTable,
    v1::{ComputeDriverCapabilities, ComputeDriverInfo, ServiceStatus},
};
use postern_relay::{
    registry::{self, Registry},
    ssh::PoolConfig,
};
use postern_store::{ObjectStore, SqliteStore};
use rustls::ServerConfig;
use tokio_util::task::TaskTracker;

use super::{
    Listeners, StartError, Surroundings, audit,
    identity::{self, TlsMaterial},
};
use crate::{
    auth::{clock::WallClock, sandbox_token::SandboxToken, ssh_session::SshSessionToken},
    config::Config,
    drain::Drain,
    handlers::{self, identity_info::GatewayInfo},
    health::Readiness,
    lifecycle::{self, Lifecycle},
    relay_plane::{
        seams::{Leftovers, Minter, Sessions},
        ssh_sessions::SshSessions,
    },
    reload::Relays,
    stack::{CallParts, RelayEndObserver},
    telemetry::MeteredStore,
};

pub(super) struct Ground {
    pub(super) rules: Arc<AuthorizationTable>,
    pub(super) clock: WallClock,
    pub(super) seed: u64,
    pub(super) issuer: Arc<SandboxTokenIssuer>,
    pub(super) sqlite: SqliteStore,
    /// The same store, its calls timed.
    pub(super) store: Arc<dyn ObjectStore>,
    pub(super) tls: Option<TlsMaterial>,
    pub(super) tls_config: Option<Arc<ServerConfig>>,
    pub(super) recorder: Recorder,
    pub(super) audit: Option<Writer>,
    pub(super) drain: Drain,
    pub(super) registry: Registry,
    pub(super) ssh_sessions: SshSessions,
    pub(super) tasks: TaskTracker,
}

impl Ground {
    /// Makes or opens everything, in the order of the module above.
    pub(super) async fn lay(
        config: &Config,
        surroundings: &Surroundings,
    ) -> Result<(Self, Listeners), StartError> {
        let rules = Arc::new(AuthorizationTable::load()?);
        let settings = &config.gateway;
        let clock = surroundings.clock.clone();
        identity::state_dir(&settings.state_dir)?;
        let issuer = Arc::new(identity::issuer(settings)?);
        let sqlite = SqliteStore::open(settings.db_url.expose()).await?;
        let store: Arc<dyn ObjectStore> = Arc::new(MeteredStore::new(Arc::new(sqlite.clone())));
        let tls = identity::tls(settings, clock.now())?;
        let tls_config = tls.as_ref().map(TlsMaterial::load).transpose()?;
        let listeners = Listeners::bind(settings)?;
        let (recorder, audit) = audit::start(config)?;
        let on_relay_end = Arc::new(RelayEndObserver);
        let registry = Registry::new(registry::Config { on_relay_end, ..Default::default() });
        let ssh_sessions = SshSessions::new(store.clone(), settings.ssh_session_ttl, clock.clone());
        let ground = Self {
            rules,
            clock,
            seed: surroundings.seed.unwrap_or_else(rand::random),
            issuer,
            sqlite,
            store,
            tls,
            tls_config,
            recorder,
            audit,
            drain: Drain::new(),
            registry,
            ssh_sessions,
            tasks: TaskTracker::new(),
        };
        Ok((ground, listeners))
    }

    /// The sandboxes that `driver` makes.
    pub(super) fn lifecycle(
        &self,
        driver: Arc<dyn ComputeDriver>,
        capabilities: GetCapabilitiesResponse,
    ) -> Lifecycle {
        let sessions = Arc::new(Sessions(self.registry.clone()));
        let clock = self.clock.clone();
        Lifecycle::new(lifecycle::Parts {
            store: self.store.clone(),
            driver,
            capabilities,
            sessions: sessions.clone(),
            ender: sessions,
            minter: Arc::new(Minter { issuer: self.issuer.clone(), clock: clock.clone() }),
            cleanup: Arc::new(Leftovers { ssh_sessions: self.ssh_sessions.clone() }),
            now: Arc::new(move || clock.now()),
            seed: self.seed,
            config: lifecycle::Config::default(),
        })
    }

    /// What the handlers are made of.
    pub(super) fn handler_parts(
        &self,
        config: &Config,
        lifecycle: Lifecycle,
        relays: &Relays,
        readiness: &Readiness,
    ) -> handlers::Parts {
        let info = GatewayInfo {
            compute_drivers: vec![describe(lifecycle.capabilities())],
            status: status(readiness.clone()),
        };
        handlers::Parts {
            lifecycle,
            registry: self.registry.clone(),
            plane: relays.plane(),
            budgets: relays.budgets(),
            ssh_sessions: self.ssh_sessions.clone(),
            issuer: self.issuer.clone(),
            clock: self.clock.clone(),
            heartbeat: config.gateway.heartbeat_interval,
            advertised: None,
            info,
            exec_pool: PoolConfig::default(),
            tasks: self.tasks.clone(),
        }
    }

    /// What the layers of the call plane need.
    pub(super) fn call_parts(&self, config: &Config) -> CallParts {
        CallParts {
            rules: self.rules.clone(),
            sandbox_tokens: SandboxToken::new(self.issuer.verifier(), self.clock.clone()),
            ssh_sessions: SshSessionToken::new(self.ssh_sessions.clone()),
            client_certificates: config.gateway.users.mtls,
            local_dev: config.gateway.users.allow_unauthenticated,
            recorder: self.recorder.clone(),
            seed: self.seed,
        }
    }
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
