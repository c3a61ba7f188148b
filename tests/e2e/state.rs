//! The state of a connection stays its session's: nothing of it is lost by a command that brings no reply, or by one that
//! fails, and nothing of it reaches the next session that is given the same connection.

use std::time::Duration;

use crate::support::{App, PATIENCE, Sidecar, now, two_regions};

/// Sessions that are given connections from the pool find them as new ones: outside of any transaction, in database 0,
/// with nothing watched.
async fn the_pool_is_clean(sidecar: &Sidecar) {
    for _ in 0..5 {
        let mut other = App::connect(sidecar.addr).await;
        other.send(b"WATCH unused\r\nPING\r\nUNWATCH\r\n").await;
        for reply in ["+OK\r\n", "+PONG\r\n", "+OK\r\n"] {
            assert_eq!(other.hear().await, reply);
        }
        let info = other.ask(&["CLIENT", "INFO"]).await;
        assert!(info.contains(" db=0 ") && info.contains(" multi=-1 "), "{info}");
        assert!(info.contains(" user=default "), "{info}");
    }
}

async fn replies(app: &mut App, expected: &[&str]) {
    for (n, reply) in expected.iter().enumerate() {
        let heard = app.hear().await;
        assert!(heard.starts_with(reply), "reply {n}: {heard:?}, not {reply:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reset_and_what_follows_in_one_packet() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "").await;
    let mut app = App::connect(sidecar.addr).await;
    app.send(b"SELECT 4\r\nRESET\r\nMULTI\r\n").await;
    replies(&mut app, &["+OK", "+RESET", "+OK"]).await;
    the_pool_is_clean(&sidecar).await;
    app.send(b"INCR n\r\nEXEC\r\nMULTI\r\nINCR n\r\nRESET\r\nGET n\r\n")
        .await;
    replies(
        &mut app,
        &["+QUEUED", "*1\r\n:1", "+OK", "+QUEUED", "+RESET", "$1\r\n1"],
    )
    .await;
    app.send(b"WATCH n\r\nRESET\r\nMULTI\r\nINCR n\r\n").await;
    replies(&mut app, &["+OK", "+RESET", "+OK", "+QUEUED"]).await;
    // Another one changes it, which matters only to a WATCH that still stood.
    let mut other = App::connect(sidecar.addr).await;
    assert_eq!(other.ask(&["INCR", "n"]).await, ":2\r\n");
    assert_eq!(app.ask(&["EXEC"]).await, "*1\r\n:3\r\n");
    app.send(b"CLIENT REPLY OFF\r\nINCR n\r\nRESET\r\nGET n\r\n")
        .await;
    replies(&mut app, &["+RESET", "$1\r\n4"]).await;
    the_pool_is_clean(&sidecar).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_fail_leave_nothing_to_others() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "").await;
    for region in ["local", "remote"] {
        let ann = [
            "ACL", "SETUSER", "ann", "on", ">secret", "~*", "&*", "+@all", "-discard", "-unwatch",
        ];
        rig.region(region).command(&ann).await.unwrap();
    }
    let mut app = App::connect(sidecar.addr).await;
    // Neither begins a transaction, so SELECT is carried out and remembered.
    app.send(b"MULTI extra\r\nSELECT 5\r\nEXEC\r\nPING\r\n").await;
    replies(&mut app, &["-ERR", "+OK", "-ERR EXEC without MULTI", "+PONG"]).await;
    assert!(app.ask(&["CLIENT", "INFO"]).await.contains(" db=5 "));
    the_pool_is_clean(&sidecar).await;
    // Denied: the transaction is still open, on a connection that nobody else gets.
    let mut ann = App::connect(sidecar.addr).await;
    ann.send(b"AUTH ann secret\r\nMULTI\r\nDISCARD\r\nPING\r\n").await;
    replies(&mut ann, &["+OK", "+OK", "-NOPERM", "+QUEUED"]).await;
    the_pool_is_clean(&sidecar).await;
    let mut watcher = App::connect(sidecar.addr).await;
    watcher.send(b"AUTH ann secret\r\nWATCH w\r\nUNWATCH\r\n").await;
    replies(&mut watcher, &["+OK", "+OK", "-NOPERM"]).await;
    the_pool_is_clean(&sidecar).await;
    // The login was taken before the name was refused.
    let mut named = App::connect(sidecar.addr).await;
    let hello = ["HELLO", "3", "AUTH", "ann", "secret", "SETNAME", "a name"];
    assert!(named.ask(&hello).await.starts_with("-ERR"));
    let direct = {
        let mut direct = App::connect(rig.region("local").direct_addr()).await;
        direct.ask(&hello).await;
        direct.ask(&["ACL", "WHOAMI"]).await
    };
    assert_eq!(named.ask(&["ACL", "WHOAMI"]).await, direct);
    drop((named, ann, watcher));
    the_pool_is_clean(&sidecar).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_commands_are_commands() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "").await;
    let mut app = App::connect(sidecar.addr).await;
    app.send(b"CLIENT REPLY SKIP\r\nSELECT 6\r\nSET here 1\r\n").await;
    assert_eq!(app.hear().await, "+OK\r\n");
    assert!(app.ask(&["CLIENT", "INFO"]).await.contains(" db=6 "));
    the_pool_is_clean(&sidecar).await;
    // Fire and forget, then go: each way to go.
    for (key, end) in [("quit", &b"QUIT\r\n"[..]), ("closed", b"")] {
        let mut app = App::connect(sidecar.addr).await;
        let mut all = b"CLIENT REPLY OFF\r\n".to_vec();
        for _ in 0..20_000 {
            all.extend_from_slice(format!("INCR {key}\r\n").as_bytes());
        }
        all.extend_from_slice(end);
        app.send(&all).await;
        app.shut_down().await;
        assert_eq!(app.try_hear(PATIENCE).await, Err("closed".into()));
        let mut other = App::connect(sidecar.addr).await;
        let began = now();
        while other.ask(&["GET", key]).await != "$5\r\n20000\r\n" {
            assert!(
                began.elapsed() < PATIENCE,
                "{key}: {}",
                other.ask(&["GET", key]).await
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    the_pool_is_clean(&sidecar).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_sent_all_still_gets_all() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "").await;
    let mut app = App::connect(sidecar.addr).await;
    let value = "v".repeat(20_000_000);
    assert_eq!(app.ask(&["SET", "big", &value]).await, "+OK\r\n");
    app.send(b"GET big\r\nGET big\r\nPING\r\n").await;
    app.shut_down().await;
    // Longer than it takes for the replies to be there, unread.
    tokio::time::sleep(Duration::from_millis(500)).await;
    for _ in 0..2 {
        assert_eq!(app.hear().await.len(), value.len() + "$20000000\r\n\r\n".len());
    }
    assert_eq!(app.hear().await, "+PONG\r\n");
    assert_eq!(app.try_hear(PATIENCE).await, Err("closed".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_busy_link_is_no_hold() {
    let rig = two_regions().await;
    let toml = "[hold]\nmax_bytes = \"4MiB\"\nmax_commands = 10\n";
    let sidecar = Sidecar::start(&rig, "balanced", toml).await;
    // The shared link stands: before that, as at any start, commands are held.
    let mut first = App::connect(sidecar.addr).await;
    assert_eq!(first.ask(&["PING"]).await, "+PONG\r\n");
    // 100 MB at once, to a replica that is well: slow, perhaps, but nothing is refused.
    let value = "v".repeat(1_000_000);
    let mut apps = Vec::new();
    for n in 0..100 {
        let (addr, value) = (sidecar.addr, value.clone());
        apps.push(tokio::spawn(async move {
            let mut app = App::connect(addr).await;
            app.ask(&["SET", &format!("big:{n}"), &value]).await
        }));
    }
    for app in apps {
        assert_eq!(app.await.unwrap(), "+OK\r\n");
    }
    assert_eq!(sidecar.counter("pulsegate_commands_unavailable_total").await, 0.0);
}

/// A login that the next replica does not know: the application is told so, and nobody else notices.
#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_one_replica_refuses() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "").await;
    let ann = ["ACL", "SETUSER", "ann", "on", ">secret", "~*", "&*", "+@all"];
    rig.region("local").command(&ann).await.unwrap();
    let mut app = App::connect(sidecar.addr).await;
    let mut own = App::connect(sidecar.addr).await;
    for app in [&mut app, &mut own] {
        assert_eq!(app.ask(&["AUTH", "ann", "secret"]).await, "+OK\r\n");
        assert_eq!(app.ask(&["SET", "k", "1"]).await, "+OK\r\n");
    }
    let mut other = App::connect(sidecar.addr).await;
    rig.kill("local").await.unwrap();
    sidecar.wait_active("remote").await;
    let began = now();
    while began.elapsed() < Duration::from_secs(1) {
        assert!(app.ask(&["GET", "k"]).await.starts_with("-WRONGPASS"));
        own.send(b"MULTI\r\nSET k 2\r\nEXEC\r\n").await;
        replies(&mut own, &["-WRONGPASS", "", ""]).await;
        let asked = now();
        other.send(b"SET k 3\r\nWATCH k\r\nUNWATCH\r\n").await;
        replies(&mut other, &["+OK", "+OK", "+OK"]).await;
        assert!(
            asked.elapsed() < Duration::from_millis(500),
            "{:?}",
            asked.elapsed()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(other.ask(&["GET", "k"]).await, "$1\r\n3\r\n");
    assert_eq!(sidecar.status().await["replicas"][1]["health"], "healthy");
    // Known there from now on.
    rig.region("remote").command(&ann).await.unwrap();
    let began = now();
    while app.ask(&["GET", "k"]).await != "$1\r\n3\r\n" {
        assert!(began.elapsed() < Duration::from_secs(3), "it is asked for again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    own.send(b"MULTI\r\nINCR k\r\nEXEC\r\n").await;
    replies(&mut own, &["+OK", "+QUEUED", "*1\r\n:4"]).await;
}

/// A server remembers what a tracking connection has read, also when tracking is off again.
#[tokio::test(flavor = "multi_thread")]
async fn nobody_hears_of_what_others_have_read() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "").await;
    let mut writer = App::connect(sidecar.addr).await;
    assert_eq!(writer.ask(&["MSET", "one", "1", "two", "2"]).await, "+OK\r\n");
    let mut first = App::connect(sidecar.addr).await;
    assert!(first.ask(&["HELLO", "3"]).await.starts_with('%'));
    assert_eq!(first.ask(&["CLIENT", "TRACKING", "ON"]).await, "+OK\r\n");
    assert_eq!(first.ask(&["GET", "one"]).await, "$1\r\n1\r\n");
    assert_eq!(first.ask(&["CLIENT", "TRACKING", "OFF"]).await, "+OK\r\n");
    let mut second = App::connect(sidecar.addr).await;
    assert!(second.ask(&["HELLO", "3"]).await.starts_with('%'));
    assert_eq!(second.ask(&["CLIENT", "TRACKING", "ON"]).await, "+OK\r\n");
    assert_eq!(second.ask(&["GET", "two"]).await, "$1\r\n2\r\n");
    assert_eq!(writer.ask(&["SET", "one", "x"]).await, "+OK\r\n");
    assert_eq!(writer.ask(&["SET", "two", "x"]).await, "+OK\r\n");
    assert_eq!(
        second.hear().await,
        ">2\r\n$10\r\ninvalidate\r\n*1\r\n$3\r\ntwo\r\n",
        "its own key, and nothing before it"
    );
}
