//! A gateway by its file, and what a test does with it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};
use postern::config::{
    CallLayer, Config, ConnectionLayer, PlaneLayer, RelayLayer, SourceFile, Sources, render_faults,
};
use postern::gateway::{RunningGateway, Surroundings};
use postern_driver_fake::FakeDriver;
use postern_proto::v1::open_shell_client::OpenShellClient;
use postern_proto::v1::{CreateSandboxRequest, CreateSshSessionRequest, SandboxSpec};
use postern_relay::transport::{Connection, SharedToken, Target};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Service as _, ServiceExt as _};

/// Longer than anything here takes on a loaded machine; reached only when something hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A method that every user may call.
pub const GET_USER: &str = "/openshell.v1.OpenShell/GetCurrentUser";
/// A method for users that this gateway does not have.
pub const LIST_PROVIDERS: &str = "/openshell.v1.OpenShell/ListProviders";
/// A method with a request body that can be long.
pub const CREATE_SANDBOX: &str = "/openshell.v1.OpenShell/CreateSandbox";

/// A gRPC message without fields.
pub const EMPTY: &[u8] = &[0; 5];

/// A `gateway.toml` in the local plaintext mode. It begins with the layers that are there by default.
#[derive(Clone, Debug)]
pub struct File {
    planes: [(&'static str, Vec<String>); 3],
    tables: BTreeMap<String, String>,
    unguarded: Vec<String>,
}

/// A gateway, and the driver of its sandboxes. It ends with its test.
pub struct Gateway {
    pub running: RunningGateway,
    driver: FakeDriver,
    folder: tempfile::TempDir,
}

/// The answer to a call.
#[derive(Debug)]
pub struct Answer {
    pub headers: HeaderMap,
    pub status: Status,
}

/// A call whose request body has not ended, so that it is in progress for as long as a test wants.
pub struct Held {
    body: mpsc::Sender<Result<Frame<Bytes>, Status>>,
    answer: JoinHandle<Answer>,
}

// === impl File ===

impl Default for File {
    fn default() -> Self {
        fn names<L: PlaneLayer>() -> Vec<String> {
            L::DEFAULT.iter().map(|layer| layer.name().to_owned()).collect()
        }
        let mut connection = names::<ConnectionLayer>();
        connection.retain(|name| name != "tls");
        let planes = [
            ("connection", connection),
            ("call", names::<CallLayer>()),
            ("relay", names::<RelayLayer>()),
        ];
        Self { planes, tables: BTreeMap::new(), unguarded: Vec::new() }
    }
}

impl File {
    /// The list of a plane, outermost layer first.
    pub fn list(&mut self, plane: &str) -> &mut Vec<String> {
        let found = self.planes.iter_mut().find(|(name, _)| *name == plane);
        &mut found.expect("a plane").1
    }

    /// The same file with another list for a plane.
    pub fn with(mut self, plane: &str, names: &[&str]) -> Self {
        *self.list(plane) = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// The same file without a layer.
    pub fn without(mut self, plane: &str, name: &str) -> Self {
        let list = self.list(plane);
        let before = list.len();
        list.retain(|there| there != name);
        assert_eq!(list.len() + 1, before, "{name} is not in {plane}");
        self
    }

    /// The same file with another layer, innermost.
    pub fn adding(mut self, plane: &str, name: &str) -> Self {
        self.list(plane).push(name.to_owned());
        self
    }

    /// The same file with a layer in front of another.
    pub fn moving(mut self, plane: &str, name: &str, before: &str) -> Self {
        self = self.without(plane, name);
        let list = self.list(plane);
        let at = list.iter().position(|there| there == before).expect("is there");
        list.insert(at, name.to_owned());
        self
    }

    /// The same file with these lines as the table of a layer.
    pub fn table(mut self, layer: &str, lines: &str) -> Self {
        self.tables.insert(layer.to_owned(), lines.to_owned());
        self
    }

    /// The same file with the switch that lets a guard be left out.
    pub fn unguarded(mut self, names: &[&str]) -> Self {
        self.unguarded = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    fn text(&self, state_dir: &str) -> String {
        let mut text = format!(
            "[openshell.gateway]\nbind_address = \"127.0.0.1:0\"\nstate_dir = {state_dir:?}\n\
             disable_tls = true\ndrain_timeout = \"1s\"\n\n\
             [openshell.gateway.auth]\nallow_unauthenticated_users = true\n\n[openshell.stack]\n"
        );
        for (plane, names) in &self.planes {
            writeln!(text, "{plane} = {names:?}").unwrap();
        }
        if !self.unguarded.is_empty() {
            writeln!(text, "unsafe_allow_missing = {:?}", self.unguarded).unwrap();
        }
        for (layer, lines) in &self.tables {
            writeln!(text, "\n[openshell.layer.{layer}]\n{lines}").unwrap();
        }
        text
    }

    /// Reads the file as the gateway does; `Err` is what an operator would be shown.
    pub fn read(&self, state_dir: &str) -> Result<Config, String> {
        let file = SourceFile { path: "gateway.toml".into(), text: self.text(state_dir) };
        let sources = Sources {
            file: Some(file),
            flags: vec![("--db-url".to_owned(), "sqlite::memory:".to_owned())],
            ..Sources::default()
        };
        Config::load(&sources).map_err(|faults| render_faults(&faults))
    }

    /// Starts a gateway from the file.
    pub async fn start(&self) -> Gateway {
        Gateway::start(|state_dir| self.read(state_dir).unwrap_or_else(|faults| panic!("{faults}")))
            .await
    }
}

// === impl Gateway ===

impl Gateway {
    /// Starts a gateway with the configuration that `config` makes for a state directory.
    pub async fn start(config: impl FnOnce(&str) -> Config) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = config(folder.path().to_str().unwrap());
        let driver = FakeDriver::new();
        let surroundings = Surroundings {
            driver: Some(Arc::new(driver.clone())),
            seed: Some(7),
            ..Surroundings::default()
        };
        let starting = postern::gateway::Gateway::start_in(config, surroundings);
        let running = soon("the start", starting).await.unwrap();
        Self { running, driver, folder }
    }

    /// A connection, with a bearer token or without.
    pub async fn connect(&self, token: Option<&str>) -> Connection {
        self.connect_cuttable(token).await.0
    }

    /// The same, and its socket, by which a test can break it.
    pub async fn connect_cuttable(&self, token: Option<&str>) -> (Connection, std::net::TcpStream) {
        let mut target = Target::new(self.running.endpoint().parse().unwrap());
        target.token = token.map(|token| Arc::new(SharedToken::new(token).unwrap()) as _);
        let socket = TcpStream::connect(self.running.address()).await.unwrap().into_std().unwrap();
        let wire = socket.try_clone().unwrap();
        let socket = TcpStream::from_std(socket).unwrap();
        let connecting = Connection::handshake(socket, &target.uri, &target);
        (soon("HTTP/2", connecting).await.unwrap(), wire)
    }

    /// The credential that the driver was given for a sandbox.
    pub fn token(&self, sandbox_id: &str) -> String {
        self.driver.token(sandbox_id).expect("the sandbox was started").expose().to_owned()
    }

    /// A sandbox of this name; its id.
    pub async fn sandbox(&self, name: &str) -> String {
        let request = CreateSandboxRequest {
            name: name.to_owned(),
            spec: Some(SandboxSpec::default()),
            ..CreateSandboxRequest::default()
        };
        let mut api = client(self.connect(None).await);
        let created = soon("create", api.create_sandbox(request)).await.unwrap().into_inner();
        let id = created.sandbox.unwrap().metadata.unwrap().id;
        until("the driver has it", async || self.driver.token(&id).is_some()).await;
        id
    }

    /// A token for SSH sessions of the sandbox of this name. It is good for three connections.
    pub async fn ssh_token(&self, name: &str) -> String {
        let request = CreateSshSessionRequest { sandbox: name.to_owned(), ..Default::default() };
        let mut api = client(self.connect(None).await);
        soon("a token", api.create_ssh_session(request)).await.unwrap().into_inner().token
    }

    /// Ends the gateway in good order; the lines of its audit file, which is complete then.
    pub async fn audited(self) -> Vec<serde_json::Value> {
        let path: PathBuf = self.folder.path().join("ocsf.jsonl");
        soon("the end", self.running.drain()).await;
        let Ok(text) = std::fs::read_to_string(path) else { return Vec::new() };
        text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON")).collect()
    }
}

/// A client without limits of its own.
pub fn client(connection: Connection) -> OpenShellClient<Connection> {
    let origin = connection.origin();
    OpenShellClient::with_origin(connection, origin)
}

// === calls ===

/// Makes a gRPC call with these bytes as its body.
pub async fn call(
    connection: &Connection,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    send(
        connection.clone(),
        request(path, headers, Body::new(Full::new(Bytes::copy_from_slice(body)))),
    )
    .await
}

/// The code that a call without fields is answered with.
pub async fn code(connection: &Connection, path: &str) -> Code {
    call(connection, path, &[], EMPTY).await.status.code()
}

fn request(path: &str, headers: &[(&str, &str)], body: Body) -> Request<Body> {
    let mut request =
        Request::post(path).header("content-type", "application/grpc").header("te", "trailers");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body).unwrap()
}

async fn send(mut connection: Connection, request: Request<Body>) -> Answer {
    let answer = async {
        let response = connection.ready().await.unwrap().call(request).await.unwrap();
        let (head, body) = response.into_parts();
        let body = body.collect().await.unwrap();
        let status = Status::from_header_map(&head.headers)
            .or_else(|| Status::from_header_map(body.trailers()?))
            .expect("a gRPC status");
        Answer { headers: head.headers, status }
    };
    soon("an answer", answer).await
}

impl Held {
    /// Begins a call.
    pub fn begin(connection: &Connection, path: &str) -> Self {
        Self::with(connection, path, &[])
    }

    /// Begins a call whose caller gives it this `grpc-timeout`.
    pub fn hurried(connection: &Connection, path: &str, timeout: &str) -> Self {
        Self::with(connection, path, &[("grpc-timeout", timeout)])
    }

    fn with(connection: &Connection, path: &str, headers: &[(&str, &str)]) -> Self {
        let (body, frames) = mpsc::channel(2);
        let request =
            request(path, headers, Body::new(StreamBody::new(ReceiverStream::new(frames))));
        let answer = tokio::spawn(send(connection.clone(), request));
        Self { body, answer }
    }

    /// The answer, without ending the request.
    pub async fn answer(self) -> Answer {
        let _open = self.body;
        self.answer.await.unwrap()
    }

    /// Ends the request; the answer.
    pub async fn finish(self) -> Answer {
        // Whoever has answered already does not take it any more.
        let _ = self.body.send(Ok(Frame::data(Bytes::from_static(EMPTY)))).await;
        drop(self.body);
        self.answer.await.unwrap()
    }
}

// === waiting ===

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
