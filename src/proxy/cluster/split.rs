//! Requests with keys of several slots, in parts of one slot each.
//!
//! A part has all keys of one slot, as a node takes no request with keys of two slots, even where both are its own; and
//! not one key each, so that what can be atomic still is. Parts are in the order of their shards, so that those of one
//! shard can be sent in one go. At most 16 384 of them, and some 30 bytes more for each than its keys and values have.

use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::join::{Join, Joiner};
use crate::replica::{Layout, ShardId};
use crate::resp::command::{CommandInfo, RequestPolicy, ResponsePolicy};
use crate::resp::{args, encode::encode_command_into, slot};

/// A request in parts.
#[derive(Clone, Debug)]
pub struct Split {
    /// The parts, in the order that `joiner` counts them in.
    pub parts: Vec<Part>,
    /// What makes one reply of theirs.
    pub joiner: Joiner,
}

/// A request of its own, with all keys of one slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Part {
    /// The slot of its keys.
    pub slot: u16,
    /// Its owner.
    pub shard: ShardId,
    /// The whole frame. All parts share one buffer.
    pub frame: Bytes,
}

/// Why a request cannot be split after all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Unsplit {
    /// A slot of it has no owner.
    Unowned,
    /// A value is missing: a server says that the number of arguments is wrong.
    Uneven,
}

/// Commands that may be split: those that a server calls so, except for what must be applied wholly or not at all.
pub fn may_split(info: &CommandInfo) -> bool {
    info.request_policy == RequestPolicy::MultiShard && !matches!(info.name, "msetnx" | "msetex")
}

struct Item<'a> {
    shard: ShardId,
    slot: u16,
    /// Its place among the keys of the request.
    place: u32,
    key: &'a [u8],
    /// MSET.
    value: Option<&'a [u8]>,
}

impl Split {
    /// Takes a whole multibulk request of a command that [`may_split`] apart.
    pub(super) fn new(info: &CommandInfo, frame: &[u8], layout: &Layout) -> Result<Split, Unsplit> {
        let mut words = args(frame);
        let name = words.next().unwrap_or_default();
        let has_values = info.name == "mset";
        let mut items = Vec::with_capacity(words.left().min(frame.len() / 5));
        while let Some(key) = words.next() {
            let value = has_values
                .then(|| words.next().ok_or(Unsplit::Uneven))
                .transpose()?;
            let slot = slot(key);
            items.push(Item {
                shard: layout.owner(slot).ok_or(Unsplit::Unowned)?,
                slot,
                place: items.len() as u32,
                key,
                value,
            });
        }
        // Stable: of two values for one key the later one counts.
        items.sort_by_key(|item| (item.shard, item.slot));
        let (heads, frames) = frames(name, &items);
        let parts: Vec<Part> = heads
            .into_iter()
            .map(|(slot, shard, range)| Part {
                slot,
                shard,
                frame: frames.slice(range),
            })
            .collect();
        let joiner = match info.response_policy {
            ResponsePolicy::AggSum => Joiner::new(Join::Sum, parts.len()),
            ResponsePolicy::AllSucceeded => Joiner::new(Join::AllSucceeded, parts.len()),
            _ => Joiner::placing(items.iter().map(|item| item.place).collect(), parts.len()),
        };
        Ok(Split { parts, joiner })
    }
}

type Head = (u16, ShardId, Range<usize>);

fn frames(name: &[u8], items: &[Item<'_>]) -> (Vec<Head>, Bytes) {
    let payload: usize = items
        .iter()
        .map(|item| item.key.len() + item.value.map_or(0, <[u8]>::len) + 32)
        .sum();
    let (mut heads, mut out) = (Vec::new(), BytesMut::with_capacity(payload));
    let mut words = Vec::new();
    for of_slot in items.chunk_by(|a, b| a.slot == b.slot) {
        words.clear();
        words.push(name);
        for item in of_slot {
            words.push(item.key);
            words.extend(item.value);
        }
        let start = out.len();
        encode_command_into(&mut out, &words);
        heads.push((of_slot[0].slot, of_slot[0].shard, start..out.len()));
    }
    (heads, out.freeze())
}
