//! One SSH connection.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use russh::client::{self, DisconnectReason, Handle, Msg};
use russh::keys::{HashAlg, PublicKeyOrCertificate};
use russh::{Channel, Disconnect};
use tokio::io::{AsyncRead, AsyncWrite};
use tonic::Code;

use super::SshError;
use super::exec::{ExecChannel, ExecSpec};
use crate::splice::RelayFailed;

/// Bytes a command may send ahead of us per channel.
pub const WINDOW: u32 = 1024 * 1024;

/// Largest packet we take: RFC 4253's minimum, which every server honours.
pub const PACKET_MAX: u32 = 32 * 1024;

/// Packets buffered per channel before its connection stalls: one window's worth.
pub const CHANNEL_BUFFER: usize = (WINDOW / PACKET_MAX) as usize;

/// How to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// User name (OpenShell contract: `sandbox`).
    pub user: String,
    /// Expected host key, `SHA256:…` as OpenSSH prints it; `None` accepts any, because the relay
    /// already leads to the right sandbox.
    pub host_key: Option<String>,
    /// Silence after which a keepalive is sent.
    pub keepalive: Duration,
    /// Unanswered keepalives that end the connection.
    pub keepalive_max: usize,
    /// Most time for key exchange and authentication together.
    pub connect_timeout: Duration,
    /// Most time for the server to open a channel. A healthy one needs a round trip.
    pub open_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            user: "sandbox".to_owned(),
            host_key: None,
            keepalive: Duration::from_secs(15),
            keepalive_max: 4,
            connect_timeout: Duration::from_secs(10),
            open_timeout: Duration::from_secs(10),
        }
    }
}

/// Why a connection ended, once it has.
#[derive(Debug, Clone)]
pub(super) struct Cause {
    pub(super) code: Code,
    pub(super) reason: String,
}

/// What the connection's task leaves for others to see.
#[derive(Debug, Default)]
pub(super) struct Seen {
    shown_key: Option<String>,
    pub(super) cause: Option<Cause>,
}

pub(super) type SharedSeen = Arc<Mutex<Seen>>;

struct Events {
    expected: Option<String>,
    seen: SharedSeen,
}

impl client::Handler for Events {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        shown: &PublicKeyOrCertificate,
    ) -> Result<bool, russh::Error> {
        let PublicKeyOrCertificate::PublicKey { key, .. } = shown else {
            // No certificate authority is known, so a certificate proves nothing.
            return Ok(false);
        };
        let shown = key.fingerprint(HashAlg::Sha256).to_string();
        let matches = self.expected.as_ref().is_none_or(|expected| *expected == shown);
        self.seen.lock().shown_key = Some(shown);
        Ok(matches)
    }

    async fn disconnected(
        &mut self,
        reason: DisconnectReason<russh::Error>,
    ) -> Result<(), russh::Error> {
        let (cause, result) = match reason {
            DisconnectReason::ReceivedDisconnect(info) => {
                let reason = format!("server said: {}", info.message);
                (Cause { code: Code::Unavailable, reason }, Ok(()))
            }
            DisconnectReason::Error(error) => (cause_of(&error), Err(error)),
        };
        self.seen.lock().cause = Some(cause);
        result
    }
}

fn cause_of(error: &russh::Error) -> Cause {
    if let russh::Error::IO(io) = error
        && let Some(failed) = io.get_ref().and_then(|inner| inner.downcast_ref::<RelayFailed>())
    {
        return Cause { code: failed.code, reason: failed.reason.clone() };
    }
    Cause { code: Code::Unavailable, reason: error.to_string() }
}

/// One authenticated SSH connection; clones share it. Ends when the last clone and the last
/// channel are dropped.
#[derive(Clone)]
pub struct SshClient {
    handle: Arc<Handle<Events>>,
    seen: SharedSeen,
    open_timeout: Duration,
}

impl SshClient {
    /// Speaks SSH over `io` and authenticates by method `none`.
    ///
    /// # Errors
    /// [`SshError`]; within [`Options::connect_timeout`]. Cancel safe: dropping the future ends
    /// the connection.
    pub async fn connect<T>(io: T, options: &Options) -> Result<Self, SshError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let seen = SharedSeen::default();
        let handshake = Self::handshake(io, options, &seen);
        let handle =
            tokio::time::timeout(options.connect_timeout, handshake).await.map_err(|_| {
                SshError::Timeout { what: "ssh handshake", after: options.connect_timeout }
            })??;
        Ok(Self { handle: Arc::new(handle), seen, open_timeout: options.open_timeout })
    }

    async fn handshake<T>(
        io: T,
        options: &Options,
        seen: &SharedSeen,
    ) -> Result<Handle<Events>, SshError>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let config = client::Config {
            window_size: WINDOW,
            maximum_packet_size: PACKET_MAX,
            channel_buffer_size: CHANNEL_BUFFER,
            keepalive_interval: Some(options.keepalive),
            keepalive_max: options.keepalive_max,
            ..client::Config::default()
        };
        let events = Events { expected: options.host_key.clone(), seen: Arc::clone(seen) };
        let mut handle = match client::connect_stream(Arc::new(config), io, events).await {
            Ok(handle) => handle,
            Err(source) => return Err(handshake_failed(source, options, seen)),
        };
        match handle.authenticate_none(options.user.as_str()).await {
            Ok(result) if result.success() => Ok(handle),
            Ok(_) => Err(SshError::AuthRefused { user: options.user.clone() }),
            Err(source) => Err(handshake_failed(source, options, seen)),
        }
    }

    /// Starts a command.
    ///
    /// Returns as soon as the channel is open and the request is on its way; a refusal shows up
    /// as the first event.
    ///
    /// # Errors
    /// When no channel was opened ([`SshError::is_before_start`]) or the connection is gone.
    pub async fn exec(&self, spec: &ExecSpec) -> Result<ExecChannel, SshError> {
        let opened = tokio::time::timeout(self.open_timeout, self.handle.channel_open_session());
        let channel: Channel<Msg> = match opened.await {
            Ok(Ok(channel)) => channel,
            Ok(Err(source)) => return Err(SshError::ChannelOpen { source }),
            Err(_) => {
                return Err(SshError::Timeout {
                    what: "opening an ssh channel",
                    after: self.open_timeout,
                });
            }
        };
        ExecChannel::start(channel, spec, Arc::clone(&self.seen)).await
    }

    /// Whether the connection has ended.
    pub fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    /// The server's host key, `SHA256:…`.
    pub fn host_key(&self) -> Option<String> {
        self.seen.lock().shown_key.clone()
    }

    /// Ends the connection in good order; commands on it are lost.
    pub async fn disconnect(&self) {
        let _ = self.handle.disconnect(Disconnect::ByApplication, "", "").await;
    }
}

fn handshake_failed(source: russh::Error, options: &Options, seen: &SharedSeen) -> SshError {
    let seen = seen.lock();
    if let (russh::Error::UnknownKey, Some(expected)) = (&source, &options.host_key) {
        return SshError::HostKey {
            expected: expected.clone(),
            shown: seen.shown_key.clone().unwrap_or_else(|| "a certificate".to_owned()),
        };
    }
    let cause = seen.cause.clone().unwrap_or_else(|| cause_of(&source));
    if cause.code == Code::Unavailable {
        SshError::Handshake { source }
    } else {
        SshError::Lost { code: cause.code, reason: cause.reason }
    }
}

impl fmt::Debug for SshClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SshClient").field("closed", &self.is_closed()).finish_non_exhaustive()
    }
}
