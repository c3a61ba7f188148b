//! What a REST check changes, and what it never does.

use std::time::Duration;

use super::world::World;
use super::{A, B, C, MS};
use crate::decision::*;
use crate::replica::{CellId, ReplicaId};

/// How often the clusters are asked.
const INTERVAL: Duration = Duration::from_secs(1);

fn no_quorum() -> RestOutcome {
    RestOutcome::Unavailable("503 no_quorum".to_owned())
}

fn no_answer() -> RestOutcome {
    RestOutcome::Unknown("no answer within 2s".to_owned())
}

impl World {
    fn rest(&mut self, replica: ReplicaId, outcome: RestOutcome) {
        self.tell(Input::Rest { replica, outcome });
    }

    /// Lets time go by while the cluster of `replica` answers `outcome` at each interval.
    fn pass_with(&mut self, time: Duration, replica: ReplicaId, outcome: &RestOutcome) {
        let until = self.now + time;
        while self.now < until {
            self.rest(replica, outcome.clone());
            self.pass(INTERVAL.min(until - self.now));
        }
    }

    /// The planned move under way to `a`, if there is one, is drained and its fence heard.
    fn finish_move(&mut self) {
        let snapshot = self.engine.snapshot(self.now);
        if snapshot.holding {
            self.tell(Input::Drained {
                epoch: snapshot.epoch,
            });
            let (id, to, cell) = (self.engine.fence_id, A, CellId::ONLY);
            self.tell(Input::FenceHeard { id, to, cell });
        }
    }

    fn rest_view(&self, replica: ReplicaId) -> RestView {
        self.view(replica).rest.expect("a check is configured")
    }

    /// What was told of the checks, oldest first.
    fn rest_told(&self) -> Vec<(ReplicaId, Option<RestState>, RestState)> {
        self.events()
            .filter_map(|event| match event {
                Event::Rest {
                    replica, from, to, ..
                } => Some((*replica, *from, *to)),
                _ => None,
            })
            .collect()
    }

    /// What was told of the failback.
    fn failback_told(&self) -> Vec<String> {
        self.events()
            .filter_map(|event| match event {
                Event::Failback { what, .. } => Some(what.clone()),
                _ => None,
            })
            .collect()
    }
}

/// The preferred `a` went down and is back, well in every other way; `b` is active.
fn returned() -> World {
    let mut world = World::checked(2, INTERVAL);
    world.kill(A);
    assert_eq!(world.active(), Some(B));
    world.pass(MS * 1000);
    world.revive(A);
    world
}

#[test]
fn failback_waits_until_the_cluster_says_available() {
    let mut world = returned();
    world.pass_with(MS * 20_000, A, &no_answer());
    assert_eq!(world.active(), Some(B), "never answered");
    world.pass_with(MS * 20_000, A, &no_quorum());
    assert_eq!(world.active(), Some(B), "unavailable");
    assert_eq!(
        world.failback_told(),
        Vec::<String>::new(),
        "the grace never began"
    );
    let began = world.now;
    while world.active() != Some(A) {
        assert!(world.now < began + MS * 5000, "{:?}", world.failback_told());
        world.pass_with(MS * 100, A, &RestOutcome::Available);
        world.finish_move();
    }
    assert!(world.now >= began + MS * 3000, "after a whole grace");
}

#[test]
fn a_cluster_that_takes_its_word_back_starts_the_grace_again() {
    let mut world = returned();
    world.pass_with(MS * 2500, A, &RestOutcome::Available);
    world.rest(A, no_quorum());
    let told = world.failback_told();
    assert!(told[0].starts_with("grace of 3.00 s began"), "{told:?}");
    assert!(
        told[1].contains("grace reset") && told[1].ends_with("REST check unavailable: 503 no_quorum"),
        "{told:?}"
    );
}

#[test]
fn one_attempt_without_an_answer_takes_nothing_back() {
    let mut world = returned();
    world.rest(A, RestOutcome::Available);
    world.pass(MS * 1000);
    world.rest(A, no_answer());
    world.pass(MS * 1000);
    assert_eq!(world.rest_view(A).state, RestState::Available);
    assert_eq!(world.failback_told().len(), 1, "{:?}", world.failback_told());
}

#[test]
fn an_answer_counts_for_three_intervals() {
    let mut world = returned();
    world.rest(A, RestOutcome::Available);
    world.pass(MS * 2900);
    assert_eq!(world.rest_view(A).state, RestState::Available);
    world.rest(A, no_answer());
    world.pass(MS * 200);
    let view = world.rest_view(A);
    assert_eq!(view.state, RestState::Unknown);
    assert!(
        view.words.starts_with("no answer for 3.") && view.words.ends_with(" s: no answer within 2s"),
        "{}",
        view.words
    );
    assert_eq!(
        world.rest_told(),
        [
            (A, None, RestState::Available),
            (A, Some(RestState::Available), RestState::Unknown)
        ]
    );
    world.pass(MS * 20_000);
    assert_eq!(world.active(), Some(B), "failback waits");
    let told = world.failback_told();
    assert!(told[1].contains("REST check unknown: no answer for"), "{told:?}");
}

#[test]
fn an_operators_failback_is_refused_by_a_no_and_not_by_silence() {
    let mut world = returned();
    world.pass_with(MS * 2000, A, &no_quorum());
    world.ask(1, Request::Failback);
    assert_eq!(
        world.answer(1),
        Some(&Err(
            "a is not fit: REST check unavailable: 503 no_quorum".to_owned()
        ))
    );
    world.pass_with(MS * 4000, A, &no_answer());
    world.ask(2, Request::Failback);
    world.finish_move();
    assert_eq!(world.active(), Some(A), "{:?}", world.answer(2));
}

#[test]
fn a_move_under_way_is_called_off_when_the_cluster_says_no() {
    let mut world = returned();
    let began = world.now;
    while !world.engine.snapshot(world.now).holding {
        assert!(world.now < began + MS * 5000, "{:?}", world.failback_told());
        world.pass_with(MS * 100, A, &RestOutcome::Available);
    }
    world.rest(A, no_quorum());
    assert!(!world.engine.snapshot(world.now).holding);
    assert_eq!(world.active(), Some(B));
}

#[test]
fn among_equals_an_unavailable_target_comes_last() {
    for (of_b, want) in [(no_quorum(), C), (RestOutcome::Available, B), (no_answer(), B)] {
        let mut world = World::checked(3, INTERVAL);
        world.rest(B, of_b.clone());
        world.kill(A);
        assert_eq!(world.active(), Some(want), "{of_b:?}");
    }
}

#[test]
fn a_fit_replica_is_taken_though_its_cluster_calls_it_unavailable() {
    let mut world = World::checked(3, INTERVAL);
    world.rest(B, no_quorum());
    // The other one is no equal: it refuses writes.
    world.writes[C.index()] = Some(false);
    world.pass(MS * 1000);
    world.kill(A);
    assert_eq!(world.active(), Some(B));
    // And the last survivor is never refused.
    world.rest(C, no_quorum());
    world.kill(B);
    assert_eq!(world.active(), Some(C));
}

#[test]
fn the_active_is_never_left_for_what_its_cluster_says() {
    let mut world = World::checked(3, INTERVAL);
    for _ in 0..60 {
        for id in [B, C] {
            world.rest(id, RestOutcome::Available);
        }
        world.pass_with(INTERVAL, A, &no_quorum());
    }
    assert_eq!(world.switches(), []);
    assert_eq!(world.view(A).health, Health::Healthy);
    assert_eq!(world.view(A).fitness, Fitness::InSync);
    assert!(world.rest_told().contains(&(A, None, RestState::Unavailable)));
    assert_eq!(world.rest_view(B).state, RestState::Available);
    assert_eq!(world.rest_view(A).words, "503 no_quorum");
}

#[test]
fn a_check_that_is_not_configured_is_not_there() {
    let mut world = World::new(2);
    world.rest(A, no_quorum());
    world.rest(ReplicaId(9), no_quorum());
    assert_eq!(world.view(A).rest, None);
    assert_eq!(world.rest_told(), []);
}

#[test]
fn before_the_first_answer_it_says_so_once() {
    let mut world = World::checked(2, INTERVAL);
    let view = world.rest_view(A);
    assert_eq!(
        (view.state, view.words.as_str(), view.at),
        (RestState::Unknown, "not asked yet", None)
    );
    assert_eq!(world.rest_told(), []);
    world.pass_with(MS * 5000, A, &no_answer());
    assert_eq!(world.rest_told(), [(A, None, RestState::Unknown)]);
    assert_eq!(world.rest_view(A).words, "no answer within 2s");
}
