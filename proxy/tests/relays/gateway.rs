//! A gateway of everything but processes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use postern::auth::clock::WallClock;
use postern::auth::sandbox_token::SandboxToken;
use postern::auth::ssh_session::SshSessionToken;
use postern::config::{LayerConfigs, Stack};
use postern::drain::Drain;
use postern::handlers::identity_info::GatewayInfo;
use postern::handlers::router::Router;
use postern::handlers::{Parts, assemble};
use postern::lifecycle::{self, Lifecycle};
use postern::relay_plane::Budgets;
use postern::relay_plane::seams::{Leftovers, Minter, Sessions};
use postern::relay_plane::ssh_sessions::SshSessions;
use postern::stack::{self, CallParts, CallPlane, RelayHandles};
use postern_driver_fake::FakeDriver;
use postern_identity::{SandboxTokenIssuer, SigningKey};
use postern_layers::ocsf::object::{Device, DeviceKind, Product};
use postern_layers::ocsf::{Record, Recorder, Source};
use postern_proto::authorization::AuthorizationTable;
use postern_proto::v1::open_shell_client::OpenShellClient;
use postern_proto::v1::{
    CreateSandboxRequest, CreateSshSessionRequest, GetSandboxRequest, SandboxPhase, SandboxSpec,
    ServiceStatus,
};
use postern_relay::registry::{self, Registry};
use postern_relay::transport::{Connection, SharedToken, Target};
use postern_store::{ObjectStore, SqliteStore};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::TaskTracker;

/// Longer than anything here takes on a loaded machine; reached only when something hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What a test may want otherwise.
pub struct Options {
    pub heartbeat: Duration,
    pub values: LayerConfigs,
    pub stack: Stack,
    pub pending_ttl: Duration,
    pub token_ttl: Duration,
    pub local_dev: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_secs(15),
            values: LayerConfigs::default(),
            stack: Stack::default(),
            pending_ttl: registry::PENDING_TTL,
            token_ttl: Duration::ZERO,
            local_dev: true,
        }
    }
}

/// The gateway. It ends with the runtime of its test.
pub struct Gateway {
    pub address: SocketAddr,
    pub registry: Registry,
    pub relay_handles: RelayHandles,
    pub ssh_sessions: SshSessions,
    pub issuer: Arc<SandboxTokenIssuer>,
    /// Audit records in the short form.
    pub audit: Arc<Mutex<Vec<String>>>,
    pub recorder: Recorder,
    /// Tasks of sessions and tunnels.
    pub tasks: TaskTracker,
    /// Dropping it would drain the gateway.
    _drain: Drain,
}

impl Gateway {
    pub async fn start() -> Self {
        Self::with(Options::default()).await
    }

    pub async fn with(options: Options) -> Self {
        let store: Arc<dyn ObjectStore> =
            Arc::new(SqliteStore::open("sqlite::memory:").await.unwrap());
        let clock = WallClock::system();
        let tasks = TaskTracker::new();
        let key = SigningKey::generate().unwrap();
        let issuer = Arc::new(SandboxTokenIssuer::new(key, "openshell", options.token_ttl));
        let registry = Registry::new(registry::Config {
            pending_ttl: options.pending_ttl,
            on_relay_end: Arc::new(stack::RelayEndObserver),
            ..registry::Config::default()
        });
        let ssh_sessions =
            SshSessions::new(Arc::clone(&store), Duration::from_secs(600), clock.clone());
        let lifecycle = lifecycle(store, &registry, &issuer, &ssh_sessions);
        tokio::spawn(lifecycle.clone().run());
        let (recorder, audit) = recorder();
        let (plane, relay_handles) =
            stack::relay_plane(&options.stack, &options.values, &registry, &recorder, 7);
        let assembled = assemble(Parts {
            lifecycle,
            registry: registry.clone(),
            plane,
            budgets: Budgets::of(&options.stack, &options.values.session_wait),
            ssh_sessions: ssh_sessions.clone(),
            issuer: Arc::clone(&issuer),
            clock,
            heartbeat: options.heartbeat,
            advertised: None,
            info: GatewayInfo {
                compute_drivers: Vec::new(),
                status: Arc::new(|| ServiceStatus::Healthy),
            },
            exec_pool: Default::default(),
            tasks: tasks.clone(),
        });
        let calls = calls(&options, &issuer, &ssh_sessions, &recorder, assembled.router);
        let drain = Drain::new();
        let (connections, _) = postern::listen::connection_plane(
            &options.stack,
            &options.values,
            None,
            calls,
            drain.watch(),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(postern::listen::serve(listener, connections, drain.watch()));
        Self {
            address,
            registry,
            relay_handles,
            ssh_sessions,
            issuer,
            audit,
            recorder,
            tasks,
            _drain: drain,
        }
    }

    /// A connection, with a bearer token or without.
    pub async fn connect(&self, token: Option<&str>) -> Connection {
        self.connect_cuttable(token).await.0
    }

    /// The same, and its socket, by which a test can break it.
    pub async fn connect_cuttable(&self, token: Option<&str>) -> (Connection, std::net::TcpStream) {
        let mut target = Target::new(format!("http://{}", self.address).parse().unwrap());
        target.token = token.map(|token| Arc::new(SharedToken::new(token).unwrap()) as _);
        let socket = TcpStream::connect(self.address).await.unwrap().into_std().unwrap();
        let wire = socket.try_clone().unwrap();
        let socket = TcpStream::from_std(socket).unwrap();
        let connection = Connection::handshake(socket, &target.uri, &target).await.unwrap();
        (connection, wire)
    }

    /// The API as the local developer sees it.
    pub async fn user(&self) -> OpenShellClient<Connection> {
        client(self.connect(None).await)
    }

    /// The API as the supervisor of a sandbox sees it.
    pub async fn supervisor(&self, sandbox_id: &str) -> OpenShellClient<Connection> {
        client(self.connect(Some(&self.token(sandbox_id))).await)
    }

    pub fn token(&self, sandbox_id: &str) -> String {
        self.issuer.mint(sandbox_id, SystemTime::now()).0.expose().clone()
    }

    /// A sandbox of this name; its id.
    pub async fn sandbox(&self, name: &str) -> String {
        let request = CreateSandboxRequest {
            name: name.to_owned(),
            spec: Some(SandboxSpec::default()),
            ..CreateSandboxRequest::default()
        };
        let created = self.user().await.create_sandbox(request).await.unwrap().into_inner();
        created.sandbox.unwrap().metadata.unwrap().id
    }

    /// A token for SSH sessions of the sandbox of this name.
    pub async fn ssh_token(&self, name: &str) -> String {
        let request = CreateSshSessionRequest { sandbox: name.to_owned(), ..Default::default() };
        self.user().await.create_ssh_session(request).await.unwrap().into_inner().token
    }

    pub async fn phase(&self, name: &str) -> SandboxPhase {
        let request = GetSandboxRequest { name: name.to_owned(), ..Default::default() };
        let got = self.user().await.get_sandbox(request).await.unwrap().into_inner();
        got.sandbox.unwrap().status.unwrap().phase()
    }

    /// Waits until the sandbox is in this phase.
    pub async fn until_phase(&self, name: &str, phase: SandboxPhase) {
        until(&format!("{name} is {phase:?}"), async || self.phase(name).await == phase).await;
    }

    /// All audit lines so far that contain `part`.
    pub async fn audited(&self, part: &str) -> Vec<String> {
        self.recorder.flush().await;
        self.audit.lock().iter().filter(|line| line.contains(part)).cloned().collect()
    }
}

/// The call plane around a router.
fn calls(
    options: &Options,
    issuer: &SandboxTokenIssuer,
    ssh_sessions: &SshSessions,
    recorder: &Recorder,
    router: Router,
) -> CallPlane {
    let parts = CallParts {
        rules: Arc::new(AuthorizationTable::load().unwrap()),
        sandbox_tokens: SandboxToken::new(issuer.verifier(), WallClock::system()),
        ssh_sessions: SshSessionToken::new(ssh_sessions.clone()),
        client_certificates: true,
        local_dev: options.local_dev,
        recorder: recorder.clone(),
        seed: 7,
    };
    stack::call_plane(&options.stack, &options.values, &parts, router).0
}

/// The lifecycle over a driver that keeps sandboxes in memory.
fn lifecycle(
    store: Arc<dyn ObjectStore>,
    registry: &Registry,
    issuer: &Arc<SandboxTokenIssuer>,
    ssh_sessions: &SshSessions,
) -> Lifecycle {
    let sessions = Arc::new(Sessions(registry.clone()));
    Lifecycle::new(lifecycle::Parts {
        store,
        driver: Arc::new(FakeDriver::new()),
        capabilities: Default::default(),
        sessions: Arc::clone(&sessions) as _,
        ender: sessions,
        minter: Arc::new(Minter { issuer: Arc::clone(issuer), clock: WallClock::system() }),
        cleanup: Arc::new(Leftovers { ssh_sessions: ssh_sessions.clone() }),
        now: Arc::new(SystemTime::now),
        seed: 7,
        config: lifecycle::Config::default(),
    })
}

/// A client without limits of its own.
pub fn client(connection: Connection) -> OpenShellClient<Connection> {
    let origin = connection.origin();
    OpenShellClient::with_origin(connection, origin)
}

/// Waits until `done`, for [`PATIENCE`] at most.
pub async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !done().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// Gives a future [`PATIENCE`].
pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

fn recorder() -> (Recorder, Arc<Mutex<Vec<String>>>) {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&lines);
    let source = Source::new(Product::new("postern"), Device::new(DeviceKind::Server, "test"));
    let (recorder, writer) = Recorder::builder(source)
        .linger(Duration::ZERO)
        .sink(move |record: &Record<'_>| {
            let mut line = String::new();
            record.write_short(&mut line);
            kept.lock().push(line);
            Ok(())
        })
        .start()
        .unwrap();
    // The writer's thread ends with the process.
    std::mem::forget(writer);
    (recorder, lines)
}
