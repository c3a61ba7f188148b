//! Where the shards of a replica are reached: what servers announce, translated to what can be dialled from here. Pure.

use super::reply::Told;
use crate::replica::{Address, Layout, Shard, Topology, TopologyKind};

/// The layout that `told` means. `asked`: where the answer came from; `endpoint`: the replica's own address.
pub(super) fn layout(told: Vec<Told>, configured: &Topology, asked: &Address, endpoint: &Address) -> Layout {
    let mut shards: Vec<Shard> = told
        .into_iter()
        .map(|told| {
            let host = match (told.host, asked) {
                (Some(host), _) => Some(host),
                (None, Address::Tcp { host, .. }) => Some(host.clone()),
                (None, Address::Unix(_)) => None,
            };
            Shard {
                slots: told.slots,
                node: host.map(|host| {
                    let port = told.port;
                    configured.reachable(&Address::Tcp { host, port }).clone()
                }),
            }
        })
        .collect();
    let apart = match configured.kind {
        TopologyKind::Single => false,
        TopologyKind::Cluster => true,
        // One server, whatever it calls itself, is reached through the endpoint.
        TopologyKind::Auto => {
            let all_at =
                |address: Option<&Address>| shards.iter().all(|shard| shard.node.as_ref() == address);
            !all_at(Some(endpoint)) && !all_at(shards.first().and_then(|shard| shard.node.as_ref()))
        }
    };
    if !apart {
        for shard in &mut shards {
            shard.node = None;
        }
    }
    Layout::new(shards)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::{AddressPair, ShardId, SlotRange};

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp {
            host: host.to_owned(),
            port,
        }
    }

    fn told(hosts: &[(Option<&str>, u16)]) -> Vec<Told> {
        (0..)
            .zip(hosts)
            .map(|(n, &(host, port))| Told {
                slots: vec![SlotRange {
                    first: n * 100,
                    last: n * 100 + 99,
                }],
                host: host.map(str::to_owned),
                port,
            })
            .collect()
    }

    fn nodes(layout: &Layout) -> Vec<Option<Address>> {
        layout.shards().map(|(_, shard)| shard.node.clone()).collect()
    }

    fn configured(kind: TopologyKind) -> Topology {
        Topology {
            kind,
            ..Topology::default()
        }
    }

    #[test]
    fn topology_says_whether_nodes_are_reached_by_themselves() {
        let (asked, endpoint) = (tcp("db", 1), tcp("db", 1));
        let of = |topology, hosts: &[(Option<&str>, u16)]| {
            nodes(&layout(told(hosts), &configured(topology), &asked, &endpoint))
        };
        let apart = [(Some("a"), 1), (Some("b"), 1)];
        assert_eq!(
            of(TopologyKind::Auto, &apart),
            [Some(tcp("a", 1)), Some(tcp("b", 1))]
        );
        assert_eq!(
            of(TopologyKind::Cluster, &apart),
            [Some(tcp("a", 1)), Some(tcp("b", 1))]
        );
        assert_eq!(of(TopologyKind::Single, &apart), [None, None]);
        // All of them the endpoint, or one other address.
        assert_eq!(
            of(TopologyKind::Auto, &[(None, 1), (Some("db"), 1)]),
            [None, None]
        );
        assert_eq!(
            of(TopologyKind::Auto, &[(Some("x"), 1), (Some("x"), 1)]),
            [None, None]
        );
        assert_eq!(
            of(TopologyKind::Auto, &[(Some("x"), 1), (Some("db"), 1)]),
            [Some(tcp("x", 1)), Some(tcp("db", 1))]
        );
        assert_eq!(of(TopologyKind::Cluster, &[(None, 7)]), [Some(tcp("db", 7))]);
    }

    #[test]
    fn shards_keep_their_slots() {
        let layout = layout(
            told(&[(Some("a"), 1), (Some("b"), 2)]),
            &configured(TopologyKind::Auto),
            &tcp("a", 1),
            &tcp("a", 1),
        );
        assert_eq!(layout.owner(150), Some(ShardId(1)));
        assert_eq!(layout.owner(200), None);
    }

    #[test]
    fn a_unix_socket_has_no_host_to_lend() {
        let asked = Address::Unix("/run/redis.sock".into());
        let of = |topology| nodes(&layout(told(&[(None, 1)]), &configured(topology), &asked, &asked));
        assert_eq!(of(TopologyKind::Auto), [None]);
        assert_eq!(of(TopologyKind::Cluster), [None]);
    }

    #[test]
    fn announced_addresses_are_mapped_that_of_the_asked_host_too() {
        let pair = |announced: (&str, u16), reachable: (&str, u16)| AddressPair {
            announced: tcp(announced.0, announced.1),
            reachable: tcp(reachable.0, reachable.1),
        };
        let configured = Topology {
            kind: TopologyKind::Cluster,
            address_map: vec![
                pair(("10.0.0.1", 7001), ("gate", 1)),
                pair(("db", 7002), ("gate", 2)),
            ],
            shards: None,
        };
        let told = told(&[(Some("10.0.0.1"), 7001), (None, 7002), (Some("10.0.0.1"), 7003)]);
        let layout = layout(told, &configured, &tcp("db", 1), &tcp("db", 1));
        let reached = [tcp("gate", 1), tcp("gate", 2), tcp("10.0.0.1", 7003)].map(Some);
        assert_eq!(nodes(&layout), reached);
    }
}
