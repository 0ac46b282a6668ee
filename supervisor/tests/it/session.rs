//! Sessions, relays, tokens, logs and reports with a scripted gateway.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use postern_proto::v1::gateway_message::Payload as ToSupervisor;
use postern_proto::v1::supervisor_message::Payload as FromSupervisor;
use postern_proto::v1::{GatewayHeartbeat, RelayClose};
use tonic::{Code, Status};

use crate::gateway::{Event, MockGateway};
use crate::harness::{Builder, DEADLINE, Supervisor, can_isolate};

fn builder(gateway: &MockGateway) -> Builder {
    Builder::new().env("OPENSHELL_ENDPOINT", gateway.endpoint()).env("OPENSHELL_SANDBOX_ID", "s-1")
}

/// Runs something that blocks without holding up the gateway.
async fn blocking<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(run).await.unwrap()
}

/// A server on the sandbox's loopback, by a line of Python that gets the listener as `l`.
async fn server(supervisor: Supervisor, port: u16, script: &'static str) -> Supervisor {
    blocking(move || {
        supervisor.ready();
        let program = format!(
            "import socket, struct, time\nl = socket.socket()\nl.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\nl.bind((\"127.0.0.1\", {port}))\nl.listen()\nopen(\"ready{port}\", \"w\")\n{script}"
        );
        std::fs::write(supervisor.state.join("home/server.py"), program).unwrap();
        supervisor.run(&format!(
            "setsid python3 server.py > server.log 2>&1 & for i in $(seq 400); do test -e ready{port} && exit 0; sleep 0.02; done; cat server.log; exit 1"
        ));
        supervisor
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_begins_with_hello_and_acceptance() {
    if !can_isolate() {
        return;
    }
    let mut gateway = MockGateway::start().await;
    let supervisor = builder(&gateway).env("OPENSHELL_SANDBOX_TOKEN", "token-1").start();
    // Anything but an acceptance first is the end of the session.
    let first = gateway.session().await;
    assert_eq!(first.authorization, "Bearer token-1");
    assert_eq!(first.hello.sandbox_id, "s-1");
    let postern = first.hello.postern.clone().unwrap();
    assert!(postern.ssh_host_key_fingerprint.starts_with("SHA256:"));
    first.say(ToSupervisor::Heartbeat(GatewayHeartbeat {})).await;
    let mut second = gateway.accepted().await;
    assert_eq!(second.hello.instance_id, first.hello.instance_id);
    second.open("c-1", None).await;
    let result = second.result().await;
    assert!(result.success, "{result:?}");
    let mut relay = gateway.relay().await;
    assert_eq!(relay.channel, "c-1");
    let banner = relay.read().await.unwrap().unwrap();
    assert!(banner.starts_with(b"SSH-2.0-"), "{banner:?}");
    assert!(!supervisor.log().contains("token-1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn half_close_travels_both_ways() {
    if !can_isolate() {
        return;
    }
    let mut gateway = MockGateway::start().await;
    let supervisor = builder(&gateway).start();
    let mut session = gateway.accepted().await;
    let _supervisor = server(
        supervisor,
        7001,
        "c, _ = l.accept()\ndata = b''\nwhile True:\n    b = c.recv(65536)\n    if not b: break\n    data += b\nc.sendall(b'got %d' % len(data))\nc.close()\n",
    )
    .await;
    session.open_tcp("c-1", "localhost", 7001).await;
    assert!(session.result().await.success);
    let mut relay = gateway.relay().await;
    for _ in 0..10 {
        relay.write(&[b'x'; 10_000]).await;
    }
    // The end of what we send is the end of file of the server, which then answers.
    let (closed, _) = tokio::sync::mpsc::channel(1);
    relay.send = closed;
    assert_eq!(relay.read_to_end().await.unwrap(), b"got 100000");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_relay_that_the_gateway_closes_is_reset_at_its_target() {
    if !can_isolate() {
        return;
    }
    let mut gateway = MockGateway::start().await;
    let supervisor = builder(&gateway).start();
    let mut session = gateway.accepted().await;
    let supervisor = server(
        supervisor,
        7002,
        "c, _ = l.accept()\nc.sendall(b'hello')\ntry:\n    b = c.recv(10)\n    open('end', 'w').write('eof' if not b else 'data')\nexcept ConnectionResetError:\n    open('end', 'w').write('reset')\n",
    )
    .await;
    session.open_tcp("c-1", "127.0.0.1", 7002).await;
    assert!(session.result().await.success);
    let mut relay = gateway.relay().await;
    assert_eq!(relay.read().await.unwrap().unwrap(), b"hello");
    let close = RelayClose {
        channel_id: "c-1".to_owned(),
        reason: "revoked".to_owned(),
        ..RelayClose::default()
    };
    session.say(ToSupervisor::RelayClose(close)).await;
    // Ends either way: a tonic server takes a cancelled request stream for an ended one.
    let _ = relay.read_to_end().await;
    let end = blocking(move || {
        supervisor.run("for i in $(seq 400); do test -s end && break; sleep 0.02; done; cat end")
    })
    .await;
    assert_eq!(end, "reset");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_fails_is_told() {
    if !can_isolate() {
        return;
    }
    let mut gateway = MockGateway::start().await;
    let supervisor = builder(&gateway).start();
    let mut session = gateway.accepted().await;
    let _supervisor = server(
        supervisor,
        7003,
        "c, _ = l.accept()\nc.recv(10)\nc.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))\nc.close()\n",
    )
    .await;
    session.open_tcp("c-1", "127.0.0.1", 7003).await;
    assert!(session.result().await.success);
    let mut relay = gateway.relay().await;
    relay.write(b"now").await;
    let _ = relay.read_to_end().await;
    let close = session
        .next(|payload| match payload {
            FromSupervisor::RelayClose(close) => Some(close),
            _ => None,
        })
        .await
        .unwrap();
    assert_eq!(close.channel_id, "c-1");
    assert_eq!(close.code, Code::Unavailable as i32);

    for (channel, host, port, code) in [
        ("c-2", "127.0.0.1", 1, Code::Unavailable),
        ("c-3", "10.0.0.1", 80, Code::PermissionDenied),
        ("c-4", "localhost", 70_000, Code::PermissionDenied),
    ] {
        session.open_tcp(channel, host, port).await;
        let result = session.result().await;
        assert_eq!((result.channel_id.as_str(), result.success), (channel, false));
        assert_eq!(result.code, code as i32, "{result:?}");
        assert!(!result.error.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn relays_outlive_their_session() {
    if !can_isolate() {
        return;
    }
    let mut gateway = MockGateway::start().await;
    let _supervisor = builder(&gateway).start();
    let mut first = gateway.accepted().await;
    first.open("c-1", None).await;
    assert!(first.result().await.success);
    let mut relay = gateway.relay().await;
    relay.read().await.unwrap().unwrap();
    drop(first);
    let mut second = gateway.accepted().await;
    relay.write(b"SSH-2.0-test\r\n").await;
    assert!(relay.read().await.unwrap().is_some());
    // What is open is not opened again; what is not, is.
    second.open("c-1", None).await;
    second.open("c-2", None).await;
    assert_eq!(second.result().await.channel_id, "c-2");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_gateway_is_left_and_heartbeats_go_out() {
    if !can_isolate() {
        return;
    }
    let mut gateway = MockGateway::start().await;
    let _supervisor = builder(&gateway).start();
    let mut session = gateway.session().await;
    session.accept(Duration::from_millis(300)).await;
    let accepted = Instant::now();
    let mut beats = 0;
    while session
        .next(|payload| matches!(payload, FromSupervisor::Heartbeat(_)).then_some(()))
        .await
        .is_some()
    {
        beats += 1;
    }
    let left = accepted.elapsed();
    assert!((2..=4).contains(&beats), "{beats}");
    assert!(left >= Duration::from_millis(900) && left < Duration::from_secs(5), "{left:?}");
    gateway.accepted().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_accepted_session_starts_the_backoff_over() {
    if !can_isolate() {
        return;
    }
    let mut gateway = MockGateway::start().await;
    let _supervisor = builder(&gateway).start();
    gateway.accepted().await;
    let start = Instant::now();
    // Without starting over, the waits would be anything up to 1, 2, 4, 8, 16 and 30 s.
    for _ in 0..6 {
        gateway.accepted().await;
    }
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
}

fn token(name: &str, seconds: u64) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let claims = format!(r#"{{"sub":"{name}","exp":{}}}"#, now + seconds);
    format!("e30.{}.sig", URL_SAFE_NO_PAD.encode(claims))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_renewed_kept_and_proves_the_session() {
    if !can_isolate() {
        return;
    }
    let mut gateway = MockGateway::start().await;
    let (old, new) = (token("old", 3), token("new", 3600));
    gateway.answers.lock().unwrap().refreshed.clone_from(&new);
    let start = builder(&gateway);
    let file = start.state().join("token");
    std::fs::create_dir_all(start.state()).unwrap();
    std::fs::write(&file, &old).unwrap();
    let supervisor = start.env("OPENSHELL_SANDBOX_TOKEN_FILE", file.to_str().unwrap()).start();
    let mut session = gateway.accepted().await;
    assert_eq!(session.authorization, format!("Bearer {old}"));
    let used = gateway
        .next("refresh", |event| match event {
            Event::Refresh { authorization } => Some(authorization),
            _ => None,
        })
        .await;
    assert_eq!(used, format!("Bearer {old}"));
    let proof = session
        .next(|payload| match payload {
            FromSupervisor::Reauthenticate(proof) => Some(proof),
            _ => None,
        })
        .await
        .unwrap();
    assert_eq!(proof.token, new);
    assert_eq!(std::fs::read_to_string(&file).unwrap(), new);
    drop(session);
    assert_eq!(gateway.session().await.authorization, format!("Bearer {new}"));
    for secret in [&old, &new] {
        assert!(!supervisor.log().contains(secret.as_str()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_the_main_process_is_reported_until_it_is_heard() {
    if !can_isolate() {
        return;
    }
    let mut gateway = MockGateway::start().await;
    gateway.answers.lock().unwrap().exit_failures =
        vec![Status::unavailable("not yet"), Status::aborted("not yet")];
    let mut supervisor = builder(&gateway)
        .args(&["bash", "-c", "echo first line; echo second line >&2; exit 9"])
        .start();
    let session = gateway.accepted().await;
    let (mut lines, mut exit, mut finalized) = (Vec::new(), None, false);
    let wait = async {
        while !finalized {
            gateway.next("the end", Some).await.apply(&mut lines, &mut exit, &mut finalized);
        }
    };
    tokio::time::timeout(DEADLINE, wait).await.unwrap();
    let exit = exit.unwrap();
    assert_eq!((exit.sandbox_id.as_str(), exit.exit_code), ("s-1", 9));
    assert_eq!(exit.instance_id, session.hello.instance_id);
    let main: Vec<_> = lines.iter().filter(|line| line.target == "main").collect();
    let mut texts: Vec<_> = main.iter().map(|line| line.message.as_str()).collect();
    texts.sort_unstable();
    assert_eq!(texts, ["first line", "second line"]);
    assert!(main.iter().all(|line| line.sandbox_id == "s-1"
        && line.timestamp_ms > 0
        && line.event_time.is_some()));
    assert!(lines.iter().any(|line| line.target.starts_with("postern_supervisor")));
    assert_eq!(blocking(move || supervisor.wait()).await, 9);
}

impl Event {
    fn apply(
        self,
        lines: &mut Vec<postern_proto::v1::SandboxLogLine>,
        exit: &mut Option<postern_proto::v1::ReportMainProcessExitRequest>,
        finalized: &mut bool,
    ) {
        match self {
            Event::Logs(more) => lines.extend(more),
            Event::Exit(request) => *exit = Some(request),
            Event::Finalized => *finalized = true,
            _ => {}
        }
    }
}
