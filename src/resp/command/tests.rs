use super::super::encode::encode_command;
use super::*;

#[test]
fn every_command_is_found_whatever_its_case() {
    assert!(all().len() > 240, "only {} commands", all().len());
    for info in all() {
        for name in [
            info.name.to_owned(),
            info.name.to_uppercase(),
            alternate(info.name),
        ] {
            let found = lookup(name.as_bytes()).unwrap_or_else(|| panic!("{name} is not found"));
            assert!(std::ptr::eq(found, info), "{name} finds {}", found.name);
        }
        for sub in info.subcommands {
            let own = sub.name.split_once('|').unwrap().1;
            for name in [own.to_owned(), own.to_uppercase(), alternate(own)] {
                let found =
                    lookup_sub(info, name.as_bytes()).unwrap_or_else(|| panic!("{name} is not found"));
                assert!(std::ptr::eq(found, sub), "{name} finds {}", found.name);
            }
        }
    }
}

fn alternate(name: &str) -> String {
    let change = |(i, c): (usize, char)| if i % 2 == 0 { c.to_ascii_uppercase() } else { c };
    name.chars().enumerate().map(change).collect()
}

/// Every name with one bit changed, one byte more or less: only a change of a letter's case may be found.
#[test]
fn nothing_else_is_found() {
    for info in all() {
        let name = info.name.as_bytes();
        let mut others = vec![
            [name, b" "].concat(),
            [name, b"\0"].concat(),
            [b" ", name].concat(),
        ];
        for at in 0..name.len() {
            others.push([&name[..at], &name[at + 1..]].concat());
            for bit in 0..8 {
                let mut other = name.to_vec();
                other[at] ^= 1 << bit;
                others.push(other);
            }
        }
        for other in others {
            let same = all()
                .iter()
                .find(|row| row.name.as_bytes().eq_ignore_ascii_case(&other));
            assert_eq!(
                lookup(&other).map(|row| row.name),
                same.map(|row| row.name),
                "{}",
                other.escape_ascii()
            );
        }
    }
    for name in [
        &b""[..],
        b"a",
        b"ab",
        b"abc",
        &[b'g'; 300],
        b"get\xff",
        b"\xe7\xe5\xf4",
    ] {
        assert!(lookup(name).is_none(), "{}", name.escape_ascii());
    }
}

#[test]
fn what_may_be_sent_twice() {
    let class = |name: &str| match name.split_once(' ') {
        Some((container, sub)) => {
            lookup_sub(lookup(container.as_bytes()).unwrap(), sub.as_bytes())
                .unwrap()
                .class
        }
        None => lookup(name.as_bytes()).unwrap().class,
    };
    for read in [
        "GET",
        "MGET",
        "SCAN",
        "RANDOMKEY",
        "EVAL_RO",
        "EVALSHA_RO",
        "FCALL_RO",
        "PING",
        "ECHO",
        "TIME",
        "INFO",
        "COMMAND",
        "COMMAND DOCS",
        "CONFIG GET",
        "OBJECT ENCODING",
        "XINFO STREAM",
        "MEMORY USAGE",
        "XREAD",
        "SORT_RO",
        "SUBSCRIBE",
        "SELECT",
        "CLIENT SETNAME",
        "SLOWLOG GET",
        "DUMP",
        "HTTL",
    ] {
        assert_eq!(class(read), Class::Read, "{read}");
    }
    for write in [
        "SET",
        "GETEX",
        "GETDEL",
        "PUBLISH",
        "SPUBLISH",
        "EVAL",
        "EVALSHA",
        "FCALL",
        "SORT",
        "GEORADIUS",
        "XREADGROUP",
        "CONFIG SET",
        "CONFIG",
        "SCRIPT LOAD",
        "SCRIPT FLUSH",
        "CLIENT KILL",
        "CLIENT UNBLOCK",
        "CLIENT PAUSE",
        "FLUSHALL",
        "BLPOP",
        "WAIT",
        "EXEC",
        "MULTI",
        "XGROUP CREATE",
        "FUNCTION LOAD",
        "SLOWLOG RESET",
        "ACL LOG",
        "DEBUG",
        "SHUTDOWN",
        "MIGRATE",
        "RESTORE",
        "BITFIELD",
        "HGETEX",
    ] {
        assert_eq!(class(write), Class::Write, "{write}");
    }
    for info in all() {
        assert!(
            !info.flags.contains(Flags::WRITE) || info.class == Class::Write,
            "{}",
            info.name
        );
    }
}

#[test]
fn kinds_of_the_commands_that_matter_to_a_session() {
    let kind = |name: &[u8]| lookup(name).unwrap().kind;
    assert_eq!(kind(b"get"), Kind::Plain);
    assert_eq!(kind(b"MULTI"), Kind::Multi);
    assert_eq!(kind(b"psubscribe"), Kind::Psubscribe);
    assert_eq!(kind(b"blmove"), Kind::Blocking);
    assert_eq!(kind(b"bzmpop"), Kind::Blocking);
    assert_eq!(kind(b"waitaof"), Kind::Blocking);
    assert_eq!(kind(b"xreadgroup"), Kind::MaybeBlocking);
    assert_eq!(kind(b"psync"), Kind::Sync);
    let client = lookup(b"client").unwrap();
    assert!(client.is_container());
    assert_eq!(client.kind, Kind::Client);
    assert_eq!(lookup_sub(client, b"Reply").unwrap().kind, Kind::ClientReply);
    assert_eq!(lookup_sub(client, b"list").unwrap().kind, Kind::Client);
    assert!(lookup_sub(client, b"nosuch").is_none());
    assert!(lookup_sub(lookup(b"get").unwrap(), b"reply").is_none());
}

#[test]
fn blocking_is_told_from_the_options() {
    let blocks = |args: &[&[u8]]| is_blocking(lookup(args[0]).unwrap(), &encode_command(args));
    assert!(blocks(&[b"BLPOP", b"k", b"0"]));
    assert!(!blocks(&[b"LPOP", b"k"]));
    assert!(!blocks(&[b"XREAD", b"COUNT", b"2", b"STREAMS", b"block", b"0"]));
    assert!(blocks(&[
        b"XREAD", b"count", b"2", b"block", b"0", b"STREAMS", b"s", b"0"
    ]));
    assert!(!blocks(&[
        b"XREADGROUP",
        b"GROUP",
        b"BLOCK",
        b"BLOCK",
        b"NOACK",
        b"STREAMS",
        b"s",
        b">"
    ]));
    assert!(blocks(&[
        b"XREADGROUP",
        b"GROUP",
        b"g",
        b"c",
        b"BLOCK",
        b"5",
        b"STREAMS",
        b"s",
        b">"
    ]));
    assert!(!blocks(&[b"XREAD"]));
}

#[test]
fn tips_are_kept() {
    let info = lookup(b"dbsize").unwrap();
    assert_eq!(
        (info.request_policy, info.response_policy),
        (RequestPolicy::AllShards, ResponsePolicy::AggSum)
    );
    assert!(
        lookup(b"smembers")
            .unwrap()
            .flags
            .contains(Flags::NONDETERMINISTIC_OUTPUT_ORDER)
    );
    assert_eq!(lookup(b"get").unwrap().arity, 2);
    assert_eq!(lookup(b"set").unwrap().arity, -3);
}
