//! One session on one side, and what is compared of its answers.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use pulsegate::resp::{ReplyScan, ReplyScanner, reply_elements, reply_text};

use super::script::Random;

/// Where sessions of one side connect.
#[derive(Clone, Debug)]
pub(crate) enum Side {
    /// A server itself.
    Direct(PathBuf),
    /// Through Pulsegate.
    Through(SocketAddr),
}

#[derive(Debug)]
enum Socket {
    Unix(UnixStream),
    Tcp(TcpStream),
}

impl Socket {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        match self {
            Socket::Unix(s) => s.write_all(bytes),
            Socket::Tcp(s) => s.write_all(bytes),
        }
    }

    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Socket::Unix(s) => s.read(buf),
            Socket::Tcp(s) => s.read(buf),
        }
    }

    fn try_clone(&self) -> Socket {
        match self {
            Socket::Unix(s) => Socket::Unix(s.try_clone().unwrap()),
            Socket::Tcp(s) => Socket::Tcp(s.try_clone().unwrap()),
        }
    }
}

/// One session's connection.
#[derive(Debug)]
pub(crate) struct Lane {
    socket: Socket,
    unread: Vec<u8>,
    /// The other side has closed.
    pub(crate) closed: bool,
}

impl Lane {
    /// `patience`: how long one answer may take.
    pub(crate) fn connect(side: &Side, patience: Duration) -> Lane {
        let socket = match side {
            Side::Direct(path) => {
                let s = UnixStream::connect(path).expect("the server listens");
                s.set_read_timeout(Some(patience)).unwrap();
                Socket::Unix(s)
            }
            Side::Through(addr) => {
                let s = TcpStream::connect(addr).expect("pulsegate listens");
                s.set_read_timeout(Some(patience)).unwrap();
                // Each piece is a packet of its own.
                s.set_nodelay(true).unwrap();
                Socket::Tcp(s)
            }
        };
        Lane {
            socket,
            unread: Vec::new(),
            closed: false,
        }
    }

    /// Writes `bytes` in pieces and gives all frames up to the one that holds `last`; without it, up to the close.
    pub(crate) fn exchange(
        &mut self,
        bytes: &[u8],
        last: Option<&[u8]>,
        random: &mut Random,
    ) -> Result<Vec<Vec<u8>>, String> {
        let pieces = cut(bytes, random);
        let mut writer = self.socket.try_clone();
        std::thread::scope(|scope| {
            // Read meanwhile: what the buffers do not hold must not stop the writing.
            scope.spawn(move || {
                for (piece, pause) in pieces {
                    // Who has closed says so to the reader.
                    if writer.write(piece).is_err() {
                        return;
                    }
                    if pause {
                        #[expect(
                            clippy::disallowed_methods,
                            reason = "a gap in the stream, not a wait for something"
                        )]
                        std::thread::sleep(Duration::from_micros(300));
                    }
                }
            });
            let mut frames = Vec::new();
            while !self.closed {
                while let Some(frame) = self.take_frame()? {
                    let done = last.is_some_and(|last| holds(&frame, last));
                    frames.push(frame);
                    if done {
                        return Ok(frames);
                    }
                }
                self.read(&frames)?;
            }
            Ok(frames)
        })
    }

    fn take_frame(&mut self) -> Result<Option<Vec<u8>>, String> {
        match ReplyScanner::new().scan(&self.unread) {
            Ok(ReplyScan::Complete(reply)) => Ok(Some(self.unread.drain(..reply.len).collect())),
            Ok(ReplyScan::Incomplete { .. }) => Ok(None),
            Err(error) => Err(format!("{error} in {}", self.unread.escape_ascii())),
        }
    }

    fn read(&mut self, so_far: &[Vec<u8>]) -> Result<(), String> {
        let mut buf = [0; 64 * 1024];
        match self.socket.read(&mut buf) {
            Ok(0) => self.closed = true,
            Ok(n) => self.unread.extend_from_slice(&buf[..n]),
            Err(e) if e.kind() == ErrorKind::ConnectionReset => self.closed = true,
            Err(e) => {
                let tail: Vec<String> = so_far.iter().rev().take(5).rev().map(|f| show(f)).collect();
                return Err(format!(
                    "no answer ({e}) after {} frames, the last ones {tail:#?}, then {}",
                    so_far.len(),
                    self.unread.escape_ascii()
                ));
            }
        }
        Ok(())
    }
}

/// A frame, readable and not too long.
pub(crate) fn show(frame: &[u8]) -> String {
    let shown = &frame[..frame.len().min(400)];
    format!(
        "{}{}",
        shown.escape_ascii(),
        if shown.len() < frame.len() { "…" } else { "" }
    )
}

fn holds(frame: &[u8], word: &[u8]) -> bool {
    frame.len() < 200 && frame.windows(word.len()).any(|w| w == word)
}

/// Bytes in pieces, some of which the writer rests after.
fn cut<'a>(mut bytes: &'a [u8], random: &mut Random) -> Vec<(&'a [u8], bool)> {
    let most = match random.below(4) {
        0 => bytes.len().max(1),
        1 => 1 + bytes.len() / 3,
        2 => 100,
        _ => 9,
    };
    // Not too many: each is a system call on both sides.
    let most = most.max(bytes.len() / 200 + 1);
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        let (piece, rest) = bytes.split_at((1 + random.below(most)).min(bytes.len()));
        pieces.push((piece, random.one_in(12)));
        bytes = rest;
    }
    pieces
}

/// What of a session's frames has to agree.
///
/// All of it, byte for byte, but for what cannot: a script announces each such answer by `ECHO ~mask` right before.
///
/// | mask     | command                                       | what agrees                                          |
/// |----------|-----------------------------------------------|------------------------------------------------------|
/// | `~hello` | HELLO                                         | all but `id`                                         |
/// | `~info`  | CLIENT INFO                                   | all but ids, addresses, ages, buffers and events     |
/// | `~any`   | CLIENT ID, CLIENT LIST, TIME, INFO, DBSIZE, … | the answer's type: it depends on the server's others |
///
/// Two servers disagree, with or without a proxy, on the generated ids of `XADD *`, which are a time, and on the order in
/// which an `UNSUBSCRIBE` of everything names the channels.
pub(crate) fn comparable(frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut frames = frames.to_vec();
    for run in frames.chunk_by_mut(|a, b| unsubscribed(a).is_some() && unsubscribed(a) == unsubscribed(b)) {
        sort_channels(run);
    }
    let mut mask: Option<&[u8]> = None;
    frames
        .iter()
        .map(|frame| {
            let shown = match mask.take() {
                Some(b"~hello") => without_id(frame),
                Some(b"~info") => client_info(frame),
                // A push comes before the answer.
                _ if frame.starts_with(b">") => frame.clone(),
                Some(_) => frame[..1].to_vec(),
                None => without_generated_id(frame),
            };
            mask = reply_text(frame).filter(|text| text.starts_with(b"~"));
            shown
        })
        .collect()
}

/// Which kind of subscription a confirmation ends.
fn unsubscribed(frame: &[u8]) -> Option<&[u8]> {
    let kind = reply_elements(frame).next().and_then(reply_text)?;
    kind.ends_with(b"unsubscribe").then_some(kind)
}

/// Sorts the channels of confirmations; the counts in them stay where they are.
fn sort_channels(run: &mut [Vec<u8>]) {
    let channel = |frame: &Vec<u8>| reply_elements(frame).nth(1).unwrap_or_default().to_vec();
    let mut channels: Vec<Vec<u8>> = run.iter().map(channel).collect();
    channels.sort();
    for (frame, channel) in run.iter_mut().zip(channels) {
        let parts: Vec<&[u8]> = reply_elements(frame).collect();
        if let [kind, _, count] = parts[..] {
            *frame = [b"*3\r\n", kind, &channel, count].concat();
        }
    }
}

fn without_id(hello: &[u8]) -> Vec<u8> {
    let label = b"$2\r\nid\r\n:";
    let Some(at) = hello.windows(label.len()).position(|w| w == label) else {
        return hello.to_vec();
    };
    let (before, rest) = hello.split_at(at + label.len());
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    [before, b"N", &rest[digits..]].concat()
}

fn client_info(frame: &[u8]) -> Vec<u8> {
    let Some(text) = reply_text(frame) else {
        return frame.to_vec();
    };
    let agree = [
        "name=",
        "flags=",
        "db=",
        "sub=",
        "psub=",
        "ssub=",
        "watch=",
        "cmd=",
        "user=",
        "redir=",
        "resp=",
        "lib-name=",
        "lib-ver=",
        "capa=",
    ];
    let kept: Vec<&str> = std::str::from_utf8(text)
        .unwrap_or_default()
        .split(' ')
        .filter(|field| agree.iter().any(|a| field.starts_with(a)))
        .collect();
    [&frame[..1], kept.join(" ").as_bytes()].concat()
}

/// Milliseconds since 1970 have thirteen digits until 2286.
fn without_generated_id(frame: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(frame.len());
    let mut rest = frame;
    while let Some(at) = rest.iter().position(|b| *b == b'-') {
        let (before, behind) = rest.split_at(at + 1);
        let digits = &before[..at];
        let generated = at >= 13 && digits[at - 13..].iter().all(u8::is_ascii_digit);
        out.extend_from_slice(if generated { &before[..at - 13] } else { before });
        let sequence = behind.iter().take_while(|b| b.is_ascii_digit()).count();
        if generated {
            out.extend_from_slice(b"(generated)");
        }
        rest = if generated { &behind[sequence..] } else { behind };
    }
    out.extend_from_slice(rest);
    out
}
