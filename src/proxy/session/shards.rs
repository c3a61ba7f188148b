//! Sending while some replica is sharded: which nodes a command goes to, over which links, in how many parts.
//!
//! Plain commands go over shared links, to whichever nodes; a session's own link leads to one node, and is given up for one to
//! another node when a command needs that. A session that has its own link for other reasons (it listens) keeps it, and its
//! plain commands for other nodes go over shared links.

use std::rc::Rc;

use bytes::Bytes;

use super::{Session, State};
use crate::metrics::HoldEnd;
use crate::proxy::classify;
use crate::proxy::cluster::{Itself, Joiner, Local, Plan, Slots, Step as ScanStep, slots};
use crate::proxy::command::{Command, Held, Tx};
use crate::proxy::intent::{Change, Step};
use crate::proxy::link::{End, Frame, Link, Phase};
use crate::proxy::part::{Joint, Part};
use crate::proxy::recover::TxState;
use crate::proxy::topology::Place;
use crate::proxy::worker::Current;
use crate::replica::ReplicaId;
use crate::resp::command::{CommandInfo, Kind};
use crate::resp::{self, Request};

const TRACKING: &[u8] =
    b"-ERR client tracking with REDIRECT, OPTIN or OPTOUT is not available on a sharded replica: each is a word to one node\r\n";

/// So many commands without keys at the beginning of a transaction are taken along to the node of its first key, each shorter
/// than so many bytes.
const KEYLESS: usize = 32;
const KEYLESS_BYTES: usize = 1024;

/// A request's row in the command table, and what the scanner knows of it.
pub(super) type Seen = (Option<&'static CommandInfo>, Request);

/// A command that cannot be sent now.
pub(super) struct Waits<'a> {
    command: Command,
    frame: Frame<'a>,
    /// It waits for this link to be given up.
    behind: Option<Rc<Link>>,
}

impl<'a> Waits<'a> {
    pub(super) fn new(command: Command, frame: Frame<'a>) -> Waits<'a> {
        Waits {
            command,
            frame,
            behind: None,
        }
    }

    /// The command with its bytes.
    pub(super) fn parts(self) -> (Command, Frame<'a>) {
        (self.command, self.frame)
    }
}

/// Where a command goes.
enum Way {
    /// Nowhere: this is the answer.
    Answer(Bytes),
    /// To this place; `None`: whichever is at hand.
    To(Option<Place>),
    /// In parts, each with its place and, unless all have the command's own, its bytes.
    Parts(Vec<(Place, Option<Bytes>)>, Joiner),
    /// To the ear at this place.
    Ear(Place),
    /// To no node: each ear gives up what is its own.
    Sunsubscribe,
    /// Nowhere: this is the answer, once every node tells the session everything.
    WhenAllTell(Bytes),
    /// One step of SCAN.
    Scan(Place, ScanStep),
    /// To one place after another; so many were asked before.
    Search(Place, usize),
}

impl Session {
    /// Whether a transaction's place is known only with its first key.
    pub(super) fn places_transactions(&self) -> bool {
        let topology = self.worker.topology.borrow();
        let route = self.worker.route.get();
        route.is_some_and(|route| topology.router(route.write).is_some())
    }

    /// The link that takes a new command now, for most commands of most sessions; `dispatch` knows the rest.
    #[inline(never)]
    pub(super) fn link_to_shard_at_once(
        self: &Rc<Self>,
        st: &mut State,
        command: &Command,
        (info, request): (Option<&'static CommandInfo>, &Request),
        frame: &[u8],
    ) -> Option<Rc<Link>> {
        let route = self.worker.route.get().filter(|route| !route.holding)?;
        if command.own || command.aside.is_some() || st.has_own_link() || !self.is_settled(st) {
            return None;
        }
        let to = self.destination(st, &route, command, false);
        let place = self.worker.topology.borrow().at_once(to, info, frame, request)?;
        self.link_to(st, &route, command, place)
    }

    /// Sends what waits: see [`Session::advance`].
    pub(super) fn advance_sharded(self: &Rc<Self>) -> usize {
        let mut sent = 0;
        let mut state = self.state.borrow_mut();
        let st = &mut *state;
        self.retire_unfit_ears(st);
        while st.dead.is_none() {
            let Some(mut held) = st.limbo.pop_front() else {
                self.listen(st);
                break;
            };
            if held.not_before.is_some_and(|moment| self.worker.now() < moment) {
                st.limbo.push_front(held);
                break;
            }
            let frame = held.frame.clone();
            match self.dispatch(st, held.command, Frame::Borrowed(&frame), None) {
                Ok(()) => {
                    self.unhold(st, frame.len(), held.since, HoldEnd::Resumed);
                    sent += 1;
                }
                Err(waits) => {
                    held.command = waits.command;
                    st.limbo.push_front(held);
                    if let Some(link) = waits.behind {
                        drop(state);
                        link.condemn(&End::Abandoned);
                        return sent;
                    }
                    break;
                }
            }
        }
        self.tune(st);
        self.emptied(st);
        sent
    }

    /// Gets a session that is told things unasked a link to be told on.
    fn listen(self: &Rc<Self>, st: &mut State) {
        let route = self.worker.route.get().filter(|route| !route.holding);
        let apart = route.is_some_and(|route| self.has_ears_on(route.write));
        let listens = match apart {
            true => st.intent.listens_but_to_shards(),
            false => st.intent.listens(),
        };
        let wants = listens && st.closing.is_none();
        if let Some(route) = route
            && wants
            && self.own_link(st).is_none()
            && st.sent.all() == 0
        {
            let place = self.at_hand(st, route.write);
            st.link = self.get_own(st, place, Vec::new());
        }
    }

    /// The session's own link, unless it is gone.
    fn own_link(&self, st: &mut State) -> Option<Rc<Link>> {
        let link = st.link.clone().filter(|link| !link.is_shared())?;
        if link.phase() != Phase::Dead {
            return Some(link);
        }
        st.link = None;
        if let Some(words) = link.refusal(self.worker.now()) {
            self.pass_refusal(st, &words);
        }
        None
    }

    /// Sends a command, or answers it, if nothing speaks against it now.
    pub(super) fn dispatch<'a>(
        self: &Rc<Self>,
        st: &mut State,
        command: Command,
        frame: Frame<'a>,
        seen: Option<Seen>,
    ) -> Result<(), Waits<'a>> {
        let Some(route) = self.worker.route.get().filter(|route| !route.holding) else {
            return Err(Waits::new(command, frame));
        };
        let own = command.pins || command.opens() || st.tx_sent == TxState::Open;
        let to = self.destination(st, &route, &command, own || st.intent.tracks());
        match self.dispatch_to(st, &route, to, own, command, frame, seen) {
            // Nobody waits for a replica that only serves reads.
            Err(Waits { command, frame, .. }) if to != route.write => {
                self.dispatch_to(st, &route, route.write, own, command, frame, seen)
            }
            done => done,
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "what `dispatch` has found out, tried on one replica"
    )]
    fn dispatch_to<'a>(
        self: &Rc<Self>,
        st: &mut State,
        route: &Current,
        to: ReplicaId,
        own: bool,
        mut command: Command,
        frame: Frame<'a>,
        seen: Option<Seen>,
    ) -> Result<(), Waits<'a>> {
        if self.overtakes(st, route, &command, to) || !self.is_settled(st) {
            return Err(Waits::new(command, frame));
        }
        match self.way(st, to, &command, frame.bytes(), seen) {
            Way::Answer(reply) => {
                self.answer(st, &command, &reply);
                self.worker.touch(self);
                Ok(())
            }
            Way::To(place) => self.send_to(st, route, (to, place), own, command, frame),
            Way::Parts(parts, joiner) => self.send_parts(st, parts, joiner, command, frame),
            Way::Ear(place) => self.send_to_ear(st, place, command, frame),
            Way::Sunsubscribe if st.sent.all() > 0 => Err(Waits::new(command, frame)),
            Way::Sunsubscribe => {
                let Some(confirmations) = self.sunsubscribe(st, frame.bytes()) else {
                    return Err(Waits::new(command, frame));
                };
                self.answer(st, &command, &confirmations);
                self.worker.touch(self);
                Ok(())
            }
            Way::WhenAllTell(_) if !self.hears_everything(st) => Err(Waits::new(command, frame)),
            Way::WhenAllTell(reply) => {
                self.answer(st, &command, &reply);
                self.worker.touch(self);
                Ok(())
            }
            Way::Scan(place, step) => {
                let Some(link) = self.for_part(st, place) else {
                    return Err(Waits::new(command, frame));
                };
                let words = step.frame.clone();
                let original = Bytes::copy_from_slice(frame.bytes());
                command.aside().part = Some(Part::Scan { step, original });
                self.send(st, &link, command, Frame::Borrowed(&words));
                Ok(())
            }
            Way::Search(place, asked) => {
                let Some(link) = self.for_part(st, place) else {
                    return Err(Waits::new(command, frame));
                };
                command.aside().part = Some(Part::Search(asked));
                self.send(st, &link, command, frame);
                Ok(())
            }
        }
    }

    /// Whether all that is on its way went by the layouts that hold now, and nothing of it was sent elsewhere by a node: what
    /// follows must not overtake what has to be sent again.
    #[inline]
    pub(super) fn is_settled(&self, st: &mut State) -> bool {
        let version = self.worker.topology.borrow().version();
        let settled = st.sent.all() == 0 || !st.settling && st.version == version;
        if settled {
            (st.settling, st.version) = (false, version);
        }
        settled
    }

    /// Where a command goes if it goes to the replica `to`.
    fn way(&self, st: &State, to: ReplicaId, command: &Command, frame: &[u8], seen: Option<Seen>) -> Way {
        if let Some(Part::Answered(reply)) = command.part() {
            return Way::WhenAllTell(reply.clone());
        }
        let detour = command.detour().and_then(|detour| detour.place);
        let detour = detour.filter(|place| place.replica == to);
        let topology = self.worker.topology.borrow();
        let Some(router) = topology.router(to) else {
            return Way::To(detour.or(Some(Place::endpoint(to))));
        };
        let Some((info, request)) = seen.or_else(|| classify::look(frame)) else {
            return Way::To(detour);
        };
        let inside = command.opens() || st.tx_sent == TxState::Open;
        let kind = info.map(|info| info.kind).filter(|_| !inside);
        let whole = |place| match kind {
            Some(Kind::Ssubscribe) => Way::Ear(place),
            _ => Way::To(Some(place)),
        };
        if let Some(place) = detour {
            return whole(place);
        }
        if kind == Some(Kind::Sunsubscribe) {
            return Way::Sunsubscribe;
        }
        if kind == Some(Kind::ClientCaching) || is_tied_to_one_node(command.change(), frame) {
            return Way::Answer(Bytes::from_static(TRACKING));
        }
        let its_slot = || match slots(info?, frame, &request) {
            Slots::None => None,
            Slots::One(slot) | Slots::Several { first: slot } => Some(slot),
        };
        let shard = |shard| {
            topology
                .moved_to(to, its_slot)
                .unwrap_or_else(|| topology.shard(to, shard))
        };
        let plan = router.plan(info, frame, &request);
        if inside {
            // The server of its first key has the whole transaction, and says what it takes.
            return Way::To(match plan {
                Plan::One(at) => Some(shard(at)),
                Plan::Split(split) => split.parts.first().map(|part| topology.shard(to, part.shard)),
                _ => None,
            });
        }
        match plan {
            Plan::One(at) => whole(shard(at)),
            Plan::Any => Way::To(None),
            Plan::All(join) => {
                let places = topology.nodes(to).iter();
                let parts: Vec<_> = places
                    .map(|node| {
                        let place = Place {
                            replica: to,
                            node: *node,
                        };
                        (place, None)
                    })
                    .collect();
                let joiner = Joiner::new(join, parts.len());
                Way::Parts(parts, joiner)
            }
            Plan::Split(split) => {
                let place = |part: &crate::proxy::cluster::Part| {
                    let moved = topology.moved_to(to, || Some(part.slot));
                    moved.unwrap_or_else(|| topology.shard(to, part.shard))
                };
                let parts = split.parts.iter();
                let parts = parts.map(|part| (place(part), Some(part.frame.clone())));
                Way::Parts(parts.collect(), split.joiner)
            }
            Plan::Scan(step) => Way::Scan(topology.shard(to, step.shard), step),
            Plan::UntilFound => {
                let asked = match command.part() {
                    Some(Part::Search(asked)) => *asked,
                    _ => 0,
                };
                let nodes = topology.nodes(to);
                let node = nodes[(self.id as usize + asked) % nodes.len()];
                Way::Search(Place { replica: to, node }, asked)
            }
            Plan::Local(local) => Way::Answer(self.say_itself(st, local, frame)),
            Plan::Refused(reply) => Way::Answer(reply),
        }
    }

    /// What is said of Pulsegate as a cluster of one node.
    fn say_itself(&self, st: &State, local: Local, frame: &[u8]) -> Bytes {
        let (host, port) = self.worker.itself(self.writer.local_addr());
        let itself = Itself { host: &host, port };
        local.answer(frame, itself, st.intent.identity.resp3)
    }

    /// Sends a command whole.
    fn send_to<'a>(
        self: &Rc<Self>,
        st: &mut State,
        route: &Current,
        (to, place): (ReplicaId, Option<Place>),
        own: bool,
        command: Command,
        frame: Frame<'a>,
    ) -> Result<(), Waits<'a>> {
        let link = if own {
            self.own_at(st, route, place, &command)
        } else {
            self.shared_or_own(st, route, (to, place))
        };
        match link {
            Ok(link) if link.takes_commands() && st.may_send(&link, &command) => {
                if command.opens() || st.keyless.is_some() {
                    Self::note_keyless(st, &command, frame.bytes(), place.is_some());
                }
                self.send(st, &link, command, frame);
                Ok(())
            }
            Ok(_) => Err(Waits::new(command, frame)),
            Err(behind) => Err(Waits {
                behind,
                ..Waits::new(command, frame)
            }),
        }
    }

    /// The link for a command that needs one of its own. `Err`: none now; perhaps because that one is in the way.
    fn own_at(
        self: &Rc<Self>,
        st: &mut State,
        route: &Current,
        place: Option<Place>,
        command: &Command,
    ) -> Result<Rc<Link>, Option<Rc<Link>>> {
        if let Some(link) = self.own_link(st) {
            if link.replica != route.write {
                return Err((link.in_flight() == 0).then_some(link));
            }
            let here = place.is_none_or(|place| place == link.place);
            let fits = here || st.tx_sent.pins() && st.keyless.is_none();
            if fits && !command.opens() {
                return Ok(link);
            }
            if !link.is_idle() || link.phase() != Phase::Ready {
                return Err(None);
            }
            if !fits && st.tx_sent == TxState::Open {
                return self.take_along(st, link, place);
            }
            if fits {
                if link.is_opened() {
                    return Ok(link);
                }
                link.open_transaction(self);
                return Err(None);
            }
            // What it was for is said again on the next.
            self.forget_cache(st);
            st.link = None;
            self.release(st, link);
        }
        // What was sent is answered first: it keeps its place before what follows.
        if st.sent.all() > 0 {
            return Err(None);
        }
        let place = place.unwrap_or_else(|| self.at_hand(st, route.write));
        let then = command.opens().then(Step::multi);
        st.link = self.get_own(st, place, then.into_iter().collect());
        st.link.clone().ok_or(None)
    }

    /// Moves an open transaction, which has no key yet, to the node of its first one.
    fn take_along(
        self: &Rc<Self>,
        st: &mut State,
        link: Rc<Link>,
        place: Option<Place>,
    ) -> Result<Rc<Link>, Option<Rc<Link>>> {
        let said = st.keyless.iter().flatten().cloned().map(Step::known);
        let then: Vec<Step> = std::iter::once(Step::multi()).chain(said).collect();
        let (sent, answered) = (st.tx_sent, st.tx_answered);
        let next = place.and_then(|place| self.get_own(st, place, then));
        let Some(next) = next else { return Err(None) };
        next.transaction_began();
        self.forget_cache(st);
        (st.tx_sent, st.tx_answered) = (sent, answered);
        st.link = Some(Rc::clone(&next));
        self.worker.condemn_later(Some(link));
        Ok(next)
    }

    /// Notes what is said of an open transaction until it has a key.
    fn note_keyless(st: &mut State, command: &Command, frame: &[u8], keyed: bool) {
        if command.opens() {
            st.keyless = Some(Vec::new());
        }
        let ends = matches!(command.tx, Tx::Exec | Tx::Discard | Tx::Reset);
        match &mut st.keyless {
            Some(said) if !keyed && !ends && said.len() < KEYLESS && frame.len() < KEYLESS_BYTES => {
                said.push(Bytes::copy_from_slice(frame));
            }
            _ => st.keyless = None,
        }
    }

    /// The link for a command that needs none of its own.
    fn shared_or_own(
        self: &Rc<Self>,
        st: &mut State,
        route: &Current,
        (to, place): (ReplicaId, Option<Place>),
    ) -> Result<Rc<Link>, Option<Rc<Link>>> {
        if let Some(link) = self.own_link(st) {
            if link.replica != route.write {
                return Err((link.in_flight() == 0).then_some(link));
            }
            if place.is_none_or(|place| place == link.place) && (st.keeps_own() || !link.is_idle()) {
                return Ok(link);
            }
            if !link.is_idle() {
                return Err(None);
            }
            if !st.keeps_own() {
                st.link = None;
                self.release(st, link);
            }
        }
        let place = match (place, &st.link) {
            (Some(place), _) => place,
            (None, Some(link)) if link.replica == to && link.is_shared() && link.takes_commands() => {
                link.place
            }
            (None, _) => self.at_hand(st, to),
        };
        if st.intent.tracks() {
            return self.ear_at(st, place).ok_or(None);
        }
        match &st.link {
            Some(link) if link.place == place && link.is_shared() && link.phase() == Phase::Ready => {
                Ok(Rc::clone(link))
            }
            _ => {
                let link = self.get_shared(st, place);
                if !st.has_own_link() {
                    st.link.clone_from(&link);
                }
                link.ok_or(None)
            }
        }
    }

    /// A place of the replica where it does not matter which: one that can be had, and not the same for all sessions.
    fn at_hand(self: &Rc<Self>, st: &mut State, replica: ReplicaId) -> Place {
        let nodes = self.worker.topology.borrow().nodes(replica).to_vec();
        let place = |n: usize| Place {
            replica,
            node: nodes[(self.id as usize + n) % nodes.len()],
        };
        (0..nodes.len())
            .map(place)
            .find(|place| {
                let link = self.get_shared(st, *place);
                link.is_some_and(|link| link.takes_commands())
            })
            .unwrap_or_else(|| place(0))
    }

    /// The link to a place for a command of which other places may have a part. It is the session's own, if that leads there:
    /// what goes over it later must not overtake. That has to have answered everything, as it may hold what concerns all places.
    fn for_part(self: &Rc<Self>, st: &mut State, place: Place) -> Option<Rc<Link>> {
        let link = match self.own_link(st) {
            Some(own) if !own.is_idle() => return None,
            Some(own) if own.place == place => own,
            _ if st.intent.tracks() => self.ear_at(st, place)?,
            _ => self.get_shared(st, place)?,
        };
        link.takes_commands().then_some(link)
    }

    fn send_parts<'a>(
        self: &Rc<Self>,
        st: &mut State,
        parts: Vec<(Place, Option<Bytes>)>,
        joiner: Joiner,
        command: Command,
        frame: Frame<'a>,
    ) -> Result<(), Waits<'a>> {
        let links: Option<Vec<_>> = parts.iter().map(|(place, _)| self.for_part(st, *place)).collect();
        let Some(links) = links else {
            return Err(Waits::new(command, frame));
        };
        let (seq, read, class, script) = (command.seq, command.read, command.class, command.script);
        let joint = Joint::new(joiner, command);
        for (number, (link, (_, words))) in links.iter().zip(parts).enumerate() {
            let part = Part::Of {
                joint: Rc::clone(&joint),
                number,
                everywhere: words.is_none(),
            };
            let mut command = Command {
                class,
                script,
                ..Command::plain(seq, read)
            };
            command.aside().part = Some(part);
            self.send(
                st,
                link,
                command,
                Frame::Borrowed(words.as_deref().unwrap_or(frame.bytes())),
            );
        }
        Ok(())
    }

    /// The reply to a command that is not, as it comes, the application's.
    pub(super) fn part_answered(
        self: &Rc<Self>,
        st: &mut State,
        link: &Link,
        mut command: Command,
        frame: &[u8],
    ) {
        match command.part() {
            // The node takes its keys: the script said so itself.
            Some(Part::Proof(refused)) if refused.place == link.place => {
                return self.answer(st, &refused.command, &refused.reply);
            }
            Some(Part::Tuned(channel)) => return self.tuned(st, link, channel, frame),
            Some(Part::Ended(channel)) => {
                st.unhear(link, channel);
                return;
            }
            _ => {}
        }
        if let Some(change) = command.take_change()
            && !frame.starts_with(b"-")
        {
            self.apply(st, link, *change, frame);
        }
        let is_nil = || matches!(frame, b"$-1\r\n" | b"_\r\n");
        let more = |asked: usize| {
            let topology = self.worker.topology.borrow();
            asked + 1 < topology.nodes(link.replica).len()
        };
        match &mut command.aside().part {
            Some(Part::Search(asked)) if is_nil() && more(*asked) => {
                *asked += 1;
                let request = Bytes::from_static(b"*1\r\n$9\r\nRANDOMKEY\r\n");
                self.put_back(st, command, request, None);
            }
            Some(Part::Scan { step, .. }) => {
                let reply = step.reply(frame);
                self.answer(st, &command, &reply);
            }
            // Neither an error nor QUEUED.
            Some(Part::Instead(local)) if !matches!(frame, [b'-' | b'+', ..]) => {
                let local = *local;
                let reply = self.say_itself(st, local, frame);
                self.answer(st, &command, &reply);
            }
            _ => self.answer(st, &command, frame),
        }
    }

    /// Lets a command wait that was sent and is to be sent once more, in its place before those that followed it.
    pub(super) fn put_back(
        self: &Rc<Self>,
        st: &mut State,
        command: Command,
        frame: Bytes,
        not_before: Option<std::time::Instant>,
    ) {
        st.limbo_bytes += frame.len();
        st.limbo.push_back(Held {
            command,
            frame,
            since: None,
            not_before,
        });
        st.sort_limbo();
        self.worker.wait(self);
    }
}

/// Whether it is a way of tracking that depends on which connection says what.
fn is_tied_to_one_node(change: Option<&Change>, frame: &[u8]) -> bool {
    let tied = |word: &[u8]| {
        [&b"REDIRECT"[..], b"OPTIN", b"OPTOUT"]
            .iter()
            .any(|known| word.eq_ignore_ascii_case(known))
    };
    matches!(change, Some(Change::Tracking(Some(_)))) && resp::args(frame).any(tied)
}
