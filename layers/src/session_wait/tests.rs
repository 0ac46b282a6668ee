use std::{
    collections::VecDeque,
    future::{Ready, ready},
    sync::Mutex,
};

use tokio::sync::watch;

use super::*;

#[derive(Debug, PartialEq)]
enum Fail {
    NoSession,
    Denied,
    GaveUp(Duration),
}

type Line = Result<u8, fn() -> Fail>;

/// Answers by a script, the last line for ever, and notes when it was asked.
#[derive(Clone)]
struct Opener {
    script: Arc<Mutex<VecDeque<Line>>>,
    asked: Arc<Mutex<Vec<Instant>>>,
}

impl Opener {
    fn new(script: impl IntoIterator<Item = Line>) -> Self {
        Self { script: Arc::new(Mutex::new(script.into_iter().collect())), asked: Arc::default() }
    }

    fn times(&self, start: Instant) -> Vec<Duration> {
        self.asked.lock().unwrap().iter().map(|at| *at - start).collect()
    }
}

impl Service<&'static str> for Opener {
    type Response = u8;
    type Error = Fail;
    type Future = Ready<Result<u8, Fail>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Fail>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: &'static str) -> Self::Future {
        self.asked.lock().unwrap().push(Instant::now());
        let mut script = self.script.lock().unwrap();
        let line = if script.len() > 1 { script.pop_front() } else { script.front().copied() };
        ready(line.expect("a script has a line").map_err(|fail| fail()))
    }
}

type Waiting<G> = SessionWaitLayer<fn(&Fail) -> bool, Duration, G, fn(Fail, Duration) -> Fail>;

const BUDGET: Duration = Duration::from_secs(15);

fn no_session() -> Fail {
    Fail::NoSession
}

fn layer<G>(signal: G) -> Waiting<G> {
    SessionWaitLayer::new(
        Config::default(),
        |fail: &Fail| *fail == Fail::NoSession,
        BUDGET,
        signal,
        |_, budget| Fail::GaveUp(budget),
    )
}

#[tokio::test(start_paused = true)]
async fn an_open_session_costs_no_time() {
    let start = Instant::now();
    let opener = Opener::new([Ok(7)]);
    assert_eq!(layer(()).layer(opener).call("a").await, Ok(7));
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn the_budget_bounds_the_wait_and_is_in_the_error() {
    let start = Instant::now();
    let opener = Opener::new([Err(no_session as fn() -> Fail)]);
    let outcome = layer(()).layer(opener.clone()).call("a").await;
    assert_eq!(outcome, Err(Fail::GaveUp(BUDGET)));
    assert_eq!(start.elapsed(), BUDGET);
    let times = opener.times(start);
    let gaps: Vec<_> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (place, gap) in gaps.iter().enumerate() {
        let full = Duration::from_millis(100)
            .saturating_mul(1 << place.min(8))
            .min(Duration::from_secs(2));
        // The timer of tokio rounds up to a millisecond.
        let range = full / 2..=full + Duration::from_millis(2);
        assert!(range.contains(gap), "attempt {place} waited {gap:?}, not {range:?}");
    }
    assert!((9..=20).contains(&times.len()), "{} attempts", times.len());
}

#[tokio::test(start_paused = true)]
async fn a_signal_wakes_at_once() {
    let start = Instant::now();
    let (session, seen) = watch::channel(());
    let opener = Opener::new([Err(no_session as fn() -> Fail), Err(no_session), Ok(7)]);
    let signal = move |_: &&'static str| {
        let mut seen = seen.clone();
        seen.mark_unchanged();
        async move {
            let _ = seen.changed().await;
        }
    };
    let waiting = tokio::spawn(layer(signal).layer(opener.clone()).call("a"));
    // Long enough for the second attempt to have failed and the third to be at least 100 ms away.
    while opener.times(start).len() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    tokio::time::sleep(Duration::from_millis(10)).await;
    let signalled = start.elapsed();
    session.send_replace(());
    assert_eq!(waiting.await.unwrap(), Ok(7));
    assert_eq!(
        start.elapsed(),
        signalled,
        "no time passed between the signal and the third attempt"
    );
}

#[tokio::test(start_paused = true)]
async fn a_signal_between_the_subscription_and_the_wait_is_not_lost() {
    let start = Instant::now();
    let (session, seen) = watch::channel(());
    let signal = move |_: &&'static str| {
        let mut seen = seen.clone();
        seen.mark_unchanged();
        async move {
            let _ = seen.changed().await;
        }
    };
    let opener = Opener::new([Err(no_session as fn() -> Fail), Ok(7)]);
    let call = layer(signal).layer(opener).call("a");
    // The attempt has been made and has failed; nobody has polled the wait.
    session.send_replace(());
    assert_eq!(call.await, Ok(7));
    assert!(start.elapsed() <= MIN_GAP + Duration::from_millis(1), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_signal_that_is_always_on_does_not_spin() {
    let opener = Opener::new([Err(no_session as fn() -> Fail)]);
    let start = Instant::now();
    let outcome = layer(|_: &&'static str| ready(())).layer(opener.clone()).call("a").await;
    assert_eq!(outcome, Err(Fail::GaveUp(BUDGET)));
    let most = BUDGET.as_millis() / MIN_GAP.as_millis() + 1;
    assert!(opener.times(start).len() as u128 <= most, "{} attempts", opener.times(start).len());
}

#[tokio::test(start_paused = true)]
async fn another_error_passes_unchanged_at_once() {
    let start = Instant::now();
    let opener = Opener::new([Err((|| Fail::Denied) as fn() -> Fail)]);
    assert_eq!(layer(()).layer(opener).call("a").await, Err(Fail::Denied));
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn without_budget_there_is_one_attempt() {
    let opener = Opener::new([Err(no_session as fn() -> Fail)]);
    let layer = SessionWaitLayer::new(Config::default(), |_: &Fail| true, Duration::ZERO, (), ());
    let start = Instant::now();
    assert_eq!(layer.layer(opener.clone()).call("a").await, Err(Fail::NoSession));
    assert_eq!(opener.times(start).len(), 1);
}

#[test]
fn every_fault_is_told() {
    let config = Config { first_delay: Duration::from_millis(1), max_delay: Duration::ZERO };
    let fields: Vec<_> = config.validate().into_iter().map(|fault| fault.field).collect();
    assert_eq!(fields, ["first_delay", "max_delay"]);
    assert!(Config::default().validate().is_empty());
}

#[test]
fn the_delay_doubles_up_to_its_maximum() {
    let config = Config::default();
    assert_eq!(config.delay(1, 500), Duration::from_millis(100));
    assert_eq!(config.delay(1, 0), Duration::from_millis(50));
    assert_eq!(config.delay(3, 500), Duration::from_millis(400));
    assert_eq!(config.delay(u32::MAX, 500), Duration::from_secs(2));
}
