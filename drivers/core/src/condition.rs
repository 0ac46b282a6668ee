//! Conditions: the words in which a driver tells the gateway what the runtime did.
//!
//! The types, reasons and their meaning are the OpenShell contract's. Drivers build conditions
//! with [`not_ready`], [`ready`] and [`suspended`]; the gateway reads a status with [`derive()`], so
//! that both sides agree on which reasons pass and which do not.

use jiff::Timestamp;

use crate::compute::{DriverCondition, DriverPlatformEvent, DriverSandboxStatus};

/// Condition type: the runtime did its part.
pub const READY: &str = "Ready";
/// Condition type: the sandbox was stopped and keeps its state.
pub const SUSPENDED: &str = "Suspended";

/// Reasons of a Ready condition.
pub mod reason {
    /// A controller of the runtime failed once and tries again. Passes.
    pub const RECONCILER_ERROR: &str = "ReconcilerError";
    /// Something the sandbox needs is not there yet. Passes.
    pub const DEPENDENCIES_NOT_READY: &str = "DependenciesNotReady";
    /// The runtime is up, the supervisor's session is not. Passes. Set by gateways.
    pub const SUPERVISOR_NOT_CONNECTED: &str = "SupervisorNotConnected";
    /// The sandbox is being started. Passes.
    pub const STARTING: &str = "Starting";
    /// Its container is being started. Passes.
    pub const CONTAINER_STARTING: &str = "ContainerStarting";
    /// Its container exists and does not run yet. Passes.
    pub const CONTAINER_CREATED: &str = "ContainerCreated";
    /// Its health check did not answer yet. Passes.
    pub const HEALTH_CHECK_STARTING: &str = "HealthCheckStarting";
    /// The runtime could not be asked just now. Passes.
    pub const INSPECT_FAILED: &str = "InspectFailed";

    /// The supervisor runs. Goes with Ready=True.
    pub const PROCESS_RUNNING: &str = "ProcessRunning";
    /// The supervisor ended and is not started again by the driver. Final.
    pub const PROCESS_EXITED: &str = "ProcessExited";
    /// The supervisor kept failing and the driver gave up. Final.
    pub const CRASH_LOOP: &str = "CrashLoop";
    /// The supervisor could not be started at all. Final.
    pub const START_FAILED: &str = "StartFailed";
    /// Somebody asked for the sandbox to be stopped. Goes with Suspended=True.
    pub const STOPPED: &str = "Stopped";
}

/// The reasons for which a sandbox that is not ready may still become so. Compared without case.
pub const TRANSIENT_REASONS: [&str; 8] = [
    reason::RECONCILER_ERROR,
    reason::DEPENDENCIES_NOT_READY,
    reason::SUPERVISOR_NOT_CONNECTED,
    reason::STARTING,
    reason::CONTAINER_STARTING,
    reason::CONTAINER_CREATED,
    reason::HEALTH_CHECK_STARTING,
    reason::INSPECT_FAILED,
];

/// Whether Ready=False with this reason may pass by itself. Every reason not known to pass is
/// final: a driver that means "wait" must say so with one of [`TRANSIENT_REASONS`].
#[must_use]
pub fn is_transient(reason: &str) -> bool {
    TRANSIENT_REASONS.iter().any(|known| known.eq_ignore_ascii_case(reason))
}

/// Ready=True: the runtime did its part.
pub fn ready(reason: &str, message: impl Into<String>, now: Timestamp) -> DriverCondition {
    build(READY, true, reason, message.into(), now)
}

/// Ready=False. Whether that passes is decided by the reason, see [`is_transient`].
pub fn not_ready(reason: &str, message: impl Into<String>, now: Timestamp) -> DriverCondition {
    build(READY, false, reason, message.into(), now)
}

/// Suspended=True (stopped) or Suspended=False (still stopping, or running again).
pub fn suspended(
    stopped: bool,
    reason: &str,
    message: impl Into<String>,
    now: Timestamp,
) -> DriverCondition {
    build(SUSPENDED, stopped, reason, message.into(), now)
}

/// A platform event of `source` (the driver's name), timed `now`.
pub fn platform_event(
    source: &str,
    kind: EventKind,
    reason: &str,
    message: impl Into<String>,
    now: Timestamp,
) -> DriverPlatformEvent {
    DriverPlatformEvent {
        timestamp_ms: now.as_millisecond(),
        source: source.to_owned(),
        r#type: match kind {
            EventKind::Normal => "Normal".to_owned(),
            EventKind::Warning => "Warning".to_owned(),
        },
        reason: reason.to_owned(),
        message: message.into(),
        metadata: Default::default(),
    }
}

/// How a platform event wants to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// Progress as expected.
    Normal,
    /// Something that somebody may have to look at.
    Warning,
}

/// What a driver's status says, before the gateway adds what it knows of sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RuntimeState {
    /// Being deleted.
    Deleting,
    /// Stopped with its state kept.
    Stopped,
    /// The runtime did its part.
    Running,
    /// On its way.
    Provisioning {
        /// Reason of the Ready condition, empty when there is none.
        reason: String,
        /// Its message.
        message: String,
    },
    /// Failed for good, until somebody starts or deletes it.
    Failed {
        /// Reason of the Ready condition.
        reason: String,
        /// Its message.
        message: String,
    },
    /// The driver said nothing.
    Unknown,
}

/// Reads a status. The first match decides: deleting, Suspended=True, Ready=True, Ready=False by
/// its reason, no Ready condition, no status (OpenShell contract).
#[must_use]
pub fn derive(status: Option<&DriverSandboxStatus>) -> RuntimeState {
    let Some(status) = status else {
        return RuntimeState::Unknown;
    };
    if status.deleting {
        return RuntimeState::Deleting;
    }
    let find = |wanted: &str| status.conditions.iter().find(|condition| condition.r#type == wanted);
    if find(SUSPENDED).is_some_and(is_true) {
        return RuntimeState::Stopped;
    }
    match find(READY) {
        Some(condition) if is_true(condition) => RuntimeState::Running,
        Some(condition) => {
            let reason = condition.reason.clone();
            let message = condition.message.clone();
            // "Unknown" and anything else that is not "False" says nothing final.
            if !condition.status.eq_ignore_ascii_case("false") || is_transient(&reason) {
                RuntimeState::Provisioning { reason, message }
            } else {
                RuntimeState::Failed { reason, message }
            }
        }
        None => RuntimeState::Provisioning { reason: String::new(), message: String::new() },
    }
}

fn is_true(condition: &DriverCondition) -> bool {
    condition.status.eq_ignore_ascii_case("true")
}

fn build(
    kind: &str,
    value: bool,
    reason: &str,
    message: String,
    now: Timestamp,
) -> DriverCondition {
    DriverCondition {
        r#type: kind.to_owned(),
        status: if value { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message,
        last_transition_time: now.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(conditions: Vec<DriverCondition>) -> DriverSandboxStatus {
        DriverSandboxStatus { conditions, ..Default::default() }
    }

    #[test]
    fn the_first_match_decides() {
        let now = Timestamp::UNIX_EPOCH;
        let up = ready(reason::PROCESS_RUNNING, "", now);
        let stopped = suspended(true, reason::STOPPED, "", now);

        assert_eq!(derive(None), RuntimeState::Unknown);
        assert_eq!(derive(Some(&status(vec![up.clone()]))), RuntimeState::Running);
        assert_eq!(derive(Some(&status(vec![up.clone(), stopped.clone()]))), RuntimeState::Stopped);
        let mut deleting = status(vec![up, stopped]);
        deleting.deleting = true;
        assert_eq!(derive(Some(&deleting)), RuntimeState::Deleting);
        assert!(matches!(
            derive(Some(&status(vec![suspended(false, "Resumed", "", now)]))),
            RuntimeState::Provisioning { .. }
        ));
    }

    #[test]
    fn every_transient_reason_passes_in_any_case_and_no_other_does() {
        let now = Timestamp::UNIX_EPOCH;
        for known in TRANSIENT_REASONS {
            for spelling in [known.to_owned(), known.to_lowercase()] {
                assert!(
                    matches!(
                        derive(Some(&status(vec![not_ready(&spelling, "m", now)]))),
                        RuntimeState::Provisioning { .. }
                    ),
                    "{spelling}"
                );
            }
        }
        for last in
            [reason::PROCESS_EXITED, reason::CRASH_LOOP, reason::START_FAILED, "ImagePullBackOff"]
        {
            assert_eq!(
                derive(Some(&status(vec![not_ready(last, "m", now)]))),
                RuntimeState::Failed { reason: last.into(), message: "m".into() }
            );
        }
    }

    #[test]
    fn times_are_rfc_3339() {
        let condition = ready("x", "", Timestamp::UNIX_EPOCH);
        assert_eq!(condition.last_transition_time, "1970-01-01T00:00:00Z");
    }
}
