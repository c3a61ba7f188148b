//! A replica of which one shard fails.

use super::world::World;
use super::*;
use crate::replica::ShardId;

/// Two replicas of two shards, each with a node of its own that is probed by itself.
fn sharded(on_shard_down: OnShardDown) -> World {
    let mut world = World::new(2);
    let policy = Policy {
        on_shard_down,
        ..policy()
    };
    world.engine.set_policy(policy, world.now);
    let both = |shard| vec![Some(ShardId(shard)), Some(ShardId(shard))];
    world.tell(Input::Layout(CellMap {
        shards: vec![2, 2],
        cells: vec![(CellId::ONLY, both(0)), (CellId(1), both(1))],
    }));
    pass(&mut world, MS * 1000, Some(true));
    assert_eq!(world.view(A).health, Health::Healthy, "{:?}", world.view(A));
    world
}

fn shard_probe(
    world: &mut World,
    replica: ReplicaId,
    kind: ProbeKind,
    outcome: Result<Duration, ProbeFailure>,
) {
    world.tell(Input::Probe {
        replica,
        shard: ShardId(1),
        kind,
        outcome,
    });
}

/// As [`World::pass`], with the second shards well, but for that of A: refused, well, or refusing writes.
fn pass(world: &mut World, time: Duration, second_of_a: Option<bool>) {
    let until = world.now + time;
    while world.now < until {
        world.pass(BEAT);
        let seq = u64::try_from((world.now - world.began()).as_millis()).unwrap();
        for on in [A, B] {
            let well = if on == A { second_of_a } else { Some(true) };
            let Some(writes) = well else {
                shard_probe(world, on, ProbeKind::Ping, Err(ProbeFailure::Refused));
                continue;
            };
            let written = if writes {
                Ok(MS)
            } else {
                Err(ProbeFailure::Rejected("CLUSTERDOWN".to_owned()))
            };
            shard_probe(world, on, ProbeKind::Ping, Ok(MS));
            shard_probe(world, on, ProbeKind::Write, written);
            let (cell, age, sent) = (CellId(1), MS, world.now);
            world.tell(Input::HeartbeatSent { on, cell, seq });
            for to in [A, B] {
                if to == B || second_of_a.is_some() {
                    world.tell(Input::HeartbeatHeard {
                        from: on,
                        to,
                        cell,
                        seq,
                        age,
                        sent,
                    });
                }
            }
        }
    }
}

#[test]
fn one_shard_is_waited_for_and_then_the_whole_replica_is_left() {
    let mut world = sharded(OnShardDown::Switch);
    pass(&mut world, policy().shard_grace - MS * 300, None);
    assert_eq!(world.view(A).health, Health::Suspect, "{:?}", world.view(A));
    assert_eq!(world.active(), Some(A));
    pass(&mut world, MS * 1000, None);
    assert_eq!(world.view(A).health, Health::Down);
    assert_eq!(world.switches(), [(B, SwitchReason::Refused)]);
}

#[test]
fn a_shard_that_is_back_in_time_costs_nothing() {
    let mut world = sharded(OnShardDown::Switch);
    pass(&mut world, policy().shard_grace - MS * 300, None);
    pass(&mut world, MS * 3000, Some(true));
    assert_eq!(world.view(A).health, Health::Healthy, "{:?}", world.view(A));
    assert!(world.switches().is_empty());
}

#[test]
fn a_shard_that_refuses_writes_is_waited_for_as_well() {
    let mut world = sharded(OnShardDown::Switch);
    pass(&mut world, policy().shard_grace - MS * 200, Some(false));
    assert_eq!(world.view(A).fitness, Fitness::Stale);
    assert!(world.switches().is_empty());
    pass(&mut world, MS * 1000, Some(false));
    assert_eq!(world.switches(), [(B, SwitchReason::Unwritable)]);
}

#[test]
fn told_to_stay_it_stays() {
    let mut world = sharded(OnShardDown::Stay);
    pass(&mut world, policy().shard_grace * 3, None);
    assert_eq!(world.view(A).health, Health::Suspect);
    assert!(world.switches().is_empty());
}

#[test]
fn all_shards_at_once_are_not_waited_for() {
    let mut world = sharded(OnShardDown::Switch);
    for _ in 0..3 {
        shard_probe(&mut world, A, ProbeKind::Ping, Err(ProbeFailure::Refused));
        world.probe(A, ProbeKind::Ping, Err(ProbeFailure::Refused));
    }
    assert_eq!(world.switches(), [(B, SwitchReason::Refused)]);
}

#[test]
fn a_new_shard_is_silent_no_sooner_than_any() {
    let mut world = World::new(2);
    world.pass(MS * 5000);
    world.tell(Input::Layout(CellMap {
        shards: vec![2, 1],
        cells: vec![
            (CellId::ONLY, vec![Some(ShardId(0)), Some(ShardId(0))]),
            (CellId(1), vec![Some(ShardId(1)), Some(ShardId(0))]),
        ],
    }));
    shard_probe(&mut world, A, ProbeKind::Ping, Err(ProbeFailure::Timeout));
    assert_ne!(world.view(A).health, Health::Down, "{:?}", world.view(A));
}
