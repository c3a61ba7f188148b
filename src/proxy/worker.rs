//! One data-plane thread: its sessions and links, its view of the route, its hold.
//!
//! Everything here lives on one thread: `Rc` and cells, no locks, no atomics on a command's way. The worker's own task
//! applies routes, lets waiting sessions go on, ends holds that took too long, and condemns links that stay silent.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::sync::{Notify, mpsc, watch};

use super::Settings;
use super::link::{End, Link, Phase};
use super::session::Session;
use crate::dial::{DialError, Stream};
use crate::metrics::{HoldEnd, WorkerMetrics};
use crate::replica::{Credentials, ReplicaId};
use crate::route::{Epoch, Feedback, LinkEvidence, Route};

/// Bytes read from a socket at once.
const SCRATCH: usize = 64 * 1024;

/// Sweeps while something waits.
const BUSY_TICK: Duration = Duration::from_millis(5);
/// Sweeps while nothing does.
const IDLE_TICK: Duration = Duration::from_millis(100);

/// Connects under way at once.
const CONNECTS: usize = 64;

/// First and longest wait before the next connect to a replica that failed.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));

/// `LinkEvidence::Alive` at most this often for each replica.
const ALIVE_EVERY: Duration = Duration::from_millis(100);

/// Buffers kept for replies that a socket did not take at once.
const BUFFERS: usize = 64;

/// What every command asks of the route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Current {
    /// Where commands go.
    pub write: ReplicaId,
    /// They wait.
    pub holding: bool,
    epoch: Epoch,
}

/// See the module's documentation.
pub(crate) struct Worker {
    index: usize,
    pub(crate) settings: Arc<Settings>,
    pub(crate) metrics: Arc<WorkerMetrics>,
    feedback: mpsc::UnboundedSender<Feedback>,
    pub(crate) route: Cell<Option<Current>>,
    pub(crate) links: RefCell<Vec<Rc<Link>>>,
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
    connecting: Cell<usize>,
    peers: RefCell<Vec<Peer>>,
    condemned: RefCell<Vec<Rc<Link>>>,
    buffers: RefCell<Vec<BytesMut>>,
    clock: Cell<Instant>,
    kick: Notify,
    drain_told: Cell<Option<Epoch>>,
    pub(crate) stopping: Cell<bool>,
    next_session: Cell<u64>,
    jitter: RandomState,
}

/// What a worker remembers of one replica.
struct Peer {
    backoff: Duration,
    not_before: Instant,
    alive_told: Instant,
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
        let peers = settings
            .replicas
            .iter()
            .map(|_| Peer {
                backoff: BACKOFF.0,
                not_before: now,
                alive_told: now,
            })
            .collect();
        Rc::new(Worker {
            index,
            settings,
            metrics,
            feedback,
            route: Cell::new(None),
            links: RefCell::default(),
            sessions: RefCell::default(),
            in_flight: Cell::new(0),
            request_scratch: RefCell::new(vec![0; SCRATCH].into_boxed_slice()),
            reply_scratch: RefCell::new(vec![0; SCRATCH].into_boxed_slice()),
            dirty: RefCell::default(),
            waiting: RefCell::default(),
            held_commands: Cell::new(0),
            held_bytes: Cell::new(0),
            connecting: Cell::new(0),
            peers: RefCell::new(peers),
            condemned: RefCell::default(),
            buffers: RefCell::default(),
            clock: Cell::new(now),
            kick: Notify::new(),
            drain_told: Cell::new(None),
            stopping: Cell::new(false),
            next_session: Cell::new(0),
            jitter: RandomState::new(),
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

    /// Connects to `replica`.
    pub(crate) async fn dial(&self, replica: ReplicaId) -> Result<Stream, DialError> {
        self.settings.replicas[replica.index()]
            .1
            .connect(self.settings.upstream.connect_timeout)
            .await
    }

    /// Whether a connect to `replica` may begin now; if so it counts as begun.
    pub(crate) fn may_connect(&self, replica: ReplicaId) -> bool {
        let allowed =
            self.connecting.get() < CONNECTS && self.peers.borrow()[replica.index()].not_before <= self.now();
        if allowed {
            self.connecting.set(self.connecting.get() + 1);
        }
        allowed
    }

    /// A connect to `replica` has ended, handshake and all.
    pub(crate) fn connect_ended(&self, replica: ReplicaId, ok: bool) {
        self.connecting.set(self.connecting.get().saturating_sub(1));
        if ok {
            self.peers.borrow_mut()[replica.index()].backoff = BACKOFF.0;
        }
        self.kick.notify_one();
    }

    /// A link to `replica` failed: the next connect waits a little, longer each time, never the same for all workers.
    pub(crate) fn link_failed(&self, replica: ReplicaId) {
        let now = self.tick();
        let mut peers = self.peers.borrow_mut();
        let peer = &mut peers[replica.index()];
        if peer.not_before <= now {
            // Jitter, so that the workers of a fleet do not come back in step.
            let jitter = peer
                .backoff
                .mul_f64(f64::from(self.jitter.hash_one(now) as u16) / 131_072.0);
            peer.not_before = now + peer.backoff + jitter;
            peer.backoff = (peer.backoff * 2).min(BACKOFF.1);
        }
    }

    /// Tells control what was seen on a link.
    pub(crate) fn report(&self, replica: ReplicaId, seen: LinkEvidence) {
        if seen == LinkEvidence::Alive {
            let now = self.now();
            let mut peers = self.peers.borrow_mut();
            let told = &mut peers[replica.index()].alive_told;
            if now.saturating_duration_since(*told) < ALIVE_EVERY {
                return;
            }
            *told = now;
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
    pub(crate) fn hold_adds(&self, session: &Rc<Session>, len: usize) {
        if self.held_commands.replace(self.held_commands.get() + 1) == 0 {
            self.metrics.hold_started.inc();
        }
        self.held_bytes.set(self.held_bytes.get() + len);
        self.show_hold();
        self.wait(session);
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
            && self.in_flight.get() == 0
            && self.drain_told.get() != Some(current.epoch)
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

    fn apply(&self, route: &Route) {
        if self
            .route
            .get()
            .is_some_and(|current| current.epoch >= route.epoch)
        {
            return;
        }
        self.route.set(Some(Current {
            write: route.write,
            holding: route.holding,
            epoch: route.epoch,
        }));
        let links: Vec<Rc<Link>> = self
            .links
            .borrow()
            .iter()
            .filter(|l| l.replica != route.write)
            .cloned()
            .collect();
        for link in links {
            // Without haste, what is sent is answered first; `advance` moves the session then.
            if route.abandon_others || (!route.holding && link.in_flight() == 0) {
                link.condemn(&End::Abandoned);
            }
        }
        self.drained_perhaps();
    }

    /// One look at everything that waits.
    fn sweep(&self) {
        let now = self.tick();
        let condemned = std::mem::take(&mut *self.condemned.borrow_mut());
        for link in condemned {
            link.condemn(&End::Abandoned);
        }
        let timeout = self.settings.upstream.response_timeout;
        let silent: Vec<Rc<Link>> = self
            .links
            .borrow()
            .iter()
            .filter(|l| l.overdue(now, timeout))
            .cloned()
            .collect();
        for link in silent {
            link.condemn(&End::Failed(LinkEvidence::ResponseTimeout));
        }
        if let Some(current) = self.route.get()
            && !current.holding
        {
            let left: Vec<Rc<Link>> = self
                .links
                .borrow()
                .iter()
                .filter(|l| l.replica != current.write && l.in_flight() == 0 && l.phase() == Phase::Ready)
                .cloned()
                .collect();
            for link in left {
                link.condemn(&End::Abandoned);
            }
        }
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        for session in waiting {
            session.waiting.set(false);
            session.advance();
            let held = session.expire(now, self.settings.hold.timeout);
            if held || (session.wants_link() && session.link_phase().is_none()) {
                self.wait_quietly(&session);
            }
        }
        self.drained_perhaps();
        self.flush_dirty();
    }

    fn wait_quietly(&self, session: &Rc<Session>) {
        if !session.waiting.replace(true) {
            self.waiting.borrow_mut().push(Rc::clone(session));
        }
    }

    /// The worker's own task; ends when the route's publisher is gone.
    pub(crate) async fn run(self: Rc<Self>, mut route: watch::Receiver<Option<Route>>) {
        loop {
            if let Some(new) = &*route.borrow_and_update() {
                self.apply(new);
            }
            self.sweep();
            let idle = self.waiting.borrow().is_empty() && self.condemned.borrow().is_empty();
            tokio::select! {
                changed = route.changed() => if changed.is_err() { return },
                () = self.kick.notified() => {}
                () = tokio::time::sleep(if idle { IDLE_TICK } else { BUSY_TICK }) => {}
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
