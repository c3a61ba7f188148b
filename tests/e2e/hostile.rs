//! Bad input and bad neighbours: a clear error for the one who sent it, nothing else disturbed.

use std::time::Duration;

use tokio::io::AsyncWriteExt;

use crate::support::{App, PATIENCE, Sidecar, now, two_regions};

/// Sends `bytes`; expects an error that contains `text`, then a close. Another connection goes on.
async fn refused(sidecar: &Sidecar, bytes: &[u8], text: &str) {
    let mut other = App::connect(sidecar.addr).await;
    let mut app = App::connect(sidecar.addr).await;
    app.send(bytes).await;
    let reply = app.hear().await;
    assert!(
        reply.starts_with("-ERR Protocol error") && reply.contains(text),
        "{reply}"
    );
    assert!(app.try_hear(PATIENCE).await.unwrap_err().starts_with("closed"));
    assert_eq!(other.ask(&["PING"]).await, "+PONG\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn protocol_garbage_is_answered_and_closed() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "").await;
    refused(&sidecar, b"*1\r\n$600000000\r\n", "invalid bulk length").await;
    refused(&sidecar, &b"*1\r\n".repeat(100_000), "expected '$', got '*'").await;
    refused(&sidecar, b"*3\r\n$3\r\nSET\r\n:1\r\n", "expected '$', got ':'").await;
    refused(&sidecar, b"*99999999999\r\n", "invalid multibulk length").await;
    refused(&sidecar, &[b'x'; 70_000], "too big inline request").await;
    refused(&sidecar, b"SET \"unbalanced\r\n", "unbalanced quotes").await;
    // What came before the garbage is still answered, in order.
    let mut app = App::connect(sidecar.addr).await;
    app.send(b"*1\r\n$4\r\nPING\r\n*1\r\n+x\r\n").await;
    assert_eq!(app.hear().await, "+PONG\r\n");
    assert!(app.hear().await.starts_with("-ERR Protocol error"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_reads_costs_no_memory() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "").await;
    let mut app = App::connect(sidecar.addr).await;
    let value = "v".repeat(100_000);
    assert_eq!(app.ask(&["SET", "big", &value]).await, "+OK\r\n");
    let before = sidecar.counter("process_resident_memory_bytes").await;
    // 200 MB of replies, of which nothing is read.
    let mut deaf = tokio::net::TcpStream::connect(sidecar.addr).await.unwrap();
    let get = pulsegate::resp::encode_command(&[b"GET", b"big"]).repeat(2000);
    let _ = tokio::time::timeout(Duration::from_secs(2), deaf.write_all(&get)).await;
    for _ in 0..50 {
        assert_eq!(app.ask(&["PING"]).await, "+PONG\r\n", "others are served");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let grown = sidecar.counter("process_resident_memory_bytes").await - before;
    println!("a client that never reads: {grown} bytes more");
    assert!(grown < 32e6, "grew by {grown} bytes");
    drop(deaf);
    assert_eq!(app.ask(&["PING"]).await, "+PONG\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_clients_are_told_so() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(
        &rig,
        "fast",
        "[listener]\nbind = [\"127.0.0.1:0\"]\nmax_clients = 3\n",
    )
    .await;
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut app = App::connect(sidecar.addr).await;
        assert_eq!(app.ask(&["PING"]).await, "+PONG\r\n");
        held.push(app);
    }
    let mut fourth = App::connect(sidecar.addr).await;
    assert_eq!(fourth.hear().await, "-ERR max number of clients reached\r\n");
    assert!(fourth.try_hear(PATIENCE).await.is_err());
    drop(held.pop());
    let began = now();
    loop {
        let mut app = App::connect(sidecar.addr).await;
        app.say(&["PING"]).await;
        if app.try_hear(PATIENCE).await.as_deref() == Ok("+PONG\r\n") {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "a freed place is taken");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_no_redis_or_rejects_us_is_named() {
    let rig = two_regions().await;
    // Speaks, but not RESP.
    let web = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = web.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = web.accept().await {
            let _ = stream
                .write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                .await;
        }
    });
    let good = rig.region("remote").url();
    rig.region("local")
        .command(&["CONFIG", "SET", "requirepass", "secret"])
        .await
        .unwrap();
    let wrong = rig.region("local").url().replace("redis://", "redis://:wrong@");
    let replicas = format!(
        "[[replica]]\nname = \"web\"\nurl = \"redis://127.0.0.1:{port}\"\n\
         [[replica]]\nname = \"locked\"\nurl = \"{wrong}\"\n\
         [[replica]]\nname = \"good\"\nurl = \"{good}\"\n"
    );
    let sidecar = Sidecar::with_replicas(&replicas, "fast", "").await;
    sidecar.wait_active("good").await;
    let status = sidecar.status().await;
    println!(
        "web: {}; locked: {}",
        status["replicas"][0]["reason"], status["replicas"][1]["reason"]
    );
    assert_ne!(status["replicas"][0]["health"], "healthy");
    assert_ne!(status["replicas"][1]["health"], "healthy");
    let mut app = App::connect(sidecar.addr).await;
    assert_eq!(app.ask(&["SET", "k", "v"]).await, "+OK\r\n");
}
