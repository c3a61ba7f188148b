//! The route: the one value that control and data plane share, and the feedback that comes the other way.
//!
//! Control publishes a [`Route`] through one `watch` channel; each worker applies the newest it sees. A worker
//! tells control what happens on its links, and when it has let go of an old route, with [`Feedback`].

use std::time::Instant;

use crate::replica::ReplicaId;

/// Counts changes of the route; grows by one at each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Epoch(pub u64);

/// Where commands go now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Route {
    /// Grows by one at each change, never shrinks.
    pub epoch: Epoch,
    /// The active replica: takes the writes, and the reads unless `read` says otherwise.
    pub write: ReplicaId,
    /// Which replica reads go to, in percent of sessions; sums to 100. One entry, `write` itself, unless reads are
    /// split off.
    pub read: Vec<(ReplicaId, u8)>,
    /// A session reads elsewhere only what it has not overtaken: its reads stay with `write` until the [`Progress`] of
    /// the other replica has passed its last write.
    pub read_your_writes: bool,
    /// Commands wait (see `proxy::hold`): a planned move is draining, or an operator said so.
    pub holding: bool,
    /// `write` was left because it failed: what was sent to any other replica will not be answered, so links to
    /// it are condemned at once. When false, answers already on their way are waited for.
    pub abandon_others: bool,
}

impl Route {
    /// The route that sends everything to `write`.
    pub fn all_to(write: ReplicaId, epoch: Epoch) -> Route {
        Route {
            epoch,
            write,
            read: vec![(write, 100)],
            read_your_writes: true,
            holding: false,
            abandon_others: false,
        }
    }
}

/// How far the other replicas have followed the one that takes the writes; proved by heartbeats.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Progress {
    /// The replica that is followed. Under a route with another `write` this says nothing.
    pub write: ReplicaId,
    /// By replica: every write that `write` had answered before this moment is there too, on every shard. `None`: that is
    /// not known of any moment.
    pub followed: Vec<Option<Instant>>,
}

/// What a worker tells control.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Feedback {
    /// With the route of `epoch` holding, worker `worker` has no sent command without an answer any more.
    Drained {
        /// Position of the worker.
        worker: usize,
        /// The holding route's epoch.
        epoch: Epoch,
    },
    /// The layout of `replica` may have changed: a node of it redirected a command, or was lost. At most ten times a second.
    Moved {
        /// The replica.
        replica: ReplicaId,
    },
    /// Something about a link to `replica`. Rate-limited by the sender for each kind.
    Link {
        /// The link's replica.
        replica: ReplicaId,
        /// What was seen.
        seen: LinkEvidence,
    },
}

/// What the data plane sees of a replica by using it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum LinkEvidence {
    /// A connect was refused, or the address did not resolve: nobody listens there.
    Refused,
    /// A connect ran out of time.
    ConnectTimeout,
    /// A link in use was reset or closed by the replica.
    Broken,
    /// A sent command had no answer within the response timeout, and nothing else arrived on its link either.
    ResponseTimeout,
    /// The replica rejected the link's own handshake (AUTH, HELLO, SELECT).
    Rejected,
    /// An application was answered that the replica, or a shard of it, cannot serve now: `LOADING`, `MASTERDOWN`,
    /// `CLUSTERDOWN`.
    Unready,
    /// An application's command was refused since the replica takes no writes: `READONLY`, `OOM`, `NOREPLICAS`, `MISCONF`.
    Unwritable,
    /// An answer arrived: the replica was alive just now. Sent at most once a heartbeat interval.
    Alive,
}
