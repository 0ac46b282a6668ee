//! The three planes of a running gateway, each of which can be built again with other values.
//!
//! Layers that count (caps, rates) are built once and take new values in place, so that nothing is forgotten. All
//! others are built again around the same inner ends; what is under way keeps the layers it began with.

use std::{convert::Infallible, fmt, sync::Arc};

use http::Response;
use postern_layers::ocsf::Recorder;
use postern_relay::registry::Registry;
use rustls::ServerConfig;
use tonic::body::Body;
use tower::util::BoxCloneSyncService;
use tower_service::Service;

use super::live::Live;
use crate::{
    config::{Config, LayerConfigs, Stack},
    drain::Watch,
    gateway::Handles,
    listen::{self, Connection, ConnectionError, ConnectionPlane, ConnectionState},
    relay_plane::{Budgets, OpenError, OpenedRelay, RelayPlane, RelayRequest},
    stack::{self, Call, CallParts, CallPlane, CallState, RelayState},
};

type Build<R, T, E> = Box<dyn Fn(&LayerConfigs, u64) -> BoxCloneSyncService<R, T, E> + Send + Sync>;

/// One plane, and how it is built.
struct Plane<R, T, E> {
    live: Live<R, T, E>,
    build: Build<R, T, E>,
}

/// The relay plane.
pub(crate) struct Relays {
    plane: Plane<RelayRequest, OpenedRelay, OpenError>,
    state: RelayState,
    budgets: Budgets,
}

/// The call plane.
pub(crate) struct Calls {
    plane: Plane<Call, Response<Body>, Infallible>,
    state: CallState,
}

/// The connection plane.
pub(crate) struct Connections {
    plane: Plane<Connection, (), ConnectionError>,
    state: ConnectionState,
}

/// All of them.
pub(crate) struct Planes {
    pub(crate) stack: Stack,
    pub(crate) relays: Relays,
    pub(crate) calls: Calls,
    pub(crate) connections: Connections,
}

impl<R: Send + 'static, T: 'static, E: 'static> Plane<R, T, E>
where
    Live<R, T, E>: Service<R, Response = T, Error = E> + Send + Sync,
    <Live<R, T, E> as Service<R>>::Future: Send,
{
    fn new(values: &LayerConfigs, seed: u64, build: Build<R, T, E>) -> Self {
        Self { live: Live::new(build(values, seed)), build }
    }

    fn service(&self) -> BoxCloneSyncService<R, T, E> {
        BoxCloneSyncService::new(self.live.clone())
    }

    fn set(&self, values: &LayerConfigs, seed: u64) {
        self.live.set((self.build)(values, seed));
    }
}

impl Relays {
    pub(crate) fn new(
        config: &Config,
        registry: &Registry,
        recorder: &Recorder,
        seed: u64,
    ) -> Self {
        let state = RelayState::new(&config.layers);
        let (kept, stack) = (state.clone(), config.stack.clone());
        let (registry, recorder) = (registry.clone(), recorder.clone());
        let build = Box::new(move |values: &LayerConfigs, seed| {
            stack::relay_plane_on(&kept, &stack, values, &registry, &recorder, seed)
        });
        let budgets = Budgets::of(&config.stack, &config.layers.session_wait);
        Self { plane: Plane::new(&config.layers, seed, build), state, budgets }
    }

    /// The plane, for handlers.
    pub(crate) fn plane(&self) -> RelayPlane {
        RelayPlane::new(self.plane.service())
    }

    pub(crate) fn budgets(&self) -> Budgets {
        self.budgets.clone()
    }
}

impl Calls {
    pub(crate) fn new<R>(config: &Config, parts: CallParts, router: R) -> Self
    where
        R: Service<Call, Response = Response<Body>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        R::Future: Send + 'static,
    {
        let state = CallState::new(&config.layers);
        let (kept, stack, seed) = (state.clone(), config.stack.clone(), parts.seed);
        let build = Box::new(move |values: &LayerConfigs, seed| {
            let parts = CallParts { seed, ..parts.clone() };
            stack::call_plane_on(&kept, &stack, values, &parts, router.clone())
        });
        Self { plane: Plane::new(&config.layers, seed, build), state }
    }

    /// The plane, for connections.
    pub(crate) fn plane(&self) -> CallPlane {
        self.plane.service()
    }
}

impl Connections {
    pub(crate) fn new(
        config: &Config,
        tls: Option<Arc<ServerConfig>>,
        calls: CallPlane,
        drain: Watch,
    ) -> Self {
        let state = ConnectionState::new(&config.layers, tls);
        let (kept, stack) = (state.clone(), config.stack.clone());
        let build = Box::new(move |values: &LayerConfigs, _| {
            listen::connection_plane_on(&kept, &stack, values, calls.clone(), drain.clone())
        });
        Self { plane: Plane::new(&config.layers, 0, build), state }
    }

    /// The plane, for listeners.
    pub(crate) fn plane(&self) -> ConnectionPlane {
        self.plane.service()
    }
}

impl Planes {
    /// Puts `values` in force. `seed` has not been used before: ids must not come again.
    pub(crate) fn set(&self, values: &LayerConfigs, seed: u64) {
        self.connections.state.set(values);
        self.calls.state.set(values);
        self.relays.state.set(values);
        self.relays.budgets.set(&Budgets::of(&self.stack, &values.session_wait));
        self.relays.plane.set(values, seed);
        self.calls.plane.set(values, seed);
        self.connections.plane.set(values, seed);
    }

    /// Handles on the layers that count. They stay good over every [`set`](Self::set).
    pub(crate) fn handles(&self) -> Handles {
        Handles {
            connection: self.connections.state.handles(&self.stack),
            call: self.calls.state.handles(&self.stack),
            relay: self.relays.state.handles(&self.stack),
        }
    }
}

impl fmt::Debug for Planes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Planes").field("stack", &self.stack).finish_non_exhaustive()
    }
}
