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
use super::reach::Reach;
use super::{Common, Target, every, pace_changed};
use crate::decision::{Input, ProbeKind};
use crate::replica::ShardId;

pub(super) struct Probe {
    common: Arc<Common>,
    target: Arc<Target>,
    reach: Arc<Reach>,
    backoff: Backoff,
    complaint: Complaint,
}

impl Probe {
    pub(super) fn new(common: Arc<Common>, target: Arc<Target>, reach: Arc<Reach>) -> Probe {
        Probe {
            backoff: Backoff::new(common.pace().probe_interval),
            complaint: Complaint::new("PING", &target.name),
            common,
            target,
            reach,
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            self.backoff.set_probe_interval(self.common.pace().probe_interval);
            tokio::time::sleep(self.backoff.next()).await;
            let failure = match connect::commands(&self.target, self.common.pace()).await {
                Ok(connection) => {
                    let connected = Instant::now();
                    let (failure, useful) = self.watch(connection).await;
                    if useful {
                        self.backoff.lost_after(connected.elapsed());
                    }
                    failure
                }
                Err(failure) => failure,
            };
            if failure.is_answer() {
                // Something answers, though it does not let us in.
                self.reach.answered();
                self.report(Err(failure)).await;
                tokio::time::sleep(self.common.pace().probe_interval).await;
            } else {
                self.reach.silent();
                self.report(Err(failure)).await;
            }
        }
    }

    /// Pings until the connection is lost; also says whether any PING was answered well.
    async fn watch(&mut self, mut connection: Connection) -> (Failure, bool) {
        let mut useful = false;
        let mut paces = self.common.pace.clone();
        let mut due = every(self.common.pace().probe_interval);
        loop {
            tokio::select! {
                failure = &mut connection.lost => return (failure, useful),
                _ = due.tick() => {}
                () = self.reach.nudged() => due.reset(),
                () = pace_changed(&mut paces) => {
                    due = every(self.common.pace().probe_interval);
                    continue;
                }
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
                    self.reach.answered();
                    self.report(Ok(asked)).await;
                }
                Err(failure) if failure.usable => {
                    self.reach.answered();
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
        self.common
            .report(Input::Probe {
                replica: self.target.id,
                shard: ShardId::ONLY,
                kind: ProbeKind::Ping,
                outcome,
            })
            .await;
    }
}
