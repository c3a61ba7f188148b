//! The rig: regions and the syncers between them. It owns both; dropping it ends all processes and tasks.
//!
//! Faults are in [`faults`], links in [`links`]; here is what stands without any fault.

mod faults;
mod links;
mod reshard;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::try_join_all;
use serde::Serialize;

use crate::commands::Commands;
use crate::options::{Form, RigOptions};
use crate::region::{Region, RegionStatus};
use crate::shard::Shard;
use crate::slots;
use links::Links;

pub use faults::Data;
pub use links::LinkStatus;

/// Everything about a rig at one moment.
#[derive(Clone, Debug, Serialize)]
pub struct RigStatus {
    /// In the order they were named.
    pub regions: Vec<RegionStatus>,
    /// One per ordered pair of regions; of divided regions, one per cell and ordered pair.
    pub links: Vec<LinkStatus>,
}

/// A region, or one shard of it: `"local"`, `("local", 1)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At<'a> {
    /// Its name.
    pub region: &'a str,
    /// The shard's number, counted from 0; none means all of them.
    pub shard: Option<usize>,
}

impl std::fmt::Display for At<'_> {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.shard {
            None => out.write_str(self.region),
            Some(shard) => write!(out, "{}/{shard}", self.region),
        }
    }
}

impl<'a, Name: AsRef<str> + ?Sized> From<&'a Name> for At<'a> {
    fn from(region: &'a Name) -> Self {
        Self {
            region: region.as_ref(),
            shard: None,
        }
    }
}

impl<'a> From<(&'a str, usize)> for At<'a> {
    fn from((region, shard): (&'a str, usize)) -> Self {
        Self {
            region,
            shard: Some(shard),
        }
    }
}

/// A running Active-Active stand-in.
#[derive(Debug)]
pub struct Rig {
    // Before the regions: syncers end first, so that they do not complain about servers that are gone.
    links: Links,
    regions: Vec<Region>,
    commands: Arc<Commands>,
    /// One move of slots at a time.
    moving: tokio::sync::Mutex<()>,
}

impl Rig {
    /// Starts servers, relays and syncers; all regions are reachable and all links stand when it returns.
    ///
    /// # Errors
    /// When `redis-server` is missing or does not start, or the options make no sense.
    pub async fn start(options: RigOptions) -> anyhow::Result<Self> {
        options.validate()?;
        let regions = options.regions.iter().map(|name| Region::new(&options, name));
        let mut rig = Self {
            links: Links::default(),
            regions: regions.collect::<anyhow::Result<_>>()?,
            commands: Arc::default(),
            moving: tokio::sync::Mutex::default(),
        };
        // Nobody can write yet: all are empty, and each has all of the others.
        let shards = rig.regions.iter().flat_map(Region::shards);
        try_join_all(shards.map(Shard::boot_hidden)).await?;
        if options.form != Form::Plain {
            let answer = rig.regions[0].shard(0).order(&["COMMAND"]).await?;
            rig.commands = Arc::new(Commands::read(answer)?);
        }
        for region in &mut rig.regions {
            region.learn(&rig.commands, options.cluster_api);
        }
        try_join_all(rig.regions.iter().map(Region::form_cluster)).await?;
        rig.begin_equal().await?;
        try_join_all(rig.regions.iter().map(Region::open)).await?;
        rig.connect().await?;
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

    /// Whether there is such a region and shard.
    ///
    /// # Errors
    /// When there is none; names those there are.
    pub fn find_at<'a>(&self, at: impl Into<At<'a>>) -> anyhow::Result<()> {
        self.at(at.into()).map(drop)
    }

    /// The region, and those of its shards that are meant.
    fn at(&self, at: At<'_>) -> anyhow::Result<(&Region, &[Shard])> {
        let region = self.find(at.region)?;
        let shards = region.shards();
        let meant = match at.shard {
            None => Some(shards),
            Some(shard) => shards.get(shard..=shard),
        };
        let meant = meant.with_context(|| {
            let (name, count, asked) = (region.name(), shards.len(), at.shard.unwrap_or_default());
            format!("{name} has no shard {asked}: there are {count}, counted from 0")
        })?;
        Ok((region, meant))
    }

    /// The pieces of the slots that no region's division cuts.
    #[must_use]
    pub fn cells(&self) -> Vec<slots::SlotRange> {
        let owners: Vec<_> = self.regions.iter().map(Region::owners).collect();
        slots::cells(owners.iter().flat_map(slots::Owners::ranges))
    }

    /// Everything at once. Servers that do not answer cost 300 ms each.
    pub async fn status(&self) -> RigStatus {
        let mut regions = Vec::new();
        for region in &self.regions {
            regions.push(region.status().await);
        }
        RigStatus {
            links: self.link_statuses(&regions),
            regions,
        }
    }
}
