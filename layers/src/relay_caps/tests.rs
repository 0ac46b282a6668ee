use std::future::{Ready, ready};

use super::*;

#[derive(Debug)]
struct Ask(u8, Option<&'static str>);

#[derive(Debug, Default)]
struct Relay(Option<Permit>);

impl HoldPermit for Relay {
    fn hold(&mut self, permit: Permit) {
        self.0 = Some(permit);
    }
}

/// An opener whose openings take until the test says so: the future is polled by hand.
#[derive(Clone)]
struct Opener;

impl Service<Ask> for Opener {
    type Response = Relay;
    type Error = Refusal;
    type Future = Ready<Result<Relay, Refusal>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Ask) -> Self::Future {
        ready(Ok(Relay::default()))
    }
}

type Caps = RelayCapsLayer<fn(&Ask) -> Option<u8>, fn(&Ask) -> Option<&'static str>, u8>;

fn layer(config: &Config) -> Caps {
    RelayCapsLayer::new(config, |ask: &Ask| Some(ask.0), |ask: &Ask| ask.1)
}

fn config(classes: &[(&str, u32)]) -> Config {
    let classes = classes.iter().map(|(name, cap)| ((*name).to_owned(), *cap)).collect();
    Config { classes, ..Config::default() }
}

async fn refusal(future: impl Future<Output = Result<Relay, Refusal>>) -> String {
    let refusal = future.await.expect_err("a cap is reached");
    assert_eq!(refusal.code(), Code::ResourceExhausted);
    refusal.reason().to_owned()
}

#[tokio::test]
async fn of_64_openings_on_one_key_32_succeed_and_another_key_is_unaffected() {
    let layer = layer(&Config::default());
    let (handle, mut opener) = (layer.handle(), layer.layer(Opener));
    let openings: Vec<_> = (0..64).map(|_| opener.call(Ask(1, None))).collect();
    assert_eq!(handle.counts_of(&1), (32, 0));
    assert!(opener.call(Ask(2, None)).await.is_ok(), "another key has its own room");
    let mut relays = Vec::new();
    let mut refused = 0;
    for opening in openings {
        match opening.await {
            Ok(relay) => relays.push(relay),
            Err(refusal) => {
                assert!(refusal.reason().contains("pending_per_key = 32"), "{refusal}");
                refused += 1;
            }
        }
    }
    assert_eq!((relays.len(), refused), (32, 32));
    assert_eq!(handle.counts(), Counts { pending: 0, live: 32, opened: 33, refused: 32 });
    drop(relays);
    assert_eq!((handle.counts().live, handle.keys()), (0, 0));
}

#[tokio::test]
async fn the_global_cap_holds_across_keys() {
    let layer = layer(&Config { pending: 3, pending_per_key: 3, ..Config::default() });
    let mut opener = layer.layer(Opener);
    let held: Vec<_> = (0..3).map(|key| opener.call(Ask(key, None))).collect();
    assert!(refusal(opener.call(Ask(9, None))).await.contains("pending = 3"));
    drop(held);
    assert!(opener.call(Ask(9, None)).await.is_ok(), "a cancelled opening frees its place");
}

#[tokio::test]
async fn a_class_is_capped_per_key_while_it_lives() {
    let layer = layer(&config(&[("ssh", 2)]));
    let mut opener = layer.layer(Opener);
    let first = opener.call(Ask(1, Some("ssh"))).await.unwrap();
    let _second = opener.call(Ask(1, Some("ssh"))).await.unwrap();
    assert!(refusal(opener.call(Ask(1, Some("ssh")))).await.contains("cap for ssh = 2"));
    assert!(opener.call(Ask(1, Some("tcp"))).await.is_ok(), "another class has no cap");
    assert!(opener.call(Ask(2, Some("ssh"))).await.is_ok(), "another key has its own");
    drop(first);
    assert!(opener.call(Ask(1, Some("ssh"))).await.is_ok());
}

#[tokio::test]
async fn live_caps_count_relays_that_are_being_opened() {
    let layer = layer(&Config { live: 2, live_per_key: 1, ..Config::default() });
    let mut opener = layer.layer(Opener);
    let opening = opener.call(Ask(1, None));
    assert!(refusal(opener.call(Ask(1, None))).await.contains("live_per_key = 1"));
    let _two = opener.call(Ask(2, None)).await.unwrap();
    assert!(refusal(opener.call(Ask(3, None))).await.contains("live = 2"));
    assert!(opening.await.is_ok(), "what was let through is not refused at the claim");
}

#[tokio::test]
async fn a_lowered_cap_ends_nothing() {
    let layer = layer(&Config::default());
    let (handle, mut opener) = (layer.handle(), layer.layer(Opener));
    let relays =
        [opener.call(Ask(1, None)).await.unwrap(), opener.call(Ask(1, None)).await.unwrap()];
    handle.set(&Config { live: 1, ..Config::default() });
    assert_eq!(handle.counts().live, 2);
    assert!(opener.call(Ask(1, None)).await.is_err());
    drop(relays);
    assert!(opener.call(Ask(1, None)).await.is_ok());
}

#[test]
fn every_fault_is_told() {
    let mut config = config(&[("ssh", 20)]);
    (config.pending, config.pending_per_key, config.live, config.live_per_key) = (1, 2, 3, 4);
    let fields: Vec<_> = config.validate().into_iter().map(|fault| fault.field).collect();
    assert_eq!(fields, ["pending_per_key", "live_per_key", "classes"]);
    assert!(Config::default().validate().is_empty());
}
