//! From a request's bytes to a [`Command`]: what comes back, whether it may be sent twice, what it changes.

use bytes::Bytes;

use super::cluster::{Local, Policy, policy};
use super::command::{Command, Expect, ReplyMode, ScriptUse, Tx};
use super::intent::{Change, Login, Password};
use super::pipeline::Seq;
use crate::metrics::Class;
use crate::resp::command::{CommandInfo, Flags, Kind, is_blocking, lookup, lookup_sub};
use crate::resp::{self, Request, RequestScanner, Scan};

/// What a request is, before it has a slot.
#[derive(Debug)]
pub(crate) struct Classified {
    /// What comes back.
    pub expect: Expect,
    /// May be sent twice.
    pub read: bool,
    /// Only reads data, and leaves no trace: another replica than the one that takes the writes may be asked.
    pub strays: bool,
    /// Needs a link of the session's own.
    pub own: bool,
    /// Leaves behind on the connection what Pulsegate does not know how to undo.
    pub taints: bool,
    /// What it has to do with scripts and functions.
    pub script: Option<ScriptUse>,
    /// Its part in a transaction.
    pub tx: Tx,
    /// What a successful reply changes.
    pub change: Option<Box<Change>>,
    /// For the metrics.
    pub class: Class,
    /// Its row in the command table.
    pub info: Option<&'static CommandInfo>,
    /// What is said in the place of an answer that names the replica's nodes.
    pub instead: Option<Local>,
    /// What Pulsegate does itself.
    pub local: Option<LocalCommand>,
}

/// Commands that Pulsegate answers itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum LocalCommand {
    /// `+OK`, then close.
    Quit,
    /// Would turn the connection into a replication stream.
    Refused,
    /// Closed without a word: the first line of an HTTP request.
    Closed,
}

/// Classifies a whole multibulk request.
pub(crate) fn classify(frame: &[u8], request: &Request) -> Classified {
    let name = &frame[request.name.0 as usize..request.name.1 as usize];
    let mut c = Classified {
        expect: Expect::Reply,
        read: false,
        strays: false,
        own: false,
        taints: false,
        script: None,
        tx: Tx::None,
        change: None,
        class: Class::Write,
        info: None,
        instead: None,
        local: None,
    };
    let Some(mut info) = lookup(name) else {
        if name.eq_ignore_ascii_case(b"POST") || name.eq_ignore_ascii_case(b"Host:") {
            c.local = Some(LocalCommand::Closed);
        }
        // What the table does not know may be anything: it counts as a write, and as one that changes the connection.
        (c.own, c.taints) = (true, true);
        return c;
    };
    if info.is_container() {
        info = lookup_sub(info, request.first(frame)).unwrap_or(info);
    }
    c.info = Some(info);
    if !has_arity(info, request.args) {
        // The replica refuses it without looking further: one error, and nothing changes. EXEC is the exception: however it
        // is refused, it ends its transaction.
        (c.own, c.class) = (info.kind != Kind::Plain, Class::Other);
        c.tx = if info.kind == Kind::Exec {
            Tx::Exec
        } else {
            Tx::None
        };
        return c;
    }
    c.read = info.class == resp::Class::Read;
    if info.kind != Kind::Plain {
        special(&mut c, info, frame, request);
    } else if c.read {
        (c.class, c.strays) = (Class::Read, strays(info));
    }
    c
}

/// Whether a command without effect on its session may be asked of another replica than the one that takes the writes: it
/// reads data, and not what a server says of itself; and its reply means the same on every replica, as a cursor does not.
fn strays(info: &CommandInfo) -> bool {
    info.flags.contains(Flags::READONLY)
        && !(info.flags.contains(Flags::NONDETERMINISTIC_OUTPUT) && info.name.ends_with("scan"))
}

fn has_arity(info: &CommandInfo, args: u32) -> bool {
    let args = i64::from(args);
    match i64::from(info.arity) {
        exact if exact >= 0 => args == exact,
        least => args >= -least,
    }
}

fn special(c: &mut Classified, info: &CommandInfo, frame: &[u8], request: &Request) {
    (c.class, c.own) = (Class::Other, true);
    let channels = request.args.saturating_sub(1);
    let word = |i: usize| resp::args(frame).nth(i).unwrap_or_default();
    let copy = |i: usize| Bytes::copy_from_slice(word(i));
    match info.kind {
        // The replica refuses these without looking further, so they change nothing.
        Kind::Multi | Kind::Exec | Kind::Discard | Kind::Unwatch | Kind::Reset if channels > 0 => {}
        Kind::Watch if channels == 0 => {}
        Kind::Multi => c.tx = Tx::Multi,
        Kind::Exec => c.tx = Tx::Exec,
        Kind::Discard => c.tx = Tx::Discard,
        Kind::Watch => c.tx = Tx::Watch,
        Kind::Unwatch => c.tx = Tx::Unwatch,
        Kind::Subscribe | Kind::Psubscribe | Kind::Ssubscribe => {
            c.expect = Expect::Confirmations(channels.max(1));
            c.change = Some(Box::new(Change::Subscribe));
        }
        // Without channels: one confirmation for each that is subscribed to, known once it is sent.
        Kind::Unsubscribe | Kind::Punsubscribe | Kind::Sunsubscribe => {
            c.expect = Expect::Confirmations(channels);
            c.change = Some(Box::new(Change::Subscribe));
        }
        Kind::Monitor => c.change = Some(Box::new(Change::Monitor)),
        Kind::Hello => c.change = Some(Box::new(hello(frame))),
        Kind::Auth => {
            let (user, password) = if channels > 1 {
                (Some(copy(1)), copy(2))
            } else {
                (None, copy(1))
            };
            c.change = Some(Box::new(Change::Auth(Login {
                user,
                password: Password(password),
            })));
        }
        Kind::Select => {
            if let Some(db) = std::str::from_utf8(word(1)).ok().and_then(|w| w.parse().ok()) {
                c.change = Some(Box::new(Change::Select(db)));
            }
        }
        Kind::Client
        | Kind::ClientId
        | Kind::ClientGetname
        | Kind::ClientSetname
        | Kind::ClientSetinfo
        | Kind::ClientReply
        | Kind::ClientTracking
        | Kind::ClientCaching
        | Kind::ClientFlag => {
            client(c, frame);
            // An id is asked for to be used: it must stay true, as far as the link lives.
            c.taints = matches!(info.kind, Kind::ClientId | Kind::ClientFlag) && c.change.is_none();
        }
        Kind::Reset => (c.tx, c.change) = (Tx::Reset, Some(Box::new(Change::Reset))),
        Kind::Quit => c.local = Some(LocalCommand::Quit),
        Kind::Sync => c.local = Some(LocalCommand::Refused),
        Kind::Readonly => {
            c.change = Some(Box::new(Change::Mode(
                "readonly",
                Some(Bytes::copy_from_slice(frame)),
            )));
        }
        Kind::Readwrite => c.change = Some(Box::new(Change::Mode("readonly", None))),
        Kind::Blocking | Kind::MaybeBlocking => {
            c.class = if c.read { Class::Read } else { Class::Write };
            c.own = is_blocking(info, frame);
            if c.own {
                c.expect = Expect::Blocking;
            }
            c.strays = !c.own && c.read && strays(info);
            // They speak of the writes of their own connection.
            c.taints = matches!(info.name, "wait" | "waitaof");
        }
        // Kinds that leave no trace on the connection; what follows them says why they are no plain ones.
        Kind::Eval
        | Kind::EvalSha
        | Kind::Fcall
        | Kind::Script
        | Kind::ScriptLoad
        | Kind::Function
        | Kind::Cluster => {
            c.own = false;
            c.class = if c.read { Class::Read } else { Class::Write };
            c.script = script(info, request.first(frame));
            c.instead = instead(info);
        }
        Kind::ScriptDebug | Kind::Asking => c.taints = true,
        Kind::Debug | Kind::Shutdown | Kind::Plain => {}
    }
}

/// An application that followed what a node says of the nodes would go past Pulsegate.
fn instead(info: &CommandInfo) -> Option<Local> {
    match policy::policy(info) {
        Policy::Local(local) if info.kind == Kind::Cluster && local.names_nodes() => Some(local),
        _ => None,
    }
}

fn script(info: &CommandInfo, sub: &[u8]) -> Option<ScriptUse> {
    match info.kind {
        Kind::Eval => Some(ScriptUse::Eval),
        Kind::EvalSha => Some(ScriptUse::EvalSha),
        Kind::Fcall => Some(ScriptUse::Fcall),
        Kind::ScriptLoad => Some(ScriptUse::Load),
        Kind::Script if sub.eq_ignore_ascii_case(b"FLUSH") => Some(ScriptUse::Flush),
        Kind::Function
            if [&b"LOAD"[..], b"DELETE", b"FLUSH", b"RESTORE"]
                .iter()
                .any(|word| sub.eq_ignore_ascii_case(word)) =>
        {
            Some(ScriptUse::Functions)
        }
        _ => None,
    }
}

/// The row in the command table, and the scanner's knowledge, of the request in `frame` (multibulk).
pub(crate) fn look(frame: &[u8]) -> Option<(Option<&'static CommandInfo>, Request)> {
    let Ok(Scan::Complete(request)) = RequestScanner::new().scan(frame) else {
        return None;
    };
    Some((classify(frame, &request).info, request))
}

/// The plain command in `frame` (multibulk), of which nothing but its place was kept.
pub(crate) fn again(seq: Seq, frame: &[u8]) -> Command {
    match RequestScanner::new().scan(frame) {
        Ok(Scan::Complete(request)) => {
            let c = classify(frame, &request);
            Command {
                class: c.class,
                strays: c.strays,
                script: c.script,
                ..Command::plain(seq, c.read)
            }
        }
        _ => Command::plain(seq, false),
    }
}

fn hello(frame: &[u8]) -> Change {
    let words: Vec<&[u8]> = resp::args(frame).collect();
    let copy = |w: &&[u8]| Bytes::copy_from_slice(w);
    let (mut login, mut name) = (None, None);
    let mut i = 2;
    while i < words.len() {
        if words[i].eq_ignore_ascii_case(b"AUTH")
            && let (Some(user), Some(password)) = (words.get(i + 1), words.get(i + 2))
        {
            login = Some(Login {
                user: Some(copy(user)),
                password: Password(copy(password)),
            });
            i += 3;
        } else if words[i].eq_ignore_ascii_case(b"SETNAME") {
            name = words.get(i + 1).map(copy);
            i += 2;
        } else {
            i += 1;
        }
    }
    Change::Hello {
        resp3: words.get(1).map(|v| *v == b"3"),
        login,
        name,
    }
}

fn client(c: &mut Classified, frame: &[u8]) {
    let words: Vec<&[u8]> = resp::args(frame).collect();
    let word = |i: usize| words.get(i).copied().unwrap_or_default();
    let copy = |i: usize| Bytes::copy_from_slice(word(i));
    let whole = || Bytes::copy_from_slice(frame);
    let sub = word(1).to_ascii_lowercase();
    let on = word(2).eq_ignore_ascii_case(b"ON");
    let change = match &sub[..] {
        b"setname" => Change::Name(copy(2)),
        b"setinfo" => Change::Info(copy(2), copy(3)),
        b"tracking" => Change::Tracking(on.then(whole)),
        b"no-evict" => Change::Mode("no-evict", on.then(whole)),
        b"no-touch" => Change::Mode("no-touch", on.then(whole)),
        b"reply" => match word(2).to_ascii_lowercase().as_slice() {
            b"on" => Change::Reply(ReplyMode::On),
            b"off" => Change::Reply(ReplyMode::Off),
            b"skip" => Change::Reply(ReplyMode::Skip),
            _ => return,
        },
        _ => return,
    };
    c.change = Some(Box::new(change));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classified(words: &[&str]) -> Classified {
        let mut frame = bytes::BytesMut::new();
        frame.extend_from_slice(&resp::encode_command(
            &words.iter().map(|w| w.as_bytes()).collect::<Vec<_>>(),
        ));
        let Ok(Scan::Complete(request)) = RequestScanner::new().scan(&frame) else {
            panic!("whole")
        };
        classify(&frame, &request)
    }

    #[test]
    fn only_what_the_table_calls_a_read_is_sent_twice() {
        assert!(classified(&["get", "k"]).read);
        assert!(classified(&["CONFIG", "GET", "maxmemory"]).read);
        assert!(!classified(&["CONFIG", "SET", "maxmemory", "1"]).read);
        assert!(!classified(&["set", "k", "v"]).read);
        assert!(!classified(&["nosuchcommand", "k"]).read);
        assert!(!classified(&["client", "kill", "id", "1"]).read);
    }

    #[test]
    fn only_what_reads_data_and_nothing_else_may_be_asked_elsewhere() {
        for words in [
            &["GET", "k"][..],
            &["DBSIZE"],
            &["TTL", "k"],
            &["XREAD", "STREAMS", "s", "0"],
        ] {
            assert!(classified(words).strays, "{words:?}");
        }
        for words in [
            &["SET", "k", "v"][..],
            &["GETEX", "k"],
            &["INFO"],
            &["PING"],
            &["PUBSUB", "CHANNELS"],
            &["SCAN", "0"],
            &["HSCAN", "k", "0"],
            &["EVAL_RO", "return 1", "0"],
            &["FCALL_RO", "f", "0"],
            &["XREAD", "BLOCK", "0", "STREAMS", "s", "0"],
            &["GET"],
            &["nosuchcommand"],
        ] {
            assert!(!classified(words).strays, "{words:?}");
        }
    }

    #[test]
    fn what_the_replica_will_refuse_changes_nothing() {
        for words in [
            &["MULTI", "x"][..],
            &["DISCARD", "x"],
            &["WATCH"],
            &["RESET", "x"],
            &["CLIENT", "REPLY", "OFF", "x"],
            &["SELECT", "1", "2"],
        ] {
            let c = classified(words);
            assert!(
                c.change.is_none() && c.tx == Tx::None && c.expect == Expect::Reply,
                "{words:?}"
            );
        }
        assert_eq!(
            classified(&["EXEC", "x"]).tx,
            Tx::Exec,
            "it ends the transaction all the same"
        );
    }

    #[test]
    fn state_is_read_from_the_words() {
        let change = |words: &[&str]| format!("{:?}", classified(words).change.unwrap());
        assert!(change(&["HELLO", "3", "AUTH", "u", "p", "SETNAME", "n"]).contains("resp3: Some(true)"));
        assert!(
            !change(&["AUTH", "u", "hidden"]).contains("hidden"),
            "passwords stay out of Debug"
        );
        assert_eq!(change(&["select", "7"]), "Select(7)");
        assert_eq!(
            classified(&["SUBSCRIBE", "a", "b"]).expect,
            Expect::Confirmations(2)
        );
        assert_eq!(classified(&["BLPOP", "k", "0"]).expect, Expect::Blocking);
        assert_eq!(change(&["client", "reply", "skip"]), "Reply(Skip)");
        assert_eq!(classified(&["QUIT"]).local, Some(LocalCommand::Quit));
    }
}
