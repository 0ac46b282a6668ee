//! Process Activity, class 1007: programs that start and end inside a sandbox.

use serde::ser::SerializeMap;

use super::common::{Common, common_setters, status_setters};
use super::event::{Activity, Class};
use super::object::{Actor, Process};
use super::short::Line;
use super::vocabulary::{put, put_numbered, vocabulary};

vocabulary! {
    /// How a process came to be (`launch_type_id`).
    LaunchKind {
        /// Created as a new process running another program.
        Spawn = 1, "Spawn";
        /// A copy of its parent.
        Fork = 2, "Fork";
        /// A running process took up another program.
        Exec = 3, "Exec";
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Change {
    Launched(LaunchKind),
    Ended { exit_code: Option<i32> },
    Other,
}

/// An event of class 1007. Only an end has an exit code and only a start has a kind of launch.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessActivity {
    change: Change,
    process: Process,
    common: Common,
}

impl ProcessActivity {
    fn with(change: Change, process: Process, actor: Actor, time: i64) -> Self {
        let mut common = Common::new(time);
        common.actor = Some(Box::new(actor));
        Self { change, process, common }
    }

    /// `actor` started `process` at `time`, in milliseconds since 1970.
    #[must_use]
    pub fn launched(kind: LaunchKind, process: Process, actor: Actor, time: i64) -> Self {
        Self::with(Change::Launched(kind), process, actor, time)
    }

    /// `process`, started by `actor`, ended at `time` by itself (with an exit code) or by a signal (without).
    #[must_use]
    pub fn ended(exit_code: Option<i32>, process: Process, actor: Actor, time: i64) -> Self {
        Self::with(Change::Ended { exit_code }, process, actor, time)
    }

    /// Something else became of `process`; the message says what.
    #[must_use]
    pub fn other(process: Process, actor: Actor, time: i64) -> Self {
        Self::with(Change::Other, process, actor, time)
    }

    common_setters!();
    status_setters!();
}

impl Class for ProcessActivity {
    const UID: u32 = 1007;
    const NAME: &'static str = "Process Activity";
    const CATEGORY: (u8, &'static str) = (1, "System Activity");

    fn activity(&self) -> Activity<'_> {
        match self.change {
            Change::Launched(_) => Activity::known(1, "Launch"),
            Change::Ended { .. } => Activity::known(2, "Terminate"),
            Change::Other => Activity::known(99, "Other"),
        }
    }

    fn common(&self) -> &Common {
        &self.common
    }

    fn put_own<M: SerializeMap>(&self, map: &mut M) -> Result<(), M::Error> {
        map.serialize_entry("process", &self.process)?;
        match self.change {
            Change::Launched(kind) => {
                put_numbered(map, "launch_type_id", "launch_type", Some((kind.id(), kind.label())))
            }
            Change::Ended { exit_code } => put(map, "exit_code", exit_code.as_ref()),
            Change::Other => Ok(()),
        }
    }

    fn short(&self, line: &mut Line<'_>) {
        line.head("PROC", self.activity().label());
        line.verdict();
        line.process(&self.process);
        if let Change::Ended { exit_code: Some(code) } = self.change {
            line.bracket(&[("exit", &code.to_string())]);
        }
        if let Some(command) = self.process.shown_command() {
            line.bracket(&[("cmd", command)]);
        }
        line.context();
    }
}
