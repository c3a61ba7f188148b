//! The data plane's counters: written by one worker thread, read by scrapes.
//!
//! A counter that only one thread writes needs no atomic read-modify-write: the writer loads what it stored last and
//! stores the sum, both relaxed, which costs as much as a plain integer. A scrape on the control thread reads a value
//! that is at most a moment old. Several writers would lose counts: each worker has a [`WorkerMetrics`] of its own and
//! `scrape` adds them up.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use super::label::{
    By, Class, ConnectResult, DisconnectReason, ErrorCode, HoldEnd, LinkKind, PerReplica, RejectReason,
    SessionKind,
};

/// Counts up. One thread writes.
#[derive(Default, Debug)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only from the one thread that owns the counter.
    pub fn add(&self, n: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Adds one. Only from the one thread that owns the counter.
    pub fn inc(&self) {
        self.add(1);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Goes up and down. One thread writes.
#[derive(Default, Debug)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Adds `n`, which may be negative. Only from the one thread that owns the gauge.
    pub fn add(&self, n: i64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(n), Relaxed);
    }

    /// Sets the value. Only from the one thread that owns the gauge.
    pub fn set(&self, value: i64) {
        self.0.store(value, Relaxed);
    }

    /// The value.
    pub fn get(&self) -> i64 {
        self.0.load(Relaxed)
    }
}

const fn micros(n: u64) -> u64 {
    n * 1_000
}

const fn millis(n: u64) -> u64 {
    n * 1_000_000
}

/// Upper bounds in nanoseconds for command latencies: 50 µs to 10 s.
pub(super) const LATENCY: &[u64] = &[
    micros(50),
    micros(100),
    micros(250),
    micros(500),
    millis(1),
    micros(2_500),
    millis(5),
    millis(10),
    millis(25),
    millis(50),
    millis(100),
    millis(250),
    millis(500),
    millis(1_000),
    millis(2_500),
    millis(5_000),
    millis(10_000),
];

/// Distribution of durations over fixed buckets. One thread writes.
#[derive(Debug)]
pub struct Histogram {
    /// Inclusive upper bounds in nanoseconds, ascending.
    bounds: &'static [u64],
    /// One for each bound, and one for all that is longer.
    buckets: Box<[Counter]>,
    /// Nanoseconds.
    sum: Counter,
}

impl Histogram {
    /// Buckets from 50 µs to 10 s.
    pub fn latency() -> Histogram {
        Histogram {
            bounds: LATENCY,
            buckets: (0..=LATENCY.len()).map(|_| Counter::default()).collect(),
            sum: Counter::default(),
        }
    }

    /// Counts `duration`. Only from the one thread that owns the histogram.
    pub fn observe(&self, duration: Duration) {
        self.observe_all(duration, 1);
    }

    /// Counts `duration` for each of `n`. Only from the one thread that owns the histogram.
    pub fn observe_all(&self, duration: Duration, n: u64) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let bucket = self.bounds.partition_point(|bound| *bound < nanos);
        self.buckets[bucket].add(n);
        self.sum.add(nanos.saturating_mul(n));
    }

    /// Inclusive upper bounds in nanoseconds; the last bucket has none.
    pub(super) fn bounds(&self) -> &'static [u64] {
        self.bounds
    }

    /// Counts by bucket, not cumulated; one more than there are bounds.
    pub(super) fn counts(&self) -> impl Iterator<Item = u64> {
        self.buckets.iter().map(Counter::get)
    }

    /// Nanoseconds of all observations.
    pub(super) fn sum(&self) -> u64 {
        self.sum.get()
    }
}

/// What one data-plane worker counts. The worker's thread is the only writer of every field.
#[derive(Debug)]
pub struct WorkerMetrics {
    /// Commands sent, by class and replica (`commands_total`).
    pub commands: By<Class, PerReplica<Counter>>,
    /// From a command's arrival to the last byte of its reply, by replica (`command_duration_seconds`).
    pub command_duration: PerReplica<Histogram>,
    /// Bytes read from applications (`bytes_total{direction="in"}`).
    pub bytes_in: Counter,
    /// Bytes written to applications (`bytes_total{direction="out"}`).
    pub bytes_out: Counter,
    /// Bytes read from replicas (`bytes_total{direction="upstream_in"}`).
    pub upstream_bytes_in: Counter,
    /// Bytes written to replicas (`bytes_total{direction="upstream_out"}`).
    pub upstream_bytes_out: Counter,
    /// Connected applications (`sessions`).
    pub sessions: By<SessionKind, Gauge>,
    /// Connections let in (`connections_accepted_total`).
    pub connections_accepted: Counter,
    /// Connections not let in (`connections_rejected_total`).
    pub connections_rejected: By<RejectReason, Counter>,
    /// Why connections of applications ended (`clients_disconnected_total`).
    pub clients_disconnected: By<DisconnectReason, Counter>,
    /// Error replies passed on or made up, by the replica that the command was for (`replies_error_total`).
    pub replies_error: PerReplica<By<ErrorCode, Counter>>,
    /// Commands answered with `-OUTCOMEUNKNOWN` (`commands_unknown_outcome_total`).
    pub unknown_outcome: Counter,
    /// Read-only commands sent a second time (`commands_retried_total`).
    pub retried: Counter,
    /// Commands answered with `-UNAVAILABLE` (`commands_unavailable_total`).
    pub unavailable: Counter,
    /// Open upstream connections (`upstream_connections`).
    pub upstream_connections: PerReplica<By<LinkKind, Gauge>>,
    /// Upstream connects, by how they ended (`upstream_connects_total`).
    pub upstream_connects: PerReplica<By<ConnectResult, Counter>>,
    /// Commands held now (`hold_commands`).
    pub hold_commands: Gauge,
    /// Bytes held now (`hold_bytes`).
    pub hold_bytes: Gauge,
    /// Holds begun (`hold_started_total`).
    pub hold_started: Counter,
    /// Holds ended (`hold_ended_total`).
    pub hold_ended: By<HoldEnd, Counter>,
    /// How long holds took (`hold_duration_seconds`).
    pub hold_duration: Histogram,
}

impl WorkerMetrics {
    /// All zero, for `replicas` replicas.
    pub(super) fn new(replicas: usize) -> WorkerMetrics {
        WorkerMetrics {
            commands: By::new(|| PerReplica::new(replicas, Counter::default)),
            command_duration: PerReplica::new(replicas, Histogram::latency),
            bytes_in: Counter::default(),
            bytes_out: Counter::default(),
            upstream_bytes_in: Counter::default(),
            upstream_bytes_out: Counter::default(),
            sessions: By::new(Gauge::default),
            connections_accepted: Counter::default(),
            connections_rejected: By::new(Counter::default),
            clients_disconnected: By::new(Counter::default),
            replies_error: PerReplica::new(replicas, || By::new(Counter::default)),
            unknown_outcome: Counter::default(),
            retried: Counter::default(),
            unavailable: Counter::default(),
            upstream_connections: PerReplica::new(replicas, || By::new(Gauge::default)),
            upstream_connects: PerReplica::new(replicas, || By::new(Counter::default)),
            hold_commands: Gauge::default(),
            hold_bytes: Gauge::default(),
            hold_started: Counter::default(),
            hold_ended: By::new(Counter::default),
            hold_duration: Histogram::latency(),
        }
    }
}
