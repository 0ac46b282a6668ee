//! Reads back what a certificate says.

use std::{
    net::IpAddr,
    time::{Duration, SystemTime},
};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use x509_parser::{extensions::GeneralName, prelude::*};

/// What the authority compares of a certificate.
pub(super) struct Inspected {
    pub(super) is_authority: bool,
    pub(super) common_name: Option<String>,
    pub(super) units: Vec<String>,
    pub(super) public_key: Vec<u8>,
    pub(super) not_after: SystemTime,
    names: Vec<String>,
    signed: Vec<u8>,
    signature: Vec<u8>,
}

impl Inspected {
    /// `None` if `der` is no certificate.
    pub(super) fn of(der: &[u8]) -> Option<Self> {
        let (_, certificate) = X509Certificate::from_der(der).ok()?;
        let text =
            |attribute: &AttributeTypeAndValue<'_>| attribute.as_str().ok().map(str::to_owned);
        let not_after = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
        let names = match certificate.subject_alternative_name().ok()? {
            Some(extension) => extension.value.general_names.iter().filter_map(shown).collect(),
            None => Vec::new(),
        };
        Some(Self {
            is_authority: certificate.is_ca(),
            common_name: certificate.subject().iter_common_name().next().and_then(text),
            units: certificate.subject().iter_organizational_unit().filter_map(text).collect(),
            public_key: certificate.public_key().subject_public_key.data.to_vec(),
            not_after: SystemTime::UNIX_EPOCH + Duration::from_secs(not_after),
            names,
            signed: certificate.tbs_certificate.as_ref().to_vec(),
            signature: certificate.signature_value.data.to_vec(),
        })
    }

    /// Whether the owner of this P-256 key signed it.
    pub(super) fn signed_by(&self, public_key: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, public_key)
            .verify(&self.signed, &self.signature)
            .is_ok()
    }

    /// Whether it is for exactly these names, in any order.
    pub(super) fn covers(&self, names: &[String]) -> bool {
        let normal = |name: &String| {
            let bare = name.trim_start_matches('[').trim_end_matches(']');
            bare.parse::<IpAddr>().map_or_else(|_| bare.to_owned(), |address| address.to_string())
        };
        let mut wanted: Vec<String> = names.iter().map(normal).collect();
        let mut there = self.names.clone();
        wanted.sort_unstable();
        wanted.dedup();
        there.sort_unstable();
        there.dedup();
        wanted == there
    }
}

fn shown(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(octets) => match *octets {
            [a, b, c, d] => Some(IpAddr::from([*a, *b, *c, *d]).to_string()),
            octets => {
                <[u8; 16]>::try_from(octets).ok().map(|octets| IpAddr::from(octets).to_string())
            }
        },
        _ => None,
    }
}
