//! `CreateSshSession` and `RevokeSshSession`.

use http::Uri;
use postern_proto::v1::{
    CreateSshSessionRequest, CreateSshSessionResponse, DeletionOutcome, RevokeSshSessionRequest,
    RevokeSshSessionResponse,
};

use crate::auth::Principal;
use crate::call_error::CallError;
use crate::lifecycle::{Lifecycle, phase};
use crate::relay_plane::ssh_sessions::SshSessions;

/// How clients reach the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// `http` or `https`.
    pub scheme: String,
    /// Host name or address, without brackets.
    pub host: String,
    /// Port.
    pub port: u16,
}

/// Serves both calls. Cloning shares everything.
#[derive(Clone)]
pub struct SshSessionCalls {
    /// Finds sandboxes.
    pub lifecycle: Lifecycle,
    /// The sessions.
    pub sessions: SshSessions,
    /// What clients are told to connect to; without it, what they themselves connected to.
    pub advertised: Option<Address>,
}

// === impl SshSessionCalls ===

impl SshSessionCalls {
    /// Makes a session. `reached` is how this caller reached the gateway.
    ///
    /// # Errors
    /// `NOT_FOUND`, `FAILED_PRECONDITION` for a sandbox that is not and does not become Ready, `UNAVAILABLE`.
    pub async fn create(
        &self,
        principal: &Principal,
        reached: &Address,
        request: CreateSshSessionRequest,
    ) -> Result<CreateSshSessionResponse, CallError> {
        let user = principal.require_user()?;
        let scope = request.workspace_scope.as_ref();
        let record = self.lifecycle.resolve(principal, scope, &request.sandbox).await?;
        if matches!(phase::outlook(record.phase()), phase::Outlook::NotComing) {
            return Err(record.not_ready());
        }
        let created = self.sessions.create(record.id(), &user.subject).await?;
        let address = self.advertised.as_ref().unwrap_or(reached);
        tracing::info!(sandbox_id = record.id(), subject = user.subject, "SSH session created");
        Ok(CreateSshSessionResponse {
            sandbox_id: record.id().to_owned(),
            token: created.token.expose().clone(),
            gateway_host: address.host.clone(),
            gateway_port: u32::from(address.port),
            gateway_scheme: address.scheme.clone(),
            host_key_fingerprint: record.host_key_fingerprint().to_owned(),
            expiration_time: created.expires_at.map(Into::into),
        })
    }

    /// Ends a session and cuts its connections.
    ///
    /// # Errors
    /// `INVALID_ARGUMENT` for an empty token; `NOT_FOUND` for an unknown one unless `allow_missing`.
    pub async fn revoke(
        &self,
        principal: &Principal,
        request: RevokeSshSessionRequest,
    ) -> Result<RevokeSshSessionResponse, CallError> {
        let user = principal.require_user()?;
        if request.token.is_empty() {
            return Err(CallError::invalid("token", "is empty"));
        }
        let existed = self.sessions.revoke(&request.token).await?;
        if !existed && !request.allow_missing {
            return Err(CallError::NotFound { what: "SSH session".to_owned() });
        }
        let outcome = if existed {
            tracing::info!(subject = user.subject, "SSH session revoked");
            DeletionOutcome::Completed
        } else {
            DeletionOutcome::AlreadyAbsent
        };
        Ok(RevokeSshSessionResponse { outcome: outcome.into() })
    }
}

impl std::fmt::Debug for SshSessionCalls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SshSessionCalls")
            .field("advertised", &self.advertised)
            .finish_non_exhaustive()
    }
}

// === impl Address ===

impl Address {
    /// Nowhere; only a caller without a socket (a test) has this.
    #[must_use]
    pub fn unknown() -> Self {
        Self { scheme: "http".to_owned(), host: String::new(), port: 0 }
    }

    /// How a caller reached the gateway: by the authority of its request, else by the socket it came in at.
    #[must_use]
    pub fn of_request(
        uri: &Uri,
        headers: &http::HeaderMap,
        local: std::net::SocketAddr,
        tls: bool,
    ) -> Self {
        let scheme = if tls { "https" } else { "http" };
        let from_header = || headers.get(http::header::HOST)?.to_str().ok()?.parse().ok();
        let authority: Option<http::uri::Authority> = uri.authority().cloned().or_else(from_header);
        let (host, port) = match &authority {
            Some(authority) => {
                let host = authority.host().trim_start_matches('[').trim_end_matches(']');
                (host.to_owned(), authority.port_u16().unwrap_or(if tls { 443 } else { 80 }))
            }
            None => (local.ip().to_string(), local.port()),
        };
        Self { scheme: scheme.to_owned(), host, port }
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::*;

    #[test]
    fn the_address_is_the_one_the_caller_used() {
        let local = "127.0.0.1:17670".parse().unwrap();
        let of = |uri: &str, host: Option<&'static str>, tls| {
            let mut headers = HeaderMap::new();
            if let Some(host) = host {
                headers.insert("host", HeaderValue::from_static(host));
            }
            let address = Address::of_request(&uri.parse().unwrap(), &headers, local, tls);
            format!("{} {} {}", address.scheme, address.host, address.port)
        };
        assert_eq!(of("https://gw.example:8443/x", None, true), "https gw.example 8443");
        assert_eq!(of("https://gw.example/x", None, true), "https gw.example 443");
        assert_eq!(of("/x", Some("[::1]:17670"), false), "http ::1 17670");
        assert_eq!(of("/x", None, false), "http 127.0.0.1 17670");
    }
}
