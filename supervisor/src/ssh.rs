//! The SSH server of a sandbox, on a Unix socket.
//!
//! Reachable only through relays and, on this machine, by whoever may open the socket (mode 0600 in
//! a directory of mode 0700), so it accepts every client: the gateway has decided already. What it
//! offers is what people do over SSH: commands, shells with and without a terminal, SFTP, and
//! forwarding to ports on the sandbox's own loopback. It refuses remote forwarding, agent and X11
//! forwarding, and every destination that is not loopback.
//!
//! | module | what |
//! |---|---|
//! | `connection` | one client: its channels and their requests |
//! | `command` | one channel's command: streams, signals, exit |
//! | `forward` | one channel's forwarded connection |
//! | `flow` | what a client sent and nobody has read yet; holds clients back |
//! | [`host_key`] | the server's key and its fingerprint |

mod command;
mod connection;
mod flow;
mod forward;
pub(crate) use forward::loopback;
pub mod host_key;

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use russh::MethodKind;
use russh::keys::PrivateKey;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;

use crate::environment::Environment;
use crate::isolate::Sandbox;

/// Bytes a client may have on the way to one channel, announced as the SSH window. One interactive
/// client needs kilobytes; a bulk upload over a network of 1 Gbit/s and 60 ms needs 7.5 MB.
pub const WINDOW: u32 = 8 * 1024 * 1024;

/// Largest packet a client may send, in bytes. OpenSSH sends at most 32 KiB whatever is allowed;
/// our own clients use all of it. Larger than a u16 is more than the SSH library takes.
pub const MAX_PACKET: u32 = 65_535;

/// Bytes read from a command at once: enough for two of OpenSSH's packets.
pub(crate) const READ_SIZE: usize = 64 * 1024;

/// Messages of all channels of one connection that wait to be encrypted, 64 KiB at most each:
/// enough to keep the cipher busy, little enough that an interactive channel waits under 10 ms.
const OUTGOING_MESSAGES: usize = 32;

/// Clients at the same time. The contract allows 20 SSH relays per sandbox beside those of the
/// gateway itself; forwarded connections come as channels of these.
const MAX_CONNECTIONS: usize = 128;

/// How long a client may take until its key exchange begins.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest path that fits a Unix socket address, without the closing NUL.
const MAX_SOCKET_PATH: usize = 107;

/// What every connection of a server shares.
#[derive(Debug)]
pub struct Shared {
    /// Where commands run.
    pub sandbox: Sandbox,
    /// What they see.
    pub environment: Environment,
    /// Where they start.
    pub directory: PathBuf,
}

/// Why the server cannot be offered.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SshError {
    /// The socket cannot be made.
    #[error("the ssh socket {path} cannot be made; choose another place with --ssh-socket-path")]
    Socket {
        /// Where.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The path is longer than the kernel's limit.
    #[error(
        "the ssh socket path {path} has {length} bytes, the system takes {MAX_SOCKET_PATH}; choose a shorter one with --ssh-socket-path"
    )]
    LongPath {
        /// The path.
        path: String,
        /// Its length in bytes.
        length: usize,
    },
    /// The host key cannot be read or written.
    #[error("the ssh host key {path} cannot be used")]
    HostKey {
        /// Where it is kept.
        path: String,
        /// Why not.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A server that listens and has not served anybody yet.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    config: Arc<russh::server::Config>,
    shared: Arc<Shared>,
}

impl Server {
    /// Listens on `path`, replacing a socket that a former supervisor left there.
    ///
    /// # Errors
    /// When the socket cannot be made with the modes it must have.
    pub fn bind(path: &Path, key: PrivateKey, shared: Shared) -> Result<Self, SshError> {
        let length = path.as_os_str().len();
        if length > MAX_SOCKET_PATH {
            return Err(SshError::LongPath { path: path.display().to_string(), length });
        }
        let listener = listen(path)
            .map_err(|source| SshError::Socket { path: path.display().to_string(), source })?;
        Ok(Self { listener, config: Arc::new(config(key)), shared: Arc::new(shared) })
    }

    /// Serves clients until the future is dropped, which also ends all of them.
    pub async fn serve(self) {
        let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut clients = tokio::task::JoinSet::new();
        loop {
            let Ok(permit) = Arc::clone(&permits).acquire_owned().await else {
                return;
            };
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                // Collects what has ended, so that the set stays as small as the permits say.
                Some(_) = clients.join_next() => continue,
            };
            match accepted {
                Ok((stream, _)) => {
                    let (config, shared) = (Arc::clone(&self.config), Arc::clone(&self.shared));
                    clients.spawn(async move {
                        serve_client(config, shared, stream).await;
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "an ssh client could not be accepted");
                    // Out of descriptors, most likely: trying at once would spin.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
}

async fn serve_client(config: Arc<russh::server::Config>, shared: Arc<Shared>, stream: UnixStream) {
    let flow = flow::Connection::default();
    let handler = connection::Connection::new(shared, flow.clone());
    let throttled = flow::Throttled::new(stream, flow);
    let begun = russh::server::run_stream(config, throttled, handler);
    let session = match tokio::time::timeout(HANDSHAKE_TIMEOUT, begun).await {
        Ok(Ok(session)) => session,
        Ok(Err(error)) => return tracing::debug!(%error, "an ssh client did not begin a session"),
        Err(_) => return tracing::debug!("an ssh client was silent for too long"),
    };
    if let Err(error) = session.await {
        tracing::debug!(%error, "an ssh session ended with an error");
    }
}

fn config(key: PrivateKey) -> russh::server::Config {
    russh::server::Config {
        methods: [MethodKind::None, MethodKind::PublicKey][..].into(),
        keys: vec![key],
        window_size: WINDOW,
        maximum_packet_size: MAX_PACKET,
        event_buffer_size: OUTGOING_MESSAGES,
        // A session may be silent for as long as its user likes; a lost relay closes the socket.
        inactivity_timeout: None,
        ..russh::server::Config::default()
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700))?;
    }
    match fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => fs::remove_file(path)?,
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "something that is not a socket is in its place",
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    // The directory keeps others out until the mode is set.
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_is_private_and_replaces_a_stale_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/ssh.sock");
        for _ in 0..2 {
            let listener = listen(&path).unwrap();
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode(&path), 0o600);
            assert_eq!(mode(path.parent().unwrap()), 0o700);
            drop(listener);
        }
    }

    #[tokio::test]
    async fn what_is_not_a_socket_stays() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "precious").unwrap();
        assert!(listen(&path).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }
}
