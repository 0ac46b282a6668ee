//! The relay plane: everything between "I want bytes to flow to a target in that sandbox" and an open relay.
//!
//! A handler makes a [`RelayRequest`] and calls [`RelayPlane::open`]. What happens then is decided by the layers that
//! `stack` has put in front of the session registry: caps, waiting for the session, audit. None of them touches a byte
//! of the relay; what they need to know of its end they learn from the [`OpenedRelay`] that holds their permits.

pub mod gate;
pub mod seams;
pub mod ssh_sessions;
pub mod status;

use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use postern_layers::refuse::{FromRefusal, Refusal};
use postern_layers::relay_caps::{HoldPermit, Permit};
use postern_relay::registry::{self, OpenRelay, Opener, Target};
use postern_relay::splice;
use tower::ServiceExt as _;
use tower::util::BoxCloneSyncService;
use tower_service::Service;

use crate::auth::Principal;
use crate::config::{RelayLayer, SSH_CLASS, SessionWait, Stack};

/// How long relays wait for a sandbox to be Ready and for its session, by what they are for. Clones are the same: a
/// reload reaches all of them.
#[derive(Clone, Debug)]
pub struct Budgets(Arc<ArcSwap<Times>>);

#[derive(Clone, Copy, Debug)]
struct Times {
    ssh: Duration,
    exec: Duration,
    forward: Duration,
}

/// What a relay is for. Layers class relays by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RelayKind {
    /// An SSH connection of a user, by `ForwardTcp` with an SSH target.
    Ssh,
    /// The gateway's own SSH connection for exec calls.
    Exec,
    /// A TCP connection of a user, by `ForwardTcp` with a TCP target.
    Forward,
    /// An SSH connection of a user, by `CONNECT /connect/ssh`.
    ConnectSsh,
}

/// A wish for a relay.
#[derive(Clone, Debug)]
pub struct RelayRequest {
    /// The sandbox.
    pub sandbox_id: Arc<str>,
    /// Where in it.
    pub target: Target,
    /// What for.
    pub kind: RelayKind,
    /// How long to wait for the sandbox's session; zero is not at all.
    pub budget: Duration,
    /// Who asked, for audit.
    pub principal: Arc<Principal>,
    /// Label of the requester, may be empty. The supervisor sees it.
    pub service_id: Arc<str>,
}

/// An open relay, and the permits of the layers that let it through: they are given back when it ends.
#[derive(Debug)]
pub struct OpenedRelay(splice::OpenedRelay);

/// Why a relay was not opened. The code is the one that the caller sees.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// A layer did not let it through.
    #[error("{0}")]
    Refused(Refusal),
    /// The sandbox had no session for the whole budget.
    #[error("no supervisor session of the sandbox within {}", rounded(*budget))]
    NoSession {
        /// The budget that was spent.
        budget: Duration,
        /// What the last attempt ended with.
        #[source]
        last: registry::OpenError,
    },
    /// The registry, the session or the supervisor failed.
    #[error(transparent)]
    Relay(registry::OpenError),
}

/// The service at the inner end of the plane: asks the session registry.
#[derive(Clone, Debug)]
pub struct OpenAtRegistry(Opener);

/// The whole plane, as handlers use it.
#[derive(Clone)]
pub struct RelayPlane(RelayStack);

/// A stack of relay layers around [`OpenAtRegistry`].
pub type RelayStack = BoxCloneSyncService<RelayRequest, OpenedRelay, OpenError>;

// === impl Budgets ===

impl Budgets {
    /// The budgets of a configuration; none without the `session_wait` layer, which is what waits.
    #[must_use]
    pub fn of(stack: &Stack, values: &SessionWait) -> Self {
        let times = if stack.relay.contains(&RelayLayer::SessionWait) {
            Times { ssh: values.ssh, exec: values.exec, forward: values.forward }
        } else {
            Times { ssh: Duration::ZERO, exec: Duration::ZERO, forward: Duration::ZERO }
        };
        Self(Arc::new(ArcSwap::from_pointee(times)))
    }

    /// SSH connections of users. 30 s by contract: long enough for a sandbox to start.
    #[must_use]
    pub fn ssh(&self) -> Duration {
        self.0.load().ssh
    }

    /// Exec calls. 15 s by contract.
    #[must_use]
    pub fn exec(&self) -> Duration {
        self.0.load().exec
    }

    /// TCP forwards. 15 s by contract.
    #[must_use]
    pub fn forward(&self) -> Duration {
        self.0.load().forward
    }

    /// Takes the times of `other`, for relays that are asked for from now on.
    pub fn set(&self, other: &Self) {
        self.0.store(other.0.load_full());
    }
}

// === impl RelayKind ===

impl RelayKind {
    /// The class under which `relay_caps` counts it: what users hold open towards the sandbox's SSH server.
    #[must_use]
    pub const fn class(self) -> Option<&'static str> {
        match self {
            Self::Ssh | Self::ConnectSsh => Some(SSH_CLASS),
            // One pooled connection per sandbox carries all exec calls.
            Self::Exec => Some("exec"),
            Self::Forward => Some("forward"),
        }
    }

    /// The word for logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ssh => "ssh",
            Self::Exec => "exec",
            Self::Forward => "forward",
            Self::ConnectSsh => "connect_ssh",
        }
    }
}

// === impl OpenedRelay ===

impl OpenedRelay {
    /// The relay itself. Its permits go with it.
    #[must_use]
    pub fn into_inner(self) -> splice::OpenedRelay {
        self.0
    }

    /// Cuts the relay from elsewhere.
    #[must_use]
    pub fn abort_handle(&self) -> splice::AbortHandle {
        self.0.abort_handle()
    }

    /// Has `observer` told about the end of the relay, once.
    pub fn on_end(&mut self, observer: impl splice::OnRelayEnd) {
        self.0.on_end(observer);
    }

    /// Keeps `value` until the relay has ended.
    pub fn hold_value(&mut self, value: impl Send + 'static) {
        self.0.hold(value);
    }
}

impl HoldPermit for OpenedRelay {
    fn hold(&mut self, permit: Permit) {
        self.0.hold(permit);
    }
}

// === impl OpenError ===

impl OpenError {
    /// The code for the caller; what the registry or the supervisor said is kept.
    #[must_use]
    pub fn code(&self) -> tonic::Code {
        match self {
            Self::Refused(refusal) => tonic::Code::from_i32(i32::from(refusal.code().number())),
            Self::NoSession { .. } => tonic::Code::Unavailable,
            Self::Relay(error) => error.code(),
        }
    }

    /// Whether the sandbox merely has no session yet, so that waiting may help.
    #[must_use]
    pub const fn is_no_session(&self) -> bool {
        matches!(self, Self::Relay(registry::OpenError::NoSession { .. }))
    }

    /// The error after a budget was spent waiting.
    #[must_use]
    pub fn after_budget(self, budget: Duration) -> Self {
        match self {
            Self::Relay(last @ registry::OpenError::NoSession { .. }) => {
                Self::NoSession { budget, last }
            }
            other => other,
        }
    }

    /// A word for metrics, one of a fixed few.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Refused(_) => "refused",
            Self::NoSession { .. } => "no_session",
            Self::Relay(error) => match error {
                registry::OpenError::NoSession { .. } => "no_session",
                registry::OpenError::SessionLost { .. } => "session_lost",
                registry::OpenError::ClaimTimeout { .. } => "claim_timeout",
                registry::OpenError::Refused { .. } => "refused_by_supervisor",
                registry::OpenError::Disconnected { .. } => "disconnected",
                registry::OpenError::Draining => "draining",
                _ => "other",
            },
        }
    }
}

impl FromRefusal for OpenError {
    fn from_refusal(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

impl From<registry::OpenError> for OpenError {
    fn from(error: registry::OpenError) -> Self {
        Self::Relay(error)
    }
}

/// A wait as people say it: what was left of a budget after looking up the sandbox is still that budget.
fn rounded(duration: Duration) -> String {
    if duration < Duration::from_secs(1) {
        format!("{} ms", duration.as_millis())
    } else {
        format!("{:.0} s", duration.as_secs_f64())
    }
}

// === impl OpenAtRegistry ===

impl OpenAtRegistry {
    /// Opens relays at `registry`.
    #[must_use]
    pub fn new(registry: &registry::Registry) -> Self {
        Self(registry.opener())
    }
}

impl Service<RelayRequest> for OpenAtRegistry {
    type Response = OpenedRelay;
    type Error = OpenError;
    type Future = OpenFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), OpenError>> {
        self.0.poll_ready(cx).map_err(OpenError::Relay)
    }

    fn call(&mut self, request: RelayRequest) -> OpenFuture {
        OpenFuture {
            inner: self.0.call(OpenRelay {
                sandbox_id: request.sandbox_id,
                target: request.target,
                service_id: request.service_id,
            }),
        }
    }
}

pin_project_lite::pin_project! {
    /// One relay being opened at the registry. Dropping it gives up the pending relay.
    pub struct OpenFuture {
        #[pin]
        inner: registry::OpenFuture,
    }
}

impl Future for OpenFuture {
    type Output = Result<OpenedRelay, OpenError>;

    fn poll(self: std::pin::Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let outcome = std::task::ready!(self.project().inner.poll(cx));
        Poll::Ready(outcome.map(OpenedRelay).map_err(OpenError::Relay))
    }
}

// === impl RelayPlane ===

impl RelayPlane {
    /// A plane of `stack`.
    #[must_use]
    pub const fn new(stack: RelayStack) -> Self {
        Self(stack)
    }

    /// Opens one relay.
    ///
    /// # Errors
    /// [`OpenError`], with the code that the caller is to see.
    pub async fn open(&self, request: RelayRequest) -> Result<OpenedRelay, OpenError> {
        self.0.clone().oneshot(request).await
    }
}

impl std::fmt::Debug for RelayPlane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RelayPlane").finish_non_exhaustive()
    }
}
