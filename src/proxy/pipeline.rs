//! Reply order: which replies of one session may go out now, and which wait for an earlier one.
//!
//! Counts the unanswered commands in request order. Pure: it never sees a socket, a clock or a link. A reply that arrives
//! in order only moves a number; only one that overtook an earlier one is kept.

use std::collections::BTreeMap;

use bytes::Bytes;

/// Position of a command in its session's request order. Wraps; only distances matter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seq(u32);

impl Seq {
    /// For commands that are in no session's pipeline.
    pub const NONE: Seq = Seq(0);

    /// The position `n` further on.
    pub fn plus(self, n: u32) -> Seq {
        Seq(self.0.wrapping_add(n))
    }

    /// The position before it.
    pub fn previous(self) -> Seq {
        Seq(self.0.wrapping_sub(1))
    }
}

/// The unanswered commands of one session.
#[derive(Debug, Default)]
pub struct Pipeline {
    /// The oldest one's position.
    head: u32,
    /// How many there are, answered out of turn or not.
    len: u32,
    /// Replies that came before an earlier one, by distance from the head at which the map was begun: see [`Kept`].
    kept: Option<Box<Kept>>,
}

/// Replies out of turn, in runs. Keys are distances from `base`, so that the wrap of positions does not disturb their order.
#[derive(Debug)]
struct Kept {
    base: u32,
    runs: BTreeMap<u32, (u32, Bytes)>,
}

/// What to do with a reply that has just arrived.
#[derive(PartialEq, Eq, Debug)]
pub enum Turn {
    /// It is the oldest one: send it now, then everything [`Pipeline::pop_ready`] yields.
    Now,
    /// An earlier command has no reply yet: give the bytes to [`Pipeline::keep`].
    Later,
}

impl Pipeline {
    /// Takes a place at the end.
    pub fn push(&mut self) -> Seq {
        let seq = Seq(self.head).plus(self.len);
        self.len += 1;
        seq
    }

    /// The replies to `seq` and the `n - 1` commands after it are complete. On [`Turn::Now`] their places are gone; on
    /// [`Turn::Later`] they still wait.
    pub fn complete(&mut self, seq: Seq, n: u32) -> Turn {
        debug_assert!(
            seq.0.wrapping_sub(self.head).wrapping_add(n) <= self.len,
            "a place is completed once"
        );
        if seq.0 == self.head {
            self.head = self.head.wrapping_add(n);
            self.len = self.len.saturating_sub(n);
            Turn::Now
        } else {
            Turn::Later
        }
    }

    /// Keeps the replies to `seq` and the `n - 1` commands after it, which overtook an earlier one.
    pub fn keep(&mut self, seq: Seq, n: u32, replies: Bytes) {
        let head = self.head;
        let kept = self.kept.get_or_insert_with(|| {
            Box::new(Kept {
                base: head,
                runs: BTreeMap::new(),
            })
        });
        let before = kept.runs.insert(seq.0.wrapping_sub(kept.base), (n, replies));
        debug_assert!(before.is_none(), "a place is filled once");
    }

    /// The next kept replies whose turn has come.
    pub fn pop_ready(&mut self) -> Option<Bytes> {
        let kept = self.kept.as_mut()?;
        let (n, replies) = kept.runs.remove(&self.head.wrapping_sub(kept.base))?;
        if kept.runs.is_empty() {
            self.kept = None;
        }
        self.head = self.head.wrapping_add(n);
        self.len = self.len.saturating_sub(n);
        Some(replies)
    }

    /// The newest one's position, whether it is answered or not.
    pub fn newest(&self) -> Seq {
        Seq(self.head).plus(self.len).previous()
    }

    /// How many unanswered or kept commands are before `seq`, which is not answered.
    pub fn before(&self, seq: Seq) -> u32 {
        seq.0.wrapping_sub(self.head)
    }

    /// Whether `seq`, which was pushed, and all before it are answered.
    pub fn is_answered(&self, seq: Seq) -> bool {
        self.before(seq) >= self.len
    }

    /// Whether `seq` is the oldest unanswered command.
    pub fn is_head(&self, seq: Seq) -> bool {
        self.len > 0 && seq.0 == self.head
    }

    /// Unanswered commands.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// No command waits for its reply.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds the replies `0..n` in the order `arrivals` and returns what went out.
    fn run(arrivals: &[usize]) -> Vec<usize> {
        let mut pipeline = Pipeline {
            head: u32::MAX - 2,
            ..Pipeline::default()
        };
        let seqs: Vec<Seq> = arrivals.iter().map(|_| pipeline.push()).collect();
        let mut out = Vec::new();
        for &i in arrivals {
            match pipeline.complete(seqs[i], 1) {
                Turn::Now => {
                    out.push(i);
                    while let Some(bytes) = pipeline.pop_ready() {
                        out.push(usize::from(bytes[0]));
                    }
                }
                Turn::Later => pipeline.keep(seqs[i], 1, Bytes::from(vec![i as u8])),
            }
        }
        assert!(pipeline.is_empty());
        assert!(pipeline.kept.is_none(), "an idle pipeline keeps no memory");
        out
    }

    proptest! {
        /// Whatever the order of arrival, even across the wrap of the positions, replies go out in request order.
        #[test]
        fn any_arrival_order_goes_out_in_request_order(arrivals in Just((0..60).collect::<Vec<usize>>()).prop_shuffle()) {
            prop_assert_eq!(run(&arrivals), (0..60).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_run_of_replies_in_order_takes_one_step() {
        let mut pipeline = Pipeline::default();
        let seqs: Vec<Seq> = (0..1000).map(|_| pipeline.push()).collect();
        assert_eq!(pipeline.complete(seqs[0], 900), Turn::Now);
        assert_eq!(pipeline.complete(seqs[950], 1), Turn::Later);
        assert!(pipeline.is_head(seqs[900]));
        assert_eq!(pipeline.complete(seqs[900], 50), Turn::Now);
        assert_eq!(pipeline.len(), 50);
    }

    #[test]
    fn runs_out_of_turn_go_out_whole() {
        let mut pipeline = Pipeline::default();
        let seqs: Vec<Seq> = (0..10).map(|_| pipeline.push()).collect();
        assert_eq!(pipeline.complete(seqs[4], 6), Turn::Later);
        pipeline.keep(seqs[4], 6, Bytes::from_static(b"456789"));
        assert_eq!(pipeline.before(seqs[4]), 4);
        assert_eq!(pipeline.complete(seqs[0], 3), Turn::Now);
        assert_eq!(pipeline.pop_ready(), None, "3 is not here");
        assert!(pipeline.is_answered(seqs[2]) && !pipeline.is_answered(seqs[3]));
        assert_eq!(pipeline.complete(seqs[3], 1), Turn::Now);
        assert_eq!(pipeline.pop_ready().as_deref(), Some(&b"456789"[..]));
        assert!(pipeline.is_empty() && pipeline.is_answered(seqs[9]));
    }
}
