//! SCAN over all shards: one after another, with a cursor that says where the walk stands.
//!
//! The cursor is a number that the application hands back, and nothing else is remembered of a walk:
//!
//! ```text
//!   ((cursor of the shard × number of shards) + shard) × 2¹⁶ + tag of the layout          below 2⁶³
//! ```
//!
//! The tag stands for the layout that the walk began with: its slots and its nodes. With another layout (a slot moved, a
//! shard more, a node replaced, another replica) the walk begins anew, because keys may have moved to a shard that it
//! has passed, and because one node's cursor means nothing to another. So what a server guarantees of SCAN holds: a key
//! that is there from the beginning to the end is returned; others may be, and any may be returned more than once. A
//! change goes unnoticed once in 65 535 times, when both layouts have the same tag.
//!
//! A shard's own cursor must be below 2⁴⁷ ÷ shards. Redis' cursors are below the size of its hash table (with a table for
//! each slot, as newer servers have: below 2¹⁴ times the size of the largest), so that three shards may have 2⁴⁵ keys
//! each, or 2³¹ in one slot. Beyond that the application gets an error, never a wrong walk.

use bytes::{BufMut, Bytes, BytesMut};

use crate::replica::{Layout, ShardId};
use crate::resp::{args, encode_command, error_code, reply_elements, reply_text};

/// Cursors stay below this, so that clients with signed numbers have no trouble.
const MOST: u64 = 1 << 63;

/// Stands for a layout in cursors: equal layouts have equal tags. Never 0, so that no cursor but the last is.
pub(super) fn tag(layout: &Layout) -> u16 {
    // FNV-1a: the same in every process, so that a restart does not disturb walks.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut add = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for (_, shard) in layout.shards() {
        for range in &shard.slots {
            add(&range.first.to_le_bytes());
            add(&range.last.to_le_bytes());
        }
        if let Some(node) = &shard.node {
            add(node.to_string().as_bytes());
        }
        add(&[0xff]);
    }
    (hash % u64::from(u16::MAX)) as u16 + 1
}

/// One call of SCAN on its way: to one shard, in that shard's own words.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Step {
    /// Where it goes.
    pub shard: ShardId,
    /// The request for that shard.
    pub frame: Bytes,
    /// Of the walk's layout.
    shards: u64,
    tag: u16,
}

/// A cursor that no server would take either.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct InvalidCursor;

impl Step {
    /// From the application's request, a whole multibulk frame of SCAN with its cursor.
    pub(super) fn new(frame: &[u8], layout: &Layout, tag: u16) -> Result<Step, InvalidCursor> {
        let shards = layout.len() as u64;
        let mut words: Vec<&[u8]> = args(frame).collect();
        let given = words.get(1).and_then(|word| number(word)).ok_or(InvalidCursor)?;
        let (shard, cursor) = if given & 0xffff == u64::from(tag) {
            let rest = given >> 16;
            (rest % shards, rest / shards)
        } else {
            (0, 0)
        };
        let cursor = cursor.to_string();
        words[1] = cursor.as_bytes();
        Ok(Step {
            shard: ShardId(shard as u16),
            frame: encode_command(&words).into(),
            shards,
            tag,
        })
    }

    /// The shard's whole reply as the application is to see it.
    pub fn reply(&self, reply: &[u8]) -> Bytes {
        if error_code(reply).is_some() {
            return Bytes::copy_from_slice(reply);
        }
        let mut elements = reply_elements(reply);
        let cursor = elements.next().and_then(reply_text).and_then(number);
        let (Some(cursor), Some(found), None) = (cursor, elements.next(), elements.next()) else {
            return Bytes::from_static(b"-ERR the shard's answer to SCAN is none\r\n");
        };
        let Some(next) = self.next(cursor) else {
            return Bytes::from_static(
                b"-ERR the shard's cursor is too large for a walk over all shards\r\n",
            );
        };
        let next = next.to_string();
        let mut out = BytesMut::with_capacity(found.len() + 32);
        out.put_slice(format!("*2\r\n${}\r\n{next}\r\n", next.len()).as_bytes());
        out.put_slice(found);
        out.freeze()
    }

    /// The application's next cursor, behind the shard's own. `None` where it does not fit.
    fn next(&self, cursor: u64) -> Option<u64> {
        let shard = match (cursor, u64::from(self.shard.0)) {
            (0, shard) if shard + 1 == self.shards => return Some(0),
            (0, shard) => shard + 1,
            (_, shard) => shard,
        };
        let place = cursor.checked_mul(self.shards)?.checked_add(shard)?;
        let whole = place.checked_mul(1 << 16)? | u64::from(self.tag);
        (whole < MOST).then_some(whole)
    }
}

fn number(text: &[u8]) -> Option<u64> {
    let digits = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    let text = std::str::from_utf8(text).ok()?;
    digits.then(|| text.parse().ok()).flatten()
}
