//! Device Config State Change, class 5019: configuration and policy that was loaded, changed or lost.

use std::borrow::Cow;

use serde::ser::SerializeMap;

use super::common::{Common, common_setters, status_setters};
use super::event::{Activity, Class};
use super::short::Line;
use super::text::{MAX_NAME_BYTES, Text, clip};
use super::vocabulary::{put_numbered, vocabulary};

vocabulary! {
    /// How the change came to be known.
    ConfigActivity {
        /// The product that changed says so.
        Log = 1, "Log";
        /// Somebody else looked and found it.
        Collect = 2, "Collect";
    }
}

/// The state after the change (`state_id`): on, off, or a word of the product's own.
///
/// The short form shows the word, so a state can be "on" for the schema and `loaded` for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigState {
    id: u8,
    word: Option<Text>,
}

impl ConfigState {
    /// It is in force.
    #[must_use]
    pub const fn enabled() -> Self {
        Self { id: 2, word: None }
    }

    /// It is not in force.
    #[must_use]
    pub const fn disabled() -> Self {
        Self { id: 1, word: None }
    }

    /// Neither; `word` says what.
    #[must_use]
    pub fn other(word: impl Into<Cow<'static, str>>) -> Self {
        Self { id: 99, word: Some(clip(word, MAX_NAME_BYTES)) }
    }

    /// Shows `word` in the short form instead of "enabled" or "disabled".
    #[must_use]
    pub fn shown_as(mut self, word: impl Into<Cow<'static, str>>) -> Self {
        self.word = Some(clip(word, MAX_NAME_BYTES));
        self
    }

    fn label(&self) -> &str {
        match (self.id, &self.word) {
            (1, _) => "Disabled",
            (2, _) => "Enabled",
            (_, Some(word)) => word,
            (_, None) => "Other",
        }
    }

    fn shown(&self) -> &str {
        self.word.as_deref().unwrap_or_else(|| self.label())
    }
}

vocabulary! {
    /// How safe the device is after the change (`security_level_id`).
    SecurityLevel {
        /// As it should be.
        Secure = 1, "Secure";
        /// A control is missing or weak.
        AtRisk = 2, "At Risk";
        /// A control was overcome.
        Compromised = 3, "Compromised";
    }
}

/// An event of class 5019.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfigStateChange {
    activity: ConfigActivity,
    state: ConfigState,
    level: Option<SecurityLevel>,
    common: Common,
}

impl ConfigStateChange {
    /// The configuration came to `state` at `time`, in milliseconds since 1970; the message says which configuration.
    #[must_use]
    pub fn new(activity: ConfigActivity, state: ConfigState, time: i64) -> Self {
        Self { activity, state, level: None, common: Common::new(time) }
    }

    /// How safe the device is now.
    #[must_use]
    pub fn security_level(mut self, level: SecurityLevel) -> Self {
        self.level = Some(level);
        self
    }

    common_setters!();
    status_setters!();
}

impl Class for ConfigStateChange {
    const UID: u32 = 5019;
    const NAME: &'static str = "Device Config State Change";
    const CATEGORY: (u8, &'static str) = (5, "Discovery");

    fn activity(&self) -> Activity<'_> {
        Activity::known(self.activity.id(), self.activity.label())
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn put_own<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        map.serialize_entry("state_id", &self.state.id)?;
        map.serialize_entry("state", self.state.label())?;
        let level = self.level.map(|level| (level.id(), level.label()));
        put_numbered(map, "security_level_id", "security_level", level)
    }

    fn short(&self, line: &mut Line<'_>) {
        line.head("CONFIG", self.state.shown());
        line.message_or_status();
        line.changed();
    }
}
