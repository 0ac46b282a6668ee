//! Exec calls over a real SSH server that runs real commands, behind the scripted supervisor.

use std::collections::HashMap;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use postern::config::LayerConfigs;
use postern_proto::v1::exec_sandbox_event::Payload as Event;
use postern_proto::v1::exec_sandbox_input::Payload as Input;
use postern_proto::v1::{
    ExecSandboxEvent, ExecSandboxInput, ExecSandboxRequest, ExecSandboxWindowResize,
    StopSandboxRequest,
};
use postern_relay::bridge::{Bridge, Joined, relay_init};
use postern_relay::transport::{Connection, RELAY_STREAM_PATH};
use russh::keys::PrivateKey;
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::server::{self, Auth, ChannelOpenHandle, Msg, Session};
use russh::{Channel, ChannelId, ChannelMsg, ChannelWriteHalf};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::gateway::{Gateway, Options, soon, until};
use super::scripted::Scripted;

/// A sandbox whose relays lead to a small SSH server.
#[derive(Clone, Default)]
struct Inside {
    resizes: Arc<Mutex<Vec<(u32, u32)>>>,
    running: Arc<Mutex<usize>>,
    relays: Arc<Mutex<usize>>,
}

impl Inside {
    /// Serves relays of this session until it ends.
    fn serve(&self, mut session: Scripted) {
        let inside = self.clone();
        tokio::spawn(async move {
            // All of it: a session whose sending half is dropped has ended.
            let session = &mut session;
            loop {
                let message = session.from_gateway.message().await;
                let Ok(Some(message)) = message else { return };
                use postern_proto::v1::gateway_message::Payload;
                if let Some(Payload::RelayOpen(open)) = message.payload {
                    let (inside, connection) = (inside.clone(), session.connection.clone());
                    tokio::spawn(async move { inside.relay(connection, &open.channel_id).await });
                }
            }
        });
    }

    async fn relay(self, connection: Connection, channel_id: &str) {
        *self.relays.lock() += 1;
        let (near, far) = tokio::io::duplex(64 * 1024);
        let config = server::Config {
            keys: vec![PrivateKey::from(Ed25519Keypair::from_seed(&[7; 32]))],
            auth_rejection_time: Duration::ZERO,
            ..server::Config::default()
        };
        let handler = Server { inside: self, channels: HashMap::new() };
        tokio::spawn(async move {
            if let Ok(session) = server::run_stream(Arc::new(config), far, handler).await {
                let _ = session.await;
            }
        });
        let (body, bridge) = Bridge::new(Joined(near), relay_init(channel_id));
        if let Ok(response) = connection.open_stream(RELAY_STREAM_PATH, body).await {
            bridge.run(response).await.settle().await;
        }
    }
}

struct Server {
    inside: Inside,
    channels: HashMap<ChannelId, Channel<Msg>>,
}

impl server::Handler for Server {
    type Error = russh::Error;

    async fn auth_none(&mut self, user: &str) -> Result<Auth, russh::Error> {
        Ok(if user == "sandbox" { Auth::Accept } else { Auth::reject() })
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        self.channels.insert(channel.id(), channel);
        reply.accept().await;
        Ok(())
    }

    async fn pty_request(
        &mut self,
        _: ChannelId,
        _: &str,
        cols: u32,
        rows: u32,
        _: u32,
        _: u32,
        _: &[(russh::Pty, u32)],
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        self.inside.resizes.lock().push((cols, rows));
        Ok(())
    }

    async fn window_change_request(
        &mut self,
        _: ChannelId,
        cols: u32,
        rows: u32,
        _: u32,
        _: u32,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        self.inside.resizes.lock().push((cols, rows));
        Ok(())
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.channel_success(id)?;
        let channel = self.channels.remove(&id).expect("open");
        let command = String::from_utf8(command.to_vec()).unwrap();
        tokio::spawn(run(self.inside.clone(), channel, command));
        Ok(())
    }
}

/// Runs one command, and kills it when its channel is closed.
async fn run(inside: Inside, channel: Channel<Msg>, command: String) {
    if command.contains("vanish") {
        let _ = channel.close().await;
        return;
    }
    *inside.running.lock() += 1;
    let mut child = tokio::process::Command::new("/bin/sh")
        .args(["-c", &command])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (mut stdin, mut stdout, mut stderr) =
        (child.stdin.take(), child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let (mut read, write) = channel.split();
    let input = async {
        loop {
            match read.wait().await {
                Some(ChannelMsg::Data { data }) => {
                    if let Some(stdin) = &mut stdin {
                        let _ = stdin.write_all(&data).await;
                    }
                }
                Some(ChannelMsg::Eof) => stdin = None,
                Some(ChannelMsg::Close) | None => return,
                Some(_) => {}
            }
        }
    };
    let output = async {
        tokio::join!(copy_out(&mut stdout, &write, None), copy_out(&mut stderr, &write, Some(1)));
        let status = child.wait().await.unwrap();
        let _ = write.eof().await;
        let _ = write.exit_status(status.code().unwrap_or(255) as u32).await;
        let _ = write.close().await;
    };
    tokio::select! {
        () = input => {}
        () = output => {}
    }
    drop(child);
    *inside.running.lock() -= 1;
}

/// Sends what a pipe says as data, or as extended data of this type.
async fn copy_out(
    pipe: &mut (impl AsyncRead + Unpin),
    write: &ChannelWriteHalf<Msg>,
    extended: Option<u32>,
) {
    let mut buffer = vec![0; 32 * 1024];
    while let Ok(count) = pipe.read(&mut buffer).await
        && count > 0
    {
        let data = buffer[..count].to_vec();
        let sent = match extended {
            None => write.data_bytes(data).await,
            Some(kind) => write.extended_data_bytes(kind, data).await,
        };
        if sent.is_err() {
            return;
        }
    }
}

/// A gateway with one sandbox whose commands run.
async fn started(options: Options) -> (Gateway, Inside, String) {
    let gateway = Gateway::with(options).await;
    let id = gateway.sandbox("one").await;
    let inside = Inside::default();
    inside.serve(Scripted::connect(&gateway, &id).await);
    (gateway, inside, id)
}

fn command(words: &[&str]) -> ExecSandboxRequest {
    ExecSandboxRequest {
        sandbox: "one".to_owned(),
        command: words.iter().map(|word| (*word).to_owned()).collect(),
        ..ExecSandboxRequest::default()
    }
}

fn shell(line: &str) -> ExecSandboxRequest {
    command(&["/bin/sh", "-c", line])
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Output {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    exits: Vec<i32>,
}

async fn collect(mut events: Streaming<ExecSandboxEvent>) -> Result<Output, Status> {
    let mut output = Output::default();
    while let Some(event) = soon("an event", events.message()).await? {
        assert!(output.exits.is_empty(), "something follows the exit: {event:?}");
        match event.payload.expect("a payload") {
            Event::Stdout(out) => output.stdout.extend_from_slice(&out.data),
            Event::Stderr(err) => output.stderr.extend_from_slice(&err.data),
            Event::Exit(exit) => output.exits.push(exit.exit_code),
        }
    }
    Ok(output)
}

async fn exec(gateway: &Gateway, request: ExecSandboxRequest) -> Result<Output, Status> {
    let events = soon("the exec", gateway.user().await.exec_sandbox(request)).await?;
    collect(events.into_inner()).await
}

#[tokio::test]
async fn output_exit_code_directory_environment_and_stdin() {
    let (gateway, _, _) = started(Options::default()).await;
    let output = exec(&gateway, shell("echo out; echo err >&2; exit 7")).await.unwrap();
    assert_eq!(output, Output { stdout: b"out\n".into(), stderr: b"err\n".into(), exits: vec![7] });
    let mut request = shell("pwd; printf %s \"$GREETING\"");
    request.workdir = "/tmp".to_owned();
    request.environment = HashMap::from([("GREETING".to_owned(), "it's $HOME".to_owned())]);
    assert_eq!(exec(&gateway, request).await.unwrap().stdout, b"/tmp\nit's $HOME");
    let mut request = command(&["wc", "-c"]);
    request.stdin = vec![b'x'; 1_000_000];
    assert_eq!(exec(&gateway, request).await.unwrap().stdout, b"1000000\n");
    // No stdin is an end of file at once.
    assert_eq!(exec(&gateway, command(&["cat"])).await.unwrap().exits, [0]);
}

#[tokio::test]
async fn commands_share_warm_connections() {
    let (gateway, inside, _) = started(Options::default()).await;
    for _ in 0..5 {
        assert_eq!(exec(&gateway, command(&["true"])).await.unwrap().exits, [0]);
    }
    assert_eq!(*inside.relays.lock(), 1);
}

#[tokio::test]
async fn megabytes_of_output_arrive_whole_and_before_the_exit() {
    let (gateway, _, _) = started(Options::default()).await;
    let output = exec(&gateway, shell("head -c 8000000 /dev/zero; echo end >&2")).await.unwrap();
    assert_eq!((output.stdout.len(), output.exits), (8_000_000, vec![0]));
}

#[tokio::test]
async fn time_that_runs_out_is_124_and_the_command_is_gone() {
    let (gateway, inside, _) = started(Options::default()).await;
    let mut request = shell("echo before; exec sleep 600");
    request.execution_timeout = Some(prost_types::Duration { seconds: 0, nanos: 500_000_000 });
    let output = exec(&gateway, request).await.unwrap();
    assert_eq!(
        (output.stdout.as_slice(), output.exits.as_slice()),
        (b"before\n".as_slice(), [124].as_slice())
    );
    until("the command is gone", async || *inside.running.lock() == 0).await;
}

#[tokio::test]
async fn a_caller_that_leaves_ends_even_a_silent_command() {
    let (gateway, inside, _) = started(Options::default()).await;
    let events = gateway.user().await.exec_sandbox(command(&["sleep", "600"])).await.unwrap();
    until("the command runs", async || *inside.running.lock() == 1).await;
    drop(events);
    until("the command is gone", async || *inside.running.lock() == 0).await;
}

#[tokio::test]
async fn an_exec_before_the_sandbox_is_ready_waits_and_succeeds() {
    let gateway = Gateway::start().await;
    let id = gateway.sandbox("one").await;
    let mut api = gateway.user().await;
    let early = tokio::spawn(async move { api.exec_sandbox(command(&["echo", "here"])).await });
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!early.is_finished());
    Inside::default().serve(Scripted::connect(&gateway, &id).await);
    let events = soon("the exec", early).await.unwrap().unwrap().into_inner();
    assert_eq!(collect(events).await.unwrap().stdout, b"here\n");
}

#[tokio::test]
async fn an_exec_into_a_sandbox_that_does_not_come_is_unavailable_with_the_budget() {
    let mut values = LayerConfigs::default();
    values.session_wait.exec = Duration::from_secs(1);
    let gateway = Gateway::with(Options { values, ..Options::default() }).await;
    gateway.sandbox("one").await;
    let refused = exec(&gateway, command(&["true"])).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("1 s"), "{}", refused.message());
    let stop = StopSandboxRequest { name: "one".to_owned(), ..StopSandboxRequest::default() };
    gateway.user().await.stop_sandbox(stop).await.unwrap();
    let started = tokio::time::Instant::now();
    assert_eq!(
        exec(&gateway, command(&["true"])).await.unwrap_err().code(),
        Code::FailedPrecondition
    );
    assert!(started.elapsed() < Duration::from_secs(1), "a stopped sandbox is not waited for");
}

#[tokio::test]
async fn a_lost_relay_is_unavailable_and_never_an_exit_code() {
    let (gateway, inside, id) = started(Options::default()).await;
    let events = gateway.user().await.exec_sandbox(shell("echo up; sleep 600")).await.unwrap();
    let mut events = events.into_inner();
    assert!(soon("output", events.message()).await.unwrap().is_some());
    gateway.registry.disconnect(&id, "test", Code::Unavailable);
    let lost = collect(events).await.unwrap_err();
    assert_eq!(lost.code(), Code::Unavailable, "{lost}");
    until("the command is gone", async || *inside.running.lock() == 0).await;
    // A channel that is closed without exit status is no success either.
    inside.serve(Scripted::connect(&gateway, &id).await);
    let vanished = exec(&gateway, command(&["vanish"])).await.unwrap_err();
    assert_eq!(vanished.code(), Code::Unavailable);
}

#[tokio::test]
async fn what_breaks_a_limit_is_told_by_field() {
    let (gateway, inside, _) = started(Options::default()).await;
    let mut reserved = command(&["true"]);
    reserved.environment.insert("OPENSHELL_SANDBOX".to_owned(), "0".to_owned());
    let mut workdir = command(&["true"]);
    workdir.workdir = "a\nb".to_owned();
    let mut stdin = command(&["cat"]);
    stdin.stdin = vec![0; 1024 * 1024 + 1];
    for (request, field) in [
        (command(&[]), "command"),
        (reserved, "environment"),
        (workdir, "workdir"),
        (stdin, "stdin"),
    ] {
        let refused = exec(&gateway, request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().starts_with(field), "{}", refused.message());
    }
    let mut nobody = command(&["true"]);
    nobody.sandbox = "nobody".to_owned();
    assert_eq!(exec(&gateway, nobody).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(*inside.relays.lock(), 0);
}

/// Starts an interactive exec; what is sent goes in, what comes out is read from the stream.
async fn interactive(
    gateway: &Gateway,
    start: ExecSandboxRequest,
) -> (mpsc::Sender<ExecSandboxInput>, Streaming<ExecSandboxEvent>) {
    let (sender, receiver) = mpsc::channel(8);
    sender.send(ExecSandboxInput { payload: Some(Input::Start(start)) }).await.unwrap();
    let mut api = gateway.user().await;
    let events =
        soon("the exec", api.exec_sandbox_interactive(ReceiverStream::new(receiver))).await;
    (sender, events.unwrap().into_inner())
}

fn input(payload: Input) -> ExecSandboxInput {
    ExecSandboxInput { payload: Some(payload) }
}

#[tokio::test]
async fn interactive_input_is_echoed_and_its_end_is_an_end_of_file() {
    let (gateway, _, _) = started(Options::default()).await;
    let (sender, mut events) = interactive(&gateway, shell("cat; echo after")).await;
    sender.send(input(Input::Stdin("hello".into()))).await.unwrap();
    let first = soon("the echo", events.message()).await.unwrap().unwrap();
    assert!(matches!(first.payload, Some(Event::Stdout(out)) if out.data == "hello"));
    drop(sender);
    let rest = collect(events).await.unwrap();
    assert_eq!(
        (rest.stdout.as_slice(), rest.exits.as_slice()),
        (b"after\n".as_slice(), [0].as_slice())
    );
}

#[tokio::test]
async fn a_terminal_has_a_size_and_changes_it() {
    let (gateway, inside, _) = started(Options::default()).await;
    let mut start = command(&["cat"]);
    start.tty = true;
    let (sender, events) = interactive(&gateway, start).await;
    let resize = ExecSandboxWindowResize { cols: 132, rows: 50 };
    sender.send(input(Input::Resize(resize))).await.unwrap();
    until("the size changed", async || *inside.resizes.lock() == [(80, 24), (132, 50)]).await;
    drop(sender);
    assert_eq!(collect(events).await.unwrap().exits, [0]);
}

#[tokio::test]
async fn interactive_faults_end_the_call_and_the_command() {
    let (gateway, inside, _) = started(Options::default()).await;
    let (sender, events) = interactive(&gateway, command(&["cat"])).await;
    sender.send(input(Input::Stdin(vec![0; 1024 * 1024 + 1].into()))).await.unwrap();
    let refused = collect(events).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(refused.message().contains("stdin"), "{}", refused.message());
    until("the command is gone", async || *inside.running.lock() == 0).await;
    let mut api = gateway.user().await;
    for first in [vec![], vec![input(Input::Stdin("x".into()))], vec![ExecSandboxInput::default()]]
    {
        let stream = tokio_stream::iter(first);
        let refused = soon("an answer", api.exec_sandbox_interactive(stream)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
    }
}

#[tokio::test]
async fn twenty_commands_at_once() {
    let (gateway, _, _) = started(Options::default()).await;
    let gateway = Arc::new(gateway);
    let runs: Vec<_> = (0..20)
        .map(|number| {
            let gateway = Arc::clone(&gateway);
            tokio::spawn(async move {
                exec(&gateway, shell(&format!("echo {number}; sleep 0.1"))).await
            })
        })
        .collect();
    for (number, run) in runs.into_iter().enumerate() {
        let output = soon("an exec", run).await.unwrap().unwrap();
        assert_eq!(output.stdout, format!("{number}\n").into_bytes());
    }
}
