//! Listening sockets and the life of an accepted connection.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UnixListener};

use super::client::{self, Reader, Writer};
use super::link::Frame;
use super::session::Session;
use super::worker::Worker;
use crate::metrics::{DisconnectReason, RejectReason};
use crate::resp::{self, RequestScanner, Scan};

/// Reads of one session in a row, so that a busy one does not keep the others waiting.
const READS: usize = 4;

/// A request this long is moved into the link, not copied.
const MOVE_ABOVE: usize = 32 * 1024;

/// Most room made at once for the rest of a request.
const ROOM: usize = 1024 * 1024;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Idle time after which the kernel begins to probe an application's connection, time between probes, and how many
/// may stay unanswered.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;
/// How long replies may stay unacknowledged, which includes an application that does not read: as long as keepalive takes.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED: Duration = Duration::from_secs(120);

/// A listening socket of one worker.
#[derive(Debug)]
pub(crate) enum Listener {
    /// TCP; each worker has its own on the same port.
    Tcp(TcpListener),
    /// Unix; the first worker's.
    Unix(UnixListener),
}

/// Binds a TCP socket that other workers may bind, too.
pub(crate) fn bind_tcp(addr: SocketAddr, shared: bool) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if shared {
        socket.set_reuse_port(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Accepts for ever. Running out of file descriptors or memory is waited out, not died of.
pub(crate) async fn accept(worker: Rc<Worker>, listener: Listener) {
    let mut pause = Duration::from_millis(10);
    loop {
        let accepted = match &listener {
            Listener::Tcp(l) => l.accept().await.map(|(stream, _)| {
                let _ = stream.set_nodelay(true);
                let keepalive = TcpKeepalive::new()
                    .with_time(KEEPALIVE_IDLE)
                    .with_interval(KEEPALIVE_INTERVAL)
                    .with_retries(KEEPALIVE_PROBES);
                let options = SockRef::from(&stream);
                let _ = options.set_tcp_keepalive(&keepalive);
                #[cfg(target_os = "linux")]
                let _ = options.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
                client::tcp(stream)
            }),
            Listener::Unix(l) => l.accept().await.map(|(stream, _)| client::unix(stream)),
        };
        match accepted {
            Ok((reader, writer)) => {
                pause = Duration::from_millis(10);
                admit(&worker, reader, writer);
            }
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
                ) => {}
            Err(error) => {
                worker.metrics.connections_rejected[RejectReason::Resources].inc();
                tracing::warn!(%error, pause = ?pause, "cannot accept connections just now");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(Duration::from_secs(1));
            }
        }
    }
}

fn admit(worker: &Rc<Worker>, reader: Reader, writer: Writer) {
    let limit = worker
        .settings
        .listener
        .max_clients
        .div_ceil(worker.settings.workers.max(1));
    if worker.stopping.get() || worker.sessions.borrow().len() >= limit {
        worker.metrics.connections_rejected[RejectReason::MaxClients].inc();
        let _ = writer.try_write(b"-ERR max number of clients reached\r\n");
        tokio::task::spawn_local(async move {
            if let Writer::Tcp(mut half) = writer {
                let _ = half.shutdown().await;
            }
            drop(reader);
        });
        return;
    }
    let id = worker.next_session();
    let session = Session::new(id, Rc::clone(worker), writer);
    worker.sessions.borrow_mut().insert(id, Rc::clone(&session));
    worker.metrics.connections_accepted.inc();
    tokio::task::spawn_local(serve(Rc::clone(worker), session, reader));
}

/// The life of a session.
async fn serve(worker: Rc<Worker>, session: Rc<Session>, mut reader: Reader) {
    let mut input = Input {
        rest: BytesMut::new(),
        scanner: RequestScanner::new(),
        need: 0,
        ended: false,
    };
    let why = poll_fn(|cx| {
        let ended = input.poll(&worker, &session, &mut reader, cx);
        // What this turn has answered itself goes out before the task waits.
        worker.flush_dirty();
        if ended.is_pending() {
            session.ended().map_or(Poll::Pending, Poll::Ready)
        } else {
            ended
        }
    })
    .await;
    worker.metrics.clients_disconnected[why].inc();
    worker.sessions.borrow_mut().remove(&session.id);
    session.close();
}

/// What has been read of an application and is not yet a command.
struct Input {
    rest: BytesMut,
    scanner: RequestScanner,
    /// Bytes that the unfinished request in `rest` still lacks, as far as room is made for them.
    need: usize,
    ended: bool,
}

impl Input {
    fn poll(
        &mut self,
        worker: &Rc<Worker>,
        session: &Rc<Session>,
        reader: &mut Reader,
        cx: &mut Context<'_>,
    ) -> Poll<DisconnectReason> {
        session.set_waker(cx.waker());
        let written = session.poll_flush(cx);
        if let Some(why) = session.ended() {
            return Poll::Ready(why);
        }
        if !written && self.ended {
            return Poll::Pending;
        }
        for _ in 0..READS {
            if self.ended || !session.may_read() {
                return Poll::Pending;
            }
            // What was left for want of room comes before anything new.
            if !self.rest.is_empty() && self.take_rest(session) {
                continue;
            }
            let read = if self.rest.is_empty() {
                let mut scratch = worker.request_scratch.borrow_mut();
                let read = reader.poll_scratch(&mut scratch, cx);
                if let Poll::Ready(Ok(n)) = read {
                    worker.tick();
                    let used = self.take(session, &scratch[..n]);
                    self.rest.extend_from_slice(&scratch[used..n]);
                }
                read
            } else {
                let read = reader.poll_more(&mut self.rest, cx);
                if let Poll::Ready(Ok(_)) = read {
                    worker.tick();
                    self.take_rest(session);
                }
                read
            };
            match read {
                Poll::Ready(Ok(0)) => {
                    self.ended = true;
                    session.end_of_input();
                    return session.ended().map_or(Poll::Pending, Poll::Ready);
                }
                Poll::Ready(Ok(n)) => worker.metrics.bytes_in.add(n as u64),
                Poll::Ready(Err(_)) => return Poll::Ready(DisconnectReason::Client),
                Poll::Pending => return Poll::Pending,
            }
            if let Some(why) = session.ended() {
                return Poll::Ready(why);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes the requests in `bytes` as far as there is room for them; the bytes used up.
    fn take(&mut self, session: &Rc<Session>, bytes: &[u8]) -> usize {
        let mut used = 0;
        while used < bytes.len() {
            match self.scanner.scan(&bytes[used..]) {
                Ok(Scan::Complete(request)) => {
                    let frame = &bytes[used..used + request.len];
                    used += request.len;
                    if !take(session, frame, &request) {
                        break;
                    }
                }
                Ok(Scan::Incomplete { need }) => {
                    // A bulk string's announced length is room to be asked for when its bytes come, not before.
                    self.need = need.min(ROOM);
                    break;
                }
                Err(error) => {
                    session.protocol_error(&error);
                    return bytes.len();
                }
            }
        }
        used
    }

    /// Takes the requests in `rest`; whether there was one.
    fn take_rest(&mut self, session: &Rc<Session>) -> bool {
        let mut rest = std::mem::take(&mut self.rest);
        // A long request is moved and not copied; it is the only one here, as more was not read behind it.
        let used = match self.scanner.scan(&rest) {
            Ok(Scan::Complete(request)) if request.len >= MOVE_ABOVE && !request.inline => {
                session.accept(Frame::Owned(rest.split_to(request.len)), &request);
                request.len
            }
            Ok(Scan::Complete(request)) => {
                let more = take(session, &rest[..request.len], &request);
                let used = if more {
                    request.len + self.take(session, &rest[request.len..])
                } else {
                    request.len
                };
                rest.advance(used);
                used
            }
            Ok(Scan::Incomplete { need }) => {
                self.need = need.min(ROOM);
                0
            }
            Err(error) => {
                session.protocol_error(&error);
                rest.clear();
                1
            }
        };
        if !rest.is_empty() {
            rest.reserve(std::mem::take(&mut self.need));
            self.rest = rest;
        }
        used > 0
    }
}

/// Takes one request; an inline one as the multibulk that it stands for. Whether there is room for more.
fn take(session: &Rc<Session>, frame: &[u8], request: &resp::Request) -> bool {
    if request.args == 0 {
        return true;
    }
    if !request.inline {
        return session.accept(Frame::Borrowed(frame), request);
    }
    let Some(multibulk) = resp::inline_to_multibulk(frame) else {
        session.protocol_error(&resp::ProtocolError::UnbalancedQuotes);
        return false;
    };
    match RequestScanner::new().scan(&multibulk) {
        Ok(Scan::Complete(request)) if request.args > 0 => {
            session.accept(Frame::Borrowed(&multibulk), &request)
        }
        // A line of nothing but quotes and blanks.
        _ => true,
    }
}
