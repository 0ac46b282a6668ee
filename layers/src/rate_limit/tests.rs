use std::convert::Infallible;

use http::StatusCode;
use tower::{ServiceExt, service_fn};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn per_key(calls: u32, burst: u32) -> Config {
    Config { per_key: Some(Quota { calls, per: SECOND, burst }), ..Config::default() }
}

type Path = fn(&Request<()>) -> Option<String>;

fn layer(config: &Config) -> RateLimitLayer<Path, String> {
    RateLimitLayer::new(config, |request: &Request<()>| Some(request.uri().path().to_owned()))
}

async fn ask(layer: &RateLimitLayer<Path, String>, path: &str) -> Response<()> {
    let inner = service_fn(|_: Request<()>| async { Ok::<_, Infallible>(Response::new(())) });
    let mut request = Request::new(());
    *request.uri_mut() = path.parse().unwrap();
    layer.layer(inner).oneshot(request).await.unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_burst_passes_and_then_the_rate() {
    let layer = layer(&per_key(2, 3));
    for _ in 0..3 {
        assert_eq!(ask(&layer, "/a").await.status(), 200);
    }
    let refused = ask(&layer, "/a").await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers()["retry-after"], "1");
    let refusal = refused.extensions().get::<Refusal>().unwrap();
    assert_eq!(refusal.retry_after(), Some(SECOND / 2));
    assert!(refusal.reason().contains("2 calls per 1s with bursts of 3"), "{refusal}");
    assert_eq!(ask(&layer, "/b").await.status(), 200, "another key has its own quota");
    tokio::time::advance(SECOND / 2).await;
    assert_eq!(ask(&layer, "/a").await.status(), 200);
    assert_eq!(ask(&layer, "/a").await.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(layer.handle().counts(), Counts { passed: 5, refused: 2, keys: 2 });
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_takes_nothing_of_either_quota() {
    let global = Quota { calls: 1, per: SECOND, burst: 3 };
    let layer = layer(&Config { global: Some(global), ..per_key(1, 1) });
    assert_eq!(ask(&layer, "/a").await.status(), 200);
    for _ in 0..10 {
        assert_eq!(ask(&layer, "/a").await.status(), 429, "the key's own quota is spent");
    }
    assert_eq!(ask(&layer, "/b").await.status(), 200);
    assert_eq!(
        ask(&layer, "/c").await.status(),
        200,
        "the refused calls left the global quota alone"
    );
    let refused = ask(&layer, "/d").await;
    assert!(refused.extensions().get::<Refusal>().unwrap().reason().contains("all callers"));
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_keys_is_bounded_and_leaves_known_keys_alone() {
    let layer = layer(&Config { max_keys: 100, ..per_key(10, 10) });
    assert_eq!(ask(&layer, "/known").await.status(), 200);
    let mut passed = 0;
    for key in 0..1_000 {
        passed += u32::from(ask(&layer, &format!("/made-up/{key}")).await.status() == 200);
        assert!(layer.handle().counts().keys <= 100);
    }
    assert_eq!(passed, 99 + 10, "the table's room, then one quota for all strangers");
    assert_eq!(ask(&layer, "/known").await.status(), 200);
    tokio::time::advance(SECOND * 2).await;
    assert_eq!(ask(&layer, "/new").await.status(), 200);
    assert_eq!(layer.handle().counts().keys, 1, "keys with full quotas are forgotten");
}

#[tokio::test(start_paused = true)]
async fn the_rates_can_be_changed() {
    let layer = layer(&per_key(1, 1));
    ask(&layer, "/a").await;
    assert_eq!(ask(&layer, "/a").await.status(), 429);
    layer.handle().set(&per_key(1, 5));
    assert_eq!(ask(&layer, "/a").await.status(), 200);
    layer.handle().set(&Config { per_key: None, ..Config::default() });
    for _ in 0..50 {
        assert_eq!(ask(&layer, "/a").await.status(), 200);
    }
}

#[test]
fn every_fault_is_told() {
    let none = Quota { calls: 0, per: Duration::ZERO, burst: 1 };
    let config = Config { per_key: Some(none), global: Some(none), max_keys: 0 };
    let fields: Vec<_> = config.validate().into_iter().map(|fault| fault.field).collect();
    assert_eq!(fields, ["per_key", "per_key", "global", "global", "max_keys"]);
    assert!(Config::default().validate().is_empty());
}

#[cfg(feature = "serde")]
#[test]
fn a_quota_is_read() {
    let text = "max_keys = 10\n[global]\ncalls = 5\nper = \"2s\"\nburst = 7";
    let config: Config = toml::from_str(text).unwrap();
    assert_eq!(config.global, Some(Quota { calls: 5, per: SECOND * 2, burst: 7 }));
    assert!(toml::from_str::<Config>("[global]\ncalls = 5").is_err(), "a quota is whole");
}
