//! The layouts of all replicas as a worker has them, and a number for each node, so that a command's way to its link
//! takes no comparison of names. Pure.

use std::collections::HashMap;

use super::cluster::Router;
use crate::replica::{Address, Layout, ReplicaId, ShardId};
use crate::resp::Request;
use crate::resp::command::CommandInfo;

/// A node of one replica, for as long as the worker lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct NodeId(u16);

impl NodeId {
    /// Whatever answers at the replica's own endpoint.
    pub(crate) const ENDPOINT: NodeId = NodeId(0);

    /// For tables by node.
    pub(crate) fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Where a link leads.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Place {
    /// The replica.
    pub replica: ReplicaId,
    /// Which node of it.
    pub node: NodeId,
}

impl Place {
    /// The replica's endpoint.
    pub(crate) const fn endpoint(replica: ReplicaId) -> Place {
        Place {
            replica,
            node: NodeId::ENDPOINT,
        }
    }
}

/// Most nodes of one replica that are told apart. A cluster has a thousand at most; nodes that were replaced count, too.
const NODES: usize = 4096;

/// See the module's documentation.
#[derive(Debug)]
pub(crate) struct Topology {
    replicas: Vec<OfReplica>,
    /// Counts what may change where a command goes.
    version: u32,
}

#[derive(Debug, Default)]
struct OfReplica {
    /// `None`: the endpoint routes everything.
    router: Option<Router>,
    /// By shard.
    nodes: Vec<NodeId>,
    /// By node. The endpoint's is the replica's own.
    addresses: Vec<Option<Address>>,
    /// What nodes have said of slots since the layout was read.
    moved: HashMap<u16, NodeId>,
}

impl Topology {
    /// Nothing is known of the shards of so many replicas.
    pub(crate) fn new(replicas: usize) -> Topology {
        let of_replica = || OfReplica {
            nodes: vec![NodeId::ENDPOINT],
            addresses: vec![None],
            ..OfReplica::default()
        };
        Topology {
            replicas: (0..replicas).map(|_| of_replica()).collect(),
            version: 0,
        }
    }

    /// Changes with whatever may change a command's place.
    pub(crate) fn version(&self) -> u32 {
        self.version
    }

    /// Takes new layouts, by replica. `split`: requests may be split.
    pub(crate) fn apply(&mut self, layouts: &[Layout], split: bool) {
        for (of, layout) in self.replicas.iter_mut().zip(layouts) {
            let known = of.router.as_ref().map(Router::layout);
            // A layout that is read again takes the place of what was heard since.
            if of.moved.is_empty() && known.map_or(!layout.has_nodes(), |known| known == layout) {
                continue;
            }
            of.moved.clear();
            let nodes = layout.shards().map(|(_, shard)| match &shard.node {
                None => NodeId::ENDPOINT,
                Some(address) => of.addresses.number(address).unwrap_or(NodeId::ENDPOINT),
            });
            of.nodes = nodes.collect();
            of.router = layout.has_nodes().then(|| Router::new(layout.clone(), split));
            self.version += 1;
        }
    }

    /// What plans requests to `replica`; `None`: its endpoint routes them.
    pub(crate) fn router(&self, replica: ReplicaId) -> Option<&Router> {
        self.replicas[replica.index()].router.as_ref()
    }

    /// Where a shard of `replica` is.
    pub(crate) fn shard(&self, replica: ReplicaId, shard: ShardId) -> Place {
        let nodes = &self.replicas[replica.index()].nodes;
        let node = nodes.get(usize::from(shard.0)).copied();
        Place {
            replica,
            node: node.unwrap_or(NodeId::ENDPOINT),
        }
    }

    /// Where a request with one key goes, found sooner than by a plan; `None`: ask for that.
    #[inline]
    pub(crate) fn at_once(
        &self,
        replica: ReplicaId,
        info: Option<&'static CommandInfo>,
        frame: &[u8],
        request: &Request,
    ) -> Option<Place> {
        let of = &self.replicas[replica.index()];
        let Some(router) = &of.router else {
            return Some(Place::endpoint(replica));
        };
        if !of.moved.is_empty() {
            return None;
        }
        let shard = router.shard_at_once(info?, frame, request)?;
        let node = *of.nodes.get(usize::from(shard.0))?;
        Some(Place { replica, node })
    }

    /// The nodes that serve `replica`, the first shard's first; at least one.
    pub(crate) fn nodes(&self, replica: ReplicaId) -> &[NodeId] {
        &self.replicas[replica.index()].nodes
    }

    /// The places of those.
    pub(crate) fn places(&self, replica: ReplicaId) -> Vec<Place> {
        let nodes = self.nodes(replica).iter();
        nodes.map(|node| Place { replica, node: *node }).collect()
    }

    /// The address of a node; `None`: the replica's own.
    pub(crate) fn address(&self, place: Place) -> Option<Address> {
        let addresses = &self.replicas[place.replica.index()].addresses;
        addresses.get(place.node.index()).cloned().flatten()
    }

    /// The node of `replica` at an address. `None`: there are too many.
    pub(crate) fn node(&mut self, replica: ReplicaId, address: &Address) -> Option<Place> {
        let node = self.replicas[replica.index()].addresses.number(address)?;
        Some(Place { replica, node })
    }

    /// A node has said that a slot is at `place` from now on.
    pub(crate) fn moved(&mut self, slot: u16, place: Place) {
        let moved = &mut self.replicas[place.replica.index()].moved;
        let known = moved.insert(slot, place.node);
        self.version += u32::from(known != Some(place.node));
    }

    /// Whether anything is served there, as far as is known.
    pub(crate) fn serves(&self, place: Place) -> bool {
        let of = &self.replicas[place.replica.index()];
        of.nodes.contains(&place.node) || of.moved.values().any(|node| *node == place.node)
    }

    /// Where nodes have said that a slot is, since the layout was read. Asked for only while there is anything of the kind.
    pub(crate) fn moved_to(&self, replica: ReplicaId, slot: impl FnOnce() -> Option<u16>) -> Option<Place> {
        let moved = &self.replicas[replica.index()].moved;
        if moved.is_empty() {
            return None;
        }
        let node = *moved.get(&slot()?)?;
        Some(Place { replica, node })
    }
}

/// Numbers for addresses.
trait Numbers {
    /// The node at this address, known or new.
    fn number(&mut self, address: &Address) -> Option<NodeId>;
}

impl Numbers for Vec<Option<Address>> {
    fn number(&mut self, address: &Address) -> Option<NodeId> {
        let known = self.iter().position(|other| other.as_ref() == Some(address));
        let place = match known {
            Some(place) => place,
            None if self.len() < NODES => {
                self.push(Some(address.clone()));
                self.len() - 1
            }
            None => return None,
        };
        Some(NodeId(place as u16))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::Shard;

    const ONE: ReplicaId = ReplicaId(1);

    fn address(host: &str) -> Address {
        Address::Tcp {
            host: host.to_owned(),
            port: 6379,
        }
    }

    fn layout(hosts: &[&str]) -> Layout {
        let even = Layout::even(hosts.len() as u16);
        let shards = even.shards().zip(hosts).map(|((_, shard), host)| Shard {
            slots: shard.slots.clone(),
            node: Some(address(host)),
        });
        Layout::new(shards.collect())
    }

    #[test]
    fn nodes_keep_their_numbers_through_changes() {
        let mut topology = Topology::new(2);
        assert!(topology.router(ONE).is_none());
        assert_eq!(topology.shard(ONE, ShardId(0)), Place::endpoint(ONE));
        topology.apply(&[Layout::single(), layout(&["a", "b"])], true);
        let version = topology.version();
        assert!(version > 0 && topology.router(ReplicaId(0)).is_none());
        let b = topology.shard(ONE, ShardId(1));
        assert_eq!(topology.address(b), Some(address("b")));
        topology.apply(&[Layout::single(), layout(&["a", "b"])], true);
        assert_eq!(topology.version(), version, "nothing has changed");
        topology.apply(&[Layout::single(), layout(&["b", "c"])], true);
        assert_eq!(topology.shard(ONE, ShardId(0)), b);
        assert_eq!(topology.nodes(ONE).len(), 2);
        topology.apply(&[Layout::single(), Layout::single()], true);
        assert!(topology.router(ONE).is_none());
        assert_eq!(topology.nodes(ONE), [NodeId::ENDPOINT]);
        assert_eq!(topology.version(), version + 2);
    }

    #[test]
    fn what_a_node_says_holds_until_the_layout_is_read_again() {
        let mut topology = Topology::new(2);
        let read = [Layout::single(), layout(&["a", "b"])];
        topology.apply(&read, true);
        assert_eq!(
            topology.moved_to(ONE, || panic!("nothing has moved, so no slot is looked for")),
            None
        );
        let c = topology.node(ONE, &address("c")).unwrap();
        topology.moved(7, c);
        assert_eq!(topology.moved_to(ONE, || Some(7)), Some(c));
        assert_eq!(topology.moved_to(ONE, || Some(8)), None);
        let version = topology.version();
        topology.apply(&read, true);
        assert_eq!(topology.moved_to(ONE, || Some(7)), None);
        assert!(topology.version() > version);
    }

    #[test]
    fn nodes_are_bounded() {
        let mut topology = Topology::new(2);
        let given = (0..2 * NODES)
            .filter(|n| topology.node(ONE, &address(&n.to_string())).is_some())
            .count();
        assert_eq!(given, NODES - 1);
        assert!(topology.node(ONE, &address("0")).is_some(), "known already");
    }
}
