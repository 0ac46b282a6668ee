//! What runs beside the calls: lifecycle, reapers, probes, renewal of certificates, and gauges.

use std::{sync::Arc, time::Duration};

use postern_layers::ocsf::Recorder;
use postern_relay::registry::Registry;
use postern_store::ObjectStore;
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::RunningGateway;
use crate::{
    auth::clock::WallClock, health::Readiness, relay_plane::ssh_sessions::SshSessions,
    telemetry::Sample,
};

/// How often pending relays past their time are swept. They watch their time themselves; this finds abandoned ones.
const REAP_RELAYS: Duration = Duration::from_secs(2);

/// How often SSH sessions and remembered requests past their time are removed (OpenShell contract: hourly).
const REAP_RECORDS: Duration = Duration::from_secs(3600);

/// How often certificates are looked at. They are renewed a month before their end.
const RENEW_CERTIFICATES: Duration = Duration::from_secs(12 * 3600);

impl RunningGateway {
    pub(super) fn start_upkeep(
        &mut self,
        store: &Arc<dyn ObjectStore>,
        ssh_sessions: &SshSessions,
        readiness: Readiness,
        clock: WallClock,
    ) {
        self.upkeep.spawn(self.lifecycle.clone().run());
        self.upkeep.spawn(readiness.keep_probing(store.clone()));
        self.upkeep.spawn(reap_relays(self.registry.clone()));
        self.upkeep.spawn(self.exec.pool().reaper());
        self.upkeep.spawn(reap_records(store.clone(), ssh_sessions.clone(), clock));
        self.upkeep.spawn(self.reloader.clone().watch());
    }

    /// Sets the gauges of sessions and relays.
    pub(super) fn sample(&self, recorder: &Recorder) -> Sample {
        let (registry, recorder) = (self.registry.clone(), recorder.clone());
        Arc::new(move || {
            let stats = registry.stats();
            // Counts far below 2^52 are exact.
            let gauge = |count: usize| u32::try_from(count).map_or(f64::MAX, f64::from);
            metrics::gauge!("supervisor_sessions_active").set(gauge(stats.sessions));
            metrics::gauge!("relay_pending").set(gauge(stats.pending));
            metrics::gauge!("relays_live").set(gauge(stats.live));
            metrics::counter!("session_supersedes_total").absolute(stats.superseded_total);
            metrics::counter!("audit_events_dropped_total").absolute(recorder.counts().dropped);
        })
    }

    /// How often certificates should be looked at.
    pub(super) const fn renewal_period() -> Duration {
        RENEW_CERTIFICATES
    }
}

async fn reap_relays(registry: Registry) {
    let mut ticks = interval(REAP_RELAYS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let reaped = registry.reap(Instant::now());
        if reaped > 0 {
            tracing::info!(reaped, "pending relays were not claimed in time");
        }
    }
}

async fn reap_records(store: Arc<dyn ObjectStore>, ssh_sessions: SshSessions, clock: WallClock) {
    let mut ticks = interval(REAP_RECORDS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match ssh_sessions.reap().await {
            Ok(0) => {}
            Ok(removed) => tracing::info!(removed, "SSH sessions past their time were removed"),
            Err(error) => {
                tracing::warn!(%error, "SSH sessions past their time could not be removed")
            }
        }
        let since_epoch = clock.now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        let now_ms = u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX);
        if let Err(error) = store.reap(now_ms).await {
            tracing::warn!(%error, "remembered requests past their time could not be removed");
        }
    }
}
