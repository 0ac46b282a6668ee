//! A small seeded generator (SplitMix64; Steele, Lea and Flood 2014) behind one atomic.
//!
//! Good enough to spread retries and to tell requests apart; never for secrets.

use std::sync::atomic::{AtomicU64, Ordering};

/// Turns a position of the sequence into a number.
fn mixed(position: u64) -> u64 {
    let z = (position ^ (position >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A sequence that many tasks draw from without a lock; each number is drawn once.
#[derive(Debug)]
pub(crate) struct Sequence(AtomicU64);

impl Sequence {
    /// The odd constant nearest to 2^64 divided by the golden ratio: every position is visited once.
    const STEP: u64 = 0x9E37_79B9_7F4A_7C15;

    pub(crate) fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    #[cfg(feature = "session_wait")]
    pub(crate) fn restart(&self, seed: u64) {
        self.0.store(seed, Ordering::Relaxed);
    }

    pub(crate) fn next(&self) -> u64 {
        mixed(self.0.fetch_add(Self::STEP, Ordering::Relaxed).wrapping_add(Self::STEP))
    }
}
