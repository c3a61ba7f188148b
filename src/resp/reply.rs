//! Where a reply ends: every type of RESP2 and RESP3.
//!
//! Nesting needs no stack: an aggregate of n elements makes n more frames to come, and the reply ends when none is left.
//! So no depth can overflow anything.

use thiserror::Error;

use super::number::{Header, header};

/// Bytes from a replica that are no RESP, or a streamed type, which Redis never sends. The link is useless after it.
#[derive(Clone, Copy, PartialEq, Eq, Error, Debug)]
#[error("the replica sent a byte {0:#04x} where a RESP type or length was expected")]
pub struct ReplyError(pub u8);

/// What a scan found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ReplyScan {
    /// One whole reply or push stands at the buffer's start.
    Complete(Reply),
    /// It goes on.
    Incomplete {
        /// At least so many bytes are still to come; never 0.
        need: usize,
    },
}

/// A whole reply or push.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reply {
    /// Its length in bytes.
    pub len: usize,
    /// Its type byte (`+ - : $ * _ # , ( ! = % ~ >`); behind attributes (`|`), that of what they belong to.
    pub kind: u8,
}

/// Finds the end of one reply after the other, each byte read once (a header line at the end excepted).
#[derive(Clone, Debug)]
pub struct ReplyScanner {
    /// Where the next header starts; may lie beyond the bytes that have come.
    at: usize,
    /// Frames still to come.
    left: u64,
    /// The line at `at` has no end before here.
    searched: usize,
    /// 0 until the first frame that is no attribute.
    kind: u8,
}

impl Default for ReplyScanner {
    fn default() -> ReplyScanner {
        ReplyScanner::new()
    }
}

impl ReplyScanner {
    /// At the start of a reply.
    pub const fn new() -> ReplyScanner {
        ReplyScanner {
            at: 0,
            left: 1,
            searched: 0,
            kind: 0,
        }
    }

    /// Looks for the end of the reply that starts at `buf[0]`; see `RequestScanner::scan`.
    #[inline]
    pub fn scan(&mut self, buf: &[u8]) -> Result<ReplyScan, ReplyError> {
        while self.left > 0 {
            let Some(&kind) = buf.get(self.at) else {
                return Ok(self.incomplete(buf));
            };
            // An attribute's own keys and values come while more than the reply itself is to come.
            let is_reply = self.left == 1 && kind != b'|';
            let next = match kind {
                b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => match self.line(buf) {
                    Some(next) => next,
                    None => return Ok(ReplyScan::Incomplete { need: 1 }),
                },
                b'$' | b'!' | b'=' | b'*' | b'~' | b'%' | b'>' | b'|' => {
                    let (n, next) = match header(buf, self.at + 1) {
                        Header::Number(n, next) if n >= -1 => (n, next),
                        Header::Incomplete if buf.len() - self.at < 64 => {
                            return Ok(ReplyScan::Incomplete { need: 1 });
                        }
                        _ => return Err(ReplyError(buf.get(self.at + 1).copied().unwrap_or(kind))),
                    };
                    let n = n.max(0) as u64;
                    match kind {
                        b'$' | b'!' | b'=' if buf[self.at + 1] == b'-' => next,
                        // A length that does not fit cannot be a reply's.
                        b'$' | b'!' | b'=' if n > u64::from(u32::MAX) => return Err(ReplyError(kind)),
                        b'$' | b'!' | b'=' => next + n as usize + 2,
                        b'*' | b'~' | b'>' => {
                            self.left = self.left.saturating_add(n);
                            next
                        }
                        b'%' => {
                            self.left = self.left.saturating_add(n.saturating_mul(2));
                            next
                        }
                        // Attributes come before what they belong to and are no element themselves.
                        _ => {
                            self.left = self.left.saturating_add(n.saturating_mul(2)).saturating_add(1);
                            next
                        }
                    }
                }
                other => return Err(ReplyError(other)),
            };
            if self.kind == 0 && is_reply {
                self.kind = kind;
            }
            self.left -= 1;
            self.at = next;
            self.searched = 0;
        }
        if buf.len() < self.at {
            return Ok(self.incomplete(buf));
        }
        let reply = Reply {
            len: self.at,
            kind: self.kind,
        };
        *self = ReplyScanner::new();
        Ok(ReplyScan::Complete(reply))
    }

    /// How many of the `len` bytes at the start of an incomplete reply have been read and may be passed on.
    pub fn seen(&self, len: usize) -> usize {
        self.at.min(len)
    }

    /// The first `n` bytes were passed on: the next call's buffer starts behind them. `n` is at most [`Self::seen`].
    pub fn discard(&mut self, n: usize) {
        self.at -= n;
        self.searched = self.searched.saturating_sub(n);
    }

    /// The position after the line that starts at `at`.
    #[inline]
    fn line(&mut self, buf: &[u8]) -> Option<usize> {
        let from = self.searched.max(self.at + 1);
        match memchr::memchr(b'\n', buf.get(from..)?) {
            Some(end) => Some(from + end + 1),
            None => {
                self.searched = buf.len();
                None
            }
        }
    }

    fn incomplete(&self, buf: &[u8]) -> ReplyScan {
        // Each frame still to come has at least a type byte and CRLF.
        let elements = usize::try_from(self.left).unwrap_or(usize::MAX).saturating_mul(3);
        ReplyScan::Incomplete {
            need: (self.at - buf.len().min(self.at)).saturating_add(elements).max(1),
        }
    }
}
