//! `[openshell.stack]`, `[openshell.layer.*]` and `[openshell.drivers.*]`.

use std::ops::Range;

use toml::{Spanned, de::DeValue};

use super::{
    super::{
        CallLayer, Config, ConnectionLayer, GUARDS, Plane, PlaneLayer, RelayLayer, Stack,
        document::{self, Document, Lines},
        fault::nearest,
        layers::{LayerConfigs, TableConfig},
        order_faults,
        table::{self, unknown_key},
    },
    Values,
};

/// The keys of `[openshell.stack]`.
const STACK_KEYS: [&str; 4] = ["connection", "call", "relay", UNSAFE];

/// Names the guards that may be missing.
const UNSAFE: &str = "unsafe_allow_missing";

/// Layers that have a name and no values.
const WITHOUT_VALUES: [(&str, &str); 5] = [
    ("tls", "its values stand in [openshell.gateway.tls]"),
    ("trace", "it has no values"),
    ("metrics", "it has no values"),
    ("authenticate", "its values stand in [openshell.gateway]"),
    ("authorize", "its rules come with the wire contract"),
];

/// Drivers of OpenShell that this build does not have.
const OTHER_DRIVERS: [&str; 4] = ["kubernetes", "podman", "docker", "vm"];

pub(super) fn read(
    lines: &Lines<'_>,
    document: &Document<'_>,
    config: &mut Config,
    values: &mut Values,
) {
    stack(lines, document, &mut config.stack, values);
    let mut reader = Tables { lines, stack: &config.stack, values };
    reader.layers(document, &mut config.layers);
    drivers(lines, document, config, values);
}

fn stack(lines: &Lines<'_>, document: &Document<'_>, stack: &mut Stack, values: &mut Values) {
    let mut allowed = Vec::new();
    let mut call_list = None;
    let Some(table) = &document.stack else { return };
    let DeValue::Table(entries) = table.get_ref() else {
        let message = "stack is no table; write [openshell.stack] and lists of layers below it";
        return values.fault(lines.fault(&table.span(), message));
    };
    for (key, list) in entries {
        match key.get_ref().as_ref() {
            "connection" => plane(lines, list, &mut stack.connection, values),
            "call" => {
                call_list = Some(list.span());
                plane(lines, list, &mut stack.call, values);
            }
            "relay" => plane(lines, list, &mut stack.relay, values),
            UNSAFE => allowed = guards(lines, list, values),
            "egress" => {
                let message = "the egress plane runs in the supervisor, which has no stack of its own yet; remove this list";
                values.fault(lines.fault(&key.span(), message));
            }
            other => {
                let message = unknown_key(other, "[openshell.stack]", &STACK_KEYS);
                values.fault(lines.fault(&key.span(), message));
            }
        }
    }
    let at = call_list.unwrap_or_else(|| table.span());
    for guard in GUARDS {
        let (there, unsafe_ok) = (stack.call.contains(guard), allowed.contains(guard));
        let name = guard.name();
        if !there && !unsafe_ok {
            let message = format!(
                "call has no \"{name}\", which opens the gateway; add it, or write {UNSAFE} = [\"{name}\"] in [openshell.stack] if you mean it"
            );
            values.fault(lines.fault(&at, message));
        } else if there && unsafe_ok {
            let message =
                format!("{UNSAFE} names \"{name}\", which is there; remove it from {UNSAFE}");
            values.fault(lines.fault(&at, message));
        }
    }
}

/// Reads the list of one plane, with unknown names, repetitions and order faults.
fn plane<L: PlaneLayer>(
    lines: &Lines<'_>,
    list: &Spanned<DeValue<'_>>,
    into: &mut Vec<L>,
    values: &mut Values,
) {
    let key = L::PLANE.key();
    let Some(names) = document::names(lines, key, list, values) else { return };
    let known: Vec<_> = L::ALL.iter().map(|layer| layer.name()).collect();
    let mut layers: Vec<L> = Vec::new();
    let mut places: Vec<Range<usize>> = Vec::new();
    for (name, at) in names {
        match L::from_name(&name) {
            None => {
                let message = document::unknown_layer(&name, key, &known);
                values.fault(lines.fault(&at, message));
            }
            Some(layer) if layers.contains(&layer) => {
                let message = format!("\"{name}\" stands in {key} twice; remove one");
                values.fault(lines.fault(&at, message));
            }
            Some(layer) => {
                layers.push(layer);
                places.push(at);
            }
        }
    }
    let names: Vec<_> = layers.iter().map(|layer| layer.name()).collect();
    for (at, rule) in order_faults(L::PLANE, &names) {
        let message = format!(
            "\"{}\" stands outside of \"{}\", and {}; move \"{}\" in front of it",
            names[at], rule.outer, rule.because, rule.outer
        );
        values.fault(lines.fault(&places[at], message));
    }
    *into = layers;
}

fn guards(lines: &Lines<'_>, list: &Spanned<DeValue<'_>>, values: &mut Values) -> Vec<CallLayer> {
    let Some(names) = document::names(lines, UNSAFE, list, values) else { return Vec::new() };
    let mut allowed = Vec::new();
    for (name, at) in names {
        match GUARDS.iter().find(|guard| guard.name() == name) {
            Some(guard) => allowed.push(*guard),
            None => {
                let message = format!(
                    "{UNSAFE} names \"{name}\", whose absence is not unsafe; it takes \"authenticate\" and \"authorize\""
                );
                values.fault(lines.fault(&at, message));
            }
        }
    }
    allowed
}

struct Tables<'t> {
    lines: &'t Lines<'t>,
    stack: &'t Stack,
    values: &'t mut Values,
}

impl Tables<'_> {
    fn layers(&mut self, document: &Document<'_>, layers: &mut LayerConfigs) {
        for (name, at, value) in &document.layers {
            match name.as_str() {
                "connection_cap" => self.values_of(name, at, value, &mut layers.connection_cap),
                "handshake_deadline" => {
                    self.values_of(name, at, value, &mut layers.handshake_deadline);
                }
                "h2_window" => self.values_of(name, at, value, &mut layers.h2_window),
                "request_id" => self.values_of(name, at, value, &mut layers.request_id),
                "rate_limit" => {
                    // The gateway's default for this key is not the layer's.
                    let default = layers.rate_limit.per_key;
                    self.values_of(name, at, value, &mut layers.rate_limit);
                    if value.get_ref().get("per_key").is_none() {
                        layers.rate_limit.per_key = default;
                    }
                }
                "deadline" => self.values_of(name, at, value, &mut layers.deadline),
                "concurrency_cap" => self.values_of(name, at, value, &mut layers.concurrency_cap),
                "body_limit" => self.values_of(name, at, value, &mut layers.body_limit),
                "ocsf" => self.values_of(name, at, value, &mut layers.ocsf),
                "relay_caps" => self.values_of(name, at, value, &mut layers.relay_caps),
                "session_wait" => self.values_of(name, at, value, &mut layers.session_wait),
                other => {
                    let message = no_such_table(other);
                    self.values.fault(self.lines.fault(at, message));
                }
            }
        }
    }

    fn values_of<T: TableConfig>(
        &mut self,
        name: &str,
        at: &Range<usize>,
        value: &Spanned<DeValue<'_>>,
        into: &mut T,
    ) {
        if !self.stack.has(name) {
            let plane = plane_of(name);
            let message = format!(
                "nothing uses [openshell.layer.{name}]; add \"{name}\" to {plane} in [openshell.stack], or remove the table"
            );
            self.values.fault(self.lines.fault(at, message));
        }
        let (config, faults) = table::read(&format!("layer.{name}"), value);
        for (span, message) in faults {
            self.values.fault(self.lines.fault(&span, message));
        }
        *into = config;
    }
}

fn no_such_table(name: &str) -> String {
    if let Some((_, why)) = WITHOUT_VALUES.iter().find(|(layer, _)| *layer == name) {
        return format!("[openshell.layer.{name}] is not used: {why}; remove the table");
    }
    let known = all_layers();
    match nearest(name, known.iter().copied()) {
        Some(meant) => format!("no layer \"{name}\"; did you mean [openshell.layer.{meant}]?"),
        None => format!("no layer \"{name}\"; there are: {}", known.join(", ")),
    }
}

fn plane_of(name: &str) -> &'static str {
    if ConnectionLayer::from_name(name).is_some() {
        Plane::Connection.key()
    } else if RelayLayer::from_name(name).is_some() {
        Plane::Relay.key()
    } else {
        Plane::Call.key()
    }
}

fn all_layers() -> Vec<&'static str> {
    let mut names: Vec<_> = ConnectionLayer::ALL.iter().map(|layer| layer.name()).collect();
    names.extend(CallLayer::ALL.iter().map(|layer| layer.name()));
    names.extend(RelayLayer::ALL.iter().map(|layer| layer.name()));
    names.sort_unstable();
    names.dedup();
    names
}

/// The one driver, and its table.
fn drivers(lines: &Lines<'_>, document: &Document<'_>, config: &mut Config, values: &mut Values) {
    let path = "gateway.compute_drivers";
    if let Some(names) = values.list(path) {
        match names.as_slice() {
            [one] if one == "process" => {}
            [one] if OTHER_DRIVERS.contains(&one.as_str()) => {
                let message = format!("this build has no driver \"{one}\"; write [\"process\"]");
                values.fault_at(path, message);
            }
            [one] => {
                let message = format!("there is no driver \"{one}\"; write [\"process\"]");
                values.fault_at(path, message);
            }
            _ => values.fault_at(path, "a gateway has exactly one driver; write [\"process\"]"),
        }
    }
    for (name, at, value) in &document.drivers {
        if name != "process" {
            let message = format!(
                "nothing uses [openshell.drivers.{name}]; this build has the driver \"process\"; remove the table"
            );
            values.fault(lines.fault(at, message));
            continue;
        }
        let (driver, faults) = table::read("drivers.process", value);
        config.process_driver = driver;
        for (span, message) in faults {
            values.fault(lines.fault(&span, message));
        }
    }
}
