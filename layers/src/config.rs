//! What every `Config` has in common: the form of its faults.
//!
//! A `Config` is plain data. Its `validate` returns *all* faults at once, so that an operator mends a file in one
//! go instead of one error per start.

use std::fmt;

/// One thing wrong with a `Config`.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Fault {
    /// The field at fault, as it is spelled in a file (`"per_key.burst"`).
    pub field: &'static str,
    /// What is wrong, with values and units, and what to write instead.
    pub message: String,
}

impl Fault {
    /// Says that `field` is wrong because of `message`.
    #[must_use]
    pub fn new(field: &'static str, message: impl Into<String>) -> Self {
        Self { field, message: message.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// Notes a fault unless `holds`.
#[allow(dead_code, reason = "which layers check something depends on the features")]
pub(crate) fn require(
    faults: &mut Vec<Fault>,
    holds: bool,
    field: &'static str,
    message: impl FnOnce() -> String,
) {
    if !holds {
        faults.push(Fault::new(field, message()));
    }
}
