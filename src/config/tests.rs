//! The schema against itself, and the parts that never leave this module.

use std::path::PathBuf;
use std::time::Duration;

use super::problem::nearest;
use super::schema::{self, KEYS, Kind, Place};
use super::tree::Raw;
use super::value::{self, Value, shown_size};
use super::{env, url};
use crate::replica::Address;

#[test]
fn every_default_can_be_read_as_its_kind() {
    let mut with_default = 0;
    for key in KEYS {
        if let Some(default) = key.default {
            with_default += 1;
            let read = value::read(key.kind, &env::typed(key.kind, default));
            assert!(read.is_ok(), "{}: {read:?}", key.path);
        }
    }
    assert!(with_default > 15, "{with_default} keys have a default");
}

#[test]
fn profiles_are_within_the_ranges_of_their_keys() {
    for word in ["fast", "balanced", "patient"] {
        let profile = schema::profile(word);
        assert!(
            profile.heartbeat_timeout >= profile.heartbeat_interval * 2,
            "{word}"
        );
        for (path, duration) in [
            ("detection.heartbeat_interval", profile.heartbeat_interval),
            ("detection.heartbeat_timeout", profile.heartbeat_timeout),
            ("detection.probe_interval", profile.probe_interval),
            ("detection.connect_timeout", profile.connect_timeout),
            ("detection.response_timeout", profile.response_timeout),
        ] {
            let text = humantime::format_duration(duration).to_string();
            let read = value::read(schema::known(path).kind, &Raw::Text(text));
            assert!(
                matches!(read, Ok(Value::Duration(read)) if read == duration),
                "{word} {path}"
            );
        }
    }
}

#[test]
fn every_variable_name_leads_back_to_its_key() {
    for key in KEYS {
        let name = env::name_of(key.path, 3);
        let mut root = super::tree::Table::new();
        let mut problems = Vec::new();
        env::overlay(&mut root, &[(name.clone().into(), "1".into())], &mut problems);
        let texts: Vec<String> = problems.iter().map(ToString::to_string).collect();
        match key.kind {
            Kind::NotBuilt => assert_eq!(
                texts,
                [format!("{name}: {}: not built yet in this version", key.path)]
            ),
            // Known, but replica 3 cannot come first.
            _ if key.path.starts_with("replica.") => {
                assert_eq!(texts.len(), 1, "{texts:?}");
                assert!(texts[0].contains("there is no replica 2 before it"), "{texts:?}");
            }
            _ => assert!(problems.is_empty() && !root.is_empty(), "{texts:?}"),
        }
    }
}

#[test]
fn sections_are_told_from_keys() {
    assert!(matches!(schema::place("replica.tls"), Place::Section));
    assert!(matches!(schema::place("replica.tls.ca"), Place::Key(_)));
    assert!(matches!(schema::place("replica.t"), Place::Unknown));
    assert_eq!(schema::names_in("hold"), ["timeout", "max_commands", "max_bytes"]);
    assert!(schema::names_in("replica").contains(&"tls"));
    assert_eq!(schema::sections_with("dwell", "hold"), ["failover"]);
    assert_eq!(
        schema::sections_with("lag_tolerance", "hold"),
        ["failback", "replica.rest"]
    );
}

#[test]
fn near_names_are_suggested_and_far_ones_are_not() {
    let known = ["max_clients", "bind", "workers", "password_file"];
    for (word, want) in [
        ("max_client", Some("max_clients")),
        ("maxclients", Some("max_clients")),
        ("max-clients", Some("max_clients")),
        ("Bind", Some("bind")),
        ("bnid", Some("bind")),
        ("password", Some("password_file")),
        ("threads", None),
        ("x", None),
    ] {
        assert_eq!(nearest(word, known), want, "{word}");
    }
}

#[test]
fn urls_are_taken_apart() {
    let tcp = |host: &str, port| Address::Tcp {
        host: host.to_owned(),
        port,
    };
    type Case = (
        &'static str,
        Address,
        bool,
        Option<&'static str>,
        Option<&'static str>,
    );
    let cases: [Case; 12] = [
        ("redis://h", tcp("h", 6379), false, None, None),
        ("redis://h:1/", tcp("h", 1), false, None, None),
        ("redis://h:1/0", tcp("h", 1), false, None, None),
        ("rediss://h:1", tcp("h", 1), true, None, None),
        ("redis://[::1]:7", tcp("::1", 7), false, None, None),
        ("redis://[::1]", tcp("::1", 6379), false, None, None),
        ("redis://:p@h", tcp("h", 6379), false, None, Some("p")),
        ("redis://u@h", tcp("h", 6379), false, Some("u"), None),
        ("redis://u:p@h:2", tcp("h", 2), false, Some("u"), Some("p")),
        (
            "redis://a%40b:%2F%3a%25%C3%A9@h",
            tcp("h", 6379),
            false,
            Some("a@b"),
            Some("/:%é"),
        ),
        (
            "redis://u:a:b@c@h",
            tcp("h", 6379),
            false,
            Some("u"),
            Some("a:b@c"),
        ),
        (
            "unix:/run/r.sock",
            Address::Unix(PathBuf::from("/run/r.sock")),
            false,
            None,
            None,
        ),
    ];
    for (text, address, tls, username, password) in cases {
        let url = url::parse(text).unwrap_or_else(|why| panic!("{text}: {why}"));
        assert_eq!(url.address, address, "{text}");
        assert_eq!(url.tls, tls, "{text}");
        assert_eq!(url.username.as_deref(), username, "{text}");
        assert_eq!(
            url.password.as_ref().map(|password| password.expose()),
            password,
            "{text}"
        );
    }
    let url = url::parse("unix:///run/r.sock").map(|url| url.address);
    assert_eq!(url, Ok(Address::Unix(PathBuf::from("/run/r.sock"))));
}

#[test]
fn a_url_is_shown_without_anything_that_could_be_a_password() {
    for (text, want) in [
        ("redis://h:1", "redis://h:1"),
        ("redis://[::1]:7", "redis://[::1]:7"),
        ("redis://h:1/5", "redis://h:1/5"),
        ("h:6379", "h:6379"),
        ("unix:///run/r.sock", "unix:///run/r.sock"),
        ("unix:/run/r.sock", "unix:/run/r.sock"),
        ("redis://u:secret@h:1", "redis://***@h:1"),
        ("redis://:se@cr/et@h", "redis://***@h"),
        ("redis://:secret", "redis://…"),
        ("redis://u:secret", "redis://…"),
        ("redis://h?password=secret", "redis://…"),
        ("redis://h/secret", "redis://…"),
        ("redis://h:1#secret", "redis://…"),
        ("u:secret@h", "***@h"),
        ("s e c r e t", "…"),
        ("sec ret://h", "…"),
        ("unix:/run/r?pass=secret", "unix:…"),
    ] {
        assert_eq!(url::shown(text), want, "{text}");
        assert!(!url::shown(text).contains("cret"), "{text}");
    }
}

#[test]
fn sizes_and_durations_have_units() {
    let size = |raw| match value::read(Kind::Size(0, u64::MAX), &raw) {
        Ok(Value::Number(bytes)) => Some(bytes),
        _ => None,
    };
    for (text, want) in [
        ("1", Some(1)),
        ("1B", Some(1)),
        ("3KiB", Some(3 << 10)),
        ("64 MiB", Some(64 << 20)),
        ("2GiB", Some(2 << 30)),
        ("3kB", Some(3000)),
        ("3MB", Some(3_000_000)),
        ("64M", None),
        ("-1", None),
        ("1.5MiB", None),
        ("", None),
        ("MiB", None),
        ("99999999999999999999", None),
        ("99999999999GiB", None),
    ] {
        assert_eq!(size(Raw::Text(text.to_owned())), want, "{text}");
    }
    assert_eq!(size(Raw::Integer("1024".to_owned(), 10)), Some(1024));
    assert_eq!(size(Raw::Integer("-1".to_owned(), 10)), None);
    for (bytes, want) in [
        (0, "0B"),
        (1000, "1000B"),
        (1024, "1KiB"),
        (1536, "1536B"),
        (64 << 20, "64MiB"),
    ] {
        assert_eq!(shown_size(bytes), want);
    }
    let duration = |text: &str| match value::read(Kind::Duration(0, 10_000_000), &Raw::Text(text.to_owned()))
    {
        Ok(Value::Duration(duration)) => Some(duration),
        _ => None,
    };
    assert_eq!(duration("250ms"), Some(Duration::from_millis(250)));
    assert_eq!(duration("1m 30s"), Some(Duration::from_secs(90)));
    assert_eq!(duration("0"), Some(Duration::ZERO));
    for text in ["", "5", "5 parsecs", "-1s", "s"] {
        assert_eq!(duration(text), None, "{text}");
    }
}
