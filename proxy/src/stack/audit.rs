//! What the `ocsf` layers record of calls, of failed authentications and of relays.

use std::sync::Arc;
use std::time::Duration;

use http::request::Parts;
use postern_layers::authenticate::{Authenticate, OnAuthenticate, Outcome};
use postern_layers::ocsf::object::{
    Actor, Endpoint, HttpRequest, Peers, Service, Traffic, Url, User as AuditUser,
};
use postern_layers::ocsf::{
    ApiAudit, ApiCall, Audit, AuditRelay, Authentication, ConnectionActivity, Draft, Event,
    LogonActivity, NetworkActivity, Outcome as CallOutcome, Recorder, RelayOutcome, Severity,
    SshActivity, Status, Verdict,
};
use postern_layers::refuse::{Code, Refusal};
use postern_proto::authorization::AuthorizationTable;
use postern_relay::registry::Target;
use postern_relay::splice::{EndKind, RelayEnd};
use postern_relay::transport::RELAY_STREAM_PATH;

use crate::auth::Principal;
use crate::config::{CallLayer, Stack};
use crate::listen::ConnectInfo;
use crate::relay_plane::{OpenError, OpenedRelay, RelayRequest};

/// What the audit of calls cannot know of a request by itself.
#[derive(Clone, Debug)]
pub(super) struct Describe {
    rules: Arc<AuthorizationTable>,
}

/// The audit of calls, without the relay streams that went well: the relay plane records these, with their target.
#[derive(Debug)]
pub(super) struct Calls(ApiAudit<Describe>);

/// One audited call.
#[derive(Debug)]
pub(super) struct Audited {
    call: ApiCall,
    told: Told,
}

/// Whether a call is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Always,
    /// A relay stream that has not been refused.
    IfRefused,
}

/// Records failed authentications, unless the `ocsf` layer stands outside `authenticate` and sees them itself.
#[derive(Clone, Debug)]
pub(super) struct Authentications(Option<Recorder>);

/// Records the opening and the end of relays.
#[derive(Clone, Debug)]
pub(super) struct Relays {
    recorder: Recorder,
}

/// What is remembered of a relay being opened.
#[derive(Clone, Debug)]
pub(super) struct Opening {
    peers: Peers,
    user: AuditUser,
    ssh: bool,
}

/// An authenticator that may not be there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Maybe<A>(pub(super) Option<A>);

// === impl Maybe ===

impl<P, A> Authenticate<P> for Maybe<A>
where
    A: Authenticate<P, Future = std::future::Ready<Outcome<P>>>,
{
    type Future = std::future::Ready<Outcome<P>>;

    fn authenticate(&self, head: &Parts) -> Self::Future {
        match &self.0 {
            Some(authenticator) => authenticator.authenticate(head),
            None => std::future::ready(Outcome::NotMine),
        }
    }
}

// === impl Describe ===

impl Describe {
    pub(super) fn new(rules: &Arc<AuthorizationTable>) -> Self {
        Self { rules: Arc::clone(rules) }
    }
}

impl postern_layers::ocsf::Describe for Describe {
    fn is_audited(&self, head: &Parts) -> bool {
        // Health checks say nothing.
        head.uri.path() != "/openshell.v1.OpenShell/Health"
    }

    fn peer(&self, head: &Parts) -> Endpoint {
        peer(head)
    }

    fn actor(&self, head: &Parts) -> Option<Actor> {
        let principal = head.extensions.get::<Principal>()?;
        Some(Actor::user(AuditUser::named(principal.key())))
    }

    fn is_stream(&self, head: &Parts) -> bool {
        self.rules
            .rule(head.uri.path())
            .is_some_and(|rule| rule.client_streaming && rule.server_streaming)
    }
}

// === impl Calls ===

impl Calls {
    pub(super) fn new(rules: &Arc<AuthorizationTable>) -> Self {
        Self(ApiAudit::new(Describe::new(rules), Service::new("postern")))
    }
}

impl Audit for Calls {
    type Call = Audited;

    fn start(&self, head: &mut Parts) -> Option<Audited> {
        let relay = head.uri.path() == RELAY_STREAM_PATH;
        let call = self.0.start(head)?;
        Some(Audited { call, told: if relay { Told::IfRefused } else { Told::Always } })
    }

    fn answered(
        &self,
        audited: &mut Audited,
        head: &http::response::Parts,
        now: i64,
    ) -> Option<Draft> {
        match audited.told {
            Told::Always => self.0.answered(&mut audited.call, head, now),
            Told::IfRefused => {
                // A status in the head: a channel that is unknown, expired, used or of another sandbox.
                if Code::from_headers(&head.headers).is_some() {
                    audited.told = Told::Always;
                }
                None
            }
        }
    }

    fn ended(&self, audited: Audited, outcome: CallOutcome, now: i64) -> Option<Draft> {
        match audited.told {
            Told::Always => self.0.ended(audited.call, outcome, now),
            Told::IfRefused => None,
        }
    }
}

fn peer(head: &Parts) -> Endpoint {
    head.extensions
        .get::<ConnectInfo>()
        .map_or_else(Endpoint::unknown, |info| Endpoint::socket(info.peer))
}

// === impl Authentications ===

impl Authentications {
    pub(super) fn new(stack: &Stack, recorder: Recorder) -> Self {
        let place = |layer| stack.call.iter().position(|listed| *listed == layer);
        let ocsf = place(CallLayer::Ocsf);
        let inside = ocsf.is_some() && ocsf > place(CallLayer::Authenticate);
        Self(inside.then_some(recorder))
    }
}

impl OnAuthenticate<Principal> for Authentications {
    fn accepted(&self, _head: &Parts, _principal: &Principal) {}

    fn refused(&self, head: &Parts, refusal: &Refusal) {
        let why = refusal.detail().unwrap_or(refusal.reason()).to_owned();
        tracing::info!(path = head.uri.path(), reason = why, "authentication refused");
        let Some(recorder) = &self.0 else { return };
        let user = AuditUser::unknown();
        let service = Service::new("postern");
        let event = Authentication::new(LogonActivity::Logon, user, service, recorder.now())
            .src(peer(head))
            .request(HttpRequest::new(head.method.as_str(), Url::from(&head.uri)))
            .severity(Severity::Medium)
            .status(Status::Failure)
            .verdict(Verdict::Blocked)
            .code(refusal.code().name())
            .detail(why);
        recorder.record(event);
    }
}

// === impl Relays ===

impl Relays {
    pub(super) const fn new(recorder: Recorder) -> Self {
        Self { recorder }
    }
}

impl AuditRelay<RelayRequest, OpenedRelay, OpenError> for Relays {
    type Opening = Opening;

    fn start(&self, request: &RelayRequest) -> Option<Opening> {
        let destination = Endpoint::named("sandbox").uid(request.sandbox_id.to_string());
        let (destination, ssh) = match &request.target {
            Target::Ssh => (destination.svc_name("ssh"), true),
            Target::Tcp { port, .. } => (destination.port(*port), false),
        };
        Some(Opening {
            peers: Peers::to(destination),
            user: AuditUser::named(request.principal.key()),
            ssh,
        })
    }

    fn ended(
        &self,
        opening: Opening,
        outcome: RelayOutcome<'_, OpenedRelay, OpenError>,
        after: Duration,
        now: i64,
    ) -> Option<Event> {
        let milliseconds = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        let (activity, status, message) = match outcome {
            RelayOutcome::Opened(relay) => {
                let recorder = self.recorder.clone();
                let closing = opening.clone();
                relay.on_end(move |end: &RelayEnd| {
                    recorder.record(closed(&closing, end, recorder.now()));
                });
                (ConnectionActivity::Open, Status::Success, "relay open".to_owned())
            }
            RelayOutcome::Failed(error) => {
                (ConnectionActivity::Fail, Status::Failure, format!("relay not opened: {error}"))
            }
            RelayOutcome::Cancelled => {
                let message = "the requester left while the relay was being opened";
                (ConnectionActivity::Fail, Status::Failure, message.to_owned())
            }
            _ => return None,
        };
        Some(if opening.ssh {
            SshActivity::new(activity, opening.peers, now)
                .actor(Actor::user(opening.user))
                .status(status)
                .duration(milliseconds)
                .message(message)
                .into()
        } else {
            NetworkActivity::new(activity, opening.peers, now)
                .actor(Actor::user(opening.user))
                .status(status)
                .duration(milliseconds)
                .message(message)
                .into()
        })
    }
}

fn closed(opening: &Opening, end: &RelayEnd, now: i64) -> Event {
    let (activity, status, message) = match &end.kind {
        EndKind::Clean => (ConnectionActivity::Close, Status::Success, "relay closed".to_owned()),
        EndKind::Reset { code, reason } => (
            ConnectionActivity::Reset,
            Status::Failure,
            format!("relay cut by {}: {reason} ({code:?})", end.ended_by.as_str()),
        ),
    };
    // In and out as the sandbox sees it.
    let traffic = Traffic::new(end.bytes_to_sandbox, end.bytes_from_sandbox);
    let milliseconds = u64::try_from(end.duration.as_millis()).unwrap_or(u64::MAX);
    let actor = Actor::user(opening.user.clone());
    if opening.ssh {
        SshActivity::new(activity, opening.peers.clone(), now)
            .actor(actor)
            .traffic(traffic)
            .status(status)
            .duration(milliseconds)
            .message(message)
            .into()
    } else {
        NetworkActivity::new(activity, opening.peers.clone(), now)
            .actor(actor)
            .traffic(traffic)
            .status(status)
            .duration(milliseconds)
            .message(message)
            .into()
    }
}
