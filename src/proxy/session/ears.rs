//! What sessions hear from sharded replicas: sharded channels, keys that changed (CLIENT TRACKING), commands (MONITOR).
//!
//! A node tells of its own slots only. So a session has links of its own, its *ears*, beside the one that it has for other
//! reasons: one to each node with sharded channels of its, and, if it tracks keys or monitors, to every node where its own link
//! is not. What is heard there goes to the application as from one server: confirmations count the channels of all ears,
//! and what the nodes do among themselves (a slot that moves takes its subscribers' channels away) is mended and not told.
//! The commands of a session that tracks keys go over its ears, as a node tells those that have read a key from it.

use std::collections::BTreeSet;
use std::rc::Rc;

use bytes::Bytes;

use super::replies::words;
use super::shards::Waits;
use super::{Session, State};
use crate::metrics::Class;
use crate::proxy::cluster::Redirect;
use crate::proxy::command::{Command, Expect};
use crate::proxy::intent::{Identity, Step, Subscription};
use crate::proxy::link::{Frame, Link, Phase};
use crate::proxy::part::Part;
use crate::proxy::pipeline::Seq;
use crate::proxy::topology::Place;
use crate::replica::ReplicaId;
use crate::resp::{self, slot};

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

    /// The links of the ears, which are none any more.
    pub(super) fn take_ears(&mut self) -> impl Iterator<Item = Rc<Link>> + use<> {
        std::mem::take(&mut self.ears).into_iter().map(|ear| ear.link)
    }
}

impl Session {
    /// Whether sharded channels are heard apart, by node, on this replica.
    pub(super) fn has_ears_on(&self, replica: ReplicaId) -> bool {
        self.worker.is_sharded(replica)
    }

    /// Whether the session is to be told things unasked on a link that it does not have.
    pub(super) fn hears_too_little(&self, st: &State) -> bool {
        let apart = self
            .worker
            .route
            .get()
            .is_some_and(|route| self.has_ears_on(route.write));
        let missing = st.link.as_ref().is_none_or(|link| link.phase() == Phase::Dead);
        let heard = || st.ears.iter().map(|ear| ear.channels.len()).sum::<usize>();
        match apart {
            true => {
                st.intent.listens_but_to_shards() && missing
                    || heard() != st.intent.subscribed(Subscription::Shard)
                    || self.unheard_places(st).next().is_some()
            }
            false => st.intent.listens() && missing,
        }
    }

    /// Where an ear is missing that hears everything.
    fn unheard_places(&self, st: &State) -> impl Iterator<Item = Place> {
        let everywhere = st.intent.listens_everywhere();
        let route = self.worker.route.get().filter(|_| everywhere);
        let places = route.map(|route| self.worker.topology.borrow().places(route.write));
        let heard = |place: &Place| st.ears.iter().any(|ear| ear.link.place == *place);
        places
            .into_iter()
            .flatten()
            .filter(move |place| st.hears_everything_at(*place) && !heard(place))
    }

    /// Sees to it that everything is heard where it is said, and that no ear is kept in vain.
    pub(super) fn tune(self: &Rc<Self>, st: &mut State) {
        let deaf = st.intent.subscribed(Subscription::Shard) == 0 && !st.intent.listens_everywhere();
        if deaf && st.ears.is_empty() {
            return;
        }
        let Some(route) = self.worker.route.get().filter(|route| !route.holding) else {
            return;
        };
        let apart = self.has_ears_on(route.write) && st.dead.is_none() && st.closing.is_none();
        self.keep_ears(st, |st, ear| {
            let everything = st.hears_everything_at(ear.link.place);
            apart && ear.identity == st.intent.identity && ear.everything == everything
        });
        if apart && self.hears_too_little(st) {
            let places: Vec<Place> = self.unheard_places(st).collect();
            for place in places {
                self.ear_at(st, place);
            }
            self.ask_for_all(st, route.write);
        }
        if st.limbo.is_empty() {
            self.keep_ears(st, |_, ear| {
                let in_use = ear.everything || !ear.channels.is_empty();
                in_use || ear.link.phase() != Phase::Ready || !ear.link.is_idle()
            });
        }
    }

    fn keep_ears(&self, st: &mut State, keep: impl Fn(&State, &Ear) -> bool) {
        let (kept, others): (Vec<Ear>, Vec<Ear>) = std::mem::take(&mut st.ears)
            .into_iter()
            .partition(|ear| keep(st, ear));
        st.ears = kept;
        for ear in others {
            if ear.everything {
                self.forget_cache(st);
            }
            self.worker.condemn_later(Some(ear.link));
        }
    }

    /// A connection that the replica would have told of changed keys is no more.
    pub(super) fn forget_cache(&self, st: &mut State) {
        self.put(st, st.intent.invalidation());
    }

    /// Asks for every channel that is not heard, where the links are ready.
    fn ask_for_all(self: &Rc<Self>, st: &mut State, replica: ReplicaId) {
        let wanted: Vec<Bytes> = st.intent.sharded_channels().cloned().collect();
        for channel in wanted {
            if st.ears.iter().any(|ear| ear.channels.contains(&channel)) {
                continue;
            }
            if let Some(place) = self.place_of_channel(replica, &channel)
                && let Some(link) = self.ear_at(st, place).filter(|link| link.takes_commands())
            {
                self.ask_for(st, &link, channel);
            }
        }
    }

    /// Subscribes to a channel that the application has subscribed to before.
    fn ask_for(self: &Rc<Self>, st: &mut State, link: &Rc<Link>, channel: Bytes) {
        let frame = resp::encode_command(&[b"SSUBSCRIBE", &channel]);
        let mut command = Command {
            class: Class::Other,
            expect: Expect::Confirmations(1),
            ..Command::plain(Seq::NONE, true)
        };
        command.aside().part = Some(Part::Tuned(channel.clone()));
        if let Some(ear) = st.ear(link) {
            ear.channels.insert(channel);
        }
        st.sent.add(link.replica);
        link.append(self, command, Frame::Borrowed(&frame));
    }

    /// The answer to that has come.
    pub(super) fn tuned(self: &Rc<Self>, st: &mut State, link: &Link, channel: &Bytes, reply: &[u8]) {
        let Some(code) = resp::error_code(reply) else {
            return;
        };
        if let Some(ear) = st.ear(link) {
            ear.channels.remove(channel);
        }
        match code {
            b"NOPERM" | b"NOAUTH" => self.pass_refusal(st, reply),
            _ => self.tune_later(link.replica),
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
        if let Some(ear) = st.ear(link) {
            ear.channels.remove(channel);
        }
        if let Some(redirect) = redirect
            && let Some(place) = self.place_of(link, redirect)
        {
            self.worker.topology.borrow_mut().moved(redirect.slot, place);
        }
        self.tune_later(link.replica);
    }

    fn tune_later(self: &Rc<Self>, replica: ReplicaId) {
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
        if let Some(ear) = st.ears.iter().find(|ear| ear.link.place == place) {
            return Some(Rc::clone(&ear.link));
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

    /// Carries the application's SUNSUBSCRIBE out; the confirmations.
    pub(super) fn sunsubscribe(self: &Rc<Self>, st: &mut State, frame: &[u8]) -> Bytes {
        let mut channels: Vec<Bytes> = resp::args(frame).skip(1).map(Bytes::copy_from_slice).collect();
        if channels.is_empty() {
            channels.extend(st.intent.sharded_channels().cloned());
        }
        let mut confirmations = Vec::new();
        for channel in &channels {
            st.intent.subscription(Subscription::Shard, channel, false);
            if let Some(ear) = st.ears.iter_mut().find(|ear| ear.channels.contains(channel)) {
                ear.channels.remove(channel);
                ear.link.say(vec![Step::may(&[b"SUNSUBSCRIBE", channel])]);
            }
            confirm(&mut confirmations, st, Some(channel));
        }
        if channels.is_empty() {
            confirm(&mut confirmations, st, None);
        }
        confirmations.into()
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
            // From a connection that has not heard yet of the end of the subscription.
            Some(b"smessage") => st.intent.is_subscribed_to(Subscription::Shard, channel),
            // The slot has left the node.
            Some(b"sunsubscribe") => {
                if st.ear(link).is_some_and(|ear| ear.channels.remove(channel)) {
                    self.tune_later(link.replica);
                }
                false
            }
            _ => true,
        }
    }
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
