//! What is known of each replica by itself: probes, own heartbeats, the data plane's observations.
//!
//! Owns the raw evidence and its counting rules. Never draws a conclusion about health (see `health`) and never
//! forgets positive evidence's time: that is what silence is measured from.
//!
//! | evidence | counts as |
//! |---|---|
//! | PING answered | liveness, and proof |
//! | write answered | liveness, and proof of writability of its shard |
//! | heartbeat accepted | ends a row of refusals, no more (a replica that loads accepts it too); starts the wait for its echo |
//! | alive on the data plane | liveness only |
//! | refused | hard: a few in a row are enough |
//! | broken, timeouts, rejected on the data plane | soft: only together, and only with silence |
//! | error answers to applications | only together: suspect; refused writes make one failed write probe enough |

use std::collections::VecDeque;
use std::time::Duration;

use super::event::{PassiveEvidence, ProbeFailure};
use super::moment::Moment;
use super::rtt::RoundTrips;
use super::shards::Partly;
use super::windows::{SOFT_TOGETHER, WRITES_IN_A_ROW, Windows};
use crate::replica::{CellId, ShardId};

/// Soft evidence kept per replica; a window never needs more.
const SOFT_KEPT: usize = 32;

/// All that one replica showed.
#[derive(Clone, Debug)]
pub(super) struct Evidence {
    /// By shard; the first stands for the whole replica and always counts, the others once they were probed.
    pub(super) pings: Vec<Ping>,
    /// By cell, as in the link matrix.
    pub(super) beats: Vec<Beats>,
    /// By shard.
    pub(super) writes: Vec<Writes>,
    /// When a PING or a write was last answered well.
    pub(super) answered: Option<Moment>,
    /// A PING failed, or a write probe was refused, since then.
    pub(super) failed_since: bool,
    /// When the data plane last had an answer.
    alive: Option<Moment>,
    /// When the monitor's subscription was last established.
    pub(super) subscribed: Option<Moment>,
    /// When the engine began to watch.
    pub(super) born: Moment,
    /// Since when it has the shards that it has.
    pub(super) laid_out: Moment,
    soft: VecDeque<(Moment, PassiveEvidence)>,
    /// Error answers to applications that tell of the replica's state.
    refusals: VecDeque<(Moment, PassiveEvidence)>,
    /// Of PINGs and writes.
    pub(super) round_trips: RoundTrips,
    /// The longest of other shards since the first one's newest.
    others_round_trip: Duration,
    /// Some of its shards do not answer, or do not hear themselves.
    pub(super) failing_partly: Partly,
    /// Some of its shards refuse writes.
    pub(super) refusing_partly: Partly,
    /// Far slower than it uses to be, while another replica is not.
    pub(super) slow: bool,
}

/// The PING probes of one shard.
#[derive(Clone, Debug, Default)]
pub(super) struct Ping {
    /// Whether this shard was ever probed by itself.
    pub(super) probed: bool,
    /// The newest good answer.
    pub(super) ok: Option<Moment>,
    /// Its round-trip time.
    pub(super) rtt: Option<Duration>,
    /// Failures of any kind since the newest good answer.
    pub(super) failures: u32,
    /// PINGs answered with an error, without a good answer to a PING or a write, or a refused connect, between; and the
    /// first of them.
    pub(super) rejected: u32,
    pub(super) rejected_since: Option<Moment>,
    /// The newest error answer's first word.
    pub(super) word: String,
    /// Refused connects in a row, by probes and by links, without any success between.
    pub(super) refused: u32,
}

/// The heartbeats published in one cell, as far as their own echo is awaited.
#[derive(Clone, Debug, Default)]
pub(super) struct Beats {
    cell: CellId,
    sent_seq: Option<u64>,
    /// When the replica last accepted one.
    pub(super) sent: Option<Moment>,
    heard_seq: Option<u64>,
    /// Accepted, and not heard again yet.
    pub(super) unheard: u32,
    /// Since when misses are counted.
    pub(super) unheard_since: Option<Moment>,
    /// The same without the excuse of a renewed subscription.
    unheard_ever_since: Option<Moment>,
    /// Past its window; only a fresh echo takes it back.
    pub(super) lost: bool,
}

/// A heartbeat as sent: in which cell (by position), on which shard.
#[derive(Clone, Copy, Debug)]
pub(super) struct Beat {
    pub(super) cell: usize,
    pub(super) shard: ShardId,
    pub(super) seq: u64,
}

/// The write probes of one shard.
#[derive(Clone, Debug, Default)]
pub(super) struct Writes {
    /// The newest accepted write.
    pub(super) ok: Option<Moment>,
    /// The newest probe that ended, well or not.
    ended: Option<Moment>,
    /// With hysteresis; `None` until proved since the replica was last down.
    pub(super) writable: Option<bool>,
    /// Failures in a row.
    pub(super) failures: u32,
    /// Accepted in a row.
    pub(super) oks: u32,
    /// Whether the newest failure was no answer at all.
    pub(super) unanswered: bool,
    /// The newest failure, in words.
    pub(super) word: String,
}

impl Evidence {
    pub(super) fn new(now: Moment) -> Evidence {
        Evidence {
            pings: vec![Ping::default()],
            beats: Vec::new(),
            writes: vec![Writes::default()],
            answered: None,
            failed_since: false,
            alive: None,
            subscribed: None,
            born: now,
            laid_out: now,
            soft: VecDeque::new(),
            refusals: VecDeque::new(),
            round_trips: RoundTrips::default(),
            others_round_trip: Duration::ZERO,
            failing_partly: Partly::default(),
            refusing_partly: Partly::default(),
            slow: false,
        }
    }

    /// A new layout: what is known of cells that stay, and of shards whose number stays, is kept.
    pub(super) fn relayout(&mut self, shards: usize, cells: impl Iterator<Item = CellId>, now: Moment) {
        if shards != self.writes.len() {
            self.laid_out = now;
            self.pings.truncate(1);
            self.pings.resize(shards, Ping::default());
            self.writes = vec![Writes::default(); shards];
        }
        let mut old = std::mem::take(&mut self.beats);
        let beats = cells.map(|cell| match old.iter().position(|beats| beats.cell == cell) {
            Some(kept) => old.swap_remove(kept),
            None => Beats {
                cell,
                ..Beats::default()
            },
        });
        self.beats = beats.collect();
    }

    /// The newest answer of any kind to a request: to a PING, a write or a command of the data plane. (PING and write
    /// go over connections of their own, so that one that is stuck is no dead replica.)
    pub(super) fn live(&self) -> Option<Moment> {
        self.answered.max(self.alive)
    }

    /// However many shards there are, each round of probes counts once: by its slowest.
    fn round_trip(&mut self, shard: usize, rtt: Duration) {
        self.others_round_trip = self.others_round_trip.max(rtt);
        if shard == 0 {
            self.round_trips.take(std::mem::take(&mut self.others_round_trip));
        }
    }

    fn well(&mut self, now: Moment) {
        self.answered = Some(now);
        self.failed_since = false;
    }

    /// Where connects to `shard` are counted: a shard that is not probed by itself shares the replica's endpoint.
    fn endpoint(&mut self, shard: usize) -> &mut Ping {
        let at = self.endpoint_at(shard);
        &mut self.pings[at]
    }

    /// The same, to look at.
    pub(super) fn endpoint_of(&self, shard: usize) -> &Ping {
        &self.pings[self.endpoint_at(shard)]
    }

    fn endpoint_at(&self, shard: usize) -> usize {
        let own = self.pings.get(shard).is_some_and(|ping| ping.probed);
        if own { shard } else { 0 }
    }

    /// Round-trip time of the newest good PING.
    pub(super) fn rtt(&self) -> Option<Duration> {
        self.pings[0].rtt
    }

    /// Takes a PING's outcome. `tilt`: the sidecar's own stall explains a time-out.
    pub(super) fn ping(
        &mut self,
        shard: usize,
        outcome: &Result<Duration, ProbeFailure>,
        now: Moment,
        tilt: bool,
    ) {
        let Some(ping) = self.pings.get_mut(shard) else {
            return;
        };
        ping.probed = true;
        match outcome {
            Ok(rtt) => {
                ping.ok = Some(now);
                ping.rtt = Some(*rtt);
                ping.failures = 0;
                ping.forget_rejections();
                ping.refused = 0;
                if !tilt {
                    self.round_trip(shard, *rtt);
                }
                self.well(now);
            }
            Err(ProbeFailure::Timeout) if tilt => {}
            Err(failure) => {
                self.failed_since = true;
                ping.failures = ping.failures.saturating_add(1);
                match failure {
                    ProbeFailure::Refused => ping.refuse(),
                    ProbeFailure::Rejected(word) => {
                        ping.rejected = ping.rejected.saturating_add(1);
                        ping.rejected_since.get_or_insert(now);
                        ping.word.clone_from(word);
                    }
                    ProbeFailure::Broken => self.soften(PassiveEvidence::Broken, now),
                    ProbeFailure::Timeout => {}
                }
            }
        }
    }

    /// Takes a write probe's outcome. Any error means not writable; a connection's failure says nothing of writes.
    pub(super) fn write(
        &mut self,
        shard: usize,
        outcome: &Result<Duration, ProbeFailure>,
        windows: &Windows,
        now: Moment,
        tilt: bool,
    ) {
        let refusals = self.refusals(PassiveEvidence::Unwritable, windows.silence, now);
        let together = refusals >= SOFT_TOGETHER;
        let Some(writes) = self.writes.get_mut(shard) else {
            return;
        };
        writes.ended = Some(now);
        match outcome {
            Ok(rtt) => {
                writes.ok = Some(now);
                writes.failures = 0;
                writes.oks = writes.oks.saturating_add(1);
                if writes.writable != Some(false) || writes.oks >= WRITES_IN_A_ROW {
                    writes.writable = Some(true);
                }
                let endpoint = self.endpoint(shard);
                endpoint.refused = 0;
                endpoint.forget_rejections();
                if !tilt {
                    self.round_trip(shard, *rtt);
                }
                self.well(now);
            }
            Err(ProbeFailure::Timeout) if tilt => {}
            Err(ProbeFailure::Timeout) => writes.fail(true, "no answer"),
            Err(ProbeFailure::Rejected(word)) => {
                writes.fail(false, word);
                if together {
                    // Applications are refused as well: this one is no accident.
                    writes.writable = Some(false);
                }
            }
            Err(ProbeFailure::Refused) => {
                self.failed_since = true;
                self.endpoint(shard).refuse();
            }
            Err(ProbeFailure::Broken) => self.soften(PassiveEvidence::Broken, now),
        }
    }

    /// The replica does not answer: writability must be proved anew when it does.
    pub(super) fn forget_writes(&mut self) {
        self.writes.fill(Writes::default());
    }

    /// Writes that nobody refused and nobody accepted either: no probe has ended for a whole window, one still waits.
    pub(super) fn age_writes(&mut self, answers: bool, windows: &Windows, now: Moment) {
        if !answers {
            return;
        }
        for writes in &mut self.writes {
            let stuck = writes
                .ended
                .is_some_and(|ended| now.since(ended) >= windows.write);
            if writes.writable == Some(true) && stuck {
                writes.writable = Some(false);
                writes.oks = 0;
                writes.unanswered = true;
                "no answer".clone_into(&mut writes.word);
            }
        }
    }

    /// `Some(true)` when every shard accepts writes, `Some(false)` when one does not.
    pub(super) fn writable(&self) -> Option<bool> {
        if self.writes.iter().any(|writes| writes.writable == Some(false)) {
            Some(false)
        } else if self.writes.iter().all(|writes| writes.writable == Some(true)) {
            Some(true)
        } else {
            None
        }
    }

    /// Takes what a link saw.
    pub(super) fn passive(&mut self, seen: PassiveEvidence, now: Moment, tilt: bool) {
        match seen {
            PassiveEvidence::Alive => {
                self.alive = Some(now);
                self.pings[0].refused = 0;
            }
            PassiveEvidence::Refused => self.pings[0].refuse(),
            PassiveEvidence::ConnectTimeout | PassiveEvidence::ResponseTimeout if tilt => {}
            PassiveEvidence::ConnectTimeout
            | PassiveEvidence::ResponseTimeout
            | PassiveEvidence::Broken
            | PassiveEvidence::Rejected => self.soften(seen, now),
            PassiveEvidence::Unready | PassiveEvidence::Unwritable => {
                if self.refusals.len() == SOFT_KEPT {
                    self.refusals.pop_front();
                }
                self.refusals.push_back((now, seen));
            }
        }
    }

    /// Error answers of one kind that applications had within `window`.
    pub(super) fn refusals(&self, kind: PassiveEvidence, window: Duration, now: Moment) -> usize {
        self.refusals
            .iter()
            .filter(|(at, seen)| *seen == kind && now.since(*at) < window)
            .count()
    }

    fn soften(&mut self, seen: PassiveEvidence, now: Moment) {
        if self.soft.len() == SOFT_KEPT {
            self.soft.pop_front();
        }
        self.soft.push_back((now, seen));
    }

    /// Soft evidence within `window` that no liveness came after.
    pub(super) fn soft_unanswered(&self, window: Duration, now: Moment) -> usize {
        let live = self.live();
        self.soft
            .iter()
            .filter(|(at, _)| now.since(*at) < window && live.is_none_or(|live| *at > live))
            .count()
    }

    /// Soft evidence within `window` beyond mere disconnects, whatever came after.
    pub(super) fn soft_repeated(&self, window: Duration, now: Moment) -> usize {
        self.soft
            .iter()
            .filter(|(at, seen)| now.since(*at) < window && *seen != PassiveEvidence::Broken)
            .count()
    }

    /// A heartbeat was accepted by the replica.
    pub(super) fn beat_sent(&mut self, beat: Beat, windows: &Windows, now: Moment) {
        let Beat { cell, shard, seq } = beat;
        self.endpoint(usize::from(shard.0)).refused = 0;
        let Some(beats) = self.beats.get_mut(cell) else {
            return;
        };
        let resumed = beats.sent.is_none_or(|sent| now.since(sent) >= windows.link);
        beats.sent = Some(now);
        beats.sent_seq = beats.sent_seq.max(Some(seq));
        if beats.heard_seq >= Some(seq) {
            return;
        }
        if resumed || beats.unheard == 0 {
            // What was sent before a pause in the sending says nothing of now.
            beats.unheard = 0;
            beats.unheard_since = Some(now);
            beats.unheard_ever_since = Some(now);
        }
        beats.unheard = beats.unheard.saturating_add(1);
    }

    /// Its own echo came back in time.
    pub(super) fn echo_heard(&mut self, cell: usize, seq: u64) {
        let Some(beats) = self.beats.get_mut(cell) else {
            return;
        };
        beats.heard_seq = beats.heard_seq.max(Some(seq));
        beats.lost = false;
        match beats.sent_seq {
            Some(sent) if sent > seq => {
                beats.unheard = u32::try_from(sent - seq).unwrap_or(u32::MAX);
                beats.unheard_since = beats.sent;
                beats.unheard_ever_since = beats.sent;
            }
            _ => {
                beats.unheard = 0;
                beats.unheard_since = None;
                beats.unheard_ever_since = None;
            }
        }
    }

    /// The monitor's subscription stands again: misses are counted from now.
    pub(super) fn subscribed(&mut self, now: Moment) {
        self.subscribed = Some(now);
        for beats in &mut self.beats {
            if beats.unheard > 0 {
                beats.unheard_since = Some(now);
            }
        }
    }

    /// Calls echoes lost that are past their window: while the subscription stands and heartbeats are being sent. A
    /// subscription that is renewed over and over excuses nothing beyond three windows.
    /// `window`: by cell, the own link's.
    pub(super) fn age_echoes(&mut self, window: impl Fn(usize) -> Duration, windows: &Windows, now: Moment) {
        if self.subscribed.is_none() {
            return;
        }
        for (cell, beats) in self.beats.iter_mut().enumerate() {
            if beats.unheard < 2 {
                continue;
            }
            let window = window(cell);
            let sending = beats.sent.is_some_and(|sent| now.since(sent) < windows.link);
            let past = |since: Option<Moment>, window| since.is_some_and(|at| now.since(at) >= window);
            if sending
                && (past(beats.unheard_since, window)
                    || past(beats.unheard_ever_since, window.saturating_mul(3)))
            {
                beats.lost = true;
            }
        }
    }
}

impl Ping {
    /// Nobody listens: what answered with errors before is gone.
    fn refuse(&mut self) {
        self.refused = self.refused.saturating_add(1);
        self.forget_rejections();
    }

    fn forget_rejections(&mut self) {
        self.rejected = 0;
        self.rejected_since = None;
    }
}

impl Writes {
    /// Not writable, and the newest probe failed, or has not ended.
    pub(super) fn refusing(&self) -> bool {
        self.writable == Some(false) && self.oks == 0
    }

    fn fail(&mut self, unanswered: bool, word: &str) {
        self.failures = self.failures.saturating_add(1);
        self.oks = 0;
        self.unanswered = unanswered;
        word.clone_into(&mut self.word);
        if self.failures >= WRITES_IN_A_ROW {
            self.writable = Some(false);
        }
    }
}
