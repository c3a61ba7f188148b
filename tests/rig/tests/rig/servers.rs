//! Faults of a server: each has the effect on a client that the README's table says, and ends.

use std::io::ErrorKind;
use std::time::Duration;

use rig::Data;
use tokio::time::Instant;

use crate::support::{
    Ear, PATIENCE, Raw, SILENCE, application, ask, converged, eventually, info, refusal, regions, tell,
};

#[tokio::test(flavor = "multi_thread")]
async fn killed_breaks_connections_and_refuses_new_ones_until_restarted() {
    let rig = regions(2).await;
    let region = rig.region("local");
    let (relayed, direct) = (region.addr(), region.direct_addr());
    let mut app = Raw::connect(relayed).await.unwrap();
    assert_eq!(app.ask("SET k v").await, "+OK");
    converged(&rig).await;
    rig.kill("local").await.unwrap();
    assert_eq!(region.pid(), None);
    let broken = app.line(PATIENCE).await.expect_err("the connection breaks");
    assert!(
        matches!(
            broken.kind(),
            ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof
        ),
        "{broken}"
    );
    for addr in [relayed, direct] {
        let refused = Raw::connect(addr).await.err().expect("refused");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{addr}");
    }
    rig.restart("local", Data::Fresh).await.unwrap();
    assert_eq!(
        (region.addr(), region.direct_addr()),
        (relayed, direct),
        "the same addresses"
    );
    let mut app = Raw::connect(relayed).await.unwrap();
    assert_eq!(app.ask("PING").await, "+PONG");
    converged(&rig).await;
    assert_eq!(
        tell::<String>(&rig, "local", &["GET", "k"]).await,
        "v",
        "from the other region"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn hung_accepts_and_never_answers() {
    let rig = regions(2).await;
    let mut old = Raw::connect(rig.region("local").addr()).await.unwrap();
    assert_eq!(old.ask("PING").await, "+PONG");
    rig.hang("local").await.unwrap();
    old.say("SET k held").await;
    let mut new = Raw::connect(rig.region("local").addr())
        .await
        .expect("the kernel accepts");
    new.say("PING").await;
    assert!(old.is_silent().await && new.is_silent().await);
    rig.unhang("local").await.unwrap();
    assert_eq!(
        old.line(PATIENCE).await.unwrap().as_deref(),
        Some("+OK"),
        "what was sent is done now"
    );
    assert_eq!(new.line(PATIENCE).await.unwrap().as_deref(), Some("+PONG"));
    converged(&rig).await;
    assert_eq!(tell::<String>(&rig, "remote", &["GET", "k"]).await, "held");
}

#[tokio::test(flavor = "multi_thread")]
async fn loading_answers_only_messages_and_ends_by_itself() {
    let rig = regions(2).await;
    tell::<()>(&rig, "local", &["SET", "k", "v"]).await;
    let time = Duration::from_millis(800);
    let began = Instant::now();
    rig.loading("local", time).await.unwrap();
    let loading = Instant::now();
    let mut app = Raw::connect(rig.region("local").addr()).await.unwrap();
    for words in ["PING", "GET k", "SET k w"] {
        assert!(app.ask(words).await.starts_with("-LOADING"), "{words}");
    }
    let mut ear = Ear::open(&rig, "local", "beat").await;
    assert_eq!(app.ask("PUBLISH beat 1").await, ":1");
    assert_eq!(ear.next(PATIENCE).await.as_deref(), Some("1"));
    eventually("it has loaded", || async {
        rig.region("local").command(&["PING"]).await.is_ok()
    })
    .await;
    assert!(
        began.elapsed() >= time,
        "took {:?}, {:?} of it loading",
        began.elapsed(),
        loading.elapsed()
    );
    assert_eq!(
        tell::<String>(&rig, "local", &["GET", "k"]).await,
        "v",
        "it kept its data"
    );
    converged(&rig).await;
    eventually("the ballast is gone", || async {
        let keyspace: String = tell(&rig, "local", &["INFO", "keyspace"]).await;
        keyspace.contains("db15:keys=1,")
    })
    .await;
    let there: String = tell(&rig, "remote", &["INFO", "keyspace"]).await;
    assert!(there.contains("db15:keys=1,"), "and never was elsewhere: {there}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_by_min_replicas_refuses_writes_while_messages_and_links_flow() {
    let rig = regions(2).await;
    let mut app = application(&rig, "local").await;
    ask(&mut app, &["SET", "k", "v"]).await.unwrap();
    let mut ear = Ear::open(&rig, "remote", "beat").await;
    rig.stale_min_replicas("local").await.unwrap();
    assert_eq!(refusal(&mut app, &["SET", "k", "w"]).await, "NOREPLICAS");
    assert_eq!(
        ask(&mut app, &["GET", "k"]).await,
        Ok(redis::Value::BulkString(b"v".into()))
    );
    ask(&mut app, &["PUBLISH", "beat", "1"])
        .await
        .expect("messages are taken");
    assert_eq!(ear.next(PATIENCE).await.as_deref(), Some("1"), "and cross");
    for n in 0..20 {
        tell::<()>(&rig, "remote", &["SET", "from-remote", &n.to_string()]).await;
    }
    converged(&rig).await;
    assert_eq!(
        tell::<u64>(&rig, "local", &["GET", "from-remote"]).await,
        19,
        "replication is taken"
    );
    assert_eq!(
        refusal(&mut app, &["SET", "k", "w"]).await,
        "NOREPLICAS",
        "and leaves the fault in force"
    );
    rig.unstale("local").await.unwrap();
    ask(&mut app, &["SET", "k", "w"])
        .await
        .expect("writes are taken again");
}

#[tokio::test(flavor = "multi_thread")]
async fn stale_outbound_lets_nothing_out() {
    let rig = regions(2).await;
    let mut app = application(&rig, "local").await;
    ask(&mut app, &["SET", "k", "v"]).await.unwrap();
    converged(&rig).await;
    let full = rig.link("local", "remote").unwrap().full_resyncs;
    let mut ear = Ear::open(&rig, "remote", "beat").await;
    rig.stale_outbound("local").await.unwrap();
    assert_eq!(refusal(&mut app, &["SET", "k", "w"]).await, "READONLY");
    assert_eq!(
        ask(&mut app, &["GET", "k"]).await,
        Ok(redis::Value::BulkString(b"v".into()))
    );
    ask(&mut app, &["PUBLISH", "beat", "lost"])
        .await
        .expect("a message is taken");
    assert_eq!(ear.next(SILENCE).await, None, "but does not leave");
    tell::<()>(&rig, "remote", &["SET", "from-remote", "1"]).await;
    eventually("what comes in is applied", || async {
        tell::<Option<String>>(&rig, "local", &["GET", "from-remote"])
            .await
            .is_some()
    })
    .await;
    assert_eq!(
        refusal(&mut app, &["SET", "k", "w"]).await,
        "READONLY",
        "and leaves the fault in force"
    );
    rig.unstale("local").await.unwrap();
    ask(&mut app, &["SET", "k", "w"])
        .await
        .expect("writes are taken again");
    converged(&rig).await;
    assert_eq!(tell::<String>(&rig, "remote", &["GET", "k"]).await, "w");
    assert_eq!(
        rig.link("local", "remote").unwrap().full_resyncs,
        full,
        "and resumed where it was"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn out_of_memory_refuses_what_needs_some() {
    let rig = regions(2).await;
    let mut app = application(&rig, "local").await;
    ask(&mut app, &["SET", "k", "v"]).await.unwrap();
    rig.out_of_memory("local").await.unwrap();
    assert_eq!(refusal(&mut app, &["SET", "k", "w"]).await, "OOM");
    ask(&mut app, &["GET", "k"]).await.expect("reads work");
    ask(&mut app, &["DEL", "k"])
        .await
        .expect("what frees memory works");
    let mut ear = Ear::open(&rig, "remote", "beat").await;
    ask(&mut app, &["PUBLISH", "beat", "1"])
        .await
        .expect("messages are taken");
    assert_eq!(ear.next(PATIENCE).await.as_deref(), Some("1"));
    tell::<()>(&rig, "remote", &["SET", "from-remote", "1"]).await;
    converged(&rig).await;
    assert_eq!(
        tell::<u64>(&rig, "local", &["GET", "from-remote"]).await,
        1,
        "replication is taken"
    );
    rig.free_memory("local").await.unwrap();
    ask(&mut app, &["SET", "k", "w"])
        .await
        .expect("writes are taken again");
}

#[tokio::test(flavor = "multi_thread")]
async fn paused_writes_are_held_without_an_answer() {
    let rig = regions(2).await;
    let addr = rig.region("local").addr();
    let (mut writer, mut reader) = (
        Raw::connect(addr).await.unwrap(),
        Raw::connect(addr).await.unwrap(),
    );
    let mut publisher = Raw::connect(addr).await.unwrap();
    rig.pause_writes("local", PATIENCE).await.unwrap();
    writer.say("SET k held").await;
    publisher.say("PUBLISH beat 1").await;
    assert_eq!(reader.ask("GET k").await, "$-1", "reads are answered");
    tell::<()>(&rig, "remote", &["SET", "from-remote", "1"]).await;
    assert!(writer.is_silent().await && publisher.is_silent().await);
    assert_eq!(
        reader.ask("GET from-remote").await,
        "$-1",
        "the links' writes are held too"
    );
    rig.unpause("local").await.unwrap();
    assert_eq!(writer.line(PATIENCE).await.unwrap().as_deref(), Some("+OK"));
    assert_eq!(publisher.line(PATIENCE).await.unwrap().as_deref(), Some(":0"));
    converged(&rig).await;
    assert_eq!(tell::<String>(&rig, "remote", &["GET", "k"]).await, "held");

    // Without a word it ends by itself.
    let pause = Duration::from_millis(300);
    let began = Instant::now();
    rig.pause_writes("local", pause).await.unwrap();
    assert_eq!(writer.ask("SET k again").await, "+OK");
    assert!(began.elapsed() >= pause, "{:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn heal_ends_everything_at_once() {
    let rig = regions(2).await;
    tell::<()>(&rig, "local", &["SET", "k", "v"]).await;
    converged(&rig).await;
    rig.stale_min_replicas("local").await.unwrap();
    rig.stale_outbound("local").await.unwrap();
    rig.out_of_memory("local").await.unwrap();
    rig.pause_writes("local", PATIENCE).await.unwrap();
    rig.stall("local").await.unwrap();
    rig.cut_link("local", "remote").await.unwrap();
    rig.hang("local").await.unwrap();
    rig.kill("remote").await.unwrap();
    rig.heal_all().await.expect("heals");
    converged(&rig).await;
    for region in ["local", "remote"] {
        let mut app = application(&rig, region).await;
        ask(&mut app, &["SET", region, "1"]).await.expect("takes writes");
    }
    converged(&rig).await;
    for (region, other) in [("local", "remote"), ("remote", "local")] {
        assert_eq!(tell::<u64>(&rig, region, &["GET", other]).await, 1);
        assert_eq!(tell::<String>(&rig, region, &["GET", "k"]).await, "v");
    }
    assert!(info(&rig, "remote", "replication", "connected_slaves").await >= 1);
}
