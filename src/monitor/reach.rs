//! What the three tasks of one place tell each other.

use tokio::sync::{Notify, watch};

/// Whether the replica answers, as `probe` sees it, and the wish of the others that it looks now.
#[derive(Default, Debug)]
pub(super) struct Reach {
    state: watch::Sender<State>,
    nudge: Notify,
}

#[derive(Clone, Copy, Default, Debug)]
struct State {
    answering: bool,
    answers: u64,
}

impl Reach {
    /// `probe`: the replica answered, be it with an error.
    pub(super) fn answered(&self) {
        self.state.send_modify(|state| {
            state.answering = true;
            state.answers += 1;
        });
    }

    /// `probe`: it does not answer.
    pub(super) fn silent(&self) {
        self.state.send_modify(|state| state.answering = false);
    }

    /// Whether its newest probe was answered.
    pub(super) fn is_answering(&self) -> bool {
        self.state.borrow().answering
    }

    /// Answers so far; for [`Reach::answered_since`].
    pub(super) fn answers(&self) -> u64 {
        self.state.borrow().answers
    }

    /// Waits until the replica has answered a probe after `answers` was taken.
    pub(super) async fn answered_since(&self, answers: u64) {
        let mut state = self.state.subscribe();
        // The sender is in `self`, so this cannot fail.
        let _ = state.wait_for(|state| state.answers != answers).await;
    }

    /// `voice`, `ear`: a connection was lost; look now.
    pub(super) fn nudge(&self) {
        self.nudge.notify_one();
    }

    /// `probe`: waits for a nudge. One nudge is kept when nobody waits.
    pub(super) async fn nudged(&self) {
        self.nudge.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn an_answer_between_the_count_and_the_wait_is_not_missed() {
        let reach = Reach::default();
        let before = reach.answers();
        reach.answered();
        let waited = tokio::time::timeout(Duration::from_secs(5), reach.answered_since(before)).await;
        assert!(waited.is_ok());
        assert!(reach.is_answering());
        reach.silent();
        assert!(!reach.is_answering());
    }

    #[tokio::test(start_paused = true)]
    async fn silence_does_not_end_the_wait() {
        let reach = Reach::default();
        let before = reach.answers();
        reach.silent();
        let waited = tokio::time::timeout(Duration::from_secs(5), reach.answered_since(before)).await;
        assert!(waited.is_err());
    }
}
