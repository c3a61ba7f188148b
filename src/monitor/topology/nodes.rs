//! Where the shards of a replica are reached: what servers announce, translated to what can be dialled from here. Pure.

use super::reply::Told;
use super::{Sharding, Topology};
use crate::replica::{Address, Layout, Shard};

/// The layout that `told` means. `asked`: where the answer came from; `endpoint`: the replica's own address.
pub(super) fn layout(told: Vec<Told>, sharding: &Sharding, asked: &Address, endpoint: &Address) -> Layout {
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
                node: host.map(|host| mapped(host, told.port, &sharding.address_map)),
            }
        })
        .collect();
    let apart = match sharding.topology {
        Topology::Single => false,
        Topology::Cluster => true,
        // One server, whatever it calls itself, is reached through the endpoint.
        Topology::Auto => {
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

/// The first entry for `host:port`, else the first for `host`, says where that is; without a port it is the same one.
fn mapped(host: String, port: u16, map: &[(String, String)]) -> Address {
    let announced = Address::Tcp { host, port };
    let Address::Tcp { host, .. } = &announced else {
        return announced;
    };
    let whole = announced.to_string();
    let entry = map
        .iter()
        .find(|(from, _)| *from == whole)
        .or_else(|| map.iter().find(|(from, _)| from == host));
    match entry {
        Some((_, to)) => parse(to, port),
        None => announced,
    }
}

/// `host`, `host:port`, `[v6]:port`, or a bare IPv6 address.
fn parse(text: &str, default: u16) -> Address {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => match port.parse() {
            Ok(port) => (host, port),
            Err(_) => (text, default),
        },
        _ => (text, default),
    };
    let host = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    Address::Tcp {
        host: host.to_owned(),
        port,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::{ShardId, SlotRange};

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

    fn sharding(topology: Topology, map: &[(&str, &str)]) -> Sharding {
        Sharding {
            topology,
            shards: None,
            address_map: map
                .iter()
                .map(|(from, to)| ((*from).to_owned(), (*to).to_owned()))
                .collect(),
        }
    }

    #[test]
    fn topology_says_whether_nodes_are_reached_by_themselves() {
        let (asked, endpoint) = (tcp("db", 1), tcp("db", 1));
        let of = |topology, hosts: &[(Option<&str>, u16)]| {
            nodes(&layout(told(hosts), &sharding(topology, &[]), &asked, &endpoint))
        };
        let apart = [(Some("a"), 1), (Some("b"), 1)];
        assert_eq!(of(Topology::Auto, &apart), [Some(tcp("a", 1)), Some(tcp("b", 1))]);
        assert_eq!(
            of(Topology::Cluster, &apart),
            [Some(tcp("a", 1)), Some(tcp("b", 1))]
        );
        assert_eq!(of(Topology::Single, &apart), [None, None]);
        // All of them the endpoint, or one other address.
        assert_eq!(of(Topology::Auto, &[(None, 1), (Some("db"), 1)]), [None, None]);
        assert_eq!(
            of(Topology::Auto, &[(Some("x"), 1), (Some("x"), 1)]),
            [None, None]
        );
        assert_eq!(
            of(Topology::Auto, &[(Some("x"), 1), (Some("db"), 1)]),
            [Some(tcp("x", 1)), Some(tcp("db", 1))]
        );
        assert_eq!(of(Topology::Cluster, &[(None, 7)]), [Some(tcp("db", 7))]);
    }

    #[test]
    fn shards_keep_their_slots() {
        let layout = layout(
            told(&[(Some("a"), 1), (Some("b"), 2)]),
            &sharding(Topology::Auto, &[]),
            &tcp("a", 1),
            &tcp("a", 1),
        );
        assert_eq!(layout.owner(150), Some(ShardId(1)));
        assert_eq!(layout.owner(200), None);
    }

    #[test]
    fn a_unix_socket_has_no_host_to_lend() {
        let asked = Address::Unix("/run/redis.sock".into());
        let of = |topology| {
            nodes(&layout(
                told(&[(None, 1)]),
                &sharding(topology, &[]),
                &asked,
                &asked,
            ))
        };
        assert_eq!(of(Topology::Auto), [None]);
        assert_eq!(of(Topology::Cluster), [None]);
    }

    #[test]
    fn announced_addresses_are_mapped() {
        let map = [
            ("10.0.0.1:7001", "gate:1"),
            ("10.0.0.1", "other"),
            ("10.0.0.2:7002", "[fd00::1]:9"),
            ("10.0.0.3", "fd00::2"),
            ("db", "front:80"),
        ];
        let of = |host: Option<&str>, port| {
            let sharding = sharding(Topology::Cluster, &map);
            let layout = layout(told(&[(host, port)]), &sharding, &tcp("db", 1), &tcp("db", 1));
            nodes(&layout)[0].clone().unwrap()
        };
        assert_eq!(of(Some("10.0.0.1"), 7001), tcp("gate", 1));
        assert_eq!(of(Some("10.0.0.1"), 7003), tcp("other", 7003));
        assert_eq!(of(Some("10.0.0.2"), 7002), tcp("fd00::1", 9));
        assert_eq!(of(Some("10.0.0.2"), 1), tcp("10.0.0.2", 1));
        assert_eq!(of(Some("10.0.0.3"), 5), tcp("fd00::2", 5));
        assert_eq!(of(None, 1), tcp("front", 80));
    }
}
