//! What was measured, for people and for machines.

mod plot;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use comfy_table::Table;
use comfy_table::presets::UTF8_BORDERS_ONLY;
use serde::Serialize;

use crate::error::BenchError;
use crate::host::Host;
use crate::measure::{Latencies, PERCENTILES};

/// A figure and what it should be.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// What it was.
    pub value: f64,
    /// Of what.
    pub unit: &'static str,
    /// What it should be at most, if there is such a wish.
    pub aim: Option<f64>,
}

impl Figure {
    /// A figure with an aim.
    #[must_use]
    pub fn aimed(name: impl Into<String>, value: f64, unit: &'static str, aim: f64) -> Self {
        Self { name: name.into(), value, unit, aim: Some(aim) }
    }

    /// A figure to know.
    #[must_use]
    pub fn plain(name: impl Into<String>, value: f64, unit: &'static str) -> Self {
        Self { name: name.into(), value, unit, aim: None }
    }
}

/// Latencies of one kind of request. Times in milliseconds.
#[derive(Debug, Clone, Serialize)]
pub struct LatencyReport {
    /// What was waited for.
    pub name: String,
    /// Requests done.
    pub count: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Why the first one failed.
    pub first_failure: Option<String>,
    /// The percentiles of [`PERCENTILES`].
    pub percentiles: [f64; PERCENTILES.len()],
    /// The longest.
    pub max: f64,
    /// Percentile and latency.
    pub distribution: Vec<(f64, f64)>,
    /// [`PERCENTILES`] of each second.
    pub per_second: Vec<[f64; PERCENTILES.len()]>,
}

impl LatencyReport {
    /// Of what has been recorded.
    #[must_use]
    pub fn of(name: impl Into<String>, latencies: &Latencies) -> Self {
        let (count, failed) = latencies.counts();
        Self {
            name: name.into(),
            count,
            failed,
            first_failure: latencies.first_failure(),
            percentiles: PERCENTILES.map(|percentile| millis(latencies.percentile(percentile))),
            max: millis(latencies.max()),
            distribution: latencies.distribution(),
            per_second: latencies.per_second(),
        }
    }
}

/// Something per second.
#[derive(Debug, Clone, Serialize)]
pub struct RateReport {
    /// What.
    pub name: String,
    /// Its unit.
    pub unit: &'static str,
    /// One value per second.
    pub values: Vec<f64>,
}

/// All of a run.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Which scenario.
    pub scenario: String,
    /// How it was set.
    pub settings: BTreeMap<String, String>,
    /// Where.
    pub host: Host,
    /// Single figures.
    pub figures: Vec<Figure>,
    /// Latencies.
    pub latencies: Vec<LatencyReport>,
    /// Rates over time.
    pub rates: Vec<RateReport>,
}

impl Report {
    /// An empty one.
    #[must_use]
    pub fn new(scenario: &str) -> Self {
        Self {
            scenario: scenario.to_owned(),
            settings: BTreeMap::new(),
            host: Host::here(),
            figures: Vec::new(),
            latencies: Vec::new(),
            rates: Vec::new(),
        }
    }

    /// Notes how something was set.
    pub fn setting(&mut self, name: &str, value: impl ToString) {
        self.settings.insert(name.to_owned(), value.to_string());
    }

    /// Shows it to a person.
    pub fn print(&self) {
        print_host(&self.host);
        if !self.settings.is_empty() {
            let settings: Vec<_> =
                self.settings.iter().map(|(name, value)| format!("{name} {value}")).collect();
            println!("{}: {}", self.scenario, settings.join(", "));
        }
        if !self.latencies.is_empty() {
            println!("{}", latency_table(&self.latencies));
        }
        if !self.figures.is_empty() {
            println!("{}", figure_table(&self.figures));
        }
        for latency in &self.latencies {
            if let Some(why) = &latency.first_failure {
                println!("{}: {} failed, the first one: {why}", latency.name, latency.failed);
            }
        }
    }

    /// Writes it for a program.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_json(&self, path: &Path) -> Result<(), BenchError> {
        let text = serde_json::to_string_pretty(self).expect("a report has only text keys");
        std::fs::write(path, text).map_err(BenchError::io(format!("write {}", path.display())))
    }

    /// Draws it: one SVG for each kind of value that there is.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn draw(&self, folder: &Path) -> Result<(), BenchError> {
        std::fs::create_dir_all(folder)
            .map_err(BenchError::io(format!("make {}", folder.display())))?;
        plot::draw(self, folder)
    }
}

/// Shows figures and the machine they are of.
pub fn print_figures(figures: &[Figure]) {
    print_host(&Host::here());
    println!("{}", figure_table(figures));
}

fn print_host(host: &Host) {
    println!(
        "{} x {}, Linux {}, commit {}, {}",
        host.processors, host.processor, host.kernel, host.commit, host.time
    );
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY).set_header(header);
    table
}

fn figure_table(figures: &[Figure]) -> Table {
    let mut table = table(&["figure", "value", "aim", ""]);
    for figure in figures {
        let shown = |value: f64| format!("{value:.2} {}", figure.unit);
        let aim = figure.aim.map_or_else(String::new, |aim| format!("at most {}", shown(aim)));
        let verdict = match figure.aim {
            Some(aim) if figure.value <= aim => "reached",
            Some(_) => "not reached",
            None => "",
        };
        table.add_row([figure.name.clone(), shown(figure.value), aim, verdict.to_owned()]);
    }
    table
}

fn latency_table(latencies: &[LatencyReport]) -> Table {
    let mut table =
        table(&["latency, ms", "done", "failed", "p50", "p90", "p99", "p99.9", "longest"]);
    for latency in latencies {
        let times = latency.percentiles.iter().chain([&latency.max]);
        let counts = [latency.name.clone(), latency.count.to_string(), latency.failed.to_string()];
        table.add_row(counts.into_iter().chain(times.map(|time| format!("{time:.2}"))));
    }
    table
}

/// In milliseconds.
#[must_use]
pub fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_report_is_read_back_and_drawn() {
        let start = Instant::now();
        let latencies = Latencies::new(start);
        for n in 1..2000 {
            let due = start + Duration::from_millis(n);
            latencies.done(due, due + Duration::from_micros(100 + n));
        }
        latencies.failed("no <reason> & none");
        let mut report = Report::new("test");
        report.latencies.push(LatencyReport::of("open", &latencies));
        let values = vec![1.0, 2.0, 1.5];
        report.rates.push(RateReport { name: "up".into(), unit: "Gbit/s", values });
        report.figures.push(Figure::aimed("figure", 1.0, "ms", 2.0));
        let folder = tempfile::tempdir().unwrap();
        report.draw(folder.path()).unwrap();
        for name in ["test-percentiles.svg", "test-latency.svg", "test-rate.svg"] {
            let text = std::fs::read_to_string(folder.path().join(name)).unwrap();
            assert!(text.starts_with("<svg") && text.contains("polyline"), "{name}: {text}");
        }
        let path = folder.path().join("report.json");
        report.write_json(&path).unwrap();
        let json: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(json["latencies"][0]["count"], 1999);
        assert_eq!(json["figures"][0]["aim"], 2.0);
    }
}
