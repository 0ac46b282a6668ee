//! A real gateway for tests: `postern up` as its own process, with everything it embeds.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its own part")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

/// How long something may take on a loaded machine before the test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The `postern` under test: the one `scripts/test` built for release, else the one cargo built for
/// this test. Gigabytes through a debug build take minutes.
pub fn postern() -> Command {
    let program = std::env::var_os("POSTERN_TEST_PROGRAM")
        .unwrap_or_else(|| env!("CARGO_BIN_EXE_postern").into());
    Command::new(program)
}

/// Sandboxes need the rights of root here: their own user, PID, mount and network namespaces.
pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// Says loudly that a test did not run, and why.
pub fn skipped(why: &str) {
    eprintln!("SKIPPED: {why}");
}

/// Returns from a test, loudly, where sandboxes cannot be made.
#[macro_export]
macro_rules! needs_root {
    () => {
        if !up::is_root() {
            up::skipped("sandboxes with their own user and namespaces need root");
            return;
        }
    };
}

/// A running gateway. It ends, and removes its sandboxes, when its standard input closes: also when
/// the test program is killed.
pub struct Up {
    child: Mutex<Child>,
    folder: PathBuf,
    numbers: AtomicU32,
}

impl Up {
    /// The one gateway that the tests of a program share.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Up> = OnceLock::new();
        SHARED.get_or_init(|| Self::start(&[]))
    }

    /// Starts a gateway on a free port and waits until it answers.
    pub fn start(arguments: &[&str]) -> Self {
        Self::start_in(Self::folder(), &[&["--port", "0", "--ephemeral"], arguments].concat())
    }

    /// Starts a gateway with a `gateway.toml` of its own.
    pub fn start_with_config(config: &str) -> Self {
        let folder = Self::folder();
        let path = folder.join("gateway.toml");
        fs::write(&path, config).expect("writes");
        let path = path.display().to_string();
        Self::start_in(folder, &["--port", "0", "--ephemeral", "--config", &path])
    }

    /// A new folder, short enough for Unix sockets below it and open to a sandbox's user.
    pub fn folder() -> PathBuf {
        let folder = tempfile::Builder::new()
            .prefix("postern-test-")
            .tempdir_in("/var/tmp")
            .expect("a temporary folder")
            .keep();
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o755)).expect("sets");
        fs::create_dir(folder.join("config")).expect("a config folder");
        folder
    }

    /// Starts a gateway whose files are in `folder`, where another one may have been before.
    pub fn start_in(folder: PathBuf, arguments: &[&str]) -> Self {
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(folder.join("up.log"))
            .expect("a log file");
        let mut child = postern()
            .args(["up", "--exit-with-stdin", "--state-dir"])
            .arg(folder.join("s"))
            .args(arguments)
            .env("XDG_CONFIG_HOME", folder.join("config"))
            .env("XDG_STATE_HOME", folder.join("state"))
            .env_remove("OPENSHELL_GATEWAY")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .expect("postern starts");
        let mut lines = BufReader::new(child.stdout.take().expect("is piped"));
        let mut line = String::new();
        while !line.contains("gateway is ready") {
            line.clear();
            let count = lines.read_line(&mut line).expect("readable");
            assert!(count > 0, "postern up ended: {}", read(&folder.join("up.log")));
        }
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Self { child: Mutex::new(child), folder, numbers: AtomicU32::new(0) }
    }

    /// What the gateway wrote to standard error.
    pub fn log(&self) -> String {
        read(&self.folder.join("up.log"))
    }

    /// Process id of the gateway.
    pub fn pid(&self) -> u32 {
        self.child.lock().expect("not poisoned").id()
    }

    /// Where this user's registrations are.
    pub fn config_home(&self) -> PathBuf {
        self.folder.join("config")
    }

    /// A folder for a test's own files.
    pub fn scratch(&self, name: &str) -> PathBuf {
        let path = self.folder.join(format!("{name}-{}", self.number()));
        fs::create_dir(&path).expect("a scratch folder");
        path
    }

    fn number(&self) -> u32 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// The command line of a user who has this gateway registered.
    pub fn postern(&self, arguments: &[&str]) -> Command {
        let mut command = postern();
        command.args(arguments);
        self.as_user(&mut command);
        command
    }

    /// Makes any program see this gateway's registration.
    pub fn as_user(&self, command: &mut Command) {
        command
            .env("XDG_CONFIG_HOME", self.config_home())
            .env("XDG_STATE_HOME", self.folder.join("state"))
            .env_remove("OPENSHELL_GATEWAY");
    }

    /// Runs a command of the user to its end.
    pub fn run(&self, arguments: &[&str]) -> Output {
        finish(&mut self.postern(arguments))
    }

    /// A new ready sandbox.
    pub fn sandbox(&self, prefix: &str) -> Sandbox<'_> {
        let name = format!("{prefix}-{}", self.number());
        let output = self.run(&["sandbox", "create", "--name", &name, "--detach", "--no-tty"]);
        assert!(output.status.success(), "create failed: {}\n{}", shown(&output), self.log());
        Sandbox { up: self, name }
    }

    /// Kills the gateway without a word and waits until it is gone. Its files stay.
    pub fn kill(self) -> PathBuf {
        let mut child = self.child.lock().expect("not poisoned");
        child.kill().expect("kills");
        child.wait().expect("ends");
        drop(child);
        let folder = self.folder.clone();
        std::mem::forget(self);
        folder
    }

    /// URL of the gateway, as its registration has it.
    pub fn endpoint(&self) -> String {
        let output = self.run(&["status", "-o", "json"]);
        assert!(output.status.success(), "{}", shown(&output));
        let status: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
        status["endpoint"].as_str().expect("is there").to_owned()
    }

    /// A sandbox by JSON, as `sandbox get -o json` has it.
    pub fn get(&self, name: &str) -> serde_json::Value {
        let output = self.run(&["sandbox", "get", name, "-o", "json"]);
        assert!(output.status.success(), "{}\n{}", shown(&output), self.log());
        serde_json::from_slice(&output.stdout).expect("JSON")
    }

    /// Process id of a sandbox's supervisor.
    pub fn supervisor(&self, id: &str) -> i32 {
        let wanted = format!("OPENSHELL_SANDBOX_ID={id}");
        let mut found: Vec<i32> = fs::read_dir("/proc")
            .expect("is mounted")
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid| {
                fs::read(format!("/proc/{pid}/environ")).is_ok_and(|environment| {
                    environment.split(|byte| *byte == 0).any(|word| word == wanted.as_bytes())
                })
            })
            .collect();
        found.sort_unstable();
        *found.first().unwrap_or_else(|| panic!("no supervisor of {id}: {}", self.log()))
    }

    /// Ends the gateway as its operator would, and waits.
    pub fn stop(&self) {
        let mut child = self.child.lock().expect("not poisoned");
        drop(child.stdin.take());
        let _ = child.wait();
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        self.stop();
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// A sandbox that goes with the value.
pub struct Sandbox<'a> {
    pub up: &'a Up,
    pub name: String,
}

impl Sandbox<'_> {
    /// `ssh`, `scp`, `sftp` or `rsync -e`, by a config file as a user would have it.
    pub fn ssh_config(&self) -> PathBuf {
        let path = self.up.folder.join(format!("ssh-{}.config", self.name));
        if !path.exists() {
            let output = self.up.run(&["sandbox", "ssh-config", &self.name]);
            assert!(output.status.success(), "{}", shown(&output));
            fs::write(&path, &output.stdout).expect("writes");
        }
        path
    }

    pub fn host(&self) -> String {
        format!("openshell-{}", self.name)
    }

    /// A program of OpenSSH that knows this sandbox.
    pub fn openssh(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.arg("-F").arg(self.ssh_config()).args(arguments);
        self.up.as_user(&mut command);
        command
    }

    /// `ssh HOST COMMAND` to its end.
    pub fn ssh(&self, remote: &str) -> Output {
        finish(self.openssh("ssh", &[&self.host(), remote]).stdin(Stdio::null()))
    }

    /// Standard output of a remote command that must succeed.
    pub fn ssh_ok(&self, remote: &str) -> String {
        let output = self.ssh(remote);
        assert!(output.status.success(), "{remote}: {}\n{}", shown(&output), self.up.log());
        String::from_utf8(output.stdout).expect("text")
    }

    /// `postern sandbox exec` to its end.
    pub fn exec(&self, arguments: &[&str]) -> Output {
        let mut all = vec!["sandbox", "exec", "--no-tty", "-n", &self.name, "--"];
        all.extend(arguments);
        finish(self.up.postern(&all).stdin(Stdio::null()))
    }
}

impl Drop for Sandbox<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.up.run(&["sandbox", "delete", &self.name]);
        }
    }
}

/// Runs to the end within [`PATIENCE`] and a bit; kills what hangs.
pub fn finish(command: &mut Command) -> Output {
    finish_within(command, 4 * PATIENCE)
}

/// Runs to the end within a time; kills what hangs and fails.
pub fn finish_within(command: &mut Command, within: Duration) -> Output {
    let mut child =
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program starts");
    let mut out = child.stdout.take().expect("is piped");
    let stdout = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        out.read_to_end(&mut bytes).map(|_| bytes)
    });
    let err: ChildStderr = child.stderr.take().expect("is piped");
    let stderr = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        BufReader::new(err).read_to_end(&mut bytes).map(|_| bytes)
    });
    let status = until(within, || child.try_wait().expect("can be asked"));
    let Some(status) = status else {
        let _ = child.kill();
        panic!("{command:?} did not end within {within:?}");
    };
    Output {
        status,
        stdout: stdout.join().expect("no panic").expect("readable"),
        stderr: stderr.join().expect("no panic").expect("readable"),
    }
}

/// Runs with bytes on standard input.
pub fn finish_with_input(command: &mut Command, input: Vec<u8>) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("is piped");
    let writer = std::thread::spawn(move || {
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().expect("ends");
    writer.join().expect("no panic");
    output
}

/// Asks until there is an answer, or the time is over.
pub fn until<T>(within: Duration, mut ask: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + within;
    loop {
        if let Some(answer) = ask() {
            return Some(answer);
        }
        if Instant::now() > deadline {
            return None;
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// Waits until something is so, and fails when it never is.
pub fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    assert!(until(PATIENCE, || is_so().then_some(())).is_some(), "never: {what}");
}

pub fn shown(output: &Output) -> String {
    format!(
        "{}\nstdout: {}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Whether a program is installed; says loudly when it is not.
pub fn installed(program: &str) -> bool {
    let found = std::env::var_os("PATH").is_some_and(|path| {
        std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
    });
    if !found {
        skipped(&format!("{program} is not installed; scripts/test installs it"));
    }
    found
}
