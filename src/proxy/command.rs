//! One command on its way: what its reply will look like, and what it means to its session.

use std::time::Instant;

use bytes::Bytes;

use super::intent::Change;
use super::part::{Detour, Part, Refused};
use super::pipeline::Seq;
use crate::metrics::Class;

/// A command of a session, without its bytes.
#[derive(Debug)]
pub(crate) struct Command {
    /// Its place in the session's pipeline.
    pub seq: Seq,
    /// What comes back for it.
    pub expect: Expect,
    /// May be sent again: the command table says that it only reads.
    pub read: bool,
    /// Only reads data, and leaves no trace: another replica than the one that takes the writes may be asked.
    pub strays: bool,
    /// Needs a link of the session's own.
    pub own: bool,
    /// And keeps the session on it until it is answered.
    pub pins: bool,
    /// For the metrics.
    pub class: Class,
    /// Its part in a transaction.
    pub tx: Tx,
    /// What few commands have.
    pub aside: Option<Box<Aside>>,
    /// What it has to do with scripts and functions, which replicas do not tell each other.
    pub script: Option<ScriptUse>,
}

impl Command {
    /// A command of which nothing is known but that one reply comes back.
    pub(crate) fn plain(seq: Seq, read: bool) -> Command {
        Command {
            seq,
            expect: Expect::Reply,
            read,
            strays: false,
            own: false,
            pins: false,
            class: if read { Class::Read } else { Class::Write },
            tx: Tx::None,
            aside: None,
            script: None,
        }
    }

    /// A command of Pulsegate's own.
    pub(crate) fn own(replies: u32, must: Must) -> Command {
        Command {
            expect: Expect::Own { replies, must },
            class: Class::Other,
            ..Command::plain(Seq::NONE, false)
        }
    }

    /// See [`Aside`].
    pub(crate) fn opens(&self) -> bool {
        self.aside.as_ref().is_some_and(|aside| aside.opens)
    }

    /// See [`Aside`].
    pub(crate) fn part(&self) -> Option<&Part> {
        self.aside.as_ref()?.part.as_ref()
    }

    /// See [`Aside`].
    pub(crate) fn change(&self) -> Option<&Change> {
        self.aside.as_ref()?.change.as_deref()
    }

    /// The same; it is the command's no more.
    pub(crate) fn take_change(&mut self) -> Option<Box<Change>> {
        self.aside.as_mut()?.change.take()
    }

    /// See [`Aside`].
    pub(crate) fn detour(&self) -> Option<Detour> {
        self.aside.as_ref()?.detour
    }

    /// What the command was to prove the refusal of, if that is its purpose.
    pub(crate) fn take_refused(&mut self) -> Option<Refused> {
        match self.aside.as_mut()?.part.take()? {
            Part::Proof(refused) => Some(*refused),
            other => {
                self.aside().part = Some(other);
                None
            }
        }
    }

    /// It may write, and its error may be its own words, though they are those of a server that did not carry it out.
    pub(crate) fn words_its_errors(&self) -> bool {
        let runs = matches!(
            self.script,
            Some(ScriptUse::Eval | ScriptUse::EvalSha | ScriptUse::Fcall)
        );
        runs && !self.read
    }

    /// To be changed.
    pub(crate) fn aside(&mut self) -> &mut Aside {
        self.aside.get_or_insert_with(Box::default)
    }

    /// One reply comes back and it changes nothing: many such commands are one entry of a link.
    pub(crate) fn is_plain(&self) -> bool {
        self.expect == Expect::Reply && self.tx == Tx::None && self.aside.is_none() && !self.pins
    }
}

/// What few commands have.
#[derive(Debug, Default)]
pub(crate) struct Aside {
    /// What a successful reply changes in the session.
    pub change: Option<Box<Change>>,
    /// MULTI was answered before it was known where the transaction is to be: it is said just before this command.
    pub opens: bool,
    /// Leaves behind on the connection what Pulsegate does not know how to undo.
    pub taints: bool,
    /// What its reply is to the application's command; `None`: the reply.
    pub part: Option<Part>,
    /// A node has sent it elsewhere.
    pub detour: Option<Detour>,
}

/// What comes back for a command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Expect {
    /// One reply, for the application.
    Reply,
    /// One reply, perhaps much later: neither the response time-out nor a drain waits for it.
    Blocking,
    /// So many confirmations of (un)subscribed channels, for the application.
    Confirmations(u32),
    /// So many replies, for nobody: a command of Pulsegate's own.
    Own {
        /// Replies still to come.
        replies: u32,
        /// Which of them condemn the link.
        must: Must,
    },
}

/// What the answer to a command of Pulsegate's own has to be; anything else condemns the link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Must {
    /// Anything: an older server may not know the command.
    Answer,
    /// No error: what Pulsegate itself needs.
    Succeed,
    /// No error either, but what the application asked for earlier: if this replica does not grant it, the application is
    /// told so, and the replica is none the worse for it.
    Grant,
    /// No error but one that says who may ask (NOAUTH, NOPERM): the replica serves.
    Serve,
}

/// A command's part in a transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Tx {
    /// None of the below.
    #[default]
    None,
    /// MULTI
    Multi,
    /// EXEC
    Exec,
    /// DISCARD
    Discard,
    /// WATCH
    Watch,
    /// UNWATCH
    Unwatch,
    /// RESET, which ends both a transaction and a WATCH
    Reset,
}

/// CLIENT REPLY ON, OFF, SKIP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ReplyMode {
    /// Replies again, this one among them.
    On,
    /// No replies from here on.
    Off,
    /// None for this command and the next.
    Skip,
}

/// What a command has to do with scripts and functions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ScriptUse {
    /// EVAL: brings a script.
    Eval,
    /// EVALSHA: needs a script.
    EvalSha,
    /// FCALL: needs a function.
    Fcall,
    /// SCRIPT LOAD: brings a script.
    Load,
    /// SCRIPT FLUSH: takes all scripts away.
    Flush,
    /// FUNCTION LOAD, DELETE, FLUSH, RESTORE: changes the functions.
    Functions,
}

/// A command that waits to be sent, with its bytes.
#[derive(Debug)]
pub(crate) struct Held {
    /// The command.
    pub command: Command,
    /// Its unchanged bytes.
    pub frame: Bytes,
    /// Since when it is held; `None` while it only waits for the answers to earlier commands.
    pub since: Option<Instant>,
    /// It is not to be sent before.
    pub not_before: Option<Instant>,
}

/// A command that a lost link gives back.
#[derive(Debug)]
pub(crate) struct Given {
    /// The command.
    pub command: Command,
    /// Its bytes.
    pub frame: Bytes,
    /// Any byte of it may have reached the replica.
    pub sent: bool,
}
