//! A source's replication stream: the replica's side of PSYNC, and the commands that come out of it, with their offsets.
//!
//! It never applies anything and never acknowledges by itself. What is counted is the *bytes of the stream*: a unit's
//! `end` is the offset to resume after (`PSYNC <id> <end + 1>`).
//!
//! ```text
//! dial → AUTH PING REPLCONF → PSYNC ─┬─ +CONTINUE ─────────────────┬→ units …
//!                                    └─ +FULLRESYNC → skip the RDB ┘
//! ```

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::SyncError;
use super::position::Position;
use super::tape::Message;
use super::wide;
use crate::endpoint::Endpoint;
use crate::resp::take_command;

/// The source must answer the handshake within this; an RDB must at least begin within it.
const HANDSHAKE_PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);

/// What the source said to PSYNC.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Psync {
    /// The stream goes on where it was asked to; the source may have a new id since.
    Continue { id: Option<String> },
    /// The stream starts anew after this offset; what was before is not in it.
    Full { id: String, offset: u64 },
}

/// One effect to apply: a command in its database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Effect {
    pub(super) db: u32,
    pub(super) args: Vec<Bytes>,
}

impl Effect {
    /// Whether it is this command, given in lower case.
    pub(super) fn is_named(&self, command: &[u8]) -> bool {
        self.args
            .first()
            .is_some_and(|name| name.eq_ignore_ascii_case(command))
    }

    pub(super) fn is_message(&self) -> bool {
        self.is_named(b"publish") || self.is_named(b"spublish")
    }
}

/// What is applied all or nothing: one command, or one transaction. Without effects it only moves the offset.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) effects: Vec<Effect>,
    /// Offset of its last byte.
    pub(super) end: u64,
    /// The database the stream is in afterwards.
    pub(super) db: u32,
    /// The source wants to hear how far we are (`REPLCONF GETACK`, sent for WAIT).
    pub(super) wants_ack: bool,
    /// Effects that cannot be applied through a script.
    pub(super) refused: u64,
    /// It is this message of a tape, and no part of the stream.
    pub(super) message: Option<u64>,
}

impl Unit {
    /// A message that is due where the stream has reached; without effect when somebody else `hears` it.
    pub(super) fn message(message: Message, hears: bool, reached: &Position) -> Self {
        Self {
            message: Some(message.number),
            effects: if hears { vec![message.effect] } else { Vec::new() },
            end: reached.offset,
            db: reached.db,
            ..Self::default()
        }
    }
}

/// Turns bytes into units. Pure: it has no socket.
#[derive(Debug, Default)]
pub(super) struct Parser {
    buffer: BytesMut,
    /// Offset of the last byte consumed.
    offset: u64,
    db: u32,
    /// A transaction whose EXEC has not come yet.
    open: Option<Unit>,
}

impl Parser {
    pub(super) fn start_at(&mut self, offset: u64, db: u32) {
        self.offset = offset;
        self.db = db;
        self.open = None;
    }

    /// The next complete unit, if one has arrived.
    pub(super) fn next_unit(&mut self) -> Result<Option<Unit>, SyncError> {
        loop {
            // Newlines between commands are the source's sign of life; they are not counted.
            while self.buffer.first() == Some(&b'\n') {
                self.buffer.advance(1);
            }
            let before = self.buffer.len();
            let Some(args) = take_command(&mut self.buffer)? else {
                return Ok(None);
            };
            self.offset += (before - self.buffer.len()) as u64;
            if let Some(unit) = self.digest(args)? {
                return Ok(Some(unit));
            }
        }
    }

    fn digest(&mut self, args: Vec<Bytes>) -> Result<Option<Unit>, SyncError> {
        let name = args
            .first()
            .map(|name| name.to_ascii_uppercase())
            .unwrap_or_default();
        let mut still_open = self.open.is_some();
        let mut unit = self.open.take().unwrap_or_default();
        match name.as_slice() {
            b"SELECT" => {
                self.db = args
                    .get(1)
                    .and_then(|db| std::str::from_utf8(db).ok()?.parse().ok())
                    .ok_or_else(|| SyncError::Protocol("a SELECT without a database".to_owned()))?;
            }
            b"MULTI" => still_open = true,
            b"EXEC" => still_open = false,
            b"REPLCONF" => {
                unit.wants_ack |= args
                    .get(1)
                    .is_some_and(|what| what.eq_ignore_ascii_case(b"getack"));
            }
            // Active-Active databases replicate neither scripts nor functions.
            b"PING" | b"SCRIPT" | b"FUNCTION" => {}
            _ => match wide::narrow(args) {
                Some(parts) => unit
                    .effects
                    .extend(parts.into_iter().map(|args| Effect { db: self.db, args })),
                None => unit.refused += 1,
            },
        }
        unit.end = self.offset;
        unit.db = self.db;
        if still_open {
            self.open = Some(unit);
            return Ok(None);
        }
        Ok(Some(unit))
    }
}

/// The connection to a source.
#[derive(Debug)]
pub(super) struct SourceStream {
    socket: TcpStream,
    parser: Parser,
}

impl SourceStream {
    /// Connects and introduces itself as a replica.
    pub(super) async fn open(source: &Endpoint) -> Result<Self, SyncError> {
        let socket = timeout(HANDSHAKE_PATIENCE, source.dial())
            .await
            .map_err(|_| SyncError::silent("the source did not accept"))?
            .map_err(SyncError::Source)?;
        socket.set_nodelay(true).map_err(SyncError::Source)?;
        let port = socket.local_addr().map_err(SyncError::Source)?.port().to_string();
        let mut stream = Self {
            socket,
            parser: Parser::default(),
        };
        if let Some(words) = source.auth() {
            let words: Vec<&str> = ["AUTH"].into_iter().chain(words).collect();
            stream.ask(&words).await?;
        }
        stream.ask(&["PING"]).await?;
        stream.ask(&["REPLCONF", "listening-port", &port]).await?;
        // Without `capa eof` the source always sends a file with its length first, whatever its configuration.
        stream.ask(&["REPLCONF", "capa", "psync2"]).await?;
        Ok(stream)
    }

    /// Asks for the stream after `from` (id, offset, database), or for all of it.
    pub(super) async fn psync(&mut self, from: Option<(&str, u64, u32)>) -> Result<Psync, SyncError> {
        let next = from.map_or("-1".to_owned(), |(_, offset, _)| (offset + 1).to_string());
        self.send(&["PSYNC", from.map_or("?", |(id, ..)| id), &next])
            .await?;
        let line = self.line().await?;
        let words: Vec<&str> = line.split(' ').collect();
        match (words.as_slice(), from) {
            (["+CONTINUE", rest @ ..], Some((_, offset, db))) => {
                self.parser.start_at(offset, db);
                Ok(Psync::Continue {
                    id: rest.first().map(|&id| id.to_owned()),
                })
            }
            (["+FULLRESYNC", id, offset], _) => {
                let offset = offset.parse().map_err(|_| SyncError::Protocol(line.clone()))?;
                let id = (*id).to_owned();
                self.skip_rdb().await?;
                self.parser.start_at(offset, 0);
                Ok(Psync::Full { id, offset })
            }
            _ => Err(SyncError::Refused(line)),
        }
    }

    async fn skip_rdb(&mut self) -> Result<(), SyncError> {
        let line = self.line().await?;
        let mut left: usize = line
            .strip_prefix('$')
            .and_then(|length| length.parse().ok())
            .ok_or_else(|| SyncError::Protocol(format!("expected an RDB's length, found {line:?}")))?;
        loop {
            let have = self.parser.buffer.len().min(left);
            self.parser.buffer.advance(have);
            left -= have;
            if left == 0 {
                return Ok(());
            }
            self.fill_within(HANDSHAKE_PATIENCE).await?;
        }
    }

    /// Waits for more bytes. Cancel-safe.
    pub(super) async fn fill(&mut self) -> Result<(), SyncError> {
        self.parser.buffer.reserve(64 << 10);
        match self.socket.read_buf(&mut self.parser.buffer).await {
            Ok(0) => Err(SyncError::Source(std::io::ErrorKind::UnexpectedEof.into())),
            Ok(_) => Ok(()),
            Err(error) => Err(SyncError::Source(error)),
        }
    }

    pub(super) fn next_unit(&mut self) -> Result<Option<Unit>, SyncError> {
        self.parser.next_unit()
    }

    /// Reads on until `offset`, which the source has reached, and drops what comes; says which database it is in there.
    pub(super) async fn skip_to(&mut self, offset: u64) -> Result<u32, SyncError> {
        while self.parser.offset < offset {
            if self.next_unit()?.is_none() {
                self.fill_within(HANDSHAKE_PATIENCE).await?;
            }
        }
        Ok(self.parser.db)
    }

    /// Tells the source how far the destination has come.
    pub(super) async fn ack(&mut self, offset: u64) -> Result<(), SyncError> {
        self.send(&["REPLCONF", "ACK", &offset.to_string()]).await
    }

    async fn fill_within(&mut self, patience: std::time::Duration) -> Result<(), SyncError> {
        timeout(patience, self.fill())
            .await
            .map_err(|_| SyncError::silent("the source did not answer"))?
    }

    async fn ask(&mut self, words: &[&str]) -> Result<(), SyncError> {
        self.send(words).await?;
        let line = self.line().await?;
        if line.starts_with('-') {
            Err(SyncError::Refused(line))
        } else {
            Ok(())
        }
    }

    async fn send(&mut self, words: &[&str]) -> Result<(), SyncError> {
        let mut out = format!("*{}\r\n", words.len());
        for word in words {
            out.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        timeout(HANDSHAKE_PATIENCE, self.socket.write_all(out.as_bytes()))
            .await
            .map_err(|_| SyncError::silent("the source does not read"))?
            .map_err(SyncError::Source)
    }

    /// One line of the handshake, without its end; empty ones are signs of life.
    async fn line(&mut self) -> Result<String, SyncError> {
        loop {
            let found = self.parser.buffer.iter().position(|&byte| byte == b'\n');
            if let Some(end) = found {
                let line = self.parser.buffer.split_to(end + 1);
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if !line.is_empty() {
                    return Ok(line);
                }
                continue;
            }
            if self.parser.buffer.len() > 64 << 10 {
                return Err(SyncError::Protocol("an endless line in the handshake".to_owned()));
            }
            self.fill_within(HANDSHAKE_PATIENCE).await?;
        }
    }
}

#[cfg(test)]
mod tests;
