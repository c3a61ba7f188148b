//! The decimal numbers of frame headers, as strict as Redis' `string2ll`.

/// What follows a type byte.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Header {
    /// The number, and the position after its CRLF.
    Number(i64, usize),
    /// The line is complete and holds no number.
    Invalid,
    /// No line end yet.
    Incomplete,
}

/// Reads the number between `at` and the next CR. The byte after the CR is skipped unread, as Redis does.
#[inline]
pub(super) fn header(buf: &[u8], at: usize) -> Header {
    let Some(rest) = buf.get(at..) else {
        return Header::Incomplete;
    };
    let mut value: i64 = 0;
    let mut i = 0;
    let negative = rest.first() == Some(&b'-');
    if negative {
        i = 1;
    }
    let first = i;
    while let Some(&byte) = rest.get(i) {
        let digit = byte.wrapping_sub(b'0');
        if digit > 9 {
            if byte != b'\r' {
                break;
            }
            if rest.len() < i + 2 {
                return Header::Incomplete;
            }
            let digits = i - first;
            let leading_zero = digits > 1 && rest[first] == b'0' || negative && value == 0;
            if digits == 0 || leading_zero {
                return Header::Invalid;
            }
            return Header::Number(if negative { -value } else { value }, at + i + 2);
        }
        let Some(next) = value
            .checked_mul(10)
            .and_then(|v| v.checked_add(i64::from(digit)))
        else {
            break;
        };
        value = next;
        i += 1;
    }
    match memchr::memchr(b'\r', rest) {
        Some(cr) if cr + 1 < rest.len() => Header::Invalid,
        _ => Header::Incomplete,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_strict_as_string2ll() {
        let number = |text: &str| header(text.as_bytes(), 0);
        assert_eq!(number("0\r\n"), Header::Number(0, 3));
        assert_eq!(number("-1\r\n"), Header::Number(-1, 4));
        assert_eq!(number("9223372036854775807\r\n"), Header::Number(i64::MAX, 21));
        for bad in [
            "\r\n",
            "+1\r\n",
            "01\r\n",
            "-0\r\n",
            "-\r\n",
            "1x\r\n",
            "99999999999999999999\r\n",
            " 1\r\n",
        ] {
            assert_eq!(number(bad), Header::Invalid, "{bad:?}");
        }
        for short in ["", "1", "12\r", "-", "x"] {
            assert_eq!(number(short), Header::Incomplete, "{short:?}");
        }
    }
}
