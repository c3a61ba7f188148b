//! `pulsegate check`: every problem of a configuration, or what it means.

use std::fmt::Write as _;

use humantime::format_duration;

use super::{Failure, connect, print};
use crate::config::{self, Bind, Config, Loaded, LogFormat, Sources};
use crate::decision::{FailbackMode, OnFenceTimeout, OnIsolated};
use crate::replica::{Replica, Rest};

/// Checks, prints and, when `connect`, tries every replica.
pub(super) async fn check(sources: &Sources, connect: bool) -> Result<(), Failure> {
    let Loaded { config, warnings, .. } = config::load(sources)?;
    for warning in &warnings {
        super::warn(&warning.to_string());
    }
    print(summary(&config).trim_end())?;
    if connect {
        connect::prove_all(&config).await?;
    }
    Ok(())
}

/// The effective configuration in a few lines, without secrets.
fn summary(config: &Config) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write_summary(&mut out, config);
    out
}

fn write_summary(out: &mut String, config: &Config) -> std::fmt::Result {
    let binds: Vec<String> = config.listener.bind.iter().map(Bind::to_string).collect();
    writeln!(out, "configuration is good")?;
    writeln!(
        out,
        "listener   {}; at most {} clients, {}",
        binds.join(", "),
        config.listener.max_clients,
        match config.listener.workers {
            1 => "1 worker".to_owned(),
            workers => format!("{workers} workers"),
        }
    )?;
    let mut by_preference: Vec<&Replica> = config.replicas.iter().collect();
    by_preference.sort_by_key(|replica| (std::cmp::Reverse(replica.weight), replica.id));
    for (i, replica) in by_preference.into_iter().enumerate() {
        let preferred = if i == 0 { ", preferred" } else { "" };
        writeln!(
            out,
            "replica    {} at {}; weight {}{preferred}",
            replica.name,
            endpoint(replica),
            replica.weight
        )?;
        if let Some(rest) = &replica.rest {
            write_rest(out, rest)?;
        }
    }
    let policy = &config.policy;
    writeln!(
        out,
        "detection  heartbeats every {}, silent after {}, probes every {}; connect within {} ({} refusals are a \
         verdict), answer within {}; channels {}…",
        format_duration(policy.heartbeat_interval),
        format_duration(policy.heartbeat_timeout),
        format_duration(policy.probe_interval),
        format_duration(config.upstream.connect_timeout),
        policy.connect_failures,
        format_duration(config.upstream.response_timeout),
        config.detection.channel_prefix,
    )?;
    writeln!(
        out,
        "failover   fence within {}, else {}; {} between switches; when isolated {}",
        format_duration(policy.fence),
        match policy.on_fence_timeout {
            OnFenceTimeout::Abort => "abort",
            OnFenceTimeout::Proceed => "proceed",
        },
        format_duration(policy.dwell),
        match policy.on_isolated {
            OnIsolated::Stay => "stay",
            OnIsolated::Leave => "leave",
        },
    )?;
    writeln!(
        out,
        "failback   {} after {} of proof; lag up to {} is in sync",
        match policy.failback {
            FailbackMode::Staged => format!(
                "reads in steps of {:?} % for {}, then writes,",
                policy.read_steps,
                format_duration(policy.soak)
            ),
            FailbackMode::Immediate => "immediate".to_owned(),
            FailbackMode::Manual => "by hand,".to_owned(),
        },
        format_duration(policy.grace),
        format_duration(policy.lag_tolerance),
    )?;
    writeln!(
        out,
        "hold       {} for at most {} commands and {}",
        format_duration(config.hold.timeout),
        config.hold.max_commands,
        config::shown_size(u64::try_from(config.hold.max_bytes).unwrap_or(u64::MAX)),
    )?;
    let state = match &config.admin.state_file {
        Some(path) => format!("pins are kept in {}", path.display()),
        None => "pins do not survive a restart".to_owned(),
    };
    let token = if config.admin.token.is_some() {
        "verbs need the token"
    } else {
        "no token"
    };
    writeln!(out, "admin      http://{}; {token}; {state}", config.admin.bind)?;
    let format = match config.log.format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    writeln!(out, "log        {format}, {}", config.log.level)
}

fn write_rest(out: &mut String, rest: &Rest) -> std::fmt::Result {
    let user = rest.endpoint.credentials.as_ref();
    let user = user.and_then(|credentials| credentials.username.as_deref());
    writeln!(
        out,
        "  REST     {rest} as {}; database {}{}; lag up to {} is available; every {}",
        user.unwrap_or("nobody"),
        rest.database,
        if rest.local { ", this node only" } else { "" },
        format_duration(rest.lag_tolerance),
        format_duration(rest.interval),
    )
}

/// Where and as whom, never with which password.
pub(super) fn endpoint(replica: &Replica) -> String {
    let endpoint = &replica.endpoint;
    let mut text = match &endpoint.address {
        address @ crate::replica::Address::Unix(_) => address.to_string(),
        address if endpoint.tls.is_some() => format!("rediss://{address}"),
        address => format!("redis://{address}"),
    };
    if let Some(credentials) = &endpoint.credentials {
        let user = credentials.username.as_deref().unwrap_or("the default user");
        let _ = write!(text, " as {user}");
    }
    text
}
