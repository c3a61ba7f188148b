//! EVIDENCE: heartbeats and probes.
//!
//! Owns three connections to each replica and nothing else of it: one that asks (`probe`: PING), one that speaks
//! (`voice`: heartbeats, fences, the write probe) and one that listens (`ear`: the heartbeats of every replica). They
//! are apart because a server that pauses writes stalls everything behind a write on the same connection, while it
//! still answers a PING elsewhere. Every replica has tasks of its own, so that a hung one delays no other.
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
use crate::replica::{CellId, ReplicaId};

mod backoff;
mod connect;
mod ear;
mod message;
mod probe;
mod reach;
mod voice;

pub use message::Identity;

use message::Channels;

/// One replica to watch.
#[derive(Clone, Debug)]
pub struct Target {
    /// Its id.
    pub id: ReplicaId,
    /// Its name: part of its channels' names.
    pub name: Arc<str>,
    /// Opens connections to it, and knows the identity to present.
    pub dialer: Dialer,
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
    channels: Channels,
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

    /// Hands `input` to control. Waits when control is behind: evidence is never dropped, only late.
    async fn report(&self, input: Input) {
        // A closed channel means that the process is ending; the tasks end with the `Monitor`.
        let _ = self.inputs.send(input).await;
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
    fences: Vec<(ReplicaId, watch::Sender<Option<u64>>)>,
    ignored: Arc<Ignored>,
    _tasks: JoinSet<()>,
}

impl Monitor {
    /// Starts watching. Must be called within a tokio runtime; every task runs there and none of them blocks.
    pub fn spawn(targets: &[Target], settings: Settings, inputs: mpsc::Sender<Input>) -> Monitor {
        let ignored = Arc::new(Ignored::default());
        let channels = Channels::new(
            &settings.prefix,
            &settings.identity,
            targets.iter().map(|target| (target.id, &*target.name)),
        );
        let (pace, paces) = watch::channel(Pace {
            heartbeat_interval: settings.heartbeat_interval,
            probe_interval: settings.probe_interval,
            connect_timeout: settings.connect_timeout,
            answer_timeout: settings.answer_timeout,
        });
        let common = Arc::new(Common {
            identity: settings.identity,
            pace: paces,
            channels,
            inputs,
            ignored: Arc::clone(&ignored),
            began: Instant::now(),
        });
        let mut tasks = JoinSet::new();
        let mut fences = Vec::with_capacity(targets.len());
        for target in targets {
            let target = Arc::new(target.clone());
            let reach = Arc::new(reach::Reach::new());
            let (fence, wanted) = watch::channel(None);
            fences.push((target.id, fence));
            tasks
                .spawn(probe::Probe::new(Arc::clone(&common), Arc::clone(&target), Arc::clone(&reach)).run());
            tasks.spawn(
                voice::Voice::new(
                    Arc::clone(&common),
                    Arc::clone(&target),
                    Arc::clone(&reach),
                    wanted,
                )
                .run(),
            );
            tasks.spawn(ear::Ear::new(Arc::clone(&common), target, reach).run());
        }
        Monitor {
            pace,
            fences,
            ignored,
            _tasks: tasks,
        }
    }

    /// From now on at this pace; connections stay.
    pub fn set_pace(&self, pace: Pace) {
        self.pace.send_replace(pace);
    }

    /// Publishes the fence `id` on every shard of `on`; [`Input::FenceHeard`] says where it arrives. Without a
    /// connection to `on` it is published as soon as there is one. A newer fence replaces an unpublished older one.
    pub fn publish_fence(&self, id: u64, on: ReplicaId) {
        for (replica, fence) in &self.fences {
            if *replica == on {
                fence.send_replace(Some(id));
            }
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

/// One shard's channel of one replica.
type ShardChannel = (CellId, String);
