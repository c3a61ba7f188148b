//! The walk over a tree: every entry is looked up in the schema and read, every problem is noted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::problem::{Origin, Problem, nearest};
use super::schema::{self, Kind, Place};
use super::tree::{Entry, Raw, Table};
use super::value::{self, Value};
use super::{Bind, url};

/// The values that could be read, by path (`replica[0].url`).
#[derive(Default)]
pub(super) struct Values {
    given: BTreeMap<String, Given>,
    bad: BTreeSet<String>,
    /// Where each `[[replica]]` stands.
    pub(super) replicas: Vec<Origin>,
}

/// A value that could be read, and its source.
#[derive(Debug)]
pub(super) struct Given {
    pub(super) value: Value,
    pub(super) origin: Origin,
    /// `key = value`, fit for an error.
    pub(super) subject: String,
}

/// Reads everything in `root`.
pub(super) fn walk(root: &Table, problems: &mut Vec<Problem>) -> Values {
    let mut walk = Walk {
        values: Values::default(),
        problems,
    };
    walk.section(root, "", "");
    walk.values
}

struct Walk<'a> {
    values: Values,
    problems: &'a mut Vec<Problem>,
}

impl Walk<'_> {
    /// `path` as in the schema, `shown` with list positions.
    fn section(&mut self, table: &Table, path: &str, shown: &str) {
        for (name, entry) in table {
            let join = |section: &str| match section {
                "" => name.clone(),
                section => format!("{section}.{name}"),
            };
            let (path_here, shown_here) = (join(path), join(shown));
            match schema::place(&path_here) {
                Place::Key(key) => self.key(key.kind, entry, &shown_here),
                Place::Section if path_here == "replica" => self.replicas(entry),
                Place::Section => match &entry.raw {
                    Raw::Table(table) => self.section(table, &path_here, &shown_here),
                    other => {
                        let text = format!(
                            "{} where a table is needed; write {}",
                            other.noun(),
                            schema::bracketed(&path_here)
                        );
                        self.problem(&entry.origin, shown_here, text);
                    }
                },
                Place::Unknown => {
                    let text = unknown(name, path, matches!(entry.raw, Raw::Table(_)));
                    self.problem(&entry.origin, shown_here, text);
                }
            }
        }
    }

    fn replicas(&mut self, entry: &Entry) {
        let Raw::List(items) = &entry.raw else {
            let text = "write [[replica]] before the keys of each replica".to_owned();
            self.problem(&entry.origin, "replica".to_owned(), text);
            self.values.bad.insert("replica".to_owned());
            return;
        };
        for (i, item) in items.iter().enumerate() {
            let shown = format!("replica[{i}]");
            self.values.replicas.push(item.origin.clone());
            match &item.raw {
                Raw::Table(table) => self.section(table, "replica", &shown),
                other => {
                    let text = format!("{} where a table is needed; write [[replica]]", other.noun());
                    self.values.bad.insert(format!("{shown}.name"));
                    self.values.bad.insert(format!("{shown}.url"));
                    self.problem(&item.origin, shown, text);
                }
            }
        }
    }

    fn key(&mut self, kind: Kind, entry: &Entry, shown: &str) {
        match (kind, &entry.raw) {
            (kind, Raw::List(items)) if kind.is_list() => {
                if items.is_empty() && matches!(kind, Kind::Binds) {
                    let text = "at least one address is needed".to_owned();
                    self.values.bad.insert(shown.to_owned());
                    self.problem(&entry.origin, format!("{shown} = []"), text);
                }
                for (i, item) in items.iter().enumerate() {
                    self.value(kind, item, &format!("{shown}[{i}]"));
                }
            }
            (kind, _) if kind.is_list() => self.value(kind, entry, &format!("{shown}[0]")),
            _ => self.value(kind, entry, shown),
        }
    }

    fn value(&mut self, kind: Kind, entry: &Entry, shown: &str) {
        let subject = subject(kind, &entry.raw, shown);
        match value::read(kind, &entry.raw) {
            Ok(value) => {
                let given = Given {
                    value,
                    origin: entry.origin.clone(),
                    subject,
                };
                self.values.given.insert(shown.to_owned(), given);
            }
            Err(text) => {
                self.values.bad.insert(shown.to_owned());
                self.problem(&entry.origin, subject, text);
            }
        }
    }

    fn problem(&mut self, origin: &Origin, subject: String, text: String) {
        self.problems.push(Problem {
            origin: origin.clone(),
            subject,
            text,
        });
    }
}

fn subject(kind: Kind, raw: &Raw, shown: &str) -> String {
    match (kind, raw) {
        (Kind::NotBuilt, _) => shown.to_owned(),
        // A URL is shown by rules of its own, whatever it looks like.
        (Kind::Url | Kind::HttpUrl, Raw::Text(text)) => format!("{shown} = {:?}", url::shown(text)),
        (_, raw) => format!("{shown} = {}", raw.shown()),
    }
}

/// What to say of a name that is not in section `path`.
fn unknown(name: &str, path: &str, is_table: bool) -> String {
    if name == "password" && path.starts_with("replica") {
        return "unknown key; put the password into a file and name it in password_file".to_owned();
    }
    let elsewhere = schema::sections_with(name, path);
    if let Some(section) = elsewhere.first()
        && !is_table
    {
        return format!("unknown key here; it belongs in {}", schema::bracketed(section));
    }
    let names = schema::names_in(path);
    if let Some(near) = nearest(name, names.iter().copied()) {
        return format!("unknown key; did you mean {near:?}?");
    }
    let place = match path {
        "" => "sections are".to_owned(),
        path => format!("keys of {} are", schema::bracketed(path)),
    };
    format!("unknown key; {place} {}", names.join(", "))
}

/// A schema path for a path with list positions.
fn schema_path(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    let mut inside = false;
    for c in path.chars() {
        match c {
            '[' => inside = true,
            ']' => inside = false,
            c if !inside => out.push(c),
            _ => {}
        }
    }
    out
}

impl Values {
    /// What was given for `path`, when it could be read.
    pub(super) fn given(&self, path: &str) -> Option<&Given> {
        self.given.get(path)
    }

    /// Whether something was given for `path` that could not be read: a problem is noted already.
    pub(super) fn is_bad(&self, path: &str) -> bool {
        self.bad.contains(path)
    }

    /// The text of `path`, when given.
    pub(super) fn text(&self, path: &str) -> Option<&str> {
        match self.given(path)?.value {
            Value::Text(ref text) => Some(text),
            _ => None,
        }
    }

    /// The word of `path`, or its default.
    pub(super) fn word(&self, path: &str) -> String {
        match self.or_default(path) {
            Value::Text(text) => text,
            other => unreachable!("{path} is no text: {other:?}"),
        }
    }

    /// The duration of `path`, when given.
    pub(super) fn given_duration(&self, path: &str) -> Option<Duration> {
        match self.given(path)?.value {
            Value::Duration(value) => Some(value),
            _ => None,
        }
    }

    /// The duration of `path`, or its default.
    pub(super) fn duration(&self, path: &str) -> Duration {
        match self.or_default(path) {
            Value::Duration(value) => value,
            other => unreachable!("{path} is no duration: {other:?}"),
        }
    }

    /// The number of `path`, when given.
    pub(super) fn given_number(&self, path: &str) -> Option<u64> {
        match self.given(path)?.value {
            Value::Number(value) => Some(value),
            _ => None,
        }
    }

    /// The number of `path`, or its default.
    pub(super) fn number(&self, path: &str) -> u64 {
        match self.or_default(path) {
            Value::Number(value) => value,
            other => unreachable!("{path} is no number: {other:?}"),
        }
    }

    /// The switch of `path`, or its default.
    pub(super) fn switch(&self, path: &str) -> bool {
        match self.or_default(path) {
            Value::Switch(value) => value,
            other => unreachable!("{path} is no switch: {other:?}"),
        }
    }

    /// The percentages of `path`, or their default.
    pub(super) fn steps(&self, path: &str) -> Vec<u8> {
        match self.or_default(path) {
            Value::Steps(steps) => steps,
            other => unreachable!("{path} is no list of percentages: {other:?}"),
        }
    }

    /// The values of list `path` that could be read.
    pub(super) fn list<'a>(&'a self, path: &'a str) -> impl Iterator<Item = &'a Given> {
        (0..)
            .map(move |i| format!("{path}[{i}]"))
            .map_while(|item| match self.given(&item) {
                None if self.is_bad(&item) => Some(None),
                None => None,
                given => Some(given),
            })
            .flatten()
    }

    /// The addresses of `path` with where each was given; its default when nothing was.
    pub(super) fn binds<'a>(&'a self, path: &'a str) -> Vec<(Bind, Option<&'a Given>)> {
        let of_given = |given: &'a Given| match &given.value {
            Value::Bind(bind) => Some((bind.clone(), Some(given))),
            _ => None,
        };
        let mut binds: Vec<_> = self.list(path).filter_map(of_given).collect();
        let is_given = !binds.is_empty() || self.is_bad(path) || self.is_bad(&format!("{path}[0]"));
        if !is_given && let Value::Bind(bind) = default_of(path) {
            binds.push((bind, None));
        }
        binds
    }

    fn or_default(&self, path: &str) -> Value {
        match self.given(path).map(|given| &given.value) {
            Some(Value::Text(text)) => Value::Text(text.clone()),
            Some(Value::Duration(value)) => Value::Duration(*value),
            Some(Value::Number(value)) => Value::Number(*value),
            Some(Value::Switch(value)) => Value::Switch(*value),
            Some(Value::Address(value)) => Value::Address(*value),
            Some(Value::Steps(steps)) => Value::Steps(steps.clone()),
            Some(Value::Bind(_) | Value::AddressPair(_) | Value::Url(_)) | None => {
                default_of(&schema_path(path))
            }
        }
    }

    /// The address of `path`, or its default.
    pub(super) fn address(&self, path: &str) -> std::net::SocketAddr {
        match self.or_default(path) {
            Value::Address(value) => value,
            other => unreachable!("{path} is no address: {other:?}"),
        }
    }
}

/// The default of a key that has one. Tests read every default, so a bad one does not leave the workshop.
fn default_of(path: &str) -> Value {
    let key = schema::known(path);
    let text = key
        .default
        .unwrap_or_else(|| unreachable!("{path} has no default"));
    let raw = super::env::typed(key.kind, text);
    value::read(key.kind, &raw).unwrap_or_else(|why| unreachable!("default of {path}: {why}"))
}
