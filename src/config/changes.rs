//! What differs between two configurations, and which of it a running Pulsegate can take over.

use super::Config;

/// One key that differs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// Its path, as in `hold.timeout` or `replica[0].url`.
    pub key: String,
    /// A running Pulsegate can take it over; otherwise it needs a restart.
    pub live: bool,
}

/// Every key that differs, in the order of the schema. A key whose value follows from another one (a profile, say)
/// stands for itself. Files that are read by name when a connection is made ready (TLS) are compared by name.
pub fn changes(old: &Config, new: &Config) -> Vec<Change> {
    let mut found = Vec::new();
    let mut note = |key: &str, live: bool, same: bool| {
        if !same {
            let key = key.to_owned();
            found.push(Change { key, live });
        }
    };
    let (a, b) = (&old.listener, &new.listener);
    note("listener.bind", false, a.bind == b.bind);
    note("listener.max_clients", false, a.max_clients == b.max_clients);
    note("listener.workers", false, a.workers == b.workers);
    note("listener.output_limit", false, a.output_limit == b.output_limit);

    let count = old.replicas.len();
    note("the number of replicas", false, count == new.replicas.len());
    for (i, (a, b)) in old.replicas.iter().zip(&new.replicas).enumerate() {
        let mut note = |key: &str, same: bool| note(&format!("replica[{i}].{key}"), false, same);
        note("name", a.name == b.name);
        note("weight", a.weight == b.weight);
        let same_rest = a.rest == b.rest;
        let (of_a, of_b) = (&a.topology, &b.topology);
        let (a, b) = (&a.endpoint, &b.endpoint);
        note(
            "url",
            a.address == b.address && a.tls.is_some() == b.tls.is_some(),
        );
        let (user, password) = (
            |c: &crate::replica::Credentials| c.username.clone(),
            |c: &crate::replica::Credentials| c.password.clone(),
        );
        let (a_is, b_is) = (a.credentials.as_ref(), b.credentials.as_ref());
        note("username", a_is.and_then(user) == b_is.and_then(user));
        // Of the file's content, or of the url.
        note("password_file", a_is.map(password) == b_is.map(password));
        note("topology", of_a.kind == of_b.kind);
        note("address_map", of_a.address_map == of_b.address_map);
        note("shards", of_a.shards == of_b.shards);
        if let (Some(a), Some(b)) = (&a.tls, &b.tls) {
            note("tls", a == b);
        }
        note("rest", same_rest);
    }

    let (a, b) = (&old.policy, &new.policy);
    let (links_a, links_b) = (&old.upstream, &new.upstream);
    note("cluster.split", false, old.cluster == new.cluster);
    note("upstream.mode", false, links_a.mode == links_b.mode);
    let same = links_a.shared_links == links_b.shared_links;
    note("upstream.shared_links", false, same);
    note("upstream.reads", true, a.reads == b.reads);
    let same = a.heartbeat_interval == b.heartbeat_interval;
    note("detection.heartbeat_interval", true, same);
    let same = a.heartbeat_timeout == b.heartbeat_timeout;
    note("detection.heartbeat_timeout", true, same);
    note(
        "detection.probe_interval",
        true,
        a.probe_interval == b.probe_interval,
    );
    let same = links_a.connect_timeout == links_b.connect_timeout;
    note("detection.connect_timeout", false, same);
    let same = a.connect_failures == b.connect_failures;
    note("detection.connect_failures", true, same);
    note("detection.shard_grace", true, a.shard_grace == b.shard_grace);
    let same = links_a.response_timeout == links_b.response_timeout;
    note("detection.response_timeout", false, same);
    let same = old.detection.channel_prefix == new.detection.channel_prefix;
    note("detection.channel_prefix", false, same);
    note("failover.fence", true, a.fence == b.fence);
    let same = a.on_fence_timeout == b.on_fence_timeout;
    note("failover.on_fence_timeout", true, same);
    note("failover.dwell", true, a.dwell == b.dwell);
    note("failover.on_isolated", true, a.on_isolated == b.on_isolated);
    let same = a.on_shard_down == b.on_shard_down;
    note("failover.on_shard_down", true, same);
    note("failover.on_slow", true, a.on_slow == b.on_slow);
    note("failback.mode", true, a.failback == b.failback);
    note("failback.grace", true, a.grace == b.grace);
    note("failback.read_steps", true, a.read_steps == b.read_steps);
    note("failback.soak", true, a.soak == b.soak);
    let same = a.read_your_writes == b.read_your_writes;
    note("failback.read_your_writes", true, same);
    let same = a.latency_margin == b.latency_margin;
    note("failback.latency_margin", true, same);
    note("failback.lag_tolerance", true, a.lag_tolerance == b.lag_tolerance);

    let (a, b) = (&old.hold, &new.hold);
    note("hold.timeout", false, a.timeout == b.timeout);
    note("hold.max_commands", false, a.max_commands == b.max_commands);
    note("hold.max_bytes", false, a.max_bytes == b.max_bytes);

    let (a, b) = (&old.admin, &new.admin);
    note("admin.bind", false, a.bind == b.bind);
    note("admin.token_file", false, a.token == b.token);
    note("admin.state_file", false, a.state_file == b.state_file);

    note("log.format", false, old.log.format == new.log.format);
    note("log.level", true, old.log.level == new.log.level);
    found
}
