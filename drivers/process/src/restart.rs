//! Whether and when an ended supervisor is started again. Pure: time and chance are passed in.

use std::time::Duration;

use rand::{Rng, RngExt as _};

/// A supervisor that ran at least this long counts as having worked: the next failure begins a new
/// count. Start-up takes well under a second, so 10 s cannot be a crash at start.
const WORKED: Duration = Duration::from_secs(10);

/// Quick failures in a row after which the driver gives up. With the waits below that is after
/// less than 2 s, soon enough to tell the user who waits for the sandbox.
pub(crate) const QUICK_FAILURES: u32 = 5;

/// Wait before the second start; the first restart is at once, because a lost session is noticed
/// by users.
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// Longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Counts failures of one sandbox's supervisor.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Restarts {
    quick_failures: u32,
}

/// What to do about an ended supervisor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Start it again after this time.
    After(Duration),
    /// It failed too often.
    GiveUp,
}

impl Restarts {
    /// A supervisor ended by itself after `uptime`.
    pub(crate) fn ended(&mut self, uptime: Duration, rng: &mut impl Rng) -> Verdict {
        if uptime >= WORKED {
            self.quick_failures = 0;
        }
        self.quick_failures += 1;
        match self.quick_failures {
            1 => Verdict::After(Duration::ZERO),
            failures if failures < QUICK_FAILURES => {
                let full = FIRST_WAIT.saturating_mul(1 << (failures - 2).min(16)).min(LONGEST_WAIT);
                // Half fixed, half by chance: many sandboxes that died together come back apart.
                Verdict::After(full / 2 + full.mul_f64(rng.random_range(0.0..0.5)))
            }
            _ => Verdict::GiveUp,
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn quick_failures_wait_longer_and_then_end() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut restarts = Restarts::default();
        let verdicts: Vec<Verdict> = (0..QUICK_FAILURES)
            .map(|_| restarts.ended(Duration::from_millis(5), &mut rng))
            .collect();
        assert_eq!(verdicts[0], Verdict::After(Duration::ZERO));
        assert_eq!(verdicts.last(), Some(&Verdict::GiveUp));
        let mut full = FIRST_WAIT;
        for verdict in &verdicts[1..verdicts.len() - 1] {
            let Verdict::After(wait) = verdict else { panic!("gave up early: {verdicts:?}") };
            assert!(*wait >= full / 2 && *wait < full, "{wait:?} of {full:?}");
            full *= 2;
        }
    }

    #[test]
    fn a_supervisor_that_worked_is_started_again_at_once_for_ever() {
        let mut rng = StdRng::seed_from_u64(2);
        let mut restarts = Restarts::default();
        for _ in 0..100 {
            assert_eq!(restarts.ended(WORKED, &mut rng), Verdict::After(Duration::ZERO));
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_waits() {
        let waits = |seed| {
            let mut rng = StdRng::seed_from_u64(seed);
            let mut restarts = Restarts::default();
            [(); 4].map(|()| restarts.ended(Duration::ZERO, &mut rng))
        };
        assert_eq!(waits(7), waits(7));
        assert_ne!(waits(7), waits(8));
    }
}
