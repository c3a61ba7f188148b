//! Reads to the nearest replica.

use std::time::Duration;

use super::world::World;
use super::{A, B, C, MS, policy};
use crate::decision::*;
use crate::replica::ReplicaId;

/// Three replicas, of which the active one is far.
fn far_from_the_active() -> World {
    let mut world = World::new(3);
    let reads = Policy {
        reads: ReadsTo::Nearest,
        ..policy()
    };
    world.engine.set_policy(reads, world.now);
    world.rtts[A.index()] = MS * 60;
    world
}

impl World {
    fn read(&self) -> Vec<(ReplicaId, u8)> {
        self.engine.snapshot(self.now).read
    }
}

#[test]
fn reads_go_to_the_nearest_after_the_dwell() {
    let mut world = far_from_the_active();
    world.rtts[B.index()] = MS * 20;
    let began = world.now;
    while world.read() == [(A, 100)] {
        assert!(world.now - began < policy().dwell * 2, "reads stay");
        world.pass(MS * 100);
    }
    assert_eq!(world.read(), [(C, 100)]);
    assert!(world.now - began >= policy().dwell);
    assert_eq!(world.active(), Some(A));
}

#[test]
fn two_that_take_turns_at_being_the_nearest_do_not_delay_each_other() {
    let mut world = far_from_the_active();
    for turn in 0..6 {
        let (near, nearer) = if turn % 2 == 0 { (B, C) } else { (C, B) };
        world.rtts[near.index()] = Duration::from_micros(900);
        world.rtts[nearer.index()] = Duration::from_micros(600);
        world.pass(MS * 1000);
    }
    assert!(
        matches!(world.read()[..], [(B | C, 100)]),
        "reads go to one of them: {:?}",
        world.read()
    );
}
