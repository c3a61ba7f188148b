//! What becomes of a session's commands when their link is gone.
//!
//! Pure. The rules, in order:
//! 1. A transaction that is open on the lost link is lost with it. Its commands had no effect, so those without a reply
//!    get the one they would have had (`+OK`, `+QUEUED`); its EXEC, if not one byte of it was sent, gets `-EXECABORT`.
//! 2. An EXEC that may have reached the replica has an unknown outcome, as has any other write.
//! 3. A lost WATCH makes the next EXEC nil: the transaction that it guards is answered here and sent nowhere.
//! 4. A blocked command ends in Redis' own `-UNBLOCKED`.
//! 5. Everything else that was not sent, and every read, is sent (again) on the next link.
//!
//! ```text
//!            MULTI sent                       EXEC, DISCARD answered here
//!   Clear ───────────────▶ Open ──link lost──▶ Broken(Abort) ──────────▶ Clear
//!     │ WATCH sent                                  ▲
//!     ▼                                             │ MULTI answered here
//!   Watching ──────────────link lost──────────▶ Lost watch ─▶ Broken(Nil) ─▶ Clear
//! ```

use super::command::{Command, Expect, Tx};

/// What to do with one command.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// Send it on the next link.
    Resend,
    /// Answer it here.
    Answer(Local),
    /// Nothing is owed to anyone.
    Drop,
}

/// Replies that Pulsegate gives itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Local {
    /// `+OK`
    Ok,
    /// `+QUEUED`
    Queued,
    /// `-EXECABORT …`
    ExecAbort,
    /// The nil of an EXEC whose WATCH was broken.
    ExecNil,
    /// `-OUTCOMEUNKNOWN …`
    OutcomeUnknown,
    /// `-UNBLOCKED …`
    Unblocked,
}

impl Local {
    /// The reply's bytes in the session's protocol.
    pub(crate) fn bytes(self, resp3: bool) -> &'static [u8] {
        match self {
            Local::Ok => b"+OK\r\n",
            Local::Queued => b"+QUEUED\r\n",
            Local::ExecAbort => b"-EXECABORT Transaction discarded because its replica was lost before EXEC\r\n",
            Local::ExecNil if resp3 => b"_\r\n",
            Local::ExecNil => b"*-1\r\n",
            Local::OutcomeUnknown => {
                b"-OUTCOMEUNKNOWN the command was sent but its replica was lost before it replied; it may or may not be applied\r\n"
            }
            Local::Unblocked => {
                b"-UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)\r\n"
            }
        }
    }
}

/// Where a session stands in a transaction, at its newest command.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum TxState {
    /// Outside.
    #[default]
    Clear,
    /// WATCH holds on the current link.
    Watching,
    /// Between MULTI and EXEC on the current link.
    Open,
    /// The link that held the WATCH is gone; the next MULTI is answered here.
    WatchLost,
    /// Between MULTI and EXEC, all answered here; how EXEC ends.
    Broken(Broken),
}

/// How the EXEC of a broken transaction is answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Broken {
    /// The transaction's link was lost: `-EXECABORT`.
    Abort,
    /// Its WATCH was lost: nil.
    Nil,
}

impl TxState {
    /// The state after `tx`, which goes to the link, or the answer to give here instead.
    pub(crate) fn step(&mut self, tx: Tx) -> Option<Local> {
        use Broken::{Abort, Nil};
        let (next, answer) = match (*self, tx) {
            (_, Tx::Reset) => (TxState::Clear, None),
            (TxState::Broken(Abort), Tx::Exec) => (TxState::Clear, Some(Local::ExecAbort)),
            (TxState::Broken(Nil), Tx::Exec) => (TxState::Clear, Some(Local::ExecNil)),
            (TxState::Broken(_), Tx::Discard) => (TxState::Clear, Some(Local::Ok)),
            (TxState::Broken(_), _) => (*self, Some(Local::Queued)),
            (TxState::WatchLost, Tx::Multi) => (TxState::Broken(Nil), Some(Local::Ok)),
            (TxState::WatchLost, Tx::Unwatch) => (TxState::Clear, Some(Local::Ok)),
            (TxState::Open, Tx::Exec | Tx::Discard) => (TxState::Clear, None),
            (TxState::Open, _) => (TxState::Open, None),
            (_, Tx::Multi) => (TxState::Open, None),
            (TxState::Clear, Tx::Watch) => (TxState::Watching, None),
            (TxState::Watching, Tx::Unwatch) => (TxState::Clear, None),
            (state, _) => (state, None),
        };
        *self = next;
        answer
    }

    /// Whether commands are answered here because their replica, or its WATCH, was lost.
    pub(crate) fn is_lost(self) -> bool {
        matches!(self, TxState::Broken(_) | TxState::WatchLost)
    }

    /// Whether commands must stay on the session's own link.
    pub(crate) fn pins(self) -> bool {
        matches!(self, TxState::Watching | TxState::Open)
    }

    /// The link is gone.
    fn lose(&mut self) {
        *self = match *self {
            TxState::Open => TxState::Broken(Broken::Abort),
            TxState::Watching => TxState::WatchLost,
            other => other,
        };
    }
}

/// Walks over one session's commands on a lost link: first those sent (any byte), then those not sent, in order.
#[derive(Debug)]
pub(crate) struct Recovery {
    state: TxState,
    lost: bool,
}

impl Recovery {
    /// `answered`: where the session stood at its newest *answered* command on this link.
    pub(crate) fn new(answered: TxState) -> Recovery {
        Recovery {
            state: answered,
            lost: false,
        }
    }

    /// The next command of which at least one byte may have reached the replica.
    pub(crate) fn sent(&mut self, command: &Command) -> Verdict {
        self.open(command);
        let inside = self.state == TxState::Open;
        let _ = self.state.step(command.tx);
        match command.expect {
            Expect::Own { .. } => return Verdict::Drop,
            Expect::Blocking if !inside => return Verdict::Answer(Local::Unblocked),
            Expect::Confirmations(_) if !inside => return Verdict::Resend,
            _ => {}
        }
        match command.tx {
            Tx::Multi | Tx::Watch | Tx::Unwatch | Tx::Discard if !inside || command.tx == Tx::Discard => {
                Verdict::Answer(Local::Ok)
            }
            Tx::Exec => Verdict::Answer(Local::OutcomeUnknown),
            Tx::Reset => Verdict::Resend,
            _ if inside => Verdict::Answer(Local::Queued),
            _ if command.read => Verdict::Resend,
            _ => Verdict::Answer(Local::OutcomeUnknown),
        }
    }

    /// The next command of which nothing was sent.
    pub(crate) fn unsent(&mut self, command: &Command) -> Verdict {
        self.lose();
        if matches!(command.expect, Expect::Own { .. }) {
            return Verdict::Drop;
        }
        self.open(command);
        match self.state.step(command.tx) {
            Some(local) => Verdict::Answer(local),
            None => Verdict::Resend,
        }
    }

    /// MULTI was answered, and belongs before this command.
    fn open(&mut self, command: &Command) {
        if command.opens() {
            let _ = self.state.step(Tx::Multi);
        }
    }

    /// Where the session stands after its newest command.
    pub(crate) fn finish(mut self) -> TxState {
        self.lose();
        self.state
    }

    fn lose(&mut self) {
        if !self.lost {
            self.lost = true;
            self.state.lose();
        }
    }
}

#[cfg(test)]
mod tests;
