//! However a stream of requests is cut, the scanner says the same, and nothing that looks into a frame panics.
//! The first byte of the input is the size of the pieces.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pulsegate::resp::{
    ProtocolError, Request, RequestScanner, Scan, args, inline_args, is_blocking, keys, lookup, lookup_sub,
    routing_key, slot,
};

fuzz_target!(|input: &[u8]| {
    let Some((&piece, stream)) = input.split_first() else {
        return;
    };
    let whole = scan(stream, stream.len().max(1));
    assert_eq!(whole, scan(stream, usize::from(piece).max(1)));
    let mut rest = stream;
    for request in whole.0 {
        let (frame, behind) = rest.split_at(request.len);
        look_into(frame, &request);
        rest = behind;
    }
});

fn scan(stream: &[u8], piece: usize) -> (Vec<Request>, Option<ProtocolError>) {
    let mut scanner = RequestScanner::new();
    let (mut start, mut end, mut seen, mut found) = (0, 0, 0, Vec::new());
    loop {
        let mut buf = stream[start..end].to_vec();
        buf[..seen].fill(0xfe);
        match scanner.scan(&buf) {
            Ok(Scan::Complete(request)) => {
                start += request.len;
                seen = 0;
                found.push(request);
            }
            Ok(Scan::Incomplete { .. }) if end == stream.len() => return (found, None),
            Ok(Scan::Incomplete { .. }) => {
                seen = end - start;
                end = (end + piece).min(stream.len());
            }
            Err(error) => return (found, Some(error)),
        }
    }
}

fn look_into(frame: &[u8], request: &Request) {
    if request.inline {
        let words = inline_args(frame).expect("the scanner found the quotes balanced");
        assert_eq!(words.len(), request.args as usize);
        return;
    }
    assert_eq!(args(frame).count(), request.args as usize);
    let Some(mut info) = lookup(request.name(frame)) else {
        return;
    };
    info = lookup_sub(info, request.first(frame)).unwrap_or(info);
    is_blocking(info, frame);
    routing_key(info, frame, request).map(slot);
    for range in keys(info, frame) {
        slot(&frame[range]);
    }
}
