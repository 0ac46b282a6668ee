//! What over HTTP and gRPC: requests, responses, URLs, API operations and services.

use std::borrow::Cow;

use serde::Serialize;

use super::{text_setters, value_setters};
use crate::ocsf::text::{MAX_DETAIL_BYTES, MAX_NAME_BYTES, MAX_URL_BYTES, Text, clip};

/// Where a request went (`url`). The query is left out unless it is given on purpose, because queries carry credentials.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Url {
    path: Text,
    #[serde(skip_serializing_if = "Option::is_none")]
    scheme: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hostname: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    query_string: Option<Text>,
}

impl Url {
    /// A path.
    #[must_use]
    pub fn new(path: impl Into<Cow<'static, str>>) -> Self {
        Self {
            path: clip(path, MAX_URL_BYTES),
            scheme: None,
            hostname: None,
            port: None,
            query_string: None,
        }
    }

    text_setters! {
        /// Its scheme, without `://`.
        scheme, MAX_NAME_BYTES;
        /// Its host.
        hostname, MAX_NAME_BYTES;
        /// Its query, without `?`. Mask credentials before they get here.
        query_string, MAX_URL_BYTES;
    }

    value_setters! {
        /// Its port.
        port: u16;
    }

    pub(crate) fn shown(&self) -> String {
        let mut out = String::with_capacity(64);
        if let Some(host) = &self.hostname {
            out.push_str(self.scheme.as_deref().unwrap_or("http"));
            out.push_str("://");
            out.push_str(host);
            if let Some(port) = self.port {
                out.push(':');
                out.push_str(&port.to_string());
            }
        }
        out.push_str(&self.path);
        out
    }
}

impl From<&http::Uri> for Url {
    /// Scheme, host, port and path; not the query.
    fn from(uri: &http::Uri) -> Self {
        let mut url = Self::new(uri.path().to_owned());
        if let Some(scheme) = uri.scheme_str() {
            url = url.scheme(scheme.to_owned());
        }
        if let Some(host) = uri.host() {
            url = url.hostname(host.to_owned());
        }
        if let Some(port) = uri.port_u16() {
            url = url.port(port);
        }
        url
    }
}

/// The methods the schema has a number for, with that number in class HTTP Activity.
pub(crate) fn method_activity(method: &str) -> Option<(u8, &'static str, &'static str)> {
    Some(match method {
        "CONNECT" => (1, "CONNECT", "Connect"),
        "DELETE" => (2, "DELETE", "Delete"),
        "GET" => (3, "GET", "Get"),
        "HEAD" => (4, "HEAD", "Head"),
        "OPTIONS" => (5, "OPTIONS", "Options"),
        "POST" => (6, "POST", "Post"),
        "PUT" => (7, "PUT", "Put"),
        "TRACE" => (8, "TRACE", "Trace"),
        "PATCH" => (9, "PATCH", "Patch"),
        _ => return None,
    })
}

/// An HTTP request (`http_request`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HttpRequest {
    // Left out for a method the schema does not know; the activity's name says it then.
    #[serde(skip_serializing_if = "Option::is_none")]
    http_method: Option<&'static str>,
    #[serde(skip)]
    pub(crate) method: Text,
    url: Url,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_length: Option<u64>,
}

impl HttpRequest {
    /// A request with that method (as on the wire) for that URL.
    #[must_use]
    pub fn new(method: &str, url: Url) -> Self {
        let known = method_activity(method);
        Self {
            http_method: known.map(|(_, name, _)| name),
            method: match known {
                Some((_, name, _)) => Cow::Borrowed(name),
                None => clip(method.to_owned(), MAX_NAME_BYTES),
            },
            url,
            user_agent: None,
            version: None,
            uid: None,
            body_length: None,
        }
    }

    text_setters! {
        /// What the client calls itself.
        user_agent, MAX_NAME_BYTES;
        /// The HTTP version, such as `2`.
        version, MAX_NAME_BYTES;
        /// The request id.
        uid, MAX_NAME_BYTES;
    }

    /// Bytes of the request body. The schema's numbers are signed; beyond that it stays at the largest.
    #[must_use]
    pub fn body_length(mut self, bytes: u64) -> Self {
        self.body_length = Some(bytes.min(i64::MAX as u64));
        self
    }

    pub(crate) fn shown_url(&self) -> String {
        self.url.shown()
    }
}

/// An HTTP response (`http_response`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HttpResponse {
    code: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    content_type: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_length: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency: Option<u64>,
}

impl HttpResponse {
    /// A response with that status code.
    #[must_use]
    pub fn new(code: u16) -> Self {
        Self { code, content_type: None, body_length: None, latency: None }
    }

    text_setters! {
        /// Its media type.
        content_type, MAX_NAME_BYTES;
    }

    /// Bytes of the response body.
    #[must_use]
    pub fn body_length(mut self, bytes: u64) -> Self {
        self.body_length = Some(bytes.min(i64::MAX as u64));
        self
    }

    /// Milliseconds from the request to this response.
    #[must_use]
    pub fn latency(mut self, milliseconds: u64) -> Self {
        self.latency = Some(milliseconds.min(i64::MAX as u64));
        self
    }

    pub(crate) fn shown_code(&self) -> u16 {
        self.code
    }
}

/// A service (`service`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Service {
    name: Text,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<Text>,
}

impl Service {
    /// A service of that name.
    #[must_use]
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self { name: clip(name, MAX_NAME_BYTES), version: None, uid: None }
    }

    text_setters! {
        /// Its version.
        version, MAX_NAME_BYTES;
        /// Its identifier.
        uid, MAX_NAME_BYTES;
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct ApiRequest {
    uid: Text,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct ApiResponse {
    code: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_message: Option<Text>,
}

/// A call of an API (`api`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Api {
    operation: Text,
    #[serde(skip_serializing_if = "Option::is_none")]
    service: Option<Service>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<ApiRequest>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response: Option<ApiResponse>,
}

impl Api {
    /// A call of that operation.
    #[must_use]
    pub fn new(operation: impl Into<Cow<'static, str>>) -> Self {
        Self {
            operation: clip(operation, MAX_NAME_BYTES),
            service: None,
            version: None,
            request: None,
            response: None,
        }
    }

    text_setters! {
        /// The version of the API.
        version, MAX_NAME_BYTES;
    }

    value_setters! {
        /// The service the operation belongs to.
        service: Service;
    }

    /// The request id.
    #[must_use]
    pub fn request_uid(mut self, uid: impl Into<Cow<'static, str>>) -> Self {
        self.request = Some(ApiRequest { uid: clip(uid, MAX_NAME_BYTES) });
        self
    }

    /// It answered with that code (gRPC or HTTP) and no error.
    #[must_use]
    pub fn answered(mut self, code: i32) -> Self {
        self.response = Some(ApiResponse { code, error: None, error_message: None });
        self
    }

    /// It answered with that code and error: `error` is the code's name, `message` what was told to the caller.
    #[must_use]
    pub fn failed(
        mut self,
        code: i32,
        error: impl Into<Cow<'static, str>>,
        message: impl Into<Cow<'static, str>>,
    ) -> Self {
        let message = clip(message, MAX_DETAIL_BYTES);
        self.response = Some(ApiResponse {
            code,
            error: Some(clip(error, MAX_NAME_BYTES)),
            error_message: (!message.is_empty()).then_some(message),
        });
        self
    }

    pub(crate) fn shown(&self) -> (Option<&str>, &str) {
        (self.service.as_ref().map(|service| service.name.as_ref()), &self.operation)
    }

    pub(crate) fn shown_error(&self) -> Option<&str> {
        self.response.as_ref()?.error.as_deref()
    }
}
