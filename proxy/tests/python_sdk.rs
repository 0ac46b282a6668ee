//! The `openshell` Python SDK from its registry, unchanged, against `postern up`. The tests
//! themselves are `sdk/test_sdk.py`; this installs the SDK and runs them.

#[path = "support/up.rs"]
mod up;

use std::path::Path;
use std::process::Command;

use up::{Up, finish_within, shown};

#[test]
fn the_sdk_works_unchanged() {
    needs_root!();
    if !up::installed("python3") {
        return;
    }
    let gateway = Up::start(&[]);
    // Not below /tmp or /var/tmp: a sandbox has its own, and exec_python needs this one's cloudpickle.
    let folder = tempfile::Builder::new()
        .prefix("postern-sdk-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .tempdir_in("/opt")
        .expect("a temporary folder");
    let venv = folder.path().join("venv");
    let run = |command: &mut Command| {
        let output = finish_within(command, std::time::Duration::from_secs(600));
        assert!(output.status.success(), "{command:?}: {}\n{}", shown(&output), gateway.log());
        output
    };
    let tests = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sdk");
    // The interpreter of the system, which the sandbox's user can read too.
    run(Command::new("/usr/bin/python3").args(["-m", "venv"]).arg(&venv));
    run(Command::new(venv.join("bin/pip"))
        .args(["install", "--quiet", "--disable-pip-version-check", "-r"])
        .arg(tests.join("requirements.txt")));
    let mut pytest = Command::new(venv.join("bin/python"));
    pytest
        .args(["-m", "pytest", "-v", "--color=no", "-p", "no:cacheprovider"])
        .arg(&tests)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("SDK_PYTHON_BIN", venv.join("bin"));
    gateway.as_user(&mut pytest);
    let output = run(&mut pytest);
    println!("{}", String::from_utf8_lossy(&output.stdout));
}
