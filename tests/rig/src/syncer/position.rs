//! Where a destination stands in a source's stream, and whether the source can go on from there. Pure.
//!
//! A source's stream is one line of bytes, with an id and an offset per byte. The line is broken when the process ends:
//!
//! ```text
//! process (run)   ├── id A ──┬── id B ──┤            an id may change within a run (REPLICAOF NO ONE): same bytes
//! started anew                            ├─ id C ─  from offset 0, empty: everything it has is in its stream
//! started from a file saved at S of A     ├─ id C ─  from S on; it knows A as its previous id up to S
//! ```

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// How far a destination has applied a source's stream. Written on the destination, in the same script as the effects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Position {
    /// The source's `run_id`: one process.
    pub(super) run: String,
    /// The source's `master_replid`.
    pub(super) id: String,
    /// The last byte that is applied.
    pub(super) offset: u64,
    /// The database that the stream is in after it.
    pub(super) db: u32,
}

impl fmt::Display for Position {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} {} {} {}", self.run, self.id, self.offset, self.db)
    }
}

impl FromStr for Position {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("not a position: {text:?}");
        let [run, id, offset, db] = text.split(' ').collect::<Vec<_>>()[..] else {
            return Err(bad());
        };
        Ok(Self {
            run: run.to_owned(),
            id: id.to_owned(),
            offset: offset.parse().map_err(|_| bad())?,
            db: db.parse().map_err(|_| bad())?,
        })
    }
}

/// What a server says of its own stream (`INFO server`, `INFO replication`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lineage {
    pub(super) run: String,
    pub(super) id: String,
    /// The id before this one, and the first offset that it does not cover.
    pub(super) previous: Option<(String, u64)>,
    pub(super) offset: u64,
    /// First byte that the backlog still has; none when there is no backlog.
    pub(super) backlog: Option<u64>,
}

impl Lineage {
    /// Reads both sections of INFO.
    pub(super) fn parse(info: &str) -> Option<Self> {
        let fields: BTreeMap<&str, &str> = info
            .lines()
            .filter_map(|line| line.trim_end().split_once(':'))
            .collect();
        let number = |name: &str| fields.get(name)?.parse::<u64>().ok();
        let previous = fields
            .get("master_replid2")
            .map(|&id| id.to_owned())
            .zip(number("second_repl_offset"));
        let backlog = fields.get("repl_backlog_active").filter(|&&active| active == "1");
        Some(Self {
            run: (*fields.get("run_id")?).to_owned(),
            id: (*fields.get("master_replid")?).to_owned(),
            previous,
            offset: number("master_repl_offset")?,
            backlog: backlog.and_then(|_| number("repl_backlog_first_byte_offset")),
        })
    }

    pub(super) fn at(&self, offset: u64, db: u32) -> Position {
        Position {
            run: self.run.clone(),
            id: self.id.clone(),
            offset,
            db,
        }
    }

    /// Started empty, and the backlog still has every byte since.
    pub(super) fn is_whole(&self) -> bool {
        self.previous.is_none() && self.backlog == Some(1)
    }

    fn has_after(&self, offset: u64) -> bool {
        self.backlog.is_some_and(|first| first <= offset + 1) && offset <= self.offset
    }

    /// The place in *this* stream from which a holder of `position` lacks nothing; none when only a copy can tell.
    ///
    /// The source may still refuse it (its own bookkeeping decides), which then leads to a copy as well.
    pub(super) fn resume(&self, position: &Position) -> Option<Position> {
        let same_run = position.run == self.run;
        if position.id == self.id {
            return Some(position.clone());
        }
        if same_run && self.previous.is_none() {
            // A new id without memory of the old one: the backlog was dropped and made anew, with a hole between.
            return None;
        }
        if same_run {
            return Some(self.at(position.offset, position.db));
        }
        match &self.previous {
            // The source lost everything. What it has now, it has from its stream.
            None => self.is_whole().then(|| self.at(0, 0)),
            Some((id, end)) if *id == position.id => {
                if position.offset < *end {
                    // It came back from a file which holds all we have, and more.
                    Some(position.clone())
                } else {
                    // It came back from a file older than what we have: new bytes begin where its memory ends.
                    Some(self.at(end - 1, 0))
                }
            }
            Some(_) => None,
        }
    }

    /// Whether someone who stands at `theirs` in this server's stream has seen more of it than the server itself remembers.
    pub(super) fn forgot(&self, theirs: &Position) -> bool {
        theirs.run != self.run
            && match &self.previous {
                None => theirs.offset > 0 && theirs.id != self.id,
                Some((id, end)) => theirs.id == *id && theirs.offset >= *end,
            }
    }

    /// The place in this server's own stream after which its writes are missing in the state of a peer who stands at
    /// `theirs` (none: who knows nothing of it). None when the backlog does not reach that far.
    pub(super) fn own_writes_after(&self, theirs: Option<&Position>) -> Option<Position> {
        let from = match theirs {
            Some(position) => self.resume(position)?,
            None => self.is_whole().then(|| self.at(0, 0))?,
        };
        self.has_after(from.offset).then(|| self.at(from.offset, from.db))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lineage(run: &str, id: &str, previous: Option<(&str, u64)>, offset: u64, backlog: u64) -> Lineage {
        let previous = previous.map(|(id, end)| (id.to_owned(), end));
        Lineage {
            run: run.to_owned(),
            id: id.to_owned(),
            previous,
            offset,
            backlog: Some(backlog),
        }
    }

    fn position(run: &str, id: &str, offset: u64) -> Position {
        Position {
            run: run.to_owned(),
            id: id.to_owned(),
            offset,
            db: 2,
        }
    }

    #[test]
    fn a_position_survives_writing_and_reading() {
        let before = position("run", "id", 17);
        assert_eq!(before.to_string().parse(), Ok(before));
        for bad in ["", "a b c d", "run id 1", "run id 1 2 3", "run id -1 0"] {
            assert!(bad.parse::<Position>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn info_is_read() {
        let info = "# Server\r\nrun_id:r1\r\n# Replication\r\nmaster_replid:a\r\nmaster_replid2:0000\r\n\
            master_repl_offset:50\r\nsecond_repl_offset:-1\r\nrepl_backlog_active:1\r\nrepl_backlog_first_byte_offset:1\r\n";
        let found = Lineage::parse(info).expect("complete");
        assert_eq!(found, lineage("r1", "a", None, 50, 1));
        assert!(found.is_whole());
        let without = info.replace("backlog_active:1", "backlog_active:0");
        assert_eq!(Lineage::parse(&without).expect("complete").backlog, None);
        assert_eq!(Lineage::parse("# Server\r\n"), None);
    }

    #[test]
    fn the_same_process_goes_on_even_under_a_new_id() {
        let shifted = lineage("r1", "b", Some(("a", 41)), 60, 1);
        assert_eq!(
            shifted.resume(&position("r1", "b", 50)),
            Some(position("r1", "b", 50))
        );
        assert_eq!(
            shifted.resume(&position("r1", "a", 30)),
            Some(position("r1", "b", 30))
        );
        assert_eq!(
            shifted.resume(&position("r1", "older", 5)),
            Some(position("r1", "b", 5)),
            "two shifts"
        );
    }

    #[test]
    fn a_backlog_made_anew_has_a_hole() {
        assert_eq!(
            lineage("r1", "b", None, 60, 51).resume(&position("r1", "a", 50)),
            None
        );
    }

    #[test]
    fn an_emptied_source_is_replayed_from_its_start() {
        let fresh = lineage("r2", "c", None, 20, 1);
        let all = Position {
            db: 0,
            ..position("r2", "c", 0)
        };
        assert_eq!(fresh.resume(&position("r1", "a", 500)), Some(all));
        let trimmed = lineage("r2", "c", None, 20_000, 900);
        assert_eq!(trimmed.resume(&position("r1", "a", 500)), None);
    }

    #[test]
    fn a_source_back_from_a_file_goes_on_where_its_memory_ends() {
        let back = lineage("r2", "c", Some(("a", 78)), 90, 78);
        assert_eq!(
            back.resume(&position("r1", "a", 77)),
            Some(position("r1", "a", 77))
        );
        assert_eq!(
            back.resume(&position("r1", "a", 60)),
            Some(position("r1", "a", 60)),
            "the source will refuse it"
        );
        let end = Position {
            db: 0,
            ..position("r2", "c", 77)
        };
        assert_eq!(back.resume(&position("r1", "a", 99)), Some(end));
        assert_eq!(back.resume(&position("r0", "older", 10)), None);
    }

    #[test]
    fn forgetting_is_noticed_by_peers_who_saw_more() {
        let fresh = lineage("r2", "c", None, 0, 1);
        assert!(fresh.forgot(&position("r1", "a", 10)));
        assert!(
            !fresh.forgot(&position("r1", "a", 0)),
            "there was nothing to forget"
        );
        assert!(!fresh.forgot(&position("r2", "c", 10)));
        let back = lineage("r2", "c", Some(("a", 78)), 90, 78);
        assert!(back.forgot(&position("r1", "a", 78)));
        assert!(!back.forgot(&position("r1", "a", 77)));
    }

    #[test]
    fn own_writes_are_found_only_while_the_backlog_has_them() {
        let me = lineage("r1", "a", None, 100, 1);
        assert_eq!(
            me.own_writes_after(None),
            Some(Position {
                db: 0,
                ..position("r1", "a", 0)
            })
        );
        assert_eq!(
            me.own_writes_after(Some(&position("r1", "a", 60))),
            Some(position("r1", "a", 60))
        );
        let trimmed = lineage("r1", "a", None, 1_000, 61);
        assert_eq!(trimmed.own_writes_after(Some(&position("r1", "a", 59))), None);
        assert_eq!(
            trimmed.own_writes_after(Some(&position("r1", "a", 60))),
            Some(position("r1", "a", 60))
        );
        assert_eq!(trimmed.own_writes_after(None), None);
    }
}
