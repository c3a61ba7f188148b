//! Reads elsewhere: who reads where, that nobody reads less than it wrote, and that nobody waits for a replica that only
//! serves reads.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use pulsegate::route::{Feedback, LinkEvidence};
use rig::Rig;

use crate::plane::{LOCAL, Plane, REMOTE, bulk, wait_until};
use crate::support::{App, PATIENCE, now, two_regions};

const OLDER: &str = "a session read less than it had written";

/// Two regions of which each says in the key `here` which it is; nothing crosses any more.
async fn two_that_differ() -> Rig {
    let rig = two_regions().await;
    for (from, to) in [("local", "remote"), ("remote", "local")] {
        rig.cut_link(from, to).await.unwrap();
    }
    for name in ["local", "remote"] {
        rig.region(name).command(&["SET", "here", name]).await.unwrap();
    }
    rig
}

/// The value of a key in one region.
async fn value(rig: &Rig, region: &str, key: &str) -> Option<String> {
    let value = rig.region(region).command(&["GET", key]).await.unwrap();
    redis::from_redis_value(value).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn shares_of_sessions_are_stable_and_only_grow() {
    let rig = two_that_differ().await;
    let mut plane = Plane::start(&rig, 2).await;
    let mut apps = Vec::new();
    for _ in 0..1000 {
        apps.push(plane.app().await);
    }
    let mut before: BTreeSet<usize> = BTreeSet::new();
    for percent in [10, 50, 100] {
        plane
            .route(|route| {
                route.read = vec![(REMOTE, percent), (LOCAL, 100 - percent)];
                route.read_your_writes = false;
            })
            .await;
        let now_elsewhere = elsewhere(&mut apps).await;
        assert!(
            now_elsewhere.len().abs_diff(usize::from(percent) * 10) <= 20,
            "{percent} %: {} of 1000",
            now_elsewhere.len()
        );
        assert_eq!(elsewhere(&mut apps).await, now_elsewhere, "a session moved");
        assert!(
            before.is_subset(&now_elsewhere),
            "{percent} % took a session back"
        );
        before = now_elsewhere;
    }
    plane.route(|route| route.read = vec![(LOCAL, 100)]).await;
    assert!(elsewhere(&mut apps).await.is_empty());
}

/// Which of the sessions read remote.
async fn elsewhere(apps: &mut [App]) -> BTreeSet<usize> {
    for app in &mut *apps {
        app.say(&["GET", "here"]).await;
    }
    let mut found = BTreeSet::new();
    for (n, app) in apps.iter_mut().enumerate() {
        if app.hear().await == bulk("remote") {
            found.insert(n);
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn only_plain_reads_go_elsewhere() {
    let rig = two_that_differ().await;
    let mut plane = Plane::start(&rig, 1).await;
    plane
        .route(|route| {
            route.read = vec![(REMOTE, 100)];
            route.read_your_writes = false;
        })
        .await;
    let mut app = plane.app().await;
    let script = "return redis.call('GET', 'here')";
    for words in [
        &["EVAL", script, "0"][..],
        &["EVAL_RO", script, "0"],
        &["GETEX", "here"],
    ] {
        assert_eq!(app.ask(words).await, bulk("local"), "{words:?}");
    }
    app.send(b"MULTI\r\nGET here\r\nEXEC\r\n").await;
    assert_eq!(app.hear().await, "+OK\r\n");
    assert_eq!(app.hear().await, "+QUEUED\r\n");
    assert_eq!(app.hear().await, format!("*1\r\n{}", bulk("local")));
    assert_eq!(
        app.ask(&["GET", "here"]).await,
        bulk("remote"),
        "the transaction is over"
    );
    app.ask(&["WATCH", "here"]).await;
    assert_eq!(app.ask(&["GET", "here"]).await, bulk("local"), "while it watches");
    app.ask(&["UNWATCH"]).await;
    app.ask(&["CLIENT", "TRACKING", "ON", "BCAST"]).await;
    assert_eq!(app.ask(&["GET", "here"]).await, bulk("local"), "while it tracks");
    app.ask(&["RESET"]).await;
    assert_eq!(app.ask(&["GET", "here"]).await, bulk("remote"));
    assert_eq!(app.ask(&["SET", "written", "1"]).await, "+OK\r\n");
    assert_eq!(value(&rig, "local", "written").await.as_deref(), Some("1"));
    assert_eq!(value(&rig, "remote", "written").await, None);
    assert!(
        app.ask(&["SCAN", "0", "MATCH", "written", "COUNT", "1000"])
            .await
            .contains("written")
    );
}

/// Sessions that write a number and read it back, again and again; how many reads were older than the write.
async fn check_own_writes(plane: &Plane, sessions: usize) -> usize {
    let mut tasks = Vec::new();
    for session in 0..sessions {
        let mut app = plane.app().await;
        tasks.push(tokio::spawn(async move {
            let (key, mut older) = (format!("own:{session}"), 0);
            for n in 1_u32..=3 {
                assert_eq!(app.ask(&["SET", &key, &n.to_string()]).await, "+OK\r\n");
                let until = now() + Duration::from_millis(500);
                while now() < until {
                    let reply = app.ask(&["GET", &key]).await;
                    let read: u32 = reply
                        .split("\r\n")
                        .nth(1)
                        .and_then(|n| n.parse().ok())
                        .unwrap_or(0);
                    older += usize::from(read < n);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
            older
        }));
    }
    let mut older = 0;
    for task in tasks {
        older += task.await.unwrap();
    }
    older
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_never_reads_less_than_it_wrote() {
    let rig = Arc::new(two_regions().await);
    rig.delay_link("local", "remote", Duration::from_millis(200))
        .unwrap();
    let mut plane = Plane::start(&rig, 2).await;
    let proving = plane.prove_progress(&rig);
    // A session that wrote before the split began is no exception.
    let mut early = plane.app().await;
    assert_eq!(early.ask(&["SET", "early", "1"]).await, "+OK\r\n");
    plane.route(|route| route.read = vec![(REMOTE, 100)]).await;
    assert_eq!(early.ask(&["GET", "early"]).await, bulk("1"), "{OLDER}");
    assert_eq!(check_own_writes(&plane, 100).await, 0, "{OLDER}");
    let elsewhere = plane.reads_on(REMOTE);
    assert!(elsewhere > 100, "only {elsewhere} reads went elsewhere at all");

    plane.route(|route| route.read_your_writes = false).await;
    let older = check_own_writes(&plane, 10).await;
    assert!(older > 0, "without the guard the checker has to see older values");
    proving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_does_not_overtake_reads_elsewhere() {
    let rig = Arc::new(two_regions().await);
    let mut plane = Plane::start(&rig, 1).await;
    let proving = plane.prove_progress(&rig);
    plane.route(|route| route.read = vec![(REMOTE, 100)]).await;
    let mut app = plane.app().await;
    assert_eq!(app.ask(&["SET", "k", "old"]).await, "+OK\r\n");
    let (reads, deadline) = (plane.reads_on(REMOTE), now() + PATIENCE);
    while plane.reads_on(REMOTE) == reads {
        assert!(now() < deadline, "it does not read elsewhere");
        assert_eq!(app.ask(&["GET", "k"]).await, bulk("old"), "{OLDER}");
    }
    proving.abort();
    rig.hang("remote").await.unwrap();
    app.send(b"GET k\r\nSET k new\r\nGET k\r\n").await;
    assert_eq!(
        app.try_hear(Duration::from_millis(300)).await,
        Err("silence".into())
    );
    assert_eq!(value(&rig, "local", "k").await.as_deref(), Some("old"));
    rig.unhang("remote").await.unwrap();
    assert_eq!(app.hear().await, bulk("old"));
    assert_eq!(app.hear().await, "+OK\r\n");
    assert_eq!(app.hear().await, bulk("new"), "{OLDER}");
    assert_eq!(value(&rig, "local", "k").await.as_deref(), Some("new"));
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_of_two_replicas_come_in_order() {
    let rig = two_that_differ().await;
    let mut plane = Plane::start(&rig, 1).await;
    plane
        .route(|route| {
            route.read = vec![(REMOTE, 100)];
            route.read_your_writes = false;
        })
        .await;
    let mut app = plane.app().await;
    rig.hang("remote").await.unwrap();
    app.send(b"GET here\r\nINCR n\r\nINCR n\r\nGET here\r\nINCR n\r\nPING\r\n")
        .await;
    wait_until("the writes", async || {
        value(&rig, "local", "n").await.as_deref() == Some("3")
    })
    .await;
    assert_eq!(
        app.try_hear(Duration::from_millis(50)).await,
        Err("silence".into())
    );
    rig.unhang("remote").await.unwrap();
    for reply in [
        &bulk("remote"),
        ":1\r\n",
        ":2\r\n",
        &bulk("remote"),
        ":3\r\n",
        "+PONG\r\n",
    ] {
        assert_eq!(app.hear().await, reply);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_on_a_replica_that_dies_are_asked_again_where_writes_go() {
    let rig = two_that_differ().await;
    let mut plane = Plane::start(&rig, 1).await;
    plane
        .route(|route| {
            route.read = vec![(REMOTE, 100)];
            route.read_your_writes = false;
        })
        .await;
    let mut apps = Vec::new();
    for _ in 0..20 {
        apps.push(plane.app().await);
    }
    rig.hang("remote").await.unwrap();
    let sent = plane.reads_on(REMOTE);
    for app in &mut apps {
        app.send(b"GET here\r\nINCR n\r\nGET here\r\n").await;
    }
    wait_until("reads on the hung replica", async || {
        plane.reads_on(REMOTE) == sent + 40
    })
    .await;
    rig.kill("remote").await.unwrap();
    for app in &mut apps {
        assert_eq!(app.hear().await, bulk("local"));
        assert!(app.hear().await.starts_with(':'));
        assert_eq!(app.hear().await, bulk("local"));
    }
    assert_eq!(
        value(&rig, "local", "n").await.as_deref(),
        Some("20"),
        "each write once"
    );
    assert_eq!(plane.count(|worker| worker.retried.get()), 40);
    // It stays away, and nobody waits for it.
    let began = now();
    for app in &mut apps {
        assert_eq!(app.ask(&["GET", "here"]).await, bulk("local"));
    }
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(plane.count(|worker| worker.unavailable.get()), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_read_elsewhere_is_answered_before_a_move() {
    let rig = two_that_differ().await;
    let mut plane = Plane::start(&rig, 1).await;
    plane
        .route(|route| {
            route.read = vec![(REMOTE, 100)];
            route.read_your_writes = false;
        })
        .await;
    let mut app = plane.app().await;
    rig.hang("remote").await.unwrap();
    let sent = plane.reads_on(REMOTE);
    app.say(&["GET", "here"]).await;
    wait_until("the read is on its way", async || plane.reads_on(REMOTE) > sent).await;
    let holding = plane.publish(|route| route.holding = true);
    app.say(&["INCR", "n"]).await;
    let told = tokio::time::timeout(Duration::from_millis(300), plane.drained(holding)).await;
    assert!(told.is_err(), "a read is unanswered, so nothing is drained");
    // Back to one replica, without haste.
    plane.publish(|route| (route.read, route.holding) = (vec![(LOCAL, 100)], false));
    rig.unhang("remote").await.unwrap();
    assert_eq!(app.hear().await, bulk("remote"));
    assert_eq!(app.hear().await, ":1\r\n");
    assert_eq!(app.ask(&["GET", "here"]).await, bulk("local"));
    let holding = plane.publish(|route| route.holding = true);
    plane.drained(holding).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_that_speak_of_the_replica_are_evidence() {
    let rig = two_regions().await;
    let mut plane = Plane::start(&rig, 1).await;
    let mut app = plane.app().await;
    assert_eq!(app.ask(&["SET", "k", "v"]).await, "+OK\r\n");
    assert!(
        app.ask(&["INCR", "k"]).await.starts_with("-ERR"),
        "says nothing of the replica"
    );

    rig.out_of_memory("local").await.unwrap();
    let (began, mut refused) = (now(), 0);
    while began.elapsed() < Duration::from_millis(350) {
        assert!(app.ask(&["SET", "k", "v"]).await.starts_with("-OOM"));
        refused += 1;
    }
    let most = began.elapsed().as_millis() as usize / 100 + 1;
    let told = evidence(&mut plane);
    let unwritable = told
        .iter()
        .filter(|seen| **seen == LinkEvidence::Unwritable)
        .count();
    assert!(
        (2..=most).contains(&unwritable),
        "{unwritable} for {refused} refusals"
    );
    assert!(!told.contains(&LinkEvidence::Unready));
    rig.free_memory("local").await.unwrap();

    let region = rig.region("local");
    region
        .command(&["CONFIG", "SET", "replica-serve-stale-data", "no"])
        .await
        .unwrap();
    rig.stale_outbound("local").await.unwrap();
    assert!(app.ask(&["GET", "k"]).await.starts_with("-MASTERDOWN"));
    assert!(evidence(&mut plane).contains(&LinkEvidence::Unready));
}

/// What was told of the first region since the last call.
fn evidence(plane: &mut Plane) -> Vec<LinkEvidence> {
    let mut all = Vec::new();
    while let Ok(told) = plane.feedback.try_recv() {
        if let Feedback::Link { replica: LOCAL, seen } = told {
            all.push(seen);
        }
    }
    all
}
