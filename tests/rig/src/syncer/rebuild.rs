//! What is done when the stream alone cannot bring the destination up to date: whom to believe, and what to copy.
//!
//! A copy must not apply anything twice, nor lose what the destination's own clients have written. So it is not a merge:
//! the destination *becomes* the source's snapshot, together with the source's books about the other regions (their
//! streams go on from there), and then its own writes that the source had not had yet are applied again, from its
//! own backlog: the debt. All but the last happens in one script, and the debt is in the books too.
//!
//! Where that is impossible (the own backlog is gone, or the source knows less of other regions than the
//! destination does), keys that are missing are added and the others stay: the best that can be done, not exact.

use std::time::Duration;

use tokio::time::timeout;

use super::books::{Books, field};
use super::position::Position;
use super::server::Server;
use super::stream::{Effect, Psync, SourceStream};
use super::{Link, SyncError};

/// The backlog's bytes are there already; a server that sends none for so long does not have them.
const BACKLOG_PATIENCE: Duration = Duration::from_millis(500);

impl Link {
    /// Where to resume the source's stream; none when a copy is needed.
    pub(super) fn place_to_resume(&self, here: &Books, there: &Books) -> Option<Position> {
        let rebuilt = here.rebuilt.as_ref() == Some(&here.lineage.run);
        let theirs = there.from.get(&self.to.id);
        if !rebuilt && theirs.is_some_and(|theirs| here.lineage.forgot(theirs)) {
            // The destination has lost writes of its own that the source still has.
            return None;
        }
        match here.from.get(&self.from.id) {
            Some(position) => there.lineage.resume(position),
            // A source that nobody has written to but its own clients, all of it in its backlog.
            None if there.from.is_empty() && there.lineage.is_whole() => Some(there.lineage.at(0, 0)),
            None => None,
        }
    }

    /// Copies the source, to whose stream under `id` we are already attached; says where the copy, and now the stream,
    /// stands in it.
    pub(super) async fn copy(
        &self,
        stream: &mut SourceStream,
        source: &mut Server,
        destination: &mut Server,
        id: &str,
    ) -> Result<Position, SyncError> {
        let snapshot = source.snapshot().await?;
        let here = destination.books().await?;
        let there = snapshot.books;
        if there.debt.is_some() {
            return Err(SyncError::NotYet("the source is being rebuilt itself"));
        }
        if there.lineage.id != id {
            return Err(SyncError::NotYet("the source has a new id since it was asked"));
        }
        let db = stream.skip_to(there.lineage.offset).await?;
        let position = there.lineage.at(there.lineage.offset, db);
        let own_field = field(&self.from.id);
        let before = here.from.get(&self.from.id);
        let own = here.lineage.own_writes_after(there.from.get(&self.to.id));
        let (from, to) = (&self.from.id, &self.to.id);
        let keys = snapshot.keys.len() / 4;
        match own {
            Some(own) if there.know_all_of(&here, from) => {
                let others = there.from.iter().filter(|(name, _)| *name != to && *name != from);
                let mut fields: Vec<(String, String)> = others
                    .map(|(name, position)| (field(name), position.to_string()))
                    .collect();
                fields.push((own_field.clone(), position.to_string()));
                tracing::info!(from, to, keys, "made anew from a copy");
                destination
                    .adopt(&own_field, before, &own, &fields, snapshot.keys)
                    .await?;
                let here = destination.books().await?;
                self.pay_debt(destination, &here).await?;
            }
            _ => {
                tracing::warn!(
                    from,
                    to,
                    keys,
                    "only missing keys are added: this copy is not exact"
                );
                destination
                    .unite(&own_field, before, &position, snapshot.keys)
                    .await?;
            }
        }
        Ok(position)
    }

    /// Applies the debt: our own side of the copy (see above), read from the destination's own stream.
    pub(super) async fn pay_debt(&self, destination: &mut Server, here: &Books) -> Result<(), SyncError> {
        let Some(debt) = &here.debt else { return Ok(()) };
        let mut stream = SourceStream::open(&self.to.endpoint).await?;
        let mut paid = debt.from.clone();
        let from = (paid.id.clone(), paid.offset, paid.db);
        let answer = stream.psync(Some((&from.0, from.1, from.2))).await?;
        if let Psync::Full { .. } = answer {
            // Cannot be had any more: say so and go on, as nothing would ever get better.
            tracing::error!(region = self.to.id, "own writes since the last copy are lost");
            destination.settle(&paid).await?;
            return Ok(());
        }
        while paid.offset < debt.until {
            let Some(mut unit) = stream.next_unit()? else {
                timeout(BACKLOG_PATIENCE, stream.fill())
                    .await
                    .map_err(|_| SyncError::silent("the own stream ended early"))??;
                continue;
            };
            self.scope.narrow(&mut unit, true);
            // Messages were heard here when they were published; only data was overwritten.
            let effects: Vec<Effect> = unit
                .effects
                .into_iter()
                .filter(|effect| !effect.is_message())
                .collect();
            let after = Position {
                offset: unit.end,
                db: unit.db,
                ..paid.clone()
            };
            destination.apply("debt", Some(&paid), &after, &effects).await?;
            paid = after;
        }
        destination.settle(&paid).await?;
        Ok(())
    }
}
