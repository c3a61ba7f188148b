//! The same programs where the replica is sharded: a cluster, and servers behind an endpoint that routes. What Pulsegate makes of
//! them answers as one server does: plain clients are compared with a plain server, and the libraries' clients for
//! clusters, which find their nodes by asking, with a cluster of one node.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rig::{Rig, RigOptions};

use crate::gate::Gate;
use crate::resp_server::{DEADLINE, Server};
use crate::{agree, listening, node, redis_py, redis_rs, said};

/// What no sharded replica has: databases other than 0.
const OF_ONE_SERVER: [&str; 1] = ["no-databases"];

struct World {
    runtime: tokio::runtime::Runtime,
    rig: Rig,
    gate: Gate,
    plain: (Server, u16),
    one_node: (Server, u16),
    /// What programs are told to leave out.
    words: Vec<&'static str>,
}

impl World {
    /// A cluster of three nodes. A message's receivers are counted by each node for itself.
    fn cluster() -> World {
        World::new(RigOptions::count(1).cluster([3]), &["no-receivers"])
    }

    /// Three servers behind an endpoint, which has neither users nor requests over several shards, nor tells of all shards.
    fn front() -> World {
        let lacks = ["no-users", "no-scan", "no-crossing", "no-caching", "no-monitor"];
        World::new(RigOptions::count(1).front([3]), &lacks)
    }

    fn new(options: RigOptions, lacks: &[&'static str]) -> World {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let rig = runtime.block_on(Rig::start(options)).unwrap();
        let url = rig.region("local").url();
        World {
            gate: Gate::start(&format!("url = \"{url}\""), ""),
            plain: listening(),
            one_node: runtime.block_on(one_node()),
            words: OF_ONE_SERVER.iter().chain(lacks).copied().collect(),
            runtime,
            rig,
        }
    }

    /// Clients for clusters are shown no way past Pulsegate.
    fn shows_only_itself(&self) {
        let port = self.gate.addr.port();
        for words in [["CLUSTER", "SLOTS"], ["CLUSTER", "SHARDS"], ["CLUSTER", "NODES"]] {
            let shown = said(redis_cli(port).args(words));
            assert!(shown.contains(&port.to_string()), "{words:?}: {shown}");
            let region = self.rig.region("local");
            let shards = region.shards().iter().map(|shard| shard.addr());
            for addr in shards.chain([region.addr()]) {
                assert!(!shown.contains(&addr.port().to_string()), "{words:?}: {shown}");
            }
        }
    }

    /// What the library's plain client says agrees; and so does what its client for clusters says.
    fn agrees(&self, clustered: bool, program: impl Fn(u16, &[&str]) -> String) {
        let mut words = self.words.clone();
        let direct = if clustered {
            words.push("cluster");
            self.one_node.1
        } else {
            self.plain.1
        };
        let [direct, through] = [direct, self.gate.addr.port()].map(|port| program(port, &words));
        agree(&direct, &through);
        // For the next program.
        for port in [self.plain.1, self.one_node.1] {
            flush(port);
        }
        self.runtime.block_on(async {
            for shard in self.rig.region("local").shards() {
                shard.command(&["FLUSHALL"]).await.unwrap();
            }
        });
    }
}

/// One server in cluster mode, which has all slots.
async fn one_node() -> (Server, u16) {
    let free = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, bus) = (free(), free());
    let [port, bus] = [port, bus].map(|socket| socket.local_addr().unwrap().port());
    let (number, bus) = (port.to_string(), bus.to_string());
    let options = [
        "--port",
        &number,
        "--cluster-enabled",
        "yes",
        "--cluster-port",
        &bus,
    ];
    let announced = ["--cluster-announce-ip", "127.0.0.1"];
    let options: Vec<&str> = options.into_iter().chain(announced).collect();
    let server = Server::start(Path::new("redis-server"), &options);
    cli(port, &["CLUSTER", "ADDSLOTSRANGE", "0", "16383"], "OK");
    let ready = async {
        while !said(redis_cli(port).args(["CLUSTER", "INFO"])).contains("cluster_state:ok") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let ready = tokio::time::timeout(DEADLINE, ready).await;
    ready.expect("one node becomes a cluster");
    (server, port)
}

fn flush(port: u16) {
    cli(port, &["FLUSHALL"], "OK");
}

fn redis_cli(port: u16) -> Command {
    let mut cli = Command::new("redis-cli");
    cli.args(["-p", &port.to_string()]);
    cli
}

fn cli(port: u16, words: &[&str], answer: &str) {
    assert_eq!(said(redis_cli(port).args(words)).trim(), answer);
}

fn redis_pys(world: &World) {
    for clustered in [false, true] {
        for (kind, protocol) in [("sync", "2"), ("sync", "3"), ("async", "3")] {
            world.agrees(clustered, |port, words| redis_py(kind, port, protocol, words));
        }
    }
}

fn nodes(world: &World) {
    for protocol in ["2", "3"] {
        world.agrees(false, |port, words| node("node_redis.mjs", port, protocol, words));
        for clustered in [false, true] {
            world.agrees(clustered, |port, words| {
                node("ioredis.mjs", port, protocol, words)
            });
        }
    }
}

fn redis_rss(world: &World) {
    world.shows_only_itself();
    for protocol in ["resp2", "resp3"] {
        world.agrees(false, |port, words| {
            redis_rs::plain(port, protocol, words).unwrap()
        });
        world.agrees(true, |port, _| redis_rs::clustered(port, protocol).unwrap());
    }
}

#[test]
fn redis_py_before_a_cluster() {
    redis_pys(&World::cluster());
}

#[test]
fn redis_py_before_a_front() {
    redis_pys(&World::front());
}

#[test]
fn node_js_before_a_cluster() {
    nodes(&World::cluster());
}

#[test]
fn node_js_before_a_front() {
    nodes(&World::front());
}

#[test]
fn redis_rs_before_a_cluster() {
    redis_rss(&World::cluster());
}

#[test]
fn redis_rs_before_a_front() {
    redis_rss(&World::front());
}
