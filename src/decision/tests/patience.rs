//! What a moment seems to show and the next takes back is not said.

use super::world::World;
use super::*;

fn hear(world: &mut World, seq: u64, age: Duration) {
    let (from, to, cell) = (A, B, CellId::ONLY);
    world.tell(Input::HeartbeatHeard {
        from,
        to,
        cell,
        seq,
        age,
        sent: world.now.checked_sub(age).unwrap_or(world.now),
    });
}

/// Two replicas; what B hears of A is the test's own, and has been quick.
fn heard_by_hand() -> World {
    let mut world = World::new(2);
    world.cut.push((A, B));
    for seq in 1_000..1_040 {
        world.pass(BEAT);
        hear(&mut world, seq, MS);
    }
    world
}

#[test]
fn of_three_the_innocent_are_not_blamed_while_the_links_of_one_go_down_and_come_back() {
    let mut world = World::new(3);
    for peer in [A, C] {
        world.cut.extend([(B, peer), (peer, B)]);
        world.pass(MS * 200);
    }
    world.until(MS * 3000, |world| world.view(B).fitness == Fitness::Isolated);
    for peer in [A, C] {
        world.cut.retain(|way| *way != (B, peer) && *way != (peer, B));
        world.pass(MS * 200);
    }
    world.until(MS * 3000, |world| world.view(B).fitness == Fitness::InSync);
    let blamed = world.events().filter(
        |event| matches!(event, Event::Fitness { replica, to: Fitness::Lagging, .. } if *replica != B),
    );
    assert_eq!(blamed.count(), 0);
}

#[test]
fn of_three_one_broken_link_is_held_against_both_its_ends_in_the_end() {
    let mut world = World::new(3);
    world.cut.push((A, B));
    world.until(MS * 2000, |world| world.view(B).fitness == Fitness::Lagging);
    assert_eq!(world.view(A).fitness, Fitness::Lagging);
    assert_eq!(world.view(C).fitness, Fitness::InSync);
}

#[test]
fn what_lay_in_a_socket_through_the_sidecars_own_hiccup_does_not_lag() {
    let lags = |hiccup: bool| {
        let mut world = heard_by_hand();
        for _ in 0..8 {
            world.now += MS * 50;
            if !hiccup {
                world.engine.on_timer(world.now);
            }
        }
        hear(&mut world, 2_000, MS * 380);
        hear(&mut world, 2_001, MS * 280);
        world.view(B).fitness == Fitness::Lagging
    };
    assert!(!lags(true), "it may have been there all the while");
    assert!(lags(false), "the sidecar was awake");
}

#[test]
fn a_ping_that_is_late_is_nothing_while_writes_are_answered() {
    let mut world = World::new(2);
    world.pings[B.index()] = false;
    world.pass(MS * 900);
    assert_eq!(world.view(B).health, Health::Healthy);
    world.writes[B.index()] = None;
    world.pass(MS * 700);
    assert_ne!(world.view(B).health, Health::Healthy, "neither is answered");
}

#[test]
fn short_outages_do_not_make_long_ones_usual() {
    let mut world = heard_by_hand();
    for outage in 0..3 {
        world.pass(MS * 900);
        hear(&mut world, 2_000 + outage * 100, MS * 890);
        for seq in 1..10 {
            world.pass(BEAT);
            hear(&mut world, 2_000 + outage * 100 + seq, MS);
        }
    }
    let up = |world: &World| world.view(A).links.iter().any(|link| link.to == B && link.up);
    assert!(up(&world));
    world.pass(MS * 1200);
    assert!(!up(&world));
}

#[test]
fn a_round_of_probes_is_slow_once_however_many_shards_it_has() {
    const SHARDS: u16 = 20;
    let mut world = World::new(2);
    let cells = (0..SHARDS).map(|shard| (CellId(u32::from(shard) + 1), vec![Some(ShardId(shard)); 2]));
    world.tell(Input::Layout(CellMap {
        shards: vec![SHARDS; 2],
        cells: cells.collect(),
    }));
    let round = |world: &mut World, rtt: Duration| {
        for shard in (0..SHARDS).map(ShardId) {
            world.tell(Input::Probe {
                replica: A,
                shard,
                kind: ProbeKind::Write,
                outcome: Ok(rtt),
            });
        }
    };
    let slow = |world: &World| world.engine.replicas[A.index()].evidence.round_trips.is_slow();
    for _ in 0..40 {
        round(&mut world, MS);
    }
    for _ in 0..10 {
        round(&mut world, MS * 300);
        assert!(!slow(&world));
    }
    for _ in 0..10 {
        round(&mut world, MS * 300);
    }
    assert!(slow(&world), "it lasts");
}
