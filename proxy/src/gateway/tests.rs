use std::{path::Path, time::Duration};

use postern_driver_fake::FakeDriver;
use postern_proto::v1::{
    CreateSandboxRequest, GetSandboxRequest, HealthRequest, SandboxSpec, ServiceStatus,
    open_shell_client::OpenShellClient,
};
use postern_relay::transport::{self, Connection, Target};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::Code;

use super::*;

/// Longer than anything here takes; reached only when something hangs.
const PATIENCE: Duration = Duration::from_secs(20);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap_or_else(|_| panic!("not in time: {what}"))
}

fn surroundings() -> Surroundings {
    Surroundings { driver: Some(Arc::new(FakeDriver::new())), seed: Some(1), ..Default::default() }
}

fn plaintext(state_dir: &Path) -> Config {
    let mut config = Config::local_plaintext(state_dir);
    config.gateway.health_bind_address = Some("127.0.0.1:0".parse().unwrap());
    config.gateway.metrics_bind_address = Some("127.0.0.1:0".parse().unwrap());
    config
}

async fn started(config: Config) -> RunningGateway {
    soon("the start", Gateway::start_in(config, surroundings())).await.unwrap()
}

async fn client(gateway: &RunningGateway) -> OpenShellClient<Connection> {
    let target = Target::new(gateway.endpoint().parse().unwrap());
    let connection = soon("a connection", transport::connect(&target)).await.unwrap();
    let origin = connection.origin();
    OpenShellClient::with_origin(connection, origin)
}

/// Status line and body of one GET.
async fn get(address: SocketAddr, path: &str) -> (String, String) {
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    soon("an answer", socket.read_to_string(&mut text)).await.unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

fn create(name: &str) -> CreateSandboxRequest {
    CreateSandboxRequest {
        name: name.to_owned(),
        spec: Some(SandboxSpec::default()),
        ..Default::default()
    }
}

#[tokio::test]
async fn a_gateway_serves_on_its_ports_and_ends() {
    let directory = tempfile::tempdir().unwrap();
    let gateway = started(plaintext(directory.path())).await;
    let addresses = gateway.addresses();
    let mut client = client(&gateway).await;
    let health = soon("Health", client.health(HealthRequest {})).await.unwrap().into_inner();
    assert_eq!(health.status, i32::from(ServiceStatus::Healthy));

    let (status, body) = get(addresses.health.unwrap(), "/readyz").await;
    assert!(status.contains("200"), "{status} {body}");
    let (status, body) = get(addresses.metrics.unwrap(), "/metrics").await;
    assert!(status.contains("200"), "{status}");
    for name in [
        "openshell_server_grpc_requests_total",
        "openshell_server_readiness_database_healthy",
        "supervisor_sessions_active",
        "relays_live",
        "store_operation_duration_seconds_bucket",
    ] {
        assert!(body.contains(name), "{name} is not in:\n{body}");
    }
    // Neither port serves what the other does, nor calls.
    assert!(get(addresses.health.unwrap(), "/metrics").await.0.contains("404"));
    assert!(get(addresses.calls, "/readyz").await.0.contains("404"));

    soon("the end", gateway.drain()).await;
    assert!(TcpStream::connect(addresses.calls).await.is_err());
    assert!(TcpStream::connect(addresses.health.unwrap()).await.is_err());
    assert!(soon("a late call", client.health(HealthRequest {})).await.is_err());
}

#[tokio::test]
async fn sandboxes_are_there_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut config = plaintext(directory.path());
    config.gateway.db_url =
        postern_identity::Secret::new(format!("sqlite://{}/db", directory.path().display()));
    let gateway = started(config.clone()).await;
    let created = soon("create", client(&gateway).await.create_sandbox(create("calm-otter"))).await;
    let id = created.unwrap().into_inner().sandbox.unwrap().metadata.unwrap().id;
    soon("the end", gateway.drain()).await;

    let gateway = started(config).await;
    let request = GetSandboxRequest { name: "calm-otter".to_owned(), ..Default::default() };
    let found = soon("get", client(&gateway).await.get_sandbox(request)).await.unwrap();
    assert_eq!(found.into_inner().sandbox.unwrap().metadata.unwrap().id, id);
    soon("the end", gateway.drain()).await;
}

#[tokio::test]
async fn a_start_that_fails_names_what_failed() {
    let directory = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = plaintext(directory.path());
    config.gateway.bind_address = taken.local_addr().unwrap();
    let error = Gateway::start_in(config, surroundings()).await.unwrap_err();
    assert!(matches!(error, StartError::Listen { what: "calls", .. }), "{error}");

    let mut config = plaintext(directory.path());
    config.gateway.db_url = postern_identity::Secret::new("postgres://db/state".to_owned());
    let error = Gateway::start_in(config, surroundings()).await.unwrap_err();
    assert!(matches!(error, StartError::Store(StoreError::UnsupportedUrl { .. })), "{error}");

    let state = directory.path().join("tls");
    let mut config = Config::local(&state);
    config.gateway.bind_address.set_port(0);
    soon("a first start", started(config.clone())).await;
    std::fs::remove_file(state.join("pki/ca.key")).unwrap();
    let error = Gateway::start_in(config, surroundings()).await.unwrap_err();
    assert!(matches!(error, StartError::Pki(PkiError::HalfAuthority { .. })), "{error}");
}

#[tokio::test]
async fn a_lost_database_is_unavailable_and_turns_health_red() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let mut config = plaintext(directory.path());
    config.gateway.db_url = postern_identity::Secret::new(format!("sqlite://{}", path.display()));
    let gateway = started(config).await;
    let mut client = client(&gateway).await;
    std::fs::remove_file(&path).unwrap();
    let refused = soon("create", client.create_sandbox(create("calm-otter"))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    // At the next probe, five seconds later at most.
    soon("red", async {
        while get(gateway.addresses().health.unwrap(), "/readyz").await.0.contains("200") {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
    .await;
    let health = soon("Health", client.health(HealthRequest {})).await.unwrap().into_inner();
    assert_eq!(health.status, i32::from(ServiceStatus::Unhealthy));
    soon("the end", gateway.drain()).await;
}

#[tokio::test]
async fn a_dropped_gateway_lets_go_of_everything() {
    let directory = tempfile::tempdir().unwrap();
    let gateway = started(plaintext(directory.path())).await;
    let address = gateway.address();
    let mut client = client(&gateway).await;
    assert!(soon("Health", client.health(HealthRequest {})).await.is_ok());
    drop(gateway);
    soon("the port", async {
        while TcpStream::connect(address).await.is_ok() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    soon("the connection", async { while client.health(HealthRequest {}).await.is_ok() {} }).await;
}
