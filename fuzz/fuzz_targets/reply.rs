//! However a stream of replies is cut, or passed on before it is whole, the scanner finds the same ends, and nothing
//! that looks into a frame panics. The first byte of the input is the size of the pieces.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pulsegate::resp::{ProtocolError, ReplyScan, ReplyScanner, error_code, reply_elements, reply_text};

fuzz_target!(|input: &[u8]| {
    let Some((&piece, stream)) = input.split_first() else {
        return;
    };
    let whole = scan(stream, stream.len().max(1), false);
    assert_eq!(whole, scan(stream, usize::from(piece).max(1), false));
    assert_eq!(whole, scan(stream, usize::from(piece).max(1), true));
    let mut start = 0;
    for (end, _) in whole.0 {
        let frame = &stream[start..end];
        reply_text(frame);
        error_code(frame);
        for element in reply_elements(frame) {
            reply_text(element);
        }
        start = end;
    }
});

/// Where each reply ends, and its type.
fn scan(stream: &[u8], piece: usize, pass_on: bool) -> (Vec<(usize, u8)>, Option<ProtocolError>) {
    let mut scanner = ReplyScanner::new();
    let (mut start, mut end, mut seen, mut found) = (0, 0, 0, Vec::new());
    loop {
        let mut buf = stream[start..end].to_vec();
        buf[..seen].fill(0xfe);
        match scanner.scan(&buf) {
            Ok(ReplyScan::Complete(reply)) => {
                start += reply.len;
                seen = 0;
                found.push((start, reply.kind));
            }
            Ok(ReplyScan::Incomplete { .. }) if end == stream.len() => return (found, None),
            Ok(ReplyScan::Incomplete { .. }) => {
                seen = scanner.done_with(end - start);
                if pass_on {
                    scanner.forget(seen);
                    start += seen;
                    seen = 0;
                }
                end = (end + piece).min(stream.len());
            }
            Err(error) => return (found, Some(error)),
        }
    }
}
