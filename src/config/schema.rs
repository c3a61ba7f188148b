//! Every key there is: its place, its kind, its range, its default.
//!
//! The walk over the sources, the environment's names, the suggestions and the test of `config/example.toml` all read
//! this one table.

use std::time::Duration;

/// One key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    /// Its path, as in `hold.timeout`; keys below `replica` are those of each `[[replica]]`.
    pub(super) path: &'static str,
    /// What its values look like.
    pub(super) kind: Kind,
    /// Its default, as written in a string or bare; `None`: needed, without one, or given by the profile.
    pub(super) default: Option<&'static str>,
}

/// What values look like, with their range.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Any text.
    Text,
    /// A file that must be there and readable.
    File,
    /// A file that may come to be; its directory must be there. Empty: none.
    NewFile,
    /// One listening address or a list of them.
    Binds,
    /// One `announced=reachable` pair of addresses or a list of them.
    AddressPairs,
    /// One `ip:port`.
    Address,
    /// `redis://…`; errors never quote it whole.
    Url,
    /// `https://HOST:PORT`, likewise.
    HttpUrl,
    /// "250ms"; in milliseconds from, to.
    Duration(u64, u64),
    /// "64MiB"; in bytes from, to.
    Size(u64, u64),
    /// A whole number from, to.
    Count(u64, u64),
    /// A list of growing percentages that ends with 100; in the environment "10,50,100".
    Steps,
    /// A whole number from, to, or "auto".
    AutoOr(u64, u64),
    /// true or false.
    Switch,
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// A tracing filter.
    Filter,
    /// The key, and all below it, belongs to a part that is not built yet.
    NotBuilt,
}

impl Kind {
    /// Whether several values can be given, in a list.
    pub(super) fn is_list(self) -> bool {
        matches!(self, Kind::Binds | Kind::AddressPairs)
    }
}

const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const GIB: u64 = 1 << 30;

const fn key(path: &'static str, kind: Kind, default: &'static str) -> Key {
    Key {
        path,
        kind,
        default: Some(default),
    }
}

const fn bare(path: &'static str, kind: Kind) -> Key {
    Key {
        path,
        kind,
        default: None,
    }
}

/// Every key, in the order of `config/example.toml`.
pub(super) const KEYS: &[Key] = &[
    key("listener.bind", Kind::Binds, "127.0.0.1:6379"),
    key("listener.max_clients", Kind::Count(1, 1_000_000), "10000"),
    key("listener.workers", Kind::Count(1, 64), "1"),
    key(
        "listener.output_limit",
        Kind::Size(1024 * 1024, 1024 * GIB),
        "256MiB",
    ),
    key("listener.allow_open", Kind::Switch, "false"),
    bare("listener.tls", Kind::NotBuilt),
    bare("listener.auth", Kind::NotBuilt),
    bare("replica.name", Kind::Text),
    bare("replica.url", Kind::Url),
    bare("replica.weight", Kind::Count(1, 1_000_000)),
    bare("replica.username", Kind::Text),
    bare("replica.password_file", Kind::File),
    key(
        "replica.topology",
        Kind::OneOf(&["auto", "single", "cluster"]),
        "auto",
    ),
    bare("replica.address_map", Kind::AddressPairs),
    key("replica.shards", Kind::Count(0, 16_384), "0"),
    bare("replica.tls.ca", Kind::File),
    bare("replica.tls.cert", Kind::File),
    bare("replica.tls.key", Kind::File),
    bare("replica.tls.server_name", Kind::Text),
    key("replica.tls.insecure_skip_verify", Kind::Switch, "false"),
    bare("replica.rest.url", Kind::HttpUrl),
    bare("replica.rest.username", Kind::Text),
    bare("replica.rest.password_file", Kind::File),
    key("replica.rest.bdb", Kind::AutoOr(1, u32::MAX as u64), "auto"),
    key("replica.rest.local", Kind::Switch, "false"),
    key("replica.rest.lag_tolerance", Kind::Duration(1, HOUR), "100ms"),
    key("replica.rest.interval", Kind::Duration(1000, 10 * MINUTE), "5s"),
    bare("replica.rest.ca", Kind::File),
    bare("replica.rest.server_name", Kind::Text),
    key("replica.rest.insecure_skip_verify", Kind::Switch, "false"),
    key("cluster.split", Kind::Switch, "true"),
    key("upstream.mode", Kind::OneOf(&["shared", "dedicated"]), "shared"),
    key("upstream.shared_links", Kind::Count(1, 64), "1"),
    key("upstream.reads", Kind::OneOf(&["active", "nearest"]), "active"),
    key(
        "detection.profile",
        Kind::OneOf(&["fast", "balanced", "patient"]),
        "balanced",
    ),
    bare("detection.heartbeat_interval", Kind::Duration(10, MINUTE)),
    bare("detection.heartbeat_timeout", Kind::Duration(20, HOUR)),
    bare("detection.probe_interval", Kind::Duration(10, 10 * MINUTE)),
    bare("detection.connect_timeout", Kind::Duration(10, MINUTE)),
    bare("detection.connect_failures", Kind::Count(1, 1000)),
    bare("detection.shard_grace", Kind::Duration(0, HOUR)),
    bare("detection.response_timeout", Kind::Duration(10, HOUR)),
    key("detection.channel_prefix", Kind::Text, "pulsegate"),
    key("failover.fence", Kind::Duration(0, MINUTE), "1s"),
    key(
        "failover.on_fence_timeout",
        Kind::OneOf(&["abort", "proceed"]),
        "abort",
    ),
    key("failover.dwell", Kind::Duration(0, 24 * HOUR), "10s"),
    key("failover.on_isolated", Kind::OneOf(&["stay", "leave"]), "stay"),
    key(
        "failover.on_shard_down",
        Kind::OneOf(&["switch", "stay"]),
        "switch",
    ),
    key("failover.on_slow", Kind::OneOf(&["stay", "leave"]), "stay"),
    key(
        "failback.mode",
        Kind::OneOf(&["staged", "immediate", "manual"]),
        "staged",
    ),
    key("failback.grace", Kind::Duration(0, 24 * HOUR), "60s"),
    key("failback.read_steps", Kind::Steps, "10,50,100"),
    key("failback.soak", Kind::Duration(0, 24 * HOUR), "30s"),
    key("failback.read_your_writes", Kind::Switch, "true"),
    key("failback.lag_tolerance", Kind::Duration(1, HOUR), "500ms"),
    key("failback.latency_margin", Kind::Duration(1, MINUTE), "100ms"),
    key("hold.timeout", Kind::Duration(0, 10 * MINUTE), "2s"),
    key("hold.max_commands", Kind::Count(1, 10_000_000), "10000"),
    key("hold.max_bytes", Kind::Size(1024, 1024 * GIB), "64MiB"),
    key("admin.bind", Kind::Address, "127.0.0.1:9379"),
    bare("admin.token_file", Kind::File),
    key("admin.state_file", Kind::NewFile, ""),
    key("log.format", Kind::OneOf(&["text", "json"]), "text"),
    key("log.level", Kind::Filter, "info"),
    bare("coordination", Kind::NotBuilt),
];

/// What stands at a path.
pub(super) enum Place {
    /// A key with a value.
    Key(&'static Key),
    /// A table of keys.
    Section,
    /// Nothing.
    Unknown,
}

/// Looks `path` up; list positions are left out of it (`replica.url`).
pub(super) fn place(path: &str) -> Place {
    if let Some(key) = KEYS.iter().find(|key| key.path == path) {
        return Place::Key(key);
    }
    let is_section = KEYS.iter().any(|key| is_below(key.path, path));
    if is_section {
        Place::Section
    } else {
        Place::Unknown
    }
}

/// The key of `path`, which the caller takes from the table itself.
pub(super) fn known(path: &str) -> &'static Key {
    match place(path) {
        Place::Key(key) => key,
        Place::Section | Place::Unknown => unreachable!("{path} is not a key of the schema"),
    }
}

/// The names that may stand directly in section `path` (empty for the top), each once.
pub(super) fn names_in(path: &str) -> Vec<&'static str> {
    let mut names: Vec<&'static str> = Vec::new();
    for key in KEYS {
        let rest = if path.is_empty() {
            Some(key.path)
        } else if is_below(key.path, path) {
            Some(&key.path[path.len() + 1..])
        } else {
            None
        };
        if let Some(name) = rest.and_then(|rest| rest.split('.').next())
            && !names.contains(&name)
        {
            names.push(name);
        }
    }
    names
}

/// The sections other than `path` in which `name` is a key, those at the top first.
pub(super) fn sections_with(name: &str, path: &str) -> Vec<&'static str> {
    let mut sections: Vec<&'static str> = KEYS
        .iter()
        .filter_map(|key| key.path.rsplit_once('.'))
        .filter(|(section, last)| *last == name && *section != path)
        .map(|(section, _)| section)
        .collect();
    sections.sort_by_key(|section| section.matches('.').count());
    sections
}

fn is_below(key: &str, section: &str) -> bool {
    key.strip_prefix(section)
        .is_some_and(|rest| rest.starts_with('.'))
}

/// A section as it is written in a file.
pub(super) fn bracketed(section: &str) -> String {
    if section == "replica" {
        "[[replica]]".to_owned()
    } else {
        format!("[{section}]")
    }
}

/// What a profile sets; every key of `[detection]` that is given wins over it.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProfileNumbers {
    pub(super) heartbeat_interval: Duration,
    pub(super) heartbeat_timeout: Duration,
    pub(super) probe_interval: Duration,
    pub(super) connect_timeout: Duration,
    pub(super) connect_failures: u64,
    pub(super) shard_grace: Duration,
    pub(super) response_timeout: Duration,
}

/// The numbers of profile `word`, one of the schema's.
pub(super) fn profile(word: &str) -> ProfileNumbers {
    let ms = Duration::from_millis;
    match word {
        "fast" => ProfileNumbers {
            heartbeat_interval: ms(100),
            heartbeat_timeout: ms(1000),
            probe_interval: ms(200),
            connect_timeout: ms(500),
            connect_failures: 2,
            shard_grace: ms(2000),
            response_timeout: ms(2000),
        },
        "patient" => ProfileNumbers {
            heartbeat_interval: ms(2000),
            heartbeat_timeout: ms(15_000),
            probe_interval: ms(3000),
            connect_timeout: ms(5000),
            connect_failures: 5,
            shard_grace: ms(20_000),
            response_timeout: ms(20_000),
        },
        _ => ProfileNumbers {
            heartbeat_interval: ms(500),
            heartbeat_timeout: ms(3000),
            probe_interval: ms(1000),
            connect_timeout: ms(1000),
            connect_failures: 3,
            shard_grace: ms(5000),
            response_timeout: ms(5000),
        },
    }
}
