//! Events in words: one sentence for people, the fields for machines, and how loud to say it.

use serde_json::{Value, json};

use super::view::{Names, fault_status, switch_status};
use crate::decision::{Event, FailbackStep, Fitness, Health, RestState, RouteOrder, SwitchReason};
use crate::replica::{Layout, ReplicaId, slot_words};

/// How loud an event is in the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Severity {
    /// For those who look closely.
    Debug,
    /// As it should be.
    Info,
    /// Somebody may want to know.
    Warn,
}

/// One event, ready to be logged and streamed.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Report {
    pub(super) kind: &'static str,
    pub(super) severity: Severity,
    pub(super) message: String,
    pub(super) details: Value,
}

/// `at`: milliseconds since 1970.
pub(super) fn event(event: &Event, names: &Names, at: u64) -> Report {
    let warn_if = |bad: bool| if bad { Severity::Warn } else { Severity::Info };
    match event {
        Event::Health {
            replica,
            from,
            to,
            why,
        } => Report {
            kind: "health",
            severity: warn_if(matches!(to, Health::Down | Health::Suspect)),
            message: format!("{} is {to}, was {from}: {why}", names.of(*replica)),
            details: json!({
                "replica": names.of(*replica), "from": from.word(), "to": to.word(), "why": why,
            }),
        },
        Event::Fitness {
            replica,
            from,
            to,
            why,
        } => Report {
            kind: "fitness",
            severity: warn_if(matches!(
                to,
                Fitness::Lagging | Fitness::Isolated | Fitness::Stale
            )),
            message: format!("{} is {to}, was {from}: {why}", names.of(*replica)),
            details: json!({
                "replica": names.of(*replica), "from": from.word(), "to": to.word(), "why": why,
            }),
        },
        Event::Link {
            from,
            to,
            shard,
            to_shard,
            up,
            why,
        } => Report {
            kind: "link",
            severity: warn_if(!up),
            message: format!(
                "link {} → {} (shard {shard}) is {}: {why}",
                names.of(*from),
                names.of(*to),
                if *up { "up" } else { "down" }
            ),
            details: json!({
                "from": names.of(*from), "to": names.of(*to), "shard": shard.0, "to_shard": to_shard.0, "up": up,
                "why": why,
            }),
        },
        Event::Rest {
            replica,
            from,
            to,
            why,
        } => {
            let was = from.map_or(String::new(), |from| format!(", was {from}"));
            Report {
                kind: "rest",
                severity: warn_if(*to != RestState::Available),
                message: format!("REST check of {}: {to}{was}: {why}", names.of(*replica)),
                details: json!({
                    "replica": names.of(*replica), "from": from.map(RestState::word), "to": to.word(), "why": why,
                }),
            }
        }
        Event::Fault { fault, on, words } => Report {
            kind: "fault",
            severity: warn_if(*on),
            message: if *on {
                words.clone()
            } else {
                format!("no longer so: {words}")
            },
            details: {
                let mut details = to_value(&fault_status(*fault, names, at, words));
                details["on"] = json!(on);
                details
            },
        },
        Event::Switched(switched) => {
            let planned = matches!(
                switched.reason,
                SwitchReason::Startup | SwitchReason::Operator | SwitchReason::Pin | SwitchReason::Failback
            );
            let to = names.of(switched.to);
            let (reason, why) = (switched.reason, &switched.why);
            Report {
                kind: "switch",
                severity: warn_if(!planned),
                message: match switched.from {
                    Some(from) => format!(
                        "{to} is active ({reason}), {} was: {why}; detected in {:?}, switched in {:?}",
                        names.of(from),
                        switched.detect,
                        switched.switch
                    ),
                    None => format!("{to} is active ({reason}): {why}"),
                },
                details: to_value(&switch_status(switched, names, at)),
            }
        }
        Event::Move { from, to, what } => Report {
            kind: "move",
            severity: Severity::Info,
            message: format!("move from {} to {} {what}", names.of(*from), names.of(*to)),
            details: json!({ "from": names.of(*from), "to": names.of(*to), "what": what }),
        },
        Event::Failback { to, step, what } => Report {
            kind: "failback",
            severity: warn_if(matches!(step, FailbackStep::RolledBack | FailbackStep::CalledOff)),
            message: format!("failback to {}: {what}", names.of(*to)),
            details: json!({ "to": names.of(*to), "step": step.word(), "what": what }),
        },
        Event::Tilt { on, why } => Report {
            kind: "tilt",
            severity: warn_if(*on),
            message: if *on {
                format!("tilt, observing only: {why}")
            } else {
                format!("no longer in tilt: {why}")
            },
            details: json!({ "on": on, "why": why }),
        },
        Event::Pinned { replica } => Report {
            kind: "pin",
            severity: Severity::Info,
            message: match replica {
                Some(replica) => format!("pinned to {}", names.of(*replica)),
                None => "no longer pinned".to_owned(),
            },
            details: json!({ "replica": replica.map(|replica| names.of(replica)) }),
        },
    }
}

/// Shards that are named one by one.
const SHARDS_NAMED: usize = 8;

/// `replica` is divided otherwise than before.
pub(super) fn layout(replica: ReplicaId, before: &Layout, now: &Layout, names: &Names) -> Report {
    let name = names.of(replica);
    let count = |layout: &Layout| match layout.len() {
        1 => "1 shard".to_owned(),
        n => format!("{n} shards"),
    };
    let shards: Vec<(String, Option<String>)> = now
        .shards()
        .map(|(_, shard)| {
            let slots = slot_words(&shard.slots).to_string();
            (slots, shard.node.as_ref().map(ToString::to_string))
        })
        .collect();
    let named = shards.iter().take(SHARDS_NAMED).map(|(slots, node)| match node {
        Some(node) => format!("{slots} at {node}"),
        None => slots.clone(),
    });
    let mut named: Vec<String> = named.collect();
    if shards.len() > SHARDS_NAMED {
        named.push(format!("and {} more", shards.len() - SHARDS_NAMED));
    }
    let details = (0..)
        .zip(&shards)
        .map(|(id, (slots, node)): (u16, _)| json!({ "id": id, "slots": slots, "node": node }));
    Report {
        kind: "layout",
        severity: Severity::Info,
        message: format!(
            "{name} has {}, had {}: {}",
            count(now),
            count(before),
            named.join("; ")
        ),
        details: json!({ "replica": name, "shards": details.collect::<Vec<Value>>() }),
    }
}

pub(super) fn route(order: &RouteOrder, names: &Names) -> Report {
    let write = names.of(order.write);
    let everything_to = |(replica, percent): &(ReplicaId, u8)| *replica == order.write && *percent == 100;
    let reads: Vec<String> = order
        .read
        .iter()
        .map(|(replica, percent)| format!("{percent} % to {}", names.of(*replica)))
        .collect();
    let mut message = format!("route {}: writes to {write}", order.epoch);
    if order.read.iter().any(everything_to) {
        message.push_str(", reads too");
    } else {
        message.push_str(", reads ");
        message.push_str(&reads.join(" and "));
    }
    if order.holding {
        message.push_str(", holding");
    }
    let read: serde_json::Map<String, Value> = order
        .read
        .iter()
        .map(|(replica, percent)| (names.of(*replica).to_owned(), json!(percent)))
        .collect();
    Report {
        kind: "route",
        // What made the route is logged by itself, with its reason.
        severity: Severity::Debug,
        message,
        details: json!({
            "epoch": order.epoch, "active": write, "read": read, "holding": order.holding,
            "abandon_others": order.abandon_others,
        }),
    }
}

fn to_value(shape: &impl serde::Serialize) -> Value {
    // Plain structs of strings and numbers always serialize.
    serde_json::to_value(shape).unwrap_or(Value::Null)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::decision::Switched;

    fn names() -> Names {
        Names::new(["local", "remote"].into_iter().map(Arc::from))
    }

    fn switched(reason: SwitchReason) -> Event {
        Event::Switched(Switched {
            epoch: 4,
            from: Some(ReplicaId(0)),
            to: ReplicaId(1),
            reason,
            why: "3 refused connects".to_owned(),
            detect: Duration::from_millis(35),
            fence: None,
            switch: Duration::from_micros(1),
        })
    }

    #[test]
    fn a_forced_switch_is_louder_than_a_wished_one() {
        for reason in SwitchReason::ALL {
            let wished = ["startup", "failback", "operator", "pin"].contains(&reason.word());
            let report = event(&switched(*reason), &names(), 1);
            assert_eq!(report.severity == Severity::Info, wished, "{reason}");
        }
    }

    #[test]
    fn a_switch_says_all_it_knows() {
        let report = event(&switched(SwitchReason::Refused), &names(), 1_764_047_000_123);
        assert_eq!(
            report.message,
            "remote is active (refused), local was: 3 refused connects; detected in 35ms, switched in 1µs"
        );
        assert_eq!(
            report.details,
            json!({
                "epoch": 4, "from": "local", "to": "remote", "reason": "refused",
                "why": "3 refused connects", "at": 1_764_047_000_123_u64, "detect_ms": 35.0,
                "fence_ms": null, "switch_ms": 0.001,
            })
        );
    }

    #[test]
    fn a_layout_names_its_shards_and_their_nodes() {
        let node = |port| {
            Some(crate::replica::Address::Tcp {
                host: "10.0.0.1".to_owned(),
                port,
            })
        };
        let halves = Layout::even(2);
        let shards = halves.shards().zip([7001, 7002]);
        let shards = shards.map(|((_, shard), port)| crate::replica::Shard {
            node: node(port),
            ..shard.clone()
        });
        let halves = Layout::new(shards.collect());
        let report = layout(ReplicaId(1), &Layout::single(), &halves, &names());
        assert_eq!(
            report.message,
            "remote has 2 shards, had 1 shard: 0-8191 at 10.0.0.1:7001; 8192-16383 at 10.0.0.1:7002"
        );
        assert_eq!(
            report.details["shards"][1],
            json!({"id": 1, "slots": "8192-16383", "node": "10.0.0.1:7002"})
        );
        let many = layout(ReplicaId(0), &halves, &Layout::even(12), &names());
        assert!(
            many.message
                .starts_with("local has 12 shards, had 2 shards: 0-1364; "),
            "{}",
            many.message
        );
        assert!(many.message.ends_with("; and 4 more"), "{}", many.message);
    }

    #[test]
    fn a_rest_check_says_what_it_was_before_if_anything() {
        let rest = |from, to| Event::Rest {
            replica: ReplicaId(1),
            from,
            to,
            why: "503 no_quorum".to_owned(),
        };
        let first = event(&rest(None, RestState::Available), &names(), 1);
        assert_eq!(first.message, "REST check of remote: available: 503 no_quorum");
        assert_eq!((first.kind, first.severity), ("rest", Severity::Info));
        assert_eq!(first.details["from"], Value::Null);
        let then = event(
            &rest(Some(RestState::Available), RestState::Unavailable),
            &names(),
            1,
        );
        assert_eq!(
            then.message,
            "REST check of remote: unavailable, was available: 503 no_quorum"
        );
        assert_eq!(then.severity, Severity::Warn);
        assert_eq!(
            then.details,
            json!({"replica": "remote", "from": "available", "to": "unavailable", "why": "503 no_quorum"})
        );
    }

    #[test]
    fn a_staged_route_names_its_shares() {
        let mut order = RouteOrder {
            epoch: 9,
            write: ReplicaId(1),
            read: vec![(ReplicaId(1), 100)],
            read_your_writes: true,
            holding: false,
            abandon_others: true,
        };
        assert_eq!(
            route(&order, &names()).message,
            "route 9: writes to remote, reads too"
        );
        order.read = vec![(ReplicaId(0), 10), (ReplicaId(1), 90)];
        order.holding = true;
        let report = route(&order, &names());
        assert_eq!(
            report.message,
            "route 9: writes to remote, reads 10 % to local and 90 % to remote, holding"
        );
        assert_eq!(report.details["read"], json!({"local": 10, "remote": 90}));
    }
}
