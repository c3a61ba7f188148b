//! Servers in cluster mode: a connection set to each node, and sharded channels.

use pulsegate::replica::ShardId;
use redis::Value;

use super::redis_server::Server;
use super::*;

/// Servers that form a cluster, with equal parts of the slots.
struct Cluster {
    nodes: Vec<Server>,
}

impl Cluster {
    async fn start(count: u16) -> Cluster {
        Cluster::with_spares(count, 0).await
    }

    /// With so many further nodes that own nothing.
    async fn with_spares(count: u16, spares: u16) -> Cluster {
        let mut nodes = Vec::new();
        for _ in 0..count + spares {
            let bus = std::net::TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
                .port();
            let args = [
                "--cluster-enabled",
                "yes",
                "--cluster-require-full-coverage",
                "no",
                "--cluster-node-timeout",
                "1500",
                "--cluster-port",
                &bus.to_string(),
            ];
            nodes.push((Server::start(&args).await, bus));
        }
        let layout = Layout::even(count);
        for ((server, _), (_, shard)) in nodes.iter().zip(layout.shards()) {
            let range = shard.slots[0];
            let (first, last) = (range.first.to_string(), range.last.to_string());
            server.command(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]).await;
        }
        for (server, bus) in &nodes[1..] {
            let (port, bus) = (server.port.to_string(), bus.to_string());
            nodes[0]
                .0
                .command(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus])
                .await;
        }
        let cluster = Cluster {
            nodes: nodes.into_iter().map(|(server, _)| server).collect(),
        };
        cluster.until_agreed(usize::from(count)).await;
        cluster
    }

    /// Until every node knows all slots, in the hands of so many.
    async fn until_agreed(&self, owners: usize) {
        let deadline = Instant::now() + PATIENCE;
        for node in &self.nodes {
            loop {
                let slots = ask(node, &["CLUSTER", "SLOTS"]).await;
                let ranges: Vec<Range> = redis::from_redis_value(slots).unwrap();
                let known: u32 = ranges
                    .iter()
                    .map(|(first, last, _)| u32::from(last - first) + 1)
                    .sum();
                let owning: BTreeSet<u16> = ranges.iter().map(|(.., (_, port, ..))| *port).collect();
                if known == 16384 && owning.len() == owners {
                    break;
                }
                assert!(Instant::now() < deadline, "the nodes do not agree: {ranges:?}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// First slot, last slot, and the node: address, port, id, and what it has besides.
type Range = (u16, u16, (String, u16, String, Vec<Value>));

async fn ask(server: &Server, words: &[&str]) -> Value {
    let mut command = redis::cmd(words[0]);
    command.arg(&words[1..]);
    command.query_async(&mut server.connect().await).await.unwrap()
}

/// Two names of one cluster, reached at different nodes: what is published by one arrives at both.
async fn start(nodes: u16) -> (Cluster, Sidecar) {
    let cluster = Cluster::start(nodes).await;
    let places = vec![
        Place::new("local", cluster.nodes[0].port),
        Place::new("remote", cluster.nodes[1].port),
    ];
    let sidecar = Sidecar::start(places, policy());
    (cluster, sidecar)
}

async fn sharded(server: &Server) -> BTreeSet<String> {
    redis::from_redis_value(ask(server, &["PUBSUB", "SHARDCHANNELS", "pulsegate:hb:*"]).await).unwrap()
}

fn is_of(shards: usize) -> impl Fn(&Status) -> bool {
    move |status| {
        status
            .replicas
            .iter()
            .all(|replica| replica.shards.len() == shards)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_node_has_its_own_heartbeats_on_sharded_channels() {
    let (cluster, mut sidecar) = start(3).await;
    sidecar.until("three shards", is_of(3)).await;
    let status = sidecar.settled().await;
    let layout = Layout::even(3);
    for (n, (node, shard)) in cluster.nodes.iter().zip(&status.replicas[0].shards).enumerate() {
        assert_eq!(shard.node, Some(format!("127.0.0.1:{}", node.port)));
        let channels = sharded(node).await;
        assert_eq!(channels.len(), 2, "one of either name: {channels:?}");
        for channel in channels {
            assert_eq!(
                layout.owner(slot(channel.as_bytes())),
                Some(ShardId(n as u16)),
                "{channel}"
            );
        }
        let plain: Vec<String> =
            redis::from_redis_value(ask(node, &["PUBSUB", "CHANNELS", "pulsegate:hb:*"]).await).unwrap();
        assert_eq!(plain, Vec::<String>::new());
        let keys: Vec<String> =
            redis::from_redis_value(ask(node, &["KEYS", "pulsegate:probe:*"]).await).unwrap();
        assert!(!keys.is_empty());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_hangs_is_named_and_the_others_go_on() {
    let (cluster, mut sidecar) = start(3).await;
    sidecar.until("three shards", is_of(3)).await;
    sidecar.settled().await;
    cluster.nodes[2].signal("-STOP");
    let status = sidecar
        .until("the third shard's links are down", |status| {
            down(status).len() == 4
        })
        .await;
    let wanted: Down = ["local", "remote"]
        .into_iter()
        .flat_map(|from| ["local", "remote"].map(|to| (from.to_owned(), 2, to.to_owned(), 2)))
        .collect();
    assert_eq!(down(&status), wanted);
    let echoes: Vec<bool> = status.replicas[0].shards.iter().map(|shard| shard.echo).collect();
    assert_eq!(echoes, [true, true, false]);
    sidecar
        .until("it is down", |status| {
            status.replicas.iter().all(|replica| replica.health == "down")
        })
        .await;
    cluster.nodes[2].signal("-CONT");
    sidecar.settled().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_that_move_to_another_node_take_their_heartbeats_along() {
    let (cluster, mut sidecar) = start(3).await;
    sidecar.until("three shards", is_of(3)).await;
    sidecar.settled().await;
    let ids = {
        let mut ids = Vec::new();
        for node in &cluster.nodes {
            ids.push(redis::from_redis_value::<String>(ask(node, &["CLUSTER", "MYID"]).await).unwrap());
        }
        ids
    };
    sidecar.told(&[]);
    // Half of the third node's slots, its heartbeats' among them, to the second. Its claim must be the newest.
    let moved: Vec<u16> = (13_000..16_384).collect();
    let beating = slot(b"0");
    assert!(moved.contains(&beating), "the tag of the third shard's channels");
    let keys: Vec<String> =
        redis::from_redis_value(ask(&cluster.nodes[2], &["KEYS", "pulsegate:probe:{0}:*"]).await).unwrap();
    cluster.nodes[1].command(&["CLUSTER", "BUMPEPOCH"]).await;
    for node in [1, 0, 2] {
        let mut pipe = redis::pipe();
        pipe.atomic();
        if node == 2 {
            // Slots with keys in them cannot be given away.
            pipe.del(&keys).ignore();
        }
        for slot in &moved {
            pipe.cmd("CLUSTER")
                .arg("SETSLOT")
                .arg(slot)
                .arg("NODE")
                .arg(&ids[1])
                .ignore();
        }
        let mut connection = cluster.nodes[node].connect().await;
        pipe.exec_async(&mut connection).await.unwrap();
    }
    let owned = "5461-10921,13000-16383";
    sidecar
        .until("the new layout", |status| {
            status
                .replicas
                .iter()
                .all(|replica| replica.shards.iter().any(|shard| shard.slots == owned))
        })
        .await;
    let status = sidecar.settled().await;
    assert_eq!(down(&status), Down::new());
    let told = sidecar.told(&["health", "link"]);
    let down: Vec<_> = told.iter().filter(|words| words.contains(" is down")).collect();
    assert!(down.is_empty(), "{down:?}");
    for node in &cluster.nodes {
        assert_eq!(sharded(node).await.len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shard_that_fails_over_within_its_cluster_is_followed() {
    let mut cluster = Cluster::with_spares(3, 1).await;
    let third: String = redis::from_redis_value(ask(&cluster.nodes[2], &["CLUSTER", "MYID"]).await).unwrap();
    let deadline = Instant::now() + PATIENCE;
    let spare = &cluster.nodes[3];
    spare.command(&["CLUSTER", "REPLICATE", &third]).await;
    // Only one whose copy is whole may take over.
    loop {
        let info: String = redis::from_redis_value(ask(spare, &["INFO", "replication"]).await).unwrap();
        if info.contains("master_link_status:up") {
            break;
        }
        assert!(Instant::now() < deadline, "{info}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let (spare, old) = (cluster.nodes[3].port, cluster.nodes[2].port);
    let places = vec![
        Place::new("local", cluster.nodes[0].port),
        Place::new("remote", cluster.nodes[1].port),
    ];
    let mut sidecar = Sidecar::start(places, policy());
    let third_at = |port: u16| {
        move |status: &Status| {
            let node = Some(format!("127.0.0.1:{port}"));
            let replicas = &status.replicas;
            replicas
                .iter()
                .all(|replica| replica.shards.get(2).is_some_and(|shard| shard.node == node))
        }
    };
    sidecar.until("three shards", third_at(old)).await;
    sidecar.settled().await;

    let killed = Instant::now();
    cluster.nodes[2].kill();
    sidecar.until("the new address", third_at(spare)).await;
    println!(
        "the shard's new node is known {:?} after the kill",
        killed.elapsed()
    );
    let status = sidecar.settled().await;
    println!("all is well {:?} after the kill", killed.elapsed());
    assert_eq!(down(&status), Down::new());
    assert_eq!(sharded(&cluster.nodes[3]).await.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_topology_takes_a_cluster_as_one_endpoint() {
    // One node that owns everything, so that its endpoint can take everything.
    let cluster = Cluster::start(1).await;
    let mut local = Place::new("local", cluster.nodes[0].port);
    local.topology = Topology {
        kind: TopologyKind::Single,
        ..Topology::default()
    };
    let mut remote = Place::new("remote", cluster.nodes[0].port);
    remote.topology.kind = TopologyKind::Cluster;
    let mut sidecar = Sidecar::start(vec![local, remote], policy());
    let status = sidecar
        .until("the other has a node", |status| {
            status.replicas[1].shards[0].node.is_some()
        })
        .await;
    assert_eq!(status.replicas[0].shards[0].node, None);
    // One publishes in one way, the other in the other, and both are heard, each in its own.
    sidecar
        .until("all is heard", |status| {
            status
                .replicas
                .iter()
                .all(|replica| replica.links.iter().all(|link| link.up))
        })
        .await;
}
