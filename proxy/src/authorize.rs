//! Who may call what.
//!
//! The decision is pure: a rule, a principal, an answer. The rule of a gRPC method is the `authorization` option on
//! its declaration, read once at start ([`AuthorizationTable`]); the few HTTP routes have the small table below.
//! Handlers only narrow further (a sandbox sees its own record, nobody else's).

use std::sync::Arc;

use http::Method;
use http::request::Parts;
use postern_layers::refuse::Protocol;
use postern_proto::authorization::{AuthMode, AuthorizationTable, Rule, WorkspaceRole};

use crate::auth::{ADMIN_ROLE, Principal, USER_ROLE, User};

/// The one HTTP route that opens relays.
pub const CONNECT_SSH_PATH: &str = "/connect/ssh";
/// Public keys of the gateway's token issuer.
pub const JWKS_PATH: &str = "/.well-known/jwks.json";
/// OpenID-shaped metadata of the gateway's token issuer.
pub const OPENID_PATH: &str = "/.well-known/openid-configuration";

/// What an HTTP route asks of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RouteRule {
    /// Nothing: public documents, and whatever the router answers with 404 or 405.
    Open,
    /// The token of an SSH session.
    SshSession,
}

/// What a request asks for, as far as rules go.
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path; of a gRPC call, `/service/method`.
    pub path: &'a str,
    /// Whether it is a gRPC call.
    pub grpc: bool,
}

/// Why a call may not go on. The text is for the caller and names what is missing, never what exists.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Denied {
    /// Nobody known is calling, and the call is not open to all.
    #[error("authentication is required")]
    Anonymous,
    /// The principal is of a kind that this call is not for.
    #[error("this call is for {wanted}")]
    WrongKind {
        /// Who the call is for.
        wanted: &'static str,
    },
    /// The user lacks a role.
    #[error("role {role} is required")]
    MissingRole {
        /// The role.
        role: &'static str,
    },
    /// The user's token lacks a scope.
    #[error("scope {scope} is required")]
    MissingScope {
        /// The scope.
        scope: String,
    },
}

/// The decision of the `authorize` layer.
#[derive(Clone, Debug)]
pub struct Authorization {
    table: Arc<AuthorizationTable>,
}

// === impl Target ===

impl<'a> Target<'a> {
    /// What the request with this head asks for.
    #[must_use]
    pub fn of(head: &'a Parts) -> Self {
        Self {
            method: &head.method,
            path: head.uri.path(),
            grpc: Protocol::of(&head.headers) == Protocol::Grpc,
        }
    }
}

// === impl Authorization ===

impl Authorization {
    /// Decides by `table`.
    #[must_use]
    pub fn new(table: Arc<AuthorizationTable>) -> Self {
        Self { table }
    }

    /// Whether `target` can be called without any credential: `authenticate` leaves it alone.
    #[must_use]
    pub fn is_open(&self, target: Target<'_>) -> bool {
        if target.grpc {
            return self
                .table
                .rule(target.path)
                .is_some_and(|rule| rule.mode == AuthMode::Unauthenticated);
        }
        route(target) == RouteRule::Open
    }

    /// Decides on one call.
    ///
    /// A gRPC method that the contract does not have is let through to anyone authenticated: the router answers
    /// it with `UNIMPLEMENTED`, which tells a caller with a newer contract more than a refusal would.
    ///
    /// # Errors
    /// [`Denied`] with what is missing.
    pub fn decide(&self, target: Target<'_>, principal: &Principal) -> Result<(), Denied> {
        if !target.grpc {
            return decide_route(route(target), principal);
        }
        match (self.table.rule(target.path), principal) {
            (Some(rule), _) => decide(rule, principal),
            (None, Principal::Anonymous) => Err(Denied::Anonymous),
            (None, _) => Ok(()),
        }
    }
}

/// Decides by one rule.
///
/// # Errors
/// [`Denied`] with what is missing.
pub fn decide(rule: &Rule, principal: &Principal) -> Result<(), Denied> {
    if rule.mode == AuthMode::Unauthenticated {
        return Ok(());
    }
    match (rule.mode, principal) {
        (_, Principal::Anonymous) => Err(Denied::Anonymous),
        (AuthMode::Bearer | AuthMode::Dual, Principal::User(user)) => decide_user(rule, user),
        (AuthMode::Sandbox | AuthMode::Dual, Principal::Sandbox(_)) => Ok(()),
        // No peer gateways and no separate operator credential exist yet. The operator is whoever is admin; the
        // methods for peers are all unimplemented (a test holds them to that), and an admin may read so.
        (AuthMode::Operator | AuthMode::Peer, Principal::User(user)) => {
            require_role(user, ADMIN_ROLE)
        }
        (mode, _) => Err(Denied::WrongKind { wanted: audience(mode) }),
    }
}

fn decide_user(rule: &Rule, user: &User) -> Result<(), Denied> {
    if rule.platform_admin || rule.workspace_role == Some(WorkspaceRole::Admin) {
        require_role(user, ADMIN_ROLE)?;
    } else if rule.workspace_role == Some(WorkspaceRole::User) && !user.is_admin() {
        require_role(user, USER_ROLE)?;
    }
    if user.has_scope(&rule.scope) {
        Ok(())
    } else {
        Err(Denied::MissingScope { scope: rule.scope.clone() })
    }
}

fn require_role(user: &User, role: &'static str) -> Result<(), Denied> {
    if user.has_role(role) { Ok(()) } else { Err(Denied::MissingRole { role }) }
}

const fn audience(mode: AuthMode) -> &'static str {
    match mode {
        AuthMode::Unauthenticated => "everybody",
        AuthMode::Bearer => "users",
        AuthMode::Sandbox => "supervisors",
        AuthMode::Dual => "users and supervisors",
        AuthMode::Peer => "gateways of this deployment",
        AuthMode::Operator => "the operator",
    }
}

/// Whether this is the request that opens an SSH relay. A plain HTTP/2 `CONNECT` and the authority form of HTTP/1
/// have no path; this is the only thing they can mean here.
#[must_use]
pub fn is_connect_ssh(method: &Method, path: &str) -> bool {
    method == Method::CONNECT && (path.is_empty() || path == CONNECT_SSH_PATH)
}

fn route(target: Target<'_>) -> RouteRule {
    if is_connect_ssh(target.method, target.path) { RouteRule::SshSession } else { RouteRule::Open }
}

fn decide_route(rule: RouteRule, principal: &Principal) -> Result<(), Denied> {
    match (rule, principal) {
        (RouteRule::Open, _) | (RouteRule::SshSession, Principal::SshSession(_)) => Ok(()),
        // Whoever else asks has shown no session token: the contract's answer is 401, not 403.
        (RouteRule::SshSession, _) => Err(Denied::Anonymous),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{IdentityProvider, SandboxPrincipal, SshSessionPrincipal};

    fn authorization() -> Authorization {
        Authorization::new(Arc::new(AuthorizationTable::load().unwrap()))
    }

    fn user(roles: &[&str]) -> Principal {
        Principal::User(User {
            subject: "ada".to_owned(),
            display_name: "Ada".to_owned(),
            roles: roles.iter().map(|role| (*role).to_owned()).collect(),
            scopes: vec!["openshell:all".to_owned()],
            provider: IdentityProvider::Mtls,
        })
    }

    fn sandbox() -> Principal {
        Principal::Sandbox(SandboxPrincipal::new("s"))
    }

    fn ssh_session() -> Principal {
        Principal::SshSession(SshSessionPrincipal {
            session_id: "i".to_owned(),
            sandbox_id: "s".to_owned(),
            subject: "ada".to_owned(),
            expires_at: None,
        })
    }

    fn call(path: &str) -> Target<'_> {
        Target { method: &Method::POST, path, grpc: true }
    }

    fn connect(path: &str) -> Target<'_> {
        Target { method: &Method::CONNECT, path, grpc: false }
    }

    fn get(path: &str) -> Target<'_> {
        Target { method: &Method::GET, path, grpc: false }
    }

    fn grpc(method: &str, principal: &Principal) -> Result<(), Denied> {
        let path = format!("/openshell.v1.OpenShell/{method}");
        authorization().decide(call(&path), principal)
    }

    #[test]
    fn each_mode_takes_its_own_principals() {
        assert!(grpc("Health", &Principal::Anonymous).is_ok());
        assert_eq!(grpc("GetSandbox", &Principal::Anonymous), Err(Denied::Anonymous));
        assert!(grpc("GetSandbox", &user(&[USER_ROLE])).is_ok());
        assert!(grpc("GetSandbox", &user(&[ADMIN_ROLE])).is_ok());
        assert_eq!(grpc("GetSandbox", &sandbox()), Err(Denied::WrongKind { wanted: "users" }));
        assert!(grpc("ConnectSupervisor", &sandbox()).is_ok());
        assert_eq!(
            grpc("ConnectSupervisor", &user(&[ADMIN_ROLE])),
            Err(Denied::WrongKind { wanted: "supervisors" })
        );
        assert!(grpc("GetSandboxConfig", &sandbox()).is_ok());
        assert!(grpc("GetSandboxConfig", &user(&[USER_ROLE])).is_ok());
    }

    #[test]
    fn roles_and_scopes_are_asked_for() {
        let no_role = user(&[]);
        assert_eq!(grpc("GetSandbox", &no_role), Err(Denied::MissingRole { role: USER_ROLE }));
        assert_eq!(
            grpc("GetGatewayInfo", &user(&[USER_ROLE])),
            Err(Denied::MissingRole { role: ADMIN_ROLE })
        );
        let mut scoped = User::local_dev();
        scoped.scopes = vec!["sandbox:read".to_owned()];
        let scoped = Principal::User(scoped);
        assert!(grpc("GetSandbox", &scoped).is_ok());
        assert_eq!(
            grpc("DeleteSandbox", &scoped),
            Err(Denied::MissingScope { scope: "sandbox:write".to_owned() })
        );
    }

    #[test]
    fn an_ssh_session_reaches_connect_and_nothing_else() {
        let session = ssh_session();
        let authorization = authorization();
        for path in [CONNECT_SSH_PATH, ""] {
            assert!(authorization.decide(connect(path), &session).is_ok());
        }
        for (path, rule) in authorization.table.iter() {
            let decision = authorization.decide(call(path), &session);
            assert_eq!(decision.is_ok(), rule.mode == AuthMode::Unauthenticated, "{path}");
        }
        let admin = user(&[ADMIN_ROLE]);
        let refused = authorization.decide(connect(CONNECT_SSH_PATH), &admin);
        assert_eq!(refused, Err(Denied::Anonymous));
    }

    #[test]
    fn a_method_of_a_newer_contract_is_left_to_the_router() {
        assert!(grpc("Teleport", &sandbox()).is_ok());
        assert_eq!(grpc("Teleport", &Principal::Anonymous), Err(Denied::Anonymous));
        assert!(!authorization().is_open(call("/openshell.v1.OpenShell/Teleport")));
    }

    #[test]
    fn only_health_is_open_among_the_methods() {
        let authorization = authorization();
        let open: Vec<&str> = authorization
            .table
            .iter()
            .map(|(path, _)| path)
            .filter(|path| authorization.is_open(call(path)))
            .collect();
        assert_eq!(open, ["/openshell.v1.OpenShell/Health"]);
        assert!(authorization.is_open(get(JWKS_PATH)));
        // The router answers it with 405.
        assert!(authorization.is_open(get(CONNECT_SSH_PATH)));
        assert!(!authorization.is_open(connect(CONNECT_SSH_PATH)));
        assert!(!authorization.is_open(connect("")));
    }
}
