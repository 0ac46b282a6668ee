//! SSH Activity, class 4007: the SSH server inside a sandbox.

use serde::ser::SerializeMap;

use super::common::{Common, common_setters, status_setters};
use super::event::{Activity, Class};
use super::network_activity::ConnectionActivity;
use super::object::{Connection, Peers, Traffic, text_setters, value_setters};
use super::short::Line;
use super::text::{MAX_NAME_BYTES, Text};
use super::vocabulary::{put, put_numbered, vocabulary};

vocabulary! {
    /// How the client proved who it is (`auth_type_id`).
    SshAuth {
        /// A certificate.
        Certificate = 1, "Certificate Based";
        /// A password.
        Password = 5, "Password";
        /// A public key.
        PublicKey = 6, "Public Key";
        /// Not at all: whoever reaches the socket may log in (RFC 4252 section 5.2).
        None = 99, "none";
    }
}

/// An event of class 4007.
#[derive(Clone, Debug, PartialEq)]
pub struct SshActivity {
    activity: ConnectionActivity,
    peers: Peers,
    auth: Option<SshAuth>,
    protocol_ver: Option<Text>,
    connection: Option<Connection>,
    traffic: Option<Traffic>,
    common: Common,
}

impl SshActivity {
    /// Something happened to the SSH connection between `peers` at `time`, in milliseconds since 1970.
    #[must_use]
    pub fn new(activity: ConnectionActivity, peers: Peers, time: i64) -> Self {
        Self {
            activity,
            peers,
            auth: None,
            protocol_ver: None,
            connection: None,
            traffic: None,
            common: Common::new(time),
        }
    }

    value_setters! {
        /// How the client proved who it is.
        auth: SshAuth;
        /// Direction, transport and identifier of the connection.
        connection: Connection;
        /// What passed over it.
        traffic: Traffic;
    }

    text_setters! {
        /// The identification string of the client (RFC 4253 section 4.2).
        protocol_ver, MAX_NAME_BYTES;
    }

    common_setters!();
    status_setters!();
}

impl Class for SshActivity {
    const UID: u32 = 4007;
    const NAME: &'static str = "SSH Activity";
    const CATEGORY: (u8, &'static str) = (4, "Network Activity");

    fn activity(&self) -> Activity<'_> {
        Activity::known(self.activity.id(), self.activity.label())
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn put_own<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        put(map, "src_endpoint", self.peers.src.as_ref())?;
        put(map, "dst_endpoint", self.peers.dst.as_ref())?;
        put(map, "connection_info", self.connection.as_ref())?;
        put(map, "traffic", self.traffic.as_ref())?;
        put(map, "protocol_ver", self.protocol_ver.as_ref())?;
        put_numbered(
            map,
            "auth_type_id",
            "auth_type",
            self.auth.map(|auth| (auth.id(), auth.label())),
        )
    }

    fn short(&self, line: &mut Line<'_>) {
        line.head("SSH", self.activity.label());
        line.verdict();
        line.route(&self.peers, self.connection.as_ref());
        if let Some(auth) = self.auth {
            line.bracket(&[("auth", auth.label())]);
        }
        line.context();
    }
}
