//! One command on its way: what its reply will look like, and what it changes in its session.

use bytes::Bytes;

use super::intent::Change;
use super::pipeline::Seq;

/// A command of a session, without its bytes.
#[derive(Debug)]
pub(crate) struct Command {
    /// Its slot in the session's pipeline.
    pub seq: Seq,
    /// What comes back for it.
    pub expect: Expect,
    /// May be sent again: the command table says that it only reads.
    pub read: bool,
    /// Its part in a transaction.
    pub tx: Tx,
    /// What a successful reply changes in the session.
    pub change: Option<Box<Change>>,
}

impl Command {
    /// A command of the link's own handshake.
    pub(crate) fn own(replies: u32, must_succeed: bool) -> Command {
        let expect = if replies == 0 {
            Expect::Nothing
        } else {
            Expect::Own {
                replies,
                must_succeed,
            }
        };
        Command {
            seq: Seq::NONE,
            expect,
            read: false,
            tx: Tx::None,
            change: None,
        }
    }
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
    /// Nothing: the application said CLIENT REPLY OFF or SKIP.
    Nothing,
    /// So many replies, for nobody: Pulsegate's own handshake.
    Own {
        /// Replies still to come.
        replies: u32,
        /// An error among them condemns the link.
        must_succeed: bool,
    },
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
}

/// A command that waits to be sent, with its bytes.
#[derive(Debug)]
pub(crate) struct Held {
    /// The command.
    pub command: Command,
    /// Its unchanged bytes.
    pub frame: Bytes,
    /// Since when it waits.
    pub since: std::time::Instant,
}
