//! The number in a header line (`*3\r\n`, `$16\r\n`): read at once where the line is whole, byte by byte where the
//! network has cut it.
//!
//! Numbers are as strict as Redis' `string2ll`: an optional minus, no plus, no leading zero, no blanks, no `-0`.

/// A number of up to ten digits, followed by CR and one more byte.
///
/// `at` is the position of the first digit; the answer is the number and the position behind the line. `None`
/// where the line is incomplete or unusual: then [`Number`] decides. With `STRICT` the byte behind CR must be LF;
/// Redis does not look at it in requests.
#[inline(always)]
pub(super) fn whole<const STRICT: bool>(buf: &[u8], at: usize) -> Option<(u64, usize)> {
    let line = buf.get(at..)?;
    let ends = |lf: u8| !STRICT || lf == b'\n';
    match *line {
        // One or two digits are nearly all of them.
        [d @ b'0'..=b'9', b'\r', lf, ..] if ends(lf) => Some((u64::from(d - b'0'), at + 3)),
        [d @ b'1'..=b'9', e @ b'0'..=b'9', b'\r', lf, ..] if ends(lf) => {
            Some((u64::from(d - b'0') * 10 + u64::from(e - b'0'), at + 4))
        }
        [b'1'..=b'9', ..] => {
            let mut value = 0u64;
            for (i, &byte) in line.iter().take(11).enumerate() {
                match byte {
                    b'0'..=b'9' => value = value * 10 + u64::from(byte - b'0'),
                    b'\r' => {
                        let &lf = line.get(i + 1)?;
                        return ends(lf).then_some((value, at + i + 2));
                    }
                    _ => return None,
                }
            }
            None
        }
        _ => None,
    }
}

/// A number that arrives byte by byte.
#[derive(Clone, Copy, Debug)]
pub(super) struct Number {
    magnitude: u64,
    shape: Shape,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    Empty,
    Zero,
    Minus,
    Positive,
    Negative,
    Bad,
}

impl Number {
    pub(super) const fn new() -> Self {
        Self {
            magnitude: 0,
            shape: Shape::Empty,
        }
    }

    pub(super) fn push(&mut self, byte: u8) {
        self.shape = match (self.shape, byte) {
            (Shape::Empty, b'-') => Shape::Minus,
            (Shape::Empty, b'0') => Shape::Zero,
            (Shape::Empty | Shape::Positive, b'0'..=b'9') => self.digit(byte, Shape::Positive),
            (Shape::Minus, b'1'..=b'9') | (Shape::Negative, b'0'..=b'9') => self.digit(byte, Shape::Negative),
            _ => Shape::Bad,
        };
    }

    fn digit(&mut self, byte: u8, shape: Shape) -> Shape {
        let next = self
            .magnitude
            .checked_mul(10)
            .and_then(|m| m.checked_add(u64::from(byte - b'0')));
        match next {
            Some(magnitude) => {
                self.magnitude = magnitude;
                shape
            }
            None => Shape::Bad,
        }
    }

    /// The number, where what was pushed is one.
    pub(super) fn value(self) -> Option<i64> {
        match self.shape {
            Shape::Zero => Some(0),
            Shape::Positive => i64::try_from(self.magnitude).ok(),
            Shape::Negative => 0i64.checked_sub_unsigned(self.magnitude),
            Shape::Empty | Shape::Minus | Shape::Bad => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(text: &str) -> Option<i64> {
        let mut number = Number::new();
        text.bytes().for_each(|b| number.push(b));
        number.value()
    }

    /// Expected values follow `string2ll` of Redis 7.0, tried on a real server.
    #[test]
    fn numbers_are_as_strict_as_redis() {
        for (text, value) in [
            ("0", Some(0)),
            ("7", Some(7)),
            ("-1", Some(-1)),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("9223372036854775808", None),
            ("-9223372036854775809", None),
            ("18446744073709551616", None),
            ("99999999999999999999999", None),
            ("", None),
            ("-", None),
            ("-0", None),
            ("+3", None),
            ("03", None),
            ("00", None),
            ("3 ", None),
            (" 3", None),
            ("3x", None),
            ("--3", None),
        ] {
            assert_eq!(number(text), value, "{text:?}");
        }
    }

    #[test]
    fn a_whole_line_agrees_with_byte_by_byte() {
        for text in [
            "0",
            "1",
            "10",
            "99",
            "100",
            "1234567890",
            "01",
            "-1",
            "",
            "x",
            "1x",
            "12345678901",
        ] {
            let line = format!("{text}\r\n");
            if let Some((value, end)) = whole::<true>(line.as_bytes(), 0) {
                assert_eq!(Some(value as i64), number(text), "{text:?}");
                assert_eq!(end, line.len());
            } else {
                let plain = number(text).is_some_and(|n| (0..10_000_000_000).contains(&n));
                assert!(!plain, "{text:?} is plain and was not read at once");
            }
        }
        assert_eq!(whole::<true>(b"12\r", 0), None);
        assert_eq!(whole::<true>(b"12\rX", 0), None);
        assert_eq!(whole::<false>(b"12\rX", 0), Some((12, 4)));
    }
}
