//! Keeps the heartbeats in line with the layouts: which cells there are, and which connections.
//!
//! A changed layout is brought in so that nothing is missed on the way, and so nothing looks lost that is not:
//!
//! ```text
//!   connections to new nodes
//!     ─► ears subscribe to the new channels, beside the old ones; those that stand confirm (or a while passes)
//!     ─► the layouts are published, and the engine gets the new cells
//!     ─► voices speak on the new channels, at once; ears leave the old ones
//!     ─► connections to nodes that are not needed any more end
//! ```

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::ear;
use super::node::{Node, Set};
use super::plan::{Naming, Plan, TooManyCells};
use super::topology::{Asker, News};
use super::{Common, Stage, Target};
use crate::decision::{CellMap, Input};
use crate::replica::{Address, Layout, ReplicaId};

/// Longest wait, at the start, for the replicas' layouts. What is not known by then counts as not sharded; that changes
/// when it is known, as any layout does.
const START: Duration = Duration::from_millis(500);

/// Longest wait for an ear to confirm new channels: a heartbeat that it misses is missed by nobody else.
const HEARING: Duration = Duration::from_millis(250);

/// One replica, as the director needs it.
pub(super) struct Watched {
    pub(super) target: Arc<Target>,
    pub(super) fences: watch::Receiver<Option<u64>>,
    pub(super) layout: Asker,
}

pub(super) struct Director {
    common: Arc<Common>,
    /// By [`ReplicaId`].
    watched: Vec<Watched>,
    naming: Naming,
    stages: watch::Sender<Stage>,
    /// For everyone else.
    layouts: watch::Sender<Arc<[Layout]>>,
    news: mpsc::Receiver<News>,
    /// As the replicas told last.
    known: Vec<Layout>,
    /// What the engine goes by.
    map: CellMap,
    /// Why the newest layouts are not gone by; told once.
    refused: Option<TooManyCells>,
    sets: HashMap<(ReplicaId, Option<Address>), Set>,
}

/// The director's ends of the channels.
pub(super) struct Ends {
    pub(super) stages: watch::Sender<Stage>,
    pub(super) layouts: watch::Sender<Arc<[Layout]>>,
    pub(super) news: mpsc::Receiver<News>,
}

impl Director {
    pub(super) fn new(common: Arc<Common>, watched: Vec<Watched>, naming: Naming, ends: Ends) -> Director {
        let Ends {
            stages,
            layouts,
            news,
        } = ends;
        let known = layouts.borrow().to_vec();
        Director {
            map: CellMap::single(watched.len()),
            common,
            watched,
            naming,
            stages,
            layouts,
            news,
            known,
            refused: None,
            sets: HashMap::new(),
        }
    }

    pub(super) async fn run(mut self) {
        let plan = Arc::clone(&self.stages.borrow().speak);
        self.connect(&plan);
        self.first_news().await;
        loop {
            self.bring_in().await;
            let Some(news) = self.news.recv().await else {
                return;
            };
            self.take(news);
            while let Ok(news) = self.news.try_recv() {
                self.take(news);
            }
        }
    }

    /// Until each replica was asked once, or the wait is over.
    async fn first_news(&mut self) {
        let deadline = Instant::now() + START.min(self.common.pace().answer_timeout);
        let mut awaited = self.watched.len();
        while awaited > 0
            && let Ok(Some(news)) = tokio::time::timeout_at(deadline, self.news.recv()).await
        {
            self.take(news);
            awaited -= 1;
        }
    }

    fn take(&mut self, (replica, layout): News) {
        if let Some(layout) = layout {
            self.known[replica.index()] = layout;
        }
    }

    /// Makes everything follow what is known.
    async fn bring_in(&mut self) {
        let old = self.stages.borrow().clone();
        if old.speak.map().is_some() && old.speak.layouts()[..] == self.known[..] {
            return;
        }
        let layouts: Arc<[Layout]> = self.known.clone().into();
        let plan = match old.speak.next(layouts, &mut self.naming) {
            Ok(plan) => Arc::new(plan),
            Err(error) => {
                if self.refused.replace(error) != Some(error) {
                    tracing::error!("{error}; the layouts stay as they were");
                }
                self.known = old.speak.layouts().to_vec();
                return;
            }
        };
        self.connect(&plan);
        let coming = Stage {
            number: old.number + 1,
            speak: old.speak,
            coming: Some(Arc::clone(&plan)),
        };
        self.stages.send_replace(coming);
        self.until_heard(old.number + 1).await;
        self.layouts.send_if_modified(|layouts| {
            let new = layouts != plan.layouts();
            layouts.clone_from(plan.layouts());
            new
        });
        if let Some(map) = plan.map().filter(|map| *map != self.map) {
            self.map = map.clone();
            self.common.report(Input::Layout(map)).await;
        }
        self.stages.send_replace(Stage {
            number: old.number + 2,
            speak: Arc::clone(&plan),
            coming: None,
        });
        self.sets
            .retain(|(replica, node), _| plan.nodes(*replica).contains(node));
    }

    /// Opens what `plan` needs and is not there yet.
    fn connect(&mut self, plan: &Plan) {
        for watched in &self.watched {
            let target = &watched.target;
            for address in plan.nodes(target.id) {
                let key = (target.id, address.clone());
                if self.sets.contains_key(&key) {
                    continue;
                }
                let dialer = match &address {
                    None => Ok(target.dialer.clone()),
                    Some(address) => target.dialer.towards(address.clone()),
                };
                let dialer = match dialer {
                    Ok(dialer) => dialer,
                    Err(error) => {
                        tracing::error!(replica = %target.name, "no connection to a shard: {error}");
                        continue;
                    }
                };
                let label = match &address {
                    None => Arc::clone(&target.name),
                    Some(address) => format!("{} ({address})", target.name).into(),
                };
                let node = Node {
                    replica: target.id,
                    label,
                    address,
                    dialer,
                    reach: Default::default(),
                    layout: watched.layout.clone(),
                };
                self.sets
                    .insert(key, Set::spawn(&self.common, node, watched.fences.clone()));
            }
        }
    }

    /// Until every ear that stands listens for `stage`; one that does not answer delays it for a while only.
    async fn until_heard(&self, stage: u64) {
        let heard = async {
            for set in self.sets.values() {
                let mut hearing = set.hearing.clone();
                // A task that has ended hears nothing.
                let _ = hearing
                    .wait_for(|state| match state {
                        ear::State::Trying => false,
                        ear::State::Lost => true,
                        ear::State::Standing(number) => *number >= stage,
                    })
                    .await;
            }
        };
        let _ = tokio::time::timeout(HEARING, heard).await;
    }
}
