//! Authentication, class 3002: who logged in, and who tried.

use serde::ser::SerializeMap;

use super::common::{Common, common_setters, status_setters};
use super::event::{Activity, Class};
use super::object::{Certificate, Endpoint, HttpRequest, Service, Session, User, value_setters};
use super::short::Line;
use super::vocabulary::{put, put_numbered, vocabulary};

vocabulary! {
    /// What became of a login.
    LogonActivity {
        /// Somebody logged in, or tried.
        Logon = 1, "Logon";
        /// Somebody logged out, or was logged out.
        Logoff = 2, "Logoff";
        /// A credential was issued.
        Ticket = 3, "Authentication Ticket";
        /// A credential was renewed.
        Renew = 5, "Service Ticket Renew";
        /// Something else; the message says what.
        Other = 99, "Other";
    }
}

vocabulary! {
    /// By which protocol (`auth_protocol_id`). The ones the schema has no number for are "Other" with their name.
    AuthProtocol {
        /// OpenID Connect.
        OpenId = 4, "OpenID";
        /// OAuth 2.0 bearer token (RFC 6750).
        OAuth = 6, "OAUTH 2.0";
        /// Basic authentication (RFC 7617).
        Basic = 11, "Basic Authentication";
        /// A TLS client certificate.
        MutualTls = 99, "mTLS";
    }
}

/// An event of class 3002.
#[derive(Clone, Debug, PartialEq)]
pub struct Authentication {
    activity: LogonActivity,
    user: User,
    service: Service,
    src: Option<Endpoint>,
    dst: Option<Endpoint>,
    session: Option<Session>,
    protocol: Option<AuthProtocol>,
    certificate: Option<Certificate>,
    request: Option<HttpRequest>,
    common: Common,
}

impl Authentication {
    /// `user` did something about being logged in to `service` at `time`, in milliseconds since 1970.
    #[must_use]
    pub fn new(activity: LogonActivity, user: User, service: Service, time: i64) -> Self {
        Self {
            activity,
            user,
            service,
            src: None,
            dst: None,
            session: None,
            protocol: None,
            certificate: None,
            request: None,
            common: Common::new(time),
        }
    }

    value_setters! {
        /// Where the login came from.
        src: Endpoint;
        /// Where it went.
        dst: Endpoint;
        /// The session that was begun or ended.
        session: Session;
        /// By which protocol.
        protocol: AuthProtocol;
        /// The certificate that was presented.
        certificate: Certificate;
        /// The request that carried the credential; never the credential.
        request: HttpRequest;
    }

    common_setters!();
    status_setters!();
}

impl Class for Authentication {
    const UID: u32 = 3002;
    const NAME: &'static str = "Authentication";
    const CATEGORY: (u8, &'static str) = (3, "Identity & Access Management");

    fn activity(&self) -> Activity<'_> {
        Activity::known(self.activity.id(), self.activity.label())
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn put_own<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        map.serialize_entry("user", &self.user)?;
        map.serialize_entry("service", &self.service)?;
        put(map, "src_endpoint", self.src.as_ref())?;
        put(map, "dst_endpoint", self.dst.as_ref())?;
        put(map, "session", self.session.as_ref())?;
        let protocol = self.protocol.map(|protocol| (protocol.id(), protocol.label()));
        put_numbered(map, "auth_protocol_id", "auth_protocol", protocol)?;
        put(map, "certificate", self.certificate.as_ref())?;
        put(map, "http_request", self.request.as_ref())
    }

    fn short(&self, line: &mut Line<'_>) {
        line.head("AUTH", self.activity.label());
        line.verdict();
        line.status();
        line.word(self.user.shown());
        if let Some(src) = &self.src {
            line.fixed("from");
            line.endpoint(src);
        }
        if let Some(protocol) = self.protocol {
            line.bracket(&[("auth", protocol.label())]);
        }
        line.context();
    }
}
