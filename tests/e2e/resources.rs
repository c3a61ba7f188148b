//! Too little of something, or too much: it costs the one who asks, nobody else.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{App, Sidecar, now, replicas, two_regions, with_profile};

/// The limit of file descriptors of a running process.
fn limit_open_files(sidecar: &Sidecar, limit: u64) {
    let set = std::process::Command::new("prlimit")
        .args(["--pid", &sidecar.pid().to_string(), &format!("--nofile={limit}:")])
        .status();
    assert!(
        set.is_ok_and(|status| status.success()),
        "prlimit (util-linux) sets it"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn few_descriptors_mean_few_clients_and_nothing_else() {
    let rig = two_regions().await;
    let sidecar = Sidecar::configured(&with_profile(&replicas(&rig), "fast"), "", Some(100)).await;
    sidecar
        .wait_log(
            "needs 11314 open files, the system allows 100: there is room for 32",
            0,
        )
        .await;
    let mut inside = Vec::new();
    for _ in 0..32 {
        let mut app = App::connect(sidecar.addr).await;
        assert_eq!(app.ask(&["PING"]).await, "+PONG\r\n");
        inside.push(app);
    }
    for _ in 0..100 {
        let mut app = App::connect(sidecar.addr).await;
        assert_eq!(app.hear().await, "-ERR max number of clients reached\r\n");
    }
    // Nothing is missing for what matters: operators, and links to another replica.
    sidecar.verb(&["switch", "remote"]).await.expect("it is done");
    for app in &mut inside {
        assert_eq!(app.ask(&["PING"]).await, "+PONG\r\n");
    }
    assert_eq!(sidecar.status().await["active"], "remote");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_descriptors_those_inside_are_served_and_accepting_resumes() {
    let rig = two_regions().await;
    let sidecar = Sidecar::start(&rig, "fast", "").await;
    sidecar
        .wait("both in sync", |s| {
            (0..2).all(|r| s["replicas"][r]["fitness"] == "in_sync")
        })
        .await;
    let mut first = App::connect(sidecar.addr).await;
    assert_eq!(first.ask(&["SET", "k", "0"]).await, "+OK\r\n");
    let before = sidecar.status().await;

    // Not one more than there are; the system itself completes the handshake of those that cannot be accepted.
    limit_open_files(&sidecar, 3);
    let mut outside = App::connect(sidecar.addr).await;
    outside.say(&["PING"]).await;
    sidecar.wait_log("cannot accept connections just now", 0).await;
    let began = now();
    let mut n = 0;
    while began.elapsed() < Duration::from_secs(2) {
        n += 1;
        assert_eq!(
            first.ask(&["INCR", "k"]).await,
            format!(":{n}\r\n"),
            "those inside are served"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(
        outside.try_hear(Duration::from_millis(10)).await,
        Err("silence".to_owned()),
        "whoever is outside waits"
    );

    limit_open_files(&sidecar, 1000);
    let began = now();
    assert_eq!(outside.hear().await, "+PONG\r\n");
    println!("descriptors are back: served after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    let status = sidecar.status().await;
    assert_eq!(
        status["epoch"], before["epoch"],
        "no replica was blamed: {status:#}"
    );
    let refused = "pulsegate_connections_rejected_total{reason=\"resources\"}";
    assert!(sidecar.counter(refused).await >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_replica_is_said_in_words() {
    let rig = two_regions().await;
    // A web server, which answers the first line it gets.
    let web = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = web.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = web.accept().await {
            tokio::spawn(async move {
                let _ = stream.read(&mut [0; 512]).await;
                let _ = stream
                    .write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
                    .await;
                let _ = stream.read(&mut [0; 512]).await;
            });
        }
    });
    for region in ["local", "remote"] {
        let set = ["CONFIG", "SET", "requirepass", "secret"];
        rig.region(region).command(&set).await.unwrap();
    }
    let url = |region: &str, password: &str| {
        let url = rig.region(region).url();
        url.replace("redis://", &format!("redis://:{password}@"))
    };
    let tables = format!(
        "[[replica]]\nname = \"web\"\nurl = \"redis://127.0.0.1:{port}\"\n\
         [[replica]]\nname = \"locked\"\nurl = \"{}\"\n\
         [[replica]]\nname = \"good\"\nurl = \"{}\"\n",
        url("local", "wrong"),
        url("remote", "secret"),
    );
    let sidecar = Sidecar::with_replicas(&tables, "fast", "").await;
    sidecar.wait_active("good").await;
    for (replica, words) in [(0, "no Redis reply"), (1, "WRONGPASS")] {
        sidecar
            .wait(words, |s| {
                let reason = s["replicas"][replica]["reason"].as_str();
                s["replicas"][replica]["health"] == "down" && reason.is_some_and(|r| r.contains(words))
            })
            .await;
    }
    // The application needs no password: Pulsegate's own is used.
    let mut app = App::connect(sidecar.addr).await;
    assert_eq!(app.ask(&["SET", "k", "v"]).await, "+OK\r\n");
}
