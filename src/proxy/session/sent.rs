//! How many commands of a session are unanswered, and on which replicas: what decides whether the next one would overtake
//! any of them.

use crate::replica::ReplicaId;

/// Counts of unanswered commands.
#[derive(Debug)]
pub(super) struct Sent {
    by_replica: Box<[u32]>,
    all: u32,
}

impl Sent {
    pub(super) fn new(replicas: usize) -> Sent {
        Sent {
            by_replica: vec![0; replicas].into(),
            all: 0,
        }
    }

    /// On all replicas together.
    pub(super) fn all(&self) -> u32 {
        self.all
    }

    /// On all replicas but this one.
    pub(super) fn but_on(&self, replica: ReplicaId) -> u32 {
        self.all - self.by_replica[replica.index()]
    }

    /// Replicas with such commands.
    pub(super) fn replicas(&self) -> impl Iterator<Item = ReplicaId> {
        let counts = (0_u8..).map(ReplicaId).zip(&self.by_replica);
        counts.filter(|(_, n)| **n > 0).map(|(replica, _)| replica)
    }

    /// One more on `replica`.
    pub(super) fn add(&mut self, replica: ReplicaId) {
        self.by_replica[replica.index()] += 1;
        self.all += 1;
    }

    /// `n` of those on `replica` are answered, or lost.
    pub(super) fn take(&mut self, replica: ReplicaId, n: u32) {
        self.by_replica[replica.index()] -= n;
        self.all -= n;
    }
}
