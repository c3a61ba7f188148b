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

/// Replies out of turn. Keys are distances from `base`, so that the wrap of positions does not disturb their order.
#[derive(Debug)]
struct Kept {
    base: u32,
    replies: BTreeMap<u32, Bytes>,
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

    /// Keeps a reply that overtook an earlier one.
    pub fn keep(&mut self, seq: Seq, reply: Bytes) {
        let head = self.head;
        let kept = self.kept.get_or_insert_with(|| {
            Box::new(Kept {
                base: head,
                replies: BTreeMap::new(),
            })
        });
        let before = kept.replies.insert(seq.0.wrapping_sub(kept.base), reply);
        debug_assert!(before.is_none(), "a place is filled once");
    }

    /// The next kept reply whose turn has come.
    pub fn pop_ready(&mut self) -> Option<Bytes> {
        let kept = self.kept.as_mut()?;
        let reply = kept.replies.remove(&self.head.wrapping_sub(kept.base))?;
        if kept.replies.is_empty() {
            self.kept = None;
        }
        self.head = self.head.wrapping_add(1);
        self.len = self.len.saturating_sub(1);
        Some(reply)
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
                Turn::Later => pipeline.keep(seqs[i], Bytes::from(vec![i as u8])),
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
}
