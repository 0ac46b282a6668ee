//! THE place: lists of the configuration become stacks of layers.
//!
//! Read it top to bottom. Each plane is a fixed inner end, then one arm per layer, applied from the last name of the
//! list to the first, so that the first name stands outermost; then a fixed outer end. A layer that is not in the list
//! is not built. Every configured layer is boxed, which costs an allocation and a virtual call per call and buys that
//! the operator decides the order. The order rules stand in [`crate::config::ORDER_RULES`].
//!
//! ```text
//! call:   failure table ▸ [request_id trace metrics rate_limit authenticate authorize ocsf deadline] ▸ router
//! relay:  caller        ▸ [ocsf metrics relay_caps session_wait]                                     ▸ registry
//! ```

mod audit;
mod observe;

use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use http::request::Parts;
use http::{Method, Request, Response};
use postern_layers::authenticate::{self, Authenticate as _, AuthenticateLayer, Cached};
use postern_layers::authorize::{AuthorizeLayer, Denied};
use postern_layers::body_limit::BodyLimitLayer;
use postern_layers::concurrency_cap::{self, ConcurrencyCapLayer};
use postern_layers::deadline::DeadlineLayer;
use postern_layers::metrics::MetricsLayer;
use postern_layers::ocsf::{OcsfLayer, OcsfRelayLayer, Recorder};
use postern_layers::rate_limit::{self, RateLimitLayer};
use postern_layers::refuse::Protocol;
use postern_layers::relay_caps::{self, RelayCapsLayer};
use postern_layers::relay_metrics::RelayMetricsLayer;
use postern_layers::request_id::{RequestIdLayer, SeededRequestIds};
use postern_layers::session_wait::SessionWaitLayer;
use postern_proto::authorization::AuthorizationTable;
use postern_relay::registry::Registry;
use tonic::body::Body;
use tower::util::BoxCloneSyncService;
use tower::{Layer as _, ServiceExt as _};
use tower_service::Service;

use crate::auth::Principal;
use crate::auth::client_certificate::ClientCertificate;
use crate::auth::local_dev::LocalDev;
use crate::auth::sandbox_token::SandboxToken;
use crate::auth::ssh_session::SshSessionToken;
use crate::authorize::{Authorization, Target};
use crate::config::{CallLayer, LayerConfigs, RelayLayer, Stack};
use crate::listen::ConnectInfo;
use crate::relay_plane::{OpenAtRegistry, OpenError, RelayPlane, RelayRequest, RelayStack};

pub use self::observe::{CallObserver, RelayEndObserver, RelayObserver};

/// A request on the call plane.
pub type Call = Request<Body>;
/// The call plane, and every stage of it.
pub type CallPlane = BoxCloneSyncService<Call, Response<Body>, Infallible>;

/// What the layers of the call plane need besides their values.
#[derive(Clone, Debug)]
pub struct CallParts {
    /// Rules of all methods and routes.
    pub rules: Arc<AuthorizationTable>,
    /// Judges sandbox tokens.
    pub sandbox_tokens: SandboxToken,
    /// Judges SSH session tokens.
    pub ssh_sessions: SshSessionToken,
    /// Whether a client certificate can make a user.
    pub client_certificates: bool,
    /// Whether whoever shows nothing is the local developer.
    pub local_dev: bool,
    /// Where audit records go.
    pub recorder: Recorder,
    /// Seed of request ids; any number that differs between gateways.
    pub seed: u64,
}

/// The layers of the call plane that count. A plane that is built again around the same state goes on counting, so
/// that other values forget nothing.
#[derive(Clone, Debug)]
pub struct CallState {
    rate_limit: RateLimitLayer<fn(&Call) -> Option<IpAddr>, IpAddr>,
    concurrency_cap: ConcurrencyCapLayer<fn(&Call) -> Option<String>, String>,
}

/// As [`CallState`], for the relay plane.
#[derive(Clone, Debug)]
pub struct RelayState {
    relay_caps: RelayCapsLayer<SandboxOf, ClassOf, Arc<str>>,
}

type SandboxOf = fn(&RelayRequest) -> Option<Arc<str>>;
type ClassOf = fn(&RelayRequest) -> Option<&'static str>;

/// Handles on the layers of the call plane that can be read and changed while they are in use; `None` for a layer that
/// the stack does not have.
#[derive(Clone, Debug, Default)]
pub struct CallHandles {
    /// Rates per peer address.
    pub rate_limit: Option<rate_limit::Handle<IpAddr>>,
    /// Calls in progress per principal.
    pub concurrency_cap: Option<concurrency_cap::Handle<String>>,
}

/// As [`CallHandles`], for the relay plane.
#[derive(Clone, Debug, Default)]
pub struct RelayHandles {
    /// Pending and live relays per sandbox.
    pub relay_caps: Option<relay_caps::Handle<Arc<str>>>,
}

// === the call plane ===

/// Builds the call plane around `router`.
pub fn call_plane<R>(
    stack: &Stack,
    values: &LayerConfigs,
    parts: &CallParts,
    router: R,
) -> (CallPlane, CallHandles)
where
    R: Service<Call, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    R::Future: Send + 'static,
{
    let state = CallState::new(values);
    (call_plane_on(&state, stack, values, parts, router), state.handles(stack))
}

/// Builds the call plane around `router`, with the layers that count from `state`.
pub fn call_plane_on<R>(
    state: &CallState,
    stack: &Stack,
    values: &LayerConfigs,
    parts: &CallParts,
    router: R,
) -> CallPlane
where
    R: Service<Call, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    R::Future: Send + 'static,
{
    // Fixed inner end.
    let mut plane: CallPlane = BoxCloneSyncService::new(router);
    for layer in stack.call.iter().rev() {
        plane = match layer {
            CallLayer::RequestId => {
                let ids = SeededRequestIds::new(parts.seed);
                boxed(RequestIdLayer::new(&values.request_id, ids).layer(plane))
            }
            CallLayer::Trace => boxed(observe::trace_layer().layer(plane)),
            CallLayer::Metrics => {
                boxed(MetricsLayer::new(CallObserver::new(&parts.rules)).layer(plane))
            }
            CallLayer::RateLimit => boxed(state.rate_limit.layer(plane)),
            CallLayer::Authenticate => authenticate_layer(stack, parts, plane),
            CallLayer::Authorize => boxed(AuthorizeLayer::new(decision(parts)).layer(plane)),
            CallLayer::Ocsf => {
                let audit = audit::Calls::new(&parts.rules);
                boxed(OcsfLayer::new(audit, parts.recorder.clone()).layer(plane))
            }
            CallLayer::Deadline => {
                let layer = DeadlineLayer::new(&values.deadline).exempt(is_stream(&parts.rules));
                boxed(layer.layer(plane))
            }
            CallLayer::ConcurrencyCap => boxed(state.concurrency_cap.layer(plane)),
            CallLayer::BodyLimit => {
                let layer = BodyLimitLayer::new(&values.body_limit).exempt(is_stream(&parts.rules));
                boxed(layer.layer(plane.map_request(|call: Request<_>| call.map(Body::new))))
            }
        };
    }
    // Fixed outer end.
    crate::respond::failure_table(plane)
}

impl CallState {
    /// Nothing counted yet.
    #[must_use]
    pub fn new(values: &LayerConfigs) -> Self {
        Self {
            rate_limit: RateLimitLayer::new(&values.rate_limit, peer_ip),
            concurrency_cap: ConcurrencyCapLayer::new(&values.concurrency_cap, principal_key),
        }
    }

    /// Puts other values in force.
    pub fn set(&self, values: &LayerConfigs) {
        self.rate_limit.handle().set(&values.rate_limit);
        self.concurrency_cap.handle().set(&values.concurrency_cap);
    }

    /// Handles on those that `stack` has.
    #[must_use]
    pub fn handles(&self, stack: &Stack) -> CallHandles {
        let has = |layer| stack.call.contains(&layer);
        CallHandles {
            rate_limit: has(CallLayer::RateLimit).then(|| self.rate_limit.handle()),
            concurrency_cap: has(CallLayer::ConcurrencyCap).then(|| self.concurrency_cap.handle()),
        }
    }
}

/// Boxes one stage. The layers that wrap the response body get it boxed again too, so that all stages have one type.
fn boxed<S, B>(stage: S) -> CallPlane
where
    S: Service<Call, Response = Response<B>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
    B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    // `Body::new` hands a body that is one of its own through as it is.
    BoxCloneSyncService::new(stage.map_response(|response: Response<B>| response.map(Body::new)))
}

/// The chain of authenticators: the first that finds something of its kind decides.
fn authenticate_layer(stack: &Stack, parts: &CallParts, plane: CallPlane) -> CallPlane {
    let rules = Authorization::new(Arc::clone(&parts.rules));
    let certificates = parts.client_certificates.then_some(ClientCertificate);
    let tokens = Cached::new(authenticate::Config::default(), parts.sandbox_tokens.clone());
    let chain = parts
        .ssh_sessions
        .clone()
        .or(tokens)
        .or(audit::Maybe(certificates))
        .or(LocalDev::new(parts.local_dev));
    let observer = audit::Authentications::new(stack, parts.recorder.clone());
    let layer = AuthenticateLayer::new(chain)
        .exempt(move |head: &Parts| rules.is_open(Target::of(head)))
        .observe(observer);
    boxed(layer.layer(plane))
}

fn decision(
    parts: &CallParts,
) -> impl Fn(&Call) -> std::future::Ready<Result<(), Denied>> + Send + Sync + 'static {
    let rules = Authorization::new(Arc::clone(&parts.rules));
    move |call| {
        let target = Target {
            method: call.method(),
            path: call.uri().path(),
            grpc: Protocol::of(call.headers()) == Protocol::Grpc,
        };
        let principal = call.extensions().get().unwrap_or(&Principal::Anonymous);
        let decided = rules.decide(target, principal);
        std::future::ready(decided.map_err(|denied| Denied::new(denied.to_string())))
    }
}

/// Calls that live as long as they live: streams by the contract, and tunnels.
fn is_stream(
    rules: &Arc<AuthorizationTable>,
) -> impl Fn(&Parts) -> bool + Clone + Send + Sync + 'static {
    let rules = Arc::clone(rules);
    move |head| {
        head.method == Method::CONNECT
            || rules
                .rule(head.uri.path())
                .is_some_and(|rule| rule.client_streaming || rule.server_streaming)
    }
}

fn peer_ip(call: &Call) -> Option<IpAddr> {
    let peer = call.extensions().get::<ConnectInfo>()?.peer;
    Some(peer.ip().to_canonical())
}

fn principal_key(call: &Call) -> Option<String> {
    call.extensions().get().map(Principal::key)
}

// === the relay plane ===

/// Builds the relay plane around `registry`.
#[must_use]
pub fn relay_plane(
    stack: &Stack,
    values: &LayerConfigs,
    registry: &Registry,
    recorder: &Recorder,
    seed: u64,
) -> (RelayPlane, RelayHandles) {
    let state = RelayState::new(values);
    let plane = relay_plane_on(&state, stack, values, registry, recorder, seed);
    (RelayPlane::new(plane), state.handles(stack))
}

/// Builds the relay plane around `registry`, with the layers that count from `state`.
#[must_use]
pub fn relay_plane_on(
    state: &RelayState,
    stack: &Stack,
    values: &LayerConfigs,
    registry: &Registry,
    recorder: &Recorder,
    seed: u64,
) -> RelayStack {
    // Fixed inner end.
    let mut plane: RelayStack = BoxCloneSyncService::new(OpenAtRegistry::new(registry));
    for layer in stack.relay.iter().rev() {
        plane = match layer {
            RelayLayer::Ocsf => {
                let layer =
                    OcsfRelayLayer::new(audit::Relays::new(recorder.clone()), recorder.clone());
                BoxCloneSyncService::new(layer.layer(plane))
            }
            RelayLayer::Metrics => {
                BoxCloneSyncService::new(RelayMetricsLayer::new(RelayObserver).layer(plane))
            }
            RelayLayer::RelayCaps => BoxCloneSyncService::new(state.relay_caps.layer(plane)),
            RelayLayer::SessionWait => {
                let sessions = registry.clone();
                let layer = SessionWaitLayer::new(
                    values.session_wait.layer(),
                    OpenError::is_no_session,
                    |request: &RelayRequest| request.budget,
                    move |request: &RelayRequest| sessions.ready(&request.sandbox_id),
                    OpenError::after_budget,
                );
                BoxCloneSyncService::new(layer.with_seed(seed).layer(plane))
            }
        };
    }
    plane
}

impl RelayState {
    /// Nothing counted yet.
    #[must_use]
    pub fn new(values: &LayerConfigs) -> Self {
        let sandbox: SandboxOf = |request| Some(Arc::clone(&request.sandbox_id));
        let class: ClassOf = |request| request.kind.class();
        Self { relay_caps: RelayCapsLayer::new(&values.relay_caps.layer(), sandbox, class) }
    }

    /// Puts other values in force.
    pub fn set(&self, values: &LayerConfigs) {
        self.relay_caps.handle().set(&values.relay_caps.layer());
    }

    /// Handles on those that `stack` has.
    #[must_use]
    pub fn handles(&self, stack: &Stack) -> RelayHandles {
        let there = stack.relay.contains(&RelayLayer::RelayCaps);
        RelayHandles { relay_caps: there.then(|| self.relay_caps.handle()) }
    }
}
