//! What is usual: quantiles of the newest values, in constant space and time.

use std::time::Duration;

/// Values in each half of the window.
const HALF: u32 = 64;
/// Fewer values than this say nothing yet.
const FEWEST: u32 = 16;

/// The two largest of some values.
#[derive(Clone, Copy, Debug, Default)]
struct Half {
    largest: Duration,
    second: Duration,
    count: u32,
}

impl Half {
    fn take(&mut self, value: Duration) {
        self.count += 1;
        if value > self.largest {
            self.second = std::mem::replace(&mut self.largest, value);
        } else {
            self.second = self.second.max(value);
        }
    }
}

/// The newest 64 to 128 values, as far as their 99th percentile goes: one outlier among them does not move it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Recent {
    current: Half,
    before: Half,
    /// Asked for far more often than values come.
    p99: Option<Duration>,
}

impl Recent {
    /// Takes one value.
    pub(super) fn take(&mut self, value: Duration) {
        if self.current.count == HALF {
            self.before = std::mem::take(&mut self.current);
        }
        self.current.take(value);
        let (a, b) = (self.current, self.before);
        let second = a.largest.min(b.largest).max(a.second).max(b.second);
        self.p99 = (a.count + b.count >= FEWEST).then_some(second);
    }

    /// The 99th percentile: the second largest. `None` as long as there are too few.
    pub(super) fn p99(&self) -> Option<Duration> {
        self.p99
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn one_outlier_does_not_count_and_two_do() {
        let mut recent = Recent::default();
        for _ in 0..40 {
            recent.take(MS);
        }
        recent.take(MS * 900);
        assert_eq!(recent.p99(), Some(MS));
        recent.take(MS * 700);
        assert_eq!(recent.p99(), Some(MS * 700));
    }

    #[test]
    fn too_few_say_nothing_and_old_ones_are_forgotten() {
        let mut recent = Recent::default();
        for n in 0..FEWEST {
            assert_eq!(recent.p99(), None, "after {n}");
            recent.take(MS * 500);
        }
        assert_eq!(recent.p99(), Some(MS * 500));
        for _ in 0..2 * HALF {
            recent.take(MS);
        }
        assert_eq!(recent.p99(), Some(MS));
    }

    proptest! {
        /// Against all values of the same window, sorted.
        #[test]
        fn is_the_second_largest_of_its_window(values in proptest::collection::vec(0u64..1000, 16..400)) {
            let mut recent = Recent::default();
            for &value in &values {
                recent.take(MS * value as u32);
            }
            let half = HALF as usize;
            let window = values.len() - (values.len() - 1) / half * half + if values.len() > half { half } else { 0 };
            let mut newest = values[values.len() - window..].to_vec();
            newest.sort_unstable();
            prop_assert_eq!(recent.p99(), Some(MS * newest[newest.len() - 2] as u32));
        }
    }
}
