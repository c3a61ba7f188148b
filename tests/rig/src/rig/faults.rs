//! Every fault of the table in the README as a method, and its end. Each returns once the fault is in force.
//!
//! `at` is a region, of which all shards are meant, or one shard of it: `"local"`, `("local", 1)`.

use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, join_all};

use super::{At, Rig};
use crate::relay::{Direction, NetworkFaults};
use crate::shard::Shard;
use crate::syncer::LinkControl;

/// What a server that starts again starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// Nothing: it is rebuilt from the other regions.
    Fresh,
    /// What it has: it saves all before it ends. A dead one loads the last file it saved, which may be old.
    Keep,
}

/// # Faults of a server
impl Rig {
    /// Does it to each server that is meant, at once; all are tried.
    async fn each(
        &self,
        at: At<'_>,
        act: impl Fn(&Shard) -> BoxFuture<'_, anyhow::Result<()>>,
    ) -> anyhow::Result<()> {
        let (region, shards) = self.at(at)?;
        let done = join_all(shards.iter().map(act)).await;
        region.look().await;
        done.into_iter().collect()
    }

    /// A cluster takes a node back after some seconds; others are well at once. One with other dead or hung nodes is left to
    /// itself.
    async fn rejoin(&self, at: At<'_>) -> anyhow::Result<()> {
        let (region, _) = self.at(at)?;
        let mut shards = region.shards().iter();
        if shards.all(|shard| shard.pid().is_some() && !shard.is_frozen()) {
            region.wait_cluster().await?;
            self.hear(region).await?;
        }
        Ok(())
    }

    /// SIGKILL: connections break, new ones are refused. Ended by [`restart`](Self::restart).
    ///
    /// # Errors
    /// When there is no such region.
    pub async fn kill<'a>(&self, at: impl Into<At<'a>>) -> anyhow::Result<()> {
        self.each(at.into(), |shard| shard.kill().map(Ok).boxed()).await
    }

    /// Ends the server if it runs, and starts it again on the same port. With [`Data::Fresh`] it is empty and reachable
    /// at once, and becomes a copy of a region that has a link to it as soon as that link finds it.
    ///
    /// # Errors
    /// When there is no such region, nothing to load, or it does not start.
    pub async fn restart<'a>(&self, at: impl Into<At<'a>>, data: Data) -> anyhow::Result<()> {
        let at = at.into();
        self.each(at, |shard| shard.restart(data).boxed()).await?;
        self.rejoin(at).await
    }

    /// SIGSTOP: connections are accepted (by the kernel) and never answered. Ended by [`unhang`](Self::unhang).
    ///
    /// # Errors
    /// When there is no such region, or it does not run.
    pub async fn hang<'a>(&self, at: impl Into<At<'a>>) -> anyhow::Result<()> {
        self.each(at.into(), |shard| shard.freeze(true).boxed()).await
    }

    /// SIGCONT: what was sent meanwhile is answered now.
    ///
    /// # Errors
    /// When there is no such region, or it does not run.
    pub async fn unhang<'a>(&self, at: impl Into<At<'a>>) -> anyhow::Result<()> {
        self.each(at.into(), |shard| shard.freeze(false).boxed()).await
    }

    /// Saves, restarts, and takes at least `duration` to load: `-LOADING` to all but a few commands (PUBLISH and
    /// SUBSCRIBE work). Ends by itself. Returns when the server has begun to load.
    ///
    /// # Errors
    /// When there is no such region, it does not run or does not take writes.
    pub async fn loading<'a>(&self, at: impl Into<At<'a>>, duration: Duration) -> anyhow::Result<()> {
        let at = at.into();
        let (region, shards) = self.at(at)?;
        let loads = shards.iter().zip(at.shard.unwrap_or(0)..).map(|(shard, number)| {
            let own = region.slots(number);
            let slot = own.first().map_or(0, |slots| slots.first);
            shard.load_slowly(duration, slot)
        });
        let loads = join_all(loads).await;
        region.look().await;
        loads.into_iter().collect()
    }

    /// Stale, writes refused: `-NOREPLICAS` to writes, while reads and PUBLISH work and links go on both ways.
    ///
    /// # Errors
    /// When there is no such region, or it does not answer.
    pub async fn stale_min_replicas<'a>(&self, at: impl Into<At<'a>>) -> anyhow::Result<()> {
        self.each(at.into(), |shard| shard.want_replicas().boxed()).await
    }

    /// Stale, outbound dead: `-READONLY` to writes, and nothing, PUBLISH included, leaves the region; what comes in is
    /// applied.
    ///
    /// # Errors
    /// When there is no such region, it does not answer, or it is a cluster, whose nodes cannot be made so.
    pub async fn stale_outbound<'a>(&self, at: impl Into<At<'a>>) -> anyhow::Result<()> {
        self.each(at.into(), |shard| shard.follow_nobody().boxed()).await
    }

    /// Ends both kinds of staleness.
    ///
    /// # Errors
    /// When there is no such region, or it does not answer.
    pub async fn unstale<'a>(&self, at: impl Into<At<'a>>) -> anyhow::Result<()> {
        self.each(at.into(), |shard| shard.unstale().boxed()).await
    }

    /// Out of memory: `-OOM` to commands that need some, while reads, DEL and PUBLISH work.
    ///
    /// # Errors
    /// When there is no such region, or it does not answer.
    pub async fn out_of_memory<'a>(&self, at: impl Into<At<'a>>) -> anyhow::Result<()> {
        self.each(at.into(), |shard| shard.limit_memory(1).boxed()).await
    }

    /// Memory without limit again.
    ///
    /// # Errors
    /// When there is no such region, or it does not answer.
    pub async fn free_memory<'a>(&self, at: impl Into<At<'a>>) -> anyhow::Result<()> {
        self.each(at.into(), |shard| shard.limit_memory(0).boxed()).await
    }

    /// Writes and PUBLISH, those of the links too, are held without an answer for so long; reads work.
    ///
    /// # Errors
    /// When there is no such region, or it does not answer.
    pub async fn pause_writes<'a>(&self, at: impl Into<At<'a>>, duration: Duration) -> anyhow::Result<()> {
        self.each(at.into(), |shard| shard.pause_writes(duration).boxed())
            .await
    }

    /// Ends a pause early: held writes are done now.
    ///
    /// # Errors
    /// When there is no such region, or it does not answer.
    pub async fn unpause<'a>(&self, at: impl Into<At<'a>>) -> anyhow::Result<()> {
        self.each(at.into(), |shard| shard.unpause().boxed()).await
    }

    /// Ends every fault of the region and of its relay; a dead server starts empty. Links are left as they are.
    ///
    /// # Errors
    /// When there is no such region, or it cannot be started.
    pub async fn heal<'a>(&self, at: impl Into<At<'a>>) -> anyhow::Result<()> {
        let at = at.into();
        self.each(at, |shard| shard.heal().boxed()).await?;
        self.rejoin(at).await?;
        let (region, _) = self.at(at)?;
        for relay in region.relays(at.shard).unwrap_or_default() {
            relay.change(|faults| *faults = NetworkFaults::default()).await;
        }
        Ok(())
    }

    /// Ends every fault of every region and link.
    ///
    /// # Errors
    /// When a region cannot be started.
    pub async fn heal_all(&self) -> anyhow::Result<()> {
        for region in &self.regions {
            self.heal(region.name()).await?;
        }
        for syncer in self.links.all() {
            syncer.control().send_modify(LinkControl::heal);
        }
        Ok(())
    }
}

/// # Faults of the network between applications and a server
///
/// They are in the relay: where it is bypassed they are an error. See the table in [`crate::relay`].
impl Rig {
    async fn network(&self, at: At<'_>, change: impl Fn(&mut NetworkFaults)) -> anyhow::Result<()> {
        let (region, _) = self.at(at)?;
        for relay in region.relays(at.shard)? {
            relay.change(&change).await;
        }
        Ok(())
    }

    /// Connections are reset, new ones refused.
    ///
    /// # Errors
    /// When there is no such region, or it bypasses its relay.
    pub async fn cut<'a>(&self, at: impl Into<At<'a>>) -> anyhow::Result<()> {
        self.network(at.into(), |faults| faults.cut = true).await
    }

    /// Connections are accepted and kept, and nothing flows.
    ///
    /// # Errors
    /// When there is no such region, or it bypasses its relay.
    pub async fn stall<'a>(&self, at: impl Into<At<'a>>) -> anyhow::Result<()> {
        self.network(at.into(), |faults| faults.stall = true).await
    }

    /// Everything arrives later by so much, each way by its own.
    ///
    /// # Errors
    /// When there is no such region, or it bypasses its relay.
    pub async fn delay<'a>(
        &self,
        at: impl Into<At<'a>>,
        to_server: Duration,
        to_client: Duration,
    ) -> anyhow::Result<()> {
        self.network(at.into(), |faults| {
            faults.delay_to_server = to_server;
            faults.delay_to_client = to_client;
        })
        .await
    }

    /// At most `bytes` at a time, each way, with a pause of `interval` after each.
    ///
    /// # Errors
    /// When there is no such region, it bypasses its relay, or `bytes` is 0.
    pub async fn dribble<'a>(
        &self,
        at: impl Into<At<'a>>,
        bytes: usize,
        interval: Duration,
    ) -> anyhow::Result<()> {
        anyhow::ensure!(bytes > 0, "a dribble of 0 bytes is a stall");
        self.network(at.into(), |faults| faults.dribble = Some((bytes, interval)))
            .await
    }

    /// Nothing arrives any more in that direction, not even the connection's end; the other one works.
    ///
    /// # Errors
    /// When there is no such region, or it bypasses its relay.
    pub async fn half_open<'a>(&self, at: impl Into<At<'a>>, dead: Direction) -> anyhow::Result<()> {
        self.network(at.into(), |faults| faults.half_open = Some(dead))
            .await
    }

    /// Ends all faults of the relay.
    ///
    /// # Errors
    /// When there is no such region, or it bypasses its relay.
    pub async fn heal_network<'a>(&self, at: impl Into<At<'a>>) -> anyhow::Result<()> {
        self.network(at.into(), |faults| *faults = NetworkFaults::default())
            .await
    }
}

/// # Faults of links
impl Rig {
    /// Nothing of `from` reaches `to` any more, once this returns; the place is kept, so that healing delivers it late.
    ///
    /// # Errors
    /// When there is no such link.
    pub async fn cut_link<'a>(&self, from: impl Into<At<'a>>, to: impl Into<At<'a>>) -> anyhow::Result<()> {
        let syncers = self.syncers(from.into(), to.into())?;
        join_all(syncers.iter().map(|syncer| syncer.cut())).await;
        Ok(())
    }

    /// Ends a link's cut, delay or flapping. Returns at once: what was held back follows.
    ///
    /// # Errors
    /// When there is no such link.
    pub fn heal_link<'a>(&self, from: impl Into<At<'a>>, to: impl Into<At<'a>>) -> anyhow::Result<()> {
        for syncer in self.syncers(from.into(), to.into())? {
            syncer.control().send_modify(LinkControl::heal);
        }
        Ok(())
    }

    /// Everything of `from` reaches `to` later by so much.
    ///
    /// # Errors
    /// When there is no such link.
    pub fn delay_link<'a>(
        &self,
        from: impl Into<At<'a>>,
        to: impl Into<At<'a>>,
        delay: Duration,
    ) -> anyhow::Result<()> {
        for syncer in self.syncers(from.into(), to.into())? {
            syncer.control().send_modify(|wanted| wanted.delay = delay);
        }
        Ok(())
    }

    /// Cuts and heals the link in turns: half of each `period` down, half up, beginning with down.
    ///
    /// # Errors
    /// When there is no such link, or the period is shorter than 2 ms.
    pub fn flap_link<'a>(
        &self,
        from: impl Into<At<'a>>,
        to: impl Into<At<'a>>,
        period: Duration,
    ) -> anyhow::Result<()> {
        let half = period / 2;
        anyhow::ensure!(
            half >= Duration::from_millis(1),
            "a period of {period:?} is too short"
        );
        for syncer in self.syncers(from.into(), to.into())? {
            syncer.flap(half);
        }
        Ok(())
    }
}
