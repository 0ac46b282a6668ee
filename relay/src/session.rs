//! One session as a pure state machine: liveness and states.
//!
//! Both ends drive the same machine: the gateway's session loop and the supervisor's. It does no
//! IO and reads no clock; the driver passes `now`, tells it what came in, and does what
//! [`Session::poll`] says.
//!
//! ```text
//! Connecting ──accepted──▶ Established ──superseded──▶ Superseded ─┐
//!     │                        │                                   │
//!     │                        ├──close / expired──▶ Closing ──────┤
//!     └────────── failed ──────┴───────────────────────────────────┴──closed──▶ Closed
//! ```
//!
//! *Limits*: heartbeats are sent every `interval`; a peer that sent nothing at all for more than
//! [`MISSED_LIMIT`] intervals is gone. Any inbound message counts, not only heartbeats, so a busy
//! peer is never taken for a dead one.
//!
//! *Source*: the OpenShell contract advertises 15 s and leaves enforcement open; HTTP/2 keepalive
//! alone does not notice a process that is frozen above its TCP stack.

use std::time::Duration;

use tokio::time::Instant;

/// Heartbeat interval the gateway advertises when not configured otherwise (OpenShell contract).
pub const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(15);

/// Intervals of silence a peer may let pass. Three forgive two lost heartbeats and a late third.
pub const MISSED_LIMIT: u32 = 3;

/// Where a session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Hello sent or received, not accepted yet.
    Connecting,
    /// Accepted; relays may be opened.
    Established,
    /// A newer session of the same sandbox took over; this one only winds down.
    Superseded,
    /// Ending: nothing new starts on it, what is queued may still go out.
    Closing,
    /// Over.
    Closed,
}

/// What moves a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The session was accepted (sent by the gateway, received by the supervisor).
    Accepted,
    /// Anything came in from the peer.
    Inbound,
    /// A heartbeat was handed to the transport.
    HeartbeatSent,
    /// A newer session replaced this one.
    Superseded,
    /// This side wants to end the session.
    Close,
    /// The stream has ended, cleanly or not.
    StreamEnded,
}

/// What the driver is to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Send a heartbeat, then report [`Event::HeartbeatSent`].
    SendHeartbeat,
    /// The peer has been silent for too long: end the session.
    Expire {
        /// For how long nothing came in.
        silent: Duration,
    },
    /// Nothing before this instant; poll again then or after the next event.
    WaitUntil(Instant),
    /// Nothing more will ever happen.
    Finished,
}

/// An event that the state does not allow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("session in state {state:?} cannot take {event:?}")]
pub struct IllegalTransition {
    /// State at the time.
    pub state: State,
    /// The event.
    pub event: Event,
}

/// The machine.
#[derive(Debug)]
pub struct Session {
    state: State,
    interval: Duration,
    last_inbound: Instant,
    next_heartbeat: Instant,
}

impl Session {
    /// A session that begins `now`, with the given heartbeat interval (taken as at least 1 ms so
    /// that a peer's zero cannot make us spin).
    pub fn new(now: Instant, interval: Duration) -> Self {
        let interval = interval.max(Duration::from_millis(1));
        Self {
            state: State::Connecting,
            interval,
            last_inbound: now,
            next_heartbeat: now + interval,
        }
    }

    /// Where the session is.
    pub const fn state(&self) -> State {
        self.state
    }

    /// Heartbeat interval in force.
    pub const fn interval(&self) -> Duration {
        self.interval
    }

    /// For how long nothing has come in.
    pub fn silent_for(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last_inbound)
    }

    /// Changes the interval (the supervisor learns it with the acceptance).
    pub fn set_interval(&mut self, now: Instant, interval: Duration) {
        self.interval = interval.max(Duration::from_millis(1));
        self.next_heartbeat = now + self.interval;
    }

    /// Feeds one event.
    ///
    /// # Errors
    /// [`IllegalTransition`]; the state is then unchanged. Events that come late, after the
    /// session has begun to end, are no fault and change nothing.
    pub fn on(&mut self, now: Instant, event: Event) -> Result<State, IllegalTransition> {
        use {Event as E, State as S};
        self.state = match (self.state, event) {
            (state, E::Inbound) => {
                self.last_inbound = self.last_inbound.max(now);
                state
            }
            (state, E::HeartbeatSent) => {
                self.next_heartbeat = now + self.interval;
                state
            }
            (S::Connecting, E::Accepted) => {
                self.last_inbound = self.last_inbound.max(now);
                self.next_heartbeat = now + self.interval;
                S::Established
            }
            (S::Established, E::Superseded) => S::Superseded,
            (S::Connecting | S::Established, E::Close) => S::Closing,
            (state @ (S::Superseded | S::Closing | S::Closed), E::Close | E::Superseded) => state,
            (_, E::StreamEnded) => S::Closed,
            (state, event @ (E::Accepted | E::Superseded)) => {
                return Err(IllegalTransition { state, event });
            }
        };
        Ok(self.state)
    }

    /// What to do at `now`. A heartbeat that is due is asked for until it is reported sent.
    pub fn poll(&self, now: Instant) -> Action {
        match self.state {
            State::Closed => return Action::Finished,
            State::Connecting | State::Established => {}
            // Winding down is bounded by the same silence limit, without heartbeats.
            State::Superseded | State::Closing => {
                return if now > self.expires_at() {
                    Action::Expire { silent: self.silent_for(now) }
                } else {
                    Action::WaitUntil(self.first_expired_instant())
                };
            }
        }
        if now > self.expires_at() {
            return Action::Expire { silent: self.silent_for(now) };
        }
        let established = self.state == State::Established;
        if established && now >= self.next_heartbeat {
            return Action::SendHeartbeat;
        }
        let expiry = self.first_expired_instant();
        Action::WaitUntil(if established { expiry.min(self.next_heartbeat) } else { expiry })
    }

    /// The last instant at which the peer still counts as alive.
    fn expires_at(&self) -> Instant {
        self.last_inbound + self.interval * MISSED_LIMIT
    }

    /// Timers have millisecond grain, and expiry means *more* than the limit.
    fn first_expired_instant(&self) -> Instant {
        self.expires_at() + Duration::from_millis(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(15);

    fn established(now: Instant) -> Session {
        let mut session = Session::new(now, INTERVAL);
        session.on(now, Event::Accepted).unwrap();
        session
    }

    #[test]
    fn a_heartbeat_is_due_every_interval_and_asked_for_until_sent() {
        let start = Instant::now();
        let mut session = established(start);
        assert_eq!(session.poll(start), Action::WaitUntil(start + INTERVAL));
        let due = start + INTERVAL;
        assert_eq!(session.poll(due), Action::SendHeartbeat);
        assert_eq!(session.poll(due), Action::SendHeartbeat);
        session.on(due, Event::HeartbeatSent).unwrap();
        assert_eq!(session.poll(due), Action::WaitUntil(due + INTERVAL));
    }

    #[test]
    fn a_peer_expires_past_three_silent_intervals_and_not_before() {
        let start = Instant::now();
        let mut session = established(start);
        let limit = start + INTERVAL * MISSED_LIMIT;
        session.on(limit, Event::HeartbeatSent).unwrap();
        assert!(matches!(session.poll(limit), Action::WaitUntil(_)));
        let past = limit + Duration::from_millis(1);
        let silent = INTERVAL * MISSED_LIMIT + Duration::from_millis(1);
        assert_eq!(session.poll(past), Action::Expire { silent });
    }

    #[test]
    fn the_wait_ends_at_the_first_expired_instant() {
        let start = Instant::now();
        let mut session = established(start);
        let mut now = start;
        for _ in 0..100 {
            match session.poll(now) {
                Action::SendHeartbeat => {
                    session.on(now, Event::HeartbeatSent).unwrap();
                }
                Action::WaitUntil(at) => {
                    assert!(at > now, "a wait must move time");
                    now = at;
                }
                Action::Expire { silent } => {
                    assert_eq!(silent, INTERVAL * MISSED_LIMIT + Duration::from_millis(1));
                    return;
                }
                Action::Finished => panic!("not closed"),
            }
        }
        panic!("never expired");
    }

    #[test]
    fn anything_inbound_keeps_the_peer_alive() {
        let start = Instant::now();
        let mut session = established(start);
        let mut now = start;
        for _ in 0..20 {
            now += INTERVAL * 2;
            session.on(now, Event::Inbound).unwrap();
            session.on(now, Event::HeartbeatSent).unwrap();
            assert!(matches!(session.poll(now), Action::WaitUntil(_)));
        }
        assert_eq!(session.silent_for(now + INTERVAL), INTERVAL);
    }

    #[test]
    fn a_peer_that_never_accepts_expires_without_heartbeats() {
        let start = Instant::now();
        let session = Session::new(start, INTERVAL);
        assert!(matches!(session.poll(start + INTERVAL), Action::WaitUntil(_)));
        assert!(matches!(session.poll(start + INTERVAL * 4), Action::Expire { .. }));
    }

    #[test]
    fn transitions_are_those_documented() {
        use State::*;
        let now = Instant::now();
        let table = [
            (vec![], Event::Accepted, Ok(Established)),
            (vec![], Event::Superseded, Err(Connecting)),
            (vec![], Event::Close, Ok(Closing)),
            (vec![Event::Accepted], Event::Accepted, Err(Established)),
            (vec![Event::Accepted], Event::Superseded, Ok(Superseded)),
            (vec![Event::Accepted], Event::Close, Ok(Closing)),
            (vec![Event::Accepted, Event::Superseded], Event::Close, Ok(Superseded)),
            (vec![Event::Accepted, Event::Superseded], Event::StreamEnded, Ok(Closed)),
            (vec![Event::Accepted, Event::Close], Event::Superseded, Ok(Closing)),
            (vec![Event::Close], Event::Accepted, Err(Closing)),
            (vec![Event::StreamEnded], Event::Accepted, Err(Closed)),
            (vec![Event::StreamEnded], Event::Inbound, Ok(Closed)),
        ];
        for (before, event, outcome) in table {
            let mut session = Session::new(now, INTERVAL);
            for event in &before {
                session.on(now, *event).unwrap();
            }
            let got = session.on(now, event).map_err(|illegal| illegal.state);
            assert_eq!(got, outcome, "{before:?} then {event:?}");
        }
    }

    #[test]
    fn winding_down_sends_no_heartbeats_but_is_bounded() {
        let start = Instant::now();
        for end in [Event::Close, Event::Superseded] {
            let mut session = established(start);
            session.on(start, end).unwrap();
            assert!(matches!(session.poll(start + INTERVAL * 2), Action::WaitUntil(_)));
            assert!(matches!(session.poll(start + INTERVAL * 4), Action::Expire { .. }));
            session.on(start, Event::StreamEnded).unwrap();
            assert_eq!(session.poll(start + INTERVAL * 4), Action::Finished);
        }
    }

    #[test]
    fn an_interval_of_zero_does_not_spin() {
        let now = Instant::now();
        let mut session = Session::new(now, Duration::ZERO);
        session.on(now, Event::Accepted).unwrap();
        assert!(matches!(session.poll(now), Action::WaitUntil(at) if at > now));
    }
}
