//! Latencies and rates while they happen: shared, and cut into seconds for plots.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tokio::time::Instant;

/// Longest latency told apart, in microseconds: a minute. Longer ones count as this.
const LONGEST: u64 = 60_000_000;

/// Digits kept of a latency. Three are more than a shared machine repeats.
const DIGITS: u8 = 3;

/// Most seconds kept for plots: an hour.
const MOST_SECONDS: usize = 3600;

/// Latencies of one kind of request, in all and per second.
pub struct Latencies {
    start: Instant,
    state: Mutex<State>,
}

struct State {
    all: Histogram<u64>,
    seconds: Vec<Histogram<u64>>,
    failed: u64,
    first_failure: Option<String>,
}

/// The percentiles of a plot's line.
pub const PERCENTILES: [f64; 4] = [50.0, 90.0, 99.0, 99.9];

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST, DIGITS).expect("the bounds are constants that fit")
}

fn record(histogram: &mut Histogram<u64>, latency: Duration) {
    let micros = u64::try_from(latency.as_micros()).unwrap_or(LONGEST);
    histogram.saturating_record(micros.clamp(1, LONGEST));
}

impl Latencies {
    /// None yet; seconds count from `start`.
    #[must_use]
    pub fn new(start: Instant) -> Self {
        let state = State { all: histogram(), seconds: Vec::new(), failed: 0, first_failure: None };
        Self { start, state: Mutex::new(state) }
    }

    /// One request that was due at `due` and is done `now`.
    pub fn done(&self, due: Instant, now: Instant) {
        self.record(due, now.saturating_duration_since(due));
    }

    /// A latency of its own, filed under the second of `at`.
    pub fn record(&self, at: Instant, latency: Duration) {
        let second = at.saturating_duration_since(self.start).as_secs();
        let second = usize::try_from(second).unwrap_or(MOST_SECONDS).min(MOST_SECONDS - 1);
        let mut state = self.state.lock();
        record(&mut state.all, latency);
        if state.seconds.len() <= second {
            state.seconds.resize_with(second + 1, histogram);
        }
        record(&mut state.seconds[second], latency);
    }

    /// One request that failed. The first reason is kept.
    pub fn failed(&self, why: &str) {
        let mut state = self.state.lock();
        state.failed += 1;
        state.first_failure.get_or_insert_with(|| why.to_owned());
    }

    /// How many were done, and how many failed.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.all.len(), state.failed)
    }

    /// Why the first one failed.
    #[must_use]
    pub fn first_failure(&self) -> Option<String> {
        self.state.lock().first_failure.clone()
    }

    /// What a percentile (0 to 100) is, of all.
    #[must_use]
    pub fn percentile(&self, percentile: f64) -> Duration {
        Duration::from_micros(self.state.lock().all.value_at_percentile(percentile))
    }

    /// The longest.
    #[must_use]
    pub fn max(&self) -> Duration {
        Duration::from_micros(self.state.lock().all.max())
    }

    /// Percentile and latency in milliseconds, evenly spread over what a logarithmic axis shows: 0 to 99.999.
    #[must_use]
    pub fn distribution(&self) -> Vec<(f64, f64)> {
        let state = self.state.lock();
        let nines = (0..=100).map(|step| f64::from(step) / 20.0);
        let percentiles = nines.map(|nines| 100.0 * (1.0 - 10_f64.powf(-nines)));
        percentiles
            .map(|percentile| {
                (percentile, state.all.value_at_percentile(percentile) as f64 / 1000.0)
            })
            .collect()
    }

    /// [`PERCENTILES`] of each second in milliseconds; a second without requests repeats nothing and is NaN.
    #[must_use]
    pub fn per_second(&self) -> Vec<[f64; PERCENTILES.len()]> {
        let state = self.state.lock();
        let of = |histogram: &Histogram<u64>| {
            PERCENTILES.map(|percentile| {
                if histogram.is_empty() {
                    f64::NAN
                } else {
                    histogram.value_at_percentile(percentile) as f64 / 1000.0
                }
            })
        };
        state.seconds.iter().map(of).collect()
    }
}

impl std::fmt::Debug for Latencies {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Latencies").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

/// Bytes that went one way, added up by many tasks.
#[derive(Debug, Default)]
pub struct Meter(AtomicU64);

impl Meter {
    /// Counts some more.
    pub fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// How many there were.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Gbit/s of some bytes in some time.
#[must_use]
pub fn gigabits(bytes: u64, time: Duration) -> f64 {
    bytes as f64 * 8.0 / 1e9 / time.as_secs_f64().max(f64::MIN_POSITIVE)
}

/// The middle one; the mean of the two middle ones of an even number; NaN of none.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        even if even % 2 == 0 => f64::midpoint(sorted[middle - 1], sorted[middle]),
        _ => sorted[middle],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn latencies_are_filed_under_the_second_they_were_due_in() {
        let start = Instant::now();
        let latencies = Latencies::new(start);
        latencies.done(start, start + Duration::from_millis(2));
        // Due in second 0 and done in second 3: the stall belongs where it hurt.
        latencies.done(start + Duration::from_millis(900), start + Duration::from_millis(3900));
        latencies.record(start + Duration::from_secs(2), Duration::from_millis(5));
        latencies.failed("first");
        latencies.failed("second");
        assert_eq!(latencies.counts(), (3, 2));
        assert_eq!(latencies.first_failure().as_deref(), Some("first"));
        let seconds = latencies.per_second();
        assert_eq!(seconds.len(), 3);
        assert!((seconds[0][3] - 3000.0).abs() < 5.0, "{seconds:?}");
        assert!(seconds[1][0].is_nan());
        assert!((seconds[2][0] - 5.0).abs() < 0.01);
    }

    #[test]
    fn medians() {
        assert!(median(&[]).is_nan());
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
    }

    #[test]
    fn gigabits_of_a_second() {
        assert!((gigabits(125_000_000, Duration::from_secs(1)) - 1.0).abs() < 1e-9);
    }
}
