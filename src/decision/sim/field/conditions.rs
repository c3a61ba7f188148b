//! The conditions of the long run: how far apart replicas are, what gets lost, what breaks and for how long.

use std::time::Duration;

use crate::decision::sim::rng::Rng;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Replication lag between two replicas, in milliseconds: log-normal with this median and width, cut off at these ends.
const LAG_MEDIAN: f64 = 20.0;
const LAG_SIGMA: f64 = 1.1;
const LAG: (f64, f64) = (1.0, 150.0);
/// How much one heartbeat's lag differs from the usual one: log-normal, with median 1.
const JITTER_SIGMA: f64 = 0.25;
/// Lost heartbeats in a million, by link: log-uniform.
const LOSS: (f64, f64) = (1_000.0, 10_000.0);
/// The mean time between two spikes of one link; how much they add in milliseconds (log-normal, cut off), and the mean
/// of how long.
pub(super) const SPIKE_EVERY: Duration = Duration::from_secs(15 * 60);
const SPIKE_MEDIAN: f64 = 80.0;
const SPIKE_SIGMA: f64 = 1.0;
const SPIKE_MOST: f64 = 600.0;
const SPIKE_LASTS: Duration = Duration::from_secs(3);
/// Faults come one at a time: so long after the one before, and then by chance with this mean.
pub(super) const QUIET_AT_LEAST: Duration = Duration::from_secs(150);
pub(super) const QUIET_THEN: Duration = Duration::from_secs(1050);
/// They last for so long.
pub(super) const REPAIR_AT_LEAST: Duration = ms(100);
pub(super) const REPAIR_THEN: Duration = Duration::from_secs(60);
/// What a link that lags adds.
pub(super) const LAGS_BY: Duration = ms(1000);
/// What a slow replica adds to a round trip, in hundredths of the monitor's wait for an answer.
const SLOWER: (u32, u32) = (50, 80);

/// The sidecar gets no processor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Hiccup {
    /// The mean time between two.
    pub(super) every: Duration,
    pub(super) from: Duration,
    pub(super) to: Duration,
}

pub(super) const HICCUPS: [Hiccup; 3] = [
    Hiccup {
        every: Duration::from_secs(60),
        from: ms(2),
        to: ms(80),
    },
    Hiccup {
        every: Duration::from_secs(3600),
        from: ms(80),
        to: ms(450),
    },
    Hiccup {
        every: Duration::from_secs(12 * 3600),
        from: ms(450),
        to: ms(20_000),
    },
];

/// What a world is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Shards by replica.
    pub(super) shards: &'static [u16],
    /// Applications use the active replica all the while.
    pub(super) traffic: bool,
}

impl Shape {
    /// Of ten worlds six have two replicas, three have three, and one has two that are sharded differently; every other
    /// one has traffic.
    pub(super) fn of(seed: u64) -> Shape {
        let shards: &[u16] = match seed % 10 {
            0..=5 => &[1, 1],
            6..=8 => &[1, 1, 1],
            _ => &[2, 3],
        };
        Shape {
            shards,
            traffic: (seed + seed / 10).is_multiple_of(2),
        }
    }
}

/// Between two by logarithm.
pub(super) fn within(rng: &mut Rng, from: Duration, to: Duration) -> Duration {
    let (from, to) = (from.as_secs_f64(), to.as_secs_f64());
    Duration::from_secs_f64(from * (to / from).powf(rng.unit()))
}

/// The usual lag between two replicas.
pub(super) fn lag(rng: &mut Rng) -> Duration {
    let lag = rng.log_normal(LAG_MEDIAN, LAG_SIGMA).clamp(LAG.0, LAG.1);
    Duration::from_secs_f64(lag / 1000.0)
}

/// Heartbeats in a million that a link loses.
pub(super) fn loss(rng: &mut Rng) -> usize {
    let (low, high) = LOSS;
    (low * (high / low).powf(rng.unit())) as usize
}

/// How much a spike adds, and for how long.
pub(super) fn spike(rng: &mut Rng) -> (Duration, Duration) {
    let extra = rng.log_normal(SPIKE_MEDIAN, SPIKE_SIGMA).min(SPIKE_MOST);
    (
        Duration::from_secs_f64(extra / 1000.0),
        rng.exponential(SPIKE_LASTS),
    )
}

/// What a slow replica adds to round trips, and how much of that is beyond what a packet sent again adds to the usual
/// ones, four times over. `near`: nothing gets lost on the way to it.
pub(super) fn slower(rng: &mut Rng, answer_timeout: Duration, near: bool) -> (Duration, Duration) {
    let (low, high) = SLOWER;
    let slower = rng.between(answer_timeout * low / 100, answer_timeout * high / 100);
    let again = if near { Duration::ZERO } else { ms(4 * 400) };
    (slower, slower.saturating_sub(again))
}

/// Factors of jitter to pick from: drawn once, since each heartbeat needs two.
pub(super) fn jitter() -> Vec<f32> {
    let mut rng = Rng::new(0);
    (0..4096)
        .map(|_| rng.log_normal(1.0, JITTER_SIGMA) as f32)
        .collect()
}

/// For the page.
pub(super) fn table() -> String {
    let minutes = |time: Duration| time.as_secs() / 60;
    let [short, long, stall] = HICCUPS;
    let hiccup = |it: Hiccup| {
        format!(
            "{} to {} ms every {} min on average",
            it.from.as_millis(),
            it.to.as_millis(),
            minutes(it.every)
        )
    };
    [
        "| condition | value |".to_owned(),
        "|---|---|".to_owned(),
        "| replicas | two in six worlds of ten, three in three, two of 2 and 3 shards in one; the sidecar beside the preferred one; traffic in half of them |".to_owned(),
        format!("| replication lag, by direction | log-normal, median {LAG_MEDIAN} ms, σ {LAG_SIGMA}, between {} and {} ms; each heartbeat's differs by a factor (log-normal, σ {JITTER_SIGMA}) |", LAG.0, LAG.1),
        format!("| lost heartbeats, by direction | log-uniform between {} and {} %; a probe's packet that is lost is sent again after 200 to 400 ms |", LOSS.0 / 1e4, LOSS.1 / 1e4),
        format!("| spikes, by direction | every {} min on average, for {} s on average: log-normal, median {SPIKE_MEDIAN} ms, σ {SPIKE_SIGMA}, at most {SPIKE_MOST} ms more |", minutes(SPIKE_EVERY), SPIKE_LASTS.as_secs()),
        format!("| the sidecar gets no processor | {}; {}; {} |", hiccup(short), hiccup(long), hiccup(stall)),
        format!("| time between faults | {} s, and then exponential, mean {} s (mean time between failures: {} min); one at a time |", QUIET_AT_LEAST.as_secs(), QUIET_THEN.as_secs(), minutes(QUIET_AT_LEAST + QUIET_THEN)),
        format!("| time to repair | {} s, and then exponential, mean {} s |", REPAIR_AT_LEAST.as_secs_f64(), REPAIR_THEN.as_secs()),
        format!("| a link that lags | {} ms more |", LAGS_BY.as_millis()),
        format!("| a slow replica | round trips longer by {} to {} % of the wait for an answer; only where that is far beyond four times the usual 99th percentile |", SLOWER.0, SLOWER.1),
        String::new(),
    ]
    .join("\n")
}
