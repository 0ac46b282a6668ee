//! Every key of `[openshell]` and `[openshell.gateway]`, with its flag and environment variable.
//!
//! Keys that OpenShell has and Postern does not support are here too, so that a file which uses one is told so
//! instead of being told that it misspelled something, or nothing at all.

/// What a key holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Any text.
    Text,
    /// `"127.0.0.1:17670"`.
    Address,
    /// A whole number from 0.
    Number,
    /// `true` or `false`.
    Switch,
    /// A list of texts.
    List,
    /// `"30s"`.
    Duration,
}

impl Kind {
    /// What to write, for a message.
    pub(super) const fn wanted(self) -> &'static str {
        match self {
            Self::Text => "a text in quotes",
            Self::Address => "an address and port in quotes, such as \"127.0.0.1:17670\"",
            Self::Number => "a whole number from 0",
            Self::Switch => "true or false",
            Self::List => "a list of texts, such as [\"one\", \"two\"]",
            Self::Duration => "a duration in quotes, such as \"30s\"",
        }
    }
}

/// Whether Postern does what the key asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Support {
    /// It does.
    Yes,
    /// It does not; the text says why or what to do instead.
    No(&'static str),
    /// It does exactly one thing, so only the value that asks for that is accepted.
    Only(&'static str, &'static str),
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    /// Below `openshell`, with dots.
    pub(super) path: &'static str,
    pub(super) kind: Kind,
    pub(super) support: Support,
    /// Flag with dashes; empty when there is none.
    pub(super) flag: &'static str,
    /// Environment variable; empty when there is none.
    pub(super) env: &'static str,
}

const fn key(path: &'static str, kind: Kind) -> Key {
    Key { path, kind, support: Support::Yes, flag: "", env: "" }
}

const fn flagged(path: &'static str, kind: Kind, flag: &'static str, env: &'static str) -> Key {
    Key { path, kind, support: Support::Yes, flag, env }
}

const fn unsupported(path: &'static str, kind: Kind, why: &'static str) -> Key {
    Key { path, kind, support: Support::No(why), flag: "", env: "" }
}

const NO_CREDENTIAL_DRIVERS: &str = "Postern has no credential drivers; remove it";
const NO_IMAGES: &str = "no driver of this build runs container images; remove it";
const NO_KUBERNETES: &str = "this build has no Kubernetes driver; remove it";
const NO_SECOND_CERTIFICATE: &str =
    "Postern shows one certificate; put all names into server_sans and remove it";
const NO_OIDC: &str = "Postern has no OIDC yet; use client certificates ([openshell.gateway.mtls_auth]) and remove it";
const NO_OTLP: &str =
    "Postern exports no traces yet; metrics are at metrics_bind_address; remove it";
const GUEST_TLS: &str = "write it in the table of the driver, [openshell.drivers.process]";

/// Every key, in the order in which they are documented.
pub(super) const KEYS: &[Key] = &[
    key("version", Kind::Number),
    flagged("gateway.bind_address", Kind::Address, "--bind-address", "OPENSHELL_BIND_ADDRESS"),
    flagged("gateway.health_bind_address", Kind::Address, "--health-port", "OPENSHELL_HEALTH_PORT"),
    flagged(
        "gateway.metrics_bind_address",
        Kind::Address,
        "--metrics-port",
        "OPENSHELL_METRICS_PORT",
    ),
    flagged("gateway.admin_bind_address", Kind::Address, "--admin-port", "POSTERN_ADMIN_PORT"),
    key("gateway.unsafe_allow_admin_network", Kind::Switch),
    flagged("gateway.log_level", Kind::Text, "--log-level", "OPENSHELL_LOG_LEVEL"),
    flagged("gateway.compute_drivers", Kind::List, "--drivers", "OPENSHELL_DRIVERS"),
    key("gateway.ssh_session_ttl_secs", Kind::Number),
    flagged(
        "gateway.grpc_rate_limit_requests",
        Kind::Number,
        "--grpc-rate-limit-requests",
        "OPENSHELL_GRPC_RATE_LIMIT_REQUESTS",
    ),
    flagged(
        "gateway.grpc_rate_limit_window_seconds",
        Kind::Number,
        "--grpc-rate-limit-window-seconds",
        "OPENSHELL_GRPC_RATE_LIMIT_WINDOW_SECONDS",
    ),
    flagged("gateway.server_sans", Kind::List, "--server-san", "OPENSHELL_SERVER_SAN"),
    flagged("gateway.disable_tls", Kind::Switch, "--disable-tls", "OPENSHELL_DISABLE_TLS"),
    flagged("gateway.tls.cert_path", Kind::Text, "--tls-cert", "OPENSHELL_TLS_CERT"),
    flagged("gateway.tls.key_path", Kind::Text, "--tls-key", "OPENSHELL_TLS_KEY"),
    flagged("gateway.tls.client_ca_path", Kind::Text, "--tls-client-ca", "OPENSHELL_TLS_CLIENT_CA"),
    key("gateway.tls.require_client_auth", Kind::Switch),
    flagged(
        "gateway.mtls_auth.enabled",
        Kind::Switch,
        "--enable-mtls-auth",
        "OPENSHELL_ENABLE_MTLS_AUTH",
    ),
    key("gateway.auth.allow_unauthenticated_users", Kind::Switch),
    key("gateway.gateway_jwt.signing_key_path", Kind::Text),
    key("gateway.gateway_jwt.public_key_path", Kind::Text),
    key("gateway.gateway_jwt.kid_path", Kind::Text),
    key("gateway.gateway_jwt.gateway_id", Kind::Text),
    key("gateway.gateway_jwt.ttl_secs", Kind::Number),
    // Ours.
    flagged("gateway.state_dir", Kind::Text, "--state-dir", "POSTERN_STATE_DIR"),
    flagged("gateway.log_format", Kind::Text, "--log-format", "POSTERN_LOG_FORMAT"),
    key("gateway.drain_timeout", Kind::Duration),
    key("gateway.heartbeat_interval", Kind::Duration),
    key("gateway.auth.unsafe_allow_network", Kind::Switch),
    // Only outside the file.
    flagged("gateway.db_url", Kind::Text, "--db-url", "OPENSHELL_DB_URL"),
    flagged("gateway.port", Kind::Number, "--port", "OPENSHELL_SERVER_PORT"),
    Key {
        path: "gateway.compute_driver_socket",
        kind: Kind::Text,
        support: Support::No(
            "Postern has no external drivers yet; remove it and write compute_drivers = [\"process\"]",
        ),
        flag: "--compute-driver-socket",
        env: "OPENSHELL_COMPUTE_DRIVER_SOCKET",
    },
    // OpenShell's, not ours.
    Key {
        path: "gateway.enable_loopback_service_http",
        kind: Kind::Switch,
        support: Support::Only("false", "Postern serves no exposed services yet"),
        flag: "--enable-loopback-service-http",
        env: "OPENSHELL_ENABLE_LOOPBACK_SERVICE_HTTP",
    },
    Key {
        path: "gateway.policy_validation_failure_mode",
        kind: Kind::Text,
        support: Support::Only(
            "fail_closed",
            "Postern refuses a bad policy and keeps the good one it has",
        ),
        flag: "",
        env: "",
    },
    unsupported("gateway.credential_drivers", Kind::List, NO_CREDENTIAL_DRIVERS),
    unsupported("gateway.default_credential_driver", Kind::Text, NO_CREDENTIAL_DRIVERS),
    unsupported("gateway.credential_storage", Kind::Text, NO_CREDENTIAL_DRIVERS),
    unsupported("gateway.sandbox_namespace", Kind::Text, NO_KUBERNETES),
    unsupported("gateway.service_account_name", Kind::Text, NO_KUBERNETES),
    unsupported("gateway.client_tls_secret_name", Kind::Text, NO_KUBERNETES),
    unsupported("gateway.sa_token_ttl_secs", Kind::Number, NO_KUBERNETES),
    unsupported("gateway.default_image", Kind::Text, NO_IMAGES),
    unsupported("gateway.supervisor_image", Kind::Text, NO_IMAGES),
    unsupported("gateway.host_gateway_ip", Kind::Text, NO_IMAGES),
    unsupported("gateway.enable_user_namespaces", Kind::Switch, NO_IMAGES),
    unsupported("gateway.guest_tls_ca", Kind::Text, GUEST_TLS),
    unsupported("gateway.guest_tls_cert", Kind::Text, GUEST_TLS),
    unsupported("gateway.guest_tls_key", Kind::Text, GUEST_TLS),
    unsupported("gateway.tls.external_cert_path", Kind::Text, NO_SECOND_CERTIFICATE),
    unsupported("gateway.tls.external_key_path", Kind::Text, NO_SECOND_CERTIFICATE),
    unsupported("gateway.tls.external_server_names", Kind::List, NO_SECOND_CERTIFICATE),
    Key {
        path: "gateway.oidc.issuer",
        kind: Kind::Text,
        support: Support::No(NO_OIDC),
        flag: "--oidc-issuer",
        env: "OPENSHELL_OIDC_ISSUER",
    },
];

/// Keys that only flags and the environment can give.
const OUTSIDE_ONLY: [&str; 2] = ["gateway.db_url", "gateway.port"];

/// Whole tables of OpenShell that Postern does not support.
pub(super) const UNSUPPORTED_TABLES: &[(&str, &str)] = &[
    ("gateway.oidc", NO_OIDC),
    ("gateway.otlp", NO_OTLP),
    ("gateway.interceptors", "Postern has no interceptors; write a layer instead, and remove it"),
    ("gateway.provider_profile_sources", "Postern has no provider profiles yet; remove it"),
    ("supervisor", "Postern's supervisor has no middleware; remove it"),
    ("credential_drivers", NO_CREDENTIAL_DRIVERS),
];

/// The key of this path below `openshell`.
pub(super) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// Whether some key or table stands below the table `path`.
pub(super) fn is_table(path: &str) -> bool {
    KEYS.iter().any(|key| key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
}

/// What may stand directly in the table `path` (`""` is `openshell` itself), for a message.
pub(super) fn children(path: &str) -> Vec<&'static str> {
    let inside = |key: &'static str| -> Option<&'static str> {
        let rest = if path.is_empty() { key } else { key.strip_prefix(path)?.strip_prefix('.')? };
        Some(rest.split('.').next().unwrap_or(rest))
    };
    let in_files =
        |key: &&Key| !matches!(key.support, Support::No(_)) && !OUTSIDE_ONLY.contains(&key.path);
    let mut names: Vec<_> =
        KEYS.iter().filter(in_files).filter_map(|key| inside(key.path)).collect();
    names.sort_unstable();
    names.dedup();
    names
}
