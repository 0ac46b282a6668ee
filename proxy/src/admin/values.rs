//! The values of layers as keys and texts, the way the file has them.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::{
    config::{AuditSink, Config, LayerConfigs, TlsSettings},
    reload::Change,
};

/// Key and value of one setting. Keys of inner tables carry dots: `per_key.calls`.
pub(crate) type Setting = (String, Value);

/// Layers that have a table of values, each with the way to read it.
type Table = (&'static str, fn(&LayerConfigs) -> Value);

const TABLES: [Table; 11] = [
    ("connection_cap", |layers| shown(&layers.connection_cap)),
    ("handshake_deadline", |layers| shown(&layers.handshake_deadline)),
    ("h2_window", |layers| shown(&layers.h2_window)),
    ("request_id", |layers| shown(&layers.request_id)),
    ("rate_limit", |layers| shown(&layers.rate_limit)),
    ("deadline", |layers| shown(&layers.deadline)),
    ("concurrency_cap", |layers| shown(&layers.concurrency_cap)),
    ("body_limit", |layers| shown(&layers.body_limit)),
    ("ocsf", |layers| shown(&layers.ocsf)),
    ("relay_caps", |layers| shown(&layers.relay_caps)),
    ("session_wait", |layers| shown(&layers.session_wait)),
];

fn shown(values: &impl Serialize) -> Value {
    serde_json::to_value(values).expect("values are texts, numbers and switches")
}

/// The settings of `layer` in `[openshell.layer.<layer>]`; none for a layer without a table.
pub(crate) fn of(layer: &str, layers: &LayerConfigs) -> Vec<Setting> {
    let mut settings = Vec::new();
    if let Some((_, read)) = TABLES.iter().find(|(name, _)| *name == layer) {
        flatten("", &read(layers), &mut settings);
    }
    settings
}

/// What a layer without a table goes by, from elsewhere in the configuration.
pub(crate) fn elsewhere(layer: &str, config: &Config) -> Vec<Setting> {
    let text = |text: String| Value::String(text);
    let gateway = &config.gateway;
    match layer {
        "tls" => match &gateway.tls {
            None => Vec::new(),
            Some(TlsSettings::Local { require_client_auth }) => vec![
                ("certificate".into(), text("the gateway's own authority".into())),
                ("require_client_auth".into(), (*require_client_auth).into()),
            ],
            Some(TlsSettings::Files { certificate, client_ca, require_client_auth, .. }) => vec![
                ("certificate".into(), text(certificate.display().to_string())),
                (
                    "client_ca".into(),
                    client_ca.as_ref().map_or(Value::Null, |ca| text(ca.display().to_string())),
                ),
                ("require_client_auth".into(), (*require_client_auth).into()),
            ],
        },
        "authenticate" => vec![
            ("ssh_session_token".into(), true.into()),
            ("sandbox_token".into(), true.into()),
            ("client_certificate".into(), gateway.users.mtls.into()),
            ("local_developer".into(), gateway.users.allow_unauthenticated.into()),
        ],
        "ocsf"
            if config.layers.ocsf.sink == AuditSink::File && config.layers.ocsf.path.is_none() =>
        {
            vec![("path".into(), text(gateway.state_dir.join("ocsf.jsonl").display().to_string()))]
        }
        _ => Vec::new(),
    }
}

/// The values that differ between two sets.
pub(crate) fn changes(before: &LayerConfigs, after: &LayerConfigs) -> Vec<Change> {
    let mut changes = Vec::new();
    for (layer, _) in TABLES {
        let (old, new) = (of(layer, before), of(layer, after));
        let find = |all: &[Setting], key: &str| {
            all.iter()
                .find(|(there, _)| there == key)
                .map_or(Value::Null, |(_, value)| value.clone())
        };
        let mut keys: Vec<&String> = old.iter().chain(&new).map(|(key, _)| key).collect();
        keys.sort_unstable();
        keys.dedup();
        for key in keys {
            let (from, to) = (find(&old, key), find(&new, key));
            if from != to {
                changes.push(Change { key: format!("{layer}.{key}"), from, to });
            }
        }
    }
    changes
}

fn flatten(prefix: &str, value: &Value, into: &mut Vec<Setting>) {
    match value {
        Value::Object(entries) => object(prefix, entries, into),
        value => into.push((prefix.to_owned(), value.clone())),
    }
}

fn object(prefix: &str, entries: &Map<String, Value>, into: &mut Vec<Setting>) {
    for (key, value) in entries {
        let key = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        flatten(&key, value, into);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_is_read_and_changes_name_the_key() {
        let before = LayerConfigs::default();
        for (layer, _) in TABLES {
            assert!(!of(layer, &before).is_empty(), "{layer}");
        }
        assert!(of("trace", &before).is_empty());
        assert!(changes(&before, &before).is_empty());
        let mut after = before.clone();
        after.relay_caps.pending = 7;
        after.rate_limit.per_key = None;
        let keys: Vec<_> = changes(&before, &after).into_iter().map(|change| change.key).collect();
        assert!(keys.contains(&"relay_caps.pending".to_owned()), "{keys:?}");
        assert!(keys.contains(&"rate_limit.per_key.calls".to_owned()), "{keys:?}");
    }
}
