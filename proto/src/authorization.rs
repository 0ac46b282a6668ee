//! Who may call what, read from the `authorization` option on every method.
//!
//! The table is loaded once at start. A served method without a rule, or with a rule that this
//! version cannot read, is a [`LoadError`], and the gateway does not start.

use std::collections::HashMap;

use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor, Value};

use crate::FILE_DESCRIPTOR_SET;

/// The services that a gateway serves and whose methods all need a rule.
pub const SERVED: [&str; 2] = ["openshell.v1.OpenShell", "openshell.inference.v1.Inference"];

/// Which kind of principal a method accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AuthMode {
    /// Anyone, without credentials.
    Unauthenticated,
    /// A user.
    Bearer,
    /// A sandbox.
    Sandbox,
    /// A user or a sandbox; the handler narrows what a sandbox may do.
    Dual,
    /// A gateway of the same deployment.
    Peer,
    /// The operator of the gateway.
    Operator,
}

/// The role a user needs inside a workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WorkspaceRole {
    /// May use sandboxes.
    User,
    /// May also change configuration.
    Admin,
}

/// The rule of one method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Accepted kind of principal.
    pub mode: AuthMode,
    /// Needed workspace role, if any.
    pub workspace_role: Option<WorkspaceRole>,
    /// Whether the deployment-wide `platform_admin` role is needed.
    pub platform_admin: bool,
    /// OAuth scope, such as `sandbox:write`; empty when none is needed.
    pub scope: String,
    /// Whether the client sends a stream.
    pub client_streaming: bool,
    /// Whether the server sends a stream.
    pub server_streaming: bool,
}

/// Why the table could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The embedded descriptors do not decode.
    #[error("cannot decode the embedded contract descriptors")]
    Descriptors {
        /// What the decoder said.
        #[source]
        source: prost_reflect::DescriptorError,
    },
    /// A served service is not in the descriptors.
    #[error("the contract has no service {service}")]
    MissingService {
        /// Full name.
        service: String,
    },
    /// The contract lacks the `authorization` option itself.
    #[error("the contract has no option openshell.options.v1.authorization")]
    MissingOption,
    /// A method has no rule.
    #[error("method {method} has no authorization rule; add the option to its declaration")]
    MissingRule {
        /// gRPC path, `/service/method`.
        method: String,
    },
    /// A rule holds a word that this version does not know.
    #[error("method {method} has {field} {value:?}, which is not known")]
    UnknownValue {
        /// gRPC path, `/service/method`.
        method: String,
        /// Field of the rule.
        field: &'static str,
        /// What it holds.
        value: String,
    },
}

/// Rules by gRPC path.
#[derive(Clone, Debug)]
pub struct AuthorizationTable {
    rules: HashMap<String, Rule>,
}

impl AuthorizationTable {
    /// Reads the rules of every method of [`SERVED`] from the embedded descriptors.
    ///
    /// # Errors
    /// [`LoadError`] when a method has no rule or one that cannot be read.
    pub fn load() -> Result<Self, LoadError> {
        let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET)
            .map_err(|source| LoadError::Descriptors { source })?;
        Self::from_pool(&pool, &SERVED)
    }

    /// Reads the rules of `services` from `pool`.
    ///
    /// # Errors
    /// As [`AuthorizationTable::load`].
    pub fn from_pool(pool: &DescriptorPool, services: &[&str]) -> Result<Self, LoadError> {
        let mut rules = HashMap::new();
        for name in services {
            let service = pool
                .get_service_by_name(name)
                .ok_or_else(|| LoadError::MissingService { service: (*name).to_owned() })?;
            for method in service.methods() {
                let path = format!("/{name}/{}", method.name());
                let rule = read_rule(pool, &method, &path)?;
                rules.insert(path, rule);
            }
        }
        Ok(Self { rules })
    }

    /// The rule of a gRPC path such as `/openshell.v1.OpenShell/Health`.
    #[must_use]
    pub fn rule(&self, path: &str) -> Option<&Rule> {
        self.rules.get(path)
    }

    /// Every path with its rule, in no particular order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Rule)> {
        self.rules.iter().map(|(path, rule)| (path.as_str(), rule))
    }
}

fn read_rule(
    pool: &DescriptorPool,
    method: &MethodDescriptor,
    path: &str,
) -> Result<Rule, LoadError> {
    let option = pool
        .get_extension_by_name("openshell.options.v1.authorization")
        .ok_or(LoadError::MissingOption)?;
    let options = method.options();
    if !options.has_extension(&option) {
        return Err(LoadError::MissingRule { method: path.to_owned() });
    }
    let value = options.get_extension(&option);
    let Value::Message(rule) = value.as_ref() else {
        return Err(LoadError::MissingRule { method: path.to_owned() });
    };
    let unknown =
        |field, value: String| LoadError::UnknownValue { method: path.to_owned(), field, value };
    let mode = match text(rule, "auth_mode").as_str() {
        "unauthenticated" => AuthMode::Unauthenticated,
        "bearer" => AuthMode::Bearer,
        "sandbox" => AuthMode::Sandbox,
        "dual" => AuthMode::Dual,
        "peer" => AuthMode::Peer,
        "operator" => AuthMode::Operator,
        other => return Err(unknown("auth_mode", other.to_owned())),
    };
    let workspace_role = match text(rule, "workspace_role").as_str() {
        "" => None,
        "user" => Some(WorkspaceRole::User),
        "admin" => Some(WorkspaceRole::Admin),
        other => return Err(unknown("workspace_role", other.to_owned())),
    };
    let platform_admin = match text(rule, "global_role").as_str() {
        "" => false,
        "platform_admin" => true,
        other => return Err(unknown("global_role", other.to_owned())),
    };
    Ok(Rule {
        mode,
        workspace_role,
        platform_admin,
        scope: text(rule, "scope"),
        client_streaming: method.is_client_streaming(),
        server_streaming: method.is_server_streaming(),
    })
}

fn text(message: &DynamicMessage, field: &str) -> String {
    message
        .get_field_by_name(field)
        .and_then(|value| value.as_str().map(str::to_owned))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_served_method_has_a_rule() {
        let table = AuthorizationTable::load().expect("the contract is complete");
        assert_eq!(table.iter().count(), 90);
        let rule = table.rule("/openshell.v1.OpenShell/RelayStream").expect("is in the contract");
        assert_eq!(rule.mode, AuthMode::Sandbox);
        assert!(rule.client_streaming && rule.server_streaming);
        let info =
            table.rule("/openshell.v1.OpenShell/GetGatewayInfo").expect("is in the contract");
        assert!(info.platform_admin);
        assert_eq!(info.scope, "config:read");
        assert!(table.rule("/openshell.v1.OpenShell/Nothing").is_none());
    }

    #[test]
    fn a_method_without_a_rule_is_an_error_that_names_it() {
        let pool = DescriptorPool::decode(FILE_DESCRIPTOR_SET).expect("embedded");
        let error = AuthorizationTable::from_pool(&pool, &["openshell.compute.v1.ComputeDriver"])
            .expect_err("drivers are not served by the gateway and carry no rules");
        assert!(
            matches!(&error, LoadError::MissingRule { method } if method.contains("ComputeDriver/"))
        );
    }
}
