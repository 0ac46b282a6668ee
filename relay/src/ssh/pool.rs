//! Warm SSH connections, per sandbox.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::time::Instant;
use tonic::Code;
use tower_service::Service;

use super::{ExecChannel, ExecSpec, Options, SshClient, SshError};

/// Values of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolConfig {
    /// Connections per sandbox. Each is one relay. A command gets a connection to itself while
    /// there are fewer; further ones share, the least busy first.
    pub max_connections: usize,
    /// Commands at once on one connection.
    pub max_channels: usize,
    /// A connection without a command for so long is closed.
    pub idle_timeout: Duration,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self { max_connections: 4, max_channels: 32, idle_timeout: Duration::from_secs(60) }
    }
}

/// Why the pool gave no channel; `E` is the opener's error.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PoolError<E: std::error::Error + 'static> {
    /// No relay to the sandbox.
    #[error(transparent)]
    Open(E),
    /// SSH over the relay failed.
    #[error(transparent)]
    Ssh(SshError),
    /// Every connection is full.
    #[error("{limit} commands already run in sandbox {sandbox_id}, the most there may be")]
    Full {
        /// The sandbox.
        sandbox_id: Arc<str>,
        /// Connections times channels.
        limit: usize,
    },
}

impl<E: std::error::Error + 'static> PoolError<E> {
    /// gRPC code, given the opener's.
    pub fn code(&self, of_open: impl FnOnce(&E) -> Code) -> Code {
        match self {
            Self::Open(error) => of_open(error),
            Self::Ssh(error) => error.code(),
            Self::Full { .. } => Code::ResourceExhausted,
        }
    }
}

/// A pool of SSH connections, opened by a `tower` service that gives byte streams (the relay
/// plane). Clones share it.
pub struct SshPool<S> {
    shared: Arc<Shared>,
    opener: S,
}

struct Shared {
    config: PoolConfig,
    sandboxes: Mutex<HashMap<Arc<str>, Sandbox>>,
    /// Never reused: a lease may outlive its connection's place in the pool.
    next_id: AtomicU64,
}

#[derive(Default)]
struct Sandbox {
    connections: Vec<Connection>,
    /// Connections being opened.
    opening: usize,
    /// Notified when an opening is over or a place is free.
    changed: Arc<Notify>,
}

struct Connection {
    id: u64,
    client: SshClient,
    channels: usize,
    idle_since: Instant,
}

/// A place on a connection; gives it back when dropped.
struct Lease {
    shared: Arc<Shared>,
    sandbox_id: Arc<str>,
    connection: u64,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut sandboxes = self.shared.sandboxes.lock();
        let Some(sandbox) = sandboxes.get_mut(&self.sandbox_id) else {
            return;
        };
        if let Some(connection) =
            sandbox.connections.iter_mut().find(|connection| connection.id == self.connection)
        {
            connection.channels -= 1;
            connection.idle_since = Instant::now();
            sandbox.changed.notify_waiters();
        }
    }
}

/// An opening that counts while it lasts.
struct Opening<'a> {
    shared: &'a Shared,
    sandbox_id: &'a str,
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        let mut sandboxes = self.shared.sandboxes.lock();
        let Some(sandbox) = sandboxes.get_mut(self.sandbox_id) else {
            return;
        };
        sandbox.opening -= 1;
        sandbox.changed.notify_waiters();
        if sandbox.opening == 0 && sandbox.connections.is_empty() {
            sandboxes.remove(self.sandbox_id);
        }
    }
}

/// What to do for a command.
enum Plan {
    Use(SshClient, Lease),
    Open,
    Wait(tokio::sync::futures::OwnedNotified),
    Full,
}

impl<S> SshPool<S> {
    /// An empty pool.
    pub fn new(opener: S, config: PoolConfig) -> Self {
        Self {
            shared: Arc::new(Shared {
                config,
                sandboxes: Mutex::default(),
                next_id: AtomicU64::new(0),
            }),
            opener,
        }
    }

    /// Forgets a sandbox's connections (stop, delete). Running commands lose theirs.
    pub fn evict(&self, sandbox_id: &str) {
        let gone = {
            let mut sandboxes = self.shared.sandboxes.lock();
            let Some(sandbox) = sandboxes.get_mut(sandbox_id) else {
                return;
            };
            let gone = std::mem::take(&mut sandbox.connections);
            if sandbox.opening == 0 {
                sandboxes.remove(sandbox_id);
            }
            gone
        };
        disconnect_all(gone);
    }

    /// Closes connections that are dead, or without a command since [`PoolConfig::idle_timeout`]
    /// before `now`. Says how many.
    pub fn reap(&self, now: Instant) -> usize {
        let gone = self.shared.reap(now);
        let count = gone.len();
        disconnect_all(gone);
        count
    }

    /// Reaps until every clone of the pool is dropped. Spawn it once.
    pub fn reaper(&self) -> impl Future<Output = ()> + Send + use<S> {
        let shared = Arc::downgrade(&self.shared);
        let every = (self.shared.config.idle_timeout / 4).max(Duration::from_millis(100));
        async move {
            loop {
                tokio::time::sleep(every).await;
                let Some(shared) = shared.upgrade() else {
                    return;
                };
                disconnect_all(shared.reap(Instant::now()));
            }
        }
    }

    /// Connections and commands now.
    pub fn stats(&self) -> (usize, usize) {
        let sandboxes = self.shared.sandboxes.lock();
        let connections = sandboxes.values().flat_map(|sandbox| &sandbox.connections);
        connections
            .fold((0, 0), |(all, channels), connection| (all + 1, channels + connection.channels))
    }

    /// Nothing is kept for any sandbox.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.shared.sandboxes.lock().is_empty()
    }

    /// Runs a command in a sandbox, over a warm connection when there is one.
    ///
    /// `request` is what the opener needs for a new relay. A connection that turns out to be dead
    /// before the command was started is replaced, once.
    ///
    /// # Errors
    /// [`PoolError`]. Cancel safe: nothing leaks, and a command that was started is cancelled.
    pub async fn exec<R>(
        &self,
        sandbox_id: &str,
        request: R,
        options: &Options,
        spec: &ExecSpec,
    ) -> Result<ExecChannel, PoolError<S::Error>>
    where
        S: Service<R> + Clone,
        S::Response: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S::Error: std::error::Error + 'static,
        R: Clone,
    {
        let sandbox_id: Arc<str> = sandbox_id.into();
        let mut replaced = false;
        loop {
            let (client, lease, fresh) = self.lease(&sandbox_id, request.clone(), options).await?;
            match client.exec(spec).await {
                Ok(channel) => {
                    channel.hold(lease);
                    return Ok(channel);
                }
                Err(error) => {
                    self.shared.forget(&sandbox_id, lease.connection);
                    let retry = !fresh && !replaced && error.is_before_start();
                    if !retry {
                        return Err(PoolError::Ssh(error));
                    }
                    tracing::debug!(%sandbox_id, %error, "pooled ssh connection was dead");
                    replaced = true;
                }
            }
        }
    }

    async fn lease<R>(
        &self,
        sandbox_id: &Arc<str>,
        request: R,
        options: &Options,
    ) -> Result<(SshClient, Lease, bool), PoolError<S::Error>>
    where
        S: Service<R> + Clone,
        S::Response: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S::Error: std::error::Error + 'static,
    {
        loop {
            match self.shared.plan(sandbox_id) {
                Plan::Use(client, lease) => return Ok((client, lease, false)),
                Plan::Wait(changed) => changed.await,
                Plan::Full => {
                    let config = &self.shared.config;
                    return Err(PoolError::Full {
                        sandbox_id: Arc::clone(sandbox_id),
                        limit: config.max_connections * config.max_channels,
                    });
                }
                Plan::Open => {
                    let opening = Opening { shared: &self.shared, sandbox_id };
                    let opened = self.open(request, options).await;
                    let outcome = match opened {
                        Ok(client) => {
                            let lease = self.shared.insert(sandbox_id, client.clone());
                            Ok((client, lease, true))
                        }
                        // A busy connection is better than none.
                        Err(error) => match self.shared.share(sandbox_id) {
                            Some((client, lease)) => Ok((client, lease, false)),
                            None => Err(error),
                        },
                    };
                    drop(opening);
                    return outcome;
                }
            }
        }
    }

    async fn open<R>(&self, request: R, options: &Options) -> Result<SshClient, PoolError<S::Error>>
    where
        S: Service<R> + Clone,
        S::Response: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        S::Error: std::error::Error + 'static,
    {
        let mut opener = self.opener.clone();
        std::future::poll_fn(|cx| opener.poll_ready(cx)).await.map_err(PoolError::Open)?;
        let io = opener.call(request).await.map_err(PoolError::Open)?;
        SshClient::connect(io, options).await.map_err(PoolError::Ssh)
    }
}

impl Shared {
    fn plan(self: &Arc<Self>, sandbox_id: &Arc<str>) -> Plan {
        let mut sandboxes = self.sandboxes.lock();
        let sandbox = sandboxes.entry(Arc::clone(sandbox_id)).or_default();
        sandbox.connections.retain(|connection| !connection.client.is_closed());
        let idle = sandbox.connections.iter().position(|connection| connection.channels == 0);
        if let Some(at) = idle {
            let (client, lease) = self.take(sandbox, sandbox_id, at);
            return Plan::Use(client, lease);
        }
        if sandbox.connections.len() + sandbox.opening < self.config.max_connections {
            sandbox.opening += 1;
            return Plan::Open;
        }
        match self.least_busy(sandbox) {
            Some(at) => {
                let (client, lease) = self.take(sandbox, sandbox_id, at);
                Plan::Use(client, lease)
            }
            None if sandbox.opening > 0 => {
                Plan::Wait(Arc::clone(&sandbox.changed).notified_owned())
            }
            None => Plan::Full,
        }
    }

    fn least_busy(&self, sandbox: &Sandbox) -> Option<usize> {
        let connections = sandbox.connections.iter().enumerate();
        connections
            .filter(|(_, connection)| {
                connection.channels < self.config.max_channels && !connection.client.is_closed()
            })
            .min_by_key(|(_, connection)| connection.channels)
            .map(|(at, _)| at)
    }

    fn take(
        self: &Arc<Self>,
        sandbox: &mut Sandbox,
        sandbox_id: &Arc<str>,
        at: usize,
    ) -> (SshClient, Lease) {
        let connection = &mut sandbox.connections[at];
        connection.channels += 1;
        let lease = Lease {
            shared: Arc::clone(self),
            sandbox_id: Arc::clone(sandbox_id),
            connection: connection.id,
        };
        (connection.client.clone(), lease)
    }

    fn share(self: &Arc<Self>, sandbox_id: &Arc<str>) -> Option<(SshClient, Lease)> {
        let mut sandboxes = self.sandboxes.lock();
        let sandbox = sandboxes.get_mut(sandbox_id)?;
        let at = self.least_busy(sandbox)?;
        Some(self.take(sandbox, sandbox_id, at))
    }

    fn insert(self: &Arc<Self>, sandbox_id: &Arc<str>, client: SshClient) -> Lease {
        let mut sandboxes = self.sandboxes.lock();
        let sandbox = sandboxes.entry(Arc::clone(sandbox_id)).or_default();
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        sandbox.connections.push(Connection {
            id,
            client,
            channels: 1,
            idle_since: Instant::now(),
        });
        Lease { shared: Arc::clone(self), sandbox_id: Arc::clone(sandbox_id), connection: id }
    }

    fn forget(&self, sandbox_id: &str, connection: u64) {
        let mut sandboxes = self.sandboxes.lock();
        if let Some(sandbox) = sandboxes.get_mut(sandbox_id) {
            sandbox.connections.retain(|held| held.id != connection);
            sandbox.changed.notify_waiters();
        }
    }

    fn reap(&self, now: Instant) -> Vec<Connection> {
        let idle_timeout = self.config.idle_timeout;
        let mut gone = Vec::new();
        self.sandboxes.lock().retain(|_, sandbox| {
            gone.extend(sandbox.connections.extract_if(.., |connection| {
                let idle = connection.channels == 0;
                connection.client.is_closed()
                    || (idle && now >= connection.idle_since + idle_timeout)
            }));
            !sandbox.connections.is_empty() || sandbox.opening > 0
        });
        gone
    }
}

/// Says goodbye in the background; the relays end with the connections.
fn disconnect_all(connections: Vec<Connection>) {
    let Ok(runtime) = tokio::runtime::Handle::try_current() else {
        return;
    };
    for connection in connections {
        runtime.spawn(async move {
            let goodbye = connection.client.disconnect();
            let _ = tokio::time::timeout(Duration::from_secs(1), goodbye).await;
        });
    }
}

impl<S: Clone> Clone for SshPool<S> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), opener: self.opener.clone() }
    }
}

impl<S> fmt::Debug for SshPool<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SshPool").field("config", &self.shared.config).finish_non_exhaustive()
    }
}
