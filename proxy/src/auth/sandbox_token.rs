//! Supervisors by the token that the gateway minted for their sandbox.
//!
//! Whatever comes in `authorization` is judged here and nowhere else: the gateway has no other bearer tokens, so one
//! that it did not mint is bad, and a bad one is final even when the connection also shows a certificate.

use std::future::{Ready, ready};

use http::header::AUTHORIZATION;
use http::request::Parts;
use postern_identity::token::SandboxTokenVerifier;
use postern_layers::authenticate::{Authenticate, Outcome};

use super::clock::WallClock;
use super::{Principal, SandboxPrincipal};

/// Judges the `authorization` header.
#[derive(Clone, Debug)]
pub struct SandboxToken {
    verifier: SandboxTokenVerifier,
    clock: WallClock,
}

// === impl SandboxToken ===

impl SandboxToken {
    /// Takes the tokens that `verifier` knows as good at the time of `clock`.
    #[must_use]
    pub const fn new(verifier: SandboxTokenVerifier, clock: WallClock) -> Self {
        Self { verifier, clock }
    }

    /// The supervisor that holds `token`.
    ///
    /// # Errors
    /// Why the token is not taken; for the log only.
    pub fn judge(&self, token: &str) -> Result<SandboxPrincipal, String> {
        match self.verifier.verify(token, self.clock.now()) {
            Ok(claims) => Ok(SandboxPrincipal {
                sandbox_id: claims.sandbox_id,
                issued_at: Some(claims.issued_at),
                expires_at: claims.expires_at,
            }),
            Err(error) => Err(error.to_string()),
        }
    }
}

impl Authenticate<Principal> for SandboxToken {
    type Future = Ready<Outcome<Principal>>;

    fn authenticate(&self, head: &Parts) -> Self::Future {
        let Some(header) = head.headers.get(AUTHORIZATION) else {
            return ready(Outcome::NotMine);
        };
        let token = header.to_str().ok().and_then(bearer);
        ready(match token.map(|token| self.judge(token)) {
            None => Outcome::Rejected("the authorization header is not a bearer token".into()),
            Some(Ok(sandbox)) => Outcome::Principal(Principal::Sandbox(sandbox)),
            Some(Err(reason)) => Outcome::Rejected(reason.into()),
        })
    }
}

/// The token of `Bearer TOKEN`; the scheme's case does not matter (RFC 9110 section 11.1).
fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    let token = token.trim();
    (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use http::Request;
    use postern_identity::token::{SandboxTokenIssuer, SigningKey};

    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn issuer(ttl: u64) -> SandboxTokenIssuer {
        SandboxTokenIssuer::new(
            SigningKey::generate().unwrap(),
            "openshell",
            Duration::from_secs(ttl),
        )
    }

    async fn judged(
        issuer: &SandboxTokenIssuer,
        header: Option<&str>,
        at: u64,
    ) -> Outcome<Principal> {
        let mut request = Request::new(());
        if let Some(header) = header {
            request.headers_mut().insert(AUTHORIZATION, header.parse().unwrap());
        }
        let clock = WallClock::from_fn(move || NOW + Duration::from_secs(at));
        let authenticator = SandboxToken::new(issuer.verifier(), clock);
        authenticator.authenticate(&request.into_parts().0).await
    }

    #[tokio::test]
    async fn our_token_makes_its_sandbox() {
        let issuer = issuer(600);
        let (token, _) = issuer.mint("s-1", NOW);
        let header = format!("bearer {}", token.expose());
        let Outcome::Principal(Principal::Sandbox(sandbox)) =
            judged(&issuer, Some(&header), 1).await
        else {
            panic!("a good token was not taken");
        };
        assert_eq!(sandbox.sandbox_id, "s-1");
        assert_eq!(sandbox.expires_at, Some(NOW + Duration::from_secs(600)));
    }

    #[tokio::test]
    async fn everything_else_in_the_header_is_final() {
        let mine = issuer(600);
        let (foreign, _) = issuer(600).mint("s-1", NOW);
        let (token, _) = mine.mint("s-1", NOW);
        let late = format!("Bearer {}", token.expose());
        for (header, at) in [
            (format!("Bearer {}", foreign.expose()), 1),
            (format!("Bearer {}x", token.expose()), 1),
            (late, 700),
            ("Basic YTpi".to_owned(), 1),
            ("Bearer".to_owned(), 1),
            ("Bearer  ".to_owned(), 1),
            ("Bearer not-a-token".to_owned(), 1),
        ] {
            let outcome = judged(&mine, Some(&header), at).await;
            assert!(matches!(outcome, Outcome::Rejected(_)), "{header}: {outcome:?}");
        }
        assert!(matches!(judged(&mine, None, 1).await, Outcome::NotMine));
    }
}
