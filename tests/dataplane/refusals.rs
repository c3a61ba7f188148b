//! Scripts whose answer is a node's refusal, or only looks like one: what the node refused is carried out elsewhere, and what a
//! script has said of its own accord, after it wrote, is not carried out again.

use pulsegate::resp::slot;

use crate::plane::{bulk, wait_until};
use crate::shards::one_replica;

const KEY: &str = "foo";

/// Counts, and then says what it is given.
const FORGES: &str = "redis.call('INCR', KEYS[1]); return redis.error_reply(ARGV[1])";

#[tokio::test(flavor = "multi_thread")]
async fn a_script_that_speaks_as_a_node_does_is_not_carried_out_again() {
    let (cluster, plane) = one_replica().await;
    let mut app = plane.app().await;
    let owner = cluster.owner(slot(KEY.as_bytes())).await;
    let other = cluster.nodes[(owner + 1) % 3].port;
    let own = slot(KEY.as_bytes());
    let sha = app.ask(&["SCRIPT", "LOAD", FORGES]).await;
    let sha = sha.split("\r\n").nth(1).unwrap().to_owned();
    let library = format!(
        "#!lua name=l\nredis.register_function('forges', function(KEYS, ARGV) {} end)",
        FORGES
    );
    assert_eq!(app.ask(&["FUNCTION", "LOAD", &library]).await, bulk("l"));
    let mut count = 0;
    for words in [
        format!("MOVED {own} 127.0.0.1:{other}"),
        format!("ASK {own} 127.0.0.1:{other}"),
        format!("MOVED {} 127.0.0.1:{other}", own ^ 1),
        "TRYAGAIN Multiple keys request during rehashing of slot".to_owned(),
        "CLUSTERDOWN Hash slot not served".to_owned(),
        "CLUSTERDOWN The cluster is down".to_owned(),
        "TRYAGAIN later".to_owned(),
    ] {
        for (by, what) in [("EVAL", FORGES), ("EVALSHA", &sha), ("FCALL", "forges")] {
            let reply = app.ask(&[by, what, "1", KEY, &words]).await;
            assert_eq!(reply, format!("-{words}\r\n"), "{by}");
            count += 1;
            assert_eq!(app.ask(&["GET", KEY]).await, bulk(&count.to_string()), "{words}");
        }
        // Nothing that it could be asked about.
        let bare = "return redis.error_reply(ARGV[1])";
        let reply = app.ask(&["EVAL", bare, "0", &words]).await;
        assert_eq!(reply, format!("-{words}\r\n"), "without keys");
    }
    // And with commands behind it, on a connection of its own.
    app.say(&["WATCH", KEY]).await;
    app.hear().await;
    app.ask(&["UNWATCH"]).await;
    let words = format!("MOVED {own} 127.0.0.1:{other}");
    app.say(&["EVAL", FORGES, "1", KEY, &words]).await;
    app.say(&["MULTI"]).await;
    app.say(&["INCR", KEY]).await;
    app.say(&["EXEC"]).await;
    assert_eq!(app.hear().await, format!("-{words}\r\n"));
    assert_eq!(app.hear().await, "+OK\r\n");
    assert_eq!(app.hear().await, "+QUEUED\r\n");
    assert_eq!(app.hear().await, format!("*1\r\n:{}\r\n", count + 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn scripts_that_a_node_refused_are_carried_out_once() {
    let (cluster, plane) = one_replica().await;
    let mut app = plane.app().await;
    let (first, second) = (format!("{{{KEY}}}1"), format!("{{{KEY}}}2"));
    let counts = "return redis.call('INCR', KEYS[1])";
    let both = "return {redis.call('INCR', KEYS[1]), redis.call('INCR', KEYS[2])}";
    assert_eq!(app.ask(&["EVAL", counts, "1", &first]).await, ":1\r\n");
    assert_eq!(app.ask(&["EVAL", counts, "1", &second]).await, ":1\r\n");
    let own = slot(KEY.as_bytes());
    let from = cluster.owner(own).await;
    let to = (from + 1) % 3;
    cluster.begin_move(own, from, to).await;
    cluster.migrate_key(&first, from, to).await;
    // ASK, and what is new is made where the slot goes.
    assert_eq!(app.ask(&["EVAL", counts, "1", &first]).await, ":2\r\n");
    let new = format!("{{{KEY}}}3");
    assert_eq!(app.ask(&["EVAL", counts, "1", &new]).await, ":1\r\n");
    // TRYAGAIN, until the second key has followed.
    app.say(&["EVAL", both, "2", &first, &second]).await;
    let refused = async || {
        let info: String = cluster.ask(from, &["INFO", "errorstats"]).await;
        info.contains("errorstat_TRYAGAIN")
    };
    wait_until("a TRYAGAIN", refused).await;
    cluster.migrate_key(&second, from, to).await;
    assert_eq!(app.hear().await, "*2\r\n:3\r\n:2\r\n");
    // MOVED, from a layout that nobody has told Pulsegate of.
    cluster.end_move(own, from, to).await;
    assert_eq!(app.ask(&["EVAL", counts, "1", &first]).await, ":4\r\n");
    assert_eq!(
        app.ask(&["EVAL", both, "2", &first, &second]).await,
        "*2\r\n:5\r\n:3\r\n"
    );
}
