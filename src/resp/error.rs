//! What can be wrong with bytes on the wire.

use std::fmt;

/// A breach of the protocol after which the connection it came on is of no use: there is no telling where the
/// next frame starts.
///
/// `Display` is the text that follows `-ERR ` on the wire. For requests it is what Redis 7.0 sends
/// (`networking.c`, `processInlineBuffer` and `processMultibulkBuffer`), so that an application cannot tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProtocolError {
    /// An inline request of more than 64 KiB without its newline.
    InlineTooLong,
    /// An inline request whose quotes do not pair, or whose closing quote is followed by something.
    UnbalancedQuotes,
    /// A `*` line of more than 64 KiB without its CR.
    CountLineTooLong,
    /// A `*` line whose number is malformed or above `i32::MAX`.
    InvalidCount,
    /// More than 10 arguments before the client has authenticated.
    UnauthenticatedCount,
    /// A `$` line of more than 64 KiB without its CR.
    LengthLineTooLong,
    /// A line that had to begin with `$` and began with this byte.
    ExpectedBulk(u8),
    /// A `$` line whose number is malformed, negative or above 512 MiB.
    InvalidLength,
    /// An argument of more than 16 KiB before the client has authenticated.
    UnauthenticatedLength,
    /// A reply that began with this byte, which is no type of RESP2 or RESP3.
    ReplyType(u8),
    /// A reply whose length or count is malformed, or beyond what any server sends.
    ReplyLength,
    /// A reply whose payload is not followed by CRLF.
    ReplyTerminator,
    /// A streamed string or aggregate (`$?`, `*?`, …): part of RESP3's text, sent by no server so far.
    ReplyStreamed,
}

impl ProtocolError {
    /// The whole error line, `-ERR …\r\n`, byte for byte what Redis sends: unlike `Display`, it passes a
    /// non-ASCII byte of the request on unchanged.
    pub fn to_reply(self) -> Vec<u8> {
        match self {
            Self::ExpectedBulk(byte) => {
                let mut line = b"-ERR Protocol error: expected '$', got '".to_vec();
                line.push(printable(byte));
                line.extend_from_slice(b"'\r\n");
                line
            }
            other => format!("-ERR {other}\r\n").into_bytes(),
        }
    }
}

/// Redis replaces line ends in error texts by spaces, since they would end the error.
fn printable(byte: u8) -> u8 {
    if byte == b'\r' || byte == b'\n' {
        b' '
    } else {
        byte
    }
}

impl fmt::Display for ProtocolError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Protocol error: ")?;
        match *self {
            Self::InlineTooLong => f.write_str("too big inline request"),
            Self::UnbalancedQuotes => f.write_str("unbalanced quotes in request"),
            Self::CountLineTooLong => f.write_str("too big mbulk count string"),
            Self::InvalidCount => f.write_str("invalid multibulk length"),
            Self::UnauthenticatedCount => f.write_str("unauthenticated multibulk length"),
            Self::LengthLineTooLong => f.write_str("too big bulk count string"),
            Self::ExpectedBulk(byte) => write!(f, "expected '$', got '{}'", char::from(printable(byte))),
            Self::InvalidLength => f.write_str("invalid bulk length"),
            Self::UnauthenticatedLength => f.write_str("unauthenticated bulk length"),
            Self::ReplyType(byte) => write!(f, "a reply cannot begin with '{}'", byte.escape_ascii()),
            Self::ReplyLength => f.write_str("invalid length in a reply"),
            Self::ReplyTerminator => f.write_str("a reply's payload does not end in CRLF"),
            Self::ReplyStreamed => f.write_str("streamed replies are not supported"),
        }
    }
}

impl std::error::Error for ProtocolError {}
