//! What operators see of a running gateway: its layers, their values and their counters.
//!
//! A port of its own, on the loopback address, which reads and never changes anything:
//!
//! | path | answer |
//! |---|---|
//! | `/config` | the stacks in force with values and which of them are defaults, and how the last reload went; JSON |
//! | `/layers` | the same with live counters; JSON |
//! | `/` | one page that shows `/layers` and refreshes itself; it fetches nothing from elsewhere |
//!
//! No secret is shown: tokens, keys and the database URL are not part of any layer's values.

mod describe;
mod guard;
mod page;
pub mod report;
pub(crate) mod values;
mod view;

use std::{
    convert::Infallible,
    fs, io,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use tonic::body::Body;
use tower::{service_fn, util::BoxCloneSyncService};

pub use self::view::View;
use crate::stack::CallPlane;

/// Where a gateway writes the address of its admin endpoint, below its state directory, for `postern layers`.
const ADDRESS_FILE: &str = "admin-address";

const JSON: &str = "application/json";
const HTML: &str = "text/html; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// What the admin port serves.
#[must_use]
pub fn plane(view: View) -> CallPlane {
    BoxCloneSyncService::new(service_fn(move |request: Request<Body>| {
        std::future::ready(Ok::<_, Infallible>(answer(&view, &request)))
    }))
}

fn answer(view: &View, request: &Request<Body>) -> Response<Body> {
    if let Err(refused) = guard::check(request) {
        return respond(refused.status, TEXT, refused.text.to_owned());
    }
    match request.uri().path() {
        "/" => respond(StatusCode::OK, HTML, page::html().to_owned()),
        "/config" => json(&view.config()),
        "/layers" => json(&view.layers()),
        _ => respond(StatusCode::NOT_FOUND, TEXT, "there are /, /config and /layers\n".to_owned()),
    }
}

fn json(report: &report::Report) -> Response<Body> {
    let text = serde_json::to_string_pretty(report).expect("texts and numbers are JSON");
    respond(StatusCode::OK, JSON, text + "\n")
}

fn respond(status: StatusCode, kind: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::from(text)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_SECURITY_POLICY, page::policy());
    // Numbers of a moment ago, of this machine only.
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::X_FRAME_OPTIONS, "DENY"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    if status == StatusCode::METHOD_NOT_ALLOWED {
        headers.insert(header::ALLOW, HeaderValue::from_static("GET"));
    }
    response
}

/// The file in which a gateway that keeps its state in `state_dir` says where its admin endpoint is.
#[must_use]
pub fn address_file(state_dir: &Path) -> PathBuf {
    state_dir.join(ADDRESS_FILE)
}

/// Says where the admin endpoint is. A convenience: without the file `postern layers` has to be told.
pub(crate) fn tell_address(state_dir: &Path, address: SocketAddr) {
    if let Err(error) = fs::write(address_file(state_dir), format!("{address}\n")) {
        tracing::warn!(%error, "the address of the admin endpoint could not be written down");
    }
}

/// Takes back what [`tell_address`] said.
pub(crate) fn forget_address(state_dir: &Path) {
    match fs::remove_file(address_file(state_dir)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::debug!(%error, "the address of the admin endpoint could not be removed");
        }
        _ => {}
    }
}
