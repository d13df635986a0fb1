#![allow(clippy::unwrap_used)]

use clap::{CommandFactory as _, Parser as _};

use super::file::{Mistake, parse};
use super::*;
use crate::flags::{Cli, Command, TimeSpan};

/// Parses the flags of `uncopied relay`.
fn flags(arguments: &[&str]) -> RelayFlags {
    let words = ["uncopied", "relay"].iter().chain(arguments);
    match Cli::try_parse_from(words).unwrap().command {
        Command::Relay(flags) => *flags,
        other => panic!("{other:?}"),
    }
}

fn parse_file(text: &str, arguments: &[&str]) -> Result<RelayConfig, Mistake> {
    let mut all = vec!["--config", "relay.toml"];
    all.extend(arguments);
    parse(text, &flags(&all))
}

fn seconds(n: u64) -> Option<Duration> {
    Some(Duration::from_secs(n))
}

#[test]
fn flags_alone_are_a_configuration() {
    let config = RelayConfig::load(&flags(&[":5432", "db1:5432=3", "unix:/run/db"])).unwrap();
    assert_eq!(config.to_string(), "1 listener, 2 targets");
    let [listener] = &config.listeners[..] else {
        panic!("{config:?}");
    };
    assert_eq!(listener.listen, ListenAddress::AllInterfaces(5432));
    assert_eq!(listener.targets[0].weight, 3);
    assert_eq!(listener.balance, Balance::RoundRobin);
    assert_eq!(listener.health.unwrap().interval, Duration::from_secs(5));
    assert_eq!(listener.connect_timeout, seconds(5));
    assert!(listener.nodelay);
    assert_eq!(listener.mechanism, None);
    assert!(!config.process.reuse_port);

    let alone = RelayConfig::load(&flags(&["5432", "db:1"])).unwrap();
    assert_eq!(alone.to_string(), "1 listener, 1 target");
    assert_eq!(alone.listeners[0].health, None);
    let checked = flags(&["5432", "db:1", "--health-interval=1s", "--reuse-port"]);
    let checked = RelayConfig::load(&checked).unwrap();
    assert_eq!(checked.listeners[0].health.unwrap().rise, 2);
    assert!(checked.process.reuse_port);
}

#[test]
fn every_default_in_the_help_is_the_default() {
    let config = RelayConfig::load(&flags(&["1", "a:1", "b:1"])).unwrap();
    let listener = &config.listeners[0];
    let health = listener.health.unwrap();
    let command = Cli::command();
    let relay = command.find_subcommand("relay").unwrap();
    let time = |time: Option<Duration>| TimeSpan(time.unwrap()).to_string().replace(' ', "");
    for (flag, default) in [
        ("health_interval", time(Some(health.interval)) + ", or off"),
        ("health_timeout", time(health.timeout)),
        ("rise", health.rise.to_string()),
        ("fall", health.fall.to_string()),
        ("connect_timeout", time(listener.connect_timeout)),
        ("idle_timeout", time(listener.idle_timeout)),
        ("half_close_timeout", time(listener.half_close_timeout)),
        ("keepalive", time(listener.keepalive)),
        ("resolve_interval", time(listener.resolve_interval)),
        ("grace", time(Some(config.process.grace))),
    ] {
        let argument = relay
            .get_arguments()
            .find(|argument| argument.get_id() == flag);
        let help = argument.unwrap().get_help().unwrap().to_string();
        let shown = format!("[default: {default}");
        assert!(
            help.contains(&shown),
            "{flag}: {shown} is missing in {help}"
        );
    }
}

#[test]
fn a_file_has_every_setting() {
    let text = r#"
        max-connections = 100
        threads = 2
        grace = "5s"
        access-log = "json"
        access-log-file = "/var/log/relay.log"
        metrics = "127.0.0.1:9100"
        socket-mode = "660"
        reuse-port = true
        balance = "source-hash"
        health-interval = "1s"
        health-timeout = "500ms"
        rise = 4
        fall = 5
        connect-timeout = 6
        idle-timeout = "7s"
        half-close-timeout = "8s"
        keepalive = "9s"
        nodelay = false
        accept-proxy = "any"
        send-proxy = "v1"
        mechanism = "splice"
        limit-rate = "1k"
        resolve-interval = 0

        [[listener]]
        listen = "unix:/run/relay.sock"
        targets = ["db1:5432=3"]
    "#;
    let config = parse_file(text, &[]).unwrap();
    let expected = ListenerConfig {
        listen: ListenAddress::Unix("/run/relay.sock".into()),
        targets: vec!["db1:5432=3".parse().unwrap()],
        balance: Balance::SourceHash,
        health: Some(HealthConfig {
            interval: Duration::from_secs(1),
            timeout: Some(Duration::from_millis(500)),
            rise: 4,
            fall: 5,
        }),
        connect_timeout: seconds(6),
        idle_timeout: seconds(7),
        half_close_timeout: seconds(8),
        keepalive: seconds(9),
        nodelay: false,
        accept_proxy: Some(ProxyVersions::Any),
        send_proxy: Some(ProxyVersion::V1),
        mechanism: Some(Mechanism::Splice),
        limit_rate: Some(1024),
        resolve_interval: None,
    };
    assert_eq!(config.listeners, [expected]);
    let expected = ProcessConfig {
        max_connections: Some(100),
        threads: Some(2),
        grace: Duration::from_secs(5),
        access_log: Some(RelayLogFormat::Json),
        access_log_file: Some("/var/log/relay.log".into()),
        metrics: Some("127.0.0.1:9100".parse().unwrap()),
        socket_mode: Some(SocketMode(0o660)),
        reuse_port: true,
    };
    assert_eq!(config.process, expected);
}

/// Every flag that has a value is a key of the file, at the top and in a listener or only at the
/// top, with the same name.
#[test]
fn every_flag_is_a_key() {
    let command = Cli::command();
    let relay = command.find_subcommand("relay").unwrap();
    let own = ["listen", "targets", "config", "check", "help"];
    let flags = relay
        .get_arguments()
        .map(|argument| argument.get_id().as_str());
    let names: Vec<_> = flags
        .filter(|name| !own.contains(name))
        .map(|name| name.replace('_', "-"))
        .collect();
    assert_eq!(names.len(), 23);
    for name in names {
        // No setting is an array, so a known key causes an error about its value.
        let mistake = parse_file(&format!("{name} = []"), &[]).unwrap_err();
        assert!(
            mistake.problem.starts_with(&format!("{name}: ")),
            "{mistake:?}"
        );
        assert!(!mistake.problem.contains("unknown"), "{mistake:?}");
    }
}

#[test]
fn flags_override_a_listener_which_overrides_the_top() {
    let text = r#"
        rise = 7
        fall = 7
        mechanism = "copy"
        idle-timeout = "7s"
        [[listener]]
        listen = "1"
        targets = ["a:1", "b:1"]
        [[listener]]
        listen = "2"
        targets = ["a:1", "b:1"]
        fall = 8
        mechanism = "auto"
        idle-timeout = "8s"
    "#;
    let config = parse_file(text, &["--idle-timeout=9s", "--threads=3"]).unwrap();
    let of = |index: usize| {
        let listener = &config.listeners[index];
        let health = listener.health.unwrap();
        (
            health.rise,
            health.fall,
            listener.mechanism,
            listener.idle_timeout,
        )
    };
    assert_eq!(of(0), (7, 7, Some(Mechanism::Copy), seconds(9)));
    assert_eq!(of(1), (7, 8, None, seconds(9)));
    assert_eq!(config.process.threads, Some(3));
}

#[test]
fn mistakes_in_a_file_name_the_line_and_the_key() {
    let listener = "\n[[listener]]\nlisten = \"1\"\n";
    for (text, line, problem) in [
        ("", 1, "there is no [[listener]]"),
        (
            "treads = 2",
            1,
            "unknown field 'treads', expected one of 'listener', 'max-connections'",
        ),
        ("threads = 0", 1, "threads: 0 is not in 1..=1024"),
        (
            "threads = \"x\"",
            1,
            "threads: invalid type: string \"x\", expected i64",
        ),
        ("grace = 30\n\ngrace = 31", 3, "duplicate key"),
        (
            "grace = \"1w\"",
            1,
            "grace: unknown unit 'w': use ms, s, m, h or d",
        ),
        (
            "grace = 1.5",
            1,
            "grace: invalid type: floating point `1.5`, expected a string",
        ),
        ("nodelay = 1", 1, "nodelay: expected one of on, off"),
        ("\n\nmetrics = \"x", 3, "invalid basic string"),
        (
            "[[listener]]\ntargets = [\"a:1\"]",
            1,
            "listener: missing field 'listen'",
        ),
        (
            "[[listener]]\nlisten = \"1\"",
            1,
            "listener: missing field 'targets'",
        ),
        (
            "[[listener]]\nlisten = \"a:1\"",
            2,
            "listener.listen: expected IP:PORT",
        ),
        (
            "[listener]\nlisten = \"1\"",
            1,
            "listener: invalid type: map, expected a sequence",
        ),
        ("listen = \"1\"", 1, "unknown field 'listen'"),
        (
            &format!("{listener}targets = []"),
            4,
            "listener.targets: the list is empty",
        ),
        (
            &format!("{listener}targets = \"a:1\""),
            4,
            "listener.targets: invalid type",
        ),
        (
            &format!("{listener}targets = [\n\"a:1\",\n\"b\"]"),
            6,
            "listener.targets: expected HOST",
        ),
        (
            &format!("{listener}targets = [\n\"a:1\",\n\"a:1=2\"]"),
            6,
            "listener.targets: a:1 is given twice",
        ),
        (
            &format!("{listener}targets = [\"a:1\"]\nthreads = 2"),
            5,
            "listener: unknown field 'threads'",
        ),
        (
            &format!("{listener}targets = [\"a:1\"]{listener}targets = [\"b:1\"]"),
            6,
            "listener.listen: another listener has the address 127.0.0.1:1",
        ),
    ] {
        let mistake = parse_file(text, &[]).unwrap_err();
        let found = 1 + text[..mistake.at].matches('\n').count();
        let problem = problem.replace('`', "'");
        assert!(mistake.problem.contains(&problem), "{text}: {mistake:?}");
        assert_eq!(found, line, "{text}: {mistake:?}");
    }
}

#[test]
fn a_target_that_is_given_twice_is_refused() {
    let error = RelayConfig::load(&flags(&["1", "a:1", "b:1", "a:1=3"])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the target a:1 is given twice; give it once, with a weight (a:1=2)"
    );
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("relay.toml");
    let path = file.to_str().unwrap();
    let load = || {
        RelayConfig::load(&flags(&["--config", path]))
            .unwrap_err()
            .to_string()
    };
    assert!(
        load().contains("relay.toml: no such file or directory; name"),
        "{}",
        load()
    );
    std::fs::write(&file, [0xFF, b'\n']).unwrap();
    assert!(load().contains("valid UTF-8"), "{}", load());
    std::fs::File::create(&file)
        .unwrap()
        .set_len((1 << 20) + 1)
        .unwrap();
    assert!(load().contains("has 1048577 bytes"), "{}", load());
    std::fs::write(&file, "\n\nx = 1").unwrap();
    assert!(
        load().contains("relay.toml:3: unknown field 'x'"),
        "{}",
        load()
    );
}
