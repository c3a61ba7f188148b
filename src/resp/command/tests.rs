use super::*;

#[test]
fn every_entry_is_found_in_any_case() {
    for info in &table::TABLE {
        assert_eq!(lookup(info.name.to_uppercase().as_bytes()), Some(info));
    }
    assert_eq!(lookup(b"nosuchcommand"), None);
    assert_eq!(lookup(b""), None);
}

#[test]
fn what_may_be_sent_twice() {
    let read = |name: &str| lookup(name.as_bytes()).unwrap().read;
    for name in [
        "get",
        "mget",
        "scan",
        "ping",
        "info",
        "eval_ro",
        "config|get",
        "xread",
        "client|list",
    ] {
        assert!(read(name), "{name}");
    }
    for name in [
        "set",
        "publish",
        "eval",
        "fcall",
        "config|set",
        "script|load",
        "client|kill",
        "flushall",
        "xreadgroup",
        "blpop",
        "sort",
    ] {
        assert!(!read(name), "{name}");
    }
}

#[test]
fn subcommands_have_entries_of_their_own() {
    let config = lookup(b"CONFIG").unwrap();
    assert_eq!(config.kind, Kind::Container);
    assert_eq!(lookup_sub(config, b"Get").unwrap().name, "config|get");
    assert_eq!(lookup_sub(config, b"nosuch"), None);
    assert_eq!(lookup_sub(config, &[b'x'; 100]), None);
}

#[test]
fn blocking_is_told_by_the_words() {
    let blocking = |words: &[&[u8]]| {
        let mut frame = bytes::BytesMut::new();
        super::super::encode_command(words, &mut frame);
        is_blocking(lookup(words[0]).unwrap(), &frame)
    };
    assert!(blocking(&[b"BLPOP", b"k", b"0"]));
    assert!(blocking(&[b"xread", b"block", b"0", b"streams", b"s", b"$"]));
    assert!(!blocking(&[b"XREAD", b"STREAMS", b"block", b"0"]));
    assert!(!blocking(&[b"GET", b"block"]));
}

#[test]
fn the_table_is_what_the_server_says() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/command_table.py");
    let out = std::process::Command::new("python3")
        .args([script, "--check"])
        .output()
        .expect("python3 runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
}
