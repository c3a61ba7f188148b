//! EVIDENCE: heartbeats, probes, and what a replica's cluster says of it.
//!
//! Owns three connections to each replica, or to each node of one whose shards have addresses of their own, and, where it
//! is configured, one to its cluster's REST API; nothing else of it. One asks (`probe`: PING), one speaks
//! (`voice`: heartbeats, fences, the write probe) and one that listens (`ear`: the heartbeats of every replica). They
//! are apart because a server that pauses writes stalls everything behind a write on the same connection, while it
//! still answers a PING elsewhere. Every replica has tasks of its own, so that a hung one delays no other. How it is
//! divided into shards is read from itself (`topology`); which channels follow from that is a `plan`, and the `director`
//! brings a new one in.
//!
//! Never decides anything: what it sees becomes an [`Input`], the verdict is `decision`'s. Never matches the text of a
//! replica's error: any error means "refused", its first word is for people.
//!
//! ```text
//!               ┌── probe ── PING ───────────────► replica A
//!  control ◄──  ├── voice ── PUBLISH, SET ───────► replica A ──replication──► replica B
//!   Inputs      └── ear ◄─── messages ───────────  replica A ◄─replication──  replica B
//! ```
//!
//! One prober: only `probe` reports that a replica cannot be reached, so that three connections lost together do not
//! count as three refusals. The other two nudge it when they lose theirs, and wait for its word before they dial again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::decision::Input;
use crate::dial::Dialer;
use crate::replica::{CellId, Layout, ReplicaId, Topology};

mod backoff;
mod connect;
mod director;
mod ear;
mod message;
mod node;
mod plan;
mod probe;
mod reach;
mod rest;
mod subscription;
mod topology;
mod voice;

pub use message::Identity;
pub use rest::{Patience, RestCheck};

use director::{Director, Ends, Watched};
use plan::{Naming, Plan};
use topology::{Asker, Reader};

/// One replica to watch.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its id.
    pub id: ReplicaId,
    /// Its name: part of its channels' names.
    pub name: Arc<str>,
    /// Opens connections to it, and knows the identity to present.
    pub dialer: Dialer,
    /// Asks its cluster's REST API about it.
    pub rest: Option<RestCheck>,
    /// What is configured of its shards.
    pub topology: Topology,
}

/// How the monitor works.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `detection.channel_prefix`: what the names of its channels and keys begin with.
    pub prefix: String,
    /// Who this Pulsegate is among all that watch the same replicas.
    pub identity: Identity,
    /// How often a heartbeat is published on each shard of each replica.
    pub heartbeat_interval: Duration,
    /// How often each probe is tried.
    pub probe_interval: Duration,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Longest wait for an answer to a probe, a heartbeat or a subscription.
    pub answer_timeout: Duration,
}

/// How often, and how long: what may change while the monitor runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    /// As in [`Settings`].
    pub heartbeat_interval: Duration,
    /// As in [`Settings`].
    pub probe_interval: Duration,
    /// As in [`Settings`].
    pub connect_timeout: Duration,
    /// As in [`Settings`].
    pub answer_timeout: Duration,
}

/// What the tasks of all replicas share.
#[derive(Debug)]
struct Common {
    identity: Identity,
    pace: watch::Receiver<Pace>,
    stages: watch::Receiver<Stage>,
    inputs: mpsc::Sender<Input>,
    ignored: Arc<Ignored>,
    /// The origin of send times in messages.
    began: Instant,
}

impl Common {
    /// The pace as of now.
    fn pace(&self) -> Pace {
        *self.pace.borrow()
    }

    /// What is spoken and heard as of now.
    fn stage(&self) -> Stage {
        self.stages.borrow().clone()
    }

    /// Hands `input` to control. Waits when control is behind: evidence is never dropped, only late.
    async fn report(&self, input: Input) {
        // A closed channel means that the process is ending; the tasks end with the `Monitor`.
        let _ = self.inputs.send(input).await;
    }
}

/// What is spoken and heard.
#[derive(Clone, Debug)]
struct Stage {
    /// Grows with each.
    number: u64,
    speak: Arc<Plan>,
    /// Listened for already.
    coming: Option<Arc<Plan>>,
}

impl Stage {
    fn speak(&self) -> &Plan {
        &self.speak
    }

    /// What is listened for.
    fn plans(&self) -> impl Iterator<Item = &Plan> {
        std::iter::once(&self.speak)
            .chain(&self.coming)
            .map(|plan| &**plan)
    }

    /// Whose channel `name` is, and in which cell; with the name itself.
    fn find(&self, name: &str) -> Option<(ReplicaId, CellId, Arc<str>)> {
        let (replica, cell, name) = self.plans().find_map(|plan| plan.find(name))?;
        Some((replica, cell, Arc::clone(name)))
    }
}

/// Messages on our channels that were no evidence.
#[derive(Default, Debug)]
pub struct Ignored {
    foreign: AtomicU64,
    malformed: AtomicU64,
    duplicate: AtomicU64,
}

/// The counts of [`Ignored`] at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct IgnoredCounts {
    /// Sent by another instance or an earlier incarnation of this one.
    pub foreign: u64,
    /// Not a message of ours.
    pub malformed: u64,
    /// Heard before on the same replica, or too old to tell.
    pub duplicate: u64,
}

impl Ignored {
    /// The counts now.
    pub fn counts(&self) -> IgnoredCounts {
        IgnoredCounts {
            foreign: self.foreign.load(Ordering::Relaxed),
            malformed: self.malformed.load(Ordering::Relaxed),
            duplicate: self.duplicate.load(Ordering::Relaxed),
        }
    }
}

/// The running monitor. Dropping it ends its tasks and closes its connections.
#[derive(Debug)]
pub struct Monitor {
    pace: watch::Sender<Pace>,
    /// By [`ReplicaId`].
    fences: Vec<watch::Sender<Option<u64>>>,
    readers: Vec<Asker>,
    layouts: watch::Receiver<Arc<[Layout]>>,
    ignored: Arc<Ignored>,
    _tasks: JoinSet<()>,
}

impl Monitor {
    /// Starts watching `targets`, which are in the order of their ids. Must be called within a tokio runtime; every task
    /// runs there and none of them blocks.
    pub fn spawn(targets: &[Target], settings: Settings, inputs: mpsc::Sender<Input>) -> Monitor {
        let ignored = Arc::new(Ignored::default());
        let naming = Naming::new(
            &settings.prefix,
            &settings.identity,
            targets.iter().map(|target| &*target.name),
        );
        let (pace, paces) = watch::channel(Pace {
            heartbeat_interval: settings.heartbeat_interval,
            probe_interval: settings.probe_interval,
            connect_timeout: settings.connect_timeout,
            answer_timeout: settings.answer_timeout,
        });
        let assumed: Arc<[Layout]> = targets
            .iter()
            .map(|target| topology::assumed(&target.topology))
            .collect();
        let (stage, stages) = watch::channel(Stage {
            number: 0,
            speak: Arc::new(Plan::nothing(Arc::clone(&assumed))),
            coming: None,
        });
        let (published, layouts) = watch::channel(assumed);
        let common = Arc::new(Common {
            identity: settings.identity,
            pace: paces,
            stages,
            inputs,
            ignored: Arc::clone(&ignored),
            began: Instant::now(),
        });
        let (tell, news) = mpsc::channel(targets.len().max(1));
        let mut tasks = JoinSet::new();
        let mut fences = Vec::with_capacity(targets.len());
        let mut watched = Vec::with_capacity(targets.len());
        for target in targets {
            let target = Arc::new(target.clone());
            let (fence, wanted) = watch::channel(None);
            fences.push(fence);
            let layout = Asker::default();
            let reader = Reader::new(
                Arc::clone(&common),
                Arc::clone(&target),
                layout.clone(),
                tell.clone(),
            );
            if let Some(check) = target.rest.clone() {
                let (common, target) = (Arc::clone(&common), Arc::clone(&target));
                tasks.spawn(rest::Asking::new(common, target, check).run());
            }
            tasks.spawn(reader.run());
            watched.push(Watched {
                target,
                fences: wanted,
                layout,
            });
        }
        let readers = watched.iter().map(|watched| watched.layout.clone()).collect();
        let ends = Ends {
            stages: stage,
            layouts: published,
            news,
        };
        tasks.spawn(Director::new(common, watched, naming, ends).run());
        Monitor {
            pace,
            fences,
            readers,
            layouts,
            ignored,
            _tasks: tasks,
        }
    }

    /// The replicas' layouts, by [`ReplicaId`]; what is configured, or one shard, until a replica has told its own.
    pub fn layouts(&self) -> watch::Receiver<Arc<[Layout]>> {
        self.layouts.clone()
    }

    /// Reads the layout of `replica` anew, soon: at most one reading a second, however often this is called.
    pub fn reread(&self, replica: ReplicaId) {
        if let Some(reader) = self.readers.get(replica.index()) {
            reader.ask();
        }
    }

    /// From now on at this pace; connections stay.
    pub fn set_pace(&self, pace: Pace) {
        self.pace.send_replace(pace);
    }

    /// Publishes the fence `id` in every cell of `on`; [`Input::FenceHeard`] says where it arrives. Without a
    /// connection to `on` it is published as soon as there is one. A newer fence replaces an unpublished older one.
    pub fn publish_fence(&self, id: u64, on: ReplicaId) {
        if let Some(fence) = self.fences.get(on.index()) {
            fence.send_replace(Some(id));
        }
    }

    /// Counts of messages that were no evidence.
    pub fn ignored(&self) -> &Arc<Ignored> {
        &self.ignored
    }
}

/// Ticks that a lost connection delays are made up for by one tick at once, not by a burst.
fn every(period: Duration) -> Interval {
    let mut due = tokio::time::interval(period);
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    due
}

/// Resolves at each change of the pace; never when the monitor is gone, since its tasks end with it.
async fn pace_changed(pace: &mut watch::Receiver<Pace>) {
    if pace.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Resolves at each new stage; never when the monitor is gone.
async fn stage_changed(stages: &mut watch::Receiver<Stage>) {
    if stages.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
