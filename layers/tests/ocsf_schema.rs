//! Every event validates against the official OCSF schema, by two validators that know it independently of each other.
//!
//! The validators are Python packages. The test installs them into throw-away environments under the target folder, once. Where
//! that is impossible it says so and passes, except under `CI`, where a check that did not run is a failure.

#![cfg(feature = "ocsf")]
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use postern_layers::ocsf::{Event, MAX_LINE_BYTES, MAX_SHORT_BYTES, Record, SCHEMA_VERSION};
use serde_json::{Value, json};

#[path = "ocsf_data/samples.rs"]
mod samples;

/// A validator: the packages it takes and the program that runs it.
struct Validator {
    name: &'static str,
    packages: &'static [&'static str],
    program: &'static str,
}

/// By JSON Schema: unknown attributes, missing ones, wrong types and numbers.
const JSON_SCHEMA: Validator = Validator {
    name: "json-schema",
    packages: &["ocsf-json-schema==1.2.0", "jsonschema==4.26.0"],
    program: "check_json_schema.py",
};

/// By models: `type_uid`, and captions that must belong to their number.
const MODELS: Validator = Validator {
    name: "models",
    packages: &["pydantic-ocsf==3.0.0", "pydantic==2.14.3"],
    program: "check_models.py",
};

impl Validator {
    /// The Python of an environment with the packages, or why there is none.
    fn python(&self) -> Result<PathBuf, String> {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("ocsf-{}", self.name));
        let python = folder.join("bin/python");
        let done = folder.join("complete");
        // Tests run side by side, in threads or processes: one installs, the others wait.
        let lock = std::fs::File::create(folder.with_extension("lock"))
            .map_err(|error| error.to_string())?;
        lock.lock().map_err(|error| error.to_string())?;
        if !done.exists() {
            run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&folder))?;
            let pip = ["-m", "pip", "--disable-pip-version-check", "--quiet", "install"];
            run(Command::new(&python).args(pip).args(self.packages))?;
            std::fs::write(done, self.packages.join("\n")).map_err(|error| error.to_string())?;
        }
        Ok(python)
    }

    /// What is wrong with each event, or `None` if the validator cannot be had.
    fn faults(&self, events: &[Value]) -> Option<Vec<Vec<String>>> {
        let python = match self.python() {
            Ok(python) => python,
            Err(why) => {
                assert!(
                    std::env::var_os("CI").is_none(),
                    "the {} validator must run under CI: {why}",
                    self.name
                );
                eprintln!("SKIPPED: the {} validator cannot be installed: {why}", self.name);
                return None;
            }
        };
        let program =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ocsf_data").join(self.program);
        let mut child = Command::new(python)
            .arg(program)
            .arg(SCHEMA_VERSION)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let lines: Vec<String> = events.iter().map(|event| format!("{event}\n")).collect();
        let writer = std::thread::spawn(move || {
            for line in lines {
                input.write_all(line.as_bytes()).unwrap();
            }
        });
        let faults: Vec<Vec<String>> =
            output.lines().map(|line| serde_json::from_str(&line.unwrap()).unwrap()).collect();
        writer.join().unwrap();
        assert!(child.wait().unwrap().success());
        assert_eq!(faults.len(), events.len(), "one answer per event");
        Some(faults)
    }
}

fn run(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

fn to_json(event: &Event, sequence: u64) -> Value {
    let source = samples::source();
    let mut line = Vec::new();
    Record::new(event, &source, sequence).write_json(&mut line);
    serde_json::from_slice(&line).unwrap()
}

fn everything() -> Vec<(String, Event)> {
    let plain = || "a word".to_owned();
    let odd = || "\u{202e}\"quoted\" [x]\n\u{1b}\u{85}\u{e0041}".to_owned();
    let long = || "\u{1}".repeat(5000);
    let mut all = samples::minimal();
    all.extend(samples::vocabulary());
    all.extend(samples::full(&plain));
    all.extend(samples::full(&odd));
    all.extend(samples::full(&long));
    all
}

fn assert_all_valid(validator: &Validator) {
    let all = everything();
    let events: Vec<Value> =
        all.iter().enumerate().map(|(at, (_, event))| to_json(event, at as u64)).collect();
    let Some(faults) = validator.faults(&events) else { return };
    let wrong: Vec<String> = all
        .iter()
        .zip(&faults)
        .filter(|(_, faults)| !faults.is_empty())
        .map(|((name, _), faults)| format!("{name}: {faults:?}"))
        .collect();
    assert!(
        wrong.is_empty(),
        "{} of {} events are not valid:\n{}",
        wrong.len(),
        all.len(),
        wrong.join("\n")
    );
    eprintln!("{}: {} events valid", validator.name, all.len());
}

#[test]
fn every_event_is_valid_by_json_schema() {
    assert_all_valid(&JSON_SCHEMA);
}

#[test]
fn every_event_is_valid_by_the_models() {
    assert_all_valid(&MODELS);
}

/// `pointer` of every sample changed to `value`, or removed.
fn spoiled(class: &str, pointer: &str, value: Option<Value>) -> Value {
    let (_, event) =
        samples::minimal().into_iter().find(|(name, _)| name.starts_with(class)).unwrap();
    let mut event = to_json(&event, 1);
    let (parent, last) = pointer.rsplit_once('/').unwrap();
    let parent = event.pointer_mut(parent).unwrap().as_object_mut().unwrap();
    match value {
        Some(value) => drop(parent.insert(last.to_owned(), value)),
        None => assert!(parent.remove(last).is_some(), "{class} has no {pointer}"),
    }
    event
}

#[test]
fn the_json_schema_rejects_what_is_wrong() {
    let wrong = [
        spoiled("network", "/time", None),
        spoiled("network", "/activity_id", Some(json!(77))),
        spoiled("network", "/no_such_attribute", Some(json!(1))),
        spoiled("network", "/dst_endpoint/port", Some(json!("443"))),
        spoiled("network", "/dst_endpoint", None),
        spoiled("ssh", "/src_endpoint/ip", Some(json!("not an address"))),
        spoiled("http", "/http_request", None),
        spoiled("http", "/http_request/http_method", Some(json!("BREW"))),
        spoiled("authentication", "/user", None),
        spoiled("authentication", "/service", None),
        spoiled("api", "/actor", None),
        spoiled("api", "/api/operation", None),
        spoiled("lifecycle", "/app", None),
        spoiled("process launch", "/process/pid", None),
        spoiled("process launch", "/launch_type_id", Some(json!(12))),
        spoiled("finding", "/finding_info/uid", None),
        spoiled("config", "/device/type_id", None),
        spoiled("config", "/metadata/product", None),
    ];
    assert_all_rejected(&JSON_SCHEMA, &wrong);
}

#[test]
fn the_models_reject_what_is_wrong() {
    let mut wrong = Vec::new();
    for class in [
        "network",
        "ssh",
        "http",
        "authentication",
        "api",
        "lifecycle",
        "process",
        "finding",
        "config",
    ] {
        wrong.push(spoiled(class, "/type_uid", Some(json!(400_102))));
        wrong.push(spoiled(class, "/activity_name", Some(json!("Nonsense"))));
        wrong.push(spoiled(class, "/severity", Some(json!("Fatal"))));
        wrong.push(spoiled(class, "/metadata", None));
    }
    assert_all_rejected(&MODELS, &wrong);
}

fn assert_all_rejected(validator: &Validator, wrong: &[Value]) {
    let Some(faults) = validator.faults(wrong) else { return };
    for (event, faults) in wrong.iter().zip(faults) {
        assert!(!faults.is_empty(), "the {} validator let this pass: {event:#}", validator.name);
    }
}

#[test]
fn every_class_and_activity_is_among_the_samples() {
    let mut seen: Vec<(u32, u8)> = samples::minimal()
        .iter()
        .map(|(_, event)| (event.class_uid(), event.activity_id()))
        .collect();
    seen.sort_unstable();
    seen.dedup();
    let of = |class: u32| seen.iter().filter(|(uid, _)| *uid == class).count();
    assert_eq!(
        [1007, 2004, 3002, 4001, 4002, 4007, 5019, 6002, 6003].map(of),
        [3, 4, 5, 8, 10, 8, 2, 9, 5],
        "activities per class"
    );
}

#[test]
fn no_event_outgrows_its_bounds() {
    let source = samples::source();
    let (mut longest, mut longest_short) = (0, 0);
    for text in ["\u{1}".repeat(5000), "x".repeat(5000), "\u{e0041}".repeat(5000), "]".repeat(5000)]
    {
        for (_, event) in samples::full(&|| text.clone()) {
            let record = Record::new(&event, &source, u64::MAX);
            let (mut line, mut short) = (Vec::new(), String::new());
            record.write_json(&mut line);
            record.write_short(&mut short);
            longest = longest.max(line.len());
            longest_short = longest_short.max(short.len());
        }
    }
    eprintln!("longest JSON line {longest} bytes, longest short line {longest_short} bytes");
    assert!(longest <= MAX_LINE_BYTES, "{longest}");
    assert!(longest_short <= MAX_SHORT_BYTES, "{longest_short}");
}
