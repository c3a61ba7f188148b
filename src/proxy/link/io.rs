//! A link's task: connect, greet, then write what has gathered and read what has come.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::{End, Link, Phase};
use crate::dial::{DialErrorKind, Stream};
use crate::metrics::ConnectResult;
use crate::proxy::intent::Step;
use crate::resp::ReplyScanner;
use crate::route::LinkEvidence;

/// A reply longer than this is passed on in pieces as it arrives; a shorter one only when it is whole, so that the loss of
/// its link cannot tear it.
const STREAM_ABOVE: usize = 4 * 1024 * 1024;

/// Reads of one link in a row, so that a busy one does not keep the others waiting.
const READS: usize = 4;

/// Room made for the rest of a reply or request whose end is not here yet.
const PIECE: usize = 16 * 1024;

/// Reads behind what `into` holds; 0 at the end.
pub(crate) fn read_more<R: AsyncRead + Unpin>(
    stream: &mut R,
    into: &mut BytesMut,
    cx: &mut Context<'_>,
) -> Poll<io::Result<usize>> {
    if into.capacity() - into.len() < PIECE / 4 {
        into.reserve(PIECE);
    }
    pin!(stream.read_buf(into)).poll(cx)
}

/// What has been read of a reply that is not whole.
struct Input {
    rest: BytesMut,
    scanner: ReplyScanner,
}

/// The life of a link.
pub(super) async fn run(link: Rc<Link>, handshake: Vec<Step>) {
    let worker = Rc::clone(&link.worker);
    let mut stream = match worker.dial(link.place).await {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(replica = %worker.name(link.replica), %error, "connect failed");
            let (evidence, result) = match error.kind() {
                DialErrorKind::Refused => (Some(LinkEvidence::Refused), ConnectResult::Refused),
                DialErrorKind::Timeout => (Some(LinkEvidence::ConnectTimeout), ConnectResult::Timeout),
                DialErrorKind::Tls => (Some(LinkEvidence::Rejected), ConnectResult::Tls),
                DialErrorKind::Local => (None, ConnectResult::Other),
                DialErrorKind::Files | DialErrorKind::Other => {
                    (Some(LinkEvidence::Broken), ConnectResult::Other)
                }
            };
            worker.metrics.upstream_connects[link.replica][result].inc();
            link.condemn(&evidence.map_or(End::NoRoom, End::Failed));
            return;
        }
    };
    if link.phase() == Phase::Dead {
        return;
    }
    link.phase.set(Phase::Greeting);
    link.quiet_since.set(worker.tick());
    link.say(handshake);
    let mut input = Input {
        rest: BytesMut::new(),
        scanner: ReplyScanner::new(),
    };
    let end = poll_fn(|cx| link.poll(&mut stream, &mut input, cx)).await;
    if let Some(evidence) = end {
        if link.phase() == Phase::Greeting {
            worker.metrics.upstream_connects[link.replica][ConnectResult::Rejected].inc();
        }
        let refusal = link.refusal(worker.now());
        link.condemn(&refusal.map_or(End::Failed(evidence), End::Refused));
    }
}

impl Link {
    /// One turn of the task. `Ready(None)`: condemned by others.
    fn poll(
        self: &Rc<Self>,
        stream: &mut Stream,
        input: &mut Input,
        cx: &mut Context<'_>,
    ) -> Poll<Option<LinkEvidence>> {
        if self.phase() == Phase::Dead {
            return Poll::Ready(None);
        }
        self.woken.set(false);
        let known = self
            .waker
            .borrow()
            .as_ref()
            .is_some_and(|w| w.will_wake(cx.waker()));
        if !known {
            *self.waker.borrow_mut() = Some(cx.waker().clone());
        }
        if self.poll_flush(stream, cx).is_err() {
            return Poll::Ready(Some(LinkEvidence::Broken));
        }
        for _ in 0..READS {
            match self.poll_read(stream, input, cx) {
                Poll::Ready(Ok(())) if self.phase() == Phase::Dead => return Poll::Ready(None),
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(evidence)) => return Poll::Ready(Some(evidence)),
                Poll::Pending => return Poll::Pending,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Writes what has gathered, as far as the socket takes it.
    fn poll_flush(self: &Rc<Self>, stream: &mut Stream, cx: &mut Context<'_>) -> io::Result<()> {
        let mut wrote = false;
        let was_full = self.is_full();
        loop {
            let mut inner = self.inner.borrow_mut();
            if !inner.outbox.has_unwritten() {
                break;
            }
            let written = inner.outbox.with_unwritten(|slices| match slices {
                [one] => Pin::new(&mut *stream).poll_write(cx, one),
                many => Pin::new(&mut *stream).poll_write_vectored(cx, many),
            });
            match written {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(n)) => {
                    wrote = true;
                    inner.outbox.advance(n);
                    self.worker.metrics.upstream_bytes_out.add(n as u64);
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
        }
        if was_full && !self.is_full() {
            // Sessions wait for the room.
            self.worker.kick();
        }
        if wrote && let Poll::Ready(Err(error)) = Pin::new(stream).poll_flush(cx) {
            return Err(error);
        }
        if wrote && self.phase() == Phase::Greeting && self.is_idle() {
            // The last that it was to say brings no reply.
            self.ready();
        }
        if wrote
            && !self.has_unwritten()
            && let Some(owner) = &*self.owner.borrow()
        {
            owner.link_written();
        }
        Ok(())
    }

    /// Reads once and hands out the replies. `Pending`: nothing to read, or the owner's application does not read.
    fn poll_read(
        self: &Rc<Self>,
        stream: &mut Stream,
        input: &mut Input,
        cx: &mut Context<'_>,
    ) -> Poll<Result<(), LinkEvidence>> {
        if self.read_paused() {
            return Poll::Pending;
        }
        let Input { rest, scanner } = input;
        let taken = if rest.is_empty() {
            // Into the worker's scratch: most reads hold whole replies, of which nothing is kept.
            let mut scratch = self.worker.reply_scratch.borrow_mut();
            let mut into = ReadBuf::new(&mut scratch);
            match Pin::new(stream).poll_read(cx, &mut into) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(LinkEvidence::Broken)),
                Poll::Pending => return Poll::Pending,
            }
            let bytes = into.filled();
            self.heard(bytes.len())?;
            self.take_replies(scanner, bytes).map(|(used, need)| {
                if used < bytes.len() {
                    rest.reserve(bytes.len() - used + need.min(STREAM_ABOVE));
                    rest.extend_from_slice(&bytes[used..]);
                }
            })
        } else {
            match read_more(stream, rest, cx) {
                Poll::Ready(Ok(n)) => self.heard(n)?,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(LinkEvidence::Broken)),
                Poll::Pending => return Poll::Pending,
            }
            self.take_replies(scanner, rest).map(|(used, need)| {
                rest.advance(used);
                if rest.is_empty() {
                    *rest = BytesMut::new();
                } else {
                    rest.reserve(need.min(STREAM_ABOVE));
                }
            })
        };
        self.worker.flush_dirty();
        self.worker.drained_perhaps();
        taken?;
        if rest.len() > STREAM_ABOVE {
            self.stream_on(rest, scanner);
        }
        Poll::Ready(Ok(()))
    }

    /// `n` bytes have come.
    fn heard(&self, n: usize) -> Result<(), LinkEvidence> {
        if n == 0 {
            return Err(LinkEvidence::Broken);
        }
        self.quiet_since.set(self.worker.tick());
        self.worker.metrics.upstream_bytes_in.add(n as u64);
        self.worker.report(self.replica, LinkEvidence::Alive);
        Ok(())
    }
}
