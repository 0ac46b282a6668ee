//! The call plane, layer by layer.

use std::cell::RefCell;
use std::time::Duration;

use metrics_exporter_prometheus::PrometheusBuilder;
use tonic::Code;
use tracing::Subscriber;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing_subscriber::layer::{Context, SubscriberExt as _};

use super::gateway::{
    CREATE_SANDBOX, EMPTY, File, GET_USER, Held, LIST_PROVIDERS, call, code, until,
};

#[tokio::test]
async fn request_id_names_calls() {
    let theirs = [("x-request-id", "theirs-0001")];
    let gateway = File::default().start().await;
    let connection = gateway.connect(None).await;
    let first = call(&connection, GET_USER, &[], EMPTY).await;
    let second = call(&connection, GET_USER, &[], EMPTY).await;
    assert_ne!(first.headers["x-request-id"], second.headers["x-request-id"]);
    let kept = call(&connection, GET_USER, &theirs, EMPTY).await;
    assert_eq!(kept.headers["x-request-id"], "theirs-0001");

    let lines = "keep_callers = false\nheader = \"x-call\"";
    let gateway = File::default().table("request_id", lines).start().await;
    let connection = gateway.connect(None).await;
    let answer = call(&connection, GET_USER, &[("x-call", "theirs-0001")], EMPTY).await;
    assert_ne!(answer.headers["x-call"], "theirs-0001");

    let gateway = File::default().without("call", "request_id").start().await;
    let answer = call(&gateway.connect(None).await, GET_USER, &[], EMPTY).await;
    assert_eq!(answer.status.code(), Code::Ok);
    assert!(!answer.headers.contains_key("x-request-id"));
}

thread_local! {
    /// The fields of every span called `request` that was made by this thread. Gateway and test share one.
    static SPANS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

struct Spans;

impl<S: Subscriber> tracing_subscriber::Layer<S> for Spans {
    fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        struct Fields(String);
        impl Visit for Fields {
            fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
                self.0 += &format!("{field}={value:?} ");
            }
        }
        if attributes.metadata().name() == "request" {
            let mut fields = Fields(String::new());
            attributes.record(&mut fields);
            SPANS.with_borrow_mut(|spans| spans.push(fields.0));
        }
    }
}

#[tokio::test]
async fn trace_makes_a_span_of_each_call() {
    // For the whole process: what one thread alone listens to is lost when another comes by first.
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(Spans)).unwrap();
    let gateway = File::default().start().await;
    let connection = gateway.connect(None).await;
    let answer = call(&connection, GET_USER, &[], EMPTY).await;
    let id = answer.headers["x-request-id"].to_str().unwrap();
    let found = SPANS.take();
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains(id) && found[0].contains(GET_USER), "{found:?}");

    let gateway = File::default().without("call", "trace").start().await;
    assert_eq!(code(&gateway.connect(None).await, GET_USER).await, Code::Ok);
    assert_eq!(SPANS.take(), Vec::<String>::new());
}

#[tokio::test]
async fn metrics_counts_calls() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let numbers = recorder.handle();
    // Gateway and test share a thread, so this sees this gateway and no other.
    let _here = metrics::set_default_local_recorder(&recorder);
    let counted = |code: &str, count: u32| {
        let wanted = format!(
            "openshell_server_grpc_requests_total{{method=\"{GET_USER}\",code=\"{code}\"}} {count}\n"
        );
        numbers.render().contains(&wanted)
    };
    let gateway = File::default().start().await;
    let connection = gateway.connect(None).await;
    for _ in 0..3 {
        assert_eq!(code(&connection, GET_USER).await, Code::Ok);
    }
    until("three calls are counted", async || counted("OK", 3)).await;
    let stranger = gateway.connect(Some("no.good.token")).await;
    assert_eq!(code(&stranger, GET_USER).await, Code::Unauthenticated);
    until("and the refused one", async || counted("UNAUTHENTICATED", 1)).await;

    let gateway = File::default().without("call", "metrics").start().await;
    assert_eq!(code(&gateway.connect(None).await, GET_USER).await, Code::Ok);
    assert!(counted("OK", 3), "{}", numbers.render());
}

/// Of `tried` calls in a row, how many pass; the first refusal has to say when to come back.
async fn passing(file: &File, tried: usize) -> usize {
    let gateway = file.start().await;
    let connection = gateway.connect(None).await;
    for passed in 0..tried {
        let answer = call(&connection, GET_USER, &[], EMPTY).await;
        if answer.status.code() != Code::Ok {
            assert_eq!(answer.status.code(), Code::ResourceExhausted, "{answer:?}");
            let seconds: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
            assert!(seconds > 60, "{seconds} s, of a quota per hour");
            return passed;
        }
    }
    tried
}

#[tokio::test]
async fn rate_limit_bounds_the_rate() {
    let quota = |scope: &str, burst| {
        let lines = format!("{scope} = {{ calls = 1, per = \"1h\", burst = {burst} }}");
        File::default().table("rate_limit", &lines)
    };
    assert_eq!(passing(&quota("global", 3), 20).await, 3);
    assert_eq!(passing(&quota("global", 7), 20).await, 7);
    assert_eq!(passing(&quota("per_key", 3), 20).await, 3);
    assert_eq!(passing(&File::default().without("call", "rate_limit"), 20).await, 20);
}

#[tokio::test]
async fn rate_limit_can_be_retuned_while_it_is_in_use() {
    let lines = "global = { calls = 1, per = \"1h\", burst = 1 }";
    let gateway = File::default().table("rate_limit", lines).start().await;
    let connection = gateway.connect(None).await;
    assert_eq!(code(&connection, GET_USER).await, Code::Ok);
    assert_eq!(code(&connection, GET_USER).await, Code::ResourceExhausted);
    let wider = File::default().table("rate_limit", "max_keys = 8").read("/unused").unwrap();
    let handle = gateway.running.handles().call.rate_limit.clone().unwrap();
    handle.set(&wider.layers.rate_limit);
    assert_eq!(code(&connection, GET_USER).await, Code::Ok, "the same connection goes on");
}

#[tokio::test]
async fn authenticate_finds_out_who_is_calling() {
    let gateway = File::default().start().await;
    assert_eq!(code(&gateway.connect(None).await, GET_USER).await, Code::Ok);
    let stranger = gateway.connect(Some("no.good.token")).await;
    assert_eq!(code(&stranger, GET_USER).await, Code::Unauthenticated);

    // Without it nobody is anybody, and `authorize` lets nobody in.
    let file = File::default().without("call", "authenticate");
    let faults = file.read("/unused").unwrap_err();
    assert!(faults.contains("unsafe_allow_missing = [\"authenticate\"]"), "{faults}");
    let gateway = file.unguarded(&["authenticate"]).start().await;
    for token in [None, Some("no.good.token")] {
        let answer = call(&gateway.connect(token).await, GET_USER, &[], EMPTY).await;
        assert_eq!(answer.status.code(), Code::PermissionDenied, "{answer:?}");
    }
}

#[tokio::test]
async fn authorize_decides_who_may_call_what() {
    let gateway = File::default().start().await;
    let id = gateway.sandbox("one").await;
    let sandbox = gateway.connect(Some(&gateway.token(&id))).await;
    assert_eq!(code(&sandbox, LIST_PROVIDERS).await, Code::PermissionDenied);

    let file = File::default().without("call", "authorize");
    let faults = file.read("/unused").unwrap_err();
    assert!(faults.contains("unsafe_allow_missing = [\"authorize\"]"), "{faults}");
    let gateway = file.unguarded(&["authorize"]).start().await;
    let id = gateway.sandbox("one").await;
    let sandbox = gateway.connect(Some(&gateway.token(&id))).await;
    // The call arrives at the router, which has no such method.
    assert_eq!(code(&sandbox, LIST_PROVIDERS).await, Code::Unimplemented);
    // What handlers check themselves stays.
    let stranger = gateway.connect(Some("no.good.token")).await;
    assert_eq!(code(&stranger, GET_USER).await, Code::Unauthenticated);
}

#[tokio::test]
async fn deadline_ends_calls_that_take_too_long() {
    for total in [150, 450] {
        let lines = format!("total = \"{total}ms\"");
        let gateway = File::default().table("deadline", &lines).start().await;
        let started = tokio::time::Instant::now();
        let late = Held::begin(&gateway.connect(None).await, GET_USER).answer().await;
        assert_eq!(late.status.code(), Code::DeadlineExceeded, "{late:?}");
        assert!(started.elapsed() >= Duration::from_millis(total));
    }
    // A caller may ask for less than the configured 30 seconds.
    let gateway = File::default().start().await;
    let hurried = Held::hurried(&gateway.connect(None).await, GET_USER, "100m").answer().await;
    assert_eq!(hurried.status.code(), Code::DeadlineExceeded, "{hurried:?}");
}

#[tokio::test]
async fn without_deadline_calls_take_as_long_as_they_take() {
    let gateway = File::default().without("call", "deadline").start().await;
    let connection = gateway.connect(None).await;
    let slow = Held::begin(&connection, GET_USER);
    let hurried = Held::hurried(&connection, GET_USER, "100m");
    // The longest deadline of the test above, and some more.
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(slow.finish().await.status.code(), Code::Ok);
    assert_eq!(hurried.finish().await.status.code(), Code::Ok);
}

#[tokio::test]
async fn concurrency_cap_bounds_calls_in_progress() {
    for (per_key, lines) in [(1, "per_key = 1"), (3, "per_key = 3"), (2, "total = 2\nper_key = 2")]
    {
        let gateway =
            File::default().adding("call", "concurrency_cap").table("concurrency_cap", lines);
        let gateway = gateway.start().await;
        let cap = gateway.running.handles().call.concurrency_cap.clone().unwrap();
        let connection = gateway.connect(None).await;
        let held: Vec<_> = (0..per_key).map(|_| Held::begin(&connection, GET_USER)).collect();
        until("they are in progress", async || cap.counts().0 == per_key).await;
        let refused = call(&connection, GET_USER, &[], EMPTY).await.status;
        assert_eq!(refused.code(), Code::ResourceExhausted, "{lines}: {refused}");
        for held in held {
            assert_eq!(held.finish().await.status.code(), Code::Ok);
        }
        until("the places are back", async || cap.counts().0 == 0).await;
        assert_eq!(code(&connection, GET_USER).await, Code::Ok);
    }
    let gateway = File::default().start().await;
    let connection = gateway.connect(None).await;
    let held: Vec<_> = (0..10).map(|_| Held::begin(&connection, GET_USER)).collect();
    assert_eq!(code(&connection, GET_USER).await, Code::Ok);
    for held in held {
        assert_eq!(held.finish().await.status.code(), Code::Ok);
    }
}

#[tokio::test]
async fn concurrency_cap_counts_principals_apart() {
    let gateway = File::default()
        .adding("call", "concurrency_cap")
        .table("concurrency_cap", "per_key = 1")
        .start()
        .await;
    let id = gateway.sandbox("one").await;
    let user = gateway.connect(None).await;
    let cap = gateway.running.handles().call.concurrency_cap.clone().unwrap();
    let held = Held::begin(&user, GET_USER);
    until("it is in progress", async || cap.counts().0 == 1).await;
    assert_eq!(code(&user, GET_USER).await, Code::ResourceExhausted);
    let sandbox = gateway.connect(Some(&gateway.token(&id))).await;
    let health = call(&sandbox, "/openshell.v1.OpenShell/GetSandboxConfig", &[], EMPTY).await;
    assert_ne!(health.status.code(), Code::ResourceExhausted, "{health:?}");
    assert_eq!(held.finish().await.status.code(), Code::Ok);
}

/// The answer to a request to make a sandbox whose name is `length` bytes long.
async fn long_request(file: &File, length: usize) -> tonic::Status {
    let gateway = file.start().await;
    let mut message = vec![0; 5];
    let request =
        postern_proto::v1::CreateSandboxRequest { name: "x".repeat(length), ..Default::default() };
    let encoded = prost::Message::encode_to_vec(&request);
    message[1..].copy_from_slice(&u32::try_from(encoded.len()).unwrap().to_be_bytes());
    message.extend(encoded);
    call(&gateway.connect(None).await, CREATE_SANDBOX, &[], &message).await.status
}

#[tokio::test]
async fn body_limit_bounds_request_bodies() {
    let limited = |max: &str| {
        File::default()
            .adding("call", "body_limit")
            .table("body_limit", &format!("max = \"{max}\""))
    };
    // A name that long is no name, which the handler says if it gets to see it.
    let refused = long_request(&limited("1KiB"), 2000).await;
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
    let seen = long_request(&limited("4KiB"), 2000).await;
    assert_eq!(seen.code(), Code::InvalidArgument, "{seen}");
    let seen = long_request(&File::default(), 2000).await;
    assert_eq!(seen.code(), Code::InvalidArgument, "{seen}");
}
