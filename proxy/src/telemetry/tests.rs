use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use super::*;

/// Names of metrics that the source of the gateway records, found by the macros of the `metrics` crate.
fn recorded(directory: &Path, names: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            recorded(&path, names);
            continue;
        }
        if path.extension().is_none_or(|extension| extension != "rs")
            || path.ends_with(file!().rsplit_once("src/").unwrap().1)
        {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for call in ["metrics::counter!(", "metrics::gauge!(", "metrics::histogram!("] {
            for (at, _) in text.match_indices(call) {
                let rest = text[at + call.len()..].trim_start();
                if let Some(name) = rest.strip_prefix('"').and_then(|rest| rest.split('"').next()) {
                    names.insert(name.to_owned(), path.display().to_string());
                }
            }
        }
    }
}

#[test]
fn what_is_recorded_is_described() {
    let mut names = BTreeMap::new();
    recorded(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut names);
    assert!(names.len() > 5, "the source was not found: {names:?}");
    let described: BTreeSet<_> = METRICS.iter().map(|metric| metric.name).collect();
    assert_eq!(described.len(), METRICS.len(), "a metric is described twice");
    for (name, file) in names {
        assert!(
            described.contains(name.as_str()),
            "{file} records {name}, which METRICS does not describe"
        );
    }
}

#[test]
fn the_page_lists_what_there_is() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let page = fs::read_to_string(page).unwrap();
    let mut rows = BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<_> = line.trim_matches('|').split('|').map(str::trim).collect();
        rows.insert(cells[0].trim_matches('`').to_owned(), cells);
    }
    for metric in METRICS {
        let cells =
            rows.remove(metric.name).unwrap_or_else(|| panic!("the page has no {}", metric.name));
        let kind = format!("{:?}", metric.kind).to_lowercase();
        let labels = if metric.labels.is_empty() {
            "–".to_owned()
        } else {
            metric.labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ")
        };
        assert_eq!(cells[1..], [kind, labels, metric.help.to_owned()], "{}", metric.name);
    }
    assert!(rows.is_empty(), "the page has rows for metrics that do not exist: {:?}", rows.keys());
}

#[test]
fn buckets_grow() {
    assert!(BUCKETS.windows(2).all(|pair| pair[0] < pair[1]));
}
