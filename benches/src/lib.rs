//! Benches and load generators for the relay path.
