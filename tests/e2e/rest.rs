//! The REST check of a replica's cluster: a failback waits for it, the active never goes because of it, and people can see it.

use std::path::Path;
use std::time::Duration;

use rig::{Data, Rig};
use tempfile::TempDir;

use crate::authority::Authority;
use crate::rest_server::{Behaviour, Database, PASSWORD, RestServer, USER};
use crate::support::{App, Sidecar, two_regions};

/// Two regions, the first of which has a cluster with a REST API.
struct World {
    rig: Rig,
    server: RestServer,
    dir: TempDir,
    own: Authority,
}

impl World {
    async fn start() -> World {
        let rig = two_regions().await;
        let dir = TempDir::new().unwrap();
        let own = Authority::new(dir.path(), "own", &["127.0.0.1"]);
        std::fs::write(dir.path().join("password"), format!("{PASSWORD}\n")).unwrap();
        let databases = vec![Database::at(12, rig.region("local").addr())];
        let server = RestServer::start(Some(&own), databases).await;
        World {
            rig,
            server,
            dir,
            own,
        }
    }

    /// The `[[replica]]` tables, the first with a check that trusts `ca`.
    fn replicas(&self, ca: &Path) -> String {
        let [local, remote] = ["local", "remote"].map(|name| {
            let url = self.rig.region(name).url();
            format!("[[replica]]\nname = \"{name}\"\nurl = \"{url}\"\n")
        });
        let rest = format!(
            "url = \"https://{}\"\nusername = \"{USER}\"\npassword_file = \"{}\"\nca = \"{}\"\ninterval = \"1s\"\n",
            self.server.addr,
            self.dir.path().join("password").display(),
            ca.display()
        );
        format!("{local}[replica.rest]\n{rest}{remote}")
    }

    async fn sidecar(&self) -> Sidecar {
        let toml = "[failback]\nmode = \"immediate\"\ngrace = \"500ms\"\n[failover]\ndwell = \"0s\"\n";
        Sidecar::with_replicas(&self.replicas(&self.own.ca), "fast", toml).await
    }

    fn fault(&self, fault: Option<(&'static str, &'static str)>) {
        self.server.cluster().databases[0].fault = fault;
    }

    /// Waits until the cluster was asked `more` times more: long enough for anything that follows from its answers.
    async fn asked(&self, more: usize) {
        let so_far = self.server.paths().len();
        let deadline = tokio::time::Instant::now() + crate::support::PATIENCE;
        while self.server.paths().len() < so_far + more {
            assert!(tokio::time::Instant::now() < deadline, "the cluster is not asked");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

async fn in_state(sidecar: &Sidecar, state: &str) {
    sidecar
        .wait(&format!("REST check that says {state}"), |s| {
            s["replicas"][0]["rest"]["state"] == state
        })
        .await;
}

async fn in_sync(sidecar: &Sidecar) {
    sidecar
        .wait("both in sync", |s| {
            (0..2).all(|r| s["replicas"][r]["fitness"] == "in_sync")
        })
        .await;
}

const NO_QUORUM: (&str, &str) = ("no_quorum", "Master healthcheck failed");

#[tokio::test(flavor = "multi_thread")]
async fn failback_waits_for_the_cluster() {
    let world = World::start().await;
    let sidecar = world.sidecar().await;
    in_state(&sidecar, "available").await;
    world.rig.kill("local").await.unwrap();
    sidecar.wait_active("remote").await;
    world.fault(Some(NO_QUORUM));
    in_state(&sidecar, "unavailable").await;
    world.rig.restart("local", Data::Fresh).await.unwrap();
    in_sync(&sidecar).await;
    // Four graces, with all but the cluster's word in order.
    world.asked(2).await;
    let status = sidecar.status().await;
    assert_eq!(status["active"], "remote", "{status:#}");
    assert_eq!(status["replicas"][0]["health"], "healthy", "{status:#}");
    let refused = sidecar.verb(&["failback"]).await.unwrap_err();
    assert!(
        refused.contains("REST check unavailable: 503 no_quorum: Master healthcheck failed"),
        "{refused}"
    );
    world.fault(None);
    let took = sidecar.wait_active("local").await;
    println!("REST says 200, then a grace of 500 ms: back after {took:?}");
    let switch = sidecar.status().await["last_switches"]
        .as_array()
        .unwrap()
        .last()
        .unwrap()
        .clone();
    assert_eq!(switch["reason"], "failback", "{switch}");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_active_stays_whatever_its_cluster_says() {
    let world = World::start().await;
    let sidecar = world.sidecar().await;
    in_state(&sidecar, "available").await;
    in_sync(&sidecar).await;
    world.fault(Some(NO_QUORUM));
    in_state(&sidecar, "unavailable").await;
    world.asked(3).await;
    world.server.behave(Behaviour::Hang);
    in_state(&sidecar, "unknown").await;
    let status = sidecar.status().await;
    assert_eq!(status["active"], "local", "{status:#}");
    assert_eq!(
        status["last_switches"].as_array().unwrap().len(),
        1,
        "only the first: {status:#}"
    );
    assert_eq!(status["replicas"][0]["health"], "healthy", "{status:#}");
    let mut app = App::connect(sidecar.addr).await;
    assert_eq!(app.ask(&["SET", "k", "v"]).await, "+OK\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn people_see_what_the_cluster_says() {
    let world = World::start().await;
    let sidecar = world.sidecar().await;
    in_state(&sidecar, "available").await;
    let available = sidecar
        .counter("pulsegate_rest_available{replica=\"local\"}")
        .await;
    assert!((available - 1.0).abs() < f64::EPSILON);
    world.fault(Some(NO_QUORUM));
    in_state(&sidecar, "unavailable").await;
    let status = sidecar.status().await;
    let rest = &status["replicas"][0]["rest"];
    assert_eq!(rest["words"], "503 no_quorum: Master healthcheck failed");
    assert!(rest["at"].as_u64().unwrap() > 1_600_000_000_000, "{rest}");
    assert!(status["replicas"][1].get("rest").is_none(), "{status:#}");
    let metrics = sidecar.get("/metrics").await;
    assert!(
        metrics.contains("pulsegate_rest_available{replica=\"local\"} 0\n"),
        "{metrics}"
    );
    assert!(!metrics.contains("pulsegate_rest_available{replica=\"remote\"}"));
    for (result, least) in [("available", 1.0), ("unavailable", 1.0), ("unknown", 0.0)] {
        let name = format!("pulsegate_rest_checks_total{{replica=\"local\",result=\"{result}\"}}");
        assert!(metrics.contains(&name), "{name}");
        assert!(sidecar.counter(&name).await >= least, "{name}");
    }
    let line = "REST check of local: unavailable, was available: 503 no_quorum: Master healthcheck failed";
    sidecar.wait_log(line, 0).await;
    let events = sidecar.verb(&["events"]).await.unwrap();
    assert!(events.contains(line), "{events}");
    let table = sidecar.verb(&["status"]).await.unwrap();
    let (_, checks) = table
        .split_once("REST checks of the clusters\n")
        .expect("a section");
    assert!(
        checks.starts_with("  local  unavailable  ") && checks.contains("no_quorum: Master"),
        "{table}"
    );
    world.server.behave(Behaviour::Always(401, ""));
    sidecar
        .wait_log("the REST check fails: 401 Unauthorized", 0)
        .await;
    in_state(&sidecar, "unknown").await;
    assert!(!sidecar.log_contains(PASSWORD));
}

/// `check --connect` with this configuration: whether it ended well, and what it printed.
async fn check(world: &World, ca: &Path) -> (bool, String) {
    let file = world.dir.path().join("check.toml");
    std::fs::write(&file, world.replicas(ca)).unwrap();
    let out = tokio::process::Command::new(env!("CARGO_BIN_EXE_pulsegate"))
        .args(["check", "--connect", "--config"])
        .arg(&file)
        .output()
        .await
        .unwrap();
    let text = [out.stdout, out.stderr].concat();
    (out.status.success(), String::from_utf8(text).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn check_connect_proves_the_api_too() {
    let world = World::start().await;
    let own = &world.own.ca;
    let (well, said) = check(&world, own).await;
    assert!(well && said.contains("REST: database 12 is available"), "{said}");
    let summary = format!(
        "  REST     https://{} as {USER}; database found by its endpoint; lag up to 100ms is available; every 1s\n",
        world.server.addr
    );
    assert!(said.contains(&summary), "{said}");
    assert!(!said.contains(PASSWORD), "{said}");
    world.fault(Some(NO_QUORUM));
    let (well, said) = check(&world, own).await;
    assert!(well, "the API works: {said}");
    assert!(
        said.contains("database 12 is unavailable (503 no_quorum: Master"),
        "{said}"
    );

    world.server.behave(Behaviour::Always(401, ""));
    let (well, said) = check(&world, own).await;
    assert!(!well && said.contains("1 of 2 replicas cannot be used"), "{said}");
    assert!(
        said.contains(&format!(
            "REST at https://{} failed: the list of databases: 401 Unauthorized: the user name or password is not accepted",
            world.server.addr
        )),
        "{said}"
    );
    world.server.behave(Behaviour::Documented);
    world.server.cluster().databases[0].port = 1;
    let (well, said) = check(&world, own).await;
    assert!(
        !well && said.contains("none of the cluster's 1 databases has an endpoint at"),
        "{said}"
    );
    let other = Authority::new(world.dir.path(), "other", &["127.0.0.1"]);
    let (well, said) = check(&world, &other.ca).await;
    assert!(!well && said.contains("UnknownIssuer"), "{said}");
}
