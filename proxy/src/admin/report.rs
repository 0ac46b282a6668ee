//! What operators are shown: the planes as a request meets them, with values and counters. One shape for the JSON of
//! the admin endpoint, its page, and `postern layers`.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{describe, values};
use crate::{
    config::{
        CallLayer, Config, ConnectionLayer, LayerConfigs, Plane, PlaneLayer as _, RelayLayer, Stack,
    },
    reload::Outcome,
};

/// Everything.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Report {
    /// The gateway that this is about; `None` for a configuration that no gateway runs.
    pub gateway: Option<GatewayReport>,
    /// The planes, in the order in which a request meets them.
    pub planes: Vec<PlaneReport>,
    /// How values are reloaded; `None` as above.
    pub reload: Option<ReloadReport>,
}

/// A running gateway.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GatewayReport {
    /// Its version.
    pub version: String,
    /// Where it serves calls.
    pub address: String,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// Counters that belong to no layer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub counters: Vec<Counter>,
}

/// One plane.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlaneReport {
    /// `connection`, `call` or `relay`.
    pub plane: String,
    /// What comes in, and what comes out.
    pub carries: String,
    /// The fixed end that a request meets first.
    pub outer_end: String,
    /// The fixed end that it meets last.
    pub inner_end: String,
    /// Whether the list is the one of an empty configuration.
    pub default_order: bool,
    /// The layers, outermost first.
    pub layers: Vec<LayerReport>,
    /// Layers of this plane that the configuration leaves out.
    pub left_out: Vec<String>,
}

/// One layer.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LayerReport {
    /// Its name in the configuration.
    pub name: String,
    /// What it does, in a sentence.
    pub does: String,
    /// What a refused request gets, if it refuses any.
    pub refuses: Option<String>,
    /// Its values.
    pub values: Vec<ValueReport>,
    /// What it counts; only for a running gateway.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub counters: Vec<Counter>,
}

/// One value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ValueReport {
    /// The key, with dots for inner tables.
    pub key: String,
    /// The value in force; null is none.
    pub value: Value,
    /// What it is when the configuration says nothing.
    pub default: Value,
    /// Whether the two are the same.
    pub is_default: bool,
}

/// One number that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counter {
    /// What is counted.
    pub name: String,
    /// How much of it.
    pub value: u64,
    /// The cap in force, for something that has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// Whether it only grows, so that its rate says more than its value.
    #[serde(default)]
    pub total: bool,
    /// `"bytes"`; things are counted in ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
}

/// How values are reloaded.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReloadReport {
    /// Files whose change is noticed.
    pub files: Vec<String>,
    /// How often values were put in force since the start.
    pub applied: u64,
    /// The last reading; `None` before the first.
    pub last: Option<LastReload>,
}

/// The last reading.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct LastReload {
    /// When, as RFC 3339.
    pub at: String,
    /// `signal` or `file_change`.
    pub trigger: crate::reload::Trigger,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

impl Counter {
    pub(crate) fn now(name: &str, value: impl TryInto<u64>) -> Self {
        let value = value.try_into().unwrap_or(u64::MAX);
        Self { name: name.to_owned(), value, limit: None, total: false, unit: None }
    }

    pub(crate) fn total(name: &str, value: u64) -> Self {
        Self { total: true, ..Self::now(name, value) }
    }

    /// 0 is no cap.
    pub(crate) fn capped(self, limit: u64) -> Self {
        Self { limit: (limit != 0).then_some(limit), ..self }
    }

    pub(crate) fn bytes(self) -> Self {
        Self { unit: Some("bytes".to_owned()), ..self }
    }
}

/// The planes of `config`, without counters.
#[must_use]
pub fn planes(config: &Config) -> Vec<PlaneReport> {
    let defaults = LayerConfigs::default();
    Plane::ALL.into_iter().map(|plane| plane_report(plane, config, &defaults)).collect()
}

fn plane_report(plane: Plane, config: &Config, defaults: &LayerConfigs) -> PlaneReport {
    let ends = describe::ends(plane);
    let list = names(&config.stack, plane);
    let known: Vec<&str> = match plane {
        Plane::Connection => ConnectionLayer::ALL.iter().map(|layer| layer.name()).collect(),
        Plane::Call => CallLayer::ALL.iter().map(|layer| layer.name()).collect(),
        Plane::Relay => RelayLayer::ALL.iter().map(|layer| layer.name()).collect(),
    };
    PlaneReport {
        plane: plane.key().to_owned(),
        carries: ends.carries.to_owned(),
        outer_end: ends.outer.to_owned(),
        inner_end: ends.inner.to_owned(),
        default_order: list == names(&Stack::default(), plane),
        left_out: known
            .iter()
            .filter(|name| !list.contains(name))
            .map(|&name| name.to_owned())
            .collect(),
        layers: list.iter().map(|name| layer_report(plane, name, config, defaults)).collect(),
    }
}

fn names(stack: &Stack, plane: Plane) -> Vec<&'static str> {
    stack.names().filter(|(there, _)| *there == plane).map(|(_, name)| name).collect()
}

fn layer_report(plane: Plane, name: &str, config: &Config, defaults: &LayerConfigs) -> LayerReport {
    let about = describe::layer(plane, name);
    let default = values::of(name, defaults);
    let elsewhere = values::elsewhere(name, config);
    let default_of = |key: &str| {
        default
            .iter()
            .find(|(there, _)| there == key)
            .map_or(Value::Null, |(_, value)| value.clone())
    };
    let mut shown: Vec<ValueReport> = values::of(name, &config.layers)
        .into_iter()
        .map(|(key, value)| {
            let default = default_of(&key);
            ValueReport { is_default: value == default, key, value, default }
        })
        .collect();
    // A quota that the configuration took away has no keys of its own any more.
    for (key, default) in &default {
        let gone =
            |value: &ValueReport| value.key != *key && !key.starts_with(&format!("{}.", value.key));
        if shown.iter().all(gone) {
            let value = Value::Null;
            shown.push(ValueReport {
                key: key.clone(),
                value,
                default: default.clone(),
                is_default: false,
            });
        }
    }
    for (key, value) in elsewhere {
        match shown.iter_mut().find(|there| there.key == key) {
            // What an empty value comes to.
            Some(there) => there.value = value,
            None => {
                let default = value.clone();
                shown.push(ValueReport { key, value, default, is_default: true });
            }
        }
    }
    LayerReport {
        name: name.to_owned(),
        does: about.does.to_owned(),
        refuses: about.refuses.map(str::to_owned),
        values: shown,
        counters: Vec::new(),
    }
}
