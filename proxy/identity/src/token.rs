//! Sandbox tokens: signed statements "the bearer is sandbox X", minted and checked by the gateway.
//!
//! A token is a JWT (RFC 7519) in compact form, signed with Ed25519 (`alg` `EdDSA`, RFC 8037). Claims, as OpenShell
//! peers know them: `sub` = `spiffe://openshell/sandbox/<id>`, `iss` = `aud` = `openshell-gateway:<gateway id>`,
//! `iat`, `exp` (0: never), `sandbox_id`. The header names the key by `kid`.
//!
//! The check is small and strict on purpose: one algorithm, one key, exact base64, no header that asks for anything.

use std::{
    path::Path,
    time::{Duration, SystemTime},
};

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};

use crate::Secret;

mod key;

pub use self::key::{KeyError, SigningKey};

/// How far the clocks of gateway and verifier may differ (OpenShell contract).
pub const LEEWAY: Duration = Duration::from_secs(60);

/// Most bytes of a token that are looked at. Ours have about 500; a longer text is not one of ours.
pub const MAX_TOKEN: usize = 4096;

/// What `sub` starts with.
const SUBJECT_PREFIX: &str = "spiffe://openshell/sandbox/";

/// The only `typ` that is a gateway credential. Extension tokens (`openshell-ext+jwt`), signed with the same key,
/// must never pass for one.
const TYPE: &str = "JWT";

const ALGORITHM: &str = "EdDSA";

/// What a checked token says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Claims {
    /// Which sandbox the bearer is.
    pub sandbox_id: String,
    /// When the token was minted.
    pub issued_at: SystemTime,
    /// When it stops being good; `None`: never.
    pub expires_at: Option<SystemTime>,
}

/// Why a token is not accepted. The text is for the log of the gateway, never for the caller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// Not a token of this kind, or made by another key: another authenticator may know it.
    #[error("not a sandbox token of this gateway")]
    Foreign,
    /// Claims to be one of ours and is not signed by our key.
    #[error("the signature of the sandbox token does not fit")]
    BadSignature,
    /// Signed by us, but not a gateway credential of this gateway.
    #[error("the claim {claim:?} of the sandbox token does not fit")]
    BadClaim {
        /// Which claim.
        claim: &'static str,
    },
    /// It was good once.
    #[error("the sandbox token expired {} s ago", .since.as_secs())]
    Expired {
        /// How long ago, without leeway.
        since: Duration,
    },
}

impl TokenError {
    /// Whether the next authenticator may be asked. Anything else ends with a refusal: a bad token is never a
    /// reason to look for another identity.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        matches!(self, Self::Foreign)
    }
}

#[derive(Serialize, Deserialize)]
struct Header<'a> {
    alg: &'a str,
    #[serde(default)]
    typ: Option<&'a str>,
    #[serde(default)]
    kid: Option<&'a str>,
    /// Extensions that a verifier must understand (RFC 7515 section 4.1.11). We understand none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crit: Option<serde_json::Value>,
}

#[derive(Serialize, Deserialize)]
struct WireClaims {
    sub: String,
    iss: String,
    aud: String,
    iat: u64,
    exp: u64,
    sandbox_id: String,
}

/// Mints sandbox tokens.
#[derive(Debug)]
pub struct SandboxTokenIssuer {
    key: SigningKey,
    issuer: String,
    ttl: Duration,
}

impl SandboxTokenIssuer {
    /// Mints with `key` in the name of `gateway_id`; a `ttl` of zero means tokens that never expire.
    #[must_use]
    pub fn new(key: SigningKey, gateway_id: &str, ttl: Duration) -> Self {
        Self { key, issuer: issuer(gateway_id), ttl }
    }

    /// A token for `sandbox_id` and when it expires.
    #[must_use]
    pub fn mint(&self, sandbox_id: &str, now: SystemTime) -> (Secret<String>, Option<SystemTime>) {
        let issued = unix_seconds(now);
        let expires =
            if self.ttl.is_zero() { 0 } else { issued.saturating_add(self.ttl.as_secs().max(1)) };
        let header =
            Header { alg: ALGORITHM, typ: Some(TYPE), kid: Some(self.key.kid()), crit: None };
        let claims = WireClaims {
            sub: format!("{SUBJECT_PREFIX}{sandbox_id}"),
            iss: self.issuer.clone(),
            aud: self.issuer.clone(),
            iat: issued,
            exp: expires,
            sandbox_id: sandbox_id.to_owned(),
        };
        let mut token = encode_json(&header);
        token.push('.');
        token.push_str(&encode_json(&claims));
        let signature = URL_SAFE_NO_PAD.encode(self.key.sign(token.as_bytes()));
        token.push('.');
        token.push_str(&signature);
        (Secret::new(token), (expires != 0).then(|| from_unix(expires)))
    }

    /// Checks what this issuer mints.
    #[must_use]
    pub fn verifier(&self) -> SandboxTokenVerifier {
        SandboxTokenVerifier {
            public_key: self.key.public_key(),
            kid: self.key.kid().to_owned(),
            issuer: self.issuer.clone(),
        }
    }

    /// The public key as a JSON Web Key Set (RFC 7517), for `/.well-known/jwks.json`.
    #[must_use]
    pub fn jwks(&self) -> serde_json::Value {
        serde_json::json!({ "keys": [{
            "kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": ALGORITHM, "kid": self.key.kid(),
            "x": URL_SAFE_NO_PAD.encode(self.key.public_key()),
        }]})
    }

    /// Metadata in the form of OpenID Connect Discovery, for `/.well-known/openid-configuration`. The issuer is the
    /// gateway's id, as in the tokens; `base_url` is how the caller reaches the gateway (`https://host:port`).
    #[must_use]
    pub fn openid_metadata(&self, base_url: &str) -> serde_json::Value {
        serde_json::json!({
            "issuer": self.issuer,
            "jwks_uri": format!("{}/.well-known/jwks.json", base_url.trim_end_matches('/')),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [ALGORITHM],
        })
    }
}

/// Checks sandbox tokens of one gateway. Holds no secret.
#[derive(Clone, Debug)]
pub struct SandboxTokenVerifier {
    public_key: [u8; 32],
    kid: String,
    issuer: String,
}

impl SandboxTokenVerifier {
    /// What `token` says, if this gateway minted it and it is good at `now`.
    ///
    /// # Errors
    /// [`TokenError::Foreign`] if another authenticator may know it; everything else is a refusal.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<Claims, TokenError> {
        let (signed, signature) = self.split(token)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| TokenError::BadSignature)?;
        UnparsedPublicKey::new(&ED25519, self.public_key)
            .verify(signed.as_bytes(), &signature)
            .map_err(|_| TokenError::BadSignature)?;
        let claims = signed.split_once('.').map_or("", |(_, claims)| claims);
        let claims: WireClaims =
            decode_json(claims).ok_or(TokenError::BadClaim { claim: "(all)" })?;
        self.check(claims, now)
    }

    /// The signed part and the signature, if header and form are those of our own tokens.
    fn split<'t>(&self, token: &'t str) -> Result<(&'t str, &'t str), TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::Foreign);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(TokenError::Foreign)?;
        let (header, _) = signed.split_once('.').ok_or(TokenError::Foreign)?;
        let bytes = URL_SAFE_NO_PAD.decode(header).map_err(|_| TokenError::Foreign)?;
        let header: Header<'_> = serde_json::from_slice(&bytes).map_err(|_| TokenError::Foreign)?;
        if header.alg != ALGORITHM || header.kid != Some(&self.kid) {
            return Err(TokenError::Foreign);
        }
        if header.typ.is_some_and(|typ| typ != TYPE) {
            return Err(TokenError::BadClaim { claim: "typ" });
        }
        if header.crit.is_some() {
            return Err(TokenError::BadClaim { claim: "crit" });
        }
        Ok((signed, signature))
    }

    fn check(&self, claims: WireClaims, now: SystemTime) -> Result<Claims, TokenError> {
        for (claim, value) in [("iss", &claims.iss), ("aud", &claims.aud)] {
            if *value != self.issuer {
                return Err(TokenError::BadClaim { claim });
            }
        }
        if claims.sandbox_id.is_empty() {
            return Err(TokenError::BadClaim { claim: "sandbox_id" });
        }
        if claims.sub.strip_prefix(SUBJECT_PREFIX) != Some(&claims.sandbox_id) {
            return Err(TokenError::BadClaim { claim: "sub" });
        }
        let expires_at = (claims.exp != 0).then(|| from_unix(claims.exp));
        if let Some(since) = expires_at.and_then(|at| now.duration_since(at).ok())
            && since > LEEWAY
        {
            return Err(TokenError::Expired { since });
        }
        Ok(Claims { sandbox_id: claims.sandbox_id, issued_at: from_unix(claims.iat), expires_at })
    }
}

/// Loads the key of sandbox tokens from a directory, or makes it there: `signing.pem`, `public.pem`, `kid`.
///
/// # Errors
/// [`KeyError`] when a file cannot be read or written, or holds no Ed25519 key.
pub fn open_or_create_key(directory: &Path) -> Result<SigningKey, KeyError> {
    key::open_or_create(directory)
}

fn issuer(gateway_id: &str) -> String {
    format!("openshell-gateway:{gateway_id}")
}

fn encode_json(value: &impl Serialize) -> String {
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(value).expect("texts and numbers are JSON"))
}

fn decode_json<T: serde::de::DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
}

fn unix_seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// A time beyond what the system can hold is as good as the far future; it becomes the end of year 9999.
fn from_unix(seconds: u64) -> SystemTime {
    const END_OF_9999: u64 = 253_402_300_799;
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.min(END_OF_9999))
}

#[cfg(test)]
mod tests;
