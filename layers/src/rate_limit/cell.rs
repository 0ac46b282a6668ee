//! GCRA: one number per key, the time at which its quota would be full again. Pure; `now` is in nanoseconds.

use std::time::Duration;

use super::{Exceeded, Quota};

/// A quota in the terms of the algorithm, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    quota: Quota,
    /// Between two calls in the long run: T.
    interval: u64,
    /// How far ahead of that a burst may run: tau.
    tolerance: u64,
}

/// The theoretical arrival time of the next call, in nanoseconds since the layer's start. At or before now: full.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cell(u64);

impl Pace {
    pub(super) fn new(quota: Quota) -> Self {
        let per = u64::try_from(quota.per.as_nanos()).unwrap_or(u64::MAX);
        let interval = (per / u64::from(quota.calls.max(1))).max(1);
        let tolerance = interval.saturating_mul(u64::from(quota.burst.saturating_sub(1)));
        Self { quota, interval, tolerance }
    }

    /// The time in which an empty quota fills up.
    pub(super) fn refill(self) -> u64 {
        self.tolerance.saturating_add(self.interval)
    }

    pub(super) fn exceeded(self, what: &'static str, wait: Duration) -> Exceeded {
        Exceeded { what, quota: self.quota, wait }
    }
}

impl Cell {
    /// The cell after one more call at `now`, or how long that call would have to wait.
    pub(super) fn after(self, pace: Pace, now: u64) -> Result<Self, Duration> {
        let earliest = self.0.saturating_sub(pace.tolerance);
        if now < earliest {
            return Err(Duration::from_nanos(earliest - now));
        }
        Ok(Self(self.0.max(now).saturating_add(pace.interval)))
    }

    pub(super) fn is_full(self, now: u64) -> bool {
        self.0 <= now
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// In any window of length w that starts anywhere, at most burst + w / T + 1 calls pass; and a refused call
        /// passes after exactly the wait that it was told.
        #[test]
        fn no_window_holds_more_than_the_quota(
            calls in 1u32..50, burst in 1u32..20, steps in prop::collection::vec(0u64..40_000_000, 1..200),
        ) {
            let pace = Pace::new(Quota { calls, per: Duration::from_secs(1), burst });
            let (mut cell, mut now, mut passed) = (Cell::default(), 1_000, Vec::new());
            for step in steps {
                now += step;
                match cell.after(pace, now) {
                    Ok(after) => { cell = after; passed.push(now); }
                    Err(wait) => {
                        let wait = u64::try_from(wait.as_nanos()).expect("short");
                        prop_assert!(cell.after(pace, now + wait).is_ok());
                        prop_assert!(cell.after(pace, now + wait - 1).is_err());
                    }
                }
            }
            for (first, start) in passed.iter().enumerate() {
                for (last, end) in passed.iter().enumerate().skip(first) {
                    let most = u64::from(burst) + (end - start) / pace.interval;
                    prop_assert!((last - first + 1) as u64 <= most, "{} calls in {} ns", last - first + 1, end - start);
                }
            }
        }
    }
}
