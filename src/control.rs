//! The select/apply shell around `decision`: the only reader of the clock for it, the only publisher of routes.
//!
//! One task owns the engine. It waits for the first of: evidence from the monitor, feedback from the data plane's
//! workers, an operator's request, the engine's own timer. Then it reads the clock once, applies everything that is
//! ready under that one `now`, and carries out what the engine wants. It decides nothing itself and never waits for
//! anybody while it applies: routes and snapshots go through `watch` channels, files through a task of their own.
//!
//! ```text
//!            ┌────────── select: only waits ──────────┐      ┌─────────── apply: only changes ───────────┐
//!  monitor ──► inputs ──┐                             │      │ observe, on_timer ──► engine ──► poll      │
//!  workers ──► feedback ┼──► Wake ── now ─────────────┼─────►│   Route ──► watch      Event ──► log, SSE  │
//!  admin ────► requests ┘    (and all that is ready)  │      │   Fence ──► monitor    Answer ──► asker    │
//!            └────────────────────────────────────────┘      │   Pin ────► state file Snapshot ──► watch  │
//!                                                            └────────────────────────────────────────────┘
//! ```

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::decision::{Engine, Input, Member, Policy, Request};
use crate::metrics::Metrics;
use crate::replica::{Layout, ReplicaId};
use crate::route::{Feedback, Progress, Route};

mod drain;
mod follow;
mod report;
mod shell;
mod state;
pub mod status;
#[cfg(test)]
mod tests;
mod view;

use shell::{Control, Sources};
use view::{Anchor, Names};

/// How the admin server sees control: snapshots, events and one request channel.
#[derive(Clone, Debug)]
pub struct Handle {
    /// The newest snapshot; republished at each change and at least every 250 ms.
    pub status: watch::Receiver<Arc<status::Status>>,
    /// Every event from now on: `events.subscribe()`.
    pub events: broadcast::Sender<Arc<status::EventRecord>>,
    /// Operators' requests.
    pub requests: mpsc::Sender<Ask>,
}

/// An operator's request with the way back for its answer: what was done, or why not, in words.
#[derive(Debug)]
pub struct Ask {
    /// What is asked.
    pub request: Request,
    /// The answer, when the move has ended or was refused.
    pub answer: oneshot::Sender<Result<String, String>>,
}

/// What control is to govern.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The engine's numbers.
    pub policy: Policy,
    /// The replicas; `members[i].id == ReplicaId(i)`, at least one.
    pub members: Vec<Member>,
    /// Data-plane workers that report a drain; [`Input::Drained`] follows the last of them.
    pub workers: usize,
    /// Where a pin survives restarts; `None`: it does not.
    pub state_file: Option<PathBuf>,
}

/// Publishes the fence `id` on every shard of a replica; must not block.
pub type PublishFence = Box<dyn Fn(u64, ReplicaId) + Send>;

/// Has the layout of a replica read again; must not block.
pub type Reread = Box<dyn Fn(ReplicaId) + Send>;

/// What control is connected to.
pub struct Wires {
    /// From the monitor.
    pub inputs: mpsc::Receiver<Input>,
    /// From all workers. Unbounded, so that a worker never waits for control; workers limit its rate themselves.
    pub feedback: mpsc::UnboundedReceiver<Feedback>,
    /// How the replicas are divided, by [`ReplicaId`]: for people. The engine learns of it by [`Input::Layout`].
    pub layouts: watch::Receiver<Arc<[Layout]>>,
    /// Policies that replace [`Setup::policy`] while running.
    pub policies: watch::Receiver<Policy>,
    /// To the workers; `None` until the first route.
    pub routes: watch::Sender<Option<Route>>,
    /// To the workers: how far the other replicas have followed, while reads go elsewhere than writes.
    pub progress: watch::Sender<Option<Progress>>,
    /// To the monitor.
    pub publish_fence: PublishFence,
    /// To the monitor.
    pub reread: Reread,
    /// What control counts is in `metrics.control`.
    pub metrics: Arc<Metrics>,
    /// Ends control once it is true, or its sender is gone.
    pub shutdown: watch::Receiver<bool>,
}

impl fmt::Debug for Wires {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wires").finish_non_exhaustive()
    }
}

/// Requests that wait while control is busy; an asker beyond them waits in `send`.
const REQUESTS: usize = 64;
/// Events that a slow reader may be behind before it misses some.
const EVENTS: usize = 256;

/// Starts control in the current tokio runtime, which should be the control plane's own thread. Reads the state file
/// before it returns; one that cannot be read is logged, and nothing is pinned then.
///
/// The task ends on shutdown, after a pin that is being written is on disk.
///
/// # Panics
/// When `setup.members` is empty or not in the order of its ids, which configuration rules out.
pub fn spawn(setup: Setup, wires: Wires) -> (Handle, JoinHandle<()>) {
    let now = shell::now();
    let names = Names::new(setup.members.iter().map(|member| Arc::clone(&member.name)));
    let (pin, saver) = match setup.state_file {
        Some(path) => {
            let pin = remembered(&path, &names);
            (pin, Some(state::Saver::spawn(path)))
        }
        None => (None, None),
    };
    wires.metrics.control.pinned(pin);
    let anchor = Anchor::take(now);
    let replicas = setup.members.len();
    let engine = Engine::new(setup.policy, setup.members, pin, now);
    let mut layouts = wires.layouts;
    let known = Arc::clone(&layouts.borrow_and_update());
    for (id, layout) in (0_u8..).map(ReplicaId).zip(&*known) {
        wires.metrics.control.shards(id, layout.len());
    }
    let first = view::status(&engine.snapshot(now), &names, &known, anchor);
    let (status, statuses) = watch::channel(Arc::new(first));
    let (events, _) = broadcast::channel(EVENTS);
    let (requests, asks) = mpsc::channel(REQUESTS);
    let handle = Handle {
        status: statuses,
        events: events.clone(),
        requests,
    };
    let follow = follow::Follow::new(replicas, wires.progress);
    let (saves, saved) = saver.unzip();
    let sources = Sources {
        inputs: wires.inputs,
        feedback: wires.feedback,
        layouts,
        policies: wires.policies,
        asks,
        saved,
        shutdown: wires.shutdown,
    };
    let control = Control::new(
        engine,
        names,
        known,
        anchor,
        drain::Drain::new(setup.workers),
        shell::Sinks {
            routes: wires.routes,
            follow,
            publish_fence: wires.publish_fence,
            reread: wires.reread,
            metrics: wires.metrics,
            status,
            events,
            saves,
        },
        now,
    );
    (handle, tokio::spawn(shell::run(control, sources)))
}

/// The pin that the state file at `path` remembers.
fn remembered(path: &std::path::Path, names: &Names) -> Option<ReplicaId> {
    let name = match state::load(path) {
        Ok(name) => name?,
        Err(error) => {
            tracing::error!("the pin is not known: {error}");
            return None;
        }
    };
    let pin = names.find(&name);
    if pin.is_none() {
        tracing::error!(
            "{}: no replica is called `{name}`; nothing is pinned",
            path.display()
        );
    }
    pin
}
