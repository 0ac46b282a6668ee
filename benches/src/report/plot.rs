//! Plots of a report, as SVG.

use std::ops::Range;
use std::path::{Path, PathBuf};

use plotters::coord::ranged1d::ValueFormatter;
use plotters::prelude::*;

use super::{LatencyReport, Report};
use crate::error::BenchError;
use crate::measure::PERCENTILES;

/// Width and height in pixels.
const SIZE: (u32, u32) = (900, 480);

/// Lines that can be told apart, also by people who see fewer colours (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// One line of a plot.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

/// Words around a plot.
struct Words<'a> {
    title: &'a str,
    across: &'a str,
    up: &'a str,
    /// Labels across.
    labels: usize,
}

/// Percentiles of the plot over time: with more of them nothing can be told apart.
const OVER_TIME: [usize; 2] = [0, 2];

/// Labels of an axis of seconds: whole numbers only.
fn labels(seconds: f64) -> usize {
    (seconds as usize + 1).min(11)
}

pub(super) fn draw(report: &Report, folder: &Path) -> Result<(), BenchError> {
    let path = |what: &str| folder.join(format!("{}-{what}.svg", report.scenario));
    if report.latencies.iter().any(|latency| latency.count > 0) {
        percentiles(&report.latencies, &report.scenario, &path("percentiles"))?;
        over_time(&report.latencies, &report.scenario, &path("latency"))?;
    }
    if let Some(unit) = report.rates.first().map(|rate| rate.unit) {
        let lines: Vec<_> = report
            .rates
            .iter()
            .map(|rate| Line { name: rate.name.clone(), points: by_second(&rate.values) })
            .collect();
        let title = format!("{}: rate over time", report.scenario);
        let labels = labels(longest(&lines));
        let words = Words { title: &title, across: "seconds", up: unit, labels };
        linear(&lines, &words, &path("rate"))?;
    }
    Ok(())
}

fn by_second(values: &[f64]) -> Vec<(f64, f64)> {
    values
        .iter()
        .enumerate()
        .filter(|(_, value)| value.is_finite())
        .map(|(second, value)| (second as f64, *value))
        .collect()
}

fn percentiles(latencies: &[LatencyReport], scenario: &str, path: &Path) -> Result<(), BenchError> {
    // Across stands the number of nines: 90 % is 1, 99 % is 2.
    let nines = |percentile: f64| -(1.0 - percentile / 100.0).max(1e-9).log10();
    let lines: Vec<_> = latencies
        .iter()
        .map(|latency| {
            // Beyond one request in all there is nothing to see.
            let most = (latency.count.max(1) as f64).log10();
            let points = latency.distribution.iter();
            let points = points.map(|&(percentile, time)| (nines(percentile), time.max(0.001)));
            Line {
                name: latency.name.clone(),
                points: points.filter(|(nines, _)| *nines <= most).collect(),
            }
        })
        .collect();
    let title = format!("{scenario}: latency by percentile");
    let words = Words { title: &title, across: "percentile", up: "ms", labels: 6 };
    let up = logarithmic_range(&lines);
    chart(path, &words, &lines, (0.0..5.0, up.log_scale()), &|nines| {
        format!("{:.3}", 100.0 * (1.0 - 10_f64.powf(-nines)))
            .trim_end_matches('0')
            .trim_end_matches('.')
            .to_owned()
    })
}

fn over_time(latencies: &[LatencyReport], scenario: &str, path: &Path) -> Result<(), BenchError> {
    let mut lines = Vec::new();
    for latency in latencies {
        for index in OVER_TIME {
            let percentile = PERCENTILES[index];
            let values: Vec<_> =
                latency.per_second.iter().map(|second| second[index].max(0.001)).collect();
            let name = format!("{} p{percentile}", latency.name);
            lines.push(Line { name, points: by_second(&values) });
        }
    }
    let title = format!("{scenario}: latency over time");
    let labels = labels(longest(&lines));
    let words = Words { title: &title, across: "seconds", up: "ms", labels };
    let up = logarithmic_range(&lines);
    let across = 0.0..longest(&lines);
    chart(path, &words, &lines, (across, up.log_scale()), &|second| format!("{second:.0}"))
}

fn linear(lines: &[Line], words: &Words<'_>, path: &Path) -> Result<(), BenchError> {
    let most = lines.iter().flat_map(|line| &line.points).map(|point| point.1);
    let up = 0.0..1.1 * most.fold(f64::MIN_POSITIVE, f64::max);
    chart(path, words, lines, (0.0..longest(lines), up), &|second| format!("{second:.0}"))
}

fn longest(lines: &[Line]) -> f64 {
    lines.iter().flat_map(|line| &line.points).map(|point| point.0).fold(1.0, f64::max)
}

/// Whole decades around all values.
fn logarithmic_range(lines: &[Line]) -> Range<f64> {
    let values = || lines.iter().flat_map(|line| &line.points).map(|point| point.1);
    let least = values().fold(f64::INFINITY, f64::min).clamp(0.001, 1e5);
    let most = values().fold(0.0, f64::max).clamp(least, 1e6);
    10_f64.powf(least.log10().floor())..10_f64.powf((most * 1.01).log10().ceil())
}

fn chart<Y>(
    path: &Path,
    words: &Words<'_>,
    lines: &[Line],
    (across, up): (Range<f64>, Y),
    label: &dyn Fn(&f64) -> String,
) -> Result<(), BenchError>
where
    Y: plotters::coord::ranged1d::AsRangedCoord<Value = f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let owned: PathBuf = path.to_owned();
    let drawn = (|| {
        let area = SVGBackend::new(path, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(words.title, ("sans-serif", 22))
            .margin(16)
            .x_label_area_size(44)
            .y_label_area_size(64)
            .build_cartesian_2d(across, up)?;
        chart
            .configure_mesh()
            .x_desc(words.across)
            .y_desc(words.up)
            .x_labels(words.labels)
            .x_label_formatter(&|value| label(value))
            .light_line_style(RGBColor(238, 238, 238))
            .draw()?;
        for (line, colour) in lines.iter().zip(COLOURS.iter().cycle()) {
            chart
                .draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)))?
                .label(line.name.clone())
                .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .background_style(WHITE.mix(0.8))
            .border_style(RGBColor(200, 200, 200))
            .draw()?;
        area.present()
    })();
    drawn.map_err(|error: DrawingAreaErrorKind<_>| BenchError::Plot {
        path: owned,
        why: error.to_string(),
    })
}
