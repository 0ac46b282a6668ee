//! Every command once, small, through a real gateway: that it counts what it did, not how fast that was.

use std::process::Command;

/// Runs `postern-load` and reads its report.
fn load(arguments: &[&str]) -> serde_json::Value {
    let folder = tempfile::tempdir().expect("a folder");
    let json = folder.path().join("report.json");
    let plots = folder.path().join("plots");
    let output = Command::new(env!("CARGO_BIN_EXE_postern-load"))
        .args(arguments)
        .arg("--json")
        .arg(&json)
        .arg("--plot")
        .arg(&plots)
        .output()
        .expect("it starts");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {errors}");
    assert!(plots.read_dir().expect("a folder").next().is_some(), "{arguments:?}: no plot");
    let text = std::fs::read_to_string(&json).expect("a report");
    serde_json::from_str(&text).expect("JSON")
}

fn done(report: &serde_json::Value, latency: usize) -> (u64, u64) {
    let latency = &report["latencies"][latency];
    let count = |name: &str| latency[name].as_u64().expect("a count");
    assert_eq!(count("failed"), 0, "{latency}");
    (count("count"), count("failed"))
}

fn figure(report: &serde_json::Value, name: &str) -> f64 {
    let figures = report["figures"].as_array().expect("figures");
    let found = figures.iter().find(|figure| figure["name"] == name);
    found.and_then(|figure| figure["value"].as_f64()).unwrap_or_else(|| panic!("{name}: {report}"))
}

const SHORT: [&str; 6] = ["--rate", "40", "--duration", "1s", "--warm-up", "200ms"];

#[test]
fn opens_are_all_made() {
    let report = load(&[&["open"], &SHORT[..]].concat());
    assert_eq!(done(&report, 0), (40, 0));
}

#[test]
fn opens_are_all_made_over_mutual_tls_and_a_long_way() {
    let more = ["--tls", "--rtt", "20ms", "--sandboxes", "2"];
    let report = load(&[&["open"], &SHORT[..], &more[..]].concat());
    assert_eq!(done(&report, 0), (40, 0));
    let p50 = report["latencies"][0]["percentiles"][0].as_f64().expect("a number");
    assert!(p50 >= 20.0, "a round trip of 20 ms cannot be beaten: {p50}");
}

#[test]
fn echoes_all_come_back() {
    let report = load(&[&["echo", "--relays", "3"], &SHORT[..]].concat());
    assert_eq!(done(&report, 0), (40, 0));
}

#[test]
fn bulk_goes_both_ways_and_beside_echoes() {
    let bulk = ["bulk", "--streams", "2", "--direction", "both", "--duration", "1s"];
    let report = load(&[&bulk[..], &["--warm-up", "1s"]].concat());
    for way in ["into the sandbox", "out of the sandbox"] {
        assert!(figure(&report, &format!("{way}, median of its seconds")) > 0.0);
    }
    let report = load(&[&["mixed", "--streams", "1", "--relays", "2"], &SHORT[..]].concat());
    assert_eq!((done(&report, 0), done(&report, 1)), ((40, 0), (40, 0)));
}

#[test]
fn supervisors_stay_or_come_and_go() {
    let report = load(&["sessions", "-n", "30", "--rate", "100", "--stay", "1s"]);
    assert_eq!(done(&report, 0), (30, 0));
    assert_eq!((figure(&report, "sessions held"), figure(&report, "sessions lost")), (30.0, 0.0));
    let report = load(&[&["churn", "--stay", "100ms", "--pool", "5"], &SHORT[..]].concat());
    assert!(done(&report, 0).0 >= 40);
}

#[test]
fn a_real_supervisor_runs_commands() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: real sandboxes in this test need root");
        return;
    }
    let more = ["--sandboxes", "1", "--rate", "5", "--duration", "1s"];
    let report = load(&[&["exec"], &more[..]].concat());
    assert_eq!(done(&report, 0), (5, 0));
}

#[test]
fn the_comparison_writes_its_page() {
    let folder = tempfile::tempdir().expect("a folder");
    let page = folder.path().join("benchmarks.md");
    let output = Command::new(env!("CARGO_BIN_EXE_postern-compare"))
        .args(["--rounds", "1", "--time", "200ms", "--scripted", "--write"])
        .arg(&page)
        .output()
        .expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = std::fs::read_to_string(page).expect("a page");
    assert!(text.contains("| relay, mutual TLS |") && text.contains("(**"), "{text}");
}
