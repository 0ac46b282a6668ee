//! Layers in another order: what a file may say, what it may not, and that the reasons are true.

use std::sync::Arc;
use std::time::Duration;

use postern::auth::Principal;
use postern::config::{CallLayer, ORDER_RULES, Plane, RelayLayer, Stack};
use postern::relay_plane::{OpenError, RelayKind, RelayRequest};
use postern_layers::ocsf::Recorder;
use postern_relay::registry::{Registry, Target};
use tokio::time::Instant;
use tonic::Code;

use super::gateway::{EMPTY, File, GET_USER, Gateway, Held, call, code};

#[test]
fn a_file_that_breaks_an_order_rule_is_refused_with_the_reason() {
    for rule in ORDER_RULES {
        // Without certificates there is no `tls` to place; the tests of the configuration have it.
        if [rule.outer, rule.inner].contains(&"tls") {
            continue;
        }
        let mut file = File::default();
        let plane = rule.plane.key();
        for name in [rule.outer, rule.inner] {
            if name != "*" && !file.list(plane).iter().any(|there| there == name) {
                file = file.adding(plane, name);
            }
        }
        assert!(file.read("/unused").is_ok(), "{rule:?}");
        let last = file.list(plane).last().cloned().expect("layers");
        let inner = if rule.inner == "*" { last } else { rule.inner.to_owned() };
        let faults = file.moving(plane, &inner, rule.outer).read("/unused").unwrap_err();
        assert!(faults.contains(rule.because), "{rule:?}: {faults}");
        let advice = format!("move {:?} in front of it", rule.outer);
        assert!(faults.contains(&advice), "{rule:?}: {faults}");
    }
    assert!(ORDER_RULES.iter().any(|rule| rule.plane == Plane::Relay));
}

/// A gateway with the layers of the call plane in an order that no file can ask for.
async fn out_of_order(file: &File, call: &[CallLayer]) -> Gateway {
    Gateway::start(|state_dir| {
        let mut config = file.read(state_dir).unwrap();
        config.stack.call = call.to_vec();
        config
    })
    .await
}

#[tokio::test]
async fn rate_limit_counts_bad_credentials_only_in_front_of_authenticate() {
    let file =
        File::default().table("rate_limit", "global = { calls = 1, per = \"1h\", burst = 3 }");
    let gateway = file.start().await;
    let stranger = gateway.connect(Some("no.good.token")).await;
    for _ in 0..3 {
        assert_eq!(code(&stranger, GET_USER).await, Code::Unauthenticated);
    }
    assert_eq!(code(&stranger, GET_USER).await, Code::ResourceExhausted);

    use CallLayer::{Authenticate, Authorize, RateLimit, RequestId};
    let gateway = out_of_order(&file, &[RequestId, Authenticate, RateLimit, Authorize]).await;
    let stranger = gateway.connect(Some("no.good.token")).await;
    for _ in 0..10 {
        assert_eq!(
            code(&stranger, GET_USER).await,
            Code::Unauthenticated,
            "a flood is not stopped"
        );
    }
    let user = gateway.connect(None).await;
    assert_eq!(code(&user, GET_USER).await, Code::Ok, "and nothing of it was counted");
}

#[tokio::test]
async fn authorize_in_front_of_authenticate_knows_nobody() {
    use CallLayer::{Authenticate, Authorize, RequestId};
    let gateway = out_of_order(&File::default(), &[RequestId, Authorize, Authenticate]).await;
    assert_eq!(code(&gateway.connect(None).await, GET_USER).await, Code::PermissionDenied);
}

#[tokio::test]
async fn a_refusal_carries_the_id_only_if_request_id_stands_outside() {
    use CallLayer::{Authenticate, RequestId};
    for (order, has_id) in [([RequestId, Authenticate], true), ([Authenticate, RequestId], false)] {
        let gateway = out_of_order(&File::default(), &order).await;
        let stranger = gateway.connect(Some("no.good.token")).await;
        let refused = call(&stranger, GET_USER, &[], EMPTY).await;
        assert_eq!(refused.status.code(), Code::Unauthenticated);
        assert_eq!(refused.headers.contains_key("x-request-id"), has_id);
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_relays_are_bounded_only_if_relay_caps_stands_outside() {
    let file = File::default().table("relay_caps", "pending_per_sandbox = 1");
    let config = file.read("/unused").unwrap();
    for relay in [
        vec![RelayLayer::RelayCaps, RelayLayer::SessionWait],
        vec![RelayLayer::SessionWait, RelayLayer::RelayCaps],
    ] {
        let bounded = relay[0] == RelayLayer::RelayCaps;
        let stack = Stack { relay, ..Stack::default() };
        // Nobody is there to serve the relays. (In a whole gateway the record of the sandbox says so first.)
        let registry = Registry::new(Default::default());
        let recorder = Recorder::disabled();
        let (plane, _) =
            postern::stack::relay_plane(&stack, &config.layers, &registry, &recorder, 7);
        let open = async || {
            let request = RelayRequest {
                sandbox_id: "one".into(),
                target: Target::Ssh,
                kind: RelayKind::Exec,
                budget: Duration::from_secs(5),
                principal: Arc::new(Principal::Anonymous),
                service_id: "".into(),
            };
            plane.open(request).await.map(drop).unwrap_err()
        };
        let started = Instant::now();
        let (first, second) = tokio::join!(open(), async { (open().await, started.elapsed()) });
        assert!(matches!(first, OpenError::NoSession { .. }), "{first}");
        let (second, after) = second;
        assert_eq!(matches!(second, OpenError::Refused(_)), bounded, "{second}");
        assert_eq!(after < Duration::from_secs(1), bounded, "{after:?}");
    }
}

#[tokio::test]
async fn deadline_and_audit_of_calls_can_stand_either_way() {
    for outer_deadline in [false, true] {
        let mut file = File::default().table("deadline", "total = \"150ms\"");
        if outer_deadline {
            file = file.moving("call", "deadline", "ocsf");
        }
        let gateway = file.start().await;
        let held = Held::begin(&gateway.connect(None).await, GET_USER);
        assert_eq!(held.answer().await.status.code(), Code::DeadlineExceeded);
        let lines = gateway.audited().await;
        let codes: Vec<_> = lines.iter().filter_map(|l| l["status_code"].as_str()).collect();
        // From inside, a call that is out of time looks like one that its caller has left.
        let seen = if outer_deadline { "CANCELLED" } else { "DEADLINE_EXCEEDED" };
        assert_eq!(codes, [seen], "{lines:?}");
    }
}

#[tokio::test]
async fn audit_of_calls_sees_what_is_refused_inside_of_it() {
    for (before, seen) in [
        (None, vec![]),
        (Some("authorize"), vec!["PERMISSION_DENIED"]),
        (Some("rate_limit"), vec!["PERMISSION_DENIED", "RESOURCE_EXHAUSTED"]),
    ] {
        let mut file =
            File::default().table("rate_limit", "global = { calls = 1, per = \"1h\", burst = 1 }");
        if let Some(before) = before {
            file = file.moving("call", "ocsf", before);
        }
        // A user's certificate would be needed for a user without the right; nobody is one without `authenticate`.
        let gateway =
            file.without("call", "authenticate").unguarded(&["authenticate"]).start().await;
        let connection = gateway.connect(None).await;
        assert_eq!(code(&connection, GET_USER).await, Code::PermissionDenied);
        assert_eq!(code(&connection, GET_USER).await, Code::ResourceExhausted);
        let lines = gateway.audited().await;
        let codes: Vec<_> = lines.iter().filter_map(|l| l["status_code"].as_str()).collect();
        assert_eq!(codes, seen, "{lines:?}");
    }
}
