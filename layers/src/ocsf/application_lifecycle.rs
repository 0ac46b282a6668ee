//! Application Lifecycle, class 6002: parts of the product that start, stop and fail.

use serde::ser::SerializeMap;

use super::common::{Common, common_setters, status_setters};
use super::event::{Activity, Class};
use super::object::Product;
use super::short::Line;
use super::vocabulary::vocabulary;

vocabulary! {
    /// What became of a program or a part of it.
    LifecycleActivity {
        /// It was installed.
        Install = 1, "Install";
        /// It was removed.
        Remove = 2, "Remove";
        /// It started.
        Start = 3, "Start";
        /// It stopped.
        Stop = 4, "Stop";
        /// It was started again.
        Restart = 5, "Restart";
        /// It was switched on.
        Enable = 6, "Enable";
        /// It was switched off.
        Disable = 7, "Disable";
        /// It was changed.
        Update = 8, "Update";
        /// Something else; the message says what.
        Other = 99, "Other";
    }
}

/// An event of class 6002.
#[derive(Clone, Debug, PartialEq)]
pub struct ApplicationLifecycle {
    activity: LifecycleActivity,
    app: Product,
    common: Common,
}

impl ApplicationLifecycle {
    /// Something became of `app` at `time`, in milliseconds since 1970.
    #[must_use]
    pub fn new(activity: LifecycleActivity, app: Product, time: i64) -> Self {
        Self { activity, app, common: Common::new(time) }
    }

    common_setters!();
    status_setters!();
}

impl Class for ApplicationLifecycle {
    const UID: u32 = 6002;
    const NAME: &'static str = "Application Lifecycle";
    const CATEGORY: (u8, &'static str) = (6, "Application Activity");

    fn activity(&self) -> Activity<'_> {
        Activity::known(self.activity.id(), self.activity.label())
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn put_own<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        map.serialize_entry("app", &self.app)
    }

    fn short(&self, line: &mut Line<'_>) {
        line.head("LIFECYCLE", self.activity.label());
        line.verdict();
        line.text(self.app.name());
        line.status();
        line.context_with_unmapped();
    }
}
