//! The relay plane, layer by layer.

use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use postern_relay::transport::Connection;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::gateway::{File, GET_USER, Gateway, soon, until};
use super::scripted::{End, Scripted, forward, ssh_init, tcp_init};

type Opening = JoinHandle<Result<End, Status>>;

/// One sandbox of a gateway, and who opens relays to it.
struct Scene {
    gateway: Gateway,
    id: String,
    connection: Connection,
    tokens: Vec<String>,
}

impl Scene {
    /// A gateway with a sandbox, and tokens for `relays` relays.
    async fn set(file: &File, relays: usize) -> Self {
        let gateway = file.start().await;
        let id = gateway.sandbox("one").await;
        let mut tokens = Vec::new();
        while tokens.len() < relays {
            let token = gateway.ssh_token("one").await;
            tokens.extend([token.clone(), token.clone(), token]);
        }
        let connection = gateway.connect(None).await;
        Self { gateway, id, connection, tokens }
    }

    /// Asks for a relay to a port.
    fn open(&mut self) -> Opening {
        let token = self.tokens.pop().expect("enough tokens");
        let (connection, init) =
            (self.connection.clone(), tcp_init("one", &token, "127.0.0.1", 80));
        tokio::spawn(async move { forward(&connection, init).await })
    }

    /// Asks for a relay to the SSH server.
    fn open_ssh(&mut self) -> Opening {
        let token = self.tokens.pop().expect("enough tokens");
        let (connection, init) = (self.connection.clone(), ssh_init("one", &token));
        tokio::spawn(async move { forward(&connection, init).await })
    }

    async fn supervisor(&self) -> Scripted {
        Scripted::connect(&self.gateway, &self.id).await
    }
}

async fn refused(opening: Opening) -> Status {
    soon("a refusal", opening).await.unwrap().map(drop).unwrap_err()
}

async fn opened(opening: Opening, session: &mut Scripted) -> (End, End) {
    let inside = session.serve_one().await;
    (soon("the relay", opening).await.unwrap().unwrap(), inside)
}

/// The same file with a short wait for the session of a sandbox.
fn waiting(file: File, budget: &str) -> File {
    file.table("session_wait", &format!("forward = \"{budget}\"\nssh = \"{budget}\""))
}

#[tokio::test]
async fn relay_caps_bounds_pending_relays() {
    for cap in [1, 3] {
        for others in ["pending = 256", "pending = CAP"] {
            let lines =
                format!("{others}\npending_per_sandbox = CAP").replace("CAP", &cap.to_string());
            let file = File::default().table("relay_caps", &lines);
            let mut scene = Scene::set(&file, cap + 1).await;
            let mut session = scene.supervisor().await;
            let pending: Vec<_> = (0..cap).map(|_| scene.open()).collect();
            let caps = scene.gateway.running.handles().relay.relay_caps.clone().unwrap();
            until("they are pending", async || caps.counts().pending as usize == cap).await;
            let refused = refused(scene.open()).await;
            assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
            assert!(refused.message().contains(&format!("= {cap}")), "{refused}");
            let mut open = Vec::new();
            for opening in pending {
                open.push(opened(opening, &mut session).await);
            }
            drop(open);
            until("every place is back", async || caps.counts().live == 0).await;
        }
    }
}

#[tokio::test]
async fn relay_caps_bounds_ssh_relays_apart() {
    let file = File::default().table("relay_caps", "ssh_per_sandbox = 1");
    let mut scene = Scene::set(&file, 4).await;
    let mut session = scene.supervisor().await;
    let ssh = scene.open_ssh();
    let ssh = opened(ssh, &mut session).await;
    assert_eq!(refused(scene.open_ssh()).await.code(), Code::ResourceExhausted);
    let port = scene.open();
    let _port = opened(port, &mut session).await;
    drop(ssh);
    let caps = scene.gateway.running.handles().relay.relay_caps.clone().unwrap();
    until("the place is back", async || caps.counts().live == 1).await;
    let again = scene.open_ssh();
    let _again = opened(again, &mut session).await;
}

#[tokio::test]
async fn relay_caps_can_be_retuned_while_relays_are_open() {
    let file = File::default().table("relay_caps", "live = 1\nssh_per_sandbox = 1");
    let mut scene = Scene::set(&file, 3).await;
    let mut session = scene.supervisor().await;
    let first = scene.open();
    let (mut outside, mut inside) = opened(first, &mut session).await;
    assert_eq!(refused(scene.open()).await.code(), Code::ResourceExhausted);
    let wider = File::default()
        .table("relay_caps", "live = 2\nssh_per_sandbox = 1")
        .read("/unused")
        .unwrap();
    let caps = scene.gateway.running.handles().relay.relay_caps.clone().unwrap();
    caps.set(&wider.layers.relay_caps.layer());
    let second = scene.open();
    let _second = opened(second, &mut session).await;
    // The first relay has noticed nothing.
    outside.write("still here").await;
    assert_eq!(inside.read().await.unwrap(), "still here");
}

#[tokio::test]
async fn without_relay_caps_nothing_is_capped() {
    // More than the 20 SSH relays and the 32 pending ones that are the defaults.
    let mut scene = Scene::set(&File::default().without("relay", "relay_caps"), 40).await;
    let mut session = scene.supervisor().await;
    let openings: Vec<_> = (0..40).map(|_| scene.open_ssh()).collect();
    let mut open = Vec::new();
    for _ in 0..40 {
        open.push(session.serve_one().await);
    }
    for opening in openings {
        assert!(soon("the relay", opening).await.unwrap().is_ok());
    }
}

#[tokio::test]
async fn session_wait_waits_its_budget() {
    for budget in [150, 450] {
        let file = waiting(File::default(), &format!("{budget}ms"));
        let mut scene = Scene::set(&file, 1).await;
        let started = Instant::now();
        let refused = refused(scene.open()).await;
        assert_eq!(refused.code(), Code::Unavailable, "{refused}");
        assert!(refused.message().contains(&budget.to_string()), "{refused}");
        assert!(started.elapsed() >= Duration::from_millis(budget));
    }
}

#[tokio::test]
async fn session_wait_is_over_when_the_session_comes() {
    let mut scene = Scene::set(&File::default(), 1).await;
    let opening = scene.open();
    // The gateway has the request once it answers one that was sent after it on the same connection.
    assert_eq!(super::gateway::code(&scene.connection, GET_USER).await, Code::Ok);
    assert!(!opening.is_finished());
    let mut session = scene.supervisor().await;
    let _relay = opened(opening, &mut session).await;
}

#[tokio::test]
async fn without_session_wait_there_is_no_wait() {
    let file = File::default().without("relay", "session_wait");
    let mut scene = Scene::set(&file, 2).await;
    let refused = refused(scene.open()).await;
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(!refused.message().contains("15"), "no budget was waited for: {refused}");
    let mut session = scene.supervisor().await;
    let opening = scene.open();
    let _relay = opened(opening, &mut session).await;
}

#[tokio::test]
async fn metrics_counts_openings() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let numbers = recorder.handle();
    // Gateway and test share a thread, so this sees this gateway and no other.
    let _here = metrics::set_default_local_recorder(&recorder);
    let counted = |result: &str| {
        let wanted = format!("result=\"{result}\"}} 1\n");
        let text = numbers.render();
        text.lines().any(|line| {
            line.starts_with("relay_opens_total{") && format!("{line}\n").contains(&wanted)
        })
    };
    let file = File::default().table("relay_caps", "live = 1\nssh_per_sandbox = 1");
    let mut scene = Scene::set(&file, 2).await;
    let mut session = scene.supervisor().await;
    let opening = scene.open();
    let _relay = opened(opening, &mut session).await;
    assert!(counted("ok"), "{}", numbers.render());
    assert_eq!(refused(scene.open()).await.code(), Code::ResourceExhausted);
    assert!(counted("refused"), "{}", numbers.render());

    let mut scene = Scene::set(&file.without("relay", "metrics"), 2).await;
    let mut session = scene.supervisor().await;
    let opening = scene.open();
    let _relay = opened(opening, &mut session).await;
    assert_eq!(refused(scene.open()).await.code(), Code::ResourceExhausted);
    assert!(counted("ok") && counted("refused"), "{}", numbers.render());
}

#[tokio::test]
async fn without_any_layer_relays_work() {
    let mut scene = Scene::set(&File::default().with("relay", &[]), 1).await;
    let mut session = scene.supervisor().await;
    let opening = scene.open();
    let (mut outside, mut inside) = opened(opening, &mut session).await;
    outside.write("ping").await;
    assert_eq!(inside.read().await.unwrap(), "ping");
    inside.write("pong").await;
    assert_eq!(outside.read().await.unwrap(), "pong");
}
