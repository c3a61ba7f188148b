//! Faults of the network between an application and a server: made by the relay, seen by the application alone.

use std::io::ErrorKind;
use std::time::Duration;

use rig::{Direction, Rig};
use tokio::time::Instant;

use crate::support::{PATIENCE, Raw, converged, regions, tell};

async fn connect(rig: &Rig) -> Raw {
    Raw::connect(rig.region("local").addr()).await.expect("connects")
}

/// The server is well, whatever its network does; replication does not pass the relay.
async fn server_is_well(rig: &Rig) {
    tell::<u64>(rig, "local", &["INCR", "well"]).await;
    converged(rig).await;
    let (here, there): (u64, u64) = (
        tell(rig, "local", &["GET", "well"]).await,
        tell(rig, "remote", &["GET", "well"]).await,
    );
    assert_eq!(here, there);
}

#[tokio::test(flavor = "multi_thread")]
async fn cut_resets_and_refuses() {
    let rig = regions(2).await;
    let mut app = connect(&rig).await;
    assert_eq!(app.ask("PING").await, "+PONG");
    rig.cut("local").await.unwrap();
    let reset = app.line(PATIENCE).await.expect_err("the connection breaks");
    assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
    let refused = Raw::connect(rig.region("local").addr())
        .await
        .err()
        .expect("refused");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    server_is_well(&rig).await;
    rig.heal_network("local").await.unwrap();
    assert_eq!(connect(&rig).await.ask("PING").await, "+PONG");
}

#[tokio::test(flavor = "multi_thread")]
async fn stall_keeps_everything_and_moves_nothing() {
    let rig = regions(2).await;
    let mut old = connect(&rig).await;
    assert_eq!(old.ask("PING").await, "+PONG");
    rig.stall("local").await.unwrap();
    let mut new = connect(&rig).await;
    old.say("SET k old").await;
    new.say("PING").await;
    assert!(old.is_silent().await && new.is_silent().await);
    assert_eq!(
        tell::<Option<String>>(&rig, "local", &["GET", "k"]).await,
        None,
        "it did not arrive"
    );
    server_is_well(&rig).await;
    rig.heal_network("local").await.unwrap();
    assert_eq!(
        old.line(PATIENCE).await.unwrap().as_deref(),
        Some("+OK"),
        "nothing was lost"
    );
    assert_eq!(new.line(PATIENCE).await.unwrap().as_deref(), Some("+PONG"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stall_hides_even_the_servers_end() {
    let rig = regions(2).await;
    let mut app = connect(&rig).await;
    assert_eq!(app.ask("PING").await, "+PONG");
    rig.stall("local").await.unwrap();
    rig.kill("local").await.unwrap();
    assert!(app.is_silent().await, "the end does not get through");
    rig.heal_network("local").await.unwrap();
    app.line(PATIENCE).await.expect_err("now it does");
}

#[tokio::test(flavor = "multi_thread")]
async fn delay_is_paid_each_way_by_its_own() {
    let rig = regions(2).await;
    let mut app = connect(&rig).await;
    let round_trip = async |app: &mut Raw| {
        let began = Instant::now();
        assert_eq!(app.ask("PING").await, "+PONG");
        began.elapsed()
    };
    let usual = round_trip(&mut app).await;
    let (there, back) = (Duration::from_millis(120), Duration::from_millis(80));
    rig.delay("local", there, back).await.unwrap();
    let slow = round_trip(&mut app).await;
    assert!(slow >= there + back, "{slow:?}, without a delay {usual:?}");
    // Each way by its own: with only the way back slow, the server has the write long before the answer.
    rig.delay("local", Duration::ZERO, PATIENCE).await.unwrap();
    app.say("SET k early").await;
    crate::support::eventually("the write arrives", || async {
        tell::<Option<String>>(&rig, "local", &["GET", "k"])
            .await
            .is_some()
    })
    .await;
    assert!(app.is_silent().await, "its answer is still under way");
    // What was under way arrives at once.
    rig.heal_network("local").await.unwrap();
    assert_eq!(
        app.line(Duration::from_secs(2)).await.unwrap().as_deref(),
        Some("+OK")
    );
    let healed = round_trip(&mut app).await;
    assert!(healed < there + back, "{healed:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dribble_brings_a_few_bytes_at_a_time() {
    let rig = regions(2).await;
    let mut app = connect(&rig).await;
    rig.dribble("local", 2, Duration::from_millis(10)).await.unwrap();
    let text = "x".repeat(40);
    let began = Instant::now();
    app.say(&format!("ECHO {text}")).await;
    assert_eq!(app.line(PATIENCE).await.unwrap().as_deref(), Some("$40"));
    let first = began.elapsed();
    assert_eq!(app.line(PATIENCE).await.unwrap(), Some(text.clone()));
    let all = began.elapsed();
    // 47 bytes there and 47 back, two every 10 ms.
    assert!(
        first >= Duration::from_millis(230),
        "the first line after {first:?}"
    );
    assert!(all >= Duration::from_millis(400), "all after {all:?}");
    let error = rig
        .dribble("local", 0, Duration::ZERO)
        .await
        .expect_err("refused");
    assert!(error.to_string().contains("stall"), "{error}");
    rig.heal_network("local").await.unwrap();
    let began = Instant::now();
    app.ask(&format!("ECHO {text}")).await;
    assert!(began.elapsed() < first, "healed: {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_towards_the_client_applies_and_does_not_answer() {
    let rig = regions(2).await;
    let mut app = connect(&rig).await;
    assert_eq!(app.ask("PING").await, "+PONG");
    rig.half_open("local", Direction::ToClient).await.unwrap();
    app.say("SET k applied").await;
    assert!(app.is_silent().await);
    assert_eq!(tell::<String>(&rig, "local", &["GET", "k"]).await, "applied");
    let mut new = connect(&rig).await;
    new.say("SET new applied").await;
    assert!(new.is_silent().await);
    assert_eq!(tell::<String>(&rig, "local", &["GET", "new"]).await, "applied");
    rig.heal_network("local").await.unwrap();
    let reset = app
        .line(PATIENCE)
        .await
        .expect_err("what lived through it is reset");
    assert_eq!(reset.kind(), ErrorKind::ConnectionReset);
    assert_eq!(connect(&rig).await.ask("PING").await, "+PONG");
}

#[tokio::test(flavor = "multi_thread")]
async fn half_open_towards_the_server_brings_nothing_there() {
    let rig = regions(2).await;
    let mut app = connect(&rig).await;
    let mut subscriber = connect(&rig).await;
    assert_eq!(subscriber.ask("SUBSCRIBE news").await, "*3");
    for _ in 0..5 {
        subscriber
            .line(PATIENCE)
            .await
            .unwrap()
            .expect("the rest of the confirmation");
    }
    rig.half_open("local", Direction::ToServer).await.unwrap();
    app.say("SET k lost").await;
    assert!(app.is_silent().await);
    assert_eq!(tell::<Option<String>>(&rig, "local", &["GET", "k"]).await, None);
    tell::<u64>(&rig, "local", &["PUBLISH", "news", "1"]).await;
    assert_eq!(
        subscriber.line(PATIENCE).await.unwrap().as_deref(),
        Some("*3"),
        "the other way works"
    );
    rig.heal_network("local").await.unwrap();
    app.line(PATIENCE)
        .await
        .expect_err("what lived through it is reset");
    assert_eq!(
        tell::<Option<String>>(&rig, "local", &["GET", "k"]).await,
        None,
        "and does not arrive later"
    );
}
