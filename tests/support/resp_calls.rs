//! Random calls of commands and the answers of a real server, for the tests of keys, slots and routes.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use pulsegate::resp::command::CommandInfo;
use pulsegate::resp::{ReplyScan, ReplyScanner};

use crate::resp_server::{DEADLINE, Server};

/// SplitMix64: small, seeded, the same everywhere.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub(crate) fn pick<'a, T: ?Sized>(&mut self, from: &[&'a T]) -> &'a T {
        from[self.below(from.len())]
    }
}

/// The seed of this run: new each time, unless `RESP_SEED` repeats one. Failures print it.
pub(crate) fn seed() -> u64 {
    let given = std::env::var("RESP_SEED").ok().map(|seed| seed.parse().unwrap());
    given.unwrap_or_else(|| std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0))
}

pub(crate) fn connect(server: &Server) -> UnixStream {
    let stream = UnixStream::connect(server.socket()).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream.set_write_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// Sends commands in a row and hands back the replies, each as a frame.
pub(crate) fn ask(stream: &mut UnixStream, commands: &[Vec<u8>]) -> Vec<Vec<u8>> {
    stream.write_all(&commands.concat()).unwrap();
    let (mut buf, mut replies) = (Vec::new(), Vec::new());
    let mut chunk = vec![0; 64 * 1024];
    let mut scanner = ReplyScanner::new();
    while replies.len() < commands.len() {
        match scanner.scan(&buf).unwrap() {
            ReplyScan::Complete(reply) => replies.push(buf.drain(..reply.len).collect()),
            ReplyScan::Incomplete { .. } => {
                let n = stream.read(&mut chunk).unwrap();
                assert!(n > 0, "the server closed");
                buf.extend_from_slice(&chunk[..n]);
            }
        }
    }
    replies
}

/// The arguments of a random call of a command: mostly nonsense, of the kind that misleads whoever looks for keys.
pub(crate) fn call(random: &mut Random, info: &CommandInfo) -> Vec<Vec<u8>> {
    let mut words: Vec<Vec<u8>> = info
        .name
        .split('|')
        .map(|word| word.as_bytes().to_vec())
        .collect();
    let least = info.arity.unsigned_abs() as usize;
    let length = if info.arity > 0 {
        least
    } else {
        least + random.below(9)
    };
    let pool: [&[u8]; 28] = [
        b"k1",
        b"k2",
        b"k3",
        b"{t}k4",
        b"k5",
        b"",
        b"0",
        b"1",
        b"1",
        b"2",
        b"2",
        b"3",
        b"4",
        b"-1",
        b"x",
        b"STORE",
        b"store",
        b"STOREDIST",
        b"BY",
        b"GET",
        b"LIMIT",
        b"KEYS",
        b"AUTH",
        b"AUTH2",
        b"COPY",
        b"STREAMS",
        b"COUNT",
        b"GROUP",
    ];
    while words.len() < length {
        words.push(random.pick(&pool).to_vec());
    }
    if words[0] == b"xreadgroup" {
        // Without GROUP the server refuses it, whatever COMMAND GETKEYS may still find.
        words.splice(1..4, [&b"GROUP"[..], b"STREAMS", b"c"].map(<[u8]>::to_vec));
    }
    if words[0] == b"migrate" && random.below(2) == 0 && words.len() > 3 {
        words[3].clear();
    }
    words
}
