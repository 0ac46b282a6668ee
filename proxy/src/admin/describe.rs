//! One sentence per layer and plane, for people who look at them.

use crate::config::Plane;

pub(super) struct Ends {
    pub(super) carries: &'static str,
    pub(super) outer: &'static str,
    pub(super) inner: &'static str,
}

pub(super) struct About {
    pub(super) does: &'static str,
    pub(super) refuses: Option<&'static str>,
}

/// What stands around the layers of a plane.
pub(super) const fn ends(plane: Plane) -> Ends {
    match plane {
        Plane::Connection => Ends {
            carries: "accepted socket to served connection",
            outer: "listener",
            inner: "HTTP/1.1 and HTTP/2 server",
        },
        Plane::Call => Ends {
            carries: "HTTP request to HTTP response",
            outer: "failure table",
            inner: "router",
        },
        Plane::Relay => Ends {
            carries: "wish for a relay to claimed relay",
            outer: "caller",
            inner: "session registry",
        },
    }
}

/// What a layer does, and what those get that it does not let through.
pub(super) fn layer(plane: Plane, name: &str) -> About {
    let (does, refuses) = match (plane, name) {
        (_, "connection_cap") => {
            ("caps connections, in all and per peer address", Some("connection closed"))
        }
        (_, "handshake_deadline") => {
            ("bounds the time until the first request", Some("connection closed"))
        }
        (_, "tls") => ("terminates TLS, checks client certificates", Some("TLS alert")),
        (_, "h2_window") => ("flow control, frame size and keepalive of HTTP/2", None),
        (_, "request_id") => ("gives every call a name", None),
        (_, "trace") => ("a tracing span per call", None),
        (Plane::Call, "metrics") => ("counts and times calls", None),
        (_, "metrics") => ("counts and times the opening of relays", None),
        (_, "rate_limit") => ("bounds the rate of calls", Some("RESOURCE_EXHAUSTED / 429")),
        (_, "authenticate") => ("finds out who is calling", Some("UNAUTHENTICATED / 401")),
        (_, "authorize") => {
            ("lets through what the caller may do", Some("PERMISSION_DENIED / 403"))
        }
        (Plane::Call, "ocsf") => ("audit records of calls", None),
        (_, "ocsf") => ("audit records of relays", None),
        (_, "deadline") => {
            ("bounds the time of calls that are not streams", Some("DEADLINE_EXCEEDED / 504"))
        }
        (_, "concurrency_cap") => {
            ("caps calls in progress, in all and per caller", Some("RESOURCE_EXHAUSTED / 429"))
        }
        (_, "body_limit") => {
            ("caps bytes of request bodies that are not streams", Some("RESOURCE_EXHAUSTED / 413"))
        }
        (_, "relay_caps") => ("caps pending and live relays", Some("RESOURCE_EXHAUSTED")),
        (_, "session_wait") => {
            ("waits for the session of a sandbox, within a budget", Some("UNAVAILABLE"))
        }
        _ => ("", None),
    };
    About { does, refuses }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{CallLayer, ConnectionLayer, PlaneLayer, RelayLayer};

    fn all<L: PlaneLayer>() {
        for each in L::ALL {
            assert!(!layer(L::PLANE, each.name()).does.is_empty(), "{each:?}");
        }
    }

    #[test]
    fn every_layer_is_described() {
        all::<ConnectionLayer>();
        all::<CallLayer>();
        all::<RelayLayer>();
    }
}
