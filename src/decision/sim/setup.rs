//! What a seed's world is made of: replicas, shards, policy, and how the monitor and the application behave.

use std::sync::Arc;
use std::time::Duration;

use super::rng::Rng;
use crate::decision::engine::Member;
use crate::decision::event::CellMap;
use crate::decision::policy::{
    FailbackMode, OnFenceTimeout, OnIsolated, OnShardDown, OnSlow, Policy, ReadsTo,
};
use crate::replica::{Cell, CellId, Layout, ReplicaId};

#[derive(Clone, Debug)]
pub(super) struct Setup {
    pub(super) members: Vec<Member>,
    pub(super) preferred: ReplicaId,
    /// Shards by replica.
    pub(super) shards: Vec<u16>,
    /// The cells of these layouts, with the ids that they go by.
    pub(super) cells: Vec<(CellId, Cell)>,
    newest_cell: CellId,
    pub(super) policy: Policy,
    pub(super) pinned: Option<ReplicaId>,
    /// Replication delay of an open link.
    pub(super) delay: Duration,
    /// How long the monitor waits for a probe's answer.
    pub(super) probe_timeout: Duration,
    /// Whether the application sends commands.
    pub(super) traffic: bool,
    /// Whether operators interfere.
    pub(super) operators: bool,
    /// Whether it is mostly replication that breaks, and the replicas are well: what only shows then is rare otherwise.
    pub(super) links_break: bool,
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

impl Setup {
    pub(super) fn draw(rng: &mut Rng) -> Setup {
        let count = rng.pick(&[2, 2, 2, 3, 3, 3, 4, 5]);
        let sharded = rng.chance(250) && count < 4;
        let rest = rng.chance(500).then_some(ms(300));
        let equal_weights = rng.chance(200);
        let members: Vec<Member> = (0_u8..)
            .take(count)
            .map(|i| Member {
                id: ReplicaId(i),
                name: Arc::from(format!("r{i}")),
                weight: if equal_weights {
                    10
                } else {
                    u32::from(rng.pick(&[10_u8, 20, 30]))
                },
                rest,
            })
            .collect();
        let shards: Vec<u16> = members
            .iter()
            .map(|_| if sharded { rng.pick(&[1, 2, 3]) } else { 1 })
            .collect();
        let preferred = members
            .iter()
            .max_by_key(|member| (member.weight, std::cmp::Reverse(member.id)))
            .map_or(ReplicaId(0), |member| member.id);
        let (timeout, interval, probe) = rng.pick(&[
            (ms(1000), ms(200), ms(250)),
            (ms(1000), ms(250), ms(500)),
            (ms(1500), ms(300), ms(400)),
        ]);
        let policy = Policy {
            heartbeat_interval: interval,
            heartbeat_timeout: timeout,
            probe_interval: probe,
            connect_failures: rng.pick(&[2, 3]),
            dwell: rng.pick(&[ms(1000), ms(2000), ms(4000)]),
            fence: rng.pick(&[ms(1000), ms(1000), ms(500), ms(0)]),
            on_fence_timeout: rng.pick(&[
                OnFenceTimeout::Abort,
                OnFenceTimeout::Abort,
                OnFenceTimeout::Proceed,
            ]),
            on_isolated: rng.pick(&[OnIsolated::Stay, OnIsolated::Leave]),
            failback: rng.pick(&[
                FailbackMode::Immediate,
                FailbackMode::Staged,
                FailbackMode::Staged,
                FailbackMode::Manual,
            ]),
            grace: rng.pick(&[ms(1500), ms(3000), ms(5000)]),
            lag_tolerance: ms(500),
            shard_grace: Duration::from_secs(2),
            on_shard_down: OnShardDown::Switch,
            on_slow: rng.pick(&[OnSlow::Stay, OnSlow::Leave]),
            reads: rng.pick(&[
                ReadsTo::Active,
                ReadsTo::Active,
                ReadsTo::Active,
                ReadsTo::Nearest,
            ]),
            read_your_writes: true,
            read_steps: vec![10, 50, 100],
            soak: rng.pick(&[ms(0), ms(900), ms(3000)]),
            latency_margin: Duration::from_millis(100),
            tilt_after: timeout / 2,
        };
        let mut setup = Setup {
            shards: Vec::new(),
            cells: Vec::new(),
            newest_cell: CellId::ONLY,
            preferred,
            pinned: rng
                .chance(80)
                .then(|| ReplicaId(u8::try_from(rng.below(count)).unwrap_or(0))),
            delay: rng.pick(&[ms(1), ms(20), ms(80)]),
            probe_timeout: rng.pick(&[timeout / 2, timeout]),
            traffic: rng.chance(650),
            operators: rng.chance(600),
            links_break: rng.chance(250),
            members,
            policy,
        };
        setup.relayout(shards);
        setup
    }

    /// What may be changed while it runs: other numbers and other wishes. What the evidence is measured by stays.
    pub(super) fn redraw_policy(&mut self, rng: &mut Rng) {
        let other = Setup::draw(rng).policy;
        self.policy = Policy {
            on_isolated: other.on_isolated,
            on_slow: other.on_slow,
            failback: other.failback,
            grace: other.grace,
            reads: other.reads,
            soak: other.soak,
            ..self.policy.clone()
        };
    }

    /// New layouts; cells that stay keep their ids.
    pub(super) fn relayout(&mut self, shards: Vec<u16>) {
        let layouts: Vec<Layout> = shards.iter().map(|&count| Layout::even(count)).collect();
        let old = std::mem::take(&mut self.cells);
        for cell in crate::replica::cells(&layouts) {
            let kept = old.iter().find(|(_, known)| *known == cell);
            let id = kept.map_or_else(
                || {
                    self.newest_cell.0 += 1;
                    self.newest_cell
                },
                |(id, _)| *id,
            );
            self.cells.push((id, cell));
        }
        self.shards = shards;
    }

    /// As the engine is told.
    pub(super) fn map(&self) -> CellMap {
        let cells = self.cells.iter().map(|(id, cell)| (*id, cell.shards.clone()));
        CellMap {
            shards: self.shards.clone(),
            cells: cells.collect(),
        }
    }

    /// The ids of all cells.
    pub(super) fn cell_ids(&self) -> Vec<CellId> {
        self.cells.iter().map(|(id, _)| *id).collect()
    }

    pub(super) fn has_cell(&self, cell: CellId) -> bool {
        self.cells.iter().any(|(id, _)| *id == cell)
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = ReplicaId> + use<> {
        (0_u8..).map(ReplicaId).take(self.members.len())
    }

    pub(super) fn shards(&self, id: ReplicaId) -> usize {
        usize::from(self.shards[id.index()])
    }
}
