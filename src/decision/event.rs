//! What goes into the engine and what comes out.

use std::fmt;
use std::time::{Duration, Instant};

use super::faults::Fault;
use crate::replica::{CellId, ReplicaId, ShardId};

/// Everything the engine can learn.
#[derive(Clone, PartialEq, Debug)]
pub enum Input {
    /// The layouts are these from now on. Cells that were there before keep their evidence, new ones begin without any.
    Layout(CellMap),
    /// The monitor published heartbeat `seq` on `on`, on the channel of `cell`, and the replica accepted it.
    HeartbeatSent {
        /// Where it was published.
        on: ReplicaId,
        /// The cell that its channel belongs to. One that is not there any more is ignored.
        cell: CellId,
        /// Grows by one with each heartbeat of this replica and cell within this incarnation of the sidecar.
        seq: u64,
    },
    /// A heartbeat published on `from` by this incarnation was heard on `to` (`from == to`: the replica's own echo).
    HeartbeatHeard {
        /// Where it was published.
        from: ReplicaId,
        /// Where it was heard.
        to: ReplicaId,
        /// The cell that its channel belongs to.
        cell: CellId,
        /// Its sequence number.
        seq: u64,
        /// From send to arrival. A large age means a backlog was replayed: lag, not fresh evidence.
        age: Duration,
        /// When it was sent, on the process's monotonic clock: what was written on `from` before is on `to` as well.
        sent: Instant,
    },
    /// A probe ended.
    Probe {
        /// The replica probed.
        replica: ReplicaId,
        /// The shard probed; [`ShardId::ONLY`] for probes of the whole replica.
        shard: ShardId,
        /// What was tried.
        kind: ProbeKind,
        /// The round-trip time, or how it failed.
        outcome: Result<Duration, ProbeFailure>,
    },
    /// The monitor's subscription on `replica` was (re-)established: misses are counted from now, not from before.
    Subscribed {
        /// The replica that now confirms the subscription.
        replica: ReplicaId,
    },
    /// The REST API of the replica's cluster was asked.
    Rest {
        /// The replica whose database was asked about.
        replica: ReplicaId,
        /// What came of it.
        outcome: RestOutcome,
    },
    /// The data plane saw something on its links to `replica`.
    Passive {
        /// The links' replica.
        replica: ReplicaId,
        /// What it saw.
        seen: PassiveEvidence,
    },
    /// The data plane holds and has no sent command without an answer (all workers), under the holding route `epoch`.
    Drained {
        /// Epoch of the route that the drain belongs to; an old epoch is ignored.
        epoch: u64,
    },
    /// The fence `id` was heard on `to`, on the channel of `cell`.
    FenceHeard {
        /// From [`Output::PublishFence`].
        id: u64,
        /// Where it was heard.
        to: ReplicaId,
        /// The cell that it crossed.
        cell: CellId,
    },
    /// An operator asks. Answered by exactly one [`Output::Answer`] with the same `id`, now or when the move has ended.
    Operator {
        /// Chosen by the asker.
        id: u64,
        /// What is asked.
        request: Request,
    },
}

/// How the replicas' layouts meet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CellMap {
    /// By replica: how many shards it has; at least one.
    pub shards: Vec<u16>,
    /// Every cell with its shards by replica, as in [`crate::replica::Cell`].
    pub cells: Vec<(CellId, Vec<Option<ShardId>>)>,
}

impl CellMap {
    /// Of `replicas` without shards.
    pub fn single(replicas: usize) -> CellMap {
        CellMap {
            shards: vec![1; replicas],
            cells: vec![(CellId::ONLY, vec![Some(ShardId::ONLY); replicas])],
        }
    }

    /// Whether it is of so many replicas, and names no shard that is not there.
    pub(super) fn fits(&self, replicas: usize) -> bool {
        let known = |(shard, count): (&Option<ShardId>, &u16)| shard.is_none_or(|shard| shard.0 < *count);
        self.shards.len() == replicas
            && self
                .cells
                .iter()
                .all(|(_, shards)| shards.len() == replicas && shards.iter().zip(&self.shards).all(known))
    }
}

/// The two active probes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ProbeKind {
    /// `PING`: the replica answers.
    Ping,
    /// A short-lived `SET`: the replica accepts writes.
    Write,
}

/// How a probe failed.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum ProbeFailure {
    /// Nobody listens there, or the name does not resolve. Hard evidence.
    Refused,
    /// An established connection was reset or closed.
    Broken,
    /// No connection, or no answer, within the time-out.
    Timeout,
    /// The replica answered with an error; its first word (`LOADING`, `NOREPLICAS`, …), for people only.
    Rejected(String),
}

/// What came of asking a cluster's REST API about a database.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum RestOutcome {
    /// The cluster says that it is available.
    Available,
    /// The cluster says that it is not; in its words.
    Unavailable(String),
    /// No answer, or one that says nothing of the database (credentials refused, no such database); in words.
    Unknown(String),
}

impl RestOutcome {
    /// What it is by itself, whatever came before.
    pub fn state(&self) -> RestState {
        match self {
            RestOutcome::Available => RestState::Available,
            RestOutcome::Unavailable(_) => RestState::Unavailable,
            RestOutcome::Unknown(_) => RestState::Unknown,
        }
    }
}

/// What the data plane can say; see `route::LinkEvidence` for each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[expect(
    missing_docs,
    reason = "the same names are documented on `route::LinkEvidence`"
)]
pub enum PassiveEvidence {
    Refused,
    ConnectTimeout,
    Broken,
    ResponseTimeout,
    Rejected,
    Unready,
    Unwritable,
    Alive,
}

/// What an operator can ask.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Request {
    /// A planned, fenced move to `to`; refused when `to` is down.
    Switch {
        /// The wished write replica.
        to: ReplicaId,
        /// The operator's words, for the log.
        reason: String,
    },
    /// Move to `replica` (planned when it and the active are well, at once otherwise) and stay there, whatever happens, until unpinned.
    Pin {
        /// The replica to stay on.
        replica: ReplicaId,
    },
    /// Give the choice back to the engine.
    Unpin,
    /// Return to the preferred replica now, without waiting for the rest of the grace; refused when it is not fit.
    Failback,
    /// Hold all commands until resumed (each still bounded by `hold.timeout`).
    Hold,
    /// End a hold.
    Resume,
}

/// Everything the engine can want.
#[derive(Clone, PartialEq, Debug)]
pub enum Output {
    /// Publish this route.
    Route(RouteOrder),
    /// Publish the fence `id` on every cell of `on`, and report where it is heard.
    PublishFence {
        /// Grows with each fence.
        id: u64,
        /// The replica being left.
        on: ReplicaId,
    },
    /// Something that people and machines should know: logged, counted and streamed by the shell.
    Event(Event),
    /// The answer to [`Input::Operator`]: what was done, or why not.
    Answer {
        /// The asker's id.
        id: u64,
        /// In words.
        result: Result<String, String>,
    },
    /// Keep (`Some`) or forget (`None`) the pin across restarts.
    RememberPin(Option<ReplicaId>),
}

/// A route to publish.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RouteOrder {
    /// Grows by one at each.
    pub epoch: u64,
    /// Takes the writes.
    pub write: ReplicaId,
    /// Percent of sessions by replica that their reads go to; sums to 100.
    pub read: Vec<(ReplicaId, u8)>,
    /// Sessions read their own writes, wherever they read.
    pub read_your_writes: bool,
    /// Commands wait.
    pub holding: bool,
    /// The other replicas are given up: links to them are condemned at once.
    pub abandon_others: bool,
}

/// Something that happened, for the log, `/events` and the metrics.
#[derive(Clone, PartialEq, Debug)]
pub enum Event {
    /// A replica's health changed.
    Health {
        /// Whose.
        replica: ReplicaId,
        /// Before.
        from: Health,
        /// Now.
        to: Health,
        /// Why, in words.
        why: String,
    },
    /// A replica's fitness changed.
    Fitness {
        /// Whose.
        replica: ReplicaId,
        /// Before.
        from: Fitness,
        /// Now.
        to: Fitness,
        /// Why, in words.
        why: String,
    },
    /// A link went up or down.
    Link {
        /// Published there.
        from: ReplicaId,
        /// Awaited here.
        to: ReplicaId,
        /// The shard of `from`.
        shard: ShardId,
        /// The shard of `to`.
        to_shard: ShardId,
        /// Whether heartbeats pass in time.
        up: bool,
        /// Why, in words.
        why: String,
    },
    /// What a cluster's REST API says of a replica changed.
    Rest {
        /// Whose.
        replica: ReplicaId,
        /// Before; `None`: it had not been asked.
        from: Option<RestState>,
        /// Now.
        to: RestState,
        /// Why, in words.
        why: String,
    },
    /// Something of replication broke, or is whole again.
    Fault {
        /// What.
        fault: Fault,
        /// Whether it is broken now.
        on: bool,
        /// In words.
        words: String,
    },
    /// The active replica changed.
    Switched(Switched),
    /// A planned move began, or was called off.
    Move {
        /// The replica to leave.
        from: ReplicaId,
        /// The replica to go to.
        to: ReplicaId,
        /// `started: …`, `called off: …`, in words.
        what: String,
    },
    /// Failback progress.
    Failback {
        /// The preferred replica.
        to: ReplicaId,
        /// What it has come to.
        step: FailbackStep,
        /// In words.
        what: String,
    },
    /// The sidecar itself stalled (`on`), or its evidence is fresh again.
    Tilt {
        /// Whether it is in tilt now.
        on: bool,
        /// Why, in words.
        why: String,
    },
    /// A pin was set or taken away.
    Pinned {
        /// The pinned replica.
        replica: Option<ReplicaId>,
    },
}

/// One change of the active replica.
#[derive(Clone, PartialEq, Debug)]
pub struct Switched {
    /// The epoch of the route it made.
    pub epoch: u64,
    /// The replica left; `None` at the first route.
    pub from: Option<ReplicaId>,
    /// The new active replica.
    pub to: ReplicaId,
    /// Which rule.
    pub reason: SwitchReason,
    /// The evidence, in words.
    pub why: String,
    /// From the last moment the old replica was known well to the verdict; zero for planned moves.
    pub detect: Duration,
    /// From the drain's end to the fence's arrival, when there was a fence.
    pub fence: Option<Duration>,
    /// From the verdict (or the operator's word) to the new route.
    pub switch: Duration,
}

macro_rules! words {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum $name { $($(#[$vmeta])* $variant),+ }

        impl $name {
            /// Every value, in order.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// The word used in `/status`, metrics and logs.
            pub const fn word(self) -> &'static str {
                match self { $($name::$variant => $word),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.word())
            }
        }
    };
}

words! {
    /// What the evidence says of one replica.
    Health {
        /// Nothing is known yet; treated as not fit, but never refused as the last survivor.
        Unknown = "unknown",
        /// Fresh positive evidence of every kind.
        Healthy = "healthy",
        /// Some evidence against it, not yet past its window.
        Suspect = "suspect",
        /// Past its window.
        Down = "down",
        /// Positive evidence again, not yet for long enough.
        Recovering = "recovering",
    }
}

words! {
    /// What a replica that answers may be used for.
    Fitness {
        /// Nothing is known yet.
        Unknown = "unknown",
        /// Heartbeats both ways with every other live replica within tolerance, and writable.
        InSync = "in_sync",
        /// A link to or from it is late or broken.
        Lagging = "lagging",
        /// Hears and is heard by no one.
        Isolated = "isolated",
        /// Refuses writes.
        Stale = "stale",
    }
}

words! {
    /// What a failback has come to.
    FailbackStep {
        /// The proof is complete: the grace began.
        Grace = "grace",
        /// The proof broke before the grace was over.
        Reset = "reset",
        /// Another share of the sessions reads from the preferred replica.
        Reads = "reads",
        /// Reads are back with the active replica.
        RolledBack = "rolled_back",
        /// Everything was proved: the fenced move of the writes begins.
        Writes = "writes",
        /// That move was called off.
        CalledOff = "called_off",
        /// An operator chose the active replica.
        Suspended = "suspended",
    }
}

words! {
    /// What the REST API of a replica's cluster says of it.
    RestState {
        /// No fresh answer.
        Unknown = "unknown",
        /// The database is available.
        Available = "available",
        /// It is not.
        Unavailable = "unavailable",
    }
}

words! {
    /// Which rule changed the active replica.
    SwitchReason {
        /// The first choice after start.
        Startup = "startup",
        /// Nobody listens on the active any more.
        Refused = "refused",
        /// The active stopped answering.
        Silent = "silent",
        /// The active answers with errors (LOADING and its like).
        Failing = "failing",
        /// Own echo lost: its pub/sub no longer works.
        EchoLost = "echo_lost",
        /// The active refuses writes while another accepts them.
        Unwritable = "unwritable",
        /// The active is isolated and the policy says leave.
        Isolated = "isolated",
        /// The active answers far slower than it uses to and the policy says leave.
        Slow = "slow",
        /// Every replica is bad; this one is the best left.
        LastSurvivor = "last_survivor",
        /// Proved recovery of the preferred replica.
        Failback = "failback",
        /// An operator's switch.
        Operator = "operator",
        /// An operator's pin.
        Pin = "pin",
    }
}
