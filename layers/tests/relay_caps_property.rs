//! No interleaving of open, claim, close, supersede, reap, cancel and panic leaks or double-frees a place.
//!
//! The real layer stands around an opener whose openings end when the test says so. After every step the layer's
//! counts are compared with a model that is nothing but a list.

use std::{
    future::Future,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    task::{Context, Poll, Waker},
};

use postern_layers::{
    refuse::{Code, Refusal},
    relay_caps::{Config, Handle, HoldPermit, Permit, RelayCapsLayer},
};
use proptest::prelude::*;
use tokio::sync::oneshot;
use tower::{Layer, Service};

#[derive(Debug, Default)]
struct Relay(Option<Permit>);

impl HoldPermit for Relay {
    fn hold(&mut self, permit: Permit) {
        assert!(self.0.replace(permit).is_none(), "a relay holds one permit");
    }
}

/// How an opening ends.
enum Ending {
    Claimed,
    Reaped,
    Panicked,
}

struct Ask {
    key: u8,
    class: Option<&'static str>,
    ending: oneshot::Receiver<Ending>,
}

#[derive(Clone)]
struct Opener;

impl Service<Ask> for Opener {
    type Response = Relay;
    type Error = Refusal;
    type Future = Pin<Box<dyn Future<Output = Result<Relay, Refusal>>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Refusal>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, ask: Ask) -> Self::Future {
        Box::pin(async move {
            match ask.ending.await {
                Ok(Ending::Claimed) => Ok(Relay::default()),
                Ok(Ending::Panicked) => panic!("the opener panics, as it was told to"),
                Ok(Ending::Reaped) | Err(_) => {
                    Err(Refusal::new("opener", Code::Unavailable, "not claimed in time"))
                }
            }
        })
    }
}

#[derive(Clone, Debug)]
enum Step {
    Open {
        key: u8,
        ssh: bool,
    },
    Claim(prop::sample::Index),
    Reap(prop::sample::Index),
    Panic(prop::sample::Index),
    Cancel(prop::sample::Index),
    Close(prop::sample::Index),
    /// A new session: what was being opened on the old one is given up, and asked for again.
    Supersede {
        key: u8,
    },
    Lower,
    Raise,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0u8..3, any::<bool>()).prop_map(|(key, ssh)| Step::Open { key, ssh }),
        3 => any::<prop::sample::Index>().prop_map(Step::Claim),
        1 => any::<prop::sample::Index>().prop_map(Step::Reap),
        1 => any::<prop::sample::Index>().prop_map(Step::Panic),
        1 => any::<prop::sample::Index>().prop_map(Step::Cancel),
        2 => any::<prop::sample::Index>().prop_map(Step::Close),
        1 => (0u8..3).prop_map(|key| Step::Supersede { key }),
        1 => Just(Step::Lower),
        1 => Just(Step::Raise),
    ];
    prop::collection::vec(step, 0..120)
}

type Opening = Pin<Box<dyn Future<Output = Result<Relay, Refusal>>>>;

struct Pending {
    key: u8,
    class: Option<&'static str>,
    ending: oneshot::Sender<Ending>,
    opening: Opening,
}

struct Live {
    key: u8,
    class: Option<&'static str>,
    relay: Relay,
}

fn poll(opening: &mut Opening) -> Poll<Result<Relay, Refusal>> {
    opening.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

struct World<S> {
    opener: S,
    config: Config,
    handle: Handle<u8>,
    pending: Vec<Pending>,
    live: Vec<Live>,
}

fn config() -> Config {
    let classes = [("ssh".to_owned(), 2)].into();
    Config { pending: 6, pending_per_key: 3, live: 10, live_per_key: 6, classes }
}

impl<S> World<S>
where
    S: Service<Ask, Response = Relay, Error = Refusal, Future: 'static>,
{
    /// Whether the model has room, by counting.
    fn room(&self, key: u8, class: Option<&'static str>) -> bool {
        let below = |count: usize, cap: u32| cap == 0 || count < cap as usize;
        let pending = self.pending.iter().filter(|pending| pending.key == key).count();
        let live = self.live.iter().filter(|live| live.key == key).count();
        let of_class = |(other, kind): (u8, Option<&'static str>)| {
            other == key && kind == class && class.is_some()
        };
        let classed =
            self.pending.iter().filter(|pending| of_class((pending.key, pending.class))).count()
                + self.live.iter().filter(|live| of_class((live.key, live.class))).count();
        below(self.pending.len(), self.config.pending)
            && below(self.pending.len() + self.live.len(), self.config.live)
            && below(pending, self.config.pending_per_key)
            && below(pending + live, self.config.live_per_key)
            && (class.is_none() || below(classed, self.config.classes["ssh"]))
    }

    fn open(&mut self, key: u8, class: Option<&'static str>) {
        let room = self.room(key, class);
        let (sender, ending) = oneshot::channel();
        let mut opening: Opening = Box::pin(self.opener.call(Ask { key, class, ending }));
        match poll(&mut opening) {
            Poll::Pending => {
                assert!(room, "let in although a cap is reached");
                self.pending.push(Pending { key, class, ending: sender, opening });
            }
            Poll::Ready(Err(refusal)) => {
                assert_eq!(refusal.code(), Code::ResourceExhausted);
                assert!(!room, "refused although there is room: {refusal}");
            }
            Poll::Ready(Ok(_)) => panic!("nobody has claimed it"),
        }
    }

    fn take(&mut self, index: prop::sample::Index) -> Option<Pending> {
        (!self.pending.is_empty())
            .then(|| self.pending.swap_remove(index.index(self.pending.len())))
    }

    fn end(&mut self, index: prop::sample::Index, ending: Ending) {
        let Some(Pending { key, class, ending: sender, mut opening }) = self.take(index) else {
            return;
        };
        assert!(sender.send(ending).is_ok(), "the opener is listening");
        match catch_unwind(AssertUnwindSafe(|| poll(&mut opening))) {
            Ok(Poll::Ready(Ok(relay))) => self.live.push(Live { key, class, relay }),
            Ok(Poll::Ready(Err(_))) | Err(_) => {}
            Ok(Poll::Pending) => panic!("it has ended"),
        }
    }

    fn supersede(&mut self, key: u8) {
        let (of_key, rest): (Vec<_>, Vec<_>) =
            self.pending.drain(..).partition(|pending| pending.key == key);
        self.pending = rest;
        let again: Vec<_> = of_key.iter().map(|pending| pending.class).collect();
        drop(of_key);
        again.into_iter().for_each(|class| self.open(key, class));
    }

    fn set(&mut self, config: Config) {
        self.handle.set(&config);
        self.config = config;
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Open { key, ssh } => self.open(key, ssh.then_some("ssh")),
            Step::Claim(index) => self.end(index, Ending::Claimed),
            Step::Reap(index) => self.end(index, Ending::Reaped),
            Step::Panic(index) => self.end(index, Ending::Panicked),
            Step::Cancel(index) => drop(self.take(index)),
            Step::Close(index) if !self.live.is_empty() => {
                let Live { relay, .. } = self.live.swap_remove(index.index(self.live.len()));
                assert!(relay.0.is_some(), "an open relay holds its permit");
            }
            Step::Close(_) => {}
            Step::Supersede { key } => self.supersede(key),
            Step::Lower => self.set(Config { pending: 2, live: 4, ..config() }),
            Step::Raise => self.set(config()),
        }
    }

    fn agrees(&self) {
        let counts = self.handle.counts();
        assert_eq!(
            (counts.pending as usize, counts.live as usize),
            (self.pending.len(), self.live.len())
        );
        for key in 0..3 {
            let pending = self.pending.iter().filter(|pending| pending.key == key).count();
            let live = self.live.iter().filter(|live| live.key == key).count();
            let (p, l) = self.handle.counts_of(&key);
            assert_eq!((p as usize, l as usize), (pending, live), "key {key}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn the_layer_agrees_with_the_model_after_every_step(steps in steps()) {
        let layer = RelayCapsLayer::new(&config(), |ask: &Ask| Some(ask.key), |ask: &Ask| ask.class);
        let handle = layer.handle();
        let (pending, live) = (Vec::new(), Vec::new());
        let mut world = World { opener: layer.layer(Opener), config: config(), handle: handle.clone(), pending, live };
        for step in steps {
            world.step(step);
            world.agrees();
        }
        drop(world);
        let counts = handle.counts();
        prop_assert_eq!((counts.pending, counts.live, handle.keys()), (0, 0, 0));
    }
}
