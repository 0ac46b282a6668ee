//! Four lists say which layers there are: the features, the modules, the index in `lib.rs` and the table in the
//! README. They stay the same list, and no layer goes without its tests, its example and its page of text.

use std::{collections::BTreeSet, fs, path::PathBuf};

type Names = BTreeSet<String>;

fn read(path: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The features that are layers, which are all but the ones named here, and those that `full` turns on.
fn features() -> (Names, Names) {
    let manifest: toml::Table = toml::from_str(&read("Cargo.toml")).expect("a manifest");
    let features = manifest["features"].as_table().expect("features");
    let common = ["default", "full", "hyper", "serde", "testing"];
    let layers = features.keys().filter(|name| !common.contains(&name.as_str())).cloned().collect();
    let full = features["full"].as_array().expect("a list");
    let full = full.iter().filter_map(|name| name.as_str()).filter(|name| !common.contains(name));
    (layers, full.map(str::to_owned).collect())
}

/// The names in backquotes in the first column of the first table after `heading`.
fn table(text: &str, heading: &str) -> Names {
    let rest = text.split_once(heading).expect("the heading").1;
    let rows = rest.lines().skip_while(|line| !line.contains("|---")).skip(1);
    rows.take_while(|line| line.contains('|'))
        .filter_map(|row| row.split('`').nth(1))
        .map(str::to_owned)
        .collect()
}

/// The modules behind a feature of their own name.
fn modules() -> Names {
    let text = read("src/lib.rs");
    let mut lines = text.lines().peekable();
    let mut names = Names::new();
    while let Some(line) = lines.next() {
        let Some(feature) =
            line.strip_prefix("#[cfg(feature = \"").and_then(|rest| rest.strip_suffix("\")]"))
        else {
            continue;
        };
        let module = lines
            .peek()
            .and_then(|line| line.strip_prefix("pub mod "))
            .map(|name| name.trim_end_matches(';'));
        if module == Some(feature) && feature != "testing" {
            names.insert(feature.to_owned());
        }
    }
    names
}

#[test]
fn features_modules_index_and_readme_name_the_same_layers() {
    let (features, full) = features();
    assert_eq!(full, features, "full turns on every layer");
    assert_eq!(modules(), features, "every feature is a module");
    assert_eq!(table(&read("src/lib.rs"), "# Index"), features, "the index in lib.rs");
    assert_eq!(table(&read("README.md"), "## The layers"), features, "the table in the README");
}

#[test]
fn every_layer_says_what_it_does_by_the_same_five_parts() {
    for layer in features().0 {
        let text = read(&format!("src/{layer}.rs"));
        for part in
            ["**Effect.**", "**Shape.**", "**Limits.**", "**Refuses", "**Source.**", "**Cost.**"]
        {
            assert!(text.contains(part), "{layer}.rs does not say {part}");
        }
    }
}

#[test]
fn every_layer_is_in_the_suites_and_in_an_example() {
    let (contract, reuse) = (read("tests/contract.rs"), read("tests/reuse.rs"));
    let examples = ["axum_app", "hyper_proxy", "tcp_proxy", "tonic_server"]
        .map(|name| read(&format!("examples/{name}.rs")));
    for layer in features().0 {
        // It is no service, see the text of contract.rs.
        assert!(
            layer == "h2_window" || contract.contains(&format!("async fn {layer}")),
            "{layer}: contract.rs"
        );
        assert!(reuse.contains(&layer), "{layer}: reuse.rs");
        let arm = format!("\"{layer}\"");
        assert!(examples.iter().any(|example| example.contains(&arm)), "{layer}: no example");
    }
}

#[test]
fn the_readme_fits_a_page() {
    assert!(read("README.md").lines().count() <= 60);
}
