//! The books that every server keeps of what was applied on it: one hash, `rig:applied`, in database 15.
//!
//! | field | value |
//! |---|---|
//! | `from:<source>` | the [`Position`] up to which that source's stream is applied |
//! | `debt`, `debt-until` | own writes that a copy has overwritten and that must be applied again: from, to |
//! | `rebuilt` | the run in which this server was last made from a copy |
//!
//! The books change only inside the script that applies the effects they speak of, and never enter the server's own
//! stream. So they are true whatever connection breaks, and die with the data they describe.

use std::collections::BTreeMap;

use super::SyncError;
use super::position::{Lineage, Position};

/// A server's stream and books, read in one moment.
#[derive(Clone, Debug)]
pub(super) struct Books {
    pub(super) lineage: Lineage,
    /// What was applied, by source.
    pub(super) from: BTreeMap<String, Position>,
    pub(super) debt: Option<Debt>,
    pub(super) rebuilt: Option<String>,
}

/// Own writes in `(from.offset, until]` that are still to be applied again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Debt {
    pub(super) from: Position,
    pub(super) until: u64,
}

/// The field of a source.
pub(super) fn field(source: &str) -> String {
    format!("from:{source}")
}

impl Books {
    pub(super) fn read(info: &str, hash: &BTreeMap<String, String>) -> Result<Self, SyncError> {
        let wrong = |what: String| SyncError::Protocol(format!("the books: {what}"));
        let lineage = Lineage::parse(info).ok_or_else(|| wrong("INFO lacks what is needed".to_owned()))?;
        let mut from = BTreeMap::new();
        for (name, value) in hash {
            if let Some(source) = name.strip_prefix("from:") {
                from.insert(source.to_owned(), value.parse().map_err(wrong)?);
            }
        }
        let debt = match (hash.get("debt"), hash.get("debt-until")) {
            (Some(from), Some(until)) => Some(Debt {
                from: from.parse().map_err(wrong)?,
                until: until
                    .parse()
                    .map_err(|_| wrong(format!("debt-until is {until:?}")))?,
            }),
            _ => None,
        };
        Ok(Self {
            lineage,
            from,
            debt,
            rebuilt: hash.get("rebuilt").cloned(),
        })
    }

    /// Whether the server knows every source that `other` knows, the named one aside.
    pub(super) fn know_all_of(&self, other: &Self, aside: &str) -> bool {
        other
            .from
            .keys()
            .all(|source| source == aside || self.from.contains_key(source))
    }
}
