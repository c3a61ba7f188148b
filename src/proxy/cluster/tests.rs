//! Plans, joins and cursors by themselves; `tests/cluster_routing.rs` holds them against real servers.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use proptest::prelude::*;

use super::policy::{JUDGED, described, from_tips, policy};
use super::scan::tag;
use super::*;
use crate::replica::{Address, Layout, Shard, ShardId, SlotRange};
use crate::resp::command::{CommandInfo, lookup, lookup_sub};
use crate::resp::{Request, RequestScanner, Scan, args, encode_command, reply_elements, reply_text, slot};

/// `count` shards of equal parts, each with a node of its own; those of `unowned` are nobody's.
fn layout(count: u16, unowned: &[u16]) -> Layout {
    let shards = Layout::even(count)
        .shards()
        .map(|(id, shard)| {
            let owned = (shard.slots[0].first..=shard.slots[0].last).filter(|slot| !unowned.contains(slot));
            Shard {
                slots: owned
                    .map(|slot| SlotRange {
                        first: slot,
                        last: slot,
                    })
                    .collect(),
                node: Some(Address::Tcp {
                    host: "db".to_owned(),
                    port: 7000 + id.0,
                }),
            }
        })
        .collect();
    Layout::new(shards)
}

fn read(words: &[&[u8]]) -> (Option<&'static CommandInfo>, Vec<u8>, Request) {
    let frame = encode_command(words);
    let Ok(Scan::Complete(request)) = RequestScanner::new().scan(&frame) else {
        panic!("{}", frame.escape_ascii())
    };
    let info = lookup(words[0]).map(|info| match words.get(1) {
        Some(sub) if info.is_container() => lookup_sub(info, sub).unwrap_or(info),
        _ => info,
    });
    (info, frame, request)
}

fn plan_of(router: &Router, words: &[&[u8]]) -> Plan {
    let (info, frame, request) = read(words);
    router.plan(info, &frame, &request)
}

fn plan(router: &Router, line: &str) -> Plan {
    plan_of(router, &line.split(' ').map(str::as_bytes).collect::<Vec<_>>())
}

/// A plan in one word.
fn shown(plan: &Plan) -> String {
    match plan {
        Plan::One(shard) => shard.to_string(),
        Plan::Any => "any".to_owned(),
        Plan::All(join) => format!("{join:?}"),
        Plan::Split(split) => format!("{} parts", split.parts.len()),
        Plan::Scan(step) => format!("scan {}", step.shard),
        Plan::UntilFound => "until found".to_owned(),
        Plan::Local(local) => format!("{local:?}"),
        Plan::Refused(error) => String::from_utf8(error.to_vec()).expect("text"),
    }
}

const CROSSSLOT: &str = "-CROSSSLOT Keys in request don't hash to the same slot\r\n";
const CLUSTERDOWN: &str = "-CLUSTERDOWN Hash slot not served\r\n";

/// Slots: a 15495, b 3300, c 7365, p 16023; of three shards a is in 2, b in 0, c in 1.
#[test]
fn requests_go_where_their_keys_are() {
    let router = Router::new(layout(3, &[slot(b"p")]), true);
    for (line, want) in [
        ("GET a", "2"),
        ("get b", "0"),
        ("SET c 1", "1"),
        ("GET p", CLUSTERDOWN),
        ("GET {b}1 superfluous", "0"),
        ("GET", "any"),
        ("MGET a", "2"),
        ("MGET b {b}1 {b}2", "0"),
        ("MGET a b c {a}1", "3 parts"),
        ("MGET p a", CLUSTERDOWN),
        ("MGET a p", CLUSTERDOWN),
        ("DEL a b", "2 parts"),
        ("MSET a 1 b 2", "2 parts"),
        ("MSET a 1 {a}b 2", "2"),
        (
            "MSET a 1 b",
            "-ERR wrong number of arguments for 'mset' command\r\n",
        ),
        ("MSETNX a 1 b 2", CROSSSLOT),
        ("MSETNX a 1 {a}b 2", "2"),
        ("RENAME a b", CROSSSLOT),
        ("RENAME p b", CLUSTERDOWN),
        ("RENAME a b c", "any"),
        ("EVAL s 2 b {b}1 a", "0"),
        ("EVAL s 2 a b", CROSSSLOT),
        ("EVAL s 0 a", "any"),
        ("XREAD COUNT 1 STREAMS b {b}x 0 0", "0"),
        ("XREAD STREAMS a b 0 0", CROSSSLOT),
        ("XREAD STREAMS a b 0", "any"),
        ("PFMERGE b", "0"),
        ("SORT a STORE b", CROSSSLOT),
        ("GEORADIUS b 1 2 3 m STORE {b}x", "0"),
        ("OBJECT ENCODING c", "1"),
        ("SPUBLISH b m", "0"),
        ("SSUBSCRIBE a b", CROSSSLOT),
        ("SUNSUBSCRIBE", "any"),
        ("JSON.GET b", "0"),
        ("NOSUCH", "any"),
        ("CONFIG NOSUCH", "any"),
        ("CLUSTER NOSUCH", "any"),
        ("PING", "any"),
        ("DBSIZE", "Sum"),
        ("KEYS *", "Concat"),
        ("FLUSHALL", "AllSucceeded"),
        ("SCRIPT LOAD x", "AllSucceeded"),
        ("SCRIPT EXISTS x", "Least"),
        ("SCRIPT KILL", "OneSucceeded"),
        ("FUNCTION LOAD x", "AllSucceeded"),
        ("FUNCTION LIST", "any"),
        ("WAIT 1 0", "Least"),
        ("PUBLISH c m", "any"),
        ("INFO", "0"),
        ("RANDOMKEY", "until found"),
        ("SCAN 0", "scan 0"),
        ("SCAN x", "-ERR invalid cursor\r\n"),
        ("SCAN 18446744073709551616", "-ERR invalid cursor\r\n"),
        ("SCAN", "any"),
        ("CLUSTER SLOTS", "Slots"),
        ("CLUSTER SLOTS x", "any"),
        ("CLUSTER COUNTKEYSINSLOT 0", "0"),
        ("CLUSTER COUNTKEYSINSLOT 16383", "2"),
        ("CLUSTER COUNTKEYSINSLOT 16384", "any"),
        (
            "CLUSTER FORGET x",
            "-ERR CLUSTER FORGET is not forwarded to a sharded replica: it concerns one node, say it there\r\n",
        ),
        ("READONLY", "Ok"),
        ("SELECT 1", "any"),
        ("MULTI", "any"),
        ("CLIENT SETNAME x", "any"),
        ("CONFIG SET a b", "AllSucceeded"),
    ] {
        assert_eq!(shown(&plan(&router, line)), want, "{line}");
    }
}

#[test]
fn without_splitting_a_request_is_for_one_slot() {
    let router = Router::new(layout(3, &[]), false);
    for line in ["MGET a b", "DEL a b", "MSET a 1 b 2", "MSET a 1 b"] {
        assert_eq!(shown(&plan(&router, line)), CROSSSLOT, "{line}");
    }
    assert_eq!(shown(&plan(&router, "MGET a {a}b")), "2");
}

#[test]
fn one_node_is_still_a_cluster_and_an_endpoint_routes_by_itself() {
    let node = Router::new(layout(1, &[]), true);
    // A node refuses keys of different slots even where both are its own.
    for (line, want) in [
        ("GET a", "0"),
        ("MGET a b", "2 parts"),
        ("RENAME a b", CROSSSLOT),
        ("DBSIZE", "0"),
        ("RANDOMKEY", "0"),
        ("PING", "0"),
        ("SCAN 0", "scan 0"),
        ("NOSUCH x", "0"),
    ] {
        assert_eq!(shown(&plan(&node, line)), want, "{line}");
    }
    for layout in [Layout::single(), Layout::even(3)] {
        let endpoint = Router::new(layout, true);
        for line in [
            "GET a",
            "MGET a b",
            "RENAME a b",
            "DBSIZE",
            "SCAN 0",
            "CLUSTER SLOTS",
        ] {
            assert_eq!(shown(&plan(&endpoint, line)), "0", "{line}");
        }
    }
    let gap = Router::new(layout(1, &[slot(b"p")]), true);
    assert_eq!(shown(&plan(&gap, "GET p")), CLUSTERDOWN);
}

#[test]
fn parts_have_all_keys_of_one_slot_each_in_the_order_of_shards() {
    let router = Router::new(layout(3, &[]), true);
    let Plan::Split(split) = plan(&router, "MSET a 1 b 2 {b}x 3 a 4 c 5") else {
        panic!("split")
    };
    let parts: Vec<_> = split
        .parts
        .iter()
        .map(|part| (part.shard.0, part.slot, part.frame.to_vec()))
        .collect();
    let frame = |line: &str| encode_command(&line.split(' ').map(str::as_bytes).collect::<Vec<_>>());
    assert_eq!(
        parts,
        [
            (0, slot(b"b"), frame("MSET b 2 {b}x 3")),
            (1, slot(b"c"), frame("MSET c 5")),
            (2, slot(b"a"), frame("MSET a 1 a 4")),
        ]
    );
}

/// What parts cost: at most so many bytes more than the request, whatever the keys.
#[test]
fn parts_are_bounded_by_the_request() {
    let router = Router::new(layout(3, &[]), true);
    let keys: Vec<String> = (0..100_000).map(|n| n.to_string()).collect();
    let words: Vec<&[u8]> = [&b"DEL"[..]]
        .into_iter()
        .chain(keys.iter().map(|key| key.as_bytes()))
        .collect();
    let Plan::Split(split) = plan_of(&router, &words) else {
        panic!("split")
    };
    assert!(
        split.parts.len() <= 16384 && split.parts.len() > 16000,
        "{}",
        split.parts.len()
    );
    let bytes: usize = split.parts.iter().map(|part| part.frame.len()).sum();
    let whole = encode_command(&words).len();
    assert!(bytes <= whole + split.parts.len() * 30, "{bytes} of {whole}");
    assert_eq!(split.joiner.bytes(), 0);
}

fn joined(join: Join, replies: &[&str]) -> String {
    let mut answers = BTreeSet::new();
    // Forwards, backwards, and from the middle.
    let n = replies.len();
    for order in [
        (0..n).collect::<Vec<_>>(),
        (0..n).rev().collect(),
        (0..n).map(|i| (i + n / 2) % n).collect(),
    ] {
        let mut joiner = Joiner::new(join, n);
        let mut last = None;
        for (i, part) in order.into_iter().enumerate() {
            assert!(
                last.is_none() && joiner.missing() == n - i,
                "no answer before the last reply"
            );
            last = joiner.put(part, replies[part].as_bytes());
        }
        answers.insert(last.expect("an answer with the last reply"));
    }
    assert_eq!(
        answers.len(),
        1,
        "the order of arrival does not matter: {answers:?}"
    );
    let answer = answers.pop_first().unwrap_or_default();
    String::from_utf8(answer.to_vec()).expect("text")
}

#[test]
fn replies_become_one() {
    let misfit = "-ERR the shards' replies do not fit together\r\n";
    for (join, replies, want) in [
        (Join::Sum, &[":1\r\n", ":2\r\n", ":-4\r\n"][..], ":-1\r\n"),
        (Join::Sum, &[":7\r\n"], ":7\r\n"),
        (
            Join::Sum,
            &[":9223372036854775807\r\n", ":1\r\n"],
            ":9223372036854775807\r\n",
        ),
        (
            Join::Sum,
            &["*2\r\n+ch\r\n:1\r\n", "*2\r\n+ch\r\n:2\r\n"],
            "*2\r\n+ch\r\n:3\r\n",
        ),
        (Join::Sum, &["*0\r\n", "*0\r\n"], "*0\r\n"),
        (Join::Sum, &["*1\r\n:1\r\n", ":1\r\n"], misfit),
        (Join::Sum, &["*1\r\n:1\r\n", "*2\r\n:1\r\n:1\r\n"], misfit),
        (Join::Sum, &[":1\r\n", "+OK\r\n"], misfit),
        (Join::Least, &[":3\r\n", ":0\r\n", ":2\r\n"], ":0\r\n"),
        (
            Join::Least,
            &["*2\r\n:1\r\n:1\r\n", "*2\r\n:1\r\n:0\r\n"],
            "*2\r\n:1\r\n:0\r\n",
        ),
        (Join::Greatest, &[":3\r\n", ":0\r\n"], ":3\r\n"),
        (Join::AllSucceeded, &["+OK\r\n", "+OK\r\n"], "+OK\r\n"),
        (Join::AllSucceeded, &["$1\r\na\r\n", "$1\r\nb\r\n"], "$1\r\na\r\n"),
        (
            Join::AllSucceeded,
            &["+OK\r\n", "-ERR b\r\n", "-ERR c\r\n"],
            "-ERR b\r\n",
        ),
        (
            Join::Sum,
            &[":1\r\n", "-ERR b\r\n", "!5\r\nERR c\r\n"],
            "-ERR b\r\n",
        ),
        (
            Join::OneSucceeded,
            &["-NOTBUSY a\r\n", "+OK\r\n", "-NOTBUSY c\r\n"],
            "+OK\r\n",
        ),
        (
            Join::OneSucceeded,
            &["-NOTBUSY a\r\n", "-NOTBUSY b\r\n"],
            "-NOTBUSY a\r\n",
        ),
        (
            Join::Concat,
            &["*1\r\n+a\r\n", "*0\r\n", "*2\r\n+b\r\n*1\r\n+a\r\n"],
            "*3\r\n+a\r\n+b\r\n*1\r\n+a\r\n",
        ),
        (
            Join::Concat,
            &["~1\r\n+a\r\n", "~1\r\n+b\r\n"],
            "~2\r\n+a\r\n+b\r\n",
        ),
        (Join::Concat, &["+OK\r\n", "+OK\r\n"], "+OK\r\n"),
        (Join::Concat, &["*0\r\n", "+OK\r\n"], misfit),
        (Join::Concat, &["*0\r\n", "~0\r\n"], misfit),
        (
            Join::Union,
            &["*2\r\n+a\r\n+b\r\n", "*2\r\n+b\r\n+c\r\n"],
            "*3\r\n+a\r\n+b\r\n+c\r\n",
        ),
    ] {
        assert_eq!(joined(join, replies), want, "{join:?} {replies:?}");
    }
}

#[test]
fn what_is_kept_of_numbers_does_not_grow() {
    let mut joiner = Joiner::new(Join::Sum, 1000);
    for part in 0..999 {
        assert!(joiner.put(part, b":1\r\n").is_none());
    }
    assert!(joiner.bytes() <= 4, "{}", joiner.bytes());
    assert_eq!(joiner.put(999, b":1\r\n"), Some(Bytes::from_static(b":1000\r\n")));
}

#[test]
fn a_shard_that_answers_mget_too_briefly_costs_an_error_not_a_wrong_place() {
    let router = Router::new(layout(3, &[]), true);
    let Plan::Split(mut split) = plan(&router, "MGET a b c") else {
        panic!("split")
    };
    assert!(split.joiner.put(0, b"*1\r\n+b\r\n").is_none());
    assert!(split.joiner.put(1, b"*0\r\n").is_none());
    let answer = split.joiner.put(2, b"*1\r\n+a\r\n").expect("the last one");
    assert!(answer.starts_with(b"-ERR"), "{}", answer.escape_ascii());
}

#[test]
fn every_departure_from_the_servers_tips_has_its_reason() {
    let rows: BTreeMap<&str, _> = described().map(|row| (row.name, row)).collect();
    assert!(rows.len() > 100, "{}", rows.len());
    for (name, policy, _) in JUDGED {
        assert!(rows.contains_key(name), "{name} is no command without keys");
        let info = described_info(name);
        assert_ne!(from_tips(info), Some(*policy), "{name}: the tips say so already");
    }
    for row in rows.values() {
        let info = described_info(row.name);
        if let Some(tipped) = from_tips(info) {
            let allowed = row.why.is_some() || row.policy == Policy::Session;
            assert!(row.policy == tipped || allowed, "{}", row.name);
        }
        assert_eq!(row.policy, policy(info));
    }
    // What changes data everywhere must not go to one shard.
    for name in [
        "flushall",
        "flushdb",
        "script|flush",
        "function|load",
        "config|set",
    ] {
        assert_eq!(rows[name].policy, Policy::All(Join::AllSucceeded), "{name}");
    }
}

fn described_info(name: &str) -> &'static CommandInfo {
    let mut words = name.split('|');
    let info = words.next().and_then(|word| lookup(word.as_bytes())).expect(name);
    match words.next() {
        Some(sub) => lookup_sub(info, sub.as_bytes()).expect(name),
        None => info,
    }
}

fn step(router: &Router, cursor: &str) -> Step {
    match plan(router, &format!("SCAN {cursor} MATCH x COUNT 7")) {
        Plan::Scan(step) => step,
        other => panic!("{}", shown(&other)),
    }
}

fn cursor_for_the_shard(step: &Step) -> String {
    let word = args(&step.frame).nth(1).expect("a cursor");
    String::from_utf8(word.to_vec()).expect("digits")
}

fn next_cursor(step: &Step, cursor: &str) -> String {
    let reply = format!("*2\r\n${}\r\n{cursor}\r\n*1\r\n$1\r\nk\r\n", cursor.len());
    let answer = step.reply(reply.as_bytes());
    let elements: Vec<&[u8]> = reply_elements(&answer).collect();
    let Some(text) = elements.first().and_then(|first| reply_text(first)) else {
        return String::from_utf8(answer.to_vec()).expect("text");
    };
    assert_eq!(elements[1], b"*1\r\n$1\r\nk\r\n", "elements pass unchanged");
    String::from_utf8(text.to_vec()).expect("digits")
}

#[test]
fn a_walk_goes_through_one_shard_after_another() {
    let router = Router::new(layout(3, &[]), true);
    let mut cursor = "0".to_owned();
    for (shard, own, then) in [
        (0, "0", "4096"),
        (0, "4096", "0"),
        (1, "0", "0"),
        (2, "0", "17"),
        (2, "17", "0"),
    ] {
        let step = step(&router, &cursor);
        assert_eq!(
            (step.shard, cursor_for_the_shard(&step).as_str()),
            (ShardId(shard), own)
        );
        assert_eq!(
            args(&step.frame).skip(2).collect::<Vec<_>>(),
            [&b"MATCH"[..], b"x", b"COUNT", b"7"]
        );
        cursor = next_cursor(&step, then);
    }
    assert_eq!(cursor, "0", "the end");
}

#[test]
fn a_walk_over_another_layout_begins_anew() {
    let router = Router::new(layout(3, &[]), true);
    let cursor = next_cursor(&step(&router, &next_cursor(&step(&router, "0"), "0")), "9");
    assert_eq!(step(&router, &cursor).shard, ShardId(1));
    assert_eq!(
        step(&Router::new(layout(3, &[]), false), &cursor).shard,
        ShardId(1),
        "the same layout"
    );
    for other in [layout(4, &[]), layout(3, &[5]), layout(1, &[])] {
        let step = step(&Router::new(other, true), &cursor);
        assert_eq!(
            (step.shard, cursor_for_the_shard(&step).as_str()),
            (ShardId(0), "0")
        );
    }
}

#[test]
fn a_cursor_that_does_not_fit_is_an_error() {
    let router = Router::new(layout(3, &[]), true);
    let first = step(&router, "0");
    let bound = (1_u64 << 47) / 3;
    let largest = (bound - 1).to_string();
    let back = step(&router, &next_cursor(&first, &largest));
    assert_eq!((back.shard, cursor_for_the_shard(&back)), (ShardId(0), largest));
    for beyond in [bound + 1, u64::MAX] {
        assert_eq!(
            next_cursor(&first, &beyond.to_string()),
            "-ERR the shard's cursor is too large for a walk over all shards\r\n"
        );
    }
    assert_eq!(
        first.reply(b"-NOPERM x\r\n"),
        &b"-NOPERM x\r\n"[..],
        "errors pass unchanged"
    );
    assert_eq!(
        first.reply(b"+OK\r\n"),
        &b"-ERR the shard's answer to SCAN is none\r\n"[..]
    );
}

proptest! {
    /// Every cursor of a shard comes back to that shard as it was, or is refused.
    #[test]
    fn cursors_survive_the_application(count in 1u16..200, shard in any::<u16>(), own in any::<u64>(), small in 0u32..64) {
        let own = (own >> small).max(1);
        let layout = layout(count, &[]);
        let tag = tag(&layout);
        let router = Router::new(layout, true);
        let shard = shard % count;
        let there = step(&router, &((u64::from(shard) << 16) | u64::from(tag)).to_string());
        prop_assert_eq!(there.shard, ShardId(shard));
        let next = next_cursor(&there, &own.to_string());
        if next.starts_with('-') {
            prop_assert!(own >= (1 << 47) / u64::from(count));
        } else {
            let back = step(&router, &next);
            prop_assert_eq!((back.shard, cursor_for_the_shard(&back)), (ShardId(shard), own.to_string()));
        }
    }

    #[test]
    fn whatever_comes_is_planned_without_panic(words in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..6), 1..8), name in 0usize..400) {
        let rows = crate::resp::command::all();
        let info = &rows[name % rows.len()];
        let words: Vec<&[u8]> = [info.name.as_bytes()].into_iter().chain(words.iter().map(Vec::as_slice)).collect();
        for router in [Router::new(layout(3, &[77]), true), Router::new(layout(1, &[]), false)] {
            if let Plan::Local(local) = plan_of(&router, &words) {
                let answer = local.answer(&encode_command(&words), Itself { host: "h", port: 1 }, true);
                prop_assert!(answer.ends_with(b"\r\n"));
            }
        }
    }
}
