//! What the agent can see and do.

use std::os::unix::fs::PermissionsExt as _;

use crate::harness::{Builder, Supervisor, can_isolate, eventually, is_running};

#[test]
fn the_agent_is_alone_and_nobody() {
    if !can_isolate() {
        return;
    }
    let supervisor = Builder::new()
        .env("POSTERN_AGENT_UID", "212345")
        .env("POSTERN_AGENT_GID", "212346")
        .env("OPENSHELL_SANDBOX", "box")
        .start();
    supervisor.ready();
    assert_eq!(supervisor.run("id -u; id -g; id -G; id -un"), "212345\n212346\n212346\nsandbox\n");
    assert_eq!(supervisor.run("hostname"), "box\n");
    // Its own process ids, beginning with the init, and nobody else's.
    let names =
        supervisor.run("cat /proc/1/cmdline | tr '\\0' ' '; echo; ls /proc | grep -c '^[0-9]'");
    assert!(names.contains("sandbox-init"), "{names}");
    let count: usize = names.lines().last().unwrap().parse().unwrap();
    assert!(count < 12, "{names}");
    // Only loopback, and it works.
    let interfaces = supervisor.run("tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' '");
    assert_eq!(interfaces, "lo\n");
    assert_eq!(supervisor.run("ls /sys/class/net"), "lo\n");
    assert_eq!(supervisor.run("cat /proc/net/route | wc -l").trim(), "1");
    // No privilege, and no way to get one.
    let status = supervisor.run("grep -E '^(Cap|NoNewPrivs)' /proc/self/status");
    for line in status.lines() {
        let value = line.split_whitespace().nth(1).unwrap();
        let expected = if line.starts_with("NoNewPrivs") { "1" } else { "0000000000000000" };
        assert_eq!(value, expected, "{line}");
    }
    assert_eq!(supervisor.run("ulimit -c; umask"), "0\n0022\n");
    // Nothing of the supervisor's is open in a command.
    assert_eq!(supervisor.run("ls /proc/self/fd | wc -l").trim(), "4");
    let signals = supervisor.run("grep -E '^Sig(Blk|Ign)' /proc/self/status");
    for line in signals.lines() {
        let set = u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap();
        // 32 and 33 belong to the C library, which lets nobody change them.
        assert_eq!(set & !(0b11 << 31), 0, "{line}");
    }
}

#[test]
fn the_agent_sees_its_own_files_and_no_state() {
    if !can_isolate() {
        return;
    }
    let supervisor = Supervisor::start();
    std::fs::write(supervisor.state.join("token"), "topsecret").unwrap();
    supervisor.run("echo kept > ~/file; echo temporary > /tmp/other");
    assert_eq!(std::fs::read(supervisor.state.join("home/file")).unwrap(), b"kept\n");
    assert_eq!(std::fs::read(supervisor.state.join("tmp/other")).unwrap(), b"temporary\n");
    let state = supervisor.state.display();
    let parent = supervisor.state.parent().unwrap().display();
    assert_eq!(
        supervisor.run(&format!("ls {state} 2>/dev/null | wc -l; ls {parent} 2>/dev/null | wc -l")),
        "0\n0\n"
    );
    assert_eq!(supervisor.run("ls /run | wc -l; ls /home"), "0\nsandbox\n");
    let devices = supervisor.run("ls /dev | tr '\\n' ' '");
    assert_eq!(devices, "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero ");
    for attempt in [
        "mount -t tmpfs none /mnt",
        "kill -9 1",
        "touch /etc/x",
        "unshare -n true",
        "cat /proc/1/environ",
    ] {
        let output = supervisor.ssh(&[attempt]).output().unwrap();
        assert!(!output.status.success(), "{attempt}");
    }
    assert_eq!(supervisor.run("cat /proc/1/comm").trim(), "exe");
}

#[test]
fn the_mask_covers_named_directories() {
    if !can_isolate() {
        return;
    }
    let secret = tempfile::Builder::new().prefix("secret").tempdir_in("/var").unwrap();
    std::fs::write(secret.path().join("key"), "topsecret").unwrap();
    std::fs::set_permissions(secret.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = secret.path().display().to_string();
    let open = Supervisor::start();
    assert_eq!(open.run(&format!("ls {path}")), "key\n");
    let supervisor = Builder::new().env("POSTERN_MASK_PATHS", &path).start();
    supervisor.ready();
    assert_eq!(supervisor.run(&format!("ls {path}")), "");
}

#[test]
fn the_report_says_what_holds() {
    if !can_isolate() {
        return;
    }
    let supervisor = Supervisor::start();
    let path = supervisor.state.join("run/isolation.json");
    let report: postern_supervisor::isolate::IsolationReport =
        serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(report.missing().count(), 0, "{report}");
    for name in [
        "namespaces",
        "own_user",
        "own_proc",
        "private_files",
        "loopback_only_network",
        "no_new_privileges",
    ] {
        assert!(report.enforces(name), "{name}: {report}");
    }
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_root_agent_is_refused_unless_less_is_accepted() {
    if !can_isolate() {
        return;
    }
    let mut strict = Builder::new().env("POSTERN_AGENT_UID", "0").start();
    assert_eq!(strict.wait(), 1);
    assert!(strict.log().contains("own_user cannot be enforced"), "{}", strict.log());
    let lenient = Builder::new()
        .env("POSTERN_AGENT_UID", "0")
        .env("OPENSHELL_BEST_EFFORT_FAILURES", "1")
        .start();
    lenient.ready();
    assert_eq!(lenient.run("id -u"), "0\n");
    let report = std::fs::read_to_string(lenient.state.join("run/isolation.json")).unwrap();
    assert!(report.contains("\"enforced\": false"), "{report}");
}

#[test]
fn without_root_the_agent_is_its_own_user_in_a_namespace() {
    if !can_isolate() {
        return;
    }
    // An unprivileged user runs the whole supervisor.
    let directory = tempfile::Builder::new().prefix("un").tempdir().unwrap();
    let (program, user) = (directory.path().join("supervisor"), 65_534);
    std::fs::copy(env!("CARGO_BIN_EXE_postern-supervisor"), &program).unwrap();
    std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let state = directory.path().join("state/sandboxes/s");
    std::fs::create_dir_all(&state).unwrap();
    for path in [
        directory.path().to_owned(),
        directory.path().join("state"),
        directory.path().join("state/sandboxes"),
        state.clone(),
    ] {
        std::os::unix::fs::chown(path, Some(user), Some(user)).unwrap();
    }
    use std::os::unix::process::CommandExt as _;
    let mut command = std::process::Command::new(&program);
    command
        .uid(user).gid(user).env_clear()
        .env("POSTERN_SANDBOX_DIR", &state)
        .args(["--ssh-socket-path", state.join("ssh.sock").to_str().unwrap()])
        .args(["--", "bash", "-c", "id -u; grep CapEff /proc/self/status; ls /proc | grep -c '^[0-9]'; tail -n +3 /proc/net/dev | wc -l; touch ~/f && ls ~"]);
    let output = command.output().unwrap();
    let error = crate::harness::error_text(&output);
    if error.contains("namespaces cannot be enforced") {
        eprintln!("SKIPPED: unprivileged user namespaces are not available: {error}");
        return;
    }
    let text = crate::harness::text(&output);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.first().copied(), Some("65534"), "{text}{error}");
    assert_eq!(lines[1], "CapEff:\t0000000000000000");
    assert!(lines[2].parse::<u32>().unwrap() < 10);
    assert_eq!(lines[3..], ["1", "f"]);
    let report = std::fs::read_to_string(state.join("run/isolation.json")).unwrap();
    assert!(report.contains("only root can give the agent a user of its own"), "{report}");
}

#[test]
fn the_death_of_the_supervisor_or_of_its_init_ends_everything() {
    if !can_isolate() {
        return;
    }
    let mut supervisor = Supervisor::start();
    supervisor.run("setsid sleep 900 >/dev/null 2>&1 &");
    let all = supervisor.processes();
    assert!(all.len() >= 4, "{all:?}");
    supervisor.child.kill().unwrap();
    supervisor.child.wait().unwrap();
    eventually("the end of every process", || {
        all.iter().all(|pid| !is_running(*pid)).then_some(())
    });

    let mut supervisor = Supervisor::start();
    let all = supervisor.processes();
    let init = nix::unistd::Pid::from_raw(all[0]);
    nix::sys::signal::kill(init, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(supervisor.wait(), 1);
    eventually("the end of every process", || {
        all.iter().all(|pid| !is_running(*pid)).then_some(())
    });
    assert!(supervisor.log().contains("the sandbox has ended"), "{}", supervisor.log());
}
