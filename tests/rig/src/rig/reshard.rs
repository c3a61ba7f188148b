//! Slots of a cluster that change hands while applications and links go on.
//!
//! What moves is a cell: its keys, and its books among them. Nothing of it is lost or applied twice, and the order of its
//! effects is kept, because the links of the cell change hands with it:
//!
//! ```text
//! 1 cut cells     where the slots begin and end; books are copied, links held meanwhile
//! 2 outbound      links from the new owner begin where its stream is now, held
//! 3 inbound       links into the cell are held; what they have applied is in the books
//! 4 move          keys and books, while clients follow MOVED and ASK
//! 5 inbound       links go on at the new owner, from the books
//! 6 outbound      links from the old owner deliver what they have; then those from the new one go on
//! ```
//!
//! The move itself is in no stream: the DEL of a moved key never gets into the old owner's, and syncers pass over the
//! RESTORE-ASKING in the new owner's.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::future::join_all;
use tokio::time::Instant;

use super::links::Way;
use super::{At, Rig};
use crate::options::Form;
use crate::region::Region;
use crate::slots::SlotRange;
use crate::syncer::{LinkControl, Syncer, SyncerState, SyncerStatus, begin_equal, forget, split_books};

/// The old owner's links may take this long to deliver what they have.
const DELIVERY_PATIENCE: Duration = Duration::from_secs(10);

impl Rig {
    /// Moves slots of a cluster's region from the shard that owns them to another, while applications go on. Other regions
    /// keep their division. Links of these slots are held for the time of the move, and go on where they were.
    ///
    /// # Errors
    /// When there is no such region or shard, the region is no cluster, the slots have several owners or the new one has
    /// them already, a server does not answer, or a link of these slots does not stream (cut, say): then nothing was moved.
    /// Also when old links do not deliver in ten seconds.
    pub async fn move_slots(&self, region: &str, slots: SlotRange, to_shard: usize) -> anyhow::Result<()> {
        let _alone = self.moving.lock().await;
        self.at(At::from((region, to_shard)))?;
        let region = self.find(region)?;
        let from_shard = region.owner(slots.first);
        anyhow::ensure!(region.form() == Form::Cluster, "{} is no cluster", region.name());
        anyhow::ensure!(
            region.slots(from_shard).iter().any(|own| own.covers(slots)),
            "{}: slots {slots} have several owners",
            region.name()
        );
        anyhow::ensure!(
            from_shard != to_shard,
            "{}: shard {to_shard} has the slots {slots} already",
            region.name()
        );
        let of_slots = |link: &SyncerStatus| link.slots.meets(slots);
        self.wait_streaming(of_slots).await?;
        self.cut_cells(region, slots).await?;
        for cell in self.cells().into_iter().filter(|&cell| slots.covers(cell)) {
            self.move_cell(region, cell, from_shard, to_shard)
                .await
                .with_context(|| format!("{}: slots {cell} to shard {to_shard}", region.name()))?;
        }
        self.wait_streaming(of_slots).await
    }

    /// Waits until those links stream. One that is cut does not, for as long as it is cut.
    async fn wait_streaming(&self, meant: impl Fn(&SyncerStatus) -> bool) -> anyhow::Result<()> {
        let deadline = Instant::now() + DELIVERY_PATIENCE;
        loop {
            let not_yet = |link: &SyncerStatus| meant(link) && link.state != SyncerState::Streaming;
            let not_yet = self.links.those(not_yet);
            let Some((_, first)) = not_yet.first() else {
                return Ok(());
            };
            let (status, cut) = (first.status(), first.control().borrow().cut);
            anyhow::ensure!(
                !cut && Instant::now() < deadline,
                "the link of slots {} from {} to {} does not stream, it is {:?} (last error: {})",
                status.slots,
                status.from,
                status.to,
                status.state,
                status.last_error.as_deref().unwrap_or("none"),
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Lets the slots be whole cells.
    async fn cut_cells(&self, region: &Region, slots: SlotRange) -> anyhow::Result<()> {
        let old = self.cells();
        let mut owners = region.owners();
        owners.cut(slots.first);
        owners.cut(slots.last + 1);
        let before = region.replace_owners(owners);
        let new = self.cells();
        for cell in old {
            let parts: Vec<SlotRange> = new.iter().copied().filter(|&part| cell.covers(part)).collect();
            if parts.len() > 1
                && let Err(error) = self.cut_cell(cell, &parts).await
            {
                region.replace_owners(before);
                return Err(error.context(format!("cutting the cell {cell}")));
            }
        }
        Ok(())
    }

    async fn cut_cell(&self, cell: SlotRange, parts: &[SlotRange]) -> anyhow::Result<()> {
        let links = self.links.those(|status| status.slots == cell);
        join_all(links.iter().map(|(_, syncer)| syncer.hold())).await;
        let mut split = Ok(());
        for region in &self.regions {
            let server = self.side(region, region.owner(cell.first), Way::Inside);
            if split.is_ok() {
                split = split_books(&server, cell, parts).await;
            }
        }
        for (key, syncer) in links {
            let control = released(&syncer);
            if split.is_err() {
                syncer.control().send_modify(|control| control.held = false);
                continue;
            }
            let (from, to) = (self.find(&key.0)?, self.find(&key.1)?);
            self.links.locked().remove(&key);
            for &part in parts {
                let rest = control.rest && part.first == cell.first;
                self.link_up(
                    (from, key.3),
                    to,
                    part,
                    LinkControl { rest, ..control },
                    Some(&syncer),
                );
            }
        }
        Ok(split?)
    }

    async fn move_cell(
        &self,
        region: &Region,
        cell: SlotRange,
        old: usize,
        new: usize,
    ) -> anyhow::Result<()> {
        let others: Vec<&Region> = self
            .regions
            .iter()
            .filter(|other| other.name() != region.name())
            .collect();
        let (old_source, new_source) = (
            self.side(region, old, Way::Inside),
            self.side(region, new, Way::Inside),
        );
        let outbound = self
            .links
            .those(|link| link.slots == cell && link.from == region.name());
        let inbound = self
            .links
            .those(|link| link.slots == cell && link.to == region.name());
        for other in &others {
            let server = self.side(other, other.owner(cell.first), Way::Inside);
            begin_equal(&server, std::slice::from_ref(&new_source), cell).await?;
            let has_rest = |link: &SyncerStatus| {
                (&*link.from, link.from_shard, &*link.to) == (region.name(), new, other.name())
            };
            let control = LinkControl {
                held: true,
                rest: self.links.those(has_rest).is_empty(),
                ..LinkControl::default()
            };
            self.link_up((region, new), other, cell, control, None);
        }

        join_all(inbound.iter().map(|(_, syncer)| syncer.hold())).await;
        let moved = region.move_keys(cell, old, new).await;
        if moved.is_ok() {
            let mut owners = region.owners();
            owners.assign(cell, new);
            region.replace_owners(owners);
        }
        for (key, syncer) in inbound {
            let from = self.find(&key.0)?;
            self.link_up((from, key.3), region, cell, released(&syncer), Some(&syncer));
        }
        moved?;

        for (key, syncer) in outbound {
            self.wait_delivered(region, &syncer).await?;
            let to = self.find(&key.1)?;
            let control = released(&syncer);
            self.links.locked().remove(&key);
            forget(
                &self.side(to, to.owner(cell.first), Way::Inside),
                &old_source,
                cell,
            )
            .await?;
            if control.rest {
                // Somebody else of the old owner's links takes the rest; without slots it has nothing to tell.
                let heir = self.links.those(|link| {
                    (&*link.from, link.from_shard, &*link.to) == (region.name(), old, to.name())
                });
                if let Some((_, heir)) = heir.first() {
                    heir.control().send_modify(|control| control.rest = true);
                }
            }
            let successor = (key.0, key.1, key.2, new);
            if let Some(successor) = self.links.locked().get(&successor) {
                successor.control().send_modify(|wanted| {
                    *wanted = LinkControl {
                        rest: wanted.rest,
                        ..control
                    };
                });
            }
        }
        Ok(())
    }

    /// Waits until the link has delivered all that its source has had so far.
    async fn wait_delivered(&self, region: &Region, syncer: &Syncer) -> anyhow::Result<()> {
        let status = syncer.status();
        let told = self.links.told(&status);
        let info = region.shard(status.from_shard).info(DELIVERY_PATIENCE).await?;
        let offset = crate::shard::info_field(&info, "master_repl_offset")
            .and_then(|offset| offset.parse::<u64>().ok())
            .context("INFO without an offset")?;
        let deadline = Instant::now() + DELIVERY_PATIENCE;
        loop {
            let now = syncer.status();
            if now.offset >= offset && now.messages >= told {
                return Ok(());
            }
            anyhow::ensure!(
                Instant::now() < deadline,
                "the old owner's link does not deliver: {now:?} to {offset}"
            );
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

/// What the operator wants of a link that the rig holds.
fn released(syncer: &Arc<Syncer>) -> LinkControl {
    LinkControl {
        held: false,
        ..*syncer.control().borrow()
    }
}
