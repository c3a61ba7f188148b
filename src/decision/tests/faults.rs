//! What is said to be broken: the smallest worlds that show each direction.

use super::world::World;
use super::*;
use crate::replica::ShardId;

const SHARD: ShardId = ShardId::ONLY;

fn found(world: &World) -> Vec<Fault> {
    let snapshot = world.engine.snapshot(world.now);
    snapshot.faults.iter().map(|view| view.fault).collect()
}

fn link(from: ReplicaId, to: ReplicaId) -> Fault {
    Fault::Link {
        from,
        shard: SHARD,
        to,
        to_shard: SHARD,
    }
}

fn told(world: &World, wanted: Fault) -> Vec<bool> {
    let told = world.events().filter_map(|event| match event {
        Event::Fault { fault, on, .. } if *fault == wanted => Some(*on),
        _ => None,
    });
    told.collect()
}

#[test]
fn one_link_is_named_and_its_end_is_told() {
    let mut world = World::new(3);
    world.cut.push((A, B));
    world.pass(policy().heartbeat_timeout + MS * 300);
    assert_eq!(found(&world), [link(A, B)]);
    world.cut.clear();
    world.pass(MS * 1000);
    assert!(found(&world).is_empty());
    assert_eq!(told(&world, link(A, B)), [true, false]);
}

#[test]
fn nobody_hears_it_is_its_outbound_side() {
    let mut world = World::new(3);
    world.cut.extend([(A, B), (A, C)]);
    world.pass(policy().heartbeat_timeout + MS * 300);
    let outbound = Fault::Outbound {
        replica: A,
        shard: SHARD,
    };
    assert_eq!(found(&world), [outbound]);
    assert!(
        told(&world, link(A, B)).is_empty(),
        "no link was named on the way"
    );
}

#[test]
fn it_hears_nobody_is_its_inbound_side() {
    let mut world = World::new(3);
    world.cut.extend([(B, A), (C, A)]);
    world.pass(policy().heartbeat_timeout + MS * 300);
    let inbound = Fault::Inbound {
        replica: A,
        shard: SHARD,
    };
    assert_eq!(found(&world), [inbound]);
}

#[test]
fn both_sides_are_isolation() {
    let mut world = World::new(3);
    world.cut.extend([(A, B), (A, C), (B, A), (C, A)]);
    world.pass(policy().heartbeat_timeout + MS * 300);
    let isolated = Fault::Isolated {
        replica: A,
        shard: SHARD,
    };
    assert_eq!(found(&world), [isolated]);
}

#[test]
fn of_two_nobody_can_tell_whose_side_it_is() {
    let mut world = World::new(2);
    world.cut.push((B, A));
    world.pass(policy().heartbeat_timeout + MS * 300);
    assert_eq!(found(&world), [link(B, A)]);
}

#[test]
fn a_replica_that_is_down_breaks_no_link() {
    let mut world = World::new(3);
    world.pings[C.index()] = false;
    world.writes[C.index()] = None;
    world.pass(policy().heartbeat_timeout * 3);
    assert_eq!(world.view(C).health, Health::Down);
    assert!(found(&world).is_empty(), "{:?}", found(&world));
}

#[test]
fn a_shard_is_named_where_the_layouts_are_told() {
    let mut world = World::new(2);
    let both = |shard| vec![Some(ShardId(shard)), Some(ShardId(shard))];
    world.tell(Input::Layout(CellMap {
        shards: vec![2, 2],
        cells: vec![(CellId::ONLY, both(1)), (CellId(5), both(0))],
    }));
    assert!(
        world
            .events()
            .all(|event| !matches!(event, Event::Health { .. } | Event::Link { .. })),
        "a new layout is no alarm"
    );
    world.cut.push((A, B));
    world.pass(policy().heartbeat_timeout + MS * 300);
    let words = &world.engine.snapshot(world.now).faults;
    let one = |view: &FaultView| view.words == "heartbeats from a do not arrive on b (shard 1)";
    assert!(words.iter().any(one), "{words:?}");
}
