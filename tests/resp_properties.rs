//! The scanners against `redis-protocol`, and against every way in which the network can cut a stream.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use proptest::collection::vec;
use proptest::prelude::*;
use pulsegate::resp::{
    ProtocolError, ReplyScan, ReplyScanner, Request, RequestScanner, Scan, args, encode_command, inline_args,
    inline_to_multibulk, keys, lookup, reply_elements, reply_text,
};

/// No file of past failures: what failed is printed in full, and `PROPTEST_RNG_SEED` repeats a run.
fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// What a stream holds: frames as far as they are whole, then how it ends.
type Frames<F> = (Vec<F>, Option<ProtocolError>);

/// Scans a stream that arrives in pieces of these sizes (over and over). Whatever an earlier call has seen of a frame
/// is overwritten before the next call, so a scanner that reads it again comes to another verdict.
fn requests(stream: &[u8], pieces: &[usize]) -> Frames<Request> {
    let mut scanner = RequestScanner::new();
    let (mut start, mut end, mut found) = (0, 0, Vec::new());
    let mut seen = 0;
    let mut pieces = pieces.iter().cycle();
    loop {
        let mut buf = stream[start..end].to_vec();
        buf[..seen].fill(0xfe);
        match scanner.scan(&buf) {
            Ok(Scan::Complete(r)) => {
                found.push(r);
                start += r.len;
                seen = 0;
            }
            Ok(Scan::Incomplete { need }) => {
                assert!(need > 0);
                if end == stream.len() {
                    return (found, None);
                }
                seen = end - start;
                end = (end + pieces.next().unwrap()).min(stream.len());
            }
            Err(error) => return (found, Some(error)),
        }
    }
}

fn replies(stream: &[u8], pieces: &[usize]) -> Frames<(usize, usize, u8)> {
    let mut scanner = ReplyScanner::new();
    let (mut start, mut end, mut found) = (0, 0, Vec::new());
    let mut seen = 0;
    let mut pieces = pieces.iter().cycle();
    loop {
        let mut buf = stream[start..end].to_vec();
        buf[..seen].fill(0xfe);
        match scanner.scan(&buf) {
            Ok(ReplyScan::Complete(r)) => {
                found.push((r.len, r.start, r.kind));
                start += r.len;
                seen = 0;
            }
            Ok(ReplyScan::Incomplete { need }) => {
                assert!(need > 0);
                if end == stream.len() {
                    return (found, None);
                }
                seen = scanner.done_with(end - start);
                end = (end + pieces.next().unwrap()).min(stream.len());
            }
            Err(error) => return (found, Some(error)),
        }
    }
}

/// A reply as a tree, with the naive way to write it.
#[derive(Clone, Debug)]
enum Tree {
    Line(u8, String),
    Blob(u8, Vec<u8>),
    Null(&'static str),
    Many(u8, Vec<Tree>),
    Attributed(Vec<Tree>, Box<Tree>),
}

impl Tree {
    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::Line(kind, text) => out.extend(format!("{}{text}\r\n", char::from(*kind)).bytes()),
            Self::Blob(kind, bytes) => {
                out.extend(format!("{}{}\r\n", char::from(*kind), bytes.len()).bytes());
                out.extend_from_slice(bytes);
                out.extend_from_slice(b"\r\n");
            }
            Self::Null(text) => out.extend(text.bytes()),
            Self::Many(kind, trees) => {
                let count = if *kind == b'%' {
                    trees.len() / 2
                } else {
                    trees.len()
                };
                out.extend(format!("{}{count}\r\n", char::from(*kind)).bytes());
                trees.iter().for_each(|tree| tree.write(out));
            }
            Self::Attributed(attributes, tree) => {
                out.extend(format!("|{}\r\n", attributes.len() / 2).bytes());
                attributes.iter().for_each(|tree| tree.write(out));
                tree.write(out);
            }
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out);
        out
    }

    fn kind(&self) -> u8 {
        match self {
            Self::Line(kind, _) | Self::Blob(kind, _) | Self::Many(kind, _) => *kind,
            Self::Null(text) => text.as_bytes()[0],
            Self::Attributed(_, tree) => tree.kind(),
        }
    }
}

fn blob() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => vec(any::<u8>(), 0..40),
        1 => vec(prop_oneof![Just(b'\r'), Just(b'\n'), Just(b'$'), Just(b'*')], 0..12),
        1 => vec(any::<u8>(), 90..1100),
    ]
}

fn scalar(resp3: bool) -> BoxedStrategy<Tree> {
    let resp2 = prop_oneof![
        "[ -~]{0,40}".prop_map(|text| Tree::Line(b'+', text)),
        "[A-Z]{1,9} [ -~]{0,40}".prop_map(|text| Tree::Line(b'-', text)),
        any::<i64>().prop_map(|n| Tree::Line(b':', n.to_string())),
        blob().prop_map(|bytes| Tree::Blob(b'$', bytes)),
    ];
    if !resp3 {
        return prop_oneof![4 => resp2, 1 => Just(Tree::Null("$-1\r\n"))].boxed();
    }
    prop_oneof![
        4 => resp2,
        1 => Just(Tree::Null("_\r\n")),
        1 => any::<bool>().prop_map(|b| Tree::Line(b'#', if b { "t" } else { "f" }.into())),
        1 => (-1e9..1e9f64).prop_map(|n| Tree::Line(b',', n.to_string())),
        1 => "[1-9][0-9]{20,40}".prop_map(|text| Tree::Line(b'(', text)),
        1 => "[A-Z]{1,9} [ -~]{0,40}".prop_map(|text| Tree::Blob(b'!', text.into_bytes())),
        1 => "[ -~]{0,40}".prop_map(|text| Tree::Blob(b'=', format!("txt:{text}").into_bytes())),
    ]
    .boxed()
}

fn tree(resp3: bool) -> BoxedStrategy<Tree> {
    scalar(resp3)
        .prop_recursive(5, 60, 6, move |inner| {
            let many = |kinds: &'static [u8]| {
                (prop::sample::select(kinds), vec(inner.clone(), 0..6)).prop_map(|(kind, trees)| Tree::Many(kind, trees))
            };
            if !resp3 {
                return many(b"*").boxed();
            }
            // redis-protocol hashes keys and members and refuses doubles: only what it can hash.
            let key = || "[a-z]{1,9}".prop_map(|text| Tree::Blob(b'$', text.into_bytes()));
            let map = prop::collection::btree_map("[a-z]{1,9}", inner.clone(), 0..5).prop_map(|map| {
                let pairs = map.into_iter().flat_map(|(k, v)| [Tree::Blob(b'$', k.into_bytes()), v]);
                Tree::Many(b'%', pairs.collect())
            });
            prop_oneof![2 => many(b"*"), 1 => map, 1 => vec(key(), 0..6).prop_map(|keys| Tree::Many(b'~', keys))].boxed()
        })
        .boxed()
}

fn with_attributes() -> impl Strategy<Value = Tree> {
    tree(true).prop_recursive(3, 20, 4, |inner| {
        let attributes = vec((tree(true), inner.clone()), 0..3)
            .prop_map(|pairs| pairs.into_iter().flat_map(|(k, v)| [k, v]).collect::<Vec<_>>());
        prop_oneof![
            (attributes, inner.clone()).prop_map(|(a, tree)| Tree::Attributed(a, Box::new(tree))),
            vec(inner, 0..4).prop_map(|trees| Tree::Many(b'>', trees)),
        ]
    })
}

fn pieces() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![Just(vec![1]), vec(1..4usize, 1..6), vec(1..200usize, 1..6)]
}

/// Streams that are nearly right: frames, fragments and bytes that mean something to a parser.
fn nearly(frame: impl Strategy<Value = Vec<u8>> + 'static) -> impl Strategy<Value = Vec<u8>> {
    let meaningful = prop::sample::select(&b"*$+-:,#(!=%~>|_?0123456789\r\n\r\n \"'\\x\0a\xff"[..]);
    let part = prop_oneof![
        4 => frame,
        1 => vec(meaningful.clone(), 1..12),
        1 => vec(any::<u8>(), 1..12),
    ];
    (
        vec(part, 1..8),
        vec((any::<prop::sample::Index>(), meaningful, 0..3u8), 0..3),
    )
        .prop_map(|(parts, changes)| {
            let mut stream = parts.concat();
            for (index, byte, how) in changes {
                let at = index.index(stream.len());
                match how {
                    0 => stream[at] = byte,
                    1 => stream.insert(at, byte),
                    _ if stream.len() > 1 => drop(stream.remove(at)),
                    _ => {}
                }
            }
            stream
        })
}

fn command() -> impl Strategy<Value = Vec<Vec<u8>>> {
    prop_oneof![6 => vec(blob(), 1..6), 1 => vec(vec(any::<u8>(), 0..3), 1..130)]
}

fn encoded(command: &[Vec<u8>]) -> Vec<u8> {
    encode_command(&command.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

proptest! {
    #![proptest_config(config(512))]

    /// Requests: redis-protocol finds the same frame and the same arguments.
    #[test]
    fn requests_end_where_redis_protocol_says(commands in vec(command(), 1..6), pieces in pieces()) {
        let stream: Vec<u8> = commands.iter().flat_map(|command| encoded(command)).collect();
        let (found, error) = requests(&stream, &pieces);
        prop_assert_eq!(error, None);
        prop_assert_eq!(found.len(), commands.len());
        let mut at = 0;
        for (request, command) in found.into_iter().zip(&commands) {
            let (frame, oracle) = redis_protocol::resp2::decode::decode(&stream[at..]).unwrap().unwrap();
            prop_assert_eq!(request.len, oracle);
            let redis_protocol::resp2::types::OwnedFrame::Array(items) = frame else { panic!("no array") };
            let frame = &stream[at..at + request.len];
            prop_assert_eq!((request.args as usize, request.inline), (items.len(), false));
            prop_assert_eq!(request.name(frame), &command[0][..]);
            prop_assert_eq!(request.first(frame), command.get(1).map_or(&[][..], |a| a));
            prop_assert!(args(frame).eq(command.iter().map(Vec::as_slice)));
            at += request.len;
        }
    }

    /// However a stream of requests is cut, right or wrong, the verdict is the same.
    #[test]
    fn cuts_do_not_change_a_request(stream in nearly(command().prop_map(|c| encoded(&c))), pieces in pieces()) {
        prop_assert_eq!(requests(&stream, &[usize::MAX / 2]), requests(&stream, &pieces));
    }

    /// RESP2 replies: redis-protocol finds the same frames.
    #[test]
    fn resp2_replies_end_where_redis_protocol_says(trees in vec(tree(false), 1..4), pieces in pieces()) {
        let stream: Vec<u8> = trees.iter().flat_map(Tree::bytes).collect();
        let (found, error) = replies(&stream, &pieces);
        prop_assert_eq!(error, None);
        let mut at = 0;
        for &(len, start, kind) in &found {
            let (_, oracle) = redis_protocol::resp2::decode::decode(&stream[at..]).unwrap().unwrap();
            prop_assert_eq!((len, start, kind), (oracle, 0, stream[at]));
            at += len;
        }
        prop_assert_eq!((at, found.len()), (stream.len(), trees.len()));
    }

    /// RESP3 replies: redis-protocol finds the same frames.
    #[test]
    fn resp3_replies_end_where_redis_protocol_says(trees in vec(tree(true), 1..4), pieces in pieces()) {
        let stream: Vec<u8> = trees.iter().flat_map(Tree::bytes).collect();
        let (found, error) = replies(&stream, &pieces);
        prop_assert_eq!(error, None);
        let mut at = 0;
        for &(len, start, kind) in &found {
            let oracle = redis_protocol::resp3::decode::complete::decode(&stream[at..]);
            let (_, oracle) = oracle.unwrap().unwrap();
            prop_assert_eq!((len, start, kind), (oracle, 0, stream[at]));
            at += len;
        }
        prop_assert_eq!((at, found.len()), (stream.len(), trees.len()));
    }

    /// Attributes and pushes, which redis-protocol keeps apart: the oracle is what was written.
    #[test]
    fn attributes_and_pushes_end_where_they_were_written(trees in vec(with_attributes(), 1..4), pieces in pieces()) {
        let frames: Vec<Vec<u8>> = trees.iter().map(Tree::bytes).collect();
        let (found, error) = replies(&frames.concat(), &pieces);
        prop_assert_eq!(error, None);
        let kinds: Vec<(usize, u8)> = found.iter().map(|&(len, _, kind)| (len, kind)).collect();
        let written: Vec<(usize, u8)> = frames.iter().zip(&trees).map(|(f, tree)| (f.len(), tree.kind())).collect();
        prop_assert_eq!(kinds, written);
    }

    /// The elements of an aggregate are the frames it was written from.
    #[test]
    fn elements_are_what_was_written(trees in vec(with_attributes(), 0..12)) {
        let frame = Tree::Many(b'*', trees.clone()).bytes();
        let frames: Vec<Vec<u8>> = trees.iter().map(Tree::bytes).collect();
        prop_assert!(reply_elements(&frame).eq(frames.iter().map(Vec::as_slice)));
    }

    /// However a stream of replies is cut, right or wrong, the verdict is the same.
    #[test]
    fn cuts_do_not_change_a_reply(stream in nearly(with_attributes().prop_map(|t| t.bytes())), pieces in pieces()) {
        prop_assert_eq!(replies(&stream, &[usize::MAX / 2]), replies(&stream, &pieces));
    }

    /// What an inline request says is what its multibulk form says.
    #[test]
    fn inline_requests_mean_their_multibulk_form(line in "[a-c\"'\\\\x4n \t]{0,24}") {
        let line = format!("{line}\r\n");
        match (requests(line.as_bytes(), &[1]), inline_args(line.as_bytes())) {
            ((found, None), Some(words)) => {
                prop_assert_eq!(found[0].args as usize, words.len());
                let frame = inline_to_multibulk(line.as_bytes()).unwrap();
                prop_assert!(args(&frame).eq(words.iter().map(Vec::as_slice)));
            }
            ((_, Some(ProtocolError::UnbalancedQuotes)), None) => {}
            (scanned, split) => panic!("{scanned:?} {split:?}"),
        }
    }

    /// Nothing panics on what is no frame at all.
    #[test]
    fn nothing_panics(bytes in nearly(command().prop_map(|c| encoded(&c)))) {
        args(&bytes).count();
        reply_elements(&bytes).count();
        reply_text(&bytes);
        inline_args(&bytes);
        for name in ["get", "mget", "eval", "zunionstore", "xread", "sort", "migrate", "georadius", "msetex"] {
            keys(lookup(name.as_bytes()).unwrap(), &bytes).count();
        }
    }
}

/// Of a reply with 40 000 elements in pieces of 4 KiB no byte is looked at twice (it would be another one), so the
/// cost is that of the whole.
#[test]
fn a_huge_array_in_small_pieces_is_read_once() {
    let element = Tree::Many(
        b'*',
        vec![Tree::Blob(b'$', vec![b'x'; 20]), Tree::Line(b':', "12345".into())],
    );
    let frame = Tree::Many(b'*', vec![element; 40_000]).bytes();
    let (found, error) = replies(&frame, &[4096]);
    assert_eq!((found, error), (vec![(frame.len(), 0, b'*')], None));
}
