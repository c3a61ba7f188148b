//! DATA PLANE: listener, worker, session, pipeline, link, recovery.
//!
//! Applications' bytes go to the active replica unchanged, replies come back in order, and a change of the route moves
//! sessions without closing them. It follows the route and reports what it sees; it decides nothing.
//!
//! - `listener` accepts, `client` is the application's socket
//! - `session` owns one application connection, `pipeline` its reply order (pure), `classify` what a request is (pure)
//! - `split` says which sessions read elsewhere, and since when they may (pure)
//! - `link` owns one upstream connection, `outbox` the bytes on it (pure), `upstream` all links: who shares which
//! - `recover` says what becomes of commands whose link is lost, `intent` what is said again on the next (both pure),
//!   `scripts` which scripts the next replica has to be told
//! - `cluster` says where a request goes in a sharded replica (pure)
//! - `worker` is one thread of all this

mod classify;
mod client;
pub mod cluster;
mod command;
mod intent;
mod link;
mod listener;
pub mod outbox;
mod part;
pub mod pipeline;
mod recover;
mod scripts;
mod session;
mod split;
mod topology;
mod upstream;
mod worker;

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use thiserror::Error;
use tokio::sync::{mpsc, watch};

use crate::config::{Bind, Hold, Listener, Upstream};
use crate::dial::Dialer;
use crate::metrics::Metrics;
use crate::replica::{Layout, Replica};
use crate::route::{Feedback, Progress, Route};

/// All that the data plane needs to know.
#[derive(Debug)]
pub struct Settings {
    /// Where applications connect.
    pub listener: Listener,
    /// How links behave.
    pub upstream: Upstream,
    /// Bounds of the hold, for all workers together.
    pub hold: Hold,
    /// The replicas, by id, with the way to reach them.
    pub replicas: Vec<(Replica, Dialer)>,
    /// Requests with keys of several shards may be split.
    pub split_requests: bool,
    /// Threads.
    pub workers: usize,
}

/// What the data plane follows, and where it says what it sees.
#[derive(Debug)]
pub struct Wires {
    /// Where commands go; `None`: nowhere yet.
    pub route: watch::Receiver<Option<Route>>,
    /// How far other replicas have followed. It need only be told while a route splits reads off.
    pub progress: watch::Receiver<Option<Progress>>,
    /// By replica; a replica that is not in it is one endpoint.
    pub layouts: watch::Receiver<Arc<[Layout]>>,
    /// For control.
    pub feedback: mpsc::UnboundedSender<Feedback>,
}

/// The data plane did not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// A TCP address is taken, or not ours.
    #[error("cannot listen on {addr}: {cause}")]
    Tcp {
        /// The address.
        addr: SocketAddr,
        /// The system's words.
        cause: io::Error,
    },
    /// A unix socket cannot be made.
    #[error("cannot listen on unix:{}: {cause}", path.display())]
    Unix {
        /// Its path.
        path: PathBuf,
        /// The system's words.
        cause: io::Error,
    },
    /// No thread.
    #[error("cannot start a worker thread: {0}")]
    Thread(io::Error),
}

/// How the data plane is told to end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Stop {
    /// Go on.
    No,
    /// Accept no more, end each session once what it sent is answered.
    Drain,
    /// End now.
    Now,
}

/// The running data plane.
#[derive(Debug)]
pub struct Proxy {
    /// Bound TCP addresses, with the real ports.
    pub addresses: Vec<SocketAddr>,
    stop: watch::Sender<Stop>,
    lost: watch::Receiver<bool>,
    threads: Vec<JoinHandle<()>>,
    sockets: Vec<PathBuf>,
}

/// Binds everything, then starts the workers: when this returns, connections are accepted.
pub fn start(settings: Settings, wires: &Wires, metrics: &Metrics) -> Result<Proxy, StartError> {
    let settings = Arc::new(settings);
    let workers = settings.workers.max(1);
    let mut bound: Vec<Vec<Socket>> = (0..workers).map(|_| Vec::new()).collect();
    let (mut addresses, mut sockets) = (Vec::new(), Vec::new());
    for bind in &settings.listener.bind {
        match bind {
            Bind::Tcp(addr) => {
                let mut addr = *addr;
                for (i, of_worker) in bound.iter_mut().enumerate() {
                    let listening = listener::bind_tcp(addr, workers > 1)
                        .and_then(|l| Ok((l.local_addr()?, l)))
                        .map_err(|cause| StartError::Tcp { addr, cause })?;
                    // Port 0 is chosen once, for all workers.
                    addr = listening.0;
                    if i == 0 {
                        addresses.push(addr);
                    }
                    of_worker.push(Socket::Tcp(listening.1));
                }
            }
            Bind::Unix(path) => {
                let listening = bind_unix(path).map_err(|cause| StartError::Unix {
                    path: path.clone(),
                    cause,
                })?;
                bound[0].push(Socket::Unix(listening));
                sockets.push(path.clone());
            }
        }
    }
    let (stop, stopped) = watch::channel(Stop::No);
    let (losing, lost) = watch::channel(false);
    let mut threads = Vec::new();
    for (index, sockets) in bound.into_iter().enumerate() {
        let (settings, feedback) = (Arc::clone(&settings), wires.feedback.clone());
        let follows = (wires.route.clone(), wires.progress.clone(), wires.layouts.clone());
        let (metrics, stopped) = (metrics.worker(index), stopped.clone());
        let guard = Guard(losing.clone());
        let thread = std::thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || {
                let _guard = guard;
                let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                    Ok(runtime) => runtime,
                    Err(error) => return tracing::error!(%error, "a worker has no runtime"),
                };
                let local = tokio::task::LocalSet::new();
                let worker = worker::Worker::new(index, settings, metrics, feedback);
                local.block_on(&runtime, run_worker(worker, sockets, follows, stopped));
            })
            .map_err(StartError::Thread)?;
        threads.push(thread);
    }
    Ok(Proxy {
        addresses,
        stop,
        lost,
        threads,
        sockets,
    })
}

/// Says so when its worker ends, by whatever way.
struct Guard(watch::Sender<bool>);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

/// A bound socket on its way to its worker.
enum Socket {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

/// A socket file that nobody listens on any more is taken over; one that is in use is an error.
fn bind_unix(path: &PathBuf) -> io::Result<std::os::unix::net::UnixListener> {
    use std::os::unix::net::{UnixListener, UnixStream};
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse && UnixStream::connect(path).is_err() => {
            std::fs::remove_file(path)?;
            UnixListener::bind(path)?
        }
        other => other?,
    };
    listener.set_nonblocking(true)?;
    Ok(listener)
}

type Follows = (
    watch::Receiver<Option<Route>>,
    watch::Receiver<Option<Progress>>,
    watch::Receiver<Arc<[Layout]>>,
);

async fn run_worker(
    worker: Rc<worker::Worker>,
    sockets: Vec<Socket>,
    (route, progress, layouts): Follows,
    mut stopped: watch::Receiver<Stop>,
) {
    let mut accepting = Vec::new();
    for socket in sockets {
        let listener = match socket {
            Socket::Tcp(l) => tokio::net::TcpListener::from_std(l).map(listener::Listener::Tcp),
            Socket::Unix(l) => tokio::net::UnixListener::from_std(l).map(listener::Listener::Unix),
        };
        match listener {
            Ok(l) => accepting.push(tokio::task::spawn_local(listener::accept(Rc::clone(&worker), l))),
            Err(error) => tracing::error!(%error, "a worker cannot use its listening socket"),
        }
    }
    let life = tokio::task::spawn_local(Rc::clone(&worker).run(route, progress, layouts));
    let mut stage = Stop::No;
    loop {
        if stage == Stop::No {
            if stopped.changed().await.is_err() {
                return;
            }
        } else if worker.sessions.borrow().is_empty() {
            break;
        } else {
            // Sessions end by themselves as their answers come; a second word ends them at once.
            tokio::select! {
                changed = stopped.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(Duration::from_millis(10)) => {}
            }
        }
        let now = *stopped.borrow_and_update();
        if now > stage {
            stage = now;
            worker.stopping.set(true);
            for task in accepting.drain(..) {
                task.abort();
            }
        }
        let sessions: Vec<_> = worker.sessions.borrow().values().cloned().collect();
        for session in sessions {
            session.drain(stage == Stop::Now);
        }
        if stage == Stop::Now {
            // One turn, so that the sessions' tasks close their sockets.
            tokio::task::yield_now().await;
        }
    }
    life.abort();
}

impl Proxy {
    /// Tells every worker to end.
    pub fn stop(&self, how: Stop) {
        self.stop.send_replace(how);
    }

    /// Returns when a worker has ended. Before [`Proxy::stop`] that is a defect: its applications hang.
    pub async fn lost_a_worker(&self) {
        let mut lost = self.lost.clone();
        // An error is the end of them all.
        let _ = lost.wait_for(|lost| *lost).await;
    }

    /// Bound unix sockets.
    pub fn sockets(&self) -> &[PathBuf] {
        &self.sockets
    }

    /// Whether every worker has ended.
    pub fn ended(&self) -> bool {
        self.threads.iter().all(JoinHandle::is_finished)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop(Stop::Now);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a worker thread panicked");
            }
        }
        for socket in &self.sockets {
            let _ = std::fs::remove_file(socket);
        }
    }
}
