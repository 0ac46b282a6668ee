//! By which rule, and what was found: policies, rules, findings, their evidence and the resources concerned.

use std::borrow::Cow;

use serde::Serialize;

use super::{Actor, Endpoint, Process, text_setters, value_setters};
use crate::ocsf::text::{MAX_ENTRIES, MAX_MESSAGE_BYTES, MAX_NAME_BYTES, Text, clip};

/// The policy that decided (`policy`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Policy {
    name: Text,
    #[serde(skip_serializing_if = "Option::is_none")]
    version: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_applied: Option<bool>,
}

impl Policy {
    /// A policy of that name.
    #[must_use]
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self { name: clip(name, MAX_NAME_BYTES), version: None, uid: None, is_applied: None }
    }

    text_setters! {
        /// Its version or hash.
        version, MAX_NAME_BYTES;
        /// Its identifier.
        uid, MAX_NAME_BYTES;
    }

    value_setters! {
        /// Whether it was in force.
        is_applied: bool;
    }

    pub(crate) fn shown(&self) -> &str {
        &self.name
    }
}

/// The rule within a policy that decided (`firewall_rule`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rule {
    name: Text,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    engine: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    condition: Option<Text>,
}

impl Rule {
    /// A rule of that name.
    #[must_use]
    pub fn new(name: impl Into<Cow<'static, str>>) -> Self {
        Self { name: clip(name, MAX_NAME_BYTES), engine: None, condition: None }
    }

    text_setters! {
        /// What evaluated it.
        engine, MAX_NAME_BYTES;
        /// What of it matched.
        condition, MAX_NAME_BYTES;
    }

    pub(crate) fn shown(&self) -> (&str, Option<&str>) {
        (&self.name, self.engine.as_deref())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Analytic {
    name: Text,
    type_id: u8,
    r#type: &'static str,
}

/// What was found (`finding_info`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FindingInfo {
    uid: Text,
    title: Text,
    #[serde(skip_serializing_if = "Option::is_none")]
    desc: Option<Text>,
    #[serde(skip_serializing_if = "Option::is_none")]
    analytic: Option<Analytic>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    types: Vec<Text>,
}

impl FindingInfo {
    /// A finding: `uid` names the sort of finding and stays the same between versions, `title` is for people.
    #[must_use]
    pub fn new(uid: impl Into<Cow<'static, str>>, title: impl Into<Cow<'static, str>>) -> Self {
        Self {
            uid: clip(uid, MAX_NAME_BYTES),
            title: clip(title, MAX_NAME_BYTES),
            desc: None,
            analytic: None,
            types: Vec::new(),
        }
    }

    text_setters! {
        /// What it means and what to do about it.
        desc, MAX_MESSAGE_BYTES;
    }

    /// The rule or check that found it.
    #[must_use]
    pub fn found_by(mut self, rule: impl Into<Cow<'static, str>>) -> Self {
        self.analytic =
            Some(Analytic { name: clip(rule, MAX_NAME_BYTES), type_id: 1, r#type: "Rule" });
        self
    }

    /// A category it belongs to. Categories beyond the thirty-second are left out.
    #[must_use]
    pub fn category(mut self, category: impl Into<Cow<'static, str>>) -> Self {
        if self.types.len() < MAX_ENTRIES {
            self.types.push(clip(category, MAX_NAME_BYTES));
        }
        self
    }

    pub(crate) fn shown(&self) -> (&str, &str) {
        (&self.uid, &self.title)
    }
}

/// What a finding rests on (`evidences`). Always holds at least one thing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Evidence {
    #[serde(skip_serializing_if = "Option::is_none")]
    process: Option<Process>,
    #[serde(skip_serializing_if = "Option::is_none")]
    actor: Option<Actor>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dst_endpoint: Option<Endpoint>,
}

impl Evidence {
    const EMPTY: Self = Self { process: None, actor: None, dst_endpoint: None };

    /// A process was seen. Its ancestors are left out.
    #[must_use]
    pub fn process(process: Process) -> Self {
        Self { process: Some(process.alone()), ..Self::EMPTY }
    }

    /// Somebody did it. The ancestors of the process are left out.
    #[must_use]
    pub fn actor(actor: Actor) -> Self {
        Self { actor: Some(actor.alone()), ..Self::EMPTY }
    }

    /// Something tried to reach that end.
    #[must_use]
    pub fn destination(dst: Endpoint) -> Self {
        Self { dst_endpoint: Some(dst), ..Self::EMPTY }
    }

    /// Adds the end that was to be reached.
    #[must_use]
    pub fn to(mut self, dst: Endpoint) -> Self {
        self.dst_endpoint = Some(dst);
        self
    }
}

/// A thing an event concerns (`resource_details`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Resource {
    uid: Text,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<Text>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<Text>,
}

impl Resource {
    /// The resource with that identifier.
    #[must_use]
    pub fn new(uid: impl Into<Cow<'static, str>>) -> Self {
        Self { uid: clip(uid, MAX_NAME_BYTES), name: None, kind: None }
    }

    text_setters! {
        /// Its name.
        name, MAX_NAME_BYTES;
        /// What it is, such as `sandbox`.
        kind, MAX_NAME_BYTES;
    }
}
