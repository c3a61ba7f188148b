//! Sharded channels on one connection, wherever their shards are: nobody is told that there are any.

use std::sync::Arc;
use std::time::Duration;

use pulsegate::replica::Layout;
use pulsegate::resp::slot;

use crate::cluster::Cluster;
use crate::plane::{LOCAL, Plane, REMOTE, bulk};
use crate::shards::{KEYS, follow_layout, one_replica};
use crate::support::{App, PATIENCE, now};

/// A frame of three elements about a channel.
fn frame(sign: char, word: &str, channel: &str, last: &str) -> String {
    format!("{sign}3\r\n{}{}{last}", bulk(word), bulk(channel))
}

fn confirmed(sign: char, word: &str, channel: &str, count: usize) -> String {
    frame(sign, word, channel, &format!(":{count}\r\n"))
}

fn message(sign: char, channel: &str, text: &str) -> String {
    frame(sign, "smessage", channel, &bulk(text))
}

/// Speaks until the listener hears it, on every one of the channels; it hears nothing else.
async fn all_are_heard(plane: &Plane, listener: &mut App, sign: char, channels: &[&str], text: &str) {
    let mut speaker = plane.app().await;
    let deadline = now() + PATIENCE;
    for channel in channels {
        loop {
            speaker.ask(&["SPUBLISH", channel, text]).await;
            match listener.try_hear(Duration::from_millis(50)).await {
                Ok(said) => {
                    let known = channels
                        .iter()
                        .any(|channel| said == message(sign, channel, text));
                    assert!(known, "unasked: {said}");
                    if said == message(sign, channel, text) {
                        break;
                    }
                }
                Err(why) => assert!(why == "silence" && now() < deadline, "{text}: {channel}: {why}"),
            }
        }
    }
    // What was said more than once.
    while let Ok(said) = listener.try_hear(Duration::from_millis(50)).await {
        let known = channels
            .iter()
            .any(|channel| said == message(sign, channel, text));
        assert!(known, "unasked: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_connection_hears_channels_of_all_shards() {
    let (_cluster, plane) = one_replica().await;
    for (protocol, sign) in [("2", '*'), ("3", '>')] {
        let mut app = plane.app().await;
        app.ask(&["HELLO", protocol]).await;
        let mut bytes = String::new();
        // In one go, so that nothing may overtake anything.
        for key in KEYS {
            bytes += &format!("SSUBSCRIBE {key}\r\n");
        }
        app.send(bytes.as_bytes()).await;
        for (count, key) in KEYS.iter().enumerate() {
            assert_eq!(app.hear().await, confirmed(sign, "ssubscribe", key, count + 1));
        }
        let two = [format!("{{{}}}1", KEYS[1]), format!("{{{}}}2", KEYS[1])];
        app.say(&["SSUBSCRIBE", &two[0], &two[1]]).await;
        assert_eq!(app.hear().await, confirmed(sign, "ssubscribe", &two[0], 4));
        assert_eq!(app.hear().await, confirmed(sign, "ssubscribe", &two[1], 5));
        all_are_heard(&plane, &mut app, sign, &KEYS, "first").await;
        if sign == '>' {
            // It goes on talking meanwhile, and may listen to plain channels, which are counted by themselves.
            for key in KEYS {
                assert_eq!(app.ask(&["SET", key, "1"]).await, "+OK\r\n");
            }
            assert_eq!(
                app.ask(&["SUBSCRIBE", "news"]).await,
                confirmed(sign, "subscribe", "news", 1)
            );
            all_are_heard(&plane, &mut app, sign, &KEYS, "second").await;
        }
        assert_eq!(
            app.ask(&["SUNSUBSCRIBE", KEYS[0]]).await,
            confirmed(sign, "sunsubscribe", KEYS[0], 4)
        );
        assert_eq!(
            app.ask(&["SUNSUBSCRIBE", KEYS[0]]).await,
            confirmed(sign, "sunsubscribe", KEYS[0], 4)
        );
        let mut speaker = plane.app().await;
        speaker.ask(&["SPUBLISH", KEYS[0], "to nobody"]).await;
        all_are_heard(&plane, &mut app, sign, &KEYS[1..], "third").await;
        app.say(&["SUNSUBSCRIBE"]).await;
        let mut left: Vec<String> = Vec::new();
        for count in (0..4).rev() {
            let said = app.hear().await;
            assert!(said.ends_with(&format!(":{count}\r\n")), "{said}");
            left.push(said.split("\r\n").nth(4).unwrap().to_owned());
        }
        left.sort();
        let mut wanted = vec![
            KEYS[1].to_owned(),
            KEYS[2].to_owned(),
            two[0].clone(),
            two[1].clone(),
        ];
        wanted.sort();
        assert_eq!(left, wanted);
        let nil = if sign == '>' { "_\r\n" } else { "$-1\r\n" };
        assert_eq!(
            app.ask(&["SUNSUBSCRIBE"]).await,
            format!("{sign}3\r\n{}{nil}:0\r\n", bulk("sunsubscribe"))
        );
        if sign == '*' {
            assert_eq!(
                app.ask(&["GET", "nothing"]).await,
                "$-1\r\n",
                "it is a plain one again"
            );
        }
        assert!(
            app.ask(&["SSUBSCRIBE", KEYS[0], KEYS[1]])
                .await
                .starts_with("-CROSSSLOT")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_whose_slot_moves_is_heard_on_and_on() {
    let (cluster, mut plane) = one_replica().await;
    let cluster = Arc::new(cluster);
    let following = follow_layout(&cluster, &mut plane);
    let mut app = plane.app().await;
    app.ask(&["HELLO", "3"]).await;
    for key in KEYS {
        app.ask(&["SSUBSCRIBE", key]).await;
    }
    all_are_heard(&plane, &mut app, '>', &KEYS, "before").await;
    for round in 0..4 {
        for key in KEYS {
            let own = slot(key.as_bytes());
            let from = cluster.owner(own).await;
            cluster.migrate(own, from, (from + 1) % 3).await;
        }
        let text = format!("round {round}");
        all_are_heard(&plane, &mut app, '>', &KEYS, &text).await;
        assert_eq!(app.ask(&["PING", &text]).await, bulk(&text));
    }
    following.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_loss_of_one_node_takes_no_other_channel_away() {
    let (mut cluster, plane) = one_replica().await;
    let mut app = plane.app().await;
    for key in KEYS {
        app.ask(&["SSUBSCRIBE", key]).await;
    }
    let lost = cluster.owner(slot(KEYS[1].as_bytes())).await;
    cluster.nodes[lost].kill();
    all_are_heard(&plane, &mut app, '*', &[KEYS[0], KEYS[2]], "still").await;
    let options = "--cluster-enabled yes --cluster-require-full-coverage no";
    let options: Vec<&str> = options.split(' ').collect();
    cluster.nodes[lost].restart(&options).await;
    all_are_heard(&plane, &mut app, '*', &KEYS, "again").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn switches_between_replicas_of_every_kind_keep_all_channels() {
    let local = Cluster::start(3).await;
    let remote = Cluster::start(2).await;
    let plain = crate::redis_server::Server::start(&[]).await;
    let layouts = vec![local.layout(0).await, remote.layout(0).await, Layout::single()];
    let ports = [local.nodes[0].port, remote.nodes[0].port, plain.port];
    let mut plane = Plane::before(&ports, 1, layouts).await;
    let mut app = plane.app().await;
    for key in KEYS {
        app.ask(&["SSUBSCRIBE", key]).await;
    }
    let plain = pulsegate::replica::ReplicaId(2);
    for to in [REMOTE, plain, LOCAL, plain, REMOTE, LOCAL] {
        plane
            .route(|route| {
                route.write = to;
                route.read = vec![(to, 100)];
            })
            .await;
        let text = format!("on {to:?}");
        all_are_heard(&plane, &mut app, '*', &KEYS, &text).await;
    }
}
