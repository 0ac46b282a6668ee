//! What a call of a control API becomes: API Activity, or a failed Authentication.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{HeaderName, Method, StatusCode, header, request, response};

use super::api_activity::{ApiActivity, ApiVerb};
use super::authentication::{Authentication, LogonActivity};
use super::call::{Audit, How, Outcome};
use super::draft::Draft;
use super::event::Event;
use super::object::{
    Actor, Api, Endpoint, HttpRequest, HttpResponse, Resource, Service, Url, User,
};
use super::text::{MAX_NAME_BYTES, MAX_URL_BYTES};
use super::vocabulary::{Severity, Status, Verdict};
use crate::refuse::{Code, Protocol, Refusal};

/// Where `request_id` leaves the id of a call.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

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
    split_method(head.uri.path())
}

fn split_method(path: &str) -> Option<(&str, &str)> {
    path.strip_prefix('/')?.split_once('/')
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

/// What [`ApiAudit`] remembers of a call: little, and in few pieces. The events are made of it by the writer.
#[derive(Clone, Debug)]
pub struct ApiCall {
    head: Head,
    verb: ApiVerb,
    peer: Endpoint,
    actor: Option<Actor>,
    is_stream: bool,
    note: AuditNote,
}

/// The texts of a request's head, one after the other in one allocation, each no longer than an event shows.
#[derive(Clone, Debug)]
struct Head {
    method: Method,
    is_grpc: bool,
    is_https: bool,
    text: String,
    /// Where path, host, user agent and request id end in `text`. An empty one was not there.
    ends: [usize; 4],
}

impl Head {
    fn of(head: &request::Parts) -> Self {
        // A few bytes more than are shown, so that an event shows that something was cut.
        const SLACK: usize = 4;
        let parts = [
            (head.uri.path(), MAX_URL_BYTES),
            (head.uri.host().unwrap_or_default(), MAX_NAME_BYTES),
            (header_text(head, header::USER_AGENT), MAX_NAME_BYTES),
            (header_text(head, REQUEST_ID), MAX_NAME_BYTES),
        ]
        .map(|(text, max)| &text[..text.floor_char_boundary(max + SLACK)]);
        let mut text = String::with_capacity(parts.iter().map(|part| part.len()).sum());
        let ends = parts.map(|part| {
            text.push_str(part);
            text.len()
        });
        Self {
            method: head.method.clone(),
            is_grpc: Protocol::of(&head.headers) == Protocol::Grpc,
            is_https: head.uri.scheme_str() == Some("https"),
            text,
            ends,
        }
    }

    fn part(&self, at: usize) -> &str {
        let start = if at == 0 { 0 } else { self.ends[at - 1] };
        &self.text[start..self.ends[at]]
    }

    fn request_uid(&self) -> Option<String> {
        let uid = self.part(3);
        (!uid.is_empty()).then(|| uid.to_owned())
    }

    fn api(&self) -> Api {
        let api = match if self.is_grpc { split_method(self.part(0)) } else { None } {
            Some((service, method)) => {
                Api::new(method.to_owned()).service(Service::new(service.to_owned()))
            }
            None => Api::new(format!("{} {}", self.method, self.part(0))),
        };
        match self.request_uid() {
            Some(uid) => api.request_uid(uid),
            None => api,
        }
    }

    fn request(&self) -> HttpRequest {
        let mut url = Url::new(self.part(0).to_owned());
        if !self.part(1).is_empty() {
            let scheme = if self.is_https { "https" } else { "http" };
            url = url.scheme(scheme).hostname(self.part(1).to_owned());
        }
        let request = HttpRequest::new(self.method.as_str(), url);
        match self.part(2) {
            "" => request,
            agent => request.user_agent(agent.to_owned()),
        }
    }
}

impl ApiCall {
    /// Who called: what was noted further in, else what was known from the start.
    fn actor(&self) -> Option<Actor> {
        self.note.lock().actor.clone().or_else(|| self.actor.clone())
    }

    fn event(&self, api: Api, time: i64) -> ApiActivity {
        let actor = self.actor().unwrap_or_else(Actor::unknown);
        let mut event = ApiActivity::new(self.verb, api, actor, self.peer.clone(), time)
            .request(self.head.request());
        if let Some(uid) = self.head.request_uid() {
            event = event.correlation(uid);
        }
        for resource in &self.note.lock().resources {
            event = event.resource(resource.clone());
        }
        event
    }

    fn opened(&self, time: i64) -> Event {
        self.event(self.head.api(), time).status(Status::Success).message("stream opened").into()
    }

    fn ended(&self, ending: &Ending, outcome: &Outcome, time: i64) -> Event {
        let is_success = ending.is_success();
        let (code, name) = ending.code_and_name();
        let mut api = self.head.api();
        if outcome.how == How::Complete {
            api = if is_success {
                api.answered(code)
            } else {
                let told = outcome.refusal.as_ref().map(Refusal::reason).unwrap_or_default();
                api.failed(code, name.clone(), told.to_owned())
            };
        }
        let mut event = self
            .event(api, time)
            .code(name)
            .duration(milliseconds(outcome.duration))
            .severity(ending.severity());
        if let Some(status) = outcome.status {
            let response = HttpResponse::new(status.as_u16()).body_length(outcome.response_bytes);
            event = event.response(response);
        }
        event = match outcome.how {
            How::Complete if is_success => event.status(Status::Success),
            How::Complete => event.status(Status::Failure),
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
        event.into()
    }

    fn refused_logon(&self, service: Service, outcome: &Outcome, time: i64) -> Event {
        let actor = self.actor();
        let user =
            actor.as_ref().and_then(Actor::shown_user).cloned().unwrap_or_else(User::unknown);
        let why = match &outcome.refusal {
            Some(refusal) => refusal.detail().unwrap_or(refusal.reason()).to_owned(),
            None => "the call was not authenticated".to_owned(),
        };
        let event = Authentication::new(LogonActivity::Logon, user, service, time)
            .src(self.peer.clone())
            .request(self.head.request())
            .severity(Severity::Medium)
            .status(Status::Failure)
            .verdict(Verdict::Blocked)
            .code(Code::Unauthenticated.name())
            .detail(why)
            .unmapped("operation", self.head.part(0).to_owned());
        match self.head.request_uid() {
            Some(uid) => event.correlation(uid).into(),
            None => event.into(),
        }
    }
}

impl<D: Describe> Audit for ApiAudit<D> {
    type Call = ApiCall;

    fn start(&self, head: &mut request::Parts) -> Option<ApiCall> {
        if !self.describe.is_audited(head) {
            return None;
        }
        let call = ApiCall {
            head: Head::of(head),
            verb: self.describe.verb(head),
            peer: self.describe.peer(head),
            actor: self.describe.actor(head),
            is_stream: self.describe.is_stream(head),
            note: AuditNote::default(),
        };
        head.extensions.insert(call.note.clone());
        Some(call)
    }

    fn answered(&self, call: &mut ApiCall, head: &response::Parts, now: i64) -> Option<Draft> {
        // A stream that was refused is told by its end, which follows at once.
        let is_open = head.status.is_success() && Code::from_headers(&head.headers).is_none();
        if !call.is_stream || !is_open {
            return None;
        }
        let call = call.clone();
        Some(Draft::later(now, move || call.opened(now)))
    }

    fn ended(&self, call: ApiCall, outcome: Outcome, now: i64) -> Option<Draft> {
        let ending = Ending::of(&outcome);
        if ending.code == Some(Code::Unauthenticated) {
            let service = self.service.clone();
            return Some(Draft::later(now, move || call.refused_logon(service, &outcome, now)));
        }
        Some(Draft::later(now, move || call.ended(&ending, &outcome, now)))
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
        let refused = outcome.refusal.as_ref().map(Refusal::code);
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

    /// The status as a number, and its name in the same protocol.
    fn code_and_name(&self) -> (i32, Cow<'static, str>) {
        match self.code {
            Some(code) => (i32::from(code.number()), Cow::Borrowed(code.name())),
            None => (i32::from(self.http), Cow::Owned(self.http.to_string())),
        }
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

/// A header as text, empty if it is missing or holds anything but visible ASCII.
fn header_text(head: &request::Parts, name: HeaderName) -> &str {
    head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
