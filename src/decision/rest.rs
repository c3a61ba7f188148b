//! What the REST API of a replica's cluster says: extra evidence for failback and for the choice of a target.
//!
//! It never makes the engine leave a replica: the cluster may call a database unavailable that serves its clients well.
//! An answer counts while it is fresh, for three intervals. An attempt that gave none takes nothing back; without a fresh
//! answer nothing is known, which keeps a failback waiting, and nothing else.
//!
//! | fresh answer | failback by itself | an operator's failback | as a target |
//! |---|---|---|---|
//! | available | goes on | goes on | as without the check |
//! | unavailable | waits | refused | after its equals |
//! | none | waits | goes on | as without the check |

use std::time::Duration;

use super::engine::Engine;
use super::event::{Event, RestOutcome, RestState};
use super::health::Secs;
use super::moment::Moment;
use super::snapshot::RestView;
use crate::replica::ReplicaId;

/// For how many intervals an answer counts.
const FRESH_FOR: u32 = 3;

/// The check of one replica.
#[derive(Clone, Debug)]
pub(super) struct Rest {
    fresh_for: Duration,
    /// The newest answer: `None` says available, otherwise why not.
    answer: Option<(Option<String>, Moment)>,
    /// The newest attempt that gave no answer, and why.
    attempt: Option<(String, Moment)>,
    /// As the newest event said.
    told: Option<RestState>,
}

impl Rest {
    /// A check that is made every `interval`, and was not made yet.
    pub(super) fn new(interval: Duration) -> Rest {
        Rest {
            fresh_for: interval.saturating_mul(FRESH_FOR),
            answer: None,
            attempt: None,
            told: None,
        }
    }

    fn take(&mut self, outcome: RestOutcome, now: Moment) {
        match outcome {
            RestOutcome::Available => self.answer = Some((None, now)),
            RestOutcome::Unavailable(why) => self.answer = Some((Some(why), now)),
            RestOutcome::Unknown(why) => self.attempt = Some((why, now)),
        }
    }

    fn fresh(&self, now: Moment) -> Option<&(Option<String>, Moment)> {
        self.answer
            .as_ref()
            .filter(|(_, at)| now.since(*at) < self.fresh_for)
    }

    fn state(&self, now: Moment) -> RestState {
        match self.fresh(now) {
            Some((None, _)) => RestState::Available,
            Some((Some(_), _)) => RestState::Unavailable,
            None => RestState::Unknown,
        }
    }

    fn words(&self, now: Moment) -> String {
        match (self.fresh(now), &self.attempt, &self.answer) {
            (Some((None, _)), ..) => "the cluster says that it is available".to_owned(),
            (Some((Some(why), _)), ..) => why.clone(),
            (None, attempt, Some((_, at))) => {
                let ago = Secs(now.since(*at));
                match attempt {
                    Some((why, tried)) if tried > at => format!("no answer for {ago}: {why}"),
                    _ => format!("no answer for {ago}"),
                }
            }
            (None, Some((why, _)), None) => why.clone(),
            (None, None, None) => "not asked yet".to_owned(),
        }
    }

    fn view(&self, now: Moment) -> RestView {
        let answered = self.answer.as_ref().map(|(_, at)| *at);
        let tried = self.attempt.as_ref().map(|(_, at)| *at);
        RestView {
            state: self.state(now),
            words: self.words(now),
            at: answered.max(tried).map(|at| at.real),
        }
    }
}

impl Engine {
    /// Takes what the check of `replica` gave; ignored for a replica without one.
    pub(super) fn rest_outcome(&mut self, replica: ReplicaId, outcome: RestOutcome, now: Moment) {
        if let Some(rest) = self.rest_mut(replica) {
            rest.take(outcome, now);
        }
    }

    fn rest_mut(&mut self, id: ReplicaId) -> Option<&mut Rest> {
        self.replicas.get_mut(id.index())?.rest.as_mut()
    }

    fn rest(&self, id: ReplicaId) -> Option<&Rest> {
        self.replicas[id.index()].rest.as_ref()
    }

    /// What is known of `id`; `None`: no check is configured.
    pub(super) fn rest_state(&self, id: ReplicaId, now: Moment) -> Option<RestState> {
        self.rest(id).map(|rest| rest.state(now))
    }

    /// The check of `id` in words.
    pub(super) fn rest_words(&self, id: ReplicaId, now: Moment) -> String {
        self.rest(id).map(|rest| rest.words(now)).unwrap_or_default()
    }

    pub(super) fn rest_view(&self, id: ReplicaId, now: Moment) -> Option<RestView> {
        self.rest(id).map(|rest| rest.view(now))
    }

    /// Tells what changed: by an answer, or by none for too long.
    pub(super) fn refresh_rest(&mut self, now: Moment) {
        for replica in self.ids() {
            let Some(rest) = self.rest_mut(replica) else {
                continue;
            };
            let to = rest.state(now);
            let asked = rest.answer.is_some() || rest.attempt.is_some();
            if !asked || rest.told == Some(to) {
                continue;
            }
            let from = rest.told.replace(to);
            let why = rest.words(now);
            self.tell(Event::Rest {
                replica,
                from,
                to,
                why,
            });
        }
    }
}
