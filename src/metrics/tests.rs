use std::sync::Arc;
use std::time::Duration;

use super::*;
use crate::decision::{Fitness, Health, ProbeKind, RestState, SwitchReason, Switched};
use crate::replica::{Address, Database, Endpoint, ReplicaId, Rest, ShardId, Topology};

fn replica(id: u8, name: &str) -> Replica {
    Replica {
        id: ReplicaId(id),
        name: Arc::from(name),
        weight: 100 - u32::from(id),
        topology: Topology::default(),
        endpoint: Arc::new(Endpoint {
            address: Address::Tcp {
                host: "127.0.0.1".into(),
                port: 6379,
            },
            tls: None,
            credentials: None,
        }),
        rest: None,
    }
}

fn two(workers: usize) -> Arc<Metrics> {
    Metrics::new(&[replica(0, "local"), replica(1, "remote")], workers).unwrap()
}

const LOCAL: ReplicaId = ReplicaId(0);
const REMOTE: ReplicaId = ReplicaId(1);

/// A cluster that is asked about a replica.
fn rest() -> Arc<Rest> {
    Arc::new(Rest {
        endpoint: replica(0, "").endpoint,
        database: Database::Auto,
        local: false,
        lag_tolerance: Duration::from_millis(100),
        interval: Duration::from_secs(5),
    })
}

#[test]
fn a_rest_check_is_counted_where_there_is_one() {
    let with = Replica {
        rest: Some(rest()),
        ..replica(1, "remote")
    };
    let metrics = Metrics::new(&[replica(0, "local"), with], 1).unwrap();
    let text = metrics.render();
    for result in ["unknown", "available", "unavailable"] {
        let series = format!("pulsegate_rest_checks_total{{replica=\"remote\",result=\"{result}\"}}");
        assert_eq!(value(&text, &series), 0.0);
    }
    assert_eq!(value(&text, "pulsegate_rest_available{replica=\"remote\"}"), 0.0);
    let of_local = |line: &str| line.starts_with("pulsegate_rest") && line.contains("\"local\"");
    assert!(!text.lines().any(of_local), "{text}");
    metrics.control.rest_check(REMOTE, RestState::Available);
    metrics.control.rest(REMOTE, RestState::Available);
    let text = metrics.render();
    assert_eq!(value(&text, "pulsegate_rest_available{replica=\"remote\"}"), 1.0);
    let series = "pulsegate_rest_checks_total{replica=\"remote\",result=\"available\"}";
    assert_eq!(value(&text, series), 1.0);
    metrics.control.rest(REMOTE, RestState::Unavailable);
    assert_eq!(
        value(&metrics.render(), "pulsegate_rest_available{replica=\"remote\"}"),
        0.0
    );
}

/// The value of the one line that begins with `series`.
#[track_caller]
fn value(text: &str, series: &str) -> f64 {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in:\n{text}"))
        .parse()
        .unwrap()
}

#[test]
fn everything_known_at_start_is_there_at_zero() {
    let text = two(1).render();
    for line in text.lines().filter(|line| line.starts_with("pulsegate_")) {
        let (series, value) = line.rsplit_once(' ').unwrap();
        let one = series.starts_with("pulsegate_build_info") || series.contains("state=\"unknown\"");
        assert_eq!(value, if one { "1" } else { "0" }, "{series}");
    }
    // One series for each family and kind of label in DESIGN.md's list.
    for series in [
        "pulsegate_active{replica=\"remote\"}",
        "pulsegate_replica_health{replica=\"local\",state=\"down\"}",
        "pulsegate_replica_fitness{replica=\"remote\",state=\"stale\"}",
        "pulsegate_heartbeats_sent_total{replica=\"local\"}",
        "pulsegate_heartbeats_received_total{from=\"local\",shard=\"0\",to=\"remote\"}",
        "pulsegate_replication_lag_seconds_count{from=\"local\",shard=\"0\",to=\"local\"}",
        "pulsegate_link_up{from=\"remote\",shard=\"0\",to=\"local\"}",
        "pulsegate_probe_duration_seconds_count{probe=\"write\",replica=\"local\"}",
        "pulsegate_probe_failures_total{probe=\"ping\",replica=\"local\"}",
        "pulsegate_switches_total{from=\"local\",reason=\"silent\",to=\"remote\"}",
        "pulsegate_switches_total{from=\"none\",reason=\"startup\",to=\"local\"}",
        "pulsegate_switch_duration_seconds_count",
        "pulsegate_detection_seconds_count",
        "pulsegate_hold_commands",
        "pulsegate_hold_bytes",
        "pulsegate_hold_started_total",
        "pulsegate_hold_ended_total{reason=\"overflow\"}",
        "pulsegate_hold_duration_seconds_count",
        "pulsegate_sessions{kind=\"dedicated\"}",
        "pulsegate_commands_total{class=\"read\",replica=\"remote\"}",
        "pulsegate_command_duration_seconds_count{replica=\"local\"}",
        "pulsegate_replies_error_total{replica=\"local\",code=\"wrongtype\"}",
        "pulsegate_commands_unknown_outcome_total",
        "pulsegate_commands_retried_total",
        "pulsegate_commands_unavailable_total",
        "pulsegate_upstream_connections{replica=\"local\",kind=\"shared\"}",
        "pulsegate_upstream_connects_total{replica=\"local\",result=\"refused\"}",
        "pulsegate_bytes_total{direction=\"in\"}",
        "pulsegate_clients_disconnected_total{reason=\"output_limit\"}",
    ] {
        assert_eq!(value(&text, series), 0.0, "{series}");
    }
    let switches = text
        .lines()
        .filter(|line| line.starts_with("pulsegate_switches_total{"));
    // Every reason but the first route's for each ordered pair, and the first route for each replica.
    assert_eq!(switches.count(), 2 * (SwitchReason::ALL.len() - 1) + 2);
    assert!(value(&text, "process_resident_memory_bytes") > 0.0);
}

#[test]
fn workers_are_added_up() {
    let metrics = two(3);
    for index in 0..3 {
        let worker = metrics.worker(index);
        worker.commands[Class::Write][REMOTE].add(10);
        worker.commands[Class::Read][LOCAL].inc();
        worker.bytes_in.add(1 << 40);
        worker.sessions[SessionKind::Dedicated].add(5);
        worker.sessions[SessionKind::Dedicated].add(-2);
        worker.hold_commands.set(7);
        worker.replies_error[LOCAL][ErrorCode::of(b"OOM command not allowed")].inc();
        worker.upstream_connects[REMOTE][ConnectResult::Tls].add(2);
        worker.command_duration[LOCAL].observe(Duration::from_millis(1));
        worker.command_duration[LOCAL].observe(Duration::from_secs(60));
    }
    let text = metrics.render();
    assert_eq!(
        value(
            &text,
            "pulsegate_commands_total{class=\"write\",replica=\"remote\"}"
        ),
        30.0
    );
    assert_eq!(
        value(
            &text,
            "pulsegate_commands_total{class=\"read\",replica=\"local\"}"
        ),
        3.0
    );
    assert_eq!(
        value(
            &text,
            "pulsegate_commands_total{class=\"read\",replica=\"remote\"}"
        ),
        0.0
    );
    assert_eq!(
        value(&text, "pulsegate_bytes_total{direction=\"in\"}"),
        3.0 * f64::from(1 << 20) * f64::from(1 << 20)
    );
    assert_eq!(value(&text, "pulsegate_sessions{kind=\"dedicated\"}"), 9.0);
    assert_eq!(value(&text, "pulsegate_hold_commands"), 21.0);
    assert_eq!(
        value(
            &text,
            "pulsegate_replies_error_total{replica=\"local\",code=\"oom\"}"
        ),
        3.0
    );
    assert_eq!(
        value(
            &text,
            "pulsegate_upstream_connects_total{replica=\"remote\",result=\"tls\"}"
        ),
        6.0
    );
    let bucket = |le: &str| {
        value(
            &text,
            &format!("pulsegate_command_duration_seconds_bucket{{replica=\"local\",le=\"{le}\"}}"),
        )
    };
    // Bounds are inclusive, and the longest observations are only in the last bucket.
    assert_eq!(
        (bucket("0.0005"), bucket("0.001"), bucket("10"), bucket("+Inf")),
        (0.0, 3.0, 3.0, 6.0)
    );
    assert_eq!(
        value(
            &text,
            "pulsegate_command_duration_seconds_count{replica=\"local\"}"
        ),
        6.0
    );
    let sum = value(&text, "pulsegate_command_duration_seconds_sum{replica=\"local\"}");
    assert!((sum - 180.003).abs() < 1e-6, "{sum}");
}

#[test]
fn control_says_which_one_it_is() {
    let metrics = two(1);
    let control = &metrics.control;
    control.active(LOCAL);
    control.active(REMOTE);
    control.health(LOCAL, Health::Suspect);
    control.health(LOCAL, Health::Down);
    control.fitness(REMOTE, Fitness::InSync);
    control.pinned(Some(LOCAL));
    let shard = |n| (LOCAL, REMOTE, ShardId(n));
    let links = |links: &[((ReplicaId, ReplicaId, ShardId), bool)]| {
        let links = links.iter().map(|&((from, to, shard), up)| (from, to, shard, up));
        control.links(links);
    };
    links(&[(shard(7), true)]);
    links(&[
        (shard(3), true),
        (shard(4), true),
        (shard(4), false),
        (shard(4), true),
    ]);
    control.heartbeat_sent(LOCAL);
    control.heartbeat_heard(LOCAL, REMOTE, ShardId(3), Duration::from_millis(40));
    control.probe(REMOTE, ProbeKind::Write, Duration::from_millis(2));
    control.probe_failed(LOCAL, ProbeKind::Ping);
    control.tilt(true);
    control.tilt(true);
    control.route(17, &[], true);
    let text = metrics.render();
    assert_eq!(value(&text, "pulsegate_active{replica=\"local\"}"), 0.0);
    assert_eq!(value(&text, "pulsegate_active{replica=\"remote\"}"), 1.0);
    for state in Health::ALL {
        let series = format!("pulsegate_replica_health{{replica=\"local\",state=\"{state}\"}}");
        assert_eq!(
            value(&text, &series),
            f64::from(*state == Health::Down),
            "{series}"
        );
    }
    assert_eq!(
        value(
            &text,
            "pulsegate_replica_fitness{replica=\"remote\",state=\"in_sync\"}"
        ),
        1.0
    );
    assert_eq!(
        value(
            &text,
            "pulsegate_replica_fitness{replica=\"remote\",state=\"unknown\"}"
        ),
        0.0
    );
    assert_eq!(value(&text, "pulsegate_pinned{replica=\"local\"}"), 1.0);
    let link = "{from=\"local\",shard=\"3\",to=\"remote\"}";
    assert_eq!(value(&text, &format!("pulsegate_link_up{link}")), 1.0);
    let part = "pulsegate_link_up{from=\"local\",shard=\"4\",to=\"remote\"}";
    assert_eq!(value(&text, part), 0.0, "a part of it is down");
    assert!(!text.contains("shard=\"7\""), "it is gone");
    assert_eq!(
        value(&text, &format!("pulsegate_heartbeats_received_total{link}")),
        1.0
    );
    assert_eq!(
        value(&text, &format!("pulsegate_replication_lag_seconds_sum{link}")),
        0.04
    );
    assert_eq!(
        value(&text, "pulsegate_heartbeats_sent_total{replica=\"local\"}"),
        1.0
    );
    assert_eq!(
        value(
            &text,
            "pulsegate_probe_duration_seconds_sum{probe=\"write\",replica=\"remote\"}"
        ),
        0.002
    );
    assert_eq!(
        value(
            &text,
            "pulsegate_probe_failures_total{probe=\"ping\",replica=\"local\"}"
        ),
        1.0
    );
    assert_eq!(
        (
            value(&text, "pulsegate_tilt"),
            value(&text, "pulsegate_tilts_total")
        ),
        (1.0, 1.0)
    );
    assert_eq!(
        (
            value(&text, "pulsegate_route_epoch"),
            value(&text, "pulsegate_route_holding")
        ),
        (17.0, 1.0)
    );

    control.pinned(None);
    control.tilt(false);
    control.tilt(true);
    let text = metrics.render();
    assert_eq!(value(&text, "pulsegate_pinned{replica=\"local\"}"), 0.0);
    assert_eq!(value(&text, "pulsegate_tilts_total"), 2.0);
}

#[test]
fn switches_are_counted_with_their_durations() {
    let metrics = two(1);
    let switched = |from, to, reason, detect, fence| Switched {
        epoch: 1,
        from,
        to,
        reason,
        why: "because".into(),
        detect: Duration::from_millis(detect),
        fence,
        switch: Duration::from_millis(5),
    };
    let fence = Some(Duration::from_millis(3));
    metrics
        .control
        .switched(&switched(None, LOCAL, SwitchReason::Startup, 0, None));
    metrics
        .control
        .switched(&switched(Some(LOCAL), REMOTE, SwitchReason::Silent, 2_000, None));
    metrics
        .control
        .switched(&switched(Some(REMOTE), LOCAL, SwitchReason::Failback, 0, fence));
    let text = metrics.render();
    let count = |from: &str, reason: &str, to: &str| {
        value(
            &text,
            &format!("pulsegate_switches_total{{from=\"{from}\",reason=\"{reason}\",to=\"{to}\"}}"),
        )
    };
    assert_eq!(count("none", "startup", "local"), 1.0);
    assert_eq!(count("local", "silent", "remote"), 1.0);
    assert_eq!(count("remote", "failback", "local"), 1.0);
    assert_eq!(value(&text, "pulsegate_detection_seconds_count"), 1.0);
    assert_eq!(value(&text, "pulsegate_detection_seconds_sum"), 2.0);
    assert_eq!(value(&text, "pulsegate_switch_duration_seconds_count"), 2.0);
    assert_eq!(value(&text, "pulsegate_fence_duration_seconds_sum"), 0.003);
}

#[test]
fn error_codes_by_the_first_word() {
    for (error, code) in [
        (&b"-WRONGTYPE Operation against a key"[..], ErrorCode::WrongType),
        (b"WRONGTYPE Operation against a key", ErrorCode::WrongType),
        (b"-ERR unknown command\r\n", ErrorCode::Err),
        (b"-ERR", ErrorCode::Err),
        (b"-ERR\r\n", ErrorCode::Err),
        (b"-ERRATIC", ErrorCode::Other),
        (b"-ERR_2 x", ErrorCode::Other),
        (b"-MOVED 3999 127.0.0.1:6381", ErrorCode::Moved),
        (b"-ASK 3999 127.0.0.1:6381", ErrorCode::Ask),
        (b"-BUSYGROUP Consumer Group name already exists", ErrorCode::Other),
        (b"-BUSY Redis is busy", ErrorCode::Busy),
        (b"-OUTCOMEUNKNOWN sent, no reply", ErrorCode::OutcomeUnknown),
        (b"-err lower case is some script's own", ErrorCode::Other),
        (b"", ErrorCode::Other),
        (b"-", ErrorCode::Other),
    ] {
        assert_eq!(ErrorCode::of(error), code, "{}", String::from_utf8_lossy(error));
    }
    // Every word of the label is reached by its own error.
    for &code in ErrorCode::ALL {
        let error = format!("-{} x", code.word().to_uppercase());
        assert_eq!(ErrorCode::of(error.as_bytes()), code);
    }
}

#[test]
fn label_positions_are_places_in_all() {
    fn check<L: Label + PartialEq + std::fmt::Debug>() {
        for (place, &label) in L::ALL.iter().enumerate() {
            assert_eq!(label.position(), place, "{label:?}");
        }
    }
    check::<Class>();
    check::<SessionKind>();
    check::<LinkKind>();
    check::<RejectReason>();
    check::<DisconnectReason>();
    check::<ConnectResult>();
    check::<HoldEnd>();
    check::<ErrorCode>();
}
