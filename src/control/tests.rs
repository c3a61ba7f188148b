//! Control with the real engine, around channels, in paused time.

use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use super::status::{EventRecord, Status};
use super::*;
use crate::decision::{FailbackMode, OnFenceTimeout, OnIsolated, OnShardDown, OnSlow, ProbeKind, ReadsTo};
use crate::replica::{Address, CellId, Endpoint, Layout, Replica, ShardId, Topology};
use crate::route::{Epoch, LinkEvidence};

const PATIENCE: Duration = Duration::from_secs(30);
const BEAT: Duration = Duration::from_millis(20);

const A: ReplicaId = ReplicaId(0);
const B: ReplicaId = ReplicaId(1);

fn policy() -> Policy {
    Policy {
        heartbeat_interval: BEAT,
        heartbeat_timeout: Duration::from_millis(300),
        probe_interval: BEAT,
        connect_failures: 3,
        dwell: Duration::from_secs(1),
        fence: Duration::from_secs(1),
        on_fence_timeout: OnFenceTimeout::Abort,
        on_isolated: OnIsolated::Stay,
        failback: FailbackMode::Manual,
        grace: Duration::from_secs(5),
        lag_tolerance: Duration::from_millis(100),
        shard_grace: Duration::from_secs(2),
        on_shard_down: OnShardDown::Switch,
        on_slow: OnSlow::Stay,
        reads: ReadsTo::Active,
        read_your_writes: true,
        read_steps: vec![10, 50, 100],
        soak: Duration::from_secs(3),
        latency_margin: Duration::from_millis(100),
        tilt_after: Duration::from_secs(1),
    }
}

fn replica(id: ReplicaId, name: &str) -> Replica {
    Replica {
        id,
        name: name.into(),
        weight: 100 - u32::from(id.0),
        topology: Topology::default(),
        endpoint: Arc::new(Endpoint {
            address: Address::Tcp {
                host: "127.0.0.1".to_owned(),
                port: 1,
            },
            tls: None,
            credentials: None,
        }),
        rest: None,
    }
}

/// Control with two replicas, `local` and `remote`, and two workers.
struct World {
    handle: Handle,
    task: JoinHandle<()>,
    inputs: mpsc::Sender<Input>,
    feedback: mpsc::UnboundedSender<Feedback>,
    routes: watch::Receiver<Option<Route>>,
    fences: Arc<Mutex<Vec<(u64, ReplicaId)>>>,
    metrics: Arc<Metrics>,
    shutdown: watch::Sender<bool>,
    layouts: watch::Sender<Arc<[Layout]>>,
    policies: watch::Sender<Policy>,
    events: broadcast::Receiver<Arc<EventRecord>>,
}

impl World {
    fn start(state_file: Option<&Path>) -> World {
        let replicas = [replica(A, "local"), replica(B, "remote")];
        let members = replicas
            .iter()
            .map(|replica| Member {
                id: replica.id,
                name: Arc::clone(&replica.name),
                weight: replica.weight,
                rest: None,
            })
            .collect();
        let (inputs, from_monitor) = mpsc::channel(64);
        let (feedback, from_workers) = mpsc::unbounded_channel();
        let (to_workers, routes) = watch::channel(None);
        let (shutdown, stopping) = watch::channel(false);
        let (layouts, known) = watch::channel(Arc::from([Layout::single(), Layout::single()]));
        let (policies, new_policies) = watch::channel(policy());
        let fences = Arc::new(Mutex::new(Vec::new()));
        let published = Arc::clone(&fences);
        let metrics = Metrics::new(&replicas, 2).unwrap();
        let setup = Setup {
            policy: policy(),
            members,
            workers: 2,
            state_file: state_file.map(Path::to_owned),
        };
        let wires = Wires {
            inputs: from_monitor,
            feedback: from_workers,
            layouts: known,
            policies: new_policies,
            routes: to_workers,
            progress: watch::channel(None).0,
            reread: Box::new(|_| {}),
            publish_fence: Box::new(move |id, on| published.lock().unwrap().push((id, on))),
            metrics: Arc::clone(&metrics),
            shutdown: stopping,
        };
        let (handle, task) = spawn(setup, wires);
        let events = handle.events.subscribe();
        World {
            handle,
            task,
            inputs,
            feedback,
            routes,
            fences,
            metrics,
            shutdown,
            layouts,
            policies,
            events,
        }
    }

    /// From now on `well` give every kind of evidence, at each heartbeat, until the returned task is aborted.
    fn feed(&self, well: &'static [ReplicaId]) -> JoinHandle<()> {
        let inputs = self.inputs.clone();
        tokio::spawn(async move {
            for &replica in well {
                let _ = inputs.send(Input::Subscribed { replica }).await;
            }
            for seq in 1.. {
                for &on in well {
                    for kind in [ProbeKind::Ping, ProbeKind::Write] {
                        let probe = Input::Probe {
                            replica: on,
                            shard: ShardId::ONLY,
                            kind,
                            outcome: Ok(Duration::from_millis(1)),
                        };
                        let _ = inputs.send(probe).await;
                    }
                    let cell = CellId::ONLY;
                    let _ = inputs.send(Input::HeartbeatSent { on, cell, seq }).await;
                    for &to in well {
                        let heard = Input::HeartbeatHeard {
                            from: on,
                            to,
                            cell,
                            seq,
                            age: Duration::from_millis(1),
                            sent: tokio::time::Instant::now().into_std(),
                        };
                        let _ = inputs.send(heard).await;
                    }
                }
                tokio::time::sleep(BEAT).await;
            }
        })
    }

    async fn route(&mut self, wanted: impl Fn(&Route) -> bool) -> Route {
        let found = self.routes.wait_for(|route| route.as_ref().is_some_and(&wanted));
        let route = tokio::time::timeout(PATIENCE, found)
            .await
            .expect("the route comes")
            .unwrap();
        route.clone().unwrap()
    }

    async fn status(&mut self, wanted: impl Fn(&Status) -> bool) -> Arc<Status> {
        let found = self.handle.status.wait_for(|status| wanted(status));
        let status = tokio::time::timeout(PATIENCE, found).await;
        Arc::clone(&status.expect("the status comes").unwrap())
    }

    /// Until both replicas are in sync and the first route is out.
    async fn settled(&mut self) -> Route {
        self.status(|status| {
            status
                .replicas
                .iter()
                .all(|replica| replica.health == "healthy" && replica.fitness == "in_sync")
        })
        .await;
        self.route(|route| !route.holding).await
    }

    async fn ask(&self, request: Request) -> oneshot::Receiver<Result<String, String>> {
        let (answer, answered) = oneshot::channel();
        self.handle.requests.send(Ask { request, answer }).await.unwrap();
        answered
    }

    fn drained(&self, worker: usize, epoch: Epoch) {
        self.feedback.send(Feedback::Drained { worker, epoch }).unwrap();
    }

    /// Lets control look at what was sent so far: a few of its wake-ups go by.
    async fn let_it_look(&self) {
        tokio::time::sleep(3 * BEAT).await;
    }

    async fn stop(self) {
        self.shutdown.send(true).unwrap();
        tokio::time::timeout(PATIENCE, self.task)
            .await
            .expect("control ends")
            .unwrap();
    }
}

async fn answer(answered: oneshot::Receiver<Result<String, String>>) -> Result<String, String> {
    tokio::time::timeout(PATIENCE, answered)
        .await
        .expect("an answer comes")
        .expect("the asker is answered")
}

fn switch(to: ReplicaId) -> Request {
    Request::Switch {
        to,
        reason: "a test".to_owned(),
    }
}

#[tokio::test(start_paused = true)]
async fn a_planned_move_waits_for_all_workers_and_the_fence() {
    let mut world = World::start(None);
    world.feed(&[A, B]);
    let first = world.settled().await;
    assert_eq!((first.write, &first.read), (A, &vec![(A, 100)]));

    let answered = world.ask(switch(B)).await;
    let holding = world.route(|route| route.holding).await;
    assert_eq!((holding.write, holding.epoch), (A, Epoch(first.epoch.0 + 1)));

    world.drained(0, first.epoch);
    world.drained(1, first.epoch);
    world.drained(0, holding.epoch);
    world.let_it_look().await;
    assert!(
        world.fences.lock().unwrap().is_empty(),
        "worker 1 has drained under the old route only"
    );

    world.drained(1, holding.epoch);
    world.let_it_look().await;
    let fences = world.fences.lock().unwrap().clone();
    let [(id, on)] = fences[..] else {
        panic!("one fence: {fences:?}");
    };
    assert_eq!(on, A);
    assert!(world.routes.borrow().as_ref().unwrap().holding);

    let cell = CellId::ONLY;
    world
        .inputs
        .send(Input::FenceHeard { id, to: B, cell })
        .await
        .unwrap();
    let done = world.route(|route| route.write == B).await;
    assert!(!done.holding && !done.abandon_others, "{done:?}");
    assert!(done.epoch > holding.epoch);
    let words = answer(answered).await.unwrap();
    assert!(words.contains("remote"), "{words}");

    let status = world
        .status(|status| status.active.as_deref() == Some("remote"))
        .await;
    let last = status.last_switches.last().unwrap();
    assert_eq!((last.from.as_deref(), &*last.to), (Some("local"), "remote"));
    assert_eq!(last.reason, "operator");
    assert!(last.fence_ms.is_some());
    assert_eq!(status.epoch, done.epoch.0);
    let text = world.metrics.render();
    for line in [
        "pulsegate_active{replica=\"remote\"} 1",
        "pulsegate_active{replica=\"local\"} 0",
        "pulsegate_replica_health{replica=\"local\",state=\"healthy\"} 1",
        "pulsegate_link_up{from=\"local\",shard=\"0\",to=\"remote\"} 1",
        "pulsegate_switches_total{from=\"local\",reason=\"operator\",to=\"remote\"} 1",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn each_asker_gets_its_own_answer() {
    let mut world = World::start(None);
    world.feed(&[A, B]);
    world.settled().await;
    let moving = world.ask(switch(B)).await;
    let refused = world.ask(switch(A)).await;
    let nowhere = world.ask(switch(ReplicaId(9))).await;
    let nothing = world.ask(Request::Unpin).await;
    // Gone before its answer: nobody else is disturbed.
    drop(world.ask(Request::Unpin).await);
    assert_eq!(answer(nothing).await, Ok("nothing was pinned".to_owned()));
    assert!(answer(refused).await.unwrap_err().contains("under way"));
    assert!(answer(nowhere).await.unwrap_err().contains("no replica"));
    // No worker ever drains: the move is called off in its time, and its asker hears why.
    let called_off = answer(moving).await.unwrap_err();
    assert!(called_off.contains("called off"), "{called_off}");
    let route = world.route(|route| !route.holding).await;
    assert_eq!(route.write, A);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn evidence_of_the_data_plane_counts() {
    let mut world = World::start(None);
    let feeding = world.feed(&[A, B]);
    world.settled().await;
    feeding.abort();
    world.feed(&[B]);
    for _ in 0..3 {
        let seen = LinkEvidence::Refused;
        let refused = Feedback::Link { replica: A, seen };
        world.feedback.send(refused).unwrap();
    }
    let began = Instant::now();
    let route = world.route(|route| route.write == B).await;
    assert!(route.abandon_others, "{route:?}");
    assert!(
        began.elapsed() < policy().heartbeat_timeout,
        "refusals are hard evidence, silence would have taken longer: {:?}",
        began.elapsed()
    );
    let status = world.status(|status| status.epoch == route.epoch.0).await;
    let local = &status.replicas[0];
    assert_eq!((&*local.name, &*local.health), ("local", "down"));
    assert!(local.reason.contains("refused"), "{}", local.reason);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_new_policy_governs_from_then_on() {
    let mut world = World::start(None);
    let feeding = world.feed(&[A, B]);
    let settled = world.settled().await;
    let patient = Policy {
        heartbeat_timeout: Duration::from_secs(20),
        ..policy()
    };
    world.policies.send_replace(patient);
    feeding.abort();
    world.feed(&[B]);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(
        world.routes.borrow().as_ref(),
        Some(&settled),
        "silent for less than the new window"
    );
    world.policies.send_replace(policy());
    let began = Instant::now();
    world.route(|route| route.write == B).await;
    assert!(
        began.elapsed() < Duration::from_millis(50),
        "{:?}",
        began.elapsed()
    );
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn events_are_numbered_and_worded() {
    let mut world = World::start(None);
    world.feed(&[A, B]);
    world.settled().await;
    answer(world.ask(Request::Hold).await).await.unwrap();
    let held = world.status(|status| status.holding).await;
    answer(world.ask(Request::Resume).await).await.unwrap();
    world
        .status(|status| !status.holding && status.epoch > held.epoch)
        .await;

    let mut seen = Vec::new();
    while let Ok(event) = world.events.try_recv() {
        seen.push(event);
    }
    let ids: Vec<u64> = seen.iter().map(|event| event.id).collect();
    let expected: Vec<u64> = (1..).take(ids.len()).collect();
    assert_eq!(ids, expected);
    assert!(seen.windows(2).all(|pair| pair[0].at <= pair[1].at));
    let of = |kind: &str| seen.iter().filter(|event| event.kind == kind).count();
    assert!(of("health") >= 2 && of("fitness") >= 2 && of("link") >= 2);
    assert_eq!(of("switch"), 1, "the start");
    let start = seen.iter().find(|event| event.kind == "switch").unwrap();
    assert_eq!(start.details["to"], "local");
    assert_eq!(start.details["reason"], "startup");
    let holds = seen
        .iter()
        .find(|event| event.kind == "route" && event.details["holding"] == true)
        .expect("the hold is a route");
    assert_eq!(holds.details["epoch"], held.epoch);
    assert!(holds.message.ends_with("holding"), "{}", holds.message);
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn snapshots_come_even_when_nothing_happens() {
    let mut world = World::start(None);
    // Until nothing changes any more: a route to the best of the unknown was published long before.
    tokio::time::sleep(Duration::from_secs(10)).await;
    for _ in 0..5 {
        world.handle.status.mark_unchanged();
        let began = Instant::now();
        tokio::time::timeout(PATIENCE, world.handle.status.changed())
            .await
            .expect("a snapshot comes")
            .unwrap();
        assert!(
            began.elapsed() <= Duration::from_millis(251),
            "{:?}",
            began.elapsed()
        );
    }
    world.stop().await;
}

#[tokio::test(start_paused = true)]
async fn control_ends_when_its_owner_is_gone() {
    let world = World::start(None);
    drop(world.shutdown);
    tokio::time::timeout(PATIENCE, world.task)
        .await
        .expect("control ends")
        .unwrap();
}

#[tokio::test]
async fn a_pin_is_on_disk_when_it_is_answered_and_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.json");
    let mut world = World::start(Some(&path));
    world.feed(&[A, B]);
    world.settled().await;
    answer(world.ask(Request::Pin { replica: A }).await)
        .await
        .unwrap();
    assert_eq!(state::load(&path).unwrap().as_deref(), Some("local"));
    answer(world.ask(Request::Unpin).await).await.unwrap();
    assert_eq!(state::load(&path).unwrap(), None);

    // Not preferred, and pinned all the same.
    state::save(&path, Some("remote")).unwrap();
    world.stop().await;
    let mut world = World::start(Some(&path));
    assert_eq!(world.handle.status.borrow().pinned.as_deref(), Some("remote"));
    world.feed(&[A, B]);
    let route = world.route(|_| true).await;
    assert_eq!(route.write, B);
    let text = world.metrics.render();
    assert!(text.contains("pulsegate_pinned{replica=\"remote\"} 1"), "{text}");
    world.stop().await;
}

#[tokio::test]
async fn a_pin_that_cannot_be_written_is_in_force_and_said_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("no-such-directory").join("state.json");
    let mut world = World::start(Some(&path));
    world.feed(&[A, B]);
    world.settled().await;
    let words = answer(world.ask(Request::Pin { replica: A }).await)
        .await
        .unwrap_err();
    assert!(words.contains("pinned to local"), "{words}");
    assert!(words.contains("will not survive a restart"), "{words}");
    assert!(words.contains("no-such-directory"), "{words}");
    world
        .status(|status| status.pinned.as_deref() == Some("local"))
        .await;
    world.stop().await;
}

#[tokio::test]
async fn a_pin_asked_for_again_is_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("not-yet").join("state.json");
    let mut world = World::start(Some(&path));
    world.feed(&[A, B]);
    world.settled().await;
    answer(world.ask(Request::Pin { replica: A }).await)
        .await
        .unwrap_err();
    std::fs::create_dir(dir.path().join("not-yet")).unwrap();
    answer(world.ask(Request::Pin { replica: A }).await)
        .await
        .unwrap();
    assert_eq!(state::load(&path).unwrap().as_deref(), Some("local"));
    world.stop().await;
}

#[tokio::test]
async fn an_unpin_forgets_a_replica_that_is_gone_and_garbage_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.json");
    for text in ["{\"pinned\":\"elsewhere\"}", "garbage"] {
        std::fs::write(&path, text).unwrap();
        let mut world = World::start(Some(&path));
        world.feed(&[A, B]);
        world.settled().await;
        let words = answer(world.ask(Request::Unpin).await).await.unwrap();
        assert_eq!(words, "nothing was pinned");
        assert_eq!(
            state::load(&path).unwrap(),
            None,
            "it would be pinned again by a restart"
        );
        world.stop().await;
    }
}

#[tokio::test]
async fn a_shutdown_waits_for_the_pin() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.json");
    let mut world = World::start(Some(&path));
    world.feed(&[A, B]);
    world.settled().await;
    let answered = world.ask(Request::Pin { replica: A }).await;
    world
        .status(|status| status.pinned.as_deref() == Some("local"))
        .await;
    world.stop().await;
    assert_eq!(state::load(&path).unwrap().as_deref(), Some("local"));
    assert!(answer(answered).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_remembered_replica_that_is_gone_is_not_pinned() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.json");
    for text in ["{\"pinned\":\"elsewhere\"}", "garbage"] {
        std::fs::write(&path, text).unwrap();
        let mut world = World::start(Some(&path));
        world.feed(&[A, B]);
        let route = world.settled().await;
        assert_eq!(route.write, A);
        assert_eq!(world.handle.status.borrow().pinned, None);
        world.stop().await;
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            text,
            "kept for its reader"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_layout_is_told_shown_and_counted() {
    let mut world = World::start(None);
    world
        .layouts
        .send_replace([Layout::even(2), Layout::single()].into());
    let map = crate::decision::CellMap {
        shards: vec![2, 1],
        cells: vec![
            (CellId(1), vec![Some(ShardId(0)), Some(ShardId::ONLY)]),
            (CellId(2), vec![Some(ShardId(1)), Some(ShardId::ONLY)]),
        ],
    };
    world.inputs.send(Input::Layout(map)).await.unwrap();
    let status = world.status(|status| status.replicas[0].shards.len() == 2).await;
    let event = tokio::time::timeout(PATIENCE, world.events.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(event.kind, "layout");
    assert_eq!(
        event.message,
        "local has 2 shards, had 1 shard: 0-8191; 8192-16383"
    );
    let slots = |replica: usize| -> Vec<String> {
        let shards = status.replicas[replica].shards.iter();
        shards.map(|shard| shard.slots.clone()).collect()
    };
    assert_eq!(slots(0), ["0-8191", "8192-16383"]);
    assert_eq!(slots(1), ["0-16383"]);
    let text = world.metrics.render();
    for line in [
        "pulsegate_replica_shards{replica=\"local\"} 2",
        "pulsegate_replica_shards{replica=\"remote\"} 1",
        "pulsegate_link_up{from=\"local\",shard=\"1\",to=\"remote\"} 0",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    world.stop().await;
}
