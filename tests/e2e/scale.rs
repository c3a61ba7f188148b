//! Many applications: a switch of ten thousand connections, and what an idle one costs.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::support::{App, Sidecar, now, two_regions};

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970")
}

async fn connected(sidecar: &Sidecar, clients: usize) -> Vec<App> {
    let mut apps = Vec::with_capacity(clients);
    for _ in 0..clients {
        let mut app = App::connect(sidecar.addr).await;
        assert_eq!(app.ask(&["PING"]).await, "+PONG\r\n");
        apps.push(app);
    }
    apps
}

/// Kills the active replica in front of `clients`; when the last of them was served, after the change of the route, and
/// how many connects that took.
async fn switched(mode: &str, clients: usize) -> (Duration, f64) {
    let rig = two_regions().await;
    let toml = format!(
        "[listener]\nbind = [\"127.0.0.1:0\"]\nmax_clients = 20000\n[upstream]\nmode = \"{mode}\"\n\
         [hold]\ntimeout = \"20s\"\nmax_commands = 20000\n"
    );
    let sidecar = Sidecar::start(&rig, "fast", &toml).await;
    let mut apps = connected(&sidecar, clients).await;
    let connects = async || sidecar.counter("pulsegate_upstream_connects_total").await;
    let before = connects().await;
    rig.kill("local").await.unwrap();
    for (n, app) in apps.iter_mut().enumerate() {
        app.say(&["SET", &format!("k:{n}"), "1"]).await;
    }
    let tasks: Vec<_> = apps
        .into_iter()
        .map(|mut app| {
            tokio::spawn(async move {
                let reply = app.hear().await;
                (reply, since_1970(), app)
            })
        })
        .collect();
    let (mut last, mut unknown, mut apps) = (Duration::ZERO, 0, Vec::new());
    for task in tasks {
        let (reply, at, app) = task.await.expect("no connection is closed");
        match reply.as_str() {
            "+OK\r\n" => last = last.max(at),
            // On its way when the replica was killed.
            reply => {
                assert!(reply.starts_with("-OUTCOMEUNKNOWN"), "{reply}");
                unknown += 1;
            }
        }
        apps.push(app);
    }
    let connects = connects().await - before;
    let status = sidecar.status().await;
    assert_eq!(status["active"], "remote");
    let switch = status["last_switches"]
        .as_array()
        .and_then(|s| s.last())
        .expect("a switch");
    let at = Duration::from_millis(switch["at"].as_u64().expect("a time"));
    let took = last.saturating_sub(at);
    println!(
        "{mode}: {clients} clients, {unknown} unknown outcomes; the last was served {took:?} after the change of the \
         route; {connects} upstream connects; {}",
        switch["switch_ms"]
    );
    assert!(unknown < clients / 2, "most were held: {unknown}");
    for app in &mut apps {
        assert_eq!(
            app.ask(&["ECHO", "x"]).await,
            "$1\r\nx\r\n",
            "every connection lives"
        );
    }
    let keys: Value = serde_json::json!(
        redis::from_redis_value::<usize>(rig.region("remote").command(&["DBSIZE"]).await.unwrap()).unwrap()
    );
    assert!(keys.as_u64().unwrap() as usize + unknown >= clients);
    (took, connects)
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_clients_move_within_a_second() {
    let (took, connects) = switched("shared", 9_900).await;
    assert!(took < Duration::from_secs(1), "{took:?}");
    assert!(connects < 50.0, "{connects} upstream connects");
}

/// Each with a connection of its own, which the move has to open: no bound is promised but the hold's.
#[tokio::test(flavor = "multi_thread")]
async fn dedicated_clients_move_too() {
    let (_, connects) = switched("dedicated", 2_000).await;
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
