//! The Ed25519 key that signs sandbox tokens, and the files it lives in.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use aws_lc_rs::{
    encoding::AsDer as _,
    signature::{Ed25519KeyPair, KeyPair as _},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};
use sha2::{Digest as _, Sha256};

use crate::files;

/// Most bytes of a key file that are read. PEM of an Ed25519 key has about 120.
const MAX_FILE: u64 = 64 * 1024;

/// A private key and its name.
pub struct SigningKey {
    pair: Ed25519KeyPair,
    public_key: [u8; 32],
    kid: String,
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// A file could not be read or written.
    #[error("cannot {action} the token key file {path}")]
    File {
        /// What was being done: "read", "write".
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{path} holds no {wanted}; write one there or remove the file to have a new key made")]
    NotAKey {
        /// Which file.
        path: PathBuf,
        /// What it should hold.
        wanted: &'static str,
    },
    /// Others may read the private key.
    #[error("{path} is open to other users; run: chmod 600 {path}")]
    TooOpen {
        /// Which file.
        path: PathBuf,
    },
    /// The crypto library made no key.
    #[error("no key could be generated")]
    NotGenerated,
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").field("kid", &self.kid).finish_non_exhaustive()
    }
}

impl SigningKey {
    /// A fresh key, named by its thumbprint (RFC 7638).
    ///
    /// # Errors
    /// [`KeyError::NotGenerated`].
    pub fn generate() -> Result<Self, KeyError> {
        Ok(Self::of(Ed25519KeyPair::generate().map_err(|_| KeyError::NotGenerated)?, None))
    }

    /// The key at `signing_key` (PKCS#8 PEM), named by the content of `kid` if given, else by its thumbprint.
    ///
    /// # Errors
    /// [`KeyError`] when a file cannot be read or is not what it should be.
    pub fn load(signing_key: &Path, kid: Option<&Path>) -> Result<Self, KeyError> {
        let pair = read_pair(signing_key)?;
        let kid = match kid {
            None => None,
            Some(path) => {
                let kid = read(path)?.trim().to_owned();
                if kid.is_empty() || kid.len() > 256 || kid.chars().any(char::is_control) {
                    return Err(KeyError::NotAKey {
                        path: path.to_owned(),
                        wanted: "key id of 1 to 256 characters",
                    });
                }
                Some(kid)
            }
        };
        Ok(Self::of(pair, kid))
    }

    fn of(pair: Ed25519KeyPair, kid: Option<String>) -> Self {
        let mut public_key = [0; 32];
        public_key.copy_from_slice(pair.public_key().as_ref());
        Self { kid: kid.unwrap_or_else(|| thumbprint(&public_key)), pair, public_key }
    }

    /// The name of the key in token headers.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The 32 bytes of the public key.
    #[must_use]
    pub fn public_key(&self) -> [u8; 32] {
        self.public_key
    }

    pub(super) fn sign(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

/// See [`super::open_or_create_key`].
pub(super) fn open_or_create(directory: &Path) -> Result<SigningKey, KeyError> {
    let file = |action, path: &Path| {
        let path = path.to_owned();
        move |source| KeyError::File { action, path, source }
    };
    files::private_directory(directory).map_err(file("make", directory))?;
    let _alone = files::lock(directory).map_err(file("lock", directory))?;
    let (signing, public, kid) =
        (directory.join("signing.pem"), directory.join("public.pem"), directory.join("kid"));
    if signing.exists() {
        return SigningKey::load(&signing, kid.exists().then_some(&*kid));
    }
    let key = SigningKey::generate()?;
    let private = key.pair.to_pkcs8v1().map_err(|_| KeyError::NotGenerated)?;
    let public_der = key.pair.public_key().as_der().map_err(|_| KeyError::NotGenerated)?;
    files::write_private(&public, pem("PUBLIC KEY", public_der.as_ref()).as_bytes())
        .map_err(file("write", &public))?;
    files::write_private(&kid, key.kid.as_bytes()).map_err(file("write", &kid))?;
    // Last: its presence says that all three are there.
    files::write_private(&signing, pem("PRIVATE KEY", private.as_ref()).as_bytes())
        .map_err(file("write", &signing))?;
    Ok(key)
}

fn read_pair(path: &Path) -> Result<Ed25519KeyPair, KeyError> {
    let not_a_key =
        || KeyError::NotAKey { path: path.to_owned(), wanted: "Ed25519 private key in PKCS#8 PEM" };
    let text = crate::Secret::new(read(path)?);
    let open = files::open_to_others(path);
    if open.map_err(|source| KeyError::File { action: "read", path: path.to_owned(), source })? {
        return Err(KeyError::TooOpen { path: path.to_owned() });
    }
    let der =
        PrivatePkcs8KeyDer::from_pem_slice(text.expose().as_bytes()).map_err(|_| not_a_key())?;
    // Tools write the form without the public key (RFC 5208), we accept both.
    Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der()).map_err(|_| not_a_key())
}

fn read(path: &Path) -> Result<String, KeyError> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE).read_to_string(&mut text))
        .map_err(|source| KeyError::File { action: "read", path: path.to_owned(), source })?;
    Ok(text)
}

/// RFC 7638 section 3, with the members that RFC 8037 section 2 requires for `OKP`.
fn thumbprint(public_key: &[u8; 32]) -> String {
    let x = URL_SAFE_NO_PAD.encode(public_key);
    URL_SAFE_NO_PAD.encode(Sha256::digest(format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{x}"}}"#)))
}

/// RFC 7468.
fn pem(label: &str, der: &[u8]) -> String {
    let body = base64::engine::general_purpose::STANDARD.encode(der);
    let mut text = format!("-----BEGIN {label}-----\n");
    for line in body.as_bytes().chunks(64) {
        text.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
        text.push('\n');
    }
    text + &format!("-----END {label}-----\n")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_thumbprint_is_that_of_rfc_8037() {
        // Appendix A.2 and A.3: public key and its thumbprint.
        let mut key = [0; 32];
        URL_SAFE_NO_PAD
            .decode_slice("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo", &mut key)
            .unwrap();
        assert_eq!(thumbprint(&key), "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }

    #[test]
    fn a_key_is_made_once_and_found_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("jwt");
        let (one, two) = (open_or_create(&path).unwrap(), open_or_create(&path).unwrap());
        assert_eq!((one.kid(), one.public_key()), (two.kid(), two.public_key()));
        for name in ["signing.pem", "public.pem", "kid"] {
            let mode = std::fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777;
            assert_eq!(mode, 0o600, "{name}");
        }
    }

    #[test]
    fn bad_key_files_are_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("signing.pem");
        assert!(matches!(
            SigningKey::load(&path, None),
            Err(KeyError::File { action: "read", .. })
        ));
        files::write_private(&path, b"not a key").unwrap();
        assert!(matches!(SigningKey::load(&path, None), Err(KeyError::NotAKey { .. })));
        open_or_create(&directory.path().join("jwt")).unwrap();
        let good = directory.path().join("jwt/signing.pem");
        std::fs::set_permissions(&good, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(SigningKey::load(&good, None), Err(KeyError::TooOpen { .. })));
    }
}
