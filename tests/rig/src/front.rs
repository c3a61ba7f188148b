//! One address in front of a region's shards, as a sharded database without cluster clients has it: a proxy that sends
//! each command to the shard of its key's or channel's slot. It owns its port and its connections to the shards.
//!
//! It never looks at what the keys hold and never retries. What is not tied to a slot it answers itself where it can
//! (PING, CLUSTER, AUTH's consequences), and otherwise sends to the first shard that is there.
//!
//! | a shard | what its slots answer |
//! |---|---|
//! | dead | `-CLUSTERDOWN`; a connection that waits for its answer, or hears its channels, is closed |
//! | hung | nothing; other shards' commands of other connections go on |
//! | every one dead | the address refuses connections |
//! | every one hung | the address accepts, and never answers |

mod cluster;
mod local;
mod session;
mod upstream;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use crate::commands::Commands;
use crate::shard::process::ReservedPort;
use crate::slots::SlotRange;

/// Room for one read.
const READ_SIZE: usize = 64 << 10;

/// What a front stands before.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The shards' addresses and slots.
    pub(crate) shards: Vec<(SocketAddr, SlotRange)>,
    pub(crate) commands: Arc<Commands>,
    /// What CLUSTER SLOTS and its like say of every shard.
    pub(crate) announced: SocketAddr,
    /// Whether CLUSTER is answered at all.
    pub(crate) cluster_api: bool,
    /// Whether clients have to authenticate.
    pub(crate) guarded: bool,
}

impl Plan {
    fn shard_of(&self, slot: u16) -> usize {
        let found = self.shards.iter().position(|(_, slots)| slots.contains(slot));
        found.unwrap_or(0)
    }
}

/// What the front does as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Refuses; its connections are reset.
    Down,
    /// Accepts, and answers nothing.
    Hung,
    /// Answers.
    Up,
}

/// A running front; dropping it closes everything.
#[derive(Debug)]
pub(crate) struct Front {
    state: watch::Sender<State>,
    listening: watch::Receiver<bool>,
    task: JoinHandle<()>,
}

impl Front {
    pub(crate) fn start(port: ReservedPort, plan: Plan) -> Self {
        let (state, seen) = watch::channel(State::Down);
        let (announce, listening) = watch::channel(false);
        Self {
            state,
            listening,
            task: tokio::spawn(accept(port, Arc::new(plan), seen, announce)),
        }
    }

    /// Returns once new connections meet the state.
    pub(crate) async fn be(&self, state: State) {
        self.state.send_replace(state);
        let accepts = state != State::Down;
        // An error means that the task is gone, and with it the listener.
        let _ = self
            .listening
            .clone()
            .wait_for(|&listening| listening == accepts)
            .await;
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Listens unless the front is down; all connections live in its set and end with it.
async fn accept(
    port: ReservedPort,
    plan: Arc<Plan>,
    state: watch::Receiver<State>,
    announce: watch::Sender<bool>,
) {
    let mut seen = state.clone();
    while seen.wait_for(|&state| state != State::Down).await.is_ok() {
        let Ok(listener) = port.listen() else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        announce.send_replace(true);
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = async { drop(seen.wait_for(|&state| state == State::Down).await) } => break,
                accepted = listener.accept() => match accepted {
                    Ok((client, _)) => {
                        connections.spawn(session::serve(client, Arc::clone(&plan), state.clone()));
                    }
                    Err(error) => {
                        // Out of file descriptors, most likely: the listener itself is fine.
                        tracing::warn!(%error, "the front cannot accept");
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
        drop(listener);
        announce.send_replace(false);
    }
}
