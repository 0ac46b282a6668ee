use proptest::prelude::*;

use super::*;

const NOW: Timestamp = Timestamp { seconds: 100, nanos: 0 };

fn at(phase: SandboxPhase) -> State {
    let mut state = created(0, Timestamp { seconds: 1, nanos: 0 });
    state.enter(phase, "Before", "", Timestamp { seconds: 2, nanos: 0 });
    state.status.main_process_instance_id = "epoch-1".into();
    state
}

fn up(session: &str, current: Option<&str>) -> Event {
    Event::SessionConnected {
        session_id: session.into(),
        current: current.map(str::to_owned),
        instance_id: "epoch-1".into(),
        host_key_fingerprint: Some("SHA256:k".into()),
    }
}

fn down(session: &str, current: Option<&str>) -> Event {
    Event::SessionDisconnected { session_id: session.into(), current: current.map(str::to_owned) }
}

fn seen(seen: RuntimeState, session: bool) -> Event {
    Event::Runtime { seen, session }
}

fn failed(reason: &str) -> RuntimeState {
    RuntimeState::Failed { reason: reason.into(), message: "m".into() }
}

fn provisioning(reason: &str) -> RuntimeState {
    RuntimeState::Provisioning { reason: reason.into(), message: "m".into() }
}

fn exit(instance: &str, code: i32) -> Event {
    Event::MainExit { instance_id: instance.into(), code }
}

fn after(phase: SandboxPhase, event: &Event) -> Step {
    step(&at(phase), event, NOW)
}

/// Phase and reason of the Ready condition after an event; `None` when nothing changes.
fn outcome(phase: SandboxPhase, event: &Event) -> Option<(SandboxPhase, String)> {
    match after(phase, event) {
        Step::To(state) => Some((state.status.phase(), state.ready_reason().to_owned())),
        Step::Same => None,
        other => panic!("{phase:?} {event:?}: {other:?}"),
    }
}

/// From a phase, by an event, to a phase and a reason; or nothing.
type Row<'a> = (SandboxPhase, Event, Option<(SandboxPhase, &'a str)>);

fn check(rows: &[Row<'_>]) {
    for (phase, event, expected) in rows {
        let expected = expected.map(|(phase, reason)| (phase, reason.to_owned()));
        assert_eq!(outcome(*phase, event), expected, "{phase:?} {event:?}");
    }
}

#[test]
fn table_sessions() {
    use SandboxPhase as P;
    use reason as r;
    let connected = up("s", Some("s"));
    check(&[
        (P::Provisioning, connected.clone(), Some((P::Ready, r::SUPERVISOR_CONNECTED))),
        (P::Unknown, connected.clone(), Some((P::Ready, r::SUPERVISOR_CONNECTED))),
        (P::Unspecified, connected.clone(), Some((P::Ready, r::SUPERVISOR_CONNECTED))),
        (P::Starting, connected.clone(), Some((P::Ready, r::SUPERVISOR_CONNECTED))),
        (P::Error, connected.clone(), None),
        (P::Completed, connected.clone(), None),
        (P::Stopping, connected.clone(), None),
        (P::Stopped, connected.clone(), None),
        (P::Deleting, connected, None),
        // Fences: only the registry's current session promotes, and only if there is no other does its end demote.
        (P::Provisioning, up("old", Some("new")), None),
        (P::Provisioning, up("old", None), None),
        (P::Ready, down("old", Some("new")), None),
        (P::Ready, down("s", None), Some((P::Provisioning, r::SUPERVISOR_DISCONNECTED))),
        (P::Ready, down("s", Some("s")), Some((P::Provisioning, r::SUPERVISOR_DISCONNECTED))),
        (P::Starting, down("s", None), None),
        (P::Error, down("s", None), None),
        (P::Completed, down("s", None), None),
    ]);
}

#[test]
fn table_the_runtime() {
    use SandboxPhase as P;
    use reason as r;
    check(&[
        (
            P::Provisioning,
            seen(RuntimeState::Running, true),
            Some((P::Ready, r::SUPERVISOR_CONNECTED)),
        ),
        (
            P::Provisioning,
            seen(RuntimeState::Running, false),
            Some((P::Provisioning, r::SUPERVISOR_NOT_CONNECTED)),
        ),
        (
            P::Provisioning,
            seen(provisioning("ContainerCreating"), false),
            Some((P::Provisioning, "ContainerCreating")),
        ),
        (P::Ready, seen(RuntimeState::Running, true), None),
        (
            P::Ready,
            seen(RuntimeState::Running, false),
            Some((P::Provisioning, r::SUPERVISOR_DISCONNECTED)),
        ),
        (P::Ready, seen(provisioning("Starting"), true), None),
        (P::Ready, seen(provisioning("Starting"), false), Some((P::Provisioning, "Starting"))),
        (
            P::Starting,
            seen(RuntimeState::Running, false),
            Some((P::Starting, r::SUPERVISOR_NOT_CONNECTED)),
        ),
        (P::Starting, seen(RuntimeState::Running, true), Some((P::Ready, r::SUPERVISOR_CONNECTED))),
        (P::Starting, seen(RuntimeState::Stopped, false), None),
        (
            P::Starting,
            seen(failed("ImagePullBackOff"), false),
            Some((P::Error, "ImagePullBackOff")),
        ),
        (P::Ready, seen(failed("CrashLoop"), true), Some((P::Error, "CrashLoop"))),
        (P::Ready, seen(RuntimeState::Stopped, false), Some((P::Stopped, r::STOPPED))),
        (P::Ready, seen(RuntimeState::Deleting, true), Some((P::Deleting, r::DELETING))),
        (P::Stopping, seen(RuntimeState::Stopped, true), Some((P::Stopped, r::STOPPED))),
        (P::Stopping, seen(failed("containerexited"), false), Some((P::Stopped, r::STOPPED))),
        (P::Stopping, seen(failed("PodTerminating"), false), None),
        (P::Stopping, seen(RuntimeState::Running, true), None),
        (P::Error, seen(RuntimeState::Running, true), None),
        (P::Stopped, seen(RuntimeState::Running, true), None),
        (P::Completed, seen(failed("ProcessExited"), false), None),
    ]);
}

#[test]
fn table_lost_by_the_runtime() {
    use SandboxPhase as P;
    use reason as r;
    check(&[
        (P::Ready, Event::RuntimeGone, Some((P::Error, r::BACKEND_RESOURCE_MISSING))),
        (P::Provisioning, Event::RuntimeGone, Some((P::Error, r::BACKEND_RESOURCE_MISSING))),
        (P::Stopped, Event::RuntimeGone, Some((P::Error, r::COMPUTE_RESOURCE_MISSING))),
        (P::Starting, Event::RuntimeGone, Some((P::Error, r::COMPUTE_RESOURCE_MISSING))),
        (P::Completed, Event::RuntimeGone, None),
    ]);
}

#[test]
fn table_users() {
    use SandboxPhase as P;
    use reason as r;
    let message = "no disk".to_owned();
    check(&[
        (P::Ready, Event::StopRequested, Some((P::Stopping, r::STOPPING))),
        (P::Provisioning, Event::StopRequested, Some((P::Stopping, r::STOPPING))),
        (P::Error, Event::StopRequested, Some((P::Stopping, r::STOPPING))),
        (P::Completed, Event::StopRequested, Some((P::Stopping, r::STOPPING))),
        (P::Starting, Event::StopRequested, Some((P::Stopping, r::STOPPING))),
        (P::Stopped, Event::StopRequested, None),
        (P::Stopping, Event::StopRequested, None),
        (
            P::Stopping,
            Event::StopFailed { message: message.clone() },
            Some((P::Stopping, r::STOP_FAILED)),
        ),
        (P::Ready, Event::StopFailed { message: message.clone() }, None),
        (P::Stopped, Event::StartRequested, Some((P::Starting, r::STARTING))),
        (P::Error, Event::StartRequested, Some((P::Starting, r::STARTING))),
        (P::Completed, Event::StartRequested, Some((P::Starting, r::STARTING))),
        (P::Ready, Event::StartRequested, None),
        (P::Provisioning, Event::StartRequested, None),
        (P::Starting, Event::StartRequested, None),
        (
            P::Starting,
            Event::StartFailed { message: message.clone() },
            Some((P::Error, r::START_FAILED)),
        ),
        (P::Ready, Event::StartFailed { message: message.clone() }, None),
        (P::Error, Event::DeleteRequested, Some((P::Deleting, r::DELETING))),
        (P::Deleting, Event::DeleteFailed { message }, Some((P::Deleting, r::DELETE_FAILED))),
    ]);
}

#[test]
fn table_the_main_process() {
    use SandboxPhase as P;
    use reason as r;
    check(&[
        (P::Ready, exit("epoch-1", 0), Some((P::Completed, r::MAIN_PROCESS_COMPLETED))),
        (P::Provisioning, exit("epoch-1", 0), Some((P::Completed, r::MAIN_PROCESS_COMPLETED))),
        (P::Ready, exit("epoch-1", 3), Some((P::Error, r::MAIN_PROCESS_FAILED))),
        (P::Ready, exit("epoch-0", 0), None),
        (P::Stopping, exit("epoch-1", 143), None),
        (P::Stopped, exit("epoch-1", 0), None),
        (P::Deleting, exit("epoch-1", 0), None),
        (P::Completed, exit("epoch-1", 9), None),
    ]);
}

#[test]
fn refusals_and_removal() {
    use SandboxPhase as P;
    assert_eq!(after(P::Deleting, &Event::StopRequested), Step::Refused(Refusal::Deleting));
    assert_eq!(after(P::Deleting, &Event::StartRequested), Step::Refused(Refusal::Deleting));
    assert_eq!(after(P::Stopping, &Event::StartRequested), Step::Refused(Refusal::Stopping));
    assert_eq!(after(P::Deleting, &Event::RuntimeGone), Step::Remove);
}

#[test]
fn a_connection_records_who_connected() {
    let mut before = at(SandboxPhase::Starting);
    before.status.main_process_instance_id.clear();
    before.status.exit_code = Some(3);
    let Step::To(state) = step(&before, &up("s", Some("s")), NOW) else { panic!("no step") };
    assert_eq!(state.status.main_process_instance_id, "epoch-1");
    assert_eq!(state.status.main_process_started_time, Some(NOW));
    assert_eq!(state.status.exit_code, None);
    assert_eq!(state.host_key_fingerprint, "SHA256:k");
    // The same supervisor over a new session did not start its process again.
    let later = Timestamp { seconds: 200, nanos: 0 };
    assert_eq!(step(&state, &up("s", Some("s")), later), Step::Same);
    let Step::To(lost) = step(&state, &down("s", None), later) else { panic!("no step") };
    let Step::To(back) = step(&lost, &up("t", Some("t")), later) else { panic!("no step") };
    assert_eq!(back.status.main_process_started_time, Some(NOW));
}

#[test]
fn an_exit_is_kept_and_can_be_finalized_once() {
    let Step::To(ended) = step(&at(SandboxPhase::Ready), &exit("epoch-1", 3), NOW) else {
        panic!("no step")
    };
    assert_eq!(ended.status.exit_code, Some(3));
    let finalized = Event::Finalized { instance_id: "epoch-1".into() };
    assert_eq!(step(&ended, &Event::Finalized { instance_id: "epoch-0".into() }, NOW), Step::Same);
    let Step::To(done) = step(&ended, &finalized, NOW) else { panic!("no step") };
    assert_eq!(done.status.phase(), SandboxPhase::Error);
    assert_eq!(step(&done, &finalized, NOW), Step::Same);
    // A new start knows nothing of it any more.
    let Step::To(again) = step(&done, &Event::StartRequested, NOW) else { panic!("no step") };
    assert!(again.status.conditions.iter().all(|held| held.r#type != FINALIZED));
    assert_eq!(
        (again.status.exit_code, again.status.main_process_instance_id.as_str()),
        (None, "")
    );
    // Nothing to finalize without an exit.
    assert_eq!(step(&at(SandboxPhase::Error), &finalized, NOW), Step::Same);
}

#[test]
fn a_lost_session_is_what_is_told_until_the_runtime_says_more() {
    let Step::To(lost) = step(&at(SandboxPhase::Ready), &down("s", None), NOW) else {
        panic!("no step")
    };
    assert_eq!(step(&lost, &seen(RuntimeState::Running, false), NOW), Step::Same);
    let Step::To(told) = step(&lost, &seen(provisioning("Starting"), false), NOW) else {
        panic!("no step")
    };
    assert_eq!(told.ready_reason(), "Starting");
}

#[test]
fn long_messages_are_cut() {
    let long = RuntimeState::Failed { reason: "CrashLoop".into(), message: "ü".repeat(5000) };
    let Step::To(state) = after(SandboxPhase::Ready, &seen(long, false)) else { panic!("no step") };
    assert!(state.status.conditions.iter().all(|held| held.message.len() <= MAX_MESSAGE));
}

fn any_phase() -> impl Strategy<Value = SandboxPhase> {
    (0..=9_i32).prop_map(|number| SandboxPhase::try_from(number).expect("0 to 9 are phases"))
}

fn any_runtime_state() -> impl Strategy<Value = RuntimeState> {
    prop_oneof![
        Just(RuntimeState::Deleting),
        Just(RuntimeState::Stopped),
        Just(RuntimeState::Running),
        Just(RuntimeState::Unknown),
        Just(provisioning("Starting")),
        Just(failed("ProcessExited")),
        Just(failed("ImagePullBackOff")),
    ]
}

fn session_event() -> impl Strategy<Value = Event> {
    let id = || prop_oneof![Just("a"), Just("b")];
    let current = || prop_oneof![Just(None), Just(Some("a")), Just(Some("b"))];
    prop_oneof![
        (id(), current()).prop_map(|(id, current)| up(id, current)),
        (id(), current()).prop_map(|(id, current)| down(id, current)),
    ]
}

fn runtime_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (any_runtime_state(), any::<bool>()).prop_map(|(state, session)| seen(state, session)),
        Just(Event::RuntimeGone),
    ]
}

fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        session_event(),
        runtime_event(),
        Just(Event::StopRequested),
        Just(Event::StartRequested),
        Just(Event::DeleteRequested),
        Just(Event::StopFailed { message: "m".into() }),
        Just(Event::StartFailed { message: "m".into() }),
        Just(Event::DeleteFailed { message: "m".into() }),
        (0..3_i32).prop_map(|code| exit("epoch-1", code)),
        Just(Event::Finalized { instance_id: "epoch-1".into() }),
    ]
}

/// The state after a sequence of events; `None` once it was removed.
fn run(phase: SandboxPhase, events: &[Event]) -> Option<State> {
    events.iter().try_fold(at(phase), |state, event| match step(&state, event, NOW) {
        Step::Same | Step::Refused(_) => Some(state),
        Step::To(next) => Some(*next),
        Step::Remove => None,
    })
}

proptest! {
    #[test]
    fn sessions_alone_never_end_a_sandbox(
        phase in any_phase(),
        events in proptest::collection::vec(session_event(), 0..20),
    ) {
        let state = run(phase, &events).expect("sessions remove nothing");
        if outlook(phase) == Outlook::NotComing {
            prop_assert_eq!(state.status.phase(), phase);
        } else {
            prop_assert!(outlook(state.status.phase()) != Outlook::NotComing);
        }
    }

    #[test]
    fn only_the_main_process_completes(
        phase in any_phase().prop_filter("not completed", |phase| *phase != SandboxPhase::Completed),
        events in proptest::collection::vec(any_event(), 0..30),
    ) {
        let exits = events.iter().any(|event| matches!(event, Event::MainExit { code: 0, .. }));
        if let Some(state) = run(phase, &events) && !exits {
            prop_assert!(state.status.phase() != SandboxPhase::Completed);
        }
    }

    #[test]
    fn only_users_leave_a_sticky_phase(
        phase in prop_oneof![Just(SandboxPhase::Error), Just(SandboxPhase::Completed)],
        events in proptest::collection::vec(prop_oneof![session_event(), runtime_event()], 0..20),
    ) {
        prop_assert_eq!(run(phase, &events).map(|state| state.status.phase()), Some(phase));
    }

    #[test]
    fn every_sandbox_that_is_not_being_deleted_can_be_stopped_and_started_again(
        phase in any_phase(),
        events in proptest::collection::vec(any_event(), 0..30),
    ) {
        let Some(state) = run(phase, &events) else { return Ok(()) };
        if state.status.phase() == SandboxPhase::Deleting {
            return Ok(());
        }
        let mut state = state;
        for (event, expected) in [
            (Event::StopRequested, None),
            (seen(RuntimeState::Stopped, false), Some(SandboxPhase::Stopped)),
            (Event::StartRequested, Some(SandboxPhase::Starting)),
            (up("new", Some("new")), Some(SandboxPhase::Ready)),
        ] {
            match step(&state, &event, NOW) {
                Step::To(next) => state = *next,
                Step::Same => {}
                other => prop_assert!(false, "{event:?}: {other:?}"),
            }
            if let Some(expected) = expected {
                prop_assert_eq!(state.status.phase(), expected);
            }
        }
    }

    #[test]
    fn ready_means_ready_and_there_is_one_condition(
        phase in any_phase(),
        events in proptest::collection::vec(any_event(), 1..30),
    ) {
        if let Some(state) = run(phase, &events) {
            let ready: Vec<_> = state.status.conditions.iter().filter(|held| held.r#type == READY).collect();
            prop_assert_eq!(ready.len(), 1);
            prop_assert_eq!(ready[0].status == "True", state.status.phase() == SandboxPhase::Ready);
        }
    }

    #[test]
    fn the_same_event_twice_changes_nothing_the_second_time(
        phase in any_phase(),
        event in any_event(),
    ) {
        if let Step::To(state) = after(phase, &event) {
            let again = step(&state, &event, Timestamp { seconds: 999, nanos: 0 });
            prop_assert!(!matches!(again, Step::To(_)), "{event:?} {again:?}");
        }
    }
}
