//! The last events, and readers that follow them at their own pace.
//!
//! One task writes, any number of readers hold a [`Cursor`]. A reader takes from the ring what comes after the last
//! id it has seen; what it has not taken before the ring came round is lost to it, and it is told how much. So no
//! reader, however slow, costs memory, and there is no seam between replayed and live events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::watch;

use crate::control::status::EventRecord;

/// Events kept.
pub(super) const KEPT: usize = 256;

/// The ring.
pub(super) struct Journal {
    /// Ascending by id, at most [`KEPT`].
    ring: Mutex<VecDeque<Arc<EventRecord>>>,
    /// The newest id: wakes those who follow.
    newest: watch::Sender<u64>,
}

impl Default for Journal {
    fn default() -> Journal {
        Journal {
            ring: Mutex::new(VecDeque::with_capacity(KEPT)),
            newest: watch::Sender::new(0),
        }
    }
}

/// What a reader has seen.
#[derive(Clone, Debug)]
pub(super) struct Cursor {
    /// Id of the last event taken; `None`: none, and none is missed.
    seen: Option<u64>,
    newest: watch::Receiver<u64>,
}

impl Journal {
    /// Keeps what comes from `events`; after its last sender is gone there is nothing left to do but wait.
    pub(super) async fn record(&self, mut events: broadcast::Receiver<Arc<EventRecord>>) -> Infallible {
        loop {
            match events.recv().await {
                Ok(event) => self.push(event),
                // The ids tell readers.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => std::future::pending().await,
            }
        }
    }

    fn push(&self, event: Arc<EventRecord>) {
        let id = event.id;
        let mut ring = self.ring();
        if ring.len() == KEPT {
            ring.pop_front();
        }
        ring.push_back(event);
        drop(ring);
        self.newest.send_replace(id);
    }

    fn ring(&self) -> MutexGuard<'_, VecDeque<Arc<EventRecord>>> {
        // Nothing can panic half-way through a change of the ring.
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A reader that begins with the last `count` events.
    pub(super) fn recent(&self, count: usize) -> Cursor {
        let newest = self.newest.subscribe();
        let ring = self.ring();
        let first = ring.len().saturating_sub(count);
        let seen = match ring.get(first) {
            Some(event) => event.id.checked_sub(1),
            None => ring.back().map(|event| event.id),
        };
        Cursor { seen, newest }
    }

    /// A reader that goes on after the event `id`, which it got from this process or an earlier one.
    pub(super) fn after(&self, id: u64) -> Cursor {
        let mut cursor = self.recent(KEPT);
        // Ids begin anew with each process: an id still to come was an earlier one's, and all is news to its reader.
        if self.ring().back().is_some_and(|newest| id <= newest.id) {
            cursor.seen = Some(id);
        }
        cursor
    }

    /// What comes next, if it is there already: the event after the last one or, when that is lost, a notice in
    /// its place that has the id of the last one lost.
    pub(super) fn take(&self, cursor: &mut Cursor) -> Option<Arc<EventRecord>> {
        let ring = self.ring();
        let next = match cursor.seen {
            None => ring.front(),
            Some(seen) => ring.get(ring.partition_point(|event| event.id <= seen)),
        }?;
        let missed = cursor.seen.map_or(0, |seen| next.id - seen - 1);
        let next = if missed > 0 {
            Arc::new(gap(missed, next))
        } else {
            next.clone()
        };
        cursor.seen = Some(next.id);
        Some(next)
    }
}

fn gap(missed: u64, before: &EventRecord) -> EventRecord {
    let events = if missed == 1 { "event was" } else { "events were" };
    EventRecord {
        id: before.id - 1,
        at: before.at,
        kind: "gap".to_owned(),
        message: format!("{missed} {events} missed: this reader was too slow"),
        details: serde_json::json!({ "missed": missed }),
    }
}

impl Cursor {
    /// Waits until something was recorded since the last call, or since the cursor was made.
    pub(super) async fn wait(&mut self) {
        if self.newest.changed().await.is_err() {
            // The journal is gone with the server; its streams are told by `closing`.
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(id: u64) -> Arc<EventRecord> {
        Arc::new(EventRecord {
            id,
            at: 0,
            kind: "health".into(),
            message: String::new(),
            details: serde_json::Value::Null,
        })
    }

    fn filled(ids: std::ops::RangeInclusive<u64>) -> Journal {
        let journal = Journal::default();
        ids.for_each(|id| journal.push(event(id)));
        journal
    }

    /// Ids in order; a gap of n as -n.
    fn all(journal: &Journal, mut cursor: Cursor) -> Vec<i64> {
        let next = || journal.take(&mut cursor);
        std::iter::from_fn(next)
            .map(|event| match event.details["missed"].as_i64() {
                Some(missed) => -missed,
                None => i64::try_from(event.id).unwrap(),
            })
            .collect()
    }

    #[test]
    fn recent_ones_in_order() {
        let journal = filled(1..=5);
        assert_eq!(all(&journal, journal.recent(0)), Vec::<i64>::new());
        assert_eq!(all(&journal, journal.recent(2)), [4, 5]);
        assert_eq!(all(&journal, journal.recent(99)), [1, 2, 3, 4, 5]);
        let empty = Journal::default();
        assert_eq!(all(&empty, empty.recent(5)), Vec::<i64>::new());
    }

    #[test]
    fn only_the_last_ones_are_kept() {
        let last = KEPT as u64 + 10;
        let journal = filled(1..=last);
        let seen = all(&journal, journal.recent(usize::MAX));
        assert_eq!((seen.len(), seen[0], seen[KEPT - 1]), (KEPT, 11, 266));
    }

    #[test]
    fn a_follower_sees_what_comes_and_is_told_what_it_missed() {
        let journal = filled(1..=3);
        let mut cursor = journal.recent(0);
        journal.push(event(4));
        assert_eq!(journal.take(&mut cursor), Some(event(4)));
        assert_eq!(journal.take(&mut cursor), None);
        // The ring comes round once and ten more.
        (5..=4 + 10 + KEPT as u64).for_each(|id| journal.push(event(id)));
        let gap = journal.take(&mut cursor).unwrap();
        assert_eq!(
            (gap.kind.as_str(), gap.id, &gap.details),
            ("gap", 14, &serde_json::json!({"missed": 10}))
        );
        assert!(
            gap.message.starts_with("10 events were missed"),
            "{}",
            gap.message
        );
        assert_eq!(journal.take(&mut cursor), Some(event(15)));
        assert_eq!(all(&journal, cursor).len(), KEPT - 1);
    }

    #[test]
    fn what_the_recorder_missed_is_a_gap_too() {
        let journal = filled(1..=2);
        (7..=8).for_each(|id| journal.push(event(id)));
        assert_eq!(all(&journal, journal.recent(KEPT)), [1, 2, -4, 7, 8]);
        // But not for a reader that began after it.
        assert_eq!(all(&journal, journal.recent(2)), [7, 8]);
    }

    #[test]
    fn a_follower_of_nothing_misses_nothing() {
        let journal = Journal::default();
        let cursor = journal.recent(0);
        journal.push(event(41));
        assert_eq!(all(&journal, cursor), [41]);
    }

    #[test]
    fn going_on_after_an_id() {
        let journal = filled(1..=5);
        assert_eq!(all(&journal, journal.after(3)), [4, 5]);
        assert_eq!(all(&journal, journal.after(5)), Vec::<i64>::new());
        // From another life.
        assert_eq!(all(&journal, journal.after(77)), [1, 2, 3, 4, 5]);
        let journal = filled(1..=KEPT as u64 + 10);
        assert_eq!(all(&journal, journal.after(4))[..2], [-6, 11]);
    }
}
