//! What each command is: may it be sent twice, does it change the session, where are its keys.
//!
//! The table (`command/table.rs`) is generated from real servers' `COMMAND` by `tests/resp_command_table.rs`, which
//! also holds the judgements that servers do not publish ([`Class`], [`Kind`]). What is not in the table counts as a
//! write of unknown effect on the session.

#[rustfmt::skip]
mod table;
#[cfg(test)]
mod tests;

use std::ops::BitOr;

use super::request::args;

/// Whether a command may be sent a second time when its reply was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// Changes no data: sending it twice does no harm. Commands that set the session's own state to a given value
    /// (SELECT, CLIENT SETNAME, SUBSCRIBE, …) are among them; their [`Kind`] tells them apart.
    Read,
    /// Everything else: at most once.
    Write,
}

/// What a command means to the session that sends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Leaves no trace in the session.
    Plain,
    /// MULTI.
    Multi,
    /// EXEC.
    Exec,
    /// DISCARD.
    Discard,
    /// WATCH.
    Watch,
    /// UNWATCH.
    Unwatch,
    /// SUBSCRIBE.
    Subscribe,
    /// PSUBSCRIBE.
    Psubscribe,
    /// SSUBSCRIBE.
    Ssubscribe,
    /// UNSUBSCRIBE.
    Unsubscribe,
    /// PUNSUBSCRIBE.
    Punsubscribe,
    /// SUNSUBSCRIBE.
    Sunsubscribe,
    /// MONITOR.
    Monitor,
    /// HELLO.
    Hello,
    /// AUTH.
    Auth,
    /// SELECT.
    Select,
    /// CLIENT, and those of its subcommands that have no kind of their own here.
    Client,
    /// CLIENT ID.
    ClientId,
    /// CLIENT GETNAME.
    ClientGetname,
    /// CLIENT SETNAME.
    ClientSetname,
    /// CLIENT SETINFO.
    ClientSetinfo,
    /// CLIENT REPLY.
    ClientReply,
    /// CLIENT TRACKING.
    ClientTracking,
    /// CLIENT CACHING: concerns the next command only.
    ClientCaching,
    /// Other CLIENT subcommands that change the connection: NO-EVICT, NO-TOUCH, CAPA, IMPORT-SOURCE.
    ClientFlag,
    /// RESET.
    Reset,
    /// QUIT.
    Quit,
    /// Always may wait: BLPOP, BLMOVE, BZMPOP, WAIT, …
    Blocking,
    /// Waits if it has a BLOCK option: XREAD, XREADGROUP. See [`is_blocking`].
    MaybeBlocking,
    /// EVAL and EVAL_RO: the replica learns a script.
    Eval,
    /// EVALSHA and EVALSHA_RO: the replica must know the script.
    EvalSha,
    /// FCALL and FCALL_RO: the replica must know the function.
    Fcall,
    /// SCRIPT, and those of its subcommands that have no kind of their own here.
    Script,
    /// SCRIPT LOAD.
    ScriptLoad,
    /// SCRIPT DEBUG.
    ScriptDebug,
    /// FUNCTION and its subcommands.
    Function,
    /// CLUSTER and its subcommands.
    Cluster,
    /// DEBUG.
    Debug,
    /// SYNC, PSYNC, REPLCONF: turns the connection into a replica's.
    Sync,
    /// ASKING: concerns the next command only.
    Asking,
    /// READONLY.
    Readonly,
    /// READWRITE.
    Readwrite,
    /// SHUTDOWN.
    Shutdown,
}

/// What the server publishes of a command, as a set. Source of the meanings: redis.io, `COMMAND`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flags(u32);

impl Flags {
    /// No flag at all.
    pub const NONE: Self = Self(0);
    /// May change data.
    pub const WRITE: Self = Self(1);
    /// Reads data only.
    pub const READONLY: Self = Self(1 << 1);
    /// Refused when out of memory.
    pub const DENYOOM: Self = Self(1 << 2);
    /// Administrative.
    pub const ADMIN: Self = Self(1 << 3);
    /// Of pub/sub.
    pub const PUBSUB: Self = Self(1 << 4);
    /// Not from scripts.
    pub const NOSCRIPT: Self = Self(1 << 5);
    /// May block the client.
    pub const BLOCKING: Self = Self(1 << 6);
    /// Allowed while loading.
    pub const LOADING: Self = Self(1 << 7);
    /// Allowed on a stale replica.
    pub const STALE: Self = Self(1 << 8);
    /// Not shown by MONITOR.
    pub const SKIP_MONITOR: Self = Self(1 << 9);
    /// Not in the slow log.
    pub const SKIP_SLOWLOG: Self = Self(1 << 10);
    /// Accepted in an importing slot.
    pub const ASKING: Self = Self(1 << 11);
    /// Constant or logarithmic time.
    pub const FAST: Self = Self(1 << 12);
    /// Needs no authentication.
    pub const NO_AUTH: Self = Self(1 << 13);
    /// Keys are not where the first, last and step say.
    pub const MOVABLEKEYS: Self = Self(1 << 14);
    /// Not during asynchronous loading.
    pub const NO_ASYNC_LOADING: Self = Self(1 << 15);
    /// Not in a transaction.
    pub const NO_MULTI: Self = Self(1 << 16);
    /// May have no keys at all.
    pub const NO_MANDATORY_KEYS: Self = Self(1 << 17);
    /// Allowed while a script keeps the server busy.
    pub const ALLOW_BUSY: Self = Self(1 << 18);
    /// Tip: the same data may give another reply.
    pub const NONDETERMINISTIC_OUTPUT: Self = Self(1 << 19);
    /// Tip: the same data may give the reply's elements in another order.
    pub const NONDETERMINISTIC_OUTPUT_ORDER: Self = Self(1 << 20);

    /// Whether all of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOr for Flags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        self.and(other)
    }
}

/// The server's tip on which shards a command without one routing key goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestPolicy {
    /// No tip: by its keys, or to any shard.
    Default,
    /// Every node, replicas of shards included.
    AllNodes,
    /// Every shard.
    AllShards,
    /// Split by the keys' slots.
    MultiShard,
    /// In a way of its own.
    Special,
}

/// The server's tip on how the replies of several shards become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponsePolicy {
    /// No tip: collect, in the order of the keys if it has any.
    Default,
    /// One success is enough.
    OneSucceeded,
    /// Every one must succeed.
    AllSucceeded,
    /// Element by element, logical and.
    AggLogicalAnd,
    /// Element by element, logical or.
    AggLogicalOr,
    /// The least.
    AggMin,
    /// The greatest.
    AggMax,
    /// The sum.
    AggSum,
    /// In a way of its own.
    Special,
}

/// Which arguments are keys. Arguments count from the command's name, which is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeySet {
    /// None.
    None,
    /// Argument 1 alone: most commands.
    First,
    /// As the server's key specifications say.
    Specs(&'static [KeySpec]),
    /// None, but these name a sharded channel (or a cursor) that belongs to a slot as a key does.
    Routed(&'static [KeySpec]),
    /// SORT: argument 1 and what follows the last STORE option.
    Sort,
    /// MIGRATE: argument 3, or what follows KEYS.
    Migrate,
}

/// One group of arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeySpec(pub Begin, pub Find);

/// Where a group begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// At this argument.
    Index(u8),
    /// Behind this word, looked for from that argument on; if negative, from that many before the end backwards.
    Keyword(&'static str, i8),
}

/// How far a group reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Find {
    /// To the last argument of the group (counted from its beginning, or, if negative, from the request's end), in
    /// these steps, and of that only the first part if the limit is above 1 (2: half).
    Range(i8, u8, u8),
    /// As many as the argument at this offset says, the first at that offset, in these steps.
    Count(u8, u8, u8),
}

/// A row of the command table.
#[derive(Clone, Copy, Debug)]
pub struct CommandInfo {
    /// Lower case; of a subcommand `container|subcommand`.
    pub name: &'static str,
    /// Number of arguments, name included; if negative, the least number.
    pub arity: i16,
    /// May it be sent twice.
    pub class: Class,
    /// What it means to the session.
    pub kind: Kind,
    /// What the server publishes.
    pub flags: Flags,
    /// Which arguments are keys.
    pub keys: KeySet,
    /// Which shards it goes to.
    pub request_policy: RequestPolicy,
    /// How the replies of several shards become one.
    pub response_policy: ResponsePolicy,
    /// Its subcommands, if it is a container.
    pub subcommands: &'static [CommandInfo],
    /// What lookups compare: the name, of a subcommand its own part.
    word: Word,
}

impl CommandInfo {
    /// Whether the first argument names a subcommand.
    pub const fn is_container(&self) -> bool {
        !self.subcommands.is_empty()
    }

    /// Whether a request of `args` arguments, name included, has as many as a server demands before it looks further.
    pub fn has_arity(&self, args: u32) -> bool {
        let args = i64::from(args);
        match i64::from(self.arity) {
            exact if exact >= 0 => args == exact,
            least => args >= -least,
        }
    }
}

/// A row, as the generated table writes it.
#[expect(
    clippy::too_many_arguments,
    reason = "one line per command in the generated table"
)]
const fn row(
    name: &'static str,
    arity: i16,
    class: Class,
    kind: Kind,
    flags: &[Flags],
    keys: KeySet,
    request_policy: RequestPolicy,
    response_policy: ResponsePolicy,
    subcommands: &'static [CommandInfo],
) -> CommandInfo {
    let mut all = Flags::NONE;
    let mut i = 0;
    while i < flags.len() {
        all = all.and(flags[i]);
        i += 1;
    }
    let bytes = name.as_bytes();
    let mut own = bytes;
    let mut i = 0;
    while i < bytes.len() {
        if bytes[i] == b'|' {
            own = bytes.split_at(i + 1).1;
        }
        i += 1;
    }
    let word = Word::of(own);
    CommandInfo {
        name,
        arity,
        class,
        kind,
        flags: all,
        keys,
        request_policy,
        response_policy,
        subcommands,
        word,
    }
}

/// A command's name without its case, in a form that compares at once: the first and the last eight bytes (which
/// overlap in names of less than 16, and are the whole of shorter ones).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Word {
    head: u64,
    tail: u64,
    len: u8,
}

/// The longest name a [`Word`] holds wholly.
const WORD: usize = 16;

impl Word {
    #[inline(always)]
    const fn of(name: &[u8]) -> Self {
        let (head, tail) = if let Some(head) = name.first_chunk::<8>()
            && let Some(tail) = name.last_chunk::<8>()
        {
            (u64::from_le_bytes(*head), u64::from_le_bytes(*tail))
        } else if let Some(head) = name.first_chunk::<4>()
            && let Some(tail) = name.last_chunk::<4>()
        {
            (u32::from_le_bytes(*head) as u64, u32::from_le_bytes(*tail) as u64)
        } else {
            match *name {
                [a, b, c] => (a as u64 | (b as u64) << 8 | (c as u64) << 16, 0),
                [a, b] => (a as u64 | (b as u64) << 8, 0),
                [a] => (a as u64, 0),
                _ => (0, 0),
            }
        };
        let len = if name.len() > u8::MAX as usize {
            u8::MAX
        } else {
            name.len() as u8
        };
        Self {
            head: lower(head),
            tail: lower(tail),
            len,
        }
    }

    #[inline(always)]
    const fn slot(self) -> usize {
        let mixed = (self.head ^ self.tail.rotate_left(29) ^ self.len as u64).wrapping_mul(MIX);
        (mixed >> (64 - SLOT_BITS)) as usize
    }
}

/// ASCII capitals to small letters, eight bytes at once; other bytes unchanged.
#[inline(always)]
const fn lower(bytes: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    let low7 = bytes & (0x7f * ONES);
    let from_a = low7 + (0x80 - b'A' as u64) * ONES;
    let above_z = low7 + (0x7f - b'Z' as u64) * ONES;
    let capital = (from_a ^ above_z) & !bytes & (0x80 * ONES);
    bytes | (capital >> 2)
}

const SLOT_BITS: u32 = 10;
/// 2⁶⁴ divided by the golden ratio: spreads names evenly.
const MIX: u64 = 0x9e37_79b9_7f4a_7c15;

/// Open addressing: index + 1 into the table, 0 for none. A third full.
static SLOTS: [u16; 1 << SLOT_BITS] = slots(table::TABLE);

const fn slots(table: &[CommandInfo]) -> [u16; 1 << SLOT_BITS] {
    let mut slots = [0u16; 1 << SLOT_BITS];
    assert!(table.len() * 2 < slots.len());
    let mut i = 0;
    while i < table.len() {
        let mut slot = table[i].word.slot();
        while slots[slot] != 0 {
            slot = (slot + 1) % slots.len();
        }
        i += 1;
        slots[slot] = i as u16;
    }
    slots
}

/// The row of a command, whatever the case of its name.
#[inline]
pub fn lookup(name: &[u8]) -> Option<&'static CommandInfo> {
    let word = Word::of(name);
    let mut slot = word.slot();
    loop {
        let index = SLOTS[slot % SLOTS.len()].checked_sub(1)?;
        let info = &table::TABLE[index as usize];
        if info.word == word && (name.len() <= WORD || name.eq_ignore_ascii_case(info.name.as_bytes())) {
            return Some(info);
        }
        slot += 1;
    }
}

/// The row of a container's subcommand, whatever the case of its name.
pub fn lookup_sub(container: &CommandInfo, sub: &[u8]) -> Option<&'static CommandInfo> {
    let word = Word::of(sub);
    container.subcommands.iter().find(|info| {
        info.word == word
            && (sub.len() <= WORD
                || info
                    .name
                    .split('|')
                    .next_back()
                    .is_some_and(|own| sub.eq_ignore_ascii_case(own.as_bytes())))
    })
}

/// Every row, without subcommands; in alphabetical order.
pub fn all() -> &'static [CommandInfo] {
    table::TABLE
}

/// Whether the request in `frame` (multibulk) may wait for data or time before it is answered.
#[inline]
pub fn is_blocking(info: &CommandInfo, frame: &[u8]) -> bool {
    match info.kind {
        Kind::Blocking => true,
        Kind::MaybeBlocking => has_block_option(frame),
        _ => false,
    }
}

/// XREAD and XREADGROUP: BLOCK among the options, which end at STREAMS. Group and consumer may have any name.
fn has_block_option(frame: &[u8]) -> bool {
    let mut args = args(frame).skip(1);
    while let Some(arg) = args.next() {
        if arg.eq_ignore_ascii_case(b"BLOCK") {
            return true;
        }
        let skipped = match () {
            () if arg.eq_ignore_ascii_case(b"GROUP") => 2,
            () if arg.eq_ignore_ascii_case(b"COUNT") => 1,
            () if arg.eq_ignore_ascii_case(b"STREAMS") => return false,
            () => 0,
        };
        for _ in 0..skipped {
            args.next();
        }
    }
    false
}
