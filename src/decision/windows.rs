//! The windows and counts that follow from the policy, each named once.

use std::time::Duration;

use super::policy::Policy;

/// Write probes that must fail in a row before a shard counts as not writable, and succeed before it does again.
pub(super) const WRITES_IN_A_ROW: u32 = 2;
/// PINGs answered with an error, without a good answer between, that make a replica failing.
pub(super) const REJECTIONS_IN_A_ROW: u32 = 3;
/// Soft passive evidence that must come together before it corroborates silence.
pub(super) const SOFT_TOGETHER: usize = 3;
/// Fresh heartbeats in a row that bring a broken link up again; over or under the tolerance that change `lagging`.
pub(super) const BEATS_IN_A_ROW: u32 = 2;
/// A link's own window is at least so many times its usual lag.
const MARGIN: u32 = 3;
/// And at most so many times the window of a quick one, so that a slow link's end is noticed too.
const MARGIN_CAP: u32 = 8;
/// The grace and the damping never grow beyond this many times their first length.
pub(super) const BACKOFF_CAP: u32 = 8;

/// Longest wait for the drain when the policy sets no fence.
const DRAIN_WITHOUT_FENCE: Duration = Duration::from_secs(1);
/// Longest wait for evidence before the first route.
const STARTUP_CAP: Duration = Duration::from_secs(1);
/// Longest time between two ticks.
const TICK_CAP: Duration = Duration::from_millis(100);

/// Durations derived from the [`Policy`].
#[derive(Clone, Debug)]
pub(super) struct Windows {
    /// No PING or write answered and nothing alive on the data plane for this long: silent. The heartbeat time-out, but never
    /// less than two probes.
    pub(super) silence: Duration,
    /// The same while the own echo still arrives: one stuck connection is not a dead replica.
    pub(super) silence_with_echo: Duration,
    /// PING unanswered for this long: suspect, and no target.
    pub(super) suspect: Duration,
    /// A heartbeat older than this when heard is late: it raises the lag and proves nothing.
    pub(super) fresh_age: Duration,
    /// A link without a fresh heartbeat for this long is down. The heartbeat time-out, but never less than three
    /// heartbeats.
    pub(super) link: Duration,
    /// The pace of heartbeats.
    pub(super) beat: Duration,
    /// Own heartbeats sent and unheard for this long: suspect.
    pub(super) echo_suspect: Duration,
    /// No write probe has ended for this long, while PING is answered: not writable. Longer than `silence`, so that a
    /// hung replica is called silent, not unwritable; and by two probes, since a single one that is lost is no verdict:
    /// it is given up after the heartbeat time-out at the latest.
    pub(super) write: Duration,
    /// Continuous positive evidence of every kind that turns `recovering` into `healthy`.
    pub(super) recover: Duration,
    /// The same for `suspect`.
    pub(super) clear: Duration,
    /// With three replicas, a link is held against a replica only after this long: the links of one that is broken go
    /// down, and come back, one after another, and until the last has done so it could be anyone's fault.
    pub(super) dispute: Duration,
    /// Bound of the wait for the first evidence after start.
    pub(super) startup: Duration,
    /// Longest time between two calls that the engine asks for.
    pub(super) tick: Duration,
    /// Bound of the drain in a planned move.
    pub(super) drain: Duration,
    /// Time without a new strike after which one strike is forgiven.
    pub(super) forgive: Duration,
}

impl Windows {
    /// `window`, for a link whose usual lag is `usual`: a slow one is given more time, so that it is not called down for
    /// what it always does.
    pub(super) fn widened(window: Duration, usual: Option<Duration>) -> Duration {
        let needed = usual.unwrap_or_default().saturating_mul(MARGIN);
        window.max(needed.min(window.saturating_mul(MARGIN_CAP)))
    }

    pub(super) fn new(policy: &Policy) -> Windows {
        let silence = policy
            .heartbeat_timeout
            .max(policy.probe_interval.saturating_mul(2));
        let interval = policy.heartbeat_interval;
        Windows {
            silence,
            silence_with_echo: silence.saturating_mul(3) / 2,
            suspect: (silence / 2).max(policy.probe_interval.saturating_mul(3) / 2),
            fresh_age: policy.heartbeat_timeout,
            link: policy.heartbeat_timeout.max(interval.saturating_mul(3)),
            beat: interval,
            echo_suspect: (policy.heartbeat_timeout / 2).max(interval.saturating_mul(2)),
            write: silence.saturating_add(policy.probe_interval.saturating_mul(2)),
            recover: interval.saturating_mul(3),
            clear: interval,
            dispute: interval.saturating_mul(5) / 2,
            startup: policy.heartbeat_timeout.min(STARTUP_CAP),
            tick: (interval / 2)
                .min(TICK_CAP)
                .min(policy.tilt_after / 3)
                .max(Duration::from_millis(1)),
            drain: if policy.fence.is_zero() {
                DRAIN_WITHOUT_FENCE
            } else {
                policy.fence
            },
            forgive: policy.dwell.saturating_mul(BACKOFF_CAP),
        }
    }
}
