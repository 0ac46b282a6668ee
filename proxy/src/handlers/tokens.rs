//! Fresh tokens for supervisors.
//!
//! A supervisor that still holds a good token gets another one for the same sandbox. A sandbox that is gone gets none,
//! and a supervisor that asks in a loop is stopped before it costs signatures.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::Mutex;
use postern_identity::SandboxTokenIssuer;
use postern_proto::v1::{RefreshSandboxTokenRequest, RefreshSandboxTokenResponse};
use tokio::time::Instant;

use crate::auth::Principal;
use crate::auth::clock::WallClock;
use crate::call_error::CallError;

/// Tokens that one sandbox gets within [`REFRESH_WINDOW`] (OpenShell contract).
pub const MAX_REFRESHES: usize = 10;
/// The time over which [`MAX_REFRESHES`] counts.
pub const REFRESH_WINDOW: Duration = Duration::from_secs(60);

/// Sandboxes whose refreshes are remembered; beyond it, those whose window is over are forgotten first.
const REMEMBERED: usize = 4096;

/// Answers `RefreshSandboxToken`.
#[derive(Clone, Debug)]
pub struct Tokens {
    issuer: Arc<SandboxTokenIssuer>,
    clock: WallClock,
    recent: Arc<Mutex<HashMap<String, VecDeque<Instant>>>>,
}

// === impl Tokens ===

impl Tokens {
    /// Mints with `issuer`.
    #[must_use]
    pub fn new(issuer: Arc<SandboxTokenIssuer>, clock: WallClock) -> Self {
        Self { issuer, clock, recent: Arc::default() }
    }

    /// A fresh token for the sandbox that is calling. `exists` says whether its record is still there.
    ///
    /// # Errors
    /// `NOT_FOUND` when the sandbox is gone, `RESOURCE_EXHAUSTED` when it asks too often, `UNIMPLEMENTED` for
    /// extension credentials, and whatever `exists` fails with.
    pub async fn refresh(
        &self,
        principal: &Principal,
        request: RefreshSandboxTokenRequest,
        exists: impl AsyncFnOnce(&str) -> Result<bool, CallError>,
    ) -> Result<RefreshSandboxTokenResponse, CallError> {
        let sandbox = principal.require_any_sandbox()?;
        if !request.extension_service_names.is_empty() {
            return Err(CallError::Unimplemented {
                what: "RefreshSandboxTokenRequest.extension_service_names".into(),
            });
        }
        self.admit(&sandbox.sandbox_id, Instant::now())?;
        if !exists(&sandbox.sandbox_id).await? {
            return Err(CallError::no_sandbox(&sandbox.sandbox_id));
        }
        let (token, expires_at) = self.issuer.mint(&sandbox.sandbox_id, self.clock.now());
        let milliseconds = expires_at.map_or(0, unix_milliseconds);
        Ok(RefreshSandboxTokenResponse {
            token: token.expose().clone(),
            expires_at_ms: milliseconds,
            expiration_time: expires_at.map(Into::into),
            ..RefreshSandboxTokenResponse::default()
        })
    }

    fn admit(&self, sandbox_id: &str, now: Instant) -> Result<(), CallError> {
        let mut recent = self.recent.lock();
        if recent.len() >= REMEMBERED && !recent.contains_key(sandbox_id) {
            recent.retain(|_, times| {
                times.back().is_some_and(|last| now.duration_since(*last) < REFRESH_WINDOW)
            });
        }
        let times = recent.entry(sandbox_id.to_owned()).or_default();
        while times.front().is_some_and(|first| now.duration_since(*first) >= REFRESH_WINDOW) {
            times.pop_front();
        }
        if times.len() >= MAX_REFRESHES {
            let wait = times
                .front()
                .map(|first| REFRESH_WINDOW.saturating_sub(now.duration_since(*first)));
            return Err(CallError::ResourceExhausted {
                cap: "token refreshes per minute".into(),
                value: MAX_REFRESHES as u64,
                description: "this sandbox asks for tokens too often".to_owned(),
                retry_after: wait,
            });
        }
        times.push_back(now);
        Ok(())
    }
}

fn unix_milliseconds(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use postern_identity::SigningKey;

    use super::*;
    use crate::auth::{SandboxPrincipal, User};

    fn tokens(ttl: Duration) -> Tokens {
        let key = SigningKey::generate().unwrap();
        let issuer = SandboxTokenIssuer::new(key, "openshell", ttl);
        let clock = WallClock::from_fn(|| SystemTime::UNIX_EPOCH + Duration::from_secs(1000));
        Tokens::new(Arc::new(issuer), clock)
    }

    fn sandbox() -> Principal {
        Principal::Sandbox(SandboxPrincipal::new("s"))
    }

    async fn refresh(
        tokens: &Tokens,
        principal: &Principal,
    ) -> Result<RefreshSandboxTokenResponse, CallError> {
        let request = RefreshSandboxTokenRequest::default();
        tokens.refresh(principal, request, async |_: &str| Ok(true)).await
    }

    #[tokio::test]
    async fn both_lines_read_the_expiry() {
        let answer = refresh(&tokens(Duration::from_secs(60)), &sandbox()).await.unwrap();
        assert_eq!(answer.expires_at_ms, 1_060_000);
        assert_eq!(answer.expiration_time.map(|time| time.seconds), Some(1060));
        let endless = refresh(&tokens(Duration::ZERO), &sandbox()).await.unwrap();
        assert_eq!((endless.expires_at_ms, endless.expiration_time), (0, None));
    }

    #[tokio::test(start_paused = true)]
    async fn ten_a_minute_and_no_more() {
        let tokens = tokens(Duration::from_secs(60));
        for _ in 0..MAX_REFRESHES {
            refresh(&tokens, &sandbox()).await.unwrap();
        }
        let refused = refresh(&tokens, &sandbox()).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
        assert_eq!(refused.retry_after(), Some(REFRESH_WINDOW));
        let other = Principal::Sandbox(SandboxPrincipal::new("other"));
        assert!(refresh(&tokens, &other).await.is_ok());
        tokio::time::advance(REFRESH_WINDOW).await;
        assert!(refresh(&tokens, &sandbox()).await.is_ok());
    }

    #[tokio::test]
    async fn no_token_for_the_gone_and_for_users() {
        let tokens = tokens(Duration::from_secs(60));
        let gone = tokens
            .refresh(&sandbox(), RefreshSandboxTokenRequest::default(), async |_: &str| Ok(false))
            .await;
        assert_eq!(gone.unwrap_err().code(), tonic::Code::NotFound);
        let user = Principal::User(User::local_dev());
        let refused = refresh(&tokens, &user).await.unwrap_err();
        assert_eq!(refused.code(), tonic::Code::PermissionDenied);
    }
}
