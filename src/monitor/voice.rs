//! The connection that speaks: heartbeats, fences, and the write probe.
//!
//! All three share one connection, since what stalls one of them (a pause of writes) stalls the others as well. When
//! an answer stays out, the connection is given up and with it everything that waits on it.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::join_all;
use redis::aio::MultiplexedConnection;
use tokio::sync::watch;
use tokio::time::{Instant, Interval};

use super::backoff::Backoff;
use super::connect::{self, Complaint, Connection, Failure, within};
use super::message::{Message, Word};
use super::node::Node;
use super::plan::{Channel, Verb};
use super::{Common, every, pace_changed, stage_changed};
use crate::decision::{Input, ProbeFailure, ProbeKind};
use crate::replica::ShardId;

/// A probe's key outlives this many probe intervals, so that a sidecar that is gone leaves nothing behind.
const KEY_LIFE: u32 = 10;

pub(super) struct Voice {
    common: Arc<Common>,
    node: Arc<Node>,
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
    pub(super) fn new(common: Arc<Common>, node: Arc<Node>, wanted: watch::Receiver<Option<u64>>) -> Voice {
        let pace = common.pace();
        Voice {
            backoff: Backoff::new(pace.probe_interval),
            complaint: Complaint::new("the connection for heartbeats", &node.label),
            heartbeats: Heartbeats {
                due: every(pace.heartbeat_interval),
                complaint: Complaint::new("publishing heartbeats", &node.label),
            },
            writes: Writes {
                due: every(pace.probe_interval),
                seq: 0,
                complaint: Complaint::new("the write probe", &node.label),
            },
            fences: Fences { wanted, published: 0 },
            common,
            node,
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            let answers = self.node.reach.answers();
            self.backoff.set_probe_interval(self.common.pace().probe_interval);
            match connect::commands(&self.node.dialer, self.common.pace()).await {
                Ok(connection) => {
                    let connected = Instant::now();
                    let (failure, useful) = self.speak(connection).await;
                    if useful {
                        self.backoff.lost_after(connected.elapsed());
                    }
                    self.node.reach.nudge();
                    self.give_up(failure).await;
                    tokio::time::sleep(self.backoff.next()).await;
                }
                Err(failure) => {
                    // While the replica answers no PING either, `probe` says all there is to say.
                    if self.node.reach.is_answering() {
                        self.give_up(failure).await;
                    }
                    let patience = self.common.pace().probe_interval;
                    let _ = tokio::time::timeout(patience, self.node.reach.answered_since(answers)).await;
                }
            }
        }
    }

    /// The writes that were under way, or would have been next, did not succeed.
    async fn give_up(&mut self, failure: Failure) {
        self.complaint.failed(&failure.words);
        let stage = self.common.stage();
        for shard in self.node.shards(stage.speak()) {
            report_write(&self.common, &self.node, shard, Err(failure.evidence.clone())).await;
        }
    }

    /// Speaks until the connection is lost; also says whether anything was accepted.
    async fn speak(&mut self, connection: Connection) -> (Failure, bool) {
        let (common, node) = (&*self.common, &*self.node);
        let mut useful = false;
        let accepted = || {
            self.complaint.works();
            useful = true;
        };
        let Connection { commands, lost } = connection;
        let end = tokio::select! {
            failure = lost => Err(failure),
            end = self.heartbeats.run(common, node, &commands, accepted) => end,
            end = self.writes.run(common, node, &commands) => end,
            end = self.fences.run(common, node, &commands) => end,
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
        node: &Node,
        commands: &MultiplexedConnection,
        mut accepted: impl FnMut(),
    ) -> Result<Infallible, Failure> {
        // A replica that is back should show it at once.
        self.due.reset_immediately();
        let mut paces = common.pace.clone();
        let mut stages = common.stages.clone();
        loop {
            tokio::select! {
                _ = self.due.tick() => {}
                () = pace_changed(&mut paces) => {
                    self.due = every(common.pace().heartbeat_interval);
                    continue;
                }
                // New channels are awaited from now on.
                () = stage_changed(&mut stages) => self.due.reset(),
            }
            let stage = common.stage();
            let plan = stage.speak();
            let verb = plan.verb(node.replica);
            // All in one round trip, however many cells there are; each is reported as soon as it is answered.
            let beats = plan
                .spoken(node.replica, node.address.as_ref())
                .map(|channel| async {
                    let seq = channel.next_seq();
                    publish(common, commands, verb, channel, Word::Heartbeat(seq)).await?;
                    let (on, cell) = (node.replica, channel.cell);
                    common.report(Input::HeartbeatSent { on, cell, seq }).await;
                    Ok(())
                });
            let settled = settle(node, join_all(beats).await)?;
            if settled.accepted > 0 {
                accepted();
            }
            // Refused, by a missing right for instance: there is no heartbeat then, and that is the evidence.
            tell(&mut self.complaint, settled);
        }
    }
}

impl Writes {
    async fn run(
        &mut self,
        common: &Common,
        node: &Node,
        commands: &MultiplexedConnection,
    ) -> Result<Infallible, Failure> {
        self.due.reset_immediately();
        let mut paces = common.pace.clone();
        let mut stages = common.stages.clone();
        loop {
            tokio::select! {
                _ = self.due.tick() => {}
                () = pace_changed(&mut paces) => {
                    self.due = every(common.pace().probe_interval);
                    continue;
                }
                () = stage_changed(&mut stages) => self.due.reset(),
            }
            self.seq += 1;
            let seq = self.seq;
            let stage = common.stage();
            let probes = node.shards(stage.speak()).filter_map(|shard| {
                let key = stage.speak().probe_key(node.replica, shard)?;
                Some(async move {
                    let outcome = write(common, commands, key, seq).await;
                    match &outcome {
                        // Without an answer: what follows for the shards is said once, when the connection is given up.
                        Err(failure) if !failure.usable || failure.is_redirection() => {}
                        Ok(took) => report_write(common, node, shard, Ok(*took)).await,
                        Err(failure) => {
                            report_write(common, node, shard, Err(failure.evidence.clone())).await;
                        }
                    }
                    outcome.map(|_| ())
                })
            });
            tell(&mut self.complaint, settle(node, join_all(probes).await)?);
        }
    }
}

impl Fences {
    /// Publishes each wanted fence in every cell. One that was not published when the connection was lost is published
    /// on the next.
    async fn run(
        &mut self,
        common: &Common,
        node: &Node,
        commands: &MultiplexedConnection,
    ) -> Result<Infallible, Failure> {
        loop {
            let published = self.published;
            let newer = |wish: &Option<u64>| wish.is_some_and(|id| id > published);
            let Ok(Some(id)) = self.wanted.wait_for(newer).await.map(|wish| *wish) else {
                // The monitor is being dropped, and this task with it.
                return std::future::pending().await;
            };
            let stage = common.stage();
            let plan = stage.speak();
            let verb = plan.verb(node.replica);
            let fences = plan
                .spoken(node.replica, node.address.as_ref())
                .map(|channel| publish(common, commands, verb, channel, Word::Fence(id)));
            if let Some(failure) = settle(node, join_all(fences).await)?.refused {
                tracing::warn!(replica = %node.label, "the fence {id} was refused: {}", failure.words);
            }
            self.published = id;
        }
    }
}

/// What became of several commands at once.
struct Settled {
    accepted: usize,
    /// One of the errors that were answered.
    refused: Option<Failure>,
}

/// A failure that leaves the connection of no use comes before all that was answered.
fn settle(node: &Node, outcomes: Vec<Result<(), Failure>>) -> Result<Settled, Failure> {
    let mut settled = Settled {
        accepted: 0,
        refused: None,
    };
    for outcome in outcomes {
        match outcome {
            Ok(()) => settled.accepted += 1,
            Err(failure) if failure.usable => settled.refused = Some(failure),
            Err(failure) => return Err(failure),
        }
    }
    if settled.refused.as_ref().is_some_and(Failure::is_redirection) {
        node.suspect_layout();
    }
    Ok(settled)
}

fn tell(complaint: &mut Complaint, settled: Settled) {
    match settled.refused {
        Some(failure) => complaint.failed(&failure.words),
        None if settled.accepted > 0 => complaint.works(),
        None => {}
    }
}

async fn publish(
    common: &Common,
    commands: &MultiplexedConnection,
    verb: Verb,
    channel: &Channel,
    word: Word,
) -> Result<(), Failure> {
    let message = Message {
        word,
        sent: common.began.elapsed(),
    };
    let mut publish = redis::cmd(verb.publish());
    publish
        .arg(&*channel.name)
        .arg(message.encode(&common.identity, wall_ms()));
    let mut commands = commands.clone();
    let answer = publish.exec_async(&mut commands);
    within(common.pace().answer_timeout, verb.publish(), answer).await
}

async fn write(
    common: &Common,
    commands: &MultiplexedConnection,
    key: &str,
    seq: u64,
) -> Result<Duration, Failure> {
    let pace = common.pace();
    let life = (pace.probe_interval * KEY_LIFE).as_millis();
    let mut set = redis::cmd("SET");
    set.arg(key)
        .arg(seq)
        .arg("PX")
        .arg(u64::try_from(life).unwrap_or(u64::MAX).max(1));
    let mut commands = commands.clone();
    let asked = Instant::now();
    within(pace.answer_timeout, "SET", set.exec_async(&mut commands)).await?;
    Ok(asked.elapsed())
}

async fn report_write(common: &Common, node: &Node, shard: ShardId, outcome: Result<Duration, ProbeFailure>) {
    common
        .report(Input::Probe {
            replica: node.replica,
            shard,
            kind: ProbeKind::Write,
            outcome,
        })
        .await;
}
