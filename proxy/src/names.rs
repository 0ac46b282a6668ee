//! Names for sandboxes whose users gave none: two words, such as `calm-otter`.

use rand::RngExt as _;

/// Longest word: two of them, two hyphens and a suffix of two fit the 19 characters of a sandbox name.
#[cfg(test)]
const MAX_WORD: usize = 7;

const FIRST: [&str; 64] = [
    "able", "amber", "apt", "azure", "bold", "brave", "brief", "bright", "brisk", "calm", "candid",
    "civil", "clean", "clear", "clever", "cool", "cosy", "crisp", "deft", "eager", "early", "easy",
    "even", "fair", "fast", "fine", "firm", "fleet", "fond", "frank", "fresh", "gentle", "glad",
    "golden", "good", "grand", "happy", "hardy", "keen", "kind", "light", "lively", "lucid",
    "lucky", "mellow", "merry", "mild", "neat", "noble", "plain", "proud", "quick", "quiet",
    "rapid", "ready", "sharp", "solid", "sunny", "swift", "tidy", "true", "vivid", "warm", "wise",
];

const SECOND: [&str; 64] = [
    "badger", "beaver", "bison", "bream", "carp", "cobra", "condor", "coral", "crane", "cricket",
    "crow", "curlew", "dingo", "dove", "eagle", "egret", "falcon", "ferret", "finch", "fox",
    "gecko", "gull", "hare", "hawk", "heron", "ibex", "ibis", "jackal", "jay", "kestrel", "kite",
    "koala", "lark", "lemur", "linnet", "lion", "lynx", "magpie", "marten", "mole", "moth", "newt",
    "ocelot", "osprey", "otter", "owl", "panda", "pika", "plover", "puffin", "quail", "raven",
    "robin", "salmon", "seal", "shrew", "stoat", "stork", "swan", "tapir", "tern", "toad", "trout",
    "wren",
];

const SUFFIX: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";

/// One of 4,096 names. May be taken.
pub fn two_words(rng: &mut impl rand::Rng) -> String {
    let first = FIRST[rng.random_range(0..FIRST.len())];
    let second = SECOND[rng.random_range(0..SECOND.len())];
    format!("{first}-{second}")
}

/// One of 4 million names, for when the short ones are taken.
pub fn two_words_and_suffix(rng: &mut impl rand::Rng) -> String {
    let mut name = two_words(rng);
    name.push('-');
    for _ in 0..2 {
        name.push(char::from(SUFFIX[rng.random_range(0..SUFFIX.len())]));
    }
    name
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use rand::SeedableRng as _;
    use rand::rngs::StdRng;

    use super::*;

    #[test]
    fn every_name_passes_the_rule_for_names() {
        assert!(FIRST.iter().chain(&SECOND).all(|word| word.len() <= MAX_WORD));
        let mut rng = StdRng::seed_from_u64(7);
        for _ in 0..500 {
            crate::validation::sandbox_name(&two_words(&mut rng)).unwrap();
            crate::validation::sandbox_name(&two_words_and_suffix(&mut rng)).unwrap();
        }
    }

    #[test]
    fn words_are_different_and_a_seed_decides() {
        assert_eq!(FIRST.iter().chain(&SECOND).collect::<HashSet<_>>().len(), 128);
        let name = |seed| two_words(&mut StdRng::seed_from_u64(seed));
        assert_eq!(name(3), name(3));
        assert_ne!(name(3), name(4));
    }
}
