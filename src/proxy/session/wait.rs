//! What a session does while it has no link that takes its commands: they wait, go on, expire, or are recovered from a link
//! that was lost.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Session, State};
use crate::metrics::{DisconnectReason, HoldEnd, SessionKind};
use crate::proxy::command::{Command, Expect, Given, Held, Tx};
use crate::proxy::intent::Step;
use crate::proxy::link::{End, Frame, Link, Phase};
use crate::proxy::part::{self, Again};
use crate::proxy::recover::{Broken, Local, Recovery, TxState, Verdict};
use crate::proxy::topology::Place;
use crate::resp;

impl Session {
    /// Lets a command wait; answers `-UNAVAILABLE` when too much waits already.
    pub(super) fn hold(self: &Rc<Self>, st: &mut State, command: Command, frame: Frame<'_>) {
        let len = frame.len();
        // What only waits for the answers to earlier commands, as it would in a server, is no hold.
        let held = !self.is_served(st);
        // The end of a transaction always has room: without it, the rest would be left open.
        let ends = matches!(command.tx, Tx::Exec | Tx::Discard | Tx::Reset);
        if held && !ends && !self.worker.hold_has_room(len) {
            self.worker.metrics.hold_ended[HoldEnd::Overflow].inc();
            self.refuse(
                st,
                &command,
                "too many commands wait for a replica; this one was not sent",
            );
            if st.tx == TxState::Open {
                self.break_transaction(st);
            } else if command.tx == Tx::Watch {
                // What it was to guard is not applied without it.
                st.tx = TxState::WatchLost;
                st.aborting = st.tx_sent.pins();
            }
            self.touch();
            return;
        }
        self.wait_with(st, command, frame, held);
    }

    /// Lets a command wait that had its place before: bounds were for when it came.
    fn wait_with(self: &Rc<Self>, st: &mut State, command: Command, frame: Frame<'_>, held: bool) {
        let len = frame.len();
        let frame = match frame {
            Frame::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
            Frame::Owned(bytes) => bytes.freeze(),
        };
        st.limbo_bytes += len;
        st.limbo.push_back(Held {
            command,
            frame,
            since: held.then(|| self.worker.now()),
            not_before: None,
        });
        if held {
            self.worker.hold_adds(len);
        }
        self.worker.wait(self);
    }

    /// Whether a replica is at work for this session: it answers earlier commands, or has yet to take the bytes of others on
    /// the same link.
    fn is_served(&self, st: &State) -> bool {
        let (Some(link), Some(route)) = (&st.link, self.worker.route.get()) else {
            return false;
        };
        (st.sent.all() > 0 || !link.takes_commands())
            && link.phase() == Phase::Ready
            && !route.holding
            && self.worker.uses(link.replica)
    }

    /// A command waits no more.
    pub(super) fn unhold(&self, st: &mut State, len: usize, since: Option<Instant>, end: HoldEnd) {
        st.limbo_bytes -= len;
        if let Some(since) = since {
            self.worker.hold_frees(len, since, end);
        }
    }

    /// What waited for answers that have come, or will not come, is held from now on.
    fn begin_hold(&self, st: &mut State) {
        for held in &mut st.limbo {
            if held.since.is_none() {
                held.since = Some(self.worker.now());
                self.worker.hold_adds(held.frame.len());
            }
        }
    }

    /// A command of an open transaction was refused, so the rest of it must not be applied without it.
    fn break_transaction(&self, st: &mut State) {
        st.tx = TxState::Broken(Broken::Abort);
        // What waits of it is answered as if it had been sent.
        let from = st
            .limbo
            .iter()
            .rposition(|held| matches!(held.command.tx, Tx::Exec | Tx::Discard | Tx::Reset))
            .map_or(0, |end| end + 1);
        let multi = st
            .limbo
            .range(from..)
            .position(|held| held.command.tx == Tx::Multi || held.command.opens());
        for held in multi.map(|n| st.limbo.split_off(from + n)).unwrap_or_default() {
            self.unhold(st, held.frame.len(), held.since, HoldEnd::Overflow);
            let local = if held.command.tx == Tx::Multi {
                Local::Ok
            } else {
                Local::Queued
            };
            let resp3 = st.intent.identity.resp3;
            self.answer(st, &held.command, local.bytes(resp3));
        }
        st.aborting = st.tx_sent.pins();
    }

    /// Sends what waits, as far as the route and the links allow; gets a link when there is none. How many were sent.
    pub(crate) fn advance(self: &Rc<Self>) -> usize {
        let mut sent = 0;
        let mut state = self.state.borrow_mut();
        let st = &mut *state;
        let of_shards = |command: &Command| command.opens() || command.part().is_some();
        if self.worker.sharded.get() || st.limbo.front().is_some_and(|front| of_shards(&front.command)) {
            drop(state);
            return self.advance_sharded();
        }
        let Some(route) = self.worker.route.get() else {
            return 0;
        };
        if route.holding {
            return 0;
        }
        while st.dead.is_none() {
            let own = match st.limbo.front() {
                Some(front) => self.needs_own(st, Some(&front.command)),
                None if st.intent.listens() && st.closing.is_none() => true,
                None => break,
            };
            // What was sent is answered first: it keeps its place before what follows.
            if own && st.sent.all() > 0 && !st.has_own_link() {
                break;
            }
            let to = match st.limbo.pop_front() {
                Some(front) => {
                    let to = self.destination(st, &route, &front.command, own);
                    let waits = self.overtakes(st, &route, &front.command, to);
                    st.limbo.push_front(front);
                    if waits {
                        break;
                    }
                    to
                }
                None => route.write,
            };
            let place = Place::endpoint(to);
            let Some(link) = st.link.clone() else {
                st.link = self.get_link(st, place, own);
                match &st.link {
                    Some(link) if link.phase() != Phase::Connecting && link.phase() != Phase::Greeting => {
                        continue;
                    }
                    _ => break,
                }
            };
            if link.is_shared() && (own || link.place != place) {
                st.link = None;
                continue;
            }
            if link.phase() == Phase::Dead {
                st.link = None;
                if let Some(words) = link.refusal(self.worker.now()) {
                    self.pass_refusal(st, &words);
                    break;
                }
                continue;
            }
            if !link.is_shared() {
                if link.replica != route.write {
                    if link.in_flight() == 0 {
                        drop(state);
                        link.condemn(&End::Abandoned);
                    }
                    return sent;
                }
                if !own && link.is_idle() {
                    st.link = None;
                    self.release(st, link);
                    continue;
                }
            }
            if !link.takes_commands() {
                break;
            }
            let Some(front) = st.limbo.front() else { break };
            if !st.may_send(&link, &front.command) {
                break;
            }
            let Some(held) = st.limbo.pop_front() else { break };
            self.unhold(st, held.frame.len(), held.since, HoldEnd::Resumed);
            self.send(st, &link, held.command, Frame::Borrowed(&held.frame));
            sent += 1;
        }
        self.emptied(st);
        sent
    }

    /// After something was sent of what waited.
    pub(super) fn emptied(&self, st: &mut State) {
        if st.limbo.is_empty() {
            st.limbo = VecDeque::new();
            if std::mem::take(&mut st.paused) {
                self.wake();
            }
        }
    }

    /// Whether a command that has waited needs a link of the session's own, as things stand on the current one.
    fn needs_own(&self, st: &State, command: Option<&Command>) -> bool {
        command.is_some_and(|c| c.own)
            || st.tainted
            || st.tx_sent.pins()
            || st.intent.is_peculiar()
            || self.always_owns()
    }

    /// A shared link to `place`, or one of the session's `own`.
    pub(super) fn get_link(self: &Rc<Self>, st: &mut State, place: Place, own: bool) -> Option<Rc<Link>> {
        if !own {
            let shared = self.get_shared(st, place);
            if st.group.is_some() {
                return shared;
            }
            // Too many identities share links already.
            st.tainted = true;
        }
        self.get_own(st, place, Vec::new())
    }

    /// A link of the session's own to `place`; `then` is what is said of a transaction that is to be there.
    pub(super) fn get_own(
        self: &Rc<Self>,
        st: &mut State,
        place: Place,
        then: Vec<Step>,
    ) -> Option<Rc<Link>> {
        let upstream = &self.worker.upstream;
        let opens = !then.is_empty();
        let apart = self.has_ears_on(place.replica);
        let intent = apart.then(|| st.intent.without_shards());
        let link = upstream.dedicated(
            &self.worker,
            place,
            self,
            intent.as_ref().unwrap_or(&st.intent),
            then,
        )?;
        if opens {
            link.opens();
        }
        (st.tx_sent, st.tx_answered) = Default::default();
        (st.spoiled, st.spoiling) = (false, false);
        if st.intent.tracks() {
            link.track();
        }
        self.set_kind(st, SessionKind::Dedicated);
        Some(link)
    }

    /// Answers `-UNAVAILABLE` to what has waited longer than `timeout`. Whether something still waits.
    pub(crate) fn expire(self: &Rc<Self>, now: Instant, timeout: Duration) -> bool {
        let mut state = self.state.borrow_mut();
        let st = &mut *state;
        let due = |st: &State| {
            st.limbo
                .front()
                .and_then(|front| front.since)
                .is_some_and(|since| now.saturating_duration_since(since) >= timeout)
        };
        if !self.is_served(st) {
            self.begin_hold(st);
        }
        if !due(st) {
            return !st.limbo.is_empty();
        }
        while due(st) {
            // What was sent of a transaction or a WATCH is lost with its link; the rest is then answered without being sent.
            if st.tx_sent.pins()
                && let Some(link) = st.link.clone()
            {
                drop(state);
                link.condemn(&End::Abandoned);
                return true;
            }
            let mut inside = false;
            loop {
                let Some(held) = st.limbo.pop_front() else {
                    st.tx = TxState::Broken(Broken::Abort);
                    break;
                };
                self.unhold(st, held.frame.len(), held.since, HoldEnd::Expired);
                self.refuse(
                    st,
                    &held.command,
                    "no replica took the command in time; it was not sent",
                );
                if held.command.tx == Tx::Watch {
                    // What it was to guard is not applied without it.
                    let mut limbo = std::mem::take(&mut st.limbo);
                    self.resettle(st, &mut limbo, Recovery::new(TxState::Watching));
                }
                // A transaction expires whole.
                inside = match held.command.tx {
                    Tx::Multi => true,
                    Tx::Exec | Tx::Discard => false,
                    _ => inside || held.command.opens(),
                };
                if !inside {
                    break;
                }
            }
        }
        if std::mem::take(&mut st.paused) {
            self.wake();
        }
        self.flush(st);
        !st.limbo.is_empty()
    }

    fn refuse(&self, st: &mut State, command: &Command, why: &str) {
        self.worker.metrics.unavailable.inc();
        self.answer(st, command, format!("-UNAVAILABLE {why}\r\n").as_bytes());
    }

    /// The replica does not grant this session what it was granted elsewhere: that is the answer to all that waits.
    pub(super) fn pass_refusal(&self, st: &mut State, words: &[u8]) {
        for held in std::mem::take(&mut st.limbo) {
            self.unhold(st, held.frame.len(), held.since, HoldEnd::Resumed);
            self.answer(st, &held.command, words);
        }
        st.tx = match st.tx {
            TxState::Open => TxState::Broken(Broken::Abort),
            TxState::Watching => TxState::WatchLost,
            other => other,
        };
        if st.intent.listens() {
            // What it listens to cannot be had here, and it must not wait for it in vain.
            st.closing.get_or_insert(DisconnectReason::Error);
        }
        self.flush(st);
    }

    /// The session's own link takes commands.
    pub(crate) fn link_ready(self: &Rc<Self>) {
        self.advance();
    }

    /// Whether the replica may speak first, so that the session wants a link even while its application is silent, and it
    /// has none.
    pub(crate) fn lacks_link(&self) -> bool {
        let state = self.state.borrow();
        state.dead.is_none() && state.closing.is_none() && self.is_out_of_tune(&state)
    }

    /// A link is gone; `given` are this session's unanswered commands on it, in order.
    pub(crate) fn link_lost(self: &Rc<Self>, link: &Rc<Link>, given: Vec<Given>, end: &End) {
        let mut state = self.state.borrow_mut();
        let st = &mut *state;
        let is_current = st.link.as_ref().is_some_and(|current| Rc::ptr_eq(current, link));
        let ear = st.loses_ear(link);
        let beside = !is_current && !link.is_shared();
        if beside && !ear && given.is_empty() {
            return;
        }
        if is_current {
            st.link = None;
        }
        // Nothing that the session had on the connection is lost with one beside its own.
        let apart = beside || st.has_own_link();
        st.sent.take(link.replica, given.len() as u32);
        if !apart {
            st.spoiling = false;
            self.set_kind(st, SessionKind::Shared);
        }
        if *end == End::Released || st.dead.is_some() {
            return;
        }
        if let End::Refused(words) = end {
            return self.pass_refusal(st, words);
        }
        let broken = |given: &Given| st.streaming == Some(given.command.seq);
        if given.iter().any(broken) {
            st.dead = Some(DisconnectReason::ReplyBroken);
            self.wake();
            return;
        }
        let mut recovery = Recovery::new(if apart { TxState::Clear } else { st.tx_answered });
        self.begin_hold(st);
        let mut limbo = std::mem::take(&mut st.limbo);
        for Given { command, frame, sent } in given {
            let frame = match command.expect {
                Expect::Confirmations(left) => unconfirmed(frame, left as usize),
                _ => frame,
            };
            let verdict = if sent {
                recovery.sent(&command)
            } else {
                recovery.unsent(&command)
            };
            if sent && verdict == Verdict::Resend {
                self.worker.metrics.retried.inc();
            }
            if self.settle(st, &command, verdict) {
                match part::again(command, frame) {
                    Again::This(command, frame) => {
                        self.wait_with(st, command, Frame::Borrowed(&frame), true);
                    }
                    Again::Nothing => {}
                    Again::Unknown(command) => {
                        let _ = self.settle(st, &command, Verdict::Answer(Local::OutcomeUnknown));
                    }
                }
            }
        }
        if apart {
            st.limbo.append(&mut limbo);
            st.sort_limbo();
            if ear && link.has_served() {
                self.forget_cache(st);
            }
        } else {
            self.resettle(st, &mut limbo, recovery);
            // What other links have given back, or could not take, may be older or newer.
            st.sort_limbo();
            self.lose_connection(st, link);
        }
        if std::mem::take(&mut st.paused) {
            self.wake();
        }
        let listens = st.intent.listens() && st.closing.is_none();
        drop(state);
        if listens {
            self.worker.wait(self);
        }
        self.worker.touch(self);
    }

    /// What there was on a connection is no more.
    fn lose_connection(self: &Rc<Self>, st: &mut State, link: &Link) {
        (st.tx_sent, st.tx_answered) = Default::default();
        st.keyless = None;
        super::replies::forget_queued(st);
        if link.has_served() {
            self.forget_cache(st);
        }
        if st.intent.is_redirected() {
            // The honest end of a cache that nobody can keep true any more: the application begins anew.
            st.closing.get_or_insert(DisconnectReason::TrackingLost);
            self.wake();
        }
    }

    /// Goes over what waits after a transaction or WATCH was lost.
    fn resettle(&self, st: &mut State, limbo: &mut VecDeque<Held>, mut recovery: Recovery) {
        for held in limbo.drain(..) {
            let verdict = recovery.unsent(&held.command);
            if self.settle(st, &held.command, verdict) {
                st.limbo.push_back(held);
            } else {
                self.unhold(st, held.frame.len(), held.since, HoldEnd::Resumed);
            }
        }
        let after = recovery.finish();
        // What has been answered here since knows better.
        if !st.tx.is_lost() {
            st.tx = after;
            if st.opening {
                let _ = st.tx.step(Tx::Multi);
            }
        }
    }

    /// Carries out a verdict; whether the command is to be sent again.
    fn settle(&self, st: &mut State, command: &Command, verdict: Verdict) -> bool {
        match verdict {
            Verdict::Resend => return true,
            Verdict::Answer(local) => {
                if local == Local::OutcomeUnknown {
                    self.worker.metrics.unknown_outcome.inc();
                }
                let resp3 = st.intent.identity.resp3;
                self.answer(st, command, local.bytes(resp3));
            }
            Verdict::Drop => st.pins -= u32::from(command.pins),
        }
        false
    }
}

/// A subscription command without the channels that were confirmed before its link was lost.
fn unconfirmed(frame: Bytes, left: usize) -> Bytes {
    let words: Vec<&[u8]> = resp::args(&frame).collect();
    if left + 1 >= words.len() {
        return frame;
    }
    let mut rest = vec![words[0]];
    rest.extend(&words[words.len() - left..]);
    resp::encode_command(&rest).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confirmed_channels_are_not_asked_for_again() {
        let frame = Bytes::from(resp::encode_command(&[b"SUBSCRIBE", b"a", b"b", b"c"]));
        assert_eq!(unconfirmed(frame.clone(), 3), frame);
        assert_eq!(unconfirmed(frame, 1), resp::encode_command(&[b"SUBSCRIBE", b"c"]));
        let all = Bytes::from(resp::encode_command(&[b"UNSUBSCRIBE"]));
        assert_eq!(unconfirmed(all.clone(), 2), all);
    }
}
