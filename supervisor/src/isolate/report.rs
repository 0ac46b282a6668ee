//! Which controls hold the agent, and which could not be applied.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One control of the sandbox and what became of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Control {
    /// Short stable name, for example `network_namespace`.
    pub name: String,
    /// Whether the control holds.
    pub enforced: bool,
    /// How it is enforced, or why it is not.
    pub detail: String,
}

/// Everything that was tried to separate the agent from this machine.
///
/// Written as `run/isolation.json` below the sandbox's state directory and logged at start, so that
/// nobody has to guess what a sandbox on a restricted runtime is worth.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IsolationReport {
    /// One entry per control, in the order in which they were applied.
    pub controls: Vec<Control>,
}

impl IsolationReport {
    /// The controls that do not hold.
    pub fn missing(&self) -> impl Iterator<Item = &Control> {
        self.controls.iter().filter(|control| !control.enforced)
    }

    /// Whether a control of this name holds.
    #[must_use]
    pub fn enforces(&self, name: &str) -> bool {
        self.controls.iter().any(|control| control.name == name && control.enforced)
    }
}

impl fmt::Display for IsolationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, control) in self.controls.iter().enumerate() {
            let mark = if control.enforced { "yes" } else { "NO" };
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {mark} ({})", control.name, control.detail)?;
        }
        Ok(())
    }
}

/// A control that could not be applied while the sandbox must be complete.
#[derive(Debug, thiserror::Error)]
#[error("{control} cannot be enforced: {reason}")]
pub(crate) struct NotEnforced {
    pub(crate) control: &'static str,
    pub(crate) reason: String,
}

/// Collects the report while controls are applied.
#[derive(Debug)]
pub(crate) struct Ledger {
    report: IsolationReport,
    best_effort: bool,
}

impl Ledger {
    pub(crate) fn new(best_effort: bool) -> Self {
        Self { report: IsolationReport::default(), best_effort }
    }

    pub(crate) fn enforced(&mut self, name: &'static str, detail: impl Into<String>) {
        self.push(name, true, detail.into());
    }

    /// Notes a control that does not hold; an error unless best effort was asked for.
    pub(crate) fn missing(
        &mut self,
        name: &'static str,
        reason: impl Into<String>,
    ) -> Result<(), NotEnforced> {
        let reason = reason.into();
        self.push(name, false, reason.clone());
        if self.best_effort { Ok(()) } else { Err(NotEnforced { control: name, reason }) }
    }

    /// Notes a control that this runtime cannot have, in either mode.
    pub(crate) fn unavailable(&mut self, name: &'static str, reason: impl Into<String>) {
        self.push(name, false, reason.into());
    }

    pub(crate) fn record<E: fmt::Display>(
        &mut self,
        name: &'static str,
        detail: impl Into<String>,
        result: Result<(), E>,
    ) -> Result<(), NotEnforced> {
        match result {
            Ok(()) => {
                self.enforced(name, detail);
                Ok(())
            }
            Err(error) => self.missing(name, error.to_string()),
        }
    }

    pub(crate) fn into_report(self) -> IsolationReport {
        self.report
    }

    fn push(&mut self, name: &'static str, enforced: bool, detail: String) {
        self.report.controls.push(Control { name: name.to_owned(), enforced, detail });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strict_mode_stops_at_the_first_missing_control() {
        let mut ledger = Ledger::new(false);
        ledger.enforced("one", "by magic");
        let error = ledger.missing("two", "no magic").unwrap_err();
        assert_eq!(error.to_string(), "two cannot be enforced: no magic");
    }

    #[test]
    fn best_effort_lists_what_is_missing() {
        let mut ledger = Ledger::new(true);
        ledger.enforced("one", "by magic");
        ledger.missing("two", "no magic").unwrap();
        let report = ledger.into_report();
        assert!(report.enforces("one"));
        assert!(!report.enforces("two"));
        assert_eq!(report.missing().count(), 1);
        assert_eq!(report.to_string(), "one: yes (by magic); two: NO (no magic)");
    }
}
