//! An application cannot tell: the same bytes come back as from the server itself.

use std::time::Duration;

use rig::Rig;

use crate::support::{App, Sidecar, two_regions};

/// Asks both the sidecar and a server the same and compares.
async fn same(rig: &Rig, sidecar: &Sidecar, script: &[&[&str]]) {
    rig.region("local").command(&["FLUSHALL"]).await.unwrap();
    let mut direct = App::connect(rig.region("local").direct_addr()).await;
    let mut expected = Vec::new();
    for words in script {
        expected.push(direct.ask(words).await);
    }
    rig.region("local").command(&["FLUSHALL"]).await.unwrap();
    let mut app = App::connect(sidecar.addr).await;
    for (words, expected) in script.iter().zip(&expected) {
        assert_eq!(&app.ask(words).await, expected, "{words:?}");
    }
    // And all at once: replies in request order.
    rig.region("local").command(&["FLUSHALL"]).await.unwrap();
    let mut app = App::connect(sidecar.addr).await;
    for words in script {
        app.say(words).await;
    }
    for (words, expected) in script.iter().zip(&expected) {
        assert_eq!(&app.hear().await, expected, "pipelined {words:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replies_are_the_servers() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "").await;
    same(
        &rig,
        &sidecar,
        &[
            &["SET", "k", "v"],
            &["GET", "k"],
            &["GET", "none"],
            &["LPUSH", "k", "x"],
            &["NOSUCH", "command"],
            &["GET"],
            &["MULTI"],
            &["INCR", "n"],
            &["GET", "k"],
            &["EXEC"],
            &["EXEC"],
            &["MULTI"],
            &["NOSUCH"],
            &["EXEC"],
            &["WATCH", "k"],
            &["MULTI"],
            &["DISCARD"],
            &["SELECT", "3"],
            &["SET", "three", "3"],
            &["SELECT", "999"],
            &["GET", "three"],
            &["CLIENT", "SETNAME", "app"],
            &["CLIENT", "GETNAME"],
            &["EVAL", "return {1, {2, 'x'}, redis.status_reply('fine')}", "0"],
            &["BLPOP", "empty", "0.01"],
            &["PING", "hello"],
            &["ECHO", ""],
        ],
    )
    .await;
    // RESP3, which changes the shape of replies; the connection's id in HELLO's own reply is its server's.
    let mut app = App::connect(sidecar.addr).await;
    assert!(app.ask(&["HELLO", "3"]).await.starts_with("%7\r\n"));
    assert_eq!(app.ask(&["HSET", "h", "f", "v"]).await, ":1\r\n");
    assert_eq!(app.ask(&["HGETALL", "h"]).await, "%1\r\n$1\r\nf\r\n$1\r\nv\r\n");
    assert_eq!(app.ask(&["GET", "none"]).await, "_\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn inline_requests_and_big_values_pass() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "").await;
    let mut app = App::connect(sidecar.addr).await;
    app.send(b"\r\nset \"a key\" 'some value'\r\nGET \"a key\"\r\nPING\r\n")
        .await;
    assert_eq!(app.hear().await, "+OK\r\n");
    assert_eq!(app.hear().await, "$10\r\nsome value\r\n");
    assert_eq!(app.hear().await, "+PONG\r\n");
    for size in [1, 4096, 65_535, 1_000_000, 20_000_000] {
        let value = "v".repeat(size);
        assert_eq!(app.ask(&["SET", "big", &value]).await, "+OK\r\n");
        assert_eq!(
            app.ask(&["GET", "big"]).await,
            format!("${size}\r\n{value}\r\n"),
            "{size} bytes come back"
        );
    }
    app.say(&["QUIT"]).await;
    assert_eq!(app.hear().await, "+OK\r\n");
    assert_eq!(app.try_hear(Duration::from_secs(5)).await, Err("closed".into()));
}

#[tokio::test(flavor = "multi_thread")]
async fn state_is_replayed_on_the_next_replica() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "").await;
    let mut app = App::connect(sidecar.addr).await;
    assert_eq!(app.ask(&["SELECT", "5"]).await, "+OK\r\n");
    assert_eq!(app.ask(&["CLIENT", "SETNAME", "the-app"]).await, "+OK\r\n");
    let mut three = App::connect(sidecar.addr).await;
    assert!(
        three
            .ask(&["HELLO", "3", "SETNAME", "resp3"])
            .await
            .starts_with('%')
    );
    let mut subscriber = App::connect(sidecar.addr).await;
    assert!(subscriber.ask(&["SUBSCRIBE", "news"]).await.contains("subscribe"));
    assert!(subscriber.ask(&["PSUBSCRIBE", "n*"]).await.contains("psubscribe"));
    let mut transaction = App::connect(sidecar.addr).await;
    assert_eq!(transaction.ask(&["MULTI"]).await, "+OK\r\n");
    assert_eq!(transaction.ask(&["SET", "half", "1"]).await, "+QUEUED\r\n");
    let mut watcher = App::connect(sidecar.addr).await;
    assert_eq!(watcher.ask(&["WATCH", "w"]).await, "+OK\r\n");
    let mut blocked = App::connect(sidecar.addr).await;
    blocked.say(&["BLPOP", "never", "0"]).await;
    assert_eq!(
        blocked.try_hear(Duration::from_millis(200)).await,
        Err("silence".into())
    );

    rig.kill("local").await.unwrap();
    sidecar.wait_active("remote").await;

    assert_eq!(app.ask(&["CLIENT", "GETNAME"]).await, "$7\r\nthe-app\r\n");
    assert_eq!(app.ask(&["SET", "in-five", "x"]).await, "+OK\r\n");
    let keyspace = rig.region("remote").command(&["INFO", "keyspace"]).await.unwrap();
    assert!(
        format!("{keyspace:?}").contains("db5"),
        "database 5 was selected again: {keyspace:?}"
    );
    assert_eq!(three.ask(&["GET", "none"]).await, "_\r\n", "still RESP3");
    assert_eq!(three.ask(&["CLIENT", "GETNAME"]).await, "$5\r\nresp3\r\n");
    assert_eq!(transaction.ask(&["SET", "half", "2"]).await, "+QUEUED\r\n");
    assert!(transaction.ask(&["EXEC"]).await.starts_with("-EXECABORT"));
    assert_eq!(
        transaction.ask(&["EXISTS", "half"]).await,
        ":0\r\n",
        "nothing of the transaction was applied"
    );
    assert_eq!(watcher.ask(&["MULTI"]).await, "+OK\r\n");
    assert_eq!(watcher.ask(&["SET", "w", "1"]).await, "+QUEUED\r\n");
    assert_eq!(watcher.ask(&["EXEC"]).await, "*-1\r\n");
    assert!(blocked.hear().await.starts_with("-UNBLOCKED"));
    assert_eq!(blocked.ask(&["PING"]).await, "+PONG\r\n");
    // The subscriber says nothing, confirms nothing twice, and hears again.
    let heard = async {
        loop {
            app.ask(&["PUBLISH", "news", "after"]).await;
            if let Ok(message) = subscriber.try_hear(Duration::from_millis(100)).await {
                return message;
            }
        }
    };
    let message = tokio::time::timeout(Duration::from_secs(10), heard)
        .await
        .expect("the subscription moved");
    assert_eq!(message, "*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$5\r\nafter\r\n");
    assert_eq!(
        subscriber.hear().await,
        "*4\r\n$8\r\npmessage\r\n$2\r\nn*\r\n$4\r\nnews\r\n$5\r\nafter\r\n"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_clients_get_no_replies() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "").await;
    let mut app = App::connect(sidecar.addr).await;
    app.say(&["CLIENT", "REPLY", "SKIP"]).await;
    app.say(&["SET", "k", "1"]).await;
    assert_eq!(
        app.ask(&["GET", "k"]).await,
        "$1\r\n1\r\n",
        "SKIP silences one command"
    );
    app.say(&["CLIENT", "REPLY", "OFF"]).await;
    for _ in 0..1000 {
        app.say(&["INCR", "n"]).await;
    }
    assert_eq!(app.ask(&["CLIENT", "REPLY", "ON"]).await, "+OK\r\n");
    assert_eq!(app.ask(&["GET", "n"]).await, "$4\r\n1000\r\n");
}
