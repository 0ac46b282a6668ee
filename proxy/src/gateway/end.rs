//! The end of a gateway: nothing new, then what is live may finish, then everything is closed with a reason.

use std::time::Duration;

use postern_driver_core::{DriverError, SandboxRef};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
    time::{Instant, interval, timeout, timeout_at},
};

use super::RunningGateway;
use crate::{
    admin,
    drain::Phase,
    reload::{Reloader, Trigger},
};

/// What both ends of a relay are told when its time is up.
pub const CLOSE_REASON: &str = "the gateway is shutting down";

/// How long relays that were asked for before the drain may take to be claimed. Afterwards connections are told to go
/// away, and a supervisor could open no stream for them any more.
pub const PENDING_GRACE: Duration = Duration::from_secs(2);

/// How long connections may take to say goodbye after everything on them was closed.
pub const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// How often the number of live relays is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long removing the sandboxes of a gateway that keeps nothing may take. Stopping one takes up to the driver's
/// grace of a few seconds.
const REMOVE_GRACE: Duration = Duration::from_secs(30);

/// How long the audit log may take to write what it has.
const AUDIT_GRACE: Duration = Duration::from_secs(2);

impl RunningGateway {
    /// Resolves at SIGTERM or SIGINT. Meanwhile certificates are renewed in time, and SIGHUP reads the configuration
    /// and the TLS files again.
    pub async fn signalled(&self) {
        let Some(mut signals) = Signals::install() else { return std::future::pending().await };
        let mut renewal = interval(Self::renewal_period());
        renewal.tick().await;
        loop {
            tokio::select! {
                _ = signals.terminate.recv() => return,
                _ = signals.interrupt.recv() => return,
                _ = signals.hangup.recv() => self.blocking(|reloader| drop(reloader.reload(Trigger::Signal))).await,
                _ = renewal.tick() => self.blocking(|reloader| drop(reloader.reload_tls())).await,
            }
        }
    }

    /// Has files read where it does not hold up calls.
    async fn blocking(&self, work: fn(&Reloader)) {
        let reloader = self.reloader.clone();
        // A panic has been told.
        let _ = tokio::task::spawn_blocking(move || work(&reloader)).await;
    }

    /// Serves until SIGTERM or SIGINT, then drains; a second one closes everything at once.
    pub async fn run_until_signalled(self) {
        self.signalled().await;
        self.drain().await;
    }

    /// Drains and ends the gateway: takes nothing new, lets live relays finish until the drain timeout, closes the
    /// rest with [`CLOSE_REASON`]. SIGTERM or SIGINT closes at once.
    pub async fn drain(mut self) {
        self.end().await;
    }

    /// As [`drain`](Self::drain), and then removes every sandbox: for a gateway that keeps nothing.
    pub async fn drain_and_remove_sandboxes(mut self) {
        self.end().await;
        let removed = timeout(REMOVE_GRACE, async {
            let sandboxes = self.driver.list().await?;
            for sandbox in sandboxes {
                self.driver.delete(&SandboxRef::new(sandbox.id, sandbox.name)).await?;
            }
            Ok::<_, DriverError>(())
        });
        match removed.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "not every sandbox could be removed"),
            Err(_) => tracing::warn!("not every sandbox was removed within {REMOVE_GRACE:?}"),
        }
    }

    async fn end(&mut self) {
        let deadline = Instant::now() + self.settings.drain_timeout;
        tracing::info!(live = self.registry.stats().live, "draining; a signal closes at once");
        self.drain.start();
        self.registry.drain();
        tokio::select! {
            () = self.wait_for_relays(deadline) => {}
            () = signal_to_end() => tracing::warn!("signal while draining: closing at once"),
        }
        self.close().await;
    }

    async fn wait_for_relays(&self, deadline: Instant) {
        let mut looks = interval(LOOK_EVERY);
        let pending_until = deadline.min(Instant::now() + PENDING_GRACE);
        loop {
            looks.tick().await;
            // Warm connections without a command would look like live relays until their idle time is up.
            self.exec.pool().reap(Instant::now() + Duration::from_secs(86_400));
            let stats = self.registry.stats();
            let now = Instant::now();
            if self.drain.phase() < Phase::Leaving && (stats.pending == 0 || now >= pending_until) {
                self.drain.leave();
            }
            if stats.pending == 0 && stats.live == 0 {
                return;
            }
            if now >= deadline {
                tracing::warn!(live = stats.live, "the drain timeout is over; closing live relays");
                return;
            }
        }
    }

    async fn close(&mut self) {
        self.drain.leave();
        self.registry.close_all(CLOSE_REASON);
        let until = Instant::now() + CLOSE_GRACE;
        self.tasks.close();
        let ended = timeout_at(until, async {
            self.tasks.wait().await;
            all(&mut self.serving).await;
        });
        if ended.await.is_err() {
            tracing::info!("some connections do not end; closing them");
        }
        self.drain.close();
        // Connections that are told to close do so at their next poll.
        let _ = timeout(CLOSE_GRACE, all(&mut self.serving)).await;
        // Lifecycle first: nothing may start what is suspended here.
        self.upkeep.shutdown().await;
        self.lifecycle.suspend_all().await;
        let _ = timeout(CLOSE_GRACE, self.store.close()).await;
        if let Some(writer) = self.audit.take() {
            let flushed = tokio::task::spawn_blocking(move || writer.shutdown(AUDIT_GRACE)).await;
            if let Ok(Err(error)) = flushed {
                tracing::warn!(%error, "the audit log is not complete");
            }
        }
        if self.local.admin.is_some() {
            admin::forget_address(&self.settings.state_dir);
        }
        tracing::info!("stopped");
    }
}

async fn all(tasks: &mut JoinSet<()>) {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended
            && error.is_panic()
        {
            tracing::error!(%error, "an accept loop panicked");
        }
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// `None` when the system has no handlers to give; then signals do what they do without any.
    fn install() -> Option<Self> {
        let install = |kind| {
            signal(kind).map_err(|error| tracing::error!(%error, "signals cannot be handled")).ok()
        };
        Some(Self {
            terminate: install(SignalKind::terminate())?,
            interrupt: install(SignalKind::interrupt())?,
            hangup: install(SignalKind::hangup())?,
        })
    }
}

/// SIGTERM or SIGINT.
async fn signal_to_end() {
    match Signals::install() {
        None => std::future::pending().await,
        Some(mut signals) => tokio::select! {
            _ = signals.terminate.recv() => {}
            _ = signals.interrupt.recv() => {}
        },
    }
}
