//! Commands that mean something to a session beyond what the command table says of them.

use crate::resp;

pub(super) fn is_caching(frame: &[u8]) -> bool {
    let mut words = resp::args(frame);
    let mut next_is = |word: &[u8]| words.next().is_some_and(|w| w.eq_ignore_ascii_case(word));
    next_is(b"CLIENT") && next_is(b"CACHING")
}

pub(super) fn is_wait(frame: &[u8]) -> bool {
    let name = resp::args(frame).next().unwrap_or_default();
    name.eq_ignore_ascii_case(b"WAIT") || name.eq_ignore_ascii_case(b"WAITAOF")
}

/// How a server refuses, before it hangs up, what nobody says who means to log in. On a link that many share it must not
/// come to that.
pub(super) fn too_much_for_a_stranger(frame: &[u8]) -> Option<&'static [u8]> {
    const WORDS: usize = 10;
    const BYTES: usize = 16 * 1024;
    for (n, word) in resp::args(frame).enumerate() {
        if n >= WORDS {
            return Some(b"-ERR Protocol error: unauthenticated multibulk length\r\n");
        }
        if word.len() > BYTES {
            return Some(b"-ERR Protocol error: unauthenticated bulk length\r\n");
        }
    }
    None
}
