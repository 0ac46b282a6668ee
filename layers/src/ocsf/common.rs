//! What every event class has: time, severity, outcome, message, verdict, actor, device and unmapped values.

use serde::ser::SerializeMap;

use super::object::{Actor, Device, Policy, Rule};
use super::text::{MAX_DETAIL_BYTES, MAX_ENTRIES, MAX_MESSAGE_BYTES, MAX_NAME_BYTES, Text, clip};
use super::vocabulary::{Numbered, Severity, Value, Verdict, put, put_numbered};

/// The attributes shared by all classes (base event, and the profiles `host` and `security_control`).
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Common {
    pub(crate) time: i64,
    pub(crate) severity: Severity,
    pub(crate) status: Option<Numbered>,
    pub(crate) status_code: Option<Text>,
    pub(crate) status_detail: Option<Text>,
    pub(crate) message: Option<Text>,
    pub(crate) duration: Option<u64>,
    pub(crate) count: Option<u64>,
    pub(crate) verdict: Option<Verdict>,
    pub(crate) rule: Option<Box<Rule>>,
    pub(crate) policy: Option<Box<Policy>>,
    pub(crate) actor: Option<Box<Actor>>,
    pub(crate) device: Option<Box<Device>>,
    pub(crate) correlation: Option<Text>,
    unmapped: Vec<(Text, Value)>,
}

impl Common {
    pub(crate) fn new(time: i64) -> Self {
        Self {
            time,
            severity: Severity::Informational,
            status: None,
            status_code: None,
            status_detail: None,
            message: None,
            duration: None,
            count: None,
            verdict: None,
            rule: None,
            policy: None,
            actor: None,
            device: None,
            correlation: None,
            unmapped: Vec::new(),
        }
    }

    /// Keeps a value the schema has no place for. A name given twice keeps its last value; names beyond the bound are left out.
    pub(crate) fn add_unmapped(&mut self, name: Text, value: Value) {
        let name = clip(name, MAX_NAME_BYTES / 4);
        let value = match value {
            Value::Text(text) => Value::Text(clip(text, MAX_NAME_BYTES)),
            other => other,
        };
        match self.unmapped.iter().position(|(known, _)| *known == name) {
            Some(at) => self.unmapped[at].1 = value,
            None if self.unmapped.len() < MAX_ENTRIES => self.unmapped.push((name, value)),
            None => {}
        }
    }

    pub(crate) fn unmapped(&self) -> &[(Text, Value)] {
        &self.unmapped
    }

    /// True if an attribute of the profile `security_control` is set.
    pub(crate) fn has_control(&self) -> bool {
        self.verdict.is_some() || self.rule.is_some() || self.policy.is_some()
    }

    pub(crate) fn put_all<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        map.serialize_entry("time", &self.time)?;
        put_numbered(
            map,
            "severity_id",
            "severity",
            Some((self.severity.id(), self.severity.label())),
        )?;
        put_numbered(map, "status_id", "status", self.status)?;
        put(map, "status_code", self.status_code.as_ref())?;
        put(map, "status_detail", self.status_detail.as_ref())?;
        put(map, "message", self.message.as_ref())?;
        put(map, "duration", self.duration.as_ref())?;
        put(map, "count", self.count.as_ref())?;
        put_numbered(map, "action_id", "action", self.verdict.map(Verdict::action))?;
        put_numbered(map, "disposition_id", "disposition", self.verdict.map(Verdict::disposition))?;
        put(map, "firewall_rule", self.rule.as_ref())?;
        put(map, "policy", self.policy.as_ref())?;
        put(map, "actor", self.actor.as_ref())?;
        if !self.unmapped.is_empty() {
            map.serialize_entry("unmapped", &Entries(&self.unmapped))?;
        }
        Ok(())
    }

    pub(crate) fn set_message(&mut self, text: Text) {
        self.message = Some(clip(text, MAX_MESSAGE_BYTES));
    }

    pub(crate) fn set_detail(&mut self, text: Text) {
        self.status_detail = Some(clip(text, MAX_DETAIL_BYTES));
    }

    pub(crate) fn set_code(&mut self, text: Text) {
        self.status_code = Some(clip(text, MAX_NAME_BYTES));
    }

    pub(crate) fn set_correlation(&mut self, text: Text) {
        self.correlation = Some(clip(text, MAX_NAME_BYTES));
    }
}

struct Entries<'a>(&'a [(Text, Value)]);

impl serde::Serialize for Entries<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(name, value)| (name, value)))
    }
}

/// The largest number the schema can hold: its integers are signed.
pub(crate) fn signed(number: u64) -> u64 {
    number.min(i64::MAX as u64)
}

/// Declares the setters that every class has.
macro_rules! common_setters {
    () => {
        /// How much it matters. Informational unless said.
        #[must_use]
        pub fn severity(mut self, severity: $crate::ocsf::Severity) -> Self {
            self.common.severity = severity;
            self
        }

        /// What happened, for people: one sentence, clipped at [`MAX_MESSAGE_BYTES`](crate::ocsf::MAX_MESSAGE_BYTES).
        #[must_use]
        pub fn message(mut self, text: impl Into<std::borrow::Cow<'static, str>>) -> Self {
            self.common.set_message(text.into());
            self
        }

        /// Why it ended so: a reason or an error, clipped at [`MAX_DETAIL_BYTES`](crate::ocsf::MAX_DETAIL_BYTES).
        #[must_use]
        pub fn detail(mut self, text: impl Into<std::borrow::Cow<'static, str>>) -> Self {
            self.common.set_detail(text.into());
            self
        }

        /// The status code in the protocol's own words.
        #[must_use]
        pub fn code(mut self, text: impl Into<std::borrow::Cow<'static, str>>) -> Self {
            self.common.set_code(text.into());
            self
        }

        /// How long it took, in milliseconds.
        #[must_use]
        pub fn duration(mut self, milliseconds: u64) -> Self {
            self.common.duration = Some($crate::ocsf::common::signed(milliseconds));
            self
        }

        /// How many times it happened, if this event stands for several.
        #[must_use]
        pub fn count(mut self, times: u64) -> Self {
            self.common.count = Some($crate::ocsf::common::signed(times));
            self
        }

        /// What a control did about it.
        #[must_use]
        pub fn verdict(mut self, verdict: $crate::ocsf::Verdict) -> Self {
            self.common.verdict = Some(verdict);
            self
        }

        /// The rule that decided.
        #[must_use]
        pub fn rule(mut self, rule: $crate::ocsf::object::Rule) -> Self {
            self.common.rule = Some(Box::new(rule));
            self
        }

        /// The policy that decided.
        #[must_use]
        pub fn policy(mut self, policy: $crate::ocsf::object::Policy) -> Self {
            self.common.policy = Some(Box::new(policy));
            self
        }

        /// Who did it.
        #[must_use]
        pub fn actor(mut self, actor: $crate::ocsf::object::Actor) -> Self {
            self.common.actor = Some(Box::new(actor));
            self
        }

        /// Where it happened, if not on the device of the [`Source`](crate::ocsf::Source).
        #[must_use]
        pub fn device(mut self, device: $crate::ocsf::object::Device) -> Self {
            self.common.device = Some(Box::new(device));
            self
        }

        /// An identifier that ties events together: a request, session or channel id (`metadata.correlation_uid`).
        #[must_use]
        pub fn correlation(mut self, uid: impl Into<std::borrow::Cow<'static, str>>) -> Self {
            self.common.set_correlation(uid.into());
            self
        }

        /// A value the schema has no attribute for. A name given twice keeps its last value; at most
        /// [`MAX_ENTRIES`](crate::ocsf::MAX_ENTRIES) names are kept.
        #[must_use]
        pub fn unmapped(
            mut self,
            name: impl Into<std::borrow::Cow<'static, str>>,
            value: impl Into<$crate::ocsf::Value>,
        ) -> Self {
            self.common.add_unmapped(name.into(), value.into());
            self
        }
    };
}
pub(crate) use common_setters;

/// Declares the setter of `status_id` for the classes that have the ordinary one.
macro_rules! status_setters {
    () => {
        /// How it ended.
        #[must_use]
        pub fn status(mut self, status: $crate::ocsf::Status) -> Self {
            self.common.status = Some((status.id(), status.label()));
            self
        }
    };
}
pub(crate) use status_setters;
