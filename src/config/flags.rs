//! Flags of the command line: the last word.

use super::env::put_in;
use super::problem::{Origin, Problem};
use super::tree::{Entry, Raw, Table};
use super::url;

/// What the command line sets; empty or `None`: not set there.
#[derive(Clone, Default, Debug)]
pub struct Flags {
    /// `--listen`, each an address; together they replace `listener.bind`.
    pub listen: Vec<String>,
    /// `--replica`, each `NAME=URL`, in order of preference; together they replace the list of the file. A replica of
    /// the same name keeps the other keys that the file or the environment gives it, but not its weight.
    pub replicas: Vec<String>,
    /// `--profile`
    pub profile: Option<String>,
    /// `--admin`
    pub admin: Option<String>,
    /// `--allow-open`
    pub allow_open: bool,
    /// `--log-level`
    pub log_level: Option<String>,
    /// `--log-format`
    pub log_format: Option<String>,
}

/// Puts the flags over `root`.
pub(super) fn overlay(root: &mut Table, flags: &Flags, problems: &mut Vec<Problem>) {
    let text = |flag, text: &String| Entry {
        raw: Raw::Text(text.clone()),
        origin: Origin::Flag(flag),
    };
    if !flags.listen.is_empty() {
        let items = flags.listen.iter().map(|item| text("--listen", item)).collect();
        let entry = Entry {
            raw: Raw::List(items),
            origin: Origin::Flag("--listen"),
        };
        put_in(root, "listener.bind", entry);
    }
    let words = [
        ("--profile", "detection.profile", &flags.profile),
        ("--admin", "admin.bind", &flags.admin),
        ("--log-level", "log.level", &flags.log_level),
        ("--log-format", "log.format", &flags.log_format),
    ];
    for (flag, path, value) in words {
        if let Some(value) = value {
            put_in(root, path, text(flag, value));
        }
    }
    if flags.allow_open {
        let entry = Entry {
            raw: Raw::Bool(true),
            origin: Origin::Flag("--allow-open"),
        };
        put_in(root, "listener.allow_open", entry);
    }
    if !flags.replicas.is_empty() {
        replicas(root, &flags.replicas, problems);
    }
}

fn replicas(root: &mut Table, flags: &[String], problems: &mut Vec<Problem>) {
    let origin = Origin::Flag("--replica");
    let mut before = match root.remove("replica").map(|entry| entry.raw) {
        Some(Raw::List(items)) => items,
        _ => Vec::new(),
    };
    let mut list = Vec::new();
    for (i, flag) in flags.iter().enumerate() {
        let Some((name, url)) = flag.split_once('=').filter(|(name, _)| is_name(name)) else {
            problems.push(Problem {
                origin: origin.clone(),
                subject: format!("replica[{i}] = {:?}", url::shown(flag)),
                text: "write NAME=URL, e.g. local=redis://127.0.0.1:6380".to_owned(),
            });
            continue;
        };
        let mut table = take(&mut before, name, i);
        // The order of the flags is the preference.
        table.remove("weight");
        for (key, value) in [("name", name), ("url", url)] {
            let entry = Entry {
                raw: Raw::Text(value.to_owned()),
                origin: origin.clone(),
            };
            table.insert(key.to_owned(), entry);
        }
        list.push(Entry {
            raw: Raw::Table(table),
            origin: origin.clone(),
        });
    }
    // What the environment says of a replica that no flag makes would be lost in silence.
    for rest in before {
        if let Raw::Table(table) = &rest.raw
            && !table.contains_key("name")
        {
            list.push(rest);
        }
    }
    let entry = Entry {
        raw: Raw::List(list),
        origin,
    };
    root.insert("replica".to_owned(), entry);
}

/// The other keys of the replica called `name`: the one of that name, or else a nameless one at the same position (the
/// environment can give a position a password file, say, and the flag its name).
fn take(before: &mut [Entry], name: &str, position: usize) -> Table {
    let name_in = |entry: &Entry| match &entry.raw {
        Raw::Table(table) => table.get("name").map(|entry| match &entry.raw {
            Raw::Text(text) => text.clone(),
            _ => String::new(),
        }),
        _ => Some(String::new()),
    };
    let named = before
        .iter()
        .position(|entry| name_in(entry).as_deref() == Some(name));
    let nameless = (position < before.len() && name_in(&before[position]).is_none()).then_some(position);
    let Some(found) = named.or(nameless) else {
        return Table::new();
    };
    // Left behind with a name, so that it is not taken twice and not taken for a nameless one.
    let left = Entry {
        raw: Raw::Bool(false),
        origin: before[found].origin.clone(),
    };
    match std::mem::replace(&mut before[found], left).raw {
        Raw::Table(table) => table,
        _ => Table::new(),
    }
}

/// Whether `text` can be a replica's name: it stands in metrics' labels, in URLs and on command lines.
pub(super) fn is_name(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 63
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'))
}
