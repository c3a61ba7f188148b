//! Damping: a replica that keeps going down waits longer each time before it is trusted again.
//!
//! Each fall is a strike; a quiet time of eight dwells forgives one. From the second strike on, the replica must stay up
//! for one dwell (then two, four, at most eight) before failback or an unforced switch may choose it. A forced switch, off
//! a replica that does not answer, only ranks it behind the others: damping never costs the last survivor.

use std::time::Duration;

use super::moment::Moment;
use super::windows::{BACKOFF_CAP, Windows};

/// The strikes of one replica.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Damping {
    strikes: u32,
    last: Option<Moment>,
    up_since: Option<Moment>,
}

impl Damping {
    /// It went down, having been up.
    pub(super) fn strike(&mut self, windows: &Windows, now: Moment) {
        self.strikes = self.standing(windows, now).saturating_add(1);
        self.last = Some(now);
    }

    /// It came back.
    pub(super) fn returned(&mut self, now: Moment) {
        self.up_since = Some(now);
    }

    /// Strikes not forgiven yet.
    pub(super) fn standing(&self, windows: &Windows, now: Moment) -> u32 {
        let Some(last) = self.last else { return 0 };
        if windows.forgive.is_zero() {
            return 0;
        }
        let forgiven = now.since(last).as_nanos() / windows.forgive.as_nanos();
        self.strikes
            .saturating_sub(u32::try_from(forgiven).unwrap_or(u32::MAX))
    }

    /// How much longer it has to prove itself; `None` when not at all.
    pub(super) fn left(&self, windows: &Windows, dwell: Duration, now: Moment) -> Option<Duration> {
        let strikes = self.standing(windows, now);
        let up_since = self.up_since?;
        let doublings = strikes.checked_sub(2)?;
        let factor = 1_u32
            .checked_shl(doublings)
            .unwrap_or(BACKOFF_CAP)
            .min(BACKOFF_CAP);
        (dwell * factor)
            .checked_sub(now.since(up_since))
            .filter(|left| !left.is_zero())
    }
}
