//! Whom this user trusts, and how this user proves who they are.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use crate::error::CliError;
use crate::registration::MutualTls;

/// An authority alone, or with the user's own certificate; neither for public gateways.
pub(crate) type Certificates = (Option<Vec<u8>>, Option<MutualTls>);

/// A TLS configuration for one gateway: its own authority if it has one, else those of the system.
pub(crate) fn client(
    name: &str,
    (ca, own): Certificates,
    insecure: bool,
) -> Result<ClientConfig, CliError> {
    let bad = |why: String| CliError::BadCertificates { name: name.to_owned(), why };
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| bad(error.to_string()))?;
    let builder = if insecure {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anyone { provider }))
    } else {
        builder.with_root_certificates(roots(ca.as_deref()).map_err(bad)?)
    };
    let Some(own) = own else {
        return Ok(builder.with_no_client_auth());
    };
    let chain = CertificateDer::pem_slice_iter(&own.certificate)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| bad(format!("tls.crt: {error}")))?;
    let key = PrivateKeyDer::from_pem_slice(&own.key)
        .map_err(|error| bad(format!("tls.key: {error}")))?;
    builder.with_client_auth_cert(chain, key).map_err(|error| bad(error.to_string()))
}

fn roots(ca: Option<&[u8]>) -> Result<RootCertStore, String> {
    let mut roots = RootCertStore::empty();
    match ca {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem) {
                let certificate = certificate.map_err(|error| format!("ca.crt: {error}"))?;
                roots.add(certificate).map_err(|error| format!("ca.crt: {error}"))?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if roots.is_empty() {
        return Err("no certificate authority was found".into());
    }
    Ok(roots)
}

/// Takes any certificate: what `--gateway-insecure` asks for.
#[derive(Debug)]
struct Anyone {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
