//! Random tokens that mean nothing by themselves: who holds one proves that the gateway gave it out.
//!
//! The gateway keeps only the SHA-256 of a token. 256 random bits cannot be guessed, so a plain digest (no salt, no
//! slow hash) is enough, and a token is looked up by its digest, which gives a timing observer nothing to work with.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::Secret;

/// Random bytes of a token.
const BYTES: usize = 32;

/// A fresh token and the digest to store in its place.
#[derive(Debug)]
pub struct OpaqueToken {
    /// What the caller gets, once: 43 URL-safe characters.
    pub token: Secret<String>,
    /// What the gateway stores.
    pub digest: TokenDigest,
}

/// SHA-256 of a token.
#[derive(Clone, Copy, Debug)]
pub struct TokenDigest([u8; 32]);

/// The system gave no random bytes.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("the system gives no random bytes")]
pub struct NoRandomness;

impl OpaqueToken {
    /// Makes a token of 256 bits from the randomness of the system.
    ///
    /// # Errors
    /// [`NoRandomness`]; does not happen on a system that has started.
    pub fn generate() -> Result<Self, NoRandomness> {
        let mut bytes = [0; BYTES];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| NoRandomness)?;
        let token = Secret::new(URL_SAFE_NO_PAD.encode(bytes));
        let digest = TokenDigest::of(token.expose());
        Ok(Self { token, digest })
    }
}

impl TokenDigest {
    /// The digest of any presented text.
    #[must_use]
    pub fn of(token: &str) -> Self {
        Self(Sha256::digest(token.as_bytes()).into())
    }

    /// 64 lower-case hexadecimal digits, for a key in a store.
    #[must_use]
    pub fn to_hex(self) -> String {
        self.to_string()
    }
}

impl fmt::Display for TokenDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl PartialEq for TokenDigest {
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Eq for TokenDigest {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_differ_and_match_their_digest() {
        let (one, two) = (OpaqueToken::generate().unwrap(), OpaqueToken::generate().unwrap());
        assert_ne!(one.token, two.token);
        assert_eq!(one.token.expose().len(), 43);
        assert_eq!(TokenDigest::of(one.token.expose()), one.digest);
        assert_ne!(TokenDigest::of(two.token.expose()), one.digest);
        // SHA-256 of "abc", FIPS 180-2 appendix B.1.
        assert_eq!(
            TokenDigest::of("abc").to_hex(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
}
