//! What a server says of its shards, read from the replies of CLUSTER SHARDS and CLUSTER SLOTS. Pure.
//!
//! Anything that does not add up is refused as a whole, in words: a layout that is wrong in part would have heartbeats
//! published where they prove nothing.

use std::collections::HashMap;

use redis::Value;

use crate::replica::{SlotRange, slot_words};
use crate::resp::keys::SLOTS;

/// Most shards that are believed of one replica.
pub(super) const MOST_SHARDS: usize = 1024;

/// A shard as the server tells it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Told {
    pub(super) slots: Vec<SlotRange>,
    /// The host as announced; `None`: the one that was asked.
    pub(super) host: Option<String>,
    pub(super) port: u16,
}

/// Reads a reply of CLUSTER SHARDS: lists of names and values, or maps. `tls`: whether connections will speak TLS.
pub(super) fn shards(reply: &Value, tls: bool) -> Result<Vec<Told>, String> {
    let mut told = Vec::new();
    for shard in list(reply, "the reply")? {
        let fields = fields(shard, "a shard")?;
        let slots = pairs(list(field(&fields, "slots")?, "slots")?)?;
        if slots.is_empty() {
            // Replicas that were failed over, or nodes that wait for slots.
            continue;
        }
        let nodes = list(field(&fields, "nodes")?, "nodes")?;
        let node =
            owner(nodes)?.ok_or_else(|| format!("nobody takes writes for slots {}", slot_words(&slots)))?;
        told.push(Told {
            slots,
            host: ["hostname", "endpoint", "ip"]
                .iter()
                .find_map(|name| node.get(name).and_then(|value| host(value))),
            port: port_of(&node, tls)?,
        });
    }
    checked(told)
}

type Fields<'a> = HashMap<&'a str, &'a Value>;

/// The node that takes a shard's writes; one that is online before any other.
fn owner(nodes: &[Value]) -> Result<Option<Fields<'_>>, String> {
    let mut found = None;
    for node in nodes {
        let node = fields(node, "a node")?;
        let says = |name: &str, word: &str| node.get(name).and_then(|value| text(value)) == Some(word);
        if says("role", "master") {
            if says("health", "online") {
                return Ok(Some(node));
            }
            found.get_or_insert(node);
        }
    }
    Ok(found)
}

fn port_of(node: &Fields<'_>, tls: bool) -> Result<u16, String> {
    let names = if tls {
        ["tls-port", "port"]
    } else {
        ["port", "tls-port"]
    };
    let given = names.iter().find_map(|name| node.get(name));
    port(given.ok_or("a node has no port")?)
}

/// Reads a reply of CLUSTER SLOTS.
pub(super) fn slots(reply: &Value) -> Result<Vec<Told>, String> {
    let mut told: Vec<(Option<&str>, Told)> = Vec::new();
    for entry in list(reply, "the reply")? {
        let [first, last, owner, ..] = list(entry, "a range")? else {
            return Err("a range without first, last and node".to_owned());
        };
        let [address, node_port, rest @ ..] = list(owner, "a node")? else {
            return Err("a node without address and port".to_owned());
        };
        let id = rest.first().and_then(text);
        let named = match rest.get(1) {
            Some(more) => fields(more, "what a node has besides")?
                .get("hostname")
                .and_then(|value| host(value)),
            None => None,
        };
        let shard = Told {
            slots: vec![range(first, last)?],
            host: named.or_else(|| host(address)),
            port: port(node_port)?,
        };
        let same = |(other_id, other): &&mut (Option<&str>, Told)| match id {
            Some(_) => *other_id == id,
            None => (&other.host, other.port) == (&shard.host, shard.port),
        };
        match told.iter_mut().find(same) {
            Some((_, known)) => known.slots.extend(shard.slots),
            None => told.push((id, shard)),
        }
        if told.len() > MOST_SHARDS {
            break;
        }
    }
    checked(told.into_iter().map(|(_, shard)| shard).collect())
}

/// A whole layout must have shards, not too many, and no slot twice.
fn checked(told: Vec<Told>) -> Result<Vec<Told>, String> {
    if told.is_empty() {
        return Err("no shard owns a slot".to_owned());
    }
    if told.len() > MOST_SHARDS {
        return Err(format!(
            "{} shards or more; at most {MOST_SHARDS} are believed",
            told.len()
        ));
    }
    let mut all: Vec<SlotRange> = told
        .iter()
        .flat_map(|shard| shard.slots.iter().copied())
        .collect();
    all.sort_unstable();
    match all.windows(2).find(|pair| pair[1].first <= pair[0].last) {
        Some(pair) => Err(format!("slots {} and {} overlap", pair[0], pair[1])),
        None => Ok(told),
    }
}

fn pairs(numbers: &[Value]) -> Result<Vec<SlotRange>, String> {
    let (pairs, rest) = numbers.as_chunks::<2>();
    if !rest.is_empty() {
        return Err("slots are not in pairs".to_owned());
    }
    pairs.iter().map(|[first, last]| range(first, last)).collect()
}

fn range(first: &Value, last: &Value) -> Result<SlotRange, String> {
    let slot = |value: &Value| {
        let number = number(value).and_then(|number| u16::try_from(number).ok());
        number
            .filter(|slot| *slot < SLOTS)
            .ok_or_else(|| format!("{} is no slot", shown(value)))
    };
    let (first, last) = (slot(first)?, slot(last)?);
    if first > last {
        return Err(format!("slots {first}-{last} end before they begin"));
    }
    Ok(SlotRange { first, last })
}

fn port(value: &Value) -> Result<u16, String> {
    number(value)
        .and_then(|number| u16::try_from(number).ok())
        .filter(|port| *port != 0)
        .ok_or_else(|| format!("{} is no port", shown(value)))
}

/// A host that says something: servers announce none, an empty one or `?` for "where you asked me".
fn host(value: &Value) -> Option<String> {
    text(value)
        .filter(|host| !host.is_empty() && *host != "?")
        .map(str::to_owned)
}

fn list<'a>(value: &'a Value, what: &str) -> Result<&'a [Value], String> {
    match value {
        Value::Array(items) | Value::Set(items) => Ok(items),
        _ => Err(format!("{what} is no list but {}", shown(value))),
    }
}

/// A map, or a list of names and values in turn.
fn fields<'a>(value: &'a Value, what: &str) -> Result<Fields<'a>, String> {
    let pairs = value
        .as_map_iter()
        .ok_or_else(|| format!("{what} is no list of names and values but {}", shown(value)))?;
    Ok(pairs
        .filter_map(|(name, value)| Some((text(name)?, value)))
        .collect())
}

fn field<'a>(fields: &Fields<'a>, name: &str) -> Result<&'a Value, String> {
    fields.get(name).copied().ok_or_else(|| format!("no {name}"))
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text),
        _ => None,
    }
}

fn number(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        _ => text(value)?.parse().ok(),
    }
}

/// A value for an error's words: short, whatever the server sent.
fn shown(value: &Value) -> String {
    const LONGEST: usize = 60;
    let mut words = match text(value) {
        Some(text) => format!("{text:?}"),
        None => match value {
            Value::Int(number) => number.to_string(),
            Value::Nil => "nil".to_owned(),
            Value::Array(items) => format!("a list of {}", items.len()),
            _ => "something else".to_owned(),
        },
    };
    if let Some((cut, _)) = words.char_indices().nth(LONGEST) {
        words.truncate(cut);
        words.push('…');
    }
    words
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn int(number: i64) -> Value {
        Value::Int(number)
    }

    fn array<const N: usize>(items: [Value; N]) -> Value {
        Value::Array(items.into())
    }

    fn node(fields: &[(&str, Value)]) -> Value {
        Value::Array(
            fields
                .iter()
                .flat_map(|(name, value)| [bulk(name), value.clone()])
                .collect(),
        )
    }

    fn shard(slots: &[i64], nodes: Vec<Value>) -> Value {
        let slots = slots.iter().map(|&slot| int(slot)).collect();
        array([
            bulk("slots"),
            Value::Array(slots),
            bulk("nodes"),
            Value::Array(nodes),
        ])
    }

    fn owner_at(ip: &str, port: i64) -> Value {
        node(&[
            ("id", bulk("abc")),
            ("port", int(port)),
            ("ip", bulk(ip)),
            ("endpoint", bulk(ip)),
            ("role", bulk("master")),
            ("health", bulk("online")),
        ])
    }

    fn told(slots: &[(u16, u16)], host: Option<&str>, port: u16) -> Told {
        Told {
            slots: slots
                .iter()
                .map(|&(first, last)| SlotRange { first, last })
                .collect(),
            host: host.map(str::to_owned),
            port,
        }
    }

    #[test]
    fn shards_are_read_from_lists_and_from_maps() {
        let copy = node(&[
            ("port", int(7009)),
            ("ip", bulk("10.0.0.9")),
            ("role", bulk("replica")),
            ("health", bulk("online")),
        ]);
        let flat = array([
            shard(&[0, 99, 200, 299], vec![copy, owner_at("10.0.0.1", 7001)]),
            shard(&[], vec![owner_at("10.0.0.7", 7007)]),
            shard(&[100, 199, 300, 16383], vec![owner_at("10.0.0.2", 7002)]),
        ]);
        let wanted = vec![
            told(&[(0, 99), (200, 299)], Some("10.0.0.1"), 7001),
            told(&[(100, 199), (300, 16383)], Some("10.0.0.2"), 7002),
        ];
        assert_eq!(shards(&flat, false), Ok(wanted.clone()));

        fn as_maps(value: Value) -> Value {
            match value {
                Value::Array(items) if items.first().and_then(text).is_some() && items.len() % 2 == 0 => {
                    let items: Vec<Value> = items.into_iter().map(as_maps).collect();
                    Value::Map(
                        items
                            .as_chunks::<2>()
                            .0
                            .iter()
                            .cloned()
                            .map(|[k, v]| (k, v))
                            .collect(),
                    )
                }
                Value::Array(items) => Value::Array(items.into_iter().map(as_maps).collect()),
                other => other,
            }
        }
        assert_eq!(shards(&as_maps(flat), false), Ok(wanted));
    }

    #[test]
    fn a_node_is_chosen_by_role_and_health_and_called_by_its_name() {
        let one = |fields: &[(&str, Value)]| {
            let mut fields = fields.to_vec();
            fields.extend([("role", bulk("master")), ("health", bulk("online"))]);
            array([shard(&[0, 16383], vec![node(&fields)])])
        };
        let all = [
            ("port", int(6379)),
            ("tls-port", int(6380)),
            ("ip", bulk("10.0.0.1")),
            ("endpoint", bulk("10.9.9.9")),
            ("hostname", bulk("one.example")),
        ];
        let of = |reply: Value, tls: bool| {
            let mut told = shards(&reply, tls).unwrap();
            let told = told.pop().unwrap();
            (told.host, told.port)
        };
        let named = |host: &str, port| (Some(host.to_owned()), port);
        assert_eq!(of(one(&all), false), named("one.example", 6379));
        assert_eq!(of(one(&all), true), named("one.example", 6380));
        assert_eq!(of(one(&all[..4]), false), named("10.9.9.9", 6379));
        assert_eq!(of(one(&all[..3]), false), named("10.0.0.1", 6379));
        // Only a TLS port, only a plain one.
        assert_eq!(of(one(&all[1..3]), false), named("10.0.0.1", 6380));
        assert_eq!(
            of(one(&[all[0].clone(), all[2].clone()]), true),
            named("10.0.0.1", 6379)
        );
        for nobody in [bulk(""), bulk("?"), Value::Nil] {
            let fields = [
                ("port", int(1)),
                ("ip", nobody.clone()),
                ("hostname", nobody.clone()),
            ];
            assert_eq!(of(one(&fields), false), (None, 1), "{nobody:?}");
        }

        let failed = node(&[
            ("port", int(1)),
            ("ip", bulk("old")),
            ("role", bulk("master")),
            ("health", bulk("fail")),
        ]);
        let both = array([shard(&[0, 9], vec![failed.clone(), owner_at("new", 2)])]);
        assert_eq!(of(both, false), named("new", 2));
        assert_eq!(of(array([shard(&[0, 9], vec![failed])]), false), named("old", 1));
    }

    #[test]
    fn slots_are_grouped_by_node() {
        let range = |first, last, node: Value| array([int(first), int(last), node]);
        let with_id = |ip: &str, port, id: &str| array([bulk(ip), int(port), bulk(id), array([])]);
        let reply = array([
            range(0, 99, with_id("a", 1, "x")),
            range(100, 199, with_id("b", 2, "y")),
            range(200, 299, with_id("a", 1, "x")),
        ]);
        let wanted = vec![
            told(&[(0, 99), (200, 299)], Some("a"), 1),
            told(&[(100, 199)], Some("b"), 2),
        ];
        assert_eq!(slots(&reply), Ok(wanted.clone()));
        // The oldest servers give no ids.
        let old = |ip: &str, port| array([bulk(ip), int(port)]);
        let reply = array([
            range(0, 99, old("a", 1)),
            range(100, 199, old("b", 2)),
            range(200, 299, old("a", 1)),
        ]);
        assert_eq!(slots(&reply), Ok(wanted));
        let more = array([bulk("hostname"), bulk("one.example")]);
        let reply = array([range(0, 16383, array([Value::Nil, int(7), bulk("x"), more]))]);
        assert_eq!(
            slots(&reply),
            Ok(vec![told(&[(0, 16383)], Some("one.example"), 7)])
        );
        let reply = array([range(0, 16383, array([bulk(""), int(7), bulk("x")]))]);
        assert_eq!(slots(&reply), Ok(vec![told(&[(0, 16383)], None, 7)]));
    }

    #[test]
    fn what_does_not_add_up_is_refused_in_words() {
        let one = |slots: &[i64]| array([shard(slots, vec![owner_at("a", 1)])]);
        let refused = |reply: Value| shards(&reply, false).unwrap_err();
        assert_eq!(refused(Value::Okay), "the reply is no list but something else");
        assert_eq!(refused(array([])), "no shard owns a slot");
        assert_eq!(
            refused(array([int(3)])),
            "a shard is no list of names and values but 3"
        );
        assert_eq!(refused(array([array([bulk("nodes"), array([])])])), "no slots");
        assert_eq!(refused(one(&[0])), "slots are not in pairs");
        assert_eq!(refused(one(&[0, 16384])), "16384 is no slot");
        assert_eq!(refused(one(&[-1, 3])), "-1 is no slot");
        assert_eq!(refused(one(&[9, 3])), "slots 9-3 end before they begin");
        assert_eq!(refused(one(&[0, 9, 9, 12])), "slots 0-9 and 9-12 overlap");
        let twice = array([
            shard(&[0, 9], vec![owner_at("a", 1)]),
            shard(&[5, 6], vec![owner_at("b", 2)]),
        ]);
        assert_eq!(refused(twice), "slots 0-9 and 5-6 overlap");
        assert_eq!(
            refused(array([shard(&[0, 9, 12, 12], vec![])])),
            "nobody takes writes for slots 0-9,12"
        );
        let no_port = node(&[("ip", bulk("a")), ("role", bulk("master"))]);
        assert_eq!(
            refused(array([shard(&[0, 9], vec![no_port])])),
            "a node has no port"
        );
        assert_eq!(
            refused(array([shard(&[0, 9], vec![owner_at("a", 0)])])),
            "0 is no port"
        );
        assert_eq!(
            refused(array([shard(&[0, 9], vec![owner_at("a", 65536)])])),
            "65536 is no port"
        );
        let long = "x".repeat(1000);
        assert!(refused(bulk(&long)).len() < 120);
        let many = (0..1025)
            .map(|n| shard(&[n, n], vec![owner_at("a", n + 1)]))
            .collect();
        assert!(refused(Value::Array(many)).contains("at most 1024"));

        let refused = |reply: Value| slots(&reply).unwrap_err();
        assert_eq!(
            refused(array([array([int(0), int(5)])])),
            "a range without first, last and node"
        );
        assert_eq!(
            refused(array([array([int(0), int(5), array([bulk("a")])])])),
            "a node without address and port"
        );
        let many = (0..1025)
            .map(|n| array([int(n), int(n), array([bulk("a"), int(n + 1)])]))
            .collect();
        assert!(refused(Value::Array(many)).contains("at most 1024"));
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Nil),
            (-2i64..20000).prop_map(Value::Int),
            proptest::collection::vec(any::<u8>(), 0..8).prop_map(Value::BulkString),
            prop_oneof![
                Just("slots"),
                Just("nodes"),
                Just("role"),
                Just("master"),
                Just("port")
            ]
            .prop_map(bulk),
        ];
        leaf.prop_recursive(5, 64, 8, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..8).prop_map(Value::Array),
                proptest::collection::vec((inner.clone(), inner), 0..4).prop_map(Value::Map),
            ]
        })
    }

    proptest! {
        /// Whatever comes, there is no panic, and what is believed adds up.
        #[test]
        fn nonsense_is_survived(reply in any_value()) {
            for told in [shards(&reply, false), slots(&reply)].into_iter().flatten() {
                prop_assert!(!told.is_empty());
                for range in told.iter().flat_map(|shard| &shard.slots) {
                    prop_assert!(range.first <= range.last && range.last < SLOTS);
                }
            }
        }
    }
}
