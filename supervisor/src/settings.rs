//! Flags and environment of the supervisor (OpenShell contract: flags and environment of the
//! sandbox supervisor), and what Postern adds.
//!
//! | variable | meaning |
//! |---|---|
//! | `POSTERN_SANDBOX_DIR` | state directory of this sandbox: `home/`, `tmp/`, `run/`, `log/` |
//! | `POSTERN_AGENT_UID`, `POSTERN_AGENT_GID` | user of the agent (also `OPENSHELL_SANDBOX_UID`, `_GID`) |
//! | `POSTERN_LOCK_FILE` | locked for as long as the supervisor lives, so that a driver can see it |
//! | `POSTERN_MASK_PATHS` | further directories, separated by colons, that the agent must not see into |
//! | `OPENSHELL_BEST_EFFORT_FAILURES` | `1`: a control that cannot be applied is a warning, not the end |

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser;
use serde::Deserialize;

use crate::token::Source;

/// Default place of the SSH socket (OpenShell contract).
pub const DEFAULT_SSH_SOCKET: &str = "/run/openshell/ssh.sock";

/// The agent's user and group when nobody chose one: outside what systems hand out, and the first
/// of the range from which the process driver gives each sandbox its own.
pub const DEFAULT_AGENT_ID: u32 = 200_000;

/// Most arguments of the main process (contract).
const MAX_ARGUMENTS: usize = 256;

/// Most variables that the owner of a sandbox may set (contract).
const MAX_VARIABLES: usize = 128;

/// Command line and environment, as given.
#[derive(Debug, Parser)]
#[command(
    name = "postern-supervisor",
    about = "Prepares a sandbox, runs the agent's command in it and connects it to the gateway",
    version,
    disable_help_subcommand = true
)]
pub struct Arguments {
    /// Working directory of the agent, inside the sandbox.
    #[arg(long)]
    workdir: Option<PathBuf>,
    /// Seconds after which the main process is ended (exit code 124); 0 for no limit.
    #[arg(long, default_value_t = 0)]
    timeout: u64,
    /// Connect the main process to this terminal's input.
    #[arg(long)]
    interactive: bool,
    /// Id of the sandbox.
    #[arg(long, env = "OPENSHELL_SANDBOX_ID")]
    sandbox_id: Option<String>,
    /// Name of the sandbox.
    #[arg(long, env = "OPENSHELL_SANDBOX")]
    sandbox: Option<String>,
    /// Address of the gateway, `http://host:port` or `https://host:port`.
    #[arg(long, env = "OPENSHELL_ENDPOINT")]
    openshell_endpoint: Option<String>,
    /// Not used yet.
    #[arg(long, env = "OPENSHELL_POLICY_RULES", hide = true)]
    policy_rules: Option<PathBuf>,
    /// Not used yet.
    #[arg(long, env = "OPENSHELL_POLICY_DATA", hide = true)]
    policy_data: Option<PathBuf>,
    /// Level of the supervisor's own log: error, warn, info, debug or trace.
    #[arg(long, env = "OPENSHELL_LOG_LEVEL", default_value = "warn")]
    log_level: String,
    /// Where the SSH server listens.
    #[arg(long, env = "OPENSHELL_SSH_SOCKET_PATH", default_value = DEFAULT_SSH_SOCKET)]
    ssh_socket_path: PathBuf,
    /// Not used yet.
    #[arg(long, env = "OPENSHELL_INFERENCE_ROUTES", hide = true)]
    inference_routes: Option<PathBuf>,
    /// Answer HTTP health checks on the health port.
    #[arg(long)]
    health_check: bool,
    /// Port of the health checks.
    #[arg(long, default_value_t = 8080)]
    health_port: u16,
    /// Not used yet.
    #[arg(long, hide = true)]
    mode: Option<String>,
    /// Not used yet.
    #[arg(long, hide = true)]
    proxy_uid: Option<u32>,
    /// The main process; a login shell when none is given.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<OsString>,
}

/// What is wrong with the settings.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidSettings {
    /// Not a command line that we know; the text is for a person.
    #[error(transparent)]
    Arguments(#[from] clap::Error),
    /// A variable does not hold what it must.
    #[error("{variable} is not usable: {reason}")]
    Variable {
        /// Name of the variable.
        variable: &'static str,
        /// What is wrong and what to write instead. Never repeats a secret.
        reason: String,
    },
    /// Only one of two settings that need each other.
    #[error("{present} is set but {missing} is not; set both or neither")]
    Incomplete {
        /// The one that is there.
        present: &'static str,
        /// The one that is not.
        missing: &'static str,
    },
}

/// The agent's main process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MainProcess {
    /// Program and arguments.
    pub command: Vec<Vec<u8>>,
    /// Whether it gets a terminal.
    pub tty: bool,
}

impl Default for MainProcess {
    /// The contract's default: a login shell on a terminal that nobody types on, so that it stays.
    fn default() -> Self {
        let shell = crate::environment::login_shell();
        Self { command: vec![shell.into(), b"-l".to_vec()], tty: true }
    }
}

/// Where the gateway is and how to prove who we are.
#[derive(Debug, Clone)]
pub struct GatewaySettings {
    /// Address.
    pub endpoint: http::Uri,
    /// Certificate authority, certificate and key, as PEM files; needed for `https`.
    pub tls: Option<TlsFiles>,
    /// Name to expect in the gateway's certificate instead of the address.
    pub server_name: Option<String>,
    /// Where the token comes from; `None` when the gateway asks for none.
    pub token: Option<Source>,
}

/// PEM files of the transport.
#[derive(Debug, Clone)]
pub struct TlsFiles {
    /// The only certificate authority that is trusted.
    pub authority: PathBuf,
    /// Our certificate chain.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Everything the supervisor acts on.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Id of the sandbox; empty when it stands alone.
    pub sandbox_id: String,
    /// Name of the sandbox.
    pub sandbox_name: String,
    /// The gateway; `None` when the sandbox stands alone.
    pub gateway: Option<GatewaySettings>,
    /// The agent's main process.
    pub main: MainProcess,
    /// Give the main process our own standard input.
    pub interactive: bool,
    /// When the main process is ended.
    pub timeout: Option<Duration>,
    /// Where commands start, inside the sandbox.
    pub directory: PathBuf,
    /// Variables that the owner set.
    pub user_environment: BTreeMap<String, String>,
    /// Where the SSH server listens.
    pub ssh_socket: PathBuf,
    /// State directory of this sandbox.
    pub state: Option<PathBuf>,
    /// The agent's user.
    pub uid: u32,
    /// The agent's group.
    pub gid: u32,
    /// File to lock for life.
    pub lock_file: Option<PathBuf>,
    /// Directories that the agent must not see into.
    pub masked: Vec<PathBuf>,
    /// Go on without controls that cannot be applied.
    pub best_effort: bool,
    /// Level of our own log.
    pub log_level: String,
    /// Level from which log lines go to the gateway.
    pub log_push_level: String,
    /// Time between looks at the sandbox's configuration.
    pub config_poll: Duration,
    /// Port of health checks.
    pub health_port: Option<u16>,
    /// Settings that were given and have no effect yet.
    pub ignored: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct MainProcessSpec {
    version: u32,
    command: Vec<String>,
    #[serde(default)]
    tty: bool,
}

impl Settings {
    /// Reads the arguments after the command's name, and `variable` for the environment.
    ///
    /// # Errors
    /// On the first setting that cannot be used; help and version are errors of clap too.
    pub fn read(
        arguments: impl IntoIterator<Item = OsString>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, InvalidSettings> {
        let (arguments, mut ignored) = without_upstream_proxy(arguments);
        let name = std::iter::once(OsString::from("postern-supervisor"));
        let given = Arguments::try_parse_from(name.chain(arguments))?;
        let later = [
            ("--policy-rules", given.policy_rules.is_some()),
            ("--policy-data", given.policy_data.is_some()),
            ("--inference-routes", given.inference_routes.is_some()),
            ("--mode", given.mode.is_some()),
            ("--proxy-uid", given.proxy_uid.is_some()),
        ];
        ignored.extend(later.iter().filter(|(_, set)| *set).map(|(flag, _)| (*flag).to_owned()));

        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let state = variable("POSTERN_SANDBOX_DIR").map(PathBuf::from);
        let id = |ours: &'static str, theirs: &'static str| -> Result<u32, InvalidSettings> {
            let number = variable(ours).map(|value| (ours, value));
            match number.or_else(|| variable(theirs).map(|value| (theirs, value))) {
                Some((name, value)) => parse(name, &value),
                None => Ok(DEFAULT_AGENT_ID),
            }
        };
        let seconds = variable("OPENSHELL_POLICY_POLL_INTERVAL_SECS");
        let seconds = seconds
            .map(|value| parse::<u64>("OPENSHELL_POLICY_POLL_INTERVAL_SECS", &value))
            .transpose()?;
        Ok(Self {
            sandbox_name: given.sandbox.unwrap_or_default(),
            gateway: gateway(given.openshell_endpoint, given.sandbox_id.as_deref(), &variable)?,
            sandbox_id: given.sandbox_id.unwrap_or_default(),
            main: main_process(given.command, variable("OPENSHELL_MAIN_PROCESS_SPEC"))?,
            interactive: given.interactive,
            timeout: (given.timeout > 0).then(|| Duration::from_secs(given.timeout)),
            directory: given.workdir.unwrap_or_else(|| crate::environment::AGENT_HOME.into()),
            user_environment: user_environment(variable("OPENSHELL_USER_ENVIRONMENT"))?,
            ssh_socket: given.ssh_socket_path,
            uid: id("POSTERN_AGENT_UID", "OPENSHELL_SANDBOX_UID")?,
            gid: id("POSTERN_AGENT_GID", "OPENSHELL_SANDBOX_GID")?,
            lock_file: variable("POSTERN_LOCK_FILE").map(PathBuf::from),
            masked: masked(state.as_deref(), variable("POSTERN_MASK_PATHS")),
            state,
            best_effort: variable("OPENSHELL_BEST_EFFORT_FAILURES").as_deref() == Some("1"),
            log_level: given.log_level,
            log_push_level: variable("OPENSHELL_LOG_PUSH_LEVEL").unwrap_or_else(|| "info".into()),
            // Zero would ask without pause.
            config_poll: Duration::from_secs(seconds.unwrap_or(10).max(1)),
            health_port: given.health_check.then_some(given.health_port),
            ignored,
        })
    }
}

fn parse<T: std::str::FromStr>(variable: &'static str, value: &str) -> Result<T, InvalidSettings> {
    value.parse().map_err(|_| InvalidSettings::Variable {
        variable,
        reason: format!("\"{value}\" is not a whole number in range"),
    })
}

/// Takes out the flags for a proxy between supervisor and internet, which have no effect yet.
fn without_upstream_proxy(
    arguments: impl IntoIterator<Item = OsString>,
) -> (Vec<OsString>, Vec<String>) {
    let (mut kept, mut ignored) = (Vec::new(), Vec::new());
    let mut arguments = arguments.into_iter().peekable();
    while let Some(argument) = arguments.next() {
        let text = argument.to_string_lossy().into_owned();
        if text == "--" {
            kept.push(argument);
            kept.extend(arguments);
            break;
        }
        if !text.starts_with("--upstream-proxy") {
            kept.push(argument);
            continue;
        }
        let (flag, has_value) = match text.split_once('=') {
            Some((flag, _)) => (flag.to_owned(), true),
            None => (text, false),
        };
        ignored.push(flag);
        let next = arguments.peek().map(|next| next.to_string_lossy());
        if !has_value && next.is_some_and(|next| !next.starts_with('-')) {
            arguments.next();
        }
    }
    (kept, ignored)
}

fn gateway(
    endpoint: Option<String>,
    sandbox_id: Option<&str>,
    variable: &impl Fn(&str) -> Option<String>,
) -> Result<Option<GatewaySettings>, InvalidSettings> {
    let Some(endpoint) = endpoint.filter(|endpoint| !endpoint.is_empty()) else {
        return Ok(None);
    };
    if sandbox_id.is_none_or(str::is_empty) {
        return Err(InvalidSettings::Incomplete {
            present: "OPENSHELL_ENDPOINT",
            missing: "OPENSHELL_SANDBOX_ID",
        });
    }
    let endpoint: http::Uri = endpoint.parse().map_err(|error| InvalidSettings::Variable {
        variable: "OPENSHELL_ENDPOINT",
        reason: format!("{error}; write http://host:port or https://host:port"),
    })?;
    let file = |name| variable(name).map(PathBuf::from);
    let tls =
        match (file("OPENSHELL_TLS_CA"), file("OPENSHELL_TLS_CERT"), file("OPENSHELL_TLS_KEY")) {
            (Some(authority), Some(certificate), Some(key)) => {
                Some(TlsFiles { authority, certificate, key })
            }
            _ if endpoint.scheme_str() != Some("https") => None,
            (None, _, _) => return Err(https_needs("OPENSHELL_TLS_CA")),
            (_, None, _) => return Err(https_needs("OPENSHELL_TLS_CERT")),
            (_, _, None) => return Err(https_needs("OPENSHELL_TLS_KEY")),
        };
    let token = variable("OPENSHELL_SANDBOX_TOKEN")
        .map(|token| Source::Value(token.into()))
        .or_else(|| file("OPENSHELL_SANDBOX_TOKEN_FILE").map(Source::File))
        .or_else(|| file("OPENSHELL_K8S_SA_TOKEN_FILE").map(Source::ServiceAccount));
    Ok(Some(GatewaySettings {
        endpoint,
        tls,
        server_name: variable("OPENSHELL_GATEWAY_TLS_SERVER_NAME"),
        token,
    }))
}

fn https_needs(missing: &'static str) -> InvalidSettings {
    InvalidSettings::Incomplete { present: "an https OPENSHELL_ENDPOINT", missing }
}

fn main_process(
    trailing: Vec<OsString>,
    spec: Option<String>,
) -> Result<MainProcess, InvalidSettings> {
    use std::os::unix::ffi::OsStringExt as _;
    if !trailing.is_empty() {
        return Ok(MainProcess {
            command: trailing.into_iter().map(OsString::into_vec).collect(),
            tty: false,
        });
    }
    let Some(spec) = spec else {
        return Ok(MainProcess::default());
    };
    let invalid = |reason: String| InvalidSettings::Variable {
        variable: "OPENSHELL_MAIN_PROCESS_SPEC",
        reason,
    };
    let spec: MainProcessSpec = serde_json::from_str(&spec).map_err(|error| {
        invalid(format!("{error}; write {{\"version\":1,\"command\":[...],\"tty\":false}}"))
    })?;
    if spec.version != 1 {
        return Err(invalid(format!("version {} is not known, 1 is", spec.version)));
    }
    if spec.command.len() > MAX_ARGUMENTS {
        return Err(invalid(format!(
            "{} arguments exceed the limit of {MAX_ARGUMENTS}",
            spec.command.len()
        )));
    }
    if spec.command.is_empty() {
        return Ok(MainProcess::default());
    }
    Ok(MainProcess {
        command: spec.command.into_iter().map(String::into_bytes).collect(),
        tty: spec.tty,
    })
}

fn user_environment(text: Option<String>) -> Result<BTreeMap<String, String>, InvalidSettings> {
    let invalid = |reason: String| InvalidSettings::Variable {
        variable: "OPENSHELL_USER_ENVIRONMENT",
        reason,
    };
    let Some(text) = text else {
        return Ok(BTreeMap::new());
    };
    // Only the place of a mistake is told: values may be secrets.
    let variables: BTreeMap<String, String> = serde_json::from_str(&text).map_err(|error| {
        let (line, column) = (error.line(), error.column());
        invalid(format!("no JSON object of strings at line {line}, column {column}"))
    })?;
    if variables.len() > MAX_VARIABLES {
        let count = variables.len();
        return Err(invalid(format!("{count} variables exceed the limit of {MAX_VARIABLES}")));
    }
    Ok(variables)
}

/// What the agent must not see into: the state of all sandboxes and of the gateway beside it, and,
/// where the agent is not a user of its own, the home directory of the user that it is.
fn masked(state: Option<&Path>, more: Option<String>) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        more.iter().flat_map(|paths| paths.split(':')).map(PathBuf::from).collect();
    if let Some(parent) = state.and_then(Path::parent) {
        paths.push(parent.to_owned());
        if parent.ends_with("sandboxes") {
            paths.extend(parent.parent().map(Path::to_owned));
        }
    }
    let user = nix::unistd::geteuid();
    if !user.is_root() {
        // From the user database: a driver starts us with an environment of its own making.
        let account = nix::unistd::User::from_uid(user).ok().flatten();
        paths.extend(account.map(|account| account.dir));
    }
    // Covering the root would leave nothing to run.
    paths.retain(|path| path.is_absolute() && path.parent().is_some());
    paths
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Settings, InvalidSettings> {
        let environment: BTreeMap<String, String> = environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        Settings::read(arguments.iter().map(OsString::from), |name| environment.get(name).cloned())
    }

    #[test]
    fn nothing_given_is_a_lone_sandbox_with_a_login_shell() {
        let settings = read(&[], &[]).unwrap();
        assert!(settings.gateway.is_none());
        assert_eq!(settings.main, MainProcess::default());
        assert!(settings.main.tty);
        assert_eq!(settings.ssh_socket, Path::new(DEFAULT_SSH_SOCKET));
        assert_eq!((settings.uid, settings.gid), (DEFAULT_AGENT_ID, DEFAULT_AGENT_ID));
        assert!(!settings.best_effort);
    }

    #[test]
    fn trailing_words_are_the_main_process_whatever_they_look_like() {
        let settings = read(&["--timeout", "3", "echo", "--timeout", "-x"], &[]).unwrap();
        assert_eq!(settings.timeout, Some(Duration::from_secs(3)));
        assert_eq!(
            settings.main.command,
            [b"echo".to_vec(), b"--timeout".to_vec(), b"-x".to_vec()]
        );
        assert!(!settings.main.tty);
        let settings = read(&["--", "--version"], &[]).unwrap();
        assert_eq!(settings.main.command, [b"--version".to_vec()]);
    }

    #[test]
    fn the_main_process_spec_is_read_and_checked() {
        let spec = r#"{"version":1,"command":["sleep","9"],"tty":true}"#;
        let settings = read(&[], &[("OPENSHELL_MAIN_PROCESS_SPEC", spec)]).unwrap();
        assert_eq!(settings.main.command, [b"sleep".to_vec(), b"9".to_vec()]);
        assert!(settings.main.tty);
        for bad in ["{}", "[]", r#"{"version":2,"command":["x"]}"#, "nonsense"] {
            let error = read(&[], &[("OPENSHELL_MAIN_PROCESS_SPEC", bad)]).unwrap_err();
            assert!(error.to_string().starts_with("OPENSHELL_MAIN_PROCESS_SPEC"), "{error}");
        }
    }

    #[test]
    fn later_settings_are_taken_and_named() {
        let settings = read(
            &[
                "--policy-rules",
                "r",
                "--upstream-proxy",
                "http://x",
                "--upstream-proxy-auth=y",
                "--mode",
                "network,process",
                "sh",
            ],
            &[],
        )
        .unwrap();
        assert_eq!(
            settings.ignored,
            ["--upstream-proxy", "--upstream-proxy-auth", "--policy-rules", "--mode"]
        );
        assert_eq!(settings.main.command, [b"sh".to_vec()]);
    }

    #[test]
    fn a_gateway_needs_an_id_and_https_needs_files() {
        let endpoint = ("OPENSHELL_ENDPOINT", "https://gateway:17670");
        let id = "s-1";
        let arguments = ["--sandbox-id", id, "--openshell-endpoint", endpoint.1];
        assert!(matches!(
            read(&arguments[2..], &[]),
            Err(InvalidSettings::Incomplete { missing: "OPENSHELL_SANDBOX_ID", .. })
        ));
        assert!(matches!(
            read(&arguments, &[("OPENSHELL_TLS_CA", "/ca")]),
            Err(InvalidSettings::Incomplete { missing: "OPENSHELL_TLS_CERT", .. })
        ));
        let files = [
            ("OPENSHELL_TLS_CA", "/ca"),
            ("OPENSHELL_TLS_CERT", "/cert"),
            ("OPENSHELL_TLS_KEY", "/key"),
            ("OPENSHELL_SANDBOX_TOKEN_FILE", "/token"),
        ];
        let gateway = read(&arguments, &files).unwrap().gateway.unwrap();
        assert!(gateway.tls.is_some());
        assert!(matches!(gateway.token, Some(Source::File(_))));
    }

    #[test]
    fn secrets_do_not_show() {
        let arguments = ["--sandbox-id", "s", "--openshell-endpoint", "http://g:1"];
        let settings = read(&arguments, &[("OPENSHELL_SANDBOX_TOKEN", "topsecret")]).unwrap();
        assert!(!format!("{settings:?}").contains("topsecret"));
        let error = read(&[], &[("OPENSHELL_USER_ENVIRONMENT", r#"{"KEY":["topsecret"]}"#)]);
        assert!(!error.unwrap_err().to_string().contains("topsecret"));
    }

    #[test]
    fn the_state_of_others_is_masked_but_never_the_root() {
        let state = ("POSTERN_SANDBOX_DIR", "/var/lib/postern/sandboxes/s-1");
        let paths = read(&[], &[state]).unwrap().masked;
        assert!(paths.contains(&PathBuf::from("/var/lib/postern/sandboxes")));
        assert!(paths.contains(&PathBuf::from("/var/lib/postern")));
        let paths = read(&[], &[("POSTERN_SANDBOX_DIR", "/sandboxes/s-1")]).unwrap().masked;
        assert!(!paths.contains(&PathBuf::from("/")));
    }

    #[test]
    fn ids_are_numbers() {
        let settings =
            read(&[], &[("OPENSHELL_SANDBOX_UID", "1000"), ("POSTERN_AGENT_UID", "7")]).unwrap();
        assert_eq!(settings.uid, 7);
        assert!(read(&[], &[("POSTERN_AGENT_GID", "staff")]).is_err());
    }
}
