//! Environment variables: `PULSEGATE_SECTION__KEY`, and `PULSEGATE_REPLICA__0__KEY` by position.

use std::ffi::OsString;

use super::problem::{Origin, Problem, nearest};
use super::schema::{self, Kind, Place};
use super::tree::{self, Entry, Raw, Table};
use super::value::NOT_BUILT;

/// What all variables begin with.
const PREFIX: &str = "PULSEGATE_";

/// Variables that are not keys: the file that `--config` would name.
const NOT_KEYS: &[&str] = &["PULSEGATE_CONFIG"];

/// Most replicas that a configuration can have; `ReplicaId` and the engine's tables are sized for few.
pub(super) const MOST_REPLICAS: usize = 16;

/// The variable of the key at `path`; `position` is the replica's.
pub(super) fn name_of(path: &str, position: usize) -> String {
    let path = path.to_uppercase().replace('.', "__");
    match path.strip_prefix("REPLICA__") {
        Some(rest) => format!("{PREFIX}REPLICA__{position}__{rest}"),
        None => format!("{PREFIX}{path}"),
    }
}

/// Puts the variables among `vars` that are Pulsegate's over `root`.
pub(super) fn overlay(root: &mut Table, vars: &[(OsString, OsString)], problems: &mut Vec<Problem>) {
    let mut found: Vec<(usize, &'static schema::Key, Entry)> = Vec::new();
    for (name, value) in vars {
        let Some(name) = name.to_str() else { continue };
        let Some(rest) = name.strip_prefix(PREFIX) else {
            continue;
        };
        if NOT_KEYS.contains(&name) || is_service_link(rest) {
            continue;
        }
        let mut problem = |text: String| {
            problems.push(Problem {
                origin: Origin::Environment(name.to_owned()),
                subject: String::new(),
                text,
            });
        };
        let (key, position) = match find(rest) {
            Ok(found) => found,
            Err(text) => {
                problem(text);
                continue;
            }
        };
        let Some(value) = value.to_str() else {
            problem("not UTF-8".to_owned());
            continue;
        };
        let origin = Origin::Environment(name.to_owned());
        match read(key.kind, value, &origin) {
            Ok(raw) => found.push((position, key, Entry { raw, origin })),
            Err(text) => problem(text),
        }
    }
    // By position, so that `REPLICA__1` finds what `REPLICA__0` has made.
    found.sort_by_key(|(position, key, _)| (*position, key.path));
    for (position, key, entry) in found {
        let origin = entry.origin.clone();
        if let Err(text) = put(root, key.path, position, entry) {
            problems.push(Problem {
                origin,
                subject: String::new(),
                text,
            });
        }
    }
}

/// The key and replica position that a variable's name, without the prefix, stands for.
fn find(rest: &str) -> Result<(&'static schema::Key, usize), String> {
    let mut segments: Vec<String> = rest.split("__").map(str::to_lowercase).collect();
    let mut position = 0;
    if segments[0] == "replica" && segments.len() > 1 {
        position = match segments[1].parse::<usize>() {
            Ok(position) if position < MOST_REPLICAS => position,
            _ => {
                return Err(format!(
                    "after REPLICA__ comes the replica's position, from 0 to {}; write e.g. {}",
                    MOST_REPLICAS - 1,
                    name_of("replica.url", 0)
                ));
            }
        };
        segments.remove(1);
    }
    for end in 1..=segments.len() {
        let path = segments[..end].join(".");
        match schema::place(&path) {
            Place::Key(key) if matches!(key.kind, Kind::NotBuilt) => {
                return Err(format!("{path}: {NOT_BUILT}"));
            }
            Place::Key(key) if end == segments.len() => return Ok((key, position)),
            Place::Section if end == segments.len() => {
                let first = schema::names_in(&path)[0];
                return Err(format!(
                    "{path} is a table; set its keys, e.g. {}",
                    name_of(&format!("{path}.{first}"), position)
                ));
            }
            Place::Section => {}
            Place::Key(_) | Place::Unknown => break,
        }
    }
    let names: Vec<String> = schema::KEYS
        .iter()
        .map(|key| name_of(key.path, position))
        .collect();
    let name = format!("{PREFIX}{rest}").to_lowercase();
    Err(match nearest(&name, names.iter().map(String::as_str)) {
        Some(near) => format!("unknown variable; did you mean {near}?"),
        None => format!("unknown variable; they are named like {}", names[0]),
    })
}

/// Text of the environment as the kind of raw value that a file would have.
fn read(kind: Kind, text: &str, origin: &Origin) -> Result<Raw, String> {
    if !kind.is_list() {
        return Ok(typed(kind, text));
    }
    if text.trim_start().starts_with('[') && text.contains(['"', '\'']) {
        return tree::value_from_toml(text, origin).map_err(|why| format!("not a TOML list: {why}"));
    }
    let items = text.split(',').map(|item| Entry {
        raw: Raw::Text(item.trim().to_owned()),
        origin: origin.clone(),
    });
    Ok(Raw::List(items.collect()))
}

/// Text that stands for a value of `kind`: numbers and switches need no quotes.
pub(super) fn typed(kind: Kind, text: &str) -> Raw {
    let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match (kind, text) {
        (Kind::Count(..) | Kind::AutoOr(..) | Kind::Size(..), digits) if is_number => {
            Raw::Integer(digits.to_owned(), 10)
        }
        (Kind::Switch, "true") => Raw::Bool(true),
        (Kind::Switch, "false") => Raw::Bool(false),
        _ => Raw::Text(text.to_owned()),
    }
}

fn put(root: &mut Table, path: &str, position: usize, entry: Entry) -> Result<(), String> {
    let Some(below) = path.strip_prefix("replica.") else {
        put_in(root, path, entry);
        return Ok(());
    };
    let origin = entry.origin.clone();
    let list = root.entry("replica".to_owned()).or_insert_with(|| Entry {
        raw: Raw::List(Vec::new()),
        origin: origin.clone(),
    });
    // Anything but a list is a mistake of the file, which the walk reports.
    let Raw::List(items) = &mut list.raw else {
        return Ok(());
    };
    if position > items.len() {
        return Err(format!(
            "there is no replica {} before it; positions count from 0 without a gap",
            position - 1
        ));
    }
    if position == items.len() {
        items.push(Entry {
            raw: Raw::Table(Table::new()),
            origin,
        });
    }
    if let Raw::Table(table) = &mut items[position].raw {
        put_in(table, below, entry);
    }
    Ok(())
}

/// Sets `path` in `table`, making the tables on the way.
pub(super) fn put_in(table: &mut Table, path: &str, entry: Entry) {
    let Some((section, rest)) = path.split_once('.') else {
        table.insert(path.to_owned(), entry);
        return;
    };
    let origin = entry.origin.clone();
    let inner = table.entry(section.to_owned()).or_insert_with(|| Entry {
        raw: Raw::Table(Table::new()),
        origin,
    });
    if let Raw::Table(inner) = &mut inner.raw {
        put_in(inner, rest, entry);
    }
}

/// Kubernetes sets `PULSEGATE_SERVICE_HOST`, `PULSEGATE_PORT_6379_TCP_ADDR` and so on in every Pod beside a Service
/// called `pulsegate`, `pulsegate-admin`, …: they are nobody's mistake.
fn is_service_link(rest: &str) -> bool {
    if rest.contains("__") {
        return false;
    }
    let rest = format!("_{rest}");
    rest.ends_with("_SERVICE_HOST")
        || rest.contains("_SERVICE_PORT")
        || rest.ends_with("_PORT")
        || rest.split("_PORT_").nth(1).is_some_and(|tail| {
            let mut parts = tail.split('_');
            let port = parts.next().is_some_and(|port| port.parse::<u16>().is_ok());
            let protocol = matches!(parts.next(), Some("TCP" | "UDP" | "SCTP"));
            port && protocol
        })
}
