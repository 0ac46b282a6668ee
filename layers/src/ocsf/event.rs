//! An event of any class, where it comes from, and how it is written.

use std::borrow::Cow;
use std::io;

use serde::ser::{SerializeMap, Serializer};

use super::api_activity::ApiActivity;
use super::application_lifecycle::ApplicationLifecycle;
use super::authentication::Authentication;
use super::common::Common;
use super::config_state_change::ConfigStateChange;
use super::detection_finding::DetectionFinding;
use super::http_activity::HttpActivity;
use super::network_activity::NetworkActivity;
use super::object::{Device, Product};
use super::process_activity::ProcessActivity;
use super::short::Line;
use super::ssh_activity::SshActivity;
use super::text::{MAX_NAME_BYTES, Text, clip, is_steering};
use super::vocabulary::Severity;

/// The version of the schema that every event follows. The newest one that both validators of the tests know.
pub const SCHEMA_VERSION: &str = "1.7.0";

/// What happened, in the numbers of one class.
#[derive(Clone, Copy)]
pub(crate) struct Activity<'a> {
    id: u8,
    label: &'a str,
}

impl<'a> Activity<'a> {
    pub(crate) const fn known(id: u8, label: &'a str) -> Self {
        Self { id, label }
    }

    /// One the schema has no number for.
    pub(crate) const fn other(label: &'a str) -> Self {
        Self { id: 99, label }
    }

    pub(crate) const fn label(self) -> &'a str {
        self.label
    }
}

/// What a class adds to what all classes have.
pub(crate) trait Class {
    const UID: u32;
    const NAME: &'static str;
    const CATEGORY: (u8, &'static str);

    fn activity(&self) -> Activity<'_>;
    fn common(&self) -> &Common;
    fn put_own<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error>;
    fn short(&self, line: &mut Line<'_>);
}

macro_rules! events {
    ($($(#[$meta:meta])* $class:ident,)+) => {
        /// An event of one of the classes a gateway and its sandboxes have use for.
        ///
        /// Built by the class of that name, and turned into an `Event` by `From`. It is not tied to a product or a device yet:
        /// the [`Source`] says these once for all events.
        #[derive(Clone, Debug, PartialEq)]
        #[non_exhaustive]
        pub enum Event { $($(#[$meta])* $class(Box<$class>),)+ }

        $(impl From<$class> for Event {
            fn from(event: $class) -> Self {
                Self::$class(Box::new(event))
            }
        })+

        impl Event {
            /// `class_uid` of the schema.
            #[must_use]
            pub fn class_uid(&self) -> u32 {
                match self { $(Self::$class(_) => $class::UID,)+ }
            }

            /// `activity_id` of the schema, within the class.
            #[must_use]
            pub fn activity_id(&self) -> u8 {
                match self { $(Self::$class(event) => event.activity().id,)+ }
            }

            pub(crate) fn common(&self) -> &Common {
                match self { $(Self::$class(event) => event.common(),)+ }
            }

            fn put<M: SerializeMap>(&self, map: &mut M, source: &Source, sequence: u64) -> Result<(), M::Error> {
                match self { $(Self::$class(event) => put_class(event.as_ref(), map, source, sequence),)+ }
            }

            fn short(&self, line: &mut Line<'_>) {
                match self { $(Self::$class(event) => event.short(line),)+ }
            }
        }
    };
}

events! {
    /// 4001.
    NetworkActivity,
    /// 4007.
    SshActivity,
    /// 4002.
    HttpActivity,
    /// 3002.
    Authentication,
    /// 6003.
    ApiActivity,
    /// 6002.
    ApplicationLifecycle,
    /// 1007.
    ProcessActivity,
    /// 2004.
    DetectionFinding,
    /// 5019.
    ConfigStateChange,
}

impl Event {
    /// When it happened, in milliseconds since 1970.
    #[must_use]
    pub fn time(&self) -> i64 {
        self.common().time
    }

    /// How much it matters.
    #[must_use]
    pub fn severity(&self) -> Severity {
        self.common().severity
    }
}

/// Who writes the events: the product, the device it runs on, and which run of it this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    product: Product,
    device: Device,
    instance: Option<Text>,
}

impl Source {
    /// Events of `product` on `device`.
    #[must_use]
    pub fn new(product: Product, device: Device) -> Self {
        Self { product, device, instance: None }
    }

    /// A name for this run of the product, different for every start. With it every event gets a `metadata.uid`
    /// (`instance-sequence`), by which a collector can recognise one that it gets twice.
    #[must_use]
    pub fn instance(mut self, instance: impl Into<Cow<'static, str>>) -> Self {
        self.instance = Some(clip(instance, MAX_NAME_BYTES));
        self
    }

    /// The product.
    #[must_use]
    pub fn product(&self) -> &Product {
        &self.product
    }

    /// The host name of the device.
    #[must_use]
    pub fn hostname(&self) -> &str {
        self.device.hostname()
    }
}

/// An event on its way into a sink: with its source and its place in the order of events.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    event: &'a Event,
    source: &'a Source,
    sequence: u64,
}

impl<'a> Record<'a> {
    /// `event` of `source`, as number `sequence` of its events.
    #[must_use]
    pub const fn new(event: &'a Event, source: &'a Source, sequence: u64) -> Self {
        Self { event, source, sequence }
    }

    /// The event.
    #[must_use]
    pub const fn event(&self) -> &'a Event {
        self.event
    }

    /// Its source.
    #[must_use]
    pub const fn source(&self) -> &'a Source {
        self.source
    }

    /// Its place in the order of events, from 1. A gap means that a sink lost events; a new start begins at 1 again.
    #[must_use]
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Appends the event as one line of JSON, without the line end: at most [`MAX_LINE_BYTES`](super::MAX_LINE_BYTES) bytes.
    pub fn write_json(&self, line: &mut Vec<u8>) {
        let mut serializer = serde_json::Serializer::with_formatter(line, OneLine);
        serde::Serialize::serialize(self, &mut serializer)
            .expect("writing plain maps into memory cannot fail");
    }

    /// Appends the event in the short form, without a line end: at most [`MAX_SHORT_BYTES`](super::MAX_SHORT_BYTES) bytes.
    pub fn write_short(&self, line: &mut String) {
        self.event.short(&mut Line::new(line, self.event.common()));
    }
}

impl serde::Serialize for Record<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        self.event.put(&mut map, self.source, self.sequence)?;
        map.end()
    }
}

#[derive(serde::Serialize)]
struct Metadata<'a> {
    version: &'static str,
    product: &'a Product,
    profiles: &'a [&'static str],
    sequence: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    correlation_uid: Option<&'a str>,
}

fn put_class<C: Class, M: SerializeMap>(
    event: &C,
    map: &mut M,
    source: &Source,
    sequence: u64,
) -> Result<(), M::Error> {
    let activity = event.activity();
    let common = event.common();
    let device = common.device.as_deref().unwrap_or(&source.device);
    map.serialize_entry("class_uid", &C::UID)?;
    map.serialize_entry("class_name", C::NAME)?;
    map.serialize_entry("category_uid", &C::CATEGORY.0)?;
    map.serialize_entry("category_name", C::CATEGORY.1)?;
    map.serialize_entry("activity_id", &activity.id)?;
    map.serialize_entry("activity_name", activity.label)?;
    map.serialize_entry("type_uid", &(u64::from(C::UID) * 100 + u64::from(activity.id)))?;
    map.serialize_entry("type_name", &format_args!("{}: {}", C::NAME, activity.label))?;
    common.put_all(map)?;
    event.put_own(map)?;
    map.serialize_entry("device", device)?;
    let mut profiles = ["host"; 3];
    let mut used = 1;
    for (wanted, profile) in
        [(common.has_control(), "security_control"), (device.has_container(), "container")]
    {
        if wanted {
            profiles[used] = profile;
            used += 1;
        }
    }
    let metadata = Metadata {
        version: SCHEMA_VERSION,
        product: &source.product,
        profiles: &profiles[..used],
        sequence,
        uid: source.instance.as_ref().map(|instance| format!("{instance}-{sequence}")),
        correlation_uid: common.correlation.as_deref(),
    };
    map.serialize_entry("metadata", &metadata)
}

/// Compact JSON whose text holds no character that steers a terminal or a line reader: JSON itself only escapes C0.
struct OneLine;

impl serde_json::ser::Formatter for OneLine {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if fragment.bytes().all(|byte| byte < 0x7f) {
            return writer.write_all(fragment.as_bytes());
        }
        let mut plain = 0;
        for (at, c) in fragment.char_indices().filter(|(_, c)| is_steering(*c)) {
            writer.write_all(&fragment.as_bytes()[plain..at])?;
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            plain = at + c.len_utf8();
        }
        writer.write_all(&fragment.as_bytes()[plain..])
    }
}
