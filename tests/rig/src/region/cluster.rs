//! A region that is a cluster: how its nodes come together.

use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::try_join_all;
use tokio::time::Instant;

use super::Region;
use crate::options::Form;
use crate::shard::Shard;

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
}
