//! Random histories of one registry, checked against what must always hold.

use std::collections::HashMap;
use std::pin::Pin;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::splice::SplicedBody;

const SANDBOXES: [&str; 2] = ["a", "b"];

#[derive(Debug, Clone)]
enum Step {
    Register(usize),
    RemoveCurrent(usize),
    RemoveStale(usize),
    Open(usize),
    DropOpen(prop::sample::Index),
    Claim(prop::sample::Index, usize),
    Refuse(prop::sample::Index),
    EndRelay(prop::sample::Index),
    Disconnect(usize),
    Advance(u64),
    Reap,
}

fn step() -> impl Strategy<Value = Step> {
    let sandbox = 0..SANDBOXES.len();
    let any_index = any::<prop::sample::Index>();
    prop_oneof![
        3 => sandbox.clone().prop_map(Step::Register),
        1 => sandbox.clone().prop_map(Step::RemoveCurrent),
        1 => sandbox.clone().prop_map(Step::RemoveStale),
        5 => sandbox.clone().prop_map(Step::Open),
        1 => any_index.clone().prop_map(Step::DropOpen),
        4 => (any_index.clone(), sandbox.clone()).prop_map(|(i, s)| Step::Claim(i, s)),
        1 => any_index.clone().prop_map(Step::Refuse),
        2 => any_index.clone().prop_map(Step::EndRelay),
        1 => sandbox.prop_map(Step::Disconnect),
        2 => (1_u64..4000).prop_map(Step::Advance),
        1 => Just(Step::Reap),
    ]
}

type Opening = Pin<Box<dyn Future<Output = Result<OpenedRelay, OpenError>> + Send>>;

#[derive(Default)]
struct World {
    registry: Registry,
    sessions: HashMap<&'static str, Registration>,
    stale: Vec<(&'static str, SessionId)>,
    openings: Vec<(&'static str, Opening)>,
    /// Every channel any session was asked for, with its sandbox.
    asked: Vec<(&'static str, String)>,
    claimed: Vec<String>,
    live: Vec<(OpenedRelay, SplicedBody)>,
}

impl World {
    /// Lets every open run as far as it goes, and reads what sessions were sent.
    async fn settle(&mut self) {
        let mut openings = Vec::new();
        let mut done = Vec::new();
        for (sandbox, mut opening) in self.openings.drain(..) {
            match futures_util::poll!(opening.as_mut()) {
                std::task::Poll::Pending => openings.push((sandbox, opening)),
                std::task::Poll::Ready(outcome) => done.push((sandbox, outcome)),
            }
        }
        self.openings = openings;
        for (sandbox, outcome) in done {
            if let Ok(relay) = outcome {
                assert_eq!(&*relay.info().sandbox_id, sandbox);
                panic!("claims collect their relay themselves");
            }
        }
        for (sandbox, session) in &mut self.sessions {
            while let Ok(message) = session.outbound.try_recv() {
                if let Some(gateway_message::Payload::RelayOpen(open)) = message.payload {
                    self.asked.push((sandbox, open.channel_id));
                }
            }
        }
    }

    async fn claim(&mut self, channel: String, owner: &'static str, claimant: &'static str) {
        match claim(&self.registry, &channel, claimant) {
            Ok(ticket) => {
                assert_eq!(owner, claimant, "claimed by another sandbox");
                assert!(!self.claimed.contains(&channel), "claimed twice");
                self.claimed.push(channel);
                // Exactly one open gets the relay.
                let mut found = None;
                let mut rest = Vec::new();
                for (sandbox, mut opening) in self.openings.drain(..) {
                    match futures_util::poll!(opening.as_mut()) {
                        std::task::Poll::Ready(Ok(relay)) => {
                            assert!(found.is_none() && sandbox == owner);
                            assert_eq!(relay.info().channel_id, ticket.info().channel_id);
                            found = Some(relay);
                        }
                        std::task::Poll::Ready(Err(_)) => {}
                        std::task::Poll::Pending => rest.push((sandbox, opening)),
                    }
                }
                self.openings = rest;
                self.live.push((found.expect("an open waited for it"), ticket.into_body()));
            }
            Err(ClaimError::PermissionDenied) => assert_ne!(owner, claimant),
            Err(ClaimError::NotFound) => {}
        }
    }

    async fn apply(&mut self, step: Step) {
        match step {
            Step::Register(s) => {
                let session = register(&self.registry, SANDBOXES[s]);
                if let Some(older) = self.sessions.insert(SANDBOXES[s], session) {
                    self.stale.push((SANDBOXES[s], older.session_id));
                }
            }
            Step::RemoveCurrent(s) => {
                if let Some(session) = self.sessions.remove(SANDBOXES[s]) {
                    assert!(self.registry.remove_if_current(SANDBOXES[s], session.session_id));
                    self.stale.push((SANDBOXES[s], session.session_id));
                }
            }
            Step::RemoveStale(s) => {
                for (sandbox, id) in &self.stale {
                    assert!(!self.registry.remove_if_current(sandbox, *id));
                    assert!(!self.registry.remove_if_current(SANDBOXES[s], *id));
                }
            }
            Step::Open(s) => {
                let registry = self.registry.clone();
                let request = ssh_relay(SANDBOXES[s]);
                let opening = Box::pin(async move { registry.open(request).await });
                self.openings.push((SANDBOXES[s], opening));
            }
            Step::DropOpen(i) if !self.openings.is_empty() => {
                drop(self.openings.remove(i.index(self.openings.len())));
            }
            Step::Claim(i, s) if !self.asked.is_empty() => {
                let (owner, channel) = self.asked[i.index(self.asked.len())].clone();
                self.claim(channel, owner, SANDBOXES[s]).await;
            }
            Step::Refuse(i) if !self.asked.is_empty() => {
                let (owner, channel_id) = self.asked[i.index(self.asked.len())].clone();
                let result = RelayOpenResult { channel_id, ..Default::default() };
                self.registry.relay_open_result(owner, &result);
            }
            Step::EndRelay(i) if !self.live.is_empty() => {
                self.live.remove(i.index(self.live.len()));
            }
            Step::Disconnect(s) => {
                let had = self.sessions.remove(SANDBOXES[s]);
                assert_eq!(
                    self.registry.disconnect(SANDBOXES[s], "stop", Code::Aborted),
                    had.is_some()
                );
                self.live.retain(|(relay, _)| &*relay.info().sandbox_id != SANDBOXES[s]);
                self.stale.extend(had.map(|session| (SANDBOXES[s], session.session_id)));
            }
            Step::Advance(ms) => tokio::time::advance(Duration::from_millis(ms)).await,
            Step::Reap => {
                self.registry.reap(Instant::now());
            }
            _ => {}
        }
    }

    fn check(&self) {
        let stats = self.registry.stats();
        assert_eq!(stats.sessions, self.sessions.len());
        assert_eq!(stats.pending, self.openings.len(), "pending entries are exactly the opens");
        assert_eq!(stats.live, self.live.len());
        assert_eq!(self.registry.inner.indexed_channels(), stats.pending);
        for (sandbox, session) in &self.sessions {
            assert_eq!(self.registry.current(sandbox), Some(session.session_id));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_history_breaks_the_registry(steps in prop::collection::vec(step(), 1..80)) {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        runtime.unwrap().block_on(async move {
            let mut world = World::default();
            for step in steps {
                world.apply(step).await;
                world.settle().await;
                world.check();
            }
            world.live.clear();
            world.openings.clear();
            for (sandbox, session) in world.sessions.drain() {
                world.registry.remove_if_current(sandbox, session.session_id);
            }
            assert_empty(&world.registry);
        });
    }
}
