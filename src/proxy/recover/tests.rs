use super::*;
use crate::proxy::pipeline::Pipeline;

fn command(tx: Tx, read: bool, expect: Expect) -> Command {
    Command {
        expect,
        tx,
        ..Command::plain(Pipeline::default().push(), read)
    }
}

fn read() -> Command {
    command(Tx::None, true, Expect::Reply)
}

fn write() -> Command {
    command(Tx::None, false, Expect::Reply)
}

fn tx(tx: Tx) -> Command {
    command(tx, false, Expect::Reply)
}

/// Recovers `sent` then `unsent` from `answered`; the verdicts in order, and the state at the end.
fn recover(answered: TxState, sent: &[Command], unsent: &[Command]) -> (Vec<Verdict>, TxState) {
    let mut recovery = Recovery::new(answered);
    let mut verdicts: Vec<Verdict> = sent.iter().map(|c| recovery.sent(c)).collect();
    verdicts.extend(unsent.iter().map(|c| recovery.unsent(c)));
    (verdicts, recovery.finish())
}

use Local::*;
use Verdict::{Answer, Drop, Resend};

#[test]
fn outside_a_transaction_reads_are_sent_again_and_writes_are_unknown() {
    let (verdicts, state) = recover(TxState::Clear, &[read(), write(), read()], &[write(), read()]);
    assert_eq!(verdicts, [Resend, Answer(OutcomeUnknown), Resend, Resend, Resend]);
    assert_eq!(state, TxState::Clear);
}

#[test]
fn a_transaction_that_was_not_sent_at_all_moves_whole() {
    let (verdicts, state) = recover(
        TxState::Clear,
        &[write()],
        &[tx(Tx::Multi), write(), tx(Tx::Exec), read()],
    );
    assert_eq!(verdicts, [Answer(OutcomeUnknown), Resend, Resend, Resend, Resend]);
    assert_eq!(state, TxState::Clear);
}

#[test]
fn an_open_transaction_is_lost_and_its_exec_aborts() {
    // MULTI answered, a write sent, another write and EXEC not sent, then a plain write.
    let (verdicts, state) = recover(TxState::Open, &[write()], &[write(), tx(Tx::Exec), write()]);
    assert_eq!(
        verdicts,
        [Answer(Queued), Answer(Queued), Answer(ExecAbort), Resend]
    );
    assert_eq!(state, TxState::Clear);
}

#[test]
fn a_read_inside_a_transaction_is_not_sent_outside_of_it() {
    let (verdicts, state) = recover(TxState::Clear, &[tx(Tx::Multi), read()], &[]);
    assert_eq!(verdicts, [Answer(Ok), Answer(Queued)]);
    assert_eq!(
        state,
        TxState::Broken(Broken::Abort),
        "the EXEC still to come must abort"
    );
}

#[test]
fn an_exec_that_was_sent_is_unknown() {
    let (verdicts, state) = recover(
        TxState::Clear,
        &[tx(Tx::Multi), write(), tx(Tx::Exec), read()],
        &[write()],
    );
    assert_eq!(
        verdicts,
        [Answer(Ok), Answer(Queued), Answer(OutcomeUnknown), Resend, Resend]
    );
    assert_eq!(state, TxState::Clear);
}

#[test]
fn a_lost_watch_makes_the_next_exec_nil() {
    let (verdicts, state) = recover(
        TxState::Clear,
        &[tx(Tx::Watch), read()],
        &[tx(Tx::Multi), write(), tx(Tx::Exec), write()],
    );
    assert_eq!(
        verdicts,
        [
            Answer(Ok),
            Resend,
            Answer(Ok),
            Answer(Queued),
            Answer(ExecNil),
            Resend
        ]
    );
    assert_eq!(state, TxState::Clear);

    let (_, mut state) = recover(TxState::Watching, &[], &[]);
    assert_eq!(state, TxState::WatchLost);
    assert_eq!(
        state.step(Tx::None),
        None,
        "plain commands between WATCH and MULTI still go out"
    );
    assert_eq!(state.step(Tx::Multi), Some(Ok));
    assert_eq!(state.step(Tx::None), Some(Queued));
    assert_eq!(state.step(Tx::Exec), Some(ExecNil));
    assert_eq!(state, TxState::Clear);
}

#[test]
fn unwatch_and_discard_end_what_was_lost() {
    let mut state = TxState::WatchLost;
    assert_eq!(state.step(Tx::Unwatch), Some(Ok));
    assert_eq!(state.step(Tx::Multi), None);
    assert_eq!(state, TxState::Open);

    let mut state = TxState::Broken(Broken::Abort);
    assert_eq!(state.step(Tx::Discard), Some(Ok));
    assert_eq!(state, TxState::Clear);
}

#[test]
fn blocked_commands_end_in_unblocked_and_those_of_pulsegate_owe_nothing() {
    let own = || Command::own(1, crate::proxy::command::Must::Answer);
    let sent = [command(Tx::None, false, Expect::Blocking), own()];
    let (verdicts, _) = recover(TxState::Clear, &sent, &[own(), write()]);
    assert_eq!(verdicts, [Answer(Unblocked), Drop, Drop, Resend]);
}

#[test]
fn reset_ends_every_state_and_is_sent_again() {
    for state in [
        TxState::Open,
        TxState::Watching,
        TxState::WatchLost,
        TxState::Broken(Broken::Abort),
    ] {
        let mut after = state;
        assert_eq!(
            (after.step(Tx::Reset), after),
            (None, TxState::Clear),
            "{state:?}"
        );
    }
    let reset = command(Tx::Reset, true, Expect::Reply);
    let (verdicts, state) = recover(TxState::Open, &[write(), reset, read()], &[write()]);
    assert_eq!(verdicts, [Answer(Queued), Resend, Resend, Resend]);
    assert_eq!(state, TxState::Clear);
}

#[test]
fn reset_ends_everything_and_is_said_again() {
    for state in [
        TxState::Clear,
        TxState::Watching,
        TxState::Open,
        TxState::WatchLost,
        TxState::Broken(Broken::Abort),
    ] {
        let mut after = state;
        assert_eq!(after.step(Tx::Reset), None, "{state:?}: it goes to the replica");
        assert_eq!(after, TxState::Clear);
    }
    let (verdicts, state) = recover(TxState::Open, &[write(), tx(Tx::Reset), read()], &[write()]);
    assert_eq!(verdicts, [Answer(Queued), Resend, Resend, Resend]);
    assert_eq!(state, TxState::Clear);
}
