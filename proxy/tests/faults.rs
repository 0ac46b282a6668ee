//! What happens when parts fail: real gateways, real supervisors, real signals.

#[path = "support/up.rs"]
mod up;

use std::fs;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use up::{PATIENCE, Up, eventually, finish, shown, until};

/// Heartbeats of a second, so that three of them do not take a minute.
const QUICK: &str = "[openshell.gateway]\nheartbeat_interval = \"1s\"\n";

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("the process is there");
}

fn phase(gateway: &Up, name: &str) -> String {
    gateway.get(name)["phase"].as_str().expect("is text").to_owned()
}

fn id(gateway: &Up, name: &str) -> String {
    gateway.get(name)["id"].as_str().expect("is text").to_owned()
}

fn ended(child: &mut Child, within: Duration) -> std::process::ExitStatus {
    let status = until(within, || child.try_wait().expect("can be asked"));
    if status.is_none() {
        let _ = child.kill();
    }
    status.unwrap_or_else(|| panic!("did not end within {within:?}"))
}

#[test]
fn a_frozen_supervisor_is_noticed_within_three_heartbeats_and_comes_back() {
    needs_root!();
    let gateway = Up::start_with_config(QUICK);
    let sandbox = gateway.sandbox("frozen");
    let supervisor = gateway.supervisor(&id(&gateway, &sandbox.name));
    signal(supervisor, Signal::SIGSTOP);
    let frozen = Instant::now();
    eventually("the sandbox is not Ready any more", || {
        phase(&gateway, &sandbox.name) == "Provisioning"
    });
    let noticed = frozen.elapsed();
    println!("noticed after {noticed:?} at heartbeats of 1 s");
    assert!(noticed < Duration::from_secs(6), "only after {noticed:?}");
    signal(supervisor, Signal::SIGCONT);
    eventually("the sandbox is Ready again", || phase(&gateway, &sandbox.name) == "Ready");
    assert_eq!(gateway.supervisor(&id(&gateway, &sandbox.name)), supervisor, "it was recreated");
    assert!(sandbox.exec(&["true"]).status.success());
}

#[test]
fn a_session_that_is_lost_and_back_within_the_wait_is_no_error() {
    needs_root!();
    let gateway = Up::start(&[]);
    let sandbox = gateway.sandbox("lost");
    signal(gateway.supervisor(&id(&gateway, &sandbox.name)), Signal::SIGKILL);
    // The driver starts it again; the call waits meanwhile.
    let output = sandbox.exec(&["echo", "back"]);
    assert_eq!(output.stdout, b"back\n", "{}\n{}", shown(&output), gateway.log());
    assert_eq!(phase(&gateway, &sandbox.name), "Ready");
}

#[test]
fn a_killed_gateway_finds_its_sandboxes_again_and_clients_notice() {
    needs_root!();
    let folder = Up::folder();
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a free port")
        .port()
        .to_string();
    let first = Up::start_in(folder, &["--port", &port]);
    let made = first.run(&["sandbox", "create", "--name", "survivor", "--detach", "--no-tty"]);
    assert!(made.status.success(), "{}", shown(&made));
    let wrote =
        first.run(&["sandbox", "exec", "-n", "survivor", "--", "sh", "-c", "echo kept > note"]);
    assert!(wrote.status.success(), "{}", shown(&wrote));
    let sandbox_id = id(&first, "survivor");
    let supervisor = first.supervisor(&sandbox_id);
    let config = first.scratch("ssh").join("config");
    fs::write(&config, first.run(&["sandbox", "ssh-config", "survivor"]).stdout).expect("writes");
    let mut client = std::process::Command::new("ssh");
    client.arg("-F").arg(&config).args(["openshell-survivor", "sleep 600"]);
    first.as_user(&mut client);
    let mut client = client.stdin(Stdio::null()).spawn().expect("ssh starts");
    eventually("the remote command runs", || {
        let output =
            first.run(&["sandbox", "exec", "-n", "survivor", "--", "pgrep", "-f", "sleep 600"]);
        output.status.success()
    });

    let folder = first.kill();
    let killed = Instant::now();
    let status = ended(&mut client, Duration::from_secs(45));
    println!("the client's ssh ended {:?} after the kill: {status}", killed.elapsed());
    assert_eq!(status.code(), Some(255));

    let second = Up::start_in(folder, &["--port", &port]);
    eventually("the sandbox is Ready again", || phase(&second, "survivor") == "Ready");
    println!("Ready again {:?} after the kill", killed.elapsed());
    assert_eq!(id(&second, "survivor"), sandbox_id);
    assert_eq!(second.supervisor(&sandbox_id), supervisor, "it was recreated");
    let read = second.run(&["sandbox", "exec", "-n", "survivor", "--", "cat", "note"]);
    assert_eq!(read.stdout, b"kept\n", "{}", shown(&read));
    assert!(second.run(&["sandbox", "delete", "survivor"]).status.success());
    eventually("the supervisor is gone", || kill(Pid::from_raw(supervisor), None).is_err());
}

#[test]
fn a_gateway_that_is_told_to_end_lets_running_work_finish() {
    needs_root!();
    let gateway = Up::start(&[]);
    let sandbox = gateway.sandbox("drain");
    let mut running = gateway
        .postern(&[
            "sandbox",
            "exec",
            "-n",
            &sandbox.name,
            "--no-tty",
            "--",
            "sh",
            "-c",
            "touch on; sleep 3; echo done",
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    eventually("the command runs", || sandbox.exec(&["test", "-e", "on"]).status.success());
    let pid = i32::try_from(gateway.pid()).expect("fits");
    signal(pid, Signal::SIGTERM);
    assert!(ended(&mut running, PATIENCE).success(), "{}", gateway.log());
    let mut text = String::new();
    std::io::Read::read_to_string(&mut running.stdout.take().expect("piped"), &mut text)
        .expect("text");
    assert_eq!(text, "done\n");
    eventually("the gateway has ended", || {
        fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| stat.contains(") Z "))
    });
    std::mem::forget(sandbox);
}

#[test]
fn a_second_signal_ends_a_draining_gateway_at_once() {
    needs_root!();
    let gateway = Up::start(&[]);
    let sandbox = gateway.sandbox("hurry");
    let mut running = gateway
        .postern(&["sandbox", "exec", "-n", &sandbox.name, "--no-tty", "--", "sleep", "600"])
        .stdin(Stdio::null())
        .spawn()
        .expect("starts");
    eventually("the command runs", || sandbox.exec(&["pgrep", "-f", "sleep 600"]).status.success());
    let pid = i32::try_from(gateway.pid()).expect("fits");
    signal(pid, Signal::SIGTERM);
    eventually("the gateway refuses new connections", || {
        !gateway.run(&["status"]).status.success()
    });
    signal(pid, Signal::SIGTERM);
    let status = ended(&mut running, Duration::from_secs(10));
    assert!(!status.success(), "the cut must not look like success");
    std::mem::forget(sandbox);
}

fn open_files(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("is there").count()
}

fn resident_kib(pid: i32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("is there");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("has one");
    line.split_whitespace().nth(1).expect("a number").parse().expect("a number")
}

#[test]
fn a_thousand_cycles_of_connect_exec_disconnect_leak_nothing() {
    needs_root!();
    let gateway = Up::start(&[]);
    let sandbox = gateway.sandbox("cycles");
    let pids = [
        ("gateway", i32::try_from(gateway.pid()).expect("fits")),
        ("supervisor", gateway.supervisor(&id(&gateway, &sandbox.name))),
    ];
    let cycles = |count: usize| {
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..count / 4 {
                        let output = sandbox.exec(&["true"]);
                        assert!(output.status.success(), "{}\n{}", shown(&output), gateway.log());
                    }
                });
            }
        });
    };
    cycles(200);
    let before = pids.map(|(_, pid)| (open_files(pid), resident_kib(pid)));
    cycles(1000);
    for ((name, pid), (files, memory)) in pids.into_iter().zip(before) {
        // What just closed may still be counted for a moment.
        eventually("files are closed again", || open_files(pid) <= files + 4);
        let now = resident_kib(pid);
        println!("{name}: files {files} -> {}, memory {memory} -> {now} KiB", open_files(pid));
        assert!(now < memory + 8192, "{name} grew from {memory} to {now} KiB");
    }
    let left = sandbox.exec(&["sh", "-c", "ps -e -o pid= | wc -l"]);
    let left: usize = String::from_utf8_lossy(&left.stdout).trim().parse().expect("a number");
    assert!(left < 12, "{left} processes are left in the sandbox");
}

#[test]
fn a_bad_config_is_refused_whole() {
    let folder = Up::folder();
    let path = folder.join("gateway.toml");
    fs::write(
        &path,
        "[openshell.gateway]\nheartbeat_intervall = \"1s\"\nlog_level = 7\n\n[openshell.stack]\nrelay = [\"relay_cap\"]\n",
    )
    .expect("writes");
    for command in [["check"].as_slice(), ["gateway", "--config"].as_slice()] {
        let output = finish(up::postern().args(command).arg(&path));
        assert_eq!(output.status.code(), Some(2), "{}", shown(&output));
        let text = shown(&output);
        for wanted in ["heartbeat_intervall", ":2", ":3", "relay_caps"] {
            assert!(text.contains(wanted), "{wanted} is not in: {text}");
        }
    }
    fs::remove_dir_all(folder).expect("removes");
}
