//! Single rules of the engine, each in the smallest world that shows it. Whole worlds are the simulator's.

use std::time::Duration;

use super::*;
use crate::replica::{CellId, ReplicaId, ShardId};

mod faults;
mod lag;
mod patience;
mod reads;
mod rest;
mod shards;
mod staged;
mod world;

use world::World;

const MS: Duration = Duration::from_millis(1);
/// Evidence of every kind comes this often.
const BEAT: Duration = Duration::from_millis(100);

const A: ReplicaId = ReplicaId(0);
const B: ReplicaId = ReplicaId(1);
const C: ReplicaId = ReplicaId(2);

fn policy() -> Policy {
    Policy {
        heartbeat_interval: BEAT,
        heartbeat_timeout: MS * 1000,
        probe_interval: MS * 200,
        connect_failures: 3,
        dwell: MS * 2000,
        fence: MS * 1000,
        on_fence_timeout: OnFenceTimeout::Abort,
        on_isolated: OnIsolated::Stay,
        failback: FailbackMode::Immediate,
        grace: MS * 3000,
        lag_tolerance: MS * 200,
        shard_grace: Duration::from_secs(2),
        on_shard_down: OnShardDown::Switch,
        on_slow: OnSlow::Stay,
        reads: ReadsTo::Active,
        read_your_writes: true,
        read_steps: vec![10, 50, 100],
        soak: Duration::from_secs(3),
        latency_margin: Duration::from_millis(100),
        tilt_after: MS * 500,
    }
}

#[test]
fn a_stuck_ping_is_no_silence_while_writes_are_answered() {
    let mut world = World::new(2);
    world.pings[A.index()] = false;
    world.pass(MS * 1600);
    world.probe(A, ProbeKind::Ping, Err(ProbeFailure::Timeout));
    world.pings[A.index()] = true;
    world.pass(MS * 5000);
    assert_eq!(world.switches(), []);
}

#[test]
fn one_lost_write_probe_is_no_refusal() {
    let mut world = World::new(2);
    // Accepted at 0; the next one starts at 200 ms and is given up 1 s later; then the one after it is on its way.
    for _ in 0..12 {
        world.now += BEAT;
        for on in [A, B] {
            world.probe(on, ProbeKind::Ping, Ok(MS));
        }
        world.probe(B, ProbeKind::Write, Ok(MS));
    }
    world.probe(A, ProbeKind::Write, Err(ProbeFailure::Timeout));
    world.now += MS * 50;
    world.engine.on_timer(world.now);
    world.probe(A, ProbeKind::Write, Ok(MS));
    assert_eq!(
        world.view(A).shards[0].writable,
        Some(true),
        "{}",
        world.view(A).reason
    );
    assert_eq!(world.switches(), []);
}

#[test]
fn the_first_to_return_is_taken_in_the_same_call_whatever_it_answers_first() {
    for kind in [ProbeKind::Ping, ProbeKind::Write] {
        let mut world = World::new(3);
        world.kill(A);
        world.kill(B);
        world.kill(C);
        assert_eq!(world.active(), Some(C), "all the way down");
        world.pass(MS * 500);
        world.probe(B, kind, Ok(MS));
        assert_eq!(
            world.active(),
            Some(B),
            "{kind:?}: no dwell, no damping, no grace"
        );
        assert_eq!(
            world.switches().last(),
            Some(&(B, SwitchReason::LastSurvivor)),
            "{kind:?}"
        );
    }
}

#[test]
fn one_direction_of_one_link_is_named_and_moves_nothing() {
    let mut world = World::new(3);
    world.cut.push((A, B));
    world.pass(MS * 5000);
    assert_eq!(world.switches(), []);
    let links = world.view(A).links;
    let down: Vec<_> = links.iter().filter(|link| !link.up).map(|link| link.to).collect();
    assert_eq!(down, [B]);
    for id in world.ids() {
        assert_eq!(world.view(id).health, Health::Healthy, "{id}");
    }
}

#[test]
fn an_answer_that_lay_in_a_socket_through_a_stall_does_not_end_tilt() {
    let mut world = World::new(2);
    let stall = MS * 3000;
    world.now += stall;
    world.seq += 1;
    let (seq, cell, sent) = (world.seq, CellId::ONLY, world.now);
    // Both were on their way when the sidecar stood still; 700 ms is young enough to be fresh by itself.
    let heard = |age| Input::HeartbeatHeard {
        from: A,
        to: A,
        cell,
        seq,
        age,
        sent,
    };
    world.probe(A, ProbeKind::Ping, Ok(stall));
    world.tell(heard(MS * 700));
    world.now += MS * 200;
    world.engine.on_timer(world.now);
    assert!(
        world.engine.snapshot(world.now).tilt,
        "nothing is known since the wake"
    );
    world.beat();
    world.now += MS;
    world.engine.on_timer(world.now);
    assert!(
        !world.engine.snapshot(world.now).tilt,
        "asked and answered since the wake"
    );
}

#[test]
fn a_pin_is_remembered_each_time_it_is_asked_for() {
    let mut world = World::new(2);
    world.ask(1, Request::Unpin);
    assert_eq!(
        world.remembered(),
        [None],
        "what is on disk may name a replica that is gone"
    );
    world.ask(2, Request::Pin { replica: A });
    world.ask(3, Request::Pin { replica: A });
    assert_eq!(
        world.remembered(),
        [None, Some(A), Some(A)],
        "the first may not have reached the disk"
    );
}

#[test]
fn an_unpin_calls_off_the_pin_that_is_under_way() {
    let mut world = World::new(2);
    world.ask(1, Request::Pin { replica: B });
    world.holding_epoch();
    world.ask(2, Request::Unpin);
    assert!(
        world.answer(1).is_some_and(Result::is_err),
        "{:?}",
        world.answer(1)
    );
    assert!(world.answer(2).is_some_and(Result::is_ok));
    world.pass(MS * 3000);
    assert_eq!(world.engine.snapshot(world.now).pinned, None);
    assert_eq!(world.active(), Some(A));
}

#[test]
fn an_operator_is_not_sent_to_a_replica_that_refuses_writes_unless_pinned_there() {
    let mut world = World::new(2);
    world.writes[B.index()] = Some(false);
    world.pass(MS * 500);
    world.switch(1, B);
    let refusal = world.answer(1).cloned().expect("at once").unwrap_err();
    assert!(
        refusal.contains("NOREPLICAS") && refusal.contains("pin"),
        "{refusal}"
    );
    world.ask(2, Request::Pin { replica: B });
    world.holding_epoch();
    // When the active refuses them too, nothing is lost by it.
    let mut world = World::new(2);
    world.writes[B.index()] = Some(false);
    world.pass(MS * 500);
    world.writes[A.index()] = Some(false);
    world.pass(MS * 500);
    world.switch(3, B);
    world.holding_epoch();
}

#[test]
fn a_failback_is_called_off_when_its_proof_breaks_on_the_way() {
    let mut world = World::new(2);
    world.kill(A);
    world.pass(MS * 500);
    world.revive(A);
    world.until(MS * 10_000, |world| world.engine.snapshot(world.now).holding);
    // Drained, and the fence on its way: then something is wrong with the replica after all.
    let epoch = world.holding_epoch();
    world.tell(Input::Drained { epoch });
    for _ in 0..2 {
        world.probe(A, ProbeKind::Ping, Err(ProbeFailure::Timeout));
    }
    assert_eq!(world.view(A).health, Health::Suspect);
    assert!(
        !world.engine.snapshot(world.now).holding,
        "nobody waits for it any more"
    );
    assert_eq!(world.active(), Some(B));
}

#[test]
fn the_grace_starts_again_with_another_active() {
    let mut world = World::new(3);
    world.kill(A);
    world.pass(MS * 500);
    assert_eq!(world.active(), Some(B));
    world.revive(A);
    world.pass(MS * 3000);
    // Equal weights go by latency, and the preferred replica is the slower one.
    world.probe(A, ProbeKind::Ping, Ok(MS * 50));
    world.kill(B);
    assert_eq!(world.active(), Some(C));
    let waited = world.until(MS * 10_000, |world| world.engine.snapshot(world.now).holding);
    assert!(waited >= policy().grace, "{waited:?}");
}

#[test]
fn a_planned_move_off_a_replica_that_answers_is_fenced_even_before_it_is_called_healthy() {
    let mut world = World::bare(2);
    for on in [A, B] {
        world.probe(on, ProbeKind::Write, Ok(MS));
    }
    world.probe(B, ProbeKind::Ping, Ok(MS));
    assert_eq!(world.active(), Some(A));
    assert_eq!(world.view(A).health, Health::Unknown);
    world.switch(1, B);
    world.holding_epoch();
    assert_eq!(world.active(), Some(A), "not before the drain and the fence");
}

#[test]
fn an_active_that_loads_is_left_even_when_its_echo_was_lost_before() {
    let mut world = World::new(2);
    world.kill(B);
    // Mute: PING and writes are answered, its own heartbeats do not come back.
    world.cut.push((A, A));
    world.pass(MS * 2500);
    assert_eq!(world.view(A).health, Health::Down);
    assert_eq!(world.active(), Some(A), "nobody else answers");
    // Then it hangs, and comes back loading: pub/sub works again, PING and writes do not.
    world.pings[A.index()] = false;
    world.writes[A.index()] = None;
    world.pass(MS * 2500);
    world.cut.clear();
    let loading = || Err(ProbeFailure::Rejected("LOADING".to_owned()));
    world.tell(Input::Passive {
        replica: A,
        seen: PassiveEvidence::Alive,
    });
    world.probe(A, ProbeKind::Ping, loading());
    let (cell, seq) = (CellId::ONLY, world.seq + 1);
    world.tell(Input::HeartbeatHeard {
        from: A,
        to: A,
        cell,
        seq,
        age: MS,
        sent: world.now,
    });
    world.probe(B, ProbeKind::Ping, Ok(MS));
    assert_eq!(world.active(), Some(B), "{:?}", world.view(A));
}

#[test]
fn errors_before_a_restart_are_not_counted_with_those_after_it() {
    let mut world = World::new(2);
    let loading = || Err(ProbeFailure::Rejected("LOADING".to_owned()));
    for _ in 0..2 {
        world.probe(B, ProbeKind::Ping, loading());
    }
    world.probe(B, ProbeKind::Ping, Err(ProbeFailure::Refused));
    world.probe(B, ProbeKind::Ping, loading());
    assert_ne!(world.view(B).health, Health::Down, "{}", world.view(B).reason);
    for _ in 0..2 {
        world.probe(B, ProbeKind::Ping, loading());
    }
    assert_eq!(world.view(B).health, Health::Down);
}

#[test]
fn writability_is_proved_anew_after_every_fall() {
    let mut world = World::new(2);
    // Down for its echo, and taking writes all the while; then it dies.
    world.cut.push((B, B));
    world.pass(MS * 2500);
    assert_eq!(world.view(B).health, Health::Down);
    world.kill(B);
    world.probe(B, ProbeKind::Ping, Ok(MS));
    assert_eq!(world.view(B).shards[0].writable, None);
    assert_ne!(world.view(B).fitness, Fitness::InSync);
}

#[test]
fn a_stale_replica_is_stale_until_it_has_taken_two_writes() {
    let mut world = World::new(2);
    world.writes[B.index()] = Some(false);
    world.pass(MS * 500);
    assert_eq!(world.view(B).fitness, Fitness::Stale);
    world.probe(B, ProbeKind::Write, Ok(MS));
    assert_eq!(world.view(B).fitness, Fitness::Stale);
    world.probe(B, ProbeKind::Write, Ok(MS));
    assert_eq!(world.view(B).fitness, Fitness::InSync);
}

#[test]
fn an_active_that_has_just_taken_a_write_again_is_not_left() {
    let mut world = World::new(2);
    world.writes[B.index()] = Some(false);
    world.pass(MS * 500);
    world.writes[A.index()] = Some(false);
    world.pass(MS * 500);
    assert_eq!(world.active(), Some(A), "nobody takes writes");
    world.probe(A, ProbeKind::Write, Ok(MS));
    for _ in 0..2 {
        world.probe(B, ProbeKind::Write, Ok(MS));
    }
    assert_eq!(world.view(A).fitness, Fitness::Stale);
    assert_eq!(world.active(), Some(A));
    let refused = ProbeFailure::Rejected("NOREPLICAS".to_owned());
    world.probe(A, ProbeKind::Write, Err(refused));
    assert_eq!(world.active(), Some(B), "it refuses them after all");
}

#[test]
fn a_replica_that_returns_is_healthy_only_after_some_time_of_good_evidence() {
    let mut world = World::new(2);
    world.kill(B);
    world.pass(MS * 500);
    world.revive(B);
    let took = world.until(MS * 5000, |world| world.view(B).health == Health::Healthy);
    assert!(took >= BEAT * 3, "{took:?}");
}

#[test]
fn a_heartbeat_heard_twice_is_heard_once() {
    let mut world = World::new(2);
    world.cut.push((A, B));
    world.pass(MS * 2500);
    let up = |world: &World| world.view(A).links.iter().all(|link| link.up);
    assert!(!up(&world));
    let (cell, age, sent) = (CellId::ONLY, MS, world.now);
    let heard = |seq| Input::HeartbeatHeard {
        from: A,
        to: B,
        cell,
        seq,
        age,
        sent,
    };
    world.seq += 2;
    world.tell(heard(world.seq - 1));
    world.tell(heard(world.seq - 1));
    assert!(!up(&world), "the same one again proves nothing");
    world.tell(heard(world.seq));
    assert!(up(&world));
}

#[test]
fn a_link_whose_first_heartbeat_is_late_lags() {
    let mut world = World::new(2);
    world.cut.push((A, B));
    world.pass(MS * 2500);
    world.seq += 2;
    let (cell, age) = (CellId::ONLY, policy().lag_tolerance * 2);
    for seq in [world.seq - 1, world.seq] {
        let (from, to) = (A, B);
        world.tell(Input::HeartbeatHeard {
            from,
            to,
            cell,
            seq,
            age,
            sent: world.now,
        });
    }
    assert_eq!(
        world.view(B).fitness,
        Fitness::Lagging,
        "{}",
        world.view(B).reason
    );
}

#[test]
fn a_replica_whose_echo_returns_is_not_isolated_by_what_its_links_did_meanwhile() {
    let mut world = World::new(3);
    // Its PUBLISH and its subscription are stuck, PING and writes are not.
    for other in [A, B, C] {
        world.cut.extend([(A, other), (other, A)]);
    }
    world.pass(MS * 1500);
    let (cell, age) = (CellId::ONLY, MS);
    world.seq += 2;
    for seq in [world.seq - 1, world.seq] {
        world.tell(Input::HeartbeatHeard {
            from: A,
            to: A,
            cell,
            seq,
            age,
            sent: world.now,
        });
    }
    assert!(world.view(A).shards[0].echo);
    assert_ne!(world.view(A).fitness, Fitness::Isolated);
    world.cut.retain(|&(from, to)| from != to);
    world.pass(MS * 1500);
    assert_eq!(world.view(A).fitness, Fitness::Isolated, "a whole window later");
}

#[test]
fn a_timeout_in_tilt_is_held_against_nobody() {
    let mut world = World::new(2);
    world.now += MS * 3000;
    for id in [A, B] {
        for _ in 0..3 {
            world.probe(id, ProbeKind::Ping, Err(ProbeFailure::Timeout));
            world.probe(id, ProbeKind::Write, Err(ProbeFailure::Timeout));
        }
    }
    assert!(world.engine.snapshot(world.now).tilt);
    for id in [A, B] {
        assert_eq!(world.view(id).health, Health::Healthy);
        assert_eq!(world.view(id).shards[0].writable, Some(true));
    }
}

#[test]
fn a_failback_under_way_is_called_off_by_an_own_stall() {
    let mut world = World::new(2);
    world.kill(A);
    world.pass(MS * 500);
    world.revive(A);
    world.until(MS * 10_000, |world| world.engine.snapshot(world.now).holding);
    world.now += MS * 700;
    world.engine.on_timer(world.now);
    let snapshot = world.engine.snapshot(world.now);
    assert!(snapshot.tilt && !snapshot.holding);
    assert_eq!(snapshot.active, Some(B));
}

#[test]
fn an_operator_is_not_sent_to_a_replica_that_has_lost_its_echo() {
    let mut world = World::new(2);
    world.cut.push((B, B));
    world.pass(MS * 2500);
    world.switch(1, B);
    let refusal = world.answer(1).cloned().expect("at once").unwrap_err();
    assert!(refusal.contains("down") && refusal.contains("pin"), "{refusal}");
    world.cut.push((A, A));
    world.pass(MS * 2500);
    world.switch(2, B);
    world.holding_epoch();
}

#[test]
fn a_move_is_called_off_when_its_target_dies() {
    let mut world = World::new(2);
    world.switch(1, B);
    world.holding_epoch();
    world.kill(B);
    assert!(!world.engine.snapshot(world.now).holding);
    assert!(world.answer(1).is_some_and(Result::is_err));
    assert_eq!(world.active(), Some(A));
}

#[test]
fn one_heartbeat_in_time_ends_isolation() {
    let mut world = World::new(3);
    for other in [B, C] {
        world.cut.extend([(A, other), (other, A)]);
    }
    world.pass(MS * 2500);
    assert_eq!(world.view(A).fitness, Fitness::Isolated);
    world.seq += 1;
    let (from, to, cell, seq, age) = (B, A, CellId::ONLY, world.seq, MS);
    world.tell(Input::HeartbeatHeard {
        from,
        to,
        cell,
        seq,
        age,
        sent: world.now,
    });
    assert_eq!(
        world.view(A).fitness,
        Fitness::Lagging,
        "{}",
        world.view(A).reason
    );
    world.pass(MS * 1500);
    assert_eq!(world.view(A).fitness, Fitness::Isolated, "it was the only one");
}

#[test]
fn a_pin_that_is_called_off_leaves_no_dead_active_behind() {
    let mut world = World::new(3);
    world.ask(1, Request::Pin { replica: C });
    world.kill(A);
    assert_eq!(world.active(), Some(C), "the operator's word, at once");
    let mut world = World::new(3);
    world.pings[C.index()] = false;
    world.writes[C.index()] = None;
    world.pass(MS * 600);
    world.ask(2, Request::Pin { replica: C });
    world.kill(A);
    assert_eq!(world.active(), Some(A), "the pin is not decided yet");
    world.probe(C, ProbeKind::Ping, Err(ProbeFailure::Refused));
    world.probe(C, ProbeKind::Ping, Err(ProbeFailure::Refused));
    world.probe(C, ProbeKind::Ping, Err(ProbeFailure::Refused));
    assert_eq!(world.active(), Some(B), "in the call that calls it off");
}

#[test]
fn nobody_is_isolated_by_a_subscription_that_was_gone() {
    let mut world = World::new(3);
    world.cut.extend([(B, A), (C, A)]);
    world.pass(MS * 200);
    world.cut.extend([(A, A), (A, B), (A, C)]);
    world.pass(MS * 900);
    // What was missed before is excused: its own echo, and what it should have heard of the others.
    world.tell(Input::Subscribed { replica: A });
    world.pass(MS * 300);
    assert!(world.view(A).shards[0].echo);
    assert_eq!(
        world.view(A).fitness,
        Fitness::Lagging,
        "{}",
        world.view(A).reason
    );
}
