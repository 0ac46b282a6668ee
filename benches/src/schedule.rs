//! When things are due: a constant arrival rate.
//!
//! An open-loop generator decides beforehand when each request is due and measures from that time, not from the time
//! it got round to sending. A system that stalls for a second is then charged with every request that was due in that
//! second; a closed loop would send one, and hide the rest (Tene, "How NOT to measure latency": coordinated
//! omission).

use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// Arrivals at a constant rate for some time.
#[derive(Debug, Clone)]
pub struct Schedule {
    start: Instant,
    rate: f64,
    count: u64,
    next: u64,
}

impl Schedule {
    /// `rate` arrivals per second from `start`, for `duration`. A rate that is not positive has no arrivals.
    #[must_use]
    pub fn new(start: Instant, rate: f64, duration: Duration) -> Self {
        let count = if rate > 0.0 { (rate * duration.as_secs_f64()).round() as u64 } else { 0 };
        Self { start, rate, count, next: 0 }
    }

    /// How many arrivals there are in all.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Waits for the next arrival and says when it was due, which may be long ago when the caller is late.
    /// `None` when there is none left.
    pub async fn next(&mut self) -> Option<Instant> {
        let due = self.due()?;
        sleep_until(due).await;
        self.next += 1;
        Some(due)
    }

    fn due(&self) -> Option<Instant> {
        let ahead = self.next as f64 / self.rate;
        (self.next < self.count).then(|| self.start + Duration::from_secs_f64(ahead))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn arrivals_keep_their_times_whatever_the_caller_does() {
        let start = Instant::now();
        let mut schedule = Schedule::new(start, 10.0, Duration::from_secs(1));
        let mut due = Vec::new();
        while let Some(at) = schedule.next().await {
            due.push((at - start).as_millis());
            if due.len() == 3 {
                // A stall of half a second moves no arrival.
                tokio::time::advance(Duration::from_millis(500)).await;
            }
        }
        assert_eq!(due, [0, 100, 200, 300, 400, 500, 600, 700, 800, 900]);
    }

    #[tokio::test]
    async fn no_rate_is_no_arrivals() {
        let mut none = Schedule::new(Instant::now(), 0.0, Duration::from_secs(1));
        assert_eq!((none.count(), none.next().await), (0, None));
    }
}
