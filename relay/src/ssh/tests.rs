use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use russh::keys::ssh_key::private::Ed25519Keypair;
use russh::keys::{HashAlg, PrivateKey};
use russh::server::{self, Auth, ChannelOpenHandle, Msg, Session};
use russh::{Channel, ChannelId, Sig};
use tokio::io::DuplexStream;
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::Code;

use super::*;

/// What the scripted servers were asked, and how they are to behave.
#[derive(Default)]
struct Script {
    log: Mutex<Vec<String>>,
    changed: Notify,
    refuse_auth: AtomicBool,
    refuse_channels: AtomicBool,
}

impl Script {
    fn note(&self, line: impl Into<String>) {
        self.log.lock().push(line.into());
        self.changed.notify_waiters();
    }

    async fn wait_for(&self, line: &str) {
        loop {
            let changed = self.changed.notified();
            if self.log.lock().iter().any(|seen| seen == line) {
                return;
            }
            changed.await;
        }
    }
}

/// A server whose commands are the names of what it does.
struct Scripted {
    script: Arc<Script>,
    channels: HashMap<ChannelId, Channel<Msg>>,
}

impl server::Handler for Scripted {
    type Error = russh::Error;

    async fn auth_none(&mut self, user: &str) -> Result<Auth, russh::Error> {
        self.script.note(format!("user {user}"));
        Ok(if self.script.refuse_auth.load(Ordering::SeqCst) {
            Auth::reject()
        } else {
            Auth::Accept
        })
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        if !self.script.refuse_channels.load(Ordering::SeqCst) {
            self.channels.insert(channel.id(), channel);
            reply.accept().await;
        }
        Ok(())
    }

    async fn pty_request(
        &mut self,
        _: ChannelId,
        term: &str,
        cols: u32,
        rows: u32,
        _: u32,
        _: u32,
        _: &[(russh::Pty, u32)],
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        self.script.note(format!("pty {term} {cols}x{rows}"));
        Ok(())
    }

    async fn env_request(
        &mut self,
        _: ChannelId,
        name: &str,
        value: &str,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        self.script.note(format!("env {name}={value}"));
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
        self.script.note(format!("resize {cols}x{rows}"));
        Ok(())
    }

    async fn signal(
        &mut self,
        _: ChannelId,
        signal: Sig,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        self.script.note(format!("signal {signal:?}"));
        Ok(())
    }

    async fn data(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        session.data(channel, Bytes::copy_from_slice(data))
    }

    async fn channel_eof(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        self.script.note("eof");
        session.data(channel, Bytes::from_static(b"after eof"))?;
        session.exit_status_request(channel, 0)?;
        session.eof(channel)?;
        session.close(channel)
    }

    async fn channel_close(
        &mut self,
        channel: ChannelId,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        self.channels.remove(&channel);
        self.script.note("close");
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        command: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        let command = String::from_utf8_lossy(command).into_owned();
        self.script.note(format!("exec {command}"));
        if command == "refuse" {
            return session.channel_failure(channel);
        }
        session.channel_success(channel)?;
        match command.as_str() {
            "both" => {
                session.data(channel, Bytes::from_static(b"out"))?;
                session.extended_data(channel, 1, Bytes::from_static(b"err"))?;
                session.eof(channel)?;
                session.exit_status_request(channel, 3)?;
                session.close(channel)
            }
            "killed" => {
                session.exit_signal_request(channel, Sig::KILL, false, "", "")?;
                session.close(channel)
            }
            "usr2" => {
                let signal = Sig::Custom("USR2".to_owned());
                session.exit_signal_request(channel, signal, false, "", "")?;
                session.close(channel)
            }
            "vanish" => session.close(channel),
            "trail" => {
                session.exit_status_request(channel, 0)?;
                session.data(channel, Bytes::from_static(b"late"))
            }
            "die" => Err(russh::Error::Disconnect),
            "flood" => {
                let channel = self.channels.remove(&channel).expect("open");
                let script = Arc::clone(&self.script);
                tokio::spawn(async move {
                    for _ in 0..256 {
                        if channel.data_bytes(vec![1; 32 * 1024]).await.is_err() {
                            return;
                        }
                    }
                    script.note("flooded");
                    let _ = channel.exit_status(0).await;
                    let _ = channel.close().await;
                });
                Ok(())
            }
            // "cat", "silent": nothing until something comes in.
            _ => Ok(()),
        }
    }
}

fn host_key() -> PrivateKey {
    PrivateKey::from(Ed25519Keypair::from_seed(&[7; 32]))
}

fn fingerprint() -> String {
    host_key().public_key().fingerprint(HashAlg::Sha256).to_string()
}

/// Starts a server on one end of a pipe.
fn serve(script: &Arc<Script>) -> DuplexStream {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let config = server::Config {
        keys: vec![host_key()],
        auth_rejection_time: Duration::ZERO,
        ..server::Config::default()
    };
    let handler = Scripted { script: Arc::clone(script), channels: HashMap::new() };
    tokio::spawn(async move {
        let running = server::run_stream(Arc::new(config), far, handler).await?;
        running.await
    });
    near
}

async fn client(script: &Arc<Script>) -> SshClient {
    SshClient::connect(serve(script), &Options::default()).await.unwrap()
}

fn command(line: &str) -> ExecSpec {
    ExecSpec { command: line.to_owned(), ..ExecSpec::default() }
}

/// Runs to the end: stdout, stderr, how it ended.
async fn collect(events: &mut ExecEvents) -> (Vec<u8>, Vec<u8>, Result<Exit, SshError>) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match events.next().await {
            Ok(Some(ExecEvent::Stdout(bytes))) => out.extend_from_slice(&bytes),
            Ok(Some(ExecEvent::Stderr(bytes))) => err.extend_from_slice(&bytes),
            Ok(Some(ExecEvent::Exit(exit))) => {
                assert!(matches!(events.next().await, Ok(None)), "nothing follows the exit");
                return (out, err, Ok(exit));
            }
            Ok(None) => panic!("ended without exit or error"),
            Err(error) => {
                assert!(matches!(events.next().await, Ok(None)), "nothing follows an error");
                return (out, err, Err(error));
            }
        }
    }
}

#[tokio::test]
async fn output_and_exit_code_come_in_order() {
    let script = Arc::default();
    let client = client(&script).await;
    let mut channel = client.exec(&command("both")).await.unwrap();
    let (out, err, exit) = collect(&mut channel.events).await;
    assert_eq!((out.as_slice(), err.as_slice()), (b"out".as_slice(), b"err".as_slice()));
    assert_eq!(exit.unwrap(), Exit { code: 3, signal: None });
    assert_eq!(script.log.lock()[0], "user sandbox");
}

#[tokio::test]
async fn stdin_ends_with_eof_only_and_output_after_it_arrives() {
    let script: Arc<Script> = Arc::default();
    let client = client(&script).await;
    let ExecChannel { mut stdin, mut events, control: _control } =
        client.exec(&command("cat")).await.unwrap();
    stdin.write(Bytes::from_static(b"hello ")).await.unwrap();
    stdin.finish().await.unwrap();
    let (out, _, exit) = collect(&mut events).await;
    assert_eq!(out, b"hello after eof");
    assert_eq!(exit.unwrap().code, 0);
    let log = script.log.lock();
    let eof = log.iter().position(|line| line == "eof");
    let close = log.iter().position(|line| line == "close");
    assert!(eof.is_some() && close.is_none_or(|close| Some(close) > eof), "{log:?}");
}

#[tokio::test]
async fn death_by_signal_is_128_and_its_number() {
    let script = Arc::default();
    let client = client(&script).await;
    for (line, code, name) in [("killed", 137, "KILL"), ("usr2", 140, "USR2")] {
        let mut channel = client.exec(&command(line)).await.unwrap();
        let (_, _, exit) = collect(&mut channel.events).await;
        assert_eq!(exit.unwrap(), Exit { code, signal: Some(name.to_owned()) });
    }
}

#[tokio::test]
async fn an_end_without_exit_status_is_an_error() {
    let script = Arc::default();
    let client = client(&script).await;
    for line in ["vanish", "die"] {
        let mut channel = client.exec(&command(line)).await.unwrap();
        let (_, _, exit) = collect(&mut channel.events).await;
        let error = exit.unwrap_err();
        assert!(matches!(error, SshError::Lost { .. }), "{error:?}");
        assert_eq!(error.code(), Code::Unavailable);
        assert!(!error.is_before_start());
    }
}

#[tokio::test]
async fn a_refused_command_is_an_error() {
    let script = Arc::default();
    let client = client(&script).await;
    let mut channel = client.exec(&command("refuse")).await.unwrap();
    let (_, _, exit) = collect(&mut channel.events).await;
    assert!(matches!(exit.unwrap_err(), SshError::Refused));
}

#[tokio::test(start_paused = true)]
async fn trailing_output_is_waited_for_but_not_for_ever() {
    let script = Arc::default();
    let client = client(&script).await;
    let mut channel = client.exec(&command("trail")).await.unwrap();
    let started = Instant::now();
    let (out, _, exit) = collect(&mut channel.events).await;
    assert_eq!(out, b"late");
    assert_eq!(exit.unwrap().code, 0);
    assert_eq!(started.elapsed(), TRAILING_WAIT, "the server never closes the channel");
}

#[tokio::test]
async fn terminal_environment_resize_and_signals_reach_the_server() {
    let script: Arc<Script> = Arc::default();
    let client = client(&script).await;
    let spec = ExecSpec {
        command: "cat".to_owned(),
        env: vec![("KEY".to_owned(), "value".to_owned())],
        pty: Some(Pty::xterm(80, 24)),
    };
    let channel = client.exec(&spec).await.unwrap();
    channel.control.resize(100, 30).await.unwrap();
    channel.control.signal("TERM").await.unwrap();
    channel.control.signal("USR2").await.unwrap();
    for bad in ["", "term", "SIG TERM", "A\nB", &"X".repeat(17)] {
        let error = channel.control.signal(bad).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{bad:?}");
    }
    script.wait_for("signal Custom(\"USR2\")").await;
    assert_eq!(
        script.log.lock()[1..],
        [
            "pty xterm-256color 80x24",
            "env KEY=value",
            "exec cat",
            "resize 100x30",
            "signal TERM",
            "signal Custom(\"USR2\")"
        ]
    );
}

#[tokio::test]
async fn cancel_and_drop_close_the_channel_of_a_silent_command() {
    let script: Arc<Script> = Arc::default();
    let client = client(&script).await;
    let mut channel = client.exec(&command("silent")).await.unwrap();
    channel.control.cancel();
    let (_, _, exit) = collect(&mut channel.events).await;
    assert!(matches!(exit, Err(SshError::Cancelled)));
    script.wait_for("close").await;

    let script: Arc<Script> = Arc::default();
    let client = self::client(&script).await;
    let channel = client.exec(&command("silent")).await.unwrap();
    script.wait_for("exec silent").await;
    drop(channel);
    script.wait_for("close").await;
    assert!(!client.is_closed(), "only the channel was closed");
}

#[tokio::test]
async fn the_host_key_is_checked_when_one_is_expected() {
    let script = Arc::default();
    let expecting = |key: String| Options { host_key: Some(key), ..Options::default() };
    let good = SshClient::connect(serve(&script), &expecting(fingerprint())).await.unwrap();
    assert_eq!(good.host_key(), Some(fingerprint()));
    let wrong = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".to_owned();
    match SshClient::connect(serve(&script), &expecting(wrong.clone())).await.unwrap_err() {
        SshError::HostKey { expected, shown } => {
            assert_eq!((expected, shown), (wrong, fingerprint()));
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn refused_authentication_says_so() {
    let script: Arc<Script> = Arc::default();
    script.refuse_auth.store(true, Ordering::SeqCst);
    let error = SshClient::connect(serve(&script), &Options::default()).await.unwrap_err();
    assert!(matches!(error, SshError::AuthRefused { .. }), "{error:?}");
    assert_eq!(error.code(), Code::PermissionDenied);
}

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_given_up_in_time() {
    let (near, _far) = tokio::io::duplex(1024);
    let error = SshClient::connect(near, &Options::default()).await.unwrap_err();
    assert!(matches!(error, SshError::Timeout { .. }), "{error:?}");
}

#[tokio::test]
async fn a_stalled_reader_stops_the_command_and_holds_a_bounded_amount() {
    let script: Arc<Script> = Arc::default();
    let client = client(&script).await;
    let mut channel = client.exec(&command("flood")).await.unwrap();
    script.wait_for("exec flood").await;
    // Everything that can run has run; 8 MiB do not fit between server and reader.
    for _ in 0..10_000 {
        tokio::task::yield_now().await;
    }
    assert!(!script.log.lock().contains(&"flooded".to_owned()));
    let (out, _, exit) = collect(&mut channel.events).await;
    assert_eq!((out.len(), exit.unwrap().code), (8 * 1024 * 1024, 0));
}

// The pool.

#[derive(Clone)]
struct Opener {
    script: Arc<Script>,
    opened: Arc<AtomicUsize>,
    failing: Arc<AtomicBool>,
}

#[derive(Debug, thiserror::Error)]
#[error("no relay")]
struct NoRelay;

impl tower_service::Service<()> for Opener {
    type Response = DuplexStream;
    type Error = NoRelay;
    type Future = Pin<Box<dyn Future<Output = Result<DuplexStream, NoRelay>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), NoRelay>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, (): ()) -> Self::Future {
        self.opened.fetch_add(1, Ordering::SeqCst);
        let result = if self.failing.load(Ordering::SeqCst) {
            Err(NoRelay)
        } else {
            Ok(serve(&self.script))
        };
        Box::pin(async move {
            tokio::task::yield_now().await;
            result
        })
    }
}

fn pool(config: PoolConfig) -> (SshPool<Opener>, Opener) {
    let opener = Opener { script: Arc::default(), opened: Arc::default(), failing: Arc::default() };
    (SshPool::new(opener.clone(), config), opener)
}

async fn exec(pool: &SshPool<Opener>, line: &str) -> Result<ExecChannel, PoolError<NoRelay>> {
    pool.exec("a", (), &Options::default(), &command(line)).await
}

#[tokio::test]
async fn one_connection_serves_one_command_after_another() {
    let (pool, opener) = pool(PoolConfig::default());
    for _ in 0..5 {
        let mut channel = exec(&pool, "both").await.unwrap();
        let (_, _, exit) = collect(&mut channel.events).await;
        assert_eq!(exit.unwrap().code, 3);
    }
    assert_eq!(opener.opened.load(Ordering::SeqCst), 1);
    assert_eq!(pool.stats(), (1, 0));
    // Another sandbox has its own.
    pool.exec("b", (), &Options::default(), &command("both")).await.unwrap();
    assert_eq!(opener.opened.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn with_one_connection_allowed_concurrent_commands_share_it() {
    let (pool, opener) = pool(PoolConfig { max_connections: 1, ..PoolConfig::default() });
    let starts: Vec<_> = (0..16)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { exec(&pool, "silent").await.unwrap() })
        })
        .collect();
    let mut channels = Vec::new();
    for start in starts {
        channels.push(start.await.unwrap());
    }
    assert_eq!(opener.opened.load(Ordering::SeqCst), 1, "single flight");
    assert_eq!(pool.stats(), (1, 16));
    channels.clear();
    assert_eq!(pool.stats(), (1, 0));
}

#[tokio::test]
async fn commands_get_their_own_connection_while_there_may_be_more() {
    let (pool, opener) = pool(PoolConfig { max_connections: 3, ..PoolConfig::default() });
    let mut channels = Vec::new();
    for _ in 0..7 {
        channels.push(exec(&pool, "silent").await.unwrap());
    }
    assert_eq!(opener.opened.load(Ordering::SeqCst), 3);
    assert_eq!(pool.stats(), (3, 7));
}

#[tokio::test]
async fn a_full_pool_refuses_and_recovers() {
    let config = PoolConfig { max_connections: 1, max_channels: 2, ..PoolConfig::default() };
    let (pool, _) = pool(config);
    let first = exec(&pool, "silent").await.unwrap();
    let _second = exec(&pool, "silent").await.unwrap();
    let error = exec(&pool, "silent").await.unwrap_err();
    assert_eq!(error.code(|_| Code::Unknown), Code::ResourceExhausted);
    assert!(error.to_string().starts_with("2 commands"), "{error}");
    drop(first);
    exec(&pool, "silent").await.unwrap();
}

#[tokio::test]
async fn a_dead_connection_is_replaced() {
    let (pool, opener) = pool(PoolConfig::default());
    let mut channel = exec(&pool, "die").await.unwrap();
    let (_, _, exit) = collect(&mut channel.events).await;
    assert!(exit.is_err());
    drop(channel);
    let mut channel = exec(&pool, "both").await.unwrap();
    let (_, _, exit) = collect(&mut channel.events).await;
    assert_eq!(exit.unwrap().code, 3);
    assert_eq!(opener.opened.load(Ordering::SeqCst), 2);
    assert_eq!(pool.stats().0, 1);
}

#[tokio::test]
async fn a_connection_that_opens_no_channel_is_replaced_once() {
    let (pool, opener) = pool(PoolConfig::default());
    let mut channel = exec(&pool, "both").await.unwrap();
    collect(&mut channel.events).await.2.unwrap();
    drop(channel);
    opener.script.refuse_channels.store(true, Ordering::SeqCst);
    let error = exec(&pool, "both").await.unwrap_err();
    assert!(matches!(error, PoolError::Ssh(SshError::ChannelOpen { .. })), "{error:?}");
    assert_eq!(opener.opened.load(Ordering::SeqCst), 2, "the pooled one and one fresh");
}

#[tokio::test]
async fn the_openers_error_is_kept_unless_a_connection_can_be_shared() {
    let (pool, opener) = pool(PoolConfig::default());
    opener.failing.store(true, Ordering::SeqCst);
    assert!(matches!(exec(&pool, "both").await, Err(PoolError::Open(NoRelay))));
    assert_eq!(pool.stats(), (0, 0));
    assert!(pool.is_empty());
    opener.failing.store(false, Ordering::SeqCst);
    let _busy = exec(&pool, "silent").await.unwrap();
    opener.failing.store(true, Ordering::SeqCst);
    let _shared = exec(&pool, "silent").await.unwrap();
    assert_eq!(pool.stats(), (1, 2));
}

#[tokio::test]
async fn an_abandoned_opening_leaves_nothing() {
    let (pool, _) = pool(PoolConfig::default());
    let mut starting = Box::pin(exec(&pool, "both"));
    assert!(futures_util::poll!(starting.as_mut()).is_pending());
    drop(starting);
    assert!(pool.is_empty());
    exec(&pool, "both").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn idle_connections_are_closed_and_busy_ones_are_not() {
    let (pool, opener) = pool(PoolConfig::default());
    let busy = exec(&pool, "silent").await.unwrap();
    let mut done = exec(&pool, "both").await.unwrap();
    collect(&mut done.events).await.2.unwrap();
    drop(done);
    assert_eq!(pool.stats(), (2, 1));
    tokio::time::advance(Duration::from_secs(59)).await;
    assert_eq!(pool.reap(Instant::now()), 0);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(pool.reap(Instant::now()), 1);
    assert_eq!(pool.stats(), (1, 1));
    drop(busy);
    // The background reaper does the same.
    let reaper = tokio::spawn(pool.reaper());
    tokio::time::sleep(Duration::from_secs(80)).await;
    assert_eq!(pool.stats(), (0, 0));
    drop((pool, opener));
    reaper.await.unwrap();
}

#[tokio::test]
async fn eviction_ends_running_commands() {
    let (pool, _) = pool(PoolConfig::default());
    let mut running = exec(&pool, "silent").await.unwrap();
    pool.evict("a");
    pool.evict("unknown");
    let (_, _, exit) = collect(&mut running.events).await;
    assert!(matches!(exit, Err(SshError::Lost { .. })));
    drop(running);
    assert_eq!(pool.stats(), (0, 0));
}
