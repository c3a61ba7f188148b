//! The links between regions: one syncer per cell and ordered pair of regions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
use crate::syncer::{
    Division, LinkControl, Scope, Side, Syncer, SyncerState, SyncerStatus, Tape, begin_equal,
};

/// A link's syncer, and how far it is behind.
#[derive(Clone, Debug, Serialize)]
pub struct LinkStatus {
    /// State and counters.
    #[serde(flatten)]
    pub syncer: SyncerStatus,
    /// Bytes of the source's stream that are not acknowledged; none when the source does not answer or has another id.
    pub lag_bytes: Option<u64>,
}

/// All links, and what their sources are told to publish.
#[derive(Debug, Default)]
pub(super) struct Links {
    syncers: Mutex<BTreeMap<Key, Arc<Syncer>>>,
    /// Of a cluster's nodes, by region and number.
    tapes: BTreeMap<(String, usize), Arc<Tape>>,
}

/// Source region, destination region, first slot of the cell, number of the source: while a cell moves in its source's
/// region, it has two.
pub(super) type Key = (String, String, u16, usize);

impl Links {
    /// Those that are meant, with their places.
    pub(super) fn those(&self, meant: impl Fn(&SyncerStatus) -> bool) -> Vec<(Key, Arc<Syncer>)> {
        let all = self.locked();
        let those = all.iter().filter(|(_, syncer)| meant(&syncer.status()));
        those
            .map(|(key, syncer)| (key.clone(), Arc::clone(syncer)))
            .collect()
    }

    pub(super) fn all(&self) -> Vec<Arc<Syncer>> {
        self.locked().values().cloned().collect()
    }

    /// The number of the next message that the link's source is told to publish.
    pub(super) fn told(&self, status: &SyncerStatus) -> u64 {
        let tape = self.tapes.get(&(status.from.clone(), status.from_shard));
        tape.map_or(0, |tape| *tape.end().borrow())
    }

    pub(super) fn locked(&self) -> MutexGuard<'_, BTreeMap<Key, Arc<Syncer>>> {
        self.syncers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// MONITOR answers within this.
const TAPE_PATIENCE: Duration = Duration::from_secs(5);

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
            let sources: Vec<Side> = others
                .map(|from| self.side(from, from.owner(cell.first), Way::Inside))
                .collect();
            let here = self.side(to, to.owner(cell.first), Way::Inside);
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
    pub(super) async fn connect(&mut self) -> anyhow::Result<()> {
        for region in self
            .regions
            .iter()
            .filter(|region| region.form() == Form::Cluster)
        {
            for (number, shard) in region.shards().iter().enumerate() {
                let owners = Arc::clone(region.owners_shared());
                let tape = Tape::record(shard.direct().clone(), owners, number);
                let key = (region.name().to_owned(), number);
                self.links.tapes.insert(key, Arc::new(tape));
            }
        }
        for tape in self.links.tapes.values() {
            tape.recording(TAPE_PATIENCE).await?;
        }
        let cells = self.cells();
        for (from, to) in self.pairs() {
            let mut sources = BTreeSet::new();
            for &cell in &cells {
                let number = from.owner(cell.first);
                let control = LinkControl {
                    rest: sources.insert(number),
                    ..LinkControl::default()
                };
                self.link_up((from, number), to, cell, control, None);
            }
        }
        Ok(())
    }

    /// Waits until what the region's servers are told to publish is heard again.
    pub(super) async fn hear(&self, region: &Region) -> anyhow::Result<()> {
        let tapes = self
            .links
            .tapes
            .iter()
            .filter(|((name, _), _)| name == region.name());
        try_join_all(tapes.map(|(_, tape)| tape.recording(TAPE_PATIENCE)))
            .await
            .map(drop)
    }

    /// Starts the link from that server to the cell's owner in `to`; one of the same place ends. It goes on with the message
    /// of its source that `predecessor` stopped at, or begins with the next one.
    pub(super) fn link_up(
        &self,
        from: (&Region, usize),
        to: &Region,
        cell: SlotRange,
        control: LinkControl,
        predecessor: Option<&Syncer>,
    ) {
        let (region, number) = from;
        let mut source = self.side(region, number, Way::Port);
        source.tape = self.links.tapes.get(&(region.name().to_owned(), number)).cloned();
        let messages = match (predecessor, &source.tape) {
            (Some(predecessor), _) => predecessor.status().messages,
            (None, Some(tape)) => *tape.end().borrow(),
            (None, None) => 0,
        };
        let destination = self.side(to, to.owner(cell.first), Way::Port);
        let scope = match region.form() {
            Form::Plain => Scope::everything(),
            Form::Front | Form::Cluster => Scope {
                cell,
                division: Some(Division {
                    commands: Arc::clone(&self.commands),
                    owners: Arc::clone(region.owners_shared()),
                    shard: number,
                }),
            },
        };
        let key = (region.name().to_owned(), to.name().to_owned(), cell.first, number);
        let syncer = Syncer::spawn(source, destination, scope, control, messages);
        self.links.locked().insert(key, Arc::new(syncer));
    }

    /// The region's server of that number.
    pub(super) fn side(&self, region: &Region, number: usize, way: Way) -> Side {
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
            tape: None,
        }
    }

    /// The syncers between these, at least one.
    pub(super) fn syncers(&self, from: At<'_>, to: At<'_>) -> anyhow::Result<Vec<Arc<Syncer>>> {
        self.at(from)?;
        self.at(to)?;
        anyhow::ensure!(
            from.region != to.region,
            "there is no link from {} to itself",
            from.region
        );
        let meant = |syncer: &Arc<Syncer>| {
            let status = syncer.status();
            (status.from, status.to) == (from.region.to_owned(), to.region.to_owned())
                && from.shard.is_none_or(|shard| shard == status.from_shard)
                && to.shard.is_none_or(|shard| shard == status.to_shard)
        };
        let mut found = self.links.all();
        found.retain(meant);
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
        Ok(syncers.iter().map(|syncer| syncer.status()).collect())
    }

    pub(super) fn link_statuses(&self, regions: &[RegionStatus]) -> Vec<LinkStatus> {
        let syncers = self.links.all().into_iter().map(|syncer| syncer.status());
        let links = syncers.map(|syncer| {
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
        for status in self.links.all().iter().map(|syncer| syncer.status()) {
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
                && wanted.is_some_and(|offset| status.offset >= offset)
                && status.messages >= self.links.told(&status);
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
pub(super) enum Way {
    /// Past the port, which may be closed.
    Inside,
    Port,
}
