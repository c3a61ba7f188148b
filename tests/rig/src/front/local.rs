//! How a command is routed, by its name alone. Pure.

use bytes::Bytes;

/// What the front does with a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// By its keys' slot, or to the first shard that is there.
    Routed,
    /// Answered here.
    Ping,
    Cluster,
    Quit,
    /// Changes what a connection is: sent on every connection to a shard, later ones too.
    State,
    /// Sent to every shard, one of whose answers is given: all must know a script.
    Everywhere,
    /// One channel after the other, each at its shard.
    Subscribe,
    Unsubscribe,
    /// Patterns are heard at every shard.
    Psubscribe,
    Punsubscribe,
    Multi,
    Exec,
    Discard,
    Watch,
    Unwatch,
    /// Not to be had from such a database.
    Refused,
}

/// Commands that such a database does not offer, and those that would upset the order of answers here.
const REFUSED: [&[u8]; 16] = [
    b"monitor",
    b"psync",
    b"sync",
    b"replicaof",
    b"slaveof",
    b"replconf",
    b"role",
    b"debug",
    b"reset",
    b"move",
    b"swapdb",
    b"flushall",
    b"flushdb",
    b"shutdown",
    b"migrate",
    b"failover",
];

pub(super) fn classify(words: &[Bytes]) -> Class {
    let word = |at: usize| {
        words
            .get(at)
            .map(|word| word.to_ascii_lowercase())
            .unwrap_or_default()
    };
    match word(0).as_slice() {
        b"ping" => Class::Ping,
        b"cluster" => Class::Cluster,
        b"quit" => Class::Quit,
        b"auth" | b"hello" | b"select" => Class::State,
        b"client" => match word(1).as_slice() {
            b"setname" | b"setinfo" | b"tracking" | b"caching" | b"no-touch" => Class::State,
            b"reply" | b"pause" | b"unpause" | b"no-evict" => Class::Refused,
            _ => Class::Routed,
        },
        b"script" | b"function" => Class::Everywhere,
        b"subscribe" | b"ssubscribe" => Class::Subscribe,
        b"unsubscribe" | b"sunsubscribe" => Class::Unsubscribe,
        b"psubscribe" => Class::Psubscribe,
        b"punsubscribe" => Class::Punsubscribe,
        b"multi" => Class::Multi,
        b"exec" => Class::Exec,
        b"discard" => Class::Discard,
        b"watch" => Class::Watch,
        b"unwatch" => Class::Unwatch,
        name if REFUSED.contains(&name) => Class::Refused,
        _ => Class::Routed,
    }
}

impl Class {
    /// Whether a connection of version 2 of the protocol may send it while it hears channels.
    pub(super) fn while_subscribed(self) -> bool {
        matches!(
            self,
            Self::Ping
                | Self::Quit
                | Self::Subscribe
                | Self::Unsubscribe
                | Self::Psubscribe
                | Self::Punsubscribe
        )
    }
}

/// Under which name a command of [`Class::State`] is kept: a later one of the same name takes its place.
pub(super) fn state_name(words: &[Bytes]) -> Vec<u8> {
    let client = words
        .first()
        .is_some_and(|name| name.eq_ignore_ascii_case(b"client"));
    let setinfo = words
        .get(1)
        .is_some_and(|name| name.eq_ignore_ascii_case(b"setinfo"));
    let count = 1 + usize::from(client) + usize::from(client && setinfo);
    words[..count.min(words.len())].join(&b' ').to_ascii_lowercase()
}
