//! How a replica is sharded, as far as the configuration says.

use super::Address;

/// How the shards of one replica are found and reached.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Topology {
    /// Who routes to its shards.
    pub kind: TopologyKind,
    /// Nodes that are reached elsewhere than the cluster announces, each address once.
    pub address_map: Vec<AddressPair>,
    /// How many equal shards an endpoint has that routes by itself; `None`: it is asked.
    pub shards: Option<u16>,
}

/// Who routes to a replica's shards.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum TopologyKind {
    /// What the replica says of itself decides.
    #[default]
    Auto,
    /// Its endpoint: one connection reaches every slot.
    Single,
    /// Its clients: each shard has nodes of its own (OSS Cluster API).
    Cluster,
}

/// One node's two addresses, both TCP.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AddressPair {
    /// As the cluster announces it.
    pub announced: Address,
    /// Where Pulsegate reaches it.
    pub reachable: Address,
}

impl Topology {
    /// Where the node is reached that the cluster announces at `address`.
    pub fn reachable<'a>(&'a self, address: &'a Address) -> &'a Address {
        self.address_map
            .iter()
            .find(|pair| pair.announced == *address)
            .map_or(address, |pair| &pair.reachable)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mapped_addresses_are_reached_elsewhere() {
        let tcp = |host: &str, port| Address::Tcp {
            host: host.to_owned(),
            port,
        };
        let topology = Topology {
            address_map: vec![AddressPair {
                announced: tcp("10.0.0.5", 6379),
                reachable: tcp("db1.example", 7000),
            }],
            ..Topology::default()
        };
        let reached = |host, port| topology.reachable(&tcp(host, port)).to_string();
        assert_eq!(reached("10.0.0.5", 6379), "db1.example:7000");
        assert_eq!(reached("10.0.0.5", 6380), "10.0.0.5:6380");
    }
}
