use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

use proptest::prelude::*;

use super::*;
use crate::ocsf::object::{Device, DeviceKind, Endpoint, Peers, Product};
use crate::ocsf::{ConnectionActivity, NetworkActivity};

fn source() -> Source {
    Source::new(Product::default(), Device::new(DeviceKind::Server, "host")).instance("run")
}

fn event(time: i64) -> Event {
    NetworkActivity::new(ConnectionActivity::Open, Peers::to(Endpoint::named("x")), time).into()
}

/// What a sink saw: time, sequence, and for a notice the number of missing events.
type Seen = (i64, u64, Option<u64>);

fn seen(record: &Record<'_>) -> Seen {
    let common = record.event().common();
    (record.event().time(), record.sequence(), common.count)
}

/// A sink that waits for a token before each event, and tells what it got.
fn gated() -> (impl Sink, mpsc::Sender<bool>, mpsc::Receiver<Seen>) {
    let (gate, tokens) = mpsc::channel::<bool>();
    let (out, got) = mpsc::channel();
    let sink = move |record: &Record<'_>| {
        // Without a gate keeper everything passes.
        if !tokens.recv().unwrap_or(true) {
            return Err(io::Error::other("scripted failure"));
        }
        out.send(seen(record)).map_err(io::Error::other)
    };
    (sink, gate, got)
}

const LIMIT: Duration = Duration::from_secs(20);

#[test]
fn events_arrive_in_order_with_their_sequence() {
    let (sink, gate, got) = gated();
    drop(gate);
    let (recorder, writer) =
        Recorder::builder(source()).linger(Duration::ZERO).sink(sink).start().unwrap();
    for time in 0..100 {
        assert!(recorder.record(event(time)));
    }
    let counts = writer.shutdown(LIMIT).unwrap();
    let times: Vec<Seen> = got.iter().collect();
    let wanted: Vec<Seen> = (0..100u64).map(|n| (i64::try_from(n).unwrap(), n + 1, None)).collect();
    assert_eq!(times, wanted);
    assert_eq!((counts.accepted, counts.dropped, counts.notices), (100, 0, 0));
    assert_eq!((counts.sinks[0].written, counts.sinks[0].failed), (100, 0));
    assert!(!recorder.record(event(100)), "after the end events are dropped");
    assert_eq!(recorder.counts().dropped, 1);
}

#[test]
fn a_full_queue_drops_counts_and_says_where() {
    let (sink, gate, got) = gated();
    let (recorder, writer) =
        Recorder::builder(source()).capacity(4).linger(Duration::ZERO).sink(sink).start().unwrap();
    // The first one is on its way through the sink when the queue is empty again.
    assert!(recorder.record(event(0)));
    while recorder.counts().queued > 0 {
        std::thread::yield_now();
    }
    for time in 1..=4 {
        assert!(recorder.record(event(time)), "four fit");
    }
    for time in 5..=9 {
        assert!(!recorder.record(event(time)), "five do not");
    }
    drop(gate);
    assert_eq!(writer.shutdown(LIMIT).unwrap().notices, 1);
    let seen: Vec<Seen> = got.iter().collect();
    let times: Vec<(i64, Option<u64>)> =
        seen.iter().map(|(time, _, count)| (*time, *count)).collect();
    assert_eq!(times, [(0, None), (1, None), (2, None), (3, None), (4, None), (9, Some(5))]);
    assert_eq!(recorder.counts().dropped, 5);
}

#[test]
fn a_failing_sink_is_told_what_it_missed_and_others_are_not_disturbed() {
    let (failing, gate, got) = gated();
    let (healthy, open, all) = gated();
    drop(open);
    let (recorder, writer) = Recorder::builder(source())
        .linger(Duration::ZERO)
        .sink(failing)
        .sink(healthy)
        .start()
        .unwrap();
    // The first fails. The second finds the notice failing. The third gets notice and event through.
    for pass in [false, false, true, true] {
        gate.send(pass).unwrap();
    }
    for time in 0..3 {
        recorder.record(event(time));
    }
    drop(gate);
    let counts = writer.shutdown(LIMIT).unwrap();
    let times: Vec<(i64, Option<u64>)> = got.iter().map(|(time, _, count)| (time, count)).collect();
    assert_eq!(times, [(1, Some(2)), (2, None)]);
    assert_eq!(all.iter().map(|(time, ..)| time).collect::<Vec<_>>(), [0, 1, 2]);
    assert_eq!((counts.sinks[0].written, counts.sinks[0].failed), (1, 2));
    assert_eq!((counts.sinks[1].written, counts.sinks[1].failed), (3, 0));
    assert_eq!(counts.sinks[0].last_error.as_deref(), Some("scripted failure"));
    assert_eq!(counts.notices, 1);
}

#[test]
fn no_two_lines_of_a_sink_share_a_sequence() {
    let (sink, gate, got) = gated();
    let (recorder, writer) =
        Recorder::builder(source()).linger(Duration::ZERO).sink(sink).start().unwrap();
    for pass in [true, false, true, true, true] {
        gate.send(pass).unwrap();
    }
    for time in 0..4 {
        recorder.record(event(time));
    }
    drop(gate);
    drop(writer.shutdown(LIMIT).unwrap());
    let sequences: Vec<u64> = got.iter().map(|(_, sequence, _)| sequence).collect();
    assert!(sequences.is_sorted_by(|a, b| a < b), "{sequences:?}");
}

#[test]
fn a_panicking_sink_fails_alone() {
    let (healthy, open, all) = gated();
    drop(open);
    let (recorder, writer) = Recorder::builder(source())
        .sink(|_: &Record<'_>| -> io::Result<()> { panic!("scripted panic") })
        .sink(healthy)
        .start()
        .unwrap();
    recorder.record(event(1));
    let counts = writer.shutdown(LIMIT).unwrap();
    assert_eq!(all.iter().count(), 1);
    assert_eq!((counts.sinks[0].failed, counts.sinks[1].written), (1, 1));
}

#[test]
fn a_draft_is_put_together_by_the_writer_and_may_fail_alone() {
    let (sink, gate, got) = gated();
    drop(gate);
    let (recorder, writer) = Recorder::builder(source()).sink(sink).start().unwrap();
    let (out, name) = mpsc::channel();
    recorder.record(Draft::later(1, move || {
        out.send(std::thread::current().name().map(str::to_owned)).unwrap();
        event(1)
    }));
    recorder.record(Draft::later(2, || panic!("scripted panic")));
    recorder.record(event(3));
    let counts = writer.shutdown(LIMIT).unwrap();
    assert_eq!(name.try_recv().unwrap().as_deref(), Some("ocsf-writer"));
    let seen: Vec<(i64, Option<u64>)> = got.iter().map(|(time, _, count)| (time, count)).collect();
    assert_eq!(seen, [(1, None), (2, Some(1)), (3, None)]);
    assert_eq!((counts.sinks[0].written, counts.sinks[0].failed), (2, 1));
}

#[test]
fn a_stalled_sink_does_not_hold_up_the_shutdown() {
    let (sink, gate, _got) = gated();
    let (recorder, writer) =
        Recorder::builder(source()).linger(Duration::ZERO).sink(sink).start().unwrap();
    recorder.record(event(1));
    recorder.record(event(2));
    let left = writer.shutdown(Duration::from_millis(10)).unwrap_err();
    assert!(left.events >= 1 && left.events <= 2, "{left}");
    drop(gate);
}

#[tokio::test]
async fn a_flush_ends_when_everything_before_it_is_written() {
    let (sink, gate, got) = gated();
    drop(gate);
    // Lingering for an hour: only the flush makes the writer go.
    let (recorder, writer) =
        Recorder::builder(source()).linger(Duration::from_secs(3600)).sink(sink).start().unwrap();
    for time in 0..3 {
        recorder.record(event(time));
    }
    recorder.flush().await;
    assert_eq!(got.try_iter().count(), 3);
    recorder.flush().await;
    drop(writer);
    recorder.flush().await;
}

#[test]
fn a_disabled_recorder_forgets() {
    let recorder = Recorder::disabled();
    assert!(recorder.record(event(1)) && !recorder.is_enabled());
    assert_eq!(recorder.counts().accepted, 0);
}

#[test]
fn many_threads_lose_nothing_that_is_not_counted() {
    let (out, got) = mpsc::channel();
    let sink = move |record: &Record<'_>| out.send(seen(record)).map_err(io::Error::other);
    let (recorder, writer) =
        Recorder::builder(source()).capacity(16).linger(Duration::ZERO).sink(sink).start().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                (0..2000).for_each(|time| {
                    recorder.record(event(time));
                })
            });
        }
    });
    let counts = writer.shutdown(LIMIT).unwrap();
    let seen: Vec<Seen> = got.iter().collect();
    let events = seen.iter().filter(|(.., count)| count.is_none()).count() as u64;
    let missing: u64 = seen.iter().filter_map(|(.., count)| *count).sum();
    assert_eq!(counts.accepted + counts.dropped, 8000);
    assert_eq!((events, missing), (counts.accepted, counts.dropped), "every drop is told of");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the sink does and however small the queue is: each event is written, failed or dropped, exactly once, and the
    /// notices add up to what a sink has not got.
    #[test]
    fn the_accounts_balance(
        capacity in 1usize..8,
        bursts in prop::collection::vec(1usize..12, 1..8),
        fails in prop::collection::vec(any::<bool>(), 0..40),
    ) {
        let (out, got) = mpsc::channel();
        let mut script = fails.into_iter();
        let healed = Arc::new(AtomicBool::new(false));
        let is_healed = Arc::clone(&healed);
        let sink = move |record: &Record<'_>| {
            if script.next().unwrap_or(false) && !is_healed.load(Ordering::SeqCst) {
                return Err(io::Error::other("scripted failure"));
            }
            out.send(seen(record)).map_err(io::Error::other)
        };
        let (recorder, writer) =
            Recorder::builder(source()).capacity(capacity).linger(Duration::ZERO).sink(sink).start().unwrap();
        let mut offered = 0;
        let mut refused = 0;
        for burst in bursts {
            for _ in 0..burst {
                refused += u64::from(!recorder.record(event(offered)));
                offered += 1;
            }
            std::thread::yield_now();
        }
        healed.store(true, Ordering::SeqCst);
        let counts = writer.shutdown(LIMIT).unwrap();
        let seen: Vec<Seen> = got.iter().collect();
        let events = seen.iter().filter(|(.., count)| count.is_none()).count() as u64;
        let told: u64 = seen.iter().filter_map(|(.., count)| *count).sum();
        prop_assert_eq!(counts.dropped, refused);
        prop_assert_eq!(counts.accepted + counts.dropped, u64::try_from(offered).unwrap());
        prop_assert_eq!(counts.sinks[0].written, events);
        prop_assert_eq!(counts.sinks[0].written + counts.sinks[0].failed, counts.accepted);
        prop_assert_eq!(told, counts.sinks[0].failed + counts.dropped);
    }
}
