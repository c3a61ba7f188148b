//! Faults of one direction of one link.

use std::time::Duration;

use rig::Syncer;
use tokio::time::Instant;

use crate::support::{Ear, PATIENCE, converged, eventually, regions, tell};

#[tokio::test(flavor = "multi_thread")]
async fn a_delayed_link_is_late_by_that_much_and_only_that_way() {
    let rig = regions(2).await;
    let delay = Duration::from_millis(300);
    let (mut there, mut here) = (
        Ear::open(&rig, "remote", "beat").await,
        Ear::open(&rig, "local", "beat").await,
    );
    rig.delay_link("local", "remote", delay).unwrap();
    let began = Instant::now();
    tell::<u64>(&rig, "remote", &["PUBLISH", "beat", "back"]).await;
    assert_eq!(here.next(PATIENCE).await.as_deref(), Some("back"));
    let back = began.elapsed();
    there.next(PATIENCE).await;

    let began = Instant::now();
    tell::<u64>(&rig, "local", &["PUBLISH", "beat", "forth"]).await;
    assert_eq!(there.next(PATIENCE).await.as_deref(), Some("forth"));
    let forth = began.elapsed();
    assert!(forth >= delay && back < delay, "forth {forth:?}, back {back:?}");
    here.next(PATIENCE).await;

    rig.heal_link("local", "remote").unwrap();
    let began = Instant::now();
    tell::<u64>(&rig, "local", &["PUBLISH", "beat", "again"]).await;
    assert_eq!(there.next(PATIENCE).await.as_deref(), Some("again"));
    assert!(began.elapsed() < delay, "healed: {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flapping_link_delivers_all_of_it_in_the_end() {
    let rig = regions(2).await;
    let mut ear = Ear::open(&rig, "remote", "beat").await;
    let before = rig.link("local", "remote").unwrap().partial_resyncs;
    rig.flap_link("local", "remote", Duration::from_millis(100))
        .unwrap();
    let mut n = 0;
    eventually("the link went down and up a few times", || {
        n += 1;
        let (rig, message) = (&rig, n.to_string());
        async move {
            tell::<u64>(rig, "local", &["PUBLISH", "beat", &message]).await;
            rig.link("local", "remote").unwrap().partial_resyncs >= before + 3
        }
    })
    .await;
    rig.heal_link("local", "remote").unwrap();
    for n in 1..=n {
        assert_eq!(
            ear.next(PATIENCE).await,
            Some(n.to_string()),
            "each once, in order"
        );
    }
    assert_eq!(rig.link("local", "remote").unwrap().full_resyncs, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_name_is_told() {
    let rig = regions(2).await;
    let error = rig
        .cut_link("local", "nowhere")
        .await
        .expect_err("there is no such region");
    assert!(error.to_string().contains("local, remote"), "{error}");
    let error = rig
        .heal_link("local", "local")
        .expect_err("there is no such link");
    assert!(error.to_string().contains("itself"), "{error}");
    let error = rig
        .flap_link("local", "remote", Duration::from_millis(1))
        .expect_err("too fast");
    assert!(error.to_string().contains("too short"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn syncers_connect_servers_that_are_no_rig() {
    let (a, b) = (regions(1).await, regions(1).await);
    let end = |rig: &rig::Rig| rig::Endpoint::from_url(&rig.region("local").direct_url()).expect("a URL");
    tell::<()>(&a, "local", &["SET", "before", "1"]).await;
    let forth = Syncer::between("a", end(&a), "b", end(&b));
    let back = Syncer::between("b", end(&b), "a", end(&a));
    for (rig, other) in [(&a, &b), (&b, &a)] {
        for _ in 0..50 {
            tell::<u64>(rig, "local", &["INCR", "counter"]).await;
        }
        eventually("it crosses", || async {
            tell::<Option<String>>(other, "local", &["GET", "before"])
                .await
                .is_some()
        })
        .await;
    }
    for rig in [&a, &b] {
        eventually("both have all", || async {
            tell::<Option<u64>>(rig, "local", &["GET", "counter"]).await == Some(100)
        })
        .await;
    }
    for (name, syncer) in [("forth", &forth), ("back", &back)] {
        assert_eq!(syncer.status().failed, 0, "{name}: {:?}", syncer.status());
    }
    // One that is gone does nothing any more, the other goes on.
    drop(forth);
    tell::<()>(&b, "local", &["SET", "after", "1"]).await;
    eventually("the other way still stands", || async {
        tell::<Option<String>>(&a, "local", &["GET", "after"])
            .await
            .is_some()
    })
    .await;
    converged(&a).await;
}
