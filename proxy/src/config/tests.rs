use std::{fs, net::Ipv6Addr};

use super::*;

fn fixtures(kind: &str) -> Vec<(PathBuf, String)> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config").join(kind);
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<_> =
        files.filter(|path| path.extension().is_some_and(|e| e == "toml")).collect();
    assert!(!files.is_empty());
    files.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

fn file(text: &str) -> Sources {
    let path = PathBuf::from("gateway.toml");
    Sources { file: Some(SourceFile { path, text: text.to_owned() }), ..Sources::default() }
}

fn flags(sources: Sources, flags: &[(&str, &str)]) -> Sources {
    let flags = flags.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Sources { flags: flags.collect(), ..sources }
}

fn environment(sources: Sources, variables: &[(&str, &str)]) -> Sources {
    let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    Sources { environment: variables.collect(), ..sources }
}

#[test]
fn valid_files_are_read() {
    for (path, text) in fixtures("valid") {
        if let Err(faults) = Config::load(&file(&text)) {
            panic!("{}:\n{}", path.display(), render_faults(&faults));
        }
    }
}

/// Each file of `tests/config/invalid` has its faults beside it. With `POSTERN_BLESS=1` they are written anew.
#[test]
fn invalid_files_are_told_all_their_faults() {
    for (path, text) in fixtures("invalid") {
        let told =
            render_faults(&Config::load(&file(&text)).expect_err(&path.display().to_string()));
        let expected = path.with_extension("faults");
        if std::env::var_os("POSTERN_BLESS").is_some() {
            fs::write(&expected, &told).unwrap();
        }
        let expected = fs::read_to_string(&expected).unwrap_or_default();
        assert_eq!(told, expected, "{}", path.display());
    }
}

#[test]
fn the_full_file_means_what_it_says() {
    let (_, text) =
        fixtures("valid").into_iter().find(|(path, _)| path.ends_with("full.toml")).unwrap();
    let config = Config::load(&file(&text)).unwrap();
    let gateway = &config.gateway;
    assert_eq!(gateway.health_bind_address, Some("127.0.0.1:17671".parse().unwrap()));
    assert_eq!(
        (gateway.drain_timeout, gateway.heartbeat_interval),
        (Duration::from_secs(45), Duration::from_secs(10))
    );
    assert_eq!(gateway.state_dir, Path::new("/var/lib/postern"));
    assert_eq!(gateway.db_url.expose(), "sqlite:///var/lib/postern/gateway.db");
    assert_eq!(gateway.tokens.ttl, Duration::from_secs(3600));
    assert_eq!(gateway.log_format, LogFormat::Json);
    assert_eq!(config.stack.call.len(), 10);
    assert_eq!(config.layers.connection_cap.total, 1000);
    assert_eq!(config.layers.body_limit.max, 8 << 20);
    let global = config.layers.rate_limit.global.unwrap();
    assert_eq!((global.calls, global.per), (1000, Duration::from_secs(10)));
    assert_eq!(config.layers.rate_limit.per_key.unwrap().burst, 100);
    assert_eq!(config.layers.session_wait.forward, Duration::from_secs(15));
    assert_eq!(config.process_driver.stop_grace, Duration::from_secs(3));
}

#[test]
fn an_empty_configuration_is_the_local_one() {
    let sources = environment(Sources::default(), &[("XDG_STATE_HOME", "/state")]);
    assert_eq!(Config::load(&sources).unwrap(), Config::local(Path::new("/state/postern")));
    let sources =
        environment(Sources::default(), &[("HOME", "/home/ada"), ("XDG_STATE_HOME", "relative")]);
    let config = Config::load(&sources).unwrap();
    assert_eq!(config.gateway.state_dir, Path::new("/home/ada/.local/state/postern"));
    let config = Config::load(&Sources::default()).unwrap();
    assert_eq!(config.gateway.state_dir, Path::new("/var/lib/postern"));
}

#[test]
fn flags_beat_the_environment_and_that_beats_the_file() {
    let base = file("[openshell.gateway]\nlog_level = \"warn\"\nbind_address = \"127.0.0.2:1\"");
    let port = |sources: Sources| Config::load(&sources).unwrap().gateway;
    assert_eq!(port(base.clone()).log_level, "warn");
    let env =
        environment(base, &[("OPENSHELL_LOG_LEVEL", "error"), ("OPENSHELL_SERVER_PORT", "2")]);
    let gateway = port(env.clone());
    assert_eq!(
        (gateway.log_level.as_str(), gateway.bind_address),
        ("error", "127.0.0.2:2".parse().unwrap())
    );
    let gateway =
        port(flags(env, &[("--log-level", "debug"), ("--port", "3"), ("--bind-address", "::1")]));
    assert_eq!(gateway.log_level, "debug");
    assert_eq!(gateway.bind_address, (Ipv6Addr::LOCALHOST, 3).into());
}

#[test]
fn ports_outside_the_file_stand_on_the_main_address() {
    let sources = flags(Sources::default(), &[("--health-port", "9000"), ("--metrics-port", "0")]);
    let gateway = Config::load(&sources).unwrap().gateway;
    assert_eq!(gateway.health_bind_address, Some("127.0.0.1:9000".parse().unwrap()));
    assert_eq!(gateway.metrics_bind_address, None);
}

#[test]
fn faults_outside_the_file_name_their_place() {
    let sources = environment(
        flags(
            Sources::default(),
            &[("--port", "70000"), ("--drivers", "vm,process"), ("--nonsense", "1")],
        ),
        &[
            ("OPENSHELL_DISABLE_TLS", "maybe"),
            ("OPENSHELL_OIDC_ISSUER", "https://id.example"),
            ("OPENSHELL_HEALTH_PORT", "x"),
            ("OPENSHELL_LOG_LEVEL", ""),
        ],
    );
    let told = render_faults(&Config::load(&sources).unwrap_err());
    for part in [
        "--port: port = 70000 is out of range; write 0 to 65535",
        "--drivers: a gateway has exactly one driver",
        "there is no flag --nonsense",
        "OPENSHELL_DISABLE_TLS: \"maybe\" does not fit; write true or false",
        "OPENSHELL_OIDC_ISSUER: not supported",
        "OPENSHELL_HEALTH_PORT: ",
        "6 faults",
    ] {
        assert!(told.contains(part), "{part} is not in:\n{told}");
    }
}

#[test]
fn the_database_url_is_masked() {
    let sources = flags(Sources::default(), &[("--db-url", "sqlite:///secret-place/db")]);
    let config = Config::load(&sources).unwrap();
    assert_eq!(config.gateway.db_url.expose(), "sqlite:///secret-place/db");
    assert!(!format!("{config:?}").contains("secret-place"));
}

#[test]
fn plaintext_on_the_network_has_to_be_said_twice() {
    let text = "[openshell.gateway]\ndisable_tls = true\nbind_address = \"0.0.0.0:1\"\n[openshell.gateway.auth]\nallow_unauthenticated_users = true\n";
    assert!(Config::load(&file(text)).is_err());
    let config = Config::load(&file(&format!("{text}unsafe_allow_network = true"))).unwrap();
    assert_eq!(config.gateway.tls, None);
    // The default list of the connection plane follows.
    assert!(!config.stack.connection.contains(&ConnectionLayer::Tls));
}

#[test]
fn keys_are_said_once() {
    let mut paths: Vec<_> = keys::KEYS.iter().map(|key| key.path).collect();
    let count = paths.len();
    paths.sort_unstable();
    paths.dedup();
    assert_eq!(paths.len(), count);
}

proptest::proptest! {
    #[test]
    fn no_text_panics(text in "(\\[openshell(\\.[a-z_]{1,8}){0,2}\\]\n)?([a-z_]{1,14} = (\"[a-z0-9:.]{0,12}\"|-?[0-9]{1,20}|true|\\[\\]|\\{\\})\n){0,4}|.{0,80}") {
        let _ = Config::load(&file(&text)).map_err(|faults| render_faults(&faults));
    }
}
