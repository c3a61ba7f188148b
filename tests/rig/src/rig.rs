//! The rig: regions and the syncers between them. It owns both; dropping it ends all processes and tasks.
//!
//! Faults are in [`faults`]; here is what stands without any.

mod faults;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context as _;
use serde::Serialize;
use tokio::time::Instant;

use crate::options::RigOptions;
use crate::region::{Region, RegionStatus, info_field};
use crate::syncer::{Side, Syncer, SyncerState, SyncerStatus, begin_equal};

pub use faults::Data;

/// Everything about a rig at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct RigStatus {
    /// In the order they were named.
    pub regions: Vec<RegionStatus>,
    /// One per ordered pair.
    pub links: Vec<LinkStatus>,
}

/// A link's syncer, and how far it is behind.
#[derive(Clone, Debug, Serialize)]
pub struct LinkStatus {
    /// State and counters.
    #[serde(flatten)]
    pub syncer: SyncerStatus,
    /// Bytes of the source's stream that are not acknowledged; none when the source does not answer or has another id.
    pub lag_bytes: Option<u64>,
}

/// From region, to region.
type Pair = (String, String);

/// A running Active-Active stand-in.
#[derive(Debug)]
pub struct Rig {
    // Before the regions: syncers end first, so that they do not complain about servers that are gone.
    links: BTreeMap<Pair, Syncer>,
    regions: Vec<Region>,
}

impl Rig {
    /// Starts servers, relays and syncers; all regions are reachable and all links stand when it returns.
    ///
    /// # Errors
    /// When `redis-server` is missing or does not start, or the options make no sense.
    pub async fn start(options: RigOptions) -> anyhow::Result<Self> {
        options.validate()?;
        let mut regions = Vec::new();
        for name in &options.regions {
            let (password, args) = (options.password.clone(), options.server_args.clone());
            regions.push(Region::new(name, password, args, options.direct.contains(name))?);
        }
        let mut rig = Self {
            links: BTreeMap::new(),
            regions,
        };
        // Nobody can write yet: all are empty, and each has all of the others.
        for region in &rig.regions {
            region.boot_hidden().await?;
        }
        for to in &rig.regions {
            let others = rig.regions.iter().filter(|from| from.name() != to.name());
            let sources: Vec<_> = others.map(|from| (from.name(), from.control().clone())).collect();
            begin_equal(to.control(), &sources)
                .await
                .with_context(|| to.name().to_owned())?;
        }
        for region in &rig.regions {
            region.open().await?;
        }
        for from in &rig.regions {
            for to in rig.regions.iter().filter(|to| to.name() != from.name()) {
                let side = |region: &Region| Side {
                    name: region.name().to_owned(),
                    endpoint: region.direct().clone(),
                    refusals: region.refusals.clone(),
                };
                let pair = (from.name().to_owned(), to.name().to_owned());
                rig.links.insert(pair, Syncer::spawn(side(from), side(to)));
            }
        }
        rig.wait_converged(Duration::from_secs(20))
            .await
            .context("the links do not stand")?;
        Ok(rig)
    }

    /// The regions, in the order they were named.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The region of that name.
    ///
    /// # Panics
    /// When there is none: for tests. See [`find`](Self::find) for names that come from outside.
    #[must_use]
    #[expect(clippy::panic, reason = "a test that names a wrong region is wrong itself")]
    pub fn region(&self, name: &str) -> &Region {
        match self.find(name) {
            Ok(region) => region,
            Err(error) => panic!("{error}"),
        }
    }

    /// The region of that name.
    ///
    /// # Errors
    /// When there is none; names those there are.
    pub fn find(&self, name: &str) -> anyhow::Result<&Region> {
        self.regions
            .iter()
            .find(|region| region.name() == name)
            .with_context(|| {
                let names: Vec<&str> = self.regions.iter().map(Region::name).collect();
                format!("no region is called {name:?}; there are: {}", names.join(", "))
            })
    }

    fn syncer(&self, from: &str, to: &str) -> anyhow::Result<&Syncer> {
        self.find(from)?;
        self.find(to)?;
        self.links
            .get(&(from.to_owned(), to.to_owned()))
            .with_context(|| format!("there is no link from {from} to itself"))
    }

    /// State and counters of one link's syncer.
    ///
    /// # Errors
    /// When there is no such link.
    pub fn link(&self, from: &str, to: &str) -> anyhow::Result<SyncerStatus> {
        Ok(self.syncer(from, to)?.status())
    }

    /// Everything at once. Servers that do not answer cost 300 ms each.
    pub async fn status(&self) -> RigStatus {
        let mut regions = Vec::new();
        for region in &self.regions {
            regions.push(region.status().await);
        }
        let links = self.links.values().map(Syncer::status).map(|syncer| {
            let source = regions.iter().find(|region| region.name == syncer.from);
            let offset = source
                .and_then(|region| region.offset)
                .filter(|_| !syncer.replid.is_empty());
            LinkStatus {
                lag_bytes: offset.map(|offset| offset.saturating_sub(syncer.offset)),
                syncer,
            }
        });
        RigStatus {
            links: links.collect(),
            regions,
        }
    }

    /// Waits until every link has delivered all that its source had when it was asked.
    ///
    /// # Errors
    /// After `patience`; names the links and regions that are behind, and why.
    pub async fn wait_converged(&self, patience: Duration) -> anyhow::Result<()> {
        let deadline = Instant::now() + patience;
        loop {
            let behind = self.behind().await;
            if behind.is_empty() {
                return Ok(());
            }
            anyhow::ensure!(Instant::now() < deadline, "not converged: {}", behind.join("; "));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What is missing to convergence, in words.
    async fn behind(&self) -> Vec<String> {
        let mut behind = Vec::new();
        let mut infos = BTreeMap::new();
        for region in &self.regions {
            match region.info(Duration::from_millis(500)).await {
                Ok(info) => drop(infos.insert(region.name(), info)),
                Err(error) => behind.push(format!("{} does not answer: {error}", region.name())),
            }
        }
        for syncer in self.links.values() {
            let status = syncer.status();
            let (Some(source), Some(here)) = (infos.get(&*status.from), infos.get(&*status.to)) else {
                continue;
            };
            let wanted =
                info_field(source, "master_repl_offset").and_then(|offset| offset.parse::<u64>().ok());
            let caught_up = status.state == SyncerState::Streaming
                && info_field(source, "master_replid") == Some(&*status.replid)
                && info_field(here, "run_id") == Some(&*status.to_run)
                && wanted.is_some_and(|offset| status.offset >= offset);
            if !caught_up {
                behind.push(format!(
                    "{} to {} is {:?} at {} of {} (last error: {})",
                    status.from,
                    status.to,
                    status.state,
                    status.offset,
                    wanted.unwrap_or_default(),
                    status.last_error.as_deref().unwrap_or("none"),
                ));
            }
        }
        behind
    }
}
