//! What a supervisor is told, all of it in its environment (names of the OpenShell contract), and
//! the checks that make sure it can be told.

use std::collections::BTreeMap;
use std::path::Path;

use postern_driver_core::compute::DriverSandbox;
use postern_driver_core::{DriverError, check_sandbox_id};

use crate::Config;
use crate::layout::SandboxDir;
use crate::record::{Agent, Record};

/// Longest text of one environment variable in bytes: the kernel takes 128 KiB with name and zero
/// byte (execve(2), MAX_ARG_STRLEN); the names used here have fewer than 64.
const MAX_VALUE_BYTES: usize = 128 * 1024 - 64;

/// Longest sandbox name in bytes, that of a DNS name; gateways allow less.
const MAX_NAME_BYTES: usize = 253;

/// Search path of a supervisor, which is never the gateway's own.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Checks that this driver can run the sandbox.
pub(crate) fn validate(sandbox: &DriverSandbox, config: &Config) -> Result<(), DriverError> {
    let invalid = |field, problem: String| DriverError::InvalidArgument {
        // Ids that are refused may be of any length.
        id: sandbox.id.chars().take(64).collect(),
        field,
        problem,
    };
    check_sandbox_id(&sandbox.id).map_err(|problem| invalid("id", problem.to_string()))?;
    let name = &sandbox.name;
    if name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
        let problem = format!("must be at most {MAX_NAME_BYTES} bytes without control characters");
        return Err(invalid("name", problem));
    }
    let Some(spec) = &sandbox.spec else {
        return Ok(());
    };
    let template = spec.template.clone().unwrap_or_default();
    if !template.image.is_empty() && template.image != config.default_image {
        return Err(invalid(
            "template.image",
            "is set, but the process driver has no images and runs what the host has; leave it out or choose another driver".to_owned(),
        ));
    }
    if let Some(key) = template.driver_config.iter().flat_map(|c| c.fields.keys()).next() {
        let key: String = key.chars().take(64).collect();
        return Err(invalid(
            "template.driver_config",
            format!("has the key {key:?}, but the process driver reads none; leave it out"),
        ));
    }
    if spec.resource_requirements.is_some_and(|needs| needs.gpu.is_some()) {
        return Err(invalid(
            "resource_requirements.gpu",
            "is set, but the process driver hands out no devices; leave it out or choose another driver".to_owned(),
        ));
    }
    for name in template.environment.keys().chain(spec.environment.keys()) {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(invalid(
                "environment",
                "has a name that is empty or holds '=' or a zero byte; rename it".to_owned(),
            ));
        }
    }
    for (field, text) in [
        ("environment", user_environment(sandbox)),
        ("command", main_process(sandbox).unwrap_or_default()),
        ("log_level", spec.log_level.clone()),
    ] {
        if text.len() > MAX_VALUE_BYTES || text.contains('\0') {
            return Err(invalid(
                field,
                format!(
                    "needs {} bytes, at most {MAX_VALUE_BYTES} reach the supervisor; put large values into files",
                    text.len()
                ),
            ));
        }
    }
    Ok(())
}

/// The environment of a sandbox's supervisor, and nothing else is in it.
pub(crate) fn of_supervisor(
    config: &Config,
    dir: &SandboxDir,
    record: &Record,
) -> BTreeMap<String, String> {
    let Record { sandbox, agent } = record;
    let mut environment = config.supervisor_environment.clone();
    let mut set = |name: &str, value: String| {
        environment.insert(name.to_owned(), value);
    };
    set("PATH", PATH.to_owned());
    set("OPENSHELL_SANDBOX_ID", sandbox.id.clone());
    set("OPENSHELL_SANDBOX", sandbox.name.clone());
    set("OPENSHELL_ENDPOINT", config.grpc_endpoint.clone());
    set("OPENSHELL_SANDBOX_TOKEN_FILE", text(&dir.token()));
    set("OPENSHELL_SSH_SOCKET_PATH", text(dir.socket()));
    set("OPENSHELL_USER_ENVIRONMENT", user_environment(sandbox));
    set("OPENSHELL_LOG_LEVEL", log_level(config, sandbox));
    set("POSTERN_SANDBOX_DIR", text(dir.path()));
    set("POSTERN_LOCK_FILE", text(&dir.lock()));
    let Agent { uid, gid } = agent;
    set("POSTERN_AGENT_UID", uid.to_string());
    set("POSTERN_AGENT_GID", gid.to_string());
    if let Some(spec) = main_process(sandbox) {
        set("OPENSHELL_MAIN_PROCESS_SPEC", spec);
    }
    for (name, path) in [
        ("OPENSHELL_TLS_CA", &config.guest_tls_ca),
        ("OPENSHELL_TLS_CERT", &config.guest_tls_cert),
        ("OPENSHELL_TLS_KEY", &config.guest_tls_key),
    ] {
        if let Some(path) = path {
            set(name, text(path));
        }
    }
    if let Some(name) = &config.guest_tls_server_name {
        set("OPENSHELL_GATEWAY_TLS_SERVER_NAME", name.clone());
    }
    if config.best_effort_isolation {
        set("OPENSHELL_BEST_EFFORT_FAILURES", "1".to_owned());
    }
    environment
}

/// The agent's variables as a JSON map; those of the sandbox win over those of its template.
fn user_environment(sandbox: &DriverSandbox) -> String {
    let mut merged: BTreeMap<&str, &str> = BTreeMap::new();
    if let Some(spec) = &sandbox.spec {
        let template = spec.template.as_ref().map(|template| &template.environment);
        for (name, value) in template.into_iter().flatten().chain(&spec.environment) {
            merged.insert(name, value);
        }
    }
    serde_json::json!(merged).to_string()
}

/// What the main process is, or nothing when the supervisor is to choose.
fn main_process(sandbox: &DriverSandbox) -> Option<String> {
    let spec = sandbox.spec.as_ref()?;
    (!spec.command.is_empty()).then(|| {
        serde_json::json!({ "version": 1, "command": spec.command, "tty": spec.tty }).to_string()
    })
}

fn log_level(config: &Config, sandbox: &DriverSandbox) -> String {
    let asked = sandbox.spec.as_ref().map(|spec| spec.log_level.as_str());
    asked.filter(|level| !level.is_empty()).unwrap_or(&config.log_level).to_owned()
}

/// Paths of the configuration come from TOML and are UTF-8; ids are ASCII.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use postern_driver_core::compute::{
        DriverSandboxSpec, DriverSandboxTemplate, GpuResourceRequirements, ResourceRequirements,
    };

    use super::*;
    use crate::layout::StateDir;

    fn map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        pairs.iter().map(owned).collect()
    }

    fn sandbox(change: impl FnOnce(&mut DriverSandboxSpec)) -> DriverSandbox {
        let mut spec = DriverSandboxSpec {
            template: Some(DriverSandboxTemplate::default()),
            ..Default::default()
        };
        change(&mut spec);
        DriverSandbox {
            id: "sb".into(),
            name: "box".into(),
            spec: Some(spec),
            ..Default::default()
        }
    }

    fn field(answer: Result<(), DriverError>) -> &'static str {
        match answer {
            Ok(()) => "none",
            Err(DriverError::InvalidArgument { field, .. }) => field,
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_supervisor_is_told_everything_and_inherits_nothing() {
        let temp = tempfile::tempdir().unwrap();
        let state = StateDir::open(temp.path(), None).unwrap();
        let dir = state.sandbox("sb").unwrap();
        let config = Config {
            grpc_endpoint: "https://gw:1".into(),
            guest_tls_ca: Some("/ca".into()),
            best_effort_isolation: true,
            supervisor_environment: [("OPENSHELL_SANDBOX_ID".into(), "forged".into())].into(),
            ..Config::default()
        };
        let record = Record {
            sandbox: sandbox(|spec| {
                spec.command = vec!["sleep".into(), "1".into()];
                spec.tty = true;
                spec.environment = map(&[("A", "sandbox")]);
                spec.template.as_mut().unwrap().environment = map(&[("A", "template"), ("B", "b")]);
            }),
            agent: Agent { uid: 7, gid: 8 },
        };
        let got = of_supervisor(&config, &dir, &record);
        let at = |name: &str| got[name].as_str();
        assert_eq!(at("OPENSHELL_SANDBOX_ID"), "sb");
        assert_eq!(at("OPENSHELL_SANDBOX"), "box");
        assert_eq!(at("OPENSHELL_ENDPOINT"), "https://gw:1");
        assert_eq!(at("OPENSHELL_TLS_CA"), "/ca");
        assert_eq!(at("OPENSHELL_USER_ENVIRONMENT"), r#"{"A":"sandbox","B":"b"}"#);
        let main: serde_json::Value =
            serde_json::from_str(at("OPENSHELL_MAIN_PROCESS_SPEC")).unwrap();
        let wanted = serde_json::json!({"version": 1, "command": ["sleep", "1"], "tty": true});
        assert_eq!(main, wanted);
        assert_eq!(at("POSTERN_AGENT_UID"), "7");
        assert_eq!(at("POSTERN_AGENT_GID"), "8");
        assert_eq!(at("OPENSHELL_BEST_EFFORT_FAILURES"), "1");
        assert!(at("OPENSHELL_SANDBOX_TOKEN_FILE").ends_with("/sandboxes/sb/token"));
        for absent in ["HOME", "CARGO_PKG_NAME", "OPENSHELL_TLS_KEY", "OPENSHELL_SANDBOX_TOKEN"] {
            assert!(!got.contains_key(absent), "{absent}");
        }
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_field() {
        let config = Config { default_image: "host".into(), ..Config::default() };
        let check =
            |change: &dyn Fn(&mut DriverSandboxSpec)| field(validate(&sandbox(change), &config));
        assert_eq!(check(&|_| {}), "none");
        assert_eq!(check(&|spec| spec.template.as_mut().unwrap().image = "host".into()), "none");
        assert_eq!(
            check(&|spec| spec.template.as_mut().unwrap().image = "python:3".into()),
            "template.image"
        );
        assert_eq!(
            check(&|spec| {
                spec.resource_requirements =
                    Some(ResourceRequirements { gpu: Some(GpuResourceRequirements::default()) });
            }),
            "resource_requirements.gpu"
        );
        assert_eq!(check(&|spec| spec.environment = map(&[("A=B", "")])), "environment");
        let large = "x".repeat(MAX_VALUE_BYTES);
        assert_eq!(check(&|spec| spec.environment = map(&[("A", &large)])), "environment");
        assert_eq!(check(&|spec| spec.command = vec![large.clone()]), "command");
        let mut named = sandbox(|_| {});
        named.name = "a\nb".into();
        assert_eq!(field(validate(&named, &config)), "name");
    }
}
