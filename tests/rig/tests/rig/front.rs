//! Regions of several servers behind one address: how it routes and answers, and what of it fails alone.

use std::collections::BTreeMap;
use std::time::Duration;

use redis::Value;
use rig::{Rig, RigOptions, SLOTS, slot};

use crate::support::{PATIENCE, Raw, application, ask, eventually, frame, refusal, start};

async fn one_region() -> Rig {
    start(RigOptions::count(1).front([3])).await
}

/// A key of each shard, in their order.
fn keys(rig: &Rig, region: &str) -> Vec<String> {
    let region = rig.region(region);
    let own = |shard| {
        (0..)
            .map(|n| format!("key:{n}"))
            .find(|key| region.shard_of(key) == shard)
    };
    (0..region.shards().len()).filter_map(own).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_go_to_their_shards_and_nowhere_else() {
    let rig = one_region().await;
    let mut app = application(&rig, "local").await;
    let region = rig.region("local");
    for n in 0..60 {
        ask(&mut app, &["SET", &format!("key:{n}"), "v"]).await.unwrap();
    }
    let script = "return redis.call('APPEND', KEYS[1], ARGV[1])";
    for key in keys(&rig, "local") {
        ask(&mut app, &["EVAL", script, "1", &key, "!"]).await.unwrap();
        assert_eq!(
            region.command(&["GET", &key]).await,
            Ok(Value::BulkString(b"v!".into()))
        );
    }
    let mut all = 0;
    for (number, shard) in region.shards().iter().enumerate() {
        let found = shard.command(&["KEYS", "*"]).await.unwrap();
        let found: Vec<String> = redis::from_redis_value(found).unwrap();
        all += found.len();
        for key in found.iter().filter(|key| !key.starts_with("rig:")) {
            assert_eq!(region.shard_of(key), number, "{key}");
        }
    }
    assert_eq!(all, 60);
    for words in [
        &["MGET", "foo", "bar"][..],
        &["MSET", "foo", "1", "bar", "2"],
        &["SUNION", "foo", "bar"],
    ] {
        assert_eq!(refusal(&mut app, words).await, "CROSSSLOT", "{words:?}");
    }
    let both = ask(&mut app, &["MGET", "{foo}1", "{foo}2"]).await;
    assert_eq!(both, Ok(Value::Array(vec![Value::Nil, Value::Nil])));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_keep_the_order_of_a_pipeline_over_shards() {
    let rig = one_region().await;
    let mut app = application(&rig, "local").await;
    let mut pipe = redis::pipe();
    for n in 0..2_000 {
        pipe.set(format!("key:{n}"), n).ignore();
        pipe.get(format!("key:{n}"));
        pipe.cmd("ECHO").arg(n);
    }
    let answers: Vec<u32> = pipe.query_async(&mut app).await.unwrap();
    let expected: Vec<u32> = (0..2_000).flat_map(|n| [n, n]).collect();
    assert_eq!(answers, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_answers_name_the_one_address_for_every_shard() {
    let rig = one_region().await;
    let mut app = application(&rig, "local").await;
    let port = i64::from(rig.region("local").addr().port());
    let slots = ask(&mut app, &["CLUSTER", "SLOTS"]).await.unwrap();
    type Node = (String, i64, String, Vec<Value>);
    let slots: Vec<(i64, i64, Node)> = redis::from_redis_value(slots).unwrap();
    let mut next = 0;
    for (first, last, (ip, at, ..)) in &slots {
        assert_eq!((*first, ip.as_str(), *at), (next, "127.0.0.1", port));
        next = last + 1;
    }
    assert_eq!((slots.len(), next), (3, i64::from(SLOTS)));

    let shards = ask(&mut app, &["CLUSTER", "SHARDS"]).await.unwrap();
    let shards: Vec<BTreeMap<String, Value>> = redis::from_redis_value(shards).unwrap();
    for (shard, (first, last, (.., id, _))) in shards.iter().zip(&slots) {
        assert_eq!(
            shard["slots"],
            Value::Array(vec![Value::Int(*first), Value::Int(*last)])
        );
        let nodes: Vec<BTreeMap<String, Value>> = redis::from_redis_value(shard["nodes"].clone()).unwrap();
        assert_eq!(nodes.len(), 1);
        assert_eq!(nodes[0]["port"], Value::Int(port));
        assert_eq!(nodes[0]["id"], Value::BulkString(id.as_bytes().into()));
        assert_eq!(nodes[0]["role"], Value::BulkString(b"master".into()));
    }
    let place = ask(&mut app, &["CLUSTER", "KEYSLOT", "foo"]).await;
    assert_eq!(place, Ok(Value::Int(i64::from(slot(b"foo")))));
    let text = async |app: &mut _, what: &str| -> String {
        redis::from_redis_value(ask(app, &["CLUSTER", what]).await.unwrap()).unwrap()
    };
    assert!(text(&mut app, "INFO").await.contains("cluster_state:ok"));
    assert!(
        text(&mut app, "NODES")
            .await
            .contains(&text(&mut app, "MYID").await)
    );

    // Version 3 of the protocol has maps there.
    let mut raw = Raw::connect(rig.region("local").addr()).await.unwrap();
    assert!(raw.ask("HELLO 3").await.starts_with('%'));
    raw.say("PING").await;
    while raw.line(PATIENCE).await.unwrap().expect("the rest") != "+PONG" {}
    raw.say("CLUSTER SHARDS").await;
    let heads = [
        raw.line(PATIENCE).await.unwrap(),
        raw.line(PATIENCE).await.unwrap(),
    ];
    assert_eq!(heads, [Some("*3".to_owned()), Some("%2".to_owned())]);

    let closed = start(RigOptions::count(1).front([2]).cluster_api(false)).await;
    let mut app = application(&closed, "local").await;
    let error = ask(&mut app, &["CLUSTER", "SLOTS"])
        .await
        .expect_err("it is switched off");
    assert!(error.to_string().contains("cluster support disabled"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn channels_are_heard_whichever_shard_they_are_at() {
    let rig = one_region().await;
    let channels = keys(&rig, "local");
    let mut said = Raw::connect(rig.region("local").addr()).await.unwrap();
    let mut ear = Raw::connect(rig.region("local").addr()).await.unwrap();
    ear.say(&format!("SUBSCRIBE {}", channels.join(" "))).await;
    for count in 1..=3 {
        let confirmed = frame(&mut ear).await;
        assert_eq!(
            confirmed,
            ["subscribe", &channels[count - 1], &format!(":{count}")]
        );
    }
    assert_eq!(ear.ask("PING").await, "*2");
    for line in ["$4", "pong", "$0", ""] {
        assert_eq!(ear.line(PATIENCE).await.unwrap().as_deref(), Some(line));
    }
    assert!(ear.ask("GET k").await.starts_with("-ERR Can't execute 'get'"));
    for channel in &channels {
        assert_eq!(said.ask(&format!("PUBLISH {channel} hello")).await, ":1");
        assert_eq!(frame(&mut ear).await, ["message", channel, "hello"]);
    }
    ear.say("PSUBSCRIBE key:*").await;
    assert_eq!(frame(&mut ear).await, ["psubscribe", "key:*", ":4"]);
    for channel in &channels {
        assert_eq!(said.ask(&format!("PUBLISH {channel} again")).await, ":2");
        assert_eq!(frame(&mut ear).await, ["message", channel, "again"]);
        assert_eq!(frame(&mut ear).await, ["pmessage", "key:*", channel, "again"]);
    }
    ear.say("UNSUBSCRIBE").await;
    for left in (1..=3).rev() {
        assert_eq!(frame(&mut ear).await[2], format!(":{left}"));
    }
    ear.say("PUNSUBSCRIBE").await;
    assert_eq!(frame(&mut ear).await, ["punsubscribe", "key:*", ":0"]);
    assert_eq!(
        ear.ask("GET k").await,
        "$-1",
        "it is an ordinary connection again"
    );
    ear.say(&format!("SSUBSCRIBE {}", channels[1])).await;
    assert_eq!(frame(&mut ear).await, ["ssubscribe", &channels[1], ":1"]);
    assert_eq!(said.ask(&format!("SPUBLISH {} sharded", channels[1])).await, ":1");
    assert_eq!(frame(&mut ear).await, ["smessage", &channels[1], "sharded"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_is_of_one_shard() {
    let rig = one_region().await;
    let keys = keys(&rig, "local");
    let mut app = Raw::connect(rig.region("local").addr()).await.unwrap();
    assert_eq!(app.ask("MULTI").await, "+OK");
    for _ in 0..2 {
        assert_eq!(app.ask(&format!("INCR {}", keys[1])).await, "+QUEUED");
    }
    assert_eq!(app.ask("EXEC").await, "*2");
    for count in [":1", ":2"] {
        assert_eq!(app.line(PATIENCE).await.unwrap().as_deref(), Some(count));
    }
    assert_eq!(app.ask("MULTI").await, "+OK");
    assert_eq!(app.ask(&format!("INCR {}", keys[1])).await, "+QUEUED");
    assert!(
        app.ask(&format!("INCR {}", keys[2]))
            .await
            .starts_with("-CROSSSLOT")
    );
    assert!(app.ask("EXEC").await.starts_with("-EXECABORT"));
    assert_eq!(
        app.ask(&format!("INCR {}", keys[1])).await,
        ":3",
        "nothing of it was done"
    );
    // What is watched is seen to change.
    assert_eq!(app.ask(&format!("WATCH {}", keys[0])).await, "+OK");
    rig.region("local")
        .command(&["SET", &keys[0], "1"])
        .await
        .unwrap();
    assert_eq!(app.ask("MULTI").await, "+OK");
    assert_eq!(app.ask(&format!("INCR {}", keys[0])).await, "+QUEUED");
    assert_eq!(app.ask("EXEC").await, "*-1");
    assert_eq!(app.ask("MULTI").await, "+OK");
    assert_eq!(app.ask("EXEC").await, "*0");
    assert!(app.ask("EXEC").await.starts_with("-ERR EXEC without MULTI"));
    assert!(app.ask("FLUSHALL").await.contains("not allowed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_databases_and_scripts_are_known_at_every_shard() {
    let rig = start(RigOptions::count(1).front([3]).password("secret")).await;
    let mut stranger = Raw::connect(rig.region("local").addr()).await.unwrap();
    for line in ["PING", "CLUSTER SLOTS", "GET k"] {
        assert!(stranger.ask(line).await.starts_with("-NOAUTH"), "{line}");
    }
    assert!(stranger.ask("AUTH wrong").await.starts_with("-WRONGPASS"));
    assert!(stranger.ask("PING").await.starts_with("-NOAUTH"));
    assert_eq!(stranger.ask("AUTH secret").await, "+OK");
    assert_eq!(stranger.ask("PING").await, "+PONG");
    assert_eq!(stranger.ask("SELECT 3").await, "+OK");
    let keys = keys(&rig, "local");
    for key in &keys {
        assert_eq!(stranger.ask(&format!("SET {key} 1")).await, "+OK");
    }
    for (key, shard) in keys.iter().zip(rig.region("local").shards()) {
        assert_eq!(
            shard.command(&["EXISTS", key]).await,
            Ok(Value::Int(0)),
            "not in database 0"
        );
    }
    let mut app = application(&rig, "local").await;
    let hash = ask(&mut app, &["SCRIPT", "LOAD", "return KEYS[1]"])
        .await
        .unwrap();
    let hash: String = redis::from_redis_value(hash).unwrap();
    for key in &keys {
        let answer = ask(&mut app, &["EVALSHA", &hash, "1", key]).await;
        assert_eq!(answer, Ok(Value::BulkString(key.as_bytes().into())));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_shard_refuses_its_slots_alone_and_comes_back() {
    let rig = one_region().await;
    let keys = keys(&rig, "local");
    let mut app = Raw::connect(rig.region("local").addr()).await.unwrap();
    for key in &keys {
        assert_eq!(app.ask(&format!("SET {key} 1")).await, "+OK");
    }
    rig.kill(("local", 1)).await.unwrap();
    let mut app = Raw::connect(rig.region("local").addr()).await.unwrap();
    assert_eq!(app.ask("PING").await, "+PONG");
    assert!(
        app.ask(&format!("GET {}", keys[1]))
            .await
            .starts_with("-CLUSTERDOWN")
    );
    for key in [&keys[0], &keys[2]] {
        assert_eq!(app.ask(&format!("SET {key} 2")).await, "+OK");
    }
    rig.restart(("local", 1), rig::Data::Fresh).await.unwrap();
    assert_eq!(
        app.ask(&format!("GET {}", keys[1])).await,
        "$-1",
        "on the same connection"
    );

    // All of them: as a plain region is dead.
    rig.kill("local").await.unwrap();
    let refused = Raw::connect(rig.region("local").addr())
        .await
        .err()
        .expect("refused");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    rig.heal("local").await.unwrap();
    let mut app = Raw::connect(rig.region("local").addr()).await.unwrap();
    assert_eq!(app.ask("PING").await, "+PONG");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_learns_of_its_shards_death() {
    let rig = one_region().await;
    let keys = keys(&rig, "local");
    let mut ears = Vec::new();
    for key in &keys {
        let mut ear = Raw::connect(rig.region("local").addr()).await.unwrap();
        ear.say(&format!("SUBSCRIBE {key}")).await;
        frame(&mut ear).await;
        ears.push(ear);
    }
    rig.kill(("local", 1)).await.unwrap();
    ears[1].line(PATIENCE).await.expect_err("its connection ends");
    for at in [0, 2] {
        rig.region("local")
            .command(&["PUBLISH", &keys[at], "on"])
            .await
            .unwrap();
        assert_eq!(frame(&mut ears[at]).await[2], "on");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hung_shard_hangs_what_is_routed_to_it() {
    let rig = one_region().await;
    let keys = keys(&rig, "local");
    rig.hang(("local", 2)).await.unwrap();
    let addr = rig.region("local").addr();
    let (mut stuck, mut free) = (
        Raw::connect(addr).await.unwrap(),
        Raw::connect(addr).await.unwrap(),
    );
    stuck.say(&format!("SET {} held", keys[2])).await;
    assert_eq!(free.ask(&format!("SET {} 1", keys[0])).await, "+OK");
    assert!(stuck.is_silent().await);
    rig.unhang(("local", 2)).await.unwrap();
    assert_eq!(stuck.line(PATIENCE).await.unwrap().as_deref(), Some("+OK"));

    rig.hang("local").await.unwrap();
    let mut app = Raw::connect(addr).await.expect("it accepts");
    app.say("PING").await;
    assert!(app.is_silent().await);
    rig.unhang("local").await.unwrap();
    assert_eq!(app.line(PATIENCE).await.unwrap().as_deref(), Some("+PONG"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_network_breaks_before_the_front_or_behind_it() {
    let rig = one_region().await;
    let keys = keys(&rig, "local");
    let addr = rig.region("local").addr();
    rig.cut(("local", 0)).await.unwrap();
    let mut app = Raw::connect(addr).await.unwrap();
    assert!(
        app.ask(&format!("GET {}", keys[0]))
            .await
            .starts_with("-CLUSTERDOWN")
    );
    assert_eq!(app.ask(&format!("GET {}", keys[1])).await, "$-1");
    rig.heal_network(("local", 0)).await.unwrap();
    assert_eq!(app.ask(&format!("GET {}", keys[0])).await, "$-1");
    rig.cut("local").await.unwrap();
    assert!(Raw::connect(addr).await.is_err());
    rig.heal("local").await.unwrap();
    eventually("it is there again", || async { Raw::connect(addr).await.is_ok() }).await;
    // Faults that are the server's own also have one shard.
    rig.stale_min_replicas(("local", 1)).await.unwrap();
    rig.loading(("local", 2), Duration::from_secs(30)).await.unwrap();
    let mut app = application(&rig, "local").await;
    assert!(ask(&mut app, &["SET", &keys[0], "1"]).await.is_ok());
    assert_eq!(refusal(&mut app, &["SET", &keys[1], "1"]).await, "NOREPLICAS");
    assert_eq!(refusal(&mut app, &["SET", &keys[2], "1"]).await, "LOADING");
    let error = rig.kill(("local", 3)).await.expect_err("there are three");
    assert!(error.to_string().contains("no shard 3: there are 3"), "{error}");
}
