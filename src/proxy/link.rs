//! One upstream connection: commands in, replies back in the same order.
//!
//! ```text
//!   Connecting ──dialled──▶ Greeting ──handshake answered──▶ Ready
//!       │                      │                               │
//!       └──────────────────────┴────────── condemn ────────────┴──▶ Dead
//! ```
//!
//! Sessions append their bytes while the link is Ready; the link's own task writes what has gathered in one go, reads, and
//! hands each reply to the session whose turn it is. A *shared* link carries the stateless commands of many sessions, whose
//! replies are told apart by their order alone; a *dedicated* one has an owner, or waits in the pool for one.
//! A condemned link gives every unanswered command back to its session, saying whether any byte of it may have left.
//!
//! A link never decides where commands go, and never sends one twice.

mod io;
mod replies;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::classify;
use super::command::{Command, Expect, Given};
use super::intent::Step;
use super::outbox::Outbox;
use super::pipeline::Seq;
use super::session::Session;
use super::topology::Place;
use super::worker::Worker;
use crate::metrics::{ConnectResult, LinkKind};
use crate::replica::ReplicaId;
use crate::resp::{RequestScanner, Scan};
use crate::route::LinkEvidence;

pub(crate) use io::read_more;

/// While a session owes its application more than this many bytes, its own link reads no more.
pub(crate) const OUT_HIGH: usize = 256 * 1024;

/// At most so many unwritten bytes before the link takes no more commands.
const UNWRITTEN_HIGH: u64 = 4 * 1024 * 1024;

/// A run of plain commands of one session is one entry up to so many commands and bytes: what is kept for a lost link is
/// let go entry by entry.
const RUN: (u32, usize) = (64, 16 * 1024);

/// How long a refusal is taken for an answer, before it is asked for again.
const REFUSED: Duration = Duration::from_secs(1);

/// See the module's diagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// The dialler is at work.
    Connecting,
    /// Connected; the handshake's replies are awaited.
    Greeting,
    /// Takes commands.
    Ready,
    /// Gone.
    Dead,
}

/// Why a link is given up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// Its connection failed, or broke, or stayed silent.
    Failed(LinkEvidence),
    /// Pulsegate itself has no room for another connection.
    NoRoom,
    /// The route has left its replica for good, without waiting for answers.
    Abandoned,
    /// The replica does not grant what the application asked for before, in these words.
    Refused(Bytes),
    /// Its session has ended, or nobody needs it any more.
    Released,
}

/// Commands of one session that were given to the link and have no reply yet: a run of plain ones, or one that is not.
#[derive(Debug)]
struct Entry {
    /// `None` for the link's own commands.
    session: Option<Rc<Session>>,
    /// Place of the first one; the others follow it.
    seq: Seq,
    /// How many commands.
    commands: u32,
    /// How many of them have no reply yet.
    left: u32,
    /// Bytes of all of them.
    bytes: usize,
    /// When they came.
    at: Instant,
    /// What a plain command is not.
    special: Option<Box<Command>>,
}

impl Entry {
    /// How many of its replies a drain waits for.
    fn waited_for(&self) -> usize {
        match &self.special {
            Some(c) if matches!(c.expect, Expect::Blocking | Expect::Own { .. }) => 0,
            _ => self.left as usize,
        }
    }
}

/// One upstream connection.
pub(crate) struct Link {
    worker: Rc<Worker>,
    /// Unique in its worker.
    pub(crate) id: u64,
    /// Where it leads.
    pub(crate) place: Place,
    /// The replica of that.
    pub(crate) replica: ReplicaId,
    /// Whether many sessions use it, or one.
    pub(crate) kind: LinkKind,
    phase: Cell<Phase>,
    inner: RefCell<Inner>,
    waker: RefCell<Option<Waker>>,
    /// It has been Ready.
    served: Cell<bool>,
    /// Why the replica refused it, and when.
    refusal: RefCell<Option<(Bytes, Instant)>>,
    /// Of a dedicated link: frames to come that belong to the reply before them.
    trailing: Cell<u32>,
    /// Tracking has been on: the replica remembers which keys were read here, also when it is off again.
    tracked: Cell<bool>,
    /// See [`Link::is_opened`].
    opened: Cell<bool>,
    /// The replica wants a login that this link has not given.
    logged_out: Cell<bool>,
    /// The task has been told to run.
    woken: Cell<bool>,
    /// Of a dedicated link: the session whose pushes and messages arrive here.
    owner: RefCell<Option<Rc<Session>>>,
    /// Since when the oldest unanswered command waits without any byte arriving; of an idle link, its last sign of life.
    quiet_since: Cell<Instant>,
    /// Commands in `inner.entries` that a drain waits for.
    in_flight: Cell<usize>,
}

#[derive(Default)]
struct Inner {
    outbox: Outbox,
    entries: VecDeque<Entry>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("id", &self.id)
            .field("place", &self.place)
            .field("kind", &self.kind)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

impl Link {
    /// Opens a link to `place` with `handshake` said first: for `owner` alone, or shared when there is none.
    pub(super) fn open(
        worker: &Rc<Worker>,
        id: u64,
        place: Place,
        owner: Option<Rc<Session>>,
        handshake: Vec<Step>,
    ) -> Rc<Link> {
        let kind = if owner.is_some() {
            LinkKind::Dedicated
        } else {
            LinkKind::Shared
        };
        let link = Rc::new(Link {
            worker: Rc::clone(worker),
            id,
            place,
            replica: place.replica,
            kind,
            phase: Cell::new(Phase::Connecting),
            inner: RefCell::default(),
            waker: RefCell::default(),
            served: Cell::new(false),
            refusal: RefCell::default(),
            trailing: Cell::new(0),
            tracked: Cell::new(false),
            opened: Cell::new(false),
            logged_out: Cell::new(false),
            woken: Cell::new(false),
            owner: RefCell::new(owner),
            quiet_since: Cell::new(worker.now()),
            in_flight: Cell::new(0),
        });
        worker.metrics.upstream_connections[place.replica][kind].add(1);
        tokio::task::spawn_local(io::run(Rc::clone(&link), handshake));
        link
    }

    /// Whether many sessions use it.
    pub(crate) fn is_shared(&self) -> bool {
        self.kind == LinkKind::Shared
    }

    /// Whether commands may be appended now.
    pub(crate) fn takes_commands(&self) -> bool {
        self.phase.get() == Phase::Ready && !self.is_full()
    }

    /// So much is unwritten that the replica has to take some of it first.
    fn is_full(&self) -> bool {
        self.inner.borrow().outbox.unwritten() >= UNWRITTEN_HIGH
    }

    /// See [`Phase`].
    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// The words in which the replica refused the link's identity a moment ago.
    pub(crate) fn refusal(&self, now: Instant) -> Option<Bytes> {
        let refusal = self.refusal.borrow();
        let (words, at) = refusal.as_ref()?;
        (now.saturating_duration_since(*at) < REFUSED).then(|| words.clone())
    }

    /// Whether it has ever taken commands.
    pub(crate) fn has_served(&self) -> bool {
        self.served.get()
    }

    /// Commands whose replies a drain waits for.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// Whether the socket has yet to take something.
    pub(crate) fn has_unwritten(&self) -> bool {
        self.inner.borrow().outbox.has_unwritten()
    }

    /// Nothing is unanswered.
    pub(crate) fn is_idle(&self) -> bool {
        self.inner.borrow().entries.is_empty() && self.trailing.get() == 0
    }

    /// Gives a dedicated link from the pool to a session, with what brings it to that session's state.
    /// Its commands wait for the answers to that: in the wrong database they would be worse than late.
    pub(crate) fn adopt(&self, owner: &Rc<Session>, steps: Vec<Step>) {
        *self.owner.borrow_mut() = Some(Rc::clone(owner));
        if !steps.is_empty() {
            self.phase.set(Phase::Greeting);
            self.worker.upstream.connect_begins(self);
        }
        self.say(steps);
    }

    /// Says MULTI for its owner, whose next command waits for the answer.
    pub(crate) fn open_transaction(&self, owner: &Rc<Session>) {
        self.opens();
        self.adopt(owner, vec![Step::multi()]);
    }

    /// MULTI is among what it says first.
    pub(crate) fn opens(&self) {
        self.opened.set(true);
    }

    /// The first command of the transaction is on its way.
    pub(crate) fn transaction_began(&self) {
        self.opened.set(false);
    }

    /// MULTI has been said on it for a transaction whose first command has not.
    pub(crate) fn is_opened(&self) -> bool {
        self.opened.get()
    }

    /// Whether one session has it.
    pub(crate) fn is_owned(&self) -> bool {
        self.owner.borrow().is_some()
    }

    /// Whether the replica answers nothing here but a login.
    pub(crate) fn is_logged_out(&self) -> bool {
        self.logged_out.get()
    }

    /// CLIENT TRACKING is on.
    pub(crate) fn track(&self) {
        self.tracked.set(true);
    }

    /// Whether somebody else would hear of keys that were read here.
    pub(crate) fn has_tracked(&self) -> bool {
        self.tracked.get()
    }

    /// So many frames come behind the reply that its session has just got, and belong to it.
    pub(crate) fn trails(&self, frames: u32) {
        self.trailing.set(frames);
    }

    /// Takes a dedicated link from its session.
    pub(crate) fn disown(&self) {
        self.owner.borrow_mut().take();
    }

    /// Sends commands of Pulsegate's own.
    pub(crate) fn say(&self, steps: Vec<Step>) {
        let mut inner = self.inner.borrow_mut();
        for step in steps {
            inner.outbox.append(&step.frame);
            let command = Command::own(step.replies, step.must);
            self.enlist(&mut inner, None, command, step.frame.len());
        }
    }

    /// Takes the oldest unanswered command, with its bytes, if exactly one reply belongs to it.
    fn take_oldest(&self) -> Option<(Rc<Session>, Command, Bytes)> {
        let mut inner = self.inner.borrow_mut();
        let Inner { outbox, entries } = &mut *inner;
        let entry = entries.front_mut()?;
        let session = Rc::clone(entry.session.as_ref()?);
        let answered = entry.commands - entry.left;
        let frame = match &entry.special {
            Some(_) => Bytes::copy_from_slice(outbox.front().get(..entry.bytes)?),
            None => nth_frame(outbox, answered)?,
        };
        let seq = entry.seq.plus(answered);
        let waited_for = entry.waited_for().min(1);
        entry.left -= 1;
        let mut special = None;
        if entry.left == 0
            && let Some(done) = entries.pop_front()
        {
            outbox.release(done.bytes);
            special = done.special;
        }
        drop(inner);
        self.awaits_less(waited_for);
        let command = special.map_or_else(|| classify::again(seq, &frame), |command| *command);
        Some((session, command, frame))
    }

    /// Gives the link one command with its bytes. Only while it [`takes_commands`](Self::takes_commands).
    pub(crate) fn append(&self, session: &Rc<Session>, command: Command, frame: Frame<'_>) {
        let len = frame.len();
        let mut inner = self.inner.borrow_mut();
        match frame {
            Frame::Borrowed(bytes) => inner.outbox.append(bytes),
            Frame::Owned(bytes) => inner.outbox.append_owned(bytes),
        }
        let now = self.worker.now();
        if command.is_plain()
            && let Some(last) = inner.entries.back_mut()
            && last.special.is_none()
            && last.at == now
            && last.commands < RUN.0
            && last.bytes < RUN.1
            && last.seq.plus(last.commands) == command.seq
            && last.session.as_ref().is_some_and(|s| Rc::ptr_eq(s, session))
        {
            last.commands += 1;
            last.left += 1;
            last.bytes += len;
            self.awaits(1);
            return;
        }
        self.enlist(&mut inner, Some(Rc::clone(session)), command, len);
    }

    fn enlist(&self, inner: &mut Inner, session: Option<Rc<Session>>, command: Command, bytes: usize) {
        let now = self.worker.now();
        if inner.entries.is_empty() {
            self.quiet_since.set(now);
        }
        let entry = Entry {
            session,
            seq: command.seq,
            commands: 1,
            left: 1,
            bytes,
            at: now,
            special: (!command.is_plain()).then(|| Box::new(command)),
        };
        self.awaits(entry.waited_for());
        inner.entries.push_back(entry);
        self.wake();
    }

    fn awaits(&self, n: usize) {
        self.in_flight.set(self.in_flight.get() + n);
        self.worker.in_flight.set(self.worker.in_flight.get() + n);
    }

    fn awaits_less(&self, n: usize) {
        self.in_flight.set(self.in_flight.get() - n);
        self.worker.in_flight.set(self.worker.in_flight.get() - n);
    }

    /// Lets the link's task run: there are bytes to write, room to read again, or an end to notice.
    pub(crate) fn wake(&self) {
        if !self.woken.replace(true)
            && let Some(waker) = &*self.waker.borrow()
        {
            waker.wake_by_ref();
        }
    }

    /// Gives the link up: every unanswered command goes back to its session.
    pub(crate) fn condemn(self: &Rc<Self>, end: &End) {
        match self.phase.replace(Phase::Dead) {
            Phase::Dead => return,
            Phase::Connecting | Phase::Greeting => {
                let served = matches!(end, End::Refused(_));
                self.worker.upstream.connect_ended(self, served);
            }
            Phase::Ready => {}
        }
        match end {
            End::Failed(evidence) => {
                self.worker.link_failed(self.place);
                self.worker.lost(self.place, *evidence);
            }
            End::NoRoom => self.worker.link_failed(self.place),
            End::Abandoned | End::Refused(_) | End::Released => {}
        }
        self.worker.metrics.upstream_connections[self.replica][self.kind].add(-1);
        self.worker.upstream.remove(self);
        let inner = self.inner.take();
        if inner.outbox.has_unwritten() {
            // A script among it is one that the replica was never told.
            self.worker.scripts.borrow_mut().forgotten_by(self.place);
        }
        self.awaits_less(self.in_flight.get());
        let mut lost = Lost::default();
        if let Some(owner) = self.owner.take() {
            lost.of(owner);
        }
        lost.collect(inner);
        for (session, given) in lost.sessions {
            session.link_lost(self, given, end);
        }
        self.wake();
        self.worker.drained_perhaps();
        self.worker.kick();
    }

    /// Whether the oldest unanswered command has waited longer than `timeout` without any byte arriving.
    pub(crate) fn overdue(&self, now: Instant, timeout: Duration) -> bool {
        let inner = self.inner.borrow();
        inner.entries.front().is_some_and(|e| {
            e.special
                .as_ref()
                .is_none_or(|c| !matches!(c.expect, Expect::Blocking))
        }) && now.saturating_duration_since(self.quiet_since.get()) > timeout
            && self.phase.get() != Phase::Connecting
            && !self.read_paused()
    }

    /// How long a link with nothing to do has shown no sign of life.
    pub(crate) fn unheard_for(&self, now: Instant) -> Option<Duration> {
        (self.phase.get() == Phase::Ready && self.is_idle())
            .then(|| now.saturating_duration_since(self.quiet_since.get()))
    }

    /// All it had to say is said, and it waits for its owner's application to read.
    pub(crate) fn is_unread(&self) -> bool {
        self.read_paused() && !self.has_unwritten()
    }

    /// The owner's application does not read what it has asked for. What comes unasked cannot be kept back: the replica
    /// would hang up, and what was said meanwhile would be missing without anybody knowing.
    fn read_paused(&self) -> bool {
        self.owner
            .borrow()
            .as_ref()
            .is_some_and(|owner| owner.owes() > OUT_HIGH && !owner.listens())
    }

    fn ready(self: &Rc<Self>) {
        self.phase.set(Phase::Ready);
        self.worker.upstream.connect_ended(self, true);
        if !self.served.replace(true) {
            self.worker.metrics.upstream_connects[self.replica][ConnectResult::Ok].inc();
        }
        self.worker.report(self.replica, LinkEvidence::Alive);
        let owner = self.owner.borrow().clone();
        match owner {
            Some(owner) => owner.link_ready(),
            // Sessions may wait for it.
            None => self.worker.kick(),
        }
    }
}

/// What a lost link gives back, by session.
#[derive(Default)]
struct Lost {
    sessions: Vec<(Rc<Session>, Vec<Given>)>,
    places: HashMap<u64, usize>,
}

impl Lost {
    fn of(&mut self, session: Rc<Session>) -> &mut Vec<Given> {
        let place = *self.places.entry(session.id).or_insert(self.sessions.len());
        if place == self.sessions.len() {
            self.sessions.push((session, Vec::new()));
        }
        &mut self.sessions[place].1
    }

    fn collect(&mut self, inner: Inner) {
        let Inner { mut outbox, entries } = inner;
        for entry in entries {
            let (mut bytes, mut seq) = (entry.bytes, entry.seq);
            let mut answered = entry.commands - entry.left;
            let mut special = entry.special;
            while bytes > 0 {
                let sent = outbox.base() < outbox.written();
                let len = if special.is_some() || entry.commands == 1 {
                    bytes
                } else {
                    frame_len(outbox.front()).min(bytes)
                };
                let frame = Bytes::copy_from_slice(&outbox.front()[..len]);
                outbox.release(len);
                bytes -= len;
                if answered > 0 {
                    answered -= 1;
                } else if let Some(session) = &entry.session {
                    let command = special
                        .take()
                        .map_or_else(|| classify::again(seq, &frame), |c| *c);
                    self.of(Rc::clone(session)).push(Given { command, frame, sent });
                }
                seq = seq.plus(1);
            }
        }
    }
}

/// The request after the first `skip` ones.
fn nth_frame(outbox: &Outbox, mut skip: u32) -> Option<Bytes> {
    for mut chunk in outbox.chunks() {
        while !chunk.is_empty() {
            let (frame, rest) = chunk.split_at(frame_len(chunk));
            if skip == 0 {
                return Some(Bytes::copy_from_slice(frame));
            }
            (skip, chunk) = (skip - 1, rest);
        }
    }
    None
}

/// Length of the request at the beginning of `bytes`, which hold only whole ones.
fn frame_len(bytes: &[u8]) -> usize {
    match RequestScanner::new().scan(bytes) {
        Ok(Scan::Complete(request)) => request.len,
        _ => bytes.len(),
    }
}

/// A command's bytes on their way into a link.
#[derive(Debug)]
pub(crate) enum Frame<'a> {
    /// To be copied.
    Borrowed(&'a [u8]),
    /// To be moved.
    Owned(BytesMut),
}

impl Frame<'_> {
    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes().len()
    }

    /// The bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Frame::Borrowed(bytes) => bytes,
            Frame::Owned(bytes) => bytes,
        }
    }
}
