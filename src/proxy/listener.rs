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
use crate::metrics::{DisconnectReason, RejectReason, SessionKind};
use crate::resp::{self, RequestScanner, Scan};

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 1024;

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
                    .with_time(Duration::from_secs(60))
                    .with_interval(Duration::from_secs(15));
                let _ = SockRef::from(&stream).set_tcp_keepalive(&keepalive);
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
    worker.metrics.sessions[SessionKind::Dedicated].add(1);
    tokio::task::spawn_local(serve(Rc::clone(worker), session, reader));
}

/// The life of a session.
async fn serve(worker: Rc<Worker>, session: Rc<Session>, mut reader: Reader) {
    let mut input = Input {
        rest: BytesMut::new(),
        scanner: RequestScanner::new(),
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
    worker.metrics.sessions[SessionKind::Dedicated].add(-1);
    worker.sessions.borrow_mut().remove(&session.id);
    session.close();
}

/// What has been read of an application and is not yet a command.
struct Input {
    rest: BytesMut,
    scanner: RequestScanner,
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
        for _ in 0..4 {
            if !session.may_read() || self.ended {
                return Poll::Pending;
            }
            if !self.rest.is_empty() && self.take_rest(session) {
                continue;
            }
            let read = if self.rest.is_empty() {
                let mut scratch = worker.request_scratch.borrow_mut();
                match reader.poll_scratch(&mut scratch, cx) {
                    Poll::Ready(Ok(n)) => {
                        worker.metrics.bytes_in.add(n as u64);
                        self.take_scratch(session, &scratch[..n]);
                        Ok(n)
                    }
                    Poll::Ready(Err(error)) => Err(error),
                    Poll::Pending => return Poll::Pending,
                }
            } else {
                match reader.poll_more(&mut self.rest, cx) {
                    Poll::Ready(Ok(n)) => {
                        worker.metrics.bytes_in.add(n as u64);
                        self.take_rest(session);
                        Ok(n)
                    }
                    Poll::Ready(Err(error)) => Err(error),
                    Poll::Pending => return Poll::Pending,
                }
            };
            match read {
                Ok(0) => {
                    self.ended = true;
                    session.end_of_input();
                    return session.ended().map_or(Poll::Pending, Poll::Ready);
                }
                Ok(_) => {}
                Err(_) => return Poll::Ready(DisconnectReason::Client),
            }
            if let Some(why) = session.ended() {
                return Poll::Ready(why);
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Takes the requests in `bytes`; keeps what is unfinished, or has to wait for room.
    fn take_scratch(&mut self, session: &Rc<Session>, bytes: &[u8]) {
        let mut used = 0;
        while used < bytes.len() {
            match self.scanner.scan(&bytes[used..]) {
                Ok(Scan::Complete(request)) => {
                    let frame = &bytes[used..used + request.len];
                    used += request.len;
                    take(session, Frame::Borrowed(frame), &request);
                    if !session.may_read() {
                        break;
                    }
                }
                Ok(Scan::Incomplete { need }) => {
                    // A bulk string's announced length is room to be asked for when its bytes come, not before.
                    self.rest.reserve(bytes.len() - used + need.min(1024 * 1024));
                    break;
                }
                Err(error) => {
                    session.protocol_error(&error);
                    return;
                }
            }
        }
        self.rest.extend_from_slice(&bytes[used..]);
    }

    /// Takes the requests in `rest`; whether there was one.
    fn take_rest(&mut self, session: &Rc<Session>) -> bool {
        let mut any = false;
        while !self.rest.is_empty() && (!any || session.may_read()) {
            match self.scanner.scan(&self.rest) {
                Ok(Scan::Complete(request)) => {
                    any = true;
                    if request.inline || request.args == 0 {
                        let frame = self.rest.split_to(request.len);
                        take(session, Frame::Borrowed(&frame), &request);
                    } else {
                        session.accept_from(&mut self.rest, &request);
                    }
                }
                Ok(Scan::Incomplete { need }) => {
                    self.rest.reserve(need.min(1024 * 1024));
                    break;
                }
                Err(error) => {
                    session.protocol_error(&error);
                    self.rest.advance(self.rest.len());
                    return true;
                }
            }
        }
        if self.rest.is_empty() {
            self.rest = BytesMut::new();
        }
        any
    }
}

/// Takes one request; an inline one as the multibulk that it stands for.
fn take(session: &Rc<Session>, frame: Frame<'_>, request: &resp::Request) {
    if request.args == 0 {
        return;
    }
    if !request.inline {
        return session.accept(frame, request);
    }
    let Frame::Borrowed(line) = frame else { return };
    let Some(multibulk) = resp::inline_to_multibulk(line) else {
        return session.protocol_error(&resp::ProtocolError::UnbalancedQuotes);
    };
    match RequestScanner::new().scan(&multibulk) {
        Ok(Scan::Complete(request)) if request.args > 0 => {
            session.accept(Frame::Borrowed(&multibulk), &request);
        }
        // A line of nothing but quotes and blanks.
        _ => {}
    }
}
