//! The part of a source's stream that one syncer is for: the effects on one cell. Pure.
//!
//! Syncers of one source divide its stream among themselves, so that each effect has exactly one:
//!
//! | effect | whose |
//! |---|---|
//! | on keys | the key's cell's |
//! | message on a channel of the source's own slots | the channel's cell's |
//! | message on another channel (any cluster node takes PUBLISH), command without keys | the one for the rest ([`LinkControl`](super::LinkControl)) |
//! | FLUSHALL, FLUSHDB | each one's, for its own cell |
//! | on keys of several slots | nobody's: counted as refused by the one for the rest |
//! | RESTORE-ASKING | nobody's: a key that moves between shards is no change |

use std::sync::{Arc, PoisonError, RwLock};

use bytes::Bytes;

use super::stream::{Effect, Unit};
use super::tape::Message;
use crate::commands::{Commands, Route};
use crate::slots::{Owners, SlotRange, slot};

/// What a syncer is for. Without a division into cells it is for everything.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    pub(crate) cell: SlotRange,
    /// Where keys are in a command, and which slots are the source's own; none when the cell is everything.
    pub(crate) division: Option<Division>,
}

#[derive(Clone, Debug)]
pub(crate) struct Division {
    pub(crate) commands: Arc<Commands>,
    /// Who owns which slot in the source's region.
    pub(crate) owners: Arc<RwLock<Owners>>,
    /// The source's number there.
    pub(crate) shard: usize,
}

/// The script's words for emptying a cell instead of a database, or of all databases.
pub(super) const FLUSH_CELL: (&[u8], &[u8]) = (b"rig:flushdb", b"rig:flushall");

impl Scope {
    pub(crate) fn everything() -> Self {
        Self {
            cell: SlotRange::ALL,
            division: None,
        }
    }

    /// Leaves in the unit what this syncer is for.
    pub(super) fn narrow(&self, unit: &mut Unit, rest: bool) {
        let Some(division) = &self.division else { return };
        let effects = std::mem::take(&mut unit.effects);
        for mut effect in effects {
            if let Some(flush) = flush(&effect) {
                effect.args = vec![Bytes::from_static(flush)];
                unit.effects.push(effect);
            } else if self.is_for(division, &effect, rest, &mut unit.refused) {
                unit.effects.push(effect);
            }
        }
    }

    fn is_for(&self, division: &Division, effect: &Effect, rest: bool, refused: &mut u64) -> bool {
        if effect.is_named(b"restore-asking") {
            return false;
        }
        match division.commands.route(&effect.args) {
            Route::Slot(slot) if effect.is_message() => {
                let owners = division.owners.read().unwrap_or_else(PoisonError::into_inner);
                self.carries(slot, owners.of(slot) == division.shard, rest)
            }
            Route::Slot(slot) => self.cell.contains(slot),
            Route::Anywhere => rest,
            Route::Crossing => {
                *refused += u64::from(rest);
                false
            }
        }
    }

    /// Whether an overheard message is for this syncer.
    pub(super) fn hears(&self, message: &Message, rest: bool) -> bool {
        self.carries(message.slot, message.own, rest)
    }

    fn carries(&self, slot: u16, own: bool, rest: bool) -> bool {
        if own { self.cell.contains(slot) } else { rest }
    }
}

fn flush(effect: &Effect) -> Option<&'static [u8]> {
    let words = [(&b"flushdb"[..], FLUSH_CELL.0), (b"flushall", FLUSH_CELL.1)];
    let found = words.into_iter().find(|(name, _)| effect.is_named(name));
    found.map(|(_, flush)| flush)
}

/// The key of a cell's books: it lies in the cell itself, so that it is wherever the cell's keys are.
pub(crate) fn books_key(cell: SlotRange) -> String {
    if cell == SlotRange::ALL {
        return "rig:applied".to_owned();
    }
    let tag = crate::slots::tag(cell.first);
    debug_assert_eq!(slot(tag.as_bytes()), cell.first);
    format!("rig:applied:{{{tag}}}")
}
