//! Commands without keys: which shards they go to, and how the answers become one.
//!
//! The server's own tips (`request_policy`, `response_policy` of `COMMAND`) say so for most that matter; [`JUDGED`] says
//! it for those without a tip where one shard's answer would be wrong, and where the tip does not fit a router, each with
//! its reason. "Every node" of a tip means every shard here: Pulsegate speaks to the nodes that own slots.

use super::answers::Local;
use super::join::Join;
use crate::resp::command::{self, CommandInfo, KeySet, Kind, RequestPolicy, ResponsePolicy};

/// Where a command without keys goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Policy {
    /// To any shard: all give the same answer.
    Any,
    /// To shard 0, so that successive answers speak of the same one.
    First,
    /// To the connection that the session uses, of whichever shard; what it changes there is said again on the next.
    Session,
    /// To every shard.
    All(Join),
    /// SCAN.
    Scan,
    /// To one shard after another, until the answer is not nil.
    UntilFound,
    /// To the owner of the slot that it names.
    OwnerOfSlot,
    /// Answered by Pulsegate.
    Local(Local),
    /// Not forwarded: it would change one node of the replica, or its part in the cluster.
    Refused,
}

const ONE_SHARD: &str = "one shard's own figures; they have no sum";
const EVERYWHERE: &str = "no tip; must hold whichever shard a command reaches";
const ONE_NODE: &str = "concerns one node";
const AS_A_CLUSTER: &str = "Pulsegate owns every slot";

/// What is not as the server's tips have it, or has none.
pub const JUDGED: &[(&str, Policy, &str)] = &[
    ("ping", Policy::Any, "asks whether the connection lives"),
    ("info", Policy::First, ONE_SHARD),
    ("scan", Policy::Scan, "see above"),
    ("randomkey", Policy::UntilFound, "a shard may be empty"),
    (
        "lastsave",
        Policy::All(Join::Least),
        "no tip; the time at which all were saved",
    ),
    ("save", Policy::All(Join::AllSucceeded), EVERYWHERE),
    ("bgsave", Policy::All(Join::AllSucceeded), EVERYWHERE),
    ("bgrewriteaof", Policy::All(Join::AllSucceeded), EVERYWHERE),
    (
        "pubsub|channels",
        Policy::All(Join::Union),
        "no tip; each shard knows its own subscribers",
    ),
    (
        "pubsub|numpat",
        Policy::All(Join::Sum),
        "no tip; each shard knows its own subscribers",
    ),
    (
        "pubsub|numsub",
        Policy::All(Join::Sum),
        "no tip; each shard knows its own subscribers",
    ),
    (
        "pubsub|shardchannels",
        Policy::All(Join::Union),
        "no tip; each shard knows its own subscribers",
    ),
    (
        "pubsub|shardnumsub",
        Policy::All(Join::Sum),
        "no tip; each shard knows its own subscribers",
    ),
    (
        "publish",
        Policy::Any,
        "no tip; the cluster carries it to every node, and one counts its own receivers",
    ),
    ("acl|setuser", Policy::All(Join::AllSucceeded), EVERYWHERE),
    ("acl|deluser", Policy::All(Join::Greatest), EVERYWHERE),
    ("acl|load", Policy::All(Join::AllSucceeded), EVERYWHERE),
    ("acl|save", Policy::All(Join::AllSucceeded), EVERYWHERE),
    (
        "acl|log",
        Policy::All(Join::Concat),
        "no tip; each shard keeps its own",
    ),
    ("client|pause", Policy::All(Join::AllSucceeded), EVERYWHERE),
    ("client|unpause", Policy::All(Join::AllSucceeded), EVERYWHERE),
    (
        "config|get",
        Policy::First,
        "no tip; a parameter may differ between nodes",
    ),
    ("config|resetstat", Policy::All(Join::AllSucceeded), EVERYWHERE),
    ("config|rewrite", Policy::All(Join::AllSucceeded), EVERYWHERE),
    ("function|stats", Policy::First, ONE_SHARD),
    ("latency|doctor", Policy::First, ONE_SHARD),
    ("latency|graph", Policy::First, ONE_SHARD),
    ("latency|histogram", Policy::First, ONE_SHARD),
    ("latency|history", Policy::First, ONE_SHARD),
    ("latency|latest", Policy::First, ONE_SHARD),
    ("latency|reset", Policy::All(Join::Sum), "its answer is a count"),
    ("memory|doctor", Policy::First, ONE_SHARD),
    ("memory|malloc-stats", Policy::First, ONE_SHARD),
    ("memory|stats", Policy::First, ONE_SHARD),
    ("module|load", Policy::All(Join::AllSucceeded), EVERYWHERE),
    ("module|loadex", Policy::All(Join::AllSucceeded), EVERYWHERE),
    ("module|unload", Policy::All(Join::AllSucceeded), EVERYWHERE),
    ("role", Policy::First, ONE_NODE),
    ("debug", Policy::First, ONE_NODE),
    ("failover", Policy::Refused, ONE_NODE),
    ("replicaof", Policy::Refused, ONE_NODE),
    ("slaveof", Policy::Refused, ONE_NODE),
    ("cluster|help", Policy::Any, "the server's own text"),
    ("cluster|slots", Policy::Local(Local::Slots), AS_A_CLUSTER),
    ("cluster|shards", Policy::Local(Local::Shards), AS_A_CLUSTER),
    ("cluster|nodes", Policy::Local(Local::Nodes), AS_A_CLUSTER),
    ("cluster|info", Policy::Local(Local::Info), AS_A_CLUSTER),
    ("cluster|links", Policy::Local(Local::Links), AS_A_CLUSTER),
    ("cluster|myid", Policy::Local(Local::MyId), AS_A_CLUSTER),
    ("cluster|myshardid", Policy::Local(Local::MyId), AS_A_CLUSTER),
    ("cluster|replicas", Policy::Local(Local::Replicas), AS_A_CLUSTER),
    ("cluster|slaves", Policy::Local(Local::Replicas), AS_A_CLUSTER),
    (
        "cluster|keyslot",
        Policy::Local(Local::KeySlot),
        "the same everywhere",
    ),
    ("cluster|countkeysinslot", Policy::OwnerOfSlot, "its owner knows"),
    ("cluster|getkeysinslot", Policy::OwnerOfSlot, "its owner knows"),
    (
        "asking",
        Policy::Local(Local::Ok),
        "Pulsegate follows redirections itself",
    ),
    (
        "readonly",
        Policy::Local(Local::Ok),
        "Pulsegate decides which nodes are read",
    ),
    (
        "readwrite",
        Policy::Local(Local::Ok),
        "Pulsegate decides which nodes are read",
    ),
];

/// Where the command goes when it has no keys. `info` is the subcommand's row where the command is a container.
pub fn policy(info: &CommandInfo) -> Policy {
    if let Some((_, policy, _)) = judged(info) {
        return *policy;
    }
    match info.kind {
        // A subcommand that the table does not know: any shard says whether it does.
        _ if info.is_container() => Policy::Any,
        kind if is_of_session(kind) => Policy::Session,
        kind => from_tips(info).unwrap_or(match kind {
            Kind::Sync | Kind::Shutdown | Kind::Cluster => Policy::Refused,
            _ => Policy::Any,
        }),
    }
}

/// Its row in [`JUDGED`].
fn judged(info: &CommandInfo) -> Option<&'static (&'static str, Policy, &'static str)> {
    JUDGED.iter().find(|(name, ..)| *name == info.name)
}

/// What the server's tips come to. `None` where it gives none that says how.
pub fn from_tips(info: &CommandInfo) -> Option<Policy> {
    match info.request_policy {
        RequestPolicy::AllNodes | RequestPolicy::AllShards => {}
        RequestPolicy::Default | RequestPolicy::MultiShard | RequestPolicy::Special => return None,
    }
    let join = match info.response_policy {
        ResponsePolicy::Default => Join::Concat,
        ResponsePolicy::OneSucceeded => Join::OneSucceeded,
        ResponsePolicy::AllSucceeded => Join::AllSucceeded,
        ResponsePolicy::AggSum => Join::Sum,
        ResponsePolicy::AggMin | ResponsePolicy::AggLogicalAnd => Join::Least,
        ResponsePolicy::AggMax | ResponsePolicy::AggLogicalOr => Join::Greatest,
        ResponsePolicy::Special => return None,
    };
    Some(Policy::All(join))
}

/// What it changes, or speaks of, is the connection.
fn is_of_session(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::Multi
            | Kind::Exec
            | Kind::Discard
            | Kind::Watch
            | Kind::Unwatch
            | Kind::Subscribe
            | Kind::Psubscribe
            | Kind::Ssubscribe
            | Kind::Unsubscribe
            | Kind::Punsubscribe
            | Kind::Sunsubscribe
            | Kind::Monitor
            | Kind::Hello
            | Kind::Auth
            | Kind::Select
            | Kind::Client
            | Kind::ClientId
            | Kind::ClientGetname
            | Kind::ClientSetname
            | Kind::ClientSetinfo
            | Kind::ClientReply
            | Kind::ClientTracking
            | Kind::ClientCaching
            | Kind::ClientFlag
            | Kind::Reset
            | Kind::Quit
            | Kind::ScriptDebug
    )
}

/// A line of the table in `docs/sharded.md`.
#[derive(Clone, Copy, Debug)]
pub struct Described {
    /// As in the command table: `config|set`.
    pub name: &'static str,
    /// Where it goes.
    pub policy: Policy,
    /// The server's tips.
    pub tips: (RequestPolicy, ResponsePolicy),
    /// Why it does not go where the tips say, or what stands in for missing ones.
    pub why: Option<&'static str>,
}

/// Every command that never has keys, in the order of the command table.
pub fn described() -> impl Iterator<Item = Described> {
    let rows = command::all().iter().flat_map(|info| {
        if info.is_container() {
            info.subcommands
        } else {
            std::slice::from_ref(info)
        }
    });
    rows.filter(|info| matches!(info.keys, KeySet::None))
        .map(|info| Described {
            name: info.name,
            policy: policy(info),
            tips: (info.request_policy, info.response_policy),
            why: judged(info).map(|(_, _, why)| *why),
        })
}
