//! What the control plane counts: verdicts, heartbeats, probes, switches. Any thread may write; it is not a hot path.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use prometheus::{
    GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, core::Collector,
};

use crate::decision::{FailbackStep, Fault, Fitness, Health, ProbeKind, RestState, SwitchReason, Switched};
use crate::replica::{Replica, ReplicaId, ShardId};

/// Replication lag, from one data centre to across the world and into trouble.
const LAG: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
];
/// Probes: round trips.
const PROBE: &[f64] = &[
    0.000_25, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0,
];
/// Moving the traffic.
const SWITCH: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
/// Noticing: profiles aim at 1, 3 and 15 s.
const DETECTION: &[f64] = &[
    0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 10.0, 15.0, 20.0, 30.0,
];

/// `from` of the first route, which leaves no replica.
const NOWHERE: &str = "none";

/// The control plane's metrics.
#[derive(Debug)]
pub struct ControlMetrics {
    names: Vec<Arc<str>>,
    active: IntGaugeVec,
    read_share: GaugeVec,
    failback_steps: IntCounterVec,
    faults: IntGaugeVec,
    pinned: IntGaugeVec,
    health: IntGaugeVec,
    fitness: IntGaugeVec,
    shards: IntGaugeVec,
    link_up: IntGaugeVec,
    heartbeats_sent: IntCounterVec,
    heartbeats_received: IntCounterVec,
    replication_lag: HistogramVec,
    probe_duration: HistogramVec,
    probe_failures: IntCounterVec,
    rest_available: IntGaugeVec,
    rest_checks: IntCounterVec,
    switches: IntCounterVec,
    switch_duration: Histogram,
    fence_duration: Histogram,
    detection: Histogram,
    tilt: IntGauge,
    tilts: IntCounter,
    epoch: IntGauge,
    holding: IntGauge,
    config_reloads: IntCounterVec,
}

impl ControlMetrics {
    /// Registers everything in `registry`, with all label values that are known now at zero.
    pub(super) fn new(
        replicas: &[Replica],
        registry: &Registry,
    ) -> Result<ControlMetrics, prometheus::Error> {
        let r = registry;
        let metrics = ControlMetrics {
            active: gauges(
                r,
                "active",
                "1 for the replica that takes the writes.",
                &["replica"],
            )?,
            read_share: registered(
                r,
                GaugeVec::new(
                    opts(
                        "read_share",
                        "Share of the sessions, 0 to 1, whose reads go to a replica.",
                    ),
                    &["replica"],
                )?,
            )?,
            faults: gauges(
                r,
                "replication_faults",
                "Shards and links of a replica that are broken: echo, writes, isolated, outbound, inbound, link.",
                &["replica", "kind"],
            )?,
            failback_steps: counters(
                r,
                "failback_steps_total",
                "What failbacks came to: grace, reset, reads, rolled_back, writes, called_off, suspended.",
                &["step"],
            )?,
            pinned: gauges(
                r,
                "pinned",
                "1 for the replica that an operator pinned.",
                &["replica"],
            )?,
            health: gauges(
                r,
                "replica_health",
                "1 for the state that the evidence says a replica is in, 0 for the others.",
                &["replica", "state"],
            )?,
            fitness: gauges(
                r,
                "replica_fitness",
                "1 for what a replica may be used for, 0 for the other states.",
                &["replica", "state"],
            )?,
            shards: gauges(
                r,
                "replica_shards",
                "Shards that a replica is divided into, as far as is known.",
                &["replica"],
            )?,
            link_up: gauges(
                r,
                "link_up",
                "1 while all heartbeats published on a shard of `from` are heard in time on `to`.",
                &["from", "to", "shard"],
            )?,
            heartbeats_sent: counters(
                r,
                "heartbeats_sent_total",
                "Heartbeats that a replica accepted for publication.",
                &["replica"],
            )?,
            heartbeats_received: counters(
                r,
                "heartbeats_received_total",
                "Heartbeats published on `from` and heard on `to`, late ones too.",
                &["from", "to", "shard"],
            )?,
            replication_lag: histograms(
                r,
                "replication_lag_seconds",
                "Age of heartbeats published on `from` when they were heard on `to`.",
                &["from", "to", "shard"],
                LAG,
            )?,
            probe_duration: histograms(
                r,
                "probe_duration_seconds",
                "Round-trip time of probes that were answered well.",
                &["replica", "probe"],
                PROBE,
            )?,
            probe_failures: counters(
                r,
                "probe_failures_total",
                "Probes that were refused, broken, out of time or answered with an error.",
                &["replica", "probe"],
            )?,
            rest_available: gauges(
                r,
                "rest_available",
                "1 while the REST API of the replica's cluster says that it is available; only for replicas with that check.",
                &["replica"],
            )?,
            rest_checks: counters(
                r,
                "rest_checks_total",
                "Times that the REST API of the replica's cluster was asked, by what came of it.",
                &["replica", "result"],
            )?,
            switches: counters(
                r,
                "switches_total",
                "Changes of the active replica, by the rule that made them.",
                &["from", "to", "reason"],
            )?,
            switch_duration: histogram(
                r,
                "switch_duration_seconds",
                "From the verdict or the operator's word to the new route, the first route left out.",
                SWITCH,
            )?,
            fence_duration: histogram(
                r,
                "fence_duration_seconds",
                "From the end of the drain to the fence's arrival, in planned moves.",
                SWITCH,
            )?,
            detection: histogram(
                r,
                "detection_seconds",
                "From the last moment a failed active replica was known well to the verdict.",
                DETECTION,
            )?,
            tilt: registered(
                r,
                IntGauge::with_opts(opts(
                    "tilt",
                    "1 while the sidecar itself stalled: it observes but does not act.",
                ))?,
            )?,
            tilts: registered(
                r,
                IntCounter::with_opts(opts("tilts_total", "Times that the sidecar itself stalled."))?,
            )?,
            epoch: registered(
                r,
                IntGauge::with_opts(opts(
                    "route_epoch",
                    "Epoch of the newest route: grows by one at each change.",
                ))?,
            )?,
            holding: registered(
                r,
                IntGauge::with_opts(opts("route_holding", "1 while the route makes commands wait."))?,
            )?,
            config_reloads: counters(
                r,
                "config_reloads_total",
                "Reloads of the configuration, by what became of them: applied or refused.",
                &["result"],
            )?,
            names: replicas.iter().map(|replica| replica.name.clone()).collect(),
        };
        metrics.start_at_zero();
        for replica in replicas.iter().filter(|replica| replica.rest.is_some()) {
            metrics.rest_available.with_label_values(&[&*replica.name]);
            for result in RestState::ALL {
                let labels = [&*replica.name, result.word()];
                metrics.rest_checks.with_label_values(&labels);
            }
        }
        Ok(metrics)
    }

    fn start_at_zero(&self) {
        let shard = ShardId::ONLY.to_string();
        let startup = SwitchReason::Startup.word();
        for step in FailbackStep::ALL {
            self.failback_steps.with_label_values(&[step.word()]);
        }
        for applied in [true, false] {
            self.config_reloads.with_label_values(&[reload_word(applied)]);
        }
        for (index, to) in self.names.iter().enumerate() {
            let to = to.as_ref();
            self.active.with_label_values(&[to]);
            self.pinned.with_label_values(&[to]);
            self.read_share.with_label_values(&[to]);
            for kind in Fault::KINDS {
                self.faults.with_label_values(&[to, kind]);
            }
            self.heartbeats_sent.with_label_values(&[to]);
            self.shards.with_label_values(&[to]);
            self.switches.with_label_values(&[NOWHERE, to, startup]);
            for probe in [ProbeKind::Ping, ProbeKind::Write] {
                self.probe_duration.with_label_values(&[to, probe_word(probe)]);
                self.probe_failures.with_label_values(&[to, probe_word(probe)]);
            }
            let id = ReplicaId(u8::try_from(index).unwrap_or(u8::MAX));
            self.health(id, Health::Unknown);
            self.fitness(id, Fitness::Unknown);
            for from in &self.names {
                let link = [from.as_ref(), to, shard.as_str()];
                self.link_up.with_label_values(&link);
                self.heartbeats_received.with_label_values(&link);
                self.replication_lag.with_label_values(&link);
                let reasons = SwitchReason::ALL
                    .iter()
                    .filter(|&&reason| reason != SwitchReason::Startup);
                for reason in reasons.filter(|_| from.as_ref() != to) {
                    self.switches
                        .with_label_values(&[from.as_ref(), to, reason.word()]);
                }
            }
        }
    }

    fn name(&self, replica: ReplicaId) -> &str {
        self.names.get(replica.index()).map_or("unknown", AsRef::as_ref)
    }

    /// `replica` takes the writes now.
    pub fn active(&self, replica: ReplicaId) {
        one_of(
            &self.active,
            self.names.iter().map(AsRef::as_ref),
            self.name(replica),
        );
    }

    /// Something of replication broke, or is whole again.
    pub fn fault(&self, fault: Fault, on: bool) {
        let broken = self
            .faults
            .with_label_values(&[self.name(fault.replica()), fault.kind()]);
        if on {
            broken.inc();
        } else {
            broken.dec();
        }
    }

    /// A failback has come to this.
    pub fn failback(&self, step: FailbackStep) {
        self.failback_steps.with_label_values(&[step.word()]).inc();
    }

    /// `replica` is pinned now; `None`: no replica is.
    pub fn pinned(&self, replica: Option<ReplicaId>) {
        let pinned = replica.map_or("", |replica| self.name(replica));
        one_of(&self.pinned, self.names.iter().map(AsRef::as_ref), pinned);
    }

    /// `replica` is in `state` now.
    pub fn health(&self, replica: ReplicaId, state: Health) {
        let replica = self.name(replica);
        for candidate in Health::ALL {
            let cell = self.health.with_label_values(&[replica, candidate.word()]);
            cell.set(i64::from(*candidate == state));
        }
    }

    /// `replica` is in `state` now.
    pub fn fitness(&self, replica: ReplicaId, state: Fitness) {
        let replica = self.name(replica);
        for candidate in Fitness::ALL {
            let cell = self.fitness.with_label_values(&[replica, candidate.word()]);
            cell.set(i64::from(*candidate == state));
        }
    }

    /// `replica` has so many shards now.
    pub fn shards(&self, replica: ReplicaId, count: usize) {
        let gauge = self.shards.with_label_values(&[self.name(replica)]);
        gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// The links are these now, and no others: from, to, shard, up. One that is named several times, for the parts of a
    /// shard, is up when all of them are.
    pub fn links(&self, links: impl Iterator<Item = (ReplicaId, ReplicaId, ShardId, bool)>) {
        let mut whole: HashMap<(ReplicaId, ReplicaId, ShardId), bool> = HashMap::new();
        for (from, to, shard, up) in links {
            *whole.entry((from, to, shard)).or_insert(true) &= up;
        }
        self.link_up.reset();
        for ((from, to, shard), up) in whole {
            let labels = [self.name(from), self.name(to), &shard.to_string()];
            self.link_up.with_label_values(&labels).set(i64::from(up));
        }
    }

    /// `replica` accepted a heartbeat for publication.
    pub fn heartbeat_sent(&self, replica: ReplicaId) {
        self.heartbeats_sent
            .with_label_values(&[self.name(replica)])
            .inc();
    }

    /// A heartbeat published on `from` was heard on `to`, `age` after it was sent.
    pub fn heartbeat_heard(&self, from: ReplicaId, to: ReplicaId, shard: ShardId, age: Duration) {
        let labels = [self.name(from), self.name(to), &shard.to_string()];
        self.heartbeats_received.with_label_values(&labels).inc();
        self.replication_lag
            .with_label_values(&labels)
            .observe(age.as_secs_f64());
    }

    /// A probe was answered well after `took`.
    pub fn probe(&self, replica: ReplicaId, kind: ProbeKind, took: Duration) {
        let labels = [self.name(replica), probe_word(kind)];
        self.probe_duration
            .with_label_values(&labels)
            .observe(took.as_secs_f64());
    }

    /// A probe failed.
    pub fn probe_failed(&self, replica: ReplicaId, kind: ProbeKind) {
        self.probe_failures
            .with_label_values(&[self.name(replica), probe_word(kind)])
            .inc();
    }

    /// A REST check gave `result`.
    pub fn rest_check(&self, replica: ReplicaId, result: RestState) {
        self.rest_checks
            .with_label_values(&[self.name(replica), result.word()])
            .inc();
    }

    /// What the REST check of `replica` says now.
    pub fn rest(&self, replica: ReplicaId, state: RestState) {
        self.rest_available
            .with_label_values(&[self.name(replica)])
            .set(i64::from(state == RestState::Available));
    }

    /// The active replica changed: counts the switch, and its durations where they mean something.
    pub fn switched(&self, switched: &Switched) {
        let from = switched.from.map_or(NOWHERE, |from| self.name(from));
        let labels = [from, self.name(switched.to), switched.reason.word()];
        self.switches.with_label_values(&labels).inc();
        if switched.from.is_some() {
            self.switch_duration.observe(switched.switch.as_secs_f64());
            // Zero is the engine's word for «planned»: nothing was detected.
            if !switched.detect.is_zero() {
                self.detection.observe(switched.detect.as_secs_f64());
            }
        }
        if let Some(fence) = switched.fence {
            self.fence_duration.observe(fence.as_secs_f64());
        }
    }

    /// The sidecar itself stalled (`on`), or its evidence is fresh again. Each beginning is counted once.
    pub fn tilt(&self, on: bool) {
        if on && self.tilt.get() == 0 {
            self.tilts.inc();
        }
        self.tilt.set(i64::from(on));
    }

    /// The configuration was loaded anew, and taken over (`applied`) or refused.
    pub fn config_reloaded(&self, applied: bool) {
        self.config_reloads
            .with_label_values(&[reload_word(applied)])
            .inc();
    }

    /// The newest route.
    pub fn route(&self, epoch: u64, read: &[(ReplicaId, u8)], holding: bool) {
        for (index, name) in self.names.iter().enumerate() {
            let share = read.iter().find(|(replica, _)| replica.index() == index);
            let percent = share.map_or(0, |(_, percent)| *percent);
            self.read_share
                .with_label_values(&[name.as_ref()])
                .set(f64::from(percent) / 100.0);
        }
        self.epoch.set(i64::try_from(epoch).unwrap_or(i64::MAX));
        self.holding.set(i64::from(holding));
    }
}

fn reload_word(applied: bool) -> &'static str {
    if applied { "applied" } else { "refused" }
}

fn probe_word(kind: ProbeKind) -> &'static str {
    match kind {
        ProbeKind::Ping => "ping",
        ProbeKind::Write => "write",
    }
}

/// 1 for the chosen one, 0 for the others.
fn one_of<'a>(cells: &IntGaugeVec, all: impl Iterator<Item = &'a str>, chosen: &str) {
    for name in all {
        cells.with_label_values(&[name]).set(i64::from(name == chosen));
    }
}

fn opts(name: &str, help: &str) -> Opts {
    Opts::new(name, help).namespace(super::NAMESPACE)
}

fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn gauges(r: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
    registered(r, IntGaugeVec::new(opts(name, help), labels)?)
}

fn counters(
    r: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    registered(r, IntCounterVec::new(opts(name, help), labels)?)
}

fn histogram(r: &Registry, name: &str, help: &str, bounds: &[f64]) -> Result<Histogram, prometheus::Error> {
    let opts = HistogramOpts::from(opts(name, help)).buckets(bounds.to_vec());
    registered(r, Histogram::with_opts(opts)?)
}

fn histograms(
    r: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
    bounds: &[f64],
) -> Result<HistogramVec, prometheus::Error> {
    let opts = HistogramOpts::from(opts(name, help)).buckets(bounds.to_vec());
    registered(r, HistogramVec::new(opts, labels)?)
}
