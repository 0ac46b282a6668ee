//! The sinks keep their bounds, and no text can break out of its line.

#![cfg(feature = "ocsf")]
#![allow(clippy::unwrap_used)]

use std::fs;
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use postern_layers::ocsf::object::{
    Actor, Api, Connection, Direction, Endpoint, Evidence, FindingInfo, HttpRequest, Peers,
    Process, Product, Rule, Service, Url, User,
};
use postern_layers::ocsf::sink::{FileConfig, FileSink, SyslogConfig, SyslogSink, SyslogTarget};
use postern_layers::ocsf::*;
use proptest::prelude::*;

#[path = "ocsf_data/samples.rs"]
#[allow(dead_code, reason = "the schema test uses the rest")]
mod samples;

/// A folder of its own for a test, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("ocsf-sinks-{name}-{}", std::process::id()));
        drop(fs::remove_dir_all(&path));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.0));
    }
}

fn event(message: &str) -> Event {
    let to = Peers::to(Endpoint::host("example.com").port(443));
    NetworkActivity::new(ConnectionActivity::Open, to, samples::TIME)
        .message(message.to_owned())
        .into()
}

fn write(sink: &mut impl Sink, event: &Event, sequence: u64) -> std::io::Result<()> {
    sink.write(&Record::new(event, &samples::source(), sequence))
}

fn short(event: impl Into<Event>) -> String {
    let mut line = String::new();
    Record::new(&event.into(), &samples::source(), 1).write_short(&mut line);
    line
}

fn sequences(path: &Path) -> Vec<u64> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let of = |line: &str| {
        serde_json::from_str::<serde_json::Value>(line).unwrap()["metadata"]["sequence"].as_u64()
    };
    text.lines().map(|line| of(line).unwrap()).collect()
}

const MIN_FILE: u64 = 2 * MAX_LINE_BYTES as u64;

#[test]
fn a_file_is_private_whole_and_continued() {
    let folder = Folder::new("continued");
    let path = folder.file("events.jsonl");
    let mut sink = FileSink::open(FileConfig::new(&path)).unwrap();
    write(&mut sink, &event("one"), 1).unwrap();
    drop(sink);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    // A crash in the middle of a line.
    let mut torn = fs::read(&path).unwrap();
    torn.extend_from_slice(b"{\"torn");
    fs::write(&path, torn).unwrap();
    let mut sink = FileSink::open(FileConfig::new(&path)).unwrap();
    write(&mut sink, &event("two"), 2).unwrap();
    sink.close().unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines.len(), lines[1]), (3, "{\"torn"));
    assert!(lines[2].starts_with("{\"class_uid\":4001,") && text.ends_with('\n'));
}

#[test]
fn a_full_disk_loses_the_event_and_leaves_no_half_line() {
    if !Path::new("/dev/full").exists() {
        eprintln!("SKIPPED: this system has no /dev/full");
        return;
    }
    let mut sink = FileSink::open(FileConfig::new("/dev/full")).unwrap();
    let error = write(&mut sink, &event("lost"), 1).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
}

#[test]
fn values_out_of_range_are_all_named() {
    let config = FileConfig { max_bytes: 10, files: 0, ..FileConfig::new("/") };
    let faults: Vec<&str> = config.validate().iter().map(|fault| fault.field).collect();
    assert_eq!(faults, ["path", "max_bytes", "files"]);
    assert!(FileSink::open(config).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever is written: no file is larger than its bound, there are no more files than allowed, nothing but the oldest is
    /// gone, and what is left is in order without a gap.
    #[test]
    fn rotation_keeps_its_bounds(files in 1u32..5, sizes in prop::collection::vec(1usize..900, 1..1500), reopen in 1usize..400) {
        let folder = Folder::new("rotation");
        let path = folder.file("events.jsonl");
        let config = FileConfig { files, max_bytes: MIN_FILE, ..FileConfig::new(&path) };
        let mut sink = FileSink::open(config.clone()).unwrap();
        for (at, size) in sizes.iter().enumerate() {
            if at % reopen == 0 {
                sink = FileSink::open(config.clone()).unwrap();
            }
            write(&mut sink, &event(&"x".repeat(*size)), at as u64).unwrap();
        }
        let mut kept: Vec<u64> = Vec::new();
        let mut found = 0;
        for number in (0..10u32).rev() {
            let one = if number == 0 { path.clone() } else { folder.file(&format!("events.jsonl.{number}")) };
            if one.exists() {
                found += 1;
                prop_assert!(fs::metadata(&one).unwrap().len() <= MIN_FILE);
                kept.extend(sequences(&one));
            }
        }
        prop_assert!(found <= files);
        let first = kept[0];
        let wanted: Vec<u64> = (first..sizes.len() as u64).collect();
        prop_assert_eq!(&kept, &wanted, "in order, without a gap, up to the last");
        prop_assert!(first == 0 || found == files, "nothing is deleted before all files are used");
    }
}

#[test]
fn syslog_gets_one_datagram_per_event() {
    let folder = Folder::new("syslog");
    let path = folder.file("log");
    let daemon = UnixDatagram::bind(&path).unwrap();
    daemon.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let mut config = SyslogConfig::new(SyslogTarget::Local(path.clone()));
    config.format = Format::Short;
    let mut sink = SyslogSink::open(config).unwrap();
    write(&mut sink, &event("relay\nopen"), 1).unwrap();
    let mut buffer = [0; 65536];
    let size = daemon.recv(&mut buffer).unwrap();
    let text = std::str::from_utf8(&buffer[..size]).unwrap();
    let wanted = format!(
        "<86>1 2026-01-02T03:04:05.678Z gateway-1 Postern {} ocsf-4001 - NET:OPEN [INFO] example.com:443 [msg:relay open]",
        std::process::id()
    );
    assert_eq!(text, wanted);
    // The daemon goes away: the event is lost. It comes back: the next one arrives.
    drop(daemon);
    fs::remove_file(&path).unwrap();
    assert!(write(&mut sink, &event("lost"), 2).is_err());
    let daemon = UnixDatagram::bind(&path).unwrap();
    daemon.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    write(&mut sink, &event("back"), 3).unwrap();
    assert!(daemon.recv(&mut buffer).unwrap() > 0);
}

#[test]
fn a_stalled_syslog_daemon_costs_a_bounded_time() {
    let folder = Folder::new("stalled");
    let path = folder.file("log");
    let daemon = UnixDatagram::bind(&path).unwrap();
    let mut sink = SyslogSink::open(SyslogConfig::new(SyslogTarget::Local(path))).unwrap();
    // Nobody reads: the socket fills up and then each event fails after its limit instead of blocking for ever.
    let failed = (0..10_000).find_map(|at| write(&mut sink, &event("x"), at).err()).unwrap();
    assert!(
        matches!(failed.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
        "{failed}"
    );
    drop(daemon);
}

#[test]
fn an_event_too_long_for_a_datagram_is_sent_short() {
    let daemon = UdpSocket::bind("127.0.0.1:0").unwrap();
    daemon.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let config = SyslogConfig::new(SyslogTarget::Udp(daemon.local_addr().unwrap()));
    let mut sink = SyslogSink::open(config).unwrap();
    let mut buffer = [0; 65536];
    write(&mut sink, &event("fits"), 1).unwrap();
    let size = daemon.recv(&mut buffer).unwrap();
    assert!(buffer[..size].ends_with(b"}"), "JSON as long as it fits");
    for (_, event) in samples::full(&|| "\u{e9}".repeat(5000)) {
        write(&mut sink, &event, 2).unwrap();
        let size = daemon.recv(&mut buffer).unwrap();
        assert!(size <= 2048);
        let text = std::str::from_utf8(&buffer[..size]).expect("cut between characters");
        assert!(text.contains(" [HIGH]"), "{text}");
    }
}

#[test]
fn the_short_form_has_the_shape_of_the_contract() {
    let curl = || Actor::process(Process::new(58).name("/usr/bin/curl"));
    let api = || Endpoint::host("api.example.com").port(443);
    let time = samples::TIME;
    let allowed = NetworkActivity::new(ConnectionActivity::Open, Peers::to(api()), time)
        .actor(curl())
        .connection(Connection::new(Direction::Outbound).protocol_name("tcp"))
        .verdict(Verdict::Allowed)
        .rule(Rule::new("api").engine("rules"));
    assert_eq!(
        short(allowed),
        "NET:OPEN [INFO] ALLOWED /usr/bin/curl(58) -> api.example.com:443/tcp [policy:api engine:rules]"
    );
    let denied = NetworkActivity::new(ConnectionActivity::Refuse, Peers::to(api()), time)
        .severity(Severity::Medium)
        .verdict(Verdict::Blocked)
        .detail("no rule matches");
    assert_eq!(
        short(denied),
        "NET:REFUSE [MED] DENIED api.example.com:443 [reason:no rule matches]"
    );
    let http = HttpActivity::new(
        HttpRequest::new("GET", Url::new("/v1").scheme("https").hostname("api.example.com")),
        time,
    )
    .actor(curl())
    .verdict(Verdict::Allowed);
    assert_eq!(
        short(http),
        "HTTP:GET [INFO] ALLOWED /usr/bin/curl(58) GET https://api.example.com/v1"
    );
    let ssh =
        SshActivity::new(ConnectionActivity::Open, Peers::from(Endpoint::named("ssh.sock")), time)
            .auth(SshAuth::None)
            .verdict(Verdict::Allowed);
    assert_eq!(short(ssh), "SSH:OPEN [INFO] ALLOWED ssh.sock [auth:none]");
}

#[test]
fn the_short_form_of_what_is_no_connection_too() {
    let time = samples::TIME;
    let process = Process::new(9).name("bash").cmd_line("bash -c 'echo [x]'");
    let ended = ProcessActivity::ended(Some(3), process, Actor::app("supervisor"), time);
    assert_eq!(short(ended), "PROC:TERMINATE [INFO] bash(9) [exit:3] [cmd:bash -c 'echo \\[x\\]']");
    let finding = DetectionFinding::new(
        FindingActivity::Create,
        FindingInfo::new("bypass-detect", "Proxy \"bypassed\""),
        time,
    )
    .severity(Severity::High)
    .confidence(Confidence::High)
    .verdict(Verdict::Blocked)
    .evidence(Evidence::destination(Endpoint::host("api.example.com")));
    assert_eq!(
        short(finding),
        "FINDING:BLOCKED [HIGH] \"Proxy \\\"bypassed\\\"\" [type:bypass-detect confidence:high]"
    );
    let config = ConfigStateChange::new(
        ConfigActivity::Log,
        ConfigState::enabled().shown_as("loaded"),
        time,
    )
    .message("policy loaded")
    .unmapped("version", 3u32)
    .unmapped("hash", "abc");
    assert_eq!(short(config), "CONFIG:LOADED [INFO] policy loaded [version:3 hash:abc]");
    let lifecycle =
        ApplicationLifecycle::new(LifecycleActivity::Start, Product::new("SSH server"), time)
            .status(Status::Success);
    assert_eq!(short(lifecycle), "LIFECYCLE:START [INFO] SSH server SUCCESS");
}

#[test]
fn the_short_form_of_calls_and_logons_too() {
    let time = samples::TIME;
    let call = Api::new("CreateSandbox").service(Service::new("pkg.Sandboxes")).failed(
        7,
        "PERMISSION_DENIED",
        "no",
    );
    let call = ApiActivity::new(
        ApiVerb::Create,
        call,
        Actor::user(User::named("alice")),
        Endpoint::unknown(),
        time,
    )
    .status(Status::Failure);
    assert_eq!(
        short(call),
        "API:CREATE [INFO] FAILURE alice pkg.Sandboxes/CreateSandbox [code:PERMISSION_DENIED]"
    );
    let logon = Authentication::new(
        LogonActivity::Logon,
        User::named("bob"),
        Service::new("gateway"),
        time,
    )
    .src(Endpoint::ip("2001:db8::1".parse().unwrap()).port(5))
    .protocol(AuthProtocol::MutualTls)
    .status(Status::Failure)
    .detail("unknown issuer");
    assert_eq!(
        short(logon),
        "AUTH:LOGON [INFO] FAILURE bob from (2001:db8::1):5 [auth:mTLS] [reason:unknown issuer]"
    );
}

/// Characters that start another line or steer a terminal, wherever they stand.
fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Strings with many of the characters that matter.
fn hostile() -> impl Strategy<Value = String> {
    let nasty = prop::sample::select(vec![
        "\n",
        "\r\n",
        "\u{1b}[31m",
        "\u{0}",
        "]",
        "[",
        "\\",
        "\"",
        " ",
        "\u{85}",
        "\u{2028}",
        "\u{202e}",
        "\u{7f}",
        "NET:OPEN [INFO] ALLOWED ",
        " -> ",
        "\u{200b}",
        "\u{e0041}",
        "\u{feff}",
    ]);
    let piece = prop_oneof![nasty.prop_map(str::to_owned), any::<String>()];
    prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Whatever the texts in an event are, it is one line of harmless characters, in both forms, and the brackets that are
    /// not escaped are the line's own.
    #[test]
    fn no_text_breaks_out_of_its_line(text in hostile()) {
        let source = samples::source();
        for (name, event) in samples::full(&|| text.clone()) {
            let record = Record::new(&event, &source, 1);
            let mut short = String::new();
            record.write_short(&mut short);
            prop_assert!(!short.contains(is_harmful), "{name}: {short:?}");
            prop_assert!(short.len() <= MAX_SHORT_BYTES);
            prop_assert_eq!(unescaped(&short, '['), unescaped(&short, ']'), "{}: {}", name, short);
            let mut json = Vec::new();
            record.write_json(&mut json);
            let json = String::from_utf8(json).unwrap();
            prop_assert!(!json.contains(is_harmful), "{name}: {json:?}");
            prop_assert!(serde_json::from_str::<serde_json::Value>(&json).is_ok());
            prop_assert!(json.len() <= MAX_LINE_BYTES);
        }
    }

    /// The text of a message comes back from JSON unchanged as long as it fits.
    #[test]
    fn json_loses_nothing_that_fits(text in ".{0,80}") {
        let mut json = Vec::new();
        Record::new(&event(&text), &samples::source(), 1).write_json(&mut json);
        let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
        prop_assert_eq!(value["message"].as_str(), Some(text.as_str()));
    }
}

/// How many of `mark` are not escaped.
fn unescaped(line: &str, mark: char) -> usize {
    let mut is_escaped = false;
    let mut found = 0;
    for c in line.chars() {
        found += usize::from(c == mark && !is_escaped);
        is_escaped = c == '\\' && !is_escaped;
    }
    found
}

#[test]
fn forged_fields_stay_inside_their_brackets() {
    let to = Peers::to(Endpoint::host("evil.example] [policy:trusted").port(1));
    let line = short(
        NetworkActivity::new(ConnectionActivity::Open, to, samples::TIME)
            .verdict(Verdict::Blocked)
            .rule(Rule::new("x engine:forged").engine("rules"))
            .detail("y] NET:OPEN [INFO] ALLOWED\nNET:OPEN"),
    );
    assert_eq!(
        line,
        "NET:OPEN [INFO] DENIED evil.example\\]\\u{20}\\[policy:trusted:1 [policy:x\\u{20}engine:forged engine:rules] \
         [reason:y\\] NET:OPEN \\[INFO\\] ALLOWED NET:OPEN]"
    );
}

#[cfg(feature = "serde")]
#[test]
fn sinks_are_configured_by_a_file() {
    let file: FileConfig = toml::from_str(
        "path = \"/var/log/events.jsonl\"\nmax_bytes = \"1MiB\"\nformat = \"short\"",
    )
    .unwrap();
    let wanted = FileConfig {
        max_bytes: 1 << 20,
        format: Format::Short,
        ..FileConfig::new("/var/log/events.jsonl")
    };
    assert_eq!(file, wanted);
    let syslog: SyslogConfig =
        toml::from_str("target = { local = \"/dev/log\" }\nfacility = \"local3\"").unwrap();
    assert_eq!(syslog.target, SyslogTarget::Local("/dev/log".into()));
    assert!(
        toml::from_str::<FileConfig>("path = \"x\"\nmax_size = \"1MiB\"").is_err(),
        "unknown keys are refused"
    );
}
