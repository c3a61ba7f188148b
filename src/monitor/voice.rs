//! The connection that speaks: heartbeats, fences, and the write probe.
//!
//! All three share one connection, since what stalls one of them (a pause of writes) stalls the others as well. When
//! an answer stays out, the connection is given up and with it everything that waits on it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use redis::aio::MultiplexedConnection;
use tokio::sync::watch;
use tokio::time::{Instant, Interval};

use super::backoff::Backoff;
use super::connect::{self, Complaint, Connection, Failure, within};
use super::message::{Message, Word};
use super::reach::Reach;
use super::{Common, Target, every, pace_changed};
use crate::decision::{Input, ProbeFailure, ProbeKind};
use crate::replica::ShardId;

/// A probe's key outlives this many probe intervals, so that a sidecar that is gone leaves nothing behind.
const KEY_LIFE: u32 = 10;

pub(super) struct Voice {
    common: Arc<Common>,
    target: Arc<Target>,
    reach: Arc<Reach>,
    backoff: Backoff,
    complaint: Complaint,
    heartbeats: Heartbeats,
    writes: Writes,
    fences: Fences,
}

struct Fences {
    wanted: watch::Receiver<Option<u64>>,
    /// The newest that was published.
    published: u64,
}

struct Heartbeats {
    due: Interval,
    /// The newest sequence number used; by shard.
    seqs: Vec<u64>,
    complaint: Complaint,
}

struct Writes {
    due: Interval,
    seq: u64,
    complaint: Complaint,
}

#[expect(
    clippy::disallowed_methods,
    reason = "the wall clock in a message is for people who read along; nothing computes with it"
)]
fn wall_ms() -> u128 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_millis())
}

impl Voice {
    pub(super) fn new(
        common: Arc<Common>,
        target: Arc<Target>,
        reach: Arc<Reach>,
        wanted: watch::Receiver<Option<u64>>,
    ) -> Voice {
        let pace = common.pace();
        Voice {
            backoff: Backoff::new(pace.probe_interval),
            complaint: Complaint::new("the connection for heartbeats", &target.name),
            heartbeats: Heartbeats {
                due: every(pace.heartbeat_interval),
                seqs: vec![0; common.channels.of(target.id).len()],
                complaint: Complaint::new("PUBLISH", &target.name),
            },
            writes: Writes {
                due: every(pace.probe_interval),
                seq: 0,
                complaint: Complaint::new("the write probe", &target.name),
            },
            fences: Fences { wanted, published: 0 },
            common,
            target,
            reach,
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            let answers = self.reach.answers();
            self.backoff.set_probe_interval(self.common.pace().probe_interval);
            match connect::commands(&self.target, self.common.pace()).await {
                Ok(connection) => {
                    let connected = Instant::now();
                    let (failure, useful) = self.speak(connection).await;
                    if useful {
                        self.backoff.lost_after(connected.elapsed());
                    }
                    self.reach.nudge();
                    self.give_up(failure).await;
                    tokio::time::sleep(self.backoff.next()).await;
                }
                Err(failure) => {
                    // While the replica answers no PING either, `probe` says all there is to say.
                    if self.reach.is_answering() {
                        self.give_up(failure).await;
                    }
                    let patience = self.common.pace().probe_interval;
                    let _ = tokio::time::timeout(patience, self.reach.answered_since(answers)).await;
                }
            }
        }
    }

    /// The write that was under way, or would have been next, did not succeed.
    async fn give_up(&mut self, failure: Failure) {
        self.complaint.failed(&failure.words);
        for _ in self.common.channels.of(self.target.id) {
            report_write(
                &self.common,
                &self.target,
                ShardId::ONLY,
                Err(failure.evidence.clone()),
            )
            .await;
        }
    }

    /// Speaks until the connection is lost; also says whether anything was accepted.
    async fn speak(&mut self, connection: Connection) -> (Failure, bool) {
        let (common, target) = (&*self.common, &*self.target);
        let mut useful = false;
        let accepted = || {
            self.complaint.works();
            useful = true;
        };
        let Connection { commands, lost } = connection;
        let end = tokio::select! {
            failure = lost => Err(failure),
            end = self.heartbeats.run(common, target, commands.clone(), accepted) => end,
            end = self.writes.run(common, target, commands.clone()) => end,
            end = self.fences.run(common, target, commands) => end,
        };
        match end {
            Ok(never) => match never {},
            Err(failure) => (failure, useful),
        }
    }
}

impl Heartbeats {
    async fn run(
        &mut self,
        common: &Common,
        target: &Target,
        mut commands: MultiplexedConnection,
        mut accepted: impl FnMut(),
    ) -> Result<Infallible, Failure> {
        // A replica that is back should show it at once.
        self.due.reset_immediately();
        let mut paces = common.pace.clone();
        loop {
            tokio::select! {
                _ = self.due.tick() => {}
                () = pace_changed(&mut paces) => {
                    self.due = every(common.pace().heartbeat_interval);
                    continue;
                }
            }
            for (index, (cell, channel)) in common.channels.of(target.id).iter().enumerate() {
                self.seqs[index] += 1;
                let seq = self.seqs[index];
                match publish(common, &mut commands, channel, Word::Heartbeat(seq)).await {
                    Ok(()) => {
                        accepted();
                        self.complaint.works();
                        common
                            .report(Input::HeartbeatSent {
                                on: target.id,
                                cell: *cell,
                                seq,
                            })
                            .await;
                    }
                    // Refused, by a missing right for instance: there is no heartbeat then, and that is the evidence.
                    Err(failure) if failure.usable => self.complaint.failed(&failure.words),
                    Err(failure) => return Err(failure),
                }
            }
        }
    }
}

impl Writes {
    async fn run(
        &mut self,
        common: &Common,
        target: &Target,
        mut commands: MultiplexedConnection,
    ) -> Result<Infallible, Failure> {
        self.due.reset_immediately();
        let mut paces = common.pace.clone();
        loop {
            tokio::select! {
                _ = self.due.tick() => {}
                () = pace_changed(&mut paces) => {
                    self.due = every(common.pace().probe_interval);
                    continue;
                }
            }
            let life = common.pace().probe_interval * KEY_LIFE;
            for _ in common.channels.of(target.id) {
                let shard = &ShardId::ONLY;
                self.seq += 1;
                let mut set = redis::cmd("SET");
                set.arg(common.channels.probe_key(*shard))
                    .arg(self.seq)
                    .arg("PX")
                    .arg(u64::try_from(life.as_millis()).unwrap_or(u64::MAX).max(1));
                let asked = Instant::now();
                let timeout = common.pace().answer_timeout;
                let outcome = match within(timeout, "SET", set.exec_async(&mut commands)).await {
                    Ok(()) => {
                        self.complaint.works();
                        Ok(asked.elapsed())
                    }
                    Err(failure) if failure.usable => {
                        self.complaint.failed(&failure.words);
                        Err(failure.evidence)
                    }
                    Err(failure) => return Err(failure),
                };
                report_write(common, target, *shard, outcome).await;
            }
        }
    }
}

impl Fences {
    /// Publishes each wanted fence on every shard's channel. One that was not published when the connection was lost
    /// is published on the next.
    async fn run(
        &mut self,
        common: &Common,
        target: &Target,
        mut commands: MultiplexedConnection,
    ) -> Result<Infallible, Failure> {
        loop {
            let published = self.published;
            let newer = |wish: &Option<u64>| wish.is_some_and(|id| id > published);
            let Ok(Some(id)) = self.wanted.wait_for(newer).await.map(|wish| *wish) else {
                // The monitor is being dropped, and this task with it.
                return std::future::pending().await;
            };
            for (cell, channel) in common.channels.of(target.id) {
                match publish(common, &mut commands, channel, Word::Fence(id)).await {
                    Ok(()) => {}
                    Err(failure) if failure.usable => tracing::warn!(
                        replica = %target.name,
                        "the fence {id} was refused in cell {}: {}",
                        cell.0,
                        failure.words
                    ),
                    Err(failure) => return Err(failure),
                }
            }
            self.published = id;
        }
    }
}

async fn publish(
    common: &Common,
    commands: &mut MultiplexedConnection,
    channel: &str,
    word: Word,
) -> Result<(), Failure> {
    let message = Message {
        word,
        sent: common.began.elapsed(),
    };
    let mut publish = redis::cmd("PUBLISH");
    publish
        .arg(channel)
        .arg(message.encode(&common.identity, wall_ms()));
    let answer = publish.exec_async(commands);
    within(common.pace().answer_timeout, "PUBLISH", answer).await
}

async fn report_write(
    common: &Common,
    target: &Target,
    shard: ShardId,
    outcome: Result<Duration, ProbeFailure>,
) {
    common
        .report(Input::Probe {
            replica: target.id,
            shard,
            kind: ProbeKind::Write,
            outcome,
        })
        .await;
}
