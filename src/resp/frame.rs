//! Reading and writing whole frames that a scanner has bounded.

use bytes::{BufMut, BytesMut};

use super::number::{Header, header};

/// The arguments of a whole multibulk request, the name first. Stops early on anything else.
pub fn args(frame: &[u8]) -> Args<'_> {
    let (left, at) = match header(frame, 1) {
        Header::Number(n, next) if frame[0] == b'*' && n > 0 => (n as usize, next),
        _ => (0, 0),
    };
    Args { frame, at, left }
}

/// See [`args`].
#[derive(Clone, Debug)]
pub struct Args<'a> {
    frame: &'a [u8],
    at: usize,
    left: usize,
}

impl<'a> Iterator for Args<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        let Header::Number(len, start) = header(self.frame, self.at + 1) else {
            return None;
        };
        let end = start.checked_add(usize::try_from(len).ok()?)?;
        self.at = end + 2;
        self.frame.get(start..end)
    }
}

/// The words of a whole inline request, quoted as Redis' `sdssplitargs` has it; `None` when quotes are unbalanced.
pub fn inline_args(line: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut words = Vec::new();
    // The original works on a C string.
    let mut rest = &line[..memchr::memchr(0, line).unwrap_or(line.len())];
    loop {
        rest = rest.trim_ascii_start();
        if rest.is_empty() {
            return Some(words);
        }
        let mut word = Vec::new();
        let mut quote = None;
        loop {
            match (quote, rest) {
                (None, []) => break,
                (Some(_), []) => return None,
                (None, [b' ' | b'\n' | b'\r' | b'\t' | 0x0c, ..]) => break,
                (None, [q @ (b'"' | b'\''), tail @ ..]) => {
                    quote = Some(*q);
                    rest = tail;
                }
                (Some(b'"'), [b'\\', b'x', h, l, tail @ ..])
                    if h.is_ascii_hexdigit() && l.is_ascii_hexdigit() =>
                {
                    let digit = |d: &u8| char::from(*d).to_digit(16).unwrap_or(0) as u8;
                    word.push(digit(h) * 16 + digit(l));
                    rest = tail;
                }
                (Some(b'"'), [b'\\', c, tail @ ..]) => {
                    word.push(match c {
                        b'n' => b'\n',
                        b'r' => b'\r',
                        b't' => b'\t',
                        b'b' => 8,
                        b'a' => 7,
                        other => *other,
                    });
                    rest = tail;
                }
                (Some(b'\''), [b'\\', b'\'', tail @ ..]) => {
                    word.push(b'\'');
                    rest = tail;
                }
                (Some(q), [c, tail @ ..]) if q == *c => {
                    // A closing quote must be followed by a space or the end.
                    if tail.first().is_some_and(|b| !b.is_ascii_whitespace()) {
                        return None;
                    }
                    rest = tail;
                    break;
                }
                (_, [c, tail @ ..]) => {
                    word.push(*c);
                    rest = tail;
                }
            }
        }
        words.push(word);
    }
}

/// Writes `words` as a multibulk request.
pub fn encode_command(words: &[&[u8]], out: &mut BytesMut) {
    let number = |out: &mut BytesMut, kind: u8, n: usize| {
        out.put_u8(kind);
        out.put_slice(n.to_string().as_bytes());
        out.put_slice(b"\r\n");
    };
    number(out, b'*', words.len());
    for word in words {
        number(out, b'$', word.len());
        out.put_slice(word);
        out.put_slice(b"\r\n");
    }
}

/// The elements at the top of a whole array, set, map or push: the text of strings, errors and numbers; empty for nulls
/// and for nested aggregates, after which it stops.
pub fn elements(frame: &[u8]) -> Elements<'_> {
    let (left, at) = match (frame.first(), header(frame, 1)) {
        (Some(b'*' | b'~' | b'>'), Header::Number(n, next)) if n > 0 => (n as usize, next),
        (Some(b'%'), Header::Number(n, next)) if n > 0 => (n as usize * 2, next),
        _ => (0, 0),
    };
    Elements { frame, at, left }
}

/// See [`elements`].
#[derive(Clone, Debug)]
pub struct Elements<'a> {
    frame: &'a [u8],
    at: usize,
    left: usize,
}

impl<'a> Iterator for Elements<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        self.left = self.left.checked_sub(1)?;
        match *self.frame.get(self.at)? {
            b'$' | b'!' | b'=' => {
                let Header::Number(len, start) = header(self.frame, self.at + 1) else {
                    return None;
                };
                let Ok(len) = usize::try_from(len) else {
                    self.at = start;
                    return Some(&[]);
                };
                self.at = start + len + 2;
                self.frame.get(start..start + len)
            }
            b'*' | b'~' | b'%' | b'>' | b'|' => {
                self.left = 0;
                Some(&[])
            }
            _ => {
                let start = self.at + 1;
                let end = start + memchr::memchr(b'\r', self.frame.get(start..)?)?;
                self.at = end + 2;
                self.frame.get(start..end)
            }
        }
    }
}

/// The first word of an error reply (`ERR`, `LOADING`, …); `None` for any other reply.
pub fn error_code(frame: &[u8]) -> Option<&[u8]> {
    let text = match frame.first()? {
        b'-' => &frame[1..],
        b'!' => match header(frame, 1) {
            Header::Number(_, start) => frame.get(start..)?,
            _ => return None,
        },
        _ => return None,
    };
    let end = text
        .iter()
        .position(|b| matches!(b, b' ' | b'\r'))
        .unwrap_or(text.len());
    Some(&text[..end])
}
