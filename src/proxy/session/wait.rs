//! What a session does while it has no link that takes its commands: they wait, go on, expire, or are recovered from a link
//! that was lost.

use std::collections::VecDeque;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::{Given, Session, State};
use crate::metrics::{Class, DisconnectReason, HoldEnd};
use crate::proxy::command::{Command, Expect, Held, Tx};
use crate::proxy::intent::Step;
use crate::proxy::link::{End, Frame, Link};
use crate::proxy::recover::{Broken, Local, Recovery, TxState, Verdict};

impl Session {
    /// Lets a command wait; answers `-UNAVAILABLE` when too much waits already.
    pub(super) fn hold(self: &Rc<Self>, st: &mut State, command: Command, frame: Frame<'_>) {
        let len = frame.len();
        if !self.worker.hold_has_room(len) {
            self.worker.metrics.hold_ended[HoldEnd::Overflow].inc();
            self.refuse(
                st,
                &command,
                "too many commands wait for a replica; this one was not sent",
            );
            if command.tx == Tx::Multi || st.tx == TxState::Open {
                self.break_transaction(st);
            }
            return;
        }
        let frame = match frame {
            Frame::Borrowed(bytes) => Bytes::copy_from_slice(bytes),
            Frame::Owned(bytes) => bytes.freeze(),
        };
        st.limbo_bytes += len;
        st.limbo.push_back(Held {
            command,
            frame,
            since: self.worker.now(),
        });
        self.worker.hold_adds(self, len);
    }

    /// A command of an open transaction was refused, so the rest of it must not be applied without it.
    fn break_transaction(self: &Rc<Self>, st: &mut State) {
        st.tx = TxState::Broken(Broken::Abort);
        self.worker.condemn_later(st.link.clone());
    }

    /// Sends what waits, as far as the route and the link allow; opens a link when there is none.
    pub(crate) fn advance(self: &Rc<Self>) {
        let mut state = self.state.borrow_mut();
        let st = &mut *state;
        if st.dead.is_some() || (st.limbo.is_empty() && !st.intent.listens()) {
            return;
        }
        let Some(route) = self.worker.route.get() else {
            return;
        };
        if route.holding {
            return;
        }
        match st.link.clone() {
            None => {
                if self.worker.may_connect(route.write) {
                    let mut steps = st.intent.handshake(self.worker.credentials(route.write));
                    if st.muted_sent {
                        steps.push(Step::silent(&[b"CLIENT", b"REPLY", b"OFF"]));
                    }
                    st.tx_sent = TxState::Clear;
                    st.tx_answered = TxState::Clear;
                    st.link = Some(Link::open(&self.worker, route.write, self, steps));
                }
            }
            Some(link) if link.replica != route.write => {
                if link.in_flight() == 0 {
                    drop(state);
                    link.condemn(&End::Abandoned);
                }
            }
            Some(link) => {
                while link.takes_commands()
                    && let Some(front) = st.limbo.front()
                {
                    if front.command.expect == Expect::Confirmations(0) && !link.is_idle() {
                        break;
                    }
                    let Some(held) = st.limbo.pop_front() else { break };
                    st.limbo_bytes -= held.frame.len();
                    self.worker
                        .hold_frees(held.frame.len(), held.since, HoldEnd::Resumed);
                    let class = if held.command.read {
                        Class::Read
                    } else {
                        Class::Write
                    };
                    self.worker.metrics.commands[class][route.write].inc();
                    self.send(st, &link, held.command, Frame::Borrowed(&held.frame));
                }
                if st.limbo.is_empty() {
                    st.limbo = VecDeque::new();
                    self.unpause(st);
                }
            }
        }
    }

    /// Answers `-UNAVAILABLE` to what has waited longer than `timeout`. Whether something still waits.
    pub(crate) fn expire(self: &Rc<Self>, now: Instant, timeout: Duration) -> bool {
        let mut state = self.state.borrow_mut();
        let st = &mut *state;
        while let Some(front) = st.limbo.front()
            && now.saturating_duration_since(front.since) >= timeout
        {
            // What was sent of a transaction or a WATCH is lost with its link; the rest is then answered without being sent.
            if st.tx_sent.pins()
                && let Some(link) = st.link.clone()
            {
                drop(state);
                link.condemn(&End::Abandoned);
                return true;
            }
            let mut inside = false;
            loop {
                let Some(held) = st.limbo.pop_front() else {
                    st.tx = TxState::Broken(Broken::Abort);
                    break;
                };
                st.limbo_bytes -= held.frame.len();
                self.worker
                    .hold_frees(held.frame.len(), held.since, HoldEnd::Expired);
                self.refuse(
                    st,
                    &held.command,
                    "no replica took the command in time; it was not sent",
                );
                // A transaction expires whole.
                inside = match held.command.tx {
                    Tx::Multi => true,
                    Tx::Exec | Tx::Discard => false,
                    _ => inside,
                };
                if !inside {
                    break;
                }
            }
        }
        self.unpause(st);
        self.flush(st);
        !st.limbo.is_empty()
    }

    fn refuse(&self, st: &mut State, command: &Command, why: &str) {
        self.worker.metrics.unavailable.inc();
        self.answer(st, command, format!("-UNAVAILABLE {why}\r\n").as_bytes());
    }

    /// The session's link takes commands.
    pub(crate) fn link_ready(self: &Rc<Self>) {
        self.advance();
    }

    /// The session's link is gone; `given` are its unanswered commands, in order.
    pub(crate) fn link_lost(self: &Rc<Self>, link: &Rc<Link>, given: Vec<Given>, end: &End) {
        if let End::Failed(evidence) = end {
            self.worker.report(link.replica, *evidence);
            self.worker.link_failed(link.replica);
        }
        let mut state = self.state.borrow_mut();
        let st = &mut *state;
        if !st.link.as_ref().is_some_and(|own| Rc::ptr_eq(own, link)) {
            return;
        }
        st.link = None;
        if *end == End::Released || st.dead.is_some() {
            return;
        }
        if st.streaming.is_some() {
            st.dead = Some(DisconnectReason::ReplyBroken);
            self.touch();
            return;
        }
        let mut recovery = Recovery::new(st.tx_answered);
        let limbo = std::mem::take(&mut st.limbo);
        st.limbo_bytes = 0;
        for Given { command, frame, sent } in given {
            let verdict = if sent {
                recovery.sent(&command)
            } else {
                recovery.unsent(&command)
            };
            if sent && verdict == Verdict::Resend {
                self.worker.metrics.retried.inc();
            }
            if self.settle(st, &command, verdict) {
                self.hold(st, command, Frame::Borrowed(&frame));
            }
        }
        for held in limbo {
            let verdict = recovery.unsent(&held.command);
            if self.settle(st, &held.command, verdict) {
                st.limbo_bytes += held.frame.len();
                st.limbo.push_back(held);
            } else {
                self.worker
                    .hold_frees(held.frame.len(), held.since, HoldEnd::Resumed);
            }
        }
        st.tx = recovery.finish();
        (st.tx_sent, st.tx_answered) = Default::default();
        let listens = st.intent.listens();
        drop(state);
        self.touch();
        if listens {
            self.worker.wait(self);
        }
        self.worker.touch(self);
    }

    /// Carries out a verdict; whether the command is to be sent again.
    fn settle(&self, st: &mut State, command: &Command, verdict: Verdict) -> bool {
        match verdict {
            Verdict::Resend => return true,
            Verdict::Answer(local) => {
                if local == Local::OutcomeUnknown {
                    self.worker.metrics.unknown_outcome.inc();
                }
                let resp3 = st.intent.resp3;
                self.answer(st, command, local.bytes(resp3));
            }
            Verdict::Drop => {}
        }
        false
    }
}
