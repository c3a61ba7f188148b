//! The application's side of a session: one socket, read by the session's task, written by whoever has a reply.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::{TcpStream, UnixStream, tcp, unix};

/// The reading half.
#[derive(Debug)]
pub(crate) enum Reader {
    /// TCP
    Tcp(tcp::OwnedReadHalf),
    /// Unix domain socket
    Unix(unix::OwnedReadHalf),
}

/// The writing half; writes need no `&mut`, so that a link's task may write without waking the session's.
#[derive(Debug)]
pub(crate) enum Writer {
    /// TCP
    Tcp(tcp::OwnedWriteHalf),
    /// Unix domain socket
    Unix(unix::OwnedWriteHalf),
}

/// Splits an accepted TCP connection.
pub(crate) fn tcp(stream: TcpStream) -> (Reader, Writer) {
    let (reader, writer) = stream.into_split();
    (Reader::Tcp(reader), Writer::Tcp(writer))
}

/// Splits an accepted unix connection.
pub(crate) fn unix(stream: UnixStream) -> (Reader, Writer) {
    let (reader, writer) = stream.into_split();
    (Reader::Unix(reader), Writer::Unix(writer))
}

impl Reader {
    /// Reads into `scratch`; 0 at the end.
    pub(crate) fn poll_scratch(
        &mut self,
        scratch: &mut [u8],
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut buf = ReadBuf::new(scratch);
        let polled = match self {
            Reader::Tcp(half) => Pin::new(half).poll_read(cx, &mut buf),
            Reader::Unix(half) => Pin::new(half).poll_read(cx, &mut buf),
        };
        polled.map_ok(|()| buf.filled().len())
    }

    /// Reads behind what `into` holds; 0 at the end.
    pub(crate) fn poll_more(&mut self, into: &mut BytesMut, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        match self {
            Reader::Tcp(half) => super::link::read_more(half, into, cx),
            Reader::Unix(half) => super::link::read_more(half, into, cx),
        }
    }
}

impl Writer {
    /// The TCP address that the application connected to.
    pub(crate) fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Writer::Tcp(half) => half.local_addr().ok(),
            Writer::Unix(_) => None,
        }
    }

    /// Writes what the socket takes now.
    pub(crate) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Writer::Tcp(half) => half.try_write(bytes),
            Writer::Unix(half) => half.try_write(bytes),
        }
    }

    /// Waits until the socket takes bytes again.
    pub(crate) fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Writer::Tcp(half) => half.as_ref().poll_write_ready(cx),
            Writer::Unix(half) => half.as_ref().poll_write_ready(cx),
        }
    }
}
