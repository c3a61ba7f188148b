//! Commands whose answer is not one shard's reply as it comes: parts of a request, a step of SCAN, a search over shards; and
//! those that a node has sent elsewhere.

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;

use super::cluster::{Joiner, Local, Step};
use super::command::Command;
use super::topology::Place;

/// What a command's reply is to the application's own command.
#[derive(Debug)]
pub(crate) enum Part {
    /// Reply `number` of several that become one.
    Of {
        /// All of them.
        joint: Rc<Joint>,
        /// Counted from 0.
        number: usize,
        /// Each shard has the same command, whose keys say nothing: a part cannot go to another shard.
        everywhere: bool,
    },
    /// SCAN in one shard's words.
    Scan {
        /// Makes the application's reply of the shard's.
        step: Step,
        /// The application's own words.
        original: Bytes,
    },
    /// Nil is no answer while there are more shards to ask; so many were asked before.
    Search(usize),
    /// Pulsegate says this in its place, if the node answers it with success.
    Instead(Local),
    /// Pulsegate's own SSUBSCRIBE to this channel.
    Tuned(Bytes),
    /// Pulsegate's own SUNSUBSCRIBE from this channel.
    Ended(Bytes),
    /// This is its answer, once the session is told everything by every node.
    Answered(Bytes),
    /// Asks for a refused script's keys, to learn whether it was the node that refused it.
    Proof(Box<Refused>),
}

/// A script whose answer is a node's refusal, or says the same of its own accord.
#[derive(Debug)]
pub(crate) struct Refused {
    /// The script.
    pub command: Command,
    /// Its bytes.
    pub frame: Bytes,
    /// What was answered.
    pub reply: Bytes,
    /// Where.
    pub place: Place,
}

/// A command that went out in parts.
#[derive(Debug)]
pub(crate) struct Joint {
    joiner: RefCell<Joiner>,
    /// The application's command; gone once it is answered, or begins anew.
    whole: RefCell<Option<Command>>,
}

impl Joint {
    pub(crate) fn new(joiner: Joiner, whole: Command) -> Rc<Joint> {
        Rc::new(Joint {
            joiner: RefCell::new(joiner),
            whole: RefCell::new(Some(whole)),
        })
    }

    /// The reply to one part has come. With the last: the whole command, and the reply to it.
    pub(crate) fn put(&self, number: usize, reply: &[u8]) -> Option<(Command, Bytes)> {
        // What begins anew is owed nothing by the parts that are still on their way.
        self.whole.borrow().as_ref()?;
        let joined = self.joiner.borrow_mut().put(number, reply)?;
        Some((self.whole.take()?, joined))
    }

    /// The whole command, to be sent anew.
    fn again(&self) -> Option<Command> {
        self.whole.take()
    }
}

/// What is sent in the place of a command of which nothing is known to have been applied, whose link was lost.
pub(crate) fn again(mut command: Command, frame: Bytes) -> Again {
    match command.part() {
        None | Some(Part::Instead(_) | Part::Proof(_) | Part::Answered(_)) => Again::This(command, frame),
        // The session asks anew by itself.
        Some(Part::Tuned(_) | Part::Ended(_)) => Again::Nothing,
        Some(Part::Of {
            everywhere: false, ..
        }) => Again::This(command, frame),
        Some(Part::Of { joint, .. }) if command.read => joint
            .again()
            .map_or(Again::Nothing, |whole| Again::This(whole, frame)),
        // Other shards may have carried it out.
        Some(Part::Of { .. }) => Again::Unknown(command),
        Some(Part::Scan { original, .. }) => {
            let original = original.clone();
            command.aside().part = None;
            Again::This(command, original)
        }
        Some(Part::Search(_)) => {
            command.aside().part = None;
            Again::This(command, frame)
        }
    }
}

/// See [`again`].
#[derive(Debug)]
pub(crate) enum Again {
    /// This one.
    This(Command, Bytes),
    /// None: what it was a part of begins anew already.
    Nothing,
    /// None: its outcome is unknown.
    Unknown(Command),
}

/// Where a node has sent a command that it did not carry out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Detour {
    /// The node to ask; `None`: the one that the layout says.
    pub place: Option<Place>,
    /// Only this once: ASKING goes before it.
    pub asking: bool,
    /// How often nodes have sent it elsewhere, or put it off.
    pub times: u16,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::cluster::Join;
    use crate::proxy::pipeline::Seq;

    const FRAME: Bytes = Bytes::from_static(b"*1\r\n$6\r\nDBSIZE\r\n");

    fn parts(read: bool, everywhere: bool) -> (Rc<Joint>, [Command; 2]) {
        let joint = Joint::new(Joiner::new(Join::Sum, 2), Command::plain(Seq::NONE, read));
        let parts = [0, 1].map(|number| {
            let mut command = Command::plain(Seq::NONE, read);
            let joint = Rc::clone(&joint);
            command.aside().part = Some(Part::Of {
                joint,
                number,
                everywhere,
            });
            command
        });
        (joint, parts)
    }

    #[test]
    fn a_keyless_read_begins_anew_once_and_owes_nothing_to_its_old_parts() {
        let (joint, [first, second]) = parts(true, true);
        assert!(joint.put(0, b":1\r\n").is_none());
        match again(second, FRAME) {
            Again::This(whole, frame) => assert!(whole.part().is_none() && frame == FRAME),
            other => panic!("{other:?}"),
        }
        assert!(matches!(again(first, FRAME), Again::Nothing));
        assert!(joint.put(1, b":1\r\n").is_none(), "nobody waits for it");
    }

    #[test]
    fn a_keyless_write_is_not_sent_again() {
        let (_, [first, _]) = parts(false, true);
        assert!(matches!(again(first, FRAME), Again::Unknown(_)));
    }

    #[test]
    fn a_part_with_keys_is_sent_again_by_itself() {
        let (joint, [first, second]) = parts(false, false);
        let Again::This(first, _) = again(first, FRAME) else {
            panic!("it stands by itself")
        };
        assert!(first.part().is_some());
        drop(second);
        assert!(joint.put(1, b":1\r\n").is_none());
        assert_eq!(joint.put(0, b":2\r\n").unwrap().1, ":3\r\n");
    }
}
