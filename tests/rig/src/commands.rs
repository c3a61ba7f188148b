//! Where a command's keys are, as the servers themselves say it (`COMMAND`, key specifications): so that it is true of the
//! version that runs. Pure once it is read.
//!
//! What a server marks as unknown (the keys of SORT's BY, GET and STORE) is not found here either.

use std::collections::{BTreeMap, BTreeSet};

use redis::{FromRedisValue as _, Value};

use crate::slots::slot;

/// What decides on a command's shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// It has neither key nor channel.
    Anywhere,
    /// All its keys, or its channels, have this slot.
    Slot(u16),
    /// Its keys are of several slots.
    Crossing,
}

#[derive(Clone, Debug)]
enum Begin {
    At(usize),
    After { keyword: String, from: i64 },
}

#[derive(Clone, Debug)]
enum Find {
    /// Up to `last` (from the first key; negative: from the end), each `step`; of the rest only one part in `limit`.
    Range { last: i64, step: usize, limit: usize },
    /// A count at `count`, the first key at `first`, both from where the search began.
    Counted { count: usize, first: usize, step: usize },
}

/// Every command's key specifications.
#[derive(Debug, Default)]
pub(crate) struct Commands {
    /// By name in lower case; a subcommand is called `container|subcommand`.
    keys: BTreeMap<String, Vec<(Begin, Find)>>,
    containers: BTreeSet<String>,
}

impl Commands {
    /// Reads the answer to `COMMAND`.
    pub(crate) fn read(answer: Value) -> anyhow::Result<Self> {
        let mut commands = Self::default();
        for command in Vec::<Value>::from_redis_value(answer)? {
            commands.learn(command)?;
        }
        anyhow::ensure!(commands.keys.contains_key("get"), "COMMAND does not list GET");
        Ok(commands)
    }

    fn learn(&mut self, command: Value) -> anyhow::Result<()> {
        let fields = Vec::<Value>::from_redis_value(command)?;
        let [name, .., specs, subcommands] = fields.as_slice() else {
            anyhow::bail!("COMMAND says too little");
        };
        let name = String::from_redis_value_ref(name)?.to_lowercase();
        for subcommand in Vec::<Value>::from_redis_value_ref(subcommands)? {
            self.containers.insert(name.clone());
            self.learn(subcommand)?;
        }
        let specs = Vec::<Value>::from_redis_value_ref(specs)?;
        self.keys
            .insert(name, specs.iter().filter_map(key_spec).collect());
        Ok(())
    }

    /// The places of the command's keys and sharded channels among its words; none for an unknown command.
    fn places<Word: AsRef<[u8]>>(&self, words: &[Word]) -> Vec<usize> {
        let lower = |at: usize| {
            words
                .get(at)
                .map(|word| String::from_utf8_lossy(word.as_ref()).to_lowercase())
        };
        let Some(mut name) = lower(0) else {
            return Vec::new();
        };
        if self.containers.contains(&name)
            && let Some(subcommand) = lower(1)
        {
            name = format!("{name}|{subcommand}");
        }
        let specs = self.keys.get(&name).map_or(&[][..], Vec::as_slice);
        specs
            .iter()
            .filter_map(|(begin, find)| Some(find.places(words, begin.place(words)?)))
            .flatten()
            .filter(|&at| at < words.len())
            .collect()
    }

    /// What decides on the command's shard: its keys, or its channels.
    pub(crate) fn route<Word: AsRef<[u8]>>(&self, words: &[Word]) -> Route {
        let name = words.first().map_or(&[][..], AsRef::as_ref);
        let places = if name.eq_ignore_ascii_case(b"publish") {
            (1..words.len().min(2)).collect()
        } else {
            self.places(words)
        };
        let mut slots = places.into_iter().map(|at| slot(words[at].as_ref()));
        match slots.next() {
            None => Route::Anywhere,
            Some(first) if slots.all(|other| other == first) => Route::Slot(first),
            Some(_) => Route::Crossing,
        }
    }
}

impl Begin {
    fn place<Word: AsRef<[u8]>>(&self, words: &[Word]) -> Option<usize> {
        match self {
            Self::At(at) => Some(*at),
            Self::After { keyword, from } => {
                let says = |at: &usize| words[*at].as_ref().eq_ignore_ascii_case(keyword.as_bytes());
                let start = usize::try_from(from.unsigned_abs()).ok()?;
                let found = if *from >= 0 {
                    (start..words.len()).find(says)
                } else {
                    (0..=words.len().checked_sub(start)?).rev().find(says)
                };
                Some(found? + 1)
            }
        }
    }
}

impl Find {
    fn places<Word: AsRef<[u8]>>(&self, words: &[Word], begin: usize) -> Vec<usize> {
        match *self {
            Self::Range { last, step, limit } => {
                let rest = words.len().saturating_sub(begin);
                let end = match usize::try_from(last) {
                    Ok(last) => begin + last + 1,
                    Err(_) if limit > 1 => begin + rest / limit,
                    Err(_) => (words.len() + 1).saturating_sub(usize::try_from(-last).unwrap_or(0)),
                };
                (begin..end).step_by(step.max(1)).collect()
            }
            Self::Counted { count, first, step } => {
                let count = words
                    .get(begin + count)
                    .and_then(|word| std::str::from_utf8(word.as_ref()).ok()?.parse::<usize>().ok())
                    .unwrap_or(0)
                    .min(words.len());
                (0..count).map(|n| begin + first + n * step.max(1)).collect()
            }
        }
    }
}

fn key_spec(spec: &Value) -> Option<(Begin, Find)> {
    let spec = fields(spec)?;
    let part = |name: &str| {
        let part = fields(spec.get(name)?)?;
        let kind = String::from_redis_value_ref(part.get("type")?).ok()?;
        Some((kind, fields(part.get("spec")?)?))
    };
    let number = |spec: &BTreeMap<String, Value>, name: &str| i64::from_redis_value_ref(spec.get(name)?).ok();
    let size = |spec: &BTreeMap<String, Value>, name: &str| usize::try_from(number(spec, name)?).ok();
    let (kind, begin) = part("begin_search")?;
    let begin = match kind.as_str() {
        "index" => Begin::At(size(&begin, "index")?),
        "keyword" => Begin::After {
            keyword: String::from_redis_value_ref(begin.get("keyword")?).ok()?,
            from: number(&begin, "startfrom")?,
        },
        _ => return None,
    };
    let (kind, find) = part("find_keys")?;
    let find = match kind.as_str() {
        "range" => Find::Range {
            last: number(&find, "lastkey")?,
            step: size(&find, "keystep")?,
            limit: size(&find, "limit")?,
        },
        "keynum" => Find::Counted {
            count: size(&find, "keynumidx")?,
            first: size(&find, "firstkey")?,
            step: size(&find, "keystep")?,
        },
        _ => return None,
    };
    Some((begin, find))
}

fn fields(value: &Value) -> Option<BTreeMap<String, Value>> {
    BTreeMap::from_redis_value_ref(value).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A part of what Redis 7.0 answers to COMMAND; the rest is of no interest here.
    fn commands() -> Commands {
        let mut commands = Commands::default();
        let range = |last, step, limit| Find::Range { last, step, limit };
        for (name, specs) in [
            ("get", vec![(Begin::At(1), range(0, 1, 0))]),
            ("del", vec![(Begin::At(1), range(-1, 1, 0))]),
            ("mset", vec![(Begin::At(1), range(-1, 2, 0))]),
            ("blpop", vec![(Begin::At(1), range(-2, 1, 0))]),
            (
                "xread",
                vec![(
                    Begin::After {
                        keyword: "STREAMS".to_owned(),
                        from: 1,
                    },
                    range(-1, 1, 2),
                )],
            ),
            (
                "migrate",
                vec![(
                    Begin::After {
                        keyword: "KEYS".to_owned(),
                        from: -2,
                    },
                    range(-1, 1, 0),
                )],
            ),
            (
                "zunionstore",
                vec![
                    (Begin::At(1), range(0, 1, 0)),
                    (
                        Begin::At(2),
                        Find::Counted {
                            count: 0,
                            first: 1,
                            step: 1,
                        },
                    ),
                ],
            ),
            ("object|encoding", vec![(Begin::At(2), range(0, 1, 0))]),
            ("ping", vec![]),
        ] {
            commands.keys.insert(name.to_owned(), specs);
        }
        commands.containers.insert("object".to_owned());
        commands
    }

    fn places(line: &str) -> Vec<usize> {
        commands().places(&line.split(' ').collect::<Vec<_>>())
    }

    #[test]
    fn keys_are_where_the_specifications_say() {
        assert_eq!(places("GET k"), [1]);
        assert_eq!(places("del a b c"), [1, 2, 3]);
        assert_eq!(places("MSET a 1 b 2"), [1, 3]);
        assert_eq!(places("BLPOP a b 0"), [1, 2]);
        assert_eq!(places("XREAD COUNT 1 STREAMS a b 0 0"), [4, 5]);
        assert_eq!(places("MIGRATE h p x 0 9 KEYS a b"), [7, 8]);
        assert_eq!(places("ZUNIONSTORE to 2 a b WEIGHTS 1 2"), [1, 3, 4]);
        assert_eq!(places("OBJECT ENCODING k"), [2]);
        for keyless in ["PING", "NOSUCH a b", "OBJECT", "GET"] {
            assert_eq!(places(keyless), [0; 0], "{keyless}");
        }
    }

    #[test]
    fn counts_that_make_no_sense_find_no_more_than_is_there() {
        assert_eq!(places("ZUNIONSTORE to 99999999 a"), [1, 3]);
        assert_eq!(places("ZUNIONSTORE to -1 a"), [1]);
        assert_eq!(places("MIGRATE"), [0; 0]);
    }

    #[test]
    fn a_route_is_one_slot_or_none() {
        let route = |line: &str| commands().route(&line.split(' ').collect::<Vec<_>>());
        assert_eq!(route("GET foo"), Route::Slot(12182));
        assert_eq!(route("PUBLISH foo message"), Route::Slot(12182));
        assert_eq!(route("DEL {foo}1 {foo}2"), Route::Slot(12182));
        assert_eq!(route("DEL foo bar"), Route::Crossing);
        assert_eq!(route("PING"), Route::Anywhere);
        assert_eq!(route("PUBLISH"), Route::Anywhere);
    }
}
