//! The report of a running gateway: its configuration, and what its layers count.

use postern_layers::ocsf::Recorder;
use postern_relay::registry::Registry;
use tokio::time::Instant;

use super::report::{
    Counter, GatewayReport, LastReload, LayerReport, PlaneReport, ReloadReport, Report, planes,
};
use crate::{
    config::LayerConfigs,
    gateway::Addresses,
    reload::{Reloader, Status},
};

/// Looks at a running gateway.
#[derive(Clone, Debug)]
pub struct View {
    reloader: Reloader,
    registry: Registry,
    recorder: Recorder,
    addresses: Addresses,
    started: Instant,
}

impl View {
    /// A view of the gateway that these belong to, which starts now.
    #[must_use]
    pub fn new(
        reloader: Reloader,
        registry: Registry,
        recorder: &Recorder,
        addresses: Addresses,
    ) -> Self {
        let recorder = recorder.clone();
        Self { reloader, registry, recorder, addresses, started: Instant::now() }
    }

    /// The stacks in force, without counters.
    #[must_use]
    pub fn config(&self) -> Report {
        let status = self.reloader.status();
        Report {
            gateway: Some(GatewayReport {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                address: self.addresses.calls.to_string(),
                uptime_seconds: self.started.elapsed().as_secs(),
                counters: Vec::new(),
            }),
            planes: planes(&status.config),
            reload: Some(reload(&status)),
        }
    }

    /// The same with counters.
    #[must_use]
    pub fn layers(&self) -> Report {
        let mut report = self.config();
        let values = self.reloader.status().config.layers;
        if let Some(gateway) = &mut report.gateway {
            gateway.counters = self.of_the_gateway();
        }
        for PlaneReport { plane, layers, .. } in &mut report.planes {
            for LayerReport { name, counters, .. } in layers {
                *counters = self.of_layer(plane, name, &values);
            }
        }
        report
    }

    fn of_the_gateway(&self) -> Vec<Counter> {
        let stats = self.registry.stats();
        vec![
            Counter::now("sessions", stats.sessions),
            Counter::now("relays pending", stats.pending),
            Counter::now("relays live", stats.live),
            Counter::total("relays opened", stats.opened_total),
            Counter::total("relays ended", stats.ended_total),
            Counter::total("into sandboxes", stats.bytes_to_sandbox).bytes(),
            Counter::total("out of sandboxes", stats.bytes_from_sandbox).bytes(),
            Counter::total("sessions superseded", stats.superseded_total),
        ]
    }

    fn of_layer(&self, plane: &str, name: &str, values: &LayerConfigs) -> Vec<Counter> {
        let handles = self.reloader.handles();
        match name {
            "connection_cap" => handles
                .connection
                .connection_cap
                .iter()
                .flat_map(|handle| {
                    let (now, refused) = handle.counts();
                    let cap = u64::from(values.connection_cap.total);
                    [
                        Counter::now("connections", now).capped(cap),
                        Counter::total("refused", refused),
                    ]
                })
                .collect(),
            "rate_limit" => self.rate_limit(values),
            "concurrency_cap" => handles
                .call
                .concurrency_cap
                .iter()
                .flat_map(|handle| {
                    let (now, refused) = handle.counts();
                    let cap = u64::from(values.concurrency_cap.total);
                    [Counter::now("calls", now).capped(cap), Counter::total("refused", refused)]
                })
                .collect(),
            "relay_caps" => self.relay_caps(values),
            // Both planes write to one recorder, which is shown once.
            "ocsf" if plane == "call" => {
                let counts = self.recorder.counts();
                vec![
                    Counter::total("records", counts.accepted),
                    Counter::total("dropped", counts.dropped),
                    Counter::now("queued", counts.queued),
                ]
            }
            _ => Vec::new(),
        }
    }

    fn rate_limit(&self, values: &LayerConfigs) -> Vec<Counter> {
        let Some(handle) = &self.reloader.handles().call.rate_limit else { return Vec::new() };
        let counts = handle.counts();
        let keys = u64::try_from(values.rate_limit.max_keys).unwrap_or(u64::MAX);
        vec![
            Counter::total("passed", counts.passed),
            Counter::total("refused", counts.refused),
            Counter::now("peers counted", counts.keys).capped(keys),
        ]
    }

    fn relay_caps(&self, values: &LayerConfigs) -> Vec<Counter> {
        let Some(handle) = &self.reloader.handles().relay.relay_caps else { return Vec::new() };
        let counts = handle.counts();
        vec![
            Counter::now("pending", counts.pending).capped(values.relay_caps.pending.into()),
            Counter::now("live", counts.live).capped(values.relay_caps.live.into()),
            Counter::now("sandboxes with relays", handle.keys()),
            Counter::total("opened", counts.opened),
            Counter::total("refused", counts.refused),
        ]
    }
}

fn reload(status: &Status) -> ReloadReport {
    ReloadReport {
        files: status.files.iter().map(|path| path.display().to_string()).collect(),
        applied: status.applied,
        last: status.last.as_ref().map(|last| LastReload {
            at: at(last.at),
            trigger: last.trigger,
            outcome: last.outcome.clone(),
        }),
    }
}

/// RFC 3339, to the second.
fn at(time: std::time::SystemTime) -> String {
    jiff::Timestamp::try_from(time)
        .and_then(|time| time.round(jiff::Unit::Second))
        .map_or_else(|_| "unknown".to_owned(), |time| time.to_string())
}
