//! Start-up, the main process, and the end.

use std::time::{Duration, Instant};

use crate::harness::{Builder, Supervisor, can_isolate, eventually};

#[test]
fn the_exit_code_is_the_main_processs() {
    if !can_isolate() {
        return;
    }
    for (line, code) in [("echo said; exit 3", 3), ("kill -TERM $$", 143)] {
        let mut supervisor = Builder::new().args(&["bash", "-c", line]).start();
        assert_eq!(supervisor.wait(), code, "{line}: {}", supervisor.log());
        if code == 3 {
            eventually("the output", || {
                (*supervisor.output.lock().unwrap() == "said\n").then_some(())
            });
        }
    }
    let mut supervisor = Builder::new().args(&["no-such-program"]).start();
    assert_eq!(supervisor.wait(), 127);
}

#[test]
fn time_up_is_124() {
    if !can_isolate() {
        return;
    }
    let mut supervisor = Builder::new().args(&["--timeout", "1", "sleep", "600"]).start();
    let start = Instant::now();
    assert_eq!(supervisor.wait(), 124);
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn the_specified_main_process_has_a_terminal_and_a_directory() {
    if !can_isolate() {
        return;
    }
    let mut supervisor = Builder::new()
        .env(
            "OPENSHELL_MAIN_PROCESS_SPEC",
            r#"{"version":1,"command":["bash","-c","tty; pwd; stty size"],"tty":true}"#,
        )
        .args(&["--workdir", "/tmp"])
        .start();
    assert_eq!(supervisor.wait(), 0, "{}", supervisor.log());
    let output = supervisor.output.lock().unwrap().clone();
    assert!(output.contains("/dev/pts/0\r\n/tmp\r\n24 80\r\n"), "{output:?}");
}

#[test]
fn the_default_main_process_stays_until_the_supervisor_is_told_to_stop() {
    if !can_isolate() {
        return;
    }
    let mut supervisor = Supervisor::start();
    assert!(supervisor.child.try_wait().unwrap().is_none());
    let start = Instant::now();
    assert_eq!(supervisor.terminate(), 143);
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[test]
fn one_sandbox_has_one_supervisor() {
    if !can_isolate() {
        return;
    }
    let first = Supervisor::start();
    let state = first.state.clone();
    let second = std::process::Command::new(env!("CARGO_BIN_EXE_postern-supervisor"))
        .env("POSTERN_SANDBOX_DIR", &state)
        .env("POSTERN_LOCK_FILE", state.join("lock"))
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&second.stderr).contains("another supervisor"));
    assert_eq!(first.run("echo still here"), "still here\n");
}

#[test]
fn settings_that_make_no_sense_are_told_and_nothing_starts() {
    let run = |name: &str, value: &str| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_postern-supervisor"))
            .env_clear()
            .env(name, value)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (name, value) in [
        ("OPENSHELL_MAIN_PROCESS_SPEC", "{"),
        ("OPENSHELL_USER_ENVIRONMENT", "[]"),
        ("POSTERN_AGENT_UID", "x"),
    ] {
        let (code, error) = run(name, value);
        assert_eq!(code, Some(2), "{name}");
        assert!(error.contains(name), "{error}");
    }
}

#[test]
fn the_health_port_answers() {
    use std::io::{Read as _, Write as _};
    if !can_isolate() {
        return;
    }
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let supervisor =
        Builder::new().args(&["--health-check", "--health-port", &port.to_string()]).start();
    supervisor.ready();
    let mut stream =
        eventually("the health port", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}
