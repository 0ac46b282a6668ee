//! Runs the fuzz targets' functions over their seed corpus, so that neither can rot.

#![allow(clippy::unwrap_used)]

use std::path::Path;

fn each_seed(target: &str, run: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut seeds = 0;
    for entry in std::fs::read_dir(&corpus).unwrap() {
        run(&std::fs::read(entry.unwrap().path()).unwrap());
        seeds += 1;
    }
    assert!(seeds > 5, "{} seeds in {}", seeds, corpus.display());
}

#[test]
fn frame_seeds_hold() {
    each_seed("frame", postern_relay::frame::fuzz_frame);
}

#[test]
fn first_message_seeds_hold() {
    each_seed("first_message", postern_relay::body::fuzz_first_message);
}
