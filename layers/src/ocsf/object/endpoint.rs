//! Where: endpoints of connections, the device an event happened on, connections and their traffic.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use serde::Serialize;

use super::{text_setters, value_setters};
use crate::ocsf::text::{MAX_NAME_BYTES, Text, clip};
use crate::ocsf::vocabulary::vocabulary;

/// One end of a connection (`network_endpoint`). Always says at least one of address, host name and name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Endpoint {
    #[serde(skip_serializing_if = "Option::is_none")]
    ip: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hostname: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    svc_name: Option<Text>,
}

impl Endpoint {
    const EMPTY: Self =
        Self { ip: None, hostname: None, port: None, name: None, uid: None, svc_name: None };

    /// An address. IPv4 inside IPv6 is written as IPv4, so one peer has one spelling.
    #[must_use]
    pub fn ip(ip: IpAddr) -> Self {
        Self { ip: Some(ip.to_canonical()), ..Self::EMPTY }
    }

    /// An address with a port.
    #[must_use]
    pub fn socket(address: SocketAddr) -> Self {
        Self::ip(address.ip()).port(address.port())
    }

    /// A host name; an address in text form is kept as an address.
    #[must_use]
    pub fn host(host: impl Into<Cow<'static, str>>) -> Self {
        let host = host.into();
        let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&host);
        match bare.parse() {
            Ok(ip) => Self::ip(ip),
            Err(_) => Self { hostname: Some(clip(host, MAX_NAME_BYTES)), ..Self::EMPTY },
        }
    }

    /// Something that has a name but no address: a sandbox, a Unix socket.
    #[must_use]
    pub fn named(name: impl Into<Cow<'static, str>>) -> Self {
        Self { name: Some(clip(name, MAX_NAME_BYTES)), ..Self::EMPTY }
    }

    /// An end nothing is known of, where the schema insists on one.
    #[must_use]
    pub fn unknown() -> Self {
        Self::named("unknown")
    }

    value_setters! {
        /// Its port.
        port: u16;
    }

    text_setters! {
        /// Its stable identifier, such as a sandbox id.
        uid, MAX_NAME_BYTES;
        /// The service reached there.
        svc_name, MAX_NAME_BYTES;
    }

    /// The host part for the short form.
    pub(crate) fn shown_host(&self) -> Cow<'_, str> {
        match (&self.hostname, &self.ip, &self.name) {
            (Some(host), _, _) => Cow::Borrowed(host),
            (None, Some(IpAddr::V6(ip)), _) if self.port.is_some() => Cow::Owned(format!("({ip})")),
            (None, Some(ip), _) => Cow::Owned(ip.to_string()),
            (None, None, Some(name)) => Cow::Borrowed(name),
            (None, None, None) => Cow::Borrowed("unknown"),
        }
    }

    pub(crate) fn shown_port(&self) -> Option<u16> {
        self.port
    }
}

/// The two ends of a connection, of which at least one is known (a constraint of the network classes).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peers {
    pub(crate) src: Option<Endpoint>,
    pub(crate) dst: Option<Endpoint>,
}

impl Peers {
    /// Only the end that was connected to is known.
    #[must_use]
    pub fn to(dst: Endpoint) -> Self {
        Self { src: None, dst: Some(dst) }
    }

    /// Only the end that connected is known.
    #[must_use]
    pub fn from(src: Endpoint) -> Self {
        Self { src: Some(src), dst: None }
    }

    /// Both ends are known.
    #[must_use]
    pub fn between(src: Endpoint, dst: Endpoint) -> Self {
        Self { src: Some(src), dst: Some(dst) }
    }
}

vocabulary! {
    /// What sort of machine a device is (`type_id`).
    DeviceKind {
        /// Not known.
        Unknown = 0, "Unknown";
        /// A server.
        Server = 1, "Server";
        /// A virtual machine or a sandbox.
        Virtual = 6, "Virtual";
    }
}

/// A container (`container`), part of a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Container {
    name: Text,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<Image>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Image {
    uid: Text,
}

impl Container {
    /// A container of that name.
    #[must_use]
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self { name: clip(name, MAX_NAME_BYTES), uid: None, runtime: None, image: None }
    }

    text_setters! {
        /// Its full identifier.
        uid, MAX_NAME_BYTES;
        /// What runs it.
        runtime, MAX_NAME_BYTES;
    }

    /// The image it was made from, by reference or digest.
    #[must_use]
    pub fn image(mut self, reference: impl Into<Cow<'static, str>>) -> Self {
        self.image = Some(Image { uid: clip(reference, MAX_NAME_BYTES) });
        self
    }
}

/// The machine an event happened on (`device`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Device {
    type_id: u8,
    r#type: &'static str,
    hostname: Text,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ip: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    container: Option<Container>,
}

impl Device {
    /// A machine of that host name.
    #[must_use]
    pub fn new(kind: DeviceKind, hostname: impl Into<Cow<'static, str>>) -> Self {
        Self {
            type_id: kind.id(),
            r#type: kind.label(),
            hostname: clip(hostname, MAX_NAME_BYTES),
            uid: None,
            name: None,
            ip: None,
            container: None,
        }
    }

    text_setters! {
        /// Its stable identifier, such as a sandbox id.
        uid, MAX_NAME_BYTES;
        /// The name people know it by.
        name, MAX_NAME_BYTES;
    }

    value_setters! {
        /// Its address.
        ip: IpAddr;
        /// The container that is, or runs on, this machine.
        container: Container;
    }

    pub(crate) fn hostname(&self) -> &str {
        &self.hostname
    }

    pub(crate) fn has_container(&self) -> bool {
        self.container.is_some()
    }
}

vocabulary! {
    /// Which way a connection was opened, seen from the device (`direction_id`).
    Direction {
        /// Not known.
        Unknown = 0, "Unknown";
        /// From elsewhere to the device.
        Inbound = 1, "Inbound";
        /// From the device to elsewhere.
        Outbound = 2, "Outbound";
        /// Within the device.
        Local = 4, "Local";
    }
}

/// How two ends are connected (`network_connection_info`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Connection {
    direction_id: u8,
    direction: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol_name: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<Text>,
}

impl Connection {
    /// A connection in that direction.
    #[must_use]
    pub fn new(direction: Direction) -> Self {
        Self {
            direction_id: direction.id(),
            direction: direction.label(),
            protocol_name: None,
            uid: None,
        }
    }

    text_setters! {
        /// The transport in lower case, such as `tcp` or `unix`.
        protocol_name, MAX_NAME_BYTES;
        /// Its identifier, such as a relay's channel id.
        uid, MAX_NAME_BYTES;
    }

    pub(crate) fn shown_protocol(&self) -> Option<&str> {
        self.protocol_name.as_deref()
    }
}

/// How much went over a connection (`network_traffic`), in bytes, as the device counts it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Traffic {
    bytes_in: i64,
    bytes_out: i64,
    bytes: i64,
}

impl Traffic {
    /// Bytes received and sent. The schema's numbers are signed; beyond that they stay at the largest.
    #[must_use]
    pub fn new(bytes_in: u64, bytes_out: u64) -> Self {
        let signed = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        Self {
            bytes_in: signed(bytes_in),
            bytes_out: signed(bytes_out),
            bytes: signed(bytes_in.saturating_add(bytes_out)),
        }
    }
}
