//! A server's faults and their ends, as the rig's methods of the same names describe them.

use std::time::Duration;

use redis::Value;
use tokio::time::Instant;

use super::Shard;
use crate::rig::Data;
use crate::slots::tag;
use crate::syncer::scripts::{FILL, UNFILL, of_server};

/// A loading server spends this long on each key; between some keys it answers `LOADING`.
const LOAD_STEP: Duration = Duration::from_micros(500);
/// Loading what was saved takes at most this long.
const LOAD_PATIENCE: Duration = Duration::from_secs(60);

impl Shard {
    pub(crate) async fn restart(&self, data: Data) -> anyhow::Result<()> {
        match data {
            Data::Fresh => {
                self.kill().await;
                self.boot_hidden().await?;
                self.open().await
            }
            Data::Keep => {
                self.save_and_end().await?;
                self.boot_saved(Vec::new()).await?;
                self.wait_ready(LOAD_PATIENCE).await
            }
        }
    }

    /// `slot` is one of its own.
    pub(crate) async fn load_slowly(&self, duration: Duration, slot: u16) -> anyhow::Result<()> {
        let keys = (duration.as_micros() / LOAD_STEP.as_micros()).max(32);
        let fill = of_server(FILL);
        self.order(&["EVAL", &fill, "0", &keys.to_string(), &tag(slot)])
            .await?;
        self.save_and_end().await?;
        let args = [
            "--key-load-delay",
            &LOAD_STEP.as_micros().to_string(),
            "--loading-process-events-interval-bytes",
            "1024",
        ];
        self.boot_saved(args.map(str::to_owned).to_vec()).await?;
        // The ballast goes once it can; should it stay (killed meanwhile), it harms nobody.
        let control = self.control().clone();
        let deadline = Instant::now() + duration * 3 + Duration::from_secs(10);
        tokio::spawn(async move {
            while Instant::now() < deadline {
                if let Ok(mut connection) = control.connect(Duration::from_secs(2)).await
                    && redis::cmd("EVAL")
                        .arg(of_server(UNFILL))
                        .arg(0)
                        .query_async::<Value>(&mut connection)
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

    async fn set(&self, setting: &str, value: &str) -> anyhow::Result<()> {
        self.order(&["CONFIG", "SET", setting, value]).await.map(drop)
    }

    pub(crate) async fn want_replicas(&self) -> anyhow::Result<()> {
        let _held = self.refusals.lock().await;
        self.set("min-replicas-to-write", "99").await
    }

    pub(crate) async fn follow_nobody(&self) -> anyhow::Result<()> {
        let _held = self.refusals.lock().await;
        self.order(&["REPLICAOF", "127.0.0.1", "1"]).await.map(drop)
    }

    pub(crate) async fn unstale(&self) -> anyhow::Result<()> {
        let _held = self.refusals.lock().await;
        self.set("min-replicas-to-write", "0").await?;
        // A cluster's node follows nobody, and does not take the order.
        if self.bus().is_some() {
            return Ok(());
        }
        self.order(&["REPLICAOF", "NO", "ONE"]).await.map(drop)
    }

    /// Bytes; 0 is no limit.
    pub(crate) async fn limit_memory(&self, bytes: u32) -> anyhow::Result<()> {
        self.set("maxmemory", &bytes.to_string()).await
    }

    pub(crate) async fn pause_writes(&self, duration: Duration) -> anyhow::Result<()> {
        let millis = duration.as_millis().to_string();
        self.order(&["CLIENT", "PAUSE", &millis, "WRITE"]).await.map(drop)
    }

    pub(crate) async fn unpause(&self) -> anyhow::Result<()> {
        self.order(&["CLIENT", "UNPAUSE"]).await.map(drop)
    }

    /// Ends all faults of the server and of its relay; a dead server starts empty.
    pub(crate) async fn heal(&self) -> anyhow::Result<()> {
        if self.pid().is_none() {
            self.restart(Data::Fresh).await?;
        }
        self.freeze(false).await?;
        self.wait_ready(LOAD_PATIENCE).await?;
        self.unpause().await?;
        self.unstale().await?;
        self.limit_memory(0).await?;
        if let Ok(relay) = self.network() {
            relay.change(|faults| *faults = Default::default()).await;
        }
        Ok(())
    }
}
