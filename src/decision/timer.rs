//! What the engine waits for.

use std::time::Instant;

/// Why the engine wants to be called, each with the one thing that it looks at then.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Timer {
    /// Regular call: without it, a stall of the sidecar could not be told from a quiet hour.
    Tick,
    /// A replica would be past its silence window.
    Silence,
    /// The wait for the first evidence ends: publish a route all the same.
    Startup,
    /// The drain or the fence of a planned move has taken too long.
    Move,
    /// The least time between automatic switches has passed.
    Dwell,
    /// The preferred replica has been proved for the whole grace, or has had its reads for a whole step.
    Failback,
    /// Fresh evidence of every kind could have arrived since the sidecar's own stall.
    Settle,
}

impl Timer {
    const COUNT: usize = Timer::Settle as usize + 1;
}

/// When each timer is due, on the awake clock.
#[derive(Clone, Debug, Default)]
pub(super) struct Timers([Option<Instant>; Timer::COUNT]);

impl Timers {
    /// Sets or clears one timer.
    pub(super) fn set(&mut self, timer: Timer, due: Option<Instant>) {
        self.0[timer as usize] = due;
    }

    /// The earliest.
    pub(super) fn next(&self) -> Option<Instant> {
        self.0.iter().flatten().min().copied()
    }
}
