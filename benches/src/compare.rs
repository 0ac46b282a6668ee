//! What `postern-compare` runs: the relay beside bare copies, the same work, turn and turn about.
//!
//! A *chain* is three processes between a client and a target:
//!
//! ```text
//! relay        client ── forward ═══ gateway ═══ supervisor ── target
//! copy hops    client ── hop ─────── hop ─────── hop ───────── target
//! ```
//!
//! `═══` is TLS in the TLS variants, `──` never is. All chains are up for the whole run and idle while another one
//! works; in each round every chain does every piece of work once, in an order that turns, so that a machine that
//! slows down slows all of them. A figure is the median of its rounds.

mod chain;
mod document;
mod work;

use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use postern_layers::units::parse_duration;

use crate::access::H2Args;
use crate::error::BenchError;
use crate::measure::median;

pub use chain::{Chain, ChainKind};
pub use document::Document;
pub use work::{Piece, Work};

/// How to compare.
#[derive(Args, Clone, Debug)]
pub struct CompareArgs {
    /// Rounds. The figure is their median.
    #[arg(long, default_value_t = 5)]
    pub rounds: usize,
    /// Time of each piece of work.
    #[arg(long, default_value = "3s", value_parser = parse_duration)]
    pub time: Duration,
    /// Leave the TLS chains out.
    #[arg(long)]
    pub plaintext: bool,
    /// Scripted supervisors instead of real ones.
    #[arg(long)]
    pub scripted: bool,
    /// More lines for the gateway's configuration.
    #[arg(long, value_name = "TOML", default_value = "")]
    pub config: String,
    /// HTTP/2 settings of the forward, and of the supervisor when it is scripted.
    #[command(flatten)]
    pub h2: H2Args,
}

/// What a chain did with a piece of work, one value per round.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Which chain.
    pub chain: ChainKind,
    /// Which work.
    pub piece: Piece,
    /// Gbit/s, or milliseconds for echoes.
    pub values: Vec<f64>,
}

impl Outcome {
    /// The figure.
    #[must_use]
    pub fn median(&self) -> f64 {
        median(&self.values)
    }
}

/// Runs everything.
///
/// # Errors
/// When a chain cannot be built or breaks.
pub async fn run(arguments: &CompareArgs) -> Result<Vec<Outcome>, BenchError> {
    let mut chains = Vec::new();
    for kind in ChainKind::all(arguments.plaintext) {
        chains.push(Chain::build(kind, arguments).await?);
    }
    let mut outcomes: Vec<_> = Piece::ALL
        .iter()
        .flat_map(|piece| chains.iter().map(|chain| (chain.kind, *piece)))
        .map(|(chain, piece)| Outcome { chain, piece, values: Vec::new() })
        .collect();
    let bar = ProgressBar::new((arguments.rounds * outcomes.len()) as u64);
    if let Ok(style) = ProgressStyle::with_template("{msg:44} {wide_bar:.cyan} {pos}/{len} {eta}") {
        bar.set_style(style);
    }
    let work = Work { time: arguments.time };
    for round in 0..arguments.rounds {
        for piece in Piece::ALL {
            for step in 0..chains.len() {
                let chain = &chains[(round + step) % chains.len()];
                bar.set_message(format!("{}, {}", chain.kind.name(), piece.name()));
                let value = work.run(*piece, chain.address()).await?;
                let outcome = outcomes
                    .iter_mut()
                    .find(|outcome| outcome.chain == chain.kind && outcome.piece == *piece);
                outcome.expect("there is one for each chain and piece").values.push(value);
                bar.inc(1);
            }
        }
    }
    bar.finish_and_clear();
    Ok(outcomes)
}
