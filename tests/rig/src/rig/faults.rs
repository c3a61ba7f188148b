//! Every fault of the table in the README as a method, and its end. Each returns once the fault is in force.

use std::time::Duration;

use tokio::time::Instant;

use super::Rig;
use crate::relay::{Direction, NetworkFaults};
use crate::syncer::{LinkControl, scripts};

/// What a server that starts again starts with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Data {
    /// Nothing: it is rebuilt from the other regions.
    Fresh,
    /// What it has: it saves all before it ends. A dead one loads the last file it saved, which may be old.
    Keep,
}

/// A loading server spends this long on each key; between some keys it answers `LOADING`.
const LOAD_STEP: Duration = Duration::from_micros(500);

/// # Faults of a server
impl Rig {
    /// SIGKILL: connections break, new ones are refused. Ended by [`restart`](Self::restart).
    ///
    /// # Errors
    /// When there is no such region.
    pub async fn kill(&self, region: &str) -> anyhow::Result<()> {
        self.find(region)?.kill().await;
        Ok(())
    }

    /// Ends the server if it runs, and starts it again on the same port. With [`Data::Fresh`] it is empty and reachable
    /// at once, and becomes a copy of a region that has a link to it as soon as that link finds it.
    ///
    /// # Errors
    /// When there is no such region, nothing to load, or it does not start.
    pub async fn restart(&self, region: &str, data: Data) -> anyhow::Result<()> {
        let region = self.find(region)?;
        match data {
            Data::Fresh => {
                region.kill().await;
                region.boot_hidden().await?;
                region.open().await
            }
            Data::Keep => {
                region.save_and_end().await?;
                region.boot_saved(Vec::new()).await?;
                region.wait_ready(Duration::from_secs(30)).await
            }
        }
    }

    /// SIGSTOP: connections are accepted (by the kernel) and never answered. Ended by [`unhang`](Self::unhang).
    ///
    /// # Errors
    /// When there is no such region, or it does not run.
    pub async fn hang(&self, region: &str) -> anyhow::Result<()> {
        self.find(region)?.freeze(true).await
    }

    /// SIGCONT: what was sent meanwhile is answered now.
    ///
    /// # Errors
    /// When there is no such region, or it does not run.
    pub async fn unhang(&self, region: &str) -> anyhow::Result<()> {
        self.find(region)?.freeze(false).await
    }

    /// Saves, restarts, and takes at least `duration` to load: `-LOADING` to all but a few commands (PUBLISH and
    /// SUBSCRIBE work). Ends by itself. Returns when the server has begun to load.
    ///
    /// # Errors
    /// When there is no such region, it does not run or does not take writes.
    pub async fn loading(&self, region: &str, duration: Duration) -> anyhow::Result<()> {
        let region = self.find(region)?;
        let keys = (duration.as_micros() / LOAD_STEP.as_micros()).max(32);
        region
            .order(&["EVAL", scripts::FILL, "0", &keys.to_string()])
            .await?;
        region.save_and_end().await?;
        let args = [
            "--key-load-delay",
            &LOAD_STEP.as_micros().to_string(),
            "--loading-process-events-interval-bytes",
            "1024",
        ];
        region.boot_saved(args.map(str::to_owned).to_vec()).await?;
        // The ballast goes once it can; should it stay (killed meanwhile), it harms nobody.
        let control = region.control().clone();
        let deadline = Instant::now() + duration * 3 + Duration::from_secs(10);
        tokio::spawn(async move {
            while Instant::now() < deadline {
                if let Ok(mut connection) = control.connect(Duration::from_secs(2)).await
                    && redis::cmd("EVAL")
                        .arg(scripts::UNFILL)
                        .arg(0)
                        .query_async::<()>(&mut connection)
                        .await
                        .is_ok()
                {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        Ok(())
    }

    /// Stale, writes refused: `-NOREPLICAS` to writes, while reads and PUBLISH work and links go on both ways.
    ///
    /// # Errors
    /// When there is no such region, or it does not answer.
    pub async fn stale_min_replicas(&self, region: &str) -> anyhow::Result<()> {
        let region = self.find(region)?;
        let _held = region.refusals.lock().await;
        region
            .order(&["CONFIG", "SET", "min-replicas-to-write", "99"])
            .await
            .map(drop)
    }

    /// Stale, outbound dead: `-READONLY` to writes, and nothing, PUBLISH included, leaves the region; what comes in is
    /// applied.
    ///
    /// # Errors
    /// When there is no such region, or it does not answer.
    pub async fn stale_outbound(&self, region: &str) -> anyhow::Result<()> {
        let region = self.find(region)?;
        let _held = region.refusals.lock().await;
        region.order(&["REPLICAOF", "127.0.0.1", "1"]).await.map(drop)
    }

    /// Ends both kinds of staleness.
    ///
    /// # Errors
    /// When there is no such region, or it does not answer.
    pub async fn unstale(&self, region: &str) -> anyhow::Result<()> {
        let region = self.find(region)?;
        let _held = region.refusals.lock().await;
        region
            .order(&["CONFIG", "SET", "min-replicas-to-write", "0"])
            .await?;
        region.order(&["REPLICAOF", "NO", "ONE"]).await.map(drop)
    }

    /// Out of memory: `-OOM` to commands that need some, while reads, DEL and PUBLISH work.
    ///
    /// # Errors
    /// When there is no such region, or it does not answer.
    pub async fn out_of_memory(&self, region: &str) -> anyhow::Result<()> {
        self.find(region)?
            .order(&["CONFIG", "SET", "maxmemory", "1"])
            .await
            .map(drop)
    }

    /// Memory without limit again.
    ///
    /// # Errors
    /// When there is no such region, or it does not answer.
    pub async fn free_memory(&self, region: &str) -> anyhow::Result<()> {
        self.find(region)?
            .order(&["CONFIG", "SET", "maxmemory", "0"])
            .await
            .map(drop)
    }

    /// Writes and PUBLISH, those of the links too, are held without an answer for so long; reads work.
    ///
    /// # Errors
    /// When there is no such region, or it does not answer.
    pub async fn pause_writes(&self, region: &str, duration: Duration) -> anyhow::Result<()> {
        let millis = duration.as_millis().to_string();
        self.find(region)?
            .order(&["CLIENT", "PAUSE", &millis, "WRITE"])
            .await
            .map(drop)
    }

    /// Ends a pause early: held writes are done now.
    ///
    /// # Errors
    /// When there is no such region, or it does not answer.
    pub async fn unpause(&self, region: &str) -> anyhow::Result<()> {
        self.find(region)?.order(&["CLIENT", "UNPAUSE"]).await.map(drop)
    }

    /// Ends every fault of the region and of its relay; a dead server starts empty. Links are left as they are.
    ///
    /// # Errors
    /// When there is no such region, or it cannot be started.
    pub async fn heal(&self, region: &str) -> anyhow::Result<()> {
        let found = self.find(region)?;
        if found.pid().is_none() {
            self.restart(region, Data::Fresh).await?;
        }
        self.unhang(region).await?;
        found.wait_ready(Duration::from_secs(60)).await?;
        self.unpause(region).await?;
        self.unstale(region).await?;
        self.free_memory(region).await?;
        if let Ok(relay) = found.network() {
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
        for (from, to) in self.links.keys() {
            self.heal_link(from, to)?;
        }
        Ok(())
    }
}

/// # Faults of the network between applications and a server
///
/// They are in the relay: where it is bypassed they are an error. See the table in [`crate::relay`].
impl Rig {
    async fn network(&self, region: &str, change: impl FnOnce(&mut NetworkFaults)) -> anyhow::Result<()> {
        self.find(region)?.network()?.change(change).await;
        Ok(())
    }

    /// Connections are reset, new ones refused.
    ///
    /// # Errors
    /// When there is no such region, or it bypasses its relay.
    pub async fn cut(&self, region: &str) -> anyhow::Result<()> {
        self.network(region, |faults| faults.cut = true).await
    }

    /// Connections are accepted and kept, and nothing flows.
    ///
    /// # Errors
    /// When there is no such region, or it bypasses its relay.
    pub async fn stall(&self, region: &str) -> anyhow::Result<()> {
        self.network(region, |faults| faults.stall = true).await
    }

    /// Everything arrives later by so much, each way by its own.
    ///
    /// # Errors
    /// When there is no such region, or it bypasses its relay.
    pub async fn delay(&self, region: &str, to_server: Duration, to_client: Duration) -> anyhow::Result<()> {
        self.network(region, |faults| {
            faults.delay_to_server = to_server;
            faults.delay_to_client = to_client;
        })
        .await
    }

    /// At most `bytes` at a time, each way, with a pause of `interval` after each.
    ///
    /// # Errors
    /// When there is no such region, it bypasses its relay, or `bytes` is 0.
    pub async fn dribble(&self, region: &str, bytes: usize, interval: Duration) -> anyhow::Result<()> {
        anyhow::ensure!(bytes > 0, "a dribble of 0 bytes is a stall");
        self.network(region, |faults| faults.dribble = Some((bytes, interval)))
            .await
    }

    /// Nothing arrives any more in that direction, not even the connection's end; the other one works.
    ///
    /// # Errors
    /// When there is no such region, or it bypasses its relay.
    pub async fn half_open(&self, region: &str, dead: Direction) -> anyhow::Result<()> {
        self.network(region, |faults| faults.half_open = Some(dead)).await
    }

    /// Ends all faults of the relay.
    ///
    /// # Errors
    /// When there is no such region, or it bypasses its relay.
    pub async fn heal_network(&self, region: &str) -> anyhow::Result<()> {
        self.network(region, |faults| *faults = NetworkFaults::default())
            .await
    }
}

/// # Faults of links
impl Rig {
    /// Nothing of `from` reaches `to` any more, once this returns; the place is kept, so that healing delivers it late.
    ///
    /// # Errors
    /// When there is no such link.
    pub async fn cut_link(&self, from: &str, to: &str) -> anyhow::Result<()> {
        self.syncer(from, to)?.cut().await;
        Ok(())
    }

    /// Ends a link's cut, delay or flapping. Returns at once: what was held back follows.
    ///
    /// # Errors
    /// When there is no such link.
    pub fn heal_link(&self, from: &str, to: &str) -> anyhow::Result<()> {
        self.syncer(from, to)?.control().send_modify(LinkControl::heal);
        Ok(())
    }

    /// Everything of `from` reaches `to` later by so much.
    ///
    /// # Errors
    /// When there is no such link.
    pub fn delay_link(&self, from: &str, to: &str, delay: Duration) -> anyhow::Result<()> {
        self.syncer(from, to)?
            .control()
            .send_modify(|wanted| wanted.delay = delay);
        Ok(())
    }

    /// Cuts and heals the link in turns: half of each `period` down, half up, beginning with down.
    ///
    /// # Errors
    /// When there is no such link, or the period is shorter than 2 ms.
    pub fn flap_link(&self, from: &str, to: &str, period: Duration) -> anyhow::Result<()> {
        let half = period / 2;
        anyhow::ensure!(
            half >= Duration::from_millis(1),
            "a period of {period:?} is too short"
        );
        let control = self.syncer(from, to)?.control().clone();
        let mut order = 0;
        control.send_modify(|wanted| {
            wanted.order += 1;
            order = wanted.order;
        });
        tokio::spawn(async move {
            let mut turns = tokio::time::interval(half);
            for turn in 0_u64.. {
                turns.tick().await;
                let goes_on = control.send_if_modified(|wanted| {
                    let mine = wanted.order == order;
                    if mine {
                        wanted.cut = turn.is_multiple_of(2);
                    }
                    mine
                });
                if !goes_on || control.is_closed() {
                    return;
                }
            }
        });
        Ok(())
    }
}
