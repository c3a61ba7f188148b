//! What a session is told of all shards: keys that changed, and MONITOR's lines.

use std::collections::BTreeSet;
use std::time::Duration;

use pulsegate::resp::slot;

use crate::cluster::Cluster;
use crate::plane::{Plane, REMOTE, bulk};
use crate::shards::{KEYS, one_replica};
use crate::support::{App, PATIENCE, now};

/// All that a cache holds is doubtful.
const ALL: &str = ">2\r\n$10\r\ninvalidate\r\n_\r\n";

fn invalidated(key: &str) -> String {
    format!(">2\r\n{}*1\r\n{}", bulk("invalidate"), bulk(key))
}

async fn tracker(plane: &Plane, words: &[&str]) -> App {
    let mut app = plane.app().await;
    app.ask(&["HELLO", "3"]).await;
    let words = [&["CLIENT", "TRACKING", "ON"], words].concat();
    assert_eq!(app.ask(&words).await, "+OK\r\n");
    app
}

/// Each of the keys is read, changed by another, and told of.
async fn tells_of_changes(plane: &Plane, app: &mut App, round: &str) {
    let mut other = plane.app().await;
    for key in KEYS {
        other.ask(&["SET", key, round]).await;
        assert_eq!(app.ask(&["GET", key]).await, bulk(round));
    }
    for key in KEYS {
        other.ask(&["SET", key, "another"]).await;
        assert_eq!(app.hear().await, invalidated(key), "{round}");
    }
    let all: String = KEYS.iter().map(|_| bulk("another")).collect();
    assert_eq!(
        app.ask(&["MGET", KEYS[0], KEYS[1], KEYS[2]]).await,
        format!("*3\r\n{all}")
    );
    for key in KEYS {
        other.ask(&["APPEND", key, "x"]).await;
        assert_eq!(app.hear().await, invalidated(key), "{round}, read with MGET");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_tracks_keys_is_told_of_those_of_all_shards() {
    let (_cluster, plane) = one_replica().await;
    let mut app = tracker(&plane, &[]).await;
    tells_of_changes(&plane, &mut app, "first").await;
    // A transaction goes to the node of its keys and takes nothing away, or says so.
    for key in KEYS {
        app.say(&["MULTI"]).await;
        app.say(&["GET", key]).await;
        app.say(&["EXEC"]).await;
        let mut said = Vec::new();
        while said.len() < 3 {
            let frame = app.hear().await;
            if frame != ALL {
                said.push(frame);
            }
        }
        assert_eq!(said[2], format!("*1\r\n{}", bulk("anotherx")));
    }
    // What was read inside is told of, too.
    let mut other = plane.app().await;
    for key in KEYS {
        other.ask(&["DEL", key]).await;
    }
    let mut told = BTreeSet::new();
    while let Ok(said) = app.try_hear(Duration::from_millis(100)).await {
        told.insert(said);
    }
    assert!(told.contains(&invalidated(KEYS[2])), "{told:?}");
    tells_of_changes(&plane, &mut app, "second").await;
    // Its own writes are none of its business, if it says so.
    let mut quiet = tracker(&plane, &["BCAST", "PREFIX", "n:", "NOLOOP"]).await;
    for n in 0..30 {
        let key = format!("n:{n}");
        assert_eq!(quiet.ask(&["SET", &key, "1"]).await, "+OK\r\n");
        other.ask(&["SET", &key, "2"]).await;
        assert_eq!(quiet.hear().await, invalidated(&key));
    }
    assert_eq!(quiet.ask(&["CLIENT", "TRACKING", "OFF"]).await, "+OK\r\n");
    for n in 0..30 {
        other.ask(&["SET", &format!("n:{n}"), "3"]).await;
    }
    assert_eq!(quiet.ask(&["PING"]).await, "+PONG\r\n", "and no word of any key");
    for way in ["OPTIN", "OPTOUT"] {
        let reply = quiet.ask(&["CLIENT", "TRACKING", "ON", way]).await;
        assert!(reply.starts_with("-ERR client tracking with"), "{reply}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_may_have_missed_a_change_is_told_to_forget_all() {
    let (mut local, remote) = (Cluster::start(3).await, Cluster::start(2).await);
    let layouts = vec![local.layout(0).await, remote.layout(0).await];
    let mut plane = Plane::before(&[local.nodes[0].port, remote.nodes[0].port], 1, layouts).await;
    let mut app = tracker(&plane, &[]).await;
    tells_of_changes(&plane, &mut app, "first").await;
    let lost = local.owner(slot(KEYS[1].as_bytes())).await;
    local.nodes[lost].kill();
    assert_eq!(app.hear().await, ALL);
    plane
        .route(|route| {
            route.write = REMOTE;
            route.read = vec![(REMOTE, 100)];
            route.abandon_others = true;
        })
        .await;
    assert_eq!(app.hear().await, ALL);
    // Each connection that is left says so.
    while app
        .try_hear(Duration::from_millis(200))
        .await
        .is_ok_and(|said| said == ALL)
    {}
    tells_of_changes(&plane, &mut app, "second").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn monitor_shows_the_commands_of_all_shards() {
    let (_cluster, plane) = one_replica().await;
    let mut monitor = plane.app().await;
    assert_eq!(monitor.ask(&["MONITOR"]).await, "+OK\r\n");
    let mut app = plane.app().await;
    let (mut seen, deadline) = (BTreeSet::<&&str>::new(), now() + PATIENCE);
    // The connections to the other nodes are not there at once.
    while seen.len() < KEYS.len() {
        for key in KEYS {
            app.ask(&["SET", key, "seen"]).await;
        }
        while let Ok(line) = monitor.try_hear(Duration::from_millis(20)).await {
            assert!(line.starts_with('+'), "{line}");
            seen.extend(
                KEYS.iter()
                    .filter(|key| line.contains(&format!("\"SET\" \"{key}\""))),
            );
        }
        assert!(now() < deadline, "only {seen:?}");
    }
    // Once each.
    app.ask(&["SET", KEYS[0], "once"]).await;
    app.ask(&["SET", KEYS[1], "once"]).await;
    let mut lines = Vec::new();
    while let Ok(line) = monitor.try_hear(Duration::from_millis(200)).await {
        lines.extend(line.contains("once").then_some(line));
    }
    assert_eq!(lines.len(), 2, "{lines:?}");
}

/// What comes next that speaks of no key, and all that came before it.
async fn skip_invalidations(app: &mut App) -> (String, Vec<String>) {
    let mut told = Vec::new();
    loop {
        let said = app.hear().await;
        if !said.contains("invalidate") {
            return (said, told);
        }
        told.push(said);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_owed_comes_whole_and_is_not_believed_too_long() {
    let (cluster, plane) = one_replica().await;
    let (mut app, mut other) = (tracker(&plane, &[]).await, plane.app().await);
    for key in KEYS {
        other.ask(&["SET", key, "old"]).await;
    }
    other.ask(&["SET", KEYS[2], "slow"]).await;
    // One node takes its time; what another has answered meanwhile changes before the application sees it.
    let slow = cluster.owner(slot(KEYS[2].as_bytes())).await;
    let _: String = cluster.ask(slow, &["CLIENT", "PAUSE", "700", "ALL"]).await;
    app.say(&["MGET", KEYS[0], KEYS[2]]).await;
    app.say(&["GET", KEYS[2]]).await;
    app.say(&["GET", KEYS[1]]).await;
    app.say(&["PING"]).await;
    for key in [KEYS[0], KEYS[1]] {
        other.ask(&["SET", key, "new"]).await;
    }
    let mut heard = Vec::new();
    // What waits for the answer to the first PING comes before that to the second.
    while heard.last().is_none_or(|last| last != "+PONG\r\n") {
        heard.push(app.hear().await);
    }
    let (_, late) = {
        app.say(&["PING"]).await;
        skip_invalidations(&mut app).await
    };
    heard.extend(late);
    let replies = heard
        .iter()
        .enumerate()
        .filter(|(_, frame)| !frame.starts_with('>'));
    let replies: Vec<_> = replies.collect();
    assert!(
        replies[0].1.contains("old"),
        "nothing was owed for long: {heard:?}"
    );
    for (key, (at, reply)) in [(KEYS[0], replies[0]), (KEYS[1], replies[2])] {
        if reply.contains("old") {
            let told = heard[at..].contains(&invalidated(key));
            assert!(told, "{key} is believed for ever: {heard:?}");
        }
    }
    // A long reply is not torn by what others say meanwhile.
    let big = "v".repeat(9 << 20);
    other.ask(&["SET", KEYS[1], &big]).await;
    app.ask(&["SSUBSCRIBE", KEYS[0]]).await;
    let (reading, writing) = (
        async {
            for _ in 0..5 {
                app.say(&["GET", KEYS[1]]).await;
                let mut reply = app.hear().await;
                while reply.len() < 1 << 20 {
                    reply = app.hear().await;
                }
                assert_eq!(reply.len(), bulk(&big).len());
                assert!(reply == bulk(&big), "the reply is torn");
            }
        },
        async {
            loop {
                other.ask(&["SPUBLISH", KEYS[0], "between"]).await;
                other.ask(&["SET", KEYS[2], "between"]).await;
            }
        },
    );
    tokio::select! {
        () = reading => {}
        () = writing => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_ends_or_changes_something_is_answered_all_that_is_owed() {
    let (cluster, plane) = one_replica().await;
    let mut other = plane.app().await;
    for key in KEYS {
        other.ask(&["SET", key, "1"]).await;
    }
    for node in 0..3 {
        let user = ["ACL", "SETUSER", "u", "on", ">p", "~*", "&*", "+@all", "-get"];
        let _: String = cluster.ask(node, &user).await;
    }
    // RESET behind reads that other nodes have yet to answer.
    let mut app = tracker(&plane, &[]).await;
    for node in 0..3 {
        let _: String = cluster.ask(node, &["CLIENT", "PAUSE", "200", "ALL"]).await;
    }
    for key in KEYS {
        app.say(&["GET", key]).await;
    }
    app.say(&["RESET"]).await;
    app.say(&["GET", KEYS[0]]).await;
    for _ in KEYS {
        assert_eq!(app.hear().await, bulk("1"));
    }
    assert_eq!(app.hear().await, "+RESET\r\n");
    assert_eq!(app.hear().await, bulk("1"));
    // Another user is another everywhere.
    let mut app = tracker(&plane, &[]).await;
    for key in KEYS {
        assert_eq!(app.ask(&["GET", key]).await, bulk("1"));
    }
    app.say(&["AUTH", "u", "p"]).await;
    for key in KEYS {
        app.say(&["GET", key]).await;
    }
    assert_eq!(skip_invalidations(&mut app).await.0, "+OK\r\n");
    for key in KEYS {
        let (reply, _) = skip_invalidations(&mut app).await;
        assert!(reply.starts_with("-NOPERM"), "{key}: {reply}");
    }
    // QUIT behind the same.
    let mut app = tracker(&plane, &[]).await;
    for node in 0..3 {
        let _: String = cluster.ask(node, &["CLIENT", "PAUSE", "200", "ALL"]).await;
    }
    for key in KEYS {
        app.say(&["GET", key]).await;
    }
    app.say(&["QUIT"]).await;
    for _ in KEYS {
        assert_eq!(app.hear().await, bulk("1"));
    }
    assert_eq!(app.hear().await, "+OK\r\n");
    assert_eq!(app.try_hear(PATIENCE).await, Err("closed".into()));
    // And an application that only closes its side.
    let mut app = tracker(&plane, &[]).await;
    for node in 0..3 {
        let _: String = cluster.ask(node, &["CLIENT", "PAUSE", "200", "ALL"]).await;
    }
    for key in KEYS {
        app.say(&["GET", key]).await;
    }
    app.shut_down().await;
    for _ in KEYS {
        assert_eq!(app.hear().await, bulk("1"));
    }
    assert_eq!(app.try_hear(PATIENCE).await, Err("closed".into()));
}
