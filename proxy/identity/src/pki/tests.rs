use std::{os::unix::fs::PermissionsExt as _, sync::Arc};

use rustls::{
    ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection,
    pki_types::{PrivateKeyDer, ServerName, UnixTime},
    server::WebPkiClientVerifier,
    time_provider::TimeProvider,
};

use super::*;

const NOW: u64 = 1_760_000_000;
const DAY: u64 = 86_400;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|n| (*n).to_owned()).collect()
}

fn authority(directory: &Path) -> LocalAuthority {
    LocalAuthority::open_or_create(directory, at(NOW)).unwrap()
}

#[derive(Debug)]
struct FixedTime(u64);

impl TimeProvider for FixedTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(Duration::from_secs(self.0)))
    }
}

fn chain(issued: &IssuedCertificate) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    (
        vec![CertificateDer::from_pem_file(&issued.certificate).unwrap()],
        PrivateKeyDer::from_pem_file(&issued.key).unwrap(),
    )
}

/// Whether a client that trusts `trusted` and shows `client` gets through to `server` as `name` at `now`.
fn handshake(
    trusted: &LocalAuthority,
    client: &IssuedCertificate,
    server: &IssuedCertificate,
    name: &'static str,
    now: u64,
) -> Result<(), rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(trusted.certificate_pem().as_bytes()).unwrap())
        .unwrap();
    let roots = Arc::new(roots);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider.clone())
        .build()
        .expect("a verifier");
    let (certificates, key) = chain(server);
    let server = ServerConfig::builder_with_details(provider.clone(), Arc::new(FixedTime(now)))
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates, key)?;
    let (certificates, key) = chain(client);
    let client = ClientConfig::builder_with_details(provider, Arc::new(FixedTime(now)))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(certificates, key)?;
    let mut client = ClientConnection::new(Arc::new(client), ServerName::try_from(name).unwrap())?;
    let mut server = ServerConnection::new(Arc::new(server))?;
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut wire.as_slice()).unwrap();
        server.process_new_packets()?;
        let mut wire = Vec::new();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut wire.as_slice()).unwrap();
        client.process_new_packets()?;
    }
    Ok(())
}

#[test]
fn what_is_issued_makes_a_connection() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority(directory.path());
    let server = authority.server(&names(&["127.0.0.1", "::1", "localhost"]), at(NOW)).unwrap();
    let user = authority.local_user("ada", at(NOW)).unwrap();
    let sandbox = authority.sandbox(at(NOW)).unwrap();
    for name in ["127.0.0.1", "::1", "localhost"] {
        handshake(&authority, &user, &server, name, NOW).unwrap();
    }
    handshake(&authority, &sandbox, &server, "localhost", NOW).unwrap();
    handshake(&authority, &user, &server, "elsewhere", NOW).expect_err("another name");
    handshake(&authority, &user, &server, "localhost", NOW + 366 * DAY).expect_err("expired");
    handshake(&authority, &user, &server, "localhost", NOW - DAY).expect_err("not yet good");
    // A certificate is for one purpose: that of a server makes no client, and the other way round.
    handshake(&authority, &server, &server, "localhost", NOW).expect_err("a server is no client");
    let stranger = tempfile::tempdir().unwrap();
    let other = self::authority(stranger.path()).local_user("ada", at(NOW)).unwrap();
    handshake(&authority, &other, &server, "localhost", NOW).expect_err("another authority");
}

#[test]
fn a_reopened_authority_signs_what_the_first_one_signed() {
    let directory = tempfile::tempdir().unwrap();
    let server = authority(directory.path()).server(&names(&["localhost"]), at(NOW)).unwrap();
    let again = LocalAuthority::open_or_create(directory.path(), at(NOW + 100 * DAY)).unwrap();
    let user = again.local_user("ada", at(NOW + 100 * DAY)).unwrap();
    handshake(&again, &user, &server, "localhost", NOW + 100 * DAY).unwrap();
}

#[test]
fn subjects_say_who_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority(directory.path());
    let units = |issued: &IssuedCertificate| {
        let inspected =
            Inspected::of(&CertificateDer::from_pem_file(&issued.certificate).unwrap()).unwrap();
        (inspected.common_name.unwrap(), inspected.units)
    };
    assert_eq!(
        units(&authority.local_user("ada", at(NOW)).unwrap()),
        ("ada".into(), names(&[OU_USER, OU_ADMIN]))
    );
    let (_, sandbox) = units(&authority.sandbox(at(NOW)).unwrap());
    assert_eq!(sandbox, [OU_SANDBOX]);
    let pem = authority.issue_user("bob", &[OU_USER], at(NOW)).unwrap();
    let der = CertificateDer::from_pem_slice(pem.certificate.as_bytes()).unwrap();
    assert_eq!(Inspected::of(&der).unwrap().units, [OU_USER]);
    assert!(!format!("{pem:?}").contains("PRIVATE KEY"));
}

#[test]
fn certificates_are_kept_until_they_no_longer_fit() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority(directory.path());
    let server = |list: &[&str], now| authority.server(&names(list), at(now)).unwrap().made;
    assert!(server(&["localhost", "127.0.0.1"], NOW));
    assert!(!server(&["127.0.0.1", "localhost"], NOW + DAY), "the order does not matter");
    assert!(server(&["localhost"], NOW + DAY), "other names");
    assert!(!server(&["localhost"], NOW + 330 * DAY));
    assert!(server(&["localhost"], NOW + 340 * DAY), "near its end");
    // The key of another certificate, or none.
    fs::copy(directory.path().join("ca.key"), directory.path().join("server.key")).unwrap();
    assert!(server(&["localhost"], NOW + 340 * DAY));
    fs::remove_file(directory.path().join("server.key")).unwrap();
    assert!(server(&["localhost"], NOW + 340 * DAY));
    // From another authority.
    let stranger = tempfile::tempdir().unwrap();
    self::authority(stranger.path()).server(&names(&["localhost"]), at(NOW + 340 * DAY)).unwrap();
    for name in ["server.crt", "server.key"] {
        fs::copy(stranger.path().join(name), directory.path().join(name)).unwrap();
    }
    assert!(server(&["localhost"], NOW + 340 * DAY));
    assert!(!server(&["localhost"], NOW + 340 * DAY));
}

#[test]
fn files_are_private_and_a_client_directory_is_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("pki");
    let authority = authority(&path);
    authority.server(&names(&["localhost"]), at(NOW)).unwrap();
    authority.local_user("ada", at(NOW)).unwrap();
    for name in [
        "ca.crt",
        "ca.key",
        "server.crt",
        "server.key",
        "client/ca.crt",
        "client/tls.crt",
        "client/tls.key",
    ] {
        let mode = fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{name}");
    }
    assert_eq!(
        fs::read(path.join("ca.crt")).unwrap(),
        fs::read(path.join("client/ca.crt")).unwrap()
    );
}

#[test]
fn a_damaged_authority_is_never_replaced() {
    let directory = tempfile::tempdir().unwrap();
    authority(directory.path());
    let (certificate, key) = (directory.path().join("ca.crt"), directory.path().join("ca.key"));
    let open = |now| LocalAuthority::open_or_create(directory.path(), at(now));
    assert!(matches!(
        open(NOW + 11 * 365 * DAY),
        Err(PkiError::BadAuthority { reason: "it has expired", .. })
    ));

    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(open(NOW), Err(PkiError::TooOpen { .. })));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();

    let good = fs::read(&key).unwrap();
    let stranger = tempfile::tempdir().unwrap();
    authority(stranger.path());
    fs::copy(stranger.path().join("ca.key"), &key).unwrap();
    assert!(matches!(open(NOW), Err(PkiError::BadAuthority { .. })));
    fs::write(&key, "nothing").unwrap();
    assert!(matches!(open(NOW), Err(PkiError::BadAuthority { .. })));
    fs::remove_file(&key).unwrap();
    let half = open(NOW).expect_err("half an authority");
    assert!(matches!(&half, PkiError::HalfAuthority { missing, .. } if *missing == key), "{half}");
    fs::write(&key, good).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    assert!(open(NOW).is_ok());
    fs::remove_file(&certificate).unwrap();
    assert!(matches!(open(NOW), Err(PkiError::HalfAuthority { .. })));
}

#[test]
fn names_that_cannot_stand_in_a_certificate_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let authority = authority(directory.path());
    for name in ["", "a b", "ex ample.com", "a..b", "https://x", "h\u{e4}user.example", "x:1"] {
        let refused = authority.server(&names(&[name]), at(NOW));
        assert!(matches!(refused, Err(PkiError::BadName { .. })), "{name:?}: {refused:?}");
    }
    for common_name in ["", "a\nb", &"x".repeat(65)] {
        assert!(
            matches!(authority.local_user(common_name, at(NOW)), Err(PkiError::BadName { .. })),
            "{common_name:?}"
        );
    }
    assert!(matches!(
        authority.issue_user("a", &["1", "2", "3"], at(NOW)),
        Err(PkiError::BadName { .. })
    ));
    assert!(authority.server(&names(&["*.example.com", "[::1]"]), at(NOW)).is_ok());
}
