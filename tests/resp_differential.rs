//! A real `redis-server` says what the scanner, the key finder and the slot function must say.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/resp_calls.rs"]
mod resp_calls;
#[path = "support/resp_server.rs"]
mod resp_server;

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener};
use std::path::Path;

use pulsegate::resp::command::{self, KeySet};
use pulsegate::resp::{
    ProtocolError, ReplyScan, ReplyScanner, Request, RequestScanner, Scan, args, encode_command, error_code,
    inline_args, keys, reply_elements, reply_text, slot,
};
use resp_calls::{Random, ask, call, connect, seed};
use resp_server::Server;

/// All that the server answers to `bytes`, until it closes. It closes after a protocol error, or once it has answered
/// everything.
fn answers(server: &Server, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(server);
    // It may close before it has read all: what it said until then is what counts.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(Shutdown::Write);
    let mut out = Vec::new();
    match stream.read_to_end(&mut out) {
        Ok(_) => {}
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => {}
        Err(e) => panic!("{e} after {} to {}", out.escape_ascii(), bytes.escape_ascii()),
    }
    out
}

/// What the server must answer, by the scanner's verdict. `None` stands for an error reply of whatever text.
fn predicted(bytes: &[u8]) -> Vec<Option<Vec<u8>>> {
    let mut scanner = RequestScanner::new();
    let mut rest = bytes;
    let mut replies = Vec::new();
    loop {
        match scanner.scan(rest) {
            Ok(Scan::Complete(request)) => {
                let (frame, behind) = rest.split_at(request.len);
                replies.extend(reply_to(frame, &request));
                rest = behind;
            }
            Ok(Scan::Incomplete { .. }) => return replies,
            Err(error) => {
                replies.push(Some(error.to_reply()));
                return replies;
            }
        }
    }
}

fn reply_to(frame: &[u8], request: &Request) -> Option<Option<Vec<u8>>> {
    let words: Vec<Vec<u8>> = match request.inline {
        true => inline_args(frame).expect("the scanner found the quotes balanced"),
        false => args(frame).map(<[u8]>::to_vec).collect(),
    };
    assert_eq!(words.len(), request.args as usize, "{}", frame.escape_ascii());
    match &words[..] {
        [] => None,
        [name, text] if name.eq_ignore_ascii_case(b"ECHO") => Some(Some(
            [format!("${}\r\n", text.len()).as_bytes(), text, b"\r\n"].concat(),
        )),
        _ => Some(None),
    }
}

fn compare(server: &Server, bytes: &[u8], context: &str) {
    let wanted = predicted(bytes);
    let said = answers(server, bytes);
    let context = || {
        format!(
            "{context}\nsent {}\ngot  {}",
            bytes.escape_ascii(),
            said.escape_ascii()
        )
    };
    let mut rest = &said[..];
    for want in &wanted {
        let got = match ReplyScanner::new().scan(rest) {
            Ok(ReplyScan::Complete(reply)) => &rest[..reply.len],
            other => panic!(
                "{other:?} instead of {:?}\n{}",
                want.as_ref().map(|w| w.escape_ascii()),
                context()
            ),
        };
        match want {
            Some(want) => assert_eq!(
                got.escape_ascii().to_string(),
                want.escape_ascii().to_string(),
                "{}",
                context()
            ),
            None => {
                assert_eq!(error_code(got), Some(&b"ERR"[..]), "{}", context());
                assert!(!got.starts_with(b"-ERR Protocol error"), "{}", context());
            }
        }
        rest = &rest[got.len()..];
    }
    assert!(
        rest.is_empty(),
        "more than predicted: {}\n{}",
        rest.escape_ascii(),
        context()
    );
}

/// One thing a client may send: right, odd or wrong. No command but ECHO is known among them.
fn part(random: &mut Random) -> Vec<u8> {
    let text = |random: &mut Random| -> Vec<u8> {
        let alphabet = b"ab\r\n\0\xff\"'\\ *$1";
        (0..random.below(12))
            .map(|_| alphabet[random.below(alphabet.len())])
            .collect()
    };
    match random.below(10) {
        0..=3 => encode_command(&[b"ECHO", &text(random)]),
        4 => {
            let words: Vec<Vec<u8>> = (0..random.below(4)).map(|_| text(random)).collect();
            encode_command(&words.iter().map(Vec::as_slice).collect::<Vec<_>>())
        }
        5 | 6 => {
            let words = [
                "echo",
                "ECHO",
                "a",
                "\"a b\"",
                "'a b'",
                "\"\\x41\\n\"",
                "'\\''",
                "\"",
                "'",
                "a\"b\"",
                "\x0b",
                "\\",
            ];
            let blanks = [" ", "  ", "\t", "\x0b", " \x0c "];
            let mut line = if random.below(2) == 0 {
                String::from("echo ")
            } else {
                String::new()
            };
            for _ in 0..random.below(4) {
                line += random.pick(&words);
                line += random.pick(&blanks);
            }
            (line + random.pick(&["\r\n", "\n", "\r\r\n"])).into_bytes()
        }
        7 => {
            let lines = [
                "*0\r\n",
                "*-1\r\n",
                "*-3\r\n",
                "*1\rX",
                "*01\r\n",
                "*+1\r\n",
                "*-0\r\n",
                "* 1\r\n",
                "*\r\n",
                "\r\n",
                "\n",
                "*2147483647\r\n",
                "*2147483648\r\n",
                "*-9223372036854775808\r\n",
                "*-9223372036854775809\r\n",
                "*1\r\n$-1\r\n",
                "*1\r\n$04\r\n",
                "*1\r\n$536870912\r\n",
                "*1\r\n$536870913\r\n",
                "*1\r\n$\r\n",
                "*1\r\n*1\r\n",
                "*1\r\n\r\n\r\n",
                "*1\r\n\n\r\n",
                "*1\r\n\0\r\n",
                "*1\r\n$4\0\r\n",
                "*1\0\r\n",
                "a\0\n",
                "*1\r\n$1\rXaYY",
                "*2\r\n$4\r\nechoYY$1\r\nbZZ",
            ];
            random.pick(&lines).as_bytes().to_vec()
        }
        8 => {
            let alphabet = b"*$+-:\r\n 0123456789\"'\\xa\0\t\x0b\xff";
            (0..random.below(20))
                .map(|_| alphabet[random.below(alphabet.len())])
                .collect()
        }
        _ => {
            let mut frame = encode_command(&[b"ECHO", &text(random)]);
            let at = random.below(frame.len());
            let alphabet = b"*$-+ 019\r\n\0x\"\xff";
            let byte = alphabet[random.below(alphabet.len())];
            match random.below(3) {
                0 => frame[at] = byte,
                1 => frame.insert(at, byte),
                _ => drop(frame.remove(at)),
            }
            frame
        }
    }
}

#[test]
fn the_scanner_and_the_server_agree_on_random_streams() {
    let server = Server::redis();
    let seed = seed();
    let mut errors = std::collections::BTreeSet::new();
    for step in 0..6_000 {
        let mut random = Random(seed.wrapping_add(step));
        let stream: Vec<u8> = (0..=random.below(6)).flat_map(|_| part(&mut random)).collect();
        compare(&server, &stream, &format!("RESP_SEED={seed}, step {step}"));
        if let Some(Some(last)) = predicted(&stream).pop()
            && last.starts_with(b"-")
        {
            errors.insert(last);
        }
    }
    // The streams are worth nothing if they do not go wrong in every way.
    assert!(
        errors.len() >= 8,
        "seed {seed}: only {} kinds of errors",
        errors.len()
    );
}

/// Where exactly a line is too long: the last byte decides, however the server reads.
#[test]
fn the_scanner_and_the_server_agree_on_long_lines() {
    const MAX: usize = 64 * 1024;
    let server = Server::redis();
    for (prefix, line, error) in [
        ("", "*1", ProtocolError::CountLineTooLong),
        ("*1\r\n", "$1", ProtocolError::LengthLineTooLong),
        ("", "a", ProtocolError::InlineTooLong),
        ("", "a\0", ProtocolError::InlineTooLong),
        ("*2\r\n$4\r\nECHO\r\n", "$\0", ProtocolError::LengthLineTooLong),
    ] {
        let mut bytes = [prefix, line].concat().into_bytes();
        bytes.resize(prefix.len() + MAX, b'1');
        assert_eq!(predicted(&bytes), [], "{prefix}{line}");
        compare(&server, &bytes, "the longest line");
        bytes.push(b'1');
        assert_eq!(predicted(&bytes), [Some(error.to_reply())], "{prefix}{line}");
        compare(&server, &bytes, "one byte more");
    }
}

#[test]
fn the_narrow_limits_before_authentication_are_the_servers() {
    let server = Server::start(Path::new("redis-server"), &["--requirepass", "secret"]);
    for (bytes, error) in [
        ("*11\r\n", Some(ProtocolError::UnauthenticatedCount)),
        ("*10\r\n", None),
        ("*1\r\n$16385\r\n", Some(ProtocolError::UnauthenticatedLength)),
        ("*1\r\n$16384\r\n", None),
    ] {
        let mut scanner = RequestScanner::new();
        scanner.set_unauthenticated(true);
        assert_eq!(scanner.scan(bytes.as_bytes()).err(), error, "{bytes:?}");
        let said = answers(&server, bytes.as_bytes());
        let wanted = error.map(ProtocolError::to_reply).unwrap_or_default();
        assert_eq!(
            said.escape_ascii().to_string(),
            wanted.escape_ascii().to_string(),
            "{bytes:?}"
        );
    }
}

fn getkeys_agrees(server: &Server, seed: u64) {
    let rows = command::all().iter().flat_map(|info| {
        if info.is_container() {
            info.subcommands
        } else {
            std::slice::from_ref(info)
        }
    });
    let mut stream = connect(server);
    let (mut agreed, mut with_keys) = (0, 0);
    for (index, info) in rows
        .filter(|info| !matches!(info.keys, KeySet::None | KeySet::Routed(_)))
        .enumerate()
    {
        let calls = if matches!(info.keys, KeySet::First) {
            20
        } else {
            600
        };
        let mut random = Random(seed.wrapping_add(index as u64));
        let frames: Vec<Vec<u8>> = (0..calls)
            .map(|_| {
                encode_command(
                    &call(&mut random, info)
                        .iter()
                        .map(Vec::as_slice)
                        .collect::<Vec<_>>(),
                )
            })
            .collect();
        let questions: Vec<Vec<u8>> = frames
            .iter()
            .map(|frame| {
                encode_command(
                    &[&b"COMMAND"[..], b"GETKEYS"]
                        .into_iter()
                        .chain(args(frame))
                        .collect::<Vec<_>>(),
                )
            })
            .collect();
        for (frame, reply) in frames.iter().zip(ask(&mut stream, &questions)) {
            let unknown = reply_text(&reply).is_some_and(|text| text.starts_with(b"ERR Invalid command"));
            if unknown {
                continue;
            }
            let want: Vec<&[u8]> = reply_elements(&reply)
                .map(|element| reply_text(element).unwrap())
                .collect();
            let got: Vec<&[u8]> = keys(info, frame).map(|range| &frame[range]).collect();
            assert_eq!(
                got,
                want,
                "seed {seed}: {} answers {}",
                frame.escape_ascii(),
                reply.escape_ascii()
            );
            agreed += 1;
            with_keys += usize::from(!want.is_empty());
        }
    }
    assert!(
        agreed > 5_000 && with_keys > agreed / 4,
        "{agreed} calls, {with_keys} of them with keys"
    );
}

#[test]
fn keys_are_those_of_command_getkeys() {
    getkeys_agrees(&Server::redis(), seed());
}

#[test]
fn slots_are_those_of_cluster_keyslot() {
    // The cluster bus cannot do without a port of its own.
    let bus = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
        .to_string();
    let options = [
        "--cluster-enabled",
        "yes",
        "--bind",
        "127.0.0.1",
        "--cluster-port",
        &bus,
    ];
    let server = Server::start(Path::new("redis-server"), &options);
    let mut stream = connect(&server);
    let seed = seed();
    let mut random = Random(seed);
    let alphabet = b"{}{}ab\xff\0 12";
    let names: Vec<Vec<u8>> = (0..5_000)
        .map(|_| {
            (0..random.below(14))
                .map(|_| alphabet[random.below(alphabet.len())])
                .collect()
        })
        .collect();
    let questions: Vec<Vec<u8>> = names
        .iter()
        .map(|key| encode_command(&[b"CLUSTER", b"KEYSLOT", key]))
        .collect();
    for (key, reply) in names.iter().zip(ask(&mut stream, &questions)) {
        let want = String::from_utf8(reply_text(&reply).unwrap().to_vec()).unwrap();
        assert_eq!(slot(key).to_string(), want, "seed {seed}: {}", key.escape_ascii());
    }
}
