//! `rediss://`: own authority, client certificate and server name, for links and monitor alike.

use std::path::Path;
use std::time::Duration;

use rig::{Data, Rig, RigOptions};
use tempfile::TempDir;
use tokio::net::TcpSocket;

use crate::authority::Authority;
use crate::support::{App, Load, Sidecar, now, tokens_once};

/// The name in the servers' certificate, which no resolver knows.
const NAME: &str = "redis.internal.example";

/// Two regions that ask every client on their TLS port for a certificate.
struct Secured {
    rig: Rig,
    /// By region and shard. Bound and never listened on, so that nobody else is given the ports.
    ports: Vec<Vec<(TcpSocket, u16)>>,
    dir: TempDir,
    own: Authority,
}

impl Secured {
    async fn start(options: RigOptions) -> Secured {
        let dir = TempDir::new().unwrap();
        let own = Authority::new(dir.path(), "own", &[NAME]);
        let path = |path: &Path| path.display().to_string();
        let options = options
            .server_arg("--tls-cert-file", path(&own.cert))
            .server_arg("--tls-key-file", path(&own.key))
            .server_arg("--tls-ca-cert-file", path(&own.ca))
            .server_arg("--tls-auth-clients", "yes");
        let rig = Rig::start(options).await.expect("the rig starts");
        let reserve = |_: &_| {
            let socket = TcpSocket::new_v4().unwrap();
            socket.set_reuseaddr(true).unwrap();
            socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
            let port = socket.local_addr().unwrap().port();
            (socket, port)
        };
        let ports = rig.regions().iter();
        let ports = ports.map(|region| region.shards().iter().map(reserve).collect());
        let ports = ports.collect();
        let secured = Secured { rig, ports, dir, own };
        secured.open(0).await;
        secured.open(1).await;
        secured
    }

    /// Opens the TLS ports of a region that has just started.
    async fn open(&self, region: usize) {
        let shards = self.rig.regions()[region].shards();
        for (shard, (_, port)) in shards.iter().zip(&self.ports[region]) {
            let set = ["CONFIG", "SET", "tls-port", &port.to_string()];
            shard.command(&set).await.expect("TLS is built in");
        }
    }

    /// The `[[replica]]` tables, with these keys of `tls`.
    fn replicas(&self, tls: &str) -> String {
        let regions = self.rig.regions().iter().zip(&self.ports);
        let table = |(region, ports): (&rig::Region, &Vec<(TcpSocket, u16)>)| {
            let (name, port) = (region.name(), ports[0].1);
            // Nodes of a cluster announce the ports that are not TLS's.
            let shards = region.shards().iter().zip(ports);
            let mapped = shards.map(|(shard, (_, port))| format!("\"{}=127.0.0.1:{port}\"", shard.addr()));
            let mapped = mapped.collect::<Vec<_>>().join(", ");
            format!(
                "[[replica]]\nname = \"{name}\"\nurl = \"rediss://127.0.0.1:{port}\"\ntls = {{ {tls} }}\naddress_map = [{mapped}]\n"
            )
        };
        regions.map(table).collect()
    }
}

fn tls(ca: &Authority, own: Option<&Authority>, name: &str) -> String {
    let mut keys = format!("ca = \"{}\"", ca.ca.display());
    if let Some(own) = own {
        keys += &format!(
            ", cert = \"{}\", key = \"{}\"",
            own.cert.display(),
            own.key.display()
        );
    }
    if !name.is_empty() {
        keys += &format!(", server_name = \"{name}\"");
    }
    keys
}

#[tokio::test(flavor = "multi_thread")]
async fn failover_and_failback_over_tls() {
    let secured = Secured::start(RigOptions::count(2)).await;
    let replicas = secured.replicas(&tls(&secured.own, Some(&secured.own), NAME));
    let toml = "[failback]\nmode = \"immediate\"\ngrace = \"1s\"\n[failover]\ndwell = \"1s\"\n";
    let sidecar = Sidecar::with_replicas(&replicas, "fast", toml).await;
    sidecar
        .wait("both in sync", |s| {
            (0..2).all(|r| s["replicas"][r]["fitness"] == "in_sync")
        })
        .await;
    let load = Load::start(sidecar.addr, 10);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let began = now();
    secured.rig.kill("local").await.unwrap();
    sidecar.wait_active("remote").await;
    println!("TLS, fast: SIGKILL: moved in {:?}", began.elapsed());
    secured.rig.restart("local", Data::Fresh).await.unwrap();
    secured.open(0).await;
    sidecar.wait_active("local").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let seen = load.stop().await;
    println!("TLS: longest gap {:?}, errors {:?}", seen.gap, seen.errors);
    assert_eq!(seen.closed, 0, "{seen:?}");
    assert!(
        seen.errors.keys().all(|code| code == "OUTCOMEUNKNOWN"),
        "{seen:?}"
    );
    assert!(seen.replies > 500, "the load ran: {seen:?}");
    secured.rig.wait_converged(Duration::from_secs(10)).await.unwrap();
    tokens_once(&secured.rig, "local", 10).await;
}

/// Clusters are reached through TLS node by node, by the heartbeats too; and reads go back to one before the writes do.
#[tokio::test(flavor = "multi_thread")]
async fn clusters_over_tls_and_reads_that_go_back_to_one_first() {
    let secured = Secured::start(RigOptions::count(2).cluster([3, 2])).await;
    let replicas = secured.replicas(&tls(&secured.own, Some(&secured.own), NAME));
    let toml =
        "[failback]\ngrace = \"1s\"\nread_steps = [50, 100]\nsoak = \"4s\"\n[failover]\ndwell = \"1s\"\n";
    let sidecar = Sidecar::with_replicas(&replicas, "fast", toml).await;
    let in_sync = async || {
        sidecar
            .wait("both in sync, shard by shard", |s| {
                let shards = |r: usize| s["replicas"][r]["shards"].as_array().map_or(0, Vec::len);
                shards(0) == 3 && shards(1) == 2 && (0..2).all(|r| s["replicas"][r]["fitness"] == "in_sync")
            })
            .await;
    };
    in_sync().await;
    let load = Load::start(sidecar.addr, 10);
    tokio::time::sleep(Duration::from_millis(500)).await;
    secured.rig.kill("local").await.unwrap();
    sidecar.wait_active("remote").await;
    secured.rig.restart("local", Data::Fresh).await.unwrap();
    secured.open(0).await;
    sidecar
        .wait("half of the reads there, and no writes yet", |s| {
            s["active"] == "remote" && s["read"]["local"] == 50
        })
        .await;
    sidecar.wait_active("local").await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    let seen = load.stop().await;
    println!(
        "TLS, clusters: longest gap {:?}, errors {:?}",
        seen.gap, seen.errors
    );
    assert_eq!(seen.closed, 0, "{seen:?}");
    assert!(
        seen.errors.keys().all(|code| code == "OUTCOMEUNKNOWN"),
        "{seen:?}"
    );
    assert!(seen.replies > 500, "the load ran: {seen:?}");
    secured.rig.wait_converged(Duration::from_secs(10)).await.unwrap();
    assert!(tokens_once(&secured.rig, "local", 10).await > 0);
}

/// Starts with one good replica and one whose TLS is configured by `tls`; waits for `words` as what is wrong with it.
async fn refused(secured: &Secured, tls_of_local: &str, words: &str) {
    let good = secured.replicas(&tls(&secured.own, Some(&secured.own), NAME));
    let bad = secured.replicas(tls_of_local);
    let (bad, good) = (
        bad.split("[[replica]]").nth(1).unwrap(),
        good.split("[[replica]]").nth(2).unwrap(),
    );
    let replicas = format!("[[replica]]{bad}[[replica]]{good}");
    let sidecar = Sidecar::with_replicas(&replicas, "fast", "").await;
    sidecar.wait_active("remote").await;
    sidecar
        .wait(words, |s| {
            let local = &s["replicas"][0];
            local["health"] == "down"
                && local["reason"]
                    .as_str()
                    .is_some_and(|reason| reason.contains(words))
        })
        .await;
    println!("{}", sidecar.status().await["replicas"][0]["reason"]);
    let mut app = App::connect(sidecar.addr).await;
    assert_eq!(app.ask(&["SET", "k", "v"]).await, "+OK\r\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_tls_is_said_in_words() {
    let secured = Secured::start(RigOptions::count(2)).await;
    let other = Authority::new(secured.dir.path(), "other", &[NAME]);
    let own = &secured.own;
    refused(&secured, &tls(&other, Some(own), NAME), "UnknownIssuer").await;
    refused(
        &secured,
        &tls(own, Some(own), "elsewhere.example"),
        "not valid for name",
    )
    .await;
    refused(&secured, &tls(own, None, NAME), "CertificateRequired").await;
    refused(&secured, &tls(own, Some(&other), NAME), "UnknownCA").await;
}
