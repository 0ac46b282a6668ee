//! Ids of sessions and relays, and where they come from.

use std::fmt;
use std::str::FromStr;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use uuid::Uuid;

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Uuid);

        impl $name {
            /// Takes the next id of a source.
            pub fn make(ids: &dyn MakeId) -> Self {
                Self(ids.make_id())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self.0.hyphenated())
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                Uuid::try_parse(text).map(Self).map_err(|_| InvalidId)
            }
        }
    };
}

id! {
    /// Identity of one session. A sandbox that reconnects gets a new one; cleanup is fenced by it.
    SessionId
}
id! {
    /// Identity of one relay, from its opening to its end. Knowing it is part of the right to
    /// claim the relay, so it is random (UUID v4) and used once.
    ChannelId
}

/// Text that is no id of ours; such an id is simply unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an id of this gateway")]
pub struct InvalidId;

/// Source of ids.
pub trait MakeId: Send + Sync + 'static {
    /// A fresh, unguessable id.
    fn make_id(&self) -> Uuid;
}

/// Ids from the operating system's randomness.
#[derive(Debug, Clone, Copy, Default)]
pub struct RandomIds;

impl MakeId for RandomIds {
    fn make_id(&self) -> Uuid {
        Uuid::new_v4()
    }
}

/// Ids that repeat for a seed, for tests.
#[derive(Debug)]
pub struct SeededIds(Mutex<StdRng>);

impl SeededIds {
    /// The sequence of this seed.
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }
}

impl MakeId for SeededIds {
    fn make_id(&self) -> Uuid {
        let mut bytes = [0; 16];
        self.0.lock().fill_bytes(&mut bytes);
        uuid::Builder::from_random_bytes(bytes).into_uuid()
    }
}
