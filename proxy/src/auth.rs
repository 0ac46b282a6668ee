//! Who is calling.
//!
//! The `authenticate` layer asks a chain of authenticators (the files of this folder) and puts one [`Principal`] into
//! the extensions of the request; `authorize` decides by it, handlers narrow by it. Nothing after the layer looks
//! at a token or a certificate again.
//!
//! Three rules hold everywhere: a sandbox never becomes a user, a bad credential never falls back to a weaker one,
//! and the answer to a question about somebody else's sandbox does not depend on whether that sandbox exists.

pub mod client_certificate;
pub mod clock;
pub mod local_dev;
pub mod sandbox_token;
pub mod ssh_session;

use std::time::SystemTime;

use crate::call_error::CallError;

/// The role that uses sandboxes, as the certificate's OU and as a word in [`User::roles`].
pub const USER_ROLE: &str = "openshell-user";
/// The role that also changes configuration and sees the whole deployment.
pub const ADMIN_ROLE: &str = "openshell-admin";
/// The OU of the certificate that sandboxes hold for transport. It never makes a user.
pub const SANDBOX_TRANSPORT_OU: &str = "openshell-sandbox";
/// The subject of the principal of the plaintext local mode (the OpenShell contract's name for it).
pub const LOCAL_DEV_SUBJECT: &str = "unauthenticated-local-dev";
/// The scope that stands for every scope.
pub const ALL_SCOPES: &str = "openshell:all";

/// Who is calling. Stands in the extensions of every request behind `authenticate`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// A person or a control plane.
    User(User),
    /// A supervisor, by the token minted for its sandbox.
    Sandbox(SandboxPrincipal),
    /// The holder of an SSH session token, on `/connect/ssh` only.
    SshSession(SshSessionPrincipal),
    /// Nobody known; reaches only what is open to all.
    Anonymous,
}

/// A person or a control plane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    /// Stable name: the certificate's common name, or [`LOCAL_DEV_SUBJECT`].
    pub subject: String,
    /// Name for people.
    pub display_name: String,
    /// Deployment-wide roles, such as [`USER_ROLE`].
    pub roles: Vec<String>,
    /// OAuth scopes; a provider without scopes gives [`ALL_SCOPES`].
    pub scopes: Vec<String>,
    /// Where the identity comes from.
    pub provider: IdentityProvider,
}

/// Where the identity of a [`User`] comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IdentityProvider {
    /// A client certificate that the gateway's client CA signed.
    Mtls,
    /// The explicit local mode without credentials.
    LocalDev,
}

/// A supervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxPrincipal {
    /// The sandbox that its token is bound to.
    pub sandbox_id: String,
    /// When the token was minted; `None` when it did not come from a token (tests, other drivers).
    pub issued_at: Option<SystemTime>,
    /// When the token ends; `None` for a token without end.
    pub expires_at: Option<SystemTime>,
}

/// The holder of an SSH session token: may open SSH relays to one sandbox and nothing else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SshSessionPrincipal {
    /// Identifier of the session record; not the token.
    pub session_id: String,
    /// The sandbox that the session was created for.
    pub sandbox_id: String,
    /// Subject of the user who created it, for audit.
    pub subject: String,
    /// When the session ends; `None` for a session without end.
    pub expires_at: Option<SystemTime>,
}

// === impl Principal ===

impl Principal {
    /// The principal in the extensions of a request; [`Principal::Anonymous`] when no layer put one there.
    #[must_use]
    pub fn of(extensions: &http::Extensions) -> Self {
        extensions.get::<Self>().cloned().unwrap_or(Self::Anonymous)
    }

    /// The user.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` for nobody, `PERMISSION_DENIED` for any other principal.
    pub fn require_user(&self) -> Result<&User, CallError> {
        match self {
            Self::User(user) => Ok(user),
            Self::Anonymous => Err(CallError::Unauthenticated),
            Self::Sandbox(_) | Self::SshSession(_) => {
                Err(CallError::PermissionDenied { reason: "this call is for users".to_owned() })
            }
        }
    }

    /// The sandbox principal, if it is the one that owns sandbox `id`.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` for nobody; `PERMISSION_DENIED` for users and for every other sandbox, in the same words
    /// whether sandbox `id` exists or not.
    pub fn require_sandbox(&self, id: &str) -> Result<&SandboxPrincipal, CallError> {
        match self {
            Self::Sandbox(sandbox) if sandbox.sandbox_id == id => Ok(sandbox),
            Self::Anonymous => Err(CallError::Unauthenticated),
            Self::Sandbox(_) => Err(CallError::PermissionDenied {
                reason: "this principal does not own the sandbox it names".to_owned(),
            }),
            Self::User(_) | Self::SshSession(_) => Err(CallError::PermissionDenied {
                reason: "this call is for supervisors".to_owned(),
            }),
        }
    }

    /// Whoever is a sandbox, whichever it is.
    ///
    /// # Errors
    /// As [`Principal::require_sandbox`].
    pub fn require_any_sandbox(&self) -> Result<&SandboxPrincipal, CallError> {
        match self {
            Self::Sandbox(sandbox) => Ok(sandbox),
            other => other.require_sandbox(""),
        }
    }

    /// What the rate of calls is counted by and what audit records name: kind and subject.
    #[must_use]
    pub fn key(&self) -> String {
        match self {
            Self::User(user) => format!("user:{}", user.subject),
            Self::Sandbox(sandbox) => format!("sandbox:{}", sandbox.sandbox_id),
            Self::SshSession(session) => format!("ssh-session:{}", session.session_id),
            Self::Anonymous => "anonymous".to_owned(),
        }
    }
}

// === impl SandboxPrincipal ===

impl SandboxPrincipal {
    /// The supervisor of `sandbox_id`, by a token of unknown age and without end.
    pub fn new(sandbox_id: impl Into<String>) -> Self {
        Self { sandbox_id: sandbox_id.into(), issued_at: None, expires_at: None }
    }
}

// === impl User ===

impl User {
    /// The principal of the explicit local mode: everything is allowed to whoever reaches the socket.
    #[must_use]
    pub fn local_dev() -> Self {
        Self {
            subject: LOCAL_DEV_SUBJECT.to_owned(),
            display_name: "local developer".to_owned(),
            roles: vec![USER_ROLE.to_owned(), ADMIN_ROLE.to_owned()],
            scopes: vec![ALL_SCOPES.to_owned()],
            provider: IdentityProvider::LocalDev,
        }
    }

    /// Whether the user has the deployment-wide admin role.
    #[must_use]
    pub fn is_admin(&self) -> bool {
        self.has_role(ADMIN_ROLE)
    }

    /// Whether `role` is among the user's roles.
    #[must_use]
    pub fn has_role(&self, role: &str) -> bool {
        self.roles.iter().any(|held| held == role)
    }

    /// Whether the user's scopes cover `scope`; the empty scope is covered by all.
    #[must_use]
    pub fn has_scope(&self, scope: &str) -> bool {
        scope.is_empty() || self.scopes.iter().any(|held| held == scope || held == ALL_SCOPES)
    }
}

// === impl IdentityProvider ===

impl IdentityProvider {
    /// The word that `GetCurrentUser` answers with.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mtls => "mtls",
            Self::LocalDev => "local-dev",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sandbox(id: &str) -> Principal {
        Principal::Sandbox(SandboxPrincipal::new(id))
    }

    #[test]
    fn a_sandbox_is_never_a_user() {
        assert!(matches!(sandbox("a").require_user(), Err(CallError::PermissionDenied { .. })));
    }

    #[test]
    fn another_sandbox_and_a_missing_one_get_the_same_words() {
        let other = sandbox("a").require_sandbox("b").unwrap_err().to_string();
        let missing = sandbox("a").require_sandbox("").unwrap_err().to_string();
        assert_eq!(other, missing);
        assert!(sandbox("a").require_sandbox("a").is_ok());
    }

    #[test]
    fn nobody_is_unauthenticated_not_forbidden() {
        assert!(matches!(Principal::Anonymous.require_user(), Err(CallError::Unauthenticated)));
        assert!(matches!(Principal::of(&http::Extensions::new()), Principal::Anonymous));
    }

    #[test]
    fn a_user_is_never_a_sandbox() {
        let user = Principal::User(User::local_dev());
        assert!(user.require_any_sandbox().is_err());
        assert!(user.require_user().is_ok_and(User::is_admin));
    }
}
