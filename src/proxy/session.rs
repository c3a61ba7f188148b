//! One application connection: its requests in, its replies out, its state across links.
//!
//! Owns the order of replies, the commands that wait (the limbo), where it stands in a transaction, and what must be said
//! again on another replica. Never decides which replica is active: it follows the worker's route.
//!
//! A command's way: [`Session::accept`] classifies it, `place` says which replica it goes to; it is given to the session's link
//! there when that takes commands, else to the limbo; `wait` empties the limbo, in order, as soon as there is a link for it
//! again; `replies` takes what comes back.
//!
//! ```text
//!             a command that needs a link of its own, once all earlier ones are answered
//!   shared links ─────────────────────────────────────────────────────────────────────▶ dedicated link
//!              ◀─────────────────────────────────────────────────────────────────────
//!             its last reply came, and nothing is left on the connection that others must not have
//! ```

mod ears;
mod place;
mod redirect;
mod replies;
mod sent;
mod shards;
mod wait;
mod words;

use std::cell::{Cell, RefCell, RefMut};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::Waker;
use std::time::Instant;

use bytes::{Bytes, BytesMut};

use super::classify::{Classified, LocalCommand, classify};
use super::client::Writer;
use super::command::{Aside, Command, Expect, Held, Tx};
use super::intent::{Change, Intent, Step, Subscription};
use super::link::{End, Frame, Link, OUT_HIGH};
use super::part::Part;
use super::pipeline::{Pipeline, Seq, Turn};
use super::recover::{Local, TxState};
use super::split::Written;
use super::topology::Place;
use super::upstream::Group;
use super::worker::{Current, Worker};
use crate::config::UpstreamMode;
use crate::metrics::{DisconnectReason, HoldEnd, SessionKind};
use crate::resp::{self, Request};
use ears::{Ear, Late};
pub(crate) use replies::ends_sharded;
use sent::Sent;
use shards::{Seen, Waits};
use words::{is_caching, is_wait, too_much_for_a_stranger};

/// Commands and bytes that one session may have waiting before it stops reading.
const LIMBO_HIGH: (usize, usize) = (1024, 1024 * 1024);

/// Fewest and most unanswered commands of one session before it stops reading; in between, as many as their replies fill
/// [`OUT_HIGH`], so that an application that does not read cannot order more than that.
const PIPELINE_HIGH: (usize, usize) = (16, 16 * 1024);

/// Said in place of CLIENT REPLY OFF and SKIP: the replica goes on answering, and its answers stop here.
const REPLY_ON: &[u8] = b"*3\r\n$6\r\nCLIENT\r\n$5\r\nREPLY\r\n$2\r\nON\r\n";

/// The length of a reply, before any has been seen.
const REPLY_GUESS: u32 = 2048;

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

struct State {
    pipeline: Pipeline,
    /// Replies that the socket has not taken yet.
    out: BytesMut,
    /// Of `out`, at most so much is a reply that is too long to be kept whole.
    long: usize,
    intent: Intent,
    /// The session's own link, if it has one; else the shared link that it used last.
    link: Option<Rc<Link>>,
    /// Its links to nodes that tell it things.
    ears: Vec<Ear>,
    /// Channels are not asked for before.
    ask_after: Option<Instant>,
    /// What is said unasked once something is answered, and bytes of it that have not been said at all.
    late: Vec<Late>,
    late_bytes: usize,
    /// Where its shared links are, as long as its identity stays.
    group: Option<Rc<Group>>,
    /// Commands whose replies have not come: all on its own link, or all on shared ones.
    sent: Sent,
    /// What its reads elsewhere must not overtake.
    written: Written,
    limbo: VecDeque<Held>,
    limbo_bytes: usize,
    /// After the newest command accepted, sent on the current link, answered on it.
    tx: TxState,
    tx_sent: TxState,
    tx_answered: TxState,
    /// Commands queued by the open transaction, and what those change if it is executed.
    queued: u32,
    /// Confirmations that its (un)subscriptions bring beyond one each: a server does not count them as elements of EXEC's
    /// reply, so that as many frames come behind it.
    queued_more: u32,
    queued_changes: Vec<(u32, Box<Change>)>,
    /// Accepted commands without a reply that need a link of the session's own.
    pins: u32,
    /// Something unknown was said on the connection, so the session keeps its own from now on.
    tainted: bool,
    /// RESET took from the connection the login that Pulsegate had said on it, so it serves nobody any more.
    spoiled: bool,
    /// A RESET that will do so is not answered yet, so nothing may follow it there.
    spoiling: bool,
    /// CLIENT REPLY OFF has been answered; CLIENT REPLY SKIP has.
    muted: bool,
    skip_next: bool,
    /// A command of the open transaction was refused, so what the link holds of it must go.
    aborting: bool,
    /// MULTI has been answered, and is said before the next command.
    opening: bool,
    /// Of an open transaction that has no key yet: what has been said of it, in case that its first key belongs elsewhere.
    keyless: Option<Vec<Bytes>>,
    /// A node has sent a command elsewhere: nothing follows before all that is on its way is answered.
    settling: bool,
    /// The layouts that its unanswered commands went by.
    version: u32,
    /// CLIENT CACHING was the last command sent: it concerns the next one.
    caching: bool,
    /// A part of this reply has been passed on.
    streaming: Option<Seq>,
    /// Length of its replies, averaged over the last ones.
    reply_len: u32,
    kind: SessionKind,
    /// No more requests; close once everything is answered and written.
    closing: Option<DisconnectReason>,
    /// Close now.
    dead: Option<DisconnectReason>,
    /// The task waits for room.
    paused: bool,
}

impl State {
    /// Whether the next command needs a link of the session's own, whatever it is.
    fn is_pinned(&self) -> bool {
        self.tainted || self.pins > 0 || self.tx.pins() || self.intent.is_peculiar()
    }

    /// Puts what waits in the order of the application's commands.
    fn sort_limbo(&mut self) {
        let pipeline = &self.pipeline;
        self.limbo
            .make_contiguous()
            .sort_by_key(|held| pipeline.before(held.command.seq));
    }

    /// Whether its own link stays with it when nothing is unanswered.
    fn keeps_own(&self) -> bool {
        self.tainted || self.tx_sent.pins() || self.intent.is_peculiar()
    }

    /// Whether its link is its own.
    fn has_own_link(&self) -> bool {
        self.link.as_ref().is_some_and(|link| !link.is_shared())
    }

    /// The session's commands that a drain waits for.
    fn in_flight(&self) -> usize {
        match &self.link {
            Some(link) if !link.is_shared() => {
                let on_ears = self.ears().map(|link| link.in_flight());
                link.in_flight() + on_ears.sum::<usize>()
            }
            _ => self.sent.all() as usize,
        }
    }

    /// Whether nothing is left to do before the connection closes because of `why`.
    fn is_done(&self, why: DisconnectReason) -> bool {
        // Nobody waits for a blocked command of an application that has gone, or on the way out.
        let gone = matches!(why, DisconnectReason::Client | DisconnectReason::Drain);
        self.out.is_empty()
            && self.limbo.is_empty()
            && (self.pipeline.is_empty() || gone && self.in_flight() == 0)
    }

    /// Whether `link`, which takes commands, may have this one before all earlier ones are answered, or they are.
    fn may_send(&self, link: &Link, command: &Command) -> bool {
        // How many confirmations come depends on those before. And RESET logs the connection out, where it needs a login: a
        // server hangs up on who has not logged in and has more than a little to read.
        let alone = command.expect == Expect::Confirmations(0) || command.tx == Tx::Reset;
        !self.spoiling && (!alone || link.is_idle())
    }

    /// Whether the application has asked not to be told the next reply.
    fn is_quiet(&mut self) -> bool {
        self.muted || std::mem::take(&mut self.skip_next)
    }

    /// Whether no more requests are to be read now.
    fn is_full(&self) -> bool {
        self.pipeline.len() >= self.window()
            || self.out.len() > OUT_HIGH
            || self.limbo.len() >= LIMBO_HIGH.0
            || self.limbo_bytes >= LIMBO_HIGH.1
    }

    /// Whether there is room for so many requests that reading on is worth a turn of the task.
    fn is_half_empty(&self) -> bool {
        self.pipeline.len() <= self.window() / 2 && !self.is_full()
    }

    /// Most unanswered commands.
    fn window(&self) -> usize {
        (OUT_HIGH / self.reply_len.max(1) as usize).clamp(PIPELINE_HIGH.0, PIPELINE_HIGH.1)
    }
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// A new session; `listener` gives it life.
    pub(crate) fn new(id: u64, worker: Rc<Worker>, writer: Writer) -> Rc<Session> {
        worker.metrics.sessions[SessionKind::Shared].add(1);
        let replicas = worker.settings.replicas.len();
        Rc::new(Session {
            id,
            worker,
            writer,
            state: RefCell::new(State {
                pipeline: Pipeline::default(),
                out: BytesMut::new(),
                long: 0,
                intent: Intent::default(),
                link: None,
                ears: Vec::new(),
                ask_after: None,
                late: Vec::new(),
                late_bytes: 0,
                group: None,
                sent: Sent::new(replicas),
                written: Written::default(),
                limbo: VecDeque::new(),
                limbo_bytes: 0,
                tx: TxState::Clear,
                tx_sent: TxState::Clear,
                tx_answered: TxState::Clear,
                queued: 0,
                queued_more: 0,
                queued_changes: Vec::new(),
                pins: 0,
                tainted: false,
                spoiled: false,
                spoiling: false,
                muted: false,
                skip_next: false,
                aborting: false,
                opening: false,
                keyless: None,
                settling: false,
                version: 0,
                caching: false,
                streaming: None,
                reply_len: REPLY_GUESS,
                kind: SessionKind::Shared,
                closing: None,
                dead: None,
                paused: false,
            }),
            waker: RefCell::default(),
            waiting: Cell::new(false),
            dirty: Cell::new(false),
            owes: Cell::new(0),
        })
    }

    /// Every session has links of its own, by configuration.
    fn always_owns(&self) -> bool {
        self.worker.settings.upstream.mode == UpstreamMode::Dedicated
    }

    /// Takes one whole request. `frame` is moved into the link when it is `Owned`. Whether more may be read.
    pub(crate) fn accept(self: &Rc<Self>, frame: Frame<'_>, request: &Request) -> bool {
        let c = classify(frame.bytes(), request);
        let mut state = self.state.borrow_mut();
        let st = &mut *state;
        match c.local {
            Some(LocalCommand::Quit) => {
                self.answer_new(st, b"+OK\r\n");
                st.closing = Some(DisconnectReason::Quit);
                return false;
            }
            // As a server does with what looks like an attack from a browser.
            Some(LocalCommand::Closed) => {
                st.closing = Some(DisconnectReason::ProtocolError);
                return false;
            }
            Some(LocalCommand::Refused) => {
                self.answer_new(
                    st,
                    b"-ERR replication commands are not forwarded by Pulsegate\r\n",
                );
                return true;
            }
            None => {}
        }
        if c.tx == Tx::Multi && st.tx == TxState::Clear && self.places_transactions() {
            (st.tx, st.opening) = (TxState::Open, true);
            self.answer_new(st, b"+OK\r\n");
            return true;
        }
        if let Some(local) = st.tx.step(c.tx) {
            self.answer_new(st, local.bytes(st.intent.identity.resp3));
            return true;
        }
        let sharded = self.worker.sharded.get() || st.opening;
        let info = c.info;
        let command = self.enlist(st, c);
        let frame = match command.change() {
            Some(Change::Reply(_)) => Frame::Borrowed(REPLY_ON),
            _ => frame,
        };
        let link = match () {
            () if !st.limbo.is_empty() => None,
            () if sharded => self.link_to_shard_at_once(st, &command, (info, request), frame.bytes()),
            () => self.link_at_once(st, &command),
        };
        if let Some(link) = link {
            self.send(st, &link, command, frame);
        } else {
            let seen = sharded.then_some((info, *request));
            state = self.accept_slowly(state, command, frame, seen);
        }
        let full = state.is_full();
        state.paused = full;
        !full
    }

    /// Sends a command by way of `dispatch`, if the scanner's knowledge is given, or lets it wait.
    #[inline(never)]
    fn accept_slowly<'s>(
        self: &'s Rc<Self>,
        mut state: RefMut<'s, State>,
        command: Command,
        frame: Frame<'_>,
        seen: Option<Seen>,
    ) -> RefMut<'s, State> {
        let st = &mut *state;
        let waits = if seen.is_some() && st.limbo.is_empty() {
            self.dispatch(st, command, frame, seen).err().map(Waits::parts)
        } else {
            Some((command, frame))
        };
        let Some((command, frame)) = waits else {
            return state;
        };
        self.hold(st, command, frame);
        let aborting = std::mem::take(&mut st.aborting)
            .then(|| st.link.clone())
            .flatten();
        drop(state);
        if let Some(link) = aborting {
            link.condemn(&End::Abandoned);
        }
        self.advance();
        self.state.borrow_mut()
    }

    /// The link that takes a new command now, if nothing speaks against it.
    fn link_at_once(self: &Rc<Self>, st: &mut State, command: &Command) -> Option<Rc<Link>> {
        let route = self.worker.route.get().filter(|route| !route.holding)?;
        let to = self.destination(st, &route, command, command.own);
        self.link_to(st, &route, command, Place::endpoint(to))
    }

    /// The link to a place, if it takes the command now.
    #[inline(always)]
    fn link_to(
        self: &Rc<Self>,
        st: &mut State,
        route: &Current,
        command: &Command,
        to: Place,
    ) -> Option<Rc<Link>> {
        if st.link.as_ref().is_none_or(|link| link.place != to) {
            if st.has_own_link() || command.own && st.sent.all() > 0 {
                return None;
            }
            st.link = self.get_link(st, to, command.own);
        }
        let link = st.link.as_ref()?;
        let takes = link.takes_commands()
            && !(command.own && link.is_shared())
            && !self.overtakes(st, route, command, to.replica)
            && st.may_send(link, command);
        takes.then(|| Rc::clone(link))
    }

    /// Gives a classified command its place.
    fn enlist(&self, st: &mut State, c: Classified) -> Command {
        let own = c.own || self.always_owns() || st.is_pinned();
        // Inside a transaction it does not block.
        let expect = match c.expect {
            Expect::Blocking if st.tx == TxState::Open => Expect::Reply,
            expect => expect,
        };
        let opens = std::mem::take(&mut st.opening);
        let aside = (opens || c.taints || c.change.is_some() || c.instead.is_some()).then(|| {
            Box::new(Aside {
                change: c.change,
                part: c.instead.map(Part::Instead),
                opens,
                taints: c.taints,
                ..Aside::default()
            })
        });
        let (seq, pins) = (st.pipeline.push(), c.own);
        st.pins += u32::from(pins);
        Command {
            seq,
            expect,
            read: c.read,
            strays: c.strays,
            own,
            pins,
            class: c.class,
            tx: c.tx,
            aside,
            script: c.script,
        }
    }

    /// Hands a command to the link.
    fn send(self: &Rc<Self>, st: &mut State, link: &Rc<Link>, mut command: Command, frame: Frame<'_>) {
        if link.is_shared()
            && link.is_logged_out()
            && let Some(refusal) = too_much_for_a_stranger(frame.bytes())
        {
            self.answer(st, &command, refusal);
            st.closing = Some(DisconnectReason::ProtocolError);
            self.worker.touch(self);
            return;
        }
        let mut asking = false;
        if let Some(aside) = &command.aside {
            asking = aside.detour.is_some_and(|detour| detour.asking);
            if aside.opens {
                link.transaction_began();
                (st.tx_sent, st.tx_answered) = (TxState::Open, TxState::Open);
            }
            st.tainted |= aside.taints;
        }
        let _ = st.tx_sent.step(command.tx);
        let cached = std::mem::replace(&mut st.caching, st.intent.tracks() && is_caching(frame.bytes()));
        st.spoiling |= command.tx == Tx::Reset && self.worker.credentials(link.replica).is_some();
        if command.expect == Expect::Confirmations(0) {
            let name = resp::args(frame.bytes())
                .next()
                .unwrap_or_default()
                .to_ascii_lowercase();
            let kind = replies::subscription(&name).map_or(Subscription::Channel, |(kind, _)| kind);
            command.expect = Expect::Confirmations(st.intent.subscribed(kind).max(1) as u32);
        }
        if let Some(kind) = command.script {
            let mut scripts = self.worker.scripts.borrow_mut();
            if scripts.wants(kind, frame.bytes()) {
                let whole = Bytes::copy_from_slice(frame.bytes());
                command.aside().change = Some(Box::new(Change::Script(kind, whole)));
            }
            // Nothing can be said inside a transaction, nor between CLIENT CACHING and what it means.
            if st.tx_sent != TxState::Open && !cached {
                let missing = scripts.before(kind, frame.bytes(), link.place);
                link.say(missing.into_iter().map(Step::known).collect());
            }
        }
        if command.expect == Expect::Blocking && is_wait(frame.bytes()) {
            // WAIT is for the writes of its own connection; any command said now makes it wait for all earlier ones.
            link.say(vec![Step::may(&[b"PING"])]);
        }
        if !command.read {
            st.written.sent(command.seq, &st.pipeline);
        }
        if asking {
            // Nothing comes between it and the command.
            link.say(vec![Step::may(&[b"ASKING"])]);
        }
        st.sent.add(link.replica);
        self.worker.metrics.commands[command.class][link.replica].inc();
        link.append(self, command, frame);
    }

    /// Answers a command that has its place already.
    fn answer(&self, st: &mut State, command: &Command, reply: &[u8]) {
        st.pins -= u32::from(command.pins);
        if matches!(command.expect, Expect::Own { .. }) {
            return;
        }
        if let Some(Part::Proof(refused)) = command.part() {
            // What would have told whether it was carried out cannot be asked.
            self.worker.metrics.unknown_outcome.inc();
            let unknown = Local::OutcomeUnknown.bytes(st.intent.identity.resp3);
            return self.answer(st, &refused.command, unknown);
        }
        if let Some(Part::Of { joint, number, .. }) = command.part() {
            if let Some((whole, joined)) = joint.put(*number, reply) {
                self.answer(st, &whole, &joined);
            }
            return;
        }
        match st.pipeline.complete(command.seq, 1) {
            Turn::Now => {
                if !st.is_quiet() {
                    self.put(st, reply);
                }
                self.put_ready(st);
            }
            Turn::Later => st.pipeline.keep(command.seq, 1, Bytes::copy_from_slice(reply)),
        }
    }

    /// Answers a command that never leaves Pulsegate.
    fn answer_new(self: &Rc<Self>, st: &mut State, reply: &[u8]) {
        let seq = st.pipeline.push();
        self.answer(st, &Command::plain(seq, true), reply);
        self.worker.touch(self);
    }

    /// Answers a protocol error, after which the connection closes.
    pub(crate) fn protocol_error(self: &Rc<Self>, error: &resp::ProtocolError) {
        let mut state = self.state.borrow_mut();
        let st = &mut *state;
        self.answer_new(st, format!("-ERR {error}\r\n").as_bytes());
        st.closing = Some(DisconnectReason::ProtocolError);
    }

    fn set_kind(&self, st: &mut State, kind: SessionKind) {
        if st.kind != kind {
            self.worker.metrics.sessions[st.kind].add(-1);
            self.worker.metrics.sessions[kind].add(1);
            st.kind = kind;
        }
    }

    /// Gives the dedicated link back when nothing speaks for keeping it.
    fn release_perhaps(&self, st: &mut State) {
        let Some(link) = &st.link else { return };
        if link.is_shared() || !link.is_idle() || st.tx_sent.pins() {
            return;
        }
        if !st.spoiled && (self.always_owns() || !st.limbo.is_empty() || st.is_pinned()) {
            return;
        }
        if let Some(link) = st.link.take() {
            self.release(st, link);
        }
    }

    fn release(&self, st: &mut State, link: Rc<Link>) {
        self.set_kind(st, SessionKind::Shared);
        // What the session answered itself (an EXEC after a lost WATCH) may have left something on the connection.
        let clean = (st.tx_sent, st.tx_answered) == Default::default();
        if std::mem::take(&mut st.spoiled)
            || !clean
            || link.has_tracked()
            || link.is_opened()
            || st.keeps_own()
        {
            self.worker.condemn_later(Some(link));
        } else {
            self.worker.give_back(link, st.intent.clone());
        }
    }

    /// The session's task is about to wait.
    pub(crate) fn set_waker(&self, waker: &Waker) {
        let mut own = self.waker.borrow_mut();
        if !own.as_ref().is_some_and(|w| w.will_wake(waker)) {
            *own = Some(waker.clone());
        }
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Whether the connection ends now, and why.
    pub(crate) fn ended(&self) -> Option<DisconnectReason> {
        let state = self.state.borrow();
        state.dead.or(state.closing.filter(|why| state.is_done(*why)))
    }

    /// The session's own link has written all it had.
    pub(crate) fn link_written(&self) {
        if self.state.borrow().closing.is_some() {
            self.wake();
        }
    }

    /// Whether more requests may be read now; if not, the session wakes its task when they may.
    pub(crate) fn may_read(&self) -> bool {
        let mut state = self.state.borrow_mut();
        state.paused = state.is_full();
        !state.paused && state.closing.is_none() && state.dead.is_none()
    }

    /// The application has closed its side: what it sent is still carried out, but nobody waits for blocked commands.
    pub(crate) fn end_of_input(&self) {
        let mut state = self.state.borrow_mut();
        state.closing.get_or_insert(DisconnectReason::Client);
    }

    /// Ends the session once nothing of it is unanswered, or at once.
    pub(crate) fn drain(&self, now: bool) {
        let mut state = self.state.borrow_mut();
        if now {
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
        let st = &mut *state;
        st.dead.get_or_insert(DisconnectReason::Error);
        let link = st.link.take();
        let ears: Vec<Rc<Link>> = st.ears().cloned().collect();
        st.ears.clear();
        st.group = None;
        for held in std::mem::take(&mut st.limbo) {
            if let Some(since) = held.since {
                self.worker
                    .hold_frees(held.frame.len(), since, HoldEnd::Disconnected);
            }
        }
        st.pins = 0;
        let condemned = match link {
            Some(link) if !link.is_shared() => {
                if link.is_idle() && !st.is_pinned() {
                    self.release(st, link);
                    None
                } else {
                    Some(link)
                }
            }
            // What it has sent on a shared link is answered to nobody.
            _ => None,
        };
        self.worker.metrics.sessions[st.kind].add(-1);
        drop(state);
        self.waker.borrow_mut().take();
        for link in condemned.into_iter().chain(ears) {
            link.condemn(&End::Released);
        }
    }
}
