//! The loop: wait, stamp, apply, carry out.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, mpsc, oneshot, watch};

use super::drain::Drain;
use super::follow::Follow;
use super::report::{self, Report, Severity};
use super::status::{EventRecord, Status};
use super::view::{self, Anchor, Names};
use super::{Ask, PublishFence, Reread};
use crate::decision::{Engine, Event, Input, Output, PassiveEvidence, Policy, Request, RouteOrder};
use crate::metrics::Metrics;
use crate::replica::{Layout, ReplicaId};
use crate::route::{Epoch, Feedback, LinkEvidence, Route};

/// Longest time between two snapshots.
const SNAPSHOT_INTERVAL: Duration = Duration::from_millis(250);
/// Wakes applied under one `now`, so that a flood of evidence delays no timer.
const BATCH: usize = 256;
/// An engine that asks to be called "now" is called this much later: a mistake in it must not take the whole thread.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);
/// Longest wait, on shutdown, for a pin that is being written.
const LAST_SAVE: Duration = Duration::from_secs(2);

/// The clock of control, and so of the engine. (Tokio's, which tests can pause.)
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

/// What can happen.
#[derive(Debug)]
pub(super) enum Wake {
    Stop,
    Ask(Ask),
    Saved(Result<(), String>),
    Feedback(Feedback),
    Input(Input),
    Policy(Policy),
    Layouts(Arc<[Layout]>),
    /// A timer is due.
    Due,
}

/// Where it comes from.
pub(super) struct Sources {
    pub(super) inputs: mpsc::Receiver<Input>,
    pub(super) feedback: mpsc::UnboundedReceiver<Feedback>,
    pub(super) layouts: watch::Receiver<Arc<[Layout]>>,
    pub(super) policies: watch::Receiver<Policy>,
    pub(super) asks: mpsc::Receiver<Ask>,
    /// Outcomes of writing the state file, when there is one.
    pub(super) saved: Option<mpsc::UnboundedReceiver<Result<(), String>>>,
    pub(super) shutdown: watch::Receiver<bool>,
}

async fn saved(
    source: &mut Option<mpsc::UnboundedReceiver<Result<(), String>>>,
) -> Option<Result<(), String>> {
    match source {
        Some(source) => source.recv().await,
        None => std::future::pending().await,
    }
}

impl Sources {
    /// Only waits. A source whose other end is gone is never ready again.
    async fn select(&mut self, due: Instant) -> Wake {
        let stop = async {
            // Its sender gone means the same as the word.
            let _ = self.shutdown.wait_for(|stop| *stop).await;
        };
        tokio::select! {
            biased;
            () = stop => Wake::Stop,
            Some(ask) = self.asks.recv() => Wake::Ask(ask),
            Some(outcome) = saved(&mut self.saved) => Wake::Saved(outcome),
            Ok(()) = self.policies.changed() => Wake::Policy(self.policies.borrow_and_update().clone()),
            Ok(()) = self.layouts.changed() => Wake::Layouts(Arc::clone(&self.layouts.borrow_and_update())),
            Some(feedback) = self.feedback.recv() => Wake::Feedback(feedback),
            Some(input) = self.inputs.recv() => Wake::Input(input),
            () = tokio::time::sleep_until(due.into()) => Wake::Due,
        }
    }

    /// What else is ready.
    fn ready(&mut self) -> Option<Wake> {
        if let Ok(feedback) = self.feedback.try_recv() {
            return Some(Wake::Feedback(feedback));
        }
        if let Ok(input) = self.inputs.try_recv() {
            return Some(Wake::Input(input));
        }
        self.asks.try_recv().ok().map(Wake::Ask)
    }
}

/// Where the engine's outputs go.
pub(super) struct Sinks {
    pub(super) routes: watch::Sender<Option<Route>>,
    pub(super) follow: Follow,
    pub(super) publish_fence: PublishFence,
    pub(super) reread: Reread,
    pub(super) metrics: Arc<Metrics>,
    pub(super) status: watch::Sender<Arc<Status>>,
    pub(super) events: broadcast::Sender<Arc<EventRecord>>,
    /// Pins to write to the state file, when there is one.
    pub(super) saves: Option<mpsc::UnboundedSender<Option<String>>>,
}

type Answer = oneshot::Sender<Result<String, String>>;

/// The engine and all that surrounds it.
pub(super) struct Control {
    engine: Engine,
    names: Names,
    /// By [`ReplicaId`].
    layouts: Arc<[Layout]>,
    anchor: Anchor,
    drain: Drain,
    sinks: Sinks,
    asks: Asks,
    /// Of the newest event.
    event_id: u64,
    /// Something changed since the newest snapshot.
    changed: bool,
    snapshot_due: Instant,
}

/// Requests without an answer.
#[derive(Default)]
struct Asks {
    newest: u64,
    open: HashMap<u64, (Answer, AboutPin)>,
    /// Pins handed to the saver whose outcome is not known yet.
    saving: usize,
    /// Answers that must not be given before the pin they speak of is on disk.
    waiting: Vec<(Answer, Result<String, String>)>,
}

/// Whether a request sets or takes away the pin.
type AboutPin = bool;

/// Waits and applies until told to stop.
pub(super) async fn run(mut control: Control, mut sources: Sources) {
    loop {
        let mut wake = sources.select(control.due(now())).await;
        let stamp = now();
        for _ in 0..BATCH {
            if matches!(wake, Wake::Stop) {
                return control.finish(sources.saved).await;
            }
            control.apply(wake, stamp);
            match sources.ready() {
                Some(next) => wake = next,
                None => break,
            }
        }
        control.conclude(stamp);
    }
}

impl Control {
    pub(super) fn new(
        engine: Engine,
        names: Names,
        layouts: Arc<[Layout]>,
        anchor: Anchor,
        drain: Drain,
        sinks: Sinks,
        now: Instant,
    ) -> Control {
        Control {
            engine,
            names,
            layouts,
            anchor,
            drain,
            sinks,
            asks: Asks::default(),
            event_id: 0,
            changed: false,
            snapshot_due: now + SNAPSHOT_INTERVAL,
        }
    }

    /// When to go on even though nothing happened.
    fn due(&self, now: Instant) -> Instant {
        let due = match self.engine.next_timer() {
            Some(timer) => timer.min(self.snapshot_due),
            None => self.snapshot_due,
        };
        due.max(now + SHORTEST_WAIT)
    }

    /// Takes one thing in and carries out what follows from it.
    fn apply(&mut self, wake: Wake, now: Instant) {
        match wake {
            // Handled by the loop; timers are looked at in `conclude`.
            Wake::Stop | Wake::Due => {}
            Wake::Input(input) => {
                self.count(&input);
                self.sinks.follow.observe(&input);
                self.engine.observe(input, now);
            }
            Wake::Feedback(Feedback::Drained { worker, epoch }) => {
                if self.drain.reported(worker, epoch) {
                    self.engine.observe(Input::Drained { epoch: epoch.0 }, now);
                }
            }
            Wake::Feedback(Feedback::Moved { replica }) => (self.sinks.reread)(replica),
            Wake::Feedback(Feedback::Link { replica, seen }) => {
                let seen = passive(seen);
                let input = Input::Passive { replica, seen };
                self.sinks.follow.observe(&input);
                self.engine.observe(input, now);
            }
            Wake::Ask(Ask { request, answer }) => {
                self.asks.newest += 1;
                let id = self.asks.newest;
                let about_pin = matches!(request, Request::Pin { .. } | Request::Unpin);
                self.asks.open.insert(id, (answer, about_pin));
                self.engine.observe(Input::Operator { id, request }, now);
            }
            Wake::Policy(policy) => self.engine.set_policy(policy, now),
            Wake::Layouts(layouts) => self.laid_out(layouts, now),
            Wake::Saved(outcome) => self.saved(&outcome),
        }
        self.carry_out(now);
    }

    /// After all that was ready: timers, and the snapshot when it is due.
    fn conclude(&mut self, now: Instant) {
        if self.engine.next_timer().is_some_and(|due| due <= now) {
            self.engine.on_timer(now);
            self.carry_out(now);
        }
        if self.changed || now >= self.snapshot_due {
            let snapshot = self.engine.snapshot(now);
            if self.changed {
                let links = snapshot.replicas.iter().flat_map(|view| {
                    let links = view.links.iter();
                    links.map(|link| (view.id, link.to, link.shard, link.up))
                });
                self.sinks.metrics.control.links(links);
            }
            let status = view::status(&snapshot, &self.names, &self.layouts, self.anchor);
            self.sinks.status.send_replace(Arc::new(status));
            self.changed = false;
            self.snapshot_due = now + SNAPSHOT_INTERVAL;
        }
    }

    fn carry_out(&mut self, now: Instant) {
        while let Some(output) = self.engine.poll() {
            match output {
                Output::Route(order) => self.publish(&order, now),
                Output::PublishFence { id, on } => (self.sinks.publish_fence)(id, on),
                Output::Event(event) => {
                    self.meter(&event);
                    let report = report::event(&event, &self.names, self.anchor.ms(now));
                    self.tell(report, now);
                }
                Output::Answer { id, result } => self.answer(id, result),
                Output::RememberPin(pin) => {
                    self.sinks.metrics.control.pinned(pin);
                    self.changed = true;
                    let name = pin.map(|pin| self.names.of(pin).to_owned());
                    if let Some(saves) = &self.sinks.saves
                        && saves.send(name).is_ok()
                    {
                        self.asks.saving += 1;
                    }
                }
            }
        }
    }

    fn publish(&mut self, order: &RouteOrder, now: Instant) {
        let epoch = Epoch(order.epoch);
        // Before the route is out, so that no report of it can come too early.
        self.drain.published(epoch, order.holding);
        self.sinks.follow.route(order);
        self.sinks.routes.send_replace(Some(Route {
            epoch,
            write: order.write,
            read: order.read.clone(),
            read_your_writes: order.read_your_writes,
            holding: order.holding,
            abandon_others: order.abandon_others,
        }));
        self.sinks.metrics.control.active(order.write);
        self.sinks
            .metrics
            .control
            .route(order.epoch, &order.read, order.holding);
        let report = report::route(order, &self.names);
        self.tell(report, now);
    }

    /// Tells which replicas are divided otherwise than before.
    fn laid_out(&mut self, layouts: Arc<[Layout]>, now: Instant) {
        let before = std::mem::replace(&mut self.layouts, layouts);
        let pairs: Vec<(Layout, Layout)> = before.iter().cloned().zip(self.layouts.iter().cloned()).collect();
        for (id, (before, layout)) in (0_u8..).map(ReplicaId).zip(pairs) {
            self.sinks.metrics.control.shards(id, layout.len());
            if before != layout {
                let report = report::layout(id, &before, &layout, &self.names);
                self.tell(report, now);
            }
        }
    }

    fn tell(&mut self, report: Report, now: Instant) {
        let Report {
            kind,
            severity,
            message,
            details,
        } = report;
        match severity {
            Severity::Debug => tracing::debug!(kind, "{message}"),
            Severity::Info => tracing::info!(kind, "{message}"),
            Severity::Warn => tracing::warn!(kind, "{message}"),
        }
        self.event_id += 1;
        self.changed = true;
        // Nobody listening is no error.
        let _ = self.sinks.events.send(Arc::new(EventRecord {
            id: self.event_id,
            at: self.anchor.ms(now),
            kind: kind.to_owned(),
            message,
            details,
        }));
    }

    fn answer(&mut self, id: u64, result: Result<String, String>) {
        let Some((answer, about_pin)) = self.asks.open.remove(&id) else {
            tracing::error!("the engine answered request {id}, which is not open");
            return;
        };
        if about_pin && self.asks.saving > 0 {
            self.asks.waiting.push((answer, result));
        } else {
            // An asker that went away wants no answer.
            let _ = answer.send(result);
        }
    }

    /// A pin is on disk, or could not be written there.
    fn saved(&mut self, outcome: &Result<(), String>) {
        self.asks.saving = self.asks.saving.saturating_sub(1);
        if let Err(error) = outcome {
            tracing::error!("the pin will not survive a restart as it is: {error}");
        }
        if self.asks.saving > 0 {
            // A newer pin is on its way; only the last one counts.
            return;
        }
        for (answer, result) in self.asks.waiting.drain(..) {
            let result = match (result, outcome) {
                (Ok(done), Err(error)) => {
                    Err(format!("{done}, but this will not survive a restart: {error}"))
                }
                (result, _) => result,
            };
            let _ = answer.send(result);
        }
    }

    /// Waits for pins that are being written, so that an answered or logged pin is not lost by the shutdown.
    async fn finish(mut self, saves: Option<mpsc::UnboundedReceiver<Result<(), String>>>) {
        let Some(mut saves) = saves else { return };
        let deadline = tokio::time::Instant::now() + LAST_SAVE;
        while self.asks.saving > 0 {
            match tokio::time::timeout_at(deadline, saves.recv()).await {
                Ok(Some(outcome)) => self.saved(&outcome),
                Ok(None) | Err(_) => {
                    tracing::error!("the pin was not written in time and may not survive the restart");
                    return;
                }
            }
        }
    }

    fn count(&self, input: &Input) {
        let metrics = &self.sinks.metrics.control;
        match input {
            Input::HeartbeatSent { on, .. } => metrics.heartbeat_sent(*on),
            Input::HeartbeatHeard {
                from, to, cell, age, ..
            } => {
                if let Some(shard) = self.engine.shard(*from, *cell) {
                    metrics.heartbeat_heard(*from, *to, shard, *age);
                }
            }
            Input::Probe {
                replica,
                kind,
                outcome,
                ..
            } => match outcome {
                Ok(took) => metrics.probe(*replica, *kind, *took),
                Err(_) => metrics.probe_failed(*replica, *kind),
            },
            Input::Rest { replica, outcome } => metrics.rest_check(*replica, outcome.state()),
            Input::Subscribed { .. }
            | Input::Layout(_)
            | Input::Passive { .. }
            | Input::Drained { .. }
            | Input::FenceHeard { .. }
            | Input::Operator { .. } => {}
        }
    }

    fn meter(&self, event: &Event) {
        let metrics = &self.sinks.metrics.control;
        match event {
            Event::Health { replica, to, .. } => metrics.health(*replica, *to),
            Event::Fitness { replica, to, .. } => metrics.fitness(*replica, *to),
            Event::Fault { fault, on, .. } => metrics.fault(*fault, *on),
            Event::Switched(switched) => metrics.switched(switched),
            Event::Rest { replica, to, .. } => metrics.rest(*replica, *to),
            Event::Tilt { on, .. } => metrics.tilt(*on),
            Event::Failback { step, .. } => metrics.failback(*step),
            // Links are counted as a whole, with the next snapshot.
            Event::Link { .. } | Event::Move { .. } | Event::Pinned { .. } => {}
        }
    }
}

fn passive(seen: LinkEvidence) -> PassiveEvidence {
    match seen {
        LinkEvidence::Refused => PassiveEvidence::Refused,
        LinkEvidence::ConnectTimeout => PassiveEvidence::ConnectTimeout,
        LinkEvidence::Broken => PassiveEvidence::Broken,
        LinkEvidence::ResponseTimeout => PassiveEvidence::ResponseTimeout,
        LinkEvidence::Rejected => PassiveEvidence::Rejected,
        LinkEvidence::Unready => PassiveEvidence::Unready,
        LinkEvidence::Unwritable => PassiveEvidence::Unwritable,
        LinkEvidence::Alive => PassiveEvidence::Alive,
    }
}
