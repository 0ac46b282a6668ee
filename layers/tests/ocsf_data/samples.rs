//! One event of every class and activity, with as little as the class allows and with every attribute set.

use postern_layers::ocsf::object::{
    Actor, Api, Certificate, Connection, Container, Device, DeviceKind, Direction, Endpoint,
    Evidence, File, FindingInfo, HttpRequest, HttpResponse, Peers, Policy, Process, Product,
    Resource, Rule, Service, Session, Traffic, Url, User, UserKind,
};
use postern_layers::ocsf::*;

/// 2026-01-02T03:04:05.678Z
pub(crate) const TIME: i64 = 1_767_323_045_678;

pub(crate) fn source() -> Source {
    let device = Device::new(DeviceKind::Server, "gateway-1")
        .uid("host-1")
        .name("gateway")
        .ip([192, 0, 2, 1].into());
    Source::new(Product::default().version("0.1.0").uid("install-1"), device).instance("run-1")
}

/// A text for every place that takes one. Called once per place.
pub(crate) type Texts<'a> = &'a dyn Fn() -> String;

/// Sets every attribute that all classes have.
macro_rules! full_common {
    ($event:expr, $text:ident) => {{
        let mut event = $event
            .severity(Severity::High)
            .message($text())
            .detail($text())
            .code($text())
            .duration(12)
            .count(3)
            .verdict(Verdict::Blocked)
            .rule(Rule::new($text()).engine($text()).condition($text()))
            .policy(Policy::new($text()).version($text()).uid($text()).is_applied(true))
            .actor(actor($text))
            .device(device($text))
            .correlation($text())
            .unmapped("flag", true)
            .unmapped("number", -7i64);
        for at in 0..MAX_ENTRIES {
            event = event.unmapped(format!("{at} {}", $text()), $text());
        }
        event
    }};
}

fn user(text: Texts<'_>) -> User {
    User::named(text()).kind(UserKind::Service).uid(text()).domain(text()).credential_uid(text())
}

fn process(text: Texts<'_>, ancestors: usize) -> Process {
    let process = Process::new(42)
        .name(text())
        .cmd_line(text())
        .file(File::executable(format!("/usr/bin/{}", text())).sha256("ab".repeat(32)))
        .user(user(text))
        .created_time(TIME);
    match ancestors {
        0 => process,
        more => process.parent(self::process(text, more - 1)),
    }
}

fn actor(text: Texts<'_>) -> Actor {
    let session = Session::new(text())
        .issuer(text())
        .created_time(TIME)
        .expiration_time(TIME)
        .is_remote(true);
    // More ancestors than are kept.
    Actor::process(process(text, 9)).on_behalf_of(user(text)).session(session)
}

fn device(text: Texts<'_>) -> Device {
    let container = Container::new(text()).uid(text()).runtime(text()).image(text());
    Device::new(DeviceKind::Virtual, text())
        .uid(text())
        .name(text())
        .ip([192, 0, 2, 2].into())
        .container(container)
}

fn endpoint(text: Texts<'_>) -> Endpoint {
    Endpoint::host(text()).port(65535).uid(text()).svc_name(text())
}

fn connection(text: Texts<'_>) -> Connection {
    Connection::new(Direction::Outbound).protocol_name(text()).uid(text())
}

fn url(text: Texts<'_>) -> Url {
    Url::new(text()).scheme(text()).hostname(text()).port(443).query_string(text())
}

fn request(method: &str, text: Texts<'_>) -> HttpRequest {
    HttpRequest::new(method, url(text))
        .user_agent(text())
        .version(text())
        .uid(text())
        .body_length(u64::MAX)
}

fn response(text: Texts<'_>) -> HttpResponse {
    HttpResponse::new(200).content_type(text()).body_length(u64::MAX).latency(u64::MAX)
}

/// With nothing set that need not be.
pub(crate) fn minimal() -> Vec<(String, Event)> {
    let mut all: Vec<(String, Event)> = Vec::new();
    let mut add = |name: String, event: Event| all.push((format!("{name} min"), event));
    let peers = || Peers::to(Endpoint::host("example.com").port(443));
    for activity in ConnectionActivity::ALL {
        add(
            format!("network {}", activity.label()),
            NetworkActivity::new(*activity, peers(), TIME).into(),
        );
        let from = Peers::from(Endpoint::ip([0, 0, 0, 0, 0, 0xffff, 0xc000, 0x207].into()));
        add(format!("ssh {}", activity.label()), SshActivity::new(*activity, from, TIME).into());
    }
    for method in METHODS {
        add(
            format!("http {method}"),
            HttpActivity::new(HttpRequest::new(method, Url::new("/")), TIME).into(),
        );
    }
    for activity in LogonActivity::ALL {
        let event = Authentication::new(*activity, User::unknown(), Service::new("gateway"), TIME);
        add(format!("authentication {}", activity.label()), event.into());
    }
    for verb in ApiVerb::ALL {
        let event =
            ApiActivity::new(*verb, Api::new("Get"), Actor::unknown(), Endpoint::unknown(), TIME);
        add(format!("api {}", verb.label()), event.into());
    }
    for activity in LifecycleActivity::ALL {
        let event = ApplicationLifecycle::new(*activity, Product::new("supervisor"), TIME);
        add(format!("lifecycle {}", activity.label()), event.into());
    }
    let child = || Process::new(7);
    add(
        "process launch".into(),
        ProcessActivity::launched(LaunchKind::Spawn, child(), Actor::app("init"), TIME).into(),
    );
    add(
        "process end".into(),
        ProcessActivity::ended(None, child(), Actor::app("init"), TIME).into(),
    );
    add("process other".into(), ProcessActivity::other(child(), Actor::app("init"), TIME).into());
    for activity in FindingActivity::ALL {
        let event = DetectionFinding::new(*activity, FindingInfo::new("uid", "title"), TIME);
        add(format!("finding {}", activity.label()), event.into());
    }
    for activity in ConfigActivity::ALL {
        for state in
            [ConfigState::enabled(), ConfigState::disabled(), ConfigState::other("loading")]
        {
            let event = ConfigStateChange::new(*activity, state, TIME);
            add(format!("config {}", activity.label()), event.into());
        }
    }
    all
}

/// The methods the schema knows, and one it does not.
const METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH", "PROPFIND"];

/// With everything set, to what `text` says.
pub(crate) fn full(text: Texts<'_>) -> Vec<(String, Event)> {
    let mut all = network(text);
    all.extend(application(text));
    all.extend(system(text));
    all.into_iter().map(|(name, event)| (format!("{name} full"), event)).collect()
}

fn network(text: Texts<'_>) -> Vec<(String, Event)> {
    let mut all: Vec<(String, Event)> = Vec::new();
    let peers = || Peers::between(endpoint(text), endpoint(text));
    for activity in ConnectionActivity::ALL {
        let event = NetworkActivity::new(*activity, peers(), TIME)
            .connection(connection(text))
            .traffic(Traffic::new(u64::MAX, 1))
            .url(url(text))
            .status(Status::Failure);
        all.push((format!("network {}", activity.label()), full_common!(event, text).into()));
        for auth in SshAuth::ALL {
            let event = SshActivity::new(*activity, peers(), TIME)
                .auth(*auth)
                .connection(connection(text))
                .traffic(Traffic::new(1, 2))
                .protocol_ver(text())
                .status(Status::Failure);
            all.push((
                format!("ssh {} {}", activity.label(), auth.label()),
                full_common!(event, text).into(),
            ));
        }
    }
    for method in METHODS.into_iter().map(str::to_owned).chain([text()]) {
        let event = HttpActivity::new(request(&method, text), TIME)
            .response(response(text))
            .src(endpoint(text))
            .dst(endpoint(text))
            .connection(connection(text))
            .traffic(Traffic::new(1, 2))
            .status(Status::Failure);
        all.push((format!("http {method}"), full_common!(event, text).into()));
    }
    all
}

fn application(text: Texts<'_>) -> Vec<(String, Event)> {
    let mut all: Vec<(String, Event)> = Vec::new();
    let service = || Service::new(text()).version(text()).uid(text());
    for activity in LogonActivity::ALL {
        for protocol in AuthProtocol::ALL {
            let mut certificate = Certificate::new(text(), text())
                .subject(text())
                .expiration_time(TIME)
                .sha256("cd".repeat(32));
            for _ in 0..=MAX_ENTRIES {
                certificate = certificate.dns_name(text());
            }
            let event = Authentication::new(*activity, user(text), service(), TIME)
                .src(endpoint(text))
                .dst(endpoint(text))
                .session(Session::new(text()))
                .protocol(*protocol)
                .certificate(certificate)
                .request(request("POST", text))
                .status(Status::Failure);
            all.push((
                format!("authentication {}", protocol.label()),
                full_common!(event, text).into(),
            ));
        }
    }
    for verb in ApiVerb::ALL {
        let api = Api::new(text()).service(service()).version(text()).request_uid(text()).failed(
            5,
            text(),
            text(),
        );
        let mut event = ApiActivity::new(*verb, api, actor(text), endpoint(text), TIME)
            .dst(endpoint(text))
            .request(request("POST", text))
            .response(response(text))
            .status(Status::Failure);
        for _ in 0..MAX_ENTRIES {
            event = event.resource(Resource::new(text()).name(text()).kind(text()));
        }
        all.push((format!("api {}", verb.label()), full_common!(event, text).into()));
    }
    for activity in LifecycleActivity::ALL {
        let app = Product::new(text()).vendor_name(text()).version(text()).uid(text());
        let event = ApplicationLifecycle::new(*activity, app, TIME).status(Status::Success);
        all.push((format!("lifecycle {}", activity.label()), full_common!(event, text).into()));
    }
    all
}

fn system(text: Texts<'_>) -> Vec<(String, Event)> {
    let mut all: Vec<(String, Event)> = Vec::new();
    let mut processes = vec![ProcessActivity::ended(Some(-9), process(text, 9), actor(text), TIME)];
    processes.push(ProcessActivity::other(process(text, 9), actor(text), TIME));
    for kind in LaunchKind::ALL {
        processes.push(ProcessActivity::launched(*kind, process(text, 9), actor(text), TIME));
    }
    for event in processes {
        all.push(("process".into(), full_common!(event.status(Status::Success), text).into()));
    }
    for activity in FindingActivity::ALL {
        for status in FindingStatus::ALL {
            let mut info = FindingInfo::new(text(), text()).desc(text()).found_by(text());
            for _ in 0..=MAX_ENTRIES {
                info = info.category(text());
            }
            let mut event = DetectionFinding::new(*activity, info, TIME)
                .status(*status)
                .confidence(Confidence::High)
                .is_alert(true)
                .remediation(text())
                .evidence(Evidence::destination(endpoint(text)));
            for _ in 0..MAX_ENTRIES {
                event = event
                    .evidence(Evidence::process(process(text, 9)).to(endpoint(text)))
                    .evidence(Evidence::actor(actor(text)))
                    .resource(Resource::new(text()).name(text()).kind(text()));
            }
            all.push((format!("finding {}", status.label()), full_common!(event, text).into()));
        }
    }
    for level in SecurityLevel::ALL {
        for state in [
            ConfigState::enabled().shown_as(text()),
            ConfigState::disabled(),
            ConfigState::other(text()),
        ] {
            let event = ConfigStateChange::new(ConfigActivity::Log, state, TIME)
                .security_level(*level)
                .status(Status::Failure)
                .unmapped("hash", text())
                .unmapped("version", 3u32);
            all.push((format!("config {}", level.label()), full_common!(event, text).into()));
        }
    }
    all
}

/// Every severity, status, verdict and confidence, on an event that takes them.
pub(crate) fn vocabulary() -> Vec<(String, Event)> {
    let mut all: Vec<(String, Event)> = Vec::new();
    let event =
        || NetworkActivity::new(ConnectionActivity::Open, Peers::to(Endpoint::named("x")), TIME);
    for severity in Severity::ALL {
        all.push((severity.label().into(), event().severity(*severity).into()));
    }
    for status in Status::ALL {
        all.push((status.label().into(), event().status(*status).into()));
    }
    for verdict in Verdict::ALL {
        all.push((format!("{verdict:?}"), event().verdict(*verdict).into()));
    }
    for direction in Direction::ALL {
        all.push((
            direction.label().into(),
            event().connection(Connection::new(*direction)).into(),
        ));
    }
    for kind in DeviceKind::ALL {
        all.push((kind.label().into(), event().device(Device::new(*kind, "h")).into()));
    }
    for kind in UserKind::ALL {
        all.push((
            kind.label().into(),
            event().actor(Actor::user(User::named("u").kind(*kind))).into(),
        ));
    }
    for confidence in Confidence::ALL {
        let finding =
            DetectionFinding::new(FindingActivity::Create, FindingInfo::new("u", "t"), TIME);
        all.push((confidence.label().into(), finding.confidence(*confidence).into()));
    }
    all
}
