//! The token of an SSH session, on `CONNECT /connect/ssh` only.
//!
//! The route takes nothing else: a request without the two headers is refused even when its connection shows a user's
//! certificate, and a bad token is refused even in the local mode.

use std::pin::Pin;

use http::request::Parts;
use postern_layers::authenticate::{Authenticate, Outcome};

use super::Principal;
use crate::authorize::is_connect_ssh;
use crate::relay_plane::ssh_sessions::{SshSessionError, SshSessions};

/// Names the sandbox.
pub const SANDBOX_ID_HEADER: &str = "x-sandbox-id";
/// Carries the token.
pub const SANDBOX_TOKEN_HEADER: &str = "x-sandbox-token";

/// Judges the token of `/connect/ssh`.
#[derive(Clone, Debug)]
pub struct SshSessionToken {
    sessions: SshSessions,
}

impl SshSessionToken {
    /// Looks tokens up in `sessions`.
    #[must_use]
    pub const fn new(sessions: SshSessions) -> Self {
        Self { sessions }
    }
}

impl Authenticate<Principal> for SshSessionToken {
    type Future = Pin<Box<dyn Future<Output = Outcome<Principal>> + Send>>;

    fn authenticate(&self, head: &Parts) -> Self::Future {
        if !is_connect_ssh(&head.method, head.uri.path()) {
            return Box::pin(std::future::ready(Outcome::NotMine));
        }
        let header = |name| {
            let value = head.headers.get(name)?.to_str().ok()?.trim();
            (!value.is_empty()).then(|| value.to_owned())
        };
        let shown = header(SANDBOX_ID_HEADER).zip(header(SANDBOX_TOKEN_HEADER));
        let Some((sandbox_id, token)) = shown else {
            let reason = "x-sandbox-id or x-sandbox-token is missing, blank or not ASCII";
            return Box::pin(std::future::ready(Outcome::Rejected(reason.into())));
        };
        let token = zeroize::Zeroizing::new(token);
        let sessions = self.sessions.clone();
        Box::pin(async move {
            match sessions.find(&token).await {
                Ok(session) if session.sandbox_id == sandbox_id => {
                    Outcome::Principal(Principal::SshSession(session))
                }
                Ok(_) => Outcome::Rejected("the SSH session is for another sandbox".into()),
                Err(SshSessionError::Refused) => {
                    Outcome::Rejected("the SSH session is unknown, ended or revoked".into())
                }
                Err(error) => Outcome::Unavailable(error.to_string().into()),
            }
        })
    }
}
