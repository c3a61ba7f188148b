//! The scanners against redis-protocol, against every chunking, and against hostile input.

use bytes::BytesMut;
use proptest::prelude::*;

use super::*;

/// Scans `stream` as it comes in pieces cut at `cuts`; the frames found. Bytes behind `seen` of earlier calls are
/// poisoned before each call, so a scanner that reads a payload again fails.
fn requests(stream: &[u8], cuts: &[usize]) -> Result<Vec<Request>, ProtocolError> {
    let (mut scanner, mut found, mut start) = (RequestScanner::new(), Vec::new(), 0);
    let mut ends: Vec<usize> = cuts
        .iter()
        .map(|c| c % (stream.len() + 1))
        .chain([stream.len()])
        .collect();
    ends.sort_unstable();
    for end in ends {
        loop {
            if start >= end {
                break;
            }
            match scanner.scan(&stream[start..end])? {
                Scan::Complete(request) => {
                    start += request.len;
                    found.push(request);
                }
                Scan::Incomplete { need } => {
                    assert!(need > 0);
                    break;
                }
            }
        }
    }
    assert!(start == stream.len(), "bytes left over: {}", stream.len() - start);
    Ok(found)
}

fn replies(stream: &[u8], cuts: &[usize]) -> Result<Vec<Reply>, ReplyError> {
    let (mut scanner, mut found, mut start) = (ReplyScanner::new(), Vec::new(), 0);
    let mut ends: Vec<usize> = cuts
        .iter()
        .map(|c| c % (stream.len() + 1))
        .chain([stream.len()])
        .collect();
    ends.sort_unstable();
    for end in ends {
        while start < end {
            match scanner.scan(&stream[start..end])? {
                ReplyScan::Complete(reply) => {
                    start += reply.len;
                    found.push(reply);
                }
                ReplyScan::Incomplete { need } => {
                    assert!(
                        need > 0 && start + need <= stream.len() + end - start,
                        "asks for more than there is"
                    );
                    break;
                }
            }
        }
    }
    assert_eq!(start, stream.len());
    Ok(found)
}

fn words() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop::collection::vec(prop::collection::vec(any::<u8>(), 0..80), 1..8)
}

/// Any RESP3 frame, as bytes.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let text = "[a-zA-Z0-9 :._-]{0,40}";
    let leaf = prop_oneof![
        text.prop_map(|t| format!("+{t}\r\n").into_bytes()),
        text.prop_map(|t| format!("-ERR {t}\r\n").into_bytes()),
        any::<i64>().prop_map(|n| format!(":{n}\r\n").into_bytes()),
        prop::collection::vec(any::<u8>(), 0..300).prop_map(|b| [
            format!("${}\r\n", b.len()).as_bytes(),
            &b,
            b"\r\n"
        ]
        .concat()),
        Just(b"_\r\n".to_vec()),
        Just(b"#t\r\n".to_vec()),
        Just(b",3.25\r\n".to_vec()),
        Just(b"(3492890328409238509324850943850943825024385\r\n".to_vec()),
        Just(b"=15\r\ntxt:Some string\r\n".to_vec()),
        Just(b"!21\r\nSYNTAX invalid syntax\r\n".to_vec()),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        let many = prop::collection::vec(inner.clone(), 0..6);
        prop_oneof![
            many.clone()
                .prop_map(|m| [format!("*{}\r\n", m.len()).into_bytes(), m.concat()].concat()),
            prop::collection::vec((0..1000u32, inner), 0..4).prop_map(|m| {
                let body: Vec<u8> = m
                    .iter()
                    .enumerate()
                    .flat_map(|(i, (_, v))| [format!(":{i}\r\n").as_bytes(), v].concat())
                    .collect();
                [format!("%{}\r\n", m.len()).into_bytes(), body].concat()
            }),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn requests_are_found_whatever_the_pieces(
        all in prop::collection::vec(words(), 1..6), cuts in prop::collection::vec(any::<usize>(), 0..40)
    ) {
        let mut stream = BytesMut::new();
        let mut ends = Vec::new();
        for words in &all {
            let refs: Vec<&[u8]> = words.iter().map(|w| &w[..]).collect();
            encode_command(&refs, &mut stream);
            ends.push(stream.len());
        }
        let found = requests(&stream, &cuts).unwrap();
        prop_assert_eq!(found.len(), all.len());
        let mut start = 0;
        for (request, (words, end)) in found.iter().zip(all.iter().zip(&ends)) {
            let frame = &stream[start..*end];
            prop_assert_eq!(request.len, frame.len());
            prop_assert_eq!(request.args as usize, words.len());
            prop_assert_eq!(&frame[request.name.0 as usize..request.name.1 as usize], &words[0][..]);
            if let Some(first) = words.get(1) {
                prop_assert_eq!(&frame[request.first.0 as usize..request.first.1 as usize], &first[..]);
            }
            prop_assert_eq!(args(frame).map(<[u8]>::to_vec).collect::<Vec<_>>(), words.clone());
            // The oracle agrees about the end.
            let decoded = redis_protocol::resp2::decode::decode_bytes(&bytes::Bytes::copy_from_slice(frame)).unwrap().unwrap();
            prop_assert_eq!(decoded.1, request.len);
            start = *end;
        }
    }

    #[test]
    fn replies_end_where_redis_protocol_says(
        frames in prop::collection::vec(frame(), 1..6), cuts in prop::collection::vec(any::<usize>(), 0..40)
    ) {
        let stream = frames.concat();
        let found = replies(&stream, &cuts).unwrap();
        prop_assert_eq!(found.iter().map(|r| r.len).collect::<Vec<_>>(), frames.iter().map(Vec::len).collect::<Vec<_>>());
        for (reply, frame) in found.iter().zip(&frames) {
            prop_assert_eq!(reply.kind, frame[0]);
            let decoded = redis_protocol::resp3::decode::complete::decode_bytes(&bytes::Bytes::copy_from_slice(frame)).unwrap().unwrap();
            prop_assert_eq!(decoded.1, reply.len);
        }
    }

    #[test]
    fn no_bytes_make_a_scanner_panic(bytes in prop::collection::vec(prop_oneof![
        Just(b'*'), Just(b'$'), Just(b'\r'), Just(b'\n'), Just(b'-'), Just(b'1'), Just(b'|'), Just(b'%'), any::<u8>()
    ], 0..200)) {
        let mut scanner = RequestScanner::new();
        let _ = scanner.scan(&bytes);
        let _ = ReplyScanner::new().scan(&bytes);
        let _ = inline_args(&bytes);
        let _ = args(if bytes.is_empty() { b"*" } else { &bytes }).count();
        let _ = elements(&bytes).count();
        let _ = error_code(&bytes);
    }
}

#[test]
fn a_payload_that_was_seen_is_not_read_again() {
    let mut stream = BytesMut::new();
    encode_command(&[b"SET", b"key", &[b'v'; 10_000]], &mut stream);
    let mut scanner = RequestScanner::new();
    let half = stream.len() / 2;
    assert!(
        matches!(scanner.scan(&stream[..half]), Ok(Scan::Incomplete { need }) if need == stream.len() - half)
    );
    stream[..half].fill(b'!');
    let Ok(Scan::Complete(request)) = scanner.scan(&stream) else {
        panic!("must complete")
    };
    assert_eq!((request.len, request.args), (stream.len(), 3));
}

#[test]
fn protocol_errors_have_redis_words() {
    let error = |bytes: &[u8]| RequestScanner::new().scan(bytes).unwrap_err().to_string();
    assert_eq!(error(b"*x\r\n"), "Protocol error: invalid multibulk length");
    assert_eq!(error(b"*1048577\r\n"), "Protocol error: invalid multibulk length");
    assert_eq!(error(b"*1\r\n$-1\r\n"), "Protocol error: invalid bulk length");
    assert_eq!(
        error(b"*1\r\n$629145600\r\n"),
        "Protocol error: invalid bulk length"
    );
    assert_eq!(error(b"*1\r\n:1\r\n"), "Protocol error: expected '$', got ':'");
    assert_eq!(
        error(&b"*1\r\n".repeat(100_000)),
        "Protocol error: expected '$', got '*'"
    );
    assert_eq!(error(&[b'a'; 70_000]), "Protocol error: too big inline request");
    let long = |prefix: &[u8]| [prefix, &[b'1'; 70_000]].concat();
    assert_eq!(error(&long(b"*")), "Protocol error: too big mbulk count string");
    assert_eq!(
        error(&long(b"*1\r\n$")),
        "Protocol error: too big bulk count string"
    );
}

#[test]
fn what_redis_ignores_has_no_arguments() {
    for empty in [&b"*0\r\n"[..], b"*-1\r\n", b"\r\n", b"\n", b"  \r\n"] {
        let Ok(Scan::Complete(request)) = RequestScanner::new().scan(empty) else {
            panic!("{empty:?}")
        };
        assert_eq!((request.len, request.args), (empty.len(), 0), "{empty:?}");
    }
}

#[test]
fn inline_requests_are_split_like_sdssplitargs() {
    let split = |line: &str| {
        inline_args(line.as_bytes()).map(|w| {
            w.into_iter()
                .map(|b| String::from_utf8(b).unwrap())
                .collect::<Vec<_>>()
        })
    };
    assert_eq!(split("SET  a b\r\n").unwrap(), ["SET", "a", "b"]);
    assert_eq!(split("set \"a b\" 'c\\'d'\n").unwrap(), ["set", "a b", "c'd"]);
    assert_eq!(split("x \"\\x41\\n\"").unwrap(), ["x", "A\n"]);
    assert_eq!(split("x \"\"").unwrap(), ["x", ""]);
    assert_eq!(split("x \"a\"b"), None);
    assert_eq!(split("x 'a"), None);
    assert_eq!(split("x \0y").unwrap(), ["x"]);
}

#[test]
fn deep_nesting_neither_overflows_nor_slows() {
    let mut stream = b"*1\r\n".repeat(100_000);
    stream.extend_from_slice(b":1\r\n");
    assert_eq!(replies(&stream, &[1000, 50_000, 50_001]).unwrap().len(), 1);
}

#[test]
fn attributes_belong_to_what_follows_and_pushes_stand_alone() {
    let stream = b"|1\r\n+ttl\r\n:3600\r\n$2\r\nhi\r\n>2\r\n$7\r\nmessage\r\n+x\r\n:7\r\n";
    let found = replies(stream, &[5, 17, 30]).unwrap();
    assert_eq!(found.iter().map(|r| r.kind).collect::<Vec<_>>(), b"$>:");
}

#[test]
fn what_redis_never_sends_is_an_error() {
    for bad in [
        &b"hello\r\n"[..],
        b"*?\r\n",
        b"$?\r\n",
        b"$12x\r\n",
        b"HTTP/1.1 400",
    ] {
        assert!(ReplyScanner::new().scan(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_huge_reply_can_be_passed_on_in_pieces() {
    let body = vec![b'z'; 100_000];
    let stream = [b"*2\r\n$100000\r\n", &body[..], b"\r\n:5\r\n"].concat();
    let (mut scanner, mut buf, mut out) = (ReplyScanner::new(), Vec::new(), Vec::new());
    for piece in stream.chunks(777) {
        buf.extend_from_slice(piece);
        match scanner.scan(&buf).unwrap() {
            ReplyScan::Complete(reply) => out.extend(buf.drain(..reply.len)),
            ReplyScan::Incomplete { .. } => {
                let seen = scanner.seen(buf.len());
                out.extend(buf.drain(..seen));
                scanner.discard(seen);
            }
        }
    }
    assert_eq!(out, stream);
}

#[test]
fn frames_say_what_is_in_them() {
    let message = b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$-1\r\n";
    assert_eq!(
        elements(message).collect::<Vec<_>>(),
        [&b"message"[..], b"c", b""]
    );
    assert_eq!(
        error_code(b"-LOADING Redis is loading\r\n"),
        Some(&b"LOADING"[..])
    );
    assert_eq!(error_code(b"!9\r\nBUSY wait\r\n"), Some(&b"BUSY"[..]));
    assert_eq!(error_code(b"+OK\r\n"), None);
}
