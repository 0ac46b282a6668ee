//! What is wrong with a configuration: where it stands, and what to write instead.

use std::{
    fmt::{self, Write as _},
    path::PathBuf,
};

/// Where a value was given.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// The file, at this line (from 1).
    File {
        /// The file as it was named.
        path: PathBuf,
        /// The line.
        line: usize,
    },
    /// An environment variable.
    Environment(&'static str),
    /// A flag, with its dashes.
    Flag(&'static str),
    /// Nowhere: something is missing, or several values do not fit each other.
    Nowhere,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Environment(name) | Self::Flag(name) => f.write_str(name),
            Self::Nowhere => f.write_str("configuration"),
        }
    }
}

/// One thing wrong with the configuration.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{origin}: {message}")]
pub struct Fault {
    /// Where.
    pub origin: Origin,
    /// What is wrong, and what to write instead.
    pub message: String,
}

impl Fault {
    /// Says that what was given at `origin` is wrong because of `message`.
    pub fn new(origin: Origin, message: impl Into<String>) -> Self {
        Self { origin, message: message.into() }
    }
}

/// All faults as text for a terminal, one per line, in the order of the file.
#[must_use]
pub fn render_faults(faults: &[Fault]) -> String {
    let mut sorted: Vec<&Fault> = faults.iter().collect();
    sorted.sort();
    let mut text = String::new();
    for fault in sorted {
        let _ = writeln!(text, "{fault}");
    }
    let count = match faults.len() {
        1 => "1 fault".to_owned(),
        count => format!("{count} faults"),
    };
    let _ = writeln!(text, "{count} in the configuration; nothing was started");
    text
}

/// `; did you mean "…"?` for the candidate that a misspelled `word` is nearest to, or nothing.
pub(super) fn nearest<'c>(
    word: &str,
    candidates: impl IntoIterator<Item = &'c str>,
) -> Option<&'c str> {
    // A third of the letters may be wrong; beyond that a guess confuses more than it helps.
    let most = (word.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= most)
        .min()
        .map(|(_, candidate)| candidate)
}

/// How many letters have to be added, removed, changed or swapped with their neighbour (optimal string alignment).
fn distance(one: &str, other: &str) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    let mut rows = vec![vec![0; other.len() + 1]; one.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=one.len() {
        for j in 1..=other.len() {
            let change = usize::from(one[i - 1] != other[j - 1]);
            let mut least =
                (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + change);
            if i > 1 && j > 1 && one[i - 1] == other[j - 2] && one[i - 2] == other[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[one.len()][other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelled_word_finds_its_neighbour() {
        let words = ["bind_address", "log_level", "call", "relay"];
        assert_eq!(nearest("bind_adress", words), Some("bind_address"));
        assert_eq!(nearest("log_levle", words), Some("log_level"));
        assert_eq!(nearest("cal", words), Some("call"));
        assert_eq!(nearest("port", words), None);
        assert_eq!(nearest("", words), None);
    }

    #[test]
    fn faults_are_shown_in_the_order_of_the_file() {
        let at = |line| Origin::File { path: "gateway.toml".into(), line };
        let faults = [
            Fault::new(Origin::Flag("--port"), "c"),
            Fault::new(at(12), "b"),
            Fault::new(at(3), "a"),
        ];
        let text = render_faults(&faults);
        assert_eq!(
            text,
            "gateway.toml:3: a\ngateway.toml:12: b\n--port: c\n3 faults in the configuration; nothing was started\n"
        );
    }
}
