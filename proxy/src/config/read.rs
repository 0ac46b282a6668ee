//! From texts to a [`Config`].

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use postern_identity::Secret;
use postern_layers::{rate_limit::Quota, units::parse_duration};

use super::{
    Config, GatewaySettings, LogFormat, Sources, TlsSettings, TokenSettings, UserSettings,
    default_db_url, default_state_dir,
    document::{self, Document, Lines},
    fault::{Fault, Origin},
    keys::{self, Key, Kind, Support},
};

mod check;
mod stack;

/// The newest `[openshell] version` that is known (OpenShell contract).
const NEWEST_VERSION: u64 = 1;

/// A value of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    Text(String),
    Number(u64),
    Switch(bool),
    List(Vec<String>),
}

/// A value and where it was given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Given {
    pub(super) value: Value,
    pub(super) origin: Origin,
}

/// The strongest value of each key, and all faults so far.
#[derive(Default)]
pub(super) struct Values {
    given: BTreeMap<&'static str, Given>,
    pub(super) faults: Vec<Fault>,
}

pub(super) fn load(sources: &Sources) -> Result<Config, Vec<Fault>> {
    let mut values = Values::default();
    let empty = (Path::new(""), "");
    let (path, text) =
        sources.file.as_ref().map_or(empty, |file| (file.path.as_path(), file.text.as_str()));
    let lines = Lines { path, text };
    let document = document::read(&lines, &mut values)?;
    values.take_outside(sources);
    let config = build(&lines, &document, &mut values, &sources.environment);
    if values.faults.is_empty() { Ok(config) } else { Err(values.faults) }
}

fn build(
    lines: &Lines<'_>,
    document: &Document<'_>,
    values: &mut Values,
    environment: &BTreeMap<String, String>,
) -> Config {
    let state_dir =
        values.path("gateway.state_dir").unwrap_or_else(|| default_state_dir(environment));
    let mut config = Config::local(&state_dir);
    gateway(&mut config.gateway, values);
    if config.gateway.tls.is_none() {
        config.stack.connection.retain(|layer| *layer != super::ConnectionLayer::Tls);
    }
    stack::read(lines, document, &mut config, values);
    rate_limit(&mut config, values);
    check::all(&config, values);
    config
}

fn gateway(gateway: &mut GatewaySettings, values: &mut Values) {
    if let Some(address) = values.listen_address("gateway.bind_address", gateway.bind_address) {
        gateway.bind_address = address;
    }
    if let Some(port) = values.number("gateway.port", 0..=u64::from(u16::MAX)) {
        gateway.bind_address.set_port(u16::try_from(port).unwrap_or_default());
    }
    let beside = gateway.bind_address;
    gateway.health_bind_address = values.side_address("gateway.health_bind_address", beside);
    gateway.metrics_bind_address = values.side_address("gateway.metrics_bind_address", beside);
    let loopback = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
    gateway.admin_bind_address = values.side_address("gateway.admin_bind_address", loopback);
    if let Some(level) = values.text("gateway.log_level") {
        if tracing_subscriber::EnvFilter::try_new(&level).is_err() {
            let message = format!(
                "log_level = \"{level}\" is no filter; write error, warn, info, debug or trace"
            );
            values.fault_at("gateway.log_level", message);
        }
        gateway.log_level = level;
    }
    match values.text("gateway.log_format").as_deref() {
        None | Some("text") => {}
        Some("json") => gateway.log_format = LogFormat::Json,
        Some(other) => {
            let message =
                format!("log_format = \"{other}\" is unknown; write \"text\" or \"json\"");
            values.fault_at("gateway.log_format", message);
        }
    }
    if let Some(url) = values.text("gateway.db_url") {
        gateway.db_url = Secret::new(url);
    } else {
        gateway.db_url = default_db_url(&gateway.state_dir);
    }
    gateway.server_sans = values.list("gateway.server_sans").unwrap_or_default();
    values.number("version", 0..=NEWEST_VERSION);
    tls_and_users(gateway, values);
    tokens(&mut gateway.tokens, values);
    // A century; beyond it times overflow.
    const LONGEST_TTL: u64 = 100 * 365 * 86_400;
    if let Some(seconds) = values.number("gateway.ssh_session_ttl_secs", 0..=LONGEST_TTL) {
        gateway.ssh_session_ttl = Duration::from_secs(seconds);
    }
    let minute = Duration::from_secs(60);
    if let Some(time) = values.duration("gateway.drain_timeout", Duration::ZERO..=60 * minute) {
        gateway.drain_timeout = time;
    }
    let range = Duration::from_secs(1)..=5 * minute;
    if let Some(time) = values.duration("gateway.heartbeat_interval", range) {
        gateway.heartbeat_interval = time;
    }
}

fn tls_and_users(gateway: &mut GatewaySettings, values: &mut Values) {
    let open = values.switch("gateway.auth.allow_unauthenticated_users").unwrap_or(false);
    let certificate = values.path("gateway.tls.cert_path");
    let key = values.path("gateway.tls.key_path");
    let client_ca = values.path("gateway.tls.client_ca_path");
    let required = values.switch("gateway.tls.require_client_auth");
    gateway.tls = if values.switch("gateway.disable_tls").unwrap_or(false) {
        None
    } else {
        let require_client_auth = required.unwrap_or(!open);
        Some(match (certificate, key) {
            (Some(certificate), Some(key)) => {
                let require_client_auth = require_client_auth && client_ca.is_some();
                TlsSettings::Files { certificate, key, client_ca, require_client_auth }
            }
            (None, None) => TlsSettings::Local { require_client_auth },
            (certificate, _) => {
                let (there, missing) = if certificate.is_some() {
                    ("cert_path", "key_path")
                } else {
                    ("key_path", "cert_path")
                };
                let message =
                    format!("{there} is given and {missing} is not; give both or neither");
                values.fault_at(&format!("gateway.tls.{there}"), message);
                // Only so that reading can go on without faults that follow from this one.
                TlsSettings::Local { require_client_auth }
            }
        })
    };
    let has_client_ca = gateway.tls.as_ref().is_some_and(TlsSettings::has_client_ca);
    gateway.users = UserSettings {
        mtls: values.switch("gateway.mtls_auth.enabled").unwrap_or(has_client_ca),
        allow_unauthenticated: open,
    };
}

fn tokens(tokens: &mut TokenSettings, values: &mut Values) {
    tokens.signing_key = values.path("gateway.gateway_jwt.signing_key_path");
    tokens.kid = values.path("gateway.gateway_jwt.kid_path");
    if let Some(id) = values.text("gateway.gateway_jwt.gateway_id") {
        if id.is_empty()
            || id.len() > 128
            || id.chars().any(|c| c.is_control() || c.is_whitespace())
        {
            let message =
                "gateway_id is not 1 to 128 characters without spaces; write such as \"openshell\"";
            values.fault_at("gateway.gateway_jwt.gateway_id", message);
        }
        tokens.gateway_id = id;
    }
    const LONGEST_TTL: u64 = 10 * 365 * 86_400;
    if let Some(seconds) = values.number("gateway.gateway_jwt.ttl_secs", 0..=LONGEST_TTL) {
        if (1..60).contains(&seconds) {
            let message = format!(
                "ttl_secs = {seconds} is shorter than a supervisor takes to renew its token; write at least 60, or 0 for ever"
            );
            values.fault_at("gateway.gateway_jwt.ttl_secs", message);
        }
        tokens.ttl = Duration::from_secs(seconds);
    }
}

/// OpenShell's gateway-wide limit is the global quota of the layer.
fn rate_limit(config: &mut Config, values: &mut Values) {
    let (calls_key, window_key) =
        ("gateway.grpc_rate_limit_requests", "gateway.grpc_rate_limit_window_seconds");
    let calls = values.number(calls_key, 0..=u64::from(u32::MAX));
    let window = values.number(window_key, 0..=86_400);
    let (calls, window) = match (calls, window) {
        (None, None) | (Some(0), _) | (_, Some(0)) => return,
        (Some(calls), Some(window)) => (calls, window),
        (there, _) => {
            let key = if there.is_some() { calls_key } else { window_key };
            let message = "grpc_rate_limit_requests and grpc_rate_limit_window_seconds go together; give both or neither";
            return values.fault_at(key, message);
        }
    };
    if config.layers.rate_limit.global.is_some() {
        let message =
            "the limit is given twice; remove this or global in [openshell.layer.rate_limit]";
        return values.fault_at(calls_key, message);
    }
    if !config.stack.has("rate_limit") {
        let message = "nothing applies this limit; add \"rate_limit\" to call in [openshell.stack], or remove it";
        return values.fault_at(calls_key, message);
    }
    let calls = u32::try_from(calls).unwrap_or(u32::MAX);
    let quota = Quota { calls, per: Duration::from_secs(window), burst: calls };
    config.layers.rate_limit.global = Some(quota);
}

impl Values {
    pub(super) fn fault(&mut self, fault: Fault) {
        self.faults.push(fault);
    }

    /// A fault at the place where `path` was given.
    pub(super) fn fault_at(&mut self, path: &str, message: impl Into<String>) {
        let origin = self.given.get(path).map_or(Origin::Nowhere, |given| given.origin.clone());
        self.faults.push(Fault::new(origin, message));
    }

    /// Takes a value that replaces a weaker one.
    pub(super) fn give(&mut self, key: &'static Key, given: Given) {
        if let Support::Only(value, why) = key.support {
            let asks = match &given.value {
                Value::Text(text) => text.clone(),
                Value::Switch(on) => on.to_string(),
                Value::Number(number) => number.to_string(),
                Value::List(items) => items.join(","),
            };
            if asks != value {
                let name = key.path.rsplit('.').next().unwrap_or(key.path);
                let message =
                    format!("{name} = {asks} is not supported: {why}; write {value} or remove it");
                self.fault(Fault::new(given.origin, message));
            }
            return;
        }
        self.given.insert(key.path, given);
    }

    pub(super) fn is_given(&self, path: &str) -> bool {
        self.given.contains_key(path)
    }

    /// Environment variables, then flags.
    fn take_outside(&mut self, sources: &Sources) {
        for key in keys::KEYS.iter().filter(|key| !key.env.is_empty()) {
            // Set to nothing is how a container file unsets it.
            if let Some(text) = sources.environment.get(key.env).filter(|text| !text.is_empty()) {
                self.outside(key, Origin::Environment(key.env), text);
            }
        }
        for (flag, text) in &sources.flags {
            match keys::KEYS.iter().find(|key| key.flag == flag.as_str()) {
                Some(key) => self.outside(key, Origin::Flag(key.flag), text),
                None => {
                    self.fault(Fault::new(
                        Origin::Nowhere,
                        format!("there is no flag {flag}; see --help"),
                    ));
                }
            }
        }
    }

    fn outside(&mut self, key: &'static Key, origin: Origin, text: &str) {
        if let Support::No(why) = key.support {
            return self.fault(Fault::new(origin, format!("not supported: {why}")));
        }
        let value = match key.kind {
            Kind::Text | Kind::Address | Kind::Duration => Some(Value::Text(text.to_owned())),
            Kind::Number => text.parse().ok().map(Value::Number),
            Kind::Switch => match text.to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" => Some(Value::Switch(true)),
                "false" | "0" | "no" => Some(Value::Switch(false)),
                _ => None,
            },
            Kind::List => {
                let items = text.split(',').map(str::trim).filter(|item| !item.is_empty());
                Some(Value::List(items.map(str::to_owned).collect()))
            }
        };
        match value {
            Some(value) => self.give(key, Given { value, origin }),
            None => {
                let message = format!("\"{text}\" does not fit; write {}", key.kind.wanted());
                self.fault(Fault::new(origin, message));
            }
        }
    }

    fn text(&self, path: &str) -> Option<String> {
        match &self.given.get(path)?.value {
            Value::Text(text) => Some(text.clone()),
            _ => None,
        }
    }

    fn list(&self, path: &str) -> Option<Vec<String>> {
        match &self.given.get(path)?.value {
            Value::List(items) => Some(items.clone()),
            _ => None,
        }
    }

    fn switch(&self, path: &str) -> Option<bool> {
        match self.given.get(path)?.value {
            Value::Switch(on) => Some(on),
            _ => None,
        }
    }

    fn number(&mut self, path: &str, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let Value::Number(number) = self.given.get(path)?.value else { return None };
        if !range.contains(&number) {
            let name = path.rsplit('.').next().unwrap_or(path);
            let message = format!(
                "{name} = {number} is out of range; write {} to {}",
                range.start(),
                range.end()
            );
            self.fault_at(path, message);
            return None;
        }
        Some(number)
    }

    fn duration(
        &mut self,
        path: &str,
        range: std::ops::RangeInclusive<Duration>,
    ) -> Option<Duration> {
        let text = self.text(path)?;
        let name = path.rsplit('.').next().unwrap_or(path);
        match parse_duration(&text) {
            Ok(time) if range.contains(&time) => return Some(time),
            Ok(_) => {
                let message = format!(
                    "{name} = \"{text}\" is out of range; write {:?} to {:?}",
                    range.start(),
                    range.end()
                );
                self.fault_at(path, message);
            }
            Err(error) => self.fault_at(path, format!("{name}: {error}")),
        }
        None
    }

    fn path(&mut self, path: &str) -> Option<PathBuf> {
        let text = self.text(path)?;
        if text.is_empty() {
            let name = path.rsplit('.').next().unwrap_or(path);
            self.fault_at(path, format!("{name} is empty; write a path or remove it"));
            return None;
        }
        Some(PathBuf::from(text))
    }

    /// An address and port; outside the file also an address alone, which keeps the port of `now`.
    fn listen_address(&mut self, path: &str, now: SocketAddr) -> Option<SocketAddr> {
        let text = self.text(path)?;
        if let Ok(address) = text.parse() {
            return Some(address);
        }
        let outside = !matches!(self.given.get(path)?.origin, Origin::File { .. });
        if outside && let Ok(address) = text.parse() {
            return Some(SocketAddr::new(address, now.port()));
        }
        let name = path.rsplit('.').next().unwrap_or(path);
        let wanted = Kind::Address.wanted();
        self.fault_at(path, format!("{name} = \"{text}\" is no address and port; write {wanted}"));
        None
    }

    /// An address and port; outside the file also a port alone, on the address of `beside`, where 0 is off.
    fn side_address(&mut self, path: &str, beside: SocketAddr) -> Option<SocketAddr> {
        let text = self.text(path)?;
        let outside = !matches!(self.given.get(path)?.origin, Origin::File { .. });
        if outside && let Ok(port) = text.parse::<u16>() {
            return (port != 0).then(|| SocketAddr::new(beside.ip(), port));
        }
        self.listen_address(path, beside)
    }
}
