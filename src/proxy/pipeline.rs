//! Reply order: which replies of one session may go out now, and which wait for an earlier one.
//!
//! Owns one slot per unanswered command, in request order. Pure: it never sees a socket, a clock or a link. The bytes
//! of replies that arrive in order never pass through here; only a reply that overtook an earlier one is kept.

use std::collections::VecDeque;

use bytes::Bytes;

/// Position of a command in its session's request order. Wraps; only distances matter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Seq(u32);

impl Seq {
    /// For commands that are in no session's pipeline.
    pub(crate) const NONE: Seq = Seq(0);
}

/// The slots of one session.
#[derive(Debug, Default)]
pub(crate) struct Pipeline {
    /// Sequence number of `slots[0]`.
    head: u32,
    /// `None`: waits for its reply. `Some`: the reply came before an earlier one.
    slots: VecDeque<Option<Bytes>>,
}

/// What to do with a reply that has just arrived.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Turn {
    /// It is the oldest one: send it now, then everything [`Pipeline::pop_ready`] yields.
    Now,
    /// An earlier command has no reply yet: give the bytes to [`Pipeline::keep`].
    Later,
}

impl Pipeline {
    /// Takes a slot at the end.
    pub(crate) fn push(&mut self) -> Seq {
        let seq = self.head.wrapping_add(self.slots.len() as u32);
        self.slots.push_back(None);
        Seq(seq)
    }

    /// The reply to `seq` is complete. On [`Turn::Now`] its slot is gone; on [`Turn::Later`] it still waits.
    pub(crate) fn complete(&mut self, seq: Seq) -> Turn {
        debug_assert!(
            (seq.0.wrapping_sub(self.head) as usize) < self.slots.len(),
            "a slot is completed once"
        );
        if seq.0 == self.head {
            self.slots.pop_front();
            self.head = self.head.wrapping_add(1);
            Turn::Now
        } else {
            Turn::Later
        }
    }

    /// Keeps a reply that overtook an earlier one.
    pub(crate) fn keep(&mut self, seq: Seq, reply: Bytes) {
        let at = seq.0.wrapping_sub(self.head) as usize;
        if let Some(slot) = self.slots.get_mut(at) {
            debug_assert!(slot.is_none(), "a slot is filled once");
            *slot = Some(reply);
        }
    }

    /// The next kept reply whose turn has come.
    pub(crate) fn pop_ready(&mut self) -> Option<Bytes> {
        if !matches!(self.slots.front(), Some(Some(_))) {
            return None;
        }
        self.head = self.head.wrapping_add(1);
        let ready = self.slots.pop_front().flatten();
        if self.slots.is_empty() {
            self.give_back();
        }
        ready
    }

    /// Whether `seq` is the oldest unanswered command.
    pub(crate) fn is_head(&self, seq: Seq) -> bool {
        seq.0 == self.head
    }

    /// Unanswered commands.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// No command waits for its reply.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// An idle session keeps no more than a short queue's memory.
    pub(crate) fn give_back(&mut self) {
        const KEEP: usize = 16;
        if self.slots.is_empty() && self.slots.capacity() > KEEP {
            self.slots = VecDeque::new();
        }
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
            match pipeline.complete(seqs[i]) {
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
        out
    }

    proptest! {
        /// Whatever the order of arrival, even across the wrap of the sequence numbers, replies go out in request order.
        #[test]
        fn any_arrival_order_goes_out_in_request_order(arrivals in Just((0..60).collect::<Vec<usize>>()).prop_shuffle()) {
            prop_assert_eq!(run(&arrivals), (0..60).collect::<Vec<_>>());
        }
    }

    #[test]
    fn an_idle_pipeline_gives_its_memory_back() {
        let mut pipeline = Pipeline::default();
        let seqs: Vec<Seq> = (0..1000).map(|_| pipeline.push()).collect();
        for seq in seqs {
            assert_eq!(pipeline.complete(seq), Turn::Now);
        }
        pipeline.give_back();
        assert_eq!(pipeline.slots.capacity(), 0);
    }
}
