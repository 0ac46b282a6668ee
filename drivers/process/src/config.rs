//! Configuration, table `[openshell.drivers.process]`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

use crate::OpenError;

/// How many uids there are to give; each sandbox has its own while it exists.
const DEFAULT_UID_COUNT: u32 = 65_536;

/// How long a supervisor may take to end its sandbox after SIGTERM before SIGKILL.
const DEFAULT_STOP_GRACE: Duration = Duration::from_secs(5);

/// Size at which a supervisor's log is moved aside. Two of them are kept, so a sandbox that
/// writes without end costs at most about twice this.
const DEFAULT_LOG_LIMIT: u64 = 8 * 1024 * 1024;

/// How sandboxes are run on this host. Keys that the VM driver of OpenShell has keep their names.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where sandboxes live. Made with mode 0700 if absent; must belong to the gateway's user.
    pub state_dir: PathBuf,
    /// What to run for each sandbox.
    pub supervisor: CommandSpec,
    /// Gateway URL that supervisors dial, `http://` or `https://`.
    pub grpc_endpoint: String,
    /// CA certificate (PEM file) with which supervisors check the gateway.
    pub guest_tls_ca: Option<PathBuf>,
    /// Client certificate (PEM file) of the supervisors' transport. Goes with `guest_tls_key`.
    pub guest_tls_cert: Option<PathBuf>,
    /// Its key (PEM file).
    pub guest_tls_key: Option<PathBuf>,
    /// Name to expect in the gateway's certificate, if not the host of `grpc_endpoint`.
    pub guest_tls_server_name: Option<String>,
    /// First of the uids given to agents when the gateway runs as root; chosen by the driver when
    /// absent. Otherwise agents run as the gateway's user and this is not used.
    pub uid_base: Option<u32>,
    /// Number of uids given to agents, and so the most sandboxes at a time (1 or more).
    pub uid_count: u32,
    /// Time between SIGTERM and SIGKILL on stop, 0 to 5 minutes. TOML: `"5s"`, `"500ms"`.
    #[serde(deserialize_with = "duration")]
    pub stop_grace: Duration,
    /// Bytes at which a sandbox's supervisor log is rotated, 64 KiB or more.
    pub log_limit_bytes: u64,
    /// Where sockets go when a path under `state_dir` would exceed 107 bytes. As root
    /// `/run/postern` unless given; otherwise such a sandbox is refused unless this is given.
    pub socket_dir: Option<PathBuf>,
    /// Whether a sandbox may run although a control of its isolation cannot be applied.
    pub best_effort_isolation: bool,
    /// The only `template.image` that is accepted besides none. This driver has no images: it
    /// runs what the host has.
    pub default_image: String,
    /// Log level of supervisors for which the sandbox names none.
    pub log_level: String,
    /// More environment for every supervisor (not for agents). Cannot replace what the driver sets.
    pub supervisor_environment: BTreeMap<String, String>,
}

/// A program and the arguments that come before any others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CommandSpec {
    /// Absolute path of the program.
    pub program: PathBuf,
    /// Its arguments, for example `["supervise"]`.
    pub args: Vec<String>,
}

// === impl Config ===

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: PathBuf::new(),
            supervisor: CommandSpec::default(),
            grpc_endpoint: String::new(),
            guest_tls_ca: None,
            guest_tls_cert: None,
            guest_tls_key: None,
            guest_tls_server_name: None,
            uid_base: None,
            uid_count: DEFAULT_UID_COUNT,
            stop_grace: DEFAULT_STOP_GRACE,
            log_limit_bytes: DEFAULT_LOG_LIMIT,
            socket_dir: None,
            best_effort_isolation: false,
            default_image: String::new(),
            log_level: "info".to_owned(),
            supervisor_environment: BTreeMap::new(),
        }
    }
}

impl Config {
    /// Everything wrong with the values, all at once. Looks at no file.
    #[must_use]
    pub fn faults(&self) -> Vec<OpenError> {
        let mut faults = Vec::new();
        let mut fault = |key, problem: String| faults.push(OpenError::Config { key, problem });
        let absolute = [
            ("state_dir", Some(&self.state_dir)),
            ("supervisor.program", Some(&self.supervisor.program)),
            ("guest_tls_ca", self.guest_tls_ca.as_ref()),
            ("guest_tls_cert", self.guest_tls_cert.as_ref()),
            ("guest_tls_key", self.guest_tls_key.as_ref()),
            ("socket_dir", self.socket_dir.as_ref()),
        ];
        for (key, path) in absolute {
            if let Some(problem) = path.and_then(|path| path_fault(path)) {
                fault(key, problem);
            }
        }
        let https = self.grpc_endpoint.starts_with("https://");
        if !https && !self.grpc_endpoint.starts_with("http://") {
            fault(
                "grpc_endpoint",
                "give the gateway's URL, http://HOST:PORT or https://HOST:PORT".to_owned(),
            );
        }
        if https && self.guest_tls_ca.is_none() {
            fault(
                "guest_tls_ca",
                "needed because grpc_endpoint is https; give the CA certificate".to_owned(),
            );
        }
        if self.guest_tls_cert.is_some() != self.guest_tls_key.is_some() {
            fault("guest_tls_cert", "goes with guest_tls_key; give both or neither".to_owned());
        }
        if self.uid_base == Some(0) || self.uid_count == 0 {
            fault("uid_base", "uid_base and uid_count must be at least 1".to_owned());
        }
        // The last uid is "no change" to the kernel.
        let base = self.uid_base.unwrap_or(1);
        if base.checked_add(self.uid_count).is_none() {
            fault("uid_count", format!("{base} + {} is beyond the last uid", self.uid_count));
        }
        if self.stop_grace > Duration::from_secs(300) {
            fault("stop_grace", format!("{:?} is more than 5 minutes", self.stop_grace));
        }
        if self.log_limit_bytes < 64 * 1024 {
            fault("log_limit_bytes", format!("{} is less than 65536", self.log_limit_bytes));
        }
        faults
    }
}

fn path_fault(path: &Path) -> Option<String> {
    if path.as_os_str().is_empty() {
        Some("missing; give an absolute path".to_owned())
    } else if path.is_absolute() {
        None
    } else {
        Some(format!("{} is relative; give an absolute path", path.display()))
    }
}

/// `"500ms"`, `"5s"` or `"2m"`.
fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = match unit {
        "ms" => Some(Duration::from_millis(1)),
        "s" => Some(Duration::from_secs(1)),
        "m" => Some(Duration::from_secs(60)),
        _ => None,
    };
    number
        .parse()
        .ok()
        .zip(unit)
        .and_then(|(number, unit): (u32, _)| unit.checked_mul(number))
        .ok_or_else(|| {
            de::Error::custom(format!(
                "{text:?} is no duration; write for example \"500ms\", \"5s\" or \"2m\""
            ))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(config: &Config) -> Vec<&'static str> {
        let keys = config.faults().into_iter().filter_map(|fault| match fault {
            OpenError::Config { key, .. } => Some(key),
            _ => None,
        });
        keys.collect()
    }

    #[test]
    fn a_table_is_read_with_defaults() {
        let config: Config = toml::from_str(
            r#"
            state_dir = "/var/lib/postern/process"
            supervisor = { program = "/usr/bin/postern", args = ["supervise"] }
            grpc_endpoint = "http://127.0.0.1:17670"
            stop_grace = "500ms"
            "#,
        )
        .unwrap();
        assert_eq!(config.stop_grace, Duration::from_millis(500));
        assert_eq!(config.uid_count, DEFAULT_UID_COUNT);
        assert!(config.faults().is_empty(), "{:?}", config.faults());
    }

    #[test]
    fn unknown_keys_and_bad_durations_are_refused() {
        assert!(toml::from_str::<Config>("state_dri = \"/x\"").is_err());
        for bad in ["5", "s", "5 s", "-1s", "99999999999s", "5h"] {
            let text = format!("stop_grace = \"{bad}\"");
            assert!(toml::from_str::<Config>(&text).is_err(), "{bad}");
        }
    }

    #[test]
    fn every_fault_is_named_at_once() {
        let config = Config {
            state_dir: "relative".into(),
            grpc_endpoint: "https://h:1".into(),
            guest_tls_key: Some("/k".into()),
            uid_count: u32::MAX,
            stop_grace: Duration::from_secs(301),
            log_limit_bytes: 1,
            ..Config::default()
        };
        assert_eq!(
            keys(&config),
            [
                "state_dir",
                "supervisor.program",
                "guest_tls_ca",
                "guest_tls_cert",
                "uid_count",
                "stop_grace",
                "log_limit_bytes"
            ]
        );
    }
}
