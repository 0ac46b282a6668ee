//! Users by their client certificate.
//!
//! The TLS layer has verified the chain against the client CA; this decides what the names in it mean. A certificate
//! makes a user only if one of its organizational units is a role of ours. The transport certificate that every
//! sandbox holds never does, whatever else it claims: a sandbox that drops its token is nobody.

use std::future::{Ready, ready};

use http::request::Parts;
use postern_layers::authenticate::{Authenticate, Outcome};

use super::{
    ADMIN_ROLE, ALL_SCOPES, IdentityProvider, Principal, SANDBOX_TRANSPORT_OU, USER_ROLE, User,
};
use crate::listen::{ConnectInfo, PeerCertificate};

/// Judges the certificate of the connection.
#[derive(Clone, Copy, Debug, Default)]
pub struct ClientCertificate;

impl Authenticate<Principal> for ClientCertificate {
    type Future = Ready<Outcome<Principal>>;

    fn authenticate(&self, head: &Parts) -> Self::Future {
        let certificate = presented(head);
        ready(match certificate.map(user) {
            None => Outcome::NotMine,
            Some(Ok(user)) => Outcome::Principal(Principal::User(user)),
            // Final: a certificate without a role does not become a local developer either.
            Some(Err(reason)) => Outcome::Rejected(reason.into()),
        })
    }
}

/// The verified certificate of the connection that a request came in by.
fn presented(head: &Parts) -> Option<&PeerCertificate> {
    head.extensions.get::<ConnectInfo>()?.tls.as_ref()
}

fn user(certificate: &PeerCertificate) -> Result<User, &'static str> {
    let units = &certificate.organizational_units;
    if units.iter().any(|unit| unit == SANDBOX_TRANSPORT_OU) {
        return Err("the certificate is the transport certificate of a sandbox");
    }
    if !units.iter().any(|unit| unit == USER_ROLE || unit == ADMIN_ROLE) {
        return Err("the certificate has no organizational unit that is a role");
    }
    if certificate.common_name.is_empty() {
        return Err("the certificate has no common name");
    }
    Ok(User {
        subject: certificate.common_name.clone(),
        display_name: certificate.common_name.clone(),
        roles: units.clone(),
        scopes: vec![ALL_SCOPES.to_owned()],
        provider: IdentityProvider::Mtls,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(name: &str, units: &[&str]) -> PeerCertificate {
        PeerCertificate {
            common_name: name.to_owned(),
            organizational_units: units.iter().map(|unit| (*unit).to_owned()).collect(),
            sha256: [0; 32],
        }
    }

    #[test]
    fn roles_come_from_the_units() {
        let ada = user(&certificate("ada", &[USER_ROLE, ADMIN_ROLE])).unwrap();
        assert!(ada.is_admin());
        assert_eq!((ada.subject.as_str(), ada.provider), ("ada", IdentityProvider::Mtls));
        assert!(!user(&certificate("bob", &[USER_ROLE])).unwrap().is_admin());
    }

    #[test]
    fn a_sandbox_certificate_never_makes_a_user() {
        for units in [
            &[SANDBOX_TRANSPORT_OU][..],
            &[SANDBOX_TRANSPORT_OU, USER_ROLE],
            &[ADMIN_ROLE, SANDBOX_TRANSPORT_OU],
            &[],
            &["engineering"],
        ] {
            assert!(user(&certificate("box", units)).is_err(), "{units:?}");
        }
        assert!(user(&certificate("", &[USER_ROLE])).is_err());
    }
}
