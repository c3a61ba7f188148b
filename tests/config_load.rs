//! Configuration from outside: every class of error in its exact words, all of them at once, and which source wins.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pulsegate::config::{self, Bind, Config, Flags, Loaded, LogFormat, Problems, Sources};
use pulsegate::decision::{FailbackMode, OnFenceTimeout, OnIsolated, OnShardDown, OnSlow, ReadsTo};
use pulsegate::replica::{Address, Database, Topology, TopologyKind};
use tempfile::TempDir;

/// Two replicas, which the cases below come after.
const REPLICAS: &str = "\
replica = [{ name = \"a\", url = \"redis://a:1\" }, { name = \"b\", url = \"redis://b:1\" }]
";

fn environment(vars: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
    vars.iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect()
}

struct Given {
    folder: TempDir,
    file: PathBuf,
}

impl Given {
    fn new(text: &str) -> Given {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let file = folder.path().join("p.toml");
        fs::write(&file, text).expect("the file can be written");
        Given { folder, file }
    }

    fn load(&self, vars: &[(&str, &str)], flags: Flags) -> Result<Loaded, Problems> {
        config::load(&Sources {
            file: Some(self.file.clone()),
            environment: environment(vars),
            flags,
        })
    }

    /// A file beside the configuration.
    fn beside(&self, name: &str, text: &[u8]) -> String {
        let path = self.folder.path().join(name);
        fs::write(&path, text).expect("the file can be written");
        path.to_str().expect("temporary folders are UTF-8").to_owned()
    }

    /// Problem lines, with the folder left out.
    fn lines(&self, result: Result<Loaded, Problems>) -> Vec<String> {
        let folder = format!("{}/", self.folder.path().display());
        match result {
            Ok(_) => Vec::new(),
            Err(problems) => problems
                .to_string()
                .lines()
                .map(|line| line.replace(&folder, ""))
                .collect(),
        }
    }
}

/// The problems of `text` as a file.
fn problems(text: &str) -> Vec<String> {
    let given = Given::new(text);
    given.lines(given.load(&[], Flags::default()))
}

fn good(text: &str) -> Config {
    good_with(text, &[], Flags::default())
}

fn good_with(text: &str, vars: &[(&str, &str)], flags: Flags) -> Config {
    match Given::new(text).load(vars, flags) {
        Ok(loaded) => loaded.config,
        Err(problems) => panic!("{problems}"),
    }
}

// ---------------------------------------------------------------------------------------------------------------------
// Good ones
// ---------------------------------------------------------------------------------------------------------------------

#[test]
fn everything_has_the_default_of_the_design() {
    let config = good(REPLICAS);
    assert_eq!(
        config.listener.bind,
        [Bind::Tcp("127.0.0.1:6379".parse().expect("an address"))]
    );
    assert_eq!(
        (config.listener.max_clients, config.listener.workers),
        (10_000, 1)
    );
    let ms = Duration::from_millis;
    assert_eq!(config.policy.heartbeat_interval, ms(500));
    assert_eq!(config.policy.heartbeat_timeout, ms(3000));
    assert_eq!(config.policy.probe_interval, ms(1000));
    assert_eq!(config.policy.connect_failures, 3);
    assert_eq!(config.upstream.connect_timeout, ms(1000));
    assert_eq!(config.upstream.response_timeout, ms(5000));
    assert_eq!(config.detection.channel_prefix, "pulsegate");
    assert_eq!(config.policy.fence, ms(1000));
    assert_eq!(config.policy.on_fence_timeout, OnFenceTimeout::Abort);
    assert_eq!(config.policy.dwell, ms(10_000));
    assert_eq!(config.policy.on_isolated, OnIsolated::Stay);
    assert_eq!(config.policy.shard_grace, ms(5000));
    assert_eq!(config.policy.on_shard_down, OnShardDown::Switch);
    assert_eq!(config.policy.on_slow, OnSlow::Stay);
    assert_eq!(config.policy.reads, ReadsTo::Active);
    assert_eq!(config.policy.failback, FailbackMode::Staged);
    assert_eq!(config.policy.read_steps, [10, 50, 100]);
    assert_eq!(config.policy.soak, ms(30_000));
    assert!(config.policy.read_your_writes);
    assert_eq!(config.policy.latency_margin, ms(100));
    assert_eq!(config.policy.grace, ms(60_000));
    assert_eq!(config.policy.lag_tolerance, ms(500));
    assert_eq!(config.hold.timeout, ms(2000));
    assert_eq!(
        (config.hold.max_commands, config.hold.max_bytes),
        (10_000, 64 << 20)
    );
    assert_eq!(config.admin.bind.to_string(), "127.0.0.1:9379");
    assert!(config.admin.token.is_none() && config.admin.state_file.is_none());
    assert_eq!(
        (config.log.format, config.log.level.as_str()),
        (LogFormat::Text, "info")
    );
    // A stall must be longer than the ordinary gap between heartbeats, and shorter than their time-out.
    assert!(config.policy.tilt_after > ms(500) && config.policy.tilt_after < ms(3000));
}

#[test]
fn the_order_of_replicas_is_the_preference_unless_weights_say_otherwise() {
    let config = good(REPLICAS);
    let weights: Vec<u32> = config.replicas.iter().map(|replica| replica.weight).collect();
    assert_eq!(weights, [100, 99]);
    assert!(
        config
            .replicas
            .iter()
            .enumerate()
            .all(|(i, replica)| replica.id.index() == i)
    );
    let config = good(
        "[[replica]]\nname = \"a\"\nurl = \"redis://a\"\n[[replica]]\nname = \"b\"\nurl = \"redis://b\"\nweight = 200",
    );
    assert_eq!(config.replicas[1].weight, 200);
}

#[test]
fn a_profile_fills_what_is_not_given() {
    for (profile, interval, timeout, probe) in [
        ("fast", 100, 1000, 200),
        ("balanced", 500, 3000, 1000),
        ("patient", 2000, 15_000, 3000),
    ] {
        let policy = good(&format!("{REPLICAS}[detection]\nprofile = \"{profile}\"")).policy;
        assert_eq!(
            policy.heartbeat_interval,
            Duration::from_millis(interval),
            "{profile}"
        );
        assert_eq!(
            policy.heartbeat_timeout,
            Duration::from_millis(timeout),
            "{profile}"
        );
        assert_eq!(policy.probe_interval, Duration::from_millis(probe), "{profile}");
        assert!(policy.tilt_after > policy.heartbeat_interval, "{profile}");
        assert!(policy.tilt_after < policy.heartbeat_timeout, "{profile}");
    }
    let policy = good(&format!(
        "{REPLICAS}[detection]\nprofile = \"fast\"\nprobe_interval = \"70ms\""
    ))
    .policy;
    assert_eq!(policy.probe_interval, Duration::from_millis(70));
    assert_eq!(policy.heartbeat_timeout, Duration::from_millis(1000));
}

#[test]
fn the_default_fence_fits_into_a_short_hold() {
    let config = good(&format!("{REPLICAS}[hold]\ntimeout = \"300ms\""));
    assert_eq!(config.policy.fence, Duration::from_millis(300));
    let given = Given::new(&format!(
        "{REPLICAS}[hold]\ntimeout = \"300ms\"\n[failover]\nfence = \"1s\""
    ));
    let loaded = given.load(&[], Flags::default()).expect("allowed");
    assert_eq!(loaded.config.policy.fence, Duration::from_secs(1));
    let warnings: Vec<String> = loaded
        .warnings
        .iter()
        .map(|warning| warning.text.clone())
        .collect();
    assert_eq!(
        warnings,
        [
            "longer than hold.timeout (300ms): commands that wait for the fence of a planned move fail after that time"
        ]
    );
}

#[test]
fn a_grace_that_ends_before_a_broken_link_is_known_is_warned_of() {
    for (grace, warned) in [("900ms", true), ("1s", false)] {
        let given = Given::new(&format!(
            "{REPLICAS}[detection]\nprofile = \"fast\"\n[failback]\ngrace = \"{grace}\""
        ));
        let loaded = given.load(&[], Flags::default()).expect("allowed");
        let warnings: Vec<&str> = loaded.warnings.iter().map(|warning| &warning.text[..]).collect();
        assert_eq!(warnings.len(), usize::from(warned), "{warnings:?}");
        assert!(
            warnings
                .iter()
                .all(|text| text.contains("heartbeat_timeout (1s)"))
        );
    }
}

#[test]
fn credentials_and_tls_reach_the_endpoint() {
    let given = Given::new("");
    let password = given.beside("password", b"s3cret\n");
    let pem = given.beside("x.pem", b"not looked into here");
    let text = format!(
        "[[replica]]\nname = \"a\"\nurl = \"rediss://a:1\"\nusername = \"app\"\npassword_file = \"{password}\"\n\
         tls = {{ ca = \"{pem}\", cert = \"{pem}\", key = \"{pem}\", server_name = \"db.example\" }}\n\
         [[replica]]\nname = \"b\"\nurl = \"redis://u:p%40@b\"\n[[replica]]\nname = \"c\"\nurl = \"unix:/run/c.sock\"\n\
         password_file = \"{password}\"\n[admin]\nbind = \"0.0.0.0:1\"\ntoken_file = \"{password}\"\n"
    );
    let config = good(&text);
    let [a, b, c] = [0, 1, 2].map(|i| config.replicas[i].endpoint.clone());
    let credentials = a.credentials.as_ref().expect("a logs in");
    assert_eq!(credentials.username.as_deref(), Some("app"));
    assert_eq!(credentials.password.expose(), "s3cret", "without the line's end");
    let tls = a.tls.as_ref().expect("a has TLS");
    assert_eq!(tls.ca.as_deref(), Some(Path::new(&pem)));
    assert_eq!(tls.cert, tls.key);
    assert_eq!(tls.server_name.as_deref(), Some("db.example"));
    assert!(!tls.insecure_skip_verify);
    assert!(b.tls.is_none());
    assert_eq!(
        b.credentials
            .as_ref()
            .map(|credentials| credentials.password.expose()),
        Some("p@")
    );
    assert_eq!(c.address, Address::Unix(PathBuf::from("/run/c.sock")));
    assert_eq!(
        c.credentials
            .as_ref()
            .and_then(|credentials| credentials.username.clone()),
        None
    );
    assert_eq!(
        config.admin.token.as_ref().map(|token| token.expose()),
        Some("s3cret")
    );
    let debug = format!("{config:?}");
    assert!(!debug.contains("s3cret") && !debug.contains("p@"), "{debug}");
}

#[test]
fn listeners_can_be_several_of_several_kinds() {
    let given = Given::new("");
    let socket = given.folder.path().join("r.sock");
    let text = format!(
        "{REPLICAS}[listener]\nbind = [\"localhost:7\", \"[::1]:7\", \"unix:{}\"]",
        socket.display()
    );
    let config = good(&text);
    let shown: Vec<String> = config.listener.bind.iter().map(Bind::to_string).collect();
    assert_eq!(
        shown,
        ["127.0.0.1:7", "[::1]:7", &format!("unix:{}", socket.display())]
    );
    let config = good(&format!(
        "{REPLICAS}[listener]\nbind = \"0.0.0.0:7\"\nallow_open = true"
    ));
    assert_eq!(config.listener.bind.len(), 1);
    // Free ports may be asked for more than once, and beside the admin server's.
    let config = good(&format!(
        "{REPLICAS}[listener]\nbind = [\"127.0.0.1:0\", \"127.0.0.1:0\"]\n[admin]\nbind = \"127.0.0.1:0\""
    ));
    assert_eq!(config.listener.bind.len(), 2);
}

// ---------------------------------------------------------------------------------------------------------------------
// Every class of error, in its exact words
// ---------------------------------------------------------------------------------------------------------------------

#[test]
fn each_error_says_where_what_and_what_would_be_right() {
    const DURATION: &str = r#"write e.g. "250ms", "3s", "1m""#;
    const SIZE: &str = r#"write e.g. "512KiB", "64MiB" or a number of bytes"#;
    const BIND: &str = r#"write e.g. "127.0.0.1:6379", "[::1]:6379" or "unix:/run/pulsegate/redis.sock""#;
    const STEPS: &str = "write percentages that grow and end with 100, e.g. [10, 50, 100]";
    let cases: Vec<(&str, &str, String)> = vec![
        // Durations
        ("[detection]", r#"heartbeat_interval = "5 parsecs""#, format!(": not a duration; {DURATION}")),
        ("[detection]", "heartbeat_timeout = 3", format!(": a duration needs a unit; {DURATION}")),
        ("[detection]", r#"heartbeat_timeout = "3000""#, format!(": a duration needs a unit; {DURATION}")),
        ("[hold]", "timeout = true", format!(": a boolean where a duration is needed; {DURATION}")),
        ("[detection]", r#"probe_interval = "1ms""#, ": must be from 10ms to 10m".to_owned()),
        ("[hold]", r#"timeout = "1h""#, ": must be at most 10m".to_owned()),
        // Sizes
        ("[hold]", r#"max_bytes = "64M""#, format!(": not a size; {SIZE}")),
        ("[hold]", "max_bytes = -1", format!(": not a size; {SIZE}")),
        ("[hold]", "max_bytes = 1.5", format!(": a number with a fraction where a size is needed; {SIZE}")),
        ("[hold]", "max_bytes = 10", ": must be from 1KiB to 1TiB".replace("1TiB", "1024GiB")),
        // Numbers
        ("[listener]", "workers = 100", ": must be from 1 to 64".to_owned()),
        ("[listener]", "workers = 99999999999999999999", ": must be from 1 to 64".to_owned()),
        ("[listener]", r#"workers = "two""#, ": a string where a whole number is needed, from 1 to 64".to_owned()),
        ("[listener]", "max_clients = 0", ": must be from 1 to 1000000".to_owned()),
        // Switches and words
        ("[listener]", r#"allow_open = "yes""#, ": write true or false".to_owned()),
        ("[detection]", r#"profile = "fsat""#, r#": did you mean "fast"? write "fast", "balanced" or "patient""#.to_owned()),
        ("[failover]", r#"on_isolated = "run""#, r#": write "stay" or "leave""#.to_owned()),
        ("[log]", r#"format = 3"#, ": an integer where a string is needed".to_owned()),
        ("[log]", r#"level = "infoo""#, r#": not a level; did you mean "info"?"#.to_owned()),
        ("[log]", r#"level = "pulsegate=loud""#, r#": not a level; write e.g. "info" or "info,pulsegate::proxy=debug""#.to_owned()),
        ("[detection]", r#"channel_prefix = "a*b""#, ": 1 to 64 letters, digits, or . _ - : / (others have a meaning in patterns and hash tags)".to_owned()),
        // Addresses
        ("[listener]", r#"bind = "127.0.0.1""#, format!(": the port is missing; {BIND}")),
        ("[listener]", r#"bind = "*:1""#, format!(r#": the address is missing; every interface is "0.0.0.0:1"; {BIND}"#)),
        ("[listener]", r#"bind = "example.org:1""#, format!(": not an IP address with a port; {BIND}")),
        ("[listener]", r#"bind = "unix:r.sock""#, ": the path of a unix socket must be absolute; write unix:/PATH".to_owned()),
        ("[listener]", r#"bind = "unix:/nope/r.sock""#, ": its directory /nope is not there".to_owned()),
        ("[admin]", r#"bind = "here""#, r#": not an IP address with a port; write e.g. "127.0.0.1:9379""#.to_owned()),
        ("[admin]", r#"bind = "0.0.0.0:1""#, ": beyond loopback the verbs that change something need a token: set admin.token_file, or bind a loopback address".to_owned()),
        ("[admin]", r#"bind = "127.0.0.1:6379""#, ": the same address as listener.bind; change one of the two".to_owned()),
        // Files
        ("[admin]", r#"token_file = "/nope""#, ": cannot be read: no such file or directory".to_owned()),
        ("[admin]", r#"token_file = "/""#, ": a directory where a file is needed".to_owned()),
        ("[admin]", r#"state_file = "/nope/pin""#, ": its directory /nope is not there".to_owned()),
        // What must fit together
        ("[detection]", r#"heartbeat_timeout = "700ms""#, ": must be at least twice heartbeat_interval (500ms), so that one lost heartbeat is not a verdict".to_owned()),
        ("[detection]", r#"heartbeat_interval = "2s""#, ": must be at most half of heartbeat_timeout (3s), so that one lost heartbeat is not a verdict".to_owned()),
        // Steps
        ("[failback]", r#"mode = "stages""#, r#": did you mean "staged"? write "staged", "immediate" or "manual""#.to_owned()),
        ("[failback]", "read_steps = [10]", format!(": {STEPS}")),
        ("[failback]", "read_steps = [50, 10, 100]", format!(": {STEPS}")),
        ("[failback]", "read_steps = [0, 100]", format!(": {STEPS}")),
        ("[failback]", r#"read_steps = ["a"]"#, format!(": not whole numbers; {STEPS}")),
    ];
    for (section, line, want) in cases {
        let (key, value) = line.split_once(" = ").expect("a key and a value");
        let section_name = section.trim_matches(['[', ']']);
        let key = if line.starts_with("bind") && section_name == "listener" {
            "bind[0]"
        } else {
            key
        };
        let want = format!("p.toml:3: {section_name}.{key} = {value}{want}");
        assert_eq!(problems(&format!("{REPLICAS}{section}\n{line}\n")), [want]);
    }
}

#[test]
fn an_open_listener_must_be_wished_for() {
    assert_eq!(
        problems(&format!(
            "{REPLICAS}[listener]\nbind = [\"127.0.0.1:1\", \"192.0.2.1:1\"]"
        )),
        [
            "p.toml:3: listener.bind[1] = \"192.0.2.1:1\": open to the network, where anybody could use the database \
             with Pulsegate's credentials; bind a loopback address or unix:/PATH, or set listener.allow_open = true"
        ]
    );
    assert_eq!(
        problems(&format!(
            "{REPLICAS}[listener]\nbind = [\"127.0.0.1:1\", \"127.0.0.1:1\"]"
        )),
        ["p.toml:3: listener.bind[1] = \"127.0.0.1:1\": the same address twice"]
    );
    assert_eq!(
        problems(&format!("{REPLICAS}[listener]\nbind = []")),
        ["p.toml:3: listener.bind = []: at least one address is needed"]
    );
}

#[test]
fn keys_of_parts_that_are_not_built_yet_are_refused_as_such() {
    for (text, key) in [
        ("[listener]\ntls = { cert = \"x\" }", "listener.tls"),
        ("[listener]\nauth = { users = [] }", "listener.auth"),
        ("[coordination]\nmode = \"etcd\"", "coordination"),
    ] {
        let lines = problems(&format!("{REPLICAS}{text}"));
        let line = if key.contains('.') { 3 } else { 2 };
        assert_eq!(
            lines,
            [format!("p.toml:{line}: {key}: not built yet in this version")]
        );
    }
}

#[test]
fn how_a_replica_is_sharded_reaches_it() {
    let config = good(
        "cluster = { split = false }\n\
         [[replica]]\nname = \"a\"\nurl = \"redis://a\"\ntopology = \"cluster\"\n\
         address_map = [\"10.0.0.5:6379=db1.example:7000\", \"[::1]:1 = [::2]:2\"]\n\
         [[replica]]\nname = \"b\"\nurl = \"redis://b\"\ntopology = \"single\"\nshards = 6\n\
         [[replica]]\nname = \"c\"\nurl = \"redis://c\"\naddress_map = \"x:1=y:2\"",
    );
    assert!(!config.cluster.split);
    let [a, b, c] = &config.replicas[..] else {
        panic!("three replicas")
    };
    let shown = |topology: &Topology| -> Vec<String> {
        let pairs = topology.address_map.iter();
        pairs
            .map(|pair| format!("{}={}", pair.announced, pair.reachable))
            .collect()
    };
    assert_eq!(
        (a.topology.kind, a.topology.shards),
        (TopologyKind::Cluster, None)
    );
    assert_eq!(
        shown(&a.topology),
        ["10.0.0.5:6379=db1.example:7000", "[::1]:1=[::2]:2"]
    );
    assert_eq!(
        (b.topology.kind, b.topology.shards),
        (TopologyKind::Single, Some(6))
    );
    assert_eq!((c.topology.kind, c.topology.shards), (TopologyKind::Auto, None));
    assert_eq!(shown(&c.topology), ["x:1=y:2"]);
    let config = good_with(
        REPLICAS,
        &[
            ("PULSEGATE_REPLICA__1__ADDRESS_MAP", "u:1=v:2, w:3=x:4"),
            ("PULSEGATE_CLUSTER__SPLIT", "false"),
        ],
        Flags::default(),
    );
    assert_eq!(shown(&config.replicas[1].topology), ["u:1=v:2", "w:3=x:4"]);
    assert!(!config.cluster.split);
    assert!(good(REPLICAS).cluster.split, "unless it is said otherwise");
    assert_eq!(good(REPLICAS).replicas[0].topology, Topology::default());
}

#[test]
fn what_is_said_of_shards_must_fit_together() {
    let replica =
        |url: &str, lines: &str| problems(&format!("[[replica]]\nname = \"a\"\nurl = \"{url}\"\n{lines}"));
    for (url, lines, want) in [
        (
            "unix:///tmp/db",
            "topology = \"cluster\"",
            "replica[0].topology = \"cluster\": the nodes of a cluster are reached over TCP; give the url of one of them",
        ),
        (
            "redis://a",
            "topology = \"clusters\"",
            "replica[0].topology = \"clusters\": did you mean \"cluster\"? write \"auto\", \"single\" or \"cluster\"",
        ),
        (
            "redis://a",
            "shards = 16385",
            "replica[0].shards = 16385: must be from 0 to 16384",
        ),
        (
            "redis://a",
            "shards = 3\ntopology = \"cluster\"",
            "replica[0].shards = 3: a cluster says itself which shards it has; remove this key, or set topology = \
             \"single\"",
        ),
        (
            "redis://a",
            "address_map = [\"a:1\"]",
            "replica[0].address_map[0] = \"a:1\": write \"ANNOUNCED=REACHABLE\", e.g. \
             \"10.0.0.5:6379=db1.example:7000\"",
        ),
        (
            "redis://a",
            "address_map = [\"a:1=b:0\"]",
            "replica[0].address_map[0] = \"a:1=b:0\": behind the =: the port is not a number from 1 to 65535",
        ),
        (
            "redis://a",
            "address_map = [\"=b:1\"]",
            "replica[0].address_map[0] = \"=b:1\": before the =: the host is missing; write HOST:PORT",
        ),
        (
            "redis://a",
            "address_map = [\"a:1=b:1\", \"a:1=c:1\"]",
            "replica[0].address_map[1] = \"a:1=c:1\": the same announced address twice",
        ),
        (
            "redis://a",
            "address_map = [\"a:1=b:1\"]\ntopology = \"single\"",
            "replica[0].address_map[0] = \"a:1=b:1\": has no use with topology = \"single\": only the url's own \
             address is connected to",
        ),
    ] {
        assert_eq!(replica(url, lines), [format!("p.toml:4: {want}")], "{lines}");
    }
    assert_eq!(replica("redis://a", "address_map = []"), Vec::<String>::new());
}

#[test]
fn unknown_keys_suggest_the_one_that_is_meant() {
    for (text, want) in [
        (
            "[listner]\nbind = \"x\"",
            "2: listner: unknown key; did you mean \"listener\"?",
        ),
        (
            "[listener]\nmax_client = 1",
            "3: listener.max_client: unknown key; did you mean \"max_clients\"?",
        ),
        (
            "[detection]\nheartbeat-interval = 1",
            "3: detection.heartbeat-interval: unknown key; did you mean \"heartbeat_interval\"?",
        ),
        (
            "[hold]\ndwell = \"1s\"",
            "3: hold.dwell: unknown key here; it belongs in [failover]",
        ),
        (
            "[hold]\nzzz = \"1s\"",
            "3: hold.zzz: unknown key; keys of [hold] are timeout, max_commands, max_bytes",
        ),
        (
            "[zzz]\na = 1",
            "2: zzz: unknown key; sections are listener, replica, cluster, upstream, detection, failover, failback, hold, admin, log, coordination",
        ),
        (
            "[admin]\ntoken = \"x\"",
            "3: admin.token: unknown key; did you mean \"token_file\"?",
        ),
    ] {
        assert_eq!(problems(&format!("{REPLICAS}{text}")), [format!("p.toml:{want}")]);
    }
    assert_eq!(
        problems(&format!("workers = 1\n{REPLICAS}")),
        ["p.toml:1: workers: unknown key here; it belongs in [listener]"]
    );
    assert_eq!(
        problems("[[replica]]\nname = \"a\"\nurl = \"rediss://a\"\ntls.ca_file = \"x\"\npassword = \"x\""),
        [
            "p.toml:4: replica[0].tls.ca_file: unknown key; did you mean \"ca\"?",
            "p.toml:5: replica[0].password: unknown key; put the password into a file and name it in password_file",
        ]
    );
}

#[test]
fn replicas_are_checked_each_and_together() {
    let one = |lines: &str| problems(&format!("[[replica]]\n{lines}"));
    assert_eq!(
        problems("[[replica]]\n"),
        [
            "p.toml:1: replica[0].name: missing; write e.g. name = \"local\"",
            "p.toml:1: replica[0].url: missing; write e.g. url = \"redis://127.0.0.1:6380\"",
        ]
    );
    assert_eq!(
        problems(""),
        [
            "p.toml: replica: at least one is needed; write [[replica]] with name and url, or use --replica NAME=URL"
        ]
    );
    assert_eq!(
        problems("[replica]\nname = \"a\""),
        ["p.toml:1: replica: write [[replica]] before the keys of each replica"]
    );
    assert_eq!(
        one("name = \"a b\"\nurl = \"redis://a\""),
        [
            "p.toml:2: replica[0].name = \"a b\": 1 to 63 letters, digits, or . _ -, beginning with a letter or a digit"
        ]
    );
    assert_eq!(
        problems(
            "[[replica]]\nname = \"a\"\nurl = \"redis://a\"\n[[replica]]\nname = \"a\"\nurl = \"redis://a:6379\"\n\
             [[replica]]\nname = \"a\"\nurl = \"http://a\""
        ),
        [
            "p.toml:5: replica[1].name = \"a\": the name of replica[0] too; names tell replicas apart",
            "p.toml:6: replica[1].url = \"redis://a:6379\": the address of replica[0] too; each replica is a database of its own",
            "p.toml:8: replica[2].name = \"a\": the name of replica[0] too; names tell replicas apart",
            "p.toml:9: replica[2].url = \"http://a\": unknown scheme; write redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH",
        ]
    );
    let many: String = (0..17)
        .map(|i| format!("[[replica]]\nname = \"r{i}\"\nurl = \"redis://r{i}\"\n"))
        .collect();
    assert_eq!(
        problems(&many),
        ["p.toml: replica: 17 replicas; at most 16 are possible"]
    );
    assert_eq!(
        problems("[[replica]]\nname = \"a\"\nurl = \"redis://localhost\""),
        [
            "p.toml:3: replica[0].url = \"redis://localhost\": this is Pulsegate's own listener.bind: commands would \
             go round in circles; change one of the two"
        ]
    );
}

#[test]
fn urls_that_cannot_be_used_are_explained() {
    for (url, want) in [
        (
            "a:6379",
            "not a URL; write redis://HOST:PORT, rediss://HOST:PORT or unix:///PATH",
        ),
        ("redi://a", "unknown scheme; did you mean redis://?"),
        ("redis://", "the host is missing; write redis://HOST:PORT"),
        ("redis://a:0", "the port is not a number from 1 to 65535"),
        ("redis://a:70000", "the port is not a number from 1 to 65535"),
        ("redis://[::1:6379", "the ] after the IPv6 address is missing"),
        ("redis://::1", "write an IPv6 address in brackets: [::1]:PORT"),
        (
            "redis://a/1",
            "a database number or path is not supported: Active-Active databases have only database 0, and SELECT belongs to the application; end the URL after the port",
        ),
        (
            "redis://a?db=1",
            "options after ? or # are not supported here; write them as keys (a password with such a character must be percent-encoded: ? is %3F, # is %23)",
        ),
        (
            "redis://:a%zz@a",
            "a % in the user name or password must be followed by two hexadecimal digits; write % as %25",
        ),
        ("redis://:@a", "the password is empty"),
        ("redis://u@a", "a user name without a password; set password_file"),
        (
            "unix:r.sock",
            "the path of a unix socket must be absolute; write unix:///PATH",
        ),
    ] {
        let lines = problems(&format!("[[replica]]\nname = \"a\"\nurl = \"{url}\""));
        assert_eq!(lines.len(), 1, "{url}: {lines:?}");
        assert!(
            lines[0].starts_with("p.toml:3: replica[0].url = \""),
            "{url}: {lines:?}"
        );
        assert!(lines[0].ends_with(&format!("\": {want}")), "{url}: {lines:?}");
    }
}

#[test]
fn credentials_and_tls_must_fit_together() {
    let given = Given::new("");
    let secret = given.beside("secret", b"x\n");
    let empty = given.beside("empty", b"\n");
    let two = given.beside("two", b"a\nb\n");
    let binary = given.beside("binary", b"\xff\xfe");
    let check = |url: &str, lines: &str, want: &[&str]| {
        let text = format!("[[replica]]\nname = \"a\"\nurl = \"{url}\"\n{lines}");
        let found: Vec<String> = problems(&text)
            .iter()
            .map(|line| {
                line.split_once(": ")
                    .map_or(line.as_str(), |(_, rest)| rest)
                    .to_owned()
            })
            .collect();
        assert_eq!(found, want, "{text}");
    };
    check(
        "redis://:p@a",
        &format!("password_file = \"{secret}\""),
        &[&format!(
            "replica[0].password_file = \"{secret}\": the url has a password too; remove one of the two"
        )],
    );
    check(
        "redis://u:p@a",
        "username = \"v\"",
        &["replica[0].username = \"v\": the url has a user name too; remove one of the two"],
    );
    check(
        "redis://a",
        "username = \"v\"",
        &["replica[0].username = \"v\": a user name without a password; set password_file"],
    );
    check(
        "redis://a",
        &format!("password_file = \"{empty}\""),
        &[&format!(
            "replica[0].password_file = \"{empty}\": the file is empty"
        )],
    );
    check(
        "redis://a",
        &format!("password_file = \"{two}\""),
        &[&format!(
            "replica[0].password_file = \"{two}\": the file has more than one line"
        )],
    );
    check(
        "redis://a",
        &format!("password_file = \"{binary}\""),
        &[&format!(
            "replica[0].password_file = \"{binary}\": its contents are not UTF-8"
        )],
    );
    check(
        "redis://a",
        "tls.server_name = \"b\"",
        &[
            "replica[0].tls.server_name = \"b\": TLS is used only with a rediss:// url; change the url, or remove this key",
        ],
    );
    check(
        "rediss://a",
        &format!("tls.cert = \"{secret}\""),
        &[&format!(
            "replica[0].tls.cert = \"{secret}\": needs key beside it"
        )],
    );
    check(
        "rediss://a",
        &format!("tls.key = \"{secret}\""),
        &[&format!(
            "replica[0].tls.key = \"{secret}\": needs cert beside it"
        )],
    );
    check(
        "rediss://a",
        &format!("tls = {{ ca = \"{secret}\", insecure_skip_verify = true }}"),
        &[&format!(
            "replica[0].tls.ca = \"{secret}\": has no use while insecure_skip_verify accepts any certificate; remove \
             one of the two"
        )],
    );
    check(
        "rediss://a",
        "tls = { server_name = \"a b\", ca = \"/nope\" }",
        &[
            "replica[0].tls.ca = \"/nope\": cannot be read: no such file or directory",
            "replica[0].tls.server_name = \"a b\": neither a host name nor an IP address",
        ],
    );
    check(
        "rediss://a",
        "tls = true",
        &["replica[0].tls: a boolean where a table is needed; write [replica.tls]"],
    );
}

/// The problems of a replica at `url` with these lines in `[replica.rest]`, without their places.
fn problems_of_rest(url: &str, lines: &str) -> Vec<String> {
    let text = format!("[[replica]]\nname = \"a\"\nurl = \"{url}\"\n[replica.rest]\n{lines}\n");
    let without_place = |line: &String| {
        let (_, rest) = line.split_once(": ").expect("a place");
        rest.to_owned()
    };
    problems(&text).iter().map(without_place).collect()
}

#[test]
fn a_rest_check_reaches_the_replica() {
    let given = Given::new("");
    let secret = given.beside("secret", b"hush\n");
    let ca = given.beside("ca", b"pem");
    let config = good(&format!(
        "[[replica]]\nname = \"a\"\nurl = \"redis://a\"\n[[replica]]\nname = \"b\"\nurl = \"redis://b\"\n[replica.rest]\n\
         url = \"https://cluster/\"\nusername = \"u\"\npassword_file = \"{secret}\"\nca = \"{ca}\"\n"
    ));
    assert!(config.replicas[0].rest.is_none());
    let rest = config.replicas[1].rest.as_ref().expect("the check");
    assert_eq!(rest.to_string(), "https://cluster:9443");
    assert_eq!((rest.database, rest.local), (Database::Auto, false));
    assert_eq!(rest.lag_tolerance, Duration::from_millis(100));
    assert_eq!(rest.interval, Duration::from_secs(5));
    let credentials = rest.endpoint.credentials.as_ref().expect("credentials");
    assert_eq!(credentials.username.as_deref(), Some("u"));
    assert_eq!(credentials.password.expose(), "hush");
    let tls = rest.endpoint.tls.as_ref().expect("TLS");
    assert_eq!(tls.ca.as_deref(), Some(Path::new(&ca)));
    assert!(!format!("{config:?}").contains("hush"));

    let rest = |lines: &str| {
        let text = format!(
            "[[replica]]\nname = \"a\"\nurl = \"unix:/r\"\n[replica.rest]\nusername = \"u\"\npassword_file = \"{secret}\"\n{lines}\n"
        );
        let given = Given::new(&text);
        let loaded = given
            .load(&[], Flags::default())
            .unwrap_or_else(|problems| panic!("{problems}"));
        let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
        (
            loaded.config.replicas[0].rest.clone().expect("the check"),
            warnings.join("\n"),
        )
    };
    let (check, warnings) = rest("url = \"http://[::1]\"\nbdb = 5\nlocal = true");
    assert_eq!(
        (check.to_string().as_str(), check.database, check.local),
        ("http://[::1]:8080", Database::Uid(5), true)
    );
    assert!(check.endpoint.tls.is_none());
    assert!(warnings.contains("unencrypted"), "{warnings}");
    let (_, warnings) = rest("url = \"https://c\"\nbdb = 5\ninsecure_skip_verify = true");
    assert!(warnings.contains("open to interception"), "{warnings}");
}

#[test]
fn a_rest_check_is_checked_as_a_whole() {
    let given = Given::new("");
    let secret = given.beside("secret", b"hush\n");
    let login = format!("username = \"u\"\npassword_file = \"{secret}\"\n");
    let with_login = |lines: &str| problems_of_rest("redis://a", &format!("{login}{lines}"));
    assert_eq!(
        problems_of_rest("redis://a", "local = true"),
        [
            "replica[0].rest.url: missing; write e.g. url = \"https://HOST:9443\"",
            "replica[0].rest.username: missing; write e.g. username = \"pulsegate@example.com\"",
            "replica[0].rest.password_file: missing; name the file that holds the password, on one line",
        ]
    );
    for (lines, want) in [
        (
            "url = \"c:9443\"",
            "url = \"c:9443\": not a URL; write https://HOST:9443",
        ),
        (
            "url = \"redis://c\"",
            "url = \"redis://c\": unknown scheme; write https://HOST:9443",
        ),
        (
            "url = \"https://\"",
            "url = \"https://…\": the host is missing; write https://HOST:9443",
        ),
        (
            "url = \"https://u:hush@c\"",
            "url = \"https://***@c\": credentials in the URL are not supported here; write username and password_file",
        ),
        (
            "url = \"https://c/v1\"",
            "url = \"https://…\": only a server is named here, Pulsegate knows the paths; write https://HOST:9443",
        ),
        (
            "url = \"https://c\"\nbdb = \"five\"",
            "bdb = \"five\": write \"auto\" or a whole number from 1 to 4294967295",
        ),
        (
            "url = \"https://c\"\nbdb = 0",
            "bdb = 0: must be from 1 to 4294967295",
        ),
        (
            "url = \"https://c\"\ninterval = \"100ms\"",
            "interval = \"100ms\": must be from 1s to 10m",
        ),
        (
            "url = \"http://c\"\nserver_name = \"d\"",
            "server_name = \"d\": TLS is used only with a https:// url; change the url, or remove this key",
        ),
        (
            "url = \"https://c\"\nserver_name = \"d e\"",
            "server_name = \"d e\": neither a host name nor an IP address",
        ),
        (
            "url = \"https://c\"\npassword = \"hush\"",
            "password: unknown key; put the password into a file and name it in password_file",
        ),
    ] {
        let want = format!("replica[0].rest.{want}");
        assert_eq!(with_login(lines), [want], "{lines}");
    }
    let colon = format!("url = \"https://c\"\nusername = \"a:b\"\npassword_file = \"{secret}\"");
    assert_eq!(
        problems_of_rest("redis://a", &colon),
        ["replica[0].rest.username = \"a:b\": a user name of HTTP is not empty and has no colon"]
    );
    assert_eq!(
        problems_of_rest("unix:/r", &format!("{login}url = \"https://c\"")),
        [
            "replica[0].rest.bdb: auto looks for the replica's host and port, which a unix socket has not; write the \
             database's number"
        ]
    );
}

#[test]
fn every_problem_of_every_source_comes_out_at_once_in_order() {
    let given = Given::new(
        "listner = 3\n[listener]\nworkers = 100\n[[replica]]\nname = \"a\"\nurl = \"redis://a/7\"\n[hold]\n\
         timeout = \"x\"\nmax_bytes = \"y\"\n[coordination]\n",
    );
    let vars = [
        ("PULSEGATE_LOG__LEVEL", "loud"),
        ("PULSEGATE_HOLD__MAX_COMMANDS", "-3"),
        ("PULSEGATE_LISTENER_BIND", "127.0.0.1:1"),
    ];
    let flags = Flags {
        profile: Some("slow".to_owned()),
        ..Flags::default()
    };
    assert_eq!(
        given.lines(given.load(&vars, flags)),
        [
            "p.toml:1: listner: unknown key; did you mean \"listener\"?",
            "p.toml:3: listener.workers = 100: must be from 1 to 64",
            "p.toml:6: replica[0].url = \"redis://a/7\": a database number or path is not supported: Active-Active \
             databases have only database 0, and SELECT belongs to the application; end the URL after the port",
            "p.toml:8: hold.timeout = \"x\": not a duration; write e.g. \"250ms\", \"3s\", \"1m\"",
            "p.toml:9: hold.max_bytes = \"y\": not a size; write e.g. \"512KiB\", \"64MiB\" or a number of bytes",
            "p.toml:10: coordination: not built yet in this version",
            "PULSEGATE_HOLD__MAX_COMMANDS: hold.max_commands = \"-3\": a string where a whole number is needed, from 1 \
             to 10000000",
            "PULSEGATE_LISTENER_BIND: unknown variable; did you mean PULSEGATE_LISTENER__BIND?",
            "PULSEGATE_LOG__LEVEL: log.level = \"loud\": not a level; write e.g. \"info\" or \
             \"info,pulsegate::proxy=debug\"",
            "--profile: detection.profile = \"slow\": write \"fast\", \"balanced\" or \"patient\"",
        ]
    );
}

#[test]
fn files_that_are_not_toml_or_not_there_are_named_once() {
    let lines = problems("[[replica]]\nname = \"a\"\nurl = redis://:hunter2@a\n[hold\n");
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("p.toml:3: not TOML: "), "{lines:?}");
    assert!(lines[1].starts_with("p.toml:4: not TOML: "), "{lines:?}");
    assert!(!lines.concat().contains("hunter2"), "{lines:?}");

    let given = Given::new("");
    fs::write(&given.file, b"# \n[hold]\n\xff").expect("the file can be written");
    assert_eq!(
        given.lines(given.load(&[], Flags::default())),
        ["p.toml: not UTF-8 in line 3"]
    );

    fs::remove_file(&given.file).expect("it is there");
    let lines = given.lines(given.load(&[], Flags::default()));
    assert_eq!(lines, ["p.toml: cannot be read: no such file or directory"]);
}

#[test]
fn no_error_and_no_warning_quotes_a_secret() {
    let given = Given::new("");
    let secret = given.beside("secret", b"hunter2\n");
    for text in [
        "url = \"redis://u:hunter2@h/3\"".to_owned(),
        "url = \"redis://:hunter2\"".to_owned(),
        "url = \"redis://u:hunter2\"".to_owned(),
        "url = \"redis://:hun/ter2hunter2@h\"".to_owned(),
        "url = \"redis://h?password=hunter2\"".to_owned(),
        "url = \"u:hunter2@h\"".to_owned(),
        "url = \"hunter2\"\npassword = \"hunter2\"".replace("url = \"hunter2\"", "url = \"hunter2 @\""),
        "url = [\"redis://:hunter2@h\"]".to_owned(),
        "name = \"redis://:hunter2@h\"".to_owned(),
        "url = \"redis://:hunter2@h\"\nunknown = \"hunter2\"\ntoken = 3".to_owned(),
        format!("url = \"redis://:hunter2@h\"\npassword_file = \"{secret}\""),
        "url = \"redis://:hunter2@h\"\nurl = \"redis://:hunter2@h\"".to_owned(),
        "url = \"redis://:hunter2@h".to_owned(),
    ] {
        let lines = problems(&format!("[[replica]]\n{text}"));
        assert!(!lines.is_empty(), "{text}");
        assert!(!lines.concat().contains("hunter2"), "{text}: {lines:?}");
    }
    let given = Given::new(REPLICAS);
    for (name, value) in [
        ("PULSEGATE_REPLICA__0__URL", "redis://:hunter2@h/9"),
        ("PULSEGATE_REPLICA__0__PASSWORD", "hunter2"),
        ("PULSEGATE_TOKEN", "hunter2"),
    ] {
        let lines = given.lines(given.load(&[(name, value)], Flags::default()));
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(
            lines[0].starts_with(name) && !lines[0].contains("hunter2"),
            "{lines:?}"
        );
    }
    let flags = Flags {
        replicas: vec![
            "redis://:hunter2@h".to_owned(),
            "a=redis://u:hunter2@h?x".to_owned(),
        ],
        ..Flags::default()
    };
    let lines = given.lines(given.load(&[], flags));
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(!lines.concat().contains("hunter2"), "{lines:?}");
}

// ---------------------------------------------------------------------------------------------------------------------
// Which source wins
// ---------------------------------------------------------------------------------------------------------------------

#[test]
fn defaults_give_way_to_the_file_the_file_to_the_environment_and_that_to_flags() {
    let file = format!("{REPLICAS}[log]\nlevel = \"error\"\nformat = \"json\"\n[hold]\ntimeout = \"3s\"");
    let vars = [
        ("PULSEGATE_LOG__LEVEL", "warn"),
        ("PULSEGATE_HOLD__TIMEOUT", "4s"),
    ];
    let flags = Flags {
        log_level: Some("debug".to_owned()),
        ..Flags::default()
    };
    assert_eq!(good(REPLICAS).log.level, "info");
    assert_eq!(good(&file).log.level, "error");
    assert_eq!(good_with(&file, &vars, Flags::default()).log.level, "warn");
    let config = good_with(&file, &vars, flags);
    assert_eq!(config.log.level, "debug");
    assert_eq!(config.log.format, LogFormat::Json);
    assert_eq!(config.hold.timeout, Duration::from_secs(4));
}

#[test]
fn everything_can_come_from_the_environment() {
    let vars = [
        ("PULSEGATE_LISTENER__BIND", "127.0.0.1:1, 127.0.0.1:2"),
        ("PULSEGATE_LISTENER__WORKERS", "2"),
        ("PULSEGATE_REPLICA__1__NAME", "b"),
        ("PULSEGATE_REPLICA__1__URL", "rediss://b:1"),
        ("PULSEGATE_REPLICA__1__TLS__INSECURE_SKIP_VERIFY", "true"),
        ("PULSEGATE_REPLICA__0__NAME", "a"),
        ("PULSEGATE_REPLICA__0__URL", "redis://a:1"),
        ("PULSEGATE_HOLD__MAX_BYTES", "2048"),
        ("PULSEGATE_DETECTION__PROFILE", "fast"),
        // Not Pulsegate's keys: the file's name, and what Kubernetes sets beside a Service called pulsegate.
        ("PULSEGATE_CONFIG", "elsewhere.toml"),
        ("PULSEGATE_SERVICE_HOST", "10.0.0.1"),
        ("PULSEGATE_SERVICE_PORT_REDIS", "6379"),
        ("PULSEGATE_PORT", "tcp://10.0.0.1:6379"),
        ("PULSEGATE_PORT_6379_TCP_ADDR", "10.0.0.1"),
        ("PULSEGATE_ADMIN_PORT_9379_TCP", "tcp://10.0.0.1:9379"),
        ("PATH", "/bin"),
    ];
    let sources = Sources {
        environment: environment(&vars),
        ..Sources::default()
    };
    let loaded = config::load(&sources).unwrap_or_else(|problems| panic!("{problems}"));
    let config = loaded.config;
    assert_eq!(config.listener.bind.len(), 2);
    assert_eq!(config.listener.workers, 2);
    let names: Vec<&str> = config.replicas.iter().map(|replica| &*replica.name).collect();
    assert_eq!(names, ["a", "b"]);
    assert!(
        config.replicas[1]
            .endpoint
            .tls
            .as_ref()
            .is_some_and(|tls| tls.insecure_skip_verify)
    );
    assert_eq!(config.hold.max_bytes, 2048);
    assert_eq!(config.policy.heartbeat_interval, Duration::from_millis(100));
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
    assert!(
        loaded.warnings[0]
            .to_string()
            .starts_with("PULSEGATE_REPLICA__1__TLS__INSECURE_SKIP_VERIFY: ")
    );

    let list = [("PULSEGATE_LISTENER__BIND", r#"["127.0.0.1:1", "[::1]:2"]"#)];
    assert_eq!(
        good_with(REPLICAS, &list, Flags::default()).listener.bind.len(),
        2
    );
    let v6 = [("PULSEGATE_LISTENER__BIND", "[::1]:2")];
    assert_eq!(good_with(REPLICAS, &v6, Flags::default()).listener.bind.len(), 1);
}

#[test]
fn the_environment_changes_replicas_of_the_file_by_position() {
    let vars = [
        ("PULSEGATE_REPLICA__1__URL", "redis://c:1"),
        ("PULSEGATE_REPLICA__1__WEIGHT", "500"),
    ];
    let config = good_with(REPLICAS, &vars, Flags::default());
    assert_eq!(&*config.replicas[1].name, "b");
    assert_eq!(config.replicas[1].endpoint.address.to_string(), "c:1");
    assert_eq!(config.replicas[1].weight, 500);

    let given = Given::new(REPLICAS);
    for (name, want) in [
        (
            "PULSEGATE_REPLICA__3__URL",
            "there is no replica 2 before it; positions count from 0 without a gap",
        ),
        (
            "PULSEGATE_REPLICA__URL",
            "after REPLICA__ comes the replica's position, from 0 to 15; write e.g. PULSEGATE_REPLICA__0__URL",
        ),
        (
            "PULSEGATE_REPLICA__0__ULR",
            "unknown variable; did you mean PULSEGATE_REPLICA__0__URL?",
        ),
        (
            "PULSEGATE_REPLICA__0__TLS",
            "replica.tls is a table; set its keys, e.g. PULSEGATE_REPLICA__0__TLS__CA",
        ),
        (
            "PULSEGATE_REPLICA__0__REST",
            "replica.rest is a table; set its keys, e.g. PULSEGATE_REPLICA__0__REST__URL",
        ),
        (
            "PULSEGATE_LISTENER__TLS__CERT",
            "listener.tls: not built yet in this version",
        ),
        (
            "PULSEGATE_COORDINATION",
            "coordination: not built yet in this version",
        ),
        (
            "PULSEGATE_LISTENER__BIND__X",
            "unknown variable; did you mean PULSEGATE_LISTENER__BIND?",
        ),
        (
            "PULSEGATE_ZZZZ",
            "unknown variable; they are named like PULSEGATE_LISTENER__BIND",
        ),
    ] {
        let lines = given.lines(given.load(&[(name, "x")], Flags::default()));
        assert_eq!(lines, [format!("{name}: {want}")]);
    }
}

#[test]
fn replica_flags_are_the_list_and_keep_what_else_is_known_of_a_name() {
    let given = Given::new("");
    let secret = given.beside("secret", b"x\n");
    let file = format!(
        "[[replica]]\nname = \"a\"\nurl = \"redis://a:1\"\nweight = 5\n[[replica]]\nname = \"b\"\nurl = \"redis://b:1\"\n\
         weight = 9\npassword_file = \"{secret}\"\n[[replica]]\nname = \"c\"\nurl = \"redis://c:1\""
    );
    let flags = |list: &[&str]| Flags {
        replicas: list.iter().map(|item| (*item).to_owned()).collect(),
        ..Flags::default()
    };
    let config = good_with(&file, &[], flags(&["a=redis://x:1", "b=redis://y:1"]));
    let shown: Vec<String> = config
        .replicas
        .iter()
        .map(|replica| {
            let login = replica.endpoint.credentials.is_some();
            format!(
                "{} {} {} {login}",
                replica.name, replica.endpoint.address, replica.weight
            )
        })
        .collect();
    assert_eq!(
        shown,
        ["a x:1 100 false", "b y:1 99 true"],
        "in the order of the flags, the first preferred"
    );

    // Without a file, the environment can say more of a position.
    let vars = [("PULSEGATE_REPLICA__0__PASSWORD_FILE", secret.as_str())];
    let config = good_with("", &vars, flags(&["a=redis://x:1", "b=redis://y:1"]));
    assert!(config.replicas[0].endpoint.credentials.is_some());
    assert!(config.replicas[1].endpoint.credentials.is_none());

    // But nothing that it says is lost in silence.
    let vars = [
        ("PULSEGATE_REPLICA__0__NAME", "a"),
        ("PULSEGATE_REPLICA__1__PASSWORD_FILE", secret.as_str()),
    ];
    let empty = Given::new("");
    let lines = empty.lines(empty.load(&vars, flags(&["a=redis://x:1"])));
    assert_eq!(
        lines,
        [
            "PULSEGATE_REPLICA__1__PASSWORD_FILE: replica[1].name: missing; write e.g. name = \"local\"",
            "PULSEGATE_REPLICA__1__PASSWORD_FILE: replica[1].url: missing; write e.g. url = \"redis://127.0.0.1:6380\"",
        ]
    );
    let lines = empty.lines(empty.load(&[], flags(&["redis://x:1", "b=redis://b:1"])));
    assert_eq!(
        lines,
        ["--replica: replica[0] = \"redis://x:1\": write NAME=URL, e.g. local=redis://127.0.0.1:6380"]
    );
}

// ---------------------------------------------------------------------------------------------------------------------
// The files that are shipped
// ---------------------------------------------------------------------------------------------------------------------

fn shipped() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("config");
    let mut files: Vec<PathBuf> = fs::read_dir(folder)
        .expect("config/ is there")
        .map(|entry| entry.expect("config/ can be listed").path())
        .collect();
    files.sort();
    files
}

fn load_shipped(name: &str) -> Loaded {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("config").join(name);
    let sources = Sources {
        file: Some(file),
        ..Sources::default()
    };
    config::load(&sources).unwrap_or_else(|problems| panic!("{problems}"))
}

#[test]
fn every_shipped_file_is_good() {
    let files = shipped();
    assert!(files.len() >= 2, "{files:?}");
    for file in files {
        let name = file.file_name().and_then(|name| name.to_str()).expect("a name");
        let loaded = load_shipped(name);
        assert!(loaded.warnings.is_empty(), "{name}: {:?}", loaded.warnings);
    }
}

#[test]
fn the_example_sets_nothing_but_defaults() {
    let example = load_shipped("example.toml").config;
    let minimal = load_shipped("minimal.toml").config;
    assert_eq!(format!("{example:#?}"), format!("{minimal:#?}"));
}

/// Keys that change nothing by themselves: the first only permits, and the profile stands for the keys that it sets.
const WITHOUT_EFFECT: &[&str] = &["listener.allow_open", "detection.profile"];

/// A value for each key that is not the base's.
const OTHER_VALUES: &[(&str, &str)] = &[
    ("listener.bind", "127.0.0.1:7001"),
    ("listener.max_clients", "77"),
    ("listener.workers", "3"),
    ("listener.output_limit", "2MiB"),
    ("upstream.mode", "dedicated"),
    ("upstream.shared_links", "2"),
    ("replica.name", "other"),
    ("replica.url", "rediss://elsewhere:1"),
    ("replica.weight", "7"),
    ("replica.username", "somebody"),
    ("replica.password_file", "{folder}/second"),
    ("replica.topology", "cluster"),
    ("replica.address_map", "a:1=b:1"),
    ("replica.shards", "3"),
    ("cluster.split", "false"),
    ("replica.tls.ca", "{folder}/second"),
    ("replica.tls.cert", "{folder}/second"),
    ("replica.tls.key", "{folder}/second"),
    ("replica.tls.server_name", "other.example"),
    ("replica.rest.url", "https://elsewhere"),
    ("replica.rest.username", "somebody"),
    ("replica.rest.password_file", "{folder}/second"),
    ("replica.rest.bdb", "7"),
    ("replica.rest.local", "true"),
    ("replica.rest.lag_tolerance", "70ms"),
    ("replica.rest.interval", "7s"),
    ("replica.rest.ca", "{folder}/second"),
    ("replica.rest.server_name", "other.example"),
    ("detection.heartbeat_interval", "70ms"),
    ("detection.heartbeat_timeout", "7s"),
    ("detection.probe_interval", "70ms"),
    ("detection.connect_timeout", "70ms"),
    ("detection.connect_failures", "7"),
    ("detection.response_timeout", "7s"),
    ("detection.channel_prefix", "other"),
    ("failover.fence", "70ms"),
    ("failover.on_fence_timeout", "proceed"),
    ("failover.dwell", "7s"),
    ("failover.on_isolated", "leave"),
    ("failback.mode", "manual"),
    ("failback.read_steps", "20,100"),
    ("failback.soak", "5s"),
    ("failback.read_your_writes", "false"),
    ("failback.latency_margin", "5ms"),
    ("failover.on_slow", "leave"),
    ("failover.on_shard_down", "stay"),
    ("detection.shard_grace", "7s"),
    ("upstream.reads", "nearest"),
    ("failback.grace", "7s"),
    ("failback.lag_tolerance", "7s"),
    ("hold.timeout", "7s"),
    ("hold.max_commands", "7"),
    ("hold.max_bytes", "7KiB"),
    ("admin.bind", "127.0.0.1:7002"),
    ("admin.token_file", "{folder}/second"),
    ("admin.state_file", "{folder}/state"),
    ("log.format", "json"),
    ("log.level", "debug"),
];

/// A reload that overlooks a key would say that all is as before.
#[test]
fn every_key_that_differs_is_noticed() {
    let given = Given::new("");
    let first = given.beside("first", b"1");
    given.beside("second", b"2");
    let folder = given.folder.path().to_str().expect("UTF-8").to_owned();
    let base = [
        "replica.password_file",
        "replica.tls.ca",
        "replica.tls.cert",
        "replica.tls.key",
        "replica.rest.password_file",
        "replica.rest.ca",
        "admin.token_file",
    ];
    let load = |key: &str, value: &str| {
        let mut vars: Vec<(String, String)> = base
            .iter()
            .map(|key| (config::environment_name(key, 0), first.clone()))
            .collect();
        vars.push(("PULSEGATE_REPLICA__0__URL".to_owned(), "rediss://a:1".to_owned()));
        vars.push(("PULSEGATE_REPLICA__0__NAME".to_owned(), "a".to_owned()));
        vars.push(("PULSEGATE_REPLICA__0__USERNAME".to_owned(), "u".to_owned()));
        vars.push((
            "PULSEGATE_REPLICA__0__REST__URL".to_owned(),
            "https://c".to_owned(),
        ));
        vars.push(("PULSEGATE_REPLICA__0__REST__USERNAME".to_owned(), "r".to_owned()));
        if !key.is_empty() {
            let name = config::environment_name(key, 0);
            vars.retain(|(known, _)| *known != name);
            vars.push((name, value.replace("{folder}", &folder)));
        }
        let loaded = config::load(&Sources {
            file: None,
            environment: vars
                .into_iter()
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
            flags: Flags::default(),
        });
        loaded
            .unwrap_or_else(|problems| panic!("{key}: {problems}"))
            .config
    };
    let before = load("", "");
    assert_eq!(config::changes(&before, &load("", "")), []);
    for (key, value) in OTHER_VALUES {
        let found = config::changes(&before, &load(key, value));
        let shown = key.replace("replica.", "replica[0].");
        let table = ["replica[0].tls", "replica[0].rest"]
            .into_iter()
            .find(|table| shown.starts_with(&format!("{table}.")));
        let shown = table.unwrap_or(&shown);
        let keys: Vec<&str> = found.iter().map(|change| change.key.as_str()).collect();
        assert_eq!(keys, [shown], "{key} = {value}");
        let live = key.starts_with("failover.")
            || key.starts_with("failback.")
            || ["log.level", "upstream.reads"].contains(key)
            || [
                "detection.heartbeat_interval",
                "detection.heartbeat_timeout",
                "detection.probe_interval",
                "detection.connect_failures",
                "detection.shard_grace",
            ]
            .contains(key);
        assert_eq!(found[0].live, live, "{key}");
    }
    // What was not tried above is not built: a value of it would be refused.
    for key in config::keys() {
        let tried = OTHER_VALUES.iter().any(|(known, _)| *known == key);
        if !tried && !WITHOUT_EFFECT.contains(&key) {
            let name = config::environment_name(key, 0);
            let refused = Given::new(REPLICAS).load(&[(name.as_str(), "true")], Flags::default());
            let refused = refused.map(|_| ()).expect_err(key).to_string();
            assert!(
                refused.contains("not built") || key.ends_with(".insecure_skip_verify"),
                "{key}: {refused}"
            );
        }
    }
}

#[test]
fn the_readmes_five_lines_are_a_configuration() {
    let readme = include_str!("../README.md");
    let (_, rest) = readme.split_once("```toml\n").expect("README.md has one");
    let (text, _) = rest.split_once("```").expect("it ends");
    assert_eq!(text.lines().count(), 5);
    let given = Given::new(text);
    let loaded = given.load(&[], Flags::default()).expect("it is good");
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let config = loaded.config;
    assert_eq!(config.replicas.len(), 2);
    assert!(config.replicas[0].weight > config.replicas[1].weight);
    assert_eq!(config.policy.heartbeat_timeout, Duration::from_secs(1), "fast");
}

#[test]
fn the_example_mentions_every_key_in_its_section() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/example.toml");
    let text = fs::read_to_string(path).expect("it is there");
    let mut section = "";
    let mut mentioned = Vec::new();
    for line in text.lines() {
        let line = line.trim_start_matches(['#', ' ']);
        if let Some(name) = line.strip_prefix('[') {
            section = name.trim_start_matches('[').split(']').next().unwrap_or_default();
            mentioned.push(section.to_owned());
        } else if let Some((key, value)) = line.split_once(" = ") {
            mentioned.push(format!("{section}.{key}"));
            // Keys of a table in one line.
            if let Some(inner) = value.strip_prefix('{') {
                let inner = inner
                    .split(['{', ',', '}'])
                    .filter_map(|pair| pair.split_once(" = "));
                mentioned.extend(inner.map(|(inner, _)| format!("{section}.{key}.{}", inner.trim())));
            }
        }
    }
    let missing: Vec<&str> = config::keys()
        .filter(|key| !mentioned.iter().any(|mention| mention == key))
        .collect();
    assert!(
        missing.is_empty(),
        "config/example.toml does not mention {missing:?}"
    );
    assert!(config::keys().count() > 40);
}
