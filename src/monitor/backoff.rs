//! How long to wait before the next attempt to connect.

use std::time::Duration;

/// The first waits, in milliseconds: at once, then quickly, so that a killed server's refusals add up to a verdict
/// within some 30 ms even when nothing else happens.
const STEPS: [u64; 7] = [0, 10, 20, 50, 100, 200, 500];

/// The longest wait, whatever the probe interval: a replica that returns is found within it.
const LONGEST: Duration = Duration::from_millis(250);

/// Grows with each attempt that led to nothing. Begins anew only after a connection that was of use for a while: a peer
/// that answers once and hangs up must not be dialled as fast as it does so.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    attempts: usize,
    cap: Duration,
}

impl Backoff {
    /// Waits of at most `probe_interval`, and never more than 250 ms.
    pub(super) fn new(probe_interval: Duration) -> Backoff {
        Backoff {
            attempts: 0,
            cap: probe_interval.min(LONGEST),
        }
    }

    /// As [`Backoff::new`], for waits to come.
    pub(super) fn set_probe_interval(&mut self, probe_interval: Duration) {
        self.cap = probe_interval.min(LONGEST);
    }

    /// How long to wait before the next attempt.
    pub(super) fn next(&mut self) -> Duration {
        let step = STEPS
            .get(self.attempts)
            .map_or(self.cap, |&step| Duration::from_millis(step));
        self.attempts += 1;
        step.min(self.cap)
    }

    /// A useful connection was lost after `lived`.
    pub(super) fn lost_after(&mut self, lived: Duration) {
        if lived >= self.cap {
            self.attempts = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(probe_interval: Duration, count: usize) -> Vec<u128> {
        let mut backoff = Backoff::new(probe_interval);
        (0..count).map(|_| backoff.next().as_millis()).collect()
    }

    #[test]
    fn begins_at_once_and_grows_to_its_cap() {
        assert_eq!(
            waits(Duration::from_secs(1), 9),
            [0, 10, 20, 50, 100, 200, 250, 250, 250]
        );
    }

    #[test]
    fn never_waits_longer_than_a_probe_interval() {
        assert_eq!(waits(Duration::from_millis(30), 5), [0, 10, 20, 30, 30]);
    }

    #[test]
    fn begins_anew_after_a_connection_that_lived() {
        let mut backoff = Backoff::new(Duration::from_secs(1));
        backoff.next();
        backoff.next();
        backoff.lost_after(Duration::from_millis(249));
        assert_eq!(backoff.next(), Duration::from_millis(20));
        backoff.lost_after(Duration::from_millis(250));
        assert_eq!(backoff.next(), Duration::ZERO);
        assert_eq!(backoff.next(), Duration::from_millis(10));
    }
}
