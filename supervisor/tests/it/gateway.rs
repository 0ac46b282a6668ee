//! A gateway that does what the test says.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use postern_proto::v1::gateway_message::Payload as ToSupervisor;
use postern_proto::v1::open_shell_server::{OpenShell, OpenShellServer};
use postern_proto::v1::supervisor_message::Payload as FromSupervisor;
use postern_proto::v1::*;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status, Streaming};

use crate::harness::DEADLINE;

/// What the supervisor did.
pub(crate) enum Event {
    Session(SupervisorSession),
    Relay(Relay),
    Exit(ReportMainProcessExitRequest),
    Finalized,
    Logs(Vec<SandboxLogLine>),
    Refresh { authorization: String },
}

/// One `ConnectSupervisor` call, as the gateway sees it.
pub(crate) struct SupervisorSession {
    pub(crate) authorization: String,
    pub(crate) hello: SupervisorHello,
    pub(crate) send: mpsc::Sender<Result<GatewayMessage, Status>>,
    inbound: Streaming<SupervisorMessage>,
}

/// One `RelayStream` call, as the gateway sees it.
pub(crate) struct Relay {
    pub(crate) channel: String,
    pub(crate) send: mpsc::Sender<Result<RelayFrame, Status>>,
    inbound: Streaming<RelayFrame>,
}

/// What the gateway answers where a test cares.
#[derive(Default)]
pub(crate) struct Answers {
    /// Statuses for the next reports of an exit, first one first.
    pub(crate) exit_failures: Vec<Status>,
    /// The token that a refresh gives.
    pub(crate) refreshed: String,
}

/// The running gateway.
pub(crate) struct MockGateway {
    pub(crate) address: SocketAddr,
    pub(crate) answers: Arc<Mutex<Answers>>,
    events: mpsc::Receiver<Event>,
}

struct Service {
    events: mpsc::Sender<Event>,
    answers: Arc<Mutex<Answers>>,
}

impl MockGateway {
    pub(crate) async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, events) = mpsc::channel(256);
        let answers = Arc::new(Mutex::new(Answers::default()));
        let service = Service { events: sender, answers: Arc::clone(&answers) };
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(OpenShellServer::new(service))
                .serve_with_incoming(TcpListenerStream::new(listener)),
        );
        Self { address, answers, events }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next event that `pick` wants; others are dropped.
    pub(crate) async fn next<T>(&mut self, what: &str, pick: impl Fn(Event) -> Option<T>) -> T {
        let wait = async {
            loop {
                let event = self.events.recv().await.expect("the gateway stopped");
                if let Some(found) = pick(event) {
                    return found;
                }
            }
        };
        tokio::time::timeout(DEADLINE, wait).await.unwrap_or_else(|_| panic!("no {what}"))
    }

    pub(crate) async fn session(&mut self) -> SupervisorSession {
        self.next("session", |event| match event {
            Event::Session(session) => Some(session),
            _ => None,
        })
        .await
    }

    /// A session that was accepted, by a Postern gateway.
    pub(crate) async fn accepted(&mut self) -> SupervisorSession {
        let session = self.session().await;
        session.accept(Duration::from_secs(15)).await;
        session
    }

    pub(crate) async fn relay(&mut self) -> Relay {
        self.next("relay", |event| match event {
            Event::Relay(relay) => Some(relay),
            _ => None,
        })
        .await
    }
}

impl SupervisorSession {
    pub(crate) async fn say(&self, payload: ToSupervisor) {
        let message = GatewayMessage { payload: Some(payload) };
        self.send.send(Ok(message)).await.unwrap();
    }

    pub(crate) async fn accept(&self, interval: Duration) {
        self.say(ToSupervisor::SessionAccepted(SessionAccepted {
            session_id: "session".to_owned(),
            heartbeat_interval: Some(interval.try_into().unwrap()),
            postern: Some(PosternAccepted { revision: 1, reauthenticate: true }),
            ..SessionAccepted::default()
        }))
        .await;
    }

    pub(crate) async fn open(&self, channel: &str, target: Option<relay_open::Target>) {
        self.say(ToSupervisor::RelayOpen(RelayOpen {
            channel_id: channel.to_owned(),
            target,
            ..RelayOpen::default()
        }))
        .await;
    }

    pub(crate) async fn open_tcp(&self, channel: &str, host: &str, port: u32) {
        let target = TcpRelayTarget { host: host.to_owned(), port };
        self.open(channel, Some(relay_open::Target::Tcp(target))).await;
    }

    /// The next message that `pick` wants; `None` when the session ends first.
    pub(crate) async fn next<T>(
        &mut self,
        pick: impl Fn(FromSupervisor) -> Option<T>,
    ) -> Option<T> {
        let wait = async {
            while let Ok(Some(message)) = self.inbound.message().await {
                if let Some(found) = message.payload.and_then(&pick) {
                    return Some(found);
                }
            }
            None
        };
        tokio::time::timeout(DEADLINE, wait).await.expect("nothing from the supervisor")
    }

    pub(crate) async fn result(&mut self) -> RelayOpenResult {
        self.next(|payload| match payload {
            FromSupervisor::RelayOpenResult(result) => Some(result),
            _ => None,
        })
        .await
        .expect("the session ended before a result")
    }
}

impl Relay {
    pub(crate) async fn write(&self, bytes: &[u8]) {
        let frame = RelayFrame { payload: Some(relay_frame::Payload::Data(bytes.to_vec().into())) };
        self.send.send(Ok(frame)).await.unwrap();
    }

    /// The next bytes; `Ok(None)` at the orderly end.
    pub(crate) async fn read(&mut self) -> Result<Option<Vec<u8>>, Status> {
        let message = tokio::time::timeout(DEADLINE, self.inbound.message())
            .await
            .expect("nothing on the relay")?;
        Ok(message.map(|frame| match frame.payload {
            Some(relay_frame::Payload::Data(data)) => data.to_vec(),
            other => panic!("not data: {other:?}"),
        }))
    }

    pub(crate) async fn read_to_end(&mut self) -> Result<Vec<u8>, Status> {
        let mut all = Vec::new();
        while let Some(bytes) = self.read().await? {
            all.extend(bytes);
        }
        Ok(all)
    }
}

fn authorization<T>(request: &Request<T>) -> String {
    let value = request.metadata().get("authorization");
    value.map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default()
}

#[tonic::async_trait]
impl OpenShell for Service {
    async fn connect_supervisor(
        &self,
        request: Request<Streaming<SupervisorMessage>>,
    ) -> Result<Response<BoxStream<GatewayMessage>>, Status> {
        let authorization = authorization(&request);
        let mut inbound = request.into_inner();
        let first = inbound.message().await?.and_then(|message| message.payload);
        let Some(FromSupervisor::Hello(hello)) = first else {
            return Err(Status::invalid_argument("no hello"));
        };
        let (send, receiver) = mpsc::channel(64);
        let session = SupervisorSession { authorization, hello, send, inbound };
        let _ = self.events.send(Event::Session(session)).await;
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn relay_stream(
        &self,
        request: Request<Streaming<RelayFrame>>,
    ) -> Result<Response<BoxStream<RelayFrame>>, Status> {
        let mut inbound = request.into_inner();
        let first = inbound.message().await?.and_then(|frame| frame.payload);
        let Some(relay_frame::Payload::Init(init)) = first else {
            return Err(Status::invalid_argument("no init"));
        };
        let (send, receiver) = mpsc::channel(64);
        let relay = Relay { channel: init.channel_id, send, inbound };
        let _ = self.events.send(Event::Relay(relay)).await;
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn refresh_sandbox_token(
        &self,
        request: Request<RefreshSandboxTokenRequest>,
    ) -> Result<Response<RefreshSandboxTokenResponse>, Status> {
        let event = Event::Refresh { authorization: authorization(&request) };
        let _ = self.events.send(event).await;
        let token = self.answers.lock().unwrap().refreshed.clone();
        Ok(Response::new(RefreshSandboxTokenResponse {
            token,
            ..RefreshSandboxTokenResponse::default()
        }))
    }

    async fn report_main_process_exit(
        &self,
        request: Request<ReportMainProcessExitRequest>,
    ) -> Result<Response<ReportMainProcessExitResponse>, Status> {
        {
            let mut answers = self.answers.lock().unwrap();
            if !answers.exit_failures.is_empty() {
                return Err(answers.exit_failures.remove(0));
            }
        }
        let _ = self.events.send(Event::Exit(request.into_inner())).await;
        Ok(Response::new(ReportMainProcessExitResponse {}))
    }

    async fn finalize_main_process_exit(
        &self,
        _: Request<FinalizeMainProcessExitRequest>,
    ) -> Result<Response<FinalizeMainProcessExitResponse>, Status> {
        let _ = self.events.send(Event::Finalized).await;
        Ok(Response::new(FinalizeMainProcessExitResponse {}))
    }

    async fn push_sandbox_logs(
        &self,
        request: Request<Streaming<PushSandboxLogsRequest>>,
    ) -> Result<Response<PushSandboxLogsResponse>, Status> {
        let mut inbound = request.into_inner();
        while let Some(batch) = inbound.message().await? {
            let _ = self.events.send(Event::Logs(batch.logs)).await;
        }
        Ok(Response::new(PushSandboxLogsResponse {}))
    }
}
