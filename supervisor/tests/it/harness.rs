//! Starts supervisors and real SSH clients.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

/// Longest time anything in these tests may take before it counts as failed.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// Whether the sandbox tests can run here; says so when they cannot.
pub(crate) fn can_isolate() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("SKIPPED: sandboxes with a user of their own need root");
    }
    root
}

/// Waits until `condition` gives something.
pub(crate) fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < DEADLINE, "not within {DEADLINE:?}: {what}");
        pause();
    }
}

/// Waits until `value` has not changed for half a second.
pub(crate) fn settled(what: &str, mut value: impl FnMut() -> u64) -> u64 {
    let (mut last, mut since) = (value(), Instant::now());
    eventually(what, || {
        let now = value();
        if now != last {
            (last, since) = (now, Instant::now());
        }
        (since.elapsed() > Duration::from_millis(500)).then_some(now)
    })
}

/// Between two looks at something real that nobody tells us about.
#[allow(clippy::disallowed_methods)]
fn pause() {
    thread::sleep(Duration::from_millis(5));
}

/// A running supervisor with a state directory of its own.
pub(crate) struct Supervisor {
    pub(crate) child: Child,
    pub(crate) state: PathBuf,
    pub(crate) log: Arc<Mutex<String>>,
    pub(crate) output: Arc<Mutex<String>>,
    port: u16,
    _directory: Arc<tempfile::TempDir>,
}

/// What to start.
pub(crate) struct Builder {
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    directory: Arc<tempfile::TempDir>,
}

impl Builder {
    pub(crate) fn new() -> Self {
        Self {
            arguments: Vec::new(),
            environment: Vec::new(),
            directory: Arc::new(tempfile::Builder::new().prefix("sv").tempdir().unwrap()),
        }
    }

    /// Keeps the state of another supervisor.
    pub(crate) fn state_of(mut self, other: &Supervisor) -> Self {
        self.directory = Arc::clone(&other._directory);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl Into<String>) -> Self {
        self.environment.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn args(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.directory.path().join("sandboxes/s-1")
    }

    pub(crate) fn start(self) -> Supervisor {
        let state = self.state();
        std::fs::create_dir_all(state.join("run")).unwrap();
        let socket = state.join("run/ssh.sock");
        let _ = std::fs::remove_file(&socket);
        let mut child = Command::new(env!("CARGO_BIN_EXE_postern-supervisor"))
            .env_clear()
            .env("POSTERN_SANDBOX_DIR", &state)
            .env("POSTERN_LOCK_FILE", state.join("lock"))
            .env("OPENSHELL_SSH_SOCKET_PATH", &socket)
            .env("OPENSHELL_LOG_LEVEL", "info")
            .envs(self.environment)
            .args(self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = collect(child.stderr.take().unwrap());
        let output = collect(child.stdout.take().unwrap());
        let port = bridge(socket);
        Supervisor { child, state, log, output, port, _directory: self.directory }
    }
}

fn collect(mut from: impl Read + Send + 'static) -> Arc<Mutex<String>> {
    let text = Arc::new(Mutex::new(String::new()));
    let into = Arc::clone(&text);
    thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count) = from.read(&mut buffer)
            && count > 0
        {
            into.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
        }
    });
    text
}

/// A TCP port in front of the socket, so that `ssh` needs no proxy command.
fn bridge(socket: PathBuf) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.unwrap();
            let Ok(server) = UnixStream::connect(&socket) else { continue };
            let _ = client.set_nodelay(true);
            let (client2, server2) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || copy(client, server, |server| server.shutdown(Shutdown::Write)));
            thread::spawn(move || {
                copy(server2, client2, |client: &TcpStream| client.shutdown(Shutdown::Write));
            });
        }
    });
    port
}

fn copy<A: Read, B: Write>(mut from: A, mut to: B, end: impl Fn(&B) -> std::io::Result<()>) {
    let mut buffer = vec![0; 256 * 1024];
    while let Ok(count) = from.read(&mut buffer)
        && count > 0
        && to.write_all(&buffer[..count]).is_ok()
    {}
    let _ = end(&to);
}

impl Supervisor {
    /// A sandbox whose main process is the default shell.
    pub(crate) fn start() -> Self {
        let supervisor = Builder::new().start();
        supervisor.ready();
        supervisor
    }

    /// Waits until the SSH server listens.
    pub(crate) fn ready(&self) {
        eventually("the ssh socket", || UnixStream::connect(self.state.join("run/ssh.sock")).ok());
    }

    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// An OpenSSH tool with the options that every test needs.
    pub(crate) fn tool(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        let port = if matches!(name, "scp" | "sftp") { "-P" } else { "-p" };
        command
            .args(self.options())
            .args([port, &self.port.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn options(&self) -> Vec<String> {
        let options = [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "PreferredAuthentications=none",
        ];
        let mut all = vec!["-F".to_owned(), "/dev/null".to_owned(), "-q".to_owned()];
        all.extend(options.iter().flat_map(|option| ["-o".to_owned(), (*option).to_owned()]));
        all
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// `ssh` with these arguments, the command among them.
    pub(crate) fn ssh(&self, arguments: &[&str]) -> Command {
        let (flags, rest): (Vec<&str>, Vec<&str>) = {
            let split = arguments
                .iter()
                .position(|argument| *argument == "--")
                .map_or(0, |position| position + 1);
            let flags = arguments[..split.saturating_sub(1)].to_vec();
            (flags, arguments[split..].to_vec())
        };
        let mut command = self.tool("ssh");
        command.args(flags).arg("sandbox@127.0.0.1").args(rest);
        command
    }

    /// Runs a command and gives what it said on standard output.
    pub(crate) fn run(&self, line: &str) -> String {
        let output = self.ssh(&[line]).output().unwrap();
        assert!(
            output.status.success(),
            "{line}: {} {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        text(&output)
    }

    /// Host process ids of all processes of the sandbox, its init included.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let own = self.child.id() as i32;
        let mut known = vec![own];
        let mut index = 0;
        while index < known.len() {
            let parent = known[index];
            index += 1;
            for (pid, its_parent) in parents() {
                if its_parent == parent && !known.contains(&pid) {
                    known.push(pid);
                }
            }
        }
        known.split_off(1)
    }

    pub(crate) fn terminate(&mut self) -> i32 {
        let pid = nix::unistd::Pid::from_raw(self.child.id() as i32);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
        self.wait()
    }

    pub(crate) fn wait(&mut self) -> i32 {
        let child = &mut self.child;
        eventually("the end of the supervisor", || child.try_wait().unwrap()).code().unwrap_or(-1)
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- supervisor's log ---\n{}", self.log());
        }
    }
}

pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn error_text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn parents() -> Vec<(i32, i32)> {
    std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter_map(|pid| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let (_, rest) = stat.rsplit_once(')')?;
            // A zombie is gone for our purposes.
            let mut fields = rest.split_ascii_whitespace();
            (fields.next()? != "Z").then_some(())?;
            Some((pid, fields.next()?.parse().ok()?))
        })
        .collect()
}

/// Whether a process is there and not a zombie.
pub(crate) fn is_running(pid: i32) -> bool {
    parents().iter().any(|(found, _)| *found == pid)
}

/// A file of `size` bytes that nothing compresses or guesses.
pub(crate) fn random_file(path: &Path, size: usize) {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(size);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
    }
    bytes.truncate(size);
    std::fs::write(path, bytes).unwrap();
}

pub(crate) fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
