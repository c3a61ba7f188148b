//! One upstream connection: commands in, replies back in the same order.
//!
//! ```text
//!   Connecting ──dialled──▶ Greeting ──handshake answered──▶ Ready
//!       │                      │                               │
//!       └──────────────────────┴────────── condemn ────────────┴──▶ Dead
//! ```
//!
//! Sessions append their bytes while the link is Ready; the link's own task writes what has gathered in one go, reads, and
//! hands each reply to the session whose turn it is. A condemned link gives every unanswered command back to its session,
//! saying whether any byte of it may have left.
//!
//! A link never decides where commands go, and never sends one twice.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::command::{Command, Expect};
use super::intent::Step;
use super::outbox::Outbox;
use super::session::{Given, Session};
use super::worker::Worker;
use crate::dial::{DialErrorKind, Stream};
use crate::metrics::{ConnectResult, LinkKind};
use crate::replica::ReplicaId;
use crate::resp::{Reply, ReplyScan, ReplyScanner, error_code};
use crate::route::LinkEvidence;

/// A reply longer than this is passed on in pieces as it arrives; a shorter one only when it is whole, so that the loss of
/// its link cannot tear it.
const STREAM_ABOVE: usize = 4 * 1024 * 1024;

/// While a session owes its application more than this many bytes, its own link reads no more.
pub(crate) const OUT_HIGH: usize = 256 * 1024;

/// At most so many unwritten bytes before the link takes no more commands.
const UNWRITTEN_HIGH: u64 = 4 * 1024 * 1024;

/// See the module's diagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// The dialler is at work.
    Connecting,
    /// Connected; the handshake's replies are awaited.
    Greeting,
    /// Takes commands.
    Ready,
    /// Gone.
    Dead,
}

/// Why a link is given up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum End {
    /// Its connection failed, or broke, or stayed silent.
    Failed(LinkEvidence),
    /// The route has left its replica for good, without waiting for answers.
    Abandoned,
    /// Its session has ended, or needs it no more.
    Released,
}

/// A command that was given to the link and has no reply yet.
#[derive(Debug)]
struct Entry {
    /// `None` for the link's own handshake.
    session: Option<Rc<Session>>,
    command: Command,
    len: usize,
}

/// One upstream connection.
pub(crate) struct Link {
    worker: Rc<Worker>,
    /// Where it leads.
    pub(crate) replica: ReplicaId,
    phase: Cell<Phase>,
    inner: RefCell<Inner>,
    waker: RefCell<Option<Waker>>,
    /// The owner whose pushes and messages arrive here.
    owner: RefCell<Option<Rc<Session>>>,
    /// Since when the oldest unanswered command waits without any byte arriving.
    quiet_since: Cell<Instant>,
    /// Commands in `inner.entries` that a drain waits for.
    in_flight: Cell<usize>,
}

#[derive(Default)]
struct Inner {
    outbox: Outbox,
    entries: VecDeque<Entry>,
}

impl Inner {
    /// What owes no reply is done once it is written and everything before it is answered.
    fn drop_silent(&mut self) {
        while let Some(front) = self.entries.front()
            && front.command.expect == Expect::Nothing
            && self.outbox.base() + front.len as u64 <= self.outbox.written()
        {
            let len = front.len;
            self.outbox.release(len);
            self.entries.pop_front();
        }
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link")
            .field("replica", &self.replica)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

impl Link {
    /// Opens a link to `replica` for `owner` alone, with `handshake` said first.
    pub(crate) fn open(
        worker: &Rc<Worker>,
        replica: ReplicaId,
        owner: &Rc<Session>,
        handshake: Vec<Step>,
    ) -> Rc<Link> {
        let link = Rc::new(Link {
            worker: Rc::clone(worker),
            replica,
            phase: Cell::new(Phase::Connecting),
            inner: RefCell::default(),
            waker: RefCell::default(),
            owner: RefCell::new(Some(Rc::clone(owner))),
            quiet_since: Cell::new(worker.now()),
            in_flight: Cell::new(0),
        });
        worker.metrics.upstream_connections[replica][LinkKind::Dedicated].add(1);
        worker.links.borrow_mut().push(Rc::clone(&link));
        tokio::task::spawn_local(run(Rc::clone(&link), handshake));
        link
    }

    /// Whether commands may be appended now.
    pub(crate) fn takes_commands(&self) -> bool {
        self.phase.get() == Phase::Ready && self.inner.borrow().outbox.unwritten() < UNWRITTEN_HIGH
    }

    /// See [`Phase`].
    pub(crate) fn phase(&self) -> Phase {
        self.phase.get()
    }

    /// Commands whose replies a drain waits for.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.get()
    }

    /// Nothing is unanswered.
    pub(crate) fn is_idle(&self) -> bool {
        self.inner.borrow().entries.is_empty()
    }

    /// Gives the link one command with its bytes. Only while it [`takes_commands`](Self::takes_commands).
    pub(crate) fn append(&self, session: &Rc<Session>, command: Command, frame: Frame<'_>) {
        let len = frame.len();
        let mut inner = self.inner.borrow_mut();
        match frame {
            Frame::Borrowed(bytes) => inner.outbox.append(bytes),
            Frame::Owned(bytes) => inner.outbox.append_owned(bytes),
        }
        self.enlist(
            &mut inner,
            Entry {
                session: Some(Rc::clone(session)),
                command,
                len,
            },
        );
    }

    fn enlist(&self, inner: &mut Inner, entry: Entry) {
        if inner.entries.is_empty() {
            self.quiet_since.set(self.worker.now());
        }
        if waited_for(&entry.command) {
            self.in_flight.set(self.in_flight.get() + 1);
            self.worker.in_flight.set(self.worker.in_flight.get() + 1);
        }
        inner.entries.push_back(entry);
        self.wake();
    }

    /// Lets the link's task run: there are bytes to write, room to read again, or an end to notice.
    pub(crate) fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Gives the link up: every unanswered command goes back to its session.
    pub(crate) fn condemn(self: &Rc<Self>, end: &End) {
        match self.phase.replace(Phase::Dead) {
            Phase::Dead => return,
            Phase::Connecting | Phase::Greeting => self.worker.connect_ended(self.replica, false),
            Phase::Ready => {}
        }
        self.worker.metrics.upstream_connections[self.replica][LinkKind::Dedicated].add(-1);
        self.worker.links.borrow_mut().retain(|l| !Rc::ptr_eq(l, self));
        let mut inner = self.inner.take();
        self.worker
            .in_flight
            .set(self.worker.in_flight.get() - self.in_flight.replace(0));
        let owner = self.owner.take();
        let mut given_back = Vec::new();
        let mut start = inner.outbox.base();
        for entry in inner.entries {
            let sent = start < inner.outbox.written();
            start += entry.len as u64;
            let frame = Bytes::copy_from_slice(inner.outbox.front(entry.len));
            inner.outbox.release(entry.len);
            given_back.push(Given {
                command: entry.command,
                frame,
                sent,
            });
        }
        if let Some(owner) = owner {
            owner.link_lost(self, given_back, end);
        }
        self.wake();
        self.worker.drained_perhaps();
    }

    /// Whether the oldest unanswered command has waited longer than `timeout` without any byte arriving.
    pub(crate) fn overdue(&self, now: Instant, timeout: Duration) -> bool {
        let inner = self.inner.borrow();
        inner
            .entries
            .front()
            .is_some_and(|e| e.command.expect != Expect::Blocking)
            && now.saturating_duration_since(self.quiet_since.get()) > timeout
            && self.phase.get() != Phase::Connecting
            && !self.read_paused()
    }

    fn read_paused(&self) -> bool {
        self.owner
            .borrow()
            .as_ref()
            .is_some_and(|owner| owner.owes() > OUT_HIGH)
    }

    /// Writes what has gathered. `Ready(Err)`: the connection is broken.
    fn poll_flush(&self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut wrote = false;
        loop {
            let mut inner = self.inner.borrow_mut();
            if !inner.outbox.has_unwritten() {
                drop(inner);
                return if wrote {
                    Pin::new(stream).poll_flush(cx)
                } else {
                    Poll::Ready(Ok(()))
                };
            }
            let written = inner
                .outbox
                .with_unwritten(|slices| Pin::new(&mut *stream).poll_write_vectored(cx, slices));
            match written {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(n)) => {
                    wrote = true;
                    inner.outbox.advance(n);
                    self.worker.metrics.upstream_bytes_out.add(n as u64);
                    inner.drop_silent();
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Gives every whole reply in `buf` to whom it belongs; the bytes used up.
    fn take_replies(
        self: &Rc<Self>,
        scanner: &mut ReplyScanner,
        buf: &[u8],
    ) -> Result<(usize, usize), LinkEvidence> {
        let mut used = 0;
        while used < buf.len() && self.phase.get() != Phase::Dead {
            match scanner.scan(&buf[used..]) {
                Ok(ReplyScan::Complete(reply)) => {
                    let frame = &buf[used..used + reply.len];
                    used += reply.len;
                    self.take_reply(reply, frame)?;
                }
                Ok(ReplyScan::Incomplete { need }) => return Ok((used, need)),
                Err(error) => {
                    tracing::warn!(replica = %self.worker.name(self.replica), %error, "link closed");
                    return Err(LinkEvidence::Rejected);
                }
            }
        }
        Ok((used, 0))
    }

    fn take_reply(self: &Rc<Self>, reply: Reply, frame: &[u8]) -> Result<(), LinkEvidence> {
        let mut inner = self.inner.borrow_mut();
        // Messages, invalidations and MONITOR's lines are nobody's reply.
        let own = matches!(
            inner.entries.front(),
            Some(Entry {
                command: Command {
                    expect: Expect::Own { .. },
                    ..
                },
                ..
            })
        );
        let owner = self.owner.borrow().clone();
        if let Some(owner) = &owner
            && owner.is_out_of_band(reply.kind, frame)
        {
            drop(inner);
            owner.pass_on(frame);
            return Ok(());
        }
        let Some(front) = inner.entries.front_mut() else {
            if let Some(owner) = owner {
                drop(inner);
                // The replica's parting word (`-ERR max number of clients`, an output limit): it belongs to the link.
                tracing::debug!(session = owner.id, "reply without a command");
            }
            return Err(if reply.kind == b'-' {
                LinkEvidence::Rejected
            } else {
                LinkEvidence::Broken
            });
        };
        let more = match &mut front.command.expect {
            Expect::Confirmations(left) | Expect::Own { replies: left, .. } => {
                *left = left.saturating_sub(1);
                // An error ends a subscription command at once.
                *left > 0 && reply.kind != b'-'
            }
            _ => false,
        };
        if own
            && reply.kind == b'-'
            && matches!(
                front.command.expect,
                Expect::Own {
                    must_succeed: true,
                    ..
                }
            )
        {
            let code = String::from_utf8_lossy(error_code(frame).unwrap_or_default()).into_owned();
            tracing::warn!(replica = %self.worker.name(self.replica), code, "the replica rejects the link's handshake");
            return Err(LinkEvidence::Rejected);
        }
        if more {
            if !own && let Some(session) = front.session.clone() {
                drop(inner);
                session.confirmed(frame);
            }
            return Ok(());
        }
        let Some(entry) = inner.entries.pop_front() else {
            return Ok(());
        };
        inner.outbox.release(entry.len);
        inner.drop_silent();
        let idle = inner.entries.is_empty();
        drop(inner);
        if waited_for(&entry.command) {
            self.in_flight.set(self.in_flight.get() - 1);
            self.worker.in_flight.set(self.worker.in_flight.get() - 1);
        }
        match entry.session {
            Some(session) => session.reply(entry.command, reply, frame, self.replica),
            None if idle && self.phase.get() == Phase::Greeting => self.ready(),
            None => {}
        }
        Ok(())
    }

    fn ready(self: &Rc<Self>) {
        self.phase.set(Phase::Ready);
        self.worker.connect_ended(self.replica, true);
        self.worker.metrics.upstream_connects[self.replica][ConnectResult::Ok].inc();
        self.worker.report(self.replica, LinkEvidence::Alive);
        let owner = self.owner.borrow().clone();
        if let Some(owner) = owner {
            owner.link_ready();
        }
    }

    /// Reads once and hands out the replies. `Pending`: nothing to read, or the owner's application does not read.
    fn poll_read(
        self: &Rc<Self>,
        stream: &mut Stream,
        rest: &mut BytesMut,
        scanner: &mut ReplyScanner,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), LinkEvidence>> {
        if self.read_paused() {
            return Poll::Pending;
        }
        let mut scratch = self.worker.reply_scratch.borrow_mut();
        // Into the worker's scratch, or behind the piece of a reply that is already here.
        let (n, direct) = if rest.is_empty() {
            let mut into = ReadBuf::new(&mut scratch);
            match Pin::new(stream).poll_read(cx, &mut into) {
                Poll::Ready(Ok(())) => (into.filled().len(), true),
                Poll::Ready(Err(_)) => return Poll::Ready(Err(LinkEvidence::Broken)),
                Poll::Pending => return Poll::Pending,
            }
        } else {
            drop(scratch);
            match read_more(stream, rest, cx) {
                Poll::Ready(Ok(n)) => {
                    scratch = self.worker.reply_scratch.borrow_mut();
                    (n, false)
                }
                Poll::Ready(Err(_)) => return Poll::Ready(Err(LinkEvidence::Broken)),
                Poll::Pending => return Poll::Pending,
            }
        };
        if n == 0 {
            return Poll::Ready(Err(LinkEvidence::Broken));
        }
        self.quiet_since.set(self.worker.tick());
        self.worker.metrics.upstream_bytes_in.add(n as u64);
        self.worker.report(self.replica, LinkEvidence::Alive);
        let taken = if direct {
            self.take_replies(scanner, &scratch[..n]).map(|(used, need)| {
                if used < n {
                    rest.reserve(n - used + need.min(STREAM_ABOVE));
                    rest.extend_from_slice(&scratch[used..n]);
                }
            })
        } else {
            self.take_replies(scanner, rest).map(|(used, need)| {
                bytes::Buf::advance(rest, used);
                if rest.is_empty() {
                    *rest = BytesMut::new();
                } else {
                    rest.reserve(need.min(STREAM_ABOVE));
                }
            })
        };
        drop(scratch);
        self.worker.flush_dirty();
        if let Err(evidence) = taken {
            return Poll::Ready(Err(evidence));
        }
        if rest.len() > STREAM_ABOVE {
            self.stream_on(rest, scanner);
        }
        Poll::Ready(Ok(()))
    }

    /// Passes the seen part of a huge reply on before its end has come.
    fn stream_on(&self, rest: &mut BytesMut, scanner: &mut ReplyScanner) {
        let inner = self.inner.borrow();
        let Some(Entry {
            session: Some(session),
            command,
            ..
        }) = inner.entries.front()
        else {
            return;
        };
        if !matches!(command.expect, Expect::Reply | Expect::Blocking)
            || !session.begin_streaming(command.seq)
        {
            return;
        }
        let seen = scanner.done_with(rest.len());
        let session = Rc::clone(session);
        drop(inner);
        session.pass_on(&rest[..seen]);
        bytes::Buf::advance(rest, seen);
        scanner.forget(seen);
    }
}

/// A command's bytes on their way into a link.
#[derive(Debug)]
pub(crate) enum Frame<'a> {
    /// To be copied.
    Borrowed(&'a [u8]),
    /// To be moved.
    Owned(BytesMut),
}

impl Frame<'_> {
    /// Length in bytes.
    pub(crate) fn len(&self) -> usize {
        match self {
            Frame::Borrowed(bytes) => bytes.len(),
            Frame::Owned(bytes) => bytes.len(),
        }
    }
}

fn waited_for(command: &Command) -> bool {
    !matches!(
        command.expect,
        Expect::Blocking | Expect::Nothing | Expect::Own { .. }
    )
}

/// Reads behind what `into` holds; at least 16 KiB, more when it was reserved.
pub(crate) fn read_more<R: AsyncRead + Unpin>(
    stream: &mut R,
    into: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    let len = into.len();
    if into.capacity() - len < 4096 {
        into.reserve(16 * 1024);
    }
    // `ReadBuf` wants initialised memory without `unsafe`; a reply this long pays for it once.
    let capacity = into.capacity().min(len + 1024 * 1024);
    into.resize(capacity, 0);
    let mut buf = ReadBuf::new(&mut into[len..]);
    let polled = Pin::new(stream).poll_read(cx, &mut buf);
    let n = buf.filled().len();
    into.truncate(len + n);
    polled.map_ok(|()| n)
}

/// The life of a link.
async fn run(link: Rc<Link>, handshake: Vec<Step>) {
    let worker = Rc::clone(&link.worker);
    let mut stream = match worker.dial(link.replica).await {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(replica = %worker.name(link.replica), %error, "connect failed");
            let (evidence, result) = match error.kind() {
                DialErrorKind::Refused => (LinkEvidence::Refused, ConnectResult::Refused),
                DialErrorKind::Timeout => (LinkEvidence::ConnectTimeout, ConnectResult::Timeout),
                DialErrorKind::Tls => (LinkEvidence::Rejected, ConnectResult::Tls),
                _ => (LinkEvidence::Broken, ConnectResult::Other),
            };
            worker.metrics.upstream_connects[link.replica][result].inc();
            link.condemn(&End::Failed(evidence));
            return;
        }
    };
    if link.phase() == Phase::Dead {
        return;
    }
    link.phase.set(Phase::Greeting);
    greet(&link, handshake);
    let (mut rest, mut scanner) = (BytesMut::new(), ReplyScanner::new());
    let end = poll_fn(|cx| {
        if link.phase() == Phase::Dead {
            return Poll::Ready(None);
        }
        let keep = link
            .waker
            .borrow()
            .as_ref()
            .is_some_and(|w| w.will_wake(cx.waker()));
        if !keep {
            *link.waker.borrow_mut() = Some(cx.waker().clone());
        }
        if let Poll::Ready(Err(_)) = link.poll_flush(&mut stream, cx) {
            return Poll::Ready(Some(LinkEvidence::Broken));
        }
        // A few reads at most, so that one busy link does not keep the others waiting.
        for _ in 0..4 {
            match link.poll_read(&mut stream, &mut rest, &mut scanner, cx) {
                Poll::Ready(Ok(())) if link.phase() == Phase::Dead => return Poll::Ready(None),
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(evidence)) => return Poll::Ready(Some(evidence)),
                Poll::Pending => {
                    // Replies may have let sessions append more.
                    return match link.poll_flush(&mut stream, cx) {
                        Poll::Ready(Err(_)) => Poll::Ready(Some(LinkEvidence::Broken)),
                        _ => Poll::Pending,
                    };
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
    if let Some(evidence) = end {
        link.condemn(&End::Failed(evidence));
    }
}

fn greet(link: &Rc<Link>, handshake: Vec<Step>) {
    if handshake.is_empty() {
        link.ready();
        return;
    }
    let mut inner = link.inner.borrow_mut();
    for step in handshake {
        inner.outbox.append(&step.frame);
        let command = Command::own(step.replies, step.must_succeed);
        link.enlist(
            &mut inner,
            Entry {
                session: None,
                command,
                len: step.frame.len(),
            },
        );
    }
}
