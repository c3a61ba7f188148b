//! From values that are each right to a configuration that is right as a whole.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use super::problem::{Origin, Problem};
use super::walk::{Given, Values};
use super::{
    Admin, Bind, Cluster, Config, Detection, Hold, Listener, Log, LogFormat, Upstream, UpstreamMode,
    replicas, schema,
};
use crate::decision::{FailbackMode, OnFenceTimeout, OnIsolated, OnShardDown, OnSlow, Policy, ReadsTo};
use crate::replica::{Address, Replica};

/// What the checks write to.
pub(super) struct Findings<'a> {
    pub(super) values: &'a Values,
    /// Where to say that something is missing.
    pub(super) whole: Origin,
    pub(super) problems: &'a mut Vec<Problem>,
    pub(super) warnings: &'a mut Vec<Problem>,
}

impl Findings<'_> {
    /// Notes a problem with the value of `path`, given or not.
    pub(super) fn problem(&mut self, path: &str, text: impl Into<String>) {
        let problem = self.said_of(path, text.into());
        self.problems.push(problem);
    }

    /// Notes something that works, but probably not as wished.
    pub(super) fn warning(&mut self, path: &str, text: impl Into<String>) {
        let warning = self.said_of(path, text.into());
        self.warnings.push(warning);
    }

    fn said_of(&self, path: &str, text: String) -> Problem {
        let (origin, subject) = match self.values.given(path) {
            Some(given) => (given.origin.clone(), given.subject.clone()),
            None => (self.whole.clone(), path.to_owned()),
        };
        Problem {
            origin,
            subject,
            text,
        }
    }
}

/// Builds the configuration. It is fit for use only if no problem was noted, here or before.
pub(super) fn assemble(findings: &mut Findings<'_>) -> Config {
    let values = findings.values;
    let listener = listener(findings);
    let replicas = replicas::replicas(findings);
    own_listener(findings, &listener, &replicas);
    let (policy, upstream) = timing(findings);
    let hold = Hold {
        timeout: values.duration("hold.timeout"),
        max_commands: to_usize(values.number("hold.max_commands")),
        max_bytes: to_usize(values.number("hold.max_bytes")),
    };
    let admin = admin(findings, &listener);
    let detection = Detection {
        channel_prefix: channel_prefix(findings),
    };
    let log = Log {
        format: match values.word("log.format").as_str() {
            "json" => LogFormat::Json,
            _ => LogFormat::Text,
        },
        level: values.word("log.level"),
    };
    Config {
        listener,
        replicas,
        cluster: Cluster {
            split: values.switch("cluster.split"),
        },
        upstream,
        detection,
        policy,
        hold,
        admin,
        log,
    }
}

fn listener(findings: &mut Findings<'_>) -> Listener {
    let values = findings.values;
    let allow_open = values.switch("listener.allow_open") || values.is_bad("listener.allow_open");
    let binds = values.binds("listener.bind");
    let mut seen: Vec<Bind> = Vec::new();
    for (bind, given) in binds {
        if let (Bind::Tcp(address), Some(given)) = (&bind, given)
            && !address.ip().is_loopback()
            && !allow_open
        {
            said_of_given(
                findings,
                given,
                "open to the network, where anybody could use the database with Pulsegate's credentials; bind a \
                 loopback address or unix:/PATH, or set listener.allow_open = true",
            );
        }
        let is_free_port = matches!(&bind, Bind::Tcp(address) if address.port() == 0);
        if let Some(given) = given
            && seen.contains(&bind)
            && !is_free_port
        {
            said_of_given(findings, given, "the same address twice");
        }
        seen.push(bind);
    }
    Listener {
        bind: seen,
        max_clients: to_usize(values.number("listener.max_clients")),
        workers: to_usize(values.number("listener.workers")),
        output_limit: to_usize(values.number("listener.output_limit")),
    }
}

/// Notes a problem with one value of a list.
pub(super) fn said_of_given(findings: &mut Findings<'_>, given: &Given, text: &str) {
    findings.problems.push(Problem {
        origin: given.origin.clone(),
        subject: given.subject.clone(),
        text: text.to_owned(),
    });
}

/// A replica that is Pulsegate itself would make every command run in circles.
fn own_listener(findings: &mut Findings<'_>, listener: &Listener, replicas: &[Replica]) {
    for replica in replicas {
        let is_own = listener
            .bind
            .iter()
            .any(|bind| match (bind, &replica.endpoint.address) {
                (Bind::Unix(own), Address::Unix(path)) => own == path,
                (Bind::Tcp(own), Address::Tcp { host, port }) => {
                    own.port() == *port && is_here(host, own.ip())
                }
                _ => false,
            });
        if is_own {
            findings.problem(
                &format!("replica[{}].url", replica.id.index()),
                "this is Pulsegate's own listener.bind: commands would go round in circles; change one of the two",
            );
        }
    }
}

/// Whether connecting to `host` reaches a listener on `ip`, as far as it can be told without asking a name server.
fn is_here(host: &str, ip: IpAddr) -> bool {
    if host == "localhost" {
        return ip.is_loopback() || ip.is_unspecified();
    }
    match host.parse::<IpAddr>() {
        Ok(host) => host == ip || (ip.is_unspecified() && host.is_loopback()),
        Err(_) => false,
    }
}

fn timing(findings: &mut Findings<'_>) -> (Policy, Upstream) {
    let values = findings.values;
    let profile = schema::profile(&values.word("detection.profile"));
    let duration = |path: &str, from_profile: Duration| values.given_duration(path).unwrap_or(from_profile);
    let heartbeat_interval = duration("detection.heartbeat_interval", profile.heartbeat_interval);
    let heartbeat_timeout = duration("detection.heartbeat_timeout", profile.heartbeat_timeout);
    let probe_interval = duration("detection.probe_interval", profile.probe_interval);
    let connect_failures = values
        .given_number("detection.connect_failures")
        .unwrap_or(profile.connect_failures);
    let hold_timeout = values.duration("hold.timeout");
    let fence = values.given_duration("failover.fence");

    both_heartbeats(findings, heartbeat_interval, heartbeat_timeout);
    if let Some(fence) = fence
        && fence > hold_timeout
        && !values.is_bad("hold.timeout")
    {
        let text = format!(
            "longer than hold.timeout ({}): commands that wait for the fence of a planned move fail after that time",
            humantime::format_duration(hold_timeout)
        );
        findings.warning("failover.fence", text);
    }
    let grace = values.duration("failback.grace");
    if grace < heartbeat_timeout && !values.is_bad("failback.grace") {
        let text = format!(
            "shorter than detection.heartbeat_timeout ({}): a link that broke just before may not be known as broken when reads go back",
            humantime::format_duration(heartbeat_timeout)
        );
        findings.warning("failback.grace", text);
    }
    let policy = Policy {
        heartbeat_interval,
        heartbeat_timeout,
        probe_interval,
        connect_failures: u32::try_from(connect_failures).unwrap_or(u32::MAX),
        shard_grace: duration("detection.shard_grace", profile.shard_grace),
        on_shard_down: match values.word("failover.on_shard_down").as_str() {
            "stay" => OnShardDown::Stay,
            _ => OnShardDown::Switch,
        },
        dwell: values.duration("failover.dwell"),
        // By default the fence fits into the hold, so that a planned move costs no command.
        fence: fence.unwrap_or_else(|| values.duration("failover.fence").min(hold_timeout)),
        on_fence_timeout: match values.word("failover.on_fence_timeout").as_str() {
            "proceed" => OnFenceTimeout::Proceed,
            _ => OnFenceTimeout::Abort,
        },
        on_isolated: match values.word("failover.on_isolated").as_str() {
            "leave" => OnIsolated::Leave,
            _ => OnIsolated::Stay,
        },
        on_slow: match values.word("failover.on_slow").as_str() {
            "leave" => OnSlow::Leave,
            _ => OnSlow::Stay,
        },
        reads: match values.word("upstream.reads").as_str() {
            "nearest" => ReadsTo::Nearest,
            _ => ReadsTo::Active,
        },
        read_your_writes: values.switch("failback.read_your_writes"),
        failback: match values.word("failback.mode").as_str() {
            "manual" => FailbackMode::Manual,
            "immediate" => FailbackMode::Immediate,
            _ => FailbackMode::Staged,
        },
        grace,
        read_steps: values.steps("failback.read_steps"),
        soak: values.duration("failback.soak"),
        latency_margin: values.duration("failback.latency_margin"),
        lag_tolerance: values.duration("failback.lag_tolerance"),
        // A stall that costs less than half of the evidence's life cannot make a replica look silent by itself; it
        // must be longer than the ordinary gap between two heartbeats.
        tilt_after: (heartbeat_timeout / 2).max(heartbeat_interval * 3 / 2),
    };
    let upstream = Upstream {
        mode: match values.word("upstream.mode").as_str() {
            "dedicated" => UpstreamMode::Dedicated,
            _ => UpstreamMode::Shared,
        },
        shared_links: to_usize(values.number("upstream.shared_links")),
        connect_timeout: duration("detection.connect_timeout", profile.connect_timeout),
        response_timeout: duration("detection.response_timeout", profile.response_timeout),
    };
    (policy, upstream)
}

fn both_heartbeats(findings: &mut Findings<'_>, interval: Duration, timeout: Duration) {
    let (interval_key, timeout_key) = ("detection.heartbeat_interval", "detection.heartbeat_timeout");
    let values = findings.values;
    let unsure = ["detection.profile", interval_key, timeout_key]
        .iter()
        .any(|path| values.is_bad(path));
    if unsure || timeout >= interval * 2 {
        return;
    }
    // Said of the key that was given; the timeout when both were.
    if values.given(timeout_key).is_some() || values.given(interval_key).is_none() {
        let text = format!(
            "must be at least twice heartbeat_interval ({}), so that one lost heartbeat is not a verdict",
            humantime::format_duration(interval)
        );
        findings.problem(timeout_key, text);
    } else {
        let text = format!(
            "must be at most half of heartbeat_timeout ({}), so that one lost heartbeat is not a verdict",
            humantime::format_duration(timeout)
        );
        findings.problem(interval_key, text);
    }
}

fn channel_prefix(findings: &mut Findings<'_>) -> String {
    const PATH: &str = "detection.channel_prefix";
    let prefix = findings.values.word(PATH);
    let fits = !prefix.is_empty()
        && prefix.len() <= 64
        && prefix
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':' | '/'));
    if !fits {
        findings.problem(
            PATH,
            "1 to 64 letters, digits, or . _ - : / (others have a meaning in patterns and hash tags)",
        );
    }
    prefix
}

fn admin(findings: &mut Findings<'_>, listener: &Listener) -> Admin {
    let values = findings.values;
    let bind = values.address("admin.bind");
    let token = values.text("admin.token_file").map(PathBuf::from);
    let has_token = token.is_some() || values.is_bad("admin.token_file");
    if !bind.ip().is_loopback() && !has_token {
        findings.problem(
            "admin.bind",
            "beyond loopback the verbs that change something need a token: set admin.token_file, or bind a \
             loopback address",
        );
    }
    let taken = |own: &Bind| matches!(own, Bind::Tcp(own) if bind.port() != 0 && overlap(*own, bind));
    if listener.bind.iter().any(taken) {
        findings.problem(
            "admin.bind",
            "the same address as listener.bind; change one of the two",
        );
    }
    let token = token.and_then(|path| replicas::secret_in(findings, "admin.token_file", &path));
    let state_file = values.word("admin.state_file");
    Admin {
        bind,
        token,
        state_file: (!state_file.is_empty()).then(|| PathBuf::from(state_file)),
    }
}

fn overlap(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

/// Every number of the schema fits 64-bit machines; on smaller ones "as much as there is" is meant.
fn to_usize(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}
