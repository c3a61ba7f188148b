//! The window of a link follows its own usual lag.

use super::world::World;
use super::*;

fn hear(world: &mut World, seq: u64, age: Duration) {
    let sent = world.now.checked_sub(age).unwrap_or(world.now);
    let (from, to, cell) = (A, B, CellId::ONLY);
    world.tell(Input::HeartbeatHeard {
        from,
        to,
        cell,
        seq,
        age,
        sent,
    });
}

fn up(world: &World) -> bool {
    world.view(A).links.iter().any(|link| link.to == B && link.up)
}

/// A link A→B whose heartbeats are this old, each heard one beat after the other.
fn slow_link(age: Duration) -> World {
    let mut world = World::new(2);
    world.cut.push((A, B));
    for n in 0..60 {
        world.pass(BEAT);
        let seq = 1_000 + n;
        hear(&mut world, seq, age);
    }
    world
}

#[test]
fn a_slow_link_is_not_called_down_for_being_slow() {
    let mut world = slow_link(MS * 800);
    assert!(up(&world), "late, and steady");
    assert_eq!(world.view(B).fitness, Fitness::Lagging);
    world.pass(MS * 1800);
    assert!(up(&world), "a pause within three times its lag");
    world.pass(MS * 800);
    assert!(!up(&world), "beyond that it is down");
}

#[test]
fn a_link_slower_than_any_window_is_learned_and_lags() {
    let world = slow_link(MS * 1500);
    assert!(up(&world));
    assert_eq!(world.view(B).fitness, Fitness::Lagging);
}

#[test]
fn a_quick_link_keeps_its_short_window_after_an_outage() {
    let mut world = World::new(2);
    world.pass(MS * 6000);
    world.cut.push((A, B));
    world.pass(MS * 4000);
    assert!(!up(&world));
    // What was held back arrives at once, late.
    for n in 0..40 {
        let seq = 2_000 + n;
        hear(&mut world, seq, MS * (5100 - n as u32 * 100));
    }
    world.pass(MS * 300);
    assert!(!up(&world), "a backlog proves nothing");
    for n in 0..20 {
        world.pass(BEAT);
        let seq = 3_000 + n;
        hear(&mut world, seq, MS);
    }
    assert!(up(&world));
    world.pass(MS * 1200);
    assert!(!up(&world), "and teaches nothing: its window is what it was");
}
