//! Frame boundaries of replies and pushes, RESP2 and RESP3.
//!
//! ```text
//!                + - : , # ( _          CRLF
//!   Element ─────────────────► Line ──────────────► Element, one less outstanding
//!      │ $ ! =        length             payload + CRLF
//!      ├─────────► Header ────► Payload ──────────► Element, one less outstanding
//!      │ * ~ % > |    count
//!      └─────────► Header ────► Element, `count` more outstanding    (none outstanding: the frame ends)
//! ```
//!
//! Nesting costs nothing: the scanner counts the elements that are still outstanding and needs no stack, so it
//! neither recurses nor has a depth at which it must give up. That is deliberate: a Lua script can make Redis itself
//! answer 7 994 levels deep (tried on 7.0.15), and on a shared link a refusal would punish every other session.
//!
//! Left to others: whether a line's text is what its type promises (`:x`, `#y` pass through unread), and how much
//! of an endless reply may be buffered ([`ReplyScanner::forget`] lets the caller pass it on before it is whole).

use memchr::memchr;

use super::error::ProtocolError;
use super::header::{self, Number};

/// Longest payload, in bytes: no resource limit, but a bound that keeps offsets from overflowing. Redis' strings
/// end at `proto-max-bulk-len` (512 MiB unless configured), its DUMP payloads do not.
pub const MAX_REPLY_BULK: u64 = 1 << 40;
/// Most elements of one aggregate, as hiredis has it.
pub const MAX_REPLY_ELEMENTS: u64 = u32::MAX as u64;
/// Longest number in a header line, in bytes: `-9223372036854775808`.
const MAX_NUMBER: u8 = 20;

/// What a buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyScan {
    /// A whole reply or push, at the buffer's beginning.
    Complete(Reply),
    /// The beginning of one, or nothing.
    Incomplete {
        /// At least so many further bytes are missing (≥ 1): the rest of the payload being received.
        need: usize,
    },
}

/// A whole reply or push at the beginning of a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Bytes of the whole frame, attributes included.
    pub len: usize,
    /// Where the reply proper begins: 0, or behind the attributes (`|`) that precede it in the frame.
    pub start: usize,
    /// First byte of the reply proper: one of ``+ - : $ * _ # , ( ! = % ~ >``.
    pub kind: u8,
}

impl Reply {
    /// Whether it is a push: a frame by itself, which answers no command. (RESP2 sends pub/sub messages as arrays.)
    pub fn is_push(&self) -> bool {
        self.kind == b'>'
    }

    /// Whether it is an error.
    pub fn is_error(&self) -> bool {
        matches!(self.kind, b'-' | b'!')
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Element,
    Line,
    /// In a header line; the type is `lead`.
    Header,
    /// Behind the header line's CR.
    HeaderEnd,
    /// Awaiting a payload and its CRLF, which end at `at`.
    Payload,
}

/// Finds the ends of replies in a link's bytes.
///
/// After an error the link is of no use; what further calls return is unspecified (they do not panic).
#[derive(Clone, Copy, Debug)]
pub struct ReplyScanner {
    /// The first byte not looked at yet; while a payload is awaited, the end of its CRLF.
    at: usize,
    /// Elements that have not ended, the reply itself among them.
    outstanding: u64,
    number: Number,
    start: usize,
    phase: Phase,
    /// The type of the element under way.
    lead: u8,
    /// The type of the reply proper, 0 before it is known.
    kind: u8,
    /// Whether the last byte looked at in a line was CR.
    cr: bool,
    /// Bytes of the header line under way.
    digits: u8,
}

impl Default for ReplyScanner {
    fn default() -> Self {
        Self::new()
    }
}

impl ReplyScanner {
    /// A scanner that awaits the first byte of a reply.
    pub const fn new() -> Self {
        Self {
            at: 0,
            outstanding: 1,
            number: Number::new(),
            start: 0,
            phase: Phase::Element,
            lead: 0,
            kind: 0,
            cr: false,
            digits: 0,
        }
    }

    /// Whether the scanner stands between two replies.
    pub fn is_idle(&self) -> bool {
        self.at == 0 && self.kind == 0 && self.phase == Phase::Element && self.outstanding == 1
    }

    /// Looks for the end of the first reply in `buf`.
    ///
    /// `buf[0]` is the reply's first byte. While the answer is `Incomplete`, the next call must pass the same bytes
    /// and may pass more; those seen before are not read again. After `Complete` the scanner awaits the next reply,
    /// which begins at `buf[reply.len]`.
    #[inline]
    pub fn scan(&mut self, buf: &[u8]) -> Result<ReplyScan, ProtocolError> {
        if self.is_idle()
            && let Some((kind, len)) = simple(buf)
        {
            return Ok(ReplyScan::Complete(Reply { len, start: 0, kind }));
        }
        self.resume(buf)
    }

    /// How many bytes of the incomplete reply in a buffer of `len` bytes are done with: all, or all but the first
    /// byte of the CRLF behind a payload.
    pub fn done_with(&self, len: usize) -> usize {
        match self.phase {
            Phase::Payload => len.min(self.at - 2),
            _ => len.min(self.at),
        }
    }

    /// The caller has passed on the first `n` bytes of an incomplete reply, so as not to buffer it whole: from now
    /// on `buf[0]` is what was `buf[n]`, and the `Reply` counts from there. At most [`done_with`](Self::done_with).
    pub fn forget(&mut self, n: usize) {
        let n = self.done_with(n);
        self.at -= n;
        self.start = self.start.saturating_sub(n);
    }

    fn resume(&mut self, buf: &[u8]) -> Result<ReplyScan, ProtocolError> {
        loop {
            match self.phase {
                Phase::Element => {
                    if let Some(scan) = self.elements(buf)? {
                        return Ok(scan);
                    }
                }
                Phase::Line => {
                    if !self.line(buf) {
                        return Ok(ReplyScan::Incomplete { need: 1 });
                    }
                    self.outstanding -= 1;
                    self.phase = Phase::Element;
                }
                Phase::Header => {
                    while self.phase == Phase::Header {
                        let Some(&byte) = buf.get(self.at) else {
                            return Ok(ReplyScan::Incomplete { need: 2 });
                        };
                        self.at += 1;
                        self.header_byte(byte)?;
                    }
                }
                Phase::HeaderEnd => {
                    let Some(&byte) = buf.get(self.at) else {
                        return Ok(ReplyScan::Incomplete { need: 1 });
                    };
                    self.at += 1;
                    if byte != b'\n' {
                        return Err(ProtocolError::ReplyLength);
                    }
                    self.header_ends()?;
                }
                Phase::Payload => {
                    if self.at > buf.len() {
                        return Ok(ReplyScan::Incomplete {
                            need: self.at - buf.len(),
                        });
                    }
                    if buf[self.at - 2..self.at] != *b"\r\n" {
                        return Err(ProtocolError::ReplyTerminator);
                    }
                    self.outstanding -= 1;
                    self.phase = Phase::Element;
                }
            }
        }
    }

    fn header_byte(&mut self, byte: u8) -> Result<(), ProtocolError> {
        match byte {
            b'\r' => self.phase = Phase::HeaderEnd,
            b'?' if self.digits == 0 => return Err(ProtocolError::ReplyStreamed),
            _ if self.digits == MAX_NUMBER => return Err(ProtocolError::ReplyLength),
            _ => {
                self.number.push(byte);
                self.digits += 1;
            }
        }
        Ok(())
    }

    fn header_ends(&mut self) -> Result<(), ProtocolError> {
        self.phase = Phase::Element;
        match (self.number.value(), self.lead) {
            (Some(len @ 0..), b'$' | b'!' | b'=') => {
                self.at = payload_end(self.at, len as u64)?;
                self.phase = Phase::Payload;
            }
            (Some(count @ 0..), lead) => self.outstanding = opened(self.outstanding, lead, count as u64)?,
            // RESP2's null.
            (Some(-1), b'$' | b'*') => self.outstanding -= 1,
            _ => return Err(ProtocolError::ReplyLength),
        }
        Ok(())
    }

    /// Takes the elements that have wholly arrived. The hot loop of aggregates. `None` where the element at `at`
    /// is cut or unusual: another phase goes on with it.
    fn elements(&mut self, buf: &[u8]) -> Result<Option<ReplyScan>, ProtocolError> {
        let mut at = self.at;
        let mut outstanding = self.outstanding;
        loop {
            if outstanding == 0 {
                let reply = Reply {
                    len: at,
                    start: self.start,
                    kind: self.kind,
                };
                *self = Self::new();
                return Ok(Some(ReplyScan::Complete(reply)));
            }
            let Some(&lead) = buf.get(at) else {
                self.at = at;
                self.outstanding = outstanding;
                return Ok(Some(ReplyScan::Incomplete { need: 3 }));
            };
            if outstanding == 1 && self.kind == 0 && lead != b'|' {
                self.kind = lead;
                self.start = at;
            }
            let next = match lead {
                b'$' | b'!' | b'=' => match header::whole::<true>(buf, at + 1) {
                    Some((len, start)) => {
                        let end = payload_end(start, len)?;
                        if end > buf.len() {
                            self.at = end;
                            self.outstanding = outstanding;
                            self.phase = Phase::Payload;
                            return Ok(None);
                        }
                        if buf[end - 2..end] != *b"\r\n" {
                            return Err(ProtocolError::ReplyTerminator);
                        }
                        outstanding -= 1;
                        Some(end)
                    }
                    None => None,
                },
                b'+' | b'-' | b':' | b',' | b'#' | b'(' | b'_' => {
                    let end = short_line(buf, at + 1);
                    outstanding -= u64::from(end.is_some());
                    end
                }
                b'*' | b'~' | b'%' | b'>' | b'|' => match header::whole::<true>(buf, at + 1) {
                    Some((count, next)) => {
                        outstanding = opened(outstanding, lead, count)?;
                        Some(next)
                    }
                    None => None,
                },
                other => return Err(ProtocolError::ReplyType(other)),
            };
            let Some(next) = next else {
                self.at = at + 1;
                self.outstanding = outstanding;
                self.piecewise(lead);
                return Ok(None);
            };
            at = next;
        }
    }

    /// Goes on with the element of type `lead` byte by byte, from behind its type.
    fn piecewise(&mut self, lead: u8) {
        self.lead = lead;
        self.cr = false;
        self.number = Number::new();
        self.digits = 0;
        self.phase = match lead {
            b'$' | b'!' | b'=' | b'*' | b'~' | b'%' | b'>' | b'|' => Phase::Header,
            _ => Phase::Line,
        };
    }

    /// Looks for CRLF from `at` on; whether it was there. A lone CR or LF does not end a line.
    fn line(&mut self, buf: &[u8]) -> bool {
        while let Some(rest @ [.., last]) = buf.get(self.at..) {
            let Some(lf) = memchr(b'\n', rest) else {
                self.cr = *last == b'\r';
                self.at = buf.len();
                return false;
            };
            let ended = if lf == 0 { self.cr } else { rest[lf - 1] == b'\r' };
            self.cr = false;
            self.at += lf + 1;
            if ended {
                return true;
            }
        }
        false
    }
}

/// A whole reply that is one short line or one string: what most replies are.
#[inline]
fn simple(buf: &[u8]) -> Option<(u8, usize)> {
    match *buf {
        [b'+', b'O', b'K', b'\r', b'\n', ..] => Some((b'+', 5)),
        [b'$', b'-', b'1', b'\r', b'\n', ..] => Some((b'$', 5)),
        [b'$', ..] => {
            let (len, start) = header::whole::<true>(buf, 1)?;
            let end = payload_end(start, len).ok()?;
            (buf.get(end - 2..end)? == b"\r\n").then_some((b'$', end))
        }
        [kind @ (b'+' | b':' | b'-' | b'_' | b'#' | b','), ..] => Some((kind, short_line(buf, 1)?)),
        _ => None,
    }
}

/// The position behind the CRLF of a line of at most 24 bytes that begins at `at`.
#[inline]
fn short_line(buf: &[u8], at: usize) -> Option<usize> {
    let rest = buf.get(at..)?;
    let lf = rest.iter().take(24).position(|&byte| byte == b'\n')?;
    (lf > 0 && rest[lf - 1] == b'\r').then_some(at + lf + 1)
}

#[inline]
fn payload_end(start: usize, len: u64) -> Result<usize, ProtocolError> {
    if len > MAX_REPLY_BULK {
        return Err(ProtocolError::ReplyLength);
    }
    Ok(start + len as usize + 2)
}

/// What is outstanding behind the header of an aggregate of `count`. An attribute is no element: it comes on top of
/// the one it describes.
#[inline]
fn opened(outstanding: u64, lead: u8, count: u64) -> Result<u64, ProtocolError> {
    if count > MAX_REPLY_ELEMENTS {
        return Err(ProtocolError::ReplyLength);
    }
    let (ended, added) = match lead {
        b'|' => (0, count * 2),
        b'%' => (1, count * 2),
        _ => (1, count),
    };
    (outstanding - ended)
        .checked_add(added)
        .ok_or(ProtocolError::ReplyLength)
}

/// A whole aggregate (array, set, push, map) as its parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aggregate<'a> {
    /// First byte: one of `* ~ > %`.
    pub kind: u8,
    /// What its header says: elements, of a map pairs.
    pub count: u64,
    /// The bytes of its elements.
    pub body: &'a [u8],
}

/// Takes a whole aggregate apart, without its attributes and without looking at its elements. `None` for anything else.
pub fn reply_aggregate(frame: &[u8]) -> Option<Aggregate<'_>> {
    let proper = proper(frame);
    let kind = *proper.first()?;
    if !matches!(kind, b'*' | b'~' | b'>' | b'%') {
        return None;
    }
    let (count, at) = header::whole::<true>(proper, 1)?;
    let body = proper.get(at..)?;
    Some(Aggregate { kind, count, body })
}

/// The elements of a whole aggregate (array, set, push, map: key, value, key, value …), each a frame by itself with
/// its own attributes. The aggregate's attributes are skipped. Of anything else: nothing, or as many as are whole.
pub fn reply_elements(frame: &[u8]) -> Elements<'_> {
    match reply_aggregate(frame) {
        Some(Aggregate { kind, count, body }) => Elements {
            rest: body,
            left: if kind == b'%' { count * 2 } else { count },
        },
        None => Elements { rest: &[], left: 0 },
    }
}

/// See [`reply_elements`].
#[derive(Clone, Debug)]
pub struct Elements<'a> {
    rest: &'a [u8],
    left: u64,
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        let Ok(ReplyScan::Complete(reply)) = ReplyScanner::new().scan(self.rest) else {
            self.left = 0;
            return None;
        };
        let (element, rest) = self.rest.split_at(reply.len);
        self.rest = rest;
        Some(element)
    }
}

/// The text of a whole scalar reply: what a line says, or a string's payload (a verbatim string without its
/// format). `None` for nulls and aggregates.
pub fn reply_text(frame: &[u8]) -> Option<&[u8]> {
    let proper = proper(frame);
    match *proper.first()? {
        b'+' | b'-' | b':' | b',' | b'#' | b'(' => proper.get(1..)?.strip_suffix(b"\r\n"),
        lead @ (b'$' | b'!' | b'=') => {
            let (len, start) = header::whole::<true>(proper, 1)?;
            let text = proper.get(start..payload_end(start, len).ok()? - 2)?;
            if lead == b'=' { text.get(4..) } else { Some(text) }
        }
        _ => None,
    }
}

/// The code of an error reply: its first word, such as `ERR`, `MOVED` or `NOSCRIPT`. `None` for other replies.
pub fn error_code(frame: &[u8]) -> Option<&[u8]> {
    if !matches!(proper(frame).first()?, b'-' | b'!') {
        return None;
    }
    reply_text(frame)?.split(|&byte| byte == b' ').next()
}

/// The frame without the attributes before the reply proper.
fn proper(frame: &[u8]) -> &[u8] {
    match frame.first() {
        Some(b'|') => match ReplyScanner::new().scan(frame) {
            Ok(ReplyScan::Complete(reply)) => &frame[reply.start..],
            _ => &[],
        },
        _ => frame,
    }
}

#[cfg(test)]
mod tests;
