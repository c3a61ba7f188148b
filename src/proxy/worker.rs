//! One data-plane thread: its sessions and links, its view of the route, its hold.
//!
//! Everything here lives on one thread: `Rc` and cells, no locks, no atomics on a command's way. The worker's own task
//! applies routes, lets waiting sessions go on, ends holds that took too long, and condemns links that stay silent.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::sync::{Notify, mpsc, watch};

use super::Settings;
use super::intent::Intent;
use super::link::{End, Link, Phase};
use super::scripts::Scripts;
use super::session::Session;
use super::split::Split;
use super::topology::{NodeId, Place, Topology};
use super::upstream::Upstream;
use crate::config::Bind;
use crate::dial::{DialError, Stream};
use crate::metrics::{HoldEnd, WorkerMetrics};
use crate::replica::{Credentials, Layout, ReplicaId, TopologyKind};
use crate::route::{Epoch, Feedback, LinkEvidence, Progress, Route};

/// Bytes read from a socket at once.
const SCRATCH: usize = 64 * 1024;

/// Sweeps while something waits.
const BUSY_TICK: Duration = Duration::from_millis(5);
/// Sweeps while nothing does.
const IDLE_TICK: Duration = Duration::from_millis(100);

/// Commands that have waited and are sent in one sweep; the next sweep comes after [`PACE_TICK`].
const DRAIN_PACE: usize = 2_000;
const PACE_TICK: Duration = Duration::from_millis(2);

/// Evidence that every answer could bring is told at most this often, for each replica and kind.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Which evidence that is.
const FREQUENT: [LinkEvidence; 3] = [
    LinkEvidence::Alive,
    LinkEvidence::Unready,
    LinkEvidence::Unwritable,
];

/// Buffers kept for replies that a socket did not take at once.
const BUFFERS: usize = 64;

/// What every command asks of the route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Current {
    /// Where commands go, reads perhaps excepted.
    pub write: ReplicaId,
    /// They wait.
    pub holding: bool,
    /// Some sessions read elsewhere: see [`Worker::split`].
    pub splits: bool,
    /// Sessions read their own writes.
    pub guarded: bool,
    epoch: Epoch,
}

/// See the module's documentation.
pub(crate) struct Worker {
    index: usize,
    pub(crate) settings: Arc<Settings>,
    pub(crate) metrics: Arc<WorkerMetrics>,
    feedback: mpsc::UnboundedSender<Feedback>,
    pub(crate) route: Cell<Option<Current>>,
    /// How reads are shared out among replicas.
    pub(crate) split: RefCell<Option<Split>>,
    /// Some replica is sharded.
    pub(crate) sharded: Cell<bool>,
    pub(crate) topology: RefCell<Topology>,
    pub(super) upstream: Upstream,
    pub(super) scripts: RefCell<Scripts>,
    pub(crate) sessions: RefCell<HashMap<u64, Rc<Session>>>,
    /// Sent commands without an answer, on all links, that a drain waits for.
    pub(crate) in_flight: Cell<usize>,
    pub(crate) request_scratch: RefCell<Box<[u8]>>,
    pub(crate) reply_scratch: RefCell<Box<[u8]>>,
    /// Sessions whose replies are to be written at the end of this turn.
    dirty: RefCell<Vec<Rc<Session>>>,
    /// Sessions that have commands in their limbo, or want a link.
    waiting: RefCell<Vec<Rc<Session>>>,
    held_commands: Cell<usize>,
    held_bytes: Cell<usize>,
    /// By replica: when each of [`FREQUENT`] was last told.
    told: RefCell<Vec<[Option<Instant>; FREQUENT.len()]>>,
    /// By replica: when its layout was last asked for.
    asked: RefCell<Vec<Option<Instant>>>,
    condemned: RefCell<Vec<Rc<Link>>>,
    buffers: RefCell<Vec<BytesMut>>,
    clock: Cell<Instant>,
    kick: Notify,
    drain_told: Cell<Option<Epoch>>,
    /// The last sweep left something for the next because of its pace.
    paced: Cell<bool>,
    /// When the links were last looked after.
    tended: Cell<Instant>,
    pub(crate) stopping: Cell<bool>,
    next_session: Cell<u64>,
}

impl Worker {
    /// A worker without sessions.
    pub(crate) fn new(
        index: usize,
        settings: Arc<Settings>,
        metrics: Arc<WorkerMetrics>,
        feedback: mpsc::UnboundedSender<Feedback>,
    ) -> Rc<Worker> {
        let now = clock();
        let replicas = settings.replicas.len();
        let upstream = Upstream::new(replicas, settings.upstream.shared_links);
        Rc::new(Worker {
            index,
            settings,
            metrics,
            feedback,
            route: Cell::new(None),
            split: RefCell::default(),
            sharded: Cell::new(false),
            topology: RefCell::new(Topology::new(replicas)),
            upstream,
            scripts: RefCell::new(Scripts::new()),
            sessions: RefCell::default(),
            in_flight: Cell::new(0),
            request_scratch: RefCell::new(vec![0; SCRATCH].into_boxed_slice()),
            reply_scratch: RefCell::new(vec![0; SCRATCH].into_boxed_slice()),
            dirty: RefCell::default(),
            waiting: RefCell::default(),
            held_commands: Cell::new(0),
            held_bytes: Cell::new(0),
            told: RefCell::new(vec![Default::default(); replicas]),
            asked: RefCell::new(vec![None; replicas]),
            condemned: RefCell::default(),
            buffers: RefCell::default(),
            clock: Cell::new(now),
            kick: Notify::new(),
            drain_told: Cell::new(None),
            paced: Cell::new(false),
            tended: Cell::new(now),
            stopping: Cell::new(false),
            next_session: Cell::new(0),
        })
    }

    /// The worker's clock as last read: at most one tick old.
    pub(crate) fn now(&self) -> Instant {
        self.clock.get()
    }

    /// Reads the clock.
    pub(crate) fn tick(&self) -> Instant {
        self.clock.set(clock());
        self.clock.get()
    }

    /// A number for a new session.
    pub(crate) fn next_session(&self) -> u64 {
        self.next_session.set(self.next_session.get() + 1);
        self.next_session.get()
    }

    /// The replica's name, for logs.
    pub(crate) fn name(&self, replica: ReplicaId) -> &str {
        &self.settings.replicas[replica.index()].0.name
    }

    /// The identity that Pulsegate itself uses on `replica`.
    pub(crate) fn credentials(&self, replica: ReplicaId) -> Option<&Credentials> {
        self.settings.replicas[replica.index()]
            .0
            .endpoint
            .credentials
            .as_ref()
    }

    /// Whether `replica` may have more nodes than its endpoint.
    pub(crate) fn has_nodes(&self, replica: ReplicaId) -> bool {
        let topology = &self.settings.replicas[replica.index()].0.topology;
        topology.kind != TopologyKind::Single
    }

    /// Whether requests to that replica are routed to its nodes now.
    pub(crate) fn is_sharded(&self, replica: ReplicaId) -> bool {
        self.topology.borrow().router(replica).is_some()
    }

    /// Connects to `place`.
    pub(crate) async fn dial(&self, place: Place) -> Result<Stream, DialError> {
        let dialer = &self.settings.replicas[place.replica.index()].1;
        let node = self.topology.borrow().address(place);
        let timeout = self.settings.upstream.connect_timeout;
        match node {
            None => dialer.connect(timeout).await,
            Some(address) => dialer.towards(address)?.connect(timeout).await,
        }
    }

    /// Host and port of Pulsegate itself, for an application that connected to `addr`; without that, to a unix socket, of the
    /// first TCP listener, if there is one.
    pub(crate) fn itself(&self, addr: Option<SocketAddr>) -> (String, u16) {
        let mut binds = self.settings.listener.bind.iter();
        let first = binds.find_map(|bind| match bind {
            Bind::Tcp(addr) => Some(*addr),
            Bind::Unix(_) => None,
        });
        let addr = addr.or(first);
        addr.map_or((String::new(), 0), |addr| {
            (addr.ip().to_canonical().to_string(), addr.port())
        })
    }

    /// Every place that commands may go to.
    pub(crate) fn places(&self) -> Vec<Place> {
        let topology = self.topology.borrow();
        let replicas = (0_u8..).map(ReplicaId).take(self.settings.replicas.len());
        replicas.flat_map(|replica| topology.places(replica)).collect()
    }

    /// A link to `place` failed: what comes next waits a little, and nothing that the replica knew is certain.
    pub(crate) fn link_failed(&self, place: Place) {
        self.upstream.failed(place, self.tick());
        self.scripts.borrow_mut().forgotten_by(place);
    }

    /// A link to `place` was lost, or did not come about. One node of several says nothing of the whole replica, but
    /// perhaps that another one has taken its place.
    pub(crate) fn lost(&self, place: Place, seen: LinkEvidence) {
        if place.node != NodeId::ENDPOINT {
            self.ask_layout(place.replica);
            if self.upstream.has_others(place) {
                return;
            }
        }
        self.report(place.replica, seen);
    }

    /// Tells control that the layout of `replica` may have changed.
    pub(crate) fn ask_layout(&self, replica: ReplicaId) {
        let now = self.now();
        let asked = &mut self.asked.borrow_mut()[replica.index()];
        if asked.is_none_or(|asked| now.saturating_duration_since(asked) >= TELL_EVERY) {
            *asked = Some(now);
            let _ = self.feedback.send(Feedback::Moved { replica });
        }
    }

    /// Takes an idle dedicated link back, in the state `said`.
    pub(crate) fn give_back(&self, link: Rc<Link>, said: Intent) {
        self.upstream.give_back(link, said, self.now());
        if !self.waiting.borrow().is_empty() {
            self.kick();
        }
    }

    /// Lets the worker look at what waits soon.
    pub(crate) fn kick(&self) {
        self.kick.notify_one();
    }

    /// Tells control what was seen on a link.
    pub(crate) fn report(&self, replica: ReplicaId, seen: LinkEvidence) {
        if let Some(kind) = FREQUENT.iter().position(|frequent| *frequent == seen) {
            let now = self.now();
            let told = &mut self.told.borrow_mut()[replica.index()][kind];
            if told.is_some_and(|told| now.saturating_duration_since(told) < TELL_EVERY) {
                return;
            }
            *told = Some(now);
        }
        // Evidence is repeated as long as it lasts; when control is behind, a lost one does no harm.
        let _ = self.feedback.send(Feedback::Link { replica, seen });
    }

    /// Whether one more command of `len` bytes may wait.
    pub(crate) fn hold_has_room(&self, len: usize) -> bool {
        let hold = &self.settings.hold;
        let workers = self.settings.workers.max(1);
        self.held_commands.get() < hold.max_commands.div_ceil(workers)
            && self.held_bytes.get() + len <= hold.max_bytes / workers
    }

    /// A command of `len` bytes waits.
    pub(crate) fn hold_adds(&self, len: usize) {
        if self.held_commands.replace(self.held_commands.get() + 1) == 0 {
            self.metrics.hold_started.inc();
        }
        self.held_bytes.set(self.held_bytes.get() + len);
        self.show_hold();
    }

    /// A command of `len` bytes, held since `since`, waits no more.
    pub(crate) fn hold_frees(&self, len: usize, since: Instant, end: HoldEnd) {
        self.held_commands.set(self.held_commands.get().saturating_sub(1));
        self.held_bytes.set(self.held_bytes.get().saturating_sub(len));
        self.metrics
            .hold_duration
            .observe(self.now().saturating_duration_since(since));
        if self.held_commands.get() == 0 || end != HoldEnd::Resumed {
            self.metrics.hold_ended[end].inc();
        }
        self.show_hold();
    }

    fn show_hold(&self) {
        self.metrics.hold_commands.set(self.held_commands.get() as i64);
        self.metrics.hold_bytes.set(self.held_bytes.get() as i64);
    }

    /// Lists a session that has something to send or wants a link.
    pub(crate) fn wait(&self, session: &Rc<Session>) {
        if !session.waiting.replace(true) {
            self.waiting.borrow_mut().push(Rc::clone(session));
            self.kick.notify_one();
        }
    }

    /// Lets the worker look at a waiting session soon, and write what it owes.
    pub(crate) fn touch(&self, session: &Rc<Session>) {
        self.flush_later(session);
        self.kick.notify_one();
    }

    /// Lists a session for [`Self::flush_dirty`].
    pub(crate) fn flush_later(&self, session: &Rc<Session>) {
        let mut dirty = self.dirty.borrow_mut();
        if dirty.last().is_none_or(|last| !Rc::ptr_eq(last, session)) {
            dirty.push(Rc::clone(session));
        }
    }

    /// Writes the replies that have gathered: one write a session, however many replies.
    pub(crate) fn flush_dirty(&self) {
        loop {
            let Some(session) = self.dirty.borrow_mut().pop() else {
                return;
            };
            session.flush_now();
        }
    }

    /// Lists a link to be condemned at the next look: its session is in the middle of something.
    pub(crate) fn condemn_later(&self, link: Option<Rc<Link>>) {
        self.condemned.borrow_mut().extend(link);
        self.kick.notify_one();
    }

    /// An empty buffer.
    pub(crate) fn take_buffer(&self) -> BytesMut {
        self.buffers
            .borrow_mut()
            .pop()
            .unwrap_or_else(|| BytesMut::with_capacity(4096))
    }

    /// Takes an emptied buffer back.
    pub(crate) fn give_buffer(&self, mut buffer: BytesMut) {
        let mut buffers = self.buffers.borrow_mut();
        buffer.clear();
        if buffers.len() < BUFFERS && buffer.try_reclaim(2048) && buffer.capacity() <= SCRATCH {
            buffers.push(buffer);
        }
    }

    /// While the route holds: tells control once that nothing sent is unanswered.
    pub(crate) fn drained_perhaps(&self) {
        if let Some(current) = self.route.get()
            && current.holding
            && self.drain_told.get() != Some(current.epoch)
            && self.in_flight.get() <= self.unread()
            && self
                .feedback
                .send(Feedback::Drained {
                    worker: self.index,
                    epoch: current.epoch,
                })
                .is_ok()
        {
            self.drain_told.set(Some(current.epoch));
        }
    }

    /// Of the commands that are in flight, those whose replies only wait for applications that do not read: none of them
    /// may keep everybody else from moving.
    fn unread(&self) -> usize {
        if self.in_flight.get() == 0 {
            return 0;
        }
        let links = self.upstream.links();
        links
            .iter()
            .filter(|link| link.is_unread())
            .map(|link| link.in_flight())
            .sum()
    }

    fn apply(&self, route: &Route) {
        if self
            .route
            .get()
            .is_some_and(|current| current.epoch >= route.epoch)
        {
            return;
        }
        let before = self.split.take();
        let split = Split::new(route, before);
        self.route.set(Some(Current {
            write: route.write,
            holding: route.holding,
            splits: split.is_some(),
            guarded: route.read_your_writes,
            epoch: route.epoch,
        }));
        *self.split.borrow_mut() = split;
        for link in self.upstream.links() {
            // Without haste, what is sent is answered first; `advance` moves the session then. A link that waits for work
            // stays as it is.
            if !self.uses(link.replica) && route.abandon_others && !link.is_idle() {
                link.condemn(&End::Abandoned);
            }
        }
        self.leave(route.write, route.holding);
        self.drained_perhaps();
    }

    /// Takes new layouts.
    fn lay_out(&self, layouts: &[Layout]) {
        let mut topology = self.topology.borrow_mut();
        topology.apply(layouts, self.settings.split_requests);
        let replicas = (0_u8..).map(ReplicaId).take(self.settings.replicas.len());
        let sharded = |replica| topology.router(replica).is_some();
        self.sharded.set(replicas.into_iter().any(sharded));
    }

    /// Whether the route sends anything to `replica`.
    pub(crate) fn uses(&self, replica: ReplicaId) -> bool {
        let split = self.split.borrow();
        self.route.get().is_some_and(|route| route.write == replica)
            || split.as_ref().is_some_and(|split| split.reads_from(replica))
    }

    /// Takes from sessions the dedicated links that lead elsewhere, to another replica or to a node that serves nothing any more, and have nothing to finish: those that listen or block
    /// move on to the active replica.
    fn leave(&self, active: ReplicaId, holding: bool) {
        if holding {
            return;
        }
        for link in self.upstream.links() {
            let elsewhere = link.replica != active || !self.topology.borrow().serves(link.place);
            if elsewhere && link.is_owned() && link.phase() == Phase::Ready && link.in_flight() == 0 {
                link.condemn(&End::Abandoned);
            }
        }
    }

    /// One look at everything that waits.
    fn sweep(self: &Rc<Self>) {
        let now = self.tick();
        let condemned = std::mem::take(&mut *self.condemned.borrow_mut());
        for link in condemned {
            link.condemn(&End::Abandoned);
        }
        if now.saturating_duration_since(self.tended.get()) >= BUSY_TICK {
            self.tended.set(now);
            self.tend(now);
        }
        // After a hold everything that waited goes on: some at a time, so that the new replica is not hit by all at once.
        let mut pace = DRAIN_PACE;
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for session in waiting {
            session.waiting.set(false);
            if pace > 0 {
                pace = pace.saturating_sub(session.advance());
            }
            let held = session.expire(now, self.settings.hold.timeout);
            if held || session.lacks_link() {
                self.wait_quietly(&session);
            }
        }
        if pace == 0 {
            self.paced.set(true);
        }
        self.drained_perhaps();
        self.flush_dirty();
    }

    /// Looks after the links; not at every sweep, as there may be many.
    fn tend(self: &Rc<Self>, now: Instant) {
        let timeout = self.settings.upstream.response_timeout;
        for link in self.upstream.links() {
            if link.overdue(now, timeout) {
                link.condemn(&End::Failed(LinkEvidence::ResponseTimeout));
            }
        }
        self.upstream.tend(self);
        if let Some(current) = self.route.get() {
            self.leave(current.write, current.holding);
        }
    }

    /// Lists a session to be looked at with the next sweep.
    pub(crate) fn wait_quietly(&self, session: &Rc<Session>) {
        if !session.waiting.replace(true) {
            self.waiting.borrow_mut().push(Rc::clone(session));
        }
    }

    /// The worker's own task; ends when the route's publisher is gone.
    pub(crate) async fn run(
        self: Rc<Self>,
        mut route: watch::Receiver<Option<Route>>,
        mut progress: watch::Receiver<Option<Progress>>,
        mut layouts: watch::Receiver<Arc<[Layout]>>,
    ) {
        loop {
            self.lay_out(&layouts.borrow_and_update());
            if let Some(new) = &*route.borrow_and_update() {
                self.apply(new);
            }
            if let (Some(split), Some(new)) = (&mut *self.split.borrow_mut(), &*progress.borrow_and_update())
            {
                split.progress(new);
            }
            self.sweep();
            let idle = self.waiting.borrow().is_empty() && self.condemned.borrow().is_empty();
            let tick = match () {
                () if self.paced.take() => PACE_TICK,
                () if idle => IDLE_TICK,
                () => BUSY_TICK,
            };
            tokio::select! {
                changed = route.changed() => if changed.is_err() { return },
                Ok(()) = progress.changed() => {}
                Ok(()) = layouts.changed() => {}
                () = self.kick.notified(), if tick != PACE_TICK => {}
                () = tokio::time::sleep(tick) => {}
            }
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "the data plane's one reader of the clock"
)]
fn clock() -> Instant {
    Instant::now()
}
