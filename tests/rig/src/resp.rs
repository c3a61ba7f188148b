//! Frames of the Redis protocol, as bytes: requests taken off a buffer, and the boundaries of answers. Pure.

use bytes::{Buf as _, Bytes, BytesMut};

/// Largest bulk string that is believed (Redis' own limit, `proto-max-bulk-len`).
const MAX_BULK: usize = 512 << 20;
/// Most arguments of one command that are believed.
const MAX_ARGS: usize = 1 << 20;
/// Longest line that is believed (Redis' own limit for inline commands).
const MAX_LINE: usize = 64 << 10;

/// Not what the protocol says.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(String);

/// Takes one `*n` array of bulk strings off the front, if it is all there.
pub(crate) fn take_command(buffer: &mut BytesMut) -> Result<Option<Vec<Bytes>>, Malformed> {
    let mut at = 0;
    let Some(count) = number(buffer, &mut at, b'*', MAX_ARGS)? else {
        return Ok(None);
    };
    let mut spans = Vec::with_capacity(count.min(1024));
    for _ in 0..count {
        let Some(length) = number(buffer, &mut at, b'$', MAX_BULK)? else {
            return Ok(None);
        };
        if buffer.len() < at + length + 2 {
            return Ok(None);
        }
        spans.push(at..at + length);
        at += length + 2;
    }
    let bytes = buffer.split_to(at).freeze();
    Ok(Some(spans.into_iter().map(|span| bytes.slice(span)).collect()))
}

/// As [`take_command`], but also takes an inline command: words between spaces, without quotes. An empty line is an
/// empty command.
pub(crate) fn take_request(buffer: &mut BytesMut) -> Result<Option<Vec<Bytes>>, Malformed> {
    match buffer.first() {
        None => return Ok(None),
        Some(b'*') => return take_command(buffer),
        Some(_) => {}
    }
    let Some(end) = buffer.iter().position(|&byte| byte == b'\n') else {
        if buffer.len() > MAX_LINE {
            return Err(Malformed("too big inline request".to_owned()));
        }
        return Ok(None);
    };
    let line = buffer.split_to(end + 1).freeze();
    let words = line
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    Ok(Some(words.map(|word| line.slice_ref(word)).collect()))
}

/// Reads `<mark><digits>\r\n` at `at` and moves past it.
fn number(buffer: &[u8], at: &mut usize, mark: u8, most: usize) -> Result<Option<usize>, Malformed> {
    let rest = &buffer[*at..];
    let Some(&first) = rest.first() else {
        return Ok(None);
    };
    let line_end = rest.iter().take(24).position(|&byte| byte == b'\n');
    let bad = || {
        let head = String::from_utf8_lossy(&rest[..rest.len().min(24)]).into_owned();
        Malformed(format!("expected {} and a number, found {head:?}", mark as char))
    };
    if first != mark || (line_end.is_none() && rest.len() >= 24) {
        return Err(bad());
    }
    let Some(line_end) = line_end else { return Ok(None) };
    let value: usize = rest[1..line_end]
        .strip_suffix(b"\r")
        .and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok())
        .filter(|&value| value <= most)
        .ok_or_else(bad)?;
    *at += line_end + 1;
    Ok(Some(value))
}

/// A command as an array of bulk strings.
pub(crate) fn command<Word: AsRef<[u8]>>(words: &[Word]) -> Bytes {
    let mut out = BytesMut::new();
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        bulk(&mut out, word.as_ref());
    }
    out.freeze()
}

/// Adds a bulk string.
pub(crate) fn bulk(out: &mut BytesMut, text: &[u8]) {
    out.extend_from_slice(format!("${}\r\n", text.len()).as_bytes());
    out.extend_from_slice(text);
    out.extend_from_slice(b"\r\n");
}

/// Finds where answers end, of either version of the protocol; goes on where it stopped.
#[derive(Debug, Default)]
pub(crate) struct Answers {
    /// Where more bytes belong.
    pub(crate) buffer: BytesMut,
    /// How far the first answer is read.
    at: usize,
    /// Values that are still missing to its end, when it has begun.
    missing: usize,
}

impl Answers {
    /// The next whole answer, as it came.
    pub(crate) fn next(&mut self) -> Result<Option<Bytes>, Malformed> {
        if self.at == 0 {
            self.missing = 1;
        }
        while self.missing > 0 {
            let rest = &self.buffer[self.at..];
            let Some(end) = rest.iter().position(|&byte| byte == b'\n') else {
                return Ok(None);
            };
            let line = String::from_utf8_lossy(&rest[..end]);
            let bad = || Malformed(format!("not an answer: {line:?}"));
            // A negative length is that of a null.
            let length = || match line.trim_end()[1..].parse::<i64>() {
                Ok(length) => Ok(usize::try_from(length).ok()),
                Err(_) => Err(bad()),
            };
            let (mut size, mut more) = (end + 1, 0);
            match rest.first() {
                Some(b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(') => {}
                Some(b'$' | b'=' | b'!') => size += length()?.map_or(0, |length| length + 2),
                Some(b'*' | b'~' | b'>') => more = length()?.unwrap_or(0),
                Some(b'%') => more = 2 * length()?.unwrap_or(0),
                // Attributes stand before the value that they are of.
                Some(b'|') => more = 2 * length()?.unwrap_or(0) + 1,
                _ => return Err(bad()),
            }
            if rest.len() < size {
                return Ok(None);
            }
            self.at += size;
            self.missing = self.missing - 1 + more;
        }
        let whole = self.buffer.split_to(self.at).freeze();
        self.at = 0;
        Ok(Some(whole))
    }
}

/// The kind of a pub/sub message or confirmation, a push of version 3, or an array of version 2 that looks like one:
/// its first word, and the rest.
pub(crate) fn push(answer: &Bytes) -> Option<(Bytes, Bytes)> {
    if !matches!(answer.first(), Some(b'*' | b'>')) {
        return None;
    }
    let end = answer.iter().position(|&byte| byte == b'\n')?;
    let mut rest = answer.slice(end + 1..);
    let mut at = 0;
    let length = number(&rest, &mut at, b'$', MAX_LINE).ok()??;
    if rest.len() < at + length + 2 {
        return None;
    }
    let kind = rest.slice(at..at + length);
    rest.advance(at + length + 2);
    Some((kind, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_found_whole_however_they_arrive() {
        let whole: &[&[u8]] = &[
            b"+OK\r\n",
            b"$-1\r\n",
            b"$2\r\n\r\n\r\n",
            b"*2\r\n*1\r\n:1\r\n$1\r\nx\r\n",
            b"%1\r\n+a\r\n*-1\r\n",
            b"|1\r\n+a\r\n+b\r\n~1\r\n#t\r\n",
            b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nm\r\n",
            b"*0\r\n",
            b"-ERR x\r\n",
        ];
        let mut answers = Answers::default();
        let mut found = Vec::new();
        for byte in whole.concat() {
            answers.buffer.extend_from_slice(&[byte]);
            found.extend(answers.next().expect("well-formed"));
        }
        assert_eq!(found, whole);
        answers.buffer.extend_from_slice(b"nonsense\r\n");
        assert!(answers.next().is_err());
    }

    #[test]
    fn requests_are_arrays_or_lines() {
        let mut buffer = BytesMut::from(&b"GET  k\r\n\r\n*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nPI"[..]);
        let mut next = || take_request(&mut buffer).expect("well-formed");
        assert_eq!(next(), Some(vec![Bytes::from("GET"), Bytes::from("k")]));
        assert_eq!(next(), Some(vec![]));
        assert_eq!(next(), Some(vec![Bytes::from("PING")]));
        assert_eq!(next(), None);
    }

    #[test]
    fn pushes_are_told_by_their_first_word() {
        let (kind, rest) = push(&Bytes::from("*2\r\n$3\r\nabc\r\n:1\r\n")).expect("a word and more");
        assert_eq!((&kind[..], &rest[..]), (&b"abc"[..], &b":1\r\n"[..]));
        assert_eq!(push(&Bytes::from("*1\r\n:1\r\n")), None);
        assert_eq!(push(&Bytes::from("$3\r\nabc\r\n")), None);
        assert_eq!(push(&Bytes::from("*0\r\n")), None);
    }
}
