//! The comparison as a page: `docs/benchmarks.md`.

use std::fmt::Write as _;
use std::time::Duration;

use postern_layers::units::format_duration;

use super::{ChainKind, Outcome, Piece};
use crate::host::Host;

/// What goes into the page.
#[derive(Debug)]
pub struct Document<'a> {
    /// Where it was measured.
    pub host: &'a Host,
    /// How many rounds, and the time of each piece of work.
    pub rounds: (usize, Duration),
    /// What was measured.
    pub outcomes: &'a [Outcome],
}

impl Document<'_> {
    /// The table for a terminal and for the page alike.
    #[must_use]
    pub fn table(&self) -> String {
        let mut chains: Vec<ChainKind> = Vec::new();
        for outcome in self.outcomes {
            if !chains.contains(&outcome.chain) {
                chains.push(outcome.chain);
            }
        }
        let mut text = String::from("| work |");
        let _ = write!(
            text,
            "{}",
            chains.iter().map(|chain| format!(" {} |", chain.name())).collect::<String>()
        );
        let _ = write!(text, "\n|---|{}\n", "---:|".repeat(chains.len()));
        for piece in Piece::ALL {
            let _ = write!(text, "| {} |", piece.name());
            for chain in &chains {
                let _ = write!(text, " {} |", self.cell(*chain, *piece));
            }
            text.push('\n');
        }
        text
    }

    fn median(&self, chain: ChainKind, piece: Piece) -> Option<f64> {
        let fits = |outcome: &&Outcome| outcome.chain == chain && outcome.piece == piece;
        self.outcomes.iter().find(fits).map(Outcome::median)
    }

    /// The figure, with its ratio to the limit where there is one.
    fn cell(&self, chain: ChainKind, piece: Piece) -> String {
        let Some(value) = self.median(chain, piece) else { return String::new() };
        let shown = match piece {
            Piece::Echo => format!("{value:.3}"),
            _ => format!("{value:.2}"),
        };
        match chain.limit().and_then(|limit| self.median(limit, piece)) {
            Some(limit) => format!("{shown} (**{:.2}**)", value / limit),
            None => shown,
        }
    }

    /// The page.
    #[must_use]
    pub fn page(&self) -> String {
        let Host { processor, processors, memory_mib, kernel, version, commit, time, command } =
            self.host;
        let (rounds, time_each) = (self.rounds.0, format_duration(self.rounds.1));
        format!(
            "# Benchmarks\n\n\
             Written by `postern-compare`; do not edit. Figures of another machine are other figures: what counts are\n\
             the ratios, in bold, against bare copy hops in the same run.\n\n\
             - Machine: {processors} x {processor}, {memory_mib} MiB, Linux {kernel}\n\
             - Postern {version}, commit {commit}, {time}\n\
             - Command: `cargo run --release -p postern-benches --bin {command}`\n\
             - Each figure is the median of {rounds} rounds of {time_each}; chains take turns in every round\n\n\
             A chain is three processes between client and target: forward, gateway and supervisor for the relay,\n\
             three copies for the hops, each hop with one thread. Aims: at least 0.9 for bytes, at most 2.5 for echoes.\n\n\
             {}\n\
             Other figures, each by one command:\n\n\
             ```sh\n\
             cargo run --release -p postern-benches --bin postern-bench -- exec\n\
             cargo run --release -p postern-benches --bin postern-bench -- create\n\
             cargo run --release -p postern-benches --bin postern-bench -- idle\n\
             cargo run --release -p postern-benches --bin postern-load -- --help\n\
             ```\n",
            self.table()
        )
    }
}
