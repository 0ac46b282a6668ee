//! How long to wait before connecting again.

use std::time::Duration;

use rand::{Rng, RngExt as _};

/// Upper end of the first wait (OpenShell contract).
const FIRST: Duration = Duration::from_secs(1);

/// Upper end of every wait (contract).
const LONGEST: Duration = Duration::from_secs(30);

/// Exponential backoff with full jitter: each wait is anything between nothing and its upper end,
/// so that the sandboxes of a gateway that was restarted do not come back in step.
#[derive(Debug)]
pub struct Backoff {
    upper: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { upper: FIRST }
    }
}

impl Backoff {
    /// The next wait.
    pub fn next(&mut self, rng: &mut impl Rng) -> Duration {
        let wait = self.upper.mul_f64(rng.random::<f64>());
        self.upper = (self.upper * 2).min(LONGEST);
        wait
    }

    /// Starts over: something worked.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn waits_grow_to_their_limit_and_start_over() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(7);
        let mut backoff = Backoff::default();
        for upper in [1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(backoff.upper, Duration::from_secs(upper));
            assert!(backoff.next(&mut rng) <= Duration::from_secs(upper));
        }
        backoff.reset();
        assert!(backoff.next(&mut rng) <= FIRST);
    }

    #[test]
    fn two_sandboxes_do_not_wait_equally() {
        let wait = |seed| Backoff::default().next(&mut rand::rngs::StdRng::seed_from_u64(seed));
        assert_ne!(wait(1), wait(2));
    }
}
