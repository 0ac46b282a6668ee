//! The certificate authority of one gateway, in a directory.
//!
//! ```text
//! ca.crt ca.key                       the authority itself
//! server.crt server.key               what the listener shows
//! client/{ca.crt,tls.crt,tls.key}     makes the local user; a client's mTLS directory as it stands
//! sandbox/{ca.crt,tls.crt,tls.key}    the transport of sandboxes; never makes a user
//! ```
//!
//! All keys are ECDSA P-256, all files mode 0600. A certificate is made anew when it is missing, near its end, for
//! other names, or not from this authority; otherwise the files stay as they are. Half an authority (a certificate
//! without its key) is an error: replacing it silently would lock out every client.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls_pki_types::{CertificateDer, pem::PemObject as _};
use time::OffsetDateTime;

use self::inspect::Inspected;
use crate::{Secret, files};

mod inspect;

/// The OU of a certificate that makes an ordinary user (OpenShell contract).
pub const OU_USER: &str = "openshell-user";

/// The OU of a certificate that makes an administrator (OpenShell contract).
pub const OU_ADMIN: &str = "openshell-admin";

/// The OU of the certificate that sandboxes connect with. It opens the connection and makes nobody.
pub const OU_SANDBOX: &str = "openshell-sandbox";

/// How long the authority is good. Its end locks everybody out, so it is far away.
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 86_400);

/// How long the other certificates are good. Below the 398 days that strict clients accept.
const LEAF_LIFE: Duration = Duration::from_secs(365 * 86_400);

/// A certificate this near its end is made anew.
const RENEW_BEFORE: Duration = Duration::from_secs(30 * 86_400);

/// Certificates start this much in the past, for peers whose clock is behind.
const BACKDATED: Duration = Duration::from_secs(3600);

/// Object identifier of the organizational unit (X.520 `id-at-organizationalUnitName`).
const OID_OU: [u64; 4] = [2, 5, 4, 11];

/// Why the authority cannot do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("cannot {action} {path}")]
    File {
        /// What was being done.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Only half of the authority is there.
    #[error(
        "{missing} is missing beside {present}; restore it, or remove both to start with a new authority"
    )]
    HalfAuthority {
        /// The file that is there.
        present: PathBuf,
        /// The file that is not.
        missing: PathBuf,
    },
    /// A file of the authority is not what it should be.
    #[error(
        "{path} does not fit: {reason}; restore it, or remove the directory to start with a new authority"
    )]
    BadAuthority {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A private key can be read by others.
    #[error("{path} is open to other users; run: chmod 600 {path}")]
    TooOpen {
        /// Which file.
        path: PathBuf,
    },
    /// A name cannot stand in a certificate.
    #[error("{name:?} cannot stand in a certificate: {reason}")]
    BadName {
        /// The name.
        name: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The certificate could not be made.
    #[error("no certificate could be made")]
    NotMade {
        /// Why not.
        #[source]
        source: rcgen::Error,
    },
}

/// A certificate and its key, as files.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct IssuedCertificate {
    /// PEM file of the certificate.
    pub certificate: PathBuf,
    /// PEM file of the private key.
    pub key: PathBuf,
    /// When it stops being good.
    pub not_after: SystemTime,
    /// Whether this call made it; `false`: it was there and is good.
    pub made: bool,
}

/// A certificate and its key, in memory.
#[derive(Debug)]
#[non_exhaustive]
pub struct CertificatePem {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: Secret<String>,
}

/// The certificate authority of one gateway.
pub struct LocalAuthority {
    directory: PathBuf,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
    not_after: SystemTime,
    /// What signatures of this authority are checked with.
    public_key: Vec<u8>,
}

impl std::fmt::Debug for LocalAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LocalAuthority").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// What a certificate is for.
struct Purpose<'p> {
    common_name: &'p str,
    units: &'p [&'p str],
    names: &'p [String],
    usage: ExtendedKeyUsagePurpose,
}

impl LocalAuthority {
    /// Opens the authority in `directory`, or makes one there. Safe to call from several processes at once.
    ///
    /// # Errors
    /// [`PkiError`]; an authority that is there and does not fit is never replaced.
    pub fn open_or_create(directory: &Path, now: SystemTime) -> Result<Self, PkiError> {
        files::private_directory(directory).map_err(|e| file("make", directory, e))?;
        let _alone = files::lock(directory).map_err(|e| file("lock", directory, e))?;
        let (certificate, key) = (directory.join("ca.crt"), directory.join("ca.key"));
        match (certificate.exists(), key.exists()) {
            (true, true) => {}
            (false, false) => create(&certificate, &key, now)?,
            (true, false) => {
                return Err(PkiError::HalfAuthority { present: certificate, missing: key });
            }
            (false, true) => {
                return Err(PkiError::HalfAuthority { present: key, missing: certificate });
            }
        }
        Self::open(directory.to_owned(), &certificate, &key, now)
    }

    fn open(
        directory: PathBuf,
        certificate: &Path,
        key: &Path,
        now: SystemTime,
    ) -> Result<Self, PkiError> {
        let bad = |path: &Path, reason| PkiError::BadAuthority { path: path.to_owned(), reason };
        if files::open_to_others(key).map_err(|e| file("read", key, e))? {
            return Err(PkiError::TooOpen { path: key.to_owned() });
        }
        let certificate_pem =
            fs::read_to_string(certificate).map_err(|e| file("read", certificate, e))?;
        let key_pem = Secret::new(fs::read_to_string(key).map_err(|e| file("read", key, e))?);
        let der = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|_| bad(certificate, "it holds no PEM certificate"))?;
        let pair = KeyPair::from_pem_and_sign_algo(key_pem.expose(), &PKCS_ECDSA_P256_SHA256)
            .map_err(|_| bad(key, "it holds no ECDSA P-256 key"))?;
        let inspected =
            Inspected::of(&der).ok_or_else(|| bad(certificate, "it holds no certificate"))?;
        if !inspected.is_authority {
            return Err(bad(certificate, "it is no certificate authority"));
        }
        if inspected.public_key != pair.public_key_raw() {
            return Err(bad(key, "it is not the key of ca.crt"));
        }
        if inspected.not_after <= now {
            return Err(bad(certificate, "it has expired"));
        }
        let public_key = inspected.public_key;
        let not_after = inspected.not_after;
        // Subject and key identifier, all that goes into what it signs, do not depend on the time.
        let issuer = Issuer::new(authority_params(now), pair);
        Ok(Self { directory, certificate_pem, issuer, not_after, public_key })
    }

    /// PEM file of the authority's certificate, which clients trust.
    #[must_use]
    pub fn certificate_path(&self) -> PathBuf {
        self.directory.join("ca.crt")
    }

    /// The authority's certificate, PEM.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// When the authority stops being good.
    #[must_use]
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The certificate of the listener, for these DNS names and IP addresses.
    ///
    /// # Errors
    /// [`PkiError`], above all [`PkiError::BadName`].
    pub fn server(&self, names: &[String], now: SystemTime) -> Result<IssuedCertificate, PkiError> {
        let usage = ExtendedKeyUsagePurpose::ServerAuth;
        let purpose = Purpose { common_name: "postern gateway", units: &[], names, usage };
        self.ensure(
            self.directory.join("server.crt"),
            self.directory.join("server.key"),
            &purpose,
            now,
        )
    }

    /// The certificate of the local user, with the roles [`OU_USER`] and [`OU_ADMIN`], in `client/`.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn local_user(
        &self,
        common_name: &str,
        now: SystemTime,
    ) -> Result<IssuedCertificate, PkiError> {
        self.ensure_in("client", common_name, &[OU_USER, OU_ADMIN], now)
    }

    /// The transport certificate of sandboxes, in `sandbox/`.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn sandbox(&self, now: SystemTime) -> Result<IssuedCertificate, PkiError> {
        self.ensure_in("sandbox", "openshell sandbox", &[OU_SANDBOX], now)
    }

    /// A client certificate that is not kept here, for `postern certs`.
    ///
    /// # Errors
    /// [`PkiError::BadName`] for more than two units or an unfit name; [`PkiError::NotMade`].
    pub fn issue_user(
        &self,
        common_name: &str,
        units: &[&str],
        now: SystemTime,
    ) -> Result<CertificatePem, PkiError> {
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        self.issue(&Purpose { common_name, units, names: &[], usage }, now)
    }

    fn ensure_in(
        &self,
        folder: &str,
        common_name: &str,
        units: &[&str],
        now: SystemTime,
    ) -> Result<IssuedCertificate, PkiError> {
        let folder = self.directory.join(folder);
        files::private_directory(&folder).map_err(|e| file("make", &folder, e))?;
        let trust = folder.join("ca.crt");
        if fs::read_to_string(&trust).ok().as_deref() != Some(&self.certificate_pem) {
            files::write_private(&trust, self.certificate_pem.as_bytes())
                .map_err(|e| file("write", &trust, e))?;
        }
        let usage = ExtendedKeyUsagePurpose::ClientAuth;
        let purpose = Purpose { common_name, units, names: &[], usage };
        self.ensure(folder.join("tls.crt"), folder.join("tls.key"), &purpose, now)
    }

    /// Keeps the certificate that is there if it still fits, else makes a new one.
    fn ensure(
        &self,
        certificate: PathBuf,
        key: PathBuf,
        purpose: &Purpose<'_>,
        now: SystemTime,
    ) -> Result<IssuedCertificate, PkiError> {
        let _alone = files::lock(&self.directory).map_err(|e| file("lock", &self.directory, e))?;
        if let Some(not_after) = self.still_good(&certificate, &key, purpose, now) {
            return Ok(IssuedCertificate { certificate, key, not_after, made: false });
        }
        let pem = self.issue(purpose, now)?;
        // A crash between the two leaves a pair that does not fit, which the next start replaces.
        files::write_private(&key, pem.key.expose().as_bytes())
            .map_err(|e| file("write", &key, e))?;
        files::write_private(&certificate, pem.certificate.as_bytes())
            .map_err(|e| file("write", &certificate, e))?;
        Ok(IssuedCertificate { certificate, key, not_after: self.leaf_end(now), made: true })
    }

    /// When the pair on disk ends, if it fits and does not end soon.
    fn still_good(
        &self,
        certificate: &Path,
        key: &Path,
        purpose: &Purpose<'_>,
        now: SystemTime,
    ) -> Option<SystemTime> {
        let der = CertificateDer::from_pem_file(certificate).ok()?;
        let key_pem = Secret::new(fs::read_to_string(key).ok()?);
        let pair = KeyPair::from_pem(key_pem.expose()).ok()?;
        let inspected = Inspected::of(&der)?;
        let fits = inspected.public_key == pair.public_key_raw()
            && inspected.signed_by(&self.public_key)
            && inspected.common_name.as_deref() == Some(purpose.common_name)
            && inspected.units == purpose.units
            && inspected.covers(purpose.names)
            && !files::open_to_others(key).ok()?
            && inspected.not_after > now + RENEW_BEFORE;
        fits.then_some(inspected.not_after)
    }

    fn leaf_end(&self, now: SystemTime) -> SystemTime {
        // A certificate that outlives its authority would only fail later and less clearly.
        (now + LEAF_LIFE).min(self.not_after)
    }

    fn issue(&self, purpose: &Purpose<'_>, now: SystemTime) -> Result<CertificatePem, PkiError> {
        let mut params = CertificateParams::default();
        for name in purpose.names {
            params.subject_alt_names.extend(subject_alt_name(name)?);
        }
        params.distinguished_name = distinguished_name(purpose.common_name, purpose.units)?;
        params.not_before = date(now - BACKDATED);
        params.not_after = date(self.leaf_end(now));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![purpose.usage.clone()];
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(not_made)?;
        let certificate = params.signed_by(&pair, &self.issuer).map_err(not_made)?;
        Ok(CertificatePem {
            certificate: certificate.pem(),
            key: Secret::new(pair.serialize_pem()),
        })
    }
}

fn create(certificate: &Path, key: &Path, now: SystemTime) -> Result<(), PkiError> {
    let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(not_made)?;
    let made = authority_params(now).self_signed(&pair).map_err(not_made)?;
    let pem = Secret::new(pair.serialize_pem());
    files::write_private(key, pem.expose().as_bytes()).map_err(|e| file("write", key, e))?;
    files::write_private(certificate, made.pem().as_bytes())
        .map_err(|e| file("write", certificate, e))
}

/// Everything of the authority but its key. Subject and key identifier do not depend on `now`.
fn authority_params(now: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "openshell");
    params.distinguished_name.push(DnType::CommonName, "postern local authority");
    params.not_before = date(now - BACKDATED);
    params.not_after = date(now + AUTHORITY_LIFE);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// A DNS name or an IP address, also in the brackets of a URL.
fn subject_alt_name(name: &str) -> Result<Vec<rcgen::SanType>, PkiError> {
    let bare = name.strip_prefix('[').and_then(|n| n.strip_suffix(']')).unwrap_or(name);
    let bad = |reason| PkiError::BadName { name: name.to_owned(), reason };
    if bare.parse::<std::net::IpAddr>().is_err() {
        let label = |l: &str| {
            !l.is_empty() && l.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
        };
        let host = bare.strip_prefix("*.").unwrap_or(bare);
        if host.len() > 253 || !host.split('.').all(label) {
            return Err(bad("write a DNS name such as \"gateway.example\", or an IP address"));
        }
    }
    let params = CertificateParams::new(vec![bare.to_owned()]);
    Ok(params
        .map_err(|_| bad("write a DNS name such as \"gateway.example\", or an IP address"))?
        .subject_alt_names)
}

fn distinguished_name(common_name: &str, units: &[&str]) -> Result<DistinguishedName, PkiError> {
    // X.520 bounds both to 64 characters.
    for name in units.iter().chain([&common_name]) {
        if name.is_empty() || name.chars().count() > 64 || name.chars().any(char::is_control) {
            let reason = "write 1 to 64 printable characters";
            return Err(PkiError::BadName { name: (*name).to_owned(), reason });
        }
    }
    let mut subject = DistinguishedName::new();
    subject.push(DnType::OrganizationName, "openshell");
    // rcgen keeps one value per attribute *type*; the second unit goes in under the same identifier spelled out.
    for (index, unit) in units.iter().enumerate() {
        let attribute = match index {
            0 => DnType::OrganizationalUnitName,
            1 => DnType::CustomDnType(OID_OU.to_vec()),
            _ => {
                let reason = "a certificate has at most two organizational units";
                return Err(PkiError::BadName { name: (*unit).to_owned(), reason });
            }
        };
        subject.push(attribute, *unit);
    }
    subject.push(DnType::CommonName, common_name);
    Ok(subject)
}

fn date(time: SystemTime) -> OffsetDateTime {
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    OffsetDateTime::UNIX_EPOCH + Duration::from_secs(since_epoch.as_secs())
}

fn file(action: &'static str, path: &Path, source: io::Error) -> PkiError {
    PkiError::File { action, path: path.to_owned(), source }
}

fn not_made(source: rcgen::Error) -> PkiError {
    PkiError::NotMade { source }
}

#[cfg(test)]
mod tests;
