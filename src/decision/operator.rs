//! What operators ask. Each request gets exactly one answer: now, or when its move has ended.
//!
//! An operator's word wins over dwell, damping, grace and tilt; not over a move that is under way (except that an unpin
//! calls a pin's off), and not over a replica that does not answer or refuses writes (except by a pin, which is meant
//! to be obeyed whatever happens).

use std::time::Duration;

use super::engine::{Engine, Taking};
use super::event::{Event, Output, Request, SwitchReason};
use super::moment::Moment;
use super::moves::Wish;
use crate::replica::ReplicaId;

impl Engine {
    /// Answers, or begins what will be answered.
    pub(super) fn operator(&mut self, id: u64, request: Request, now: Moment) {
        let done = match request {
            Request::Switch { to, reason } => self.ask_switch(id, to, &reason, now),
            Request::Pin { replica } => self.ask_pin(id, replica, now),
            Request::Unpin => Some(Ok(self.unpin())),
            Request::Failback => self.ask_failback(id, now),
            Request::Hold => Some(Ok(self.hold(true))),
            Request::Resume => Some(Ok(self.hold(false))),
        };
        if let Some(result) = done {
            self.answer(Some(id), result);
        }
    }

    /// The refusals that all moves share.
    fn refuse_move(&self, to: ReplicaId) -> Option<String> {
        if to.index() >= self.members.len() {
            return Some(format!("there is no replica {to}"));
        }
        self.moving
            .as_ref()
            .map(|moving| format!("a move to {} is under way", self.name(moving.to)))
    }

    fn refuse_pinned(&self) -> Option<String> {
        self.pinned
            .map(|pin| format!("pinned to {}: unpin first", self.name(pin)))
    }

    fn ask_switch(
        &mut self,
        id: u64,
        to: ReplicaId,
        words: &str,
        now: Moment,
    ) -> Option<Result<String, String>> {
        if let Some(refusal) = self.refuse_move(to) {
            return Some(Err(refusal));
        }
        let Some(active) = self.active else {
            return Some(Err("there is no route yet".to_owned()));
        };
        if active == to {
            return Some(Ok(format!("{} is active already", self.name(to))));
        }
        if let Some(refusal) = self.refuse_pinned() {
            return Some(Err(refusal));
        }
        if let Some(refusal) = self
            .refuse_target(to)
            .or_else(|| self.refuse_bounce(active, to, now))
        {
            return Some(Err(refusal));
        }
        let why = if words.is_empty() {
            "an operator asked".to_owned()
        } else {
            format!("operator: {words}")
        };
        let wish = Wish {
            to,
            reason: SwitchReason::Operator,
            why,
            asked: Some(id),
        };
        self.move_or_go(active, wish, now)
    }

    fn ask_pin(&mut self, id: u64, to: ReplicaId, now: Moment) -> Option<Result<String, String>> {
        if let Some(refusal) = self.refuse_move(to) {
            return Some(Err(refusal));
        }
        let why = format!("an operator pinned {}", self.name(to));
        match self.active {
            Some(active) if active != to => {
                let wish = Wish {
                    to,
                    reason: SwitchReason::Pin,
                    why,
                    asked: Some(id),
                };
                self.move_or_go(active, wish, now)
            }
            _ => {
                self.set_pin(Some(to));
                self.failback.suspended = false;
                Some(Ok(format!("pinned to {}", self.name(to))))
            }
        }
    }

    fn ask_failback(&mut self, id: u64, now: Moment) -> Option<Result<String, String>> {
        let to = self.preferred;
        if let Some(refusal) = self.refuse_move(to) {
            return Some(Err(refusal));
        }
        let Some(active) = self.active else {
            return Some(Err("there is no route yet".to_owned()));
        };
        if active == to {
            return Some(Ok(format!("{} is active already", self.name(to))));
        }
        if let Some(refusal) = self.refuse_pinned().or_else(|| self.failback_refusal(now)) {
            return Some(Err(refusal));
        }
        self.failback.suspended = false;
        let why = "an operator asked for failback".to_owned();
        let wish = Wish {
            to,
            reason: SwitchReason::Failback,
            why,
            asked: Some(id),
        };
        self.move_or_go(active, wish, now)
    }

    /// Why nothing can be moved from or to `to`: it does not answer.
    fn refuse_target(&self, to: ReplicaId) -> Option<String> {
        let standing = &self.replicas[to.index()].standing;
        let known = self.replicas[to.index()].evidence.live().is_some();
        (!standing.answers() && (standing.cause.is_some() || !known))
            .then(|| format!("{} is {}: {}", self.name(to), standing.health, standing.finding))
    }

    /// A switch to a replica that refuses writes, or has lost its own echo, would be undone at once; a pin would not.
    fn refuse_bounce(&self, active: ReplicaId, to: ReplicaId, now: Moment) -> Option<String> {
        if self.refuse_target(active).is_some() || self.troubled(active) || !self.troubled(to) {
            return None;
        }
        let standing = &self.replicas[to.index()].standing;
        let words = match standing.cause {
            Some(_) => format!("down: {}", standing.finding),
            None => format!("stale: {}", self.fitness_words(to, now)),
        };
        Some(format!(
            "{} is {words}; pin it to go there all the same",
            self.name(to)
        ))
    }

    /// Whether it answers, and would be left for a fit one.
    fn troubled(&self, id: ReplicaId) -> bool {
        let state = &self.replicas[id.index()];
        state.standing.cause.is_some() || state.evidence.writable() == Some(false)
    }

    /// A planned move when both ends answer, otherwise the change at once.
    fn move_or_go(&mut self, active: ReplicaId, wish: Wish, now: Moment) -> Option<Result<String, String>> {
        let alive = self.refuse_target(active).is_none();
        if alive && self.refuse_target(wish.to).is_none() {
            self.start_move(wish, now);
            return None;
        }
        let done = format!("moved to {} at once, without a fence", self.name(wish.to));
        let taking = Taking {
            to: wish.to,
            reason: wish.reason,
            why: wish.why,
            automatic: false,
            abandon: !alive,
            detect: Duration::ZERO,
            fence: None,
            switch: Duration::ZERO,
        };
        self.take(taking, now);
        if wish.reason == SwitchReason::Pin {
            self.set_pin(Some(wish.to));
        }
        Some(Ok(done))
    }

    /// Sets or takes away the pin, and has it remembered: also when it is in force already, since what is on disk may
    /// differ (the last write failed, or it names a replica that is no longer there).
    pub(super) fn set_pin(&mut self, pin: Option<ReplicaId>) {
        self.outputs.push_back(Output::RememberPin(pin));
        if self.pinned != pin {
            self.pinned = pin;
            self.tell(Event::Pinned { replica: pin });
        }
    }

    fn unpin(&mut self) -> String {
        self.failback.suspended = false;
        let pinning = self
            .moving
            .as_ref()
            .is_some_and(|moving| moving.reason == SwitchReason::Pin);
        if pinning {
            // Otherwise the older word would win when its move ends.
            self.call_off("an operator unpinned meanwhile");
        }
        let pinned = self.pinned;
        self.set_pin(None);
        match pinned {
            Some(pin) => format!("{} is no longer pinned", self.name(pin)),
            None => "nothing was pinned".to_owned(),
        }
    }

    fn hold(&mut self, on: bool) -> String {
        if self.operator_hold == on {
            return if on { "holding already" } else { "was not holding" }.to_owned();
        }
        self.operator_hold = on;
        // A move under way holds for its own sake, and takes the operator's wish along when it ends.
        if self.moving.is_none() {
            self.publish(on, false);
        }
        if on { "holding" } else { "resumed" }.to_owned()
    }
}
