//! Time as the engine sees it: the caller's clock, less the time in which the sidecar itself stood still.
//!
//! All windows are measured on the *awake* clock. A stall of the sidecar therefore ages nothing: evidence that was
//! 0.3 s old before it is 0.3 s old after it, and silence is counted only while somebody was listening. What people
//! read (`since`, `at`) stays on the caller's clock.

use std::time::{Duration, Instant};

const A_YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// One moment on both clocks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Moment {
    /// On the awake clock: for windows, ages and deadlines.
    pub(super) awake: Instant,
    /// On the caller's clock: for people.
    pub(super) real: Instant,
}

impl Moment {
    /// Awake time from `earlier` to `self`; zero when `earlier` is later.
    pub(super) fn since(self, earlier: Moment) -> Duration {
        self.awake.saturating_duration_since(earlier.awake)
    }

    /// The moment on the awake clock that is `wait` later; a wait beyond all measure counts as a year.
    pub(super) fn plus(self, wait: Duration) -> Instant {
        self.awake.checked_add(wait).unwrap_or(self.awake + A_YEAR)
    }
}

/// The awake clock.
#[derive(Clone, Debug)]
pub(super) struct Clock {
    last: Instant,
    stalled: Duration,
    /// The newest gap between two calls that was far longer than asked for, and its end.
    gap: Duration,
    woke: Instant,
}

impl Clock {
    pub(super) fn new(now: Instant) -> Clock {
        Clock {
            last: now,
            stalled: Duration::ZERO,
            gap: Duration::ZERO,
            woke: now,
        }
    }

    /// Takes the caller's `now`. A gap beyond `tilt_after` since the last call is a stall: it is returned, and all of
    /// it but one `tick` is taken off the awake clock. A `now` before the last one counts as the last one.
    pub(super) fn advance(
        &mut self,
        now: Instant,
        tilt_after: Duration,
        tick: Duration,
    ) -> (Moment, Option<Duration>) {
        let gap = now.saturating_duration_since(self.last);
        self.last = self.last.max(now);
        if gap > tick.saturating_mul(2) {
            (self.gap, self.woke) = (gap, self.last);
        }
        let stall = (gap > tilt_after).then_some(gap);
        if stall.is_some() {
            self.stalled += gap.saturating_sub(tick);
        }
        (self.last(), stall)
    }

    /// How much of the age of what comes now may be the sidecar's own: it lay in a socket while the sidecar got no
    /// processor, if only for too short to be a stall.
    pub(super) fn own_part(&self, age: Duration) -> Duration {
        if age > self.last.saturating_duration_since(self.woke) {
            self.gap.min(age)
        } else {
            Duration::ZERO
        }
    }

    /// The moment of the last call.
    pub(super) fn last(&self) -> Moment {
        Moment {
            awake: self.last - self.stalled,
            real: self.last,
        }
    }

    /// `now` without taking it: for snapshots.
    pub(super) fn peek(&self, now: Instant) -> Moment {
        let real = self.last.max(now);
        Moment {
            awake: real - self.stalled,
            real,
        }
    }

    /// When a moment on the awake clock comes on the caller's clock, if nothing stalls until then.
    pub(super) fn on_the_wall(&self, awake: Instant) -> Instant {
        awake + self.stalled
    }
}
