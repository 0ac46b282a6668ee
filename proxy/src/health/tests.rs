use http_body_util::BodyExt as _;
use postern_store::SqliteStore;
use tower::ServiceExt as _;

use super::*;
use crate::drain::Drain;

async fn get(plane: &CallPlane, method: Method, path: &str) -> (StatusCode, serde_json::Value) {
    let request = Request::builder().method(method).uri(path).body(Body::empty()).unwrap();
    let response = plane.clone().oneshot(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, serde_json::from_slice(&body).unwrap_or_default())
}

#[tokio::test]
async fn ready_follows_the_database_and_the_drain() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let store = SqliteStore::open(&format!("sqlite://{}", path.display())).await.unwrap();
    let drain = Drain::new();
    let readiness = Readiness::new(drain.watch());
    let plane = health_plane(readiness.clone());

    let (status, body) = get(&plane, Method::GET, "/readyz").await;
    assert_eq!(
        (status, &body["checks"]["database"]["status"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"unknown".into())
    );
    readiness.probe(&store).await;
    let (status, body) = get(&plane, Method::GET, "/readyz").await;
    assert_eq!((status, &body["status"]), (StatusCode::OK, &"ready".into()));
    assert!(body["checks"]["database"]["latency_ms"].is_u64(), "{body}");

    std::fs::remove_file(&path).unwrap();
    readiness.probe(&store).await;
    let (status, body) = get(&plane, Method::GET, "/readyz").await;
    assert_eq!(
        (status, &body["checks"]["database"]["status"]),
        (StatusCode::SERVICE_UNAVAILABLE, &"unhealthy".into())
    );
    assert!(body["checks"]["database"]["error"].as_str().unwrap().contains("removed"), "{body}");
    assert!(!readiness.is_ready());
    // Being alive does not depend on it.
    assert_eq!(get(&plane, Method::GET, "/healthz").await.0, StatusCode::OK);

    let store = SqliteStore::open("sqlite::memory:").await.unwrap();
    readiness.probe(&store).await;
    assert!(readiness.is_ready());
    drain.start();
    let (status, body) = get(&plane, Method::GET, "/readyz").await;
    assert_eq!((status, &body["status"]), (StatusCode::SERVICE_UNAVAILABLE, &"draining".into()));
}

#[tokio::test]
async fn other_paths_and_methods_are_refused() {
    let plane = health_plane(Readiness::new(Drain::new().watch()));
    assert_eq!(get(&plane, Method::GET, "/metrics").await.0, StatusCode::NOT_FOUND);
    assert_eq!(get(&plane, Method::POST, "/healthz").await.0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(get(&plane, Method::HEAD, "/health").await.0, StatusCode::OK);
}
