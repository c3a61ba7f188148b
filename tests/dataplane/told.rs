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
