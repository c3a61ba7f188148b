//! Reload: on SIGHUP, or when the file changes, everything is loaded anew from the same sources. All or nothing.
//!
//! With a problem, or with a changed key that a running Pulsegate cannot take over, nothing changes and everything that
//! stands in the way is in the log. The file is noticed by its content, so it does not matter how it was replaced:
//! written in place, renamed over, or behind a symbolic link that now points elsewhere (a Kubernetes ConfigMap).
//! Reading and checking happen on a thread of their own; the control plane never waits for a disk.
//!
//! **New timing is brought in so that no verdict is wrong on the way.** Evidence that came at a slow pace would look
//! silent through narrow windows. So the engine first gets the wider of the old and new windows, then the monitor
//! its new pace, and only when evidence has come at that pace for two of the new windows does the engine get the new
//! policy as it is:
//!
//! ```text
//!   engine    old ──► wider of both ─────────────────────► new
//!   monitor   old ─────► new pace   ── two new windows ──►
//! ```

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::pace;
use crate::cli::logging::Level;
use crate::config::{self, Config, Loaded, Sources};
use crate::decision::Policy;
use crate::metrics::Metrics;
use crate::monitor::Monitor;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// Keys that may have changed without being written anywhere.
const OF_THE_PROFILE: [&str; 2] = ["detection.connect_timeout", "detection.response_timeout"];

/// Keeps the configuration that is in force.
pub(super) struct Reload {
    pub(super) sources: Sources,
    /// In force.
    pub(super) config: Config,
    pub(super) level: Level,
    pub(super) monitor: Arc<Monitor>,
    pub(super) policies: watch::Sender<Policy>,
    pub(super) metrics: Arc<Metrics>,
}

/// What the file says; `None` when it cannot be read.
type Content = Option<Vec<u8>>;

impl Reload {
    /// Watches until told to stop. `text` is the file as it was first loaded.
    pub(super) async fn run(
        mut self,
        text: Option<String>,
        mut hangup: Signal,
        mut stopped: watch::Receiver<bool>,
    ) {
        let mut looks = tokio::time::interval(LOOK);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut acted: Content = text.map(String::into_bytes);
        let mut last = acted.clone();
        // When the engine gets the policy as it is.
        let mut settled: Option<Instant> = None;
        loop {
            let stop = async {
                // Its sender gone means the same as the word.
                let _ = stopped.wait_for(|stop| *stop).await;
            };
            tokio::select! {
                () = stop => return,
                Some(()) = hangup.recv() => {
                    tracing::info!("SIGHUP: loading the configuration anew");
                    last = self.look().await;
                    acted = last.clone();
                    settled = self.reload().await.or(settled);
                }
                _ = looks.tick(), if self.sources.file.is_some() => {
                    let now = self.look().await;
                    // Twice the same: whoever writes it is done.
                    if now == last && now != acted {
                        tracing::info!("the file has changed: loading the configuration anew");
                        acted = now.clone();
                        settled = self.reload().await.or(settled);
                    }
                    last = now;
                }
                () = until(settled) => {
                    self.policies.send_replace(self.config.policy.clone());
                    settled = None;
                }
            }
        }
    }

    /// The file as it is now.
    async fn look(&self) -> Content {
        let path: Arc<Path> = Arc::from(self.sources.file.as_deref()?);
        aside(move || std::fs::read(path).ok()).await?
    }

    /// Loads everything and takes it over, or says why not. When the engine is to get the policy as it is.
    async fn reload(&mut self) -> Option<Instant> {
        let sources = self.sources.clone();
        let loaded = aside(move || config::load(&sources)).await?;
        let taken = match loaded {
            Ok(loaded) => self.take(loaded),
            Err(problems) => Err(problems.iter().map(ToString::to_string).collect()),
        };
        self.metrics.control.config_reloaded(taken.is_ok());
        taken.unwrap_or_else(|problems| {
            for problem in problems {
                tracing::error!("{problem}");
            }
            tracing::error!("the configuration stays as it was");
            None
        })
    }

    /// Takes `loaded` over as a whole, or says, in words, why not.
    fn take(&mut self, loaded: Loaded) -> Result<Option<Instant>, Vec<String>> {
        let changes = config::changes(&self.config, &loaded.config);
        let fixed: Vec<&str> = changes
            .iter()
            .filter(|change| !change.live)
            .map(|change| change.key.as_str())
            .collect();
        if !fixed.is_empty() {
            let mut text = format!("cannot change without a restart: {}", fixed.join(", "));
            if fixed.iter().any(|key| OF_THE_PROFILE.contains(key)) {
                text += " (detection.profile sets the time-outs that are not given)";
            }
            return Err(vec![text]);
        }
        self.level
            .set(&loaded.config.log.level)
            .map_err(|error| vec![error])?;
        for warning in &loaded.warnings {
            tracing::warn!("{warning}");
        }
        let changed: Vec<&str> = changes.iter().map(|change| change.key.as_str()).collect();
        if changed.is_empty() {
            tracing::info!("the configuration is the same as before");
        } else {
            tracing::info!(keys = %changed.join(", "), "the configuration has changed");
        }
        self.config = loaded.config;
        let (policy, before) = (&self.config.policy, self.policies.borrow().clone());
        let wider = wider(&before, policy);
        let settled = (wider != *policy)
            .then(|| Instant::now() + 2 * policy.heartbeat_timeout.max(2 * policy.probe_interval));
        self.policies.send_replace(wider);
        self.monitor.set_pace(pace(&self.config));
        Ok(settled)
    }
}

/// `new`, but with windows that fit evidence of either pace.
fn wider(old: &Policy, new: &Policy) -> Policy {
    Policy {
        heartbeat_interval: old.heartbeat_interval.max(new.heartbeat_interval),
        heartbeat_timeout: old.heartbeat_timeout.max(new.heartbeat_timeout),
        probe_interval: old.probe_interval.max(new.probe_interval),
        tilt_after: old.tilt_after.max(new.tilt_after),
        ..new.clone()
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

/// Runs what may wait for a disk; `None` when the process is ending.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}
