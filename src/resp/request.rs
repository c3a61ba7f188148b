//! Frame boundaries of requests, as Redis 7.0 finds them (`networking.c`).
//!
//! ```text
//!            '*'                CR + 1 byte            n > 0
//!   Fresh ─────────► Count ───► CountEnd ──────────────────► Bulks ◄─────────────┐
//!     │                            │ n ≤ 0                    │ │ line cut       │ CR + 1 byte
//!     │ other                      ▼                          │ └──► Length ─► LengthEnd
//!     ▼          LF            Complete ◄──── none left ──────┤                  │ payload cut
//!   Inline ───────────────────────▲                           └──► Payload ◄─────┘
//! ```
//!
//! What may look odd is Redis' own way, mirrored because an application must not be able to tell:
//! a line ends at CR and whatever byte follows it; the two bytes behind a payload are skipped unread; a negative
//! count is an empty request; a NUL byte hides the line end behind it, so that such a line waits until it is too long.

use std::ops::Range;

use super::error::ProtocolError;
use super::header::{self, Number};
use super::inline::Split;

/// Longest header line and longest inline request, in bytes (`PROTO_INLINE_MAX_SIZE`).
pub const MAX_LINE: usize = 64 * 1024;
/// Longest argument, in bytes (default of `proto-max-bulk-len`).
pub const MAX_BULK: u64 = 512 * 1024 * 1024;
/// Most arguments (`INT_MAX`).
pub const MAX_ARGS: i64 = i32::MAX as i64;
/// Longest argument before the client has authenticated, in bytes.
pub const MAX_BULK_UNAUTHENTICATED: u64 = 16 * 1024;
/// Most arguments before the client has authenticated.
pub const MAX_ARGS_UNAUTHENTICATED: i64 = 10;

/// What a buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    /// A whole request, at the buffer's beginning.
    Complete(Request),
    /// The beginning of a request, or nothing.
    Incomplete {
        /// At least so many further bytes are missing (≥ 1): the rest of the argument being received. The *client*
        /// chose it, up to 512 MiB + 2: reserve no more than what arrives can justify.
        need: usize,
    },
}

/// A whole request at the beginning of a buffer. Ranges are offsets into that buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Bytes of the whole frame.
    pub len: usize,
    /// Number of arguments, the command's name among them. 0 for what Redis ignores without a reply: `*0`, a
    /// negative count, a blank inline line.
    pub args: u32,
    /// Whether it is an inline request. Its ranges span the words as written, with quotes and escapes: put it into
    /// multibulk form with [`inline_to_multibulk`](super::inline_to_multibulk) before trusting them.
    pub inline: bool,
    /// The first argument: the command's name.
    pub name: (u32, u32),
    /// The second argument, or an empty range.
    pub first: (u32, u32),
}

impl Request {
    /// The command's name, out of the buffer that was scanned.
    #[inline]
    pub fn name<'a>(&self, buf: &'a [u8]) -> &'a [u8] {
        buf.get(self.name.0 as usize..self.name.1 as usize)
            .unwrap_or_default()
    }

    /// The second argument, out of the buffer that was scanned; empty where there is none.
    #[inline]
    pub fn first<'a>(&self, buf: &'a [u8]) -> &'a [u8] {
        buf.get(self.first.0 as usize..self.first.1 as usize)
            .unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Fresh,
    Count,
    CountEnd,
    Bulks,
    Length,
    LengthEnd,
    Payload,
    /// A NUL byte was met before the line's end: Redis' `strchr` sees nothing behind it, so that the line can only
    /// become too long.
    Hidden(ProtocolError),
    Inline,
}

/// Finds the ends of requests in a connection's bytes.
///
/// After an error the connection is to be answered [`ProtocolError::to_reply`] and closed; what further calls
/// return is unspecified (they do not panic).
#[derive(Clone, Copy, Debug)]
pub struct RequestScanner {
    /// The first byte not looked at yet. Beyond the buffer's end while a payload is awaited.
    at: usize,
    /// Where the header line under way begins; for inline requests, where the word does.
    line: usize,
    number: Number,
    /// Arguments that have not begun.
    left: u32,
    args: u32,
    name: (u32, u32),
    first: (u32, u32),
    phase: Phase,
    /// First byte of the header line under way.
    lead: u8,
    split: Split,
    unauthenticated: bool,
}

const _: () = assert!(size_of::<RequestScanner>() <= 64);

impl Default for RequestScanner {
    fn default() -> Self {
        Self::new()
    }
}

impl RequestScanner {
    /// A scanner that awaits the first byte of a request.
    pub const fn new() -> Self {
        Self {
            at: 0,
            line: 0,
            number: Number::new(),
            left: 0,
            args: 0,
            name: (0, 0),
            first: (0, 0),
            phase: Phase::Fresh,
            lead: 0,
            split: Split::Between,
            unauthenticated: false,
        }
    }

    /// Whether the narrow limits hold that Redis sets a client that has to authenticate and has not yet.
    pub fn set_unauthenticated(&mut self, unauthenticated: bool) {
        self.unauthenticated = unauthenticated;
    }

    /// Looks for the end of the first request in `buf`.
    ///
    /// `buf[0]` is the request's first byte. While the answer is `Incomplete`, the next call must pass the same
    /// bytes and may pass more; those seen before are not read again. After `Complete` the scanner awaits the next
    /// request, which begins at `buf[request.len]`.
    #[inline]
    pub fn scan(&mut self, buf: &[u8]) -> Result<Scan, ProtocolError> {
        if self.phase == Phase::Fresh
            && buf.first() == Some(&b'*')
            && let Some((count, at)) = header::whole::<false>(buf, 1)
            && let Ok(count) = self.check_count(Some(count as i64))
            && count > 0
        {
            return self.bulks(
                buf,
                Bulks {
                    at,
                    left: count,
                    args: count,
                    name: (0, 0),
                    first: (0, 0),
                },
            );
        }
        self.resume(buf)
    }

    /// As `scan`, for what is cut, unusual or wrong.
    #[cold]
    fn resume(&mut self, buf: &[u8]) -> Result<Scan, ProtocolError> {
        loop {
            match self.phase {
                Phase::Fresh => {
                    let Some(&lead) = buf.first() else {
                        return Ok(Scan::Incomplete { need: 1 });
                    };
                    self.phase = if lead == b'*' { Phase::Count } else { Phase::Inline };
                    self.at = usize::from(lead == b'*');
                }
                Phase::Count => match self.header_line(buf, ProtocolError::CountLineTooLong)? {
                    Line::Ended => self.phase = Phase::CountEnd,
                    Line::Cut => return Ok(Scan::Incomplete { need: 2 }),
                    Line::Hidden => self.phase = Phase::Hidden(ProtocolError::CountLineTooLong),
                },
                Phase::CountEnd => {
                    if self.at >= buf.len() {
                        return Ok(Scan::Incomplete { need: 1 });
                    }
                    self.at += 1;
                    let count = self.check_count(self.number.value())?;
                    if count == 0 {
                        let request = Request {
                            len: self.at,
                            args: 0,
                            inline: false,
                            name: (0, 0),
                            first: (0, 0),
                        };
                        self.reset();
                        return Ok(Scan::Complete(request));
                    }
                    self.args = count;
                    self.left = count;
                    self.phase = Phase::Bulks;
                }
                Phase::Bulks => {
                    let (at, left, args) = (self.at, self.left, self.args);
                    return self.bulks(
                        buf,
                        Bulks {
                            at,
                            left,
                            args,
                            name: self.name,
                            first: self.first,
                        },
                    );
                }
                Phase::Length => match self.header_line(buf, ProtocolError::LengthLineTooLong)? {
                    Line::Ended => self.phase = Phase::LengthEnd,
                    Line::Cut => return Ok(Scan::Incomplete { need: 4 }),
                    Line::Hidden => self.phase = Phase::Hidden(ProtocolError::LengthLineTooLong),
                },
                Phase::LengthEnd => {
                    if self.at >= buf.len() {
                        return Ok(Scan::Incomplete { need: 3 });
                    }
                    self.at += 1;
                    if self.lead != b'$' {
                        return Err(ProtocolError::ExpectedBulk(self.lead));
                    }
                    let len = self.check_length(self.number.value())?;
                    self.argument(len);
                }
                Phase::Payload => {
                    if self.at > buf.len() {
                        return Ok(Scan::Incomplete {
                            need: self.at - buf.len(),
                        });
                    }
                    self.phase = Phase::Bulks;
                }
                Phase::Hidden(too_long) => {
                    return match buf.len().saturating_sub(self.line) > MAX_LINE {
                        true => Err(too_long),
                        false => Ok(Scan::Incomplete { need: 1 }),
                    };
                }
                Phase::Inline => {
                    if let Some(scan) = self.inline(buf)? {
                        return Ok(scan);
                    }
                }
            }
        }
    }

    /// Takes the arguments that have wholly arrived. The hot loop: all in registers, written back only where the
    /// buffer ends first.
    #[inline]
    fn bulks(&mut self, buf: &[u8], mut b: Bulks) -> Result<Scan, ProtocolError> {
        while b.left > 0 {
            let Some((len, start)) = bulk_header(buf, b.at) else {
                return self.cut_header(buf, b);
            };
            if len > self.max_bulk() {
                return self.cut_header(buf, b);
            }
            let end = start + len as usize;
            b.note(start, end);
            b.at = end + 2;
            b.left -= 1;
            if b.at > buf.len() {
                self.store(b);
                self.phase = Phase::Payload;
                return Ok(Scan::Incomplete {
                    need: b.at - buf.len(),
                });
            }
        }
        let request = Request {
            len: b.at,
            args: b.args,
            inline: false,
            name: b.name,
            first: b.first,
        };
        if self.phase != Phase::Fresh {
            self.reset();
        }
        Ok(Scan::Complete(request))
    }

    /// The `$` line at `b.at` is cut, unusual or wrong: byte by byte from there.
    #[cold]
    fn cut_header(&mut self, buf: &[u8], b: Bulks) -> Result<Scan, ProtocolError> {
        self.store(b);
        self.line = b.at;
        self.number = Number::new();
        self.phase = Phase::Length;
        self.resume(buf)
    }

    fn store(&mut self, b: Bulks) {
        self.at = b.at;
        self.left = b.left;
        self.args = b.args;
        self.name = b.name;
        self.first = b.first;
    }

    fn argument(&mut self, len: u64) {
        let mut b = Bulks {
            at: self.at + len as usize + 2,
            left: self.left,
            args: self.args,
            name: self.name,
            first: self.first,
        };
        b.note(self.at, self.at + len as usize);
        b.left -= 1;
        self.store(b);
        self.phase = Phase::Payload;
    }

    /// Reads a `*` or `$` line up to its CR.
    fn header_line(&mut self, buf: &[u8], too_long: ProtocolError) -> Result<Line, ProtocolError> {
        while let Some(&byte) = buf.get(self.at) {
            let first = self.at == self.line;
            if byte == b'\0' {
                return Ok(Line::Hidden);
            }
            if first {
                self.lead = byte;
            }
            if byte == b'\r' {
                self.at += 1;
                return Ok(Line::Ended);
            }
            if !first {
                self.number.push(byte);
            }
            self.at += 1;
            if self.at - self.line > MAX_LINE {
                return Err(too_long);
            }
        }
        Ok(Line::Cut)
    }

    fn inline(&mut self, buf: &[u8]) -> Result<Option<Scan>, ProtocolError> {
        while let Some(&byte) = buf.get(self.at) {
            match byte {
                b'\n' => {
                    if !self.split.balanced() {
                        return Err(ProtocolError::UnbalancedQuotes);
                    }
                    if self.split != Split::Between {
                        self.word_ends();
                    }
                    let (len, args) = (self.at + 1, self.args);
                    let request = Request {
                        len,
                        args,
                        inline: true,
                        name: self.name,
                        first: self.first,
                    };
                    self.reset();
                    return Ok(Some(Scan::Complete(request)));
                }
                b'\0' => {
                    self.line = 0;
                    self.phase = Phase::Hidden(ProtocolError::InlineTooLong);
                    return Ok(None);
                }
                _ => {}
            }
            let next = self.split.next(byte);
            if self.split == Split::Between && next != Split::Between {
                self.line = self.at;
            } else if self.split != Split::Between && next == Split::Between {
                self.word_ends();
            }
            self.split = next;
            self.at += 1;
            if self.at > MAX_LINE {
                return Err(ProtocolError::InlineTooLong);
            }
        }
        Ok(Some(Scan::Incomplete { need: 1 }))
    }

    fn word_ends(&mut self) {
        let word = (self.line as u32, self.at as u32);
        match self.args {
            0 => self.name = word,
            1 => self.first = word,
            _ => {}
        }
        self.args += 1;
    }

    #[inline]
    fn check_count(&self, count: Option<i64>) -> Result<u32, ProtocolError> {
        match count {
            None => Err(ProtocolError::InvalidCount),
            Some(n) if n > MAX_ARGS => Err(ProtocolError::InvalidCount),
            Some(n) if n > MAX_ARGS_UNAUTHENTICATED && self.unauthenticated => {
                Err(ProtocolError::UnauthenticatedCount)
            }
            Some(n) => Ok(n.max(0) as u32),
        }
    }

    fn check_length(&self, len: Option<i64>) -> Result<u64, ProtocolError> {
        match len.and_then(|n| u64::try_from(n).ok()) {
            None => Err(ProtocolError::InvalidLength),
            Some(n) if n > MAX_BULK => Err(ProtocolError::InvalidLength),
            Some(n) if n > self.max_bulk() => Err(ProtocolError::UnauthenticatedLength),
            Some(n) => Ok(n),
        }
    }

    #[inline]
    fn max_bulk(&self) -> u64 {
        if self.unauthenticated {
            MAX_BULK_UNAUTHENTICATED
        } else {
            MAX_BULK
        }
    }

    fn reset(&mut self) {
        *self = Self {
            unauthenticated: self.unauthenticated,
            ..Self::new()
        };
    }
}

enum Line {
    Ended,
    Cut,
    Hidden,
}

/// What the hot loop knows of the request under way.
#[derive(Clone, Copy)]
struct Bulks {
    at: usize,
    left: u32,
    args: u32,
    name: (u32, u32),
    first: (u32, u32),
}

impl Bulks {
    /// Remembers the argument's range if it is one of the first two. Those end below 4 GiB: two payloads of at
    /// most 512 MiB, three lines of at most 64 KiB.
    #[inline(always)]
    fn note(&mut self, start: usize, end: usize) {
        if self.left == self.args {
            self.name = (start as u32, end as u32);
        } else if self.left + 1 == self.args {
            self.first = (start as u32, end as u32);
        }
    }
}

#[inline(always)]
fn bulk_header(buf: &[u8], at: usize) -> Option<(u64, usize)> {
    if *buf.get(at)? != b'$' {
        return None;
    }
    header::whole::<false>(buf, at + 1)
}

/// The arguments of a whole multibulk frame, the command's name first. Of anything else: nothing, or as many as
/// are whole.
pub fn args(frame: &[u8]) -> Args<'_> {
    let (left, at) = match frame.first() {
        Some(b'*') => header::whole::<false>(frame, 1).unwrap_or((0, 0)),
        _ => (0, 0),
    };
    Args { frame, at, left }
}

/// See [`args`].
#[derive(Clone, Debug)]
pub struct Args<'a> {
    frame: &'a [u8],
    at: usize,
    left: u64,
}

impl<'a> Args<'a> {
    /// The next argument's offsets in the frame.
    #[inline]
    pub fn next_range(&mut self) -> Option<Range<usize>> {
        self.left = self.left.checked_sub(1)?;
        let range = bulk_header(self.frame, self.at)
            .map(|(len, start)| start..start + len as usize)
            .filter(|range| range.end <= self.frame.len());
        match &range {
            Some(range) => self.at = range.end + 2,
            None => self.left = 0,
        }
        range
    }

    /// How many arguments are left, by the frame's own count.
    pub fn left(&self) -> usize {
        self.left as usize
    }
}

impl<'a> Iterator for Args<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        let range = self.next_range()?;
        self.frame.get(range)
    }
}

#[cfg(test)]
mod tests;
