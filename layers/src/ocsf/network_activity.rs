//! Network Activity, class 4001: connections, sessions and relays.

use serde::ser::SerializeMap;

use super::common::{Common, common_setters, status_setters};
use super::event::{Activity, Class};
use super::object::{Connection, Peers, Traffic, Url, value_setters};
use super::short::Line;
use super::vocabulary::{put, vocabulary};

vocabulary! {
    /// What became of a connection. Shared by the classes Network Activity and SSH Activity.
    ConnectionActivity {
        /// It was opened.
        Open = 1, "Open";
        /// It ended as it should.
        Close = 2, "Close";
        /// It was torn down by one end.
        Reset = 3, "Reset";
        /// It could not be opened, or broke.
        Fail = 4, "Fail";
        /// It was refused by a rule or by the other end.
        Refuse = 5, "Refuse";
        /// Something passed over it.
        Traffic = 6, "Traffic";
        /// An end began to wait for connections.
        Listen = 7, "Listen";
        /// Something else; the message says what.
        Other = 99, "Other";
    }
}

/// An event of class 4001.
#[derive(Clone, Debug, PartialEq)]
pub struct NetworkActivity {
    activity: ConnectionActivity,
    peers: Peers,
    connection: Option<Connection>,
    traffic: Option<Traffic>,
    url: Option<Url>,
    common: Common,
}

impl NetworkActivity {
    /// Something happened to the connection between `peers` at `time`, in milliseconds since 1970.
    #[must_use]
    pub fn new(activity: ConnectionActivity, peers: Peers, time: i64) -> Self {
        Self {
            activity,
            peers,
            connection: None,
            traffic: None,
            url: None,
            common: Common::new(time),
        }
    }

    value_setters! {
        /// Direction, transport and identifier of the connection.
        connection: Connection;
        /// What passed over it.
        traffic: Traffic;
        /// The URL it was opened for.
        url: Url;
    }

    common_setters!();
    status_setters!();
}

impl Class for NetworkActivity {
    const UID: u32 = 4001;
    const NAME: &'static str = "Network Activity";
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
        put(map, "url", self.url.as_ref())
    }

    fn short(&self, line: &mut Line<'_>) {
        line.head("NET", self.activity.label());
        line.verdict();
        line.route(&self.peers, self.connection.as_ref());
        line.context();
    }
}
