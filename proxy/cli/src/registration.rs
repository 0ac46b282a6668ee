//! Gateways that this user knows, on disk.
//!
//! The layout is that of existing OpenShell clients, so that they find a gateway that Postern
//! registered and the other way round:
//!
//! ```text
//! $XDG_CONFIG_HOME/openshell/active_gateway             name of the active one
//! $XDG_CONFIG_HOME/openshell/gateways/NAME/metadata.json
//! $XDG_CONFIG_HOME/openshell/gateways/NAME/mtls/{ca.crt,tls.crt,tls.key}
//! ```

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// What `metadata.json` holds; fields that this version does not know are kept.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Metadata {
    /// Name of the registration.
    #[serde(default)]
    pub name: String,
    /// URL, `https://host:port` or `http://host:port`.
    pub gateway_endpoint: String,
    /// `mtls`, `none`, or what another client wrote, such as `oidc`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_mode: Option<String>,
    /// Everything else.
    #[serde(flatten)]
    pub other: serde_json::Map<String, serde_json::Value>,
}

/// Certificates for mutual TLS, PEM.
#[derive(Clone)]
pub struct MutualTls {
    /// Certificate authority of the gateway.
    pub ca: Vec<u8>,
    /// Certificate chain of the user.
    pub certificate: Vec<u8>,
    /// Private key of the user.
    pub key: Vec<u8>,
}

impl std::fmt::Debug for MutualTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MutualTls([masked])")
    }
}

/// Why a registration could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistrationError {
    /// Neither `XDG_CONFIG_HOME` nor `HOME` is set.
    #[error("cannot tell where settings live: set XDG_CONFIG_HOME or HOME")]
    NoHome,
    /// No gateway is active.
    #[error(
        "no gateway is active; start one with `postern up`, or register one with `postern gateway add URL`"
    )]
    NoActive,
    /// There is no such registration.
    #[error("no gateway named {name:?} is registered; see `postern gateway list`")]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The name cannot be a folder name.
    #[error("{name:?} cannot name a gateway: use letters, digits, '.', '_' and '-', at most 63")]
    BadName {
        /// What was asked for.
        name: String,
    },
    /// The file system refused.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// `metadata.json` cannot be read.
    #[error("{path} is not a gateway registration")]
    Malformed {
        /// File.
        path: PathBuf,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
}

/// The folder that holds every registration.
#[derive(Clone, Debug)]
pub struct Registrations {
    root: PathBuf,
}

/// Files of mutual TLS in a registration's `mtls` folder.
const MTLS_FILES: [&str; 3] = ["ca.crt", "tls.crt", "tls.key"];

impl Registrations {
    /// Under `$XDG_CONFIG_HOME/openshell`, or `~/.config/openshell`.
    ///
    /// # Errors
    /// [`RegistrationError::NoHome`].
    pub fn from_environment() -> Result<Self, RegistrationError> {
        let config = std::env::var_os("XDG_CONFIG_HOME")
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
            .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".config")))
            .ok_or(RegistrationError::NoHome)?;
        Ok(Self::at(config.join("openshell")))
    }

    /// Under a folder of the caller's choice.
    #[must_use]
    pub fn at(root: PathBuf) -> Self {
        Self { root }
    }

    /// Folder of one registration, whether it exists or not.
    #[must_use]
    pub fn folder(&self, name: &str) -> PathBuf {
        self.root.join("gateways").join(name)
    }

    /// Name of the active gateway.
    ///
    /// # Errors
    /// [`RegistrationError::NoActive`] when there is none, or an IO error.
    pub fn active(&self) -> Result<String, RegistrationError> {
        let path = self.root.join("active_gateway");
        match fs::read_to_string(&path) {
            Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_owned()),
            Ok(_) => Err(RegistrationError::NoActive),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Err(RegistrationError::NoActive)
            }
            Err(source) => Err(RegistrationError::Io { action: "read", path, source }),
        }
    }

    /// Makes a registered gateway the active one.
    ///
    /// # Errors
    /// When there is no such registration, or on IO.
    pub fn select(&self, name: &str) -> Result<(), RegistrationError> {
        self.load(name)?;
        write_private(&self.root.join("active_gateway"), name.as_bytes())
    }

    /// One registration.
    ///
    /// # Errors
    /// When there is no such registration, or it cannot be read.
    pub fn load(&self, name: &str) -> Result<Metadata, RegistrationError> {
        check_name(name)?;
        let path = self.folder(name).join("metadata.json");
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(RegistrationError::Unknown { name: name.to_owned() });
            }
            Err(source) => return Err(RegistrationError::Io { action: "read", path, source }),
        };
        let mut metadata: Metadata = serde_json::from_slice(&bytes)
            .map_err(|source| RegistrationError::Malformed { path, source })?;
        name.clone_into(&mut metadata.name);
        Ok(metadata)
    }

    /// Certificates of a registration: whatever of the three files exists, all or the authority.
    ///
    /// # Errors
    /// When a file exists and cannot be read.
    pub fn mutual_tls(
        &self,
        name: &str,
    ) -> Result<(Option<Vec<u8>>, Option<MutualTls>), RegistrationError> {
        let folder = self.folder(name).join("mtls");
        let mut found = Vec::with_capacity(MTLS_FILES.len());
        for file in MTLS_FILES {
            let path = folder.join(file);
            match fs::read(&path) {
                Ok(bytes) => found.push(Some(bytes)),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => found.push(None),
                Err(source) => return Err(RegistrationError::Io { action: "read", path, source }),
            }
        }
        let key = found.pop().flatten();
        let certificate = found.pop().flatten();
        let ca = found.pop().flatten();
        let full = match (&ca, certificate, key) {
            (Some(ca), Some(certificate), Some(key)) => {
                Some(MutualTls { ca: ca.clone(), certificate, key })
            }
            _ => None,
        };
        Ok((ca, full))
    }

    /// Writes a registration, with its certificates if it has any, and replaces one of that name.
    ///
    /// # Errors
    /// When the name cannot be a folder name, or on IO.
    pub fn save(
        &self,
        metadata: &Metadata,
        tls: Option<&MutualTls>,
    ) -> Result<(), RegistrationError> {
        check_name(&metadata.name)?;
        let folder = self.folder(&metadata.name);
        make_private_folder(&folder)?;
        if let Some(tls) = tls {
            let mtls = folder.join("mtls");
            make_private_folder(&mtls)?;
            for (file, bytes) in MTLS_FILES.iter().zip([&tls.ca, &tls.certificate, &tls.key]) {
                write_private(&mtls.join(file), bytes)?;
            }
        }
        let path = folder.join("metadata.json");
        let text = serde_json::to_vec_pretty(metadata)
            .map_err(|source| RegistrationError::Malformed { path: path.clone(), source })?;
        write_private(&path, &text)
    }

    /// Every registration, by name.
    ///
    /// # Errors
    /// When the folder cannot be read; registrations that cannot be read are left out.
    pub fn list(&self) -> Result<Vec<Metadata>, RegistrationError> {
        let path = self.root.join("gateways");
        let entries = match fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(RegistrationError::Io { action: "read", path, source }),
        };
        let mut found: Vec<Metadata> = entries
            .filter_map(Result::ok)
            .filter_map(|entry| self.load(entry.file_name().to_str()?).ok())
            .collect();
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(found)
    }

    /// Forgets a registration, and that it was active.
    ///
    /// # Errors
    /// When there is no such registration, or on IO.
    pub fn remove(&self, name: &str) -> Result<(), RegistrationError> {
        self.load(name)?;
        let path = self.folder(name);
        fs::remove_dir_all(&path).map_err(|source| RegistrationError::Io {
            action: "remove",
            path,
            source,
        })?;
        if self.active().is_ok_and(|active| active == name) {
            let path = self.root.join("active_gateway");
            fs::remove_file(&path).map_err(|source| RegistrationError::Io {
                action: "remove",
                path,
                source,
            })?;
        }
        Ok(())
    }
}

fn check_name(name: &str) -> Result<(), RegistrationError> {
    let fits = !name.is_empty()
        && name.len() <= 63
        && !name.starts_with('.')
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
    if fits { Ok(()) } else { Err(RegistrationError::BadName { name: name.to_owned() }) }
}

fn make_private_folder(path: &Path) -> Result<(), RegistrationError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| RegistrationError::Io { action: "create", path: path.to_owned(), source })
}

/// Replaces a file at once, so that a reader sees the old or the new one, readable by its owner only.
fn write_private(path: &Path, bytes: &[u8]) -> Result<(), RegistrationError> {
    let failed = |source| RegistrationError::Io { action: "write", path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        make_private_folder(parent)?;
    }
    let next = path.with_extension("next");
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&next)
        .map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&next, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn metadata(name: &str) -> Metadata {
        Metadata {
            name: name.into(),
            gateway_endpoint: "https://127.0.0.1:17670".into(),
            auth_mode: Some("mtls".into()),
            other: serde_json::Map::new(),
        }
    }

    #[test]
    fn a_registration_is_found_again_with_its_certificates_and_private_modes() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let registrations = Registrations::at(folder.path().join("openshell"));
        assert!(matches!(registrations.active(), Err(RegistrationError::NoActive)));
        let tls = MutualTls { ca: b"ca".into(), certificate: b"crt".into(), key: b"key".into() };
        registrations.save(&metadata("local"), Some(&tls)).expect("saves");
        registrations.select("local").expect("selects");
        assert_eq!(registrations.active().expect("is active"), "local");
        assert_eq!(registrations.load("local").expect("loads"), metadata("local"));
        let (ca, full) = registrations.mutual_tls("local").expect("reads");
        assert_eq!(ca.as_deref(), Some(b"ca".as_slice()));
        assert_eq!(full.expect("all three").key, b"key");
        let key = registrations.folder("local").join("mtls/tls.key");
        assert_eq!(fs::metadata(key).expect("exists").permissions().mode() & 0o777, 0o600);
        registrations.remove("local").expect("removes");
        assert!(matches!(registrations.active(), Err(RegistrationError::NoActive)));
        assert!(registrations.list().expect("lists").is_empty());
    }

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        let registrations = Registrations::at("/nonexistent".into());
        for name in ["", "..", "a/b", ".hidden", &"x".repeat(64)] {
            assert!(
                matches!(registrations.load(name), Err(RegistrationError::BadName { .. })),
                "{name:?} was taken"
            );
        }
    }

    #[test]
    fn what_another_client_wrote_survives() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let registrations = Registrations::at(folder.path().into());
        make_private_folder(&registrations.folder("other")).expect("makes");
        fs::write(
            registrations.folder("other").join("metadata.json"),
            br#"{"gateway_endpoint":"https://g:1","auth_mode":"oidc","oidc_issuer":"https://i"}"#,
        )
        .expect("writes");
        let loaded = registrations.load("other").expect("loads");
        registrations.save(&loaded, None).expect("saves");
        let again = registrations.load("other").expect("loads");
        assert_eq!(again.other["oidc_issuer"], "https://i");
    }
}
