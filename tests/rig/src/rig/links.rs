//! The links between regions: one syncer per cell and ordered pair of regions.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::try_join_all;
use serde::Serialize;
use tokio::time::Instant;

use super::{At, Rig};
use crate::options::Form;
use crate::region::{Region, RegionStatus};
use crate::shard::info_field;
use crate::slots::SlotRange;
use crate::syncer::{Division, Scope, Side, Syncer, SyncerState, SyncerStatus, begin_equal};

/// A link's syncer, and how far it is behind.
#[derive(Clone, Debug, Serialize)]
pub struct LinkStatus {
    /// State and counters.
    #[serde(flatten)]
    pub syncer: SyncerStatus,
    /// Bytes of the source's stream that are not acknowledged; none when the source does not answer or has another id.
    pub lag_bytes: Option<u64>,
}

/// By source region, destination region, and the first slot of the cell.
pub(super) type Links = BTreeMap<(String, String, u16), Syncer>;

impl Rig {
    fn pairs(&self) -> impl Iterator<Item = (&Region, &Region)> {
        let to = |from: &Region| {
            let name = from.name().to_owned();
            self.regions.iter().filter(move |to| to.name() != name)
        };
        self.regions
            .iter()
            .flat_map(move |from| to(from).map(move |to| (from, to)))
    }

    /// Writes in all books that all have all: true only while all are empty.
    pub(super) async fn begin_equal(&self) -> anyhow::Result<()> {
        let begin = async |to: &Region, cell: SlotRange| {
            let others = self.regions.iter().filter(|from| from.name() != to.name());
            let sources: Vec<Side> = others.map(|from| self.side(from, cell, Way::Inside)).collect();
            let here = self.side(to, cell, Way::Inside);
            begin_equal(&here, &sources, cell)
                .await
                .with_context(|| here.id.clone())
        };
        let cells = self.cells();
        let all = self
            .regions
            .iter()
            .flat_map(|to| cells.iter().map(move |&cell| (to, cell)));
        try_join_all(all.map(|(to, cell)| begin(to, cell)))
            .await
            .map(drop)
    }

    /// Starts every link.
    pub(super) fn connect(&mut self) {
        let cells = self.cells();
        let links = self.pairs().flat_map(|(from, to)| {
            cells.iter().map(|&cell| {
                let (source, destination) =
                    (self.side(from, cell, Way::Port), self.side(to, cell, Way::Port));
                let scope = self.scope(from, cell, &cells);
                let key = (from.name().to_owned(), to.name().to_owned(), cell.first);
                (key, Syncer::spawn(source, destination, scope))
            })
        });
        let links: Links = links.collect();
        self.links = links;
    }

    /// The server of the region that owns the cell.
    fn side(&self, region: &Region, cell: SlotRange, way: Way) -> Side {
        let number = region.owner(cell.first);
        let shard = region.shard(number);
        let endpoint = match way {
            Way::Inside => shard.control(),
            Way::Port => shard.direct(),
        };
        Side {
            id: shard.name().to_owned(),
            region: region.name().to_owned(),
            shard: number,
            endpoint: endpoint.clone(),
            refusals: Arc::clone(&shard.refusals),
        }
    }

    fn scope(&self, from: &Region, cell: SlotRange, cells: &[SlotRange]) -> Scope {
        if from.form() == Form::Plain {
            return Scope::everything();
        }
        let shard = from.owner(cell.first);
        let mut own = cells.iter().filter(|cell| from.owner(cell.first) == shard);
        Scope {
            cell,
            division: Some(Division {
                commands: Arc::clone(&self.commands),
                rest: own.next() == Some(&cell),
                own: from.slots(shard),
            }),
        }
    }

    /// The syncers between these, at least one.
    pub(super) fn syncers(&self, from: At<'_>, to: At<'_>) -> anyhow::Result<Vec<&Syncer>> {
        self.at(from)?;
        self.at(to)?;
        anyhow::ensure!(
            from.region != to.region,
            "there is no link from {} to itself",
            from.region
        );
        let meant = |syncer: &&Syncer| {
            let status = syncer.status();
            (status.from, status.to) == (from.region.to_owned(), to.region.to_owned())
                && from.shard.is_none_or(|shard| shard == status.from_shard)
                && to.shard.is_none_or(|shard| shard == status.to_shard)
        };
        let found: Vec<&Syncer> = self.links.values().filter(meant).collect();
        anyhow::ensure!(
            !found.is_empty(),
            "no link from {from} to {to}: these shards have no slot in common"
        );
        Ok(found)
    }

    /// State and counters of the one link between these: of divided regions, name the shards.
    ///
    /// # Errors
    /// When there is no such link, or several.
    pub fn link<'a>(&self, from: impl Into<At<'a>>, to: impl Into<At<'a>>) -> anyhow::Result<SyncerStatus> {
        let (from, to) = (from.into(), to.into());
        let mut all = self.links(from, to)?;
        let one = all.pop().filter(|_| all.is_empty());
        one.with_context(|| format!("{} links from {from} to {to}: say which shards", all.len() + 1))
    }

    /// State and counters of all links between these, by slots.
    ///
    /// # Errors
    /// When there is none.
    pub fn links<'a>(
        &self,
        from: impl Into<At<'a>>,
        to: impl Into<At<'a>>,
    ) -> anyhow::Result<Vec<SyncerStatus>> {
        let syncers = self.syncers(from.into(), to.into())?;
        Ok(syncers.into_iter().map(Syncer::status).collect())
    }

    pub(super) fn link_statuses(&self, regions: &[RegionStatus]) -> Vec<LinkStatus> {
        let links = self.links.values().map(Syncer::status).map(|syncer| {
            let source = regions.iter().find(|region| region.name == syncer.from);
            let offset = source
                .and_then(|region| region.shards.get(syncer.from_shard)?.offset)
                .filter(|_| !syncer.replid.is_empty());
            LinkStatus {
                lag_bytes: offset.map(|offset| offset.saturating_sub(syncer.offset)),
                syncer,
            }
        });
        links.collect()
    }

    /// Waits until every link has delivered all that its source had when it was asked.
    ///
    /// # Errors
    /// After `patience`; names the links and servers that are behind, and why.
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
            for (number, shard) in region.shards().iter().enumerate() {
                match shard.info(Duration::from_millis(500)).await {
                    Ok(info) => drop(infos.insert((region.name(), number), info)),
                    Err(error) => behind.push(format!("{} does not answer: {error}", shard.name())),
                }
            }
        }
        for status in self.links.values().map(Syncer::status) {
            let source = infos.get(&(&*status.from, status.from_shard));
            let here = infos.get(&(&*status.to, status.to_shard));
            let (Some(source), Some(here)) = (source, here) else {
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
                    "{} to {} is {:?} at {} of {}, slots {} (last error: {})",
                    status.from,
                    status.to,
                    status.state,
                    status.offset,
                    wanted.unwrap_or_default(),
                    status.slots,
                    status.last_error.as_deref().unwrap_or("none"),
                ));
            }
        }
        behind
    }
}

/// How the rig itself reaches a server.
#[derive(Clone, Copy)]
enum Way {
    /// Past the port, which may be closed.
    Inside,
    Port,
}
