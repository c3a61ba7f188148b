//! One application connection: its requests in, its replies out, its state across links.
//!
//! Owns the order of replies, the commands that wait (the limbo), where it stands in a transaction, and what must be said
//! again on another replica. Never decides which replica is active: it follows the worker's route.
//!
//! A command's way: [`Session::accept`] classifies it and gives it to the session's link when that takes commands, else to
//! the limbo; [`Session::advance`] empties the limbo, in order, as soon as there is a link for it again.

mod wait;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Waker;

use bytes::{Bytes, BytesMut};

use super::classify::{Classified, LocalCommand, ReplyMode, classify};
use super::client::Writer;
use super::command::{Command, Expect, Held, Tx};
use super::intent::{Change, Intent, Subscription};
use super::link::{End, Frame, Link, OUT_HIGH, Phase};
use super::pipeline::{Pipeline, Seq, Turn};
use super::recover::TxState;
use super::worker::Worker;
use crate::metrics::{DisconnectReason, ErrorCode, HoldEnd};
use crate::replica::ReplicaId;
use crate::resp::{self, Reply, Request};

/// Commands and bytes that one session may have waiting before it stops reading.
const LIMBO_HIGH: (usize, usize) = (1024, 1024 * 1024);

/// Unanswered commands of one session before it stops reading.
const PIPELINE_HIGH: usize = 16 * 1024;

/// A frame this long is moved into the link, not copied.
const MOVE_ABOVE: usize = 32 * 1024;

/// One application connection.
pub(crate) struct Session {
    /// Unique in its worker.
    pub(crate) id: u64,
    worker: Rc<Worker>,
    writer: Writer,
    state: RefCell<State>,
    waker: RefCell<Option<Waker>>,
    /// Listed in the worker's `waiting`.
    pub(crate) waiting: Cell<bool>,
    /// Listed in the worker's `dirty`.
    dirty: Cell<bool>,
    /// Length of `State::out`, readable while the state is borrowed.
    owes: Cell<usize>,
}

#[derive(Default)]
struct State {
    pipeline: Pipeline,
    /// Replies that the socket has not taken yet.
    out: BytesMut,
    intent: Intent,
    link: Option<Rc<Link>>,
    limbo: VecDeque<Held>,
    limbo_bytes: usize,
    /// After the newest command accepted, sent on the current link, answered on it.
    tx: TxState,
    tx_sent: TxState,
    tx_answered: TxState,
    /// CLIENT REPLY OFF, as accepted; and as sent on the current link.
    muted: bool,
    muted_sent: bool,
    skip_next: bool,
    /// A part of this reply has been passed on.
    streaming: Option<Seq>,
    /// No more requests; close once everything is answered and written.
    closing: Option<DisconnectReason>,
    /// Close now.
    dead: Option<DisconnectReason>,
    /// The task waits for room.
    paused: bool,
}

/// A command that a lost link gives back.
#[derive(Debug)]
pub(crate) struct Given {
    /// The command.
    pub command: Command,
    /// Its bytes.
    pub frame: Bytes,
    /// Any byte of it may have reached the replica.
    pub sent: bool,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// A new session; `serve::run` gives it life.
    pub(crate) fn new(id: u64, worker: Rc<Worker>, writer: Writer) -> Rc<Session> {
        Rc::new(Session {
            id,
            worker,
            writer,
            state: RefCell::default(),
            waker: RefCell::default(),
            waiting: Cell::new(false),
            dirty: Cell::new(false),
            owes: Cell::new(0),
        })
    }

    /// Takes one whole request. `frame` is moved into the link when it is `Owned`.
    pub(crate) fn accept(self: &Rc<Self>, frame: Frame<'_>, request: &Request) {
        let bytes = match &frame {
            Frame::Borrowed(bytes) => bytes,
            Frame::Owned(bytes) => &bytes[..],
        };
        let c = classify(bytes, request);
        let mut state = self.state.borrow_mut();
        let st = &mut *state;
        match c.local {
            Some(LocalCommand::Quit) => {
                self.answer_new(st, b"+OK\r\n");
                st.closing = Some(DisconnectReason::Quit);
                return;
            }
            Some(LocalCommand::Refused) => {
                return self.answer_new(
                    st,
                    b"-ERR replication commands are not forwarded by Pulsegate\r\n",
                );
            }
            None => {}
        }
        if let Some(local) = st.tx.step(c.tx) {
            return self.answer_new(st, local.bytes(st.intent.resp3));
        }
        let class = c.class;
        let command = self.enlist(st, c);
        let Some(route) = self.worker.route.get() else {
            return self.hold(st, command, frame);
        };
        if st.limbo.is_empty()
            && !route.holding
            && let Some(link) = &st.link
            && link.replica == route.write
            && link.takes_commands()
            && (command.expect != Expect::Confirmations(0) || link.is_idle())
        {
            self.worker.metrics.commands[class][route.write].inc();
            let link = Rc::clone(link);
            self.send(st, &link, command, frame);
        } else {
            self.hold(st, command, frame);
            drop(state);
            self.advance();
        }
    }

    /// Gives a classified command its slot, and what CLIENT REPLY makes of it.
    fn enlist(&self, st: &mut State, c: Classified) -> Command {
        let mut expect = c.expect;
        if st.muted || std::mem::take(&mut st.skip_next) {
            expect = Expect::Nothing;
        }
        match c.reply_mode {
            Some(ReplyMode::On) => {
                st.muted = false;
                expect = Expect::Reply;
            }
            Some(ReplyMode::Off) => {
                st.muted = true;
                expect = Expect::Nothing;
            }
            Some(ReplyMode::Skip) if !st.muted => {
                st.skip_next = true;
                expect = Expect::Nothing;
            }
            _ => {}
        }
        if st.tx == TxState::Open && c.tx != Tx::Multi && expect != Expect::Nothing {
            expect = Expect::Reply;
        }
        let seq = if expect == Expect::Nothing {
            Seq::NONE
        } else {
            st.pipeline.push()
        };
        Command {
            seq,
            expect,
            read: c.read,
            tx: c.tx,
            change: c.change,
        }
    }

    /// Hands a command to the link.
    fn send(self: &Rc<Self>, st: &mut State, link: &Rc<Link>, mut command: Command, frame: Frame<'_>) {
        let _ = st.tx_sent.step(command.tx);
        st.muted_sent = st.muted;
        if command.expect == Expect::Confirmations(0) {
            let name = match &frame {
                Frame::Borrowed(bytes) => resp::args(bytes).next().map(<[u8]>::to_ascii_lowercase),
                Frame::Owned(bytes) => resp::args(bytes).next().map(<[u8]>::to_ascii_lowercase),
            };
            let kind = subscription(name.as_deref().unwrap_or_default())
                .map_or(Subscription::Channel, |(kind, _)| kind);
            command.expect = Expect::Confirmations(st.intent.subscribed(kind).max(1) as u32);
        }
        link.append(self, command, frame);
    }

    /// Answers a command that has its slot already.
    fn answer(&self, st: &mut State, command: &Command, reply: &[u8]) {
        if matches!(command.expect, Expect::Nothing | Expect::Own { .. }) {
            return;
        }
        match st.pipeline.complete(command.seq) {
            Turn::Now => {
                self.put(st, reply);
                self.put_ready(st);
            }
            Turn::Later => st.pipeline.keep(command.seq, Bytes::copy_from_slice(reply)),
        }
        self.mark_dirty();
    }

    /// Answers a command that never leaves Pulsegate.
    fn answer_new(self: &Rc<Self>, st: &mut State, reply: &[u8]) {
        if st.muted || std::mem::take(&mut st.skip_next) {
            return;
        }
        let seq = st.pipeline.push();
        self.answer(
            st,
            &Command {
                seq,
                expect: Expect::Reply,
                read: true,
                tx: Tx::None,
                change: None,
            },
            reply,
        );
        self.worker.touch(self);
    }

    /// Answers a protocol error, after which the connection closes.
    pub(crate) fn protocol_error(self: &Rc<Self>, error: &resp::ProtocolError) {
        let mut state = self.state.borrow_mut();
        let st = &mut *state;
        self.answer_new(st, format!("-ERR {error}\r\n").as_bytes());
        st.closing = Some(DisconnectReason::ProtocolError);
    }

    /// The reply to `command` is here, whole or its last part.
    pub(crate) fn reply(self: &Rc<Self>, command: Command, reply: Reply, frame: &[u8], from: ReplicaId) {
        let mut state = self.state.borrow_mut();
        let st = &mut *state;
        if reply.kind == b'-' {
            let code = ErrorCode::of(resp::error_code(frame).unwrap_or_default());
            self.worker.metrics.replies_error[from][code].inc();
        }
        let _ = st.tx_answered.step(command.tx);
        if let Some(change) = command.change
            && reply.kind != b'-'
        {
            if matches!(*change, Change::Subscribe) {
                confirm(&mut st.intent, frame);
            } else {
                if matches!(*change, Change::Reset) {
                    (st.tx, st.tx_sent, st.tx_answered, st.muted) = Default::default();
                }
                st.intent.apply(*change);
            }
        }
        if st.streaming == Some(command.seq) {
            st.streaming = None;
        }
        match st.pipeline.complete(command.seq) {
            Turn::Now => {
                self.put(st, frame);
                self.put_ready(st);
            }
            Turn::Later => st.pipeline.keep(command.seq, Bytes::copy_from_slice(frame)),
        }
        if st.pipeline.is_empty() {
            st.pipeline.give_back();
        }
        let waits = !st.limbo.is_empty();
        if st.paused {
            self.unpause(st);
        }
        drop(state);
        self.touch();
        if waits {
            self.worker.touch(self);
        }
    }

    /// One confirmation of several.
    pub(crate) fn confirmed(self: &Rc<Self>, frame: &[u8]) {
        let mut state = self.state.borrow_mut();
        confirm(&mut state.intent, frame);
        self.put(&mut state, frame);
        drop(state);
        self.touch();
    }

    /// Whether a frame answers no command: a push, a message while subscribed, a line of MONITOR.
    pub(crate) fn is_out_of_band(&self, kind: u8, frame: &[u8]) -> bool {
        match kind {
            b'>' => !is_confirmation(frame),
            b'*' => {
                let state = self.state.borrow();
                !state.intent.resp3 && state.intent.is_subscribed() && is_message(frame)
            }
            b'+' => frame.get(1).is_some_and(u8::is_ascii_digit) && self.state.borrow().intent.monitors(),
            _ => false,
        }
    }

    /// Passes bytes on that are no reply of their own.
    pub(crate) fn pass_on(self: &Rc<Self>, bytes: &[u8]) {
        self.put(&mut self.state.borrow_mut(), bytes);
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

    fn put(&self, st: &mut State, bytes: &[u8]) {
        if st.out.capacity() == 0 {
            st.out = self.worker.take_buffer();
        }
        st.out.extend_from_slice(bytes);
        self.owes.set(st.out.len());
        self.mark_dirty();
    }

    fn put_ready(&self, st: &mut State) {
        while let Some(kept) = st.pipeline.pop_ready() {
            self.put(st, &kept);
        }
    }

    fn mark_dirty(&self) {
        self.dirty.set(true);
    }

    /// Lists the session for the flush at the end of this turn.
    fn touch(self: &Rc<Self>) {
        if self.dirty.get() || self.state.borrow().dead.is_some() {
            self.worker.flush_later(self);
        }
    }

    /// Writes what the socket takes; the session's task waits for the rest.
    pub(crate) fn flush_now(&self) {
        self.dirty.set(false);
        self.flush(&mut self.state.borrow_mut());
    }

    fn flush(&self, st: &mut State) {
        let before = st.out.len();
        while !st.out.is_empty() && st.dead.is_none() {
            match self.writer.try_write(&st.out) {
                Ok(n) => {
                    self.worker.metrics.bytes_out.add(n as u64);
                    bytes::Buf::advance(&mut st.out, n);
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(_) => st.dead = Some(DisconnectReason::Client),
            }
        }
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
        let done = st.closing.is_some() && st.pipeline.is_empty();
        if !st.out.is_empty() || st.dead.is_some() || done {
            self.wake();
        }
    }

    fn unpause(&self, st: &mut State) {
        if std::mem::take(&mut st.paused) {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Bytes that wait for the application to read them.
    pub(crate) fn owes(&self) -> usize {
        self.owes.get()
    }

    /// The session's task is about to wait.
    pub(crate) fn set_waker(&self, waker: &Waker) {
        let mut own = self.waker.borrow_mut();
        if !own.as_ref().is_some_and(|w| w.will_wake(waker)) {
            *own = Some(waker.clone());
        }
    }

    /// Writes, for the session's task; `true` when all is written.
    pub(crate) fn poll_flush(&self, cx: &mut std::task::Context<'_>) -> bool {
        loop {
            let mut state = self.state.borrow_mut();
            self.flush(&mut state);
            if state.out.is_empty() || state.dead.is_some() {
                return true;
            }
            drop(state);
            self.set_waker(cx.waker());
            if self.writer.poll_writable(cx).is_pending() {
                return false;
            }
        }
    }

    /// Whether the connection ends now, and why.
    pub(crate) fn ended(&self) -> Option<DisconnectReason> {
        let state = self.state.borrow();
        state.dead.or(state
            .closing
            .filter(|_| state.pipeline.is_empty() && state.out.is_empty()))
    }

    /// Whether more requests may be read now; if not, the session wakes its task when they may.
    pub(crate) fn may_read(&self) -> bool {
        let mut state = self.state.borrow_mut();
        let full = state.limbo.len() >= LIMBO_HIGH.0
            || state.limbo_bytes >= LIMBO_HIGH.1
            || state.out.len() > OUT_HIGH
            || state.pipeline.len() >= PIPELINE_HIGH;
        state.paused = full;
        !full && state.closing.is_none()
    }

    /// The application has closed its side: what it sent is still carried out, but nobody waits for blocked commands.
    pub(crate) fn end_of_input(&self) {
        let mut state = self.state.borrow_mut();
        let busy = !state.limbo.is_empty() || state.link.as_ref().is_some_and(|link| link.in_flight() > 0);
        if busy {
            state.closing.get_or_insert(DisconnectReason::Client);
        } else {
            state.dead.get_or_insert(DisconnectReason::Client);
        }
    }

    /// Ends the session once nothing of it is unanswered, or at once.
    pub(crate) fn drain(&self, now: bool) {
        let mut state = self.state.borrow_mut();
        let idle = state.limbo.is_empty() && state.link.as_ref().is_none_or(|link| link.in_flight() == 0);
        if now || idle {
            state.dead.get_or_insert(DisconnectReason::Drain);
        } else {
            state.closing.get_or_insert(DisconnectReason::Drain);
        }
        drop(state);
        self.wake();
    }

    /// Gives everything back when the connection has ended.
    pub(crate) fn close(self: &Rc<Self>) {
        let mut state = self.state.borrow_mut();
        state.dead.get_or_insert(DisconnectReason::Error);
        let link = state.link.take();
        for held in std::mem::take(&mut state.limbo) {
            self.worker
                .hold_frees(held.frame.len(), held.since, HoldEnd::Disconnected);
        }
        drop(state);
        self.waker.borrow_mut().take();
        if let Some(link) = link {
            link.condemn(&End::Released);
        }
    }

    /// The link, for the worker's sweeps.
    pub(crate) fn link_phase(&self) -> Option<Phase> {
        self.state.borrow().link.as_ref().map(|link| link.phase())
    }

    /// The replica may speak first, so the session wants a link even while its application is silent.
    pub(crate) fn wants_link(&self) -> bool {
        let state = self.state.borrow();
        state.dead.is_none() && state.intent.listens()
    }

    /// Takes a request out of `buf`, moving it when it is long.
    pub(crate) fn accept_from(self: &Rc<Self>, buf: &mut BytesMut, request: &Request) {
        if request.len >= MOVE_ABOVE {
            self.accept(Frame::Owned(buf.split_to(request.len)), request);
        } else {
            let frame = buf.split_to(request.len);
            self.accept(Frame::Borrowed(&frame), request);
        }
    }
}

/// The kind of subscription that a command or confirmation speaks of, and whether it begins one.
fn subscription(word: &[u8]) -> Option<(Subscription, bool)> {
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
