//! What sessions hear from sharded replicas: sharded channels, keys that changed (CLIENT TRACKING), commands (MONITOR).
//!
//! A node tells of its own slots only. So a session has links of its own, its *ears*, beside the one that it has for other
//! reasons: one to each node with sharded channels of its, and, if it tracks keys or monitors, to every node where its own link
//! is not. What is heard there goes to the application as from one server: confirmations count the channels of all ears,
//! and what the nodes do among themselves (a slot that moves takes its subscribers' channels away) is mended and not told.
//! The commands of a session that tracks keys go over its ears, as a node tells those that have read a key from it.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::replies::{UNASKED, words};
use super::shards::Waits;
use super::{Session, State};
use crate::metrics::{Class, DisconnectReason};
use crate::proxy::cluster::Redirect;
use crate::proxy::command::{Command, Expect};
use crate::proxy::intent::{Identity, Subscription};
use crate::proxy::link::{Frame, Link, Phase};
use crate::proxy::part::Part;
use crate::proxy::pipeline::Seq;
use crate::proxy::topology::Place;
use crate::replica::ReplicaId;
use crate::resp::{self, slot};

/// So many frames about changed keys are said again one by one.
const LATE: usize = 256;

/// What is said unasked, once this command is answered.
#[derive(Debug)]
pub(super) struct Late {
    after: Seq,
    frame: Bytes,
    /// It has been said already.
    again: bool,
}

/// Before what was not granted is asked for again.
const PAUSE: Duration = Duration::from_millis(10);

/// A link to one node, and what is heard there.
#[derive(Debug)]
pub(super) struct Ear {
    link: Rc<Link>,
    /// Confirmed, or asked for.
    channels: BTreeSet<Bytes>,
    /// What the link was opened as.
    identity: Identity,
    /// It was told of tracking and MONITOR.
    everything: bool,
    /// Nothing new is said there, and it is closed once all is answered.
    retired: bool,
}

impl Ear {
    /// Whether it is what the session would open now.
    fn fits(&self, st: &State) -> bool {
        !self.retired
            && self.identity == st.intent.identity
            && self.everything == st.hears_everything_at(self.link.place)
    }

    /// Whether it may be closed.
    fn is_spare(&self) -> bool {
        let in_use = !self.retired && (self.everything || !self.channels.is_empty());
        !in_use && self.link.phase() == Phase::Ready && self.link.is_idle()
    }
}

impl State {
    fn ear(&mut self, link: &Link) -> Option<&mut Ear> {
        self.ears.iter_mut().find(|ear| std::ptr::eq(&*ear.link, link))
    }

    /// Whether the link was one of the session's ears; it is none any more.
    pub(super) fn loses_ear(&mut self, link: &Link) -> bool {
        let before = self.ears.len();
        self.ears.retain(|ear| !std::ptr::eq(&*ear.link, link));
        self.ears.len() < before
    }

    /// Whether the ear at a place is to hear everything: the session's own link does so where that is.
    fn hears_everything_at(&self, place: Place) -> bool {
        let own = self.link.as_ref().filter(|link| !link.is_shared());
        self.intent.listens_everywhere() && own.is_none_or(|link| link.place != place)
    }

    /// A channel is not heard there any more; whether it was.
    pub(super) fn unhear(&mut self, link: &Link, channel: &[u8]) -> bool {
        self.ear(link).is_some_and(|ear| ear.channels.remove(channel))
    }

    /// Channels that are heard, and not subscribed to.
    fn unwanted_channels(&self) -> Vec<(Rc<Link>, Bytes)> {
        let unwanted = |channel: &&Bytes| !self.intent.is_subscribed_to(Subscription::Shard, channel);
        let of = |ear: &Ear| {
            let channels = ear.channels.iter().filter(unwanted);
            channels
                .map(|channel| (Rc::clone(&ear.link), channel.clone()))
                .collect::<Vec<_>>()
        };
        self.ears
            .iter()
            .filter(|ear| ear.link.is_idle())
            .flat_map(of)
            .collect()
    }

    /// Whether an answer waits for the ears that it promises.
    fn is_widening(&self) -> bool {
        self.limbo
            .iter()
            .any(|held| matches!(held.command.part(), Some(Part::Answered(_))))
    }

    /// The links of the ears.
    pub(super) fn ears(&self) -> impl Iterator<Item = &Rc<Link>> {
        self.ears.iter().map(|ear| &ear.link)
    }

    /// Lets go of all ears, as soon as all is answered.
    pub(super) fn retire_ears(&mut self) {
        for ear in &mut self.ears {
            ear.retired = true;
            ear.channels.clear();
        }
    }

    /// Whether a frame may still come on a link that is let go of.
    pub(super) fn has_retired_ears(&self) -> bool {
        self.ears.iter().any(|ear| ear.retired)
    }
}

impl Session {
    /// Whether sharded channels are heard apart, by node, on this replica.
    pub(super) fn has_ears_on(&self, replica: ReplicaId) -> bool {
        self.worker.is_sharded(replica)
    }

    /// Whether the session is not told all that it should be, or on links that it should not have.
    pub(super) fn is_out_of_tune(&self, st: &State) -> bool {
        if !st.intent.listens() && st.ears.is_empty() {
            return false;
        }
        let route = self.worker.route.get();
        let apart = route.is_some_and(|route| self.has_ears_on(route.write));
        let missing = !st.has_own_link() || st.link.as_ref().is_none_or(|link| link.phase() == Phase::Dead);
        if !apart {
            return st.intent.listens() && missing || !st.ears.is_empty();
        }
        let heard: usize = st.ears.iter().map(|ear| ear.channels.len()).sum();
        st.intent.listens_but_to_shards() && missing
            || heard != st.intent.subscribed(Subscription::Shard)
            || st.ears.iter().any(|ear| !ear.fits(st) || ear.is_spare())
            || self.unheard_places(st).next().is_some()
    }

    /// Where an ear is missing that hears everything.
    fn unheard_places(&self, st: &State) -> impl Iterator<Item = Place> {
        let everywhere = st.intent.listens_everywhere();
        let route = self.worker.route.get().filter(|_| everywhere);
        let places = route.map(|route| self.worker.topology.borrow().places(route.write));
        let heard = |place: &Place| {
            let mut ears = st.ears.iter();
            ears.any(|ear| !ear.retired && ear.link.place == *place)
        };
        places
            .into_iter()
            .flatten()
            .filter(move |place| st.hears_everything_at(*place) && !heard(place))
    }

    /// Whether everything is heard everywhere, as far as the nodes can be had.
    pub(super) fn hears_everything(self: &Rc<Self>, st: &mut State) -> bool {
        let places: Vec<Place> = self.unheard_places(st).collect();
        let missing = places.into_iter().any(|place| {
            let link = self.ear_at(st, place);
            link.is_some_and(|link| link.phase() != Phase::Ready)
        });
        let mut ears = st.ears.iter().filter(|ear| ear.everything && !ear.retired);
        !missing && ears.all(|ear| ear.link.phase() == Phase::Ready)
    }

    /// Lets go of ears that are not what the session would open now. Before anything is said there.
    pub(super) fn retire_unfit_ears(self: &Rc<Self>, st: &mut State) {
        if st.ears.is_empty() {
            return;
        }
        let route = self.worker.route.get();
        let apart = route.is_some_and(|route| self.has_ears_on(route.write));
        let mut ears = std::mem::take(&mut st.ears);
        let mut forgets = false;
        for ear in &mut ears {
            if !ear.retired && (!apart || !ear.fits(st)) {
                ear.retired = true;
                ear.channels.clear();
                forgets |= ear.everything;
            }
        }
        st.ears = ears;
        if forgets {
            self.forget_cache(st);
        }
    }

    /// Sees to it that everything is heard where it is said, and that no ear is kept in vain.
    pub(super) fn tune(self: &Rc<Self>, st: &mut State) {
        self.retire_unfit_ears(st);
        let route = self.worker.route.get().filter(|route| !route.holding);
        let opens = st.dead.is_none() && st.closing.is_none();
        if let Some(route) = route
            && opens
            && self.has_ears_on(route.write)
            && self.is_out_of_tune(st)
        {
            let places: Vec<Place> = self.unheard_places(st).collect();
            for place in places {
                self.ear_at(st, place);
            }
            if st.ask_after.is_none_or(|moment| self.worker.now() >= moment) {
                self.ask_for_all(st, route.write);
            }
        }
        let waits = !st.limbo.is_empty();
        st.ears.retain(|ear| {
            // What waits may be for an ear that has nothing yet.
            let closes = ear.is_spare() && (ear.retired || !waits);
            if closes {
                self.worker.condemn_later(Some(Rc::clone(&ear.link)));
            }
            !closes
        });
    }

    /// A connection that the replica would have told of changed keys is no more.
    pub(super) fn forget_cache(self: &Rc<Self>, st: &mut State) {
        let words = st.intent.invalidation();
        if !words.is_empty() {
            self.tell(st, words);
            self.touch();
        }
    }

    /// Passes on what answers no command. A reply that is passed on in pieces is not torn; and what one of several links says of
    /// changed keys is said again after the replies that were owed then: one of them may hold what has changed.
    pub(super) fn tell(self: &Rc<Self>, st: &mut State, frame: &[u8]) {
        if let Some(seq) = st.streaming {
            st.late_bytes += frame.len();
            st.late.push(Late {
                after: seq,
                frame: Bytes::copy_from_slice(frame),
                again: false,
            });
            if st.late_bytes > UNASKED {
                st.dead = Some(DisconnectReason::OutputLimit);
                self.wake();
            }
            return;
        }
        self.put(st, frame);
        let of_keys = !st.ears.is_empty() && st.intent.tracks() && is_of_keys(frame);
        if !of_keys || st.pipeline.is_empty() {
            return;
        }
        let again = |frame| Late {
            after: st.pipeline.newest(),
            frame,
            again: true,
        };
        if st.late.len() < LATE {
            st.late.push(again(Bytes::copy_from_slice(frame)));
        } else {
            // Of so many, all may as well be forgotten.
            let all = again(Bytes::from_static(st.intent.invalidation()));
            st.late.retain(|late| !late.again);
            st.late.push(all);
        }
    }

    /// Says what had to wait for replies.
    pub(super) fn tell_late(self: &Rc<Self>, st: &mut State) {
        if st.late.is_empty() || st.streaming.is_some() {
            return;
        }
        let (due, rest) = std::mem::take(&mut st.late)
            .into_iter()
            .partition(|late| st.pipeline.is_answered(late.after));
        st.late = rest;
        let due: Vec<Late> = due;
        for Late { frame, again, .. } in due {
            if again {
                self.put(st, &frame);
            } else {
                st.late_bytes -= frame.len();
                self.tell(st, &frame);
            }
        }
    }

    /// Asks for every channel that is not heard, where the links are ready.
    fn ask_for_all(self: &Rc<Self>, st: &mut State, replica: ReplicaId) {
        let wanted: Vec<Bytes> = st.intent.sharded_channels().cloned().collect();
        for (link, channel) in st.unwanted_channels() {
            self.end(st, &link, &channel);
        }
        for channel in wanted {
            if st.ears.iter().any(|ear| ear.channels.contains(&channel)) {
                continue;
            }
            if let Some(place) = self.place_of_channel(replica, &channel)
                && let Some(link) = self.ear_at(st, place).filter(|link| link.takes_commands())
            {
                self.ask_for(st, &link, &channel);
            }
        }
    }

    /// Subscribes to a channel that the application has subscribed to before.
    fn ask_for(self: &Rc<Self>, st: &mut State, link: &Rc<Link>, channel: &Bytes) {
        if let Some(ear) = st.ear(link) {
            ear.channels.insert(channel.clone());
        }
        self.say(st, link, b"SSUBSCRIBE", channel, Part::Tuned(channel.clone()));
    }

    /// Ends a subscription. Until that is confirmed, the channel is one of the ear's.
    fn end(self: &Rc<Self>, st: &mut State, link: &Rc<Link>, channel: &Bytes) {
        self.say(st, link, b"SUNSUBSCRIBE", channel, Part::Ended(channel.clone()));
    }

    fn say(self: &Rc<Self>, st: &mut State, link: &Rc<Link>, what: &[u8], channel: &[u8], part: Part) {
        let frame = resp::encode_command(&[what, channel]);
        let mut command = Command {
            class: Class::Other,
            expect: Expect::Confirmations(1),
            ..Command::plain(Seq::NONE, true)
        };
        command.aside().part = Some(part);
        st.sent.add(link.replica);
        link.append(self, command, Frame::Borrowed(&frame));
    }

    /// The answer to a subscription of Pulsegate's own has come.
    pub(super) fn tuned(self: &Rc<Self>, st: &mut State, link: &Link, channel: &Bytes, reply: &[u8]) {
        let Some(code) = resp::error_code(reply) else {
            return;
        };
        st.unhear(link, channel);
        match code {
            b"NOPERM" | b"NOAUTH" => self.pass_refusal(st, reply),
            _ => self.tune_later(st, link.replica),
        }
    }

    /// A node has sent that elsewhere.
    pub(super) fn tuned_elsewhere(
        self: &Rc<Self>,
        link: &Link,
        channel: &Bytes,
        redirect: Option<&Redirect>,
    ) {
        let mut state = self.state.borrow_mut();
        let st = &mut *state;
        st.sent.take(link.replica, 1);
        st.unhear(link, channel);
        if let Some(redirect) = redirect
            && let Some(place) = self.place_of(link, redirect)
        {
            self.worker.topology.borrow_mut().moved(redirect.slot, place);
        }
        self.tune_later(st, link.replica);
    }

    fn tune_later(self: &Rc<Self>, st: &mut State, replica: ReplicaId) {
        st.ask_after = Some(self.worker.now() + PAUSE);
        self.worker.ask_layout(replica);
        self.worker.wait_quietly(self);
    }

    fn place_of_channel(&self, replica: ReplicaId, channel: &[u8]) -> Option<Place> {
        let topology = self.worker.topology.borrow();
        let slot = slot(channel);
        topology.moved_to(replica, || Some(slot)).or_else(|| {
            let owner = topology.router(replica)?.layout().owner(slot)?;
            Some(topology.shard(replica, owner))
        })
    }

    /// The link of the ear to a place. `None`: none can be had now.
    pub(super) fn ear_at(self: &Rc<Self>, st: &mut State, place: Place) -> Option<Rc<Link>> {
        let known = st.ears.iter().find(|ear| ear.link.place == place && !ear.retired);
        if let Some(ear) = known {
            return ear.fits(st).then(|| Rc::clone(&ear.link));
        }
        let upstream = &self.worker.upstream;
        let everything = st.hears_everything_at(place);
        let intent = st.intent.of_ear(everything);
        let link = upstream.dedicated(&self.worker, place, self, &intent, Vec::new())?;
        st.ears.push(Ear {
            link: Rc::clone(&link),
            channels: BTreeSet::new(),
            identity: intent.identity,
            everything,
            retired: false,
        });
        Some(link)
    }

    /// Sends the application's SSUBSCRIBE.
    pub(super) fn send_to_ear<'a>(
        self: &Rc<Self>,
        st: &mut State,
        place: Place,
        command: Command,
        frame: Frame<'a>,
    ) -> Result<(), Waits<'a>> {
        // Confirmations are passed on as they come: nothing may be owed before them.
        if st.sent.all() > 0 {
            return Err(Waits::new(command, frame));
        }
        match self.ear_at(st, place).filter(|link| link.takes_commands()) {
            Some(link) => {
                self.send(st, &link, command, frame);
                Ok(())
            }
            None => Err(Waits::new(command, frame)),
        }
    }

    /// Carries the application's SUNSUBSCRIBE out; the confirmations. `None`: the nodes have been told, and have yet to confirm.
    pub(super) fn sunsubscribe(self: &Rc<Self>, st: &mut State, frame: &[u8]) -> Option<Bytes> {
        let mut channels: Vec<Bytes> = resp::args(frame).skip(1).map(Bytes::copy_from_slice).collect();
        if channels.is_empty() {
            channels.extend(st.intent.sharded_channels().cloned());
        }
        let heard = |channel: &Bytes| {
            let ear = st.ears.iter().find(|ear| ear.channels.contains(channel))?;
            Some((Rc::clone(&ear.link), channel.clone()))
        };
        let heard: BTreeMap<Bytes, Rc<Link>> = channels
            .iter()
            .filter_map(heard)
            .map(|(link, channel)| (channel, link))
            .collect();
        if !heard.is_empty() {
            for (channel, link) in heard {
                self.end(st, &link, &channel);
            }
            return None;
        }
        let mut confirmations = Vec::new();
        for channel in &channels {
            st.intent.subscription(Subscription::Shard, channel, false);
            confirm(&mut confirmations, st, Some(channel));
        }
        if channels.is_empty() {
            confirm(&mut confirmations, st, None);
        }
        Some(confirmations.into())
    }

    /// A node has confirmed an SSUBSCRIBE of the application's; the confirmation as the application gets it. `None`: as it is.
    pub(super) fn confirmed_by_ear(&self, st: &mut State, link: &Link, frame: &[u8]) -> Option<Vec<u8>> {
        let ear = st.ear(link)?;
        let mut words = words(frame);
        let channel = words
            .next()
            .filter(|word| *word == b"ssubscribe")
            .and(words.next())?;
        ear.channels.insert(Bytes::copy_from_slice(channel));
        st.intent.subscription(Subscription::Shard, channel, true);
        let count = st.intent.subscribed(Subscription::Shard);
        let end = frame.iter().rposition(|byte| *byte == b':')?;
        let mut own = frame[..=end].to_vec();
        own.extend_from_slice(count.to_string().as_bytes());
        own.extend_from_slice(b"\r\n");
        Some(own)
    }

    /// Whether the application is told what a node says unasked.
    pub(super) fn passes_on(self: &Rc<Self>, st: &mut State, link: &Link, frame: &[u8]) -> bool {
        if !self.has_ears_on(link.replica) {
            return true;
        }
        let mut words = words(frame);
        let (word, channel) = (words.next(), words.next().unwrap_or_default());
        match word {
            // Once, and not from a connection that is let go of.
            Some(b"smessage") => st.ear(link).is_some_and(|ear| ear.channels.contains(channel)),
            // The slot has left the node.
            Some(b"sunsubscribe") => {
                if st.unhear(link, channel) {
                    self.tune_later(st, link.replica);
                }
                false
            }
            Some(b"invalidate") => st.intent.tracks(),
            // MONITOR is not answered yet, or over.
            _ => !frame.starts_with(b"+") || st.intent.monitors() && !st.is_widening(),
        }
    }
}

/// Whether a frame speaks of changed keys.
fn is_of_keys(frame: &[u8]) -> bool {
    words(frame).next() == Some(b"invalidate")
}

/// As a server words it.
fn confirm(out: &mut Vec<u8>, st: &State, channel: Option<&Bytes>) {
    let resp3 = st.intent.identity.resp3;
    out.extend_from_slice(if resp3 { b">3\r\n" } else { b"*3\r\n" });
    out.extend_from_slice(b"$12\r\nsunsubscribe\r\n");
    match channel {
        Some(channel) => {
            out.extend_from_slice(format!("${}\r\n", channel.len()).as_bytes());
            out.extend_from_slice(channel);
            out.extend_from_slice(b"\r\n");
        }
        None => out.extend_from_slice(if resp3 { b"_\r\n" } else { b"$-1\r\n" }),
    }
    out.extend_from_slice(format!(":{}\r\n", st.intent.subscribed(Subscription::Shard)).as_bytes());
}
