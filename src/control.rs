//! The select/apply shell around `decision`: the only reader of the clock for it, the only publisher of routes.

use std::sync::Arc;

use tokio::sync::{broadcast, mpsc, oneshot, watch};

use crate::decision::Request;

pub mod status;

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
