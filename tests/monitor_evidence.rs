//! What the monitor reports of real servers: well, killed, hung, restarted, loading, refusing writes, refusing us.
#![allow(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pulsegate::decision::{Input, ProbeFailure, ProbeKind};
use pulsegate::dial::Dialer;
use pulsegate::monitor::{Identity, Monitor, Settings, Target};
use pulsegate::replica::{Address, CellId, Credentials, Endpoint, ReplicaId, Secret, Topology};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::time::Instant;

#[path = "support/redis_server.rs"]
mod redis_server;

use redis_server::Server;

/// How long anything may take that has no bound of its own.
const PATIENCE: Duration = Duration::from_secs(20);

const A: ReplicaId = ReplicaId(0);
const B: ReplicaId = ReplicaId(1);

fn target(id: ReplicaId, port: u16, password: Option<&str>) -> Target {
    let endpoint = Endpoint {
        address: Address::Tcp {
            host: "127.0.0.1".to_owned(),
            port,
        },
        tls: None,
        credentials: password.map(|password| Credentials {
            username: None,
            password: Secret::new(password),
        }),
    };
    Target {
        id,
        name: format!("replica-{}", id.0).into(),
        dialer: Dialer::new(Arc::new(endpoint)).unwrap(),
        rest: None,
        topology: Topology::default(),
    }
}

fn settings() -> Settings {
    Settings {
        prefix: "pg".to_owned(),
        identity: Identity::named("test"),
        heartbeat_interval: Duration::from_millis(50),
        probe_interval: Duration::from_millis(100),
        connect_timeout: Duration::from_secs(1),
        answer_timeout: Duration::from_secs(1),
    }
}

/// The monitor under test and what it has reported so far.
struct Watch {
    monitor: Monitor,
    inputs: mpsc::Receiver<Input>,
    newest: VecDeque<Input>,
}

impl Watch {
    fn start(targets: &[Target], settings: Settings) -> Watch {
        let (sender, inputs) = mpsc::channel(1024);
        Watch {
            monitor: Monitor::spawn(targets, settings, sender),
            inputs,
            newest: VecDeque::new(),
        }
    }

    async fn next(&mut self, deadline: Instant, what: &str) -> Input {
        match tokio::time::timeout_at(deadline, self.inputs.recv()).await {
            Ok(Some(input)) => {
                self.newest.push_back(input.clone());
                if self.newest.len() > 20 {
                    self.newest.pop_front();
                }
                input
            }
            Ok(None) => panic!("the monitor ended while waiting for {what}"),
            Err(_) => panic!("never came: {what}; the newest were {:#?}", self.newest),
        }
    }

    /// Waits for an input, at most `PATIENCE`, and returns it.
    async fn until(&mut self, what: &str, wanted: impl Fn(&Input) -> bool) -> Input {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let input = self.next(deadline, what).await;
            if wanted(&input) {
                return input;
            }
        }
    }

    /// Waits until each of `wanted` came once, in any order.
    async fn until_all(&mut self, what: &str, wanted: &[&dyn Fn(&Input) -> bool]) {
        let deadline = Instant::now() + PATIENCE;
        let mut missing: Vec<_> = wanted.iter().collect();
        while !missing.is_empty() {
            let input = self.next(deadline, what).await;
            missing.retain(|wanted| !wanted(&input));
        }
    }

    /// All inputs of the next `time`.
    async fn during(&mut self, time: Duration) -> Vec<Input> {
        let deadline = Instant::now() + time;
        let mut seen = Vec::new();
        while let Ok(Some(input)) = tokio::time::timeout_at(deadline, self.inputs.recv()).await {
            seen.push(input);
        }
        seen
    }

    fn forget(&mut self) {
        while self.inputs.try_recv().is_ok() {}
    }
}

fn probed(
    input: &Input,
    wanted: ReplicaId,
    wanted_kind: ProbeKind,
) -> Option<Result<Duration, ProbeFailure>> {
    match input {
        Input::Probe {
            replica,
            kind,
            outcome,
            ..
        } if *replica == wanted && *kind == wanted_kind => Some(outcome.clone()),
        _ => None,
    }
}

fn well(replica: ReplicaId, kind: ProbeKind) -> impl Fn(&Input) -> bool {
    move |input| matches!(probed(input, replica, kind), Some(Ok(_)))
}

fn failed(replica: ReplicaId, kind: ProbeKind, failure: ProbeFailure) -> impl Fn(&Input) -> bool {
    move |input| probed(input, replica, kind) == Some(Err(failure.clone()))
}

fn rejected(replica: ReplicaId, kind: ProbeKind, word: &str) -> impl Fn(&Input) -> bool {
    failed(replica, kind, ProbeFailure::Rejected(word.to_owned()))
}

fn heard(wanted_from: ReplicaId, wanted_to: ReplicaId) -> impl Fn(&Input) -> bool {
    move |input| {
        matches!(input, Input::HeartbeatHeard { from, to, cell, .. }
            if *from == wanted_from && *to == wanted_to && *cell == CellId::ONLY)
    }
}

fn subscribed(wanted: ReplicaId) -> impl Fn(&Input) -> bool {
    move |input| matches!(input, Input::Subscribed { replica } if *replica == wanted)
}

#[tokio::test]
async fn a_well_replica_gives_every_kind_of_evidence() {
    let server = Server::start(&[]).await;
    let mut watch = Watch::start(&[target(A, server.port, None)], settings());
    watch
        .until_all(
            "PING, write and own echo",
            &[
                &well(A, ProbeKind::Ping),
                &well(A, ProbeKind::Write),
                &subscribed(A),
                &heard(A, A),
            ],
        )
        .await;

    let seen = watch.during(Duration::from_secs(1)).await;
    let mut sent = Vec::new();
    let mut ages = Vec::new();
    for input in &seen {
        match input {
            Input::HeartbeatSent { on, cell, seq } => {
                assert_eq!((*on, *cell), (A, CellId::ONLY));
                sent.push(*seq);
            }
            Input::HeartbeatHeard { age, .. } => ages.push(*age),
            Input::Probe { outcome, .. } => assert!(outcome.is_ok(), "{input:?}"),
            other => panic!("no such evidence was expected: {other:?}"),
        }
    }
    assert!(sent.len() >= 5, "a heartbeat each 50 ms, for a second: {sent:?}");
    assert!(sent.windows(2).all(|pair| pair[1] == pair[0] + 1), "{sent:?}");
    assert!(ages.len() >= 5 && ages.iter().all(|age| *age < Duration::from_secs(1)));
    ages.sort();
    println!(
        "own echo: median age {:?} of {}",
        ages[ages.len() / 2],
        ages.len()
    );

    // The probe leaves nothing behind for good.
    let key = "pg:probe:{0}:test";
    let life: i64 = redis::cmd("PTTL")
        .arg(key)
        .query_async(&mut server.connect().await)
        .await
        .unwrap();
    assert!((1..=1000).contains(&life), "{life} ms");
    assert_eq!(watch.monitor.ignored().counts(), Default::default());
}

#[tokio::test]
async fn heartbeats_and_fences_are_heard_wherever_they_arrive() {
    // One server under two names: whatever is published on one "replica" arrives on the other.
    let server = Server::start(&[]).await;
    let targets = [target(A, server.port, None), target(B, server.port, None)];
    let mut watch = Watch::start(&targets, settings());
    watch
        .until_all(
            "the whole matrix",
            &[&heard(A, A), &heard(A, B), &heard(B, A), &heard(B, B)],
        )
        .await;
    watch.monitor.publish_fence(7, B);
    let fence = |at: ReplicaId| move |input: &Input| matches!(input, Input::FenceHeard { id: 7, to, cell } if *to == at && *cell == CellId::ONLY);
    watch.until_all("the fence", &[&fence(A), &fence(B)]).await;
    // Once is enough.
    let again = watch.during(Duration::from_millis(300)).await;
    assert!(
        !again
            .iter()
            .any(|input| matches!(input, Input::FenceHeard { .. }))
    );
}

#[tokio::test]
async fn a_killed_server_is_noticed_while_idle() {
    let mut dying = Server::start(&[]).await;
    let other = Server::start(&[]).await;
    // Nothing is asked for ten seconds at a time: only the loss of the connections can tell.
    let settings = Settings {
        heartbeat_interval: Duration::from_secs(10),
        probe_interval: Duration::from_secs(10),
        ..settings()
    };
    let targets = [target(A, dying.port, None), target(B, other.port, None)];
    let mut watch = Watch::start(&targets, settings);
    watch
        .until_all(
            "the first evidence",
            &[
                &well(A, ProbeKind::Ping),
                &well(A, ProbeKind::Write),
                &well(B, ProbeKind::Ping),
                &well(B, ProbeKind::Write),
                &heard(A, A),
                &heard(B, B),
            ],
        )
        .await;
    watch.during(Duration::from_millis(300)).await;

    let killed = Instant::now();
    dying.kill();
    watch
        .until(
            "a broken connection",
            failed(A, ProbeKind::Ping, ProbeFailure::Broken),
        )
        .await;
    let noticed = killed.elapsed();
    for _ in 0..3 {
        watch
            .until(
                "a refused connect",
                failed(A, ProbeKind::Ping, ProbeFailure::Refused),
            )
            .await;
    }
    let refused = killed.elapsed();
    println!("SIGKILL while idle: noticed after {noticed:?}, refused three times after {refused:?}");
    assert!(noticed < Duration::from_millis(100), "{noticed:?}");
    assert!(refused < Duration::from_millis(250), "{refused:?}");

    // It is tried further, though not without end, and the other replica is not blamed.
    let seen = watch.during(Duration::from_secs(1)).await;
    let tries = seen
        .iter()
        .filter(|input| failed(A, ProbeKind::Ping, ProbeFailure::Refused)(input))
        .count();
    assert!((2..=12).contains(&tries), "{tries} tries in a second");
    assert!(
        !seen
            .iter()
            .any(|input| matches!(probed(input, B, ProbeKind::Ping), Some(Err(_))))
    );
}

#[tokio::test]
async fn a_restarted_server_is_found_again() {
    let mut server = Server::start(&[]).await;
    // The heartbeats' interval bounds how soon the own echo is heard; nothing else may wait for an interval.
    let settings = Settings {
        probe_interval: Duration::from_secs(10),
        ..settings()
    };
    let mut watch = Watch::start(&[target(A, server.port, None)], settings);
    watch
        .until_all("the first evidence", &[&well(A, ProbeKind::Write), &heard(A, A)])
        .await;
    server.kill();
    // Long enough for the longest wait between two attempts.
    for _ in 0..9 {
        watch
            .until(
                "a refused connect",
                failed(A, ProbeKind::Ping, ProbeFailure::Refused),
            )
            .await;
    }
    let back = Instant::now();
    server.restart(&[]).await;
    watch
        .until_all(
            "everything again",
            &[
                &well(A, ProbeKind::Ping),
                &well(A, ProbeKind::Write),
                &subscribed(A),
                &heard(A, A),
            ],
        )
        .await;
    println!("restart: all evidence again after {:?}", back.elapsed());
    assert!(back.elapsed() < Duration::from_secs(1), "{:?}", back.elapsed());
}

#[tokio::test]
async fn a_hung_server_times_out_and_delays_no_other() {
    let hung = Server::start(&[]).await;
    let other = Server::start(&[]).await;
    let settings = Settings {
        answer_timeout: Duration::from_millis(300),
        ..settings()
    };
    let targets = [target(A, hung.port, None), target(B, other.port, None)];
    let mut watch = Watch::start(&targets, settings);
    watch
        .until_all(
            "the first evidence",
            &[&well(A, ProbeKind::Ping), &heard(A, A), &heard(B, B)],
        )
        .await;
    watch.forget();

    hung.signal("-STOP");
    let stopped = Instant::now();
    watch
        .until("a time-out", failed(A, ProbeKind::Ping, ProbeFailure::Timeout))
        .await;
    println!("SIGSTOP: PING timed out after {:?}", stopped.elapsed());
    assert!(
        stopped.elapsed() < Duration::from_secs(1),
        "{:?}",
        stopped.elapsed()
    );

    let seen = watch.during(Duration::from_secs(2)).await;
    let timeouts = seen
        .iter()
        .filter(|input| failed(A, ProbeKind::Ping, ProbeFailure::Timeout)(input))
        .count();
    assert!(timeouts >= 3, "{timeouts} time-outs in 2 s, one each 300 ms");
    assert!(!seen.iter().any(heard(A, A)));
    assert!(!seen.iter().any(well(A, ProbeKind::Ping)));
    let pings = seen
        .iter()
        .filter(|input| well(B, ProbeKind::Ping)(input))
        .count();
    let echoes = seen.iter().filter(|input| heard(B, B)(input)).count();
    assert!(
        pings >= 10 && echoes >= 20,
        "the other: {pings} PINGs, {echoes} echoes in 2 s"
    );

    hung.signal("-CONT");
    let woken = Instant::now();
    watch
        .until_all(
            "everything again",
            &[
                &well(A, ProbeKind::Ping),
                &well(A, ProbeKind::Write),
                &heard(A, A),
            ],
        )
        .await;
    println!("SIGCONT: all evidence again after {:?}", woken.elapsed());
    assert!(woken.elapsed() < Duration::from_secs(2), "{:?}", woken.elapsed());
}

#[tokio::test]
async fn a_replica_that_refuses_writes_still_answers() {
    let server = Server::start(&[]).await;
    let mut watch = Watch::start(&[target(A, server.port, None)], settings());
    watch.until("a write", well(A, ProbeKind::Write)).await;
    server
        .command(&["CONFIG", "SET", "min-replicas-to-write", "99"])
        .await;
    watch
        .until("a refused write", rejected(A, ProbeKind::Write, "NOREPLICAS"))
        .await;
    watch
        .until_all("the other evidence", &[&well(A, ProbeKind::Ping), &heard(A, A)])
        .await;
    server
        .command(&["CONFIG", "SET", "min-replicas-to-write", "0"])
        .await;
    server.command(&["CONFIG", "SET", "maxmemory", "1"]).await;
    watch
        .until("a write without room", rejected(A, ProbeKind::Write, "OOM"))
        .await;
    server.command(&["CONFIG", "SET", "maxmemory", "0"]).await;
    watch.until("a write", well(A, ProbeKind::Write)).await;
}

#[tokio::test]
async fn a_pause_of_writes_stalls_no_ping() {
    let server = Server::start(&[]).await;
    let settings = Settings {
        answer_timeout: Duration::from_millis(300),
        ..settings()
    };
    let mut watch = Watch::start(&[target(A, server.port, None)], settings);
    watch.until("a write", well(A, ProbeKind::Write)).await;
    server.command(&["CLIENT", "PAUSE", "60000", "WRITE"]).await;
    watch
        .until(
            "a stalled write",
            failed(A, ProbeKind::Write, ProbeFailure::Timeout),
        )
        .await;
    let seen = watch.during(Duration::from_secs(1)).await;
    let pings = seen
        .iter()
        .filter(|input| well(A, ProbeKind::Ping)(input))
        .count();
    assert!(pings >= 5, "{pings} PINGs in a second");
    assert!(!seen.iter().any(well(A, ProbeKind::Write)));
    server.command(&["CLIENT", "UNPAUSE"]).await;
    watch.until("a write", well(A, ProbeKind::Write)).await;
}

#[tokio::test]
async fn a_loading_server_is_heard_but_rejects_probes() {
    let mut server = Server::start(&[]).await;
    let mut keys = redis::pipe();
    for n in 0..20_000 {
        keys.cmd("SET")
            .arg(format!("key:{n}"))
            .arg("x".repeat(32))
            .ignore();
    }
    keys.exec_async(&mut server.connect().await).await.unwrap();
    server.command(&["SAVE"]).await;
    server.kill();
    server
        .restart(&[
            "--key-load-delay",
            "1000",
            "--loading-process-events-interval-bytes",
            "1024",
        ])
        .await;
    let mut watch = Watch::start(&[target(A, server.port, None)], settings());
    watch
        .until_all(
            "LOADING on both probes, and the echo",
            &[
                &rejected(A, ProbeKind::Ping, "LOADING"),
                &rejected(A, ProbeKind::Write, "LOADING"),
                &heard(A, A),
            ],
        )
        .await;
}

#[tokio::test]
async fn a_wrong_password_is_told_and_not_tried_in_a_hurry() {
    let server = Server::start(&["--requirepass", "right"]).await;
    let mut watch = Watch::start(&[target(A, server.port, Some("wrong"))], settings());
    watch
        .until("a refusal", rejected(A, ProbeKind::Ping, "WRONGPASS"))
        .await;
    let seen = watch.during(Duration::from_secs(1)).await;
    let tries = seen
        .iter()
        .filter(|input| probed(input, A, ProbeKind::Ping).is_some())
        .count();
    assert!((3..=11).contains(&tries), "{tries} tries, one each 100 ms");
    drop(watch);

    let mut watch = Watch::start(&[target(A, server.port, None)], settings());
    watch
        .until("a refusal", rejected(A, ProbeKind::Ping, "NOAUTH"))
        .await;
    drop(watch);

    let mut watch = Watch::start(&[target(A, server.port, Some("right"))], settings());
    watch
        .until_all(
            "all evidence",
            &[
                &well(A, ProbeKind::Ping),
                &well(A, ProbeKind::Write),
                &heard(A, A),
            ],
        )
        .await;
}

#[tokio::test]
async fn only_the_subscription_is_lost() {
    let server = Server::start(&[]).await;
    // Nobody waits ten seconds to hear that the replica itself is well: the loss has it looked at.
    let settings = Settings {
        probe_interval: Duration::from_secs(10),
        ..settings()
    };
    let mut watch = Watch::start(&[target(A, server.port, None)], settings);
    watch
        .until_all("the first evidence", &[&well(A, ProbeKind::Ping), &heard(A, A)])
        .await;
    watch.forget();
    let killed = Instant::now();
    server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).await;
    watch
        .until("the loss", failed(A, ProbeKind::Ping, ProbeFailure::Broken))
        .await;
    watch
        .until_all(
            "its return",
            &[&well(A, ProbeKind::Ping), &subscribed(A), &heard(A, A)],
        )
        .await;
    assert!(
        killed.elapsed() < Duration::from_secs(2),
        "{:?}",
        killed.elapsed()
    );
}

#[tokio::test]
async fn what_others_say_on_our_channel_is_no_evidence() {
    let server = Server::start(&[]).await;
    let mut watch = Watch::start(&[target(A, server.port, None)], settings());
    watch.until("the echo", heard(A, A)).await;

    let channel = "pg:hb:test:0-replica-0:{0}";
    let client = redis::Client::open(("127.0.0.1", server.port)).unwrap();
    let mut spy = client.get_async_pubsub().await.unwrap();
    spy.subscribe(channel).await.unwrap();
    let overheard = tokio::time::timeout(PATIENCE, futures_util::StreamExt::next(&mut spy.on_message()))
        .await
        .unwrap()
        .unwrap();
    let payload: String = overheard.get_payload().unwrap();
    let mut words: Vec<&str> = payload.split(' ').collect();
    assert_eq!(words[..3], ["pg1", "hb", "test"], "{payload}");
    words[3] = "00000000deadbeef";
    let earlier = words.join(" ");

    for message in ["garbage", &earlier, &payload] {
        server.command(&["PUBLISH", channel, message]).await;
    }
    let deadline = Instant::now() + PATIENCE;
    loop {
        let counts = watch.monitor.ignored().counts();
        if (counts.malformed, counts.foreign, counts.duplicate) == (1, 1, 1) {
            break;
        }
        assert!(Instant::now() < deadline, "{counts:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut seqs: Vec<u64> = Vec::new();
    for input in watch.during(Duration::from_millis(300)).await {
        if let Input::HeartbeatHeard { seq, .. } = input {
            seqs.push(seq);
        }
    }
    let mut unique = seqs.clone();
    unique.dedup();
    assert_eq!(seqs, unique);
}

/// A peer that does with each connection what `answer` says, and counts them.
async fn impostor(answer: &'static [u8]) -> (u16, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let accepted = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&accepted);
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            count.fetch_add(1, Ordering::Relaxed);
            tokio::spawn(async move {
                let mut request = [0; 512];
                if !answer.is_empty() && tcp.read(&mut request).await.is_ok() {
                    let _ = tcp.write_all(answer).await;
                }
            });
        }
    });
    (port, accepted)
}

#[tokio::test]
async fn a_peer_that_is_no_redis_is_told_and_left_in_peace() {
    let (port, accepted) = impostor(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    let mut watch = Watch::start(&[target(A, port, None)], settings());
    watch
        .until(
            "a refusal",
            rejected(A, ProbeKind::Ping, "something that is no Redis reply"),
        )
        .await;
    watch.during(Duration::from_secs(1)).await;
    let accepted = accepted.load(Ordering::Relaxed);
    assert!(accepted <= 50, "{accepted} connections in about a second");
}

#[tokio::test]
async fn a_peer_that_hangs_up_is_not_dialled_in_a_loop() {
    for answer in [&b""[..], b"+PONG\r\n", b"-ERR max number of clients reached\r\n"] {
        let (port, accepted) = impostor(answer).await;
        let mut watch = Watch::start(&[target(A, port, None)], settings());
        watch
            .until(
                "a broken connection",
                failed(A, ProbeKind::Ping, ProbeFailure::Broken),
            )
            .await;
        watch.during(Duration::from_secs(1)).await;
        let accepted = accepted.load(Ordering::Relaxed);
        assert!(
            (5..=60).contains(&accepted),
            "{accepted} connections in about a second, answering {answer:?}"
        );
    }
}

#[tokio::test]
async fn a_silent_peer_collects_no_connections() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let open = Arc::new(AtomicUsize::new(0));
    let total = Arc::new(AtomicUsize::new(0));
    let (counted, accepted) = (Arc::clone(&open), Arc::clone(&total));
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            accepted.fetch_add(1, Ordering::Relaxed);
            counted.fetch_add(1, Ordering::Relaxed);
            let counted = Arc::clone(&counted);
            tokio::spawn(async move {
                let mut requests = Vec::new();
                let _ = tcp.read_to_end(&mut requests).await;
                // The other side writes no more; that it has let go altogether shows when it takes no more either. An
                // answer without an end is what keeps a forgotten reader waiting.
                while tcp.write_all(b"+").await.is_ok() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
                counted.fetch_sub(1, Ordering::Relaxed);
            });
        }
    });
    let settings = Settings {
        answer_timeout: Duration::from_millis(50),
        ..settings()
    };
    let mut watch = Watch::start(&[target(A, port, None)], settings);
    watch.during(Duration::from_secs(2)).await;
    let (open, total) = (open.load(Ordering::Relaxed), total.load(Ordering::Relaxed));
    assert!(total >= 10, "it was dialled again and again: {total} times");
    // One more for each task may be on its way out.
    assert!(open <= 6, "{open} of {total} connections are still open");
}
