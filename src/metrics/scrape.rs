//! Adds up what the workers counted, at each scrape.

use std::sync::Arc;

use prometheus::core::{Collector, Desc};
use prometheus::proto::{MetricFamily, MetricType};

use super::family::Spec;
use super::label::{By, Class, Label, LinkKind};
use super::worker::{Counter, Gauge, WorkerMetrics};
use crate::replica::ReplicaId;

const COMMANDS: Spec = Spec {
    name: "pulsegate_commands_total",
    help: "Commands sent to a replica, by class of command.",
    labels: &["class", "replica"],
};
const COMMAND_DURATION: Spec = Spec {
    name: "pulsegate_command_duration_seconds",
    help: "From a command's arrival to the end of its reply, blocking commands left out.",
    labels: &["replica"],
};
const BYTES: Spec = Spec {
    name: "pulsegate_bytes_total",
    help: "Bytes from (in) and to (out) applications, from (upstream_in) and to (upstream_out) replicas.",
    labels: &["direction"],
};
const SESSIONS: Spec = Spec {
    name: "pulsegate_sessions",
    help: "Connected applications, by how they use the replica.",
    labels: &["kind"],
};
const CONNECTIONS_ACCEPTED: Spec = Spec {
    name: "pulsegate_connections_accepted_total",
    help: "Application connections let in.",
    labels: &[],
};
const CONNECTIONS_REJECTED: Spec = Spec {
    name: "pulsegate_connections_rejected_total",
    help: "Application connections not let in.",
    labels: &["reason"],
};
const CLIENTS_DISCONNECTED: Spec = Spec {
    name: "pulsegate_clients_disconnected_total",
    help: "Application connections that ended, by cause.",
    labels: &["reason"],
};
const REPLIES_ERROR: Spec = Spec {
    name: "pulsegate_replies_error_total",
    help: "Error replies to applications, by the replica that the command was for and the error's first word.",
    labels: &["replica", "code"],
};
const UNKNOWN_OUTCOME: Spec = Spec {
    name: "pulsegate_commands_unknown_outcome_total",
    help: "Commands sent without a reply: answered with OUTCOMEUNKNOWN, they may or may not be applied.",
    labels: &[],
};
const RETRIED: Spec = Spec {
    name: "pulsegate_commands_retried_total",
    help: "Read-only commands sent a second time.",
    labels: &[],
};
const UNAVAILABLE: Spec = Spec {
    name: "pulsegate_commands_unavailable_total",
    help: "Commands that no replica took within the hold: answered with UNAVAILABLE, sent nowhere.",
    labels: &[],
};
const UPSTREAM_CONNECTIONS: Spec = Spec {
    name: "pulsegate_upstream_connections",
    help: "Open connections to a replica.",
    labels: &["replica", "kind"],
};
const UPSTREAM_CONNECTS: Spec = Spec {
    name: "pulsegate_upstream_connects_total",
    help: "Attempts to connect to a replica, by how they ended.",
    labels: &["replica", "result"],
};
const HOLD_COMMANDS: Spec = Spec {
    name: "pulsegate_hold_commands",
    help: "Commands held now.",
    labels: &[],
};
const HOLD_BYTES: Spec = Spec {
    name: "pulsegate_hold_bytes",
    help: "Bytes of the commands held now.",
    labels: &[],
};
const HOLD_STARTED: Spec = Spec {
    name: "pulsegate_hold_started_total",
    help: "Holds begun.",
    labels: &[],
};
const HOLD_ENDED: Spec = Spec {
    name: "pulsegate_hold_ended_total",
    help: "Holds ended, by cause.",
    labels: &["reason"],
};
const HOLD_DURATION: Spec = Spec {
    name: "pulsegate_hold_duration_seconds",
    help: "How long holds took.",
    labels: &[],
};

const ALL: &[&Spec] = &[
    &COMMANDS,
    &COMMAND_DURATION,
    &BYTES,
    &SESSIONS,
    &CONNECTIONS_ACCEPTED,
    &CONNECTIONS_REJECTED,
    &CLIENTS_DISCONNECTED,
    &REPLIES_ERROR,
    &UNKNOWN_OUTCOME,
    &RETRIED,
    &UNAVAILABLE,
    &UPSTREAM_CONNECTIONS,
    &UPSTREAM_CONNECTS,
    &HOLD_COMMANDS,
    &HOLD_BYTES,
    &HOLD_STARTED,
    &HOLD_ENDED,
    &HOLD_DURATION,
];

/// The [`Collector`] of all [`WorkerMetrics`].
pub(super) struct Workers {
    descs: Vec<Desc>,
    names: Vec<Arc<str>>,
    workers: Vec<Arc<WorkerMetrics>>,
}

impl Workers {
    pub(super) fn new(
        names: Vec<Arc<str>>,
        workers: Vec<Arc<WorkerMetrics>>,
    ) -> Result<Workers, prometheus::Error> {
        let descs = ALL.iter().map(|spec| spec.desc()).collect::<Result<_, _>>()?;
        Ok(Workers {
            descs,
            names,
            workers,
        })
    }

    #[expect(clippy::cast_precision_loss, reason = "samples are floats in the text format")]
    fn count(&self, of: impl Fn(&WorkerMetrics) -> &Counter) -> f64 {
        self.workers.iter().map(|worker| of(worker).get()).sum::<u64>() as f64
    }

    #[expect(clippy::cast_precision_loss, reason = "samples are floats in the text format")]
    fn level(&self, of: impl Fn(&WorkerMetrics) -> &Gauge) -> f64 {
        self.workers.iter().map(|worker| of(worker).get()).sum::<i64>() as f64
    }

    /// Every replica with its name.
    fn replicas(&self) -> impl Iterator<Item = (ReplicaId, &str)> {
        (0..=u8::MAX)
            .map(ReplicaId)
            .zip(self.names.iter().map(AsRef::as_ref))
    }

    fn single_counter(&self, spec: &Spec, of: impl Fn(&WorkerMetrics) -> &Counter) -> MetricFamily {
        spec.family(MetricType::COUNTER, vec![spec.counter(&[], self.count(of))])
    }

    fn single_gauge(&self, spec: &Spec, of: impl Fn(&WorkerMetrics) -> &Gauge) -> MetricFamily {
        spec.family(MetricType::GAUGE, vec![spec.gauge(&[], self.level(of))])
    }

    fn counter_by<L: Label>(
        &self,
        spec: &Spec,
        of: impl Fn(&WorkerMetrics) -> &By<L, Counter>,
    ) -> MetricFamily {
        let sample = |&label: &L| spec.counter(&[label.word()], self.count(|worker| &of(worker)[label]));
        spec.family(MetricType::COUNTER, L::ALL.iter().map(sample).collect())
    }

    fn gauge_by<L: Label>(&self, spec: &Spec, of: impl Fn(&WorkerMetrics) -> &By<L, Gauge>) -> MetricFamily {
        let sample = |&label: &L| spec.gauge(&[label.word()], self.level(|worker| &of(worker)[label]));
        spec.family(MetricType::GAUGE, L::ALL.iter().map(sample).collect())
    }

    fn commands(&self) -> MetricFamily {
        let mut samples = Vec::new();
        for &class in Class::ALL {
            for (replica, name) in self.replicas() {
                let count = self.count(|worker| &worker.commands[class][replica]);
                samples.push(COMMANDS.counter(&[class.word(), name], count));
            }
        }
        COMMANDS.family(MetricType::COUNTER, samples)
    }

    fn command_duration(&self) -> MetricFamily {
        let sample = |(replica, name): (ReplicaId, &str)| {
            let parts = self
                .workers
                .iter()
                .map(|worker| &worker.command_duration[replica]);
            COMMAND_DURATION.histogram(&[name], parts)
        };
        COMMAND_DURATION.family(MetricType::HISTOGRAM, self.replicas().map(sample).collect())
    }

    fn bytes(&self) -> MetricFamily {
        let samples = vec![
            BYTES.counter(&["in"], self.count(|worker| &worker.bytes_in)),
            BYTES.counter(&["out"], self.count(|worker| &worker.bytes_out)),
            BYTES.counter(&["upstream_in"], self.count(|worker| &worker.upstream_bytes_in)),
            BYTES.counter(&["upstream_out"], self.count(|worker| &worker.upstream_bytes_out)),
        ];
        BYTES.family(MetricType::COUNTER, samples)
    }

    fn counter_by_replica<L: Label>(
        &self,
        spec: &Spec,
        of: impl Fn(&WorkerMetrics, ReplicaId) -> &By<L, Counter>,
    ) -> MetricFamily {
        let mut samples = Vec::new();
        for (replica, name) in self.replicas() {
            for &label in L::ALL {
                let count = self.count(|worker| &of(worker, replica)[label]);
                samples.push(spec.counter(&[name, label.word()], count));
            }
        }
        spec.family(MetricType::COUNTER, samples)
    }

    fn upstream_connections(&self) -> MetricFamily {
        let mut samples = Vec::new();
        for (replica, name) in self.replicas() {
            for &kind in LinkKind::ALL {
                let open = self.level(|worker| &worker.upstream_connections[replica][kind]);
                samples.push(UPSTREAM_CONNECTIONS.gauge(&[name, kind.word()], open));
            }
        }
        UPSTREAM_CONNECTIONS.family(MetricType::GAUGE, samples)
    }

    fn hold_duration(&self) -> MetricFamily {
        let parts = self.workers.iter().map(|worker| &worker.hold_duration);
        HOLD_DURATION.family(MetricType::HISTOGRAM, vec![HOLD_DURATION.histogram(&[], parts)])
    }
}

impl Collector for Workers {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        vec![
            self.commands(),
            self.command_duration(),
            self.bytes(),
            self.gauge_by(&SESSIONS, |worker| &worker.sessions),
            self.single_counter(&CONNECTIONS_ACCEPTED, |worker| &worker.connections_accepted),
            self.counter_by(&CONNECTIONS_REJECTED, |worker| &worker.connections_rejected),
            self.counter_by(&CLIENTS_DISCONNECTED, |worker| &worker.clients_disconnected),
            self.counter_by_replica(&REPLIES_ERROR, |worker, replica| &worker.replies_error[replica]),
            self.single_counter(&UNKNOWN_OUTCOME, |worker| &worker.unknown_outcome),
            self.single_counter(&RETRIED, |worker| &worker.retried),
            self.single_counter(&UNAVAILABLE, |worker| &worker.unavailable),
            self.upstream_connections(),
            self.counter_by_replica(&UPSTREAM_CONNECTS, |worker, replica| {
                &worker.upstream_connects[replica]
            }),
            self.single_gauge(&HOLD_COMMANDS, |worker| &worker.hold_commands),
            self.single_gauge(&HOLD_BYTES, |worker| &worker.hold_bytes),
            self.single_counter(&HOLD_STARTED, |worker| &worker.hold_started),
            self.counter_by(&HOLD_ENDED, |worker| &worker.hold_ended),
            self.hold_duration(),
        ]
    }
}
