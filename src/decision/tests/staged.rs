//! The staged failback, and reads that go elsewhere than writes.

use super::world::World;
use super::*;

/// B is active, A is preferred and well again, and proved for as long as the grace.
fn on_trial() -> World {
    let mut world = World::bare(2);
    let staged = Policy {
        failback: FailbackMode::Staged,
        ..policy()
    };
    world.engine.set_policy(staged, world.now);
    world.pass(MS * 2000);
    world.kill(A);
    world.pass(MS * 300);
    assert_eq!(world.active(), Some(B));
    world.revive(A);
    world.until(MS * 10_000, |world| reads(world) != [(B, 100)]);
    world
}

fn reads(world: &World) -> Vec<(ReplicaId, u8)> {
    world.engine.snapshot(world.now).read
}

fn steps(world: &World) -> Vec<FailbackStep> {
    let steps = world.events().filter_map(|event| match event {
        Event::Failback { step, .. } => Some(*step),
        _ => None,
    });
    steps.collect()
}

#[test]
fn reads_go_first_in_equal_steps_and_the_writes_follow_after_the_soak() {
    let mut world = on_trial();
    assert_eq!(reads(&world), [(A, 10), (B, 90)]);
    let step = policy().soak / 3;
    world.pass(step - MS * 200);
    assert_eq!(reads(&world), [(A, 10), (B, 90)]);
    world.pass(MS * 200);
    assert_eq!(reads(&world), [(A, 50), (B, 50)]);
    world.pass(step);
    assert_eq!(reads(&world), [(A, 100)]);
    assert_eq!(world.active(), Some(B), "the writes stay");
    world.pass(step);
    world.holding_epoch();
    let wanted = [
        FailbackStep::Grace,
        FailbackStep::Reads,
        FailbackStep::Reads,
        FailbackStep::Reads,
        FailbackStep::Writes,
    ];
    assert_eq!(steps(&world), wanted);
}

#[test]
fn a_relapse_takes_the_reads_back_in_the_same_call_and_doubles_the_grace() {
    let mut world = on_trial();
    for _ in 0..3 {
        world.probe(A, ProbeKind::Ping, Err(ProbeFailure::Refused));
    }
    assert_eq!(reads(&world), [(B, 100)]);
    assert_eq!(steps(&world).last(), Some(&FailbackStep::RolledBack));
    let again = world.until(policy().grace * 4, |world| reads(world) != [(B, 100)]);
    assert!(again >= policy().grace * 2, "{again:?}");
}

#[test]
fn error_answers_to_applications_are_a_relapse_only_together() {
    let mut world = on_trial();
    let (replica, seen) = (A, PassiveEvidence::Unready);
    world.tell(Input::Passive { replica, seen });
    world.tell(Input::Passive { replica, seen });
    assert_ne!(reads(&world), [(B, 100)]);
    world.tell(Input::Passive { replica, seen });
    assert_eq!(reads(&world), [(B, 100)]);
    assert_eq!(world.view(A).health, Health::Suspect);
    assert_eq!(world.active(), Some(B));
}

#[test]
fn a_replica_that_answers_much_later_than_the_active_gets_no_more_reads() {
    let mut world = on_trial();
    for _ in 0..9 {
        world.probe(A, ProbeKind::Ping, Ok(policy().latency_margin + MS * 5));
    }
    assert_eq!(reads(&world), [(B, 100)]);
    assert!(steps(&world).contains(&FailbackStep::RolledBack));
}

#[test]
fn a_policy_without_steps_ends_the_trial_with_the_writes() {
    let mut world = on_trial();
    world.engine.set_policy(policy(), world.now);
    world.pass(BEAT);
    world.holding_epoch();
    assert_eq!(steps(&world).last(), Some(&FailbackStep::Writes));
}

#[test]
fn a_pin_ends_the_trial() {
    let mut world = on_trial();
    world.ask(1, Request::Pin { replica: B });
    assert_eq!(reads(&world), [(B, 100)]);
    world.pass(policy().grace * 3);
    assert_eq!(reads(&world), [(B, 100)]);
}

#[test]
fn an_own_stall_begins_the_step_anew_and_moves_nothing() {
    let mut world = on_trial();
    world.pass(policy().soak / 3 - MS * 300);
    world.now += MS * 1500;
    world.engine.on_timer(world.now);
    assert!(world.engine.snapshot(world.now).tilt);
    assert_eq!(reads(&world), [(A, 10), (B, 90)], "observe only");
    world.pass(policy().soak / 3 - MS * 200);
    assert_eq!(
        reads(&world),
        [(A, 10), (B, 90)],
        "nobody watched for a part of it"
    );
    world.pass(MS * 800);
    assert_eq!(reads(&world), [(A, 50), (B, 50)]);
}

#[test]
fn the_nearest_in_sync_gets_the_reads_after_a_dwell_and_loses_them_at_once() {
    let mut world = World::new(3);
    let nearest = Policy {
        reads: ReadsTo::Nearest,
        ..policy()
    };
    world.engine.set_policy(nearest, world.now);
    let slow_down = |world: &mut World, id| {
        for _ in 0..9 {
            world.probe(id, ProbeKind::Ping, Ok(MS * 8));
        }
    };
    let pass = |world: &mut World, time| {
        let until = world.now + time;
        while world.now < until {
            world.pass(BEAT);
            slow_down(world, A);
            slow_down(world, C);
        }
    };
    pass(&mut world, policy().dwell - MS * 200);
    assert_eq!(reads(&world), [(A, 100)]);
    pass(&mut world, MS * 500);
    assert_eq!(reads(&world), [(B, 100)]);
    assert_eq!(world.active(), Some(A));
    world.writes[B.index()] = Some(false);
    pass(&mut world, MS * 300);
    assert_eq!(reads(&world), [(A, 100)], "B takes no writes any more");
}

#[test]
fn a_replica_far_slower_than_usual_is_suspect_and_left_only_if_told_so() {
    for (on_slow, left) in [(OnSlow::Stay, false), (OnSlow::Leave, true)] {
        let mut world = World::new(2);
        let policy = Policy {
            on_slow,
            failback: FailbackMode::Manual,
            ..policy()
        };
        world.engine.set_policy(policy, world.now);
        world.pass(MS * 3000);
        for _ in 0..20 {
            world.probe(A, ProbeKind::Ping, Ok(MS * 150));
        }
        assert_eq!(world.view(A).health, Health::Suspect, "{:?}", world.view(A));
        assert_eq!(world.active() == Some(B), left);
        assert_eq!(world.switches().contains(&(B, SwitchReason::Slow)), left);
    }
}

#[test]
fn when_all_are_slow_it_is_the_sidecar() {
    let mut world = World::new(2);
    world.pass(MS * 3000);
    for _ in 0..20 {
        world.probe(A, ProbeKind::Ping, Ok(MS * 150));
        world.probe(B, ProbeKind::Ping, Ok(MS * 150));
    }
    assert_eq!(world.view(A).health, Health::Healthy);
    assert_eq!(world.view(B).health, Health::Healthy);
}
