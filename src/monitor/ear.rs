//! The connection that listens: the heartbeats and fences of every replica, as they arrive on this one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::StreamExt;
use redis::Msg;
use redis::aio::PubSub;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::connect::{self, Complaint, Failure, within};
use super::message::{Heard, Message, Unusable, Word};
use super::reach::Reach;
use super::{Common, Target};
use crate::decision::{Input, ProbeFailure, ProbeKind};
use crate::replica::{CellId, ReplicaId, ShardId};

pub(super) struct Ear {
    common: Arc<Common>,
    target: Arc<Target>,
    reach: Arc<Reach>,
    backoff: Backoff,
    complaint: Complaint,
    /// Survives reconnects: a backlog may repeat what was heard before.
    heard: HashMap<(ReplicaId, CellId), Heard>,
}

impl Ear {
    pub(super) fn new(common: Arc<Common>, target: Arc<Target>, reach: Arc<Reach>) -> Ear {
        Ear {
            backoff: Backoff::new(common.pace().probe_interval),
            complaint: Complaint::new("the subscription", &target.name),
            heard: HashMap::new(),
            common,
            target,
            reach,
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            let answers = self.reach.answers();
            self.backoff.set_probe_interval(self.common.pace().probe_interval);
            match self.subscribe().await {
                Ok(pubsub) => {
                    self.complaint.works();
                    let connected = Instant::now();
                    let failure = self.listen(pubsub).await;
                    self.backoff.lost_after(connected.elapsed());
                    self.complaint.failed(&failure.words);
                    if failure.evidence == ProbeFailure::Broken {
                        self.report_broken().await;
                    }
                    self.reach.nudge();
                    tokio::time::sleep(self.backoff.next()).await;
                }
                Err(failure) => {
                    if self.reach.is_answering() {
                        self.complaint.failed(&failure.words);
                    }
                    let patience = self.common.pace().probe_interval;
                    let _ = tokio::time::timeout(patience, self.reach.answered_since(answers)).await;
                }
            }
        }
    }

    async fn subscribe(&self) -> Result<PubSub, Failure> {
        let pace = self.common.pace();
        let mut pubsub = connect::pubsub(&self.target, pace).await?;
        let subscribed = pubsub.subscribe(self.common.channels.all());
        within(pace.answer_timeout, "SUBSCRIBE", subscribed).await?;
        self.common
            .report(Input::Subscribed {
                replica: self.target.id,
            })
            .await;
        Ok(pubsub)
    }

    /// Listens until the connection is lost. After a probe interval of silence the replica is asked, on this very
    /// connection, whether it still talks to us: one that vanished without a word would otherwise never be missed.
    async fn listen(&mut self, pubsub: PubSub) -> Failure {
        let (mut sink, mut messages) = pubsub.split();
        loop {
            let pace = self.common.pace();
            let failure = match tokio::time::timeout(pace.probe_interval, messages.next()).await {
                Ok(Some(message)) => {
                    self.hear(&message).await;
                    continue;
                }
                Ok(None) => return Failure::closed(),
                Err(_) => within(
                    pace.answer_timeout,
                    "PING on the subscription",
                    sink.ping::<redis::Value>(),
                )
                .await
                .err(),
            };
            // An error is an answer: LOADING refuses the PING and serves the subscription.
            if let Some(failure) = failure
                && !failure.usable
            {
                return failure;
            }
        }
    }

    async fn hear(&mut self, message: &Msg) {
        let arrived = self.common.began.elapsed();
        let Some((from, cell)) = self.common.channels.find(message.get_channel_name()) else {
            return ignore(&self.common.ignored.malformed);
        };
        let message = match Message::decode(message.get_payload_bytes(), &self.common.identity) {
            Ok(message) => message,
            Err(Unusable::Foreign) => return ignore(&self.common.ignored.foreign),
            Err(Unusable::Malformed) => return ignore(&self.common.ignored.malformed),
        };
        let to = self.target.id;
        let input = match message.word {
            Word::Fence(id) => Input::FenceHeard { id, to, cell },
            Word::Heartbeat(seq) => {
                if !self.heard.entry((from, cell)).or_default().first_time(seq) {
                    return ignore(&self.common.ignored.duplicate);
                }
                Input::HeartbeatHeard {
                    from,
                    to,
                    cell,
                    seq,
                    age: arrived.saturating_sub(message.sent),
                }
            }
        };
        self.common.report(input).await;
    }

    async fn report_broken(&self) {
        self.common
            .report(Input::Probe {
                replica: self.target.id,
                shard: ShardId::ONLY,
                kind: ProbeKind::Ping,
                outcome: Err(ProbeFailure::Broken),
            })
            .await;
    }
}

fn ignore(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}
