//! What a frame costs: our scanners beside `redis-protocol`'s decoders, on the same bytes. Requests are also looked up
//! and routed, as the proxy does it. Run with `cargo bench --bench resp`.

use std::hint::black_box;

use divan::Bencher;
use divan::counter::ItemsCount;
use pulsegate::resp::{
    ReplyScan, ReplyScanner, Request, RequestScanner, Scan, encode_command, first_key, lookup, slot,
};

fn main() {
    divan::main();
}

fn get() -> Vec<u8> {
    encode_command(&[b"GET", b"key:000000001234"])
}

fn set() -> Vec<u8> {
    encode_command(&[b"SET", b"key:000000001234", &[b'v'; 64]])
}

fn pipeline() -> Vec<u8> {
    get().repeat(16)
}

/// A reply of 1000 strings of 16 bytes.
fn array() -> Vec<u8> {
    [&b"*1000\r\n"[..], &b"$16\r\n0123456789abcdef\r\n".repeat(1000)].concat()
}

fn request(scanner: &mut RequestScanner, buf: &[u8]) -> Request {
    match scanner.scan(buf) {
        Ok(Scan::Complete(request)) => request,
        other => panic!("{other:?}"),
    }
}

fn reply(scanner: &mut ReplyScanner, buf: &[u8]) -> usize {
    match scanner.scan(buf) {
        Ok(ReplyScan::Complete(reply)) => reply.len,
        other => panic!("{other:?}"),
    }
}

/// The whole buffer, frame by frame, with `each` done to every request.
fn requests<T>(
    bencher: Bencher<'_, '_>,
    buf: &[u8],
    frames: usize,
    mut each: impl FnMut(&[u8], &Request) -> T,
) {
    let mut scanner = RequestScanner::new();
    bencher.counter(ItemsCount::new(frames)).bench_local(|| {
        let mut rest = black_box(buf);
        while !rest.is_empty() {
            let request = request(&mut scanner, rest);
            black_box(each(rest, &request));
            rest = &rest[request.len..];
        }
    });
}

fn replies(bencher: Bencher<'_, '_>, buf: &[u8]) {
    let mut scanner = ReplyScanner::new();
    bencher.bench_local(|| reply(&mut scanner, black_box(buf)));
}

fn resp2_range(bencher: Bencher<'_, '_>, buf: &[u8], frames: usize) {
    bencher.counter(ItemsCount::new(frames)).bench_local(|| {
        let mut rest = black_box(buf);
        while !rest.is_empty() {
            let (frame, len) = redis_protocol::resp2::decode::decode_range(rest)
                .ok()
                .flatten()
                .expect("a frame");
            black_box(frame);
            rest = &rest[len..];
        }
    });
}

fn resp3_range(bencher: Bencher<'_, '_>, buf: &[u8], frames: usize) {
    bencher.counter(ItemsCount::new(frames)).bench_local(|| {
        let mut rest = black_box(buf);
        while !rest.is_empty() {
            let decoded = redis_protocol::resp3::decode::complete::decode_range(rest);
            let (frame, len) = decoded.ok().flatten().expect("a frame");
            black_box(frame);
            rest = &rest[len..];
        }
    });
}

#[divan::bench_group(sample_count = 200)]
mod get_16_byte_key {
    use super::*;

    #[divan::bench]
    fn boundary_name_key(bencher: Bencher<'_, '_>) {
        requests(bencher, &get(), 1, |_, request| *request);
    }

    #[divan::bench]
    fn and_looked_up(bencher: Bencher<'_, '_>) {
        requests(bencher, &get(), 1, |buf, request| {
            lookup(request.name(buf)).map(|info| info.class)
        });
    }

    #[divan::bench]
    fn and_slot(bencher: Bencher<'_, '_>) {
        requests(bencher, &get(), 1, |buf, request| {
            let info = lookup(request.name(buf))?;
            first_key(info, buf, request).map(slot)
        });
    }

    #[divan::bench]
    fn redis_protocol_resp2_range(bencher: Bencher<'_, '_>) {
        resp2_range(bencher, &get(), 1);
    }

    #[divan::bench]
    fn redis_protocol_resp3_range(bencher: Bencher<'_, '_>) {
        resp3_range(bencher, &get(), 1);
    }
}

#[divan::bench_group(sample_count = 200)]
mod set_64_bytes {
    use super::*;

    #[divan::bench]
    fn boundary_name_key(bencher: Bencher<'_, '_>) {
        requests(bencher, &set(), 1, |_, request| *request);
    }

    #[divan::bench]
    fn redis_protocol_resp2_range(bencher: Bencher<'_, '_>) {
        resp2_range(bencher, &set(), 1);
    }

    #[divan::bench]
    fn redis_protocol_resp3_range(bencher: Bencher<'_, '_>) {
        resp3_range(bencher, &set(), 1);
    }
}

#[divan::bench_group(sample_count = 200)]
mod pipeline_of_16_gets {
    use super::*;

    #[divan::bench]
    fn boundary_name_key(bencher: Bencher<'_, '_>) {
        requests(bencher, &pipeline(), 16, |_, request| *request);
    }

    #[divan::bench]
    fn and_looked_up(bencher: Bencher<'_, '_>) {
        requests(bencher, &pipeline(), 16, |buf, request| {
            lookup(request.name(buf)).map(|info| info.class)
        });
    }

    #[divan::bench]
    fn redis_protocol_resp2_range(bencher: Bencher<'_, '_>) {
        resp2_range(bencher, &pipeline(), 16);
    }

    #[divan::bench]
    fn redis_protocol_resp3_range(bencher: Bencher<'_, '_>) {
        resp3_range(bencher, &pipeline(), 16);
    }
}

#[divan::bench_group(sample_count = 200)]
mod reply_of_1000_elements {
    use super::*;

    #[divan::bench]
    fn boundary(bencher: Bencher<'_, '_>) {
        replies(bencher, &array());
    }

    /// In pieces of 4 KiB, as a socket hands them out.
    #[divan::bench]
    fn boundary_in_pieces(bencher: Bencher<'_, '_>) {
        let buf = array();
        let mut scanner = ReplyScanner::new();
        bencher.bench_local(|| {
            let mut end = 4096;
            while let Ok(ReplyScan::Incomplete { .. }) = scanner.scan(black_box(&buf[..end])) {
                end = (end + 4096).min(buf.len());
            }
            assert!(scanner.is_idle());
        });
    }

    #[divan::bench]
    fn redis_protocol_resp2_range(bencher: Bencher<'_, '_>) {
        resp2_range(bencher, &array(), 1);
    }

    #[divan::bench]
    fn redis_protocol_resp3_range(bencher: Bencher<'_, '_>) {
        resp3_range(bencher, &array(), 1);
    }
}

#[divan::bench_group(sample_count = 200)]
mod short_replies {
    use super::*;

    #[divan::bench]
    fn ok(bencher: Bencher<'_, '_>) {
        replies(bencher, b"+OK\r\n");
    }

    #[divan::bench]
    fn integer(bencher: Bencher<'_, '_>) {
        replies(bencher, b":1\r\n");
    }

    #[divan::bench]
    fn string_of_64_bytes(bencher: Bencher<'_, '_>) {
        replies(bencher, &[&b"$64\r\n"[..], &[b'v'; 64], b"\r\n"].concat());
    }

    #[divan::bench]
    fn redis_protocol_string_of_64_bytes(bencher: Bencher<'_, '_>) {
        resp2_range(bencher, &[&b"$64\r\n"[..], &[b'v'; 64], b"\r\n"].concat(), 1);
    }
}

#[divan::bench_group(sample_count = 200)]
mod table {
    use super::*;

    #[divan::bench(args = ["GET", "set", "ZREVRANGEBYSCORE", "georadiusbymember_ro", "nosuchcommand"])]
    fn look_up(name: &str) -> Option<&'static str> {
        lookup(black_box(name.as_bytes())).map(|info| info.name)
    }

    #[divan::bench]
    fn slot_of_16_bytes() -> u16 {
        slot(black_box(b"key:000000001234"))
    }
}
