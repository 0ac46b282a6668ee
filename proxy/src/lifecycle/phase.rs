//! The rule of phases: what a sandbox is after something happened. Pure; no clock, no IO.
//!
//! | from \ event | session up | session down | runtime runs | runtime stopped | runtime failed | runtime gone |
//! |---|---|---|---|---|---|---|
//! | Provisioning, Unknown | Ready | – | Ready with a session | Stopped | Error | Error |
//! | Ready | Ready | Provisioning | Provisioning without one | Stopped | Error | Error |
//! | Starting | Ready | – | Ready with a session | – | Error | Error |
//! | Stopping | – | – | – | Stopped | Stopped if it ended | Error |
//! | Stopped, Error, Completed | – | – | – | – | – | – (Stopped: Error) |
//! | Deleting | – | – | – | – | – | removed |
//!
//! So: session loss is never final; only users leave Stopped, Error and Completed, by start, stop or delete; and only
//! the exit of the main process completes a sandbox. The words and the composition of runtime and session are the
//! OpenShell contract's; that stop and start work from Error is not, because users were stuck there.

use postern_driver_core::condition::{self, RuntimeState};
use postern_proto::v1::{SandboxCondition, SandboxPhase, SandboxStatus};
use prost_types::Timestamp;

/// Reasons of the Ready condition that the gateway sets.
pub mod reason {
    /// The supervisor's session is up.
    pub const SUPERVISOR_CONNECTED: &str = "SupervisorConnected";
    /// The supervisor's session ended; the next one is waited for.
    pub const SUPERVISOR_DISCONNECTED: &str = "SupervisorDisconnected";
    /// There was no session yet.
    pub const SUPERVISOR_NOT_CONNECTED: &str = "SupervisorNotConnected";
    /// A user asked for a start.
    pub const STARTING: &str = "Starting";
    /// The driver could not start it.
    pub const START_FAILED: &str = "StartFailed";
    /// A user asked for a stop.
    pub const STOPPING: &str = "Stopping";
    /// The driver could not stop it yet; it is tried again.
    pub const STOP_FAILED: &str = "StopFailed";
    /// It is stopped.
    pub const STOPPED: &str = "Stopped";
    /// A user asked for its deletion.
    pub const DELETING: &str = "Deleting";
    /// The driver could not delete it yet; it is tried again.
    pub const DELETE_FAILED: &str = "DeleteFailed";
    /// The main process ended with 0.
    pub const MAIN_PROCESS_COMPLETED: &str = "MainProcessCompleted";
    /// The main process ended with another code, or by a signal.
    pub const MAIN_PROCESS_FAILED: &str = "MainProcessFailed";
    /// It should run and the runtime does not know it.
    pub const BACKEND_RESOURCE_MISSING: &str = "BackendResourceMissing";
    /// It was stopped, or between stopped and running, and the runtime does not know it.
    pub const COMPUTE_RESOURCE_MISSING: &str = "ComputeResourceMissing";
    /// Everything the main process wrote was handed over (condition type [`super::FINALIZED`]).
    pub const MAIN_PROCESS_FINALIZED: &str = "MainProcessFinalized";
}

/// Condition type: users can work in the sandbox.
pub const READY: &str = condition::READY;
/// Condition type: the supervisor said that nothing more comes from the main process.
pub const FINALIZED: &str = "Finalized";

/// Ways in which a runtime says that something it was told to stop has ended. Compared without case; the first two are
/// the OpenShell contract's.
const ENDED_REASONS: [&str; 5] =
    ["ContainerExited", "ContainerStopped", "ProcessExited", "CrashLoop", "Stopped"];

/// Longest message of a condition, in bytes: a driver's message may quote a log.
const MAX_MESSAGE: usize = 1024;

/// The part of a record that phases write.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Phase, conditions, main process.
    pub status: SandboxStatus,
    /// SSH host key of the supervisor, empty when unknown.
    pub host_key_fingerprint: String,
    /// When deletion was asked for.
    pub deletion_time: Option<Timestamp>,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// A supervisor session was registered.
    SessionConnected {
        /// That session.
        session_id: String,
        /// The registry's current session at the moment of writing.
        current: Option<String>,
        /// The supervisor's process epoch.
        instance_id: String,
        /// Its SSH host key.
        host_key_fingerprint: Option<String>,
    },
    /// A supervisor session ended.
    SessionDisconnected {
        /// That session.
        session_id: String,
        /// The registry's current session at the moment of writing.
        current: Option<String>,
    },
    /// The runtime said what it sees.
    Runtime {
        /// What it sees.
        seen: RuntimeState,
        /// Whether a supervisor session is up at the moment of writing.
        session: bool,
    },
    /// The runtime does not know the sandbox.
    RuntimeGone,
    /// A user asks for a stop.
    StopRequested,
    /// The driver did not stop it.
    StopFailed {
        /// The driver's words.
        message: String,
    },
    /// A user asks for a start.
    StartRequested,
    /// The driver did not start it.
    StartFailed {
        /// The driver's words.
        message: String,
    },
    /// A user asks for deletion.
    DeleteRequested,
    /// The driver did not delete it.
    DeleteFailed {
        /// The driver's words.
        message: String,
    },
    /// The main process ended.
    MainExit {
        /// Process epoch of the supervisor that reports it.
        instance_id: String,
        /// Its exit code; 128 plus the number for a signal.
        code: i32,
    },
    /// Everything of an ended main process was handed over.
    Finalized {
        /// Process epoch of the supervisor that reports it.
        instance_id: String,
    },
}

/// What follows from an event.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Nothing changes.
    Same,
    /// The record becomes this.
    To(Box<State>),
    /// The record goes.
    Remove,
    /// A user asked for something that this phase does not allow.
    Refused(Refusal),
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// It is being deleted.
    Deleting,
    /// It is being stopped.
    Stopping,
}

/// Whether waiting makes sense for somebody who needs a Ready sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// It is Ready.
    Ready,
    /// It may become Ready by itself.
    Coming,
    /// Somebody has to do something first.
    NotComing,
}

/// What to expect of a sandbox in this phase.
#[must_use]
pub fn outlook(phase: SandboxPhase) -> Outlook {
    match phase {
        SandboxPhase::Ready => Outlook::Ready,
        SandboxPhase::Unspecified
        | SandboxPhase::Provisioning
        | SandboxPhase::Unknown
        | SandboxPhase::Starting => Outlook::Coming,
        SandboxPhase::Error
        | SandboxPhase::Deleting
        | SandboxPhase::Stopping
        | SandboxPhase::Stopped
        | SandboxPhase::Completed => Outlook::NotComing,
    }
}

/// Whether a watch that stops at the end of a transition ends here: what was waited for has come or will not come.
#[must_use]
pub fn is_settled(phase: SandboxPhase) -> bool {
    matches!(
        phase,
        SandboxPhase::Ready | SandboxPhase::Error | SandboxPhase::Stopped | SandboxPhase::Completed
    )
}

/// The state of a sandbox that was just asked for.
#[must_use]
pub fn created(policy_version: u32, now: Timestamp) -> State {
    let mut state = State::default();
    state.status.current_policy_version = policy_version;
    state.enter(
        SandboxPhase::Provisioning,
        reason::SUPERVISOR_NOT_CONNECTED,
        "waiting for the runtime and the supervisor",
        now,
    );
    state
}

/// The rule.
#[must_use]
pub fn step(before: &State, event: &Event, now: Timestamp) -> Step {
    let mut after = before.clone();
    let change = match event {
        Event::SessionConnected { session_id, current, instance_id, host_key_fingerprint } => {
            if current.as_ref() == Some(session_id) {
                after.connect(instance_id, host_key_fingerprint.as_deref(), now);
            }
            Ok(())
        }
        Event::SessionDisconnected { session_id, current } => {
            if current.as_ref().is_none_or(|current| current == session_id) {
                after.disconnect(now);
            }
            Ok(())
        }
        Event::Runtime { seen, session } => {
            after.see(seen, *session, now);
            Ok(())
        }
        Event::RuntimeGone if before.status.phase() == SandboxPhase::Deleting => {
            return Step::Remove;
        }
        Event::RuntimeGone => {
            after.miss(now);
            Ok(())
        }
        Event::StopRequested => after.request_stop(now),
        Event::StartRequested => after.request_start(now),
        Event::DeleteRequested => {
            after.request_delete(now);
            Ok(())
        }
        Event::StartFailed { message } => {
            if before.status.phase() == SandboxPhase::Starting {
                after.enter(SandboxPhase::Error, reason::START_FAILED, message, now);
            }
            Ok(())
        }
        Event::StopFailed { message } => {
            after.explain(SandboxPhase::Stopping, reason::STOP_FAILED, message, now);
            Ok(())
        }
        Event::DeleteFailed { message } => {
            after.explain(SandboxPhase::Deleting, reason::DELETE_FAILED, message, now);
            Ok(())
        }
        Event::MainExit { instance_id, code } => {
            after.end_main(instance_id, *code, now);
            Ok(())
        }
        Event::Finalized { instance_id } => {
            after.finalize(instance_id, now);
            Ok(())
        }
    };
    match change {
        Err(refusal) => Step::Refused(refusal),
        Ok(()) if after == *before => Step::Same,
        Ok(()) => Step::To(Box::new(after)),
    }
}

/// Whether the runtime gives a reason of its own for not being up.
fn tells_more(seen: &RuntimeState) -> bool {
    matches!(seen, RuntimeState::Provisioning { reason, .. } if !reason.is_empty())
}

// === impl State ===

impl State {
    fn connect(&mut self, instance_id: &str, fingerprint: Option<&str>, now: Timestamp) {
        if outlook(self.status.phase()) == Outlook::NotComing {
            return;
        }
        if self.status.main_process_instance_id != instance_id
            || self.status.main_process_started_time.is_none()
        {
            self.status.main_process_instance_id = instance_id.to_owned();
            self.status.main_process_started_time = Some(now);
        }
        self.status.exit_code = None;
        if let Some(fingerprint) = fingerprint {
            self.host_key_fingerprint = fingerprint.to_owned();
        }
        self.enter(
            SandboxPhase::Ready,
            reason::SUPERVISOR_CONNECTED,
            "supervisor session is up",
            now,
        );
    }

    fn disconnect(&mut self, now: Timestamp) {
        if self.status.phase() == SandboxPhase::Ready {
            self.enter(
                SandboxPhase::Provisioning,
                reason::SUPERVISOR_DISCONNECTED,
                "supervisor session ended; waiting for the next one",
                now,
            );
        }
    }

    fn see(&mut self, seen: &RuntimeState, session: bool, now: Timestamp) {
        use SandboxPhase as P;
        let phase = self.status.phase();
        if matches!(phase, P::Error | P::Completed | P::Deleting | P::Stopped) {
            return;
        }
        match seen {
            RuntimeState::Deleting => {
                self.enter(
                    P::Deleting,
                    reason::DELETING,
                    "the runtime is deleting the sandbox",
                    now,
                );
            }
            RuntimeState::Stopped if phase == P::Starting => {}
            RuntimeState::Stopped => self.stopped(now),
            RuntimeState::Failed { reason, .. } if phase == P::Stopping => {
                if ENDED_REASONS.iter().any(|ended| ended.eq_ignore_ascii_case(reason)) {
                    self.stopped(now);
                }
            }
            RuntimeState::Failed { reason, message } => self.enter(P::Error, reason, message, now),
            RuntimeState::Running | RuntimeState::Provisioning { .. } | RuntimeState::Unknown => {
                self.see_alive(seen, session, now);
            }
        }
    }

    /// The runtime has it or is making it; the session decides.
    fn see_alive(&mut self, seen: &RuntimeState, session: bool, now: Timestamp) {
        use SandboxPhase as P;
        match self.status.phase() {
            P::Stopping => {}
            P::Ready if session => {}
            _ if session => {
                self.enter(P::Ready, reason::SUPERVISOR_CONNECTED, "supervisor session is up", now)
            }
            P::Ready if !tells_more(seen) => self.disconnect(now),
            phase => {
                // Starting stays Starting until its session comes; everything else waits as Provisioning.
                let next = if phase == P::Starting { P::Starting } else { P::Provisioning };
                match seen {
                    RuntimeState::Provisioning { reason, message } if !reason.is_empty() => {
                        self.enter(next, reason, message, now);
                    }
                    _ if self.ready_reason() == reason::SUPERVISOR_DISCONNECTED => {
                        self.status.set_phase(next);
                    }
                    RuntimeState::Running => self.enter(
                        next,
                        reason::SUPERVISOR_NOT_CONNECTED,
                        "the runtime is up; waiting for the supervisor",
                        now,
                    ),
                    _ => self.status.set_phase(next),
                }
            }
        }
    }

    fn miss(&mut self, now: Timestamp) {
        use SandboxPhase as P;
        let reason = match self.status.phase() {
            P::Error | P::Completed | P::Deleting => return,
            P::Stopping | P::Stopped | P::Starting => reason::COMPUTE_RESOURCE_MISSING,
            P::Unspecified | P::Provisioning | P::Ready | P::Unknown => {
                reason::BACKEND_RESOURCE_MISSING
            }
        };
        let message = "the runtime does not know this sandbox; start it again or delete it";
        self.enter(P::Error, reason, message, now);
    }

    fn request_stop(&mut self, now: Timestamp) -> Result<(), Refusal> {
        match self.status.phase() {
            SandboxPhase::Deleting => Err(Refusal::Deleting),
            SandboxPhase::Stopped | SandboxPhase::Stopping => Ok(()),
            _ => {
                self.enter(SandboxPhase::Stopping, reason::STOPPING, "stop was asked for", now);
                Ok(())
            }
        }
    }

    fn request_start(&mut self, now: Timestamp) -> Result<(), Refusal> {
        match self.status.phase() {
            SandboxPhase::Deleting => Err(Refusal::Deleting),
            SandboxPhase::Stopping => Err(Refusal::Stopping),
            SandboxPhase::Stopped | SandboxPhase::Error | SandboxPhase::Completed => {
                self.status.exit_code = None;
                self.status.main_process_instance_id.clear();
                self.status.main_process_started_time = None;
                self.status.conditions.retain(|held| held.r#type != FINALIZED);
                self.enter(SandboxPhase::Starting, reason::STARTING, "start was asked for", now);
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn request_delete(&mut self, now: Timestamp) {
        if self.deletion_time.is_none() {
            self.deletion_time = Some(now);
        }
        if self.status.phase() != SandboxPhase::Deleting {
            self.enter(SandboxPhase::Deleting, reason::DELETING, "deletion was asked for", now);
        }
    }

    fn end_main(&mut self, instance_id: &str, code: i32, now: Timestamp) {
        let known = &self.status.main_process_instance_id;
        let stale = !known.is_empty() && known != instance_id;
        if stale || outlook(self.status.phase()) == Outlook::NotComing {
            return;
        }
        self.status.main_process_instance_id = instance_id.to_owned();
        self.status.exit_code = Some(code);
        if code == 0 {
            self.enter(
                SandboxPhase::Completed,
                reason::MAIN_PROCESS_COMPLETED,
                "main process ended with exit code 0",
                now,
            );
        } else {
            let message = format!("main process ended with exit code {code}");
            self.enter(SandboxPhase::Error, reason::MAIN_PROCESS_FAILED, &message, now);
        }
    }

    fn finalize(&mut self, instance_id: &str, now: Timestamp) {
        let ended = self.status.exit_code.is_some()
            && matches!(self.status.phase(), SandboxPhase::Completed | SandboxPhase::Error);
        if ended && self.status.main_process_instance_id == instance_id {
            self.set_condition(FINALIZED, true, reason::MAIN_PROCESS_FINALIZED, "", now);
        }
    }

    fn stopped(&mut self, now: Timestamp) {
        self.enter(
            SandboxPhase::Stopped,
            reason::STOPPED,
            "sandbox is stopped; its files are kept",
            now,
        );
    }

    /// Says more about a phase without leaving it; nothing in any other phase.
    fn explain(&mut self, phase: SandboxPhase, reason: &str, message: &str, now: Timestamp) {
        if self.status.phase() == phase {
            self.enter(phase, reason, message, now);
        }
    }

    fn enter(&mut self, phase: SandboxPhase, reason: &str, message: &str, now: Timestamp) {
        self.status.set_phase(phase);
        self.set_condition(READY, phase == SandboxPhase::Ready, reason, message, now);
    }

    fn set_condition(
        &mut self,
        kind: &str,
        holds: bool,
        reason: &str,
        message: &str,
        now: Timestamp,
    ) {
        let status = if holds { "True" } else { "False" };
        let message = &message[..message.floor_char_boundary(MAX_MESSAGE)];
        match self.status.conditions.iter_mut().find(|held| held.r#type == kind) {
            Some(held) => {
                // The time is that of the last change of status or reason, so repeating a fact writes nothing.
                if held.status != status || held.reason != reason {
                    held.transition_time = Some(now);
                }
                held.status = status.to_owned();
                held.reason = reason.to_owned();
                held.message = message.to_owned();
            }
            None => self.status.conditions.push(SandboxCondition {
                r#type: kind.to_owned(),
                status: status.to_owned(),
                reason: reason.to_owned(),
                message: message.to_owned(),
                transition_time: Some(now),
            }),
        }
    }

    fn ready_reason(&self) -> &str {
        self.status
            .conditions
            .iter()
            .find(|held| held.r#type == READY)
            .map_or("", |held| held.reason.as_str())
    }
}

#[cfg(test)]
mod tests;
