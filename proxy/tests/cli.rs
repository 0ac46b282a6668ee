//! The command line as people and scripts use it.

#[path = "support/up.rs"]
mod up;

use std::fs;
use std::process::Stdio;

use up::{Up, finish, finish_with_input, shown};

#[test]
fn status_says_who_and_where() {
    needs_root!();
    let gateway = Up::shared();
    let output = gateway.run(&["status"]);
    assert!(output.status.success(), "{}", shown(&output));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("healthy") && text.contains("https://127.0.0.1:"), "{text}");
    assert!(!text.contains('\u{1b}'), "no colour where there is no terminal: {text:?}");
    let whoami = gateway.run(&["whoami", "-o", "json"]);
    let whoami: serde_json::Value = serde_json::from_slice(&whoami.stdout).expect("JSON");
    assert!(whoami["roles"].to_string().contains("openshell-admin"), "{whoami}");
}

#[test]
fn a_gateway_that_is_not_there_is_told_with_what_to_do() {
    let folder = tempfile::tempdir().expect("a folder");
    let output = finish(
        up::postern()
            .arg("status")
            .env("XDG_CONFIG_HOME", folder.path())
            .env_remove("OPENSHELL_GATEWAY"),
    );
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("postern up"), "{}", shown(&output));
}

#[test]
fn gateways_are_listed_selected_and_removed() {
    needs_root!();
    let gateway = Up::shared();
    let own = tempfile::tempdir().expect("a folder");
    let run = |arguments: &[&str]| {
        let mut command = up::postern();
        command.args(arguments).env("XDG_CONFIG_HOME", own.path()).env_remove("OPENSHELL_GATEWAY");
        finish(&mut command)
    };
    let endpoint = gateway.endpoint();
    let registered = gateway.run(&["gateway", "list", "-o", "json"]);
    let registered: serde_json::Value = serde_json::from_slice(&registered.stdout).expect("JSON");
    let name = registered[0]["name"].as_str().expect("a name");
    let mtls = gateway.config_home().join("openshell/gateways").join(name).join("mtls");
    let mtls = mtls.display().to_string();
    let added = run(&["gateway", "add", &endpoint, "--name", "one", "--mtls-dir", &mtls]);
    assert!(added.status.success(), "{}", shown(&added));
    assert!(run(&["gateway", "add", "http://127.0.0.1:1", "--name", "two"]).status.success());
    assert_eq!(run(&["gateway", "select"]).stdout, b"two\n");
    assert!(!run(&["status"]).status.success());
    assert!(run(&["gateway", "select", "one"]).status.success());
    assert!(run(&["status"]).status.success());
    let info = run(&["gateway", "info", "-o", "json"]);
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).expect("JSON");
    assert_eq!(info["compute_drivers"][0], "process", "{info}");
    assert!(run(&["gateway", "remove", "two"]).status.success());
    let listed = String::from_utf8(run(&["gateway", "list"]).stdout).expect("text");
    assert!(listed.contains("one") && !listed.contains("two"), "{listed}");
}

#[test]
fn create_runs_a_command_and_passes_its_exit_code_and_no_keep_removes() {
    needs_root!();
    let gateway = Up::shared();
    let output = finish(
        gateway
            .postern(&[
                "sandbox",
                "create",
                "--name",
                "one-shot",
                "--no-keep",
                "--env",
                "WHO=me",
                "--label",
                "a=b",
                "--",
                "sh",
                "-c",
                "echo hello $WHO; exit 9",
            ])
            .stdin(Stdio::null()),
    );
    assert_eq!(output.status.code(), Some(9), "{}\n{}", shown(&output), gateway.log());
    assert_eq!(output.stdout, b"hello me\n");
    assert!(!gateway.run(&["sandbox", "get", "one-shot"]).status.success());
}

#[test]
fn exec_carries_standard_input_to_its_end() {
    needs_root!();
    let sandbox = Up::shared().sandbox("stdin");
    let input: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut command = sandbox.up.postern(&["sandbox", "exec", "-n", &sandbox.name, "--", "cat"]);
    let output = finish_with_input(&mut command, input.clone());
    assert!(output.status.success(), "{}", shown(&output));
    assert!(output.stdout == input, "{} bytes came back", output.stdout.len());
}

#[test]
fn exec_ends_although_its_own_standard_input_does_not() {
    needs_root!();
    let sandbox = Up::shared().sandbox("held");
    let mut child = sandbox
        .up
        .postern(&["sandbox", "exec", "-n", &sandbox.name, "--", "true"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("starts");
    let held = child.stdin.take();
    let status = up::until(up::PATIENCE, || child.try_wait().expect("can be asked"));
    drop(held);
    assert!(status.expect("ends").success());
}

#[test]
fn exec_timeout_is_124() {
    needs_root!();
    let sandbox = Up::shared().sandbox("slow");
    let output = sandbox.up.run(&[
        "sandbox",
        "exec",
        "-n",
        &sandbox.name,
        "--timeout",
        "1",
        "--no-tty",
        "--",
        "sleep",
        "60",
    ]);
    assert_eq!(output.status.code(), Some(124), "{}", shown(&output));
}

#[test]
fn lists_are_tables_or_json_or_names() {
    needs_root!();
    let sandbox = Up::shared().sandbox("listed");
    let gateway = sandbox.up;
    let table = String::from_utf8(gateway.run(&["sandbox", "list"]).stdout).expect("text");
    assert!(table.starts_with("NAME") && table.contains(&sandbox.name), "{table}");
    let json = gateway.run(&["sandbox", "list", "-o", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert!(json.as_array().expect("a list").iter().any(|one| one["name"] == sandbox.name));
    let names =
        String::from_utf8(gateway.run(&["sandbox", "list", "--names"]).stdout).expect("text");
    assert!(names.lines().any(|line| line == sandbox.name), "{names}");
    let one = gateway.get(&sandbox.name);
    assert_eq!(one["phase"], "Ready");
}

#[test]
fn folders_are_uploaded_and_downloaded_whole() {
    needs_root!();
    let sandbox = Up::shared().sandbox("files");
    let folder = sandbox.up.scratch("files");
    let source = folder.join("project");
    fs::create_dir_all(source.join("deep/er")).expect("makes");
    fs::write(source.join("deep/er/file"), vec![5_u8; 700_000]).expect("writes");
    fs::write(source.join("run"), "#!/bin/sh\necho ran\n").expect("writes");
    fs::set_permissions(source.join("run"), std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("sets");
    let path = source.display().to_string();
    let up = sandbox.up.run(&["sandbox", "upload", &sandbox.name, &path, "in/here"]);
    assert!(up.status.success(), "{}", shown(&up));
    assert_eq!(sandbox.exec(&["in/here/project/run"]).stdout, b"ran\n");
    let back = folder.join("back").display().to_string();
    let down = sandbox.up.run(&["sandbox", "download", &sandbox.name, "in/here/project", &back]);
    assert!(down.status.success(), "{}", shown(&down));
    assert_eq!(
        fs::read(folder.join("back/project/deep/er/file")).expect("came back"),
        vec![5_u8; 700_000]
    );
    let missing = sandbox.up.run(&["sandbox", "download", &sandbox.name, "not/there", &back]);
    assert!(!missing.status.success());
    assert!(
        String::from_utf8_lossy(&missing.stderr).contains("No such file"),
        "{}",
        shown(&missing)
    );
}

#[test]
fn logs_tell_what_the_gateway_and_the_sandbox_did() {
    needs_root!();
    let sandbox = Up::shared().sandbox("logs");
    up::eventually("both sources have logged", || {
        let output = sandbox.up.run(&["logs", &sandbox.name]);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.contains(" gateway ") && text.contains(" sandbox ")
    });
    let gateway_only = sandbox.up.run(&["logs", &sandbox.name, "--source", "gateway"]);
    let text = String::from_utf8_lossy(&gateway_only.stdout).into_owned();
    assert!(text.contains(" gateway ") && !text.contains(" sandbox "), "{text}");
}

#[test]
fn stop_and_start_by_name() {
    needs_root!();
    let sandbox = Up::shared().sandbox("stopped");
    let output = sandbox.up.run(&["sandbox", "stop", &sandbox.name]);
    assert!(output.status.success(), "{}", shown(&output));
    up::eventually("it is stopped", || sandbox.up.get(&sandbox.name)["phase"] == "Stopped");
    let refused = sandbox.exec(&["true"]);
    assert!(!refused.status.success());
    let output = sandbox.up.run(&["sandbox", "start", &sandbox.name]);
    assert!(output.status.success(), "{}", shown(&output));
    assert!(sandbox.exec(&["true"]).status.success());
}

#[test]
fn certificates_for_a_gateway_of_ones_own() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("pki");
    let output =
        finish(up::postern().args(["certs", "--server-san", "gateway.example"]).arg(&path));
    assert!(output.status.success(), "{}", shown(&output));
    for file in ["ca.crt", "server.crt", "server.key"] {
        assert!(path.join(file).exists(), "{file} is missing: {}", shown(&output));
    }
}
