//! The layers that a configuration can name, plane by plane, and the order rules between them.
//!
//! `stack` has one arm per variant of these enums, so a layer that has a name and no arm does not compile.

use std::fmt;

/// One plane of layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plane {
    /// Around accepted sockets.
    Connection,
    /// Around requests.
    Call,
    /// Around the opening of relays.
    Relay,
}

impl Plane {
    /// All of them, as a request meets them.
    pub const ALL: [Self; 3] = [Self::Connection, Self::Call, Self::Relay];

    /// The key of its list in `[openshell.stack]`.
    #[must_use]
    pub const fn key(self) -> &'static str {
        match self {
            Self::Connection => "connection",
            Self::Call => "call",
            Self::Relay => "relay",
        }
    }
}

/// A layer that stands in one plane.
pub trait PlaneLayer: Copy + Eq + fmt::Debug + Sized + 'static {
    /// Which plane.
    const PLANE: Plane;
    /// All layers of the plane, in the default order, outermost first.
    const ALL: &'static [Self];
    /// Those of [`ALL`](Self::ALL) that are there when the configuration says nothing, in the same order.
    const DEFAULT: &'static [Self];

    /// The name in the configuration.
    fn name(self) -> &'static str;

    /// The layer of this name.
    #[must_use]
    fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|layer| layer.name() == name)
    }
}

macro_rules! plane {
    (
        $(#[$doc:meta])* $enum:ident = $plane:ident
        { $($(#[$variant_doc:meta])* $variant:ident = $name:literal),+ $(,)? }
        default [$($default:ident),* $(,)?]
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $enum { $($(#[$variant_doc])* $variant),+ }

        impl PlaneLayer for $enum {
            const PLANE: Plane = Plane::$plane;
            const ALL: &'static [Self] = &[$(Self::$variant),+];
            const DEFAULT: &'static [Self] = &[$(Self::$default),*];

            fn name(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
    };
}

plane! {
    /// Layers of the connection plane.
    ConnectionLayer = Connection {
        /// Caps connections, in all and per peer address.
        ConnectionCap = "connection_cap",
        /// Bounds the time until the first request.
        HandshakeDeadline = "handshake_deadline",
        /// Terminates TLS; values stand in `[openshell.gateway.tls]`.
        Tls = "tls",
        /// Flow control, frame size and keepalive of HTTP/2.
        H2Window = "h2_window",
    }
    default [ConnectionCap, HandshakeDeadline, Tls, H2Window]
}

plane! {
    /// Layers of the call plane.
    CallLayer = Call {
        /// Gives every call a name.
        RequestId = "request_id",
        /// A tracing span per call.
        Trace = "trace",
        /// Counts and times calls.
        Metrics = "metrics",
        /// Bounds the rate of calls.
        RateLimit = "rate_limit",
        /// Finds out who is calling.
        Authenticate = "authenticate",
        /// Lets through what the caller may do.
        Authorize = "authorize",
        /// Audit records of calls.
        Ocsf = "ocsf",
        /// Bounds the time of calls that are not streams.
        Deadline = "deadline",
        /// Caps calls in progress.
        ConcurrencyCap = "concurrency_cap",
        /// Caps the bytes of request bodies that are not streams.
        BodyLimit = "body_limit",
    }
    default [RequestId, Trace, Metrics, RateLimit, Authenticate, Authorize, Ocsf, Deadline]
}

plane! {
    /// Layers of the relay plane.
    RelayLayer = Relay {
        /// Audit records of relays.
        Ocsf = "ocsf",
        /// Counts and times the opening of relays.
        Metrics = "metrics",
        /// Caps pending and live relays.
        RelayCaps = "relay_caps",
        /// Waits for the session of a sandbox, within a budget.
        SessionWait = "session_wait",
    }
    default [Ocsf, Metrics, RelayCaps, SessionWait]
}

/// `outer` has to stand before `inner`, if both are there.
#[derive(Clone, Copy, Debug)]
pub struct OrderRule {
    /// In which plane.
    pub plane: Plane,
    /// The layer that stands further outside.
    pub outer: &'static str,
    /// The layer that stands further inside; `"*"` means all others.
    pub inner: &'static str,
    /// What goes wrong otherwise.
    pub because: &'static str,
}

const fn rule(
    plane: Plane,
    outer: &'static str,
    inner: &'static str,
    because: &'static str,
) -> OrderRule {
    OrderRule { plane, outer, inner, because }
}

/// Every order rule there is.
pub const ORDER_RULES: &[OrderRule] = &[
    rule(
        Plane::Connection,
        "connection_cap",
        "*",
        "a connection over the cap must be refused before work is spent on it",
    ),
    rule(
        Plane::Connection,
        "handshake_deadline",
        "tls",
        "the deadline has to cover the TLS handshake",
    ),
    rule(Plane::Connection, "tls", "h2_window", "HTTP/2 runs inside TLS"),
    rule(Plane::Call, "request_id", "*", "every refusal and log line should carry the id"),
    rule(Plane::Call, "trace", "metrics", "what metrics logs belongs to the span of the call"),
    rule(Plane::Call, "metrics", "rate_limit", "refused calls have to be counted"),
    rule(Plane::Call, "metrics", "authenticate", "refused calls have to be counted"),
    rule(
        Plane::Call,
        "rate_limit",
        "authenticate",
        "a flood of bad credentials has to be stopped before they are checked",
    ),
    rule(Plane::Call, "authenticate", "authorize", "authorize decides by who is calling"),
    rule(Plane::Call, "authenticate", "concurrency_cap", "calls are counted by who is calling"),
    rule(
        Plane::Call,
        "authorize",
        "body_limit",
        "a caller without the right learns nothing about limits",
    ),
    rule(Plane::Relay, "ocsf", "relay_caps", "refused relays have to be recorded"),
    rule(Plane::Relay, "metrics", "relay_caps", "refused relays have to be counted"),
    rule(
        Plane::Relay,
        "relay_caps",
        "session_wait",
        "waiting relays have to count as pending, or the wait has no bound",
    ),
];

/// Layers whose absence opens the gateway; it needs `unsafe_allow_missing`.
pub const GUARDS: &[CallLayer] = &[CallLayer::Authenticate, CallLayer::Authorize];

/// The three lists, outermost layer first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// Around accepted sockets.
    pub connection: Vec<ConnectionLayer>,
    /// Around requests.
    pub call: Vec<CallLayer>,
    /// Around the opening of relays.
    pub relay: Vec<RelayLayer>,
}

impl Default for Stack {
    fn default() -> Self {
        Self {
            connection: ConnectionLayer::DEFAULT.to_vec(),
            call: CallLayer::DEFAULT.to_vec(),
            relay: RelayLayer::DEFAULT.to_vec(),
        }
    }
}

impl Stack {
    /// Whether some plane has a layer of this name.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.names().any(|(_, there)| there == name)
    }

    /// Every layer as plane and name, in order.
    pub fn names(&self) -> impl Iterator<Item = (Plane, &'static str)> {
        let connection = self.connection.iter().map(|layer| (Plane::Connection, layer.name()));
        let call = self.call.iter().map(|layer| (Plane::Call, layer.name()));
        let relay = self.relay.iter().map(|layer| (Plane::Relay, layer.name()));
        connection.chain(call).chain(relay)
    }
}

/// The order rules of `plane` that `names` (outermost first) breaks, each with the position of the layer that stands
/// too far outside.
#[must_use]
pub fn order_faults(plane: Plane, names: &[&str]) -> Vec<(usize, OrderRule)> {
    let mut faults = Vec::new();
    for rule in ORDER_RULES.iter().filter(|rule| rule.plane == plane) {
        let Some(outer) = names.iter().position(|name| *name == rule.outer) else { continue };
        let too_early = names[..outer].iter().position(|name| match rule.inner {
            "*" => true,
            inner => *name == inner,
        });
        faults.extend(too_early.map(|at| (at, *rule)));
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_keep_the_rules() {
        let stack = Stack::default();
        for plane in [Plane::Connection, Plane::Call, Plane::Relay] {
            let names: Vec<_> =
                stack.names().filter(|(p, _)| *p == plane).map(|(_, name)| name).collect();
            assert!(order_faults(plane, &names).is_empty(), "{plane:?}");
        }
        // And so do all layers together, in the order of the enum.
        let all: Vec<_> = CallLayer::ALL.iter().map(|layer| layer.name()).collect();
        assert!(order_faults(Plane::Call, &all).is_empty());
    }

    #[test]
    fn every_rule_names_layers_of_its_plane() {
        for rule in ORDER_RULES {
            let known = |name: &str| match rule.plane {
                Plane::Connection => ConnectionLayer::from_name(name).is_some(),
                Plane::Call => CallLayer::from_name(name).is_some(),
                Plane::Relay => RelayLayer::from_name(name).is_some(),
            };
            assert!(known(rule.outer), "{rule:?}");
            assert!(rule.inner == "*" || known(rule.inner), "{rule:?}");
            let order = if rule.inner == "*" { "x" } else { rule.inner };
            assert_eq!(order_faults(rule.plane, &[order, rule.outer]).len(), 1, "{rule:?}");
        }
    }
}
