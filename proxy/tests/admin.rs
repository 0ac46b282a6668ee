//! What operators see and tune: the admin endpoint, its page in a real browser, and values that reload in a running
//! gateway, with relays open all the while.

#![allow(clippy::unwrap_used, unreachable_pub)]

#[macro_use]
#[path = "support/up.rs"]
mod up;

#[path = "admin/endpoint.rs"]
mod endpoint;

use std::fs;
use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use self::endpoint::{Admin, layer};
use self::up::{Up, eventually, installed, shown};

fn hang_up(up: &Up) {
    let pid = Pid::from_raw(i32::try_from(up.pid()).unwrap());
    kill(pid, Signal::SIGHUP).unwrap();
}

#[test]
fn config_has_values_and_defaults_and_layers_has_counters_too() {
    let up = Up::start_with_config("[openshell.layer.relay_caps]\npending = 200\n");
    let admin = Admin::of(&up);
    let config = admin.json("/config");
    let planes: Vec<_> =
        config["planes"].as_array().unwrap().iter().map(|plane| plane["plane"].clone()).collect();
    assert_eq!(planes, [json!("connection"), json!("call"), json!("relay")]);
    let names: Vec<_> = config["planes"][1]["layers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|layer| layer["name"].as_str().unwrap())
        .collect();
    let order = "request_id trace metrics rate_limit authenticate authorize ocsf deadline";
    assert_eq!(names.join(" "), order);
    assert_eq!(config["planes"][1]["left_out"], json!(["concurrency_cap", "body_limit"]));
    assert_eq!(
        admin.value(2, "relay_caps", "pending"),
        json!({"key": "pending", "value": 200, "default": 256, "is_default": false})
    );
    assert_eq!(admin.value(2, "relay_caps", "ssh_per_sandbox")["is_default"], true);
    assert_eq!(admin.value(0, "tls", "require_client_auth")["value"], true);
    assert!(layer(&config, 2, "relay_caps").get("counters").is_none());
    assert_eq!(config["reload"]["last"], Value::Null);

    assert!(up.run(&["status"]).status.success());
    let layers = admin.json("/layers");
    let counter = |plane: usize, name: &str, counter: &str| -> Value {
        let counters = layer(&layers, plane, name)["counters"].as_array().unwrap().clone();
        counters.into_iter().find(|each| each["name"] == counter).unwrap()
    };
    assert!(counter(1, "rate_limit", "passed")["value"].as_u64().unwrap() > 0);
    assert_eq!(counter(1, "rate_limit", "refused")["value"], 0);
    assert_eq!(counter(2, "relay_caps", "pending")["limit"], 200);
    assert_eq!(counter(0, "connection_cap", "connections")["limit"], 4096);
    assert_eq!(
        layers["gateway"]["counters"][0],
        json!({"name": "sessions", "value": 0, "total": false})
    );
    // No secret: neither database nor keys are told.
    let text = layers.to_string();
    assert!(!text.contains("sqlite") && !text.contains("PRIVATE"), "{text}");
}

#[test]
fn strangers_and_other_methods_are_refused() {
    let up = Up::start_with_config("");
    let admin = Admin::of(&up);
    for host in ["evil.example", "localhost.evil.example:80", "10.1.2.3"] {
        for path in ["/", "/config", "/layers"] {
            let answer = admin.ask("GET", path, &[("host", host)]);
            assert!(answer.starts_with("HTTP/1.1 403"), "{host} {path}: {answer}");
            assert!(!answer.contains("relay_caps"));
        }
    }
    assert!(
        admin
            .ask("GET", "/", &[("host", "localhost:1"), ("host", "evil.example")])
            .contains(" 403 ")
    );
    assert!(admin.ask("GET", "/config", &[("host", "localhost:1")]).starts_with("HTTP/1.1 200"));
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let answer = admin.ask(method, "/layers", &[("host", "localhost")]);
        assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
        assert!(answer.to_ascii_lowercase().contains("allow: get"));
    }
    let page = admin.ask("GET", "/", &[("host", "localhost")]).to_ascii_lowercase();
    for header in
        ["default-src 'none'", "frame-ancestors 'none'", "nosniff", "cache-control: no-store"]
    {
        assert!(page.contains(header), "{header}");
    }
    assert!(admin.ask("GET", "/other", &[("host", "localhost")]).starts_with("HTTP/1.1 404"));
}

#[test]
fn only_a_loopback_address_without_a_switch() {
    let folder = Up::folder();
    let path = folder.join("gateway.toml");
    let check = |text: &str| {
        fs::write(&path, text).unwrap();
        up::finish(up::postern().arg("check").arg(&path))
    };
    let open = "[openshell.gateway]\nadmin_bind_address = \"0.0.0.0:17673\"\n";
    let refused = check(open);
    assert_eq!(refused.status.code(), Some(2), "{}", shown(&refused));
    let text = shown(&refused);
    assert!(
        text.contains("gateway.toml:2") && text.contains("unsafe_allow_admin_network"),
        "{text}"
    );
    let allowed = check(&format!("{open}unsafe_allow_admin_network = true\n"));
    assert!(allowed.status.success(), "{}", shown(&allowed));
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn values_reload_by_file_and_signal_and_faults_change_nothing() {
    let caps = |pending: &str| format!("[openshell.layer.relay_caps]\npending = {pending}\n");
    let up = Up::start_with_config(&caps("200"));
    let admin = Admin::of(&up);
    let write = |text: &str| fs::write(admin.folder.join("gateway.toml"), text).unwrap();
    let pending = || admin.value(2, "relay_caps", "pending")["value"].clone();
    let last = || admin.json("/config")["reload"]["last"].clone();

    // Nobody is told; the file is looked at.
    write(&caps("150"));
    eventually("the new value is in force", || pending() == 150);
    let told = last();
    assert_eq!((&told["trigger"], &told["result"]), (&json!("file_change"), &json!("applied")));
    let change = json!([{"key": "relay_caps.pending", "from": 200, "to": 150}]);
    assert_eq!(told["changed"], change);

    write(&caps("\"many\""));
    eventually("the fault is told", || last()["result"] == "refused");
    assert!(last()["reasons"][0].as_str().unwrap().contains("gateway.toml:2"), "{}", last());
    assert_eq!(pending(), 150);
    assert!(up.log().contains("the running values stay"), "{}", up.log());

    write(&format!(
        "[openshell.stack]\nrelay = [\"relay_caps\", \"session_wait\"]\n{}",
        caps("90")
    ));
    eventually("the order is told", || {
        last()["reasons"][0].as_str().is_some_and(|reason| reason.contains("relay plane"))
    });
    assert_eq!(pending(), 150);

    write(&format!("[openshell.gateway]\ndrain_timeout = \"7s\"\n{}", caps("80")));
    hang_up(&up);
    eventually("the signal is answered", || last()["trigger"] == "signal" && pending() == 80);
    eventually("what waits is told", || last()["needs_restart"] == json!(["[openshell.gateway]"]));
    assert_eq!(admin.value(1, "deadline", "total")["is_default"], true);
}

/// Values of every layer that has some, each other than in the round before.
fn round(number: u32) -> String {
    let odd = number % 2;
    format!(
        "[openshell.layer.connection_cap]\ntotal = {total}\n\
         [openshell.layer.handshake_deadline]\ntotal = \"{seconds}s\"\n\
         [openshell.layer.h2_window]\nmax_streams = {streams}\n\
         [openshell.layer.rate_limit]\nper_key = {{ calls = {calls}, per = \"1s\", burst = {calls} }}\n\
         [openshell.layer.deadline]\ntotal = \"{seconds}s\"\n\
         [openshell.layer.relay_caps]\npending = {pending}\nssh_per_sandbox = {ssh}\n\
         [openshell.layer.session_wait]\nexec = \"{seconds}s\"\nfirst_delay = \"{delay}ms\"\n",
        total = 2000 + number,
        seconds = 10 + number % 20,
        streams = 512 + number,
        calls = 4000 + number,
        pending = 100 + number,
        // Below the relays that are open: a lowered cap ends none.
        ssh = 1 + 19 * odd,
        delay = 50 + number,
    )
}

#[test]
fn twenty_reloads_under_load_drop_nothing() {
    const LIVE: usize = 6;
    const ROUNDS: u32 = 20;
    needs_root!();
    if !installed("ssh") {
        return;
    }
    let up = Up::start_with_config("");
    let admin = Admin::of(&up);
    let sandbox = up.sandbox("load");
    let (over, echoed, ran) = (AtomicBool::new(false), AtomicU32::new(0), AtomicU32::new(0));
    std::thread::scope(|scope| {
        for number in 0..LIVE {
            let mut command = sandbox.openssh("ssh", &[&sandbox.host(), "cat"]);
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            let (over, echoed) = (&over, &echoed);
            let number = u8::try_from(number).unwrap();
            scope.spawn(move || echo(command, number, over, echoed));
        }
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let output = sandbox.exec(&["true"]);
                assert!(output.status.success(), "{}", shown(&output));
                ran.fetch_add(1, Ordering::Relaxed);
            }
        });
        let end = End(&over);
        let live = || admin.counter("relays live");
        eventually("all relays are open", || live() > u64::try_from(LIVE).unwrap());
        for number in 1..=ROUNDS {
            let (echoed_before, applied) = (echoed.load(Ordering::Relaxed), u64::from(number));
            fs::write(admin.folder.join("gateway.toml"), round(number)).unwrap();
            hang_up(&up);
            eventually("the round is in force", || {
                admin.json("/config")["reload"]["applied"].as_u64().unwrap() >= applied
            });
            eventually("bytes go on", || echoed.load(Ordering::Relaxed) > echoed_before + 6);
        }
        assert!(live() > u64::try_from(LIVE).unwrap(), "relays are open to the end");
        drop(end);
    });
    assert!(ran.load(Ordering::Relaxed) > 0);
    assert_eq!(admin.counter("sessions"), 1);
    assert_eq!(admin.counter("sessions superseded"), 0);
    let (echoed, ran) = (echoed.into_inner(), ran.into_inner());
    eprintln!(
        "{ROUNDS} reloads, {LIVE} relays: {echoed} echoes of 16 KiB, {ran} exec calls, none lost"
    );
}

/// Sends chunks through one relay and expects each back, until it is over.
fn echo(mut command: Command, number: u8, over: &AtomicBool, echoed: &AtomicU32) {
    let mut child = command.spawn().unwrap();
    let (mut to, mut from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let mut chunk = vec![number; 16 * 1024];
    let mut back = chunk.clone();
    while !over.load(Ordering::Relaxed) {
        chunk[0] = chunk[0].wrapping_add(1);
        to.write_all(&chunk).expect("the relay takes bytes");
        from.read_exact(&mut back).expect("the relay brings them back");
        assert!(chunk == back, "bytes were changed");
        echoed.fetch_add(1, Ordering::Relaxed);
    }
    drop(to);
    assert_eq!(from.read(&mut back).unwrap(), 0, "nothing is left over");
    assert!(child.wait().unwrap().success(), "a relay was dropped");
}

/// Ends the load also when an assertion fails.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn the_command_shows_a_running_gateway_or_the_configuration() {
    let up = Up::start_with_config("[openshell.layer.deadline]\ntotal = \"20s\"\n");
    let admin = Admin::of(&up);
    let path = admin.folder.join("gateway.toml").display().to_string();
    let layers = |arguments: &[&str], state: &str| {
        let mut all = vec!["layers"];
        all.extend(arguments);
        let output =
            up::finish(up.postern(&all).env("POSTERN_STATE_DIR", admin.folder.join(state)));
        assert!(output.status.success(), "{}", shown(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let url = format!("http://{}", admin.address);
    let told = layers(&["--gateway-admin", &url], "elsewhere");
    let found = layers(&["--config", &path], "s");
    for text in [&told, &found] {
        assert!(text.starts_with("gateway ") && text.contains("now: pending 0 of 256"), "{text}");
        assert!(text.contains("set; default 30s"), "{text}");
    }
    let alone = layers(&["--config", &path], "elsewhere");
    assert!(alone.contains("no running gateway") && !alone.contains("now:"), "{alone}");
    assert!(alone.find("connection plane") < alone.find("call plane"), "{alone}");
    let json: Value =
        serde_json::from_str(&layers(&["--gateway-admin", &url, "-o", "json"], "s")).unwrap();
    assert_eq!(layer(&json, 1, "deadline")["values"][0]["value"], "20s");
    up.stop();
    assert!(!admin.folder.join("s/admin-address").exists());
}

#[test]
fn the_page_runs_in_a_browser() {
    if !installed("chromium") {
        return;
    }
    let up = Up::start_with_config("[openshell.layer.deadline]\ntotal = \"20s\"\n");
    let admin = Admin::of(&up);
    let profile = admin.folder.join("browser");
    let output = up::finish(
        Command::new("chromium")
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"])
            .args(["--timeout=20000", "--virtual-time-budget=6000", "--dump-dom"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg(format!("http://{}/", admin.address)),
    );
    let dom = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", shown(&output));
    for text in [
        "live</p>",
        "<h2>connection plane</h2>",
        "<h2>call plane</h2>",
        "<h2>relay plane</h2>",
        "relay_caps</h3>",
        "<dd class=\"set\">20s<small>default 30s</small></dd>",
        "left out: concurrency_cap, body_limit",
    ] {
        assert!(dom.contains(text), "{text} is not in the page: {}", shown(&output));
    }
    let console = String::from_utf8_lossy(&output.stderr);
    assert!(!console.contains("Content Security Policy"), "{console}");
    assert!(!console.contains("Uncaught"), "{console}");
}
