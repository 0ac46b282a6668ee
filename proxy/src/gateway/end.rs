//! The end of a gateway: nothing new, then what is live may finish, then everything is closed with a reason.

use std::{future::Future, time::Duration};

use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
    time::{Instant, interval, timeout, timeout_at},
};

use super::RunningGateway;
use crate::{auth::clock::WallClock, drain::Phase};

/// What both ends of a relay are told when its time is up.
pub const CLOSE_REASON: &str = "the gateway is shutting down";

/// How long relays that were asked for before the drain may take to be claimed. Afterwards connections are told to go
/// away, and a supervisor could open no stream for them any more.
pub const PENDING_GRACE: Duration = Duration::from_secs(2);

/// How long connections may take to say goodbye after everything on them was closed.
pub const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// How often the number of live relays is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How long the audit log may take to write what it has.
const AUDIT_GRACE: Duration = Duration::from_secs(2);

impl RunningGateway {
    /// Serves until SIGTERM or SIGINT, then drains; a second one closes everything at once. SIGHUP reads the TLS
    /// files again.
    ///
    /// # Errors
    /// Those of installing the signal handlers; the gateway is closed then.
    pub async fn run_until_signal(self) -> std::io::Result<()> {
        let mut signals = Signals::install()?;
        let clock = WallClock::system();
        let mut renewal = interval(Self::renewal_period());
        renewal.tick().await;
        loop {
            tokio::select! {
                _ = signals.terminate.recv() => break,
                _ = signals.interrupt.recv() => break,
                _ = signals.hangup.recv() => self.reload_tls(&clock),
                _ = renewal.tick() => self.reload_tls(&clock),
            }
        }
        tracing::info!(
            live = self.registry.stats().live,
            "draining; a second signal closes at once"
        );
        self.shutdown_unless(signals.end()).await;
        Ok(())
    }

    /// Drains and ends the gateway: takes nothing new, lets live relays finish until the drain timeout, closes the
    /// rest with [`CLOSE_REASON`].
    pub async fn shutdown(self) {
        self.shutdown_unless(std::future::pending()).await;
    }

    /// As [`shutdown`](Self::shutdown); when `hurry` resolves, everything is closed at once.
    pub async fn shutdown_unless(mut self, hurry: impl Future<Output = ()>) {
        let deadline = Instant::now() + self.settings.drain_timeout;
        self.drain.start();
        self.registry.drain();
        tokio::select! {
            () = self.wait_for_relays(deadline) => {}
            () = hurry => tracing::warn!("second signal: closing at once"),
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
        self.store.close().await;
        if let Some(writer) = self.audit.take() {
            let flushed = tokio::task::spawn_blocking(move || writer.shutdown(AUDIT_GRACE)).await;
            if let Ok(Err(error)) = flushed {
                tracing::warn!(%error, "the audit log is not complete");
            }
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
    fn install() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// SIGTERM or SIGINT.
    async fn end(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
