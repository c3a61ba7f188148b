//! Hash slots, and how regions divide them among their shards. Pure.
//!
//! Regions may be divided differently. The **cells** of a rig are the pieces that no region's division cuts:
//!
//! ```text
//! local   │ shard 0   │ shard 1   │ shard 2   │
//! remote  │ shard 0         │ shard 1         │
//! cells   │     0     │  1  │  2  │     3     │
//! ```
//!
//! Within a cell each region is one server, so that a cell replicates as a rig of single servers does.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// Slots of a database.
pub const SLOTS: u16 = 16384;

/// Slots from `first` to `last`, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotRange {
    /// The lowest slot.
    pub first: u16,
    /// The highest slot; not below `first`.
    pub last: u16,
}

impl SlotRange {
    /// Every slot.
    pub const ALL: Self = Self {
        first: 0,
        last: SLOTS - 1,
    };

    /// Whether the slot is in it.
    #[must_use]
    pub fn contains(self, slot: u16) -> bool {
        (self.first..=self.last).contains(&slot)
    }

    /// Whether all of `other` is in it.
    #[must_use]
    pub fn covers(self, other: Self) -> bool {
        self.contains(other.first) && self.contains(other.last)
    }

    /// Whether the two have a slot in common.
    #[must_use]
    pub fn meets(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

/// As [`Display`](fmt::Display) writes it.
impl FromStr for SlotRange {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |text: &str| text.parse::<u16>().ok().filter(|&slot| slot < SLOTS);
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last => Ok(Self { first, last }),
            _ => anyhow::bail!("not slots: {text:?}; such as 0-5460, or 7"),
        }
    }
}

/// As Redis writes it: `0-5460`, or `7` for a single slot.
impl fmt::Display for SlotRange {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(out, "{}", self.first)
        } else {
            write!(out, "{}-{}", self.first, self.last)
        }
    }
}

impl Serialize for SlotRange {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}

/// The slot of a key or channel: CRC16 (XMODEM) of its hash tag, or of all of it. Source: Redis cluster specification.
#[must_use]
pub fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|&byte| byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|&byte| byte == b'}')?;
        (close > 0).then(|| &rest[..close])
    });
    let crc = tag.unwrap_or(key).iter().fold(0_u16, |crc, &byte| {
        (0..8).fold(crc ^ u16::from(byte) << 8, |crc, _| {
            if crc & 0x8000 == 0 {
                crc << 1
            } else {
                crc << 1 ^ 0x1021
            }
        })
    });
    crc % SLOTS
}

/// The shortest number that hashes to the slot: a tag that places a key there.
pub(crate) fn tag(wanted: u16) -> String {
    (0_u32..)
        .map(|n| n.to_string())
        .find(|tag| slot(tag.as_bytes()) == wanted)
        .unwrap_or_default()
}

/// All slots in as many ranges of like size.
pub(crate) fn divide(shards: usize) -> Vec<SlotRange> {
    let bound = |at: usize| u16::try_from(at * usize::from(SLOTS) / shards).unwrap_or(SLOTS);
    (0..shards)
        .map(|shard| SlotRange {
            first: bound(shard),
            last: bound(shard + 1) - 1,
        })
        .collect()
}

/// Which shard owns which slots.
#[derive(Clone, Debug)]
pub(crate) struct Owners(Vec<(SlotRange, usize)>);

impl Owners {
    /// As many shards with like shares.
    pub(crate) fn even(shards: usize) -> Self {
        Self(divide(shards).into_iter().zip(0..).collect())
    }

    pub(crate) fn of(&self, wanted: u16) -> usize {
        let found = self.0.iter().find(|(range, _)| range.contains(wanted));
        found.map_or(0, |&(_, shard)| shard)
    }

    pub(crate) fn ranges(&self) -> impl Iterator<Item = &SlotRange> {
        self.0.iter().map(|(range, _)| range)
    }

    /// Lets a range begin at this slot, whoever owns it.
    pub(crate) fn cut(&mut self, at: u16) {
        let found = self
            .0
            .iter()
            .position(|(range, _)| range.contains(at) && range.first < at);
        if let Some(place) = found {
            let (range, shard) = self.0[place];
            self.0[place].0.last = at - 1;
            self.0
                .insert(place + 1, (SlotRange { first: at, ..range }, shard));
        }
    }

    /// Makes a shard the owner of slots at whose ends the ranges are cut.
    pub(crate) fn assign(&mut self, slots: SlotRange, new: usize) {
        for (range, shard) in &mut self.0 {
            if slots.covers(*range) {
                *shard = new;
            }
        }
    }

    /// The shard's slots.
    pub(crate) fn slots(&self, wanted: usize) -> Vec<SlotRange> {
        let own = self.0.iter().filter(|&&(_, shard)| shard == wanted);
        own.map(|&(range, _)| range).collect()
    }
}

/// The cells of these divisions.
pub(crate) fn cells<'a>(ranges: impl IntoIterator<Item = &'a SlotRange>) -> Vec<SlotRange> {
    let mut starts: Vec<u16> = ranges.into_iter().map(|range| range.first).collect();
    starts.sort_unstable();
    starts.dedup();
    let ends = starts.iter().skip(1).copied().chain([SLOTS]);
    starts
        .iter()
        .zip(ends)
        .map(|(&first, next)| SlotRange {
            first,
            last: next - 1,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(slot(b"123456789"), 0x31C3);
        assert_eq!(slot(b"foo"), 12182);
        assert_eq!(slot(b"{user1000}.following"), slot(b"user1000"));
        assert_eq!(slot(b"foo{{bar}}zap"), slot(b"{bar"));
        assert_eq!(slot(b"foo{}{bar}"), 8363, "an empty tag is no tag");
        for wanted in [0, 1, 8191, SLOTS - 1] {
            assert_eq!(slot(tag(wanted).as_bytes()), wanted);
        }
    }

    #[test]
    fn ranges_are_read_as_they_are_written() {
        for text in ["0-5460", "7", "16383"] {
            assert_eq!(text.parse::<SlotRange>().expect("slots").to_string(), text);
        }
        for wrong in ["", "5-4", "0-16384", "a", "1-2-3", "-1"] {
            let error = wrong.parse::<SlotRange>().expect_err("no slots");
            assert!(error.to_string().contains(wrong), "{error}");
        }
    }

    #[test]
    fn slots_change_hands_as_whole_ranges() {
        let mut owners = Owners::even(2);
        let moved = SlotRange {
            first: 100,
            last: 199,
        };
        owners.cut(moved.first);
        owners.cut(moved.last + 1);
        owners.cut(0);
        owners.cut(SLOTS);
        assert_eq!(owners.ranges().count(), 4);
        assert_eq!(owners.of(150), 0, "a cut moves nothing");
        owners.assign(moved, 1);
        assert_eq!([99, 100, 199, 200].map(|slot| owners.of(slot)), [0, 1, 1, 0]);
        assert_eq!(owners.slots(1)[0], moved);
    }

    #[test]
    fn divisions_are_whole_and_cells_are_cut_by_none() {
        for shards in 1..20 {
            let ranges = divide(shards);
            assert_eq!(cells(&ranges), ranges, "each range is a cell");
            assert_eq!(
                (ranges[0].first, ranges[shards - 1].last),
                (0, SLOTS - 1),
                "{shards} shards"
            );
        }
        let (six, four) = (divide(6), divide(4));
        let found = cells(six.iter().chain(&four));
        assert_eq!(found.len(), 8);
        for cell in found {
            for division in [&six, &four] {
                assert_eq!(division.iter().filter(|range| range.meets(cell)).count(), 1);
            }
        }
    }
}
