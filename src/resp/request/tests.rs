use super::super::encode::encode_command;
use super::*;

/// What becomes of `bytes` when they arrive in pieces that end at `cuts`. Bytes of earlier pieces are overwritten
/// before each further call: whoever reads them again gets another verdict.
fn feed(bytes: &[u8], cuts: &[usize]) -> Result<Scan, ProtocolError> {
    let mut scanner = RequestScanner::new();
    let mut last = Ok(Scan::Incomplete { need: 1 });
    let mut seen = 0;
    for &cut in cuts.iter().chain([&bytes.len()]) {
        let mut buf = bytes[..cut].to_vec();
        buf[..seen].fill(b'\xfe');
        last = scanner.scan(&buf);
        if let Ok(Scan::Incomplete { need }) = last {
            assert!(need >= 1);
            seen = cut;
        } else {
            break;
        }
    }
    last
}

/// The verdict on `bytes`, which must not depend on how they are cut.
fn verdict(bytes: &[u8]) -> Result<Scan, ProtocolError> {
    let whole = feed(bytes, &[]);
    if bytes.len() < 300 {
        let each: Vec<usize> = (0..bytes.len()).collect();
        assert_eq!(
            feed(bytes, &each),
            whole,
            "byte by byte: {}",
            bytes.escape_ascii()
        );
        for first in 0..bytes.len() {
            assert_eq!(
                feed(bytes, &[first]),
                whole,
                "cut at {first}: {}",
                bytes.escape_ascii()
            );
            for second in first..bytes.len() {
                let cut = feed(bytes, &[first, second]);
                assert_eq!(
                    cut,
                    whole,
                    "cut at {first} and {second}: {}",
                    bytes.escape_ascii()
                );
            }
        }
    }
    whole
}

fn complete(bytes: &[u8]) -> Request {
    match verdict(bytes) {
        Ok(Scan::Complete(request)) => request,
        other => panic!("{}: {other:?}", bytes.escape_ascii()),
    }
}

fn need(bytes: &[u8]) -> usize {
    match feed(bytes, &[]) {
        Ok(Scan::Incomplete { need }) => need,
        other => panic!("{}: {other:?}", bytes.escape_ascii()),
    }
}

fn error(bytes: &[u8]) -> String {
    verdict(bytes)
        .expect_err(&bytes.escape_ascii().to_string())
        .to_string()
}

#[test]
fn a_multibulk_request() {
    let buf = b"*3\r\n$3\r\nSET\r\n$2\r\nab\r\n$12\r\n0123456789ab\r\n*1\r\n$4\r\nPING\r\n";
    let request = complete(buf);
    assert_eq!((request.len, request.args, request.inline), (40, 3, false));
    assert_eq!((request.name(buf), request.first(buf)), (&b"SET"[..], &b"ab"[..]));
    let words: Vec<&[u8]> = args(&buf[..request.len]).collect();
    assert_eq!(words, [&b"SET"[..], b"ab", b"0123456789ab"]);
    let rest = complete(&buf[request.len..]);
    assert_eq!((rest.len, rest.args, rest.first), (14, 1, (0, 0)));
}

#[test]
fn a_scanner_goes_on_with_the_next_request() {
    let stream = [
        &encode_command(&[b"GET", b"k"])[..],
        b"PING\r\n",
        b"*0\r\n",
        &encode_command(&[b"A", b"", b"c"]),
    ]
    .concat();
    let mut scanner = RequestScanner::new();
    let (mut start, mut end, mut found) = (0, 0, Vec::new());
    while end <= stream.len() {
        match scanner.scan(&stream[start..end]).unwrap() {
            Scan::Complete(request) => {
                found.push((request.args, request.inline));
                start += request.len;
            }
            Scan::Incomplete { .. } => end += 1,
        }
    }
    assert_eq!(found, [(2, false), (1, true), (0, false), (3, false)]);
    assert_eq!(start, stream.len());
}

#[test]
fn requests_without_arguments() {
    for bytes in [
        &b"*0\r\n"[..],
        b"*-1\r\n",
        b"*-9223372036854775808\r\n",
        b"*0\rX",
        b"\r\n",
        b"\n",
        b" \t \r\n",
        b"\r\r\n",
    ] {
        let request = complete(bytes);
        assert_eq!(
            (request.len, request.args),
            (bytes.len(), 0),
            "{}",
            bytes.escape_ascii()
        );
    }
}

#[test]
fn inline_requests() {
    let buf = b"  set\tk \"a b\"\r\nPING\n";
    let request = complete(buf);
    assert_eq!((request.len, request.args, request.inline), (15, 3, true));
    assert_eq!((request.name(buf), request.first(buf)), (&b"set"[..], &b"k"[..]));
    assert_eq!(complete(b"PING\n").len, 5);
    assert_eq!(complete(b"'a' \"b\"\n").args, 2);
    assert_eq!(complete(b"+OK\r\n").args, 1);
}

/// What Redis does not check, although one might expect it: tried on 7.0.15 (see `tests/resp_differential.rs`).
#[test]
fn what_redis_lets_pass() {
    assert_eq!(complete(b"*1\rX$4\rYPINGZZ").len, 14);
    assert_eq!(complete(b"*1\r\n$0\r\n\r\n").name, (8, 8));
}

#[test]
fn errors_are_worded_as_redis_words_them() {
    for (bytes, want) in [
        (&b"*+3\r\n"[..], "Protocol error: invalid multibulk length"),
        (b"*\r\n", "Protocol error: invalid multibulk length"),
        (b"*03\r\n", "Protocol error: invalid multibulk length"),
        (b"* 3\r\n", "Protocol error: invalid multibulk length"),
        (b"*3x\r\n", "Protocol error: invalid multibulk length"),
        (b"*2147483648\r\n", "Protocol error: invalid multibulk length"),
        (
            b"*99999999999999999999999\r\n",
            "Protocol error: invalid multibulk length",
        ),
        (b"*1\r\n*1\r\n", "Protocol error: expected '$', got '*'"),
        (b"*1\r\n\r\n\r\n", "Protocol error: expected '$', got ' '"),
        (b"*1\r\n:3\r\n", "Protocol error: expected '$', got ':'"),
        (b"*1\r\n$-1\r\n", "Protocol error: invalid bulk length"),
        (b"*1\r\n$\r\n", "Protocol error: invalid bulk length"),
        (b"*1\r\n$04\r\n", "Protocol error: invalid bulk length"),
        (b"*1\r\n$536870913\r\n", "Protocol error: invalid bulk length"),
        (b"*1\r\n$629145600\r\n", "Protocol error: invalid bulk length"),
        (b"*2\r\n$4\r\nPINGxx$x\r\n", "Protocol error: invalid bulk length"),
        (b"\"PING\r\n", "Protocol error: unbalanced quotes in request"),
        (b"'a'b\n", "Protocol error: unbalanced quotes in request"),
    ] {
        assert_eq!(error(bytes), want, "{}", bytes.escape_ascii());
        assert_eq!(
            ProtocolError::to_reply(feed(bytes, &[]).unwrap_err()),
            format!("-ERR {want}\r\n").as_bytes()
        );
    }
    let strange = feed(b"*1\r\n\xff\r\n", &[]).unwrap_err();
    assert_eq!(
        strange.to_reply(),
        b"-ERR Protocol error: expected '$', got '\xff'\r\n"
    );
}

#[test]
fn lines_end_within_64_kib() {
    let longest = |prefix: &[u8], end: &[u8]| {
        let mut bytes = prefix.to_vec();
        let line = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |lf| lf + 1);
        bytes.resize(line + MAX_LINE, b'1');
        [&bytes, end].concat()
    };
    for (prefix, error) in [
        (&b"*1"[..], ProtocolError::CountLineTooLong),
        (b"*1\r\n$1", ProtocolError::LengthLineTooLong),
        (b"*1\r\n$\0", ProtocolError::LengthLineTooLong),
        (b"*\0", ProtocolError::CountLineTooLong),
        (b"PING", ProtocolError::InlineTooLong),
        (b"PI\0G", ProtocolError::InlineTooLong),
    ] {
        for cuts in [&[][..], &[1, 2, 3, 6, 7, 8, 5_000, 60_000, 65_535, 65_536]] {
            let waits = feed(&longest(prefix, b""), cuts);
            assert!(
                matches!(waits, Ok(Scan::Incomplete { .. })),
                "{}: {waits:?}",
                prefix.escape_ascii()
            );
            assert_eq!(
                feed(&longest(prefix, b"1"), cuts),
                Err(error),
                "{}",
                prefix.escape_ascii()
            );
        }
    }
    assert_eq!(
        feed(&longest(b"*1", b"\r\n"), &[]),
        Err(ProtocolError::InvalidCount)
    );
    assert_eq!(
        feed(&longest(b"*1\r\n$1", b"\r\n"), &[]),
        Err(ProtocolError::InvalidLength)
    );
    assert!(matches!(feed(&longest(b"PING", b"\n"), &[]), Ok(Scan::Complete(request)) if request.args == 1));
}

/// Redis' `strchr` stops at NUL: whatever ends the line behind it is not seen.
#[test]
fn a_nul_hides_the_rest_of_its_line() {
    for bytes in [
        &b"PI\0NG\r\n"[..],
        b"*1\0\r\n$4\r\nPING\r\n",
        b"*1\r\n$4\0\r\nPING\r\n",
        b"\0\n",
    ] {
        assert!(
            matches!(verdict(bytes), Ok(Scan::Incomplete { .. })),
            "{}",
            bytes.escape_ascii()
        );
    }
    assert_eq!(complete(b"*1\r\n$3\r\na\0b\r\n").args, 1);
}

#[test]
fn what_is_needed_is_a_lower_bound() {
    let frame = encode_command(&[b"SET", b"key", &[b'x'; 1000]]);
    for cut in 0..frame.len() {
        let need = need(&frame[..cut]);
        assert!(
            (1..=frame.len() - cut).contains(&need),
            "{need} at {cut} of {}",
            frame.len()
        );
    }
    assert_eq!(need(b"*3\r\n$3\r\nSET\r\n$3\r\nkey\r\n$1000\r\n"), 1002);
    assert_eq!(need(b"*2147483647\r\n$536870912\r\n"), 536_870_914);
}

#[test]
fn unauthenticated_clients_have_narrow_limits() {
    let scan = |bytes: &[u8]| {
        let mut scanner = RequestScanner::new();
        scanner.set_unauthenticated(true);
        scanner.scan(bytes)
    };
    assert_eq!(scan(b"*11\r\n"), Err(ProtocolError::UnauthenticatedCount));
    assert_eq!(
        scan(b"*1\r\n$16385\r\n"),
        Err(ProtocolError::UnauthenticatedLength)
    );
    assert!(matches!(scan(b"*10\r\n"), Ok(Scan::Incomplete { .. })));
    assert!(matches!(
        scan(b"*1\r\n$16384\r\n"),
        Ok(Scan::Incomplete { need: 16386 })
    ));
    let mut scanner = RequestScanner::new();
    scanner.set_unauthenticated(true);
    assert!(matches!(
        scanner.scan(b"*1\r\n$4\r\nPI"),
        Ok(Scan::Incomplete { .. })
    ));
    assert!(matches!(
        scanner.scan(b"*1\r\n$4\r\nPING\r\n"),
        Ok(Scan::Complete(_))
    ));
    assert_eq!(
        scanner.scan(b"*11\r\n"),
        Err(ProtocolError::UnauthenticatedCount),
        "the limits stay"
    );
}

#[test]
fn a_hundred_thousand_nested_arrays_are_one_error() {
    assert_eq!(
        feed(&b"*1\r\n".repeat(100_000), &[]),
        Err(ProtocolError::ExpectedBulk(b'*'))
    );
}

#[test]
fn arguments_of_what_is_no_request() {
    for bytes in [
        &b""[..],
        b"*",
        b"*3",
        b"PING\r\n",
        b"*-1\r\n",
        b"*0\r\n",
        b"*1\r\n",
        b"*1\r\n$5\r\nab",
    ] {
        assert_eq!(args(bytes).count(), 0, "{}", bytes.escape_ascii());
    }
    assert_eq!(args(b"*3\r\n$1\r\na\r\n$1\r\n").count(), 1);
}
