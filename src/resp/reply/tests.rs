use super::*;

/// As for requests: pieces, and what the scanner says it is done with is overwritten before each further call.
fn feed(bytes: &[u8], cuts: &[usize]) -> Result<ReplyScan, ProtocolError> {
    let mut scanner = ReplyScanner::new();
    let mut last = Ok(ReplyScan::Incomplete { need: 1 });
    let mut seen = 0;
    for &cut in cuts.iter().chain([&bytes.len()]) {
        let mut buf = bytes[..cut].to_vec();
        buf[..seen].fill(b'\xfe');
        last = scanner.scan(&buf);
        if let Ok(ReplyScan::Incomplete { need }) = last {
            assert!(need >= 1);
            assert!(!scanner.is_idle() || cut == 0);
            seen = scanner.done_with(cut);
            assert!(seen + 1 >= cut, "{seen} of {cut}");
        } else {
            assert!(last.is_err() || scanner.is_idle());
            break;
        }
    }
    last
}

fn verdict(bytes: &[u8]) -> Result<ReplyScan, ProtocolError> {
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

fn complete(bytes: &[u8]) -> Reply {
    match verdict(bytes) {
        Ok(ReplyScan::Complete(reply)) => reply,
        other => panic!("{}: {other:?}", bytes.escape_ascii()),
    }
}

#[test]
fn every_type_of_resp2_and_resp3() {
    for bytes in [
        &b"+OK\r\n"[..],
        b"+PONG\r\n",
        b"+\r\n",
        b"+a\rb\nc\r\r\n",
        b"+a status of more than twenty-four bytes\r\n",
        b"-ERR unknown command\r\n",
        b":0\r\n",
        b":-9223372036854775808\r\n",
        b"$-1\r\n",
        b"$0\r\n\r\n",
        b"$4\r\n\r\n\r\n\r\n",
        b"$12\r\n0123456789ab\r\n",
        b"*-1\r\n",
        b"*0\r\n",
        b"*3\r\n:1\r\n$-1\r\n*-1\r\n",
        b"*2\r\n*2\r\n+a\r\n$1\r\nb\r\n*0\r\n",
        b"_\r\n",
        b"#t\r\n",
        b",3.14\r\n",
        b",-inf\r\n",
        b"(3492890328409238509324850943850943825024385\r\n",
        b"!21\r\nSYNTAX invalid syntax\r\n",
        b"=15\r\ntxt:Some string\r\n",
        b"%2\r\n+a\r\n:1\r\n+b\r\n*1\r\n_\r\n",
        b"%0\r\n",
        b"~2\r\n#f\r\n,1\r\n",
        b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nm\r\n",
    ] {
        let reply = complete(&[bytes, b"+next\r\n"].concat());
        assert_eq!(
            (reply.len, reply.start, reply.kind),
            (bytes.len(), 0, bytes[0]),
            "{}",
            bytes.escape_ascii()
        );
        for cut in 0..bytes.len() {
            match feed(&bytes[..cut], &[]) {
                Ok(ReplyScan::Incomplete { need }) => {
                    assert!(
                        need <= bytes.len() - cut,
                        "{need} at {cut}: {}",
                        bytes.escape_ascii()
                    );
                }
                other => panic!("{other:?} at {cut}: {}", bytes.escape_ascii()),
            }
        }
    }
}

#[test]
fn attributes_belong_to_the_reply_behind_them() {
    let bytes = b"|1\r\n+ttl\r\n*2\r\n:1\r\n:2\r\n|0\r\n%1\r\n+k\r\n|1\r\n+x\r\n+y\r\n:5\r\n";
    let reply = complete(bytes);
    assert_eq!((reply.len, reply.start, reply.kind), (bytes.len(), 26, b'%'));
    let elements: Vec<&[u8]> = reply_elements(bytes).collect();
    assert_eq!(elements, [&b"+k\r\n"[..], b"|1\r\n+x\r\n+y\r\n:5\r\n"]);
    assert_eq!(reply_text(elements[1]), Some(&b"5"[..]));
    assert_eq!(
        error_code(b"|1\r\n+a\r\n+b\r\n-MOVED 1 a:1\r\n"),
        Some(&b"MOVED"[..])
    );
}

#[test]
fn what_is_no_reply() {
    for (bytes, want) in [
        (
            &b"HTTP/1.1 400 Bad Request\r\n"[..],
            ProtocolError::ReplyType(b'H'),
        ),
        (b"\r\n", ProtocolError::ReplyType(b'\r')),
        (b"*1\r\nx", ProtocolError::ReplyType(b'x')),
        (b"$x\r\n", ProtocolError::ReplyLength),
        (b"$\r\n", ProtocolError::ReplyLength),
        (b"$1\rx", ProtocolError::ReplyLength),
        (b"$-2\r\n", ProtocolError::ReplyLength),
        (b"%-1\r\n", ProtocolError::ReplyLength),
        (b"$1099511627777\r\n", ProtocolError::ReplyLength),
        (b"*4294967296\r\n", ProtocolError::ReplyLength),
        (b"$111111111111111111111", ProtocolError::ReplyLength),
        (b"$1\r\nab\r\n", ProtocolError::ReplyTerminator),
        (b"*1\r\n$1\r\na\rb", ProtocolError::ReplyTerminator),
        (b"$?\r\n", ProtocolError::ReplyStreamed),
        (b"*?\r\n", ProtocolError::ReplyStreamed),
        (b".\r\n", ProtocolError::ReplyType(b'.')),
    ] {
        assert_eq!(verdict(bytes), Err(want), "{}", bytes.escape_ascii());
        assert!(!want.to_string().is_empty());
    }
}

#[test]
fn nesting_costs_nothing() {
    let flat = [b"*1\r\n".repeat(100_000), b":1\r\n".to_vec()].concat();
    assert_eq!(
        feed(&flat, &[]),
        Ok(ReplyScan::Complete(Reply {
            len: flat.len(),
            start: 0,
            kind: b'*'
        }))
    );
    // As a script can make Redis nest: an element behind each level.
    let steep = [b"*2\r\n".repeat(7_000), b":1\r\n".repeat(7_001)].concat();
    let pieces: Vec<usize> = (0..steep.len()).step_by(7).collect();
    assert_eq!(
        feed(&steep, &pieces),
        Ok(ReplyScan::Complete(Reply {
            len: steep.len(),
            start: 0,
            kind: b'*'
        }))
    );
}

#[test]
fn counts_do_not_overflow() {
    let bytes = b"*4294967295\r\n".repeat(50_000);
    assert!(matches!(feed(&bytes, &[]), Ok(ReplyScan::Incomplete { .. })));
    let scanner = ReplyScanner {
        outstanding: u64::MAX - 1,
        ..ReplyScanner::new()
    };
    assert_eq!(
        { scanner }.scan(b"*4294967295\r\n"),
        Err(ProtocolError::ReplyLength)
    );
}

/// A reply that is passed on while it arrives, in pieces of every size, has its end found all the same.
#[test]
fn a_reply_may_be_passed_on_before_it_is_whole() {
    let reply = b"|1\r\n+a\r\n+b\r\n*4\r\n$26\r\nabcdefghijklmnopqrstuvwxyz\r\n+a long line, not to be cut short\r\n*1\r\n:1\r\n$-1\r\n";
    let stream = [&reply[..], b"+next\r\n"].concat();
    for piece in 1..stream.len() {
        let mut scanner = ReplyScanner::new();
        let (mut start, mut passed) = (0, 0);
        for end in (piece..stream.len() + piece)
            .step_by(piece)
            .map(|end| end.min(stream.len()))
        {
            match scanner.scan(&stream[start..end]).unwrap() {
                ReplyScan::Complete(found) => {
                    assert_eq!(
                        (start + found.len, found.kind),
                        (reply.len(), b'*'),
                        "pieces of {piece}"
                    );
                    passed = start + found.len;
                    break;
                }
                ReplyScan::Incomplete { .. } => {
                    let done = scanner.done_with(end - start);
                    scanner.forget(done);
                    start += done;
                }
            }
        }
        assert_eq!(passed, reply.len(), "pieces of {piece}");
    }
}

#[test]
fn elements_and_texts() {
    let message = b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n*1\r\n:1\r\n";
    let elements: Vec<_> = reply_elements(message).collect();
    assert_eq!(
        elements,
        [&b"$7\r\nmessage\r\n"[..], b"$1\r\nc\r\n", b"*1\r\n:1\r\n"]
    );
    assert_eq!(reply_text(elements[0]), Some(&b"message"[..]));
    assert_eq!(reply_elements(b"%1\r\n+proto\r\n:3\r\n").count(), 2);
    assert_eq!(reply_elements(b"*3\r\n:1\r\n").count(), 1, "as many as are whole");
    for bytes in [&b""[..], b"+OK\r\n", b"*-1\r\n", b"*0\r\n", b"*", b"|1\r\n"] {
        assert_eq!(reply_elements(bytes).count(), 0, "{}", bytes.escape_ascii());
    }
    for (bytes, want) in [
        (&b"+OK\r\n"[..], Some(&b"OK"[..])),
        (b":12\r\n", Some(b"12")),
        (b"$-1\r\n", None),
        (b"_\r\n", None),
        (b"*0\r\n", None),
        (b"=8\r\ntxt:abcd\r\n", Some(b"abcd")),
        (b"$3\r\nab", None),
        (b"", None),
    ] {
        assert_eq!(reply_text(bytes), want, "{}", bytes.escape_ascii());
    }
    assert_eq!(
        error_code(b"-NOSCRIPT No matching script.\r\n"),
        Some(&b"NOSCRIPT"[..])
    );
    assert_eq!(error_code(b"-LOADING\r\n"), Some(&b"LOADING"[..]));
    assert_eq!(error_code(b"!11\r\nERR unknown\r\n"), Some(&b"ERR"[..]));
    assert_eq!(error_code(b"+OK\r\n"), None);
}
