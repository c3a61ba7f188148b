//! Tilt: the sidecar itself stalled, so what it knows is old and what it is told now may be an echo of its own stall.
//!
//! ```text
//!            a gap between two calls beyond tilt_after
//!   level ─────────────────────────────────────────────▶ tilted ──┐ another gap: from the start
//!     ▲                                                     │ ▲───┘
//!     └──── the active answered and was heard, asked ───────┘
//!           after the wake, or one silence window went by
//! ```
//!
//! While tilted, evidence is taken (time-outs and late heartbeats are not held against anyone), operators are obeyed,
//! and nothing is done automatically.

use std::time::{Duration, Instant};

use super::moment::Moment;
use super::windows::Windows;

/// A stall that is not settled yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tilt {
    pub(super) since: Moment,
    pub(super) stalled: Duration,
    answered: bool,
    heard: bool,
}

impl Tilt {
    pub(super) fn new(stalled: Duration, now: Moment) -> Tilt {
        Tilt {
            since: now,
            stalled,
            answered: false,
            heard: false,
        }
    }

    /// The active replica answered a PING that took `rtt`. An answer to what was asked before the wake lay in a socket
    /// meanwhile, and says nothing of now.
    pub(super) fn active_answered(&mut self, rtt: Duration, now: Moment) {
        self.answered |= rtt <= now.since(self.since);
    }

    /// The active replica's own echo came, `age` after it was sent; the same holds for it.
    pub(super) fn active_heard(&mut self, age: Duration, now: Moment) {
        self.heard |= age <= now.since(self.since);
    }

    /// Another replica is active: its evidence is what counts.
    pub(super) fn active_changed(&mut self) {
        self.answered = false;
        self.heard = false;
    }

    /// When it ends at the latest.
    pub(super) fn settles_at(&self, windows: &Windows) -> Instant {
        self.since.plus(windows.silence)
    }

    /// Whether evidence is fresh again.
    pub(super) fn settled(&self, windows: &Windows, now: Moment) -> bool {
        let awake = now.since(self.since);
        (self.answered && self.heard && awake >= windows.tick) || awake >= windows.silence
    }
}
