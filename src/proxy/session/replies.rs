//! What comes back: replies in request order, messages that nobody asked for, and the bytes on their way out.

use std::rc::Rc;
use std::task::Context;

use bytes::{Buf, Bytes};

use super::{Session, State};
use crate::metrics::DisconnectReason;
use crate::proxy::command::{Command, Tx};
use crate::proxy::intent::{Change, Intent, Subscription};
use crate::proxy::link::{Link, OUT_HIGH};
use crate::proxy::pipeline::{Seq, Turn};
use crate::proxy::recover::TxState;
use crate::resp::{self, Reply, ReplyScan, ReplyScanner};

/// Most bytes that wait for an application which is told things unasked, as Redis has it for subscribers.
const UNASKED: usize = 32 * 1024 * 1024;

impl Session {
    /// The replies to `n` plain commands from `seq` on, which lie side by side in `bytes`.
    pub(crate) fn deliver(self: &Rc<Self>, link: &Rc<Link>, seq: Seq, n: u32, bytes: &[u8]) {
        let mut state = self.state.borrow_mut();
        let st = &mut *state;
        st.sent -= n;
        // A mean in which each reply weighs an eighth.
        st.reply_len = ((u64::from(st.reply_len) * 8 + bytes.len() as u64) / u64::from(8 + n)) as u32;
        match st.pipeline.complete(seq, n) {
            Turn::Now => {
                self.write(st, bytes);
                self.put_ready(st);
            }
            Turn::Later => keep_each(st, seq, bytes),
        }
        self.answered(state, link);
    }

    /// The reply to a command that is not plain, whole or its last part.
    pub(crate) fn reply(self: &Rc<Self>, link: &Rc<Link>, command: Command, reply: Reply, frame: &[u8]) {
        let mut state = self.state.borrow_mut();
        let st = &mut *state;
        st.sent -= 1;
        st.pins -= u32::from(command.pins);
        let inside = st.tx_answered == TxState::Open;
        // EXECABORT ends a transaction as well as a success does.
        let refused = command.tx != Tx::None
            && reply.is_error()
            && !(command.tx == Tx::Exec && resp::error_code(frame) == Some(b"EXECABORT"));
        if refused {
            refuse_step(st);
        } else {
            let _ = st.tx_answered.step(command.tx);
        }
        match command.tx {
            Tx::Exec => execute(st, reply, frame),
            Tx::Discard if !reply.is_error() => (st.queued, st.queued_changes) = Default::default(),
            _ if inside && !reply.is_error() => {
                if let Some(change) = command.change {
                    st.queued_changes.push((st.queued, change));
                }
                st.queued += 1;
            }
            _ => {
                if let Some(change) = command.change {
                    if !reply.is_error() {
                        apply(st, *change, frame);
                    } else if matches!(*change, Change::Hello { login: Some(_), .. }) {
                        // The login may have been taken before something else was refused.
                        (st.tainted, st.spoiled) = (true, true);
                    }
                }
            }
        }
        match st.pipeline.complete(command.seq, 1) {
            Turn::Now => {
                self.write(st, frame);
                self.put_ready(st);
            }
            Turn::Later => st.pipeline.keep(command.seq, Bytes::copy_from_slice(frame)),
        }
        self.answered(state, link);
    }

    /// After a reply: what it lets go on.
    fn answered(self: &Rc<Self>, mut state: std::cell::RefMut<'_, State>, link: &Rc<Link>) {
        let st = &mut *state;
        st.streaming = None;
        if !link.is_shared() && st.dead.is_none() {
            self.release_perhaps(st);
        }
        if st.closing.is_some() || (st.paused && st.is_half_empty()) {
            st.paused = false;
            self.wake();
        }
        let waits = !st.limbo.is_empty();
        drop(state);
        self.touch();
        if waits {
            self.worker.wait(self);
            self.worker.kick();
        }
    }

    /// One confirmation of several.
    pub(crate) fn confirmed(self: &Rc<Self>, frame: &[u8]) {
        let mut state = self.state.borrow_mut();
        confirm(&mut state.intent, frame);
        self.write(&mut state, frame);
        drop(state);
        self.touch();
    }

    /// Whether a frame answers no command: a push, a message while subscribed, a line of MONITOR.
    pub(crate) fn is_out_of_band(&self, kind: u8, frame: &[u8]) -> bool {
        match kind {
            b'>' => !is_confirmation(frame),
            b'*' => {
                let state = self.state.borrow();
                !state.intent.identity.resp3 && state.intent.is_subscribed() && is_message(frame)
            }
            b'+' => frame.get(1).is_some_and(u8::is_ascii_digit) && self.state.borrow().intent.monitors(),
            _ => false,
        }
    }

    /// Passes bytes on that are no reply of their own.
    pub(crate) fn pass_on(self: &Rc<Self>, bytes: &[u8]) {
        self.write(&mut self.state.borrow_mut(), bytes);
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
            self.put(st, &kept);
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
}

/// Replies that overtook an earlier one, each in its place.
fn keep_each(st: &mut State, mut seq: Seq, mut bytes: &[u8]) {
    while let Ok(ReplyScan::Complete(reply)) = ReplyScanner::new().scan(bytes) {
        st.pipeline.keep(seq, Bytes::copy_from_slice(&bytes[..reply.len]));
        bytes = &bytes[reply.len..];
        seq = seq.plus(1);
    }
}

/// A command that begins or ends a transaction or WATCH met an error: where the connection stands is what was answered
/// before, as far as anyone can tell, so nobody else gets it.
fn refuse_step(st: &mut State) {
    (st.tainted, st.spoiled) = (true, true);
    if st.pins == 0 && !st.tx.is_lost() {
        // No later such command is on its way.
        (st.tx, st.tx_sent) = (st.tx_answered, st.tx_answered);
    }
}

/// The replica has agreed to a change.
pub(super) fn apply(st: &mut State, change: Change, frame: &[u8]) {
    match change {
        Change::Subscribe => return confirm(&mut st.intent, frame),
        Change::Reset => {
            (st.queued, st.queued_changes) = Default::default();
            st.spoiled = true;
        }
        _ => {}
    }
    let before = st.intent.identity.clone();
    st.intent.apply(change);
    if st.intent.identity != before {
        st.group = None;
    }
}

/// A transaction has ended: what its commands were to change is changed, unless it or they failed.
fn execute(st: &mut State, reply: Reply, frame: &[u8]) {
    let changes = std::mem::take(&mut st.queued_changes);
    st.queued = 0;
    if changes.is_empty() || reply.kind != b'*' {
        return;
    }
    let results: Vec<&[u8]> = resp::reply_elements(frame).collect();
    for (place, change) in changes {
        if let Some(result) = results.get(place as usize)
            && resp::error_code(result).is_none()
        {
            apply(st, *change, result);
        }
    }
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
fn words(frame: &[u8]) -> impl Iterator<Item = &[u8]> {
    resp::reply_elements(frame).map_while(resp::reply_text)
}
