//! The OCSF objects that events are made of: who ([`Actor`], [`User`], [`Process`]), where ([`Endpoint`], [`Device`]), what
//! ([`HttpRequest`], [`Api`]) and by which rule ([`Rule`], [`Policy`]).
//!
//! Each can only be made with what the schema requires of it, so a half-filled object cannot be written. Texts are clipped on
//! the way in. Times are milliseconds since 1970 UTC.

mod actor;
mod endpoint;
mod finding;
mod http;

pub use actor::{Actor, Certificate, File, Process, Session, User, UserKind};
pub use endpoint::{
    Connection, Container, Device, DeviceKind, Direction, Endpoint, Peers, Traffic,
};
pub use finding::{Evidence, FindingInfo, Policy, Resource, Rule};
pub use http::{Api, HttpRequest, HttpResponse, Service, Url};

pub(crate) use http::method_activity;

use serde::Serialize;

use super::text::{MAX_NAME_BYTES, Text, clip};

/// Declares setters for optional text fields, each clipped to its bound.
macro_rules! text_setters {
    ($($(#[$meta:meta])* $name:ident, $max:expr;)+) => {
        $($(#[$meta])*
        #[must_use]
        pub fn $name(mut self, value: impl Into<std::borrow::Cow<'static, str>>) -> Self {
            self.$name = Some($crate::ocsf::text::clip(value, $max));
            self
        })+
    };
}
pub(crate) use text_setters;

/// Declares setters for optional fields that are kept as given.
macro_rules! value_setters {
    ($($(#[$meta:meta])* $name:ident: $type:ty;)+) => {
        $($(#[$meta])*
        #[must_use]
        pub fn $name(mut self, value: $type) -> Self {
            self.$name = Some(value);
            self
        })+
    };
}
pub(crate) use value_setters;

/// A product: the one that writes events, or the one an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Product {
    name: Text,
    #[serde(skip_serializing_if = "Option::is_none")]
    vendor_name: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<Text>,
}

impl Product {
    /// A product of that name.
    #[must_use]
    pub fn new(name: impl Into<std::borrow::Cow<'static, str>>) -> Self {
        Self { name: clip(name, MAX_NAME_BYTES), vendor_name: None, version: None, uid: None }
    }

    /// The name given to [`Product::new`].
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    text_setters! {
        /// Who makes it.
        vendor_name, MAX_NAME_BYTES;
        /// Its version.
        version, MAX_NAME_BYTES;
        /// Which installation of it.
        uid, MAX_NAME_BYTES;
    }
}

impl Default for Product {
    /// "Postern" by "Postern".
    fn default() -> Self {
        Self::new("Postern").vendor_name("Postern")
    }
}
