//! What replicates: effects and messages, both ways, once each, and nothing comes back.

use std::collections::BTreeSet;
use std::time::Duration;

use rig::RigOptions;

use crate::support::{
    Ear, PATIENCE, Writer, application, ask, converged, exactly_once, info, regions, start, tell,
};

#[tokio::test(flavor = "multi_thread")]
async fn effects_of_every_sort_arrive() {
    let rig = regions(2).await;
    let mut app = application(&rig, "local").await;
    let script = "redis.call('SET', KEYS[1], redis.call('TIME')[1]) return redis.call('SPOP', KEYS[2])";
    for words in [
        &["SET", "text", "two\r\nlines\0and a zero"][..],
        &["SET", "mortal", "x", "EX", "100"],
        &["HSET", "hash", "a", "1", "b", "2"],
        &["ZADD", "ranking", "1.5", "one", "2.5", "two"],
        &["SADD", "set", "a", "b", "c", "d"],
        &["EVAL", script, "2", "when", "set"],
        &["XADD", "stream", "*", "field", "value"],
        &["SET", "gone", "x"],
        &["DEL", "gone"],
        &["SELECT", "3"],
        &["SET", "three", "3"],
        &["SELECT", "0"],
        &["APPEND", "text", "!"],
    ] {
        ask(&mut app, words)
            .await
            .unwrap_or_else(|error| panic!("{words:?}: {error}"));
    }
    // More elements than a script can unpack: applied in parts.
    let wide: Vec<String> = (0..20_000).map(|n| n.to_string()).collect();
    let wide: Vec<&str> = ["RPUSH", "wide"]
        .into_iter()
        .chain(wide.iter().map(String::as_str))
        .collect();
    ask(&mut app, &wide).await.expect("a wide command");
    converged(&rig).await;

    let members = async |region: &str| -> BTreeSet<String> { tell(&rig, region, &["SMEMBERS", "set"]).await };
    let (there, here) = (members("remote").await, members("local").await);
    assert_eq!((there.len(), &there), (3, &here), "the same member was popped");
    for key in ["text", "hash", "ranking", "when", "stream", "wide"] {
        let there: Option<redis::Value> = tell(&rig, "remote", &["DUMP", key]).await;
        let here: Option<redis::Value> = tell(&rig, "local", &["DUMP", key]).await;
        assert!(here.is_some() && here == there, "{key} differs");
    }
    let ttl: i64 = tell(&rig, "remote", &["PTTL", "mortal"]).await;
    assert!(
        (90_000..=100_000).contains(&ttl),
        "expires as at its source: {ttl}"
    );
    assert_eq!(tell::<u8>(&rig, "remote", &["EXISTS", "gone"]).await, 0);
    let keyspace: String = tell(&rig, "remote", &["INFO", "keyspace"]).await;
    assert!(keyspace.contains("db3:keys=1,"), "{keyspace}");
    let link = rig.link("local", "remote").unwrap();
    assert_eq!((link.failed, link.full_resyncs), (0, 0), "{link:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn three_regions_that_all_write_agree_exactly() {
    let rig = regions(3).await;
    let writers = ["local", "remote", "third"].map(|region| Writer::start(&rig, region));
    for region in ["local", "remote", "third"] {
        crate::support::has_tokens(&rig, region, 300).await;
    }
    let mut written = Vec::new();
    for writer in writers {
        written.push(writer.stop().await);
    }
    converged(&rig).await;
    let written: Vec<_> = written.iter().collect();
    for region in ["local", "remote", "third"] {
        exactly_once(&rig, region, &written).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_cross_every_link_exactly_once_and_in_order() {
    const EACH: usize = 200;
    let rig = regions(3).await;
    let names = ["local", "remote", "third"];
    let mut ears = Vec::new();
    for name in names {
        ears.push(Ear::open(&rig, name, "news").await);
    }
    for n in 0..EACH {
        for name in names {
            tell::<u64>(&rig, name, &["PUBLISH", "news", &format!("{name}:{n}")]).await;
        }
    }
    converged(&rig).await;
    for (name, ear) in names.into_iter().zip(&mut ears) {
        // On the server itself: what replication still had to bring is there, or the list is short.
        tell::<u64>(&rig, name, &["PUBLISH", "news", "end"]).await;
        let heard = ear.until("end").await;
        for from in names {
            let of_one: Vec<&String> = heard.iter().filter(|message| message.starts_with(from)).collect();
            let all: Vec<String> = (0..EACH).map(|n| format!("{from}:{n}")).collect();
            assert_eq!(of_one, all.iter().collect::<Vec<_>>(), "on {name}, of {from}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_loops() {
    // A source pings its replicas every ten seconds, which moves its stream too.
    let rig = start(RigOptions::count(3).server_arg("--repl-ping-replica-period", "3600")).await;
    let offsets = async || {
        let mut all = Vec::new();
        for region in ["local", "remote", "third"] {
            all.push(info(&rig, region, "replication", "master_repl_offset").await);
        }
        all
    };
    let before = offsets().await;
    for n in 0..200 {
        tell::<u64>(&rig, "local", &["INCR", "counter"]).await;
        tell::<u64>(&rig, "local", &["PUBLISH", "news", &n.to_string()]).await;
    }
    converged(&rig).await;
    let written = offsets().await;
    assert!(
        written[0] > before[0],
        "what local's own clients write is in its stream"
    );
    assert_eq!(
        written[1..],
        before[1..],
        "and in no other: replicated effects are not replicated on"
    );
    let until = tokio::time::Instant::now() + Duration::from_millis(400);
    while tokio::time::Instant::now() < until {
        assert_eq!(offsets().await, written, "an idle rig's streams stand still");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for region in ["remote", "third"] {
        assert_eq!(tell::<u64>(&rig, region, &["GET", "counter"]).await, 200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_is_never_seen_in_part() {
    let rig = regions(2).await;
    let (mut app, mut reader) = (
        application(&rig, "local").await,
        application(&rig, "remote").await,
    );
    let writing = tokio::spawn(async move {
        for n in 1..=500_u64 {
            redis::pipe()
                .atomic()
                .set("a", n)
                .set("b", n)
                .query_async::<()>(&mut app)
                .await
                .expect("EXEC");
        }
    });
    let mut seen = BTreeSet::new();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !seen.contains(&500) {
        let both = ask(&mut reader, &["MGET", "a", "b"]).await.expect("MGET");
        let (a, b): (Option<u64>, Option<u64>) = redis::from_redis_value(both).expect("numbers");
        assert_eq!(a, b, "half a transaction");
        seen.insert(a.unwrap_or(0));
        assert!(
            tokio::time::Instant::now() < deadline,
            "the last one does not arrive"
        );
    }
    writing.await.expect("the writer does not panic");
    assert!(seen.len() > 3, "looked while it was going on: {seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_and_the_way_past_the_relay_are_honoured() {
    let rig = start(RigOptions::count(2).password("pass word/1").direct("remote")).await;
    let mut app = application(&rig, "local").await;
    ask(&mut app, &["SET", "k", "v"])
        .await
        .expect("the URL holds the password");
    converged(&rig).await;
    assert_eq!(tell::<String>(&rig, "remote", &["GET", "k"]).await, "v");
    let mut stranger = crate::support::Raw::connect(rig.region("local").addr())
        .await
        .unwrap();
    assert!(stranger.ask("GET k").await.starts_with("-NOAUTH"));
    let remote = rig.region("remote");
    assert_eq!(remote.addr(), remote.direct_addr());
    let error = rig.stall("remote").await.expect_err("it has no relay to stall");
    assert!(error.to_string().contains("bypass"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flushall_replicates_and_what_follows_is_counted_once() {
    let rig = regions(2).await;
    for region in ["local", "remote"] {
        tell::<u64>(&rig, region, &["INCR", "counter"]).await;
    }
    converged(&rig).await;
    tell::<()>(&rig, "local", &["FLUSHALL"]).await;
    converged(&rig).await;
    assert_eq!(tell::<u64>(&rig, "remote", &["DBSIZE"]).await, 0);
    for _ in 0..3 {
        for region in ["local", "remote"] {
            tell::<u64>(&rig, region, &["INCR", "counter"]).await;
        }
        // The books went with the rest: links that break now must still know where they stand.
        for (from, to) in [("local", "remote"), ("remote", "local")] {
            rig.cut_link(from, to).await.unwrap();
            rig.heal_link(from, to).unwrap();
        }
        converged(&rig).await;
    }
    for (region, other) in [("local", "remote"), ("remote", "local")] {
        assert_eq!(
            tell::<u64>(&rig, region, &["GET", "counter"]).await,
            6,
            "{region}"
        );
        assert_eq!(rig.link(region, other).unwrap().full_resyncs, 0, "{region}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_waits_for_the_syncers() {
    let rig = regions(3).await;
    let mut app = application(&rig, "local").await;
    ask(&mut app, &["SET", "k", "v"]).await.unwrap();
    let there = ask(&mut app, &["WAIT", "2", "5000"]).await;
    assert_eq!(there, Ok(redis::Value::Int(2)));
    assert_eq!(
        tell::<String>(&rig, "remote", &["GET", "k"]).await,
        "v",
        "acknowledged is applied"
    );
    rig.cut_link("local", "remote").await.unwrap();
    ask(&mut app, &["SET", "k", "w"]).await.unwrap();
    let there = ask(&mut app, &["WAIT", "2", "200"]).await;
    assert_eq!(there, Ok(redis::Value::Int(1)), "one link is cut");
}
