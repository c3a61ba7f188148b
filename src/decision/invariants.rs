//! What must hold after every call, whatever came in. Checked in debug builds.

use super::engine::Engine;
use super::event::{Health, SwitchReason};

impl Engine {
    /// Panics, naming the rule, when one is broken.
    pub(super) fn check_invariants(&self) {
        assert_eq!(
            self.active.is_some(),
            self.epoch > 0,
            "there is an active replica exactly when a route was published"
        );
        assert!(
            self.timers.next().is_some(),
            "the engine always asks to be called again"
        );
        if let Some(pin) = self.pinned.filter(|_| self.active.is_some()) {
            assert_eq!(self.active, Some(pin), "a pinned replica is the active one");
        }
        match &self.moving {
            Some(moving) => {
                assert!(
                    self.active.is_some_and(|active| active != moving.to),
                    "a move goes elsewhere"
                );
                assert!(self.holding, "a planned move holds");
                assert_eq!(
                    moving.asked.is_none(),
                    moving.reason == SwitchReason::Failback && moving.asked.is_none(),
                    "only a failback moves by itself"
                );
                assert!(
                    moving.asked.is_some() || self.tilt.is_none(),
                    "nothing moves by itself in tilt"
                );
                if let Some(cells) = moving.fence_cells() {
                    assert_eq!(cells, self.links.cells(), "the fence covers every cell");
                }
            }
            None => assert!(
                self.epoch == 0 || self.holding == self.operator_hold,
                "without a move, only an operator holds"
            ),
        }
        if self.failback.proved_since.is_some() {
            assert!(
                self.failback_wanted(),
                "the grace runs only while a failback is wanted"
            );
        }
        for state in &self.replicas {
            assert_eq!(
                state.standing.health == Health::Down,
                state.standing.cause.is_some(),
                "down exactly with a cause"
            );
            assert_eq!(
                state.evidence.beats.len(),
                self.links.cells(),
                "one entry per cell"
            );
        }
    }
}
