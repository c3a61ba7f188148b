//! The command table: what each command does to data and to its connection.

use std::sync::LazyLock;

mod table;

/// One command, or one subcommand (`config|get`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CommandInfo {
    /// Lower case; subcommands as `container|sub`.
    pub name: &'static str,
    /// Arguments with the name; negative: at least so many.
    pub arity: i16,
    /// Changes nothing, so it may be sent twice.
    pub read: bool,
    /// What it does to its connection.
    pub kind: Kind,
    /// First key, last key (negative: from the end), step; zeros without keys.
    pub keys: (i16, i16, i16),
    /// Where its keys stand depends on its other arguments.
    pub movable: bool,
    /// The server's `request_policy` tip.
    pub request_policy: Option<&'static str>,
    /// The server's `response_policy` tip.
    pub response_policy: Option<&'static str>,
}

/// What a command does to its connection.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[expect(missing_docs, reason = "named after the commands")]
pub enum Kind {
    /// Nothing.
    Plain,
    /// Nothing; it has subcommands, each with an entry of its own.
    Container,
    Multi,
    Exec,
    Discard,
    Watch,
    Unwatch,
    Subscribe,
    Psubscribe,
    Ssubscribe,
    Unsubscribe,
    Punsubscribe,
    Sunsubscribe,
    Monitor,
    Hello,
    Auth,
    Select,
    Client,
    Reset,
    Quit,
    /// May wait for another client.
    Blocking,
    /// May wait when it has a BLOCK argument.
    MaybeBlocking,
    Script,
    /// Turns the connection into a replication stream.
    Sync,
    Asking,
    Readonly,
    Readwrite,
    Debug,
    Shutdown,
}

/// Slots of the hash index; a power of two, sparse enough that nearly every name is found at the first look.
const SLOTS: usize = 2048;

static INDEX: LazyLock<Box<[u16; SLOTS]>> = LazyLock::new(|| {
    let mut index = Box::new([u16::MAX; SLOTS]);
    for (i, info) in table::TABLE.iter().enumerate() {
        let mut slot = hash(info.name.as_bytes());
        while index[slot] != u16::MAX {
            slot = (slot + 1) % SLOTS;
        }
        index[slot] = i as u16;
    }
    index
});

/// FNV-1a over the lower-cased name.
fn hash(name: &[u8]) -> usize {
    let mut hash: u32 = 0x811c_9dc5;
    for byte in name {
        hash = (hash ^ u32::from(byte | 0x20)).wrapping_mul(0x0100_0193);
    }
    (hash ^ hash >> 15) as usize % SLOTS
}

/// The command called `name`, in any case. Subcommands are found as `container|sub`.
#[inline]
pub fn lookup(name: &[u8]) -> Option<&'static CommandInfo> {
    let mut slot = hash(name);
    loop {
        let info = table::TABLE.get(usize::from(INDEX[slot]))?;
        if info.name.as_bytes().eq_ignore_ascii_case(name) {
            return Some(info);
        }
        slot = (slot + 1) % SLOTS;
    }
}

/// The subcommand `sub` of `container`.
pub fn lookup_sub(container: &CommandInfo, sub: &[u8]) -> Option<&'static CommandInfo> {
    let mut full = [0u8; 48];
    let (a, b) = (container.name.len(), container.name.len() + 1 + sub.len());
    full.get_mut(..b)?;
    full[..a].copy_from_slice(container.name.as_bytes());
    full[a] = b'|';
    full[a + 1..b].copy_from_slice(sub);
    lookup(&full[..b])
}

/// Whether this very request may wait for another client: `frame` is a whole multibulk request.
pub fn is_blocking(info: &CommandInfo, frame: &[u8]) -> bool {
    match info.kind {
        Kind::Blocking => true,
        // BLOCK stands before STREAMS; behind it the same word is a key.
        Kind::MaybeBlocking => super::args(frame)
            .skip(1)
            .take_while(|word| !word.eq_ignore_ascii_case(b"STREAMS"))
            .any(|word| word.eq_ignore_ascii_case(b"BLOCK")),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
