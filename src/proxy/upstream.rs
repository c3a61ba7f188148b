//! The worker's connections to the replicas: who shares which, which wait for an owner, and how many are opened at once.
//!
//! - *Shared links* stand ready to every replica (every node of a sharded one), one group for each identity (protocol, login, database) that sessions
//!   have, so that a change of the route needs no connect. They are opened again as soon as they are lost.
//! - *Dedicated links* belong to one session at a time. One that is given back in a state that can be undone waits in
//!   the pool for the next session that needs one.
//!
//! It follows orders: which replica is active is none of its business.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::intent::{Identity, Intent, Step};
use super::link::{End, Link, Phase};
use super::session::Session;
use super::topology::Place;
use super::worker::Worker;
use crate::config::UpstreamMode as Mode;
use crate::metrics::LinkKind;

/// Connects of dedicated links under way at once.
const CONNECTS: usize = 64;

/// So many of the newest links in the pool are looked at for one that fits.
const CHOICE: usize = 16;

/// First and longest wait before the next connect to a replica that failed.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(5), Duration::from_millis(250));

/// How long no link to a replica must have failed for the wait to begin anew.
const STEADY: Duration = Duration::from_secs(1);

/// A dedicated link that nobody has needed for this long is closed, as is a group of shared links but the default one's.
const UNUSED: Duration = Duration::from_secs(10);

/// A shared link that has been silent for this long is asked for a sign of life: one that died unnoticed is found before
/// the traffic needs it.
const UNHEARD: Duration = Duration::from_secs(5);

/// Identities with shared links of their own; sessions with further ones have dedicated links.
const GROUPS: usize = 64;

/// See the module's documentation.
pub(crate) struct Upstream {
    /// Every link that is not dead.
    links: RefCell<BTreeMap<u64, Rc<Link>>>,
    groups: RefCell<HashMap<Identity, Rc<Group>>>,
    /// The newest last.
    pool: RefCell<BTreeMap<Place, Vec<Pooled>>>,
    peers: RefCell<BTreeMap<Place, Peer>>,
    connecting: Cell<usize>,
    next_id: Cell<u64>,
    replicas: usize,
    /// Shared links of a group to one place.
    width: usize,
    jitter: RandomState,
}

/// The shared links of a group to one place.
type Row = Vec<Option<Rc<Link>>>;

/// The shared links of one identity.
pub(crate) struct Group {
    identity: Identity,
    /// `links[replica][node][n]`, as far as there have been any.
    links: RefCell<Vec<Vec<Row>>>,
    used: Cell<Instant>,
}

struct Pooled {
    link: Rc<Link>,
    /// The state of its connection.
    said: Intent,
    since: Instant,
}

/// What is remembered of one place.
struct Peer {
    backoff: Duration,
    /// When the next connect may begin.
    not_before: Option<Instant>,
    /// A link failed and no connect has succeeded since: one at a time is enough to find out whether it is back.
    failing: bool,
    /// Connects under way.
    connecting: usize,
}

impl Default for Peer {
    fn default() -> Peer {
        Peer {
            backoff: BACKOFF.0,
            not_before: None,
            failing: false,
            connecting: 0,
        }
    }
}

impl Peer {
    fn may_connect(&self, now: Instant) -> bool {
        self.not_before.is_none_or(|moment| moment <= now) && !(self.failing && self.connecting > 0)
    }
}

impl Upstream {
    /// No links yet; `width` shared ones for each group and place.
    pub(super) fn new(replicas: usize, width: usize) -> Upstream {
        Upstream {
            links: RefCell::default(),
            groups: RefCell::default(),
            pool: RefCell::default(),
            peers: RefCell::default(),
            connecting: Cell::new(0),
            next_id: Cell::new(0),
            replicas,
            width,
            jitter: RandomState::new(),
        }
    }

    /// Every link that is not dead, at this moment.
    pub(super) fn links(&self) -> Vec<Rc<Link>> {
        self.links.borrow().values().cloned().collect()
    }

    /// The shared link of the session `number` to `place`. It may not take commands yet; `None`: none can be had now.
    pub(super) fn shared(
        &self,
        worker: &Rc<Worker>,
        group: &Group,
        place: Place,
        number: u64,
    ) -> Option<Rc<Link>> {
        group.used.set(worker.now());
        let n = (number % self.width as u64) as usize;
        self.in_group(worker, group, place, n)
    }

    /// The group of an identity, for as long as the caller keeps it; `None`: there are too many.
    pub(super) fn group(&self, worker: &Rc<Worker>, identity: &Identity) -> Option<Rc<Group>> {
        let mut groups = self.groups.borrow_mut();
        if let Some(group) = groups.get(identity) {
            return Some(Rc::clone(group));
        }
        if groups.len() >= GROUPS {
            return None;
        }
        let group = Rc::new(Group {
            identity: identity.clone(),
            links: RefCell::new(vec![Vec::new(); self.replicas]),
            used: Cell::new(worker.now()),
        });
        groups.insert(identity.clone(), Rc::clone(&group));
        Some(group)
    }

    fn in_group(&self, worker: &Rc<Worker>, group: &Group, place: Place, n: usize) -> Option<Rc<Link>> {
        let mut links = group.links.borrow_mut();
        let of_replica = &mut links[place.replica.index()];
        if of_replica.len() <= place.node.index() {
            of_replica.resize(place.node.index() + 1, vec![None; self.width]);
        }
        let link = &mut of_replica[place.node.index()][n];
        let now = worker.now();
        let lost = |link: &Rc<Link>| link.phase() == Phase::Dead && link.refusal(now).is_none();
        if link.as_ref().is_none_or(lost) {
            *link = None;
            if self.may_connect(place, now) {
                let handshake = group.identity.handshake(worker.credentials(place.replica));
                *link = Some(self.open(worker, place, None, handshake));
            }
        }
        link.clone()
    }

    fn may_connect(&self, place: Place, now: Instant) -> bool {
        self.peers
            .borrow()
            .get(&place)
            .is_none_or(|peer| peer.may_connect(now))
    }

    /// Whether a link to another node of that replica takes commands, or could.
    pub(super) fn has_others(&self, place: Place) -> bool {
        self.links
            .borrow()
            .values()
            .any(|link| link.replica == place.replica && link.place != place && link.phase() == Phase::Ready)
    }

    fn open(
        &self,
        worker: &Rc<Worker>,
        place: Place,
        owner: Option<Rc<Session>>,
        handshake: Vec<Step>,
    ) -> Rc<Link> {
        let id = self.next_id.get();
        self.next_id.set(id + 1);
        let link = Link::open(worker, id, place, owner, handshake);
        self.connect_begins(&link);
        self.links.borrow_mut().insert(id, Rc::clone(&link));
        link
    }

    /// A dedicated link to `place` in the state `intent`, with `then` said behind that: from the pool, or a new one. `None`:
    /// none can be had now.
    pub(super) fn dedicated(
        &self,
        worker: &Rc<Worker>,
        place: Place,
        owner: &Rc<Session>,
        intent: &Intent,
        then: Vec<Step>,
    ) -> Option<Rc<Link>> {
        let pooled = {
            let mut pool = self.pool.borrow_mut();
            let at_place = pool.entry(place).or_default();
            let mut found = None;
            for (position, pooled) in at_place.iter().enumerate().rev().take(CHOICE) {
                if pooled.link.phase() == Phase::Ready
                    && let Some(steps) = intent.steps_from(&pooled.said)
                {
                    let exact = steps.is_empty();
                    found = Some((position, steps));
                    if exact {
                        break;
                    }
                }
            }
            found.map(|(position, steps)| (at_place.remove(position).link, steps))
        };
        if let Some((link, mut steps)) = pooled {
            steps.extend(then);
            link.adopt(owner, steps);
            return Some(link);
        }
        if self.connecting.get() >= CONNECTS || !self.may_connect(place, worker.now()) {
            return None;
        }
        let mut handshake = intent.handshake(worker.credentials(place.replica));
        handshake.extend(then);
        Some(self.open(worker, place, Some(Rc::clone(owner)), handshake))
    }

    /// Takes an idle dedicated link back, whose connection is in the state `said`.
    pub(super) fn give_back(&self, link: Rc<Link>, said: Intent, now: Instant) {
        link.disown();
        if link.phase() == Phase::Ready {
            let mut pool = self.pool.borrow_mut();
            pool.entry(link.place).or_default().push(Pooled {
                link,
                said,
                since: now,
            });
        }
    }

    /// A link is connecting, or says what brings it to its next owner's state.
    pub(super) fn connect_begins(&self, link: &Link) {
        if link.kind == LinkKind::Dedicated {
            self.connecting.set(self.connecting.get() + 1);
        }
        let mut peers = self.peers.borrow_mut();
        peers.entry(link.place).or_default().connecting += 1;
    }

    /// That has ended, handshake and all.
    pub(super) fn connect_ended(&self, link: &Link, ok: bool) {
        let mut peers = self.peers.borrow_mut();
        let peer = peers.entry(link.place).or_default();
        peer.connecting = peer.connecting.saturating_sub(1);
        peer.failing &= !ok;
        if link.kind == LinkKind::Dedicated {
            self.connecting.set(self.connecting.get().saturating_sub(1));
        }
    }

    /// A link to `place` failed: the next connect waits a little, longer each time, never the same for all workers.
    pub(super) fn failed(&self, place: Place, now: Instant) {
        let mut peers = self.peers.borrow_mut();
        let peer = peers.entry(place).or_default();
        peer.failing = true;
        if peer.not_before.is_none_or(|moment| moment <= now) {
            // A replica that lets everybody in and then hangs up has not recovered.
            if peer
                .not_before
                .is_some_and(|moment| now.saturating_duration_since(moment) > STEADY)
            {
                peer.backoff = BACKOFF.0;
            }
            // Jitter, so that the workers of a fleet do not come back in step.
            let jitter = peer
                .backoff
                .mul_f64(f64::from(self.jitter.hash_one(now) as u16) / 131_072.0);
            peer.not_before = Some(now + peer.backoff + jitter);
            peer.backoff = (peer.backoff * 2).min(BACKOFF.1);
        }
    }

    /// A link is dead.
    pub(super) fn remove(&self, link: &Link) {
        self.links.borrow_mut().remove(&link.id);
    }

    /// Keeps the shared links open and alive, and closes what nobody needs.
    pub(super) fn tend(&self, worker: &Rc<Worker>) {
        let now = worker.now();
        let expired = |since: Instant| now.saturating_duration_since(since) > UNUSED;
        let mut closing = Vec::new();
        self.groups.borrow_mut().retain(|identity, group| {
            let in_use =
                *identity == Identity::default() || !expired(group.used.get()) || Rc::strong_count(group) > 1;
            if !in_use {
                let links = group.links.borrow();
                closing.extend(links.iter().flatten().flatten().flatten().cloned());
            }
            in_use
        });
        self.pool.borrow_mut().retain(|_, at_place| {
            at_place.retain(|pooled| {
                let keep = pooled.link.phase() == Phase::Ready && !expired(pooled.since);
                if !keep {
                    closing.push(Rc::clone(&pooled.link));
                }
                keep
            });
            !at_place.is_empty()
        });
        for link in closing {
            link.condemn(&End::Released);
        }
        if worker.settings.upstream.mode == Mode::Shared {
            let _ = self.group(worker, &Identity::default());
        }
        let places = worker.places();
        let groups: Vec<Rc<Group>> = self.groups.borrow().values().cloned().collect();
        for group in groups {
            for place in &places {
                for n in 0..self.width {
                    if let Some(link) = self.in_group(worker, &group, *place, n)
                        && link.unheard_for(now).is_some_and(|silent| silent > UNHEARD)
                    {
                        link.say(vec![Step::may(&[b"PING"])]);
                    }
                }
            }
        }
        // Nodes that serve nothing any more are let go of, once all is answered.
        for link in self.links() {
            if link.is_shared() && link.unheard_for(now).is_some() && !places.contains(&link.place) {
                link.condemn(&End::Released);
            }
        }
    }
}
