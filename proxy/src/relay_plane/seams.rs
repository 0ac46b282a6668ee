//! The relay plane as the lifecycle sees it: who is connected, how to cut a sandbox off, how to make its token, what to
//! remove with it.

use std::sync::Arc;

use async_trait::async_trait;
use postern_driver_core::SandboxToken;
use postern_identity::SandboxTokenIssuer;
use postern_relay::registry::Registry;

use super::ssh_sessions::SshSessions;
use crate::auth::clock::WallClock;
use crate::call_error::CallError;
use crate::lifecycle::{Cleanup, CurrentSession, EndSession, MintToken};

/// The session registry.
#[derive(Clone, Debug)]
pub struct Sessions(pub Registry);

/// The issuer of sandbox tokens.
#[derive(Clone, Debug)]
pub struct Minter {
    /// Signs.
    pub issuer: Arc<SandboxTokenIssuer>,
    /// Says when.
    pub clock: WallClock,
}

/// What the relay plane keeps about a sandbox.
#[derive(Clone, Debug)]
pub struct Leftovers {
    /// Its SSH sessions.
    pub ssh_sessions: SshSessions,
}

impl CurrentSession for Sessions {
    fn current(&self, sandbox_id: &str) -> Option<String> {
        self.0.current(sandbox_id).map(|id| id.to_string())
    }
}

impl EndSession for Sessions {
    fn end(&self, sandbox_id: &str, reason: &str) {
        self.0.disconnect(sandbox_id, reason, tonic::Code::Unavailable);
    }
}

impl MintToken for Minter {
    fn mint(&self, sandbox_id: &str) -> Result<SandboxToken, CallError> {
        let (token, _) = self.issuer.mint(sandbox_id, self.clock.now());
        Ok(SandboxToken::new(token.expose().clone()))
    }
}

#[async_trait]
impl Cleanup for Leftovers {
    async fn cleanup(&self, sandbox_id: &str) -> Result<(), CallError> {
        let removed = self.ssh_sessions.remove_sandbox(sandbox_id).await?;
        if removed > 0 {
            tracing::info!(sandbox_id, removed, "SSH sessions of the sandbox ended");
        }
        Ok(())
    }
}
