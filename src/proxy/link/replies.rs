//! Whose reply is it: the oldest entry's, unless the replica speaks unasked.

use std::ops::Range;
use std::rc::Rc;

use bytes::{Buf, Bytes, BytesMut};

use super::{Entry, Link, Phase};
use crate::metrics::ErrorCode;
use crate::proxy::command::{Expect, Must};
use crate::proxy::part::Part;
use crate::proxy::pipeline::Seq;
use crate::proxy::session::{Session, ends_sharded};
use crate::resp::{Reply, ReplyScan, ReplyScanner, error_code};
use crate::route::LinkEvidence;

/// Replies to plain commands of one session that lie side by side: they go out in one piece.
struct Batch {
    session: Rc<Session>,
    seq: Seq,
    replies: u32,
    range: Range<usize>,
}

impl Link {
    /// Gives every whole reply in `buf` to whom it belongs; the bytes used up, and how many are missing at least.
    pub(super) fn take_replies(
        self: &Rc<Self>,
        scanner: &mut ReplyScanner,
        buf: &[u8],
    ) -> Result<(usize, usize), LinkEvidence> {
        let (mut used, mut need) = (0, 0);
        let mut batch: Option<Batch> = None;
        let mut taken = Ok(());
        while used < buf.len() && self.phase() != Phase::Dead {
            let reply = match scanner.scan(&buf[used..]) {
                Ok(ReplyScan::Complete(reply)) => reply,
                Ok(ReplyScan::Incomplete { need: missing }) => {
                    need = missing;
                    break;
                }
                Err(error) => {
                    tracing::warn!(replica = %self.worker.name(self.replica), %error, "link closed");
                    taken = Err(LinkEvidence::Rejected);
                    break;
                }
            };
            let range = used..used + reply.len;
            used = range.end;
            if !self.joins(&mut batch, reply, range.clone(), buf) {
                self.deliver(batch.take(), buf);
                taken = self.take_reply(reply, &buf[range]);
                if taken.is_err() {
                    break;
                }
            }
        }
        self.deliver(batch, buf);
        taken.map(|()| (used, need))
    }

    fn deliver(self: &Rc<Self>, batch: Option<Batch>, buf: &[u8]) {
        if let Some(batch) = batch {
            batch
                .session
                .deliver(self, batch.seq, batch.replies, &buf[batch.range]);
        }
    }

    /// The fast way: whether the reply answers a plain command, and so joins the batch or begins the next one.
    fn joins(
        self: &Rc<Self>,
        batch: &mut Option<Batch>,
        reply: Reply,
        range: Range<usize>,
        buf: &[u8],
    ) -> bool {
        let frame = &buf[range.clone()];
        if self.trailing.get() > 0
            || self.is_unasked(reply.kind, frame)
            || reply.kind == b'-' && self.sends_elsewhere(frame)
        {
            return false;
        }
        let mut inner = self.inner.borrow_mut();
        let Some(front) = inner.entries.front_mut() else {
            return false;
        };
        let (None, Some(session)) = (&front.special, &front.session) else {
            return false;
        };
        if reply.kind == b'-' {
            self.count_error(&buf[range.clone()]);
        }
        let seq = front.seq.plus(front.commands - front.left);
        let mut before = None;
        match batch {
            Some(b) if Rc::ptr_eq(session, &b.session) && b.seq.plus(b.replies) == seq => {
                b.replies += 1;
                b.range.end = range.end;
            }
            _ => {
                before = batch.replace(Batch {
                    session: Rc::clone(session),
                    seq,
                    replies: 1,
                    range,
                });
            }
        }
        front.left -= 1;
        if front.left == 0
            && let Some(done) = inner.entries.pop_front()
        {
            inner.outbox.release(done.bytes);
            self.measure(&done);
        }
        drop(inner);
        self.awaits_less(1);
        self.deliver(before, buf);
        true
    }

    /// Whether a frame answers no command: a push, a message while subscribed, a line of MONITOR.
    fn is_unasked(&self, kind: u8, frame: &[u8]) -> bool {
        matches!(kind, b'>' | b'*' | b'+')
            && match &*self.owner.borrow() {
                Some(owner) => owner.is_out_of_band(kind, frame, self.awaits_confirmation(frame)),
                None => kind == b'>',
            }
    }

    /// Whether a subscription command is the next to be answered, the application's or one that is said again.
    fn awaits_confirmation(&self, frame: &[u8]) -> bool {
        let inner = self.inner.borrow();
        let next = inner.entries.front().and_then(|entry| entry.special.as_ref());
        next.is_some_and(|command| match command.expect {
            Expect::Own { .. } => true,
            // A node says by itself that a slot has gone, with its channels.
            Expect::Confirmations(_) if self.worker.is_sharded(self.replica) => match ends_sharded(frame) {
                Some(ended) => matches!(command.part(), Some(Part::Ended(channel)) if channel == ended),
                None => true,
            },
            Expect::Confirmations(_) => true,
            _ => false,
        })
    }

    /// Everything that is no plain command's reply.
    fn take_reply(self: &Rc<Self>, reply: Reply, frame: &[u8]) -> Result<(), LinkEvidence> {
        let trails = self.trailing.get();
        if trails > 0 || self.is_unasked(reply.kind, frame) {
            self.trailing.set(trails.saturating_sub(1));
            let owner = self.owner.borrow().clone();
            if let Some(owner) = owner {
                owner.pass_on(self, frame);
            }
            return Ok(());
        }
        if reply.is_error() && self.sends_elsewhere(frame) && self.is_singly_answered() {
            self.send_elsewhere(frame);
            return Ok(());
        }
        let mut inner = self.inner.borrow_mut();
        let Some(Entry {
            session,
            special: Some(command),
            ..
        }) = inner.entries.front_mut()
        else {
            // The replica's parting word (`-ERR max number of clients`, an output limit): it belongs to the link.
            return Err(if reply.is_error() {
                LinkEvidence::Rejected
            } else {
                LinkEvidence::Broken
            });
        };
        let more = match &mut command.expect {
            Expect::Own { replies: left, must } => {
                if reply.is_error() && !accepted(*must, frame) {
                    let code = String::from_utf8_lossy(error_code(frame).unwrap_or_default()).into_owned();
                    let replica = self.worker.name(self.replica);
                    if *must == Must::Grant && !is_about_replica(frame) {
                        tracing::warn!(
                            replica,
                            code,
                            "the replica refuses what an application was granted before"
                        );
                        let words = Bytes::copy_from_slice(frame);
                        *self.refusal.borrow_mut() = Some((words, self.worker.now()));
                    } else {
                        tracing::warn!(replica, code, "the replica rejects the link's handshake");
                    }
                    return Err(LinkEvidence::Rejected);
                }
                if *must == Must::Serve {
                    self.logged_out.set(error_code(frame) == Some(b"NOAUTH"));
                }
                *left = left.saturating_sub(1);
                *left > 0
            }
            Expect::Confirmations(left) => {
                *left = left.saturating_sub(1);
                // An error ends a subscription command at once, as does the +QUEUED of a transaction.
                *left > 0 && matches!(reply.kind, b'*' | b'>')
            }
            _ => false,
        };
        if more {
            let session = session.clone();
            drop(inner);
            if let Some(session) = session {
                session.confirmed(self, frame);
            }
            return Ok(());
        }
        let Some(entry) = inner.entries.pop_front() else {
            return Ok(());
        };
        inner.outbox.release(entry.bytes);
        let idle = inner.entries.is_empty();
        drop(inner);
        self.awaits_less(entry.waited_for());
        match (entry.session, entry.special) {
            (Some(session), Some(command)) => {
                if reply.is_error() {
                    self.count_error(frame);
                }
                session.reply(self, *command, reply, frame);
            }
            _ if idle && self.phase() == Phase::Greeting => self.ready(),
            _ => {}
        }
        Ok(())
    }

    /// Whether a node says that keys are elsewhere, on their way, or not served yet, and that is to be followed.
    fn sends_elsewhere(&self, error: &[u8]) -> bool {
        matches!(
            error_code(error),
            Some(b"MOVED" | b"ASK" | b"TRYAGAIN" | b"CLUSTERDOWN")
        ) && self.worker.has_nodes(self.replica)
    }

    /// Whether the next reply is the only one to a command of a session.
    fn is_singly_answered(&self) -> bool {
        let inner = self.inner.borrow();
        inner.entries.front().is_some_and(|entry| {
            let special = entry.special.as_ref();
            entry.session.is_some() && special.is_none_or(|c| !matches!(c.expect, Expect::Own { .. }))
        })
    }

    /// A node has not carried a command out, as its keys are elsewhere.
    fn send_elsewhere(self: &Rc<Self>, reply: &[u8]) {
        let Some((session, command, frame)) = self.take_oldest() else {
            return;
        };
        if let Some((command, answer)) = session.redirected(self, command, frame, reply)
            && let Ok(ReplyScan::Complete(reply)) = ReplyScanner::new().scan(&answer)
        {
            self.count_error(&answer);
            session.reply(self, command, reply, &answer);
        }
    }

    fn count_error(&self, frame: &[u8]) {
        let code = ErrorCode::of(error_code(frame).unwrap_or_default());
        self.worker.metrics.replies_error[self.replica][code].inc();
        match code {
            ErrorCode::NoScript => {
                let mut scripts = self.worker.scripts.borrow_mut();
                scripts.scripts_forgotten_by(self.place);
            }
            ErrorCode::Loading | ErrorCode::MasterDown | ErrorCode::ClusterDown => {
                self.worker.report(self.replica, LinkEvidence::Unready);
            }
            ErrorCode::ReadOnly | ErrorCode::Oom | ErrorCode::NoReplicas | ErrorCode::MisConf => {
                self.worker.report(self.replica, LinkEvidence::Unwritable);
            }
            _ => {}
        }
    }

    fn measure(&self, done: &Entry) {
        let took = self.worker.now().saturating_duration_since(done.at);
        self.worker.metrics.command_duration[self.replica].observe_all(took, u64::from(done.commands));
    }

    /// Passes the seen part of a huge reply on before its end has come.
    pub(super) fn stream_on(&self, rest: &mut BytesMut, scanner: &mut ReplyScanner) {
        let inner = self.inner.borrow();
        let Some(Entry {
            session: Some(session),
            seq,
            commands,
            left,
            special,
            ..
        }) = inner.entries.front()
        else {
            return;
        };
        let one_reply = special
            .as_ref()
            .is_none_or(|c| c.part().is_none() && matches!(c.expect, Expect::Reply | Expect::Blocking));
        if !one_reply || !session.begin_streaming(seq.plus(commands - left)) {
            return;
        }
        let seen = scanner.done_with(rest.len());
        let session = Rc::clone(session);
        drop(inner);
        session.stream(&rest[..seen]);
        rest.advance(seen);
        scanner.forget(seen);
    }
}

/// Whether an error is an answer that a command of Pulsegate's own may have.
fn accepted(must: Must, frame: &[u8]) -> bool {
    match must {
        Must::Answer => true,
        Must::Succeed | Must::Grant => false,
        // The application is to log in by itself, then.
        Must::Serve => matches!(error_code(frame), Some(b"NOAUTH" | b"NOPERM")),
    }
}

/// Whether an error speaks of the replica's own state, and not of who asks or for what.
fn is_about_replica(error: &[u8]) -> bool {
    !matches!(
        error_code(error),
        Some(b"WRONGPASS" | b"NOAUTH" | b"NOPERM" | b"NOPROTO" | b"ERR")
    ) || error.starts_with(b"-ERR max number of clients")
}
