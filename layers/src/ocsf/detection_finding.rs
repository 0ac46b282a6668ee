//! Detection Finding, class 2004: something that somebody should look at.

use serde::ser::SerializeMap;

use super::common::{Common, common_setters};
use super::event::{Activity, Class};
use super::object::{Evidence, FindingInfo, Resource, value_setters};
use super::short::Line;
use super::text::{MAX_ENTRIES, MAX_MESSAGE_BYTES, Text, clip};
use super::vocabulary::{Confidence, put, put_numbered, vocabulary};

/// Most pieces of evidence of one finding: each may hold a process and an actor, and an event must fit its line.
const MAX_EVIDENCE: usize = 4;

/// Most resources of one finding, for the same reason.
const MAX_RESOURCES: usize = MAX_ENTRIES / 4;

vocabulary! {
    /// What became of a finding.
    FindingActivity {
        /// It is new.
        Create = 1, "Create";
        /// More is known of it.
        Update = 2, "Update";
        /// It is dealt with.
        Close = 3, "Close";
        /// Something else; the message says what.
        Other = 99, "Other";
    }
}

vocabulary! {
    /// Where a finding stands (`status_id` of this class).
    FindingStatus {
        /// Nobody has looked yet.
        New = 1, "New";
        /// Somebody is looking.
        InProgress = 2, "In Progress";
        /// It is known and wanted.
        Suppressed = 3, "Suppressed";
        /// It is dealt with.
        Resolved = 4, "Resolved";
    }
}

/// An event of class 2004.
#[derive(Clone, Debug, PartialEq)]
pub struct DetectionFinding {
    activity: FindingActivity,
    finding: FindingInfo,
    confidence: Option<Confidence>,
    is_alert: Option<bool>,
    evidences: Vec<Evidence>,
    resources: Vec<Resource>,
    remediation: Option<Text>,
    common: Common,
}

impl DetectionFinding {
    /// `finding` was made, or changed, at `time`, in milliseconds since 1970.
    #[must_use]
    pub fn new(activity: FindingActivity, finding: FindingInfo, time: i64) -> Self {
        Self {
            activity,
            finding,
            confidence: None,
            is_alert: None,
            evidences: Vec::new(),
            resources: Vec::new(),
            remediation: None,
            common: Common::new(time),
        }
    }

    value_setters! {
        /// How sure this is.
        confidence: Confidence;
        /// Whether somebody should be woken.
        is_alert: bool;
    }

    /// Where the finding stands.
    #[must_use]
    pub fn status(mut self, status: FindingStatus) -> Self {
        self.common.status = Some((status.id(), status.label()));
        self
    }

    /// What it rests on. Pieces beyond the fourth are left out.
    #[must_use]
    pub fn evidence(mut self, evidence: Evidence) -> Self {
        if self.evidences.len() < MAX_EVIDENCE {
            self.evidences.push(evidence);
        }
        self
    }

    /// A thing it concerns. Those beyond the eighth are left out.
    #[must_use]
    pub fn resource(mut self, resource: Resource) -> Self {
        if self.resources.len() < MAX_RESOURCES {
            self.resources.push(resource);
        }
        self
    }

    /// What to do about it.
    #[must_use]
    pub fn remediation(mut self, text: impl Into<std::borrow::Cow<'static, str>>) -> Self {
        self.remediation = Some(clip(text, MAX_MESSAGE_BYTES));
        self
    }

    common_setters!();
}

#[derive(serde::Serialize)]
struct Remediation<'a> {
    desc: &'a str,
}

impl Class for DetectionFinding {
    const UID: u32 = 2004;
    const NAME: &'static str = "Detection Finding";
    const CATEGORY: (u8, &'static str) = (2, "Findings");

    fn activity(&self) -> Activity<'_> {
        Activity::known(self.activity.id(), self.activity.label())
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn put_own<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        map.serialize_entry("finding_info", &self.finding)?;
        let confidence = self.confidence.map(|confidence| (confidence.id(), confidence.label()));
        put_numbered(map, "confidence_id", "confidence", confidence)?;
        put(map, "is_alert", self.is_alert.as_ref())?;
        if !self.evidences.is_empty() {
            map.serialize_entry("evidences", &self.evidences)?;
        }
        if !self.resources.is_empty() {
            map.serialize_entry("resources", &self.resources)?;
        }
        put(
            map,
            "remediation",
            self.remediation.as_deref().map(|desc| Remediation { desc }).as_ref(),
        )
    }

    fn short(&self, line: &mut Line<'_>) {
        let slot =
            self.common.verdict.map_or(self.activity.label(), |verdict| verdict.disposition().1);
        line.head("FINDING", slot);
        let (uid, title) = self.finding.shown();
        line.quoted(title);
        line.finding(uid, self.confidence);
        line.context();
    }
}
