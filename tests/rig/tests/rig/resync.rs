//! How a link goes on after a break: where it stopped when it can, by a copy when it cannot, exactly once either way.

use std::time::Duration;

use rig::{Data, RigOptions, SyncerState};
use tokio::time::Instant;

use crate::support::{
    Ear, PATIENCE, SILENCE, Writer, converged, exactly_once, has_tokens, info, regions, start, tell, tokens,
};

#[tokio::test(flavor = "multi_thread")]
async fn cuts_in_mid_stream_lose_and_double_nothing_and_resume_partially() {
    let rig = regions(2).await;
    let before = rig.link("local", "remote").unwrap();
    let (full, partial) = (
        info(&rig, "local", "stats", "sync_full").await,
        info(&rig, "local", "stats", "sync_partial_ok").await,
    );
    let writer = Writer::start(&rig, "local");
    const CUTS: u64 = 5;
    for _ in 0..CUTS {
        let there = tell::<u64>(&rig, "remote", &["LLEN", "tokens"]).await;
        has_tokens(&rig, "remote", there + 50).await;
        rig.cut_link("local", "remote").await.unwrap();
        assert_eq!(rig.link("local", "remote").unwrap().state, SyncerState::Cut);
        let at_cut = tell::<u64>(&rig, "remote", &["LLEN", "tokens"]).await;
        has_tokens(&rig, "local", at_cut + 100).await;
        assert_eq!(
            tell::<u64>(&rig, "remote", &["LLEN", "tokens"]).await,
            at_cut,
            "nothing passes a cut link"
        );
        rig.heal_link("local", "remote").unwrap();
    }
    let written = writer.stop().await;
    converged(&rig).await;
    exactly_once(&rig, "remote", &[&written]).await;
    assert!(written.unknown.is_empty(), "the source was never disturbed");

    // The source's own count is the proof that it resumed; the syncer's says the same.
    assert_eq!(
        info(&rig, "local", "stats", "sync_full").await,
        full,
        "no full resync"
    );
    assert_eq!(
        info(&rig, "local", "stats", "sync_partial_ok").await,
        partial + CUTS
    );
    let after = rig.link("local", "remote").unwrap();
    assert_eq!(after.full_resyncs, before.full_resyncs);
    assert_eq!(after.partial_resyncs, before.partial_resyncs + CUTS);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_killed_in_mid_stream_is_made_anew_exactly() {
    let rig = regions(2).await;
    tell::<()>(&rig, "remote", &["SET", "remotes-own", "kept"]).await;
    converged(&rig).await;
    let writer = Writer::start(&rig, "local");
    has_tokens(&rig, "remote", 50).await;
    for _ in 0..3 {
        rig.kill("remote").await.unwrap();
        let there = tell::<u64>(&rig, "local", &["LLEN", "tokens"]).await;
        has_tokens(&rig, "local", there + 50).await;
        rig.restart("remote", Data::Fresh).await.unwrap();
        // In the midst of the stream again, not after it.
        has_tokens(&rig, "remote", there + 50).await;
    }
    let written = writer.stop().await;
    converged(&rig).await;
    for region in ["local", "remote"] {
        exactly_once(&rig, region, &[&written]).await;
        let own: Option<String> = tell(&rig, region, &["GET", "remotes-own"]).await;
        assert_eq!(
            own.as_deref(),
            Some("kept"),
            "what had reached {region} comes back"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_write_while_one_is_killed_and_what_the_others_took_is_everywhere() {
    let rig = regions(3).await;
    let writers = ["local", "remote", "third"].map(|region| Writer::start(&rig, region));
    has_tokens(&rig, "third", 200).await;
    rig.kill("local").await.unwrap();
    let there = tell::<u64>(&rig, "remote", &["LLEN", "tokens"]).await;
    has_tokens(&rig, "remote", there + 100).await;
    rig.restart("local", Data::Fresh).await.unwrap();
    has_tokens(&rig, "local", there + 100).await;
    let [ours, theirs, thirds] = writers;
    let (ours, theirs, thirds) = (ours.stop().await, theirs.stop().await, thirds.stop().await);
    converged(&rig).await;
    let mut lost = ours.acked.clone();
    for region in ["local", "remote", "third"] {
        let found = tokens(&rig, region).await;
        assert!(found.values().all(|&times| times == 1), "{region}: nothing twice");
        let lacks = |token: &&String| !found.contains_key(*token);
        let lacking: Vec<&String> = theirs.acked.iter().chain(&thirds.acked).filter(lacks).collect();
        assert!(
            lacking.is_empty(),
            "{region} lacks what was written where nothing failed: {lacking:?}"
        );
        lost.retain(|token| lacks(&token));
    }
    // Replication is asynchronous: of what the killed one had acknowledged, the very last may be gone, or may have reached
    // one of the others only.
    println!(
        "killed with {} acknowledged writes, of which {} had not left it",
        ours.acked.len(),
        lost.len()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_with_its_data_resumes_partially() {
    let rig = regions(2).await;
    let writer = Writer::start(&rig, "local");
    has_tokens(&rig, "remote", 50).await;
    let before = rig.link("local", "remote").unwrap();
    rig.restart("remote", Data::Keep).await.unwrap();
    let written = writer.stop().await;
    converged(&rig).await;
    exactly_once(&rig, "remote", &[&written]).await;
    let after = rig.link("local", "remote").unwrap();
    assert_eq!(after.full_resyncs, before.full_resyncs, "{after:?}");
    assert!(after.partial_resyncs > before.partial_resyncs, "{after:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_resync_copies_the_keys_and_keeps_the_destinations_own_writes() {
    let rig = start(RigOptions::count(2).server_arg("--repl-backlog-size", "16kb")).await;
    for (region, times) in [("local", 3), ("remote", 4)] {
        for _ in 0..times {
            tell::<u64>(&rig, region, &["INCR", "shared"]).await;
        }
    }
    converged(&rig).await;
    let before = rig.link("local", "remote").unwrap();
    let full = info(&rig, "local", "stats", "sync_full").await;
    rig.cut_link("local", "remote").await.unwrap();
    // Far more than the backlog holds.
    let filler = "x".repeat(1000);
    for n in 0..200 {
        tell::<()>(&rig, "local", &["SET", &format!("key:{n}"), &filler]).await;
    }
    for words in [
        &["HSET", "hash", "a", "1"][..],
        &["ZADD", "ranking", "1.5", "one"],
        &["SET", "mortal", "x", "EX", "100"],
        &["INCR", "shared"],
        &["RPUSH", "list", "ours"],
    ] {
        tell::<redis::Value>(&rig, "local", words).await;
    }
    tell::<u64>(&rig, "remote", &["INCR", "shared"]).await;
    tell::<u64>(&rig, "remote", &["RPUSH", "theirs", "own"]).await;
    rig.heal_link("local", "remote").unwrap();
    converged(&rig).await;

    let after = rig.link("local", "remote").unwrap();
    assert_eq!(after.full_resyncs, before.full_resyncs + 1, "{after:?}");
    assert!(
        info(&rig, "local", "stats", "sync_full").await > full,
        "the source says so too"
    );
    for region in ["local", "remote"] {
        assert_eq!(tell::<u64>(&rig, region, &["GET", "shared"]).await, 9, "{region}");
        assert_eq!(
            tell::<Vec<String>>(&rig, region, &["LRANGE", "theirs", "0", "-1"]).await,
            ["own"]
        );
    }
    assert_eq!(
        tell::<u64>(&rig, "remote", &["DBSIZE"]).await,
        tell::<u64>(&rig, "local", &["DBSIZE"]).await
    );
    for key in ["hash", "ranking", "list", "key:0", "key:199"] {
        let here: Option<redis::Value> = tell(&rig, "local", &["DUMP", key]).await;
        assert!(
            here.is_some() && here == tell(&rig, "remote", &["DUMP", key]).await,
            "{key}"
        );
    }
    let ttl: i64 = tell(&rig, "remote", &["PTTL", "mortal"]).await;
    assert!((90_000..=100_000).contains(&ttl), "{ttl}");
    // And the stream goes on from the copy.
    tell::<u64>(&rig, "local", &["INCR", "shared"]).await;
    converged(&rig).await;
    assert_eq!(tell::<u64>(&rig, "remote", &["GET", "shared"]).await, 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healed_link_delivers_late_and_in_order() {
    let rig = regions(2).await;
    let mut ear = Ear::open(&rig, "remote", "beat").await;
    rig.cut_link("local", "remote").await.unwrap();
    let began = Instant::now();
    for n in 0..10 {
        tell::<u64>(&rig, "local", &["PUBLISH", "beat", &n.to_string()]).await;
    }
    assert_eq!(ear.next(SILENCE).await, None, "nothing passes a cut link");
    // The other direction is a link of its own.
    let mut other = Ear::open(&rig, "local", "beat").await;
    tell::<u64>(&rig, "remote", &["PUBLISH", "beat", "backwards"]).await;
    assert_eq!(other.next(PATIENCE).await.as_deref(), Some("backwards"));
    assert_eq!(
        ear.next(PATIENCE).await.as_deref(),
        Some("backwards"),
        "its own subscribers too"
    );

    rig.heal_link("local", "remote").unwrap();
    for n in 0..10 {
        assert_eq!(ear.next(PATIENCE).await, Some(n.to_string()));
    }
    assert!(began.elapsed() >= SILENCE, "they were late");
    assert_eq!(ear.next(Duration::from_millis(50)).await, None, "once each");
}
