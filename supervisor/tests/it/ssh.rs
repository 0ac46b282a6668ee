//! Commands and shells through a real `ssh`.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::harness::{
    Builder, Supervisor, can_isolate, error_text, eventually, free_port, is_running, text,
};

#[test]
fn commands_run_with_their_streams_and_exit_codes() {
    if !can_isolate() {
        return;
    }
    let supervisor = Supervisor::start();
    let output = supervisor.ssh(&["echo out; echo err >&2; exit 7"]).output().unwrap();
    assert_eq!(text(&output), "out\n");
    assert_eq!(error_text(&output), "err\n");
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(supervisor.ssh(&["nonsense-command"]).output().unwrap().status.code(), Some(127));

    let mut child = supervisor.ssh(&["tr a-z A-Z"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"shout").unwrap();
    assert_eq!(text(&child.wait_with_output().unwrap()), "SHOUT");

    // Opening the streams by name needs pipes that belong to the agent.
    assert_eq!(supervisor.run("echo named > /dev/stdout"), "named\n");
    // The output of a command that ends at once arrives whole.
    let all = supervisor.run("seq 1 200000");
    assert_eq!(all.lines().last(), Some("200000"));
    assert_eq!(all.lines().count(), 200_000);
}

#[test]
fn death_by_signal_is_told_as_such() {
    if !can_isolate() {
        return;
    }
    let supervisor = Supervisor::start();
    let output = supervisor.ssh(&["-vv", "--", "kill -9 $$"]).output().unwrap();
    assert_eq!(output.status.code(), Some(255));
    let said = error_text(&output);
    assert!(said.contains("exit-signal"), "{said}");
}

#[test]
fn a_client_that_goes_away_takes_its_whole_tree_with_it() {
    if !can_isolate() {
        return;
    }
    let supervisor = Supervisor::start();
    let before = supervisor.processes().len();
    // A daemon that forks twice and makes a session of its own, beside a child that ignores signals.
    let line = "(setsid bash -c 'setsid sleep 987 & sleep 986 & wait' & ) ; \
                bash -c 'trap \"\" HUP TERM INT; sleep 985; sleep 985' & \
                sleep 0.3; echo up; wait; sleep 984";
    let mut child = supervisor.ssh(&[line]).spawn().unwrap();
    let mut first = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut first).unwrap();
    assert_eq!(first, "up\n");
    let during = supervisor.processes();
    assert!(during.len() >= before + 6, "{during:?}");
    child.kill().unwrap();
    child.wait().unwrap();
    eventually("the end of the tree", || (supervisor.processes().len() == before).then_some(()));
}

#[test]
fn what_a_finished_command_leaves_in_the_background_goes_on() {
    if !can_isolate() {
        return;
    }
    let supervisor = Supervisor::start();
    let pid = supervisor.run("setsid sleep 600 >/dev/null 2>&1 & echo $!");
    supervisor.run(&format!("kill -0 {}", pid.trim()));

    // One that holds the output open delays the end by a bounded time only.
    let start = Instant::now();
    let output = supervisor.ssh(&["sleep 600 & echo done"]).output().unwrap();
    assert_eq!(text(&output), "done\n");
    assert_eq!(output.status.code(), Some(0));
    assert!(start.elapsed() < Duration::from_secs(10));
}

#[test]
fn the_environment_is_built_from_nothing() {
    if !can_isolate() {
        return;
    }
    let supervisor = Builder::new()
        .env("OPENSHELL_USER_ENVIRONMENT", r#"{"GREETING":"hello world","OPENSHELL_X":"no"}"#)
        .env("OPENSHELL_SANDBOX_TOKEN", "topsecret")
        .env("LEAK", "leaked")
        .start();
    supervisor.ready();
    let all = supervisor.run("env");
    assert!(all.contains("GREETING=hello world\n"), "{all}");
    assert!(all.contains("OPENSHELL_SANDBOX=1\n") && all.contains("HOME=/home/sandbox\n"));
    assert!(all.contains("USER=sandbox\n") && all.contains("TERM=dumb\n"));
    for leak in ["topsecret", "LEAK", "OPENSHELL_X", "POSTERN_"] {
        assert!(!all.contains(leak), "{leak}: {all}");
    }
    let output = supervisor
        .ssh(&["-o", "SetEnv=COLOUR=blue LD_PRELOAD=/x OPENSHELL_PYFUNC_B64=eA==", "--", "env"])
        .output()
        .unwrap();
    let all = text(&output);
    assert!(all.contains("COLOUR=blue\n") && all.contains("OPENSHELL_PYFUNC_B64=eA==\n"));
    assert!(!all.contains("LD_PRELOAD"), "{all}");
}

#[test]
fn a_terminal_has_its_size_its_name_and_job_control() {
    if !can_isolate() {
        return;
    }
    let supervisor = Supervisor::start();
    let python = "\
import os, pty, fcntl, termios, struct, signal, sys, select, time
pid, fd = pty.fork()
if pid == 0:
    os.environ['TERM'] = 'xterm'
    os.execvp(sys.argv[1], sys.argv[1:])
def size(rows, cols):
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack('HHHH', rows, cols, 0, 0))
seen = b''
def expect(what):
    global seen
    end = time.time() + 20
    while what not in seen:
        ready, _, _ = select.select([fd], [], [], max(0, end - time.time()))
        if not ready:
            sys.exit('no %r in %r' % (what, seen))
        try:
            seen += os.read(fd, 65536)
        except OSError:
            sys.exit('ended before %r in %r' % (what, seen))
    seen = seen.split(what, 1)[1]
size(33, 101)
os.write(fd, b'echo begin; stty size; tty; echo $TERM\\n')
expect(b'33 101'); expect(b'/dev/pts/'); expect(b'xterm')
size(44, 122)
os.kill(pid, signal.SIGWINCH)
for _ in range(50):
    os.write(fd, b'stty size\\n')
    time.sleep(0.1)
    if b'44 122' in seen: break
    ready, _, _ = select.select([fd], [], [], 0.1)
    if ready: seen += os.read(fd, 65536)
expect(b'44 122')
os.write(fd, b'sleep 500; echo code=$?\\n')
time.sleep(0.5)
os.write(fd, b'\\x03')
expect(b'^C')
os.write(fd, b'echo after=$((40+2))\\n')
expect(b'after=42')
os.write(fd, b'exit 5\\n')
try:
    while os.read(fd, 65536): pass
except OSError:
    pass
_, status = os.waitpid(pid, 0)
sys.exit(0 if os.waitstatus_to_exitcode(status) == 5 else 'status %r' % status)
";
    let ssh = supervisor.ssh(&[]);
    let output = std::process::Command::new("python3")
        .args(["-c", python, "ssh"])
        .args(ssh.get_args())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", error_text(&output));
}

#[test]
fn a_command_with_a_terminal_ends_with_its_input() {
    if !can_isolate() {
        return;
    }
    let supervisor = Supervisor::start();
    let mut child =
        supervisor.ssh(&["-tt", "--", "cat; echo ended"]).stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"line\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(text(&output).contains("ended"), "{}", text(&output));
    assert!(output.status.success());
}

#[test]
fn forwarding_reaches_the_sandboxs_loopback_and_nothing_else() {
    if !can_isolate() {
        return;
    }
    let supervisor = Supervisor::start();
    supervisor.run(
        "echo content > /tmp/page; cd /tmp; \
         setsid python3 -m http.server --bind 127.0.0.1 8123 >/dev/null 2>&1 & \
         for i in $(seq 100); do python3 -c 'import socket; socket.create_connection((\"127.0.0.1\",8123))' 2>/dev/null && exit 0; sleep 0.05; done; exit 1",
    );
    let port = free_port();
    let other = free_port();
    let mut forward = supervisor
        .ssh(&[
            "-v",
            "-N",
            "-o",
            "ExitOnForwardFailure=yes",
            "-L",
            &format!("{port}:localhost:8123"),
            "-L",
            &format!("{other}:10.1.2.3:80"),
            "--",
        ])
        .spawn()
        .unwrap();
    let page = eventually("a page through the forward", || {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.write_all(b"GET /page HTTP/1.0\r\n\r\n").ok()?;
        let mut page = String::new();
        stream.read_to_string(&mut page).ok()?;
        page.contains("content").then_some(page)
    });
    assert!(page.ends_with("content\n"), "{page}");
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", other)).unwrap();
    let mut refused = Vec::new();
    let _ = stream.read_to_end(&mut refused);
    assert!(refused.is_empty());
    forward.kill().unwrap();
    let said = error_text(&forward.wait_with_output().unwrap());
    assert!(said.contains("administratively prohibited"), "{said}");

    let remote = supervisor
        .ssh(&["-v", "-o", "ExitOnForwardFailure=yes", "-R", "9000:localhost:1", "--", "true"])
        .output()
        .unwrap();
    assert_eq!(remote.status.code(), Some(255));
    assert!(
        error_text(&remote).contains("remote port forwarding failed"),
        "{}",
        error_text(&remote)
    );
}

#[test]
fn many_commands_share_one_connection() {
    if !can_isolate() {
        return;
    }
    let supervisor = Supervisor::start();
    let directory = tempfile::tempdir().unwrap();
    let control = format!("ControlPath={}/c", directory.path().display());
    let mut master = supervisor
        .ssh(&["-M", "-N", "-o", &control, "-o", "ControlPersist=no", "--"])
        .spawn()
        .unwrap();
    eventually("the shared connection", || {
        supervisor
            .ssh(&["-o", &control, "-O", "check", "--"])
            .output()
            .ok()?
            .status
            .success()
            .then_some(())
    });
    // One channel whose command never reads does not hold up the others.
    let mut stuck =
        supervisor.ssh(&["-o", &control, "--", "sleep 30"]).stdin(Stdio::piped()).spawn().unwrap();
    let mut input = stuck.stdin.take().unwrap();
    let filler = std::thread::spawn(move || {
        let block = vec![0; 1024 * 1024];
        for _ in 0..40 {
            if input.write_all(&block).is_err() {
                return;
            }
        }
    });
    let others: Vec<_> = (0..8)
        .map(|number| {
            supervisor.ssh(&["-o", &control, "--", &format!("echo {number}")]).spawn().unwrap()
        })
        .collect();
    for (number, other) in others.into_iter().enumerate() {
        assert_eq!(text(&other.wait_with_output().unwrap()), format!("{number}\n"));
    }
    stuck.kill().unwrap();
    let _ = stuck.wait();
    master.kill().unwrap();
    let _ = master.wait();
    let _ = filler.join();
}

#[test]
fn the_host_key_stays_over_a_restart() {
    if !can_isolate() {
        return;
    }
    let scan = |supervisor: &Supervisor| {
        let output = std::process::Command::new("ssh-keyscan")
            .args(["-p", &supervisor.port().to_string(), "127.0.0.1"])
            .output()
            .unwrap();
        let all = text(&output);
        all.split_whitespace().last().unwrap().to_owned()
    };
    let mut first = Supervisor::start();
    let key = scan(&first);
    assert!(key.starts_with("AAAAC3NzaC1lZDI1NTE5"), "{key}");
    let pid = first.child.id() as i32;
    first.terminate();
    assert!(!is_running(pid));
    let second = Builder::new().state_of(&first).start();
    second.ready();
    assert_eq!(scan(&second), key);
}
