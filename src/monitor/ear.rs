//! The connection that listens: the heartbeats and fences of every replica, as they arrive here.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::backoff::Backoff;
use super::connect::{Complaint, Failure};
use super::message::{Heard, Message, Unusable, Word};
use super::node::Node;
use super::plan::Verb;
use super::subscription::{Frame, Subscription, about};
use super::{Common, Stage, stage_changed};
use crate::decision::{Input, ProbeFailure, ProbeKind};

/// How the subscription stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum State {
    /// Not tried yet.
    Trying,
    /// There is none.
    Lost,
    /// Every channel of this stage, and of those before it, is confirmed, or refused while others are not.
    Standing(u64),
}

/// A channel, and how it is subscribed to.
type Wish = (Verb, Arc<str>);

pub(super) struct Ear {
    common: Arc<Common>,
    node: Arc<Node>,
    stages: watch::Receiver<Stage>,
    state: watch::Sender<State>,
    backoff: Backoff,
    complaint: Complaint,
    /// About channels of the other verb, which this replica may not know.
    other_verb: Complaint,
    /// By channel. Survives reconnects: a backlog may repeat what was heard before.
    heard: HashMap<Arc<str>, Heard>,
}

/// One connection, and what it was asked.
struct Listening {
    subscription: Subscription,
    wanted: HashSet<Wish>,
    /// Without an answer so far, in order.
    asked: VecDeque<Question>,
    /// When the first of them is overdue.
    overdue: Instant,
    /// Channels of the wanted ones that the server did not take, though it took others.
    refused: Vec<Wish>,
    /// When those are asked for again.
    again: Instant,
    /// The stage that `wanted` is of.
    stage: u64,
    /// [`Input::Subscribed`] was reported.
    announced: bool,
}

enum Question {
    Add(Wish),
    Remove(Wish),
    Ping,
}

impl Question {
    fn words(&self) -> &'static str {
        match self {
            Question::Add((verb, _)) => subscribe(*verb),
            Question::Remove((verb, _)) => unsubscribe(*verb),
            Question::Ping => "PING on the subscription",
        }
    }

    /// Whether `what`, about `channel`, confirms it.
    fn is_answered_by(&self, what: &[u8], channel: &[u8]) -> bool {
        let (command, wish) = match self {
            Question::Add(wish) => (subscribe(wish.0), wish),
            Question::Remove(wish) => (unsubscribe(wish.0), wish),
            Question::Ping => return false,
        };
        command.as_bytes().eq_ignore_ascii_case(what) && wish.1.as_bytes() == channel
    }
}

fn subscribe(verb: Verb) -> &'static str {
    match verb {
        Verb::Plain => "SUBSCRIBE",
        Verb::Sharded => "SSUBSCRIBE",
    }
}

fn unsubscribe(verb: Verb) -> &'static str {
    match verb {
        Verb::Plain => "UNSUBSCRIBE",
        Verb::Sharded => "SUNSUBSCRIBE",
    }
}

impl Ear {
    pub(super) fn new(common: Arc<Common>, node: Arc<Node>, state: watch::Sender<State>) -> Ear {
        Ear {
            backoff: Backoff::new(common.pace().probe_interval),
            complaint: Complaint::new("the subscription", &node.label),
            other_verb: Complaint::new("the subscription to channels of other replicas", &node.label),
            heard: HashMap::new(),
            stages: common.stages.clone(),
            state,
            common,
            node,
        }
    }

    pub(super) async fn run(mut self) {
        loop {
            let answers = self.node.reach.answers();
            self.backoff.set_probe_interval(self.common.pace().probe_interval);
            let opened = Subscription::open(&self.node.dialer, self.common.pace()).await;
            let (failure, stood) = match opened {
                Ok(subscription) => self.listen(subscription).await,
                Err(failure) => (failure, None),
            };
            self.state.send_replace(State::Lost);
            match stood {
                Some(since) => {
                    self.backoff.lost_after(since.elapsed());
                    self.complaint.failed(&failure.words);
                    if failure.evidence == ProbeFailure::Broken {
                        self.report_broken().await;
                    }
                    self.node.reach.nudge();
                    tokio::time::sleep(self.backoff.next()).await;
                }
                None => {
                    if self.node.reach.is_answering() {
                        self.complaint.failed(&failure.words);
                    }
                    let patience = self.common.pace().probe_interval;
                    let _ = tokio::time::timeout(patience, self.node.reach.answered_since(answers)).await;
                }
            }
        }
    }

    /// Listens until the connection is lost; also says since when the subscription stood, if ever.
    async fn listen(&mut self, subscription: Subscription) -> (Failure, Option<Instant>) {
        let mut stood = None;
        let mut listening = Listening {
            subscription,
            wanted: HashSet::new(),
            asked: VecDeque::new(),
            overdue: Instant::now(),
            refused: Vec::new(),
            again: Instant::now(),
            stage: 0,
            announced: false,
        };
        let end = self.converse(&mut listening, &mut stood).await;
        (end, stood)
    }

    /// After a probe interval of silence the replica is asked, on this very connection, whether it still talks to us:
    /// one that vanished without a word would otherwise never be missed.
    async fn converse(&mut self, listening: &mut Listening, stood: &mut Option<Instant>) -> Failure {
        let mut stages = self.stages.clone();
        if let Err(failure) = self.adjust(listening, &mut stages).await {
            return failure;
        }
        loop {
            let pace = self.common.pace();
            if listening.asked.is_empty() {
                self.stands(listening, stood).await;
                if let Err(failure) = listening.ask_again(pace.answer_timeout).await {
                    return failure;
                }
            }
            let wait = match listening.asked.is_empty() {
                true => pace.probe_interval,
                false => listening.overdue.saturating_duration_since(Instant::now()),
            };
            tokio::select! {
                next = tokio::time::timeout(wait, listening.subscription.next()) => {
                    let done = match next {
                        Ok(Ok(frame)) => self.take(listening, frame).await,
                        Ok(Err(failure)) if failure.usable => self.refused(listening, failure),
                        Ok(Err(failure)) => Err(failure),
                        Err(_) if listening.asked.is_empty() => {
                            listening.ask(vec![Question::Ping], pace.answer_timeout).await
                        }
                        Err(_) => Ok(()),
                    };
                    let done = done.and_then(|()| listening.in_time(pace.answer_timeout));
                    if let Err(failure) = done {
                        return failure;
                    }
                }
                () = stage_changed(&mut stages) => {
                    if let Err(failure) = self.adjust(listening, &mut stages).await {
                        return failure;
                    }
                }
            }
        }
    }

    /// Asks for what the present stage wants and is not subscribed to, and then for the end of what it does not want.
    async fn adjust(
        &self,
        listening: &mut Listening,
        stages: &mut watch::Receiver<Stage>,
    ) -> Result<(), Failure> {
        let wanted = {
            let stage = stages.borrow_and_update();
            listening.stage = stage.number;
            let (replica, node) = (self.node.replica, self.node.address.as_ref());
            let wishes = stage.plans().flat_map(|plan| plan.heard(replica, node));
            wishes
                .map(|(verb, name)| (verb, Arc::clone(name)))
                .collect::<HashSet<Wish>>()
        };
        let new = wanted.difference(&listening.wanted);
        let old = listening.wanted.difference(&wanted);
        let questions = new
            .cloned()
            .map(Question::Add)
            .chain(old.cloned().map(Question::Remove))
            .collect();
        listening.refused.retain(|wish| wanted.contains(wish));
        listening.wanted = wanted;
        listening.ask(questions, self.common.pace().answer_timeout).await
    }

    /// Everything that was asked is answered.
    async fn stands(&mut self, listening: &mut Listening, stood: &mut Option<Instant>) {
        if stood.is_none() {
            *stood = Some(Instant::now());
        }
        if listening.refused.is_empty() {
            self.complaint.works();
        }
        let state = State::Standing(listening.stage);
        self.state
            .send_if_modified(|known| std::mem::replace(known, state) != state);
        if !listening.announced && !listening.wanted.is_empty() {
            listening.announced = true;
            let replica = self.node.replica;
            self.common.report(Input::Subscribed { replica }).await;
        }
    }

    async fn take(&mut self, listening: &mut Listening, frame: Frame) -> Result<(), Failure> {
        match frame {
            Frame::Message { channel, payload } => self.hear(&channel, &payload).await,
            Frame::Confirmed { what, channel } => {
                match listening.asked.front() {
                    Some(question) if question.is_answered_by(&what, &channel) => listening.answered(),
                    // A node that has given a slot away ends the subscriptions to it.
                    _ => {
                        self.node.suspect_layout();
                        return Err(Failure::moved_away());
                    }
                }
            }
            Frame::Answer => listening.answered(),
        }
        Ok(())
    }

    /// An error is an answer: LOADING refuses the PING and serves the subscription; and whoever stands before several
    /// shards may refuse the channels of one that is gone, which says nothing of the others.
    fn refused(&mut self, listening: &mut Listening, failure: Failure) -> Result<(), Failure> {
        if let Some(Question::Add(wish)) = listening.asked.front() {
            if failure.is_redirection() {
                self.node.suspect_layout();
            }
            let own = self.common.stages.borrow().speak().verb(self.node.replica);
            if wish.0 == own {
                let all = listening.wanted.iter().filter(|(verb, _)| *verb == own).count();
                if failure.is_redirection() || listening.refused.len() + 1 >= all {
                    return Err(failure);
                }
                listening.refused.push(wish.clone());
                listening.again = Instant::now() + self.common.pace().probe_interval;
                self.complaint.failed(&failure.words);
            } else {
                // Its own way works; what the others publish in theirs may come by it too.
                self.other_verb.failed(&failure.words);
            }
        }
        listening.answered();
        Ok(())
    }

    async fn hear(&mut self, channel: &[u8], payload: &[u8]) {
        let arrived = self.common.began.elapsed();
        let name = std::str::from_utf8(channel).ok();
        let found = name.and_then(|name| self.common.stages.borrow().find(name));
        let Some((from, cell, name)) = found else {
            return ignore(&self.common.ignored.malformed);
        };
        let message = match Message::decode(payload, &self.common.identity) {
            Ok(message) => message,
            Err(Unusable::Foreign) => return ignore(&self.common.ignored.foreign),
            Err(Unusable::Malformed) => return ignore(&self.common.ignored.malformed),
        };
        let to = self.node.replica;
        let input = match message.word {
            Word::Fence(id) => Input::FenceHeard { id, to, cell },
            Word::Heartbeat(seq) => {
                if !self.heard.entry(name).or_default().first_time(seq) {
                    return ignore(&self.common.ignored.duplicate);
                }
                Input::HeartbeatHeard {
                    from,
                    to,
                    cell,
                    seq,
                    age: arrived.saturating_sub(message.sent),
                    sent: (self.common.began + message.sent).into_std(),
                }
            }
        };
        self.common.report(input).await;
    }

    async fn report_broken(&self) {
        let shards = self.node.pinged(self.common.stages.borrow().speak());
        for shard in shards {
            self.common
                .report(Input::Probe {
                    replica: self.node.replica,
                    shard,
                    kind: ProbeKind::Ping,
                    outcome: Err(ProbeFailure::Broken),
                })
                .await;
        }
    }
}

impl Listening {
    /// Asks all at once; answers come in the same order.
    async fn ask(&mut self, questions: Vec<Question>, patience: Duration) -> Result<(), Failure> {
        let mut commands = Vec::new();
        for question in &questions {
            // One channel each: in a cluster several may be in different slots, which no single command can name.
            commands.extend(match question {
                Question::Add((_, channel)) | Question::Remove((_, channel)) => {
                    about(question.words(), channel)
                }
                Question::Ping => redis::cmd("PING").get_packed_command(),
            });
        }
        if commands.is_empty() {
            return Ok(());
        }
        self.overdue = Instant::now() + patience;
        self.asked.extend(questions);
        match tokio::time::timeout(patience, self.subscription.send(&commands)).await {
            Ok(sent) => sent,
            Err(_) => Err(Failure::timeout("the subscription's commands", patience)),
        }
    }

    /// Asks for what was refused, when it is time to.
    async fn ask_again(&mut self, patience: Duration) -> Result<(), Failure> {
        if self.refused.is_empty() || Instant::now() < self.again {
            return Ok(());
        }
        let refused = std::mem::take(&mut self.refused);
        self.ask(refused.into_iter().map(Question::Add).collect(), patience)
            .await
    }

    fn answered(&mut self) {
        self.asked.pop_front();
    }

    /// Whether the oldest question is still young enough.
    fn in_time(&self, patience: Duration) -> Result<(), Failure> {
        match self.asked.front() {
            Some(question) if Instant::now() >= self.overdue => {
                Err(Failure::timeout(question.words(), patience))
            }
            _ => Ok(()),
        }
    }
}

fn ignore(count: &AtomicU64) {
    count.fetch_add(1, Ordering::Relaxed);
}
