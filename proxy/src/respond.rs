//! The failure table: what a caller gets when the gateway itself fails.
//!
//! The outermost end of the call plane, not configurable. Refusals and handler errors are answers already when they
//! get here; what is left is a panic, which becomes a fixed text. The cause goes to the log and never to the caller.

use std::{any::Any, panic::AssertUnwindSafe};

use futures_util::FutureExt as _;
use http::{Response, StatusCode};
use postern_layers::refuse::Protocol;
use tonic::{Status, body::Body};
use tower::{ServiceExt as _, service_fn, util::BoxCloneSyncService};

use crate::stack::{Call, CallPlane};

/// What a caller is told of an internal failure.
const INTERNAL: &str = "internal error of the gateway; its log has more under the request id";

/// Puts the table around a call plane.
#[must_use]
pub fn failure_table(plane: CallPlane) -> CallPlane {
    BoxCloneSyncService::new(service_fn(move |call: Call| {
        let protocol = Protocol::of(call.headers());
        let path = call.uri().path().to_owned();
        let plane = plane.clone();
        async move {
            // A panic drops the call's own state while it unwinds; nothing of it is used again.
            match AssertUnwindSafe(plane.oneshot(call)).catch_unwind().await {
                Ok(answer) => answer,
                Err(panic) => {
                    tracing::error!(path, panic = text(&*panic), "a handler panicked");
                    metrics::counter!("handler_panics_total").increment(1);
                    Ok(internal(protocol))
                }
            }
        }
    }))
}

fn internal(protocol: Protocol) -> Response<Body> {
    if protocol == Protocol::Grpc {
        return Status::internal(INTERNAL).into_http();
    }
    let mut response = Response::new(Body::new(http_body_util::Full::from(INTERNAL)));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}

/// What `panic!` was given.
fn text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no text)")
}

#[cfg(test)]
mod tests {
    use http::{Request, header};
    use http_body_util::BodyExt as _;

    use super::*;

    fn panicking() -> CallPlane {
        failure_table(BoxCloneSyncService::new(service_fn(|call: Call| async move {
            assert!(call.uri().path() != "/panic", "secret detail");
            Ok(Response::new(Body::empty()))
        })))
    }

    fn call(path: &str, content_type: &str) -> Call {
        Request::builder()
            .uri(path)
            .header(header::CONTENT_TYPE, content_type)
            .body(Body::empty())
            .unwrap()
    }

    #[tokio::test]
    async fn a_panic_is_an_answer_in_the_callers_protocol() {
        let plane = panicking();
        let grpc = plane.clone().oneshot(call("/panic", "application/grpc")).await.unwrap();
        assert_eq!(grpc.headers()["grpc-status"], "13");
        assert!(!grpc.headers()["grpc-message"].to_str().unwrap().contains("secret"));
        let http = plane.clone().oneshot(call("/panic", "text/plain")).await.unwrap();
        assert_eq!(http.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = http.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, INTERNAL.as_bytes());
        // The plane goes on.
        assert_eq!(plane.oneshot(call("/", "text/plain")).await.unwrap().status(), StatusCode::OK);
    }
}
