//! Where a request ends: multibulk and inline, with the limits and the error texts of Redis 7's `networking.c`.

use thiserror::Error;

use super::number::{Header, header};

/// Longest inline request and longest header line, in bytes (`PROTO_INLINE_MAX_SIZE`).
const INLINE_MAX: usize = 64 * 1024;
/// Longest bulk string, in bytes (`proto-max-bulk-len`'s default).
const BULK_MAX: i64 = 512 * 1024 * 1024;
/// Most arguments. Redis allows `INT_MAX`; a million is its own limit of old and beyond any real command.
const ARGS_MAX: i64 = 1024 * 1024;

/// What is wrong with a request. The text is what follows `-ERR ` in the reply; the connection is closed after it.
#[derive(Clone, Copy, PartialEq, Eq, Error, Debug)]
#[expect(missing_docs, reason = "the texts say it")]
pub enum ProtocolError {
    #[error("Protocol error: too big inline request")]
    InlineTooBig,
    #[error("Protocol error: unbalanced quotes in request")]
    UnbalancedQuotes,
    #[error("Protocol error: too big mbulk count string")]
    CountTooBig,
    #[error("Protocol error: invalid multibulk length")]
    InvalidCount,
    #[error("Protocol error: too big bulk count string")]
    LengthTooBig,
    #[error("Protocol error: invalid bulk length")]
    InvalidLength,
    #[error("Protocol error: expected '$', got '{}'", printable(*.0))]
    ExpectedBulk(u8),
}

fn printable(byte: u8) -> char {
    if byte.is_ascii_graphic() || byte == b' ' {
        char::from(byte)
    } else {
        '?'
    }
}

/// What a scan found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scan {
    /// One whole request stands at the buffer's start.
    Complete(Request),
    /// The request goes on.
    Incomplete {
        /// At least so many bytes are still to come; never 0.
        need: usize,
    },
}

/// A whole request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Its length in bytes.
    pub len: usize,
    /// Arguments, the command's name among them. 0: nothing that Redis would answer (`*0`, `*-1`, a blank line).
    /// Not counted for inline requests (1 unless blank).
    pub args: u32,
    /// An inline request: `inline_args` splits it.
    pub inline: bool,
    /// Where the name stands: from, to. Multibulk only.
    pub name: (u32, u32),
    /// Where the first argument after the name stands; empty without one. Multibulk only.
    pub first: (u32, u32),
}

impl Request {
    const EMPTY: Request = Request {
        len: 0,
        args: 0,
        inline: false,
        name: (0, 0),
        first: (0, 0),
    };
}

/// Finds the end of one request after the other. Reads each byte once, whatever the pieces it comes in (the unfinished
/// header line at the end excepted: a number and its CRLF).
#[derive(Clone, Debug)]
pub struct RequestScanner {
    /// Where the next header starts; may lie beyond the bytes that have come.
    at: usize,
    /// The count of arguments is known.
    counted: bool,
    /// Bulk strings whose header is still to come.
    left: u32,
    /// A long line is known to have no end before here.
    searched: usize,
    found: Request,
}

impl Default for RequestScanner {
    fn default() -> RequestScanner {
        RequestScanner::new()
    }
}

impl RequestScanner {
    /// At the start of a request.
    pub const fn new() -> RequestScanner {
        RequestScanner {
            at: 0,
            counted: false,
            left: 0,
            searched: 0,
            found: Request::EMPTY,
        }
    }

    /// Looks for the end of the request that starts at `buf[0]`. `buf` holds all that came of it so far, the bytes of
    /// earlier calls included. After [`Scan::Complete`] the scanner is at the start of the next request.
    #[inline]
    pub fn scan(&mut self, buf: &[u8]) -> Result<Scan, ProtocolError> {
        if !self.counted {
            match buf.first() {
                None => return Ok(Scan::Incomplete { need: 1 }),
                Some(b'*') => {}
                Some(_) => return self.inline(buf),
            }
            match header(buf, 1) {
                Header::Number(n, _) if n > ARGS_MAX => return Err(ProtocolError::InvalidCount),
                Header::Number(n, next) if n <= 0 => {
                    return Ok(Scan::Complete(Request {
                        len: next,
                        ..Request::EMPTY
                    }));
                }
                Header::Number(n, next) => {
                    self.counted = true;
                    self.left = n as u32;
                    self.found.args = n as u32;
                    self.at = next;
                }
                Header::Invalid => return Err(ProtocolError::InvalidCount),
                Header::Incomplete if buf.len() > INLINE_MAX => return Err(ProtocolError::CountTooBig),
                Header::Incomplete => return Ok(Scan::Incomplete { need: 1 }),
            }
        }
        while self.left > 0 {
            let Some(&kind) = buf.get(self.at) else {
                return Ok(self.incomplete(buf));
            };
            let (len, start) = match header(buf, self.at + 1) {
                Header::Number(n, next) if kind == b'$' && (0..=BULK_MAX).contains(&n) => (n as usize, next),
                Header::Number(..) | Header::Invalid if kind == b'$' => {
                    return Err(ProtocolError::InvalidLength);
                }
                Header::Number(..) | Header::Invalid => return Err(ProtocolError::ExpectedBulk(kind)),
                Header::Incomplete if buf.len() - self.at > INLINE_MAX => {
                    return Err(ProtocolError::LengthTooBig);
                }
                Header::Incomplete => return Ok(Scan::Incomplete { need: 1 }),
            };
            if self.left == self.found.args {
                self.found.name = (start as u32, (start + len) as u32);
            } else if self.left + 1 == self.found.args {
                self.found.first = (start as u32, (start + len) as u32);
            }
            self.at = start + len + 2;
            self.left -= 1;
            // A frame of more than 4 GiB could not be addressed; long before that Redis closes such a client.
            if self.at > u32::MAX as usize {
                return Err(ProtocolError::InvalidLength);
            }
        }
        if buf.len() < self.at {
            return Ok(self.incomplete(buf));
        }
        Ok(self.complete(self.at))
    }

    fn incomplete(&self, buf: &[u8]) -> Scan {
        // Each bulk string still to come has at least `$0\r\n\r\n`.
        Scan::Incomplete {
            need: (self.at - buf.len().min(self.at)) + self.left as usize * 6,
        }
    }

    #[inline]
    fn complete(&mut self, len: usize) -> Scan {
        let found = Request { len, ..self.found };
        *self = RequestScanner::new();
        Scan::Complete(found)
    }

    fn inline(&mut self, buf: &[u8]) -> Result<Scan, ProtocolError> {
        let from = self.searched.min(buf.len());
        let Some(end) = memchr::memchr(b'\n', &buf[from..]) else {
            if buf.len() > INLINE_MAX {
                return Err(ProtocolError::InlineTooBig);
            }
            self.searched = buf.len();
            return Ok(Scan::Incomplete { need: 1 });
        };
        let len = from + end + 1;
        let blank = buf[..len].iter().all(u8::is_ascii_whitespace);
        self.found.inline = true;
        self.found.args = u32::from(!blank);
        Ok(self.complete(len))
    }
}
