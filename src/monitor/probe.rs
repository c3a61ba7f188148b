//! The PING probe: whether the replica can be reached and answers.
//!
//! ```text
//!            ┌── wait (backoff) ◄──────────────┐
//!            ▼                                 │ refused, timed out, broken, rejected
//!        connecting ──────────────────────────►┤
//!            │ connected                       │
//!            ▼                                 │ closed, no answer in time
//!      PING at once, then at each interval ───►┘
//!            and at each nudge
//! ```

use std::sync::Arc;

use tokio::time::Instant;

use super::backoff::Backoff;
use super::connect::{self, Complaint, Connection, Failure, within};
use super::node::Node;
use super::{Common, every, pace_changed, stage_changed};
use crate::decision::{Input, ProbeKind};

pub(super) struct Probe {
    common: Arc<Common>,
    node: Arc<Node>,
    backoff: Backoff,
    complaint: Complaint,
}

impl Probe {
    pub(super) fn new(common: Arc<Common>, node: Arc<Node>) -> Probe {
        Probe {
            backoff: Backoff::new(common.pace().probe_interval),
            complaint: Complaint::new("PING", &node.label),
            common,
            node,
        }
    }

    pub(super) async fn run(mut self) {
        let mut lost = false;
        loop {
            self.backoff.set_probe_interval(self.common.pace().probe_interval);
            tokio::time::sleep(self.backoff.next()).await;
            let failure = match connect::commands(&self.node.dialer, self.common.pace()).await {
                Ok(connection) => {
                    let connected = Instant::now();
                    if std::mem::replace(&mut lost, true) {
                        // Whoever is back may be another one, or divided anew.
                        self.node.layout.ask();
                    }
                    let (failure, useful) = self.watch(connection).await;
                    if useful {
                        self.backoff.lost_after(connected.elapsed());
                    }
                    failure
                }
                Err(failure) => failure,
            };
            self.node.suspect_layout();
            if failure.is_answer() {
                // Something answers, though it does not let us in.
                self.node.reach.answered();
                self.report(Err(failure)).await;
                tokio::time::sleep(self.common.pace().probe_interval).await;
            } else {
                lost = true;
                self.node.reach.silent();
                self.report(Err(failure)).await;
            }
        }
    }

    /// Pings until the connection is lost; also says whether any PING was answered well.
    async fn watch(&mut self, mut connection: Connection) -> (Failure, bool) {
        let mut useful = false;
        let mut paces = self.common.pace.clone();
        let mut stages = self.common.stages.clone();
        let mut due = every(self.common.pace().probe_interval);
        loop {
            tokio::select! {
                failure = &mut connection.lost => return (failure, useful),
                _ = due.tick() => {}
                () = self.node.reach.nudged() => due.reset(),
                () = pace_changed(&mut paces) => {
                    due = every(self.common.pace().probe_interval);
                    continue;
                }
                // Shards of their own wait for their first PING.
                () = stage_changed(&mut stages), if self.node.address.is_some() => due.reset(),
            }
            let asked = Instant::now();
            let ping = redis::cmd("PING");
            let answer = within(
                self.common.pace().answer_timeout,
                "PING",
                ping.exec_async(&mut connection.commands),
            );
            match answer.await {
                Ok(()) => {
                    useful = true;
                    self.node.reach.answered();
                    self.report(Ok(asked)).await;
                }
                Err(failure) if failure.usable => {
                    self.node.reach.answered();
                    self.report(Err(failure)).await;
                }
                Err(failure) => return (failure, useful),
            }
        }
    }

    async fn report(&mut self, result: Result<Instant, Failure>) {
        let outcome = match result {
            Ok(asked) => {
                self.complaint.works();
                Ok(asked.elapsed())
            }
            Err(failure) => {
                self.complaint.failed(&failure.words);
                Err(failure.evidence)
            }
        };
        let stage = self.common.stage();
        for shard in self.node.pinged(stage.speak()) {
            self.common
                .report(Input::Probe {
                    replica: self.node.replica,
                    shard,
                    kind: ProbeKind::Ping,
                    outcome: outcome.clone(),
                })
                .await;
        }
    }
}
