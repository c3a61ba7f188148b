//! A region that is a cluster: how its nodes come together, and how slots go from one to another.

use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::try_join_all;
use tokio::time::Instant;

use super::Region;
use crate::options::Form;
use crate::shard::Shard;
use crate::slots::SlotRange;
use crate::syncer::scripts::{MOVE_KEYS, of_server};

/// A master that starts takes no writes for two seconds (`CLUSTER_WRITABLE_DELAY`), and others forgive a failure after three.
const PATIENCE: Duration = Duration::from_secs(20);

impl Region {
    /// Gives each node its slots, and lets all know all. Returns once all of them say that the cluster is well.
    pub(crate) async fn form_cluster(&self) -> anyhow::Result<()> {
        if self.form != Form::Cluster {
            return Ok(());
        }
        for (number, shard) in self.shards.iter().enumerate() {
            // Equal epochs are sorted out by elections that take their time.
            let epoch = (number + 1).to_string();
            shard.order(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]).await?;
            for slots in self.slots(number) {
                let (first, last) = (slots.first.to_string(), slots.last.to_string());
                shard.order(&["CLUSTER", "ADDSLOTSRANGE", &first, &last]).await?;
            }
            for other in &self.shards[..number] {
                let bus = other.bus().context("a node without a bus")?;
                let (ip, port) = (bus.ip().to_string(), other.direct_addr().port().to_string());
                shard
                    .order(&["CLUSTER", "MEET", &ip, &port, &bus.port().to_string()])
                    .await?;
            }
        }
        self.wait_cluster().await
    }

    /// Waits until every node says that the cluster is well and that it knows all others. Only for a cluster without a dead
    /// or hung node; a region of another form is well at once.
    pub(crate) async fn wait_cluster(&self) -> anyhow::Result<()> {
        if self.form != Form::Cluster {
            return Ok(());
        }
        let waits = self.shards.iter().map(|shard| self.wait_well(shard));
        try_join_all(waits).await.map(drop)
    }

    async fn wait_well(&self, shard: &Shard) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let known = format!("cluster_known_nodes:{}\r", self.shards.len());
        loop {
            let info = shard.order(&["CLUSTER", "INFO"]).await;
            let info = info.and_then(|info| Ok(redis::from_redis_value::<String>(info)?));
            let nodes = shard.order(&["CLUSTER", "NODES"]).await;
            let nodes = nodes.and_then(|nodes| Ok(redis::from_redis_value::<String>(nodes)?));
            if let (Ok(info), Ok(nodes)) = (&info, &nodes)
                && info.contains("cluster_state:ok")
                && info.contains("cluster_slots_ok:16384")
                && info.contains(&known)
                && !["fail", "handshake", "noaddr"]
                    .iter()
                    .any(|bad| nodes.contains(bad))
            {
                return Ok(());
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "{}: the cluster is not well: {info:?} {nodes:?}",
                shard.name()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Moves a cell's keys from node to node, and its slots with them. Clients are sent after them meanwhile (`ASK`).
    pub(crate) async fn move_keys(&self, cell: SlotRange, old: usize, new: usize) -> anyhow::Result<()> {
        let (old, new) = (&self.shards[old], &self.shards[new]);
        let (old_id, new_id) = (node_id(old).await?, node_id(new).await?);
        let slots: Vec<String> = (cell.first..=cell.last).map(|slot| slot.to_string()).collect();
        let set = async |shard: &Shard, words: &[&str]| {
            let mut pipe = redis::pipe();
            for slot in &slots {
                pipe.cmd("CLUSTER").arg("SETSLOT").arg(slot).arg(words).ignore();
            }
            let mut connection = shard.control().connect(PATIENCE).await?;
            pipe.query_async::<()>(&mut connection).await
        };
        set(new, &["IMPORTING", &old_id]).await?;
        set(old, &["MIGRATING", &new_id]).await?;
        let to = new.direct_addr();
        let mut script = redis::cmd("EVAL");
        script.arg(of_server(MOVE_KEYS)).arg(0);
        let mut connection = old.control().connect(PATIENCE).await?;
        for slot in &slots {
            let mut moves = script.clone();
            moves.arg(slot).arg(to.ip().to_string()).arg(to.port());
            if let Some(password) = &self.password {
                moves.arg("AUTH").arg(password);
            }
            while moves.query_async::<u32>(&mut connection).await? > 0 {}
        }
        // The new owner first: whoever asks the old one is still sent there.
        let others = self
            .shards
            .iter()
            .filter(|shard| ![old.name(), new.name()].contains(&shard.name()));
        for shard in [new, old].into_iter().chain(others) {
            set(shard, &["NODE", &new_id]).await?;
        }
        Ok(())
    }
}

async fn node_id(shard: &Shard) -> anyhow::Result<String> {
    Ok(redis::from_redis_value(shard.order(&["CLUSTER", "MYID"]).await?)?)
}
