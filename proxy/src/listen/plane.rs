//! The connection plane: the list of the configuration around the HTTP end.

use std::{sync::Arc, time::Duration};

use postern_layers::{
    connection_cap::{self, ConnectionCapLayer},
    h2_window,
    handshake_deadline::{self, HandshakeDeadlineLayer},
    tls::{self, TlsLayer},
};
use rustls::ServerConfig;
use tower::util::BoxCloneSyncService;
use tower_layer::Layer as _;

use super::{Connection, ConnectionError, ServeHttp};
use crate::{
    config::{ConnectionLayer, LayerConfigs, Stack},
    drain::Watch,
    stack::CallPlane,
};

/// The connection plane, and every stage of it.
pub type ConnectionPlane = BoxCloneSyncService<Connection, (), ConnectionError>;

/// The layers that are kept when the plane is built again with other values: what counts, and TLS, whose files are
/// read on their own.
#[derive(Clone, Debug)]
pub struct ConnectionState {
    connection_cap: ConnectionCapLayer,
    tls: Option<TlsLayer>,
}

impl ConnectionState {
    /// No connection yet.
    #[must_use]
    pub fn new(values: &LayerConfigs, tls: Option<Arc<ServerConfig>>) -> Self {
        let connection_cap = ConnectionCapLayer::new(&values.connection_cap);
        Self { connection_cap, tls: tls.map(TlsLayer::new) }
    }

    /// Puts other values in force.
    pub fn set(&self, values: &LayerConfigs) {
        self.connection_cap.handle().set(&values.connection_cap);
    }

    /// Handles on those that `stack` has.
    #[must_use]
    pub fn handles(&self, stack: &Stack) -> ConnectionHandles {
        let has = |layer| stack.connection.contains(&layer);
        let tls = self.tls.as_ref().filter(|_| has(ConnectionLayer::Tls));
        ConnectionHandles {
            connection_cap: has(ConnectionLayer::ConnectionCap)
                .then(|| self.connection_cap.handle()),
            tls: tls.map(TlsLayer::handle),
        }
    }
}

/// Handles on the layers that can be read and changed while they are in use; `None` for a layer that is not there.
#[derive(Clone, Debug, Default)]
pub struct ConnectionHandles {
    /// Connections, in all and per peer address.
    pub connection_cap: Option<connection_cap::Handle>,
    /// The TLS configuration of new connections.
    pub tls: Option<tls::Handle>,
}

/// Builds the connection plane around `calls`.
///
/// A `tls` layer without a configuration is left out; the configuration has been checked for that.
#[must_use]
pub fn connection_plane(
    stack: &Stack,
    values: &LayerConfigs,
    tls: Option<Arc<ServerConfig>>,
    calls: CallPlane,
    drain: Watch,
) -> (ConnectionPlane, ConnectionHandles) {
    let state = ConnectionState::new(values, tls);
    (connection_plane_on(&state, stack, values, calls, drain), state.handles(stack))
}

/// Builds the connection plane around `calls`, with the layers that are kept from `state`.
#[must_use]
pub fn connection_plane_on(
    state: &ConnectionState,
    stack: &Stack,
    values: &LayerConfigs,
    calls: CallPlane,
    drain: Watch,
) -> ConnectionPlane {
    // Flow control is a property of the inner end, not a service around it.
    let h2 = stack.connection.contains(&ConnectionLayer::H2Window).then_some(&values.h2_window);
    // Fixed inner end.
    let mut plane: ConnectionPlane = BoxCloneSyncService::new(ServeHttp::new(calls, h2, drain));
    for layer in stack.connection.iter().rev() {
        plane = match layer {
            ConnectionLayer::ConnectionCap => {
                BoxCloneSyncService::new(state.connection_cap.layer(plane))
            }
            ConnectionLayer::HandshakeDeadline => {
                let layer = HandshakeDeadlineLayer::new(&values.handshake_deadline);
                BoxCloneSyncService::new(layer.layer(plane))
            }
            ConnectionLayer::Tls => match &state.tls {
                None => plane,
                Some(layer) => BoxCloneSyncService::new(layer.layer(plane)),
            },
            ConnectionLayer::H2Window => plane,
        };
    }
    plane
}

/// Connections that a side port (health, metrics) serves at a time: a few probers and scrapers.
const SIDE_CONNECTIONS: u32 = 64;

/// Time until the first request on a side port.
const SIDE_HANDSHAKE: Duration = Duration::from_secs(5);

/// The connection plane of a side port: bounded, in plaintext, not configurable.
#[must_use]
pub fn side_plane(calls: CallPlane, drain: Watch) -> ConnectionPlane {
    let h2 = h2_window::Config::default();
    let plane = ServeHttp::new(calls, Some(&h2), drain);
    let deadline = handshake_deadline::Config { total: SIDE_HANDSHAKE };
    let plane = HandshakeDeadlineLayer::new(&deadline).layer(plane);
    let caps = connection_cap::Config { total: SIDE_CONNECTIONS, per_peer: SIDE_CONNECTIONS };
    BoxCloneSyncService::new(ConnectionCapLayer::new(&caps).layer(plane))
}
