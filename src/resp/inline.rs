//! Inline requests: words on a line, with the quoting rules of Redis' `sdssplitargs`.
//!
//! ```text
//!             blank                     other                  "
//!   ┌──► Between ──────► Between   ──────────► Word ──────────────► Double ──\──► DoubleEscape
//!   │       │ " or '                            │ blank               │ "  ▲────────────┘
//!   │       └──────────────► (as from Word)     ▼                     ▼
//!   └───────────────────────────────────────  Between             Closed ──blank──► Between
//!                                                                     └──other──► Unbalanced
//!   (Single is to ' what Double is to ")
//! ```

use super::encode::encode_command;

/// Blanks between words (`isspace` of the C locale).
const fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | 0x0b | 0x0c | b'\r')
}

/// Blanks that end a word without quotes; `sdssplitargs` takes fewer here than between words.
const fn ends_word(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

/// Where in a line the splitter stands; enough to go on with the next byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Split {
    Between,
    Word,
    Double,
    DoubleEscape,
    Single,
    SingleEscape,
    /// Behind a closing quote, which must end the word.
    Closed,
    Unbalanced,
}

impl Split {
    /// The state behind `byte`. A word begins where `Between` is left, and ends where it is entered again.
    pub(super) fn next(self, byte: u8) -> Self {
        match self {
            Self::Between if is_space(byte) => Self::Between,
            Self::Word if ends_word(byte) => Self::Between,
            Self::Between | Self::Word => match byte {
                b'"' => Self::Double,
                b'\'' => Self::Single,
                _ => Self::Word,
            },
            Self::Double => match byte {
                b'\\' => Self::DoubleEscape,
                b'"' => Self::Closed,
                _ => Self::Double,
            },
            Self::DoubleEscape => Self::Double,
            Self::Single | Self::SingleEscape if byte == b'\\' => Self::SingleEscape,
            Self::SingleEscape => Self::Single,
            Self::Single if byte == b'\'' => Self::Closed,
            Self::Single => Self::Single,
            Self::Closed if is_space(byte) => Self::Between,
            Self::Closed | Self::Unbalanced => Self::Unbalanced,
        }
    }

    /// Whether the line may end here.
    pub(super) fn balanced(self) -> bool {
        matches!(self, Self::Between | Self::Word | Self::Closed)
    }
}

/// The arguments of an inline request, without quotes and escapes. `None` where the quotes do not pair.
///
/// `frame` is the whole line; its newline may be missing.
pub fn inline_args(frame: &[u8]) -> Option<Vec<Vec<u8>>> {
    let line = frame.strip_suffix(b"\n").unwrap_or(frame);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    let mut args = Vec::new();
    let mut word = Vec::new();
    let mut state = Split::Between;
    let mut at = 0;
    while let Some(&byte) = line.get(at) {
        let next = state.next(byte);
        at += 1;
        match (state, next) {
            (_, Split::Unbalanced) => return None,
            (Split::Word | Split::Closed, Split::Between) => args.push(std::mem::take(&mut word)),
            (_, Split::Between | Split::Closed | Split::DoubleEscape) => {}
            (Split::Between | Split::Word, Split::Double | Split::Single) => {}
            (Split::DoubleEscape, _) => match (byte, line.get(at..at + 2)) {
                (b'x', Some(&[high, low])) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => {
                    word.push(hex(high) << 4 | hex(low));
                    at += 2;
                }
                _ => word.push(unescape(byte)),
            },
            // A backslash between single quotes stands for itself, unless a quote follows.
            (Split::SingleEscape, Split::Single) if byte == b'\'' => {
                word.pop();
                word.push(byte);
            }
            _ => word.push(byte),
        }
        state = next;
    }
    if !state.balanced() {
        return None;
    }
    if state != Split::Between {
        args.push(word);
    }
    Some(args)
}

/// An inline request in multibulk form. `None` where the quotes do not pair; an empty line becomes `*0\r\n`.
pub fn inline_to_multibulk(frame: &[u8]) -> Option<Vec<u8>> {
    let args = inline_args(frame)?;
    let args: Vec<&[u8]> = args.iter().map(Vec::as_slice).collect();
    Some(encode_command(&args))
}

fn hex(digit: u8) -> u8 {
    match digit {
        b'0'..=b'9' => digit - b'0',
        b'a'..=b'f' => digit - b'a' + 10,
        _ => digit - b'A' + 10,
    }
}

fn unescape(byte: u8) -> u8 {
    match byte {
        b'n' => b'\n',
        b'r' => b'\r',
        b't' => b'\t',
        b'b' => 0x08,
        b'a' => 0x07,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(line: &str) -> Option<Vec<Vec<u8>>> {
        inline_args(line.as_bytes())
    }

    /// Expected values follow `sdssplitargs` of Redis 7.0; `tests/resp_differential.rs` asks a real server.
    #[test]
    fn words_split_as_redis_splits_them() {
        let cases: &[(&str, Option<&[&[u8]]>)] = &[
            ("PING\r\n", Some(&[b"PING"])),
            ("PING\n", Some(&[b"PING"])),
            ("\r\n", Some(&[])),
            ("  \t \x0b\r\n", Some(&[])),
            (" SET  a\tb \r\n", Some(&[b"SET", b"a", b"b"])),
            ("a\x0bb\r\n", Some(&[b"a\x0bb"])),
            ("\"\"\r\n", Some(&[b""])),
            ("''\n", Some(&[b""])),
            (r#""\x41\x4g\n\q""#, Some(&[b"Ax4g\nq"])),
            (r"'a\'b\\' c", None),
            (r"'a\'b\\x' c", Some(&[br"a'b\\x", b"c"])),
            (r"'\\\' x'", Some(&[br"\\' x"])),
            (r#"foo"bar" baz"#, Some(&[b"foobar", b"baz"])),
            (r#""foo"bar"#, None),
            ("'foo'bar", None),
            ("\"foo", None),
            ("'foo", None),
            (r#""foo\"#, None),
            ("\"a\"\x0bb", Some(&[b"a", b"b"])),
        ];
        for (line, want) in cases {
            let want = want.map(|words| words.iter().map(|word| word.to_vec()).collect::<Vec<_>>());
            assert_eq!(split(line), want, "{line:?}");
        }
    }

    #[test]
    fn inline_requests_become_multibulk() {
        assert_eq!(
            inline_to_multibulk(b"SET k \"a b\"\r\n").unwrap(),
            b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$3\r\na b\r\n"
        );
        assert_eq!(inline_to_multibulk(b"\r\n").unwrap(), b"*0\r\n");
        assert_eq!(inline_to_multibulk(b"\"\n"), None);
    }
}
