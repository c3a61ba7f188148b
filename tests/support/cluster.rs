//! A replica whose shards are nodes of their own: real servers in cluster mode, and slots that move between them.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::net::TcpListener;
use std::time::Duration;

use pulsegate::replica::{Address, Layout, Shard, SlotRange};
use pulsegate::resp::keys::SLOTS;

use crate::redis_server::Server;
use crate::support::{PATIENCE, now};

/// So many nodes, each with an equal part of the slots.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Server>,
}

impl Cluster {
    /// Starts it; every node knows the owner of every slot when this returns.
    pub(crate) async fn start(nodes: usize) -> Cluster {
        let mut servers = Vec::new();
        let mut buses = Vec::new();
        for _ in 0..nodes {
            let (server, bus) = Cluster::node().await;
            servers.push(server);
            buses.push(bus);
        }
        let ranges = Layout::even(nodes as u16);
        for ((_, shard), server) in ranges.shards().zip(&servers) {
            let [first, last] = [shard.slots[0].first, shard.slots[0].last].map(|slot| slot.to_string());
            server.command(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]).await;
        }
        for (server, bus) in servers.iter().zip(&buses).skip(1) {
            let port = server.port.to_string();
            servers[0]
                .command(&["CLUSTER", "MEET", "127.0.0.1", &port, bus])
                .await;
        }
        let cluster = Cluster { nodes: servers };
        cluster.wait_known(SLOTS).await;
        cluster
    }

    /// A node that knows no other, and the port of its bus.
    async fn node() -> (Server, String) {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let bus = free.local_addr().unwrap().port().to_string();
        drop(free);
        let options = "--cluster-enabled yes --cluster-require-full-coverage no --cluster-node-timeout 2000 \
                       --repl-diskless-sync-delay 0 --cluster-port";
        let args: Vec<&str> = options
            .split(' ')
            .filter(|word| !word.is_empty())
            .chain([bus.as_str()])
            .collect();
        (Server::start(&args).await, bus)
    }

    /// Adds a node that takes the place of `master` when that fails; it has all keys when this returns.
    pub(crate) async fn add_standby(&mut self, master: usize) {
        let (server, bus) = Cluster::node().await;
        let port = server.port.to_string();
        self.nodes.push(server);
        let standby = self.nodes.len() - 1;
        let _: String = self.ask(0, &["CLUSTER", "MEET", "127.0.0.1", &port, &bus]).await;
        self.wait_known(SLOTS).await;
        let id: String = self.ask(master, &["CLUSTER", "MYID"]).await;
        let _: String = self.ask(standby, &["CLUSTER", "REPLICATE", &id]).await;
        let deadline = now() + PATIENCE;
        loop {
            let info: String = self.ask(standby, &["INFO", "replication"]).await;
            if info.contains("master_link_status:up") && self.all_know_epochs().await {
                return;
            }
            assert!(now() < deadline, "the standby does not follow: {info}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn wait_known(&self, slots: u16) {
        let deadline = now() + PATIENCE;
        for node in 0..self.nodes.len() {
            loop {
                let info: String = self.ask(node, &["CLUSTER", "INFO"]).await;
                if info.contains("cluster_state:ok")
                    && info.contains(&format!("cluster_slots_assigned:{slots}\r"))
                    && info.contains(&format!("cluster_known_nodes:{}\r", self.nodes.len()))
                {
                    break;
                }
                assert!(now() < deadline, "the cluster does not come together: {info}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
    }

    /// One command on one node.
    pub(crate) async fn ask<T: redis::FromRedisValue>(&self, node: usize, words: &[&str]) -> T {
        let mut command = redis::cmd(words[0]);
        for word in &words[1..] {
            command.arg(*word);
        }
        command
            .query_async(&mut self.nodes[node].connect().await)
            .await
            .unwrap()
    }

    /// What node `node` says of all slots.
    pub(crate) async fn layout(&self, node: usize) -> Layout {
        type Entry = (u16, u16, (String, u16, String, Vec<String>));
        let entries: Vec<Entry> = self.ask(node, &["CLUSTER", "SLOTS"]).await;
        let mut shards: Vec<Shard> = Vec::new();
        for (first, last, (host, port, ..)) in entries {
            let node = Some(Address::Tcp { host, port });
            let range = SlotRange { first, last };
            match shards.iter_mut().find(|shard| shard.node == node) {
                Some(shard) => shard.slots.push(range),
                None => shards.push(Shard {
                    slots: vec![range],
                    node,
                }),
            }
        }
        Layout::new(shards)
    }

    /// The node that has a slot.
    pub(crate) async fn owner(&self, slot: u16) -> usize {
        let layout = self.layout(0).await;
        let shard = layout.owner(slot).and_then(|shard| layout.shard(shard));
        let at = |port| self.nodes.iter().position(|node| Some(node.port) == port);
        at(shard.and_then(port_of)).expect("the slot is served")
    }

    /// Moves a slot with all its keys, one key at a time, as `redis-cli --cluster reshard` does.
    pub(crate) async fn migrate(&self, slot: u16, from: usize, to: usize) {
        self.begin_move(slot, from, to).await;
        let number = slot.to_string();
        loop {
            let keys: Vec<String> = self.ask(from, &["CLUSTER", "GETKEYSINSLOT", &number, "1"]).await;
            let Some(key) = keys.first() else { break };
            self.migrate_key(key, from, to).await;
        }
        self.end_move(slot, from, to).await;
    }

    /// A slot is on its way from here on.
    pub(crate) async fn begin_move(&self, slot: u16, from: usize, to: usize) {
        let slot = slot.to_string();
        for (at, what, peer) in [(to, "IMPORTING", from), (from, "MIGRATING", to)] {
            let id: String = self.ask(peer, &["CLUSTER", "MYID"]).await;
            let _: String = self.ask(at, &["CLUSTER", "SETSLOT", &slot, what, &id]).await;
        }
    }

    /// Moves one key of a slot that is on its way.
    pub(crate) async fn migrate_key(&self, key: &str, from: usize, to: usize) {
        let port = self.nodes[to].port.to_string();
        let _: String = self
            .ask(from, &["MIGRATE", "127.0.0.1", &port, key, "0", "5000"])
            .await;
    }

    /// The slot, whose keys have all gone, has arrived.
    pub(crate) async fn end_move(&self, slot: u16, from: usize, to: usize) {
        let id: String = self.ask(to, &["CLUSTER", "MYID"]).await;
        let number = slot.to_string();
        // The old owner's claim may still be under way. One that comes late makes the two point at each other, for good, if
        // nobody says it again.
        let deadline = now() + PATIENCE;
        loop {
            for node in [to, from] {
                let _: String = self
                    .ask(node, &["CLUSTER", "SETSLOT", &number, "NODE", &id])
                    .await;
            }
            if self.all_agree(slot, to).await && self.all_know_epochs().await {
                return;
            }
            assert!(now() < deadline, "the nodes do not agree on slot {slot}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether the nodes have the same view of each other's configuration epochs. Until then the new owner of the next slot may
    /// begin with one that is not the highest, and the old owner's claim wins after all.
    async fn all_know_epochs(&self) -> bool {
        let mut views = Vec::new();
        for node in 0..self.nodes.len() {
            let text: String = self.ask(node, &["CLUSTER", "NODES"]).await;
            let of_line = |line: &str| {
                let words: Vec<&str> = line.split(' ').collect();
                (words[0].to_owned(), words[6].to_owned())
            };
            let mut view: Vec<_> = text.lines().map(of_line).collect();
            view.sort();
            views.push(view);
        }
        views.windows(2).all(|pair| pair[0] == pair[1])
    }

    /// Whether every node says that the slot is at node `at`.
    async fn all_agree(&self, slot: u16, at: usize) -> bool {
        let owner = Some(self.nodes[at].port);
        for node in 0..self.nodes.len() {
            let layout = self.layout(node).await;
            let says = layout.owner(slot).and_then(|shard| layout.shard(shard));
            if says.and_then(port_of) != owner {
                return false;
            }
        }
        true
    }
}

fn port_of(shard: &Shard) -> Option<u16> {
    match shard.node {
        Some(Address::Tcp { port, .. }) => Some(port),
        _ => None,
    }
}
