//! Which heartbeats go where: the cells of the replicas' layouts, and the channels and keys that follow from them. Pure.
//!
//! Each cell has one channel for every replica with a shard in it. Its hash tag is the smallest number whose slot lies in the cell, so
//! that the message is handled by the cell's shard on every replica; a shard's probe key has a tag of the shard in the
//! same way. A replica that is not sharded has a single cell, with the tag `{0}`.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::message::{Identity, word};
use crate::decision::CellMap;
use crate::replica::{Address, Cell, CellId, Layout, ReplicaId, ShardId, SlotRange, cells};
use crate::resp::keys::{SLOTS, slot};

/// Most cells that heartbeats are sent in. Each piece of evidence has the engine look at every link again: with three
/// replicas a round of heartbeats in 128 cells takes it 25 ms, in 256 some 100 ms, in 1024 two and a half seconds.
const MOST_CELLS: usize = 256;

/// How a replica's heartbeats are published.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Verb {
    /// To whoever listens anywhere in the database.
    Plain,
    /// To those who listen on the shard: in a cluster, PUBLISH would go round by the nodes' own bus and prove nothing of
    /// a shard.
    Sharded,
}

impl Verb {
    pub(super) fn publish(self) -> &'static str {
        match self {
            Verb::Plain => "PUBLISH",
            Verb::Sharded => "SPUBLISH",
        }
    }
}

/// The channel of one replica in one cell.
#[derive(Clone, Debug)]
pub(super) struct Channel {
    pub(super) cell: CellId,
    pub(super) name: Arc<str>,
    /// The newest sequence number used on it.
    seq: Arc<AtomicU64>,
}

impl Channel {
    pub(super) fn next_seq(&self) -> u64 {
        self.seq.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// What names are made of, and every number that was ever given: numbers and ids are never used twice.
#[derive(Debug)]
pub(super) struct Naming {
    prefix: String,
    instance: String,
    /// By replica.
    replicas: Vec<String>,
    /// By channel. One that comes back goes on counting: what is late from before must not look new.
    seqs: HashMap<Arc<str>, Arc<AtomicU64>>,
    next_cell: u32,
}

impl Naming {
    /// `replicas`: their names, by [`ReplicaId`].
    pub(super) fn new<'a>(
        prefix: &str,
        identity: &Identity,
        replicas: impl Iterator<Item = &'a str>,
    ) -> Naming {
        Naming {
            prefix: prefix.to_owned(),
            instance: identity.instance().to_owned(),
            // The id sets apart two names that differ only in characters that `word` replaces.
            replicas: (0_u8..)
                .zip(replicas)
                .map(|(id, name)| format!("{id}-{}", word(name)))
                .collect(),
            seqs: HashMap::new(),
            next_cell: CellId::ONLY.0 + 1,
        }
    }

    fn channel(&mut self, cell: CellId, replica: usize, tag: u32) -> Channel {
        let (prefix, instance) = (&self.prefix, &self.instance);
        let name = format!("{prefix}:hb:{instance}:{}:{{{tag}}}", self.replicas[replica]);
        let name: Arc<str> = name.into();
        let seq = Arc::clone(self.seqs.entry(Arc::clone(&name)).or_default());
        Channel { cell, name, seq }
    }

    fn probe_key(&self, tag: u32) -> String {
        format!("{}:probe:{{{tag}}}:{}", self.prefix, self.instance)
    }
}

/// Layouts that are cut into too many pieces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct TooManyCells(usize);

impl fmt::Display for TooManyCells {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let TooManyCells(cells) = self;
        write!(
            f,
            "the replicas' layouts have {cells} pieces in common, at most {MOST_CELLS} are watched"
        )
    }
}

/// One cell with its id, and the channels in it by replica.
#[derive(Clone, Debug)]
struct Place {
    id: CellId,
    cell: Cell,
    channels: Vec<Option<Channel>>,
}

/// All that follows from one set of layouts.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    layouts: Arc<[Layout]>,
    places: Vec<Place>,
    by_name: HashMap<Arc<str>, (ReplicaId, CellId)>,
    /// By replica and shard.
    probe_keys: Vec<Vec<String>>,
}

impl Plan {
    /// Before anything is known of `layouts`: no heartbeats, no probes of shards.
    pub(super) fn nothing(layouts: Arc<[Layout]>) -> Plan {
        Plan {
            probe_keys: vec![Vec::new(); layouts.len()],
            layouts,
            places: Vec::new(),
            by_name: HashMap::new(),
        }
    }

    /// What follows from `layouts`. Cells that are in this plan too keep their ids.
    pub(super) fn next(&self, layouts: Arc<[Layout]>, naming: &mut Naming) -> Result<Plan, TooManyCells> {
        let cells = cells(&layouts);
        if cells.len() > MOST_CELLS {
            return Err(TooManyCells(cells.len()));
        }
        let slots: Vec<&[SlotRange]> = cells.iter().map(|cell| &cell.slots[..]).collect();
        let numbers = tags(&slots);
        let places: Vec<Place> = cells
            .into_iter()
            .zip(numbers)
            .map(|(cell, tag)| self.place(cell, tag, naming))
            .collect();
        let by_name = places
            .iter()
            .flat_map(|place| (0_u8..).map(ReplicaId).zip(&place.channels))
            .filter_map(|(replica, channel)| {
                let channel = channel.as_ref()?;
                Some((Arc::clone(&channel.name), (replica, channel.cell)))
            })
            .collect();
        let probe_keys = layouts.iter().map(|layout| {
            let slots: Vec<&[SlotRange]> = layout.shards().map(|(_, shard)| &shard.slots[..]).collect();
            tags(&slots)
                .into_iter()
                .map(|tag| naming.probe_key(tag))
                .collect()
        });
        Ok(Plan {
            probe_keys: probe_keys.collect(),
            layouts,
            places,
            by_name,
        })
    }

    fn place(&self, cell: Cell, tag: u32, naming: &mut Naming) -> Place {
        let known = self.places.iter().find(|place| place.cell == cell);
        let unsharded = || {
            Layout::single()
                .shard(ShardId::ONLY)
                .map(|shard| shard.slots.clone())
        };
        let id = match known {
            Some(known) => known.id,
            None if cell.shards.iter().all(|shard| *shard == Some(ShardId::ONLY))
                && Some(&cell.slots) == unsharded().as_ref() =>
            {
                CellId::ONLY
            }
            None => {
                let id = CellId(naming.next_cell);
                naming.next_cell += 1;
                id
            }
        };
        let channels = cell.shards.iter().enumerate();
        let channels = channels.map(|(replica, shard)| shard.map(|_| naming.channel(id, replica, tag)));
        Place {
            id,
            channels: channels.collect(),
            cell,
        }
    }

    /// By [`ReplicaId`].
    pub(super) fn layouts(&self) -> &Arc<[Layout]> {
        &self.layouts
    }

    fn layout(&self, replica: ReplicaId) -> &Layout {
        &self.layouts[replica.index()]
    }

    /// The same for the engine; `None` before there is anything to tell it.
    pub(super) fn map(&self) -> Option<CellMap> {
        (!self.places.is_empty()).then(|| CellMap {
            shards: self
                .layouts
                .iter()
                .map(|layout| u16::try_from(layout.len()).unwrap_or(u16::MAX))
                .collect(),
            cells: self
                .places
                .iter()
                .map(|place| (place.id, place.cell.shards.clone()))
                .collect(),
        })
    }

    /// The shards of `replica` that are reached at `node` (`None`: at the replica's endpoint).
    pub(super) fn shards(&self, replica: ReplicaId, node: Option<&Address>) -> impl Iterator<Item = ShardId> {
        let known = !self.places.is_empty();
        self.layout(replica)
            .shards()
            .filter(move |(_, shard)| known && shard.node.as_ref() == node)
            .map(|(id, _)| id)
    }

    /// Where `replica` is reached; each address once.
    pub(super) fn nodes(&self, replica: ReplicaId) -> Vec<Option<Address>> {
        let mut nodes = Vec::new();
        for (_, shard) in self.layout(replica).shards() {
            if !nodes.contains(&shard.node) {
                nodes.push(shard.node.clone());
            }
        }
        nodes
    }

    /// How `replica` publishes.
    pub(super) fn verb(&self, replica: ReplicaId) -> Verb {
        match self.layout(replica).has_nodes() {
            true => Verb::Sharded,
            false => Verb::Plain,
        }
    }

    /// The channels that `replica` publishes on at `node`.
    pub(super) fn spoken<'a>(
        &'a self,
        replica: ReplicaId,
        node: Option<&'a Address>,
    ) -> impl Iterator<Item = &'a Channel> {
        self.places_at(replica, node)
            .filter_map(move |place| place.channels[replica.index()].as_ref())
    }

    /// What is to be listened for on `replica` at `node`. Where replicas publish in different ways, in both: replication may
    /// carry a message as what it was, or as what its destination would have published.
    pub(super) fn heard<'a>(
        &'a self,
        replica: ReplicaId,
        node: Option<&'a Address>,
    ) -> impl Iterator<Item = (Verb, &'a Arc<str>)> {
        let verbs = [Verb::Plain, Verb::Sharded].into_iter().filter(|verb| {
            (0_u8..)
                .map(ReplicaId)
                .take(self.layouts.len())
                .any(|replica| self.verb(replica) == *verb)
        });
        let verbs: Vec<Verb> = verbs.collect();
        self.places_at(replica, node)
            .flat_map(|place| place.channels.iter().flatten())
            .flat_map(move |channel| verbs.clone().into_iter().map(|verb| (verb, &channel.name)))
    }

    fn places_at<'a>(
        &'a self,
        replica: ReplicaId,
        node: Option<&'a Address>,
    ) -> impl Iterator<Item = &'a Place> {
        self.places.iter().filter(move |place| {
            let shard =
                place.cell.shards[replica.index()].and_then(|shard| self.layout(replica).shard(shard));
            shard.is_some_and(|shard| shard.node.as_ref() == node)
        })
    }

    /// Whose channel `name` is, and in which cell; with the name itself.
    pub(super) fn find(&self, name: &str) -> Option<(ReplicaId, CellId, &Arc<str>)> {
        let (name, &(replica, cell)) = self.by_name.get_key_value(name)?;
        Some((replica, cell, name))
    }

    /// The key that the write probe sets on `shard` of `replica`.
    pub(super) fn probe_key(&self, replica: ReplicaId, shard: ShardId) -> Option<&str> {
        self.probe_keys[replica.index()]
            .get(usize::from(shard.0))
            .map(String::as_str)
    }
}

/// For each of several sets of slots that have none in common: the smallest number whose slot, as text, is in it.
fn tags(sets: &[&[SlotRange]]) -> Vec<u32> {
    let mut owners: Vec<Option<usize>> = vec![None; usize::from(SLOTS)];
    for (set, ranges) in sets.iter().enumerate() {
        for range in *ranges {
            owners[usize::from(range.first)..=usize::from(range.last)].fill(Some(set));
        }
    }
    let mut tags = vec![None; sets.len()];
    let mut missing = sets.iter().filter(|ranges| !ranges.is_empty()).count();
    let mut number = 0_u32;
    // Ends: among the first 300 000 numbers there is one for every slot.
    while missing > 0 {
        if let Some(set) = owners[usize::from(slot(number.to_string().as_bytes()))]
            && tags[set].is_none()
        {
            tags[set] = Some(number);
            missing -= 1;
        }
        number += 1;
    }
    tags.into_iter().map(Option::unwrap_or_default).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::replica::Shard;

    const A: ReplicaId = ReplicaId(0);
    const B: ReplicaId = ReplicaId(1);

    fn naming() -> Naming {
        Naming::new(
            "pg",
            &Identity::named("a{b}*[c] d?"),
            ["eu-{west}", "eu-_west_"].into_iter(),
        )
    }

    fn first(naming: &mut Naming, layouts: &[Layout]) -> Plan {
        Plan::nothing(layouts.into())
            .next(layouts.into(), naming)
            .unwrap()
    }

    fn names(plan: &Plan, replica: ReplicaId) -> Vec<String> {
        plan.spoken(replica, None)
            .map(|channel| channel.name.to_string())
            .collect()
    }

    fn with_nodes(count: u16) -> Layout {
        let even = Layout::even(count);
        let shards = even.shards().map(|(id, shard)| Shard {
            node: Some(Address::Tcp {
                host: "node".to_owned(),
                port: 7000 + id.0,
            }),
            ..shard.clone()
        });
        Layout::new(shards.collect())
    }

    #[test]
    fn a_name_has_one_tag_and_no_pattern() {
        let plan = first(&mut naming(), &[Layout::single(), Layout::single()]);
        let heard: Vec<_> = plan.heard(A, None).collect();
        assert_eq!(heard.len(), 2);
        for (verb, name) in &heard {
            assert_eq!(*verb, Verb::Plain);
            assert_eq!(name.matches('{').count(), 1, "{name}");
            assert!(!name.contains(['*', '?', '[', ' ']), "{name}");
            assert!(name.ends_with(":{0}"), "{name}");
        }
        assert_ne!(heard[0].1, heard[1].1, "names that become alike stay apart");
        assert_eq!(plan.find(heard[1].1), Some((B, CellId::ONLY, heard[1].1)));
        assert_eq!(plan.find("pg:hb:else"), None);
        assert_eq!(names(&plan, A), [heard[0].1.to_string()]);
        assert_eq!(plan.probe_key(A, ShardId::ONLY), Some("pg:probe:{0}:a_b___c__d_"));
        assert_eq!(plan.map(), Some(CellMap::single(2)));
    }

    #[test]
    fn every_channel_and_key_lands_where_it_belongs() {
        let layouts = [Layout::even(6), Layout::even(4)];
        let plan = first(&mut naming(), &layouts);
        let mut pairs = BTreeSet::new();
        for (replica, layout) in [A, B].into_iter().zip(&layouts) {
            let channels: Vec<_> = plan.spoken(replica, None).collect();
            assert_eq!(channels.len(), 8, "one for each intersection");
            for channel in channels {
                let slot = slot(channel.name.as_bytes());
                let map = plan.map().unwrap();
                let (_, shards) = map.cells.iter().find(|(cell, _)| *cell == channel.cell).unwrap();
                assert_eq!(layout.owner(slot), shards[replica.index()]);
                assert_eq!(
                    plan.find(&channel.name),
                    Some((replica, channel.cell, &channel.name))
                );
                pairs.insert((layouts[0].owner(slot), layouts[1].owner(slot)));
            }
            for (shard, _) in layout.shards() {
                let key = plan.probe_key(replica, shard).unwrap();
                assert_eq!(layout.owner(slot(key.as_bytes())), Some(shard), "{key}");
            }
        }
        assert_eq!(pairs.len(), 8);
    }

    #[test]
    fn cells_that_stay_keep_their_ids_and_numbers_go_on() {
        let mut naming = naming();
        let single = first(&mut naming, &[Layout::single(), Layout::single()]);
        let seq = single.spoken(A, None).next().unwrap().next_seq();
        assert_eq!(seq, 1);
        let threes: Arc<[Layout]> = [Layout::even(3), Layout::even(3)].into();
        let three = single.next(Arc::clone(&threes), &mut naming).unwrap();
        let ids = |plan: &Plan| -> Vec<CellId> { plan.spoken(A, None).map(|channel| channel.cell).collect() };
        assert!(!ids(&three).contains(&CellId::ONLY));
        assert_eq!(ids(&three.next(threes, &mut naming).unwrap()), ids(&three));
        // `{0}` is a channel of both.
        let again = three
            .spoken(A, None)
            .find(|channel| channel.name.ends_with("{0}"))
            .unwrap();
        assert_eq!(again.next_seq(), 2);

        // The last third is cut in two: two cells stay.
        let mut shards: Vec<Shard> = Layout::even(3).shards().map(|(_, shard)| shard.clone()).collect();
        let last = shards.pop().unwrap().slots[0];
        for (first, last) in [(last.first, 12_000), (12_001, last.last)] {
            shards.push(Shard {
                slots: vec![SlotRange { first, last }],
                node: None,
            });
        }
        let four = Layout::new(shards);
        let four = three.next([four.clone(), four].into(), &mut naming).unwrap();
        assert_eq!(ids(&four)[..2], ids(&three)[..2]);
        let new: BTreeSet<CellId> = ids(&four).into_iter().chain(ids(&three)).collect();
        assert_eq!(new.len(), 5, "two stay, one goes, two are new");
        let back = four
            .next([Layout::single(), Layout::single()].into(), &mut naming)
            .unwrap();
        assert_eq!(back.map(), Some(CellMap::single(2)));
    }

    #[test]
    fn a_cluster_publishes_on_its_nodes_and_all_listen_for_both() {
        let plan = first(&mut naming(), &[with_nodes(3), Layout::single()]);
        assert_eq!((plan.verb(A), plan.verb(B)), (Verb::Sharded, Verb::Plain));
        assert_eq!(plan.nodes(B), [None]);
        assert_eq!(plan.spoken(A, None).count(), 0);
        assert_eq!(plan.spoken(B, None).count(), 3);
        let nodes = plan.nodes(A);
        assert_eq!(nodes.len(), 3);
        for (n, node) in (0..).zip(&nodes) {
            let node = node.as_ref();
            assert_eq!(plan.shards(A, node).collect::<Vec<_>>(), [ShardId(n)]);
            assert_eq!(plan.spoken(A, node).count(), 1);
            assert_eq!(plan.heard(A, node).count(), 4, "two replicas, two verbs");
        }
        let alike = first(&mut naming(), &[with_nodes(3), with_nodes(3)]);
        let verbs: Vec<Verb> = alike.heard(A, nodes[0].as_ref()).map(|(verb, _)| verb).collect();
        assert_eq!(verbs, [Verb::Sharded, Verb::Sharded]);
    }

    #[test]
    fn nothing_is_said_before_anything_is_known() {
        let plan = Plan::nothing([Layout::single()].into());
        assert_eq!(plan.spoken(A, None).count(), 0);
        assert_eq!(plan.shards(A, None).count(), 0);
        assert_eq!(plan.map(), None);
    }

    #[test]
    fn too_many_pieces_are_refused() {
        let mut naming = naming();
        let plan = first(&mut naming, &[Layout::single(), Layout::single()]);
        let error = plan
            .next([Layout::even(256), Layout::even(255)].into(), &mut naming)
            .unwrap_err();
        assert!(error.to_string().contains("at most 256"), "{error}");
    }

    #[test]
    fn there_is_a_number_for_every_slot() {
        let slots: Vec<[SlotRange; 1]> = (0..SLOTS)
            .map(|slot| {
                [SlotRange {
                    first: slot,
                    last: slot,
                }]
            })
            .collect();
        let sets: Vec<&[SlotRange]> = slots.iter().map(|set| &set[..]).collect();
        for (wanted, tag) in (0..).zip(tags(&sets)) {
            assert_eq!(slot(tag.to_string().as_bytes()), wanted);
            assert!(tag < 300_000, "{tag}");
        }
    }
}
