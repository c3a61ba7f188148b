//! What comes back: replies in request order, messages that nobody asked for, and the bytes on their way out.

use std::rc::Rc;
use std::task::Context;

use bytes::{Buf, Bytes};

use super::{Session, State};
use crate::metrics::DisconnectReason;
use crate::proxy::command::{Command, Expect, ReplyMode, Tx};
use crate::proxy::intent::{Change, Intent, Subscription};
use crate::proxy::link::{Link, OUT_HIGH};
use crate::proxy::part::Part;
use crate::proxy::pipeline::{Seq, Turn};
use crate::proxy::recover::TxState;
use crate::resp::{self, Reply, ReplyScan, ReplyScanner};

/// Most bytes that wait for an application which is told things unasked, as Redis has it for subscribers.
pub(super) const UNASKED: usize = 32 * 1024 * 1024;

impl Session {
    /// The replies to `n` plain commands from `seq` on, which lie side by side in `bytes`.
    pub(crate) fn deliver(self: &Rc<Self>, link: &Rc<Link>, seq: Seq, n: u32, bytes: &[u8]) {
        let mut state = self.state.borrow_mut();
        let st = &mut *state;
        st.sent.take(link.replica, n);
        // A mean in which each reply weighs an eighth.
        st.reply_len = ((u64::from(st.reply_len) * 8 + bytes.len() as u64) / u64::from(8 + n)) as u32;
        if st.tx_answered == TxState::Open {
            st.queued += each(bytes).filter(|reply| !reply.starts_with(b"-")).count() as u32;
        }
        match st.pipeline.complete(seq, n) {
            Turn::Now => {
                if st.muted || st.skip_next {
                    for reply in each(bytes) {
                        if !st.is_quiet() {
                            self.write(st, reply);
                        }
                    }
                } else {
                    self.write(st, bytes);
                }
                self.put_ready(st);
            }
            Turn::Later => st.pipeline.keep(seq, n, Bytes::copy_from_slice(bytes)),
        }
        self.answered(state, link);
    }

    /// The reply to a command that is not plain, whole or its last part.
    pub(crate) fn reply(self: &Rc<Self>, link: &Rc<Link>, mut command: Command, reply: Reply, frame: &[u8]) {
        let mut state = self.state.borrow_mut();
        let st = &mut *state;
        st.sent.take(link.replica, 1);
        let confirmed = match command.change() {
            Some(Change::Subscribe) => self.confirmed_by_ear(st, link, frame),
            _ => None,
        };
        let frame = confirmed.as_deref().unwrap_or(frame);
        if command.part().is_some() {
            self.part_answered(st, link, command, frame);
            return self.answered(state, link);
        }
        st.pins -= u32::from(command.pins);
        let skipped = st.pipeline.is_head(command.seq) && !st.muted && std::mem::take(&mut st.skip_next);
        let inside = st.tx_answered == TxState::Open;
        // What is refused changes nothing; but EXEC, however it ends, ends the transaction.
        if !reply.is_error() || command.tx == Tx::Exec {
            let _ = st.tx_answered.step(command.tx);
        }
        let mut told = None;
        let change = command.take_change();
        let widens = matches!(
            change.as_deref(),
            Some(Change::Tracking(Some(_)) | Change::Monitor)
        );
        match command.tx {
            Tx::Exec => self.execute(st, link, reply, frame),
            Tx::Discard if !reply.is_error() => forget_queued(st),
            Tx::Reset => {
                st.spoiling = false;
                if let Some(change) = change
                    && !reply.is_error()
                {
                    self.apply(st, link, *change, frame);
                    st.spoiled = self.worker.credentials(link.replica).is_some();
                }
            }
            _ if inside && !reply.is_error() => {
                if let Some(change) = change {
                    st.queued_changes.push((st.queued + st.queued_more, change));
                }
                st.queued += 1;
                if let Expect::Confirmations(more) = command.expect {
                    st.queued_more += more;
                }
            }
            _ => {
                if let Some(change) = change {
                    if reply.is_error() {
                        refused(st, &change, frame);
                    } else {
                        told = match &*change {
                            Change::Reply(mode) => Some(*mode == ReplyMode::On),
                            // A confirmation, as a message would be.
                            Change::Subscribe => Some(true),
                            _ => None,
                        };
                        self.apply(st, link, *change, frame);
                    }
                }
            }
        }
        if widens && !inside && !reply.is_error() && self.has_ears_on(link.replica) {
            // Every node tells it from here on: that takes connections which are not there yet.
            command.pins = false;
            command.aside().part = Some(Part::Answered(Bytes::copy_from_slice(frame)));
            self.put_back(st, command, Bytes::new(), None);
            return self.answered(state, link);
        }
        match st.pipeline.complete(command.seq, 1) {
            Turn::Now => {
                if told.unwrap_or(!skipped && !st.muted) {
                    self.write(st, frame);
                }
                self.put_ready(st);
            }
            Turn::Later => st.pipeline.keep(command.seq, 1, Bytes::copy_from_slice(frame)),
        }
        self.answered(state, link);
    }

    /// After a reply: what it lets go on.
    pub(super) fn answered(self: &Rc<Self>, mut state: std::cell::RefMut<'_, State>, link: &Rc<Link>) {
        let st = &mut *state;
        if st.streaming.is_some_and(|seq| !st.pipeline.is_head(seq)) {
            st.streaming = None;
        }
        st.written.settle(&st.pipeline, self.worker.now());
        resync(st);
        if !link.is_shared() && st.dead.is_none() {
            self.release_perhaps(st);
        }
        if st.closing.is_some() || (st.paused && st.is_half_empty()) {
            st.paused = false;
            self.wake();
        }
        self.tell_late(st);
        let (waits, untuned) = (!st.limbo.is_empty(), self.is_out_of_tune(st));
        drop(state);
        self.touch();
        if waits || untuned {
            self.worker.wait(self);
        }
        if waits {
            self.worker.kick();
        }
    }

    /// One confirmation of several.
    pub(crate) fn confirmed(self: &Rc<Self>, link: &Link, frame: &[u8]) {
        let mut state = self.state.borrow_mut();
        let confirmed = self.confirmed_by_ear(&mut state, link, frame);
        let frame = confirmed.as_deref().unwrap_or(frame);
        confirm(&mut state.intent, frame);
        // CLIENT REPLY OFF concerns replies; confirmations count as messages.
        self.write(&mut state, frame);
        drop(state);
        self.touch();
    }

    /// Whether a frame answers no command: a push, a message while subscribed, a line of MONITOR; or a confirmation, unless
    /// one `awaits_confirmation`. Such ones come when the replica ends a subscription, and behind the reply to an EXEC.
    pub(crate) fn is_out_of_band(&self, kind: u8, frame: &[u8], awaits_confirmation: bool) -> bool {
        match kind {
            b'>' => !(awaits_confirmation && is_confirmation(frame)),
            b'*' => {
                let state = self.state.borrow();
                !state.intent.identity.resp3
                    && (state.intent.is_subscribed() || state.has_retired_ears())
                    && (is_message(frame) || !awaits_confirmation && is_confirmation(frame))
            }
            b'+' if frame.get(1).is_some_and(u8::is_ascii_digit) => {
                let state = self.state.borrow();
                state.intent.monitors() || state.has_retired_ears()
            }
            _ => false,
        }
    }

    /// Passes on what answers no command.
    pub(crate) fn pass_on(self: &Rc<Self>, link: &Link, frame: &[u8]) {
        let mut state = self.state.borrow_mut();
        if !self.passes_on(&mut state, link, frame) {
            return;
        }
        confirm(&mut state.intent, frame);
        self.tell(&mut state, frame);
        drop(state);
        self.touch();
    }

    /// Passes a piece of a reply on.
    pub(crate) fn stream(self: &Rc<Self>, piece: &[u8]) {
        let mut state = self.state.borrow_mut();
        if !(state.muted || state.skip_next) {
            self.write(&mut state, piece);
        }
        drop(state);
        self.touch();
    }

    /// Whether the reply to `seq` may be passed on in pieces: nothing is owed before it.
    pub(crate) fn begin_streaming(&self, seq: Seq) -> bool {
        let mut state = self.state.borrow_mut();
        let may = state.pipeline.is_head(seq);
        if may {
            state.streaming = Some(seq);
        }
        may
    }

    /// Writes at once what the socket takes; the session's task waits to write the rest.
    fn write(&self, st: &mut State, mut bytes: &[u8]) {
        if st.dead.is_some() {
            return;
        }
        if st.out.is_empty() {
            match self.writer.try_write(bytes) {
                Ok(n) => {
                    self.worker.metrics.bytes_out.add(n as u64);
                    bytes = &bytes[n..];
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => {
                    st.dead = Some(DisconnectReason::Client);
                    self.wake();
                    return;
                }
            }
            if bytes.is_empty() {
                return;
            }
        }
        self.put(st, bytes);
        self.wake();
    }

    /// Adds to what is written at the end of this turn.
    pub(super) fn put(&self, st: &mut State, bytes: &[u8]) {
        if st.dead.is_some() {
            return;
        }
        let limit = self.worker.settings.listener.output_limit;
        let limit = if st.intent.listens() {
            limit.min(UNASKED)
        } else {
            limit
        };
        // A reply that is passed on in pieces may be longer than the limit: it is the only one of its kind.
        if st.streaming.is_some() {
            st.long += bytes.len();
        } else if st.out.len() + bytes.len() - st.long > limit {
            tracing::warn!(
                session = self.id,
                "disconnected: the application does not read, and {} bytes wait for it",
                st.out.len()
            );
            st.dead = Some(DisconnectReason::OutputLimit);
            self.wake();
            return;
        }
        if st.out.capacity() == 0 {
            st.out = self.worker.take_buffer();
        }
        st.out.extend_from_slice(bytes);
        self.owes.set(st.out.len());
        self.dirty.set(true);
    }

    pub(super) fn put_ready(&self, st: &mut State) {
        while let Some(kept) = st.pipeline.pop_ready() {
            if st.muted || st.skip_next {
                for reply in each(&kept) {
                    if !st.is_quiet() {
                        self.put(st, reply);
                    }
                }
            } else {
                self.put(st, &kept);
            }
        }
    }

    /// Lists the session for the flush at the end of this turn.
    pub(super) fn touch(self: &Rc<Self>) {
        if self.dirty.get() {
            self.worker.flush_later(self);
        }
    }

    /// Writes what the socket takes; the session's task waits for the rest.
    pub(crate) fn flush_now(&self) {
        self.dirty.set(false);
        self.flush(&mut self.state.borrow_mut());
    }

    pub(super) fn flush(&self, st: &mut State) {
        self.write_out(st);
        if !st.out.is_empty() || st.dead.is_some() || st.closing.is_some() {
            self.wake();
        }
    }

    fn write_out(&self, st: &mut State) {
        let before = st.out.len();
        while !st.out.is_empty() && st.dead.is_none() {
            match self.writer.try_write(&st.out) {
                Ok(n) => {
                    self.worker.metrics.bytes_out.add(n as u64);
                    st.out.advance(n);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(_) => st.dead = Some(DisconnectReason::Client),
            }
        }
        st.long = st.long.min(st.out.len());
        self.owes.set(st.out.len());
        if before > OUT_HIGH
            && st.out.len() <= OUT_HIGH
            && let Some(link) = &st.link
        {
            // It had stopped reading.
            link.wake();
            st.ears().for_each(|link| link.wake());
        }
        if st.out.is_empty() && st.out.capacity() > 0 {
            self.worker.give_buffer(std::mem::take(&mut st.out));
        }
    }

    /// Whether it is told things unasked.
    pub(crate) fn listens(&self) -> bool {
        self.state.borrow().intent.listens()
    }

    /// Bytes that wait for the application to read them.
    pub(crate) fn owes(&self) -> usize {
        self.owes.get()
    }

    /// Writes, for the session's task; `true` when all is written.
    pub(crate) fn poll_flush(&self, cx: &mut Context<'_>) -> bool {
        loop {
            let mut state = self.state.borrow_mut();
            if state.out.is_empty() || state.dead.is_some() {
                return true;
            }
            // The task that calls needs no waking: it would only turn round and round.
            self.write_out(&mut state);
            if state.out.is_empty() || state.dead.is_some() {
                return true;
            }
            drop(state);
            if self.writer.poll_writable(cx).is_pending() {
                return false;
            }
        }
    }

    /// The replica has agreed to a change.
    pub(super) fn apply(&self, st: &mut State, link: &Link, change: Change, frame: &[u8]) {
        match change {
            Change::Subscribe => return confirm(&mut st.intent, frame),
            Change::Script(kind, command) => {
                self.worker.scripts.borrow_mut().told(kind, &command, link.place);
                return;
            }
            Change::Reset => {
                (st.muted, st.skip_next) = (false, false);
                st.retire_ears();
                st.tainted |= st.intent.may_outlive_reset();
                forget_queued(st);
            }
            Change::Tracking(Some(_)) => link.track(),
            Change::Reply(ReplyMode::On) => (st.muted, st.skip_next) = (false, false),
            Change::Reply(ReplyMode::Off) => st.muted = true,
            Change::Reply(ReplyMode::Skip) => st.skip_next = !st.muted,
            _ => {}
        }
        let before = st.intent.identity.clone();
        st.intent.apply(change);
        if st.intent.identity != before {
            st.group = None;
        }
    }

    /// A transaction has ended: what its commands were to change is changed, unless it or they failed.
    fn execute(&self, st: &mut State, link: &Link, reply: Reply, frame: &[u8]) {
        let changes = std::mem::take(&mut st.queued_changes);
        st.queued = 0;
        let more = std::mem::take(&mut st.queued_more);
        if more > 0 && reply.kind == b'*' {
            // What of it is whose answer is more than is worth knowing.
            st.tainted = true;
            link.trails(more);
        }
        if changes.is_empty() || reply.kind != b'*' {
            return;
        }
        let results: Vec<&[u8]> = resp::reply_elements(frame).collect();
        if more > 0 {
            // Which element is whose is not certain now; those that confirm say so themselves.
            results.iter().for_each(|result| confirm(&mut st.intent, result));
        }
        for (place, change) in changes {
            match results.get(place as usize) {
                Some(result) if resp::error_code(result).is_some() => refused(st, &change, result),
                Some(result) => self.apply(st, link, *change, result),
                None => {}
            }
        }
    }
}

/// The replies in `bytes`, one by one.
fn each(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || match ReplyScanner::new().scan(bytes) {
        Ok(ReplyScan::Complete(reply)) => {
            let (reply, rest) = bytes.split_at(reply.len);
            bytes = rest;
            Some(reply)
        }
        _ => None,
    })
}

/// The open transaction is not carried out.
pub(super) fn forget_queued(st: &mut State) {
    (st.queued, st.queued_more, st.queued_changes) = Default::default();
}

/// Once nothing is on its way: where the connection stands is what its answers say, refusals and all.
fn resync(st: &mut State) {
    if st.sent.all() > 0 || st.tx_sent == st.tx_answered {
        return;
    }
    st.tx_sent = st.tx_answered;
    if !matches!(st.tx, TxState::Broken(_) | TxState::WatchLost) {
        st.tx = st.tx_answered;
        for held in &st.limbo {
            if held.command.opens() {
                let _ = st.tx.step(Tx::Multi);
            }
            let _ = st.tx.step(held.command.tx);
        }
        if st.opening {
            let _ = st.tx.step(Tx::Multi);
        }
    }
}

/// The replica has not agreed. Redis 7.0 carries a HELLO out option by option, up to the one that fails: what it leaves
/// on the connection is the session's own affair, but nobody else's.
fn refused(st: &mut State, change: &Change, frame: &[u8]) {
    let in_parts = matches!(change, Change::Hello { login, name, .. } if login.is_some() || name.is_some());
    st.tainted |= in_parts && resp::error_code(frame) != Some(b"NOPROTO");
}

/// The kind of subscription that a command or confirmation speaks of, and whether it begins one.
pub(super) fn subscription(word: &[u8]) -> Option<(Subscription, bool)> {
    Some(match word {
        b"subscribe" => (Subscription::Channel, true),
        b"unsubscribe" => (Subscription::Channel, false),
        b"psubscribe" => (Subscription::Pattern, true),
        b"punsubscribe" => (Subscription::Pattern, false),
        b"ssubscribe" => (Subscription::Shard, true),
        b"sunsubscribe" => (Subscription::Shard, false),
        _ => return None,
    })
}

/// The sharded channel that is not heard any more, if that is what a frame says.
pub(crate) fn ends_sharded(frame: &[u8]) -> Option<&[u8]> {
    let mut words = words(frame);
    words
        .next()
        .filter(|word| *word == b"sunsubscribe")
        .and(words.next())
}

fn is_confirmation(frame: &[u8]) -> bool {
    words(frame)
        .next()
        .is_some_and(|word| subscription(word).is_some())
}

fn is_message(frame: &[u8]) -> bool {
    matches!(words(frame).next(), Some(b"message" | b"pmessage" | b"smessage"))
}

fn confirm(intent: &mut Intent, frame: &[u8]) {
    let mut words = words(frame);
    if let Some((kind, on)) = words.next().and_then(subscription)
        && let Some(channel) = words.next()
    {
        intent.subscription(kind, channel, on);
    }
}

/// The texts of an aggregate's elements, up to the first that has none.
pub(super) fn words(frame: &[u8]) -> impl Iterator<Item = &[u8]> {
    resp::reply_elements(frame).map_while(resp::reply_text)
}
