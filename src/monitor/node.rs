//! One place where a replica is reached, its endpoint or the node of a shard, with the connection set to it.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::ear::{self, Ear};
use super::probe::Probe;
use super::reach::Reach;
use super::topology::Asker;
use super::voice::Voice;
use super::{Common, plan::Plan};
use crate::dial::Dialer;
use crate::replica::{Address, ReplicaId, ShardId};

/// What the three tasks of a place share.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) replica: ReplicaId,
    /// What the log calls it.
    pub(super) label: Arc<str>,
    /// Where in the layout; `None`: the replica's endpoint.
    pub(super) address: Option<Address>,
    pub(super) dialer: Dialer,
    pub(super) reach: Reach,
    /// Has the replica's layout read anew.
    pub(super) layout: Asker,
}

impl Node {
    /// The shards that are served here under `plan`.
    pub(super) fn shards<'a>(&'a self, plan: &'a Plan) -> impl Iterator<Item = ShardId> + 'a {
        plan.shards(self.replica, self.address.as_ref())
    }

    /// The shards that a PING speaks for: an endpoint is the whole replica, which its first shard stands for.
    pub(super) fn pinged(&self, plan: &Plan) -> Vec<ShardId> {
        match self.address {
            None => vec![ShardId::ONLY],
            Some(_) => self.shards(plan).collect(),
        }
    }

    /// A connection failed, or a shard was not where it should be: where there are nodes, it may have moved.
    pub(super) fn suspect_layout(&self) {
        if self.address.is_some() {
            self.layout.ask();
        }
    }
}

/// The running connection set; dropping it ends it.
#[derive(Debug)]
pub(super) struct Set {
    /// How the ear stands.
    pub(super) hearing: watch::Receiver<ear::State>,
    _tasks: JoinSet<()>,
}

impl Set {
    pub(super) fn spawn(common: &Arc<Common>, node: Node, fences: watch::Receiver<Option<u64>>) -> Set {
        let node = Arc::new(node);
        let (state, hearing) = watch::channel(ear::State::Trying);
        let mut tasks = JoinSet::new();
        tasks.spawn(Probe::new(Arc::clone(common), Arc::clone(&node)).run());
        tasks.spawn(Voice::new(Arc::clone(common), Arc::clone(&node), fences).run());
        tasks.spawn(Ear::new(Arc::clone(common), node, state).run());
        Set {
            hearing,
            _tasks: tasks,
        }
    }
}
