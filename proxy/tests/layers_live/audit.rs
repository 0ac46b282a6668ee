//! The `ocsf` layers of a running gateway, read from its audit file.

use std::collections::BTreeSet;

use postern_proto::v1::RelayOpenResult;
use postern_proto::v1::supervisor_message::Payload as ToGateway;
use serde_json::Value;
use tonic::Code;

use super::gateway::{EMPTY, File, GET_USER, Gateway, call, code, soon, until};
use super::scripted::{Scripted, forward, ssh_init, tcp_init};

const NETWORK: u64 = 4001;
const SSH: u64 = 4007;
const AUTHENTICATION: u64 = 3002;
const API: u64 = 6003;

/// What every event of the schema has, whatever its class.
fn check(line: &Value) {
    let number = |name: &str| line[name].as_u64().unwrap_or_else(|| panic!("no {name}: {line}"));
    let (class, activity) = (number("class_uid"), number("activity_id"));
    assert_eq!(number("type_uid"), class * 100 + activity, "{line}");
    assert_eq!(number("category_uid"), class / 1000, "{line}");
    assert!(number("time") > 1_600_000_000_000, "milliseconds: {line}");
    assert!((1..=6).contains(&number("severity_id")), "{line}");
    assert!(
        line["metadata"]["version"].is_string() && line["metadata"]["uid"].is_string(),
        "{line}"
    );
    assert_eq!(line["metadata"]["product"]["name"], "Postern", "{line}");
}

fn of(lines: &[Value], class: u64) -> Vec<&Value> {
    lines.iter().filter(|line| line["class_uid"] == class).collect()
}

fn activities(lines: &[&Value]) -> Vec<u64> {
    lines.iter().map(|line| line["activity_id"].as_u64().expect("a number")).collect()
}

/// Everything that is worth an event: a refused authentication, a session, a relay that works, one that fails.
async fn a_day(gateway: &Gateway) {
    let stranger = gateway.connect(Some("no.good.token")).await;
    assert_eq!(code(&stranger, GET_USER).await, Code::Unauthenticated);
    let id = gateway.sandbox("one").await;
    let token = gateway.ssh_token("one").await;
    let mut session = Scripted::connect(gateway, &id).await;
    let user = gateway.connect(None).await;
    for init in [tcp_init("one", &token, "127.0.0.1", 8080), ssh_init("one", &token)] {
        let opening = forward(&user, init);
        let serving = session.serve_one();
        let (outside, mut inside) = tokio::join!(soon("the relay", opening), serving);
        let mut outside = outside.unwrap();
        outside.write("12345").await;
        assert_eq!(inside.read().await.unwrap(), "12345");
        outside.finish();
        inside.finish();
        assert_eq!(inside.read_to_end().await.1, Code::Ok);
        assert_eq!(outside.read_to_end().await.1, Code::Ok);
    }
    // A target that is not there.
    let opening = forward(&user, tcp_init("one", &token, "127.0.0.1", 1));
    let refusing = async {
        let open = session.asked().await;
        let result = RelayOpenResult {
            channel_id: open.channel_id,
            success: false,
            error: "connection refused".to_owned(),
            ..RelayOpenResult::default()
        };
        session.send(ToGateway::RelayOpenResult(result)).await;
    };
    let (failed, ()) = tokio::join!(soon("a failure", opening), refusing);
    assert!(failed.is_err());
    let registry = gateway.running.registry();
    until("the relays have ended", async || registry.stats().live == 0).await;
    session.cut();
    until("the session has ended", async || registry.stats().sessions == 0).await;
}

#[tokio::test]
async fn ocsf_records_authentications_sessions_and_relays() {
    let gateway = File::default().start().await;
    a_day(&gateway).await;
    let lines = gateway.audited().await;
    lines.iter().for_each(check);
    let ids: BTreeSet<_> = lines.iter().map(|line| line["metadata"]["uid"].as_str()).collect();
    assert_eq!(ids.len(), lines.len(), "every event has an id of its own");

    let failed = of(&lines, AUTHENTICATION);
    assert_eq!(failed.len(), 1, "{failed:?}");
    assert_eq!(
        (&failed[0]["status_id"], &failed[0]["status_code"]),
        (&2.into(), &"UNAUTHENTICATED".into())
    );
    assert_eq!(failed[0]["src_endpoint"]["ip"], "127.0.0.1");
    assert_eq!(failed[0]["http_request"]["url"]["path"], GET_USER);
    assert!(
        !lines.iter().any(|line| line.to_string().contains("no.good.token")),
        "a secret leaked"
    );

    // Opened, closed; and one that failed to open.
    let (open, close, fail) = (1, 2, 4);
    let network = of(&lines, NETWORK);
    assert_eq!(activities(&network), [open, close, fail], "{network:#?}");
    assert_eq!(network[0]["dst_endpoint"]["port"], 8080);
    assert_eq!(network[1]["traffic"]["bytes_in"], 5, "{}", network[1]);
    assert_eq!(network[1]["status_id"], 1);
    assert_eq!(network[2]["status_id"], 2);
    let ssh = of(&lines, SSH);
    assert_eq!(activities(&ssh), [open, close], "{ssh:#?}");
    assert_eq!(ssh[0]["dst_endpoint"]["svc_name"], "ssh");

    let calls = of(&lines, API);
    let sessions: Vec<_> =
        calls.iter().filter(|line| line.to_string().contains("ConnectSupervisor")).collect();
    assert_eq!(sessions.len(), 2, "it began and it ended: {sessions:#?}");
    assert!(
        sessions.iter().all(|line| line["actor"].to_string().contains("sandbox")),
        "{sessions:#?}"
    );
    assert!(calls.iter().any(|line| line["api"]["operation"] == "CreateSandbox"), "{calls:#?}");
}

#[tokio::test]
async fn without_the_relay_layer_relays_are_not_recorded() {
    let gateway = File::default().without("relay", "ocsf").start().await;
    a_day(&gateway).await;
    let lines = gateway.audited().await;
    lines.iter().for_each(check);
    assert!(of(&lines, NETWORK).is_empty() && of(&lines, SSH).is_empty());
    assert!(!of(&lines, API).is_empty() && !of(&lines, AUTHENTICATION).is_empty());
}

#[tokio::test]
async fn without_the_call_layer_calls_are_not_recorded() {
    let gateway = File::default().without("call", "ocsf").start().await;
    a_day(&gateway).await;
    let lines = gateway.audited().await;
    lines.iter().for_each(check);
    assert!(of(&lines, API).is_empty() && of(&lines, AUTHENTICATION).is_empty());
    assert_eq!(of(&lines, NETWORK).len(), 3);
}

#[tokio::test]
async fn a_refused_authentication_is_recorded_once_wherever_the_layer_stands() {
    for file in [File::default(), File::default().moving("call", "ocsf", "trace")] {
        let gateway = file.start().await;
        let stranger = gateway.connect(Some("no.good.token")).await;
        let refused = call(&stranger, GET_USER, &[], EMPTY).await;
        assert_eq!(refused.status.code(), Code::Unauthenticated);
        let lines = gateway.audited().await;
        lines.iter().for_each(check);
        assert_eq!(of(&lines, AUTHENTICATION).len(), 1, "{lines:#?}");
        assert_eq!(lines.len(), 1, "{lines:#?}");
    }
}

#[tokio::test]
async fn ocsf_writes_where_its_table_says() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("elsewhere");
    let lines = format!("path = {path:?}\nformat = \"short\"");
    let gateway = File::default().table("ocsf", &lines).start().await;
    assert_eq!(code(&gateway.connect(None).await, GET_USER).await, Code::Ok);
    assert!(gateway.audited().await.is_empty(), "nothing is at the default place");
    let text = std::fs::read_to_string(path).unwrap();
    assert!(text.contains("GetCurrentUser") && !text.starts_with('{'), "{text}");

    let gateway = File::default().table("ocsf", "sink = \"off\"").start().await;
    assert_eq!(code(&gateway.connect(None).await, GET_USER).await, Code::Ok);
    assert!(gateway.audited().await.is_empty());
}
