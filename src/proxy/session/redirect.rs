//! What a session does when a node says that a command's keys are not, or not all, there. The command was not carried out, so it
//! is sent again, whatever it is.

use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;

use super::{Session, State};
use crate::proxy::cluster::plan::CROSSSLOT;
use crate::proxy::cluster::redirect::Host;
use crate::proxy::cluster::{Redirect, RedirectKind};
use crate::proxy::command::{Command, Tx};
use crate::proxy::link::Link;
use crate::proxy::part::Detour;
use crate::proxy::topology::Place;
use crate::replica::Address;

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
        let place = redirect
            .as_ref()
            .and_then(|redirect| self.place_of(link, redirect));
        let asking = redirect.as_ref().is_some_and(|r| r.kind == RedirectKind::Ask);
        if let (Some(redirect), false) = (&redirect, asking) {
            self.worker.ask_layout(link.replica);
            let mut state = self.state.borrow_mut();
            if !link.is_shared() && state.tx_answered.pins() {
                let reply = self.in_transaction(&mut state, link, &command, redirect);
                return Some((command, Bytes::from_static(reply)));
            }
        } else if !link.is_shared() && self.state.borrow().tx_answered.pins() {
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
        let mut state = self.state.borrow_mut();
        let st = &mut *state;
        st.sent.take(link.replica, 1);
        st.settling = true;
        let not_before = pause.then(|| self.worker.now() + PAUSE);
        self.put_back(st, command, frame, not_before);
        None
    }

    /// Inside a transaction the node that has it answers for a server that has all slots.
    fn in_transaction(
        &self,
        st: &mut State,
        link: &Link,
        command: &Command,
        redirect: &Redirect,
    ) -> &'static [u8] {
        if command.tx == Tx::Exec {
            return ABORTED;
        }
        let topology = self.worker.topology.borrow();
        let router = topology.router(link.replica);
        let owner = router.and_then(|router| router.layout().owner(redirect.slot));
        let was_here = owner.is_some_and(|owner| topology.shard(link.replica, owner) == link.place);
        debug_assert!(st.tx_answered.pins());
        if was_here { GONE } else { CROSSSLOT }
    }

    fn place_of(&self, link: &Link, redirect: &Redirect) -> Option<Place> {
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
