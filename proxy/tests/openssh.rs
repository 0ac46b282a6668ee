//! Real OpenSSH, rsync and git against a real sandbox, through `postern ssh-proxy`.

#[path = "support/up.rs"]
mod up;

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use up::{PATIENCE, Up, eventually, finish, finish_with_input, installed, shown, until};

fn noise(count: usize) -> Vec<u8> {
    // xorshift: no compression, no repetition within a window.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(count + 8);
    while bytes.len() < count {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(count);
    bytes
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("binds").local_addr().expect("has one").port()
}

#[test]
fn exit_codes_and_streams_are_the_commands_own() {
    needs_root!();
    let sandbox = Up::shared().sandbox("exit");
    let output = sandbox.ssh("echo out; echo err >&2; exit 42");
    assert_eq!(output.status.code(), Some(42), "{}", shown(&output));
    assert_eq!(output.stdout, b"out\n");
    assert_eq!(output.stderr, b"err\n");
    assert_eq!(sandbox.ssh("true").status.code(), Some(0));
    assert_eq!(sandbox.ssh("no-such-program").status.code(), Some(127));
}

#[test]
fn death_by_a_signal_is_told_as_one() {
    needs_root!();
    let sandbox = Up::shared().sandbox("signal");
    let output = finish(
        sandbox.openssh("ssh", &["-v", &sandbox.host(), "kill -TERM $$"]).stdin(Stdio::null()),
    );
    assert_eq!(output.status.code(), Some(255), "{}", shown(&output));
    let told = String::from_utf8_lossy(&output.stderr).to_lowercase();
    assert!(told.contains("exit-signal"), "{told}");
    // The gateway's own exec says 128 and the number.
    assert_eq!(sandbox.exec(&["sh", "-c", "kill -TERM $$"]).status.code(), Some(143));
}

#[test]
fn what_runs_is_the_sandbox_and_not_this_machine() {
    needs_root!();
    let sandbox = Up::shared().sandbox("inside");
    assert_ne!(sandbox.ssh_ok("id -u").trim(), "0");
    assert_eq!(sandbox.ssh_ok("tail -n +3 /proc/net/dev | cut -d: -f1").trim(), "lo");
    let processes = sandbox.ssh_ok("ls /proc | grep -c '^[0-9]'");
    assert!(processes.trim().parse::<u32>().expect("a number") < 20, "{processes}");
    assert_eq!(sandbox.ssh("kill -0 1").status.code(), Some(1));
}

#[test]
fn a_pty_shell_has_the_size_of_the_window_and_follows_it() {
    needs_root!();
    if !installed("python3") {
        return;
    }
    let sandbox = Up::shared().sandbox("pty");
    // A terminal of our own, by Python's pty module: start, resize, interrupt, leave.
    let script = r#"
import fcntl, os, pty, signal, struct, sys, termios, time
def size(fd, rows, cols): fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
pid, fd = pty.fork()
if pid == 0:
    os.execvp(sys.argv[1], sys.argv[1:])
size(fd, 33, 101)
os.kill(pid, signal.SIGWINCH)
seen = b""
def read_until(mark, seconds=60):
    global seen
    end = time.monotonic() + seconds
    while mark not in seen:
        if time.monotonic() > end: sys.exit("no %r in %r" % (mark, seen))
        try: seen += os.read(fd, 65536)
        except OSError: break
def say(text): os.write(fd, text.encode())
say("PS1=; echo re''ady\n"); read_until(b"ready")
say("stty size; tty\n"); read_until(b"33 101"); read_until(b"/dev/pts/")
size(fd, 50, 132); os.kill(pid, signal.SIGWINCH)
say("until [ \"$(stty size)\" = '50 132' ]; do sleep 0.1; done; echo re''sized\n"); read_until(b"resized")
say("sleep 1234; echo \"int=$?\"\n"); time.sleep(0.5); say("\x03"); say("echo af''ter\n"); read_until(b"after")
say("exit 5\n")
while True:
    try:
        if not os.read(fd, 65536): break
    except OSError: break
_, status = os.waitpid(pid, 0)
sys.exit(os.waitstatus_to_exitcode(status))
"#;
    let ssh = sandbox.openssh("ssh", &["-tt", &sandbox.host()]);
    let mut python = Command::new("python3");
    python.args(["-c", script]).arg(ssh.get_program()).args(ssh.get_args());
    sandbox.up.as_user(&mut python);
    let output = finish(&mut python);
    assert_eq!(output.status.code(), Some(5), "{}", shown(&output));
    assert!(sandbox.exec(&["pgrep", "-f", "sleep 1234"]).status.code() == Some(1));
}

#[test]
fn scp_and_sftp_carry_files_both_ways() {
    needs_root!();
    let sandbox = Up::shared().sandbox("scp");
    let folder = sandbox.up.scratch("scp");
    let data = noise(5_000_000);
    fs::write(folder.join("a b.bin"), &data).expect("writes");
    let local = folder.join("a b.bin").display().to_string();
    for (legacy, name) in [(false, "new.bin"), (true, "old.bin")] {
        let remote = format!("{}:{name}", sandbox.host());
        let back = folder.join(name).display().to_string();
        let flags: &[&str] = if legacy { &["-O"] } else { &[] };
        let there = finish(&mut sandbox.openssh("scp", &[flags, &[&local, &remote]].concat()));
        assert!(there.status.success(), "{}", shown(&there));
        let again = finish(&mut sandbox.openssh("scp", &[flags, &[&remote, &back]].concat()));
        assert!(again.status.success(), "{}", shown(&again));
        assert!(fs::read(&back).expect("came back") == data);
    }
    let batch = format!(
        "mkdir d\nput \"{local}\" d/x\nrename d/x d/y\nchmod 600 d/y\nls -l d\nget d/y \"{}\"\nrm d/y\nrmdir d\n",
        folder.join("sftp.bin").display()
    );
    let sftp = finish_with_input(
        &mut sandbox.openssh("sftp", &["-b", "-", &sandbox.host()]),
        batch.into_bytes(),
    );
    assert!(sftp.status.success(), "{}", shown(&sftp));
    assert!(fs::read(folder.join("sftp.bin")).expect("came back") == data);
    assert_eq!(sandbox.ssh_ok("ls"), "new.bin\nold.bin\n");
    assert_eq!(sandbox.ssh_ok("stat -c %u new.bin"), sandbox.ssh_ok("id -u"));
    // sftp runs as the agent: what the agent may not read, sftp may not either.
    let stolen = finish_with_input(
        &mut sandbox.openssh("sftp", &["-b", "-", &sandbox.host()]),
        format!("get /etc/shadow {}\n", folder.join("shadow").display()).into_bytes(),
    );
    assert!(!stolen.status.success(), "{}", shown(&stolen));
}

#[test]
fn rsync_brings_a_folder_up_to_date() {
    needs_root!();
    if !installed("rsync") {
        return;
    }
    let sandbox = Up::shared().sandbox("rsync");
    let folder = sandbox.up.scratch("rsync");
    let tree = folder.join("tree");
    for index in 0..200 {
        let path = tree.join(format!("d{}", index % 7));
        fs::create_dir_all(&path).expect("makes");
        fs::write(path.join(format!("f{index}")), noise(1000 + index * 37)).expect("writes");
    }
    let shell = format!("ssh -F {}", sandbox.ssh_config().display());
    let rsync = |from: &str, to: &str| {
        let mut command = Command::new("rsync");
        command.args(["-a", "--delete", "--stats", "-e", &shell, from, to]);
        sandbox.up.as_user(&mut command);
        let output = finish(&mut command);
        assert!(output.status.success(), "{}", shown(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let there = format!("{}:tree/", sandbox.host());
    rsync(&format!("{}/", tree.display()), &there);
    fs::remove_file(tree.join("d0/f0")).expect("removes");
    let second = rsync(&format!("{}/", tree.display()), &there);
    assert!(second.contains("Number of deleted files: 1"), "{second}");
    assert!(second.contains("Number of regular files transferred: 0"), "{second}");
    rsync(&there, &format!("{}/", folder.join("back").display()));
    let diff = Command::new("diff").arg("-r").arg(&tree).arg(folder.join("back")).output();
    let diff = diff.expect("diff runs");
    assert!(diff.status.success(), "{}", shown(&diff));
}

#[test]
fn git_clones_a_repository_of_the_sandbox() {
    needs_root!();
    if !installed("git") {
        return;
    }
    let sandbox = Up::shared().sandbox("git");
    sandbox.ssh_ok(
        "git init -q repo && cd repo && git config user.email a@b && git config user.name a \
         && seq 1 20000 > numbers && git add . && git commit -qm one",
    );
    let folder = sandbox.up.scratch("git").join("clone");
    let mut clone = Command::new("git");
    clone
        .env("GIT_SSH_COMMAND", format!("ssh -F {}", sandbox.ssh_config().display()))
        .args(["clone", "-q", &format!("{}:repo", sandbox.host())])
        .arg(&folder);
    sandbox.up.as_user(&mut clone);
    let output = finish(&mut clone);
    assert!(output.status.success(), "{}", shown(&output));
    let numbers = fs::read_to_string(folder.join("numbers")).expect("cloned");
    assert_eq!(numbers.lines().count(), 20_000);
}

#[test]
fn local_forwards_work_and_remote_ones_are_refused() {
    needs_root!();
    let sandbox = Up::shared().sandbox("forward");
    let port = free_port();
    let server = "python3 -c \"import socket\ns=socket.create_server(('127.0.0.1',8123))\nprint('up',flush=True)\nwhile 1:\n c,_=s.accept()\n d=b''\n while 1:\n  b=c.recv(65536)\n  if not b: break\n  d+=b\n c.sendall(d[::-1]); c.close()\"";
    let mut forward = sandbox
        .openssh(
            "ssh",
            &["-L", &format!("127.0.0.1:{port}:127.0.0.1:8123"), &sandbox.host(), server],
        )
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("ssh starts");
    let mut mark = [0; 3];
    forward.stdout.take().expect("piped").read_exact(&mut mark).expect("the server came up");
    // A half-closed connection still gets its answer: end of file travels, the way back stays.
    let mut socket = TcpStream::connect(("127.0.0.1", port)).expect("connects");
    socket.set_read_timeout(Some(PATIENCE)).expect("sets");
    let data = noise(300_000);
    let mut writer = socket.try_clone().expect("clones");
    let sent = data.clone();
    let write = std::thread::spawn(move || {
        writer.write_all(&sent).expect("writes");
        writer.shutdown(std::net::Shutdown::Write).expect("half-closes");
    });
    let mut back = Vec::new();
    socket.read_to_end(&mut back).expect("reads");
    write.join().expect("no panic");
    back.reverse();
    assert!(back == data, "{} of {} bytes came back", back.len(), data.len());
    forward.kill().expect("kills");
    forward.wait().expect("ends");
    let refused = finish(
        sandbox
            .openssh(
                "ssh",
                &[
                    "-o",
                    "ExitOnForwardFailure=yes",
                    "-R",
                    "9999:127.0.0.1:1",
                    &sandbox.host(),
                    "true",
                ],
            )
            .stdin(Stdio::null()),
    );
    assert_eq!(refused.status.code(), Some(255), "{}", shown(&refused));
}

#[test]
fn a_forward_of_the_command_line_reaches_the_same_server_and_closes_half() {
    needs_root!();
    let sandbox = Up::shared().sandbox("fwd");
    let server = "python3 -c \"import socket\ns=socket.create_server(('127.0.0.1',8124))\nwhile 1:\n c,_=s.accept()\n d=b''\n while 1:\n  b=c.recv(65536)\n  if not b: break\n  d+=b\n c.sendall(d[::-1]); c.close()\"";
    let mut running = sandbox
        .openssh("ssh", &[&sandbox.host(), server])
        .stdin(Stdio::null())
        .spawn()
        .expect("ssh starts");
    let port = free_port();
    let started =
        sandbox.up.run(&["forward", "start", "-d", &format!("{port}:8124"), &sandbox.name]);
    assert!(started.status.success(), "{}", shown(&started));
    let data = noise(3_000_000);
    let answer = until(PATIENCE, || {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).ok()?;
        let mut writer = socket.try_clone().ok()?;
        let sent = data.clone();
        let write = std::thread::spawn(move || {
            let _ = writer.write_all(&sent);
            let _ = writer.shutdown(std::net::Shutdown::Write);
        });
        let mut back = Vec::new();
        let read = socket.read_to_end(&mut back);
        write.join().ok()?;
        // Until the server listens the relay is refused, and that is a reset, not an end.
        read.ok().filter(|count| *count > 0)?;
        Some(back)
    });
    let mut back = answer.expect("the forward never answered");
    back.reverse();
    assert!(back == data, "{} of {} bytes came back", back.len(), data.len());
    let listed = String::from_utf8(sandbox.up.run(&["forward", "list"]).stdout).expect("text");
    assert!(listed.contains(&port.to_string()) && listed.contains(&sandbox.name), "{listed}");
    assert!(sandbox.up.run(&["forward", "stop", &port.to_string()]).status.success());
    eventually("the port is free again", || TcpListener::bind(("127.0.0.1", port)).is_ok());
    running.kill().expect("kills");
    running.wait().expect("ends");
}

#[test]
fn a_gibibyte_each_way_keeps_its_checksum() {
    needs_root!();
    let sandbox = Up::shared().sandbox("gib");
    let make = "openssl enc -aes-128-ctr -pass pass:x -nosalt -pbkdf2 < /dev/zero 2>/dev/null | head -c 1073741824";
    let expected = Command::new("sh").args(["-c", &format!("{make} | sha256sum")]).output();
    let expected = String::from_utf8(expected.expect("runs").stdout).expect("text");
    let config = sandbox.ssh_config().display().to_string();
    let host = sandbox.host();
    for line in [
        format!("ssh -F {config} {host} '{make}' | sha256sum"),
        format!("{make} | ssh -F {config} {host} sha256sum"),
    ] {
        let mut shell = Command::new("sh");
        shell.args(["-c", &line]);
        sandbox.up.as_user(&mut shell);
        let started = std::time::Instant::now();
        let output = up::finish_within(&mut shell, Duration::from_secs(600));
        println!("{line}: {:?}", started.elapsed());
        assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{}", shown(&output));
    }
}

#[test]
fn twenty_sessions_at_a_time_do_not_mix() {
    needs_root!();
    let sandbox = Up::shared().sandbox("twenty");
    let config = sandbox.ssh_config();
    let children: Vec<_> = (0..20)
        .map(|index| {
            let mut command = Command::new("ssh");
            command
                .arg("-F")
                .arg(&config)
                .arg(sandbox.host())
                .arg(format!("for i in $(seq 1 2000); do echo {index}-$i; done; exit {index}"));
            sandbox.up.as_user(&mut command);
            command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("ssh starts")
        })
        .collect();
    for (index, child) in children.into_iter().enumerate() {
        let output = child.wait_with_output().expect("ends");
        assert_eq!(output.status.code(), i32::try_from(index).ok(), "{}", sandbox.up.log());
        let text = String::from_utf8(output.stdout).expect("text");
        assert_eq!(text.lines().count(), 2000);
        assert!(text.lines().all(|line| line.starts_with(&format!("{index}-"))));
    }
}

#[test]
fn a_client_that_goes_takes_its_command_along() {
    needs_root!();
    let sandbox = Up::shared().sandbox("gone");
    let mut child = sandbox
        .openssh("ssh", &[&sandbox.host(), "echo up; (setsid sleep 5555 &); exec sleep 5555"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("ssh starts");
    let mut mark = [0; 3];
    child.stdout.take().expect("piped").read_exact(&mut mark).expect("it runs");
    child.kill().expect("kills");
    child.wait().expect("ends");
    eventually("the command has ended", || {
        sandbox.exec(&["pgrep", "-f", "sleep 5555"]).status.code() == Some(1)
    });
}
