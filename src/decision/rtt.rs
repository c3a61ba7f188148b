//! Round trips of one replica: what they are now, and whether that is far beyond what they use to be.

use std::time::Duration;

use super::recent::Recent;

/// Newest round trips whose median is "now".
const NEWEST: usize = 9;
/// Round trips that the verdict looks back on, and how many of them make it.
const LOOK_BACK: u32 = 20;
const MANY: u32 = 16;
/// A round trip is slow beyond so many times the usual 99th percentile, and by so much at least.
const TIMES: u32 = 4;
const AT_LEAST: Duration = Duration::from_millis(20);
/// What has been slow for so many round trips is usual from then on.
const USUAL_AFTER: u32 = 2_000;

/// The round trips of probes.
#[derive(Clone, Debug, Default)]
pub(super) struct RoundTrips {
    newest: [Duration; NEWEST],
    taken: usize,
    median: Option<Duration>,
    /// Of those that were not slow.
    usual: Recent,
    /// Bit `n`: the one `n` before the newest was slow.
    slow_ones: u32,
    slow_for: u32,
    slow: bool,
}

impl RoundTrips {
    /// Takes one.
    pub(super) fn take(&mut self, rtt: Duration) {
        self.newest[self.taken % NEWEST] = rtt;
        self.taken += 1;
        let mut known = self.newest;
        let known = &mut known[..self.taken.min(NEWEST)];
        known.sort_unstable();
        self.median = Some(known[known.len() / 2]);

        let is_slow = self.limit().is_some_and(|limit| rtt > limit);
        if !is_slow {
            self.usual.take(rtt);
        }
        self.slow_ones = (self.slow_ones << 1 | u32::from(is_slow)) & ((1 << LOOK_BACK) - 1);
        let recovered = self.limit() >= self.median;
        self.slow = !recovered && (self.slow || self.slow_ones.count_ones() >= MANY);
        self.slow_for = if self.slow { self.slow_for + 1 } else { 0 };
        if self.slow_for >= USUAL_AFTER {
            *self = RoundTrips {
                newest: self.newest,
                taken: self.taken,
                median: self.median,
                ..RoundTrips::default()
            };
        }
    }

    /// The median of the newest ones.
    pub(super) fn now(&self) -> Option<Duration> {
        self.median
    }

    /// The 99th percentile of what is usual.
    pub(super) fn usual(&self) -> Option<Duration> {
        self.usual.p99()
    }

    fn limit(&self) -> Option<Duration> {
        let usual = self.usual.p99()?;
        Some((usual * TIMES).max(usual + AT_LEAST))
    }

    /// Whether many of the newest ones are far beyond what is usual: not enough for a verdict, but no good comparison.
    pub(super) fn is_doubtful(&self) -> bool {
        self.slow || self.slow_ones.count_ones() >= MANY / 2
    }

    /// Whether most of the newest ones are far beyond what is usual.
    pub(super) fn is_slow(&self) -> bool {
        self.slow
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn usual() -> RoundTrips {
        let mut trips = RoundTrips::default();
        for n in 0..100 {
            trips.take(MS * (1 + n % 3));
        }
        trips
    }

    #[test]
    fn slow_is_what_lasts_beyond_the_usual() {
        let mut trips = usual();
        for n in 1..MANY {
            trips.take(MS * 100);
            assert!(!trips.is_slow(), "after {n}");
        }
        trips.take(MS * 100);
        assert!(trips.is_slow());
        assert_eq!(trips.usual(), Some(MS * 3), "the slow ones are not usual");
        assert_eq!(trips.now(), Some(MS * 100));
        for _ in 0..NEWEST / 2 {
            trips.take(MS * 2);
            assert!(trips.is_slow());
        }
        trips.take(MS * 2);
        assert!(!trips.is_slow());
    }

    #[test]
    fn single_outliers_and_small_steps_are_not_slow() {
        let mut trips = usual();
        for n in 0..200 {
            trips.take(if n % 3 == 0 { MS * 300 } else { MS });
            assert!(!trips.is_slow(), "after {n}");
        }
        let mut trips = usual();
        for _ in 0..200 {
            trips.take(MS * 15);
        }
        assert!(!trips.is_slow());
    }

    #[test]
    fn what_is_slow_for_ever_is_usual() {
        let mut trips = usual();
        for _ in 0..USUAL_AFTER + MANY {
            trips.take(MS * 100);
        }
        assert!(!trips.is_slow());
        for _ in 0..100 {
            trips.take(MS * 100);
        }
        assert!(!trips.is_slow());
    }
}
