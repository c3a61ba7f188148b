//! A configuration before it is understood: values with the place each came from.
//!
//! Every source (file, environment, flags) becomes such a tree, so that one walk finds every problem and can name its
//! source.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Origin, Problem};
use super::url;

/// A value and its source.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) raw: Raw,
    pub(super) origin: Origin,
}

/// A TOML value, not yet understood.
#[derive(Clone, Debug)]
pub(super) enum Raw {
    Text(String),
    /// As written, since it may not fit any integer type.
    Integer(String, u32),
    Float(String),
    Bool(bool),
    Datetime(String),
    List(Vec<Entry>),
    Table(Table),
}

pub(super) type Table = BTreeMap<String, Entry>;

impl Raw {
    /// What it is, in words.
    pub(super) fn noun(&self) -> &'static str {
        match self {
            Raw::Text(_) => "a string",
            Raw::Integer(..) => "an integer",
            Raw::Float(_) => "a number with a fraction",
            Raw::Bool(_) => "a boolean",
            Raw::Datetime(_) => "a date",
            Raw::List(_) => "a list",
            Raw::Table(_) => "a table",
        }
    }

    /// The value for an error message: as in TOML, shortened, and without anything that could be a secret.
    pub(super) fn shown(&self) -> String {
        match self {
            Raw::Text(text) => {
                let text = if text.contains("://") || text.contains('@') {
                    url::shown(text)
                } else {
                    text.clone()
                };
                format!("{:?}", shortened(&text))
            }
            Raw::Integer(digits, _) => shortened(digits),
            Raw::Float(digits) | Raw::Datetime(digits) => shortened(digits),
            Raw::Bool(value) => value.to_string(),
            Raw::List(items) => {
                let items: Vec<String> = items.iter().map(|item| item.raw.shown()).collect();
                shortened(&format!("[{}]", items.join(", ")))
            }
            Raw::Table(_) => "{…}".to_owned(),
        }
    }
}

fn shortened(text: &str) -> String {
    const MOST: usize = 80;
    if text.chars().count() <= MOST {
        return text.to_owned();
    }
    let mut cut: String = text.chars().take(MOST).collect();
    cut.push('…');
    cut
}

/// Reads TOML. With a syntax error, the rest of the document is still returned, as well as it could be recovered.
pub(super) fn from_toml(text: &str, path: &Arc<Path>, problems: &mut Vec<Problem>) -> Table {
    let lines = Lines::new(text, path);
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in errors {
        problems.push(Problem {
            origin: lines.origin(error.span().map(|span| span.start)),
            subject: String::new(),
            // `message` alone: the error's own display quotes the line, which may hold a password.
            text: format!("not TOML: {}", error.message().replace('\n', ", ")),
        });
    }
    table(document.into_inner(), &lines)
}

/// Reads one TOML value, such as a list in an environment variable.
pub(super) fn value_from_toml(text: &str, origin: &Origin) -> Result<Raw, String> {
    let value = DeValue::parse(text).map_err(|error| error.message().replace('\n', ", "))?;
    let fixed = |_: Option<usize>| origin.clone();
    Ok(raw(value.into_inner(), &fixed))
}

struct Lines<'a> {
    path: &'a Arc<Path>,
    /// Offset of each line's first byte.
    starts: Vec<usize>,
}

impl Lines<'_> {
    fn new<'a>(text: &str, path: &'a Arc<Path>) -> Lines<'a> {
        let starts = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(at, _)| at + 1))
            .collect();
        Lines { path, starts }
    }

    fn origin(&self, offset: Option<usize>) -> Origin {
        Origin::File {
            path: self.path.clone(),
            line: offset.map(|offset| self.starts.partition_point(|start| *start <= offset)),
        }
    }
}

fn table(table: DeTable<'_>, lines: &Lines<'_>) -> Table {
    entries(table, &|offset| lines.origin(offset))
}

fn entries(table: DeTable<'_>, origin: &dyn Fn(Option<usize>) -> Origin) -> Table {
    table
        .into_iter()
        .map(|(key, value)| {
            let at = key.span().start;
            let entry = Entry {
                raw: raw(value.into_inner(), origin),
                origin: origin(Some(at)),
            };
            (key.into_inner().into_owned(), entry)
        })
        .collect()
}

fn raw(value: DeValue<'_>, origin: &dyn Fn(Option<usize>) -> Origin) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.into_owned()),
        DeValue::Integer(digits) => Raw::Integer(digits.as_str().to_owned(), digits.radix()),
        DeValue::Float(digits) => Raw::Float(digits.as_str().to_owned()),
        DeValue::Boolean(value) => Raw::Bool(value),
        DeValue::Datetime(value) => Raw::Datetime(value.to_string()),
        DeValue::Array(items) => Raw::List(
            items
                .into_iter()
                .map(|item: Spanned<DeValue<'_>>| Entry {
                    origin: origin(Some(item.span().start)),
                    raw: raw(item.into_inner(), origin),
                })
                .collect(),
        ),
        DeValue::Table(table) => Raw::Table(entries(table, origin)),
    }
}
