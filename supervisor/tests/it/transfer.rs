//! Files and bulk data through real `ssh`, `scp` and `sftp`.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::harness::{Supervisor, can_isolate, error_text, random_file, settled, text};

const BULK: usize = 100 * 1024 * 1024;

fn checksum(path: &Path) -> String {
    let output = Command::new("sha256sum").arg(path).output().unwrap();
    text(&output).split_whitespace().next().unwrap().to_owned()
}

fn remote_checksum(supervisor: &Supervisor, path: &str) -> String {
    let line = supervisor.run(&format!("sha256sum {path}"));
    line.split_whitespace().next().unwrap().to_owned()
}

#[test]
fn scp_and_sftp_carry_files_both_ways() {
    if !can_isolate() {
        return;
    }
    let supervisor = Supervisor::start();
    let directory = tempfile::tempdir().unwrap();
    let (file, back) = (directory.path().join("file"), directory.path().join("back"));
    random_file(&file, 5_000_001);
    let sum = checksum(&file);
    for (number, flags) in [&[][..], &["-O"]].into_iter().enumerate() {
        let remote = format!("up{number}");
        let output = supervisor
            .tool("scp")
            .args(flags)
            .arg(&file)
            .arg(format!("sandbox@127.0.0.1:{remote}"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{flags:?}: {}", error_text(&output));
        assert_eq!(remote_checksum(&supervisor, &remote), sum);
        let output = supervisor
            .tool("scp")
            .args(flags)
            .arg("-p")
            .arg(format!("sandbox@127.0.0.1:{remote}"))
            .arg(&back)
            .output()
            .unwrap();
        assert!(output.status.success(), "{flags:?}: {}", error_text(&output));
        assert_eq!(checksum(&back), sum);
        std::fs::remove_file(&back).unwrap();
    }
    // Files belong to the agent, and the kernel keeps it where it belongs.
    assert_eq!(supervisor.run("stat -c %U up0"), "sandbox\n");
    let output =
        supervisor.tool("scp").arg(&file).arg("sandbox@127.0.0.1:/etc/forbidden").output().unwrap();
    assert!(error_text(&output).contains("ermission denied"), "{}", error_text(&output));

    let batch = format!(
        "mkdir dir\ncd dir\nput {0} name\nrename name other\nln -s other link\nchmod 600 other\nls -l\ndf\nget link {1}\nrm link\nrm other\ncd ..\nrmdir dir\npwd\n",
        file.display(),
        back.display(),
    );
    let mut child = supervisor
        .tool("sftp")
        .args(["-b", "-"])
        .arg("sandbox@127.0.0.1")
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(batch.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}{}", text(&output), error_text(&output));
    assert!(text(&output).contains("-rw-------"), "{}", text(&output));
    assert!(text(&output).contains("Remote working directory: /home/sandbox"), "{}", text(&output));
    assert_eq!(checksum(&back), sum);
}

#[test]
fn directories_and_repositories_travel() {
    if !can_isolate() {
        return;
    }
    let supervisor = Supervisor::start();
    let directory = tempfile::tempdir().unwrap();
    let ssh = format!("ssh {} -p {}", supervisor.options().join(" "), supervisor.port());
    if Command::new("rsync").arg("--version").output().is_ok() {
        for name in ["a", "b/c"] {
            let path = directory.path().join("tree").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            random_file(&path, 300_000);
        }
        let output = Command::new("rsync")
            .args(["-a", "-e", &ssh])
            .arg(directory.path().join("tree"))
            .arg("sandbox@127.0.0.1:")
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", error_text(&output));
        assert_eq!(
            remote_checksum(&supervisor, "tree/b/c"),
            checksum(&directory.path().join("tree/b/c"))
        );
    } else {
        eprintln!("SKIPPED: rsync is not installed");
    }
    if supervisor.ssh(&["git --version"]).output().unwrap().status.success() {
        supervisor.run(
            "git init -q repo && cd repo && echo hello > f && git add f && \
             git -c user.email=a@b -c user.name=n commit -q -m first",
        );
        let output = Command::new("git")
            .env("GIT_SSH_COMMAND", &ssh)
            .args(["clone", "-q", "sandbox@127.0.0.1:repo"])
            .arg(directory.path().join("clone"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", error_text(&output));
        assert_eq!(std::fs::read(directory.path().join("clone/f")).unwrap(), b"hello\n");
    } else {
        eprintln!("SKIPPED: git is not usable inside the sandbox");
    }
}

#[test]
fn bulk_data_arrives_whole_in_each_direction_and_in_both() {
    if !can_isolate() {
        return;
    }
    let supervisor = Supervisor::start();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("bulk");
    random_file(&file, BULK);
    let sum = checksum(&file);

    let upload = supervisor
        .ssh(&["cat > bulk; sha256sum bulk"])
        .stdin(std::fs::File::open(&file).unwrap())
        .output()
        .unwrap();
    assert!(text(&upload).starts_with(&sum), "{}", error_text(&upload));

    let back = directory.path().join("back");
    let download = supervisor
        .ssh(&["cat bulk"])
        .stdout(std::fs::File::create(&back).unwrap())
        .status()
        .unwrap();
    assert!(download.success());
    assert_eq!(checksum(&back), sum);

    // As much out as in, at the same time, through one slow reader in the middle.
    let mut echo =
        supervisor.ssh(&["cat"]).stdin(std::fs::File::open(&file).unwrap()).spawn().unwrap();
    let mut output = echo.stdout.take().unwrap();
    // Nothing is read until the whole path is full; then the file moves by some bytes at most.
    let megabytes = || {
        let info = std::fs::read_to_string(format!("/proc/{}/fdinfo/0", echo.id())).unwrap();
        let line = info.lines().find(|line| line.starts_with("pos:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 20
    };
    assert!(settled("a full path", megabytes) < BULK as u64 >> 20);
    let mut all = std::fs::File::create(&back).unwrap();
    std::io::copy(&mut output, &mut all).unwrap();
    assert!(echo.wait().unwrap().success());
    assert_eq!(checksum(&back), sum);
}

#[test]
fn a_command_that_reads_late_holds_its_client_back() {
    if !can_isolate() {
        return;
    }
    let supervisor = Supervisor::start();
    let resident = || -> u64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", supervisor.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let before = resident();
    let mut child = supervisor
        .ssh(&["until test -e go; do sleep 0.05; done; wc -c"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let written = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&written);
    let writer = std::thread::spawn(move || {
        let block = vec![7; 1024 * 1024];
        for _ in 0..BULK / block.len() {
            input.write_all(&block).unwrap();
            count.fetch_add(1, Ordering::Relaxed);
        }
    });
    settled("a writer that is held back", || written.load(Ordering::Relaxed));
    assert!(!writer.is_finished());
    let grown = resident().saturating_sub(before);
    assert!(grown < 40 * 1024, "the supervisor holds {grown} KiB more");
    supervisor.run("touch go");
    writer.join().unwrap();
    let mut counted = String::new();
    child.stdout.take().unwrap().read_to_string(&mut counted).unwrap();
    assert_eq!(counted.trim(), BULK.to_string());
    assert!(child.wait().unwrap().success());
}
