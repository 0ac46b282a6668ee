//! The map of folders, as a test: which crate may use which. Reads `cargo metadata`.

use std::collections::BTreeMap;
use std::process::Command;

/// What each folder may use of ours; `docs/architecture.md` has the same map in words.
const ALLOWED: [(&str, &[&str]); 9] = [
    ("proto", &[]),
    ("layers", &[]),
    ("relay", &["proto"]),
    ("policy", &["proto"]),
    ("drivers/core", &["proto"]),
    ("drivers", &["proto", "drivers"]),
    ("supervisor", &["proto", "layers", "relay", "policy", "drivers"]),
    ("proxy", &["proto", "layers", "relay", "policy", "drivers", "supervisor", "proxy"]),
    (
        "benches",
        &["proto", "layers", "relay", "policy", "drivers", "supervisor", "proxy", "benches"],
    ),
];

fn metadata() -> serde_json::Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--format-version", "1", "--locked", "--offline"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo writes JSON")
}

/// The entry of the map with the longest matching folder.
fn rule(folder: &str) -> (&'static str, &'static [&'static str]) {
    ALLOWED
        .iter()
        .copied()
        .filter(|(prefix, _)| folder == *prefix || folder.starts_with(&format!("{prefix}/")))
        .max_by_key(|(prefix, _)| prefix.len())
        .unwrap_or_else(|| panic!("{folder} is not on the map"))
}

#[test]
fn no_crate_uses_what_the_map_forbids() {
    let metadata = metadata();
    let root = metadata["workspace_root"].as_str().expect("is text").to_owned();
    let packages = metadata["packages"].as_array().expect("is a list");
    let folders: BTreeMap<&str, &str> = packages
        .iter()
        .map(|package| {
            let manifest = package["manifest_path"].as_str().expect("is text");
            let folder = manifest
                .strip_prefix(&root)
                .and_then(|path| path.strip_suffix("/Cargo.toml"))
                .expect("members are inside the workspace")
                .trim_start_matches('/');
            (package["name"].as_str().expect("is text"), folder)
        })
        .collect();
    let mut faults = Vec::new();
    let mut edges = 0;
    for package in packages {
        let from = folders[package["name"].as_str().expect("is text")];
        let (_, allowed) = rule(from);
        for dependency in package["dependencies"].as_array().expect("is a list") {
            let Some(to) = dependency["name"].as_str().and_then(|name| folders.get(name)) else {
                continue;
            };
            // A crate may name itself to switch its own features on for its tests.
            if *to == from {
                continue;
            }
            edges += 1;
            let fits =
                allowed.iter().any(|folder| to == folder || to.starts_with(&format!("{folder}/")));
            if !fits {
                faults.push(format!("{from} must not use {to}"));
            }
            if from == "policy" && dependency["optional"] != true {
                faults.push("policy may use proto only behind a feature".to_owned());
            }
        }
    }
    assert!(edges >= 10, "found only {edges} edges: the map is not being read");
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn every_folder_has_a_short_readme() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    for folder in
        ["proto", "layers", "relay", "policy", "drivers", "supervisor", "proxy", "benches"]
    {
        let path = format!("{root}/{folder}/README.md");
        let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let lines = text.lines().count();
        assert!((5..=60).contains(&lines), "{path} has {lines} lines, 5 to 60 are wanted");
    }
}
