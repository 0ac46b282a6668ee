//! One SSH client: who it may be (anybody), its channels and their requests.

use std::collections::HashMap;
use std::sync::Arc;

use russh::server::{Auth, ChannelOpenHandle, Handler, Msg, Session};
use russh::{Channel, ChannelId, ChannelOpenFailure, ChannelWriteHalf, Pty, Sig};
use tokio::sync::{mpsc, watch};

use super::command::{self, Controls, Spawned};
use super::flow::{self, Inbox};
use super::{Shared, forward};
use crate::environment::ClientVariables;
use crate::isolate::{Program, TerminalSize, sandbox::TerminalSpec};

/// Channels of one connection at the same time. A shared OpenSSH connection has ten sessions by
/// default; a browser behind a forwarded port opens some dozens.
const MAX_CHANNELS: usize = 256;

/// Signals that wait for a command that is just starting.
const QUEUED_SIGNALS: usize = 16;

/// Longest name of a terminal type, in bytes; the longest known is under 32.
const MAX_TERMINAL_NAME: usize = 64;

/// Terminal type when a client names none, and for commands without a terminal.
const NO_TERMINAL: &str = "dumb";

/// The state of one client.
pub(super) struct Connection {
    shared: Arc<Shared>,
    flow: flow::Connection,
    channels: HashMap<ChannelId, State>,
}

struct State {
    inbox: Arc<Inbox>,
    /// Present until the channel's command starts.
    waiting: Option<Waiting>,
    signals: Option<mpsc::Sender<i32>>,
    size: Option<watch::Sender<TerminalSize>>,
}

struct Waiting {
    write: ChannelWriteHalf<Msg>,
    variables: ClientVariables,
    terminal: Option<(String, TerminalSpec)>,
}

impl Connection {
    pub(super) fn new(shared: Arc<Shared>, flow: flow::Connection) -> Self {
        Self { shared, flow, channels: HashMap::new() }
    }

    /// Makes room for a channel; false when there are too many.
    fn admit(&mut self) -> bool {
        // Forwarded connections that could not be made or have ended leave their entry behind.
        self.channels.retain(|_, state| !state.inbox.is_closed());
        self.channels.len() < MAX_CHANNELS
    }

    fn waiting(&mut self, channel: ChannelId) -> Option<&mut Waiting> {
        self.channels.get_mut(&channel)?.waiting.as_mut()
    }

    /// Starts a channel's command; false when the channel already has one.
    fn start(&mut self, channel: ChannelId, program: Program, session: &Session) -> bool {
        let Some(state) = self.channels.get_mut(&channel) else {
            return false;
        };
        let Some(waiting) = state.waiting.take() else {
            return false;
        };
        let (name, terminal) = match waiting.terminal {
            Some((name, terminal)) => (name, Some(terminal)),
            None => (NO_TERMINAL.to_owned(), None),
        };
        let (signals, signal_receiver) = mpsc::channel(QUEUED_SIGNALS);
        let initial = terminal.as_ref().map(|spec| spec.size).unwrap_or_default();
        let (size, size_receiver) = watch::channel(initial);
        state.signals = Some(signals);
        state.size = Some(size);
        let spawned = Spawned {
            shared: Arc::clone(&self.shared),
            program,
            environment: self.shared.environment.with(&name, &waiting.variables),
            terminal,
            inbox: Arc::clone(&state.inbox),
            write: waiting.write,
            session: session.handle(),
        };
        let controls = Controls { signals: signal_receiver, size: size_receiver };
        tokio::spawn(command::run(spawned, controls));
        true
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        for state in self.channels.values() {
            state.inbox.close();
        }
    }
}

/// Answers a channel request.
fn answer(session: &mut Session, channel: ChannelId, done: bool) -> Result<(), russh::Error> {
    if done { session.channel_success(channel) } else { session.channel_failure(channel) }
}

impl Handler for Connection {
    type Error = russh::Error;

    async fn auth_none(&mut self, _user: &str) -> Result<Auth, Self::Error> {
        Ok(Auth::Accept)
    }

    async fn auth_publickey(
        &mut self,
        _user: &str,
        _key: russh::server::VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        channel: Channel<Msg>,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if !self.admit() {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        let id = channel.id();
        // The library's own queue is closed here; bytes come through `data` into the inbox.
        let (_, write) = channel.split();
        let state = State {
            inbox: Inbox::new(self.flow.clone()),
            waiting: Some(Waiting { write, variables: ClientVariables::default(), terminal: None }),
            signals: None,
            size: None,
        };
        self.channels.insert(id, state);
        reply.accept().await;
        Ok(())
    }

    async fn channel_open_direct_tcpip(
        &mut self,
        channel: Channel<Msg>,
        host: &str,
        port: u32,
        _originator: &str,
        _originator_port: u32,
        reply: ChannelOpenHandle,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let Some(address) = forward::loopback(host, port) else {
            tracing::info!(
                host,
                port,
                "a forward to a destination outside the sandbox was refused"
            );
            reply.reject(ChannelOpenFailure::AdministrativelyProhibited).await;
            return Ok(());
        };
        if !self.admit() {
            reply.reject(ChannelOpenFailure::ResourceShortage).await;
            return Ok(());
        }
        let id = channel.id();
        let (_, write) = channel.split();
        let inbox = Inbox::new(self.flow.clone());
        let state = State { inbox: Arc::clone(&inbox), waiting: None, signals: None, size: None };
        self.channels.insert(id, state);
        let shared = Arc::clone(&self.shared);
        tokio::spawn(forward::run(shared, address, inbox, write, reply));
        Ok(())
    }

    async fn data(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(state) = self.channels.get(&channel) {
            state.inbox.push(data);
        }
        Ok(())
    }

    fn adjust_window(&mut self, channel: ChannelId, granted: u32) -> u32 {
        match self.channels.get(&channel) {
            Some(state) => self.flow.next_window(&state.inbox, granted),
            None => granted,
        }
    }

    async fn channel_eof(
        &mut self,
        channel: ChannelId,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(state) = self.channels.get(&channel) {
            state.inbox.end();
        }
        Ok(())
    }

    async fn channel_close(
        &mut self,
        channel: ChannelId,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        if let Some(state) = self.channels.remove(&channel) {
            state.inbox.close();
        }
        Ok(())
    }

    async fn pty_request(
        &mut self,
        channel: ChannelId,
        term: &str,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        modes: &[(Pty, u32)],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let done = match self.waiting(channel) {
            Some(waiting) if term.len() <= MAX_TERMINAL_NAME && !term.contains('\0') => {
                let size = TerminalSize { columns, rows, width, height };
                let modes = modes.iter().map(|(mode, value)| (*mode as u8, *value));
                let name = if term.is_empty() { NO_TERMINAL } else { term };
                waiting.terminal =
                    Some((name.to_owned(), TerminalSpec { size, modes: modes.collect() }));
                true
            }
            _ => false,
        };
        answer(session, channel, done)
    }

    async fn env_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        value: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let done = self.waiting(channel).is_some_and(|waiting| waiting.variables.set(name, value));
        answer(session, channel, done)
    }

    async fn shell_request(
        &mut self,
        channel: ChannelId,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let done = self.start(channel, command::login_shell(), session);
        answer(session, channel, done)
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        line: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let done = self.start(channel, command::shell_line(line), session);
        answer(session, channel, done)
    }

    async fn subsystem_request(
        &mut self,
        channel: ChannelId,
        name: &str,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let done = name == "sftp" && self.start(channel, Program::FileTransfer, session);
        answer(session, channel, done)
    }

    async fn window_change_request(
        &mut self,
        channel: ChannelId,
        columns: u32,
        rows: u32,
        width: u32,
        height: u32,
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        let size = TerminalSize { columns, rows, width, height };
        let done = self
            .channels
            .get(&channel)
            .and_then(|state| state.size.as_ref())
            .is_some_and(|current| current.send(size).is_ok());
        answer(session, channel, done)
    }

    async fn signal(
        &mut self,
        channel: ChannelId,
        signal: Sig,
        _session: &mut Session,
    ) -> Result<(), Self::Error> {
        let signals = self.channels.get(&channel).and_then(|state| state.signals.as_ref());
        if let (Some(signals), Some(number)) = (signals, command::signal_number(&signal)) {
            // A client that sends signals faster than they can be delivered loses some of them, as
            // it would on one machine: pending signals of one kind are not counted there either.
            let _ = signals.try_send(number);
        }
        Ok(())
    }
}
