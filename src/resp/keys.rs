//! Keys of requests, and the slots they map to.
//!
//! Keys are found as Redis 7.0 finds them for `COMMAND GETKEYS` (`db.c`, `getKeysFromCommandWithSpecs`); frames are
//! multibulk requests that the scanner has bounded. A request whose arguments make no sense (a count beyond its
//! end, no STREAMS) has no keys: the server will refuse it.

use std::ops::Range;

use super::command::{Begin, CommandInfo, Find, KeySet, KeySpec};
use super::header::Number;
use super::request::{Args, Request, args};

/// Slots of a cluster.
pub const SLOTS: u16 = 16384;

/// The slot of a key: CRC16 (XMODEM) of its hash tag, or of all of it. Source: Redis cluster specification.
#[inline]
pub fn slot(key: &[u8]) -> u16 {
    crc16(hash_tag(key)) % SLOTS
}

/// What is hashed: the bytes between the first `{` and the next `}`, if there are any; else the whole key.
#[inline]
fn hash_tag(key: &[u8]) -> &[u8] {
    let tag = memchr::memchr(b'{', key).and_then(|open| {
        let rest = &key[open + 1..];
        memchr::memchr(b'}', rest).map(|close| &rest[..close])
    });
    match tag {
        Some(tag) if !tag.is_empty() => tag,
        _ => key,
    }
}

#[inline]
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, &byte| {
        crc << 8 ^ CRC16[usize::from((crc >> 8) as u8 ^ byte)]
    })
}

static CRC16: [u16; 256] = {
    let mut table = [0u16; 256];
    let mut byte = 0;
    while byte < 256 {
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 {
                crc << 1
            } else {
                crc << 1 ^ 0x1021
            };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

/// The first key of a request in `frame`. `None` where it has none.
#[inline]
pub fn first_key<'a>(info: &CommandInfo, frame: &'a [u8], request: &Request) -> Option<&'a [u8]> {
    match info.keys {
        KeySet::First if request.args > 1 => Some(request.first(frame)),
        KeySet::None | KeySet::First | KeySet::Routed(_) => None,
        _ => keys(info, frame).next().and_then(|range| frame.get(range)),
    }
}

/// What decides on the shard: the first key, or the first sharded channel of SSUBSCRIBE, SUNSUBSCRIBE and SPUBLISH.
#[inline]
pub fn routing_key<'a>(info: &CommandInfo, frame: &'a [u8], request: &Request) -> Option<&'a [u8]> {
    match info.keys {
        KeySet::First => first_key(info, frame, request),
        _ => routing_keys(info, frame)
            .next()
            .and_then(|range| frame.get(range)),
    }
}

/// All that decides on the shard: the keys, or the sharded channels of SSUBSCRIBE, SUNSUBSCRIBE and SPUBLISH.
///
/// A node of a cluster (`getNodeByQuery`) does not look for keys quite as `COMMAND GETKEYS` does: a group that does not
/// fit takes nothing from the others (`PFMERGE k` has a key), and XREAD's streams without as many ids are none.
pub fn routing_keys<'a>(info: &CommandInfo, frame: &'a [u8]) -> Keys<'a> {
    match info.keys {
        KeySet::Routed(specs) | KeySet::Specs(specs) => Keys::of(frame, Rule::Fitting(specs)),
        _ => keys(info, frame),
    }
}

/// The keys of the request in `frame`, as offsets into it, in the order of `COMMAND GETKEYS`. One pass over the
/// frame for each group of keys the command has (at most three), without a copy.
///
/// `info` is the subcommand's row where the command is a container.
pub fn keys<'a>(info: &CommandInfo, frame: &'a [u8]) -> Keys<'a> {
    const FIRST: &[KeySpec] = &[KeySpec(Begin::Index(1), Find::Range(0, 1, 0))];
    Keys::of(
        frame,
        match info.keys {
            KeySet::None | KeySet::Routed(_) => Rule::Specs(&[]),
            KeySet::First => Rule::Specs(FIRST),
            KeySet::Specs(specs) => Rule::Specs(specs),
            KeySet::Sort => Rule::Sort,
            KeySet::Migrate => Rule::Migrate,
        },
    )
}

#[derive(Clone, Copy, Debug)]
enum Rule {
    /// All groups have to fit the request.
    Specs(&'static [KeySpec]),
    /// Those that fit.
    Fitting(&'static [KeySpec]),
    Sort,
    Migrate,
}

/// See [`keys`].
#[derive(Clone, Debug)]
pub struct Keys<'a> {
    frame: &'a [u8],
    /// The groups still to come: first argument, last, step.
    groups: [Group; 3],
    next_group: usize,
    args: Args<'a>,
    /// Index of the argument that `args` yields next.
    index: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Group {
    first: usize,
    last: usize,
    step: usize,
}

/// A group without arguments.
const NOTHING: Group = Group {
    first: 1,
    last: 0,
    step: 1,
};

impl<'a> Keys<'a> {
    fn of(frame: &'a [u8], rule: Rule) -> Self {
        let groups = match rule {
            Rule::Specs(specs) => by_specs(frame, specs).unwrap_or([NOTHING; 3]),
            Rule::Fitting(specs) => fitting(frame, specs),
            Rule::Sort => sort(frame),
            Rule::Migrate => migrate(frame),
        };
        Self {
            frame,
            groups,
            next_group: 0,
            args: args(frame),
            index: 0,
        }
    }
}

impl Iterator for Keys<'_> {
    type Item = Range<usize>;

    fn next(&mut self) -> Option<Range<usize>> {
        loop {
            let group = self.groups.get_mut(self.next_group)?;
            if group.first > group.last {
                self.next_group += 1;
                continue;
            }
            if group.first < self.index {
                // Groups need not be in the order of the arguments.
                self.args = args(self.frame);
                self.index = 0;
            }
            let wanted = group.first;
            group.first += group.step;
            while self.index < wanted {
                self.args.next_range()?;
                self.index += 1;
            }
            self.index += 1;
            return self.args.next_range();
        }
    }
}

/// `None` where one of the specifications does not fit the request: then it has no keys at all.
fn by_specs(frame: &[u8], specs: &[KeySpec]) -> Option<[Group; 3]> {
    let mut groups = [NOTHING; 3];
    let argc = args(frame).left();
    for (group, spec) in groups.iter_mut().zip(specs) {
        *group = by_spec(frame, argc, *spec)?;
    }
    Some(groups)
}

fn fitting(frame: &[u8], specs: &[KeySpec]) -> [Group; 3] {
    let mut groups = [NOTHING; 3];
    let argc = args(frame).left();
    for (group, spec) in groups.iter_mut().zip(specs) {
        if let Some(found) = by_spec(frame, argc, *spec) {
            let KeySpec(_, find) = spec;
            let halves = matches!(find, Find::Range(_, _, 2)) && (argc - found.first) % 2 == 1;
            *group = if halves { NOTHING } else { found };
        }
    }
    groups
}

/// `None` where the specification does not fit the request.
fn by_spec(frame: &[u8], argc: usize, KeySpec(begin, find): KeySpec) -> Option<Group> {
    let first = match begin {
        Begin::Index(index) => usize::from(index),
        Begin::Keyword(word, from) => match behind_keyword(frame, argc, word, from) {
            Some(first) => first,
            None => return Some(NOTHING),
        },
    };
    let group = match find {
        Find::Range(last, step, limit) => {
            let last = match (usize::try_from(last), limit) {
                (Ok(last), _) => Some(first + last),
                (Err(_), 0 | 1) => argc.checked_add_signed(last.into()),
                (Err(_), limit) => {
                    let part = argc.checked_sub(first)? / usize::from(limit);
                    (first + part).checked_add_signed(last.into())
                }
            };
            Group {
                first,
                last: last?,
                step: usize::from(step),
            }
        }
        Find::Count(count, offset, step) => {
            let count = count_at(frame, first + usize::from(count))?;
            let first = first + usize::from(offset);
            let step = usize::from(step);
            Group {
                first,
                last: first + count.checked_sub(1)? * step,
                step,
            }
        }
    };
    (group.last < argc && group.last >= group.first).then_some(group)
}

/// The argument behind `word`, looked for as Redis does: forwards up to the last argument but one, or backwards down
/// to argument 2.
fn behind_keyword(frame: &[u8], argc: usize, word: &str, from: i8) -> Option<usize> {
    let found = |arg: &[u8]| arg.eq_ignore_ascii_case(word.as_bytes());
    let mut words = args(frame).enumerate();
    match usize::try_from(from) {
        Ok(from) => words
            .take(argc.saturating_sub(1))
            .skip(from)
            .find(|(_, arg)| found(arg)),
        Err(_) => {
            let last = argc.checked_add_signed(from.into())?;
            let mut nearest = None;
            for (index, arg) in words.by_ref().take(last + 1).skip(2) {
                if found(arg) {
                    nearest = Some((index, arg));
                }
            }
            nearest
        }
    }
    .map(|(index, _)| index + 1)
}

fn count_at(frame: &[u8], index: usize) -> Option<usize> {
    let mut number = Number::new();
    args(frame).nth(index)?.iter().for_each(|&byte| number.push(byte));
    // More than the request can hold is as wrong as a word.
    number
        .value()
        .and_then(|n| usize::try_from(n).ok())
        .filter(|&n| n <= frame.len())
}

/// SORT key [BY p] [LIMIT o n] [GET p …] [ASC|DESC] [ALPHA] [STORE dst]: the last STORE counts.
fn sort(frame: &[u8]) -> [Group; 3] {
    let mut groups = [NOTHING; 3];
    let argc = args(frame).left();
    if argc > 1 {
        groups[0] = Group {
            first: 1,
            last: 1,
            step: 1,
        };
    }
    let mut words = args(frame).enumerate().skip(2);
    while let Some((index, word)) = words.next() {
        let skipped = match () {
            () if word.eq_ignore_ascii_case(b"limit") => 2,
            () if word.eq_ignore_ascii_case(b"get") || word.eq_ignore_ascii_case(b"by") => 1,
            () => {
                // STORE does not swallow its argument: `STORE store k` stores to `k`.
                if word.eq_ignore_ascii_case(b"store") && index + 1 < argc {
                    groups[1] = Group {
                        first: index + 1,
                        last: index + 1,
                        step: 1,
                    };
                }
                0
            }
        };
        for _ in 0..skipped {
            words.next();
        }
    }
    groups
}

/// MIGRATE host port key|"" db timeout [COPY] [REPLACE] [AUTH p] [AUTH2 u p] [KEYS key …]
fn migrate(frame: &[u8]) -> [Group; 3] {
    let argc = args(frame).left();
    let one = Group {
        first: 3,
        last: 3,
        step: 1,
    };
    if argc < 6 {
        return [NOTHING; 3];
    }
    // What Redis' specification says: a KEYS with nothing behind it is none.
    if behind_keyword(frame, argc, "KEYS", -2).is_none() {
        return [one, NOTHING, NOTHING];
    }
    let mut words = args(frame).enumerate().skip(6);
    while let Some((index, word)) = words.next() {
        let skipped = match () {
            () if word.eq_ignore_ascii_case(b"keys") => {
                let empty = args(frame).nth(3).is_some_and(<[u8]>::is_empty);
                let many = Group {
                    first: index + 1,
                    last: argc - 1,
                    step: 1,
                };
                return [if empty { many } else { NOTHING }, NOTHING, NOTHING];
            }
            () if word.eq_ignore_ascii_case(b"auth") => 1,
            () if word.eq_ignore_ascii_case(b"auth2") => 2,
            () => 0,
        };
        for _ in 0..skipped {
            words.next();
        }
    }
    [one, NOTHING, NOTHING]
}

#[cfg(test)]
mod tests;
