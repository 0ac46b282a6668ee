//! Who is who: a local certificate authority, sandbox tokens, and opaque tokens for SSH sessions.
//!
//! - [`pki`]: a certificate authority of one gateway, kept in a directory: the server's certificate, certificates
//!   that make a user, and the transport certificate of sandboxes, which never makes one.
//! - [`token`]: Ed25519 tokens that say "this is sandbox X", as OpenShell peers expect them.
//! - [`opaque`]: random tokens that are only ever stored as a digest.
//! - [`secret`]: the type that all of them keep their secrets in.
//!
//! No clock and no network: every call takes `now`.

#![deny(missing_docs)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod files;
pub mod opaque;
pub mod pki;
pub mod secret;
pub mod token;

pub use self::{
    opaque::{OpaqueToken, TokenDigest},
    pki::{IssuedCertificate, LocalAuthority, PkiError},
    secret::Secret,
    token::{Claims, KeyError, SandboxTokenIssuer, SandboxTokenVerifier, SigningKey, TokenError},
};
