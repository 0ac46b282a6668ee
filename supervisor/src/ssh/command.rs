//! One channel's command: its streams, its signals and its end.

use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use nix::sys::signal::Signal;
use russh::server::{Handle, Msg};
use russh::{ChannelWriteHalf, Sig};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{mpsc, watch};

use super::flow::Inbox;
use super::{READ_SIZE, Shared};
use crate::environment::login_shell as shell_path;
use crate::isolate::sandbox::{PIPE_SIZE, TerminalSpec};
use crate::isolate::{Exit, Process, Program, SpawnSpec, Stdio, TerminalSize};
use crate::terminal::Master;

/// How long output may be silent after the command has ended while something still holds it open: a
/// daemon that the command left behind (OpenShell contract: 2 s).
const DRAIN_SILENCE: Duration = Duration::from_secs(2);

/// Exit code when no command could be started at all; what `ssh` itself uses for its own failures.
const NOT_STARTED: u32 = 255;

/// The extended data type of standard error (RFC 4254 section 5.2).
const STANDARD_ERROR: u32 = 1;

/// Everything a channel's command needs.
pub(super) struct Spawned {
    pub(super) shared: Arc<Shared>,
    pub(super) program: Program,
    pub(super) environment: Vec<Vec<u8>>,
    pub(super) terminal: Option<TerminalSpec>,
    pub(super) inbox: Arc<Inbox>,
    pub(super) write: ChannelWriteHalf<Msg>,
    pub(super) session: Handle,
}

/// What a client asks of a running command.
pub(super) struct Controls {
    pub(super) signals: mpsc::Receiver<i32>,
    pub(super) size: watch::Receiver<TerminalSize>,
}

/// The agent's login shell, for a shell request. Named with a dash, which is how a shell knows.
pub(super) fn login_shell() -> Program {
    Program::Command(vec![shell_path().into(), b"-l".to_vec()])
}

/// A command line, run by a login shell as the contract has it.
pub(super) fn shell_line(line: &[u8]) -> Program {
    let option = if shell_path().ends_with("bash") { "-lc" } else { "-c" };
    Program::Command(vec![shell_path().into(), option.into(), line.to_vec()])
}

/// Runs a channel's command to its end. When the channel closes first, the command's whole process
/// tree ends.
pub(super) async fn run(spawned: Spawned, controls: Controls) {
    let Spawned { shared, program, environment, terminal, inbox, write, session } = spawned;
    let spec = SpawnSpec { program, environment, directory: shared.directory.clone(), terminal };
    let work = async {
        match shared.sandbox.spawn(spec).await {
            Ok((process, stdio)) => serve(process, stdio, &inbox, &write, controls).await,
            Err(error) => {
                tracing::warn!(%error, "a command could not be started");
                let text = format!("postern: {error}\r\n");
                write.extended_data_bytes(STANDARD_ERROR, text).await.ok()?;
                Some(Exit::Code(NOT_STARTED as i32))
            }
        }
    };
    // Leaving early drops the process, and that ends its tree.
    let exit = tokio::select! {
        exit = work => exit,
        () = inbox.closed() => None,
    };
    // Both fail when the client left meanwhile.
    let _ = match exit {
        Some(exit) => finish(exit, &write, &session).await,
        // Without an exit to tell, a close without one says that something broke.
        None => write.close().await,
    };
    inbox.close();
}

/// Tells the client how the command ended: end of file, exit, close, in this order.
async fn finish(
    exit: Exit,
    write: &ChannelWriteHalf<Msg>,
    session: &Handle,
) -> Result<(), russh::Error> {
    write.eof().await?;
    match exit {
        Exit::Code(code) => write.exit_status(code as u32).await?,
        Exit::Signal(number) => {
            let name = signal_name(number);
            let text = format!("ended by signal {number}");
            session
                .exit_signal_request(write.id(), name, false, text, "en".to_owned())
                .await
                .map_err(|()| russh::Error::SendError)?;
        }
    }
    write.close().await
}

/// Moves bytes until the command has ended and its output is delivered; `None` when the client or
/// the sandbox is gone.
async fn serve(
    mut process: Process,
    stdio: Stdio,
    inbox: &Inbox,
    write: &ChannelWriteHalf<Msg>,
    mut controls: Controls,
) -> Option<Exit> {
    let (ended, watch_end) = watch::channel(false);
    let ends = (watch_end.clone(), watch_end);
    type Pump<'a> = std::pin::Pin<Box<dyn Future<Output = ()> + Send + 'a>>;
    let (input, output, terminal): (Pump<'_>, Pump<'_>, Option<Master>) = match stdio {
        Stdio::Pipes { input, output, error } => {
            let both = async move {
                let output = pump(output, write, None, ends.0);
                let error = pump(error, write, Some(STANDARD_ERROR), ends.1);
                tokio::join!(output, error);
            };
            (Box::pin(feed(input, inbox)), Box::pin(both), None)
        }
        Stdio::Terminal(master) => {
            let output = pump(master.clone(), write, None, ends.0);
            let input = feed_terminal(master.clone(), inbox);
            (Box::pin(input), Box::pin(output), Some(master))
        }
    };
    tokio::pin!(input, output);
    let (mut input_open, mut output_open) = (true, true);
    let exit = loop {
        tokio::select! {
            exit = process.wait() => break exit?,
            () = &mut input, if input_open => input_open = false,
            () = &mut output, if output_open => output_open = false,
            Some(signal) = controls.signals.recv() => {
                // Fails only when the sandbox is gone, which ends the wait above.
                let _ = process.signal(signal).await;
            }
            Ok(()) = controls.size.changed() => {
                let size = *controls.size.borrow_and_update();
                if let Some(Err(error)) = terminal.as_ref().map(|master| master.resize(size)) {
                    tracing::debug!(%error, "a terminal could not be resized");
                }
            }
        }
    };
    // The pumps hold a receiver each, or are done.
    let _ = ended.send(true);
    if output_open {
        output.await;
    }
    Some(exit)
}

/// Copies the client's bytes to the command's standard input, then closes it.
async fn feed(mut input: tokio::net::unix::pipe::Sender, inbox: &Inbox) {
    while let Some(bytes) = inbox.next().await {
        if input.write_all(&bytes).await.is_err() {
            // The command reads no more; what the client goes on sending has no use.
            inbox.discard();
            return;
        }
    }
}

/// Copies the client's bytes to the terminal; at their end, ends the input as a user would.
async fn feed_terminal(mut master: Master, inbox: &Inbox) {
    while let Some(bytes) = inbox.next().await {
        if master.write_all(&bytes).await.is_err() {
            inbox.discard();
            return;
        }
    }
    if let Some(end) = master.end_of_input() {
        let _ = master.write_all(&[end]).await;
    }
}

/// Copies one stream of the command to the client, at the client's pace: nothing is read while the
/// client's window is closed.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    write: &ChannelWriteHalf<Msg>,
    kind: Option<u32>,
    mut ended: watch::Receiver<bool>,
) {
    let mut buffer = BytesMut::new();
    // What the command itself wrote before it ended is at most one full pipe.
    let mut left_after_end = PIPE_SIZE as usize;
    loop {
        buffer.reserve(READ_SIZE);
        let is_over = *ended.borrow_and_update();
        let read = if is_over {
            if left_after_end == 0 {
                return;
            }
            tokio::time::timeout(DRAIN_SILENCE, from.read_buf(&mut buffer)).await
        } else {
            tokio::select! {
                biased;
                read = from.read_buf(&mut buffer) => Ok(read),
                _ = ended.changed() => continue,
            }
        };
        let count = match read {
            Ok(Ok(count)) if count > 0 => count,
            _ => return,
        };
        if is_over {
            left_after_end = left_after_end.saturating_sub(count);
        }
        let bytes = buffer.split().freeze();
        let sent = match kind {
            None => write.data_bytes(bytes).await,
            Some(kind) => write.extended_data_bytes(kind, bytes).await,
        };
        if sent.is_err() {
            return;
        }
    }
}

/// The number of a signal that a client named.
pub(super) fn signal_number(signal: &Sig) -> Option<i32> {
    let known = match signal {
        Sig::ABRT => Signal::SIGABRT,
        Sig::ALRM => Signal::SIGALRM,
        Sig::FPE => Signal::SIGFPE,
        Sig::HUP => Signal::SIGHUP,
        Sig::ILL => Signal::SIGILL,
        Sig::INT => Signal::SIGINT,
        Sig::KILL => Signal::SIGKILL,
        Sig::PIPE => Signal::SIGPIPE,
        Sig::QUIT => Signal::SIGQUIT,
        Sig::SEGV => Signal::SIGSEGV,
        Sig::TERM => Signal::SIGTERM,
        Sig::USR1 => Signal::SIGUSR1,
        Sig::Custom(name) => format!("SIG{name}").parse().ok()?,
    };
    Some(known as i32)
}

/// The name of a signal in an exit report: RFC 4254 section 6.10 where it has one, else the
/// system's name without its prefix, which is what clients show.
fn signal_name(number: i32) -> Sig {
    let Ok(signal) = Signal::try_from(number) else {
        return Sig::Custom(number.to_string());
    };
    match signal {
        Signal::SIGABRT => Sig::ABRT,
        Signal::SIGALRM => Sig::ALRM,
        Signal::SIGFPE => Sig::FPE,
        Signal::SIGHUP => Sig::HUP,
        Signal::SIGILL => Sig::ILL,
        Signal::SIGINT => Sig::INT,
        Signal::SIGKILL => Sig::KILL,
        Signal::SIGPIPE => Sig::PIPE,
        Signal::SIGQUIT => Sig::QUIT,
        Signal::SIGSEGV => Sig::SEGV,
        Signal::SIGTERM => Sig::TERM,
        Signal::SIGUSR1 => Sig::USR1,
        other => Sig::Custom(other.as_str().trim_start_matches("SIG").to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_go_both_ways() {
        for number in [1, 2, 3, 6, 9, 10, 12, 13, 15, 18, 31] {
            assert_eq!(signal_number(&signal_name(number)), Some(number));
        }
        assert_eq!(signal_number(&Sig::Custom("NONSENSE".to_owned())), None);
    }
}
