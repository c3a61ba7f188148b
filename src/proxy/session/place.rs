//! Where a session's next command goes, and what it must not overtake on the way.
//!
//! What needs a link of the session's own, and everything but plain reads, goes to the replica that takes the writes. Plain
//! reads go elsewhere while the route splits them off, the session is among those that do (see [`split`](super::super::split)),
//! and the other replica can be had at once: nobody waits for it.

use std::rc::Rc;

use super::{Session, State};
use crate::proxy::command::Command;
use crate::proxy::link::Link;
use crate::proxy::topology::Place;
use crate::proxy::worker::Current;
use crate::replica::ReplicaId;

impl Session {
    /// The replica that a command goes to. `own`: as things stand, it needs a link of the session's own.
    #[inline]
    pub(super) fn destination(
        self: &Rc<Self>,
        st: &mut State,
        route: &Current,
        command: &Command,
        own: bool,
    ) -> ReplicaId {
        if !route.splits || own || !command.strays {
            return route.write;
        }
        self.elsewhere(st, command).unwrap_or(route.write)
    }

    #[cold]
    fn elsewhere(self: &Rc<Self>, st: &mut State, command: &Command) -> Option<ReplicaId> {
        let known = st.link.clone();
        if known.as_ref().is_some_and(|link| !link.is_shared()) {
            return None;
        }
        let split = self.worker.split.borrow();
        let split = split.as_ref()?;
        let replica = split.reader(self.id)?;
        let now = self.worker.now();
        if split.guarded && !st.written.is_on(replica, split, command.seq, &st.pipeline, now) {
            return None;
        }
        if self.worker.topology.borrow().router(replica).is_some() {
            // Which node it is, and whether it can be had, turns out later.
            return Some(replica);
        }
        let place = Place::endpoint(replica);
        let link = match known {
            Some(link) if link.place == place => link,
            _ => self.get_shared(st, place)?,
        };
        link.takes_commands().then_some(replica)
    }

    /// Whether a command for `to` has to wait for answers that other replicas owe the session: those of replicas that the
    /// route has left; and, where a session is to read its own writes, a write waits for reads elsewhere, which would
    /// otherwise see what came after them.
    #[inline]
    pub(super) fn overtakes(&self, st: &State, route: &Current, command: &Command, to: ReplicaId) -> bool {
        st.sent.but_on(to) > 0
            && (route.guarded && !command.read
                || !st.sent.replicas().all(|replica| self.worker.uses(replica)))
    }

    /// The session's shared link to `place`, among those of its identity.
    pub(super) fn get_shared(self: &Rc<Self>, st: &mut State, place: Place) -> Option<Rc<Link>> {
        let upstream = &self.worker.upstream;
        if st.group.is_none() {
            st.group = upstream.group(&self.worker, &st.intent.identity);
        }
        upstream.shared(&self.worker, st.group.as_ref()?, place, self.id)
    }
}
