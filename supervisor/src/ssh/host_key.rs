//! The server's host key: Ed25519, kept where the sandbox's state is, so that its fingerprint stays.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, HashAlg, PrivateKey};

use super::SshError;

/// File name of the key below the sandbox's `run/` directory.
pub const FILE_NAME: &str = "ssh_host_ed25519_key";

/// The key kept at `path`, made on first use; without a path, one that lives as long as the process.
///
/// # Errors
/// When the file is not a key, or cannot be read or written.
pub fn load_or_create(path: Option<&Path>) -> Result<PrivateKey, SshError> {
    let Some(path) = path else {
        return create()
            .map_err(|source| SshError::HostKey { path: "in memory".to_owned(), source });
    };
    stored(path).map_err(|source| SshError::HostKey { path: path.display().to_string(), source })
}

/// The key's fingerprint in OpenSSH's form: `SHA256:` and unpadded base64.
#[must_use]
pub fn fingerprint(key: &PrivateKey) -> String {
    key.fingerprint(HashAlg::Sha256).to_string()
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

fn create() -> Result<PrivateKey, BoxError> {
    Ok(PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519)?)
}

fn stored(path: &Path) -> Result<PrivateKey, BoxError> {
    match fs::read(path) {
        Ok(text) => Ok(PrivateKey::from_openssh(text)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = create()?;
            // A crash between writing and renaming leaves no half key behind.
            let staged = path.with_extension("new");
            let mut file = fs::File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&staged)?;
            file.write_all(key.to_openssh(LineEnding::LF)?.as_bytes())?;
            file.sync_all()?;
            fs::rename(&staged, path)?;
            Ok(key)
        }
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn the_key_is_made_once_and_private() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE_NAME);
        let first = load_or_create(Some(&path)).unwrap();
        let second = load_or_create(Some(&path)).unwrap();
        assert_eq!(fingerprint(&first), fingerprint(&second));
        assert!(fingerprint(&first).starts_with("SHA256:"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_ne!(fingerprint(&load_or_create(None).unwrap()), fingerprint(&first));
    }

    #[test]
    fn a_file_that_is_no_key_is_refused_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(FILE_NAME);
        fs::write(&path, "not a key").unwrap();
        assert!(load_or_create(Some(&path)).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"not a key");
    }
}
