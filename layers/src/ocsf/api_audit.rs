//! What a call of a control API becomes: API Activity, or a failed Authentication.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{StatusCode, header, request, response};

use super::api_activity::{ApiActivity, ApiVerb};
use super::authentication::{Authentication, LogonActivity};
use super::call::{Audit, How, Outcome};
use super::event::Event;
use super::object::{
    Actor, Api, Endpoint, HttpRequest, HttpResponse, Resource, Service, Url, User,
};
use super::vocabulary::{Severity, Status, Verdict};
use crate::refuse::{Code, Protocol};

/// Most resources that a note keeps, as many as an event shows.
const MAX_NOTED_RESOURCES: usize = 8;

/// Tells [`ApiAudit`] what it cannot know of a request. Every method has an answer for somebody who knows nothing, so `()` will do.
pub trait Describe {
    /// Whether the call is recorded at all. Heartbeats and health checks need not be.
    fn is_audited(&self, head: &request::Parts) -> bool {
        let _ = head;
        true
    }

    /// Where the call comes from.
    fn peer(&self, head: &request::Parts) -> Endpoint {
        let _ = head;
        Endpoint::unknown()
    }

    /// Who calls, if a layer further out has found out. A layer further in tells it through the [`AuditNote`].
    fn actor(&self, head: &request::Parts) -> Option<Actor> {
        let _ = head;
        None
    }

    /// What the call does; by default guessed from the name of a gRPC method, or from the HTTP method.
    fn verb(&self, head: &request::Parts) -> ApiVerb {
        guess_verb(head)
    }

    /// Whether the call stays open for long, so that its opening is worth an event of its own.
    fn is_stream(&self, head: &request::Parts) -> bool {
        let _ = head;
        false
    }
}

impl Describe for () {}

fn guess_verb(head: &request::Parts) -> ApiVerb {
    match grpc_method(head) {
        Some((_, method)) => ApiVerb::of_method(method),
        None => match head.method.as_str() {
            "GET" | "HEAD" | "OPTIONS" => ApiVerb::Read,
            "POST" => ApiVerb::Create,
            "PUT" | "PATCH" => ApiVerb::Update,
            "DELETE" => ApiVerb::Delete,
            _ => ApiVerb::Other,
        },
    }
}

/// Service and method of a gRPC call, by its path `/package.Service/Method`.
fn grpc_method(head: &request::Parts) -> Option<(&str, &str)> {
    if Protocol::of(&head.headers) != Protocol::Grpc {
        return None;
    }
    head.uri.path().strip_prefix('/')?.split_once('/')
}

/// What layers and handlers further in know about a call and the audit layer cannot: who it is, and what it is about.
///
/// [`ApiAudit`] puts one into the extensions of every request it records; whoever knows fills it.
#[derive(Clone, Debug, Default)]
pub struct AuditNote(Arc<Mutex<Noted>>);

#[derive(Debug, Default)]
struct Noted {
    actor: Option<Actor>,
    resources: Vec<Resource>,
}

impl AuditNote {
    /// Says who calls.
    pub fn set_actor(&self, actor: Actor) {
        self.lock().actor = Some(actor);
    }

    /// Adds something the call is about. Those beyond the eighth are left out.
    pub fn add_resource(&self, resource: Resource) {
        let mut noted = self.lock();
        if noted.resources.len() < MAX_NOTED_RESOURCES {
            noted.resources.push(resource);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Noted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes one event per call of a control API.
///
/// A call that was not authenticated (refused with `UNAUTHENTICATED`, or answered so) is a failed logon of class Authentication;
/// every other is API Activity. A call dropped by its caller has the code `CANCELLED` and no status.
#[derive(Clone, Debug)]
pub struct ApiAudit<D> {
    describe: D,
    service: Service,
}

impl<D: Describe> ApiAudit<D> {
    /// Audits calls of `service`, with what `describe` knows about them.
    pub fn new(describe: D, service: Service) -> Self {
        Self { describe, service }
    }
}

/// What [`ApiAudit`] remembers of a call.
#[derive(Debug)]
pub struct ApiCall {
    api: Api,
    verb: ApiVerb,
    peer: Endpoint,
    actor: Option<Actor>,
    request: HttpRequest,
    request_uid: Option<String>,
    is_stream: bool,
    note: AuditNote,
}

impl ApiCall {
    fn actor(&mut self) -> Option<Actor> {
        self.note.lock().actor.take().or_else(|| self.actor.take())
    }

    fn event(mut self, time: i64) -> ApiActivity {
        let actor = self.actor().unwrap_or_else(Actor::unknown);
        let mut event =
            ApiActivity::new(self.verb, self.api, actor, self.peer, time).request(self.request);
        if let Some(uid) = self.request_uid {
            event = event.correlation(uid);
        }
        for resource in self.note.lock().resources.drain(..) {
            event = event.resource(resource);
        }
        event
    }
}

impl<D: Describe> Audit for ApiAudit<D> {
    type Call = ApiCall;

    fn start(&self, head: &mut request::Parts) -> Option<ApiCall> {
        if !self.describe.is_audited(head) {
            return None;
        }
        let api = match grpc_method(head) {
            Some((service, method)) => {
                Api::new(method.to_owned()).service(Service::new(service.to_owned()))
            }
            None => Api::new(format!("{} {}", head.method, head.uri.path())),
        };
        let request_uid = header_text(head, "x-request-id");
        let mut request = HttpRequest::new(head.method.as_str(), Url::from(&head.uri));
        if let Some(agent) = header_text(head, header::USER_AGENT.as_str()) {
            request = request.user_agent(agent);
        }
        let call = ApiCall {
            api: match &request_uid {
                Some(uid) => api.request_uid(uid.clone()),
                None => api,
            },
            verb: self.describe.verb(head),
            peer: self.describe.peer(head),
            actor: self.describe.actor(head),
            request,
            request_uid,
            is_stream: self.describe.is_stream(head),
            note: AuditNote::default(),
        };
        head.extensions.insert(call.note.clone());
        Some(call)
    }

    fn answered(&self, call: &mut ApiCall, head: &response::Parts, now: i64) -> Option<Event> {
        // A stream that was refused is told by its end, which follows at once.
        let is_open = head.status.is_success() && Code::from_headers(&head.headers).is_none();
        if !call.is_stream || !is_open {
            return None;
        }
        let actor = call
            .note
            .lock()
            .actor
            .clone()
            .or_else(|| call.actor.clone())
            .unwrap_or_else(Actor::unknown);
        let mut event =
            ApiActivity::new(call.verb, call.api.clone(), actor, call.peer.clone(), now)
                .request(call.request.clone())
                .status(Status::Success)
                .message("stream opened");
        if let Some(uid) = &call.request_uid {
            event = event.correlation(uid.clone());
        }
        for resource in &call.note.lock().resources {
            event = event.resource(resource.clone());
        }
        Some(event.into())
    }

    fn ended(&self, mut call: ApiCall, outcome: Outcome, now: i64) -> Option<Event> {
        let verdict = Ending::of(&outcome);
        if verdict.code == Some(Code::Unauthenticated) {
            let user = call
                .actor()
                .as_ref()
                .and_then(Actor::shown_user)
                .cloned()
                .unwrap_or_else(User::unknown);
            return Some(self.refused_logon(call, user, &outcome, now));
        }
        let answered = verdict.is_success();
        let code = verdict.code.map_or(i32::from(verdict.http), |code| i32::from(code.number()));
        let name = verdict.code.map_or_else(
            || Cow::Owned(verdict.http.to_string()),
            |code| Cow::Borrowed(code.name()),
        );
        if outcome.how == How::Complete {
            call.api = match answered {
                true => call.api.answered(code),
                false => {
                    let told = outcome
                        .refusal
                        .as_ref()
                        .map(|refusal| refusal.reason().to_owned())
                        .unwrap_or_default();
                    call.api.failed(code, name.clone(), told)
                }
            };
        }
        let mut event = call
            .event(now)
            .code(name)
            .duration(milliseconds(outcome.duration))
            .severity(verdict.severity());
        if let Some(status) = outcome.status {
            event = event
                .response(HttpResponse::new(status.as_u16()).body_length(outcome.response_bytes));
        }
        event = match outcome.how {
            How::Complete => event.status(if answered { Status::Success } else { Status::Failure }),
            How::Failed => {
                event.status(Status::Failure).detail("the call failed before there was a response")
            }
            How::BodyFailed => event.status(Status::Failure).detail("the response broke off"),
            How::Cancelled => event.detail("the caller went away"),
        };
        if let Some(refusal) = &outcome.refusal {
            event = event
                .verdict(Verdict::Blocked)
                .detail(refusal.detail().unwrap_or(refusal.reason()).to_owned())
                .unmapped("refused_by", refusal.layer());
        }
        Some(event.into())
    }
}

impl<D> ApiAudit<D> {
    fn refused_logon(&self, call: ApiCall, user: User, outcome: &Outcome, now: i64) -> Event {
        let why = match &outcome.refusal {
            Some(refusal) => refusal.detail().unwrap_or(refusal.reason()).to_owned(),
            None => "the call was not authenticated".to_owned(),
        };
        let mut event = Authentication::new(LogonActivity::Logon, user, self.service.clone(), now)
            .src(call.peer)
            .request(call.request)
            .severity(Severity::Medium)
            .status(Status::Failure)
            .verdict(Verdict::Blocked)
            .code(Code::Unauthenticated.name())
            .detail(why);
        let (service, operation) = call.api.shown();
        event = match service {
            Some(service) => event.unmapped("operation", format!("{service}/{operation}")),
            None => event.unmapped("operation", operation.to_owned()),
        };
        match call.request_uid {
            Some(uid) => event.correlation(uid),
            None => event,
        }
        .into()
    }
}

/// The outcome in one protocol: a gRPC code if there is one, else an HTTP status.
struct Ending {
    how: How,
    code: Option<Code>,
    http: u16,
}

impl Ending {
    fn of(outcome: &Outcome) -> Self {
        let refused = outcome.refusal.as_ref().map(crate::refuse::Refusal::code);
        let http = outcome.status.map_or(0, |status| status.as_u16());
        let code = match outcome.how {
            How::Complete => refused.or(outcome.grpc).or(match outcome.status {
                Some(StatusCode::UNAUTHORIZED) => Some(Code::Unauthenticated),
                _ => None,
            }),
            How::Failed => Some(Code::Unavailable),
            How::BodyFailed => Some(Code::DataLoss),
            How::Cancelled => Some(Code::Cancelled),
        };
        Self { how: outcome.how, code, http }
    }

    fn is_success(&self) -> bool {
        self.how == How::Complete
            && match self.code {
                Some(code) => code == Code::Ok,
                None => self.http < 400,
            }
    }

    fn severity(&self) -> Severity {
        match self.code {
            Some(Code::PermissionDenied) => Severity::Medium,
            None if self.http == 403 => Severity::Medium,
            Some(Code::Cancelled) => Severity::Informational,
            _ if self.is_success() => Severity::Informational,
            _ => Severity::Low,
        }
    }
}

fn header_text(head: &request::Parts, name: &str) -> Option<String> {
    head.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
