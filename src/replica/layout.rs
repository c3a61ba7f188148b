//! Layouts: which slots each shard of a replica owns and where it is reached, and what several layouts have in common.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use super::{Address, ShardId};
use crate::resp::keys::SLOTS;

/// Marks a slot that no shard owns.
const UNOWNED: u16 = u16::MAX;

/// Slots `first` to `last`, both of them included.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct SlotRange {
    /// The first.
    pub first: u16,
    /// The last; not before the first.
    pub last: u16,
}

/// As servers write it: `0-5460`, or `7` for a single slot.
impl fmt::Display for SlotRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let SlotRange { first, last } = self;
        match first == last {
            true => write!(f, "{first}"),
            false => write!(f, "{first}-{last}"),
        }
    }
}

/// Several ranges, with commas between.
pub fn slot_words(slots: &[SlotRange]) -> impl fmt::Display {
    fmt::from_fn(move |f| {
        for (n, range) in slots.iter().enumerate() {
            if n > 0 {
                f.write_str(",")?;
            }
            write!(f, "{range}")?;
        }
        Ok(())
    })
}

/// One shard of a layout.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shard {
    /// What it owns, in order, without overlap.
    pub slots: Vec<SlotRange>,
    /// The node that serves it; `None`: the replica's own endpoint does.
    pub node: Option<Address>,
}

/// The shards of one replica. A [`ShardId`] is a position in it; shards are in the order of their first slots.
#[derive(Clone, Debug)]
pub struct Layout {
    shards: Arc<[Shard]>,
    /// By slot.
    owners: Arc<[u16]>,
}

impl PartialEq for Layout {
    fn eq(&self, other: &Layout) -> bool {
        self.shards == other.shards
    }
}

impl Eq for Layout {}

impl Layout {
    /// The layout of a replica that is not sharded, or of which nothing is known.
    pub fn single() -> Layout {
        Layout::even(1)
    }

    /// `count` shards (at least one) with equal parts of the slots, all served by the replica's own endpoint.
    pub fn even(count: u16) -> Layout {
        let count = u32::from(count.clamp(1, SLOTS));
        let bound = |n: u32| (n * u32::from(SLOTS) / count) as u16;
        let shards = (0..count).map(|n| Shard {
            slots: vec![SlotRange {
                first: bound(n),
                last: bound(n + 1) - 1,
            }],
            node: None,
        });
        Layout::new(shards.collect())
    }

    /// Puts `shards` in order. Those without slots are left out; a slot that two of them claim belongs to the later one.
    /// Without any slot the layout is a single shard.
    pub fn new(mut shards: Vec<Shard>) -> Layout {
        for shard in &mut shards {
            shard
                .slots
                .retain(|range| range.first <= range.last && range.last < SLOTS);
            shard.slots.sort_unstable();
        }
        shards.retain(|shard| !shard.slots.is_empty());
        shards.sort_by_key(|shard| shard.slots.first().copied());
        if shards.is_empty() {
            return Layout::single();
        }
        let mut owners = vec![UNOWNED; usize::from(SLOTS)];
        for (shard, id) in shards.iter().zip(0_u16..) {
            for range in &shard.slots {
                owners[usize::from(range.first)..=usize::from(range.last)].fill(id);
            }
        }
        Layout {
            shards: shards.into(),
            owners: owners.into(),
        }
    }

    /// How many there are; at least one.
    pub fn len(&self) -> usize {
        self.shards.len()
    }

    /// Never: a layout has a shard at least.
    pub fn is_empty(&self) -> bool {
        self.shards.is_empty()
    }

    /// The shards, by [`ShardId`].
    pub fn shards(&self) -> impl Iterator<Item = (ShardId, &Shard)> {
        (0_u16..).map(ShardId).zip(self.shards.iter())
    }

    /// One of them.
    pub fn shard(&self, id: ShardId) -> Option<&Shard> {
        self.shards.get(usize::from(id.0))
    }

    /// The shard that owns `slot`, if any does.
    #[inline]
    pub fn owner(&self, slot: u16) -> Option<ShardId> {
        let owner = *self.owners.get(usize::from(slot))?;
        (owner != UNOWNED).then_some(ShardId(owner))
    }

    /// Whether its shards are reached at addresses of their own.
    pub fn has_nodes(&self) -> bool {
        self.shards.iter().any(|shard| shard.node.is_some())
    }
}

/// The slots that lie in one shard of each replica: the smallest thing that a heartbeat can prove. Where all layouts are
/// alike, cells are shards; else there is one for each intersection that is not empty.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cell {
    /// By replica: its shard; `None` where no shard of it owns these slots.
    pub shards: Vec<Option<ShardId>>,
    /// Its slots, in order.
    pub slots: Vec<SlotRange>,
}

/// All cells of the replicas' layouts, in the order of their first slots. Slots that nobody owns are in none.
pub fn cells(layouts: &[Layout]) -> Vec<Cell> {
    let mut found: BTreeMap<Vec<Option<ShardId>>, Vec<SlotRange>> = BTreeMap::new();
    let mut slot = 0;
    while slot < SLOTS {
        let shards: Vec<_> = layouts.iter().map(|layout| layout.owner(slot)).collect();
        let same = |slot: &u16| {
            layouts
                .iter()
                .map(|layout| layout.owner(*slot))
                .eq(shards.iter().copied())
        };
        let end = (slot + 1..SLOTS).take_while(same).last().unwrap_or(slot);
        if shards.iter().any(Option::is_some) {
            found.entry(shards).or_default().push(SlotRange {
                first: slot,
                last: end,
            });
        }
        slot = end + 1;
    }
    let mut cells: Vec<Cell> = found
        .into_iter()
        .map(|(shards, slots)| Cell { shards, slots })
        .collect();
    cells.sort_by_key(|cell| cell.slots.first().copied());
    cells
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(first: u16, last: u16) -> SlotRange {
        SlotRange { first, last }
    }

    fn shard(ranges: &[(u16, u16)]) -> Shard {
        Shard {
            slots: ranges.iter().map(|&(first, last)| range(first, last)).collect(),
            node: None,
        }
    }

    #[test]
    fn one_shard_owns_everything() {
        let layout = Layout::single();
        assert_eq!(layout.len(), 1);
        assert_eq!(layout.owner(0), Some(ShardId(0)));
        assert_eq!(layout.owner(SLOTS - 1), Some(ShardId(0)));
        assert_eq!(layout.owner(SLOTS), None);
        assert!(!layout.has_nodes());
    }

    #[test]
    fn shards_are_numbered_by_their_first_slots() {
        let layout = Layout::new(vec![
            shard(&[(9000, 16383)]),
            shard(&[]),
            shard(&[(0, 10), (20, 30)]),
        ]);
        assert_eq!(layout.len(), 2);
        assert_eq!(layout.owner(25), Some(ShardId(0)));
        assert_eq!(layout.owner(15), None);
        assert_eq!(layout.owner(9000), Some(ShardId(1)));
        assert_eq!(Layout::new(vec![shard(&[])]), Layout::single());
        assert_eq!(
            Layout::new(vec![shard(&[(7, 3)]), shard(&[(0, 16384)])]),
            Layout::single()
        );
    }

    #[test]
    fn slots_are_written_as_servers_write_them() {
        let words = slot_words(&[range(0, 5460), range(7000, 7000)]).to_string();
        assert_eq!(words, "0-5460,7000");
    }

    #[test]
    fn alike_layouts_have_their_shards_as_cells() {
        let cells = cells(&[Layout::even(3), Layout::even(3), Layout::even(3)]);
        assert_eq!(cells.len(), 3);
        for (cell, n) in cells.iter().zip(0..) {
            assert_eq!(cell.shards, vec![Some(ShardId(n)); 3]);
        }
    }

    #[test]
    fn six_against_four_are_eight() {
        let cells = cells(&[Layout::even(6), Layout::even(4)]);
        let pairs: Vec<_> = cells
            .iter()
            .map(|cell| (cell.shards[0], cell.shards[1]))
            .collect();
        let pair = |a, b| (Some(ShardId(a)), Some(ShardId(b)));
        let wanted = [(0, 0), (1, 0), (1, 1), (2, 1), (3, 2), (4, 2), (4, 3), (5, 3)];
        assert_eq!(pairs, wanted.map(|(a, b)| pair(a, b)));
    }

    #[test]
    fn scattered_ranges_of_one_pair_are_one_cell() {
        let a = Layout::new(vec![
            shard(&[(0, 99), (200, 299)]),
            shard(&[(100, 199), (300, 16383)]),
        ]);
        let cells = cells(&[a, Layout::single()]);
        assert_eq!(cells.len(), 2);
        assert_eq!(cells[0].slots, [range(0, 99), range(200, 299)]);
    }

    #[test]
    fn slots_that_one_replica_lacks_are_cells_of_the_others() {
        let gap = Layout::new(vec![shard(&[(0, 8000)])]);
        let cells = cells(&[gap.clone(), Layout::single()]);
        assert_eq!(cells.len(), 2);
        assert_eq!(cells[1].shards, [None, Some(ShardId(0))]);
        assert_eq!(super::cells(&[gap.clone(), gap]).len(), 1);
    }

    proptest! {
        /// Against the plain set of pairs of owners, slot by slot.
        #[test]
        fn every_pair_of_shards_with_a_common_slot_has_one_cell(
            a in proptest::collection::vec(0u16..SLOTS, 0..12),
            b in proptest::collection::vec(0u16..SLOTS, 0..12),
        ) {
            let cut = |mut at: Vec<u16>| {
                at.extend([0, SLOTS]);
                at.sort_unstable();
                at.dedup();
                let shards = at.windows(2).map(|w| shard(&[(w[0], w[1] - 1)]));
                Layout::new(shards.collect())
            };
            let (a, b) = (cut(a), cut(b));
            let naive: std::collections::BTreeSet<_> =
                (0..SLOTS).map(|slot| vec![a.owner(slot), b.owner(slot)]).collect();
            let cells = cells(&[a, b]);
            let found: std::collections::BTreeSet<_> = cells.iter().map(|cell| cell.shards.clone()).collect();
            prop_assert_eq!(cells.len(), found.len());
            prop_assert_eq!(naive, found);
            let covered: u32 = cells
                .iter()
                .flat_map(|cell| &cell.slots)
                .map(|range| u32::from(range.last - range.first) + 1)
                .sum();
            prop_assert_eq!(covered, u32::from(SLOTS));
        }
    }
}
