//! Where one request goes.
//!
//! Decides as a node of the cluster would that owned all slots: it looks at the keys of commands whose number of
//! arguments is right, the first key's slot must have an owner, and all others must be in the same slot; unless the
//! request may be split (`cluster.split`). Source: `processCommand` (`server.c`) and `getNodeByQuery` (`cluster.c`) of
//! Redis 7.0.

use bytes::Bytes;

use super::answers::Local;
use super::join::Join;
use super::policy::{Policy, policy};
use super::scan::{self, Step};
use super::split::{Split, Unsplit, may_split};
use crate::replica::{Layout, ShardId};
use crate::resp::command::{CommandInfo, KeySet};
use crate::resp::keys::SLOTS;
use crate::resp::{Request, args, routing_keys, slot};

/// What a node says of keys in different slots.
pub const CROSSSLOT: &[u8] = b"-CROSSSLOT Keys in request don't hash to the same slot\r\n";
/// What a node says of a slot that no node owns.
pub const CLUSTERDOWN: &[u8] = b"-CLUSTERDOWN Hash slot not served\r\n";

/// Where one request goes, and what becomes of the answers.
#[derive(Clone, Debug)]
pub enum Plan {
    /// Unchanged to this shard; its answer is the answer.
    One(ShardId),
    /// Unchanged to any shard, the one at hand (a session's own connection, if it has one).
    Any,
    /// Unchanged to every shard; the answers are joined, part *n* being shard *n*.
    All(Join),
    /// In parts.
    Split(Box<Split>),
    /// SCAN: in the words of one shard; [`Step::reply`] makes the application's answer of the shard's.
    Scan(Step),
    /// Unchanged to any shard; while the answer is nil, to the next, until every shard has been asked.
    UntilFound,
    /// Answered by Pulsegate: [`Local::answer`].
    Local(Local),
    /// Goes nowhere; this is the answer, a whole error reply.
    Refused(Bytes),
}

/// The slots of a request's keys (or sharded channels).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Slots {
    /// No key.
    None,
    /// All keys are in this one.
    One(u16),
    /// Not all are.
    Several {
        /// The slot of the first key.
        first: u16,
    },
}

/// The slots of the request in `frame` (multibulk). One pass, no copy. `info` is the subcommand's row where the command is
/// a container.
#[inline]
pub fn slots(info: &CommandInfo, frame: &[u8], request: &Request) -> Slots {
    match info.keys {
        KeySet::None => Slots::None,
        KeySet::First if request.args > 1 => Slots::One(slot(request.first(frame))),
        _ => slots_of_all(info, frame),
    }
}

fn slots_of_all(info: &CommandInfo, frame: &[u8]) -> Slots {
    let mut all = routing_keys(info, frame)
        .filter_map(|range| frame.get(range))
        .map(slot);
    match all.next() {
        None => Slots::None,
        Some(first) if all.all(|other| other == first) => Slots::One(first),
        Some(first) => Slots::Several { first },
    }
}

/// Plans the requests for one replica.
#[derive(Clone, Debug)]
pub struct Router {
    layout: Layout,
    split: bool,
    shape: Shape,
    tag: u16,
}

/// What can be said of a layout once for all requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Shape {
    /// The replica's endpoint routes by itself.
    Endpoint,
    /// One node has all slots.
    Whole,
    /// Everything else.
    Sharded,
}

impl Router {
    /// For a replica with this layout; `split`: whether requests may be split (`cluster.split`).
    pub fn new(layout: Layout, split: bool) -> Router {
        let whole = layout.len() == 1 && (0..SLOTS).all(|slot| layout.owner(slot).is_some());
        let shape = match () {
            () if !layout.has_nodes() => Shape::Endpoint,
            () if whole => Shape::Whole,
            () => Shape::Sharded,
        };
        Router {
            tag: scan::tag(&layout),
            layout,
            split,
            shape,
        }
    }

    /// The layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Where the multibulk request in `frame` goes. `info` is the subcommand's row where the command is a container, `None`
    /// for a command that the table does not know.
    #[inline]
    pub fn plan(&self, info: Option<&'static CommandInfo>, frame: &[u8], request: &Request) -> Plan {
        match (self.shape, info) {
            (Shape::Endpoint, _) | (Shape::Whole, None) => Plan::One(ShardId::ONLY),
            (Shape::Whole, Some(info)) if matches!(info.keys, KeySet::First) => Plan::One(ShardId::ONLY),
            (_, Some(info)) if matches!(info.keys, KeySet::First) && request.args > 1 => {
                self.by_slot(slot(request.first(frame)))
            }
            (_, Some(info)) => self.by_all_keys(info, frame, request),
            (Shape::Sharded, None) => self.of_unknown(frame, request),
        }
    }

    /// The shard of a request with one key where most commands have it: what [`plan`](Self::plan) says of most requests,
    /// found sooner. `None`: ask that.
    #[inline]
    pub fn shard_at_once(&self, info: &CommandInfo, frame: &[u8], request: &Request) -> Option<ShardId> {
        match (self.shape, info.keys) {
            (Shape::Endpoint, _) | (Shape::Whole, KeySet::First) => Some(ShardId::ONLY),
            (Shape::Sharded, KeySet::First) if request.args > 1 => {
                self.layout.owner(slot(request.first(frame)))
            }
            _ => None,
        }
    }

    #[inline]
    fn by_slot(&self, slot: u16) -> Plan {
        match self.layout.owner(slot) {
            Some(shard) => Plan::One(shard),
            None => Plan::Refused(Bytes::from_static(CLUSTERDOWN)),
        }
    }

    /// A module's command, most likely: most have their key first. If not, a node says where it belongs.
    fn of_unknown(&self, frame: &[u8], request: &Request) -> Plan {
        let guess = (request.args > 1).then(|| self.layout.owner(slot(request.first(frame))));
        guess.flatten().map_or(Plan::Any, Plan::One)
    }

    fn by_all_keys(&self, info: &'static CommandInfo, frame: &[u8], request: &Request) -> Plan {
        if !info.has_arity(request.args) {
            // Any shard refuses it, before it looks at keys.
            return self.any();
        }
        match slots(info, frame, request) {
            Slots::None => self.without_keys(info, frame),
            Slots::One(slot) => self.by_slot(slot),
            Slots::Several { first } if self.layout.owner(first).is_none() => {
                Plan::Refused(Bytes::from_static(CLUSTERDOWN))
            }
            Slots::Several { .. } if self.split && may_split(info) => {
                match Split::new(info, frame, &self.layout) {
                    Ok(split) => Plan::Split(Box::new(split)),
                    Err(Unsplit::Unowned) => Plan::Refused(Bytes::from_static(CLUSTERDOWN)),
                    Err(Unsplit::Uneven) => Plan::Refused(wrong_number(info)),
                }
            }
            Slots::Several { .. } => Plan::Refused(Bytes::from_static(CROSSSLOT)),
        }
    }

    fn without_keys(&self, info: &'static CommandInfo, frame: &[u8]) -> Plan {
        let one_shard = self.layout.len() == 1;
        match policy(info) {
            Policy::Any | Policy::Session => self.any(),
            Policy::First => Plan::One(ShardId::ONLY),
            Policy::All(_) | Policy::UntilFound if one_shard => Plan::One(ShardId::ONLY),
            Policy::All(join) => Plan::All(join),
            Policy::UntilFound => Plan::UntilFound,
            Policy::Scan => match Step::new(frame, &self.layout, self.tag) {
                Ok(step) => Plan::Scan(step),
                Err(scan::InvalidCursor) => Plan::Refused(Bytes::from_static(b"-ERR invalid cursor\r\n")),
            },
            Policy::OwnerOfSlot => self.by_slot_in_words(frame),
            Policy::Local(local) => Plan::Local(local),
            Policy::Refused => Plan::Refused(not_forwarded(info)),
        }
    }

    /// CLUSTER COUNTKEYSINSLOT and GETKEYSINSLOT: their first argument is a slot. Any shard refuses what is none.
    fn by_slot_in_words(&self, frame: &[u8]) -> Plan {
        let word = args(frame).nth(2).and_then(|word| std::str::from_utf8(word).ok());
        match word.and_then(|word| word.parse().ok()) {
            Some(slot) if slot < SLOTS => self.by_slot(slot),
            _ => self.any(),
        }
    }

    fn any(&self) -> Plan {
        if self.layout.len() == 1 {
            Plan::One(ShardId::ONLY)
        } else {
            Plan::Any
        }
    }
}

/// As a server words it.
fn wrong_number(info: &CommandInfo) -> Bytes {
    format!("-ERR wrong number of arguments for '{}' command\r\n", info.name).into()
}

fn not_forwarded(info: &CommandInfo) -> Bytes {
    let name = info.name.replace('|', " ").to_uppercase();
    format!("-ERR {name} is not forwarded to a sharded replica: it concerns one node, say it there\r\n")
        .into()
}
