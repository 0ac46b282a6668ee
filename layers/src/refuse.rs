//! How a layer says no.
//!
//! On the call plane a refusal is a response in the caller's protocol: an HTTP status with an empty body, or a
//! trailers-only gRPC response. On the relay and connection planes it is an error, made by [`FromRefusal`].
//! Either way the typed [`Refusal`] goes along, in the extensions of the response or inside the error, so that
//! logs, metrics and tests read a value and not a text.
//!
//! Sources: gRPC over HTTP/2 (`PROTOCOL-HTTP2.md`, *Responses*) for trailers-only and the percent-encoding of
//! `grpc-message`; gRFC A6 for `grpc-retry-pushback-ms`; RFC 9110 section 10.2.3 for `retry-after`.

use std::{borrow::Cow, fmt, time::Duration};

use http::{HeaderMap, HeaderValue, Response, StatusCode, Version, header};

/// The sixteen gRPC status codes and `Ok`, with the HTTP status that says the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Code {
    /// Done.
    Ok = 0,
    /// The caller went away.
    Cancelled = 1,
    /// No better code is known.
    Unknown = 2,
    /// The request can never be right.
    InvalidArgument = 3,
    /// The time was up first.
    DeadlineExceeded = 4,
    /// There is no such thing, or the caller may not know that there is.
    NotFound = 5,
    /// There is one already.
    AlreadyExists = 6,
    /// The caller is known and may not do this.
    PermissionDenied = 7,
    /// A limit is reached.
    ResourceExhausted = 8,
    /// The state of the system forbids it until something else happens.
    FailedPrecondition = 9,
    /// A concurrent change won.
    Aborted = 10,
    /// Past the end.
    OutOfRange = 11,
    /// No such method.
    Unimplemented = 12,
    /// An invariant is broken.
    Internal = 13,
    /// Not now; a retry may work.
    Unavailable = 14,
    /// Data are gone.
    DataLoss = 15,
    /// Who is calling is not known.
    Unauthenticated = 16,
}

/// Every code, so that the number of a code is its place.
const CODES: [(Code, &str, StatusCode); 17] = [
    (Code::Ok, "OK", StatusCode::OK),
    // 499 has no name in the registry; 503 is what intermediaries understand.
    (Code::Cancelled, "CANCELLED", StatusCode::SERVICE_UNAVAILABLE),
    (Code::Unknown, "UNKNOWN", StatusCode::INTERNAL_SERVER_ERROR),
    (Code::InvalidArgument, "INVALID_ARGUMENT", StatusCode::BAD_REQUEST),
    (Code::DeadlineExceeded, "DEADLINE_EXCEEDED", StatusCode::GATEWAY_TIMEOUT),
    (Code::NotFound, "NOT_FOUND", StatusCode::NOT_FOUND),
    (Code::AlreadyExists, "ALREADY_EXISTS", StatusCode::CONFLICT),
    (Code::PermissionDenied, "PERMISSION_DENIED", StatusCode::FORBIDDEN),
    (Code::ResourceExhausted, "RESOURCE_EXHAUSTED", StatusCode::TOO_MANY_REQUESTS),
    (Code::FailedPrecondition, "FAILED_PRECONDITION", StatusCode::BAD_REQUEST),
    (Code::Aborted, "ABORTED", StatusCode::CONFLICT),
    (Code::OutOfRange, "OUT_OF_RANGE", StatusCode::BAD_REQUEST),
    (Code::Unimplemented, "UNIMPLEMENTED", StatusCode::NOT_IMPLEMENTED),
    (Code::Internal, "INTERNAL", StatusCode::INTERNAL_SERVER_ERROR),
    (Code::Unavailable, "UNAVAILABLE", StatusCode::SERVICE_UNAVAILABLE),
    (Code::DataLoss, "DATA_LOSS", StatusCode::INTERNAL_SERVER_ERROR),
    (Code::Unauthenticated, "UNAUTHENTICATED", StatusCode::UNAUTHORIZED),
];

/// Why a request was not let through, and what the caller is told.
///
/// The *reason* is for the caller; the *detail* is for logs only and is never sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    layer: &'static str,
    code: Code,
    status: Option<StatusCode>,
    reason: Cow<'static, str>,
    detail: Option<Cow<'static, str>>,
    retry_after: Option<Duration>,
}

/// Turns a refusal into the error of a service whose plane has no responses to refuse with.
///
/// The relay plane's error implements it, so that `relay_caps` can refuse without knowing that error.
pub trait FromRefusal: Sized {
    /// The error that says this.
    fn from_refusal(refusal: Refusal) -> Self;
}

impl FromRefusal for Refusal {
    fn from_refusal(refusal: Refusal) -> Self {
        refusal
    }
}

impl FromRefusal for Box<dyn std::error::Error + Send + Sync> {
    fn from_refusal(refusal: Refusal) -> Self {
        Box::new(refusal)
    }
}

impl FromRefusal for std::io::Error {
    fn from_refusal(refusal: Refusal) -> Self {
        Self::other(refusal)
    }
}

/// The protocol that a refusal is spoken in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// A status code.
    Http,
    /// Status 200 and `grpc-status`.
    Grpc,
}

/// Builds the response that says `refusal` in the protocol of the request that `protocol` was taken of.
///
/// HTTP: the status, `retry-after` in whole seconds (rounded up) if known, an empty body. gRPC: status 200,
/// `grpc-status`, `grpc-message` (percent-encoded), and `grpc-retry-pushback-ms` beside `retry-after`. The
/// [`Refusal`] is in the extensions of the response.
#[must_use]
pub fn response<B: Default>(protocol: Protocol, version: Version, refusal: Refusal) -> Response<B> {
    let mut response = Response::new(B::default());
    *response.version_mut() = version;
    if let Some(wait) = refusal.retry_after {
        // Up, so that a caller who waits exactly that long is not refused again.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    match protocol {
        Protocol::Grpc => {
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
            trailers_into(&refusal, response.headers_mut());
        }
        Protocol::Http => {
            *response.status_mut() = refusal.http_status();
            response.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        }
    }
    response.extensions_mut().insert(refusal);
    response
}

/// The gRPC trailers that say `refusal`, for a body that has to end early.
#[must_use]
pub fn trailers(refusal: &Refusal) -> HeaderMap {
    let mut trailers = HeaderMap::with_capacity(3);
    trailers_into(refusal, &mut trailers);
    trailers
}

fn trailers_into(refusal: &Refusal, headers: &mut HeaderMap) {
    headers.insert("grpc-status", HeaderValue::from(u16::from(refusal.code.number())));
    headers.insert("grpc-message", percent_encoded(&refusal.reason));
    if let Some(wait) = refusal.retry_after {
        let millis = u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        headers.insert("grpc-retry-pushback-ms", HeaderValue::from(millis));
    }
}

/// A `grpc-message`: bytes from space to tilde except percent as they are, the others as `%XX`.
fn percent_encoded(text: &str) -> HeaderValue {
    const HEX: &[u8; 16] = b"0123456789ABCDEF";
    let mut out = Vec::with_capacity(text.len());
    for byte in text.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            out.push(byte);
        } else {
            out.extend([b'%', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]]);
        }
    }
    HeaderValue::from_bytes(&out).expect("every byte is printable ASCII")
}

// === impl Code ===

impl Code {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The code with this number, if there is one.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        CODES.get(usize::from(number)).map(|(code, _, _)| *code)
    }

    /// The code in a `grpc-status` header or trailer; [`Code::Unknown`] if there is one that says nothing known.
    #[must_use]
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let value = headers.get("grpc-status")?;
        let number = value.to_str().ok().and_then(|text| text.parse().ok());
        Some(number.and_then(Self::from_number).unwrap_or(Self::Unknown))
    }

    /// The name in gRPC's documents: `"RESOURCE_EXHAUSTED"`.
    #[must_use]
    pub fn name(self) -> &'static str {
        CODES[usize::from(self.number())].1
    }

    /// The HTTP status that says the same (the mapping of `google.rpc.Code`, but 503 for `CANCELLED`).
    #[must_use]
    pub fn http_status(self) -> StatusCode {
        CODES[usize::from(self.number())].2
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

// === impl Refusal ===

impl Refusal {
    /// `layer` (by its module's name) refuses with `code` and tells the caller `reason`.
    #[must_use]
    pub fn new(layer: &'static str, code: Code, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { layer, code, status: None, reason: reason.into(), detail: None, retry_after: None }
    }

    /// Adds what only the log may know.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<Cow<'static, str>>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds when a retry may work.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Says it to HTTP callers with another status than the code's own.
    #[must_use]
    pub fn with_http_status(mut self, status: StatusCode) -> Self {
        self.status = Some(status);
        self
    }

    /// The module name of the layer that refused.
    #[must_use]
    pub fn layer(&self) -> &'static str {
        self.layer
    }

    /// The code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }

    /// The HTTP status.
    #[must_use]
    pub fn http_status(&self) -> StatusCode {
        self.status.unwrap_or_else(|| self.code.http_status())
    }

    /// What the caller is told.
    #[must_use]
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// What the log may know on top; never sent.
    #[must_use]
    pub fn detail(&self) -> Option<&str> {
        self.detail.as_deref()
    }

    /// When a retry may work.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Refusal {}

// === impl Protocol ===

impl Protocol {
    /// The protocol of a request, by its `content-type`: `application/grpc`, bare or with a suffix or parameter.
    /// gRPC-Web is HTTP here: its status travels in the body.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Self {
        let Some(value) = headers.get(header::CONTENT_TYPE) else { return Self::Http };
        match value.as_bytes().strip_prefix(b"application/grpc") {
            Some([] | [b'+' | b';' | b' ', ..]) => Self::Grpc,
            _ => Self::Http,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(protocol: Protocol) -> Response<()> {
        let refusal =
            Refusal::new("rate_limit", Code::ResourceExhausted, "5 calls / 10 % für dich\n")
                .with_detail("key 7")
                .with_retry_after(Duration::from_millis(1_200));
        response(protocol, Version::HTTP_2, refusal)
    }

    #[test]
    fn http_gets_a_status_and_no_body() {
        let response = refused(Protocol::Http);
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()["retry-after"], "2");
        assert!(!response.headers().contains_key("grpc-status"));
        assert_eq!(response.extensions().get::<Refusal>().map(Refusal::layer), Some("rate_limit"));
    }

    #[test]
    fn grpc_gets_trailers_only() {
        let response = refused(Protocol::Grpc);
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["grpc-status"], "8");
        assert_eq!(response.headers()["grpc-message"], "5 calls / 10 %25 f%C3%BCr dich%0A");
        assert_eq!(response.headers()["grpc-retry-pushback-ms"], "1200");
        assert!(!format!("{:?}", response.headers()).contains("key 7"), "the detail is never sent");
    }

    #[test]
    fn the_protocol_is_in_the_content_type() {
        for (value, wanted) in [
            ("application/grpc", Protocol::Grpc),
            ("application/grpc+proto", Protocol::Grpc),
            ("application/grpc;charset=utf-8", Protocol::Grpc),
            ("application/grpc-web", Protocol::Http),
            ("application/json", Protocol::Http),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(value));
            assert_eq!(Protocol::of(&headers), wanted, "{value}");
        }
        assert_eq!(Protocol::of(&HeaderMap::new()), Protocol::Http);
    }

    #[test]
    fn the_table_of_codes_is_in_order() {
        for (place, (code, _, _)) in CODES.iter().enumerate() {
            assert_eq!(usize::from(code.number()), place);
            assert_eq!(Code::from_number(code.number()), Some(*code));
        }
        assert_eq!(Code::from_number(17), None);
    }

    #[test]
    fn a_status_that_is_no_number_is_unknown() {
        let mut headers = HeaderMap::new();
        assert_eq!(Code::from_headers(&headers), None);
        headers.insert("grpc-status", HeaderValue::from_static("often"));
        assert_eq!(Code::from_headers(&headers), Some(Code::Unknown));
        headers.insert("grpc-status", HeaderValue::from_static("14"));
        assert_eq!(Code::from_headers(&headers), Some(Code::Unavailable));
    }
}
