//! Reads elsewhere: which sessions read from another replica than the one that takes the writes, and since when each of
//! them may. Pure.
//!
//! Under a route that splits reads off, a session has a fixed place among all sessions, and reads elsewhere once the
//! share has grown past it. If the route says that sessions read their own writes, it does so only while nothing that it
//! wrote is missing there: none of its writes is unanswered, and the other replica has followed past the last answer.

use std::time::Instant;

use super::pipeline::{Pipeline, Seq};
use crate::replica::ReplicaId;
use crate::route::{Epoch, Progress, Route};

/// How reads are shared out, as a worker has it from its routes.
#[derive(Debug)]
pub(crate) struct Split {
    /// The route under which it began. What sessions wrote before that is not known.
    pub since: Epoch,
    /// Sessions read their own writes.
    pub guarded: bool,
    write: ReplicaId,
    /// Shares of the other replicas, in percent.
    shares: Vec<(ReplicaId, u8)>,
    followed: Vec<Option<Instant>>,
}

impl Split {
    /// The split that `route` asks for, which may be the one `before` it gone on with; `None`: all reads go where writes go.
    pub(crate) fn new(route: &Route, before: Option<Split>) -> Option<Split> {
        let elsewhere = |share: &(ReplicaId, u8)| share.0 != route.write && share.1 > 0;
        let shares: Vec<_> = route.read.iter().copied().filter(elsewhere).collect();
        if shares.is_empty() {
            return None;
        }
        let before = before.filter(|before| before.write == route.write && before.guarded);
        let (since, followed) = match before {
            Some(before) => (before.since, before.followed),
            None => (route.epoch, Vec::new()),
        };
        Some(Split {
            since,
            guarded: route.read_your_writes,
            write: route.write,
            shares,
            followed,
        })
    }

    /// Where the session `number` reads; `None`: where it writes. Growing shares of one replica only add sessions.
    pub(crate) fn reader(&self, number: u64) -> Option<ReplicaId> {
        // Multiples of the golden ratio, without their whole parts: they lie evenly however many there are, so that shares are
        // true on every worker, for few sessions and for many.
        const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;
        let place = ((u128::from(number.wrapping_mul(GOLDEN)) * 100) >> 64) as u32;
        let mut end = 0;
        let mut shares = self.shares.iter();
        shares
            .find(|(_, percent)| {
                end += u32::from(*percent);
                place < end
            })
            .map(|(replica, _)| *replica)
    }

    /// Whether some session may read from `replica`.
    pub(crate) fn reads_from(&self, replica: ReplicaId) -> bool {
        self.shares.iter().any(|(other, _)| *other == replica)
    }

    /// The other replicas have come so far. What is said of another write replica is ignored.
    pub(crate) fn progress(&mut self, progress: &Progress) {
        if progress.write == self.write {
            self.followed.clone_from(&progress.followed);
        }
    }

    /// Whether all that was answered by `moment` is on `replica` as well.
    fn has_followed(&self, replica: ReplicaId, moment: Instant) -> bool {
        let followed = self.followed.get(replica.index()).copied().flatten();
        followed.is_some_and(|followed| followed > moment)
    }
}

/// What one session wrote, as far as its reads elsewhere must not overtake it.
///
/// Nothing is noted until the session is to read elsewhere for the first time: at that moment it counts as having
/// written, so that sessions cost nothing while no reads are split off.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Written {
    /// The split for which notes are kept.
    of: Option<Epoch>,
    /// The newest write; it, or an earlier command, is unanswered.
    unanswered: Option<Seq>,
    /// No earlier than when the answers to all other writes were read from their sockets.
    answered: Option<Instant>,
}

impl Written {
    /// `seq`, which may change something, is on its way.
    pub(crate) fn sent(&mut self, seq: Seq, pipeline: &Pipeline) {
        let newest = self
            .unanswered
            .is_none_or(|before| pipeline.before(seq) > pipeline.before(before));
        if self.of.is_some() && newest {
            self.unanswered = Some(seq);
        }
    }

    /// Something was answered. `now` was read after the answer was, which is what makes it safe: had it been read earlier, a
    /// heartbeat sent in between could seem to prove a write that came behind it.
    pub(crate) fn settle(&mut self, pipeline: &Pipeline, now: Instant) {
        if self.unanswered.is_some_and(|seq| pipeline.is_answered(seq)) {
            (self.unanswered, self.answered) = (None, Some(now));
        }
    }

    /// Whether the read `seq` finds on `replica` all that its session wrote.
    pub(crate) fn is_on(
        &mut self,
        replica: ReplicaId,
        split: &Split,
        seq: Seq,
        pipeline: &Pipeline,
        now: Instant,
    ) -> bool {
        if self.of != Some(split.since) {
            self.of = Some(split.since);
            // Any command before this one may have been a write.
            let earlier = pipeline.before(seq) > 0;
            (self.unanswered, self.answered) = (earlier.then(|| seq.previous()), Some(now));
        }
        self.settle(pipeline, now);
        self.unanswered.is_none()
            && self
                .answered
                .is_some_and(|moment| split.has_followed(replica, moment))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::proxy::pipeline::Turn;

    const WRITE: ReplicaId = ReplicaId(0);
    const READ: ReplicaId = ReplicaId(1);

    fn route(epoch: u64, percent: u8) -> Route {
        Route {
            read: vec![(READ, percent), (WRITE, 100 - percent)],
            ..Route::all_to(WRITE, Epoch(epoch))
        }
    }

    fn readers(split: &Split, sessions: std::ops::Range<u64>) -> Vec<u64> {
        sessions.filter(|n| split.reader(*n) == Some(READ)).collect()
    }

    #[test]
    fn shares_are_true_and_only_grow() {
        let mut before: Vec<u64> = Vec::new();
        let mut split = None;
        for percent in [1, 10, 50, 99, 100] {
            split = Split::new(&route(u64::from(percent), percent), split);
            let split = split.as_ref().unwrap();
            assert_eq!(split.since, Epoch(1), "it is one split all along");
            let now = readers(split, 1..1001);
            let wanted = usize::from(percent) * 10;
            assert!(
                now.len().abs_diff(wanted) <= 5,
                "{percent} %: {} of 1000",
                now.len()
            );
            assert!(
                before.iter().all(|n| now.contains(n)),
                "{percent} % leaves somebody out"
            );
            before = now;
        }
        let ten = Split::new(&route(1, 10), None).unwrap();
        for first in [1, 77, 12_345] {
            let some = readers(&ten, first..first + 50).len();
            assert!((4..=6).contains(&some), "{some} of 50");
        }
    }

    #[test]
    fn without_a_share_nothing_is_split() {
        assert!(Split::new(&route(1, 0), None).is_none());
        assert!(Split::new(&Route::all_to(READ, Epoch(1)), None).is_none());
    }

    /// A session's pipeline, and the moments `t(n)` of its life.
    struct Life {
        pipeline: Pipeline,
        written: Written,
        split: Split,
        began: Instant,
    }

    impl Life {
        fn new() -> Life {
            #[expect(clippy::disallowed_methods, reason = "any moment will do")]
            let began = Instant::now();
            Life {
                pipeline: Pipeline::default(),
                written: Written::default(),
                split: Split::new(&route(1, 100), None).unwrap(),
                began,
            }
        }

        fn t(&self, n: u64) -> Instant {
            self.began + Duration::from_secs(n)
        }

        fn followed(&mut self, n: u64) {
            let followed = vec![None, Some(self.t(n))];
            self.split.progress(&Progress {
                write: WRITE,
                followed,
            });
        }

        fn write(&mut self) -> Seq {
            let seq = self.pipeline.push();
            self.written.sent(seq, &self.pipeline);
            seq
        }

        fn answer(&mut self, seq: Seq, n: u64) {
            assert_eq!(self.pipeline.complete(seq, 1), Turn::Now);
            let now = self.t(n);
            self.written.settle(&self.pipeline, now);
        }

        /// Sends a read at `t(n)`, answered at once; whether it goes elsewhere.
        fn reads_elsewhere(&mut self, n: u64) -> bool {
            let seq = self.pipeline.push();
            let now = self.t(n);
            let elsewhere = self.written.is_on(READ, &self.split, seq, &self.pipeline, now);
            if self.pipeline.is_head(seq) {
                self.answer(seq, n);
            }
            elsewhere
        }
    }

    #[test]
    fn everybody_counts_as_having_written_when_a_split_begins() {
        let mut life = Life::new();
        life.followed(5);
        assert!(!life.reads_elsewhere(5));
        life.followed(6);
        assert!(life.reads_elsewhere(6));
        // Another split, of which the session has seen nothing.
        life.split = Split::new(&route(9, 100), None).unwrap();
        life.followed(7);
        assert!(!life.reads_elsewhere(8));
    }

    #[test]
    fn a_command_on_its_way_when_the_split_begins_may_be_a_write() {
        let mut life = Life::new();
        let early = life.write();
        life.followed(9);
        assert!(!life.reads_elsewhere(1));
        life.answer(early, 10);
        assert!(!life.reads_elsewhere(11), "the other replica has come to 9 only");
    }

    #[test]
    fn reads_stay_until_the_last_write_is_there() {
        let mut life = Life::new();
        life.reads_elsewhere(1);
        life.followed(2);
        assert!(life.reads_elsewhere(3));
        let (first, second) = (life.write(), life.write());
        life.followed(9);
        assert!(!life.reads_elsewhere(4), "unanswered");
        life.answer(first, 10);
        assert!(!life.reads_elsewhere(10), "the second is unanswered");
        assert_eq!(life.pipeline.complete(second, 3), Turn::Now);
        let now = life.t(20);
        life.written.settle(&life.pipeline, now);
        life.followed(20);
        assert!(
            !life.reads_elsewhere(30),
            "followed up to that moment, not past it"
        );
        life.followed(21);
        assert!(life.reads_elsewhere(31));
    }

    #[test]
    fn a_write_sent_late_does_not_hide_a_newer_one() {
        let mut life = Life::new();
        life.reads_elsewhere(1);
        let (older, newer) = (life.pipeline.push(), life.write());
        // It was held back, and goes out after the newer one.
        life.written.sent(older, &life.pipeline);
        life.answer(older, 2);
        life.followed(5);
        assert!(!life.reads_elsewhere(5));
        assert_eq!(life.pipeline.complete(newer, 2), Turn::Now);
    }

    #[test]
    fn progress_is_of_one_write_replica() {
        let mut life = Life::new();
        life.reads_elsewhere(1);
        let followed = vec![Some(life.t(9)), Some(life.t(9))];
        life.split.progress(&Progress {
            write: READ,
            followed,
        });
        assert!(!life.reads_elsewhere(2));
        // What has been heard goes on with the split, unless its writes go elsewhere, or were not noted.
        life.followed(9);
        let again = Split::new(&route(2, 50), Some(life.split)).unwrap();
        assert_eq!(again.since, Epoch(1));
        let unguarded = Route {
            read_your_writes: false,
            ..route(3, 50)
        };
        let without = Split::new(&unguarded, Some(again)).unwrap();
        assert_eq!(without.since, Epoch(1));
        assert_eq!(Split::new(&route(4, 50), Some(without)).unwrap().since, Epoch(4));
    }
}
