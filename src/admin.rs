//! HTTP: health, metrics, status, events and the operator's verbs.
//!
//! Owns the admin listener and the journal of recent events. Never decides and never holds state of its own about
//! replicas: it serves control's snapshots and hands operators' requests to control through one channel, each with a
//! bounded wait. Nothing that a client does or leaves undone makes memory grow: connections, event streams, headers,
//! bodies and waits are all bounded by [`Limits`].
//!
//! ```text
//! GET /livez /readyz /metrics      for probes and scrapers: open
//! GET /status /events  ─┐
//! POST /switch …        ┴─ guard ── journal, snapshots, or one Ask to control
//! ```

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::control::Handle;
use crate::metrics::Metrics;
use crate::replica::Secret;

mod guard;
mod journal;
mod reads;
mod verbs;

/// Whether traffic may be sent here, as far as the application's side of Pulsegate knows; `/readyz` adds whether a
/// route exists. Clones share the same flags.
#[derive(Clone, Default, Debug)]
pub struct Readiness(Arc<Flags>);

#[derive(Default, Debug)]
struct Flags {
    bound: AtomicBool,
    draining: AtomicBool,
}

impl Readiness {
    /// Every listener for applications is bound.
    pub fn listener_bound(&self) {
        self.0.bound.store(true, Relaxed);
    }

    /// Pulsegate is ending: no new connections, please.
    pub fn draining(&self) {
        self.0.draining.store(true, Relaxed);
    }

    /// Why not, if not.
    fn refusal(&self) -> Option<&'static str> {
        if self.0.draining.load(Relaxed) {
            Some("draining")
        } else if !self.0.bound.load(Relaxed) {
            Some("the listener is not bound yet")
        } else {
            None
        }
    }
}

/// Bounds on what clients can cost. The default is meant for production; tests shorten the times.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Longest wait for control's answer to a verb; a planned move with drain and fence fits well within it.
    pub answer_within: Duration,
    /// Longest wait for a request's head (and so the longest idle time of a kept connection) and for its body.
    pub request_within: Duration,
    /// Longest time that a client may leave sent data unread before its connection is cut.
    pub read_within: Duration,
    /// A comment is sent on an event stream after this long without an event.
    pub keep_alive: Duration,
    /// Connections at once; further ones wait in the system's backlog.
    pub connections: usize,
    /// Event streams at once, fewer than `connections` so that probes always find a place.
    pub streams: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            answer_within: Duration::from_secs(30),
            request_within: Duration::from_secs(30),
            read_within: Duration::from_secs(30),
            keep_alive: Duration::from_secs(15),
            connections: 128,
            streams: 32,
        }
    }
}

/// All that the admin server needs.
#[derive(Debug)]
pub struct Server {
    /// Where it serves; bound by the caller.
    pub listener: TcpListener,
    /// Snapshots, events and the request channel.
    pub control: Handle,
    /// What `/metrics` renders.
    pub metrics: Arc<Metrics>,
    /// What `/readyz` says.
    pub readiness: Readiness,
    /// The bearer token that the verbs need. Without one only callers of this host should reach the listener.
    pub token: Option<Secret>,
    /// The replicas' names in the order of the configuration.
    pub replicas: Vec<Arc<str>>,
    /// Bounds.
    pub limits: Limits,
}

/// What the routes share.
struct Shared {
    control: Handle,
    metrics: Arc<Metrics>,
    readiness: Readiness,
    token: Option<Secret>,
    replicas: Vec<Arc<str>>,
    limits: Limits,
    journal: journal::Journal,
    streams: Arc<Semaphore>,
    /// True once the server is ending: streams end, connections finish what they are at.
    closing: watch::Receiver<bool>,
}

impl Shared {
    /// Resolves once the server is ending.
    async fn closed(&self) {
        let mut closing = self.closing.clone();
        // An error says that the server is gone altogether.
        let _ = closing.wait_for(|closing| *closing).await;
    }
}

/// How long requests under way may take after shutdown.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Pause after a failed `accept`: out of descriptors, most likely, and retrying at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);

impl Server {
    /// Serves until `shutdown` resolves, then lets requests under way finish for at most a second. Dropping the
    /// future ends everything at once.
    ///
    /// Events are recorded from this call on, not from the first poll of the future.
    pub fn serve(self, shutdown: impl Future<Output = ()>) -> impl Future<Output = ()> {
        let (close, closing) = watch::channel(false);
        let events = self.control.events.subscribe();
        let shared = Arc::new(Shared {
            control: self.control,
            metrics: self.metrics,
            readiness: self.readiness,
            token: self.token,
            replicas: self.replicas,
            limits: self.limits,
            journal: journal::Journal::default(),
            streams: Arc::new(Semaphore::new(self.limits.streams)),
            closing,
        });
        let listener = self.listener;
        async move {
            let mut connections = JoinSet::new();
            let accepting = accept_all(&listener, &shared, &mut connections);
            tokio::select! {
                () = shutdown => {}
                never = accepting => match never {},
                never = shared.journal.record(events) => match never {},
            }
            drop(listener);
            close.send_replace(true);
            let all_done = async { while connections.join_next().await.is_some() {} };
            if tokio::time::timeout(LAST_ANSWERS, all_done).await.is_err() {
                tracing::debug!("admin connections cut at shutdown");
            }
        }
    }
}

async fn accept_all(
    listener: &TcpListener,
    shared: &Arc<Shared>,
    connections: &mut JoinSet<()>,
) -> Infallible {
    let places = Arc::new(Semaphore::new(shared.limits.connections));
    let router = routes(shared.clone());
    loop {
        // Never closed, so the permit is always there in the end.
        let place = places.clone().acquire_owned().await;
        match listener.accept().await {
            Ok((stream, peer)) => {
                let connection = serve_connection(stream, peer, router.clone(), shared.clone());
                connections.spawn(async move {
                    connection.await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "admin listener: accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn serve_connection(stream: TcpStream, peer: SocketAddr, router: Router, shared: Arc<Shared>) {
    if let Err(error) = tune(&stream, shared.limits.read_within) {
        tracing::debug!(%peer, %error, "admin connection not tuned");
    }
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.limits.request_within)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = shared.closed() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "admin connection ended");
    }
}

/// A client that is gone, or that leaves its window closed, is cut by the system after `read_within`.
fn tune(stream: &TcpStream, read_within: Duration) -> io::Result<()> {
    stream.set_nodelay(true)?;
    socket2::SockRef::from(stream).set_tcp_user_timeout(Some(read_within))
}

fn routes(shared: Arc<Shared>) -> Router {
    let guarded = Router::new()
        .merge(reads::guarded())
        .merge(verbs::routes())
        .route_layer(axum::middleware::from_fn_with_state(shared.clone(), guard::check));
    Router::new()
        .merge(reads::open())
        .merge(guarded)
        .fallback(reads::no_such_path)
        .method_not_allowed_fallback(reads::no_such_method)
        .with_state(shared)
}
