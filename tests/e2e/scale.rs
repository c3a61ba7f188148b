//! Many applications: a switch of ten thousand connections, and what an idle one costs.

use std::time::Duration;

use crate::support::{App, PATIENCE, Sidecar, now, two_regions};

async fn connected(sidecar: &Sidecar, clients: usize) -> Vec<App> {
    let mut apps = Vec::with_capacity(clients);
    for _ in 0..clients {
        let mut app = App::connect(sidecar.addr).await;
        assert_eq!(app.ask(&["PING"]).await, "+PONG\r\n");
        apps.push(app);
    }
    apps
}

/// `clients` ask while nothing can be sent; the active replica is killed, or left as planned. How long the last of them
/// waited after the route's change had set all of them free, and how many connects all that took.
async fn switched(mode: &str, clients: usize, planned: bool) -> (Duration, f64) {
    let rig = two_regions().await;
    let toml = format!(
        "[listener]\nbind = [\"127.0.0.1:0\"]\nmax_clients = 20000\n[upstream]\nmode = \"{mode}\"\n\
         [hold]\ntimeout = \"1m\"\nmax_commands = 20000\n"
    );
    let sidecar = Sidecar::start(&rig, "balanced", &toml).await;
    sidecar
        .wait("both in sync", |s| {
            (0..2).all(|r| s["replicas"][r]["fitness"] == "in_sync")
        })
        .await;
    let mut apps = connected(&sidecar, clients).await;
    let connects = async || sidecar.counter("pulsegate_upstream_connects_total").await;
    let before = connects().await;
    sidecar.verb(&["hold"]).await.expect("holds");
    for (n, app) in apps.iter_mut().enumerate() {
        app.say(&["SET", &format!("k:{n}"), "1"]).await;
    }
    let began = now();
    while sidecar.counter("pulsegate_hold_commands").await < clients as f64 {
        assert!(began.elapsed() < PATIENCE, "not all are held");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    if planned {
        sidecar.verb(&["switch", "remote"]).await.expect("it is done");
    } else {
        rig.kill("local").await.unwrap();
    }
    sidecar.wait("switch", |s| s["active"] == "remote").await;
    let tasks: Vec<_> = apps
        .into_iter()
        .map(|mut app| {
            tokio::spawn(async move {
                let reply = app.hear().await;
                (reply, now(), app)
            })
        })
        .collect();
    let status = sidecar.status().await;
    println!("holding still: {}", status["holding"]);
    let freed = now();
    sidecar.verb(&["resume"]).await.expect("resumes");
    let (mut took, mut apps) = (Duration::ZERO, Vec::new());
    for task in tasks {
        let (reply, at, app) = task.await.expect("no connection is closed");
        assert_eq!(reply, "+OK\r\n", "none was sent to the replica that is gone");
        took = took.max(at.saturating_duration_since(freed));
        apps.push(app);
    }
    let connects = connects().await - before;
    println!(
        "{mode}, planned: {planned}: {clients} held clients were served within {took:?} of the change of the route; \
         {connects} upstream connects"
    );
    for app in &mut apps {
        assert_eq!(
            app.ask(&["ECHO", "x"]).await,
            "$1\r\nx\r\n",
            "every connection lives"
        );
    }
    let keys = rig.region("remote").command(&["DBSIZE"]).await.unwrap();
    assert!(redis::from_redis_value::<usize>(keys).unwrap() >= clients);
    (took, connects)
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_clients_move_within_a_second() {
    let (took, connects) = switched("shared", 9_900, false).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(connects < 50.0, "{connects} upstream connects");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_clients_move_as_planned() {
    let (took, connects) = switched("shared", 9_900, true).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(connects < 50.0, "{connects} upstream connects");
}

/// Each with a connection of its own, which the move has to open: no bound is promised but the hold's.
#[tokio::test(flavor = "multi_thread")]
async fn dedicated_clients_move_too() {
    let (_, connects) = switched("dedicated", 2_000, false).await;
    assert!(connects < 2_000.0 * 1.1 + 50.0, "one each: {connects}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_idle_client_costs_little() {
    let rig = two_regions().await;
    let clients_of = async |region: &str| {
        let list = rig.region(region).command(&["CLIENT", "LIST"]).await.unwrap();
        redis::from_redis_value::<String>(list).unwrap().lines().count()
    };
    let before = [clients_of("local").await, clients_of("remote").await];
    let sidecar = Sidecar::start(
        &rig,
        "balanced",
        "[listener]\nbind = [\"127.0.0.1:0\"]\nmax_clients = 20000\n",
    )
    .await;
    let warm = connected(&sidecar, 100).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let base = sidecar.memory("VmRSS");
    let first = connected(&sidecar, 900).await;
    let (local, remote) = (
        clients_of("local").await - before[0],
        clients_of("remote").await - before[1],
    );
    println!("1000 idle clients: {local} and {remote} upstream connections, the monitor's included");
    assert!(local <= 4 && remote <= 4, "{local}, {remote}");
    let rest = connected(&sidecar, 8_000).await;
    let began = now();
    tokio::time::sleep(Duration::from_millis(300)).await;
    let clients = first.len() + rest.len();
    let each = (sidecar.memory("VmRSS") - base) as f64 / clients as f64;
    println!(
        "{clients} idle clients more: {each:.0} bytes each ({:?})",
        began.elapsed()
    );
    assert!(each <= 3072.0, "{each:.0} bytes for each idle client");
    drop(warm);
}
