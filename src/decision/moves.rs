//! Planned moves: hold, drain, fence, go; or call it off.
//!
//! ```text
//!            route(old, holding)          drained            fence heard in every cell
//!   settled ────────────────────▶ draining ──────▶ fencing ─────────────────────────────▶ settled on the new
//!      ▲                             │   no fence in    │
//!      │                             │   the policy ────┼──────────────────────────────▶ settled on the new
//!      │      time-out (abort), target lost, layout     │
//!      │      changed, own stall of an automatic move   │
//!      └─────────────────────────────┴──────────────────┘
//! ```
//!
//! When the old replica stops answering in the middle, the move becomes a failover at once (see `failover`). On a
//! time-out the policy may say `proceed`: from draining to the fence, from the fence to the new replica. Reports with
//! an old epoch or an old fence are ignored.

use std::time::{Duration, Instant};

use super::engine::{Engine, Taking};
use super::event::{Event, Health, Output, SwitchReason};
use super::health::Secs;
use super::moment::Moment;
use super::policy::OnFenceTimeout;
use crate::replica::{CellId, ReplicaId};

/// What a planned move is for.
#[derive(Clone, Debug)]
pub(super) struct Wish {
    pub(super) to: ReplicaId,
    pub(super) reason: SwitchReason,
    pub(super) why: String,
    /// The operator's request to answer; `None` for an automatic move.
    pub(super) asked: Option<u64>,
}

/// A planned move under way.
#[derive(Clone, Debug)]
pub(super) struct Move {
    pub(super) to: ReplicaId,
    pub(super) reason: SwitchReason,
    pub(super) why: String,
    pub(super) asked: Option<u64>,
    pub(super) began: Moment,
    stage: Stage,
}

#[derive(Clone, Debug)]
enum Stage {
    /// Until the data plane has no sent command without an answer.
    Draining { epoch: u64, deadline: Instant },
    /// Until the fence was heard in every cell that both replicas have a shard in.
    Fencing {
        id: u64,
        since: Moment,
        /// By cell; of those that need not be crossed it is true from the beginning.
        heard: Vec<bool>,
        deadline: Instant,
    },
}

impl Move {
    pub(super) fn deadline(&self) -> Instant {
        match self.stage {
            Stage::Draining { deadline, .. } | Stage::Fencing { deadline, .. } => deadline,
        }
    }

    pub(super) fn fencing(&self) -> bool {
        matches!(self.stage, Stage::Fencing { .. })
    }

    /// Cells that the fence knows; `None` while draining.
    pub(super) fn fence_cells(&self) -> Option<usize> {
        match &self.stage {
            Stage::Draining { .. } => None,
            Stage::Fencing { heard, .. } => Some(heard.len()),
        }
    }
}

impl Engine {
    /// Begins a planned move: commands are held from the next route on.
    pub(super) fn start_move(&mut self, wish: Wish, now: Moment) {
        let Some(from) = self.active else { return };
        self.publish(true, false);
        self.tell(Event::Move {
            from,
            to: wish.to,
            what: format!("started: {}", wish.why),
        });
        self.moving = Some(Move {
            to: wish.to,
            reason: wish.reason,
            why: wish.why,
            asked: wish.asked,
            began: now,
            stage: Stage::Draining {
                epoch: self.epoch,
                deadline: now.plus(self.windows.drain),
            },
        });
    }

    /// The data plane has drained under the route of `epoch`.
    pub(super) fn drained(&mut self, epoch: u64, now: Moment) {
        let Some(moving) = &self.moving else { return };
        if matches!(moving.stage, Stage::Draining { epoch: awaited, .. } if awaited == epoch) {
            self.after_drain(now);
        }
    }

    fn after_drain(&mut self, now: Moment) {
        if self.policy.fence.is_zero() {
            self.finish_move(None, now);
            return;
        }
        let Some(old) = self.active else { return };
        self.fence_id += 1;
        let id = self.fence_id;
        if let Some(moving) = &mut self.moving {
            let mut heard = vec![true; self.links.cells()];
            for (path, _) in self.links.between(old, moving.to) {
                heard[path.cell] = false;
            }
            moving.stage = Stage::Fencing {
                id,
                since: now,
                heard,
                deadline: now.plus(self.policy.fence),
            };
            self.outputs.push_back(Output::PublishFence { id, on: old });
        }
    }

    /// A fence was heard.
    pub(super) fn fence_heard(&mut self, id: u64, to: ReplicaId, cell: CellId, now: Moment) {
        let Some(cell) = self.links.position(cell) else {
            return;
        };
        let Some(moving) = &mut self.moving else { return };
        let Stage::Fencing {
            id: awaited,
            since,
            heard,
            ..
        } = &mut moving.stage
        else {
            return;
        };
        if *awaited != id || moving.to != to {
            return;
        }
        if let Some(crossed) = heard.get_mut(cell) {
            *crossed = true;
        }
        if heard.iter().all(|&crossed| crossed) {
            let took = now.since(*since);
            self.finish_move(Some(took), now);
        }
    }

    /// Looks at the move under way: is its target still there, is it past its deadline?
    pub(super) fn progress_move(&mut self, now: Moment) {
        let Some(moving) = &self.moving else { return };
        let to = moving.to;
        let target = &self.replicas[to.index()];
        if !target.standing.answers() && target.standing.health == Health::Down {
            let why = format!("{} went down: {}", self.name(to), target.standing.finding);
            self.call_off(&why);
            return;
        }
        if moving.reason == SwitchReason::Failback
            && let Some(why) = self.failback_broken(moving.asked.is_some(), now)
        {
            self.call_off(&why);
            return;
        }
        if now.awake < moving.deadline() {
            return;
        }
        let waited = match &moving.stage {
            Stage::Draining { .. } => format!(
                "sent commands were still without an answer after {}",
                Secs(self.windows.drain)
            ),
            Stage::Fencing { heard, .. } => format!(
                "the fence was heard in {} of {} cells within {}",
                heard.iter().filter(|&&crossed| crossed).count(),
                heard.len(),
                Secs(self.policy.fence)
            ),
        };
        match (self.policy.on_fence_timeout, moving.fencing()) {
            (OnFenceTimeout::Abort, _) => self.call_off(&waited),
            (OnFenceTimeout::Proceed, draining_done) => {
                let from = self.active.unwrap_or(to);
                self.tell(Event::Move {
                    from,
                    to,
                    what: format!("went on all the same: {waited}"),
                });
                if draining_done {
                    self.finish_move(None, now);
                } else {
                    self.after_drain(now);
                }
            }
        }
    }

    fn finish_move(&mut self, fence: Option<Duration>, now: Moment) {
        let Some(moving) = self.moving.take() else { return };
        let done = match fence {
            Some(took) => format!(
                "moved to {} behind a fence of {}",
                self.name(moving.to),
                Secs(took)
            ),
            None => format!("moved to {} without a fence", self.name(moving.to)),
        };
        self.take(
            Taking {
                to: moving.to,
                reason: moving.reason,
                why: moving.why,
                automatic: moving.asked.is_none(),
                abandon: false,
                detect: Duration::ZERO,
                fence,
                switch: now.real.saturating_duration_since(moving.began.real),
            },
            now,
        );
        if moving.reason == SwitchReason::Pin {
            self.set_pin(Some(moving.to));
        }
        self.answer(moving.asked, Ok(done));
    }

    /// Calls the move under way off: commands go on to the old replica.
    pub(super) fn call_off(&mut self, why: &str) {
        let (Some(moving), Some(from)) = (self.moving.take(), self.active) else {
            return;
        };
        self.publish(self.operator_hold, false);
        self.tell(Event::Move {
            from,
            to: moving.to,
            what: format!("called off: {why}"),
        });
        if moving.reason == SwitchReason::Failback && moving.asked.is_none() {
            self.failback_called_off();
        }
        let stays = self.name(from);
        let refusal = format!("called off, {stays} stays active: {why}");
        self.answer(moving.asked, Err(refusal));
    }
}
