//! A TCP relay in front of one server: where the network's faults are made. It owns the application's address.
//!
//! It never looks at what it carries. Its cost without a fault is one read and one write per chunk of up to 64 KiB.
//!
//! | fault | new connections | existing connections | after `heal` |
//! |---|---|---|---|
//! | cut | refused | reset | accepted again |
//! | stall | accepted, silent | nothing flows either way, not even the end | go on, nothing is lost |
//! | delay | later by so much, each way | likewise | what was under way arrives at once |
//! | dribble | so many bytes per interval, each way | likewise | full speed |
//! | half-open | accepted; one way is dead | likewise; that way's end is not seen either | those that lived through it are reset |
//!
//! While the server is down new connections are refused here too, as they would be without a relay.

mod pump;

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::shard::process::ReservedPort;

/// A direction through the relay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From the application to the server.
    ToServer,
    /// From the server to the application.
    ToClient,
}

/// What the network does to the connections at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct NetworkFaults {
    /// Refuses and resets.
    pub cut: bool,
    /// Accepts, and forwards nothing.
    pub stall: bool,
    /// The direction in which nothing arrives any more.
    pub half_open: Option<Direction>,
    /// Latency added towards the server.
    pub delay_to_server: Duration,
    /// Latency added towards the application.
    pub delay_to_client: Duration,
    /// At most this many bytes at a time, with this pause after each.
    pub dribble: Option<(usize, Duration)>,
}

impl NetworkFaults {
    fn delay(&self, direction: Direction) -> Duration {
        match direction {
            Direction::ToServer => self.delay_to_server,
            Direction::ToClient => self.delay_to_client,
        }
    }

    fn blocks(&self, direction: Direction) -> bool {
        self.stall || self.half_open == Some(direction)
    }
}

/// What the relay's tasks watch.
#[derive(Clone, Copy, Debug, Default)]
struct Weather {
    faults: NetworkFaults,
    server_down: bool,
    /// Connections of an older generation reset themselves.
    generation: u64,
}

impl Weather {
    fn accepts(&self) -> bool {
        !self.faults.cut && !self.server_down
    }
}

/// A running relay; dropping it closes everything.
#[derive(Debug)]
pub(crate) struct Relay {
    addr: SocketAddr,
    weather: watch::Sender<Weather>,
    listening: watch::Receiver<bool>,
    /// One change at a time: a cut that is healed before the task has seen it would be waited for in vain.
    changing: Mutex<()>,
    task: JoinHandle<()>,
}

impl Relay {
    pub(crate) fn start(server: SocketAddr) -> anyhow::Result<Self> {
        let port = ReservedPort::take()?;
        let addr = port.addr();
        let (weather, seen) = watch::channel(Weather {
            server_down: true,
            ..Weather::default()
        });
        let (announce, listening) = watch::channel(false);
        let task = tokio::spawn(accept(port, server, seen, announce));
        Ok(Self {
            addr,
            weather,
            listening,
            changing: Mutex::default(),
            task,
        })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn faults(&self) -> NetworkFaults {
        self.weather.borrow().faults
    }

    /// Changes the faults, and returns once new connections meet them.
    pub(crate) async fn change(&self, change: impl FnOnce(&mut NetworkFaults)) {
        self.update(|weather| {
            let before = weather.faults;
            change(&mut weather.faults);
            let after = weather.faults;
            let healed_half_open = before.half_open.is_some() && after.half_open != before.half_open;
            if (after.cut && !before.cut) || healed_half_open {
                weather.generation += 1;
            }
        })
        .await;
    }

    /// Tells whether there is a server to connect to.
    pub(crate) async fn server_is(&self, up: bool) {
        self.update(|weather| weather.server_down = !up).await;
    }

    async fn update(&self, change: impl FnOnce(&mut Weather)) {
        let _alone = self.changing.lock().await;
        self.weather.send_modify(change);
        let accepts = self.weather.borrow().accepts();
        // An error means that the task is gone, and with it the listener.
        let _ = self
            .listening
            .clone()
            .wait_for(|&listening| listening == accepts)
            .await;
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Listens whenever the weather allows; all connections live in its set and end with it.
async fn accept(
    port: ReservedPort,
    server: SocketAddr,
    weather: watch::Receiver<Weather>,
    announce: watch::Sender<bool>,
) {
    let mut connections = JoinSet::new();
    let mut seen = weather.clone();
    while seen.wait_for(Weather::accepts).await.is_ok() {
        let listener: TcpListener = match port.listen() {
            Ok(listener) => listener,
            Err(error) => {
                tracing::warn!(addr = %port.addr(), %error, "the relay cannot listen yet");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        announce.send_replace(true);
        loop {
            tokio::select! {
                () = async { drop(seen.wait_for(|weather| !weather.accepts()).await) } => break,
                accepted = listener.accept() => match accepted {
                    Ok((client, _)) => {
                        connections.spawn(pump::carry(client, server, weather.clone()));
                    }
                    Err(error) => {
                        // Out of file descriptors, most likely: the listener itself is fine.
                        tracing::warn!(%error, "the relay cannot accept");
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
