//! What a session does when a node says that a command's keys are not, or not all, there, or that the cluster does not serve them.
//! The command was not carried out, so it is sent again, whatever it is. A script can say the same of its own accord, after it has
//! written: only when the node refuses its keys in a command that has no words of its own was it the node that spoke.

use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::Session;
use crate::proxy::classify;
use crate::proxy::cluster::plan::CROSSSLOT;
use crate::proxy::cluster::redirect::{Host, is_cluster_down};
use crate::proxy::cluster::{Redirect, RedirectKind};
use crate::proxy::command::{Command, Tx};
use crate::proxy::link::Link;
use crate::proxy::part::{Detour, Part, Refused};
use crate::proxy::topology::Place;
use crate::replica::Address;
use crate::resp::{self, routing_keys};
use crate::route::LinkEvidence;

/// How often one command may be sent elsewhere or put off; with [`PAUSE`] between, about three seconds: nodes
/// on a busy machine may disagree for a second about a slot that has just moved.
const TIMES: u16 = 300;

/// From this many on, a command that is sent elsewhere again waits a moment: nodes that point at each other would keep it turning.
const AT_ONCE: u16 = 5;

/// Before what was put off is tried again.
const PAUSE: Duration = Duration::from_millis(10);

/// The slot of an open transaction has left its node.
const GONE: &[u8] = b"-TRYAGAIN The slot of this transaction has moved to another node\r\n";
const ABORTED: &[u8] = b"-EXECABORT Transaction discarded because its slot has moved to another node\r\n";

impl Session {
    /// A node has answered a command with a redirection, or put it off. Gives the command back with the answer that the
    /// application gets, where it gets one.
    pub(crate) fn redirected(
        self: &Rc<Self>,
        link: &Rc<Link>,
        mut command: Command,
        frame: Bytes,
        reply: &[u8],
    ) -> Option<(Command, Bytes)> {
        let redirect = Redirect::parse(reply);
        if let Some(Part::Tuned(channel) | Part::Ended(channel)) = command.part() {
            self.tuned_elsewhere(link, channel, redirect.as_ref());
            return None;
        }
        let pinned = {
            let st = self.state.borrow();
            let own = st.link.as_ref().is_some_and(|own| Rc::ptr_eq(own, link));
            own && !link.is_shared() && st.tx_answered.pins()
        };
        let mut frame = frame;
        match command.take_refused() {
            Some(refused) => (command, frame) = (refused.command, refused.frame),
            None if command.words_its_errors() && !pinned => {
                return self.prove(link, command, frame, reply);
            }
            None => {}
        }
        if is_cluster_down(reply) {
            self.worker.ask_layout(link.replica);
            self.worker.report(link.replica, LinkEvidence::Unready);
            if pinned {
                return Some((command, Bytes::copy_from_slice(reply)));
            }
        }
        let place = redirect
            .as_ref()
            .and_then(|redirect| self.place_of(link, redirect));
        let asking = redirect.as_ref().is_some_and(|r| r.kind == RedirectKind::Ask);
        if let (Some(redirect), false) = (&redirect, asking) {
            self.worker.ask_layout(link.replica);
            if pinned {
                let reply = self.in_transaction(link, &command, redirect);
                return Some((command, Bytes::from_static(reply)));
            }
        } else if pinned {
            let reply = if command.tx == Tx::Exec { ABORTED } else { GONE };
            return Some((command, Bytes::from_static(reply)));
        }
        let times = command.detour().map_or(0, |detour| detour.times) + 1;
        if times > TIMES {
            return Some((command, Bytes::copy_from_slice(reply)));
        }
        if let (Some(redirect), Some(place), false) = (&redirect, place, asking) {
            self.worker.topology.borrow_mut().moved(redirect.slot, place);
        }
        command.aside().detour = Some(Detour {
            place,
            asking: asking && place.is_some(),
            times,
        });
        let pause = place.is_none() || times > AT_ONCE;
        let not_before = pause.then(|| self.worker.now() + PAUSE);
        self.put_off(link, command, frame, not_before);
        None
    }

    /// Asks the node whether it refuses the keys of a script. Gives the script back with its answer if it has none: no node
    /// refuses that.
    fn prove(
        self: &Rc<Self>,
        link: &Link,
        command: Command,
        frame: Bytes,
        reply: &[u8],
    ) -> Option<(Command, Bytes)> {
        let reply = Bytes::copy_from_slice(reply);
        let (info, _) = classify::look(&frame).unzip();
        let keys = info.flatten().map(|info| routing_keys(info, &frame));
        let mut words: Vec<&[u8]> = vec![b"EXISTS"];
        words.extend(keys.into_iter().flatten().filter_map(|range| frame.get(range)));
        if words.len() == 1 {
            return Some((command, reply));
        }
        let asks = resp::encode_command(&words).into();
        let mut proof = Command::plain(command.seq, true);
        proof.aside().detour = Some(Detour {
            place: Some(link.place),
            asking: command.detour().is_some_and(|detour| detour.asking),
            times: 0,
        });
        let refused = Refused {
            command,
            frame,
            reply,
            place: link.place,
        };
        proof.aside().part = Some(Part::Proof(Box::new(refused)));
        self.put_off(link, proof, asks, None);
        None
    }

    /// Lets a command wait until nothing that it could overtake is on its way.
    fn put_off(self: &Rc<Self>, link: &Link, command: Command, frame: Bytes, not_before: Option<Instant>) {
        let mut state = self.state.borrow_mut();
        let st = &mut *state;
        st.sent.take(link.replica, 1);
        st.settling = true;
        self.put_back(st, command, frame, not_before);
    }

    /// Inside a transaction the node that has it answers for a server that has all slots.
    fn in_transaction(&self, link: &Link, command: &Command, redirect: &Redirect) -> &'static [u8] {
        if command.tx == Tx::Exec {
            return ABORTED;
        }
        let topology = self.worker.topology.borrow();
        let router = topology.router(link.replica);
        let owner = router.and_then(|router| router.layout().owner(redirect.slot));
        let was_here = owner.is_some_and(|owner| topology.shard(link.replica, owner) == link.place);
        if was_here { GONE } else { CROSSSLOT }
    }

    pub(super) fn place_of(&self, link: &Link, redirect: &Redirect) -> Option<Place> {
        let mut topology = self.worker.topology.borrow_mut();
        let replica = &self.worker.settings.replicas[link.replica.index()].0;
        let port = redirect.port;
        let here = topology.address(link.place);
        let address = match (&redirect.host, here.as_ref().unwrap_or(&replica.endpoint.address)) {
            (Host::Named(host), _) => {
                let host = host.clone();
                replica.topology.reachable(&Address::Tcp { host, port }).clone()
            }
            (Host::Same, Address::Tcp { host, .. }) => {
                let host = host.clone();
                Address::Tcp { host, port }
            }
            (Host::Same, Address::Unix(_)) | (Host::Unknown, _) => return None,
        };
        topology.node(link.replica, &address)
    }
}
