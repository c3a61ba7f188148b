use super::super::command::{lookup, lookup_sub};
use super::super::encode::encode_command;
use super::super::request::{RequestScanner, Scan};
use super::*;

fn found(line: &str) -> (Vec<String>, Option<String>, Option<String>) {
    let words: Vec<&[u8]> = line
        .split(' ')
        .map(|word| if word == "''" { b"" } else { word.as_bytes() })
        .collect();
    let frame = encode_command(&words);
    let Ok(Scan::Complete(request)) = RequestScanner::new().scan(&frame) else {
        panic!("{line}")
    };
    let mut info = lookup(words[0]).unwrap();
    if info.is_container() {
        info = lookup_sub(info, words[1]).unwrap();
    }
    let text = |key: &[u8]| String::from_utf8(key.to_vec()).unwrap();
    (
        keys(info, &frame).map(|range| text(&frame[range])).collect(),
        first_key(info, &frame, &request).map(text),
        routing_key(info, &frame, &request).map(text),
    )
}

/// Expected keys are those of `COMMAND GETKEYS`, which `tests/resp_differential.rs` asks.
#[test]
fn keys_are_found_where_the_server_finds_them() {
    for (line, want) in [
        ("GET k", "k"),
        ("GET", ""),
        ("PING x", ""),
        ("MGET a b c", "a b c"),
        ("MSET a 1 b 2 c 3", "a b c"),
        ("BLPOP a b 0", "a b"),
        ("RENAME a b", "a b"),
        ("BITOP AND d a b", "d a b"),
        ("LMOVE a b LEFT RIGHT", "a b"),
        ("OBJECT ENCODING k", "k"),
        ("XGROUP CREATE s g $", "s"),
        ("MEMORY USAGE k SAMPLES 3", "k"),
        ("EVAL s 2 a b c", "a b"),
        ("EVAL s 0 a", ""),
        ("EVAL s 9 a", ""),
        ("EVAL s x a", ""),
        ("EVAL s -1 a", ""),
        ("EVAL s 9223372036854775807 a", ""),
        ("FCALL f 1 a b", "a"),
        ("ZUNION 2 a b WEIGHTS 1 2", "a b"),
        ("ZUNIONSTORE d 2 a b", "d a b"),
        ("ZUNIONSTORE d 5 a b", ""),
        ("LMPOP 2 a b LEFT", "a b"),
        ("BLMPOP 0 2 a b LEFT", "a b"),
        ("SINTERCARD 1 a LIMIT 2", "a"),
        ("MSETEX 2 a 1 b 2 EX 3", "a b"),
        ("XREAD COUNT 2 STREAMS a b 0 0", "a b"),
        ("XREAD STREAMS a", ""),
        ("XREAD STREAMS", ""),
        ("XREADGROUP GROUP streams streams STREAMS s >", "s"),
        ("SORT k BY w GET store LIMIT 0 1 STORE d", "k d"),
        ("SORT k STORE a STORE b", "k b"),
        ("SORT k STORE", "k"),
        ("SORT_RO k BY w_*", "k"),
        ("GEORADIUS k 1 2 3 m STORE d", "k d"),
        ("GEORADIUS k 1 2 3 m STOREDIST d", "k d"),
        ("GEORADIUSBYMEMBER k m 3 m STORE d", "k d"),
        ("MIGRATE h 1 k 0 10", "k"),
        ("MIGRATE h 1 '' 0 10 COPY AUTH keys KEYS a b", "a b"),
        ("MIGRATE h 1 k 0 10 KEYS a b", ""),
        ("SUBSCRIBE c", ""),
        ("SSUBSCRIBE c d", ""),
        ("SPUBLISH c m", ""),
    ] {
        let (all, first, _) = found(line);
        assert_eq!(all.join(" "), want, "{line}");
        assert_eq!(first, all.first().cloned(), "{line}");
    }
}

#[test]
fn sharded_channels_route() {
    assert_eq!(found("SPUBLISH c m").2.as_deref(), Some("c"));
    assert_eq!(found("SSUBSCRIBE c d").2.as_deref(), Some("c"));
    assert_eq!(found("SUNSUBSCRIBE").2, None);
    assert_eq!(found("PUBLISH c m").2, None);
    assert_eq!(found("EVAL s 1 k").2.as_deref(), Some("k"));
    let of = |words: &[&[u8]]| {
        let frame = encode_command(words);
        let all = routing_keys(lookup(words[0]).unwrap(), &frame);
        all.map(|range| frame[range].to_vec()).collect::<Vec<_>>()
    };
    assert_eq!(of(&[b"SSUBSCRIBE", b"c", b"d"]), [b"c", b"d"]);
    assert_eq!(of(&[b"MGET", b"a", b"b"]), [b"a", b"b"]);
    assert!(of(&[b"SUBSCRIBE", b"c"]).is_empty());
    // Where a node decides otherwise than COMMAND GETKEYS.
    assert_eq!(of(&[b"PFMERGE", b"k"]), [b"k"]);
    assert_eq!(of(&[b"XREAD", b"STREAMS", b"a", b"b", b"0", b"0"]), [b"a", b"b"]);
    assert!(of(&[b"XREAD", b"STREAMS", b"a", b"b", b"0"]).is_empty());
}

/// From the Redis cluster specification, and from `CLUSTER KEYSLOT` of 7.0.15.
#[test]
fn slots() {
    for (key, want) in [
        ("123456789", 0x31c3),
        ("", 0),
        ("foo", 12182),
        ("bar", 5061),
        ("{user1000}.following", 3443),
        ("{user1000}.followers", 3443),
        ("user1000", 3443),
        ("foo{}{bar}", 8363),
        ("foo{{bar}}zap", 4015),
        ("foo{bar}{zap}", 5061),
        ("{", 4092),
    ] {
        assert_eq!(slot(key.as_bytes()), want, "{key}");
    }
}
