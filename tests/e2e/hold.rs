//! The hold: bounded in time, commands and bytes; what it cannot keep is refused at once or in time, never sent.

use std::time::Duration;

use crate::support::{App, Sidecar, now, two_regions};

const EXPIRED: &str = "-UNAVAILABLE no replica took the command in time; it was not sent\r\n";
const FULL: &str = "-UNAVAILABLE too many commands wait for a replica; this one was not sent\r\n";

async fn ended(sidecar: &Sidecar, reason: &str) -> f64 {
    sidecar
        .counter(&format!("pulsegate_hold_ended_total{{reason=\"{reason}\"}}"))
        .await
}

/// Waits until so many commands are held.
async fn held(sidecar: &Sidecar, commands: f64) {
    let began = now();
    while sidecar.counter("pulsegate_hold_commands").await != commands {
        assert!(began.elapsed() < Duration::from_secs(5), "not {commands} held");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_in_time() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "[hold]\ntimeout = \"400ms\"\n").await;
    let mut app = App::connect(sidecar.addr).await;
    assert_eq!(app.ask(&["SET", "k", "1"]).await, "+OK\r\n");
    sidecar.verb(&["hold"]).await.expect("holds");
    let began = now();
    app.send(b"INCR k\r\nGET k\r\n").await;
    assert_eq!(app.hear().await, EXPIRED);
    let took = began.elapsed();
    assert!((380..700).contains(&took.as_millis()), "after {took:?}");
    assert_eq!(app.hear().await, EXPIRED, "a read as well");
    assert_eq!(ended(&sidecar, "expired").await, 2.0);
    held(&sidecar, 0.0).await;
    sidecar.verb(&["resume"]).await.expect("resumes");
    assert_eq!(app.ask(&["GET", "k"]).await, "$1\r\n1\r\n", "it was not sent");
    assert_eq!(sidecar.counter("pulsegate_commands_unavailable_total").await, 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_expires_whole() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "[hold]\ntimeout = \"400ms\"\n").await;
    sidecar.verb(&["hold"]).await.expect("holds");
    let mut app = App::connect(sidecar.addr).await;
    app.send(b"MULTI\r\nINCR k\r\n").await;
    // Its end comes later, and would have had time left.
    tokio::time::sleep(Duration::from_millis(250)).await;
    app.send(b"INCR k\r\nEXEC\r\nINCR other\r\n").await;
    for _ in 0..4 {
        assert_eq!(app.hear().await, EXPIRED);
    }
    // What came after it has its own time.
    sidecar.verb(&["resume"]).await.expect("resumes");
    assert_eq!(app.hear().await, ":1\r\n");
    assert_eq!(app.ask(&["EXISTS", "k"]).await, ":0\r\n");
    // One that expires before its end has come is aborted there.
    sidecar.verb(&["hold"]).await.expect("holds");
    app.send(b"WATCH w\r\nMULTI\r\nINCR k\r\n").await;
    for _ in 0..3 {
        let reply = app.hear().await;
        assert!(
            reply == EXPIRED || reply == "+OK\r\n" || reply == "+QUEUED\r\n",
            "{reply}"
        );
    }
    sidecar.verb(&["resume"]).await.expect("resumes");
    assert_eq!(app.ask(&["INCR", "k"]).await, "+QUEUED\r\n");
    let end = app.ask(&["EXEC"]).await;
    assert!(end.starts_with("-EXECABORT") || end == "*-1\r\n", "{end}");
    assert_eq!(app.ask(&["EXISTS", "k"]).await, ":0\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_bounded_in_commands() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "[hold]\ntimeout = \"10s\"\nmax_commands = 10\n").await;
    sidecar.verb(&["hold"]).await.expect("holds");
    let mut app = App::connect(sidecar.addr).await;
    for _ in 0..10 {
        app.say(&["INCR", "k"]).await;
    }
    held(&sidecar, 10.0).await;
    let mut other = App::connect(sidecar.addr).await;
    let began = now();
    assert_eq!(other.ask(&["INCR", "k"]).await, FULL);
    assert!(began.elapsed() < Duration::from_millis(300), "refused at once");
    assert_eq!(ended(&sidecar, "overflow").await, 1.0);
    // One that goes away makes room.
    let mut gone = App::connect(sidecar.addr).await;
    app.reset();
    held(&sidecar, 0.0).await;
    assert_eq!(ended(&sidecar, "disconnected").await, 10.0);
    gone.say(&["INCR", "k"]).await;
    held(&sidecar, 1.0).await;
    sidecar.verb(&["resume"]).await.expect("resumes");
    assert_eq!(gone.hear().await, ":1\r\n");
    assert_eq!(ended(&sidecar, "resumed").await, 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_bounded_in_bytes() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "[hold]\ntimeout = \"10s\"\nmax_bytes = \"64KiB\"\n").await;
    sidecar.verb(&["hold"]).await.expect("holds");
    let mut app = App::connect(sidecar.addr).await;
    let value = "v".repeat(40_000);
    app.say(&["SET", "k", &value]).await;
    held(&sidecar, 1.0).await;
    let mut other = App::connect(sidecar.addr).await;
    assert_eq!(other.ask(&["SET", "k2", &value]).await, FULL);
    other.say(&["SET", "k2", "short"]).await;
    held(&sidecar, 2.0).await;
    assert!((40_000.0..65_536.0).contains(&sidecar.counter("pulsegate_hold_bytes").await));
    sidecar.verb(&["resume"]).await.expect("resumes");
    assert_eq!(app.hear().await, "+OK\r\n");
    assert_eq!(other.hear().await, "+OK\r\n");
    assert_eq!(sidecar.counter("pulsegate_hold_bytes").await, 0.0);
}

/// A part of a transaction that was refused is not applied without the rest, and the connection that was to carry it
/// is left in no transaction.
#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_overflows_is_aborted() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "[hold]\ntimeout = \"10s\"\nmax_commands = 3\n").await;
    let mut app = App::connect(sidecar.addr).await;
    sidecar.verb(&["hold"]).await.expect("holds");
    app.send(b"MULTI\r\nINCR a\r\nINCR b\r\nINCR c\r\nEXEC\r\nPING\r\n")
        .await;
    let replies = ["+OK\r\n", "+QUEUED\r\n", "+QUEUED\r\n", FULL];
    for reply in replies {
        assert_eq!(app.hear().await, reply);
    }
    assert!(app.hear().await.starts_with("-EXECABORT"));
    sidecar.verb(&["resume"]).await.expect("resumes");
    assert_eq!(app.hear().await, "+PONG\r\n");
    // Its beginning sent before the hold.
    assert_eq!(app.ask(&["MULTI"]).await, "+OK\r\n");
    assert_eq!(app.ask(&["INCR", "a"]).await, "+QUEUED\r\n");
    sidecar.verb(&["hold"]).await.expect("holds");
    app.send(b"INCR a\r\nINCR b\r\nINCR c\r\nINCR d\r\nEXEC\r\nEXISTS a b c d\r\n")
        .await;
    for reply in ["+QUEUED\r\n", "+QUEUED\r\n", "+QUEUED\r\n", FULL] {
        assert_eq!(app.hear().await, reply);
    }
    assert!(app.hear().await.starts_with("-EXECABORT"));
    // A WATCH that was refused guards nothing, so what it was to guard is not applied.
    let mut filler = App::connect(sidecar.addr).await;
    filler.send(b"PING\r\nPING\r\n").await;
    held(&sidecar, 3.0).await;
    let mut watcher = App::connect(sidecar.addr).await;
    watcher.send(b"WATCH a\r\nMULTI\r\nINCR a\r\nEXEC\r\n").await;
    assert_eq!(watcher.hear().await, FULL);
    for reply in ["+OK\r\n", "+QUEUED\r\n", "*-1\r\n"] {
        assert_eq!(watcher.hear().await, reply);
    }
    sidecar.verb(&["resume"]).await.expect("resumes");
    assert_eq!(app.hear().await, ":0\r\n", "nothing was applied");
    for _ in 0..3 {
        let mut other = App::connect(sidecar.addr).await;
        other.send(b"WATCH a\r\nCLIENT INFO\r\n").await;
        assert_eq!(other.hear().await, "+OK\r\n");
        assert!(other.hear().await.contains(" multi=-1 "));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_goes_on_in_order() {
    let rig = two_regions().await;
    let toml = "[hold]\ntimeout = \"10s\"\nmax_commands = 100000\n";
    let sidecar = Sidecar::start(&rig, "balanced", toml).await;
    sidecar.verb(&["hold"]).await.expect("holds");
    let (sessions, each) = (20, 1000);
    let mut apps = Vec::new();
    for session in 0..sessions {
        let mut app = App::connect(sidecar.addr).await;
        let mut all = Vec::new();
        for n in 0..each {
            all.extend_from_slice(format!("RPUSH list:{session} {n}\r\n").as_bytes());
        }
        app.send(&all).await;
        apps.push(app);
    }
    // So many of each: a session that is owed so much reads no more.
    held(&sidecar, f64::from(sessions * 128)).await;
    sidecar.verb(&["resume"]).await.expect("resumes");
    let began = now();
    for app in &mut apps {
        for n in 1..=each {
            assert_eq!(app.hear().await, format!(":{n}\r\n"));
        }
    }
    println!(
        "{} held commands answered within {:?}",
        sessions * each,
        began.elapsed()
    );
    assert_eq!(ended(&sidecar, "resumed").await, 1.0);
    for session in 0..sessions {
        let list = apps[0]
            .ask(&["LRANGE", &format!("list:{session}"), "0", "-1"])
            .await;
        let mut expected = format!("*{each}\r\n");
        for n in 0..each {
            let n = n.to_string();
            expected += &format!("${}\r\n{n}\r\n", n.len());
        }
        assert_eq!(list, expected);
    }
}
