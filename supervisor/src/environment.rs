//! The environment of commands in the sandbox (OpenShell contract: child environment).
//!
//! Built from nothing: the supervisor's own environment holds credentials and never leaks into it.

use std::collections::BTreeMap;
use std::path::Path;

/// Name of the agent's user inside the sandbox.
pub const AGENT_NAME: &str = "sandbox";

/// Home directory of the agent inside the sandbox.
pub const AGENT_HOME: &str = "/home/sandbox";

/// Search path of a command when neither the user nor a login shell sets one.
pub const DEFAULT_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// Most variables a client may set on one channel. OpenSSH sends a handful; the contract lets an
/// exec carry 128.
pub const MAX_CLIENT_VARIABLES: usize = 128;

/// Longest name and longest value of such a variable, in bytes (contract: 256 and 8192).
pub const MAX_NAME: usize = 256;
/// Longest value, in bytes.
pub const MAX_VALUE: usize = 8192;

/// The one variable of our own prefix that a client sets: the Python SDK ships code in it.
const PYTHON_FUNCTION: &str = "OPENSHELL_PYFUNC_B64";

/// Longest value of [`PYTHON_FUNCTION`]: the kernel takes 128 KiB per string, name included.
const MAX_PYTHON_FUNCTION: usize = 128 * 1024 - 32;

/// The login shell of the agent: bash, or what every Unix has.
#[must_use]
pub fn login_shell() -> &'static str {
    if Path::new("/bin/bash").exists() { "/bin/bash" } else { "/bin/sh" }
}

/// The variables that every command of one sandbox starts with.
#[derive(Debug, Clone)]
pub struct Environment {
    variables: BTreeMap<String, String>,
}

impl Environment {
    /// The base, plus what the owner of the sandbox asked for. Names of our own prefixes and
    /// impossible names are left out.
    #[must_use]
    pub fn new(home: &str, user: &BTreeMap<String, String>) -> Self {
        let mut variables = BTreeMap::from([
            ("HOME".to_owned(), home.to_owned()),
            ("LOGNAME".to_owned(), AGENT_NAME.to_owned()),
            ("OPENSHELL_SANDBOX".to_owned(), "1".to_owned()),
            ("PATH".to_owned(), DEFAULT_PATH.to_owned()),
            ("SHELL".to_owned(), login_shell().to_owned()),
            ("USER".to_owned(), AGENT_NAME.to_owned()),
        ]);
        for (name, value) in user {
            if is_name(name) && !is_reserved(name) && !value.contains('\0') {
                variables.insert(name.clone(), value.clone());
            } else {
                tracing::warn!(
                    name,
                    "a variable of the sandbox is not passed on: its name is reserved or impossible"
                );
            }
        }
        Self { variables }
    }

    /// `NAME=value` of each variable, with those of one channel on top.
    #[must_use]
    pub fn with(&self, terminal: &str, channel: &ClientVariables) -> Vec<Vec<u8>> {
        let mut all: BTreeMap<&str, &str> =
            self.variables.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        all.insert("TERM", terminal);
        all.extend(channel.0.iter().map(|(k, v)| (k.as_str(), v.as_str())));
        all.iter().map(|(name, value)| format!("{name}={value}").into_bytes()).collect()
    }
}

/// Variables that a client set on one channel.
#[derive(Debug, Default)]
pub struct ClientVariables(BTreeMap<String, String>);

impl ClientVariables {
    /// Takes a variable; false when it is refused.
    pub fn set(&mut self, name: &str, value: &str) -> bool {
        let longest = if name == PYTHON_FUNCTION { MAX_PYTHON_FUNCTION } else { MAX_VALUE };
        let fits = name.len() <= MAX_NAME
            && value.len() <= longest
            && (self.0.len() < MAX_CLIENT_VARIABLES || self.0.contains_key(name));
        let allowed = is_name(name)
            && (name == PYTHON_FUNCTION || !is_reserved(name))
            // The loader's variables change which code a command runs before it begins.
            && !name.starts_with("LD_")
            && !value.contains('\0');
        if fits && allowed {
            self.0.insert(name.to_owned(), value.to_owned());
        }
        fits && allowed
    }
}

fn is_name(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

/// Prefixes with which gateway, driver and supervisor talk to each other.
fn is_reserved(name: &str) -> bool {
    name.starts_with("OPENSHELL_") || name.starts_with("POSTERN_")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(list: Vec<Vec<u8>>) -> Vec<String> {
        list.into_iter().map(|item| String::from_utf8(item).unwrap()).collect()
    }

    #[test]
    fn the_owner_sets_variables_but_not_ours() {
        let user = BTreeMap::from([
            ("PATH".to_owned(), "/opt/bin".to_owned()),
            ("OPENSHELL_SANDBOX_TOKEN".to_owned(), "x".to_owned()),
            ("A=B".to_owned(), "x".to_owned()),
        ]);
        let all = text(Environment::new("/h", &user).with("dumb", &ClientVariables::default()));
        assert!(all.contains(&"PATH=/opt/bin".to_owned()));
        assert!(all.contains(&"HOME=/h".to_owned()));
        assert!(all.contains(&"OPENSHELL_SANDBOX=1".to_owned()));
        assert!(!all.iter().any(|line| line.contains("TOKEN") || line.starts_with("A=B")));
    }

    #[test]
    fn a_client_cannot_reach_the_loader_or_our_names() {
        let mut variables = ClientVariables::default();
        assert!(variables.set("LANG", "C"));
        assert!(variables.set(PYTHON_FUNCTION, &"x".repeat(100_000)));
        for (name, value) in [
            ("LD_PRELOAD", "/x"),
            ("OPENSHELL_SANDBOX", "0"),
            ("POSTERN_AGENT_UID", "0"),
            ("", "x"),
            ("A", "x\0y"),
        ] {
            assert!(!variables.set(name, value), "{name}");
        }
        assert!(!variables.set("BIG", &"x".repeat(MAX_VALUE + 1)));
    }

    #[test]
    fn a_client_sets_a_bounded_number() {
        let mut variables = ClientVariables::default();
        let taken = (0..MAX_CLIENT_VARIABLES + 10)
            .filter(|index| variables.set(&format!("V{index}"), "x"))
            .count();
        assert_eq!(taken, MAX_CLIENT_VARIABLES);
    }
}
